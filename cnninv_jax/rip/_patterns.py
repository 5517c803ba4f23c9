"""Which supports of M_k (or of sums of its members) have to be looked at for the exact constant.

By interlacing, |W_S W_S^T - I| grows with S, so supports of full size are enough. Where S falls into parts that do not
overlap, the matrix falls into blocks, and the part with the largest norm also belongs to a support without such a gap
(unless every filter is used up already): connected supports are enough. With valid padding supports that differ by a
common shift have the same Gram matrix. What is left is listed as *patterns*: shifts, each with the number of one of F
filters, times all C(K, F) choices of filters. At l = 5 and k = 3 a pattern is one of 61, not of n^3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cnninv_jax._numerics import per_axis
from cnninv_jax._typing import Int, PerAxis
from cnninv_jax.rip._gram import Geometry
from cnninv_jax.sparsity import count_supports, regions, support_size, window

#: Most patterns that are listed; a list on the host, each a few hundred bytes.
PATTERN_LIMIT = 2**18


class Model(NamedTuple):
    """The supports of sums of ``members`` codes of M_k: at most ``members`` entries a block and ``size`` in total."""

    code_shape: tuple[int, ...]
    pool: tuple[int, ...] | None
    members: int
    size: int

    @property
    def window(self) -> tuple[int, ...]:
        """Pooling window per axis."""
        return window(self.code_shape[1:], self.pool)


class Patterns(NamedTuple):
    """Patterns of equally many shifts and filters.

    Attributes:
        filters: F, how many different filters a pattern has.
        local: which of the F every entry belongs to, [P, r].
        shifts: shift of every entry, [P, r, rank].
        ways: table of every pair of entries, see `Geometry.way`, [P, r, r].
    """

    filters: int
    local: Int[np.ndarray, "P r"]
    shifts: Int[np.ndarray, "P r rank"]
    ways: Int[np.ndarray, "P r r"]


def support_model(code_shape: tuple[int, ...], k: float, pool: PerAxis | None, members: int) -> Model:
    """Return the model of sums of ``members`` codes of M_k, its size cut to what the blocks can hold.

    A set with at most ``members`` entries a block and ``members`` k in total always is a union of supports of M_k:
    deal its entries out in turn, block after block.

    Raises:
        ValueError: ``members`` is no positive integer, or k not between 1 and the number of blocks.
    """
    (count,) = per_axis(members, 1, "members")
    pooling = None if pool is None else per_axis(pool, len(code_shape) - 1, "pool")
    size = support_size(k, code_shape, pooling)
    if count == 1:
        return Model(tuple(code_shape), pooling, 1, size)
    n, p = code_shape[1:], window(code_shape[1:], pooling)
    axes = [[min(w, length - start) for start in range(0, length, w)] for length, w in zip(n, p, strict=True)]
    capacity = code_shape[0] * sum(min(count, math.prod(sizes)) for sizes in itertools.product(*axes))
    return Model(tuple(code_shape), pooling, count, min(count * size, capacity))


def count_model_supports(model: Model) -> int:
    """Return the number of supports of full size, as an exact integer: n^k C(K, k) for one member and no pooling."""
    if model.members == 1:
        return count_supports(model.code_shape, model.size, model.pool).exact
    n = model.code_shape[1:]
    axes = [[min(w, length - at) for at in range(0, length, w)] for length, w in zip(n, model.window, strict=True)]
    totals = [1]
    for _ in range(model.code_shape[0]):
        for sizes in itertools.product(*axes):
            ways = [math.comb(math.prod(sizes), c) for c in range(model.members + 1)]
            length = min(len(totals) + model.members, model.size + 1)
            totals = [sum(totals[i - c] * w for c, w in enumerate(ways) if 0 <= i - c < len(totals))
                      for i in range(length)]  # fmt: skip
    return totals[model.size]


def list_patterns(model: Model, geometry: Geometry, limit: int) -> list[Patterns] | None:
    """Return the patterns of all supports that matter, or None where they come to more than ``limit`` supports."""
    found: list[Patterns] = []
    total = 0
    num_filters = model.code_shape[0]
    for size, sets in _connected_sets(model, geometry, limit):
        # A smaller set that uses every filter may have nowhere to grow.
        counts = range(1, min(num_filters, size) + 1) if size == model.size else [num_filters]
        for filters in counts:
            if filters > size:
                continue
            patterns = _assign(sets, filters, model, geometry) if sets is not None else None
            if patterns is None:
                return None
            total += math.comb(num_filters, filters) * len(patterns.local)
            if total > limit:
                return None
            if len(patterns.local):
                found.append(patterns)
    return found


def _connected_sets(model: Model, geometry: Geometry, limit: int) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield sizes and the multisets of shifts of that size, [P, size, rank], whose overlaps hang together.

    None stands for too many. Sets are sorted, and with valid padding moved as far down as pooling regions allow.
    """
    n = np.asarray(geometry.shifts)
    rank = len(n)
    whole = [w == length for w, length in zip(model.window, geometry.shifts, strict=True)]
    step = np.where(whole, 1, model.window) if geometry.translates else n
    box = list(itertools.product(*(range(-reach, reach + 1) for reach in geometry.reach)))
    around = np.asarray(box, np.int64).reshape(-1, rank)
    start = np.stack([axis.ravel() for axis in np.indices(tuple(int(s) for s in step))], axis=-1)
    sets = start[np.all(start < n, axis=1)][:, None]
    num_filters = model.code_shape[0]
    for size in range(1, model.size + 1):
        if size == model.size or size >= num_filters:
            yield size, sets
        if size == model.size:
            return
        # Every set grows by doubling its last shift, and then goes with any choice of as many filters.
        least = math.comb(num_filters, model.size) * len(sets)
        if least > limit or len(sets) * size * len(around) > 16 * PATTERN_LIMIT:
            yield model.size, None
            return
        near = (sets[:, :, None] + around).reshape(len(sets), -1, 1, rank)
        grown = np.concatenate([np.broadcast_to(sets[:, None], (*near.shape[:2], size, rank)), near], axis=2)
        grown = grown.reshape(-1, size + 1, rank)
        if geometry.translates:
            grown = grown - (grown.min(axis=1, keepdims=True) // step) * step
        grown = grown[np.all((grown >= 0) & (grown < n), axis=(1, 2))]
        # One number a shift, so that sorting and comparing sets is a matter of integers.
        flat = np.sort(np.ravel_multi_index(tuple(np.moveaxis(grown, -1, 0)), tuple(n)), axis=1)
        # Every entry must overlap the set it joined; equal lags do not with a stride beyond the filter's length.
        flat = np.unique(flat[_joined(grown, geometry)], axis=0)
        sets = np.stack(np.unravel_index(flat, tuple(n)), axis=-1)
        if len(sets) > PATTERN_LIMIT:
            yield model.size, None
            return


def _joined(grown: np.ndarray, geometry: Geometry) -> np.ndarray:
    return np.any(geometry.way(grown[:, :-1], grown[:, -1:]) > 0, axis=1)


def _assign(sets: np.ndarray, filters: int, model: Model, geometry: Geometry) -> Patterns | None:
    """Give the entries of every set filters 0 .. F - 1, each used; None where there are more than PATTERN_LIMIT."""
    size = sets.shape[1]
    region = sets // np.asarray(model.window)
    count = regions(model.code_shape[1:], model.pool)
    region = np.asarray(np.ravel_multi_index(tuple(np.moveaxis(region, -1, 0)), count))
    which = np.asarray(range(len(sets)), np.int64)
    local = np.zeros((len(sets), 0), np.int64)
    for slot in range(size):
        choices = np.repeat(np.arange(filters)[None], len(which), axis=0)
        earlier = local[:, :, None] == choices[:, None]
        same_region = (region[which, :slot] == region[which, slot : slot + 1])[:, :, None]
        fits = np.sum(earlier & same_region, axis=1) < model.members
        if slot:
            equal = np.all(sets[which, slot] == sets[which, slot - 1], axis=-1)
            fits &= ~equal[:, None] | (choices > local[:, -1:])
        used = np.sum(np.any(local[:, :, None] == np.arange(filters)[None, None], axis=1), axis=1)
        fresh = ~np.any(earlier, axis=1)
        fits &= filters - used[:, None] - fresh <= size - slot - 1
        row, choice = np.nonzero(fits)
        if len(row) > PATTERN_LIMIT:
            return None
        which, local = which[row], np.concatenate([local[row], choice[:, None]], axis=1)
    shifts = sets[which]
    ways = geometry.way(shifts[:, :, None], shifts[:, None])
    if not geometry.translates:
        # Away from the border the same overlaps come back at every shift.
        _, first = np.unique(
            np.concatenate([local, ways.reshape(len(ways), size * size)], axis=1), axis=0, return_index=True
        )
        local, shifts, ways = local[first], shifts[first], ways[first]
    return Patterns(filters, local.astype(np.int32), shifts.astype(np.int32), ways)
