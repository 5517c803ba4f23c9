"""Max-pooling that says where its maxima stood, and the ways back: unpooling with these switches, and upsampling.

Channels come last, [B, H, W, C]. Nothing here gathers or scatters: a switch is compared with every place of its window,
which an accelerator and a CPU do at the speed of memory.
"""

from __future__ import annotations

import functools
from typing import get_args

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import UInt8

from cnninv_jax._numerics import per_axis
from cnninv_jax._typing import Array, Float, Int, PerAxis
from cnninv_jax.dcn.architecture import Upsampling
from cnninv_jax.nn._pool import Pool


def max_pool(
    maps: Float[Array, "B H W C"], window: PerAxis = 2, stride: PerAxis | None = None, *, ceil: bool = False
) -> tuple[Float[Array, "B h w C"], UInt8[Array, "B h w C"]]:
    """Return the largest value of every window and its switch: "what" and "where" (Zhao et al. 2016).

    Args:
        maps: values.
        window: side of the windows, per axis; static.
        stride: step from window to window, per axis; None for windows side by side.
        ceil: keep windows that stick out at the lower right, with what they hold (as Caffe does).

    Returns:
        Values, and places within the windows: row-major numbers, the first of equal values, so 0 to 3 for 2 x 2.
        NaN is the largest value.

    Raises:
        ValueError: maps smaller than a window, or a window of more than 256 entries.

    Cost: one pass over the maps for each place of a window, fused into one; autodiff sends a cotangent to the winner.
    """
    sides, steps = _windows(window, stride)
    counts = tuple(
        Pool(side, step, ceil=ceil).regions(size)
        for side, step, size in zip(sides, steps, maps.shape[1:3], strict=True)
    )
    if min(counts) < 1:
        raise ValueError(
            f"expected maps of at least {sides[0]} x {sides[1]} for pooling, got {maps.shape[1]} x {maps.shape[2]}; "
            "take larger images"
        )
    reach = [(count - 1) * step + side for count, step, side in zip(counts, steps, sides, strict=True)]
    # A negative margin drops what no window sees.
    margins = [(0, 0, 0), *((0, end - size, 0) for end, size in zip(reach, maps.shape[1:3], strict=True)), (0, 0, 0)]
    padded = lax.pad(maps, jnp.asarray(-np.inf, maps.dtype), margins)
    last = [(count - 1) * step + 1 for count, step in zip(counts, steps, strict=True)]

    def entries(row: int, column: int) -> Array:
        """Return what all windows hold at one of their places."""
        return padded[:, row : row + last[0] : steps[0], column : column + last[1] : steps[1]]

    values = entries(0, 0)
    switches = jnp.zeros(values.shape, np.uint8)
    for place, at in enumerate(np.ndindex(*sides)):
        if place:
            seen = entries(*at)
            larger = (seen > values) | jnp.isnan(seen)
            values = jnp.where(larger, seen, values)
            switches = jnp.where(larger, np.uint8(place), switches)
    return values, switches


def unpool(
    values: Float[Array, "B h w C"],
    switches: UInt8[Array, "B h w C"],
    size: PerAxis,
    window: PerAxis = 2,
    stride: PerAxis | None = None,
) -> Float[Array, "B H W C"]:
    """Return maps with every value at its switch and zeros elsewhere (Gilbert et al. 2017, eq. 2; Zhang et al. 2016).

    Linear in the values. Where windows overlap and several of them chose one place, it gets the mean of their values,
    so that what `max_pool` took comes back at its place as it was.

    Args:
        values: pooled ones, or any others in their place.
        switches: of `max_pool`.
        size: H, W of the maps that were pooled; static.
        window: as for `max_pool`.
        stride: as for `max_pool`.

    Raises:
        ValueError: values and switches of different shapes.

    Cost: one pass over the maps; windows that overlap, one for each place of a window.
    """
    if values.shape != switches.shape:
        raise ValueError(f"expected switches of the values' shape {values.shape}, got {switches.shape}")
    sides, steps = _windows(window, stride)
    high, wide = per_axis(size, 2, "size")
    zero = jnp.zeros((), values.dtype)
    if sides == steps:
        batch, rows, columns, channels = values.shape
        places = np.arange(sides[0] * sides[1], dtype=np.uint8).reshape(1, 1, sides[0], 1, sides[1], 1)
        won = switches[:, :, None, :, None, :] == places
        maps = jnp.where(won, values[:, :, None, :, None, :], zero)
        maps = maps.reshape(batch, rows * sides[0], columns * sides[1], channels)
        return _sized(maps, high, wide)

    def spread(entries: Array, row: int, column: int) -> Array:
        """Put the entries of all windows at one place of them, on maps of the size asked for."""
        inner = (steps[0] - 1, steps[1] - 1)
        axes = zip((high, wide), (row, column), entries.shape[1:3], steps, inner, strict=True)
        margins = [(at, total - at - (count - 1) * step - 1, gap) for total, at, count, step, gap in axes]
        return lax.pad(entries, jnp.zeros((), entries.dtype), [(0, 0, 0), *margins, (0, 0, 0)])

    total, times = [], []
    for place, (row, column) in enumerate(np.ndindex(*sides)):
        won = switches == np.uint8(place)
        total.append(spread(jnp.where(won, values, zero), row, column))
        times.append(spread(won.astype(values.dtype), row, column))
    add = functools.partial(functools.reduce, jnp.add)
    return add(total) / jnp.maximum(add(times), 1)


