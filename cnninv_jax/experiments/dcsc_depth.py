"""Which layer loses its support first, how noise grows from layer to layer, and how an error spreads: depth 1 to 5.

Bound (3) of Murray 2018 adds one term per layer. The study counts the layers' failures themselves, over supports and
signs, for models of every depth; measures the noise that each layer hands on beside the recursion that the bounds need;
and follows passes beyond their first loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from cnninv_jax import dcsc
from cnninv_jax.dcsc.generate import coherences
from cnninv_jax.experiments.dcsc_depth_cells import Cell, Sampled, cell_of, sample_paths, spread_of
from cnninv_jax.experiments.dcsc_depth_tables import depth_tables
from cnninv_jax.experiments.dcsc_dictionaries import Dictionaries, build
from cnninv_jax.experiments.dcsc_dictionaries import check as check_sizes
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class DepthParameters(Dictionaries):
    """Sizes of the layers, supports, noise, and how many draws."""

    D: int = 48
    """Signal length per axis."""
    M: int = 256
    """Channels of the signal."""
    num_filters: tuple[int, ...] = (96, 48, 32, 24, 16)
    """Filters n_1, n_2, ... of the layers, the one next to the signal first; their number is the largest depth."""
    ell: int = 8
    """Filter length per axis, in every layer."""
    nonzeros: int = 3
    """Non-zero entries of an atom of layers 2, 3, ..., of equal size and random sign."""
    support: tuple[int, ...] = (81,)
    """Non-zeros of one layer's X^(l), see --fixed."""
    fixed: Literal["bottom", "deepest"] = "bottom"
    """Which layer has as many non-zeros at every depth: X^(1), and X^(L) has nonzeros^(L-1) times fewer; or X^(L), and
    X^(1) has as many times more."""
    noise: tuple[float, ...] = (0.0, 3.0)
    """Levels |V^(0)|_{2,inf} / |X_min^(1)| of Gaussian noise on the signal."""
    paths: int = 6
    """Supports of every cell, each under a noise of its own."""
    num_draws: int = 100
    """Draws of signs for every support."""
    spread_draws: int = 128
    """Whole forward passes at the largest depth for every --support and --noise, followed past their first loss."""
    delta: float = 0.01
    """Probability delta_l of every layer that the probabilistic recursion of the noise puts up with."""


def deepest_count(p: DepthParameters, support: int, depth: int) -> int:
    """Return the non-zeros of X^(L)."""
    return max(support // p.nonzeros ** (depth - 1), 1) if p.fixed == "bottom" else support


def _compute(parameters: DepthParameters, options: StudyOptions, folder: Path) -> Findings:
    check(parameters)
    # From few to many, whatever the order they were named in.
    p = dataclasses.replace(
        parameters, support=tuple(sorted(parameters.support)), noise=tuple(sorted(parameters.noise))
    )
    cells, spread = [], []
    root = jax.random.key(options.seed)
    bank_key, sample_key, draw_key, spread_key = jax.random.split(root, 4)
    depths = range(1, len(p.num_filters) + 1)
    steps = len(depths) * len(p.support) * (p.paths + len(p.noise)) + len(p.support) * len(p.noise)
    with progress_bar("failures by layer", steps, quiet=options.quiet) as bar:
        mu = coherences(build(bank_key, p, depths[-1], options.precision))
        for depth in depths:
            model = build(bank_key, p, depth, options.precision)
            most = deepest_count(p, p.support[-1], depth)
            for support in p.support:
                key = jax.random.fold_in(jax.random.fold_in(sample_key, depth), support)
                sampled = sample_paths(key, p, model, mu[:depth], deepest_count(p, support, depth), bar, room=most)
                for level in p.noise:
                    place = folder / f"depth-{depth}-support-{support}-noise-{level!r}"
                    run_key = jax.random.fold_in(jax.random.fold_in(draw_key, depth), support)
                    cells.append(cell_of(run_key, p, sampled, support, level, place, bar))
                if depth == depths[-1]:
                    spread += [
                        _spread(jax.random.fold_in(spread_key, support), p, model, sampled, support, level, folder, bar)
                        for level in p.noise
                    ]
    content = {"cells": [dataclasses.asdict(cell) for cell in cells], "spread": spread}
    return Findings(content, depth_tables(p, cells, spread), _dataset(cells))


def _spread(
    key: jax.Array, p: DepthParameters, model: dcsc.Layers, sampled: Sampled, support: int, level: float, folder: Path,
    bar: Any,
) -> dict[str, Any]:  # fmt: skip
    place = folder / f"spread-support-{support}-noise-{level!r}"
    found = {"support": support, "noise": level, **spread_of(key, p, model, sampled, level, place)}
    bar.advance(1, note=f"spread of errors, support {support}, noise {level:g}")
    return found


def check(p: DepthParameters) -> None:
    """Refuse sizes that do not fit, in the words of the command line.

    Raises:
        ValueError: see the messages.
    """
    if not p.num_filters:
        raise ValueError("expected --num-filters of at least one layer, got none")
    check_sizes(p, len(p.num_filters))
    for name in ("paths", "num_draws", "spread_draws"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 31)
    if not p.support or len(set(p.support)) != len(p.support):
        raise ValueError(f"expected --support to be different numbers, at least one, got {p.support}")
    for number in p.support:
        positive(number, "--support", 1 << 31)
        least = p.nonzeros ** (len(p.num_filters) - 1)
        if p.fixed == "bottom" and number % least:
            raise ValueError(
                f"expected --support to be multiples of {least} with --fixed bottom, the non-zeros of X^(1) below one "
                f"of the deepest layer, got {number}; take fewer layers, fewer --nonzeros, or --fixed deepest"
            )
    if not p.noise or len(set(p.noise)) != len(p.noise) or not all(0 <= level < float("inf") for level in p.noise):
        raise ValueError(f"expected --noise to be different numbers of at least 0, one or more, got {p.noise}")
    if not 0 < p.delta < 1:
        raise ValueError(f"expected --delta between 0 and 1, got {p.delta}")


def _dataset(cells: list[Cell]) -> xr.Dataset:
    import xarray as xr

    depth = max(cell.depth for cell in cells)

    def padded(values: Any) -> np.ndarray:
        array = np.asarray(values, float)
        return np.pad(array, (0, depth - len(array)), constant_values=np.nan)

    names = ("first", "first_low", "first_high", "given", "given_low", "given_high", "intact", "zeta_mean",
             "zeta_largest", "sparsity", "coherence", "term", "limit")  # fmt: skip
    arrays: dict[str, Any] = {
        name: (("cell", "layer"), np.stack([padded(getattr(cell, name)) for cell in cells])) for name in names
    }
    for name in ("depth", "support", "noise", "deepest"):
        arrays[name] = ("cell", np.asarray([getattr(cell, name) for cell in cells]))
    return xr.Dataset(arrays, coords={"layer": np.arange(1, depth + 1)})


def _figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    from cnninv_jax.experiments.dcsc_depth_figure import depth_figure

    return depth_figure(report, dataset)


DCSC_DEPTH = Study(
    name="dcsc-depth",
    title="Failures layer by layer: first loss, propagated noise, and how an error spreads",
    source="Murray & Tanner 2018, section 3 and bound (3)",
    parameters=DepthParameters,
    compute=_compute,
    figure=_figure,
)
