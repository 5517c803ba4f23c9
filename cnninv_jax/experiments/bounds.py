"""How true and how loose are the bounds of Gilbert et al. 2017? App. B with exact constants, Thm 3.1 with its C.

Tiny layers, whose delta_k and delta_2k are known exactly in every draw. Random banks of many channels have small
constants, so that the bounds speak; the number of channels is drawn too, down to where they say nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from cnninv_jax import filters as ensembles
from cnninv_jax import rip
from cnninv_jax.experiments.bounds_calibration import (
    DELTA_BINS,
    cells_violated,
    compare_theorem_3_1,
    deltas,
    exceedances,
    looseness,
)
from cnninv_jax.experiments.bounds_draws import BOUNDS, Bank, BoundsDraw, ConstantsDraw
from cnninv_jax.experiments.bounds_table import bounds_tables
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.gilbert2017 import Fig2Parameters
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions
from cnninv_jax.montecarlo import Extremes, Histogram, Moments, Result, run, wilson
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.operators import conv_operator

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Draws whose raw sides are kept, and how many of them the figure shows.
MOST_KEPT, SHOWN = 200_000, 3000
#: Draws per block and side by side on a CPU.
BLOCK, LANES = 2048, 256


@dataclasses.dataclass(frozen=True)
class BoundsParameters:
    """Sizes of the tiny layers; the defaults make every bound speak in most draws."""

    K: int = 4
    """Number of filters."""
    M: int = 64
    """Most input channels; a draw has M, M/2, M/4, ... of them, one of these numbers at random."""
    halvings: int = 5
    """How often M is halved."""
    ell: int = 32
    """Filter length."""
    D: int = 34
    """Signal length."""
    stride: int = 1
    """Stride t of the convolution; (D - ell) / t must be an integer."""
    k: int = 2
    """Non-zeros of the code z, at most one per filter."""
    values: Literal["uniform", "gaussian", "signs"] = "uniform"
    """Law of the non-zeros: uniform on [-1, 1], N(0, 1), or +-1."""
    num_draws: int = 100_000
    """Draws of filters and a code, each with its exact constants."""
    calibration_K: int = 6
    """Number of filters in Thm 3.1's cells."""
    calibration_k: tuple[int, ...] = (1, 2, 3, 4)
    """Non-zeros in Thm 3.1's cells; all of them see the same filters."""
    calibration_strides: tuple[int, ...] = (1, 32)
    """Strides in Thm 3.1's cells; D follows, n stays, so that l / D alone changes. Each is compiled anew."""
    calibration_draws: int = 20_000
    """Draws of filters per stride for Thm 3.1."""
    starts: int = 64
    """Starts of the search for a large |W_S W_S^T - I| at the size of Fig. 2; 0 leaves that size out."""

    @property
    def shifts(self) -> int:
        """Shifts n of a filter."""
        return (self.D - self.ell) // self.stride + 1

    @property
    def channels(self) -> tuple[int, ...]:
        """The numbers of channels that are drawn."""
        return tuple(self.M >> step for step in range(self.halvings + 1))


def _compute(parameters: BoundsParameters, options: StudyOptions, folder: Path) -> Findings:
    p = parameters
    draw = checked_draw(p, options.precision)
    main = _run(draw, options, folder / "bounds", p.num_draws, "both sides of the bounds",
                _statistics(), ("observed", "bound") if p.num_draws <= MOST_KEPT else ())  # fmt: skip
    sample = main
    if p.num_draws > MOST_KEPT:
        shown = ("observed", "bound")
        sample = _run(draw, options, folder / "shown", SHOWN, "both sides, to be drawn", _statistics(), shown)
    counts, draws = zip(*(_constants(p, stride, options, folder) for stride in p.calibration_strides), strict=True)
    failures = np.stack(counts)  # [strides, channels, k, delta]
    drawn = np.stack(draws)
    theorem, curves = compare_theorem_3_1(p, failures, drawn)
    content: dict[str, Any] = {
        "n": p.shifts,
        "channels": p.channels,
        "bounds": _bounds(main),
        "by_channels": _by_channels(main),
        "equation_4": _equation_4(p, main),
        "paper_size": _paper_size(p, options),
        "theorem_3_1": theorem,
    }
    return Findings(content, bounds_tables(p, content), _dataset(p, sample, main, failures, drawn, curves))


