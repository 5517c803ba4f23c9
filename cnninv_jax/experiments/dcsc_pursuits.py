"""How much of the activation path do other pursuits recover? One pass of thresholds against solvers, on the same draws.

Murray 2018 analyses one pass with hard thresholds; the layers' problems can also be solved, by l1 minimisation or by
iterative hard thresholding, step by step where a pass takes one product a layer: the study counts the steps and takes
the time. Draws of one S share codes, signs and noise across all pursuits.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax._typing import Array, Float
from cnninv_jax.dcsc.bounds import uniform_bound
from cnninv_jax.dcsc.generate import coherences, generate
from cnninv_jax.dcsc.model import respond
from cnninv_jax.experiments.dcsc_dictionaries import Dictionaries, build
from cnninv_jax.experiments.dcsc_dictionaries import check as check_sizes
from cnninv_jax.experiments.dcsc_pursuits_draws import METHODS, PursuitDraw, Solvers
from cnninv_jax.experiments.dcsc_pursuits_tables import pursuit_tables
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.sparsity.norms import stripe_norm
from cnninv_jax.sparsity.stripes import greedy_gap

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Draws per block and side by side on a CPU: iterations wait for the slowest draw beside them.
BLOCK, LANES = 25, 4
#: Counted per layer.
COUNTS = ("hits", "misses", "false_alarms", "steps")


@dataclasses.dataclass(frozen=True)
class PursuitParameters(Dictionaries):
    """Sizes, the grid of S, and how the pursuits go about it."""

    D: int = 64
    """Signal length per axis."""
    num_filters: tuple[int, ...] = (32, 16, 8)
    """Filters n_1, n_2, ... of the layers, the one next to the signal first; a model of depth L takes the first L."""
    depth: int = 2
    """Layers L."""
    S: tuple[int, ...] = (2, 4, 8, 16, 32, 48)
    """Largest S_1, non-zeros in a stripe of the layer next to the signal; codes are filled until no place is left."""
    noise: float = 0.1
    """Noise V^(0) on the signal: its patch norm |V|_{2,inf} over |X_min^(1)|; 0 for none."""
    num_codes: int = 10
    """Deepest codes for each S; a draw takes one of them, new signs and new noise."""
    num_draws: int = 100
    """Draws for each S."""
    lam: float = 0.05
    """Weight of the l1 norm of basis pursuit, as a fraction of every layer's lam_max."""
    tol: float = 1e-3
    """Relative duality gap of basis pursuit."""
    max_steps: int = 1000
    """Most steps of basis pursuit in a layer."""
    iht_steps: int = 50
    """Most steps of IHT in a layer."""
    iht_tol: float | None = None
    """Residual over |x| at which IHT stops, in every layer; 1.05 times the noise's norm over |x| by default, at least
    1e-5: the truth leaves the noise as its residual, and codes that leave less of it fit the noise."""
    gap_cases: int = 5
    """Responses for each S on which the greedy stripe projection is compared with the exact one; in one dimension."""


def check(p: PursuitParameters) -> None:
    """Refuse sizes that do not fit, in the words of the command line.

    Raises:
        ValueError: see the messages.
    """
    check_sizes(p, p.depth)
    for name in ("num_codes", "num_draws", "max_steps", "iht_steps", "gap_cases"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 31)
    if not p.S or len(set(p.S)) != len(p.S):
        raise ValueError(f"expected --S to be different numbers, at least one, got {p.S}")
    for value in p.S:
        positive(value, "--S", 1 << 31)
    if not (math.isfinite(p.noise) and p.noise >= 0):
        raise ValueError(f"expected --noise of at least 0, got {p.noise}")
    for name in ("lam", "tol", "iht_tol"):
        value = getattr(p, name)
        if value is not None and not 0 < value < 1:
            raise ValueError(f"expected --{name.replace('_', '-')} between 0 and 1, got {value}")


