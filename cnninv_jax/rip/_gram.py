"""Inner products of shifted filters without the dense W W^T: one K x K table per way two atoms can overlap.

Two atoms of W at shifts j and j' overlap in a way that only their lag decides (valid padding), or the lag and what the
border leaves of either (same padding). A `Geometry` numbers these ways on the host; a table holds the inner products of
every filter with every other in each of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, FilterBank, Float, Int
from cnninv_jax.operators import ConvOperator

#: On one axis: the lag of the second atom in samples, and the taps [start, stop) that each of the two keeps.
_Overlap: TypeAlias = tuple[int, int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """In which ways the atoms of W overlap.

    Attributes:
        shifts: n per axis.
        overlaps: the ways of every axis, in a fixed order.
        lookup: number of the way of two shifts, [n, n] per axis; -1 where they do not overlap.
        translates: whether the overlap of two atoms depends on their lag only.
    """

    shifts: tuple[int, ...]
    overlaps: tuple[tuple[_Overlap, ...], ...]
    lookup: tuple[Int[np.ndarray, "n n"], ...]
    translates: bool

    @property
    def ways(self) -> int:
        """Number of tables; table 0 is that of atoms which do not overlap, all zeros."""
        return 1 + math.prod(len(axis) for axis in self.overlaps)

    @property
    def reach(self) -> tuple[int, ...]:
        """Largest difference of two shifts that overlap, per axis."""
        axes = (np.nonzero(axis >= 0) for axis in self.lookup)
        return tuple(int(np.max(np.abs(first - second), initial=0)) for first, second in axes)

    def way(
        self, first: Int[np.ndarray, "*one rank"], second: Int[np.ndarray, "*other rank"]
    ) -> Int[np.ndarray, " *pairs"]:
        """Return which table holds the inner products of atoms at two shifts; 0 where they do not overlap."""
        number, apart = np.zeros((), np.int64), np.zeros((), bool)
        for axis, (lookup, overlaps) in enumerate(zip(self.lookup, self.overlaps, strict=True)):
            found = lookup[first[..., axis], second[..., axis]]
            number, apart = number * len(overlaps) + found, apart | (found < 0)
        return np.where(apart, 0, number + 1).astype(np.int32)


def gram_geometry(op: ConvOperator) -> Geometry:
    """Return the geometry of the Gram matrix W W^T of a layer.

    Raises:
        ValueError: circular padding, whose atoms can overlap on both sides.
    """
    if op.padding == "circular":
        raise ValueError(
            "expected padding 'valid' or 'same' for an RIP constant, got 'circular', where two atoms can overlap on "
            "both sides; build the operator with padding='valid'"
        )
    axes = []
    for ell, size, step, n, (before, _) in zip(
        op.length, op.signal_shape, op.stride, op.shifts, op.margins, strict=True
    ):
        origins = [j * step - before for j in range(n)]
        kept = [(max(0, -origin), min(ell, size - origin)) for origin in origins]
        if op.padding == "valid":
            kept = [(0, ell)] * n
        numbers: dict[_Overlap, int] = {}
        lookup = np.full((n, n), -1, np.int32)
        for first, second in itertools.product(range(n), repeat=2):
            lag = origins[second] - origins[first]
            low = max(kept[first][0], kept[second][0] + lag)
            if low < min(kept[first][1], kept[second][1] + lag):
                way = (lag, *kept[first], *kept[second])
                lookup[first, second] = numbers.setdefault(way, len(numbers))
        axes.append((tuple(numbers), lookup))
    overlaps, lookups = zip(*axes, strict=True)
    return Geometry(op.shifts, overlaps, lookups, op.padding == "valid")


def gram_table(filters: FilterBank, geometry: Geometry) -> Float[Array, "ways K K"]:
    """Return <atom of filter f, atom of filter g> for every way two atoms overlap, [ways, K, K]; traceable.

    Cost: one product [K, M taps] x [M taps, K] per way and its mirror image.
    """
    return jnp.stack(_tables(filters, geometry, jnp.zeros((filters.shape[0],) * 2, filters.dtype)))


def host_gram_table(filters: np.ndarray, geometry: Geometry) -> Float[np.ndarray, "ways K K"]:
    """Return `gram_table` on the host, in float64."""
    bank = np.asarray(filters, np.float64)
    return np.stack(_tables(bank, geometry, np.zeros((bank.shape[0],) * 2)))


def _tables(filters: Array | np.ndarray, geometry: Geometry, zero: Array | np.ndarray) -> list:
    count = filters.shape[0]
    known: dict[tuple[_Overlap, ...], Array | np.ndarray] = {}
    for ways in itertools.product(*geometry.overlaps):
        mirror = tuple((-lag, start, stop, begin, end) for lag, begin, end, start, stop in ways)
        if mirror in known:
            known[ways] = known[mirror].T
            continue
        # Tap u of the first atom meets tap u - lag of the second.
        first, second = [slice(None)] * 2, [slice(None)] * 2
        for lag, start, stop, other_start, other_stop in ways:
            low, high = max(start, other_start + lag), min(stop, other_stop + lag)
            first.append(slice(low, high))
            second.append(slice(low - lag, high - lag))
        left = filters[tuple(first)].reshape(count, -1)
        right = filters[tuple(second)].reshape(count, -1)
        known[ways] = left @ right.T if isinstance(left, np.ndarray) else matmul(left, jnp.asarray(right).T)
    return [zero, *known.values()]
