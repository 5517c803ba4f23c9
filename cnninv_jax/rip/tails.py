"""How often eq. (1) of Gilbert et al. 2017 fails by more than delta, far out in the tails: the law, in closed form.

For a code z with k entries in k different Gaussian filters, every entry of x = W^T z is an independent Gaussian
number: position p of each of the M channels has the variance

    lambda_p |z|^2,    lambda_p = sum over the z_i whose shifted filter covers p of z_i^2 / (M prod(ell) |z|^2),

because two entries that cover the same position belong to different filters. So |W^T z|^2 / |z|^2 is distributed as
sum_p lambda_p chi2_M: its mean is 1 and its tails are known (`weighted_chi_square_tail`). Which filters carry the
support does not matter, their shifts and the values of z do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from cnninv_jax._numerics import float_dtype, per_axis
from cnninv_jax._typing import Array, Float, PerAxis
from cnninv_jax.operators import conv_operator, synthesis_sparse
from cnninv_jax.rip.chi_square import Tail, TailProbability, weighted_chi_square_tail
from cnninv_jax.sparsity import SparseCode

Side: TypeAlias = Literal["upper", "lower", "both"]
Latent: TypeAlias = Mapping[str, Array]

#: Which tails a side means: +1 for |W^T z|^2 > (1 + delta) |z|^2, -1 for |W^T z|^2 < (1 - delta) |z|^2.
_SIDES = {"upper": (1.0,), "lower": (-1.0,), "both": (1.0, -1.0)}


def ratio_weights(code: SparseCode, channels: int, length: PerAxis, *, stride: PerAxis = 1) -> Float[Array, " D"]:
    """Return lambda_p: |W^T z|^2 / |z|^2 is distributed as sum_p lambda_p chi2_M over Gaussian filters.

    Args:
        code: z, entries in different filters; whole responses as blocks.
        channels: M.
        length: ell, per axis or one for all.
        stride: t.

    Returns:
        lambda, [prod D] in row-major order of positions, M sum(lambda) = 1; after the leading axes of stacked codes.

    Raises:
        ValueError: a code of pooled blocks, where two entries may lie in one filter.
    """
    return _weights(code, channels, length, stride, jnp)


def _weights(code: SparseCode, channels: int, length: PerAxis, stride: PerAxis, xp: Any) -> Any:
    """Return lambda by `jax.numpy`, or by NumPy in float64."""
    n = code.code_shape[1:]
    if code.pool is not None and any(p < size for p, size in zip(code.pool, n, strict=True)):
        raise ValueError(
            f"expected whole filter responses as blocks (pool=None), got pool {code.pool}: "
            "two entries in one filter make the signal's entries dependent"
        )
    ell, t = per_axis(length, len(n), "length"), per_axis(stride, len(n), "stride")
    values = code.values if xp is jnp else np.asarray(code.values, np.float64)
    energy = values * values
    lead = energy.ndim * (1,)
    covered = energy[..., None]
    for axis, (size, taps, step) in enumerate(zip(n, ell, t, strict=True)):
        position = xp.arange((size - 1) * step + taps, dtype=np.int32).reshape(*lead, -1)
        start = xp.asarray(code.shifts)[..., axis, None].astype(np.int32) * step
        inside = ((position >= start) & (position < start + taps)).astype(energy.dtype)
        covered = (covered[..., :, None] * inside[..., None, :]).reshape(*energy.shape, -1)
    return covered.sum(axis=-2) / (energy.sum(axis=-1)[..., None] * (channels * math.prod(ell)))


def ratio_tail(
    code: SparseCode, channels: int, length: PerAxis, threshold: float, tail: Tail = "upper", *, stride: PerAxis = 1
) -> TailProbability:
    """Return P(|W^T z|^2 / |z|^2 beyond a threshold) for a given code z over Gaussian filters, in closed form.

    One entry gives a chi-square with M prod(ell) degrees of freedom over that number. On the host, in float64, to a
    relative error of some 1e-13 that comes with the result.

    Args:
        code: z, entries in different filters; concrete. Codes stacked on leading axes give as many results.
        channels: M.
        length: ell.
        threshold: of the squared ratio, 1 + delta or 1 - delta.
        tail: ``"upper"`` or ``"lower"``.
        stride: t.

    Raises:
        ValueError: two entries in one filter, or a code of norm zero.
    """
    filters = np.sort(np.asarray(code.filter_indices), axis=-1)
    if np.any(filters[..., 1:] == filters[..., :-1]):
        raise ValueError("expected entries in different filters, got two in one; draw codes with sample_code")
    if not np.all(np.any(np.asarray(code.values) != 0, axis=-1)):
        raise ValueError("expected a code with a non-zero entry, got zeros only")
    return weighted_chi_square_tail(_weights(code, channels, length, stride, np), channels, threshold, tail)


def failure_probability(
    code: SparseCode, channels: int, length: PerAxis, delta: float, side: Side = "both", *, stride: PerAxis = 1
) -> TailProbability:
    """Return P(| |W^T z|^2 / |z|^2 - 1 | > delta), or one side of it, for a given code (Gilbert et al. 2017, eq. 1).

    Args, cost and errors are those of `ratio_tail`.
    """
    parts = [
        ratio_tail(code, channels, length, 1.0 + sign * delta, "upper" if sign > 0 else "lower", stride=stride)
        for sign in tail_signs(side, delta)
    ]
    probabilities, errors = zip(*parts, strict=True)
    return TailProbability(np.sum(probabilities, axis=0), np.max(errors, axis=0))


def latent_shapes(
    channels: int, length: PerAxis, rank: int, k: int, dtype: jax.typing.DTypeLike | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the template of the normal numbers behind `ratio_of_latent`: k filters, k values and their shifts."""
    kind = tail_dtype(dtype)
    shapes = {"filters": (k, channels, *per_axis(length, rank, "length")), "shifts": (k, rank), "values": (k,)}
    return {name: jax.ShapeDtypeStruct(shape, kind) for name, shape in shapes.items()}


