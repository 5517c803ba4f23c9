"""What a layer does to lengths: operator norm and frame bounds.

Both come from one Lanczos run on W^T W with full reorthogonalisation; no dense W, no LAPACK
(a LAPACK call inside ``shard_map`` can hang a CPU's thread pool), fixed iteration counts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import PRECISION, per_axis, wider
from cnninv_jax._typing import Array, Float, PRNGKeyArray, Scalar
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
    return dataclasses.replace(op, filters=op.filters.astype(wider(op.dtype, np.float32)))


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