def checked_draw(p: BoundsParameters, precision: str) -> BoundsDraw:
    """Return the draw of these parameters.

    Raises:
        ValueError: sizes that do not fit, in the words of the command line.
    """
    for name in ("K", "M", "ell", "D", "stride", "k", "num_draws", "calibration_K", "calibration_draws"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 32)
    for name in ("calibration_k", "calibration_strides"):
        if not getattr(p, name):
            raise ValueError(f"expected at least one value of --{name.replace('_', '-')}, got none")
        for value in getattr(p, name):
            positive(value, "--" + name.replace("_", "-"), 1 << 31)
    if p.starts:
        positive(p.starts, "--starts", 1 << 24)
    if not 0 <= p.halvings < p.M.bit_length():
        raise ValueError(f"expected --halvings from 0 to {p.M.bit_length() - 1}, so that a channel of --M {p.M} is "
                         f"left, got {p.halvings}")  # fmt: skip
    for most, name in ((p.K, "k"), (p.calibration_K, "calibration_k")):
        values = getattr(p, name)
        if np.max(values) > most:
            raise ValueError(f"expected --{name.replace('_', '-')} of at most {most} (one non-zero per filter), got "
                             f"{values}")  # fmt: skip
    draw = BoundsDraw(Bank(p.K, p.M, p.ell, p.D, p.stride, p.halvings, precision), p.k, p.values)
    jax.eval_shape(draw, jax.random.key(0))
    return draw


def _run(draw: Any, options: StudyOptions, folder: Path, num_draws: int, name: str,
         statistics: Mapping[str, Any], keep: tuple[str, ...] = ()) -> Result:  # fmt: skip
    block, lanes = (BLOCK, LANES) if jax.default_backend() == "cpu" else (None, None)
    with results_folder(folder) as place:
        return run(
            draw,
            options.seed,
            num_draws,
            statistics=statistics,
            keep=keep,
            out=place,
            chunk_size=block,
            lanes=lanes,
            progress=not options.quiet,
            name=name,
        )


def _statistics() -> dict[str, Any]:
    deltas = (Moments(), Histogram(0.0, 2.0, 2 * DELTA_BINS * 5))
    return {
        "looseness": (Moments(), Extremes(), Histogram(-0.05, 8.0, 3220)),
        "delta_k": deltas,
        "delta_2k": deltas,
        "deviation": Histogram(0.0, 1.0, DELTA_BINS),
        "theorem": Moments(),
        "observed": Extremes(),
        "bound": Extremes(),
    }


def _bounds(result: Result) -> dict[str, dict[str, Any]]:
    """Return for every bound how often it speaks, holds, and by how much."""
    median, _, _ = result.quantile("looseness", 0.5)
    smallest = result["looseness"]["min"]
    shares = {name: result[name]["proportion"] for name in ("finite", "informative", "zero")}
    counts = {name: result[name]["successes"] for name in ("violated", "exceeded", "informative_violated")}
    draws = int(result["violated"]["count"][0])
    _, most = wilson(counts["violated"], draws)
    found = {}
    for at, name in enumerate(BOUNDS):
        found[name] = {
            "title": BOUNDS[name],
            "draws": draws,
            **{key: float(values[at]) for key, values in shares.items()},
            **{key: int(values[at]) for key, values in counts.items()},
            "violation_probability_at_most": float(most[at]),
            "loose_median": float(10.0 ** median[at]),
            "loose_least": float(10.0 ** smallest[at]),
        }
    return found


def _by_channels(result: Result) -> dict[str, Any]:
    quantiles = {
        name: {f"{q:g}": np.asarray(result.quantile(name, q)[0]) for q in (0.05, 0.5, 0.95)}
        for name in ("delta_k", "delta_2k")
    }
    finite, informative = np.moveaxis(np.asarray(result["theorem"]["mean"]), -1, 0)
    return {**quantiles, "draws": result["delta_k"]["count"], "finite": finite, "informative": informative}


def _concentration(p: BoundsParameters) -> np.ndarray:
    """Return eq. (4)'s bound for Gaussian filters, [channels, deltas]."""
    degrees = np.array(p.channels, float)[:, None] * p.ell
    return np.asarray(rip.gaussian_concentration(deltas()[None], degrees).unclipped, float)


