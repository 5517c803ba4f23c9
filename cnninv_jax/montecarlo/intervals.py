"""Confidence intervals as pure functions of the sufficient statistics; all elementwise, all in float64."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"expected a confidence level between 0 and 1, got {level}; 95% is level=0.95")


def mean_interval(
    mean: ArrayLike, variance: ArrayLike, count: ArrayLike, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return Student's interval of a mean, ``mean -+ t_{count-1} sqrt(variance / count)``.

    Exact for normal draws, asymptotic otherwise. ``variance`` is the unbiased one. NaN where count < 2.
    """
    _check_level(level)
    from scipy.special import stdtrit

    mean, variance, count = (np.asarray(value, np.float64) for value in (mean, variance, count))
    enough = count > 1
    t = stdtrit(np.where(enough, count - 1, 1.0), 0.5 + level / 2)
    half = np.where(enough, t * np.sqrt(variance / np.where(enough, count, 1.0)), np.nan)
    return mean - half, mean + half


def wilson(successes: ArrayLike, count: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's score interval of a proportion (Wilson 1927).

    All p with ``(p_hat - p)^2 <= z^2 p (1 - p) / n``.     Stays inside [0, 1] and is not empty at 0 or n
    successes. NaN where count is 0.
    """
    _check_level(level)
    from scipy.special import ndtri

    successes, count = np.asarray(successes, np.float64), np.asarray(count, np.float64)
    z2 = float(ndtri(0.5 + level / 2)) ** 2
    n = np.where(count > 0, count, np.nan)
    p = successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2) / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = np.where(successes == 0, np.where(np.isnan(n), np.nan, 0.0), np.maximum(centre - half, 0.0))
    high = np.where(successes == count, np.where(np.isnan(n), np.nan, 1.0), np.minimum(centre + half, 1.0))
    return low, high


def clopper_pearson(
    successes: ArrayLike, count: ArrayLike, level: float = 0.95, *, side: Literal["both", "lower", "upper"] = "both"
) -> tuple[np.ndarray, np.ndarray]:
    """Return limits of a proportion that hold with at least the stated confidence (Clopper and Pearson 1934).

    The p at which a tail of Binomial(n, p) beyond the successes has weight ``alpha``:
    P(X >= successes | low) = alpha = P(X <= successes | high). Unlike `wilson`'s, the limits hold whatever p, also
    where nothing was seen: no success in n draws says p < 1 - (1 - level)^(1/n), "upper".

    Args:
        successes: how many of the draws.
        count: n.
        level: confidence.
        side: ``"both"`` limits at once, each missed with probability (1 - level) / 2 at most; ``"lower"`` or
            ``"upper"`` alone, missed with 1 - level; the other limit is then 0 or 1.

    Returns:
        (low, high); both NaN where count is 0, or successes are NaN or outside [0, count].

    Raises:
        ValueError: a level outside (0, 1), an unknown side.
    """
    _check_level(level)
    if side not in ("both", "lower", "upper"):
        raise ValueError(f"expected side to be 'both', 'lower' or 'upper', got {side!r}")
    from scipy.special import betainccinv, betaincinv

    k, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(count, np.float64))
    valid = (n > 0) & (k >= 0) & (k <= n)
    k, n = np.where(valid, k, 0.0), np.where(valid, n, 1.0)
    alpha = (1 - level) / 2 if side == "both" else 1 - level
    low, high = np.zeros(k.shape), np.ones(k.shape)
    if side != "upper":
        some = k > 0
        low = np.where(some, betaincinv(np.where(some, k, 1.0), np.where(some, n - k + 1, 1.0), alpha), low)
    if side != "lower":
        some = k < n
        high = np.where(some, betainccinv(np.where(some, k + 1, 1.0), np.where(some, n - k, 1.0), alpha), high)
    return np.where(valid, low, np.nan), np.where(valid, high, np.nan)


def quantile_ranks(q: float, count: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return 1-based ranks (l, u) of order statistics that enclose the q-quantile.

    The number of draws up to the quantile is Binomial(n, q), so P(X_(l) <= x_q <= X_(u)) >= level for the
    ranks ``l = binom.ppf((1 - level) / 2)`` and ``u = binom.ppf((1 + level) / 2) + 1``, whatever the
    distribution. Rank 0 stands for minus infinity and rank n + 1 for plus infinity.
    """
    _check_level(level)
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"expected a quantile q between 0 and 1, got {q}")
    from scipy.stats import binom

    count = np.asarray(count, np.int64)
    safe = np.maximum(count, 1)
    low = np.where(count > 0, binom.ppf((1 - level) / 2, safe, q), 0).astype(np.int64)
    high = np.where(count > 0, binom.ppf((1 + level) / 2, safe, q) + 1, 1).astype(np.int64)
    return np.maximum(low, 0), np.minimum(high, count + 1)


