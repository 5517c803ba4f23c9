"""Thm 3.1 of Gilbert et al. 2017 against simulated P(delta_k > delta), for `gilbert-bounds`: the C that it takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax import rip
from cnninv_jax.montecarlo import Result, wilson

if TYPE_CHECKING:
    from cnninv_jax.experiments.bounds import BoundsParameters

#: Bins of [0, 1] in which deltas are counted; their edges are the deltas of Thm 3.1's cells.
DELTA_BINS = 50
#: Cells with fewer failures do not calibrate C, and do not show how loose a probability's bound is.
LEAST_FAILURES = 10


def exceedances(result: Result, name: str) -> np.ndarray:
    """Return how many draws of an output lie beyond each inner edge of its histogram on [0, 1], [*leaf, edges]."""
    counts, overflow = result[name]["histogram"], result[name]["overflow"]
    beyond = np.cumsum(np.asarray(counts)[..., ::-1], axis=-1)[..., ::-1] + np.asarray(overflow)[..., None]
    return beyond[..., 1:]


def deltas() -> np.ndarray:
    """Return the deltas of eq. (4)'s and Thm 3.1's cells."""
    return np.linspace(0.0, 1.0, DELTA_BINS + 1)[1:-1]


def looseness(bound: np.ndarray, failures: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    """Return how far a probability's bound is above what was seen, over cells where it speaks and enough failed."""
    enough = failures >= LEAST_FAILURES
    speaks = enough & (bound < 1)
    ratio = (bound / np.maximum(failures, 1) * draws)[speaks]
    middle, least = (float(np.median(ratio)), float(ratio.min())) if ratio.size else (math.nan, math.nan)
    return {"median": middle, "least": least, "cells": int(enough.sum()), "speaks": int(speaks.sum())}


def cells_violated(bound: np.ndarray, failures: np.ndarray, draws: np.ndarray, level: float = 0.95) -> int:
    """Return in how many cells the observed probability is above its bound beyond doubt (Wilson's, all cells)."""
    low, _ = wilson(failures, np.broadcast_to(draws, failures.shape), 1.0 - (1.0 - level) / failures.size)
    return int(np.sum(low > bound))


def compare_theorem_3_1(
    p: BoundsParameters, failures: np.ndarray, draws: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the smallest C of both versions, over all cells and over parts of them, and how loose they are then.

    With them come the bounds themselves, cut at 1, [strides, channels, k, deltas].
    """
    sizes = cell_sizes(p)
    counts = draws[:, :, None, None]
    explicit = np.asarray(
        rip.gaussian_failure(
            sizes["delta"],
            num_filters=p.calibration_K,
            shifts=p.shifts,
            k=sizes["k"],
            degrees=np.array(p.channels, float)[None, :, None, None] * p.ell,
        ).unclipped,
        float,
    )
    found: dict[str, Any] = {
        "cells": int(failures.size),
        "proved": float(rip.gaussian_constant(p.calibration_K, p.shifts)),
        "closed_form": _one_entry(p),
        "explicit": {
            "looseness": looseness(np.broadcast_to(explicit, failures.shape), failures, counts),
            "cells_violated": cells_violated(explicit, failures, counts),
        },
    }
    curves = {"gaussian": np.minimum(np.broadcast_to(explicit, failures.shape), 1.0)}
    for version in ("ijcai", "arxiv"):
        calibrated = rip.calibrate_C(
            failures, counts, num_filters=p.calibration_K, shifts=p.shifts, k=sizes["k"], delta=sizes["delta"],
            ratio=sizes["ratio"], version=version, least_failures=LEAST_FAILURES,
        )  # fmt: skip
        bound = np.asarray(
            rip.theorem_3_1(
                num_filters=p.calibration_K, shifts=p.shifts, constant=calibrated.estimate, version=version, **sizes
            ).unclipped,
            float,
        )
        curves[version] = np.minimum(np.broadcast_to(bound, failures.shape), 1.0)
        found[version] = {
            "C": calibrated.estimate,
            "low": calibrated.low,
            "high": calibrated.high,
            "cell": _named_cell(p, calibrated.decisive, failures.shape),
            "looseness": looseness(bound, failures, counts),
            "parts": {name: _largest(calibrated, part) for name, part in _parts(p, failures, counts).items()},
        }
    return found, curves


def _one_entry(p: BoundsParameters) -> dict[str, float]:
    """Return what k = 1 needs down to epsilon = 1e-280: delta_1 is the largest deviation of K chi-squares."""
    most, log_size = 0.0, math.log(p.calibration_K * p.shifts)
    for m in p.channels:
        degrees = m * p.ell
        above = rip.weighted_chi_square_tail([1.0], degrees, degrees * (1.0 + deltas()), "upper").probability
        below = rip.weighted_chi_square_tail([1.0], degrees, degrees * (1.0 - deltas()), "lower").probability
        failure = -np.expm1(p.calibration_K * np.log1p(-np.minimum(above + below, 1.0 - 1e-16)))
        seen = failure > 1e-280
        length = (p.shifts - 1) * min(p.calibration_strides) + p.ell
        constants = rip.measurement_ratio(m, p.ell, length) * deltas()[seen] ** 2 / (log_size - np.log(failure[seen]))
        most = max(most, float(constants.max()))
    return {"C": most, "low": most, "high": most}


def cell_sizes(p: BoundsParameters) -> dict[str, np.ndarray]:
    """Return M l^2 / D, k and delta of Thm 3.1's cells, for [strides, channels, k, deltas]."""
    lengths = [(p.shifts - 1) * stride + p.ell for stride in p.calibration_strides]
    ratio = np.array([[rip.measurement_ratio(m, p.ell, size) for m in p.channels] for size in lengths])
    return {
        "ratio": ratio[:, :, None, None],
        "k": np.array(p.calibration_k, float)[None, None, :, None],
        "delta": deltas()[None, None, None, :],
    }


def _parts(p: BoundsParameters, failures: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Return parts of the grid along which the needed C shows whether a version has the right form."""
    where = dict(zip(("stride", "channels", "k", "delta"), np.indices(failures.shape), strict=True))
    probability = failures / draws
    parts = {f"k = {k}": where["k"] == at for at, k in enumerate(p.calibration_k)}
    for low, high in ((0.1, 1.0), (0.01, 0.1), (0.0, 0.01)):
        name = f"epsilon in [{low:g}, {high:g})" if low else f"epsilon < {high:g}"
        parts[name] = (probability >= low) & (probability < high)
    for at, m in enumerate(p.channels):
        parts[f"M l = {m * p.ell}"] = where["channels"] == at
    for at, stride in enumerate(p.calibration_strides):
        parts[f"l / D = {p.ell / ((p.shifts - 1) * stride + p.ell):.2f}"] = where["stride"] == at
    return parts


def _largest(calibrated: rip.CalibratedConstant, part: np.ndarray) -> dict[str, float]:
    """Return what a part of the cells needs; intervals stay those for all cells together."""
    mask = part & calibrated.counted
    if not mask.any():
        return {"C": math.nan, "low": math.nan, "high": math.nan}
    cells = {"C": calibrated.cells, "low": calibrated.cells_low, "high": calibrated.cells_high}
    return {name: float(values[mask].max()) for name, values in cells.items()}


def _named_cell(p: BoundsParameters, index: int, shape: tuple[int, ...]) -> dict[str, float] | None:
    if index < 0:
        return None
    stride, channels, k, delta = np.unravel_index(index, shape)
    return {
        "stride": p.calibration_strides[stride],
        "M": p.channels[channels],
        "k": p.calibration_k[k],
        "delta": float(deltas()[delta]),
    }