def upsample(
    maps: Float[Array, "B h w C"], factor: PerAxis, method: Upsampling = "zeros", least: PerAxis = 1
) -> Float[Array, "B H W C"]:
    """Return maps that are ``factor`` times as large: what undoes a pooling or a stride without switches.

    Args:
        maps: values.
        factor: per axis; static.
        method: ``"zeros"``, a value first in a block of zeros (Random DCN, A.1.1, after Dosovitskiy and Brox 2016), or
            ``"nearest"``, a value in all places of its block.
        least: H, W at least; maps that are smaller (pooling left something out) get zeros, or their last row and
            column again, at the lower right.

    Raises:
        ValueError: an unknown method.
    """
    if method not in get_args(Upsampling):
        raise ValueError(f"expected upsampling to be 'zeros' or 'nearest', got {method!r}")
    factors, wanted = per_axis(factor, 2, "factor"), per_axis(least, 2, "least")
    missing = [max(0, total - step * size) for total, step, size in zip(wanted, factors, maps.shape[1:3], strict=True)]
    if method == "zeros":
        margins = [(0, step - 1 + more, step - 1) for step, more in zip(factors, missing, strict=True)]
        return lax.pad(maps, jnp.zeros((), maps.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    grown = jnp.repeat(jnp.repeat(maps, factors[0], axis=1), factors[1], axis=2)
    return jnp.pad(grown, [(0, 0), *((0, more) for more in missing), (0, 0)], mode="edge") if any(missing) else grown


def flat_switches(
    switches: UInt8[Array, "B h w C"], size: PerAxis, window: PerAxis = 2, stride: PerAxis | None = None
) -> Int[Array, "B h w C"]:
    """Return switches as row-major numbers within the whole map of H x W, which `sparsity.max_pool` speaks of.

    Args, as for `unpool`.
    """
    sides, steps = _windows(window, stride)
    _, wide = per_axis(size, 2, "size")
    local = switches.astype(np.int32)
    rows = np.arange(switches.shape[1], dtype=np.int32)[None, :, None, None] * steps[0]
    columns = np.arange(switches.shape[2], dtype=np.int32)[None, None, :, None] * steps[1]
    return (local // sides[1] + rows) * wide + local % sides[1] + columns


def _sized(maps: Array, high: int, wide: int) -> Array:
    """Crop at the lower right, or fill up with zeros."""
    margins = [(0, high - maps.shape[1], 0), (0, wide - maps.shape[2], 0)]
    return lax.pad(maps, jnp.zeros((), maps.dtype), [(0, 0, 0), *margins, (0, 0, 0)])


def _windows(window: PerAxis, stride: PerAxis | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sides = per_axis(window, 2, "window")
    if sides[0] * sides[1] > 256:
        raise ValueError(f"expected windows of at most 256 entries, got {sides[0]} x {sides[1]}")
    return sides, sides if stride is None else per_axis(stride, 2, "stride")


__all__ = ["Upsampling", "flat_switches", "max_pool", "unpool", "upsample"]
