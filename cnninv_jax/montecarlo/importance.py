"""Importance sampling: weighted draws, what they estimate, and whether they may be believed.

A draw made under another law than the nominal one carries the weight w = nominal density / drawn density.
P(event) is the mean of w over the draws in which the event happens, zero in the others. Weights of rare events
span hundreds of orders of magnitude, so a draw returns the *logarithm* of its contribution (`log_contribution`)
and `WeightedProportion` sums relative to the largest one. Whatever multiplies conditional probabilities, such as
`cnninv_jax.montecarlo.splitting`, goes the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cnninv_jax._numerics import as_float
from cnninv_jax._typing import Array
from cnninv_jax.montecarlo.accumulators import Accumulator, HostState, Leaf, State, _compute_dtype, _counted, _integers
from cnninv_jax.montecarlo.errors import MonteCarloError

if TYPE_CHECKING:
    from cnninv_jax.montecarlo.result import Result

#: Effective hits under which an estimate is not to be believed; one draw then carries less than a tenth of it.
LEAST_EFFECTIVE_SIZE = 100.0
#: Where this part of all draws contributes effectively, and there are at least so many, fewer will do: contributions
#: so even (replicates of splitting, say) vary by less than 2/3 of their mean, and Student's interval holds.
EVEN_SHARE, EVEN_LEAST = 0.7, 10.0
#: Standard errors by which the mean of all weights may miss 1.
MOST_ERRORS = 5.0


class DegenerateWeights(MonteCarloError):
    """A weighted estimate rests on too few draws, or on weights that do not add up."""


def log_contribution(event: Array | bool, log_weight: Array) -> Array:
    """Return log(1_event w): the log weight where the event happens, log 0 elsewhere.

    The smallest finite number of the dtype stands for log 0, so that minus infinity remains a mistake that is counted
    as non-finite.

    Args:
        event: whether it happened.
        log_weight: log of nominal density over drawn density, floating.
    """
    log_weight = as_float(log_weight)
    zero = jnp.finfo(log_weight.dtype).min
    return jnp.where(event, jnp.maximum(log_weight, zero), zero)


@dataclasses.dataclass(frozen=True)
class WeightedProportion(Accumulator):
    """The mean of exp(leaf): the probability of an event from the leaf `log_contribution`.

    Finalised: ``probability`` and its standard error; ``hits``, the draws that contribute at all;
    ``effective_hits``, (sum w)^2 / sum w^2 over the hits (Kish 1965); ``largest_share``, the largest weight's share
    of the sum. Of the log weights themselves, all draws taken, the probability is 1: a check of the proposal.
    """

    @property
    def produces(self) -> tuple[str, ...]:
        """The names of the finalised numbers."""
        return ("probability", "probability_standard_error", "hits", "effective_hits", "largest_share")

    def check(self, leaf: Leaf) -> None:
        """Refuse what cannot be a logarithm."""
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"expected a floating leaf {leaf.name!r} for WeightedProportion(), got {leaf.dtype}; "
                "return log_contribution(event, log_weight)"
            )

    def init(self, leaf: Leaf) -> State:
        """Return the state without hits."""
        dtype = _compute_dtype(leaf.dtype)
        count, zero = jnp.zeros(leaf.shape, np.int32), jnp.zeros(leaf.shape, dtype)
        peak = jnp.full(leaf.shape, jnp.finfo(dtype).min, dtype)
        return {"count": count, "hits": count, "peak": peak, "squares": zero, "sum": zero}

    def update(self, state: State, values: Array, mask: Array) -> State:
        """Add one slice, after moving both sums to the larger of the two peaks."""
        x, ok = _counted(values, mask)
        hit = ok & (values > jnp.finfo(values.dtype).min)
        lowest = jnp.finfo(x.dtype).min
        peak = jnp.maximum(state["peak"], jnp.where(hit, x, lowest).max(axis=0))
        weight = jnp.where(hit, jnp.exp(jnp.where(hit, x - peak[None], 0.0)), 0.0)
        old = jnp.exp(state["peak"] - peak)
        return {
            "count": state["count"] + _integers(ok),
            "hits": state["hits"] + _integers(hit),
            "peak": peak,
            "squares": state["squares"] * jnp.square(old) + jnp.square(weight).sum(axis=0),
            "sum": state["sum"] * old + weight.sum(axis=0),
        }

    def empty(self, shape: tuple[int, ...]) -> HostState:
        """Return the total of no draws."""
        counts = {name: np.zeros(shape, np.int64) for name in ("count", "hits")}
        return {**counts, "peak": np.full(shape, -np.inf), "squares": np.zeros(shape), "sum": np.zeros(shape)}

    def merge(self, total: HostState, block: HostState) -> HostState:
        """Add a block's sums relative to the larger peak, in float64."""
        peaks = [np.where(part["hits"] > 0, part["peak"].astype(np.float64), -np.inf) for part in (total, block)]
        peak = np.maximum(*peaks)
        reference = np.where(np.isfinite(peak), peak, 0.0)
        first, second = (np.exp(own - reference) for own in peaks)
        return {
            "count": total["count"] + block["count"],
            "hits": total["hits"] + block["hits"],
            "peak": peak,
            "squares": total["squares"] * first**2 + block["squares"] * second**2,
            "sum": total["sum"] * first + block["sum"] * second,
        }

    def finalize(self, total: HostState) -> dict[str, np.ndarray]:
        """Return the estimate and what it rests on; NaN where there is nothing to divide."""
        count, hits, sums, squares = (total[name] for name in ("count", "hits", "sum", "squares"))
        n = np.where(count > 0, count, np.nan)
        scale = np.exp(np.where(hits > 0, total["peak"], -np.inf))
        mean = sums / n
        # The unbiased variance over the mean's n draws; rounding can push equal weights below zero.
        spread = np.maximum(squares / n - np.square(mean), 0.0)
        error = np.sqrt(spread / np.where(count > 1, n - 1.0, np.nan))
        some = hits > 0
        return {
            "probability": mean * scale,
            "probability_standard_error": error * scale,
            "hits": hits,
            "effective_hits": np.where(some, np.square(sums) / np.where(some, squares, 1.0), 0.0),
            "largest_share": np.where(some, 1.0 / np.where(some, sums, 1.0), np.nan),
        }


