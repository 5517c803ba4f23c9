"""The numerical policy in one place: dtype at the door, the precision of products, spatial-axis arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._typing import Array, PerAxis

#: Every product of this library asks for full float32 (or float64) unless a user chooses otherwise. Left to
#: themselves, GPUs since Ampere round the inputs of a float32 product to TF32 and TPUs to bfloat16, which shows in
#: a histogram of ratios.
PRECISION = lax.Precision.HIGHEST

#: What the inputs of a product keep: everything, or as many bits as tensor cores multiply at once.
Products: TypeAlias = Literal["float32", "tf32", "bfloat16"]
PRODUCTS: tuple[Products, ...] = get_args(Products)
#: Bits of exponent and of mantissa that the inputs keep.
_KEPT_BITS = {"tf32": (8, 10), "bfloat16": (8, 7)}
#: The hardware's own product of such inputs, and the platforms that have it.
_ALGORITHMS = {
    "tf32": (lax.DotAlgorithmPreset.TF32_TF32_F32, ("cuda",)),
    "bfloat16": (lax.DotAlgorithmPreset.BF16_BF16_F32, ("cuda", "tpu")),
}


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


def as_floats(*values: ArrayLike | Sequence[Any], least: jax.typing.DTypeLike | None = None) -> tuple[Array, ...]:
    """Return the values as floats of one shape and of their common dtype, Python's numbers being weak.

    Lists and tuples are taken as arrays. The dtype is widened to ``least`` before anything is cast to it.
    """
    with jax.numpy_dtype_promotion("standard"):
        given = [jnp.asarray(value) if isinstance(value, list | tuple) else value for value in values]
        kind = jnp.result_type(*given)
    if not jnp.issubdtype(kind, jnp.floating):
        kind = float_dtype(None)
    kind = kind if least is None else wider(kind, least)
    return tuple(jnp.broadcast_arrays(*(jnp.asarray(value).astype(kind) for value in given)))


def wider(first: jax.typing.DTypeLike, second: jax.typing.DTypeLike) -> jnp.dtype:
    """Return the dtype that holds both, also under strict promotion: this widening is asked for."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def norm(array: Array) -> Array:
    """Return |array|_2 over all its entries, a scalar."""
    return jnp.sqrt(jnp.sum(jnp.square(array)))


def check_products(products: str, dtype: jax.typing.DTypeLike) -> Products:
    """Return ``products`` if it is a choice that numbers of this dtype can make.

    Raises:
        ValueError: an unknown name, or rounded products of anything but float32.
    """
    if products not in PRODUCTS:
        raise ValueError(f"expected products to be one of {', '.join(PRODUCTS)}, got {products!r}")
    if products != "float32" and dtype != jnp.float32:
        raise ValueError(
            f"expected float32 numbers with products={products!r}, got {jnp.dtype(dtype)}; "
            "take dtype float32, or products='float32' to round nothing"
        )
    return products


def rounded(array: Array, products: Products) -> Array:
    """Return a product's input to the nearest number of 10 (tf32) or 7 (bfloat16) mantissa bits, ties to even.

    Rounding is ours on every device, also where the hardware would do it: then a choice means the same inputs
    everywhere, and devices differ in the order of their float32 sums only.
    """
    return array if products == "float32" else lax.reduce_precision(array, *_KEPT_BITS[products])


def matmul(first: Array, second: Array, products: Products = "float32") -> Array:
    """Return ``first @ second``, summed in float32 (float64 for float64 inputs).

    Args:
        first: left factor.
        second: right factor.
        products: ``"float32"`` rounds nothing (float64 inputs are multiplied in float64). ``"tf32"`` and
            ``"bfloat16"`` round both inputs and multiply on tensor cores (bfloat16: also on TPUs) where the
            device has them; elsewhere the rounded numbers meet in a float32 product, which gives the same.

    Raises:
        ValueError: rounded products of anything but float32.
    """
    full = functools.partial(jnp.matmul, precision=PRECISION)
    if products == "float32":
        return full(first, second)
    check_products(products, wider(first.dtype, second.dtype))
    fast = functools.partial(jnp.matmul, precision=_ALGORITHMS[products][0])
    return _on_platform(products, fast, full, first, second)


def convolve(signal: Array, filters: Array, products: Products = "float32", **geometry: Any) -> Array:
    """Return `lax.conv_general_dilated` of the two at a chosen precision, see `matmul`.

    Convolutions know no named algorithm. Asked for the default, GPUs since Ampere take TF32 and TPUs bfloat16, both of
    which hold the rounded inputs exactly.
    """
    full = functools.partial(lax.conv_general_dilated, precision=PRECISION, **geometry)
    if products == "float32":
        return full(signal, filters)
    check_products(products, wider(signal.dtype, filters.dtype))
    fast = functools.partial(lax.conv_general_dilated, precision=lax.Precision.DEFAULT, **geometry)
    return _on_platform(products, fast, full, signal, filters)


def _on_platform(
    products: Products, fast: Callable[..., Array], full: Callable[..., Array], first: Array, second: Array
) -> Array:
    """Apply ``fast`` where the hardware multiplies such inputs natively, ``full`` elsewhere; chosen when lowering."""
    platforms = dict.fromkeys(_ALGORITHMS[products][1], fast)
    if not _has_tensor_cores():
        platforms.pop("cuda", None)
    inputs = (rounded(first, products), rounded(second, products))
    return lax.platform_dependent(*inputs, default=full, **platforms) if platforms else full(*inputs)


@functools.cache
def _has_tensor_cores() -> bool:
    """Whether the NVIDIA devices here multiply TF32 and bfloat16 (compute capability 8); true where there are none."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return True
    return all(int(str(getattr(device, "compute_capability", "8.0")).split(".")[0]) >= 8 for device in devices)


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


def lengths(length: PerAxis) -> tuple[int, ...]:
    """Return a filter length as one integer per spatial axis; an integer alone means one axis.

    Raises:
        ValueError: entries that are no integers of at least 1.
    """
    return per_axis(length, len(length) if isinstance(length, Sequence) else 1, "length")
