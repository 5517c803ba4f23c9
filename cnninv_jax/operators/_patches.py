"""Patches of a signal and back: the strided slices that turn a convolution into one matrix product.

And what surrounds a signal before it is cut: zeros, or its own beginning.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import jax
import jax.numpy as jnp

from cnninv_jax._typing import Array, Shaped


class Geometry(Protocol):
    """What `unfold` and `fold` read of an operator."""

    @property
    def length(self) -> tuple[int, ...]:
        """Filter length ell per axis."""
        ...

    @property
    def stride(self) -> tuple[int, ...]:
        """Stride t per axis."""
        ...

    @property
    def shifts(self) -> tuple[int, ...]:
        """Shifts n per axis."""
        ...


class Framing(Protocol):
    """What `frame` and `unframe` read of an operator."""

    @property
    def padding(self) -> str:
        """``"circular"``, or anything else for zeros."""
        ...

    @property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """Samples before and after x per axis; negative ones are left out."""
        ...


def frame(x: Shaped[Array, " M *D"], op: Framing) -> Shaped[Array, " M *padded"]:
    """Put zeros around x, or its own beginning after it (circular padding)."""
    if op.padding != "circular":
        return _pad(x, op.margins)
    for axis, (_, after) in enumerate(op.margins, start=1):
        size = x.shape[axis]
        if after > 0:
            x = jnp.concatenate([x, jax.lax.slice_in_dim(x, 0, after, axis=axis)], axis=axis)
        elif after < 0:
            x = jax.lax.slice_in_dim(x, 0, size + after, axis=axis)
    return x


def unframe(x: Shaped[Array, " M *padded"], op: Framing) -> Shaped[Array, " M *D"]:
    """Crop x, or add what stands after it to its beginning: the transpose of `frame`."""
    if op.padding != "circular":
        return _pad(x, tuple((-before, -after) for before, after in op.margins))
    for axis, (_, after) in enumerate(op.margins, start=1):
        size = x.shape[axis] - after
        if after > 0:
            tail = jax.lax.slice_in_dim(x, size, None, axis=axis)
            x = jax.lax.slice_in_dim(x, 0, size, axis=axis) + _widen(tail, axis, size - after)
        elif after < 0:
            x = _widen(x, axis, -after)
    return x


def _widen(x: Array, axis: int, count: int) -> Array:
    """Put zeros after the last entry of one axis."""
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (0, count, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)


def _pad(x: Array, margins: tuple[tuple[int, int], ...]) -> Array:
    """Put zeros around the spatial axes, or take away where a margin is negative."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((before, after, 0) for before, after in margins)))


def unfold(x: Shaped[Array, " M *padded"], op: Geometry) -> Shaped[Array, " M *ell *n"]:
    """Stack the strided slices of x, one axis after the other: sum(ell) slices in place of prod(ell)."""
    for axis, (ell, step, n) in enumerate(zip(op.length, op.stride, op.shifts, strict=True)):
        # Axes so far: M, the axis taps done, the axis shift axes done, then the rest of x.
        at = 1 + 2 * axis
        slices = [jax.lax.slice_in_dim(x, tap, tap + (n - 1) * step + 1, step, axis=at) for tap in range(ell)]
        x = jnp.stack(slices, axis=1 + axis)
    return x


def fold(patches: Shaped[Array, " M *ell *n"], op: Geometry) -> Shaped[Array, " M *padded"]:
    """Add overlapping patches: the transpose of `unfold`, its axes in reverse."""
    zero = jnp.zeros((), patches.dtype)
    axes = list(enumerate(zip(op.length, op.stride, op.shifts, strict=True)))
    for axis, (ell, step, n) in reversed(axes):
        at = 1 + 2 * axis
        taps = [jax.lax.index_in_dim(patches, tap, axis=1 + axis, keepdims=False) for tap in range(ell)]
        full = (n - 1) * step + ell
        widths = [
            [(0, 0, 0)] * at
            + [(tap, full - tap - (n - 1) * step - 1, step - 1)]
            + [(0, 0, 0)] * (taps[0].ndim - at - 1)
            for tap in range(ell)
        ]
        terms = [jax.lax.pad(array, zero, width) for array, width in zip(taps, widths, strict=True)]
        patches = _pairwise_sum(terms)
    return patches


def _pairwise_sum(terms: list[Array]) -> Array:
    """Add arrays as a balanced tree: log2 of their number in rounding and in depth."""
    while len(terms) > 1:
        pairs = itertools.zip_longest(terms[::2], terms[1::2])
        terms = [first if second is None else first + second for first, second in pairs]
    return terms[0]