def weighted_interval(
    probability: ArrayLike, standard_error: ArrayLike, effective_hits: ArrayLike, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return Student's interval on the log scale, ``p exp(-+ t_{ess-1} error / p)``.

    Contributions are non-negative and skewed to the right: on the log scale the interval stays positive and misses
    on both sides equally often; the degrees of freedom are those that the effective number of hits leaves. NaN
    where there is no more than one effective hit: the draws then say nothing.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"expected a confidence level between 0 and 1, got {level}; 95% is level=0.95")
    from scipy.special import stdtrit

    p, error, size = (np.asarray(value, np.float64) for value in (probability, standard_error, effective_hits))
    enough = (size > 1) & (p > 0) & np.isfinite(error)
    t = stdtrit(np.where(enough, size - 1, 1.0), 0.5 + level / 2)
    with np.errstate(over="ignore"):
        factor = np.exp(np.where(enough, t * error / np.where(enough, p, 1.0), np.nan))
    return p / factor, p * factor


def weight_note(
    numbers: Mapping[str, Any],
    name: str,
    *,
    least: float = LEAST_EFFECTIVE_SIZE,
    weights: Mapping[str, Any] | None = None,
) -> str:
    """Return why the weighted estimate of a leaf is not to be believed, in one sentence; empty where it may be.

    Args:
        numbers: statistics of the leaf, ``result[name]``.
        name: what to call it.
        least: effective hits that are enough; fewer are where draws contribute evenly (`EVEN_SHARE`).
        weights: statistics of the log weights of *all* draws; their mean must be 1 within `MOST_ERRORS` standard
            errors. Ask for it only where the weights are bounded, as those of a mixture with the nominal law are: a
            purely tilted proposal hardly ever draws the large weights that bring the mean up to 1. It tells a
            wrong density from a right one where the two laws overlap; of an event far out it says little.
    """
    lost = int(np.sum(numbers["non_finite"]))
    if lost:
        return f"{name}: {lost:,} draws have non-finite weights and are missing from the estimate; correct the draw"
    effective, hits, count = (np.atleast_1d(numbers[key]) for key in ("effective_hits", "hits", "count"))
    even = (effective >= EVEN_LEAST) & (effective >= EVEN_SHARE * count)
    poor = ~((effective >= least) | even)
    if np.any(poor):
        at = np.unravel_index(np.argmin(np.where(poor, effective, np.inf)), poor.shape)
        share = float(np.atleast_1d(numbers["largest_share"])[at])
        what = f"{hits[at]:,} hits weigh as much as {effective[at]:.1f} equal ones, the largest {share:.0%} of the sum"
        return (
            f"{name}: expected at least {least:g} effective hits, got {effective[at]:.1f} "
            f"({what if hits[at] else 'no draw reached the event'}); its interval cannot be believed: "
            "take more draws, more particles, or a proposal closer to the event"
        )
    if weights is not None:
        mean, error = (np.atleast_1d(weights[key]) for key in ("probability", "probability_standard_error"))
        # Equal weights have no spread to compare with: what rounding leaves is no offence.
        far = np.abs(mean - 1.0) > MOST_ERRORS * error + 1e-5
        if not np.all(np.isfinite(error)) or np.any(far):
            worst = np.unravel_index(np.argmax(np.abs(mean - 1.0)), mean.shape)
            return (
                f"{name}: expected weights of mean 1, got {mean[worst]:.4g} +- {error[worst]:.2g}; the log weights "
                "are not those of the law that was drawn from, or it leaves out a part of the nominal one"
            )
    return ""


def check_effective_sample_size(
    result: Result, name: str, least: float = LEAST_EFFECTIVE_SIZE, *, weights: str | None = None
) -> None:
    """Refuse a weighted estimate that rests on too few draws.

    Args:
        result: of a `run` with `WeightedProportion` on the leaf.
        name: the leaf.
        least: effective hits that are enough. A single draw's share of the sum is at most 1 / sqrt(effective hits),
            so 100 also say that none carries more than a tenth.
        weights: leaf with the log weights of all draws, whose mean is then held against 1, see `weight_note`.

    Raises:
        DegenerateWeights: with the sentence of `weight_note`.
        ValueError: a leaf without these statistics.
    """
    for leaf in (name,) if weights is None else (name, weights):
        if "effective_hits" not in result[leaf]:
            raise ValueError(
                f"expected WeightedProportion() for {leaf!r}, got {list(result[leaf])}; ask for it in statistics"
            )
    note = weight_note(result[name], name, least=least, weights=None if weights is None else result[weights])
    if note:
        raise DegenerateWeights(note)