def _compute(parameters: PursuitParameters, options: StudyOptions, folder: Path) -> Findings:
    p = dataclasses.replace(parameters, S=tuple(sorted(parameters.S)))
    check(p)
    model_key, code_key, draw_key, gap_key = jax.random.split(jax.random.key(options.seed), 4)
    model = build(model_key, p, p.depth, options.precision)
    mu = coherences(model)
    codes = [_codes(jax.random.fold_in(code_key, S), model, p, S, mu) for S in p.S]
    solvers = Solvers(p.lam, p.tol, p.max_steps, p.iht_steps, p.iht_tol)
    level = jnp.asarray(p.noise, model[0].op.dtype)
    block, lanes = (BLOCK, LANES) if jax.default_backend() == "cpu" else (None, None)
    run = functools.partial(mc.run, chunk_size=block, lanes=lanes, name="dcsc-pursuits")
    cells, seconds = [], []
    with progress_bar("pursuits", len(p.S) * len(METHODS), quiet=options.quiet) as bar:
        for S, given in zip(p.S, codes, strict=True):
            for name in METHODS:
                draw = PursuitDraw(model, given, level, solvers, (name,))
                # One key for all pursuits of one S: the same codes, signs and noise.
                key = jax.random.fold_in(draw_key, S)
                if len(cells) < len(METHODS):
                    # What a program's first run costs beside compiling is no part of the time per draw.
                    run(draw, key, 1, progress=False)
                clock = Clock()
                with results_folder(folder / f"S{S}-{name}") as place:
                    result = run(draw, key, p.num_draws, out=place, progress=clock)
                cells.append(result)
                seconds.append(clock.median())
                bar.advance(1, note=f"S = {S}, {METHODS[name]}: {float(result[f'{name}_path']['proportion']):.2f}")
    sizes = [_sizes(model, given) for given in codes]
    draws = [PursuitDraw(model, given, level, solvers) for given in codes]
    gaps = [_gaps(gap_key, draw, S, p) for draw, S in zip(draws, p.S, strict=True)] if p.rank == 1 else []
    dataset = _dataset(p, cells, seconds, sizes, gaps)
    bound = uniform_bound(float(mu[0]), 1.0, 1.0, p.noise)
    content = {
        "coherence": np.asarray(mu, float),
        "uniform_bound": max(float(bound.limit), 0.0),
        "atom_dimension": model[0].op.filters[0].size,
        "entries": [layer.signs.size for layer in model],
        "half": {name: _half(p.S, dataset["path"].sel(pursuit=name).to_numpy()) for name in METHODS},
        "lam_fraction": p.lam,
    }
    return Findings(content, pursuit_tables(p, content, dataset), dataset)


class Clock:
    """Takes the time between the reports of a run, which come after every block."""

    def __init__(self) -> None:
        self._reports: list[tuple[float, int]] = []

    def __call__(self, report: mc.Progress) -> None:
        """Receive a report."""
        if report.stage == "running":
            self._reports.append((time.perf_counter(), report.done))

    def median(self) -> float:
        """Return the seconds per draw, median over blocks; NaN where none was computed in this session."""
        reports = itertools.pairwise(self._reports)
        found = [(now - then) / (done - before) for (then, before), (now, done) in reports if done > before]
        return statistics.median(found) if found else math.nan


def _codes(
    key: jax.Array, model: dcsc.Layers, p: PursuitParameters, S: int, mu: Float[Array, " L"]
) -> Float[Array, "C n_L *n"]:
    """Return the deepest codes for one S."""
    limits = [S] + [None] * (p.depth - 1)
    try:
        return generate(key, model, sparsity=limits, columns=p.num_codes, coherence=mu).path[-1]
    except ValueError as error:
        raise ValueError(f"--S {S} cannot be had: {error}") from None


