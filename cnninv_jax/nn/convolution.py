"""Convolutions of networks, in the form that is quickest on the device and for the shape.

y[b, p, q, k] = sum over (i, j, m) of x[b, t p + i, t q + j, m] w[i, j, m, k], x framed by zeros: what Flax, XLA and
torch call a convolution. A GPU or TPU gets XLA's own, always. On a CPU XLA's own is slow for few input channels and in
the gradient of the kernel (a few GFLOP/s up to a third of what a matrix product reaches), and other forms win:

- ``patches``: one matrix product with all windows, for few input channels and for 1 x 1;
- ``winograd4``, ``winograd2``: 3 x 3 with stride 1 by tiles (`_winograd`), with 4 and 2.25 times fewer multiplications.

Batches go through in parts that a cache holds (`strips`). `benchmarks/nn.py` measures all forms.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
from jax import lax

from cnninv_jax._numerics import PRECISION, per_axis, wider
from cnninv_jax._typing import Array, Float, PerAxis
from cnninv_jax.nn import _winograd
from cnninv_jax.nn._windows import Margins, Padding, counts_of, margins_of, patches
from cnninv_jax.nn.strips import in_strips, sum_over_strips

Method: TypeAlias = Literal["auto", "direct", "patches", "winograd2", "winograd4"]
_LAYOUT = ("NHWC", "HWIO", "NHWC")

#: Measured on two cores with AVX-512, batches of 64 to 128: patches win up to so many numbers each,
FEW_IN_A_PATCH = 48
#: Winograd from so many channels on each side and pairs of them,
LEAST_CHANNELS, LEAST_PAIRS = 16, 1024
#: and patches in the gradient of the kernel, where XLA's own is left, from so many pairs.
LEAST_PAIRS_IN_GRADIENT = 96 * 96
#: Bytes of a part's patches, and of its transformed maps; the latter's products want so many tiles.
PATCH_BYTES, TILE_BYTES, LEAST_TILES = 4 << 20, 16 << 20, 512


def conv2d(
    x: Float[Array, "B H W M"],
    kernel: Float[Array, "kh kw M K"],
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    precision: lax.PrecisionLike = None,
    method: Method = "auto",
) -> Float[Array, "B h w K"]:
    """Convolve maps with a bank of filters.

    Args:
        x: maps, float32, float64 or a narrower float (computed in float32 on a CPU but by ``"direct"``).
        kernel: filters of the same dtype.
        stride: step from window to window, per axis; static.
        padding: ``"SAME"`` (ceil(D / stride) windows), ``"VALID"`` or ((top, bottom), (left, right)) zeros.
        precision: of products; None for all bits of the dtype, ``"default"`` for the device's quickest (TF32 on a GPU).
        method: ``"auto"`` chooses by device and shape while tracing; ``"direct"`` is XLA's convolution, which has
            forward-mode derivatives (``jax.jvp``), too; the other forms have ``jax.grad`` alone, to any order. The
            Winograd forms are for 3 x 3 filters and stride 1; they round more, to 2e-6 of the maps' norm in float32.

    Returns:
        Maps of x's dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, or a method that does not fit them.

    Cost: on a CPU besides the result some 20 MiB for the parts of a batch, 1 to 3 times the filters and their gradient
    times 4 (``winograd4``).
    """
    plan = _checked(x, kernel, stride, padding, precision, method)
    if plan.method == "auto" and jax.default_backend() != "cpu":
        plan = dataclasses.replace(plan, method="direct")
    if plan.method == "direct":
        return _direct(x, kernel, plan)
    return _convolve(x, kernel, plan)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static: the step, the margins of zeros, the precision of products, the form."""

    steps: tuple[int, int]
    margins: Margins
    precision: lax.PrecisionLike
    method: Method

    @property
    def by_ones(self) -> bool:
        return self.steps == (1, 1)


