"""What a layer does to lengths and angles: operator norm, frame bounds, coherence of its atoms.

Norm and frame bounds come from one Lanczos run on W^T W with full reorthogonalisation; no dense W, no LAPACK
(a LAPACK call inside ``shard_map`` can hang a CPU's thread pool), fixed iteration counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import PRECISION, as_float, per_axis, wider
from cnninv_jax._typing import Array, FilterBank, Float, Int, PerAxis, PRNGKeyArray, Scalar
from cnninv_jax.operators.conv import ConvOperator, analysis, synthesis


class FrameBounds(NamedTuple):
    """A and B with A |x|^2 <= |W x|^2 <= B |x|^2, and how far an eigenvalue of W^T W can be from each.

    ``lower`` and ``upper`` are attained by some x, so A is at most ``lower`` and B at least ``upper``. Within
    each residual of them lies an eigenvalue of W^T W; it is the extreme one once Lanczos has converged.
    """

    lower: Scalar
    upper: Scalar
    lower_residual: Scalar
    upper_residual: Scalar


def norm_squared(op: ConvOperator, *, num_steps: int = 32, key: PRNGKeyArray | None = None) -> Scalar:
    """Return |W|^2, the largest eigenvalue of W^T W, approached from below.

    Args:
        op: the layer.
        num_steps: Lanczos steps; cut to M prod(D), where the result is exact.
        key: random key of the starting vector; ``jax.random.key(0)`` for None.

    Raises:
        ValueError: num_steps is no positive integer.

    Cost: num_steps products by W and W^T, and num_steps vectors of M prod(D) numbers in memory.
    """
    op = _at_least_float32(op)
    basis, diagonal, off = _lanczos(op, num_steps, key)
    value, _ = _ritz(op, basis, diagonal, off, largest=True)
    return value


def frame_bounds(op: ConvOperator, *, num_steps: int = 64, key: PRNGKeyArray | None = None) -> FrameBounds:
    """Return the frame bounds A, B of the rows of W: A |x|^2 <= |W x|^2 <= B |x|^2.

    With fewer rows than columns, K prod(n) < M prod(D), the lower bound is exactly 0 and returned as such.

    Args:
        op: the layer.
        num_steps: Lanczos steps; cut to M prod(D), where the result is exact.
        key: random key of the starting vector; ``jax.random.key(0)`` for None.

    Returns:
        Bounds and their residuals |W^T W v - theta v| for the unit Ritz vectors v.

    Raises:
        ValueError: num_steps is no positive integer.

    Cost: num_steps products by W and W^T, and num_steps vectors of M prod(D) numbers in memory.
    """
    op = _at_least_float32(op)
    basis, diagonal, off = _lanczos(op, num_steps, key)
    upper, upper_residual = _ritz(op, basis, diagonal, off, largest=True)
    if math.prod(op.code_shape) < math.prod(op.input_shape):
        lower = lower_residual = jnp.zeros_like(upper)
    else:
        lower, lower_residual = _ritz(op, basis, diagonal, off, largest=False)
    return FrameBounds(lower, upper, lower_residual, upper_residual)


def _at_least_float32(op: ConvOperator) -> ConvOperator:
    """Widen half-precision filters: orthogonality and cancellation need more digits than they have."""
    return dataclasses.replace(op, filters=_wide(op.filters))


def _wide(filters: FilterBank) -> FilterBank:
    return filters.astype(wider(filters.dtype, np.float32))


def _gram(op: ConvOperator, x: Float[Array, " N"]) -> Float[Array, " N"]:
    return synthesis(op, analysis(op, x.reshape(op.input_shape))).ravel()


def _norm(x: Float[Array, " N"]) -> Scalar:
    return jnp.sqrt(jnp.sum(x * x))


def _lanczos(
    op: ConvOperator, num_steps: int, key: PRNGKeyArray | None
) -> tuple[Float[Array, "m N"], Float[Array, " m"], Float[Array, " m-1"]]:
    """Return an orthonormal basis V and the tridiagonal T = V W^T W V^T (diagonal, off-diagonal).

    Where the Krylov space is exhausted (a breakdown), T splits and the basis goes on with a random vector
    orthogonal to it: no spurious Ritz values, and multiplicities are found.
    """
    (wanted,) = per_axis(num_steps, 1, "num_steps")
    # Filters stand still here: `_ritz` gives the gradient, by the Hellmann-Feynman theorem.
    fixed = jax.lax.stop_gradient(op)
    size = math.prod(op.input_shape)
    steps = min(wanted, size)
    dtype = op.dtype
    first_key, restart_key = jax.random.split(jax.random.key(0) if key is None else key)
    tiny = 8 * float(jnp.finfo(dtype).eps)

    def orthogonalise(x: Array, basis: Array) -> Array:
        for _ in range(2):
            x = x - jnp.matmul(jnp.matmul(basis, x, precision=PRECISION), basis, precision=PRECISION)
        return x

    def step(carry: tuple[Array, Array, Array], index: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        basis, vector, scale = carry
        basis = basis.at[index].set(vector)
        image = _gram(fixed, vector)
        diagonal = jnp.sum(vector * image)
        rest = orthogonalise(image, basis)
        off = _norm(rest)
        scale = jnp.maximum(scale, diagonal + off)
        broken = off <= tiny * scale
        fresh = jax.random.normal(jax.random.fold_in(restart_key, index), (size,), dtype)
        following = jnp.where(broken, fresh / _norm(fresh), rest / jnp.where(broken, 1.0, off))
        # Twice: what is left of a nearly exhausted Krylov space is mostly rounding, in no particular
        # direction.
        following = orthogonalise(following, basis)
        length = _norm(following)
        following = following / jnp.where(length == 0, 1.0, length)
        return (basis, following, scale), (diagonal, jnp.where(broken, 0.0, off))

    start = jax.random.normal(first_key, (size,), dtype)
    carry = (jnp.zeros((steps, size), dtype), start / _norm(start), jnp.zeros((), dtype))
    (basis, _, _), (diagonal, off) = jax.lax.scan(step, carry, jnp.arange(steps))
    return basis, diagonal, off[:-1]


def _ritz(
    op: ConvOperator,
    basis: Float[Array, "m N"],
    diagonal: Float[Array, " m"],
    off: Float[Array, " m-1"],
    *,
    largest: bool,
) -> tuple[Scalar, Scalar]:
    """Return an extreme Ritz value |W v|^2 and its residual |W^T W v - theta v|, v the unit Ritz vector.

    The Rayleigh quotient at the fixed v has the eigenvalue's own gradient in the filters (for a simple one).
    """
    weights = _extreme_vector(diagonal, off, largest=largest)
    vector = jax.lax.stop_gradient(jnp.matmul(weights, basis, precision=PRECISION))
    vector = vector / _norm(vector)
    image = analysis(op, vector.reshape(op.input_shape))
    value = jnp.sum(image * image)
    residual = _norm(synthesis(op, image).ravel() - value * vector)
    return value, jax.lax.stop_gradient(residual)


def _extreme_vector(diagonal: Float[Array, " m"], off: Float[Array, " m-1"], *, largest: bool) -> Float[Array, " m"]:
    """Return the unit eigenvector of a symmetric tridiagonal matrix at its smallest or largest eigenvalue.

    Bisection on Sturm counts for the eigenvalue, then the twisted factorisation of Parlett and Dhillon 1997.
    """
    if diagonal.shape[0] == 1:
        return jnp.ones_like(diagonal)
    sign = -1.0 if largest else 1.0
    a, b = sign * diagonal, sign * off
    dtype = diagonal.dtype
    reach = jnp.abs(jnp.pad(b, (0, 1))) + jnp.abs(jnp.pad(b, (1, 0)))
    size = jnp.max(jnp.abs(a) + reach)
    pivot_floor = jnp.maximum(size * float(jnp.finfo(dtype).eps) ** 2, float(jnp.finfo(dtype).tiny))

    def safe(pivot: Array) -> Array:
        return jnp.where(jnp.abs(pivot) < pivot_floor, -pivot_floor, pivot)

    def pivots(shifted: Array, squares: Array) -> Array:
        def step(previous: Array, entry: tuple[Array, Array]) -> tuple[Array, Array]:
            pivot = safe(entry[0] - entry[1] / previous)
            return pivot, pivot

        first = safe(shifted[0])
        _, rest = jax.lax.scan(step, first, (shifted[1:], squares))
        return jnp.concatenate([first[None], rest])

    def halve(_: int | Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        below = jnp.any(pivots(a - middle, b * b) < 0)
        return jnp.where(below, low, middle), jnp.where(below, middle, high)

    digits = jnp.finfo(dtype).nmant + 8
    ends = (jnp.min(a - reach), jnp.max(a))
    low, high = jax.lax.fori_loop(0, digits, halve, ends)
    shifted = a - (low + high) / 2
    forward = pivots(shifted, b * b)
    backward = pivots(shifted[::-1], (b * b)[::-1])[::-1]
    twist = jnp.argmin(jnp.abs(forward + backward - shifted))
    index = jnp.arange(a.shape[0])
    one = jnp.ones((), dtype)

    def up(entry: Array, data: tuple[Array, Array]) -> tuple[Array, Array]:
        ratio, at = data
        following = jnp.where(at >= twist, one, ratio * entry)
        return following, following

    # Entry i from entry i + 1 above the twist, from entry i - 1 below it.
    _, above = jax.lax.scan(up, one, (-b / forward[:-1], index[:-1]), reverse=True)
    above = jnp.concatenate([above, one[None]])

    def down(entry: Array, data: tuple[Array, Array]) -> tuple[Array, Array]:
        ratio, at = data
        following = jnp.where(at <= twist, one, ratio * entry)
        return following, following

    _, below = jax.lax.scan(down, one, (-b / backward[1:], index[1:]))
    below = jnp.concatenate([one[None], below])
    vector = jnp.where(index <= twist, above, below)
    return vector / jnp.sqrt(jnp.sum(vector * vector))


def coherence(
    filters_or_op: ConvOperator | ArrayLike, *, over: str = "filters", stride: PerAxis | None = None
) -> Scalar:
    """Return mu = max over distinct atoms a, b of |<a, b>| / (|a| |b|) (Gilbert et al. 2017, Tables 4 and 6).

    ``over="filters"`` compares filters at the same shift, as the tables do. ``over="shifts"`` compares the
    columns of W^T: every filter at every shift, a filter's own shifts included. For a bank of filters the
    shifts are all multiples of ``stride``; for an operator those its n allows, and with same padding the
    atoms cropped by the border are compared as they are, cropped. Atoms of zeros have no angle and are left
    out.

    Args:
        filters_or_op: filters, [K, M, *ell], or an operator.
        over: ``"filters"`` or ``"shifts"``.
        stride: t per axis, for a bank of filters over shifts only; 1 for None.

    Raises:
        ValueError: unknown ``over``; one filter only and ``over="filters"``; a stride where it has no
        meaning.

    Cost: one K x K product per pair of atom positions that overlap (about half of prod(2 ell - 1) at stride
    1; some times more with cropped atoms), one after the other, so memory stays at a few copies of the
    filters.
    """
    filters = _wide(filters_or_op.filters if isinstance(filters_or_op, ConvOperator) else as_float(filters_or_op))
    if filters.ndim < 3:
        raise ValueError(f"expected filters of shape [K, M, *ell], got {filters.shape}")
    if over == "filters":
        if stride is not None:
            raise ValueError("expected no stride for over='filters' (one shift only); leave it out")
        if filters.shape[0] == 1:
            raise ValueError(
                "expected at least two filters for over='filters', got 1; over='shifts' compares its shifts"
            )
        flat = filters.reshape(filters.shape[0], -1)
        return _largest_cosine(flat, flat, jnp.asarray(True))
    if over != "shifts":
        raise ValueError(f"expected over to be 'filters' or 'shifts', got {over!r}")
    if isinstance(filters_or_op, ConvOperator):
        if stride is not None:
            raise ValueError("expected no stride beside an operator, which has its own; leave it out")
        if math.prod(filters_or_op.code_shape) == 1:
            raise ValueError("expected at least two atoms, got an operator of one filter with one shift")
        axes = [
            _axis_pairs_of_operator(*geometry)
            for geometry in zip(
                filters_or_op.length,
                filters_or_op.signal_shape,
                filters_or_op.stride,
                filters_or_op.shifts,
                (before for before, _ in filters_or_op.margins),
                strict=True,
            )
        ]
    else:
        length = filters.shape[2:]
        steps = per_axis(1 if stride is None else stride, len(length), "stride")
        axes = [_axis_pairs(ell, step) for ell, step in zip(length, steps, strict=True)]
    return _largest_over_pairs(filters, _half(axes))


# A pair of positions on one axis: the lag of the second against the first, in samples, and the taps [start,
# stop) that each of the two atoms keeps.
_Pair = tuple[int, int, int, int, int]


def _axis_pairs(length: int, stride: int) -> list[_Pair]:
    """Return whole atoms at every multiple of the stride that overlaps."""
    reach = (length - 1) // stride
    return [(step * stride, 0, length, 0, length) for step in range(-reach, reach + 1)]


def _axis_pairs_of_operator(length: int, size: int, stride: int, shifts: int, before: int) -> list[_Pair]:
    """Return the different pairs among the operator's positions; equal crops and lags count once."""
    kept = []
    for shift in range(shifts):
        origin = shift * stride - before
        kept.append((max(0, -origin), min(length, size - origin)))
    reach = (length - 1) // stride
    pairs = {
        ((second - first) * stride, *kept[first], *kept[second])
        for first in range(shifts)
        for second in range(max(0, first - reach), min(shifts, first + reach + 1))
    }
    return sorted(pairs)


