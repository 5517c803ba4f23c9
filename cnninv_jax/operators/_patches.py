"""Patches of a signal and back: the strided slices that turn a convolution into one matrix product."""

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
