"""When does a layer's code come back? Recovery over (k, M l^2 / D), by one IHT step and by converged IHT.

Gilbert et al. 2017, Thm 3.1 asks for M l^2 / D >= C k (log K + log n) with an unspecified C, and Thm 3.3 bounds the
error of one step; Alg. 1 would go on. The study counts what both recover and puts one fitted C to each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.phase_draws import METHODS, PhaseDraw
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, Table
from cnninv_jax.montecarlo import Moments, sweep
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: The paper's sizes (Fig. 2), through which the tables cut.
PAPER_CHANNELS, PAPER_K = 32, 10
#: Probabilities, by output: what half of the draws are counted of.
PROBABILITIES = tuple(f"{method}_{name}" for method in METHODS for name in ("support", "accurate"))
#: Outputs whose means are kept.
MEANS = (*(f"{method}_{name}" for method in METHODS for name in ("found", "energy")), "iht_steps")
#: Headings of the two ways of recovery.
SHORT = {"one_step": "one step", "iht": "converged"}
#: Draws per block and side by side on a CPU. A slice waits for its slowest draw: 4 lanes take half the processor time
#: of 32 where some draws converge and others do not.
BLOCK, LANES = 20, 4


@dataclasses.dataclass(frozen=True)
class PhaseParameters:
    """Sizes, laws and grid of the phase diagram; the fixed sizes are those of Gilbert et al. 2017, Fig. 2."""

    K: int = 96
    """Number of filters."""
    ell: int = 5
    """Filter length."""
    D: int = 32
    """Signal length."""
    stride: int = 1
    """Stride t of the convolution; (D - ell) / t must be an integer."""
    M: tuple[int, ...] = (2, 4, 8, 16, 32, 80, 200)
    """Input channels, one row of cells each; each value is compiled anew."""
    k: tuple[int, ...] = (1, 2, 4, 6, 8, 10, 15, 20, 30, 40)
    """Non-zeros of the code z, one column of cells each; all of them share one program."""
    num_draws: int = 200
    """Draws per cell, each with filters and a code of its own."""
    values: Literal["uniform", "gaussian", "signs"] = "uniform"
    """Law of the non-zeros: uniform on [-1, 1], N(0, 1), or +-1. Of k uniform ones the smallest is about 1/k: one step
    rarely finds it, so that signs tell more about exact supports."""
    normalize: bool = False
    """Scale every Gaussian filter to norm 1 exactly."""
    threshold: float = 0.1
    """Relative error |x_hat - x| / |x| below which a signal counts as recovered."""
    step: Literal["normalized", "safe", "unit"] = "normalized"
    """Step of converged IHT: chosen in every iteration (normalized), 1 / |W|^2 (safe; slow, 50 steps are too few), or
    the paper's 1 (unit), which diverges where W W^T on a support is far from 1. The one step is the paper's."""
    num_steps: int = 50
    """Most steps of converged IHT. With 400 in place of 50, few cells change: the most at M = 8, k = 40, from 11% to
    28% exact supports."""
    tol: float = 1e-5
    """Relative residual at which IHT has converged; a non-zero of z below about this part of |z| counts for nothing."""

    @property
    def shifts(self) -> int:
        """Shifts n of a filter."""
        return (self.D - self.ell) // self.stride + 1


def _compute(parameters: PhaseParameters, options: StudyOptions, folder: Path) -> Findings:
    p = dataclasses.replace(parameters, M=tuple(sorted(parameters.M)), k=tuple(sorted(parameters.k)))
    draw = checked_draw(p, options.precision)
    block, lanes = (BLOCK, LANES) if jax.default_backend() == "cpu" else (None, None)
    with results_folder(folder / "sweep") as place:
        result = sweep(
            draw,
            options.seed,
            {"k": p.k, "M": p.M},
            p.num_draws,
            static=["M"],
            traced=["k"],
            out=place,
            statistics={name: Moments() for name in MEANS},
            chunk_size=block,
            lanes=lanes,
            progress=not options.quiet,
            spec={name: value for name, value in dataclasses.asdict(p).items() if name not in ("M", "k", "num_draws")},
            name="gilbert-phase",
            headline="iht_support",
        )
    ratio = ("M", [channels * p.ell**2 / p.D for channels in p.M], {"long_name": "M l^2 / D"})
    held = result.to_xarray().assign_coords(Mll_over_D=ratio)
    halves = {name: half_way(held, name) for name in PROBABILITIES}
    fits = {name: fit_theorem(p.k, found["Mll_over_D"], p.K, p.shifts) for name, found in halves.items()}
    lost = held["iht_not_converged_proportion"]
    content = {
        "n": p.shifts,
        "cells": held["cell_done"].size,
        "draws_per_cell": p.num_draws,
        "half": {name: {"k": p.k, **found} for name, found in halves.items()},
        "fits": fits,
        "not_converged": {"mean": float(lost.mean()), "largest": float(lost.max())},
    }
    return Findings(content, _tables(p, held, halves, fits), held)


def checked_draw(p: PhaseParameters, precision: str) -> PhaseDraw:
    """Return the draw of these parameters.

    Raises:
        ValueError: sizes or numbers that do not fit, in the words of the command line.
    """
    for name in ("K", "ell", "D", "stride", "num_draws", "num_steps"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 31)
    for name in ("M", "k"):
        if not getattr(p, name):
            raise ValueError(f"expected at least one value of --{name}, got none")
        for value in getattr(p, name):
            positive(value, f"--{name}", 1 << 31)
    for name in ("threshold", "tol"):
        if not (math.isfinite(getattr(p, name)) and getattr(p, name) > 0):
            raise ValueError(f"expected --{name} to be a positive number, got {getattr(p, name)}")
    if max(p.k) > p.K:
        raise ValueError(f"expected --k of at most K = {p.K} (one non-zero per filter), got {max(p.k)}")
    draw = PhaseDraw(p.K, p.ell, p.D, p.stride, max(p.k), p.values, p.normalize, p.threshold, p.step, p.num_steps,
                     p.tol, precision)  # fmt: skip
    jax.eval_shape(lambda key: draw(key, k=max(p.k), M=min(p.M)), jax.random.key(0))
    return draw


def crossing(positions: Sequence[float] | np.ndarray, curve: np.ndarray, level: float = 0.5) -> float:
    """Return where a curve last rises through a level, by linear interpolation over log positions.

    Args:
        positions: places in ascending order.
        curve: value at each place.
        level: the level.

    Returns:
        The place, or NaN where the curve ends below the level or never is below it.
    """
    x, y = np.log(np.asarray(positions, float)), np.asarray(curve, float)
    below = np.flatnonzero(~(y >= level))
    if not below.size or below[-1] == y.size - 1:
        return math.nan
    last = below[-1]
    share = (level - y[last]) / (y[last + 1] - y[last])
    return float(np.exp(x[last] + share * (x[last + 1] - x[last])))


def half_way(dataset: xr.Dataset, name: str) -> dict[str, list[float]]:
    """Return for every k the M l^2 / D at which half of the draws succeed, with a 95% interval.

    The ends are where Wilson's upper and lower bounds cross one half; NaN where that is outside of the grid.
    """
    places = dataset["Mll_over_D"].to_numpy()
    ends = {"Mll_over_D": "", "low": "_high", "high": "_low"}
    curves = {end: dataset[f"{name}_proportion{suffix}"].transpose("k", "M").to_numpy() for end, suffix in ends.items()}
    return {end: [crossing(places, row) for row in curve] for end, curve in curves.items()}


def fit_theorem(k: Sequence[int], positions: Sequence[float], num_filters: int, shifts: int) -> dict[str, float]:
    """Fit C of M l^2 / D = C k (log K + log n) (Gilbert et al. 2017, Thm 3.1) to measured places.

    Args:
        k: numbers of non-zeros.
        positions: measured M l^2 / D of each; NaN is left out.
        num_filters: K.
        shifts: n.

    Returns:
        ``C``, the geometric mean over k; ``factor``, by which the farthest place is off; ``exponent``, the slope of log
        M l^2 / D in log k, 1 for the theorem's form; ``points``, how many places there were. NaN where too few.
    """
    sizes, places = np.asarray(k, float), np.asarray(positions, float)
    there = np.isfinite(places)
    sizes, places = sizes[there], places[there]
    if not sizes.size:
        return {"C": math.nan, "factor": math.nan, "exponent": math.nan, "points": 0}
    logs = np.log(places / (sizes * (math.log(num_filters) + math.log(shifts))))
    exponent = float(np.polyfit(np.log(sizes), np.log(places), 1)[0]) if sizes.size > 1 else math.nan
    return {
        "C": float(np.exp(logs.mean())),
        "factor": float(np.exp(np.abs(logs - logs.mean()).max())),
        "exponent": exponent,
        "points": int(sizes.size),
    }


def _tables(
    p: PhaseParameters,
    dataset: xr.Dataset,
    halves: Mapping[str, Mapping[str, Sequence[float]]],
    fits: Mapping[str, Mapping[str, float]],
) -> tuple[Table, ...]:
    channels, size = nearest(p.M, PAPER_CHANNELS), nearest(p.k, PAPER_K)
    ratio = channels * p.ell**2 / p.D
    along_k = dataset.sel(M=channels)
    along_m = dataset.sel(k=size)
    places = [f"{value:g} ({m})" for value, m in zip(dataset["Mll_over_D"].to_numpy(), p.M, strict=True)]
    return (
        _slice(f"recovery at M l^2/D = {ratio:g} (M = {channels}), {p.values} values", "k", map(str, p.k), along_k, p),
        _slice(f"recovery at k = {size}, {p.values} values", "M l^2/D (M)", places, along_m, p),
        _half_table(p, halves, fits),
    )


def _slice(title: str, first: str, names: Iterable[str], cut: xr.Dataset, p: PhaseParameters) -> Table:
    headings = {"support": "support", "accurate": f"error < {p.threshold:g}", "found": "found"}
    columns = [first, *(f"{short}: {text}" for short in SHORT.values() for text in headings.values()), "not converged"]
    rows = []
    for at, name in enumerate(names):
        cells = []
        for method in METHODS:
            for output in headings:
                kind = "mean" if output == "found" else "proportion"
                numbers = [float(cut[f"{method}_{output}_{kind}{end}"][at]) for end in ("", "_low", "_high")]
                cells.append("{:.2f} ({:.2f}-{:.2f})".format(*numbers))
        rows.append((name, *cells, f"{float(cut['iht_not_converged_proportion'][at]):.2f}"))
    notes = (
        f"{p.num_draws} draws a cell; in brackets 95% intervals (Wilson's; Student's for the mean part found).",
        "support: the non-zeros stand exactly where those of z do. found: the part of them that does.",
        f"converged: step {p.step}, residual below {p.tol:g} |x| within {p.num_steps} steps; otherwise not converged.",
    )
    return Table(title, tuple(columns), tuple(rows), notes)


def _half_table(
    p: PhaseParameters,
    halves: Mapping[str, Mapping[str, Sequence[float]]],
    fits: Mapping[str, Mapping[str, float]],
) -> Table:
    columns = [f"{SHORT[method]}: {text}" for method in METHODS for text in ("support", f"error < {p.threshold:g}")]
    rows = []
    for at, k in enumerate(p.k):
        found = [[halves[name][end][at] for end in ("Mll_over_D", "low", "high")] for name in PROBABILITIES]
        rows.append((str(k), *(_place(*numbers) for numbers in found)))
    rows.append(("fitted C", *(f"{fits[name]['C']:.3g} (off by up to x{fits[name]['factor']:.2g})" for name in fits)))
    rows.append(("exponent of k", *(f"{fits[name]['exponent']:.2f}" for name in fits)))
    notes = (
        "Interpolated over log M; the interval is where Wilson's bounds cross one half. - : not within the grid.",
        "fitted C: M l^2/D = C k (log K + log n), the form of Thm 3.1, put through these places; "
        f"K = {p.K}, n = {p.shifts}.",
        "A small error without the support: another code of M_k gives nearly the same x (as at small M and large k).",
        "exponent of k: slope of log M l^2/D over log k; the theorem's form has 1.",
    )
    return Table("M l^2/D at which half of the draws succeed", ("k", *columns), tuple(rows), notes)


def _place(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3g} ({_end(low)}-{_end(high)})"


def _end(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.3g}"


def nearest(values: Sequence[int], wanted: int) -> int:
    """Return the value whose logarithm is nearest to that of ``wanted``."""
    return min(values, key=lambda value: abs(math.log(value / wanted)))


def _figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    from cnninv_jax.experiments.phase_figure import phase_figure

    return phase_figure(report, dataset)


PHASE = Study(
    name="gilbert-phase",
    title="Phase diagram of recovery: one IHT step (a CNN layer) and converged IHT",
    source="Gilbert et al. 2017, Thms 3.1 and 3.3, Alg. 1",
    parameters=PhaseParameters,
    compute=_compute,
    figure=_figure,
)