def ratio_of_latent(
    latent: Latent,
    signal_shape: PerAxis,
    *,
    stride: PerAxis = 1,
    values: str = "uniform",
    code: SparseCode | None = None,
) -> Float[Array, ""]:
    """Return |W^T z|^2 / |z|^2 as a function of standard normal numbers, by the library's synthesis.

    Filters are the numbers over sqrt(M prod(ell)), shifts floor(n Phi(u)), values 2 Phi(u) - 1 (``"uniform"``), u
    (``"gaussian"``) or sign(u) (``"signs"``): the law of `draw_ratios`' ``model_rip`` squared, in a form whose
    small changes are small moves.

    Args:
        latent: see `latent_shapes`; only ``filters`` where a code is given.
        signal_shape: D.
        stride: t.
        values: law of the non-zeros.
        code: fixed code; its i-th entry takes the i-th filter.
    """
    filters = latent["filters"]
    bank = filters / math.sqrt(math.prod(filters.shape[1:]))
    op = conv_operator(bank, signal_shape, stride=stride)
    if code is None:
        n = jnp.asarray(op.shifts, np.int32)[None]
        cell = (ndtr(latent["shifts"]) * n.astype(filters.dtype)).astype(np.int32)
        shifts, entries = jnp.minimum(cell, n - 1), _values_of(latent["values"], values)
    else:
        shifts, entries = code.shifts, code.values
    blocks = jnp.arange(len(bank), dtype=np.int32)
    signal = synthesis_sparse(op, SparseCode(blocks, shifts, entries, op.code_shape, None))
    return jnp.sum(jnp.square(signal)) / jnp.sum(jnp.square(entries))


def deviation(ratio: Array, side: Side = "both") -> Array:
    """Return how far a squared ratio is from 1: eq. (1) of Gilbert et al. 2017 fails where it exceeds delta."""
    off = ratio - 1.0
    return jnp.max(jnp.stack([sign * off for sign in tail_signs(side, 0.5)]), axis=0)


def _values_of(normal: Array, values: str) -> Array:
    if values == "uniform":
        return 2.0 * ndtr(normal) - 1.0
    if values == "gaussian":
        return normal
    if values == "signs":
        return jnp.where(normal < 0, jnp.full_like(normal, -1.0), jnp.ones_like(normal))
    raise ValueError(f"expected values to be 'uniform', 'gaussian' or 'signs', got {values!r}")


def tail_dtype(dtype: jax.typing.DTypeLike | None) -> jnp.dtype:
    """Return float32 or float64; refuse what is narrower."""
    kind = float_dtype(dtype)
    if jnp.finfo(kind).bits < 32:
        raise ValueError(f"expected float32 or float64 for tails, got {kind}")
    return kind


def tail_signs(side: str, delta: Any) -> tuple[float, ...]:
    """Return the signs of the tails a side means; refuse a delta (where it is a number) beyond their range."""
    if side not in _SIDES:
        raise ValueError(f"expected side to be 'upper', 'lower' or 'both', got {side!r}")
    if isinstance(delta, (int, float, np.number)):
        most = math.inf if side == "upper" else 1.0
        if not 0.0 < delta < most:
            wanted = "positive" if side == "upper" else "between 0 and 1 (a squared ratio is not negative)"
            raise ValueError(f"expected delta to be {wanted} on side {side!r}, got {delta}")
    return _SIDES[side]