def _half(axes: list[list[_Pair]]) -> Int[np.ndarray, "pairs rank 5"]:
    """Combine axes; lags below zero in lexicographic order are left out, (a, b) standing for (b, a)."""
    combined = [pairs for pairs in itertools.product(*axes) if tuple(pair[0] for pair in pairs) >= (0,) * len(axes)]
    return np.asarray(combined, np.int32)


def _largest_over_pairs(filters: FilterBank, pairs: Int[np.ndarray, "pairs rank 5"]) -> Scalar:
    rank = pairs.shape[1]
    length = filters.shape[2:]
    count = filters.shape[0]
    margin = ((0, 0, 0), (0, 0, 0), *((ell - 1, ell - 1, 0) for ell in length))
    zero = jnp.zeros((), filters.dtype)

    def crop(start: Array, stop: Array) -> FilterBank:
        kept = filters
        for axis in range(rank):
            tap = jax.lax.broadcasted_iota(np.int32, filters.shape, 2 + axis)
            kept = jnp.where((tap >= start[axis]) & (tap < stop[axis]), kept, zero)
        return kept

    def compare(pair: Int[Array, "rank 5"]) -> Scalar:
        lag, start, stop, other_start, other_stop = (pair[:, column] for column in range(5))
        first = _rescale(crop(start, stop))
        second = _rescale(crop(other_start, other_stop))
        # Tap u of the first atom meets tap u - lag of the second.
        origin = [jnp.zeros((), np.int32)] * 2 + [ell - 1 - lag[axis] for axis, ell in enumerate(length)]
        moved = jax.lax.dynamic_slice(jax.lax.pad(second, zero, margin), origin, filters.shape)
        return _largest_product(first.reshape(count, -1), moved.reshape(count, -1), jnp.all(lag == 0))

    return jnp.max(jax.lax.map(compare, jnp.asarray(pairs)))


def _rescale(filters: Float[Array, " K *rest"]) -> Float[Array, " K *rest"]:
    """Give every atom unit norm; zeros stay zero."""
    axes = tuple(range(1, filters.ndim))
    squared = jnp.sum(filters * filters, axis=axes, keepdims=True)
    return filters / jnp.sqrt(jnp.where(squared == 0, 1.0, squared))


def _largest_product(first: Float[Array, "K N"], second: Float[Array, "K N"], same: Array) -> Scalar:
    """Return the largest |<a_i, b_j>|, without i = j where both are the same atoms."""
    product = jnp.abs(jnp.matmul(first, second.T, precision=PRECISION))
    own = jnp.eye(first.shape[0], dtype=bool) & same
    return jnp.max(jnp.where(own, 0.0, product))


def _largest_cosine(first: Float[Array, "K N"], second: Float[Array, "K N"], same: Array) -> Scalar:
    return _largest_product(_rescale(first), _rescale(second), same)
