"""Geometry of sliding windows over maps [B, H, W, C], and the patches that turn a convolution into one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax

from cnninv_jax._typing import Array, Shaped

#: Samples added before and after, per axis.
Margins: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
Padding: TypeAlias = str | Sequence[Sequence[int]]


def margins_of(padding: Padding, sizes: Sequence[int], sides: Sequence[int], steps: Sequence[int]) -> Margins:
    """Return the samples added before and after, per axis.

    ``"SAME"`` gives ceil(D / t) windows, an odd sample more behind than before, as in XLA and Flax.

    Raises:
        ValueError: an unknown name, or numbers that are no margins.
    """
    if padding == "VALID":
        return (0, 0), (0, 0)
    if padding == "SAME":
        pairs = []
        for size, side, step in zip(sizes, sides, steps, strict=True):
            missing = max((-(-size // step) - 1) * step + side - size, 0)
            pairs.append((missing // 2, missing - missing // 2))
        return pairs[0], pairs[1]
    try:
        pairs = [] if isinstance(padding, str) else [tuple(int(entry) for entry in pair) for pair in padding]
    except (TypeError, ValueError):
        pairs = []
    if [len(pair) for pair in pairs] != [2, 2] or min(map(min, pairs)) < 0:
        raise ValueError(
            f"expected padding to be 'SAME', 'VALID' or ((top, bottom), (left, right)) of at least 0, got {padding!r}"
        )
    (top, bottom), (left, right) = pairs
    return (top, bottom), (left, right)


def counts_of(sizes: Sequence[int], sides: Sequence[int], steps: Sequence[int], margins: Margins) -> tuple[int, int]:
    """Return the windows per axis; below 1 where there are none."""
    first, second = (
        (size + before + after - side) // step + 1
        for size, side, step, (before, after) in zip(sizes, sides, steps, margins, strict=True)
    )
    return first, second


def frame(x: Shaped[Array, "B H W C"], margins: Margins, value: float = 0.0) -> Shaped[Array, "B h w C"]:
    """Put a number around the maps; where a margin is negative, cut them."""
    widths = ((0, 0, 0), *((before, after, 0) for before, after in margins), (0, 0, 0))
    return x if margins == ((0, 0), (0, 0)) else lax.pad(x, jnp.asarray(value, x.dtype), widths)


def taps(x: Shaped[Array, "B H W C"], axis: int, side: int, step: int, count: int) -> list[Array]:
    """Return what the windows hold at each of their places along one axis."""
    return [lax.slice_in_dim(x, tap, tap + (count - 1) * step + 1, step, axis=axis) for tap in range(side)]


def patches(
    x: Shaped[Array, "B H W M"], sides: Sequence[int], steps: Sequence[int], margins: Margins
) -> Shaped[Array, "B h w q"]:
    """Return the window of every place as one axis of q = kh kw M numbers, in the order of a kernel [kh, kw, M, K].

    Columns first, rows then: kw + kh slices in place of kh kw.
    """
    counts = counts_of(x.shape[1:3], sides, steps, margins)
    framed = frame(x, margins)
    for axis in (2, 1):
        found = taps(framed, axis, sides[axis - 1], steps[axis - 1], counts[axis - 1])
        framed = jnp.concatenate(found, axis=-1)
    return framed