def sample_quantile(sample: ArrayLike, q: float, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (estimate, low, high) of the q-quantile from the finite raw draws along axis 0."""
    values = np.asarray(sample, np.float64)
    finite = np.isfinite(values)
    count = np.asarray(finite.sum(axis=0))
    if not len(values):
        return np.full(count.shape, np.nan), np.full(count.shape, -np.inf), np.full(count.shape, np.inf)
    ordered = np.sort(np.where(finite, values, np.inf), axis=0)

    def pick(rank: np.ndarray) -> np.ndarray:
        value = np.take_along_axis(ordered, (np.clip(rank, 1, len(ordered)) - 1)[None], axis=0)[0]
        return np.where(rank < 1, -np.inf, np.where(rank > count, np.inf, value))

    low, high = quantile_ranks(q, count, level)
    position = q * np.maximum(count - 1, 0)
    below = np.floor(position).astype(np.int64)
    first = np.where(count > 0, pick(below + 1), np.nan)
    second = np.where(count > 0, pick(np.minimum(below + 2, np.maximum(count, 1))), np.nan)
    fraction = position - below
    return first * (1 - fraction) + second * fraction, pick(low), pick(high)


def histogram_quantile(
    counts: ArrayLike,
    edges: ArrayLike,
    underflow: ArrayLike,
    overflow: ArrayLike,
    q: float,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (estimate, low, high) of the q-quantile from a histogram (bins on the last axis).

    The estimate interpolates inside its bin, and is NaN where it falls outside the histogram's range. The
    interval is the order statistics' binomial interval widened to whole bins, so it contains the bins'
    resolution; it reaches to infinity where a rank falls outside the range.
    """
    counts, edges = np.asarray(counts, np.int64), np.asarray(edges, np.float64)
    under, over = np.asarray(underflow, np.int64), np.asarray(overflow, np.int64)
    cumulative = under[..., None] + np.concatenate(
        [np.zeros((*counts.shape[:-1], 1), np.int64), np.cumsum(counts, axis=-1)], axis=-1
    )
    inside = cumulative[..., -1]
    total = inside + over
    bins = counts.shape[-1]

    def holder(rank: np.ndarray) -> np.ndarray:
        # The bin that holds the order statistic of this (1-based) rank: -1 below the range, `bins` above it.
        return (cumulative < np.asarray(rank)[..., None]).sum(axis=-1) - 1

    low_rank, high_rank = quantile_ranks(q, total, level)
    low_bin, high_bin = holder(low_rank), holder(high_rank)
    low = np.where((low_rank < 1) | (low_bin < 0), -np.inf, edges[np.clip(low_bin, 0, bins)])
    high = np.where((high_rank > inside) | (high_bin >= bins), np.inf, edges[np.clip(high_bin + 1, 0, bins)])

    position = q * np.maximum(total, 1)
    at = holder(np.clip(np.ceil(position), 1, np.maximum(total, 1)).astype(np.int64))
    known = (at >= 0) & (at < bins) & (total > 0)
    at = np.clip(at, 0, bins - 1)
    before = np.take_along_axis(cumulative, at[..., None], axis=-1)[..., 0]
    width = np.maximum(np.take_along_axis(counts, at[..., None], axis=-1)[..., 0], 1)
    fraction = np.clip((position - before) / width, 0.0, 1.0)
    value = np.where(known, edges[at] + fraction * (edges[at + 1] - edges[at]), np.nan)
    return value, low, high
