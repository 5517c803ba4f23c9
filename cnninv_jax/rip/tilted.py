"""Draws of |W^T z|^2 / |z|^2 under laws that make the failure of eq. (1) of Gilbert et al. 2017 common, with weights.

Given the code, the squared ratio is sum_p lambda_p chi2_M (`cnninv_jax.rip.tails`). Its exponential tilt by
exp(theta ratio) multiplies the variance of position p by 1 / (1 - 2 theta lambda_p), and the weight of a draw depends
on the ratio alone: exp(K(theta) - theta ratio), K the cumulant generating function.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from cnninv_jax._numerics import per_axis
from cnninv_jax._random import normal_pairs
from cnninv_jax._typing import Array, Bool, Float, PerAxis, PRNGKeyArray
from cnninv_jax.operators import conv_operator
from cnninv_jax.rip.tails import Side, deviation, ratio_weights, tail_dtype, tail_signs
from cnninv_jax.sparsity import SparseCode, sample_code, support_size

#: Newton steps of the tilt; from `_tilt`'s starting point convergence is monotone, and quadratic at the end.
_NEWTON_STEPS = 12
#: Share of draws made under the nominal law, which bounds every weight by its inverse (Hesterberg 1995).
DEFENSIVE = 0.1
#: Codes among which a draw chooses one in proportion to the failure probability it promises.
CANDIDATES = 16


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "theta", "cumulant", "log_share"],
    meta_fields=["channels", "defensive"],
)
@dataclasses.dataclass(frozen=True)
class _Proposal:
    """A mixture over candidate codes and sides of exponential tilts, and the nominal law.

    Attributes:
        weights: lambda of every candidate, [J, D].
        theta: tilt, [J, S].
        cumulant: K(theta), [J, S].
        log_share: logarithm of the part of the tilted draws that candidate and side get, [J, S].
        channels: M.
        defensive: part of all draws that is nominal.
    """

    weights: Float[Array, "J D"]
    theta: Float[Array, "J S"]
    cumulant: Float[Array, "J S"]
    log_share: Float[Array, "J S"]
    channels: int
    defensive: float

    def log_weight(self, candidate: Array, ratio: Array) -> Array:
        """Return log of nominal over proposed density at (candidate, x), which depends on x by its ratio only."""
        tilts = self.log_share[candidate] + self.theta[candidate] * ratio - self.cumulant[candidate]
        return self._mixed(logsumexp(tilts))

    def log_code_weight(self) -> Float[Array, " J"]:
        """Return log of nominal over proposed probability of every candidate."""
        return self._mixed(logsumexp(self.log_share, axis=1))

    def _mixed(self, log_share: Array) -> Array:
        """Return -log(defensive + (1 - defensive) J share): the nominal law takes every candidate with share 1 / J."""
        tilted = math.log1p(-self.defensive) + math.log(len(self.weights)) + log_share
        if self.defensive == 0.0:
            return -tilted
        return -jnp.logaddexp(jnp.full_like(tilted, math.log(self.defensive)), tilted)

    def choose(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Return a candidate and its tilt."""
        nominal_key, uniform_key, share_key = jax.random.split(key, 3)
        sides = self.theta.shape[1]
        nominal = jax.random.uniform(nominal_key, dtype=self.weights.dtype) < self.defensive
        place = jax.random.categorical(share_key, self.log_share.ravel()).astype(np.int32)
        uniform = jax.random.randint(uniform_key, (), 0, len(self.weights), np.int32)
        candidate = jnp.where(nominal, uniform, place // sides)
        return candidate, jnp.where(nominal, 0.0, self.theta[candidate, place % sides])


def draw_tail_of_code(
    key: PRNGKeyArray,
    code: SparseCode,
    channels: int,
    length: PerAxis,
    delta: float | Array,
    *,
    side: Side = "both",
    stride: PerAxis = 1,
    defensive: float = DEFENSIVE,
) -> dict[str, Array]:
    """Draw |W^T z|^2 / |z|^2 for a given code under a law that makes its failure common, with the weight.

    The signal is drawn from its Gaussian law tilted by exp(theta |x|^2 / |z|^2), theta such that the mean ratio is
    1 + delta (or 1 - delta; both are mixed in proportion to what they promise), mixed with the nominal law.

    Args:
        key: typed key.
        code: z, entries in different filters, in the dtype of the draw.
        channels: M.
        length: ell.
        delta: of eq. (1), traced.
        side: which failure counts: ``"upper"``, ``"lower"`` or ``"both"``.
        stride: t.
        defensive: part of the draws made under the nominal law; no weight exceeds its inverse.

    Returns:
        ``failure`` (whether the ratio is beyond 1 +- delta), ``log_weight``, and ``ratio`` as drawn. E[failure w] is
        the failure probability and E[w] = 1.

    Raises:
        ValueError: a pooled code, an unknown side, a defensive share outside [0, 1), or a concrete delta outside the
            range of the side.

    Cost: M prod(D) normal numbers.
    """
    weights = ratio_weights(code, channels, length, stride=stride)[None]
    choice_key, signal_key = jax.random.split(key)
    proposal = _proposal(weights, channels, delta, side, defensive)
    return _draw(choice_key, signal_key, proposal, delta, side)


def draw_tail(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    signal_shape: PerAxis,
    k: float,
    delta: float | Array,
    *,
    side: Side = "both",
    stride: PerAxis = 1,
    values: str = "uniform",
    candidates: int = CANDIDATES,
    defensive: float = DEFENSIVE,
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, Array]:
    """Draw a code of M_k and then its ratio as `draw_tail_of_code` does: failures of eq. (1) for random codes.

    Far out, failures come from rare codes too: few large values whose filters overlap. So a draw takes ``candidates``
    codes from the nominal law and goes on with one of them, chosen in proportion to its failure probability
    as the saddle point gives it (Bahadur and Rao 1960); the mean of those numbers over the chosen one is the weight
    that keeps the estimate unbiased.

    Args:
        num_filters: K; only k <= K matters.
        signal_shape: D, per axis.
        k: non-zeros of z, or a fraction of the code's entries.
        values: law of the non-zeros, see `sample_code`.
        candidates: codes a draw chooses from, static.
        dtype: float32 or float64; JAX's default float for None.

    The other arguments, the returned outputs and the errors are those of `draw_tail_of_code`.

    Cost: M prod(D) normal numbers and about 12 prod(D) divisions per candidate and side.
    """
    kind = tail_dtype(dtype)
    geometry = _geometry(num_filters, length, signal_shape, k, stride)
    code_key, choice_key, signal_key = jax.random.split(key, 3)
    proposal, _ = _candidates(code_key, geometry, channels, delta, side, stride, values, candidates, defensive, kind)
    return _draw(choice_key, signal_key, proposal, delta, side)


def draw_code_for_tail(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    signal_shape: PerAxis,
    k: float,
    delta: float | Array,
    *,
    side: Side = "both",
    stride: PerAxis = 1,
    values: str = "uniform",
    candidates: int = CANDIDATES,
    defensive: float = DEFENSIVE,
    dtype: jax.typing.DTypeLike | None = None,
) -> tuple[SparseCode, Float[Array, ""]]:
    """Return a code as `draw_tail` proposes them, and its log weight: for conditional Monte Carlo.

    The mean of weight times `failure_probability` over such codes is the failure probability for random codes,
    without the noise of the filters (Rao and Blackwell). Arguments and errors are those of `draw_tail`.
    """
    kind = tail_dtype(dtype)
    geometry = _geometry(num_filters, length, signal_shape, k, stride)
    code_key, choice_key = jax.random.split(key)
    proposal, codes = _candidates(
        code_key, geometry, channels, delta, side, stride, values, candidates, defensive, kind
    )
    candidate, _ = proposal.choose(choice_key)
    code = jax.tree.map(lambda x: x[candidate], codes)
    return code, proposal.log_code_weight()[candidate]


def _geometry(
    num_filters: int, length: PerAxis, signal_shape: PerAxis, k: float, stride: PerAxis
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return the code's shape, the taps and the number of non-zeros, with the operator's own checks."""
    rank = 1 if isinstance(length, int | np.integer) else len(length)
    if not isinstance(signal_shape, int | np.integer):
        rank = max(rank, len(signal_shape))
    taps = per_axis(length, rank, "length")
    shape = jax.ShapeDtypeStruct((num_filters, 1, *taps), jnp.float32)
    op = jax.eval_shape(lambda bank: conv_operator(bank, signal_shape, stride=stride), shape)
    return op.code_shape, taps, support_size(k, op.code_shape)


def _candidates(
    key: PRNGKeyArray,
    geometry: tuple[tuple[int, ...], tuple[int, ...], int],
    channels: int,
    delta: float | Array,
    side: Side,
    stride: PerAxis,
    values: str,
    candidates: int,
    defensive: float,
    dtype: jnp.dtype,
) -> tuple[_Proposal, SparseCode]:
    code_shape, taps, k = geometry
    _check(delta, side, defensive)
    if isinstance(candidates, bool) or int(candidates) != candidates or candidates < 1:
        raise ValueError(f"expected candidates to be a positive integer, got {candidates}")

    def one(key: PRNGKeyArray) -> tuple[SparseCode, Array]:
        code = sample_code(key, code_shape[0], code_shape[1:], k, values=values, dtype=dtype)
        return code, ratio_weights(code, channels, taps, stride=stride)

    codes, weights = jax.vmap(one)(jax.random.split(key, int(candidates)))
    return _proposal(weights, channels, delta, side, defensive), codes


def _check(delta: Any, side: Side, defensive: float) -> tuple[float, ...]:
    """Refuse what fits no law, before anything is drawn; return the signs of the tails."""
    if not 0.0 <= defensive < 1.0:
        raise ValueError(f"expected a defensive share in [0, 1), got {defensive}")
    return tail_signs(side, delta)


def _proposal(weights: Float[Array, "J D"], channels: int, delta: Any, side: Side, defensive: float) -> _Proposal:
    signs = _check(delta, side, defensive)
    dtype = weights.dtype
    thresholds = 1.0 + jnp.asarray(signs, dtype) * jnp.asarray(delta, dtype)
    theta, cumulant, spread = jax.vmap(
        lambda row: jax.vmap(lambda threshold: _tilt(row, channels, threshold))(thresholds)
    )(weights)
    # Bahadur and Rao 1960: the tail is exp(K - theta tau) / (|theta| sqrt(2 pi K'')) far out.
    prefactor = jnp.maximum(jnp.abs(theta) * jnp.sqrt(2.0 * math.pi * spread), 1.0)
    promise = cumulant - theta * thresholds[None] - jnp.log(prefactor)
    return _Proposal(weights, theta, cumulant, promise - logsumexp(promise), channels, float(defensive))


def _tilt(weights: Float[Array, " D"], channels: int, threshold: Array) -> tuple[Array, Array, Array]:
    """Return theta with K'(theta) = threshold, K(theta) and K''(theta), K the cumulants of sum_p lambda_p chi2_M.

    1 / K' is concave and decreasing in theta, linear where all lambda are equal; a group of the largest lambda alone
    gives a starting point beyond the root, from where Newton's steps descend monotonically.
    """
    largest = jnp.max(weights)
    start = (1.0 - channels * largest / threshold) / (2.0 * largest)

    def newton(theta: Array, _: None) -> tuple[Array, None]:
        scaled = weights / (1.0 - 2.0 * theta * weights)
        first, second = channels * jnp.sum(scaled), 2.0 * channels * jnp.sum(scaled * scaled)
        return theta - first * (first / threshold - 1.0) / second, None

    theta, _ = jax.lax.scan(newton, start, None, length=_NEWTON_STEPS)
    scaled = weights / (1.0 - 2.0 * theta * weights)
    cumulant = -0.5 * channels * jnp.sum(jnp.log1p(-2.0 * theta * weights))
    return theta, cumulant, 2.0 * channels * jnp.sum(scaled * scaled)


def _draw(
    choice_key: PRNGKeyArray, signal_key: PRNGKeyArray, proposal: _Proposal, delta: Any, side: Side
) -> dict[str, Array]:
    """Draw the ratio under the proposal."""
    candidate, theta = proposal.choose(choice_key)
    weights = proposal.weights[candidate]
    size = weights.shape[0] * proposal.channels
    pairs = normal_pairs(signal_key, -(-size // 2), weights.dtype)
    normal = jnp.concatenate(pairs)[:size].reshape(proposal.channels, -1)
    squares = jnp.sum(normal * normal, axis=0)
    ratio = jnp.sum(weights / (1.0 - 2.0 * theta * weights) * squares)
    failure: Bool[Array, ""] = deviation(ratio, side) > jnp.asarray(delta, ratio.dtype)
    return {"failure": failure, "log_weight": proposal.log_weight(candidate, ratio), "ratio": ratio}
