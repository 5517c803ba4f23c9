"""Filters designed for a small coherence over shifts, or for a given one.

Both bounds of Murray 2018 ask for a small mu over all shifts of all filters, which random filters do not have. Here it
is minimised: a maximum over all normalised cross-correlations but a filter's own at lag zero, smoothed by a log-sum-exp
whose temperature falls.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from cnninv_jax import filters, operators
from cnninv_jax._numerics import as_float, float_dtype, lengths, matmul, per_axis, wider
from cnninv_jax._typing import Array, Bool, FilterBank, Float, PerAxis, PRNGKeyArray, Scalar
from cnninv_jax.dcsc.orthogonal import most_orthogonal, orthogonal_filters
from cnninv_jax.operators._patches import unfold
from cnninv_jax.operators.angles import welch_bound

#: Largest step of an entry, in units of its root mean square 1 / sqrt(M prod(ell)).
RATE = 0.1
#: How close `filters_of_coherence` comes to mu.
TOLERANCE = 1e-6


class Design(NamedTuple):
    """Designed filters.

    Attributes:
        filters: of the smallest coherence met, unit norm, [K, M, *ell].
        coherence: their mu over all shifts.
        history: mu of the start and after every step, [num_steps + 1]; of the best restart.
        welch: no filters of this size have a smaller mu, see `cnninv_jax.operators.angles.welch_bound`.
    """

    filters: FilterBank
    coherence: Scalar
    history: Float[Array, " steps"]
    welch: float


def design(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    *,
    stride: PerAxis = 1,
    num_steps: int = 500,
    restarts: int = 1,
    start: ArrayLike | None = None,
    keep_zeros: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
) -> Design:
    """Return filters of small coherence over all shifts, by gradient descent.

    With c the normalised cross-correlations at all lags that are multiples of the stride, a filter's own at lag zero
    left out, and m = max c^2 held fixed, Adam descends on log(sum exp(b c^2 / m)) / b while b rises from 1 (close to
    the sum of c^2, whose minimum is a tight frame) to a fifth of the number of steps. After every step filters are
    projected to unit norm.

    Without a start, K <= M prod(min(t, ell)) filters are drawn orthogonal over all shifts: mu = 0, nothing to descend.

    Args:
        key: typed key; unused with a start and one restart.
        num_filters: K.
        channels: M.
        length: ell, one integer (1-D) or one per axis.
        stride: t; the shifts that count are its multiples.
        num_steps: steps; static. The more, the lower: a few hundred come within 2% of where thousands end.
        restarts: how often to start, one after the other; the best is kept. With a start, all but the first begin
            near it.
        start: filters to begin with, [K, M, *ell]; Gaussian ones for None.
        keep_zeros: entries of the start that are zero stay zero.
        dtype: of the filters; the start's, or JAX's default float, for None.

    Returns:
        The best filters met, never worse than the start.

    Raises:
        ValueError: sizes that do not fit, a start of another shape, keep_zeros without a start, or nothing to
            compare (one filter whose shifts do not overlap).

    Cost: a step is a product [K prod(lags), M prod(ell)] x [M prod(ell), K] and its two transposes, prod(lags) = about
    prod(2 ell / t - 1) / 2, and holds the left factor in memory. On a 2-core CPU in float32, 500 steps take 0.1 s for
    8 filters of 1 x 16 taps, 0.4 s for 16 of 8 x 5 x 5, 15 s for 96 of 64 x 16, and some seconds of compilation.
    """
    (count,), (depth,) = per_axis(num_filters, 1, "num_filters"), per_axis(channels, 1, "channels")
    ell = lengths(length)
    steps = per_axis(stride, len(ell), "stride")
    (total,), (times,) = per_axis(num_steps, 1, "num_steps", minimum=0), per_axis(restarts, 1, "restarts")
    if count == 1 and all(step >= taps for step, taps in zip(steps, ell, strict=True)):
        raise ValueError("expected at least two atoms that overlap, got one filter and a stride of its length or more")
    if keep_zeros and start is None:
        raise ValueError("expected a start whose zeros are to be kept, got none")
    bound = welch_bound(count, depth, ell, stride=steps)
    shape = (count, depth, *ell)
    if start is None:
        kind = float_dtype(dtype)
        if count <= most_orthogonal(depth, ell, steps):
            bank = orthogonal_filters(key, count, depth, ell, stride=steps, dtype=kind)
            found = operators.coherence(bank, over="shifts", stride=steps)
            return Design(bank, found, jnp.full((total + 1,), found), bound)
        starts = jax.random.normal(key, (times, *shape), kind)
        free = jnp.ones(shape, bool)
    else:
        given = as_float(start)
        given = given.astype(wider(given.dtype, np.float32) if dtype is None else float_dtype(dtype))
        if given.shape != shape:
            raise ValueError(f"expected a start of shape [K, M, *ell] = {shape}, got {given.shape}")
        if not isinstance(given, Tracer) and not np.isfinite(np.asarray(given, np.float64)).all():
            raise ValueError("expected a start of finite numbers, got NaN or infinity among them")
        free = (given != 0) | (not keep_zeros)
        given = filters.normalize(given)
        # A tenth of a filter's norm: elsewhere, and not far.
        moved = 0.1 / math.sqrt(math.prod(shape[1:])) * jax.random.normal(key, (times, *shape), given.dtype)
        starts = jnp.where(free[None], given[None] + moved.at[0].set(0.0), 0.0)
    banks, best, history = _descend(starts, free, steps, total)
    winner = jnp.argmin(best)
    return Design(banks[winner], best[winner], history[winner], bound)


def filters_of_coherence(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    mu: float,
    *,
    stride: PerAxis = 1,
    num_steps: int = 500,
    dtype: jax.typing.DTypeLike | None = None,
) -> FilterBank:
    """Return unit-norm filters whose coherence over all shifts is mu, to 1e-6.

    A mixture, normalised, of two banks whose coherences enclose mu, by bisection. Below the coherence of a Gaussian
    draw: of that draw and what `design` makes of it (of filters orthogonal over shifts, where there can be as many).
    Above: of the draw and filters that are all alike (one constant filter, for K = 1).

    Args:
        key: typed key.
        num_filters: K.
        channels: M.
        length: ell, one integer (1-D) or one per axis.
        mu: coherence wanted, concrete.
        stride: t.
        num_steps: of the design, if there is one.
        dtype: float32 or float64; JAX's default float for None.

    Raises:
        ValueError: a mu that cannot be reached (the message names the range), or sizes that do not fit.

    Cost: of a design, and up to 60 coherences.
    """
    kind = float_dtype(dtype)
    if jnp.finfo(kind).bits < 32:
        raise ValueError(f"expected float32 or float64, which hold a coherence to 1e-6, got {kind}")
    ell = lengths(length)
    steps = per_axis(stride, len(ell), "stride")
    draw_key, design_key = jax.random.split(key)
    drawn = filters.gaussian(draw_key, num_filters, channels, ell, normalize=True, dtype=kind)
    measured = functools.partial(_coherence_of_mixture, stride=steps)
    middle = float(measured(drawn, drawn, 0.0))
    if mu > middle:
        low, high = drawn, filters.normalize(jnp.ones_like(drawn) if len(drawn) == 1 else 0 * drawn + drawn[:1])
    else:
        few = len(drawn) <= most_orthogonal(channels, ell, steps)
        low = design(
            design_key, num_filters, channels, ell, stride=steps, num_steps=num_steps,
            start=None if few else drawn, dtype=kind,
        ).filters  # fmt: skip
        high = drawn
    ends = [float(measured(low, high, share)) for share in (0.0, 1.0)]
    if not ends[0] - TOLERANCE <= mu <= ends[1] + TOLERANCE:
        least = ends[0] if mu <= middle else middle
        reason = (
            f"filters of this size have at least {welch_bound(num_filters, channels, ell, stride=steps):.6f} and this "
            f"design reaches {least:.6f}; take more num_steps, channels or taps, fewer filters or a larger stride"
            if mu <= middle
            else f"these filters reach at most {ends[1]:.6f}"
        )
        raise ValueError(f"expected a coherence mu that can be reached, got {mu}; {reason}")
    share, below, above = 0.0, 0.0, 1.0
    gap = ends[0] - mu
    for _ in range(60):
        if abs(gap) <= TOLERANCE / 4:
            break
        share = (below + above) / 2
        gap = float(measured(low, high, share)) - mu
        below, above = (share, above) if gap < 0 else (below, share)
    if abs(gap) > TOLERANCE:
        raise ValueError(f"expected filters in which {mu} can be told from {mu + gap}, got {kind}; take float64")
    return _mixture(low, high, share)


def _mixture(low: FilterBank, high: FilterBank, share: float | Scalar) -> FilterBank:
    weight = jnp.asarray(share).astype(low.dtype)
    return filters.normalize((1 - weight) * low + weight * high)


@functools.partial(jax.jit, static_argnames="stride")
def _coherence_of_mixture(low: FilterBank, high: FilterBank, share: float, stride: tuple[int, ...]) -> Scalar:
    return operators.coherence(_mixture(low, high, share), over="shifts", stride=stride)


class _Lags(NamedTuple):
    """The windows of `unfold`: one filter at every lag."""

    length: tuple[int, ...]
    stride: tuple[int, ...]
    shifts: tuple[int, ...]


def correlations(bank: FilterBank, stride: tuple[int, ...]) -> Float[Array, "K *lags K"]:
    """Return sum over m, s of w[i, m, s + v t] w[k, m, s] for all filters i, k and lags v, [K, *lags, K].

    Lags of the first axis start at 0, since (i, k, v) is (k, i, -v); those of the others run from -reach to reach.
    """
    rank, count = bank.ndim - 2, bank.shape[0]
    # A stride is as many channels: tap s = block t + phase of a filter is tap `block` of channel (m, phase).
    padded = [(0, 0)] * 2 + [(0, -ell % step) for ell, step in zip(bank.shape[2:], stride, strict=True)]
    bank = jnp.pad(bank, padded)
    blocks = tuple(ell // step for ell, step in zip(bank.shape[2:], stride, strict=True))
    split = bank.reshape(count, -1, *(size for pair in zip(blocks, stride, strict=True) for size in pair))
    phases, taps = tuple(range(3, 3 + 2 * rank, 2)), tuple(range(2, 2 + 2 * rank, 2))
    bank = jnp.transpose(split, (0, 1, *phases, *taps)).reshape(count, -1, *blocks)
    before = [0 if axis == 0 else block - 1 for axis, block in enumerate(blocks)]
    lags = tuple(first + block for first, block in zip(before, blocks, strict=True))
    margins = [(0, 0), (0, 0), *((first, block - 1) for first, block in zip(before, blocks, strict=True))]
    windows = jax.vmap(lambda one: unfold(one, _Lags(blocks, (1,) * rank, lags)))(jnp.pad(bank, margins))
    rows = jnp.moveaxis(windows.reshape(count, math.prod(bank.shape[1:]), -1), 1, 2)
    flat = matmul(rows.reshape(-1, rows.shape[-1]), bank.reshape(count, -1).T)
    return flat.reshape(count, *lags, count)


@functools.partial(jax.jit, static_argnames=("stride", "num_steps"))
def _descend(
    starts: Float[Array, "restarts K M *ell"],
    free: Bool[Array, "K M *ell"],
    stride: tuple[int, ...],
    num_steps: int,
) -> tuple[Float[Array, "restarts K M *ell"], Float[Array, " restarts"], Float[Array, "restarts steps"]]:
    """Return the best filters of every start, their coherence, and its history."""
    import optax

    shape, dtype = starts.shape[1:], starts.dtype
    last = 0.2 * num_steps + 1

    def rate(count: ArrayLike) -> Array:
        done = jnp.asarray(count, dtype) / max(num_steps, 1)
        # Adam's first steps know no variance yet.
        warm = jnp.minimum(1.0, 50 * done + 0.02)
        return RATE / math.sqrt(math.prod(shape[1:])) * warm * (0.001 + 0.4995 * (1 + jnp.cos(jnp.pi * done)))

    adam = optax.adam(rate, b1=0.9, b2=0.99)

    def squares(bank: FilterBank) -> Array:
        found = jnp.square(correlations(filters.normalize(bank), stride))
        own = np.zeros(found.shape, bool)
        middle = [0, *(size // 2 for size in found.shape[2:-1])]
        diagonal = np.arange(shape[0])
        own[(diagonal, *middle, diagonal)] = True
        return jnp.where(own, 0.0, found)

    def surrogate(bank: FilterBank, sharpness: Scalar) -> tuple[Scalar, Scalar]:
        found = squares(bank)
        largest = jax.lax.stop_gradient(jnp.max(found))
        scaled = found / jnp.where(largest == 0, 1.0, largest)
        return jax.nn.logsumexp(sharpness * scaled) / sharpness, largest

    def step(carry: tuple, done: Array) -> tuple[tuple, Scalar]:
        bank, state, best, least = carry
        sharpness = last ** (done.astype(dtype) / num_steps)
        (_, largest), slope = jax.value_and_grad(surrogate, has_aux=True)(bank, sharpness)
        best = jnp.where(largest < least, bank, best)
        least = jnp.minimum(largest, least)
        # Optax mixes integers and floats.
        with jax.numpy_dtype_promotion("standard"):
            change, state = adam.update(jnp.where(free, slope, 0.0), state)
        bank = filters.normalize(jnp.asarray(optax.apply_updates(bank, change)))
        return (bank, state, best, least), largest

    def descend(start: FilterBank) -> tuple[FilterBank, Scalar, Array]:
        start = filters.normalize(start)
        carry = (start, adam.init(start), start, jnp.asarray(jnp.inf, dtype))
        (bank, _, best, least), history = jax.lax.scan(step, carry, jnp.arange(num_steps))
        largest = jnp.max(squares(bank))
        best = jnp.where(largest < least, bank, best)
        history = jnp.sqrt(jnp.append(history, largest))
        return best, jnp.min(history), history

    return jax.lax.map(descend, starts)


__all__ = ["Design", "correlations", "design", "filters_of_coherence"]
