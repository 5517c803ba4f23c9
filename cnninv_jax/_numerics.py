"""The numerical policy in one place: dtype at the door, matrix-product precision, spatial-axis arguments."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._typing import Array, PerAxis

#: Every product of this library asks for full float32 (or float64). Left to themselves, GPUs since Ampere round
#: the inputs of a float32 product to TF32 and TPUs to bfloat16, which shows in a histogram of ratios.
PRECISION = jax.lax.Precision.HIGHEST


def as_float(value: ArrayLike) -> Array:
    """Return ``value`` as a floating-point array: floats keep their dtype, integers take JAX's default float."""
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"expected real numbers, got dtype {array.dtype}; pass the real part")
    return array.astype(float_dtype(None))


def float_dtype(dtype: jax.typing.DTypeLike | None) -> jnp.dtype:
    """Return ``dtype``, or JAX's default floating dtype for ``None``; refuse anything that is not a real float."""
    chosen = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    if not jnp.issubdtype(chosen, jnp.floating):
        raise ValueError(f"expected a floating-point dtype, got {chosen}; use float32 or float64")
    return chosen


def wider(first: jax.typing.DTypeLike, second: jax.typing.DTypeLike) -> jnp.dtype:
    """Return the dtype that holds both, also under strict promotion: this widening is asked for."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def per_axis(value: PerAxis, rank: int, name: str, *, minimum: int = 1) -> tuple[int, ...]:
    """Return ``value`` as one integer per spatial axis: ``3`` becomes ``(3, 3)`` for rank 2.

    Raises:
        ValueError: wrong number of entries, an entry that is no integer, or one below ``minimum``.
    """
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(entries) != rank:
        raise ValueError(f"expected {name} to be one integer or {rank} of them (one per spatial axis), got {value}")
    try:
        integers = tuple(int(entry) for entry in entries)
    except (TypeError, ValueError):
        raise ValueError(f"expected {name} to consist of integers, got {value}") from None
    if integers != entries or any(entry < minimum for entry in integers):
        raise ValueError(f"expected {name} to consist of integers of at least {minimum}, got {value}")
    return integers
