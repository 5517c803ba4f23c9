"""Where P(lost) crosses a level over S, and the exponent of critical S in mu, for `dcsc-scaling`."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cnninv_jax.montecarlo import wilson

#: Two-sided 95% of a normal law.
NORMAL_95 = 1.959963984540054
#: An exponent's interval needs as many groups.
FEWEST_GROUPS = 3


class Crossing(NamedTuple):
    """Critical S with a 95% interval; infinity beyond the largest S, NaN where even S = 1 is lost too often."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PowerFit:
    """S = prefactor x^exponent, fitted over logarithms.

    Attributes:
        exponent: with ``low`` and ``high``, its 95% interval; NaN where there are too few groups.
        prefactor: S at x = 1.
        scatter: standard deviation of log S around the line beyond the errors of simulation.
        points: points fitted; ``groups``: levels they come from.
        smallest: smallest S among them; ``largest``: the largest.
        start: smallest x among them; ``end``: the largest.
    """

    exponent: float
    low: float
    high: float
    prefactor: float
    scatter: float
    points: int
    groups: int
    smallest: float
    largest: float
    start: float
    end: float

    def holds(self, exponent: float) -> bool:
        """Return whether an exponent lies inside of the interval."""
        return self.low <= exponent <= self.high


def critical(counts: ArrayLike, draws: int, level: float) -> Crossing:
    """Return where P(lost) over S = 1, 2, ... reaches a level, by linear interpolation over log S.

    P(lost) grows with S but for parity and noise of simulation, so the counts are made monotone first (least squares,
    pooling neighbours that are out of order). The ends are where Wilson's upper and lower bounds cross the level.

    Args:
        counts: draws that were lost with 1, 2, ... non-zeros.
        draws: how many there were.
        level: p.
    """
    from scipy.optimize import isotonic_regression

    pooled = np.asarray(isotonic_regression(np.asarray(counts, float)).x)
    low, high = wilson(pooled, draws)
    return Crossing(*(_rise(curve, level) for curve in (pooled / draws, high, low)))


def _rise(curve: np.ndarray, level: float) -> float:
    """Return the place 1, 2, ... at which a monotone curve reaches a level."""
    reached = np.flatnonzero(curve >= level)
    if not reached.size:
        return math.inf
    at = int(reached[0])
    if at == 0:
        return math.nan if curve[0] > level else 1.0
    share = (level - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float(np.exp(math.log(at) + share * math.log((at + 1) / at)))


def spread(crossing: Crossing) -> float:
    """Return the standard error of log S that the interval of a crossing stands for."""
    ends = [
        abs(math.log(end / crossing.value))
        for end in (crossing.low, crossing.high)
        if math.isfinite(end) and math.isfinite(crossing.value)
    ]
    return max(ends, default=math.nan) / NORMAL_95


def fit_power(x: ArrayLike, sizes: ArrayLike, errors: ArrayLike, groups: ArrayLike) -> PowerFit:
    """Fit log S = a + b log x by weighted least squares; the interval of b by leaving out one level at a time.

    Weights are 1 / (error^2 + scatter^2), the scatter being what makes chi-square equal to its degrees of freedom
    (Paule and Mandel 1982): two dictionaries of one level differ by more than simulation's errors. What a line misses
    is common to the dictionaries of a level, so that levels are left out whole (delete-a-group jackknife), with
    Student's quantile of as many degrees of freedom as levels less 2.

    Args:
        x: mu, or another size of the correlations.
        sizes: critical S; points that are not finite are left out.
        errors: standard error of log S by simulation; NaN and 0 count as 0.
        groups: level that a point comes from.
    """
    from scipy.special import stdtrit

    x, sizes, errors, groups = (np.asarray(part) for part in (x, sizes, errors, groups))
    there = np.isfinite(sizes) & (sizes > 0) & np.isfinite(x) & (x > 0)
    names = np.unique(groups[there])
    if len(names) < FEWEST_GROUPS:
        none = math.nan
        return PowerFit(none, none, none, none, none, int(there.sum()), len(names), *[none] * 4)
    across, up = np.log(x[there]), np.log(sizes[there])
    squares, member = np.square(np.nan_to_num(errors[there])), groups[there]
    extra = _scatter(across, up, squares)
    a, b = _line(across, up, squares + extra)
    slopes = []
    for name in names:
        kept = member != name
        if np.ptp(across[kept]) > 0:
            slopes.append(_line(across[kept], up[kept], (squares + extra)[kept])[1])
    count = len(slopes)
    half = math.nan
    if count >= FEWEST_GROUPS:
        error = math.sqrt((count - 1) / count * np.sum(np.square(np.asarray(slopes) - b)))
        half = float(stdtrit(count - 2, 0.975)) * error
    return PowerFit(
        b, b - half, b + half, math.exp(a), math.sqrt(extra), int(there.sum()), len(names), float(sizes[there].min()),
        float(sizes[there].max()), float(x[there].min()), float(x[there].max()),
    )  # fmt: skip


def _line(x: np.ndarray, y: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """Return intercept and slope of the weighted line; equal weights where every error is 0."""
    weights = 1 / squares if np.all(squares > 0) else np.ones_like(squares)
    weights = weights / weights.sum()
    middle_x, middle_y = weights @ x, weights @ y
    slope = (weights * (x - middle_x)) @ (y - middle_y) / (weights @ np.square(x - middle_x))
    return float(middle_y - slope * middle_x), float(slope)


def _scatter(x: np.ndarray, y: np.ndarray, squares: np.ndarray) -> float:
    """Return the variance beyond the given ones at which chi-square around the line is its degrees of freedom."""

    def excess(extra: float) -> float:
        a, b = _line(x, y, squares + extra)
        return float(np.sum(np.square(y - a - b * x) / (squares + extra))) - (len(x) - 2)

    if len(x) < FEWEST_GROUPS:
        return 0.0
    if np.all(squares > 0) and excess(0.0) <= 0:
        return 0.0
    low, high = 1e-12, max(float(np.var(y)), 1e-12)
    while excess(high) > 0:
        high *= 2
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