@jax.jit
def _sizes(model: dcsc.Layers, codes: Float[Array, "C n_L *n"]) -> tuple[Array, Array]:
    """Return the non-zeros of every layer and the S reached, [C, L] both."""

    def one(code: Array) -> tuple[Array, Array]:
        path = dcsc.reverse_pass(model, code)[1:]
        reached = [
            stripe_norm(level, layer.op.length, stride=layer.op.stride, padding=layer.op.padding)
            for layer, level in zip(model, path, strict=True)
        ]
        return jnp.stack([jnp.sum(level != 0) for level in path]), jnp.stack(reached)

    return jax.lax.map(one, codes)


def _gaps(key: jax.Array, draw: PursuitDraw, S: int, p: PursuitParameters) -> list[float]:
    """Return the share of the exact projection's energy that greedy keeps, on responses of the first layer."""
    first = draw.model[0].op

    @jax.jit
    def responses(draw: PursuitDraw, own: jax.Array) -> Array:
        problem = draw.problem(own)
        return respond(problem.model[0], problem.x)

    keys = jax.random.split(jax.random.fold_in(key, S), p.gap_cases)
    # Stripes are intervals only where they end at the border: both projections are that of valid padding.
    return [greedy_gap(responses(draw, own), S, first.length, stride=first.stride) for own in keys]


def _dataset(
    p: PursuitParameters,
    cells: list[mc.Result],
    seconds: list[float],
    sizes: list[tuple[Array, Array]],
    gaps: list[list[float]],
) -> xr.Dataset:
    """Return what was counted by method, S and layer."""
    import xarray as xr

    def collected(output: str, statistic: str) -> np.ndarray:
        # One pass takes no steps and always ends.
        found = [
            np.asarray(result[f"{name}_{output}"][statistic], float)
            if f"{name}_{output}" in result.statistics
            else np.nan
            for result, name in zip(cells, list(METHODS) * len(p.S), strict=True)
        ]
        whole = np.stack(np.broadcast_arrays(*found))
        return whole.reshape(len(p.S), len(METHODS), *whole.shape[1:]).swapaxes(0, 1)

    arrays: dict[str, Any] = {}
    for output in ("path", "complete"):
        share = collected(output, "proportion")
        ends = mc.wilson(np.rint(share * p.num_draws), p.num_draws)
        for end, values in zip(("", "_low", "_high"), (share, *ends), strict=True):
            arrays[output + end] = (("pursuit", "S"), values)
    arrays["unfinished"] = (("pursuit", "S"), collected("unfinished", "proportion"))
    for output in COUNTS:
        arrays[output] = (("pursuit", "S", "layer"), collected(output, "mean"))
    arrays["seconds"] = (("pursuit", "S"), np.array(seconds, float).reshape(len(p.S), len(METHODS)).T)
    counts, reached = (np.stack([np.asarray(pair[at], float) for pair in sizes]) for at in range(2))
    arrays["non_zeros"] = (("S", "layer"), counts.mean(axis=1))
    arrays["reached"] = (("S", "layer"), reached.mean(axis=1))
    arrays["reached_least"] = (("S", "layer"), reached.min(axis=1))
    if gaps:
        arrays["kept"] = (("S", "case"), np.asarray(gaps))
    coords = {"S": np.asarray(p.S), "pursuit": list(METHODS), "layer": np.arange(1, p.depth + 1)}
    return xr.Dataset(arrays, coords=coords)


def _half(S: tuple[int, ...], share: np.ndarray) -> int | None:
    """Return the largest S up to which at least half of the paths are recovered at every S."""
    below = np.flatnonzero(~(share >= 0.5))
    last = (below[0] if below.size else len(S)) - 1
    return S[last] if last >= 0 else None


def _figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    from cnninv_jax.experiments.dcsc_pursuits_figure import pursuits_figure

    return pursuits_figure(report, dataset)


DCSC_PURSUITS = Study(
    name="dcsc-pursuits",
    title="Which pursuits recover the activation path? Thresholds, projections and solvers on the same draws",
    source="Murray & Tanner 2018, eq. (1); Papyan, Romano and Elad 2017",
    parameters=PursuitParameters,
    compute=_compute,
    figure=_figure,
)
