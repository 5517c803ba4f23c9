"""The linear algebra of gram sampling: a layer's responses as a Gaussian vector, N(0, sigma^2 G).

Given the maps that a convolution meets, the responses of one Gaussian filter at the n output positions are a Gaussian
vector with covariance sigma^2 G, G = Y^T Y, Y the patches, and different filters are independent. So L xi with
G = L L^T and n normal numbers xi has the law of w Y with M prod(ell) numbers w. G follows from the sums over channels
of products of two entries, C[i, j] = sum_c X[c, i] X[c, j]; the maps themselves are not needed.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Float
from cnninv_jax.limits._channelwise import Geometry, patches, through
from cnninv_jax.limits._kernel import framed, insert_zeros
from cnninv_jax.limits.layers import Upsample

#: Pivots between two updates of the whole matrix.
PANEL = 32
#: A correlation matrix is factored up to residual variances of so many rounding errors: 1e-6 in float32.
RESIDUAL = 8


def second_moments(
    maps: Float[Array, " M *D"], after: tuple[Geometry, ...], conv: Geometry
) -> Float[Array, "entries entries"]:
    """Return what the next convolution's Gram matrix is made of: a sum over channels, so blocks of them add up.

    Args:
        maps: of some channels.
        after: layers between these maps and the convolution.
        conv: the convolution.

    Returns:
        Products of the entries of what comes before a trailing upsampling, or, where that is less work, the Gram
        matrix of the patches itself; `gram_of` knows which.
    """
    if _directly(after, conv):
        seen = patches(through(maps, after), conv)
    else:
        dense, _ = _trailing(after)
        seen = through(maps, dense).reshape(maps.shape[0], -1)
    return matmul(seen.T, seen)


def moments_size(inputs: tuple[int, ...], after: tuple[Geometry, ...], conv: Geometry) -> int:
    """Return the number of rows of `second_moments` for maps of this spatial shape."""
    if _directly(after, conv):
        return math.prod(conv.shifts)
    dense, _ = _trailing(after)
    return math.prod(dense[-1].shifts if dense else inputs)


def gram_of(
    moments: Float[Array, "entries entries"], after: tuple[Geometry, ...], conv: Geometry
) -> Float[Array, "n n"]:
    """Return the Gram matrix of the patches, G[p, q] = sum over s of C[p t + s, q t + s], from `second_moments`."""
    if _directly(after, conv):
        return moments
    _, upsampling = _trailing(after)
    shape = upsampling[0].inputs if upsampling else conv.inputs
    for layer in upsampling:
        for _ in range(2):  # rows, then columns, which the transposition makes rows
            moments = insert_zeros(moments.T.reshape(-1, *shape), layer.stride).reshape(-1, math.prod(layer.shifts))
        shape = layer.shifts
    rank = len(shape)
    moments = moments.reshape(*shape, *shape)
    moments = framed(moments, conv.margins * 2)
    for axis, (ell, step, n) in enumerate(zip(conv.length, conv.stride, conv.shifts, strict=True)):
        reach = (n - 1) * step + 1
        total = None
        for tap in range(ell):
            part = lax.slice_in_dim(moments, tap, tap + reach, step, axis=axis)
            part = lax.slice_in_dim(part, tap, tap + reach, step, axis=rank + axis)
            total = part if total is None else total + part
        assert total is not None
        moments = total
    return moments.reshape(math.prod(conv.shifts), -1)


def _trailing(after: tuple[Geometry, ...]) -> tuple[tuple[Geometry, ...], tuple[Geometry, ...]]:
    """Split off the upsampling at the end, whose zeros need not be multiplied."""
    count = len(after)
    while count and after[count - 1].kind is Upsample:
        count -= 1
    return after[:count], after[count:]


def _directly(after: tuple[Geometry, ...], conv: Geometry) -> bool:
    """Whether the patches' products are fewer than those of the entries: few windows, long strides."""
    by_patches, by_entries = _products(after, conv)
    return by_patches < by_entries


