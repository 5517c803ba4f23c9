"""Local sparsity and local size: the stripe norm |X|_{0,inf}^Q and the patch norm |V|_{2,inf}^P (Murray 2018).

Both come from Papyan, Sulam and Elad 2017. A *stripe* belongs to one shift of the atoms: it holds the entries, of
every filter, whose atoms overlap that one, |j - j'| t < ell along every axis (2 ell - 1 shifts at stride 1). A *patch*
is what one atom sees of a signal: ell samples of all channels, at multiples of the stride.

With ``padding="valid"`` atoms stay inside the signal and stripes are cut at the border; with ``"circular"`` atoms wrap
around, and so do stripes and patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, per_axis
from cnninv_jax._typing import Array, Bool, Float, Int, PerAxis, Scalar, Shaped


def stripe_counts(z: ArrayLike, length: PerAxis, *, stride: PerAxis = 1, padding: str = "valid") -> Int[Array, " *n"]:
    """Return the non-zeros of every stripe, as the stripe norm counts them (Murray 2018, section 4).

    Args:
        z: code, [K, *n], or its support as booleans.
        length: filter length ell, one integer or one per axis.
        stride: t, one integer or one per axis.
        padding: ``"valid"`` or ``"circular"``.

    Returns:
        int32; NaN counts as a non-zero.

    Raises:
        ValueError: no code of shape [K, *n], or lengths, strides or padding that are none.

    Cost: K n + n sum(2 ell / t) additions.
    """
    code = jnp.asarray(z)
    reach = stripe_reach(code, length, stride)
    return around(jnp.sum(_active(code), axis=0, dtype=np.int32), reach, padding)


def stripe_norm(z: ArrayLike, length: PerAxis, *, stride: PerAxis = 1, padding: str = "valid") -> Int[Array, ""]:
    """Return |Z|_{0,inf}^Q, the most non-zeros in a stripe: the S_l of Murray 2018.

    Args:
        z: code, [K, *n].
        length: filter length ell, one integer or one per axis.
        stride: t, one integer or one per axis.
        padding: ``"valid"`` or ``"circular"``.

    Raises:
        ValueError: see `stripe_counts`.
    """
    return jnp.max(stripe_counts(z, length, stride=stride, padding=padding))


def patch_norms(v: ArrayLike, length: PerAxis, *, stride: PerAxis = 1, padding: str = "valid") -> Float[Array, " *n"]:
    """Return the l2 norm of every patch of a signal (Murray 2018, section 4); its derivative at a patch of zeros is 0.

    Args:
        v: signal, [M, *D].
        length: filter length ell, one integer or one per axis.
        stride: t, one integer or one per axis.
        padding: ``"valid"``: patches inside the signal, n = floor((D - ell)/t) + 1; ``"circular"``: n = D/t, wrapping.

    Raises:
        ValueError: no signal of shape [M, *D], patches longer than it, a stride that does not divide D for circular
            padding, or lengths, strides or padding that are none.
    """
    signal = as_float(v)
    return root(_patches(jnp.sum(jnp.square(signal), axis=0), signal, length, stride, padding))


def patch_norm(v: ArrayLike, length: PerAxis, *, stride: PerAxis = 1, padding: str = "valid") -> Scalar:
    """Return |V|_{2,inf}^P, the largest l2 norm of a patch: the zeta_l of Murray 2018.

    Args:
        v: signal, [M, *D].
        length: filter length ell, one integer or one per axis.
        stride: t, one integer or one per axis.
        padding: ``"valid"`` or ``"circular"``.

    Raises:
        ValueError: see `patch_norms`.
    """
    return jnp.max(patch_norms(v, length, stride=stride, padding=padding))


def patch_counts(v: ArrayLike, length: PerAxis, *, stride: PerAxis = 1, padding: str = "valid") -> Int[Array, " *n"]:
    """Return the non-zeros of every patch of a signal, int32; NaN counts as a non-zero.

    Args:
        v: signal, [M, *D].
        length: filter length ell, one integer or one per axis.
        stride: t, one integer or one per axis.
        padding: ``"valid"`` or ``"circular"``.

    Raises:
        ValueError: see `patch_norms`.
    """
    signal = jnp.asarray(v)
    return _patches(jnp.sum(_active(signal), axis=0, dtype=np.int32), signal, length, stride, padding)


def patch_sparsity(v: ArrayLike, length: PerAxis, *, stride: PerAxis = 1, padding: str = "valid") -> Int[Array, ""]:
    """Return |V|_{0,inf}^P, the most non-zeros in a patch (Papyan, Romano and Elad 2017).

    Args:
        v: signal, [M, *D].
        length: filter length ell, one integer or one per axis.
        stride: t, one integer or one per axis.
        padding: ``"valid"`` or ``"circular"``.

    Raises:
        ValueError: see `patch_norms`.
    """
    return jnp.max(patch_counts(v, length, stride=stride, padding=padding))


def root(energy: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return sqrt(energy) with derivative 0 at 0, a subgradient of the norm whose square it is. NaN stays NaN."""
    none = energy == 0
    return jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, energy)))


