"""The angle between two arrays, Theta and Phi of Random DCN, Sec. 5, to rounding also where it is small."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, wider
from cnninv_jax._typing import Array, Scalar
from cnninv_jax.limits._kernel import root


def cosine_angle(a: ArrayLike, b: ArrayLike) -> Scalar:
    """Return cos(angle) = <a, b> / (|a| |b|) over all entries (Random DCN, Thm 3).

    Args:
        a: array, of any shape.
        b: array of the same shape.

    Returns:
        A number in [-1, 1], in the wider dtype of both; 0 where one of the two is zero everywhere, with gradient 0.

    Raises:
        ValueError: shapes differ, or there is no entry.
    """
    along, across, dtype = _components(a, b)
    return (along / _hypotenuse(along, across)).astype(dtype)


def sine_angle(a: ArrayLike, b: ArrayLike) -> Scalar:
    """Return sin(angle), the smallest |g a - b| / |b| over all numbers g (Random DCN, Thm 2).

    It is taken from the part of a at right angles to b, not from the cosine: sqrt(1 - cos^2) knows no angle below
    3e-4 in float32, while this one is right to some 1e-7.

    Args:
        a: array, of any shape.
        b: array of the same shape.

    Returns:
        A number in [0, 1], in the wider dtype of both; 1 where one of the two is zero everywhere (nothing of one is
        found in the other), with gradient 0, as where they are exactly parallel.

    Raises:
        ValueError: shapes differ, or there is no entry.
    """
    along, across, dtype = _components(a, b)
    nowhere = (along == 0) & (across == 0)
    return jnp.where(nowhere, 1.0, across / _hypotenuse(along, across)).astype(dtype)


def _components(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array, jnp.dtype]:
    """Return the lengths of what a has along b and across it, up to a common factor; zero both where a or b is."""
    first, second = as_float(a), as_float(b)
    if first.shape != second.shape or not first.size:
        raise ValueError(
            f"expected two arrays of one shape with at least one entry, got {first.shape} and {second.shape}; "
            "the output of a network is [*D_out], without a channel axis"
        )
    dtype = wider(first.dtype, second.dtype)
    first, second = (_scaled(array.astype(wider(dtype, np.float32))) for array in (first, second))
    squared = jnp.sum(second * second)
    divisor = jnp.where(squared == 0, 1.0, squared)
    along = jnp.sum(first * second) / divisor
    across = jnp.where(squared == 0, 0.0, 1.0) * first - along * second
    # Once more: the rounding of long sums leaves a part along b in the difference, and this takes it out.
    rest = jnp.sum(across * second) / divisor
    return (along + rest) * root(squared), root(jnp.sum(jnp.square(across - rest * second))), dtype


def _scaled(array: Array) -> Array:
    """Divide by the largest entry, so that squares neither over- nor underflow; angles do not see it."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(array)))
    return array / jnp.where(largest == 0, 1.0, largest)


def _hypotenuse(along: Array, across: Array) -> Array:
    squared = along * along + across * across
    return jnp.sqrt(jnp.where(squared == 0, 1.0, squared))


__all__ = ["cosine_angle", "sine_angle"]