def _equation_4(p: BoundsParameters, result: Result) -> dict[str, Any]:
    """Return eq. (4) of random codes beside its bound with numbers."""
    failures = exceedances(result, "deviation")
    draws = np.asarray(result["deviation"]["count"])[:, None]
    bound = _concentration(p)
    return {"looseness": looseness(bound, failures, draws), "cells_violated": cells_violated(bound, failures, draws)}


def _constants(p: BoundsParameters, stride: int, options: StudyOptions, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return how many banks have delta_k > delta, [channels, k, deltas], and how many banks there are, [channels]."""
    length = (p.shifts - 1) * stride + p.ell
    bank = Bank(p.calibration_K, p.M, p.ell, length, stride, p.halvings, options.precision)
    result = _run(ConstantsDraw(bank, p.calibration_k), options, folder / f"constants-{stride}", p.calibration_draws,
                  f"delta_k at stride {stride}", {"delta_k": Histogram(0.0, 1.0, DELTA_BINS)})  # fmt: skip
    return exceedances(result, "delta_k"), np.asarray(result["delta_k"]["count"])[:, 0]


def _paper_size(p: BoundsParameters, options: StudyOptions) -> dict[str, float] | None:
    """Return what is certain of one bank at the size of Fig. 2, where supports are too many to enumerate."""
    if not p.starts:
        return None
    s = Fig2Parameters()
    bank = ensembles.gaussian(jax.random.key(options.seed), s.K, s.M, s.ell, dtype=options.precision)
    op = conv_operator(bank, s.D, stride=s.stride)
    found = rip.constant(op, s.k, exact_limit=0, starts=p.starts, steps=15, sweeps=1, num_random=0)
    lower = float(found.lower)
    return {
        **{name: float(getattr(s, name)) for name in ("K", "M", "ell", "D", "k")},
        "n": float(op.shifts[0]),
        "ratio": rip.measurement_ratio(s.M, s.ell, s.D),
        "lower": lower,
        "upper": float(found.upper),
        # Both constants only grow from here, delta_2k from delta_k.
        "bound_at_least": float(rip.theorem_3_3(lower, lower)),
        "refined_at_least": float(rip.theorem_3_3_refined(lower, lower)),
    }


def _dataset(
    p: BoundsParameters,
    sample: Result,
    main: Result,
    failures: np.ndarray,
    draws: np.ndarray,
    curves: Mapping[str, np.ndarray],
) -> xr.Dataset:
    import xarray as xr

    shown = slice(0, SHOWN)
    return xr.Dataset(
        {
            "observed": (("draw", "bound_name"), sample.draws["observed"][shown], {"long_name": "left side"}),
            "bound": (("draw", "bound_name"), sample.draws["bound"][shown], {"long_name": "right side"}),
            "deviations": (
                ("M", "delta"),
                exceedances(main, "deviation"),
                {"long_name": "draws beyond delta, eq. (4)"},
            ),
            "deviation_draws": ("M", np.asarray(main["deviation"]["count"])),
            "failures": (("stride", "M", "k", "delta"), failures, {"long_name": "banks with delta_k > delta"}),
            "banks": (("stride", "M"), draws),
            "equation_4": (("M", "delta"), np.minimum(_concentration(p), 1.0), {"long_name": "bound of eq. (4)"}),
            **{
                f"theorem_3_1_{name}": (("stride", "M", "k", "delta"), curve, {"long_name": f"bound, {name}"})
                for name, curve in curves.items()
            },
        },
        {
            "bound_name": list(BOUNDS),
            "M": list(p.channels),
            "k": list(p.calibration_k),
            "delta": deltas(),
            "stride": list(p.calibration_strides),
        },
    )


def _figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    from cnninv_jax.experiments.bounds_figure import bounds_figure

    return bounds_figure(report, dataset)


GILBERT_BOUNDS = Study(
    name="gilbert-bounds",
    title="The bounds of the reconstruction theory against what is observed, with exact model-RIP constants",
    source="Gilbert et al. 2017, Thms 3.1 and 3.3, Lemmas B.1 to B.4",
    parameters=BoundsParameters,
    compute=_compute,
    figure=_figure,
)