def choose(maps: Sequence[int], kernel: Sequence[int], plan: _Plan) -> Method:
    """Return the form that is quickest for shapes [B, H, W, M] and [kh, kw, M, K] on a CPU."""
    *sides, inputs, outputs = kernel
    if math.prod(kernel[:3]) <= FEW_IN_A_PATCH or (sides == [1, 1] and plan.by_ones):
        return "patches"
    wide = min(inputs, outputs) >= LEAST_CHANNELS and inputs * outputs >= LEAST_PAIRS
    if sides == [_winograd.SIDE] * 2 and plan.by_ones and wide:
        counts = counts_of(maps[1:3], sides, plan.steps, plan.margins)
        products = {tile: math.prod(_winograd.tiles_of(counts, tile)) * (tile + 2) ** 2 for tile in (4, 2)}
        tile = min(products, key=products.__getitem__)
        if products[tile] * 1.5 < math.prod(counts) * 9:
            return "winograd4" if tile == 4 else "winograd2"
    return "direct"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, plan: _Plan) -> Array:
    method = choose(x.shape, kernel.shape, plan) if plan.method == "auto" else plan.method
    if method == "direct":
        return _direct(x, kernel, plan)
    kind = wider(x.dtype, jnp.float32)
    filters = kernel.astype(kind)
    if method == "patches":
        return _by_patches(x, filters, plan)
    tile = _tile(method)
    places = _winograd.filters_to_tiles(filters, tile, plan.precision)

    def part(x: Array) -> Array:
        return _winograd.convolve(x.astype(kind), places, tile, plan.margins, plan.precision).astype(x.dtype)

    return in_strips(part, _strip(x.shape, kernel.shape, plan, tile), x)


def _forward(x: Array, kernel: Array, plan: _Plan) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, plan), (x, kernel)