def moments_work(after: tuple[Geometry, ...], conv: Geometry) -> int:
    """Return the multiply-adds of `second_moments`, per channel."""
    return min(_products(after, conv))


def _products(after: tuple[Geometry, ...], conv: Geometry) -> tuple[int, int]:
    """Return the multiply-adds of the two ways."""
    _, upsampling = _trailing(after)
    inputs = upsampling[0].inputs if upsampling else conv.inputs
    return math.prod(conv.length) * math.prod(conv.shifts) ** 2, math.prod(inputs) ** 2


@jax.custom_jvp
def root(gram: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return R with R^T R = G, for a positive semidefinite G of any rank: a Cholesky factorisation with pivots.

    Every step takes the position whose residual variance, relative to its variance, is largest, until none is above
    `RESIDUAL` rounding errors; the rows that remain are zero. Without that choice of pivots rounding breaks the
    factorisation of the Gram matrices of smooth pictures, which are singular in float32. The columns are given
    their exact norms in the end: every response has its exact variance, and a correlation of two is off by some 1e-7
    (at most 3e-6 over pictures, flat pictures, noise and smooth kernels in float32).

    Args:
        gram: symmetric, [n, n]. Positions of zero variance (dead patches) get zero columns.

    Returns:
        R, [n, n]; its rows are in the order of the pivots, so that it is triangular up to a permutation. R jumps where
        that order changes, so that there is no derivative.

    Raises:
        ValueError: when differentiated.

    Cost: n^3 multiply-adds and n small steps; no LAPACK, whose batched calls may hang under `shard_map`.
    """
    size = gram.shape[0]
    variances = jnp.diagonal(gram)
    alive = variances > 0
    deviations = jnp.sqrt(jnp.where(alive, variances, 1))
    correlations = gram / deviations[:, None] / deviations[None, :]
    tolerance = RESIDUAL * float(jnp.finfo(gram.dtype).eps)
    positions = jnp.arange(size)
    width = min(PANEL, size)
    done = -1.0  # marks positions that are pivots already

    def panel(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        matrix, left = carry

        def pivot(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            rows, left = carry
            at = jnp.argmax(left)
            residual = jnp.max(left)
            usable = residual > tolerance
            column = lax.dynamic_index_in_dim(matrix, at, 0, keepdims=False)
            mine = lax.dynamic_index_in_dim(rows, at, 1, keepdims=False)
            # A product: as a sum over rows XLA computes it six times slower on a CPU.
            column = column - matmul(mine[None], rows)[0]
            inverse = jnp.where(usable, lax.rsqrt(jnp.where(usable, residual, 1)), 0)
            chosen = positions == at
            row = jnp.where(left == done, 0, jnp.where(chosen, residual, column)) * inverse
            left = jnp.where(chosen | (left == done), done, left - row * row)
            return lax.dynamic_update_index_in_dim(rows, row, j, 0), left

        rows, left = lax.fori_loop(0, width, pivot, (jnp.zeros((width, size), gram.dtype), left))
        return (matrix - matmul(rows.T, rows), left), rows

    start = (correlations, jnp.where(alive, jnp.ones_like(variances), done))
    _, rows = lax.scan(panel, start, None, length=-(-size // width))
    factor = rows.reshape(-1, size)[:size]
    norms = jnp.sum(jnp.square(factor), axis=0)
    # What is not finite in the maps comes out again: a comparison with NaN is false, here as above.
    scale = jnp.where(alive, deviations * lax.rsqrt(jnp.where(alive, norms, 1)), jnp.where(variances == 0, 0, jnp.nan))
    return factor * scale[None, :]


@root.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "expected no derivative through sampling='gram', whose draws jump where the order of pivots changes, got one; "
        "take sampling='plain'"
    )


__all__ = ["gram_of", "moments_size", "moments_work", "root", "second_moments"]
