"""What a layer answers to the few entries that its signal can have, as blocks of a matrix; made once, on the host.

Atoms are local: a block of neighbouring responses hears few of the entries. So rows are kept in the order of their
shifts, rows that hear nothing are dropped, and every block keeps the columns that it hears.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Float, Int, Scalar
from cnninv_jax.dcsc.model import Layer

#: Rows of a block: 128 x 128 draws of float32 are 64 KiB, and blocks of 64 to 512 rows were equally fast.
ROWS = 128


@partial(jax.tree_util.register_dataclass, data_fields=["own", "others", "heard"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Responses:
    """What units at c_below places of the layer below add to the responses of a layer.

    Attributes:
        own: to those at the places of its own support, [c, c_below].
        others: to all others, in blocks of rows, [blocks, rows, w]; rows of zeros fill the last block.
        heard: columns of a block, [blocks, w], c_below where there is none; None where blocks have all, w = c_below.
    """

    own: Float[Array, "c c_below"]
    others: Float[Array, "blocks rows w"]
    heard: Int[Array, "blocks w"] | None

    def largest(self, carried: Float[Array, " c_below"]) -> Scalar:
        """Return the largest magnitude of a response off the places of the layer's own support."""
        if self.heard is None:
            return jnp.max(jnp.abs(matmul(self.others.reshape(-1, self.others.shape[-1]), carried)))
        parts = jnp.take(carried, self.heard, mode="fill", fill_value=0)
        return jnp.max(jnp.abs(matmul(self.others, parts[..., None])))