def _backward(plan: _Plan, held: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = held
    return _gradient_of_maps(x, kernel, cotangent, plan), _gradient_of_kernel(x, kernel, cotangent, plan)


_convolve.defvjp(_forward, _backward)


def _direct(x: Array, kernel: Array, plan: _Plan) -> Array:
    return lax.conv_general_dilated(
        x, kernel, plan.steps, plan.margins, dimension_numbers=_LAYOUT, precision=plan.precision
    )  # fmt: skip


def _by_patches(x: Array, filters: Array, plan: _Plan) -> Array:
    """Multiply patches by filters; where the patches are many times the maps, part after part."""
    flat = filters.reshape(-1, filters.shape[-1])

    def part(x: Array) -> Array:
        windows = patches(x.astype(filters.dtype), filters.shape[:2], plan.steps, plan.margins)
        return jnp.matmul(windows, flat, precision=plan.precision).astype(x.dtype)

    few = len(flat) <= FEW_IN_A_PATCH or filters.shape[:2] == (1, 1)
    return part(x) if few else in_strips(part, _patch_strip(x.shape, filters.shape, plan), x)


def _gradient_of_maps(x: Array, kernel: Array, cotangent: Array, plan: _Plan) -> Array:
    """Convolve the cotangent with the mirrored filters, channels exchanged; strides are left to XLA."""
    sides = kernel.shape[:2]
    margins = [(side - 1 - low, side - 1 - high) for side, (low, high) in zip(sides, plan.margins, strict=True)]
    if not plan.by_ones or min(min(margins)) < 0:
        (found,) = jax.linear_transpose(lambda x: _direct(x, kernel, plan), x)(cotangent)
        return found
    mirrored = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    # A patch of the cotangent is as large as the filters are many.
    method = "auto" if plan.method == "patches" else plan.method
    return _convolve(cotangent, mirrored, dataclasses.replace(plan, margins=(margins[0], margins[1]), method=method))


def _gradient_of_kernel(x: Array, kernel: Array, cotangent: Array, plan: _Plan) -> Array:
    """Return the products of what the filters saw and the cotangent."""
    method = choose(x.shape, kernel.shape, plan) if plan.method == "auto" else plan.method
    kind = wider(x.dtype, jnp.float32)
    if method.startswith("winograd"):
        tile = _tile(method)

        def tiles(x: Array, cotangent: Array) -> Array:
            x, cotangent = x.astype(kind), cotangent.astype(kind)
            return _winograd.filter_products(x, cotangent, tile, plan.margins, plan.precision)

        total = sum_over_strips(tiles, _strip(x.shape, kernel.shape, plan, tile), x, cotangent)
        return _winograd.filters_from_tiles(total, tile, plan.precision).astype(kernel.dtype)
    if method == "direct" and math.prod(kernel.shape[2:]) < LEAST_PAIRS_IN_GRADIENT:
        (found,) = jax.linear_transpose(lambda kernel: _direct(x, kernel, plan), kernel)(cotangent)
        return found

    def part(x: Array, cotangent: Array) -> Array:
        windows = patches(x.astype(kind), kernel.shape[:2], plan.steps, plan.margins)
        flat = cotangent.astype(kind).reshape(-1, cotangent.shape[-1])
        return jnp.matmul(windows.reshape(len(flat), -1).T, flat, precision=plan.precision)

    plain = kernel.shape[:2] == (1, 1)
    size = x.shape[0] if plain else _patch_strip(x.shape, kernel.shape, plan)
    return sum_over_strips(part, max(size, 1), x, cotangent).reshape(kernel.shape).astype(kernel.dtype)


def _tile(method: str) -> int:
    return int(method.removeprefix("winograd"))


def _strip(maps: Sequence[int], kernel: Sequence[int], plan: _Plan, tile: int) -> int:
    """Return how many maps are transformed at a time."""
    tiles = math.prod(_winograd.tiles_of(counts_of(maps[1:3], kernel[:2], plan.steps, plan.margins), tile))
    most = max(TILE_BYTES // (4 * (tile + 2) ** 2 * (kernel[2] + kernel[3])), LEAST_TILES)
    return max(1, most // tiles)


def _patch_strip(maps: Sequence[int], kernel: Sequence[int], plan: _Plan) -> int:
    """Return how many maps are cut into patches at a time."""
    windows = math.prod(counts_of(maps[1:3], kernel[:2], plan.steps, plan.margins))
    return max(1, PATCH_BYTES // (4 * windows * math.prod(kernel[:3])))


def _checked(
    x: Array, kernel: Array, stride: PerAxis, padding: Padding, precision: lax.PrecisionLike, method: str
) -> _Plan:
    if method not in get_args(Method):
        raise ValueError(f"expected a method of {', '.join(get_args(Method))}, got {method!r}")
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2] or 0 in (*x.shape[1:], *kernel.shape):
        raise ValueError(f"expected maps [B, H, W, M] and a kernel [kh, kw, M, K], got {x.shape} and {kernel.shape}")
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"expected maps and kernel of one floating dtype, got {x.dtype} and {kernel.dtype}; cast one")
    steps = cast(tuple[int, int], per_axis(stride, 2, "stride"))
    sides = kernel.shape[:2]
    margins = margins_of(padding, x.shape[1:3], sides, steps)
    if min(counts_of(x.shape[1:3], sides, steps, margins)) < 1:
        raise ValueError(
            f"expected maps at least as large as the filters of {sides[0]} x {sides[1]}, got {x.shape[1]} x "
            f"{x.shape[2]} with margins {margins}; take larger maps or more padding"
        )
    if method.startswith("winograd") and (sides != (_winograd.SIDE,) * 2 or steps != (1, 1)):
        raise ValueError(
            f"expected 3 x 3 filters and stride 1 for {method}, got {sides[0]} x {sides[1]} and stride {steps}; "
            "take method='auto'"
        )
    return _Plan(steps, margins, PRECISION if precision is None else precision, cast(Method, method))


__all__ = ["Method", "Padding", "conv2d"]
