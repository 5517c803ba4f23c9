"""Winograd's convolutions of 3 x 3 by tiles: F(2 x 2) and F(4 x 4) (Lavin and Gray 2016, after Winograd 1980).

A tile of m x m outputs is A^T [(G w G^T) . (B^T x B)] A, with x the (m + 2) x (m + 2) inputs that it sees. The product
in the middle, summed over channels, is one matrix product for each of the (m + 2)^2 places: 16 / 4 or 36 / 16
multiplications an output in place of 9. The transforms add up numbers of other sizes than the result has, so that
rounding grows: in float32 with 256 channels to 5e-7 of the maps' norm for m = 2 and 1.8e-6 for m = 4 (XLA's own
convolution: 3e-7).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jax import lax

from cnninv_jax._typing import Array, Float
from cnninv_jax.nn._windows import Margins, frame, taps

#: Side of the filters.
SIDE = 3
#: Where polynomials are evaluated, by tile size; the last place is at infinity. With 1/2 and -2 rounding is 0.65 times
#: that of the usual 2 and -2 (Barabasz et al. 2020).
_POINTS = {2: (0, 1, -1), 4: (0, 1, -1, Fraction(1, 2), -2)}


@dataclasses.dataclass(frozen=True)
class Transforms:
    """The matrices of F(m, 3), for one axis.

    Attributes:
        inputs: B^T, [m + 2, m + 2].
        filters: G, [m + 2, 3].
        outputs: A^T, [m, m + 2].
    """

    inputs: np.ndarray
    filters: np.ndarray
    outputs: np.ndarray


@functools.cache
def transforms(tile: int) -> Transforms:
    """Return the matrices for tiles of so many outputs (Toom-Cook: evaluate, multiply, interpolate; transposed)."""
    points = [Fraction(point) for point in _POINTS[tile]]
    size = tile + SIDE - 1
    inputs, filters, outputs = [], [], np.zeros((tile, size))
    for place, point in enumerate(points):
        others = [other for other in points if other != point]
        scale = functools.reduce(lambda product, other: product * (point - other), others, Fraction(1))
        inputs.append([*_polynomial(others), Fraction(0)])
        filters.append([point**power / scale for power in range(SIDE)])
        outputs[:, place] = [float(point**power) for power in range(tile)]
    inputs.append(_polynomial(points))
    filters.append([Fraction(power == SIDE - 1) for power in range(SIDE)])
    outputs[-1, -1] = 1.0
    return Transforms(np.array(inputs, float), np.array(filters, float), outputs)


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of (x - root), lowest power first."""
    found = [Fraction(1)]
    for root in roots:
        found = [low - root * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found


def tiles_of(counts: Sequence[int], tile: int) -> tuple[int, int]:
    """Return the tiles per axis that hold so many outputs."""
    return -(-counts[0] // tile), -(-counts[1] // tile)


def filters_to_tiles(
    kernel: Float[Array, "3 3 M K"], tile: int, precision: lax.PrecisionLike
) -> Float[Array, "places M K"]:
    """Return G w G^T for every pair of channels."""
    places = _both_axes(transforms(tile).filters, kernel)
    return jnp.matmul(places, kernel.reshape(SIDE**2, -1), precision=precision).reshape(-1, *kernel.shape[2:])


def filters_from_tiles(
    places: Float[Array, "places M K"], tile: int, precision: lax.PrecisionLike
) -> Float[Array, "3 3 M K"]:
    """Return G^T u G: the transpose of `filters_to_tiles`."""
    back = _both_axes(transforms(tile).filters, places).T
    return jnp.matmul(back, places.reshape(len(places), -1), precision=precision).reshape(SIDE, SIDE, *places.shape[1:])


def convolve(
    x: Float[Array, "B H W M"],
    places: Float[Array, "places M K"],
    tile: int,
    margins: Margins,
    precision: lax.PrecisionLike,
) -> Float[Array, "B h w K"]:
    """Return the responses to transformed filters, stride 1."""
    counts = [size + before + after - SIDE + 1 for size, (before, after) in zip(x.shape[1:3], margins, strict=True)]
    high, wide = tiles_of(counts, tile)
    seen = maps_to_tiles(x, tile, margins)
    product = lax.dot_general(seen, places, (((2,), (1,)), ((0,), (0,))), precision=precision)
    size = tile + SIDE - 1
    back = transforms(tile).outputs
    rows = _combined(back, list(product.reshape(size, size, -1, product.shape[-1])), 0)
    found = _combined(back, [rows[:, column] for column in range(size)], 1)
    found = found.reshape(tile, tile, x.shape[0], high, wide, -1).transpose(2, 3, 0, 4, 1, 5)
    return found.reshape(x.shape[0], high * tile, wide * tile, -1)[:, : counts[0], : counts[1]]


def filter_products(
    x: Float[Array, "B H W M"],
    cotangent: Float[Array, "B h w K"],
    tile: int,
    margins: Margins,
    precision: lax.PrecisionLike,
) -> Float[Array, "places M K"]:
    """Return the gradient of the transformed filters: sums over tiles of (B^T x B) (A g A^T)^T."""
    seen = maps_to_tiles(x, tile, margins)
    back = transforms(tile).outputs.T
    steps = tiles_of(cotangent.shape[1:3], tile)
    ends = [count * tile - size for count, size in zip(steps, cotangent.shape[1:3], strict=True)]
    framed = frame(cotangent, ((0, ends[0]), (0, ends[1])))
    rows = _combined(back, taps(framed, 1, tile, tile, steps[0]), 0)
    spread = _combined(back, taps(rows, 3, tile, tile, steps[1]), 1)
    spread = spread.reshape((tile + SIDE - 1) ** 2, -1, cotangent.shape[-1])
    return lax.dot_general(seen, spread, (((1,), (1,)), ((0,), (0,))), precision=precision)


def maps_to_tiles(x: Float[Array, "B H W M"], tile: int, margins: Margins) -> Float[Array, "places T M"]:
    """Return B^T x B for every tile: rows first, columns then, each written once."""
    counts = [size + before + after - SIDE + 1 for size, (before, after) in zip(x.shape[1:3], margins, strict=True)]
    steps = tiles_of(counts, tile)
    size = tile + SIDE - 1
    # What the last tiles see reaches over the end.
    wider = [
        (before, count * tile + SIDE - 1 - length - before)
        for count, length, (before, _) in zip(steps, x.shape[1:3], margins, strict=True)
    ]
    framed = frame(x, (wider[0], wider[1]))
    forth = transforms(tile).inputs
    rows = _combined(forth, taps(framed, 1, size, tile, steps[0]), 0)
    return _combined(forth, taps(rows, 3, size, tile, steps[1]), 1).reshape(size**2, -1, x.shape[-1])


def _combined(matrix: np.ndarray, arrays: Sequence[Array], axis: int) -> Array:
    """Stack the sums of arrays that the rows of a matrix say; zeros cost nothing, ones no multiplication."""
    return jnp.stack([_sum(row, arrays) for row in matrix], axis=axis)


def _sum(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    total = None
    for weight, array in zip(weights, arrays, strict=True):
        if weight:
            term = array if weight == 1 else array * jnp.asarray(weight, array.dtype)
            total = term if total is None else total + term
    assert total is not None
    return total


def _both_axes(matrix: np.ndarray, like: Array) -> Array:
    return jnp.asarray(np.kron(matrix, matrix), like.dtype)


__all__ = [
    "SIDE",
    "Transforms",
    "convolve",
    "filter_products",
    "filters_from_tiles",
    "filters_to_tiles",
    "maps_to_tiles",
    "tiles_of",
    "transforms",
]
