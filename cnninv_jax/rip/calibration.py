"""The constant C of Theorem 3.1 (Gilbert et al. 2017) that simulation supports.

Theorem 3.1 with a constant C promises P(delta_k(W) > delta) <= epsilon(C), the smallest epsilon that its condition
allows at given sizes. epsilon(C) grows with C, so that a failure probability p is compatible with every C from

    C(p) = M l^2 / D delta^2 / (k (log K + log n) - log p)            (IJCAI)
    C(p) = M l^2 / D delta^2 / (k (log K + log n - log p))            (arXiv)

on: an interval of p becomes one of C, and what a grid of sizes and deltas needs is the largest C of its cells. How C(p)
moves along the grid tells whether a version has the right form: growing without end refutes it, falling says that it
asks for more than is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from cnninv_jax.rip.concentration import Version


class CalibratedConstant(NamedTuple):
    """The smallest C that agrees with simulation on a grid of cells, and every cell's own.

    Attributes:
        estimate: the largest of the cells' estimates; NaN where no cell counts.
        low: lower end of its interval.
        high: upper end. [low, high] holds the smallest valid C of the cells that count, at the asked level for all
            cells together (Bonferroni).
        decisive: index of the cell with the largest estimate, in the grid's row-major order; -1 where none counts.
        cells: estimates of all cells, [*grid]; 0 where nothing failed.
        cells_low: lower ends, [*grid], at the level for all cells together.
        cells_high: upper ends, likewise.
        counted: cells with enough failures to decide, [*grid].
    """

    estimate: float
    low: float
    high: float
    decisive: int
    cells: Float[np.ndarray, " *grid"]
    cells_low: Float[np.ndarray, " *grid"]
    cells_high: Float[np.ndarray, " *grid"]
    counted: np.ndarray


def calibrate_C(
    failures: ArrayLike,
    draws: ArrayLike,
    *,
    num_filters: ArrayLike,
    shifts: ArrayLike,
    k: ArrayLike,
    delta: ArrayLike,
    ratio: ArrayLike,
    version: Version = "ijcai",
    possible: ArrayLike | None = None,
    level: float = 0.95,
    least_failures: int = 1,
) -> CalibratedConstant:
    """Return the smallest C of Theorem 3.1 for which simulated failure probabilities agree with it.

    All arguments broadcast to one grid of cells; on the host, in float64. Intervals of the probabilities are those of
    Clopper and Pearson, each at 1 - (1 - level) / cells.

    Args:
        failures: draws with delta_k > delta. Where only certificates of delta_k are known, those whose lower one is.
        draws: draws of each cell.
        num_filters: K.
        shifts: n, in two dimensions their product.
        k: non-zeros.
        delta: constant of eq. (1), between 0 and 1.
        ratio: M l^2 / D, see `measurement_ratio`.
        version: ``"ijcai"`` or ``"arxiv"``.
        possible: draws whose upper certificate of delta_k exceeds delta; None where delta_k is exact. The upper ends
            then come from these, the estimates from ``failures``.
        level: of the interval, for all cells together.
        least_failures: cells with fewer failures do not count towards the maximum. A cell without any says nothing of
            the smallest C from below, and its upper end, which falls with log(draws) only, would hide all others.

    Returns:
        `CalibratedConstant`.

    Raises:
        ValueError: counts or sizes outside their ranges, or an unknown version.
    """
    from scipy.special import betaincinv

    upper = failures if possible is None else possible
    values = (failures, upper, draws, num_filters, shifts, k, delta, ratio)
    x, most, count, blocks, n, size, off, measured = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in values))
    if version not in ("ijcai", "arxiv"):
        raise ValueError(f"expected version to be 'ijcai' or 'arxiv', got {version!r}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"expected a confidence level between 0 and 1, got {level}; 95% is level=0.95")
    if not np.all((x >= 0) & (x <= most) & (most <= count) & (count >= 1)):
        raise ValueError("expected 0 <= failures <= possible <= draws and at least one draw in every cell")
    if not np.all((blocks * n >= 1) & (size >= 1) & (off > 0) & (off < 1) & (measured > 0)):
        raise ValueError("expected sizes of at least 1, a positive ratio and 0 < delta < 1 in every cell")
    tail = (1.0 - level) / x.size / 2
    # The beta quantiles' own limits are taken at no and at all failures.
    low = np.where(x == 0, 0.0, betaincinv(np.maximum(x, 1), count - np.maximum(x, 1) + 1, tail))
    below = np.minimum(most, count - 1)
    high = np.where(most == count, 1.0, betaincinv(below + 1, count - below, 1 - tail))

    def constant(probability: np.ndarray) -> np.ndarray:
        # No failure asks for no C at all; certain failure at K n = 1 is beyond any.
        with np.errstate(divide="ignore"):
            log_failure = np.log(probability)
            term = size * np.log(blocks * n) - (size if version == "arxiv" else 1.0) * log_failure
            return measured * np.square(off) / term

    cells, cells_low, cells_high = constant(x / count), constant(low), constant(high)
    counted = x >= max(int(least_failures), 1)
    if not counted.any():
        return CalibratedConstant(np.nan, np.nan, np.nan, -1, cells, cells_low, cells_high, counted)

    def largest(values: np.ndarray) -> float:
        return float(np.max(values[counted]))

    decisive = int(np.argmax(np.where(counted, cells, -np.inf)))
    return CalibratedConstant(
        largest(cells), largest(cells_low), largest(cells_high), decisive, cells, cells_low, cells_high, counted
    )