def stripe_reach(code: Shaped[Array, " K *n"], length: PerAxis, stride: PerAxis = 1) -> tuple[int, ...]:
    """Return the shifts on either side of an atom, per axis, whose atoms overlap it: floor((ell - 1) / t)."""
    if code.ndim < 2 or 0 in code.shape:
        raise ValueError(f"expected a non-empty code of shape [K, *n], got {code.shape}; use jax.vmap for a batch")
    ell, step = per_axis(length, code.ndim - 1, "length"), per_axis(stride, code.ndim - 1, "stride")
    return tuple((long - 1) // t for long, t in zip(ell, step, strict=True))


def around(
    array: Int[Array, " *n"], reach: tuple[int, ...], padding: str, *, largest: bool = False
) -> Int[Array, " *n"]:
    """Return the sum (or the largest) of all integers within ``reach`` shifts of every shift, itself included.

    Args:
        array: one integer for every shift, [*n].
        reach: shifts on either side, per axis.
        padding: ``"valid"`` (cut at the border) or ``"circular"`` (wraps; each shift counts once however far it goes).
        largest: the largest instead of the sum.
    """
    _check_padding(padding)
    for axis, (far, size) in enumerate(zip(reach, array.shape, strict=True)):
        if far >= size - 1 or (padding == "circular" and 2 * far + 1 >= size):
            whole = jnp.max(array, axis, keepdims=True) if largest else jnp.sum(array, axis, array.dtype, keepdims=True)
            array = jnp.broadcast_to(whole, array.shape)
        else:
            array = _slide(array, axis, 2 * far + 1, (far, far), 1, padding, largest=largest)
    return array


def _active(array: Array) -> Bool[Array, " K *n"]:
    """Return which entries are non-zero; booleans say so themselves."""
    return array if array.dtype == jnp.bool_ else array != 0


def _patches(
    energy: Shaped[Array, " *D"], signal: Array, length: PerAxis, stride: PerAxis, padding: str
) -> Shaped[Array, " *n"]:
    """Return the sums over the patches of something that every sample has."""
    if signal.ndim < 2 or 0 in signal.shape:
        raise ValueError(f"expected a non-empty signal of shape [M, *D], got {signal.shape}; use jax.vmap for a batch")
    _check_padding(padding)
    rank = signal.ndim - 1
    ell, step = per_axis(length, rank, "length"), per_axis(stride, rank, "stride")
    for axis, (long, t, size) in enumerate(zip(ell, step, energy.shape, strict=True)):
        if long > size:
            raise ValueError(f"expected patches that fit into a signal of shape {signal.shape[1:]}, got length {ell}")
        if padding == "circular" and size % t:
            raise ValueError(f"expected a stride that divides D = {size} for circular padding, got {t}")
        after = long - t if padding == "circular" else 0
        energy = _slide(energy, axis, long, (0, max(after, 0)), t, padding, largest=False)
    return energy


def _slide(
    array: Shaped[Array, " *n"],
    axis: int,
    width: int,
    margin: tuple[int, int],
    step: int,
    padding: str,
    *,
    largest: bool,
) -> Shaped[Array, " *n"]:
    """Combine windows along one axis."""

    def along(value: Any, other: Any) -> tuple[Any, ...]:
        return tuple(value if each == axis else other for each in range(array.ndim))

    if padding == "circular":
        array, margin = jnp.pad(array, along(margin, (0, 0)), mode="wrap"), (0, 0)
    combine: Callable[[Array, Array], Array] = jax.lax.max if largest else jax.lax.add
    neutral = np.asarray(np.iinfo(array.dtype).min if largest else 0, array.dtype)
    return jax.lax.reduce_window(array, neutral, combine, along(width, 1), along(step, 1), along(margin, (0, 0)))


def _check_padding(padding: str) -> None:
    if padding not in ("valid", "circular"):
        raise ValueError(f"expected padding to be 'valid' or 'circular', got {padding!r}")
