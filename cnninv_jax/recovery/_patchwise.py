"""The signal patch by patch: a left inverse of W for banks whose filters span every patch.

W = F E, where E cuts x into patches and F [K, M prod(l)] holds the filters. If F has a left inverse, E x = F^+ z for
z = W x, and averaging what the patches say of a sample gives x back: x = N^-1 E^T F^+ z, with N = E^T E the number of
patches that see a sample. For a z that is no W x this is not the least-squares solution, but close to it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Bool, Float, Scalar
from cnninv_jax.operators import ConvOperator

#: Taps of a filter, M prod(l), up to which the left inverse is tried; it takes so many steps, one after the other.
MOST_TAPS = 512
#: A bank counts as one of full rank up to this part of the condition number that rounding would hide.
SAFETY = 1e-2


def may_span(op: ConvOperator) -> bool:
    """Whether there are filters enough for a left inverse, and few enough taps."""
    taps = op.channels * math.prod(op.length)
    return taps <= min(op.num_filters, MOST_TAPS)


def left_inverse(matrix: Float[Array, "K p"]) -> tuple[Float[Array, "p K"], Bool[Array, ""]]:
    """Return F^+ = R^-1 Q^T of F = Q R, and whether F has full column rank, beyond doubt of rounding.

    Gram-Schmidt, every column twice, and no LAPACK. R^-1 grows with Q, column by column; |F| |R^-1| in Frobenius'
    norm is at least the condition number of F. Of a bank without full rank the first is zero.
    """
    count, taps = matrix.shape
    size = jnp.max(jnp.abs(matrix))
    scaled = matrix / jnp.where(size > 0, size, 1)

    def column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, inverse = carry  # columns of Q and of R^-1 as rows
        vector = jax.lax.dynamic_index_in_dim(scaled, j, 1, keepdims=False)
        unit = (jnp.arange(taps) == j).astype(matrix.dtype)
        for _ in range(2):
            inner = matmul(basis, vector)
            vector = vector - matmul(inner, basis)
            unit = unit - matmul(inner, inverse)
        length = _length(vector)
        scale = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), jnp.inf)
        return basis.at[j].set(vector * scale), inverse.at[j].set(unit * scale)

    start = (jnp.zeros((taps, count), matrix.dtype), jnp.zeros((taps, taps), matrix.dtype))
    basis, inverse = jax.lax.fori_loop(0, taps, column, start)
    condition = _length(scaled) * _length(inverse)
    # NaN and infinity compare false.
    full = (condition * float(jnp.finfo(matrix.dtype).eps) < SAFETY) & (size > 0)
    found = matmul(inverse.T, basis) / jnp.where(size > 0, size, 1)
    return jnp.where(full, found, 0), full


def coverage(op: ConvOperator) -> np.ndarray:
    """Return N, how many shifts see each sample, [*D] integers."""
    total = np.ones((), np.int64)
    axes = zip(op.signal_shape, op.length, op.stride, op.shifts, op.margins, strict=True)
    for size, ell, step, n, (before, _) in axes:
        at = (np.arange(n) * step - before)[:, None] + np.arange(ell)[None]
        if op.padding == "circular":
            at = at % size
        at = at[(at >= 0) & (at < size)]
        total = np.multiply.outer(total, np.bincount(at, minlength=size))
    return total


def _length(array: Array) -> Scalar:
    return jnp.sqrt(jnp.sum(jnp.square(array)))