class Geometry(NamedTuple):
    """A layer as NumPy arrays of float64, and where its atoms lie."""

    filters: Float[np.ndarray, "K M *ell"]
    signal: tuple[int, ...]
    shifts: tuple[int, ...]
    stride: tuple[int, ...]
    circular: bool

    @classmethod
    def of(cls, layer: Layer) -> Geometry:
        """Return that of a layer.

        Raises:
            ValueError: a padding that crops atoms.
        """
        op = layer.op
        if op.padding not in ("valid", "circular"):
            raise ValueError(f"expected atoms that are not cropped, got padding {op.padding!r}; use dcsc.layers")
        filters = np.asarray(op.filters, np.float64)
        return cls(filters, op.signal_shape, op.shifts, op.stride, op.padding == "circular")

    @property
    def length(self) -> tuple[int, ...]:
        """Filter length per axis."""
        return self.filters.shape[2:]

    @property
    def size(self) -> int:
        """Entries of its code."""
        return self.filters.shape[0] * math.prod(self.shifts)

    def windows(self) -> Geometry:
        """Return one filter of ones: its responses say which places lie in which patch."""
        return self._replace(filters=np.ones((1, *self.filters.shape[1:])))

    def most_responses(self, count: int) -> int:
        """Return how many responses can hear any of ``count`` places of the signal, a power of two or all."""
        most = count * int(np.sum(self.filters != 0, axis=(0, *range(2, self.filters.ndim))).max())
        return min(1 << max(most - 1, 0).bit_length(), self.size)

    def columns(self, places: Int[np.ndarray, " c"]) -> tuple[Int[np.ndarray, "c e"], Float[np.ndarray, "c e"]]:
        """Return the atoms at places of the code: flat entries of the signal, and values there."""
        filters, *shift = np.unravel_index(places, (self.filters.shape[0], *self.shifts))
        flat = np.arange(self.filters.shape[1]).reshape(-1, *(1,) * len(self.signal))
        for axis, (long, t, size) in enumerate(zip(self.length, self.stride, self.signal, strict=True)):
            along = shift[axis][:, None] * t + np.arange(long)
            along = along.reshape(-1, 1, *(long if each == axis else 1 for each in range(len(self.signal))))
            flat = flat * size + along % size
        return flat.reshape(len(places), -1), self.filters[filters].reshape(len(places), -1)

    def responses(self, places: Int[np.ndarray, " c"]) -> Float[np.ndarray, "c N"]:
        """Return the responses to units at places of the signal."""
        channels, *samples = np.unravel_index(places, (self.filters.shape[1], *self.signal))
        found = np.zeros((len(places), self.filters.shape[0], *self.shifts))
        for taps in itertools.product(*map(range, self.length)):
            # The shift at which this tap sees the sample, if there is one.
            starts = [at - tap for at, tap in zip(samples, taps, strict=True)]
            self._add(found, starts, self.filters[:, channels, *taps].T)
        return found.reshape(len(places), -1)

    def gram(self, places: Int[np.ndarray, " c"]) -> Float[np.ndarray, "c N"]:
        """Return the responses to atoms at places of the code."""
        filters, *shift = np.unravel_index(places, (self.filters.shape[0], *self.shifts))
        found = np.zeros((len(places), self.filters.shape[0], *self.shifts))
        lags = [
            range(-((long - 1) // t), (long - 1) // t + 1) for long, t in zip(self.length, self.stride, strict=True)
        ]
        for lag in itertools.product(*lags):
            moved = [by * t for by, t in zip(lag, self.stride, strict=True)]
            late = tuple(slice(max(by, 0), long + min(by, 0)) for by, long in zip(moved, self.length, strict=True))
            early = tuple(slice(max(-by, 0), long - max(by, 0)) for by, long in zip(moved, self.length, strict=True))
            here = self.filters[:, :, *early].reshape(len(self.filters), -1)
            there = self.filters[:, :, *late].reshape(len(self.filters), -1)
            starts = [(at + by) * t for at, by, t in zip(shift, lag, self.stride, strict=True)]
            self._add(found, starts, (there @ here.T)[filters])
        return found.reshape(len(places), -1)

    def _add(
        self,
        found: Float[np.ndarray, "c K *n"],
        starts: list[Int[np.ndarray, " c"]],
        values: Float[np.ndarray, "c K"],
    ) -> None:
        """Add values at the shifts that begin at these samples; such as are none are passed over."""
        fits, at = np.ones(len(found), bool), []
        for start, t, size, n in zip(starts, self.stride, self.signal, self.shifts, strict=True):
            first = start % size if self.circular else start
            fits &= (first % t == 0) & (first >= 0) & (first // t < n)
            at.append(first // t)
        found[fits.nonzero()[0], :, *(each[fits] for each in at)] += values[fits]


def assemble(
    found: Float[np.ndarray, "c_below N"],
    own: Int[np.ndarray, " places"],
    capacity: int,
    layer: Layer,
    rows: int | None,
) -> Responses:
    """Cut a matrix of responses into those of the layer's own support and blocks of all others, as NumPy arrays.

    Args:
        found: responses to every place below.
        own: flat index of the layer's own places.
        capacity: how many of them the result is made for.
        layer: for its shifts and its dtype.
        rows: how many others the result is made for, at least; None for those that hear anything, and of the places
            below only those that they hear.
    """
    below, dtype = len(found), layer.op.dtype
    mine = np.zeros((capacity, below))
    mine[: len(own)] = found[:, own].T
    others = np.any(found != 0, axis=0)
    others[own] = False
    order = _neighbours(layer)
    order = order[others[order]]
    count = max(len(order) if rows is None else rows, 1)
    height = min(ROWS, count)
    blocks = np.zeros((-(-count // height) * height, below))
    blocks[: len(order)] = found[:, order].T
    blocks = blocks.reshape(-1, height, below)
    heard = np.any(blocks != 0, axis=1)
    width = max(int(heard.sum(1).max()), 1)
    if rows is not None or 2 * width > below:
        return Responses(jnp.asarray(mine, dtype), jnp.asarray(blocks, dtype), None)
    # The columns that a block hears come first.
    which = np.argsort(~heard, axis=1, kind="stable")[:, :width]
    kept = np.take_along_axis(blocks, which[:, None], axis=2)
    which = np.where(np.take_along_axis(heard, which, axis=1), which, below)
    return Responses(jnp.asarray(mine, dtype), jnp.asarray(kept, dtype), jnp.asarray(which, np.int32))


def _neighbours(layer: Layer) -> Int[np.ndarray, " N"]:
    """Return all places of a code, tile by tile of its shifts: neighbours stand together, with all their filters."""
    op = layer.op
    edge = max(round((ROWS / op.num_filters) ** (1 / op.rank)), 1)
    shift = np.indices(op.shifts).reshape(op.rank, -1)
    order = np.lexsort((*(shift[::-1]), *(shift[::-1] // edge)))
    return (order[:, None] + np.arange(op.num_filters) * order.size).ravel()
