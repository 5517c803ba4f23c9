"""Angles between the atoms of a layer: their coherence, and how small it can be."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import PRECISION, as_float, lengths, per_axis, wider
from cnninv_jax._typing import Array, FilterBank, Float, Int, PerAxis, Scalar
from cnninv_jax.operators.conv import ConvOperator


def coherence(
    filters_or_op: ConvOperator | ArrayLike, *, over: str = "filters", stride: PerAxis | None = None
) -> Scalar:
    """Return mu = max over distinct atoms a, b of |<a, b>| / (|a| |b|) (Gilbert et al. 2017, Tables 4 and 6).

    ``over="filters"`` compares filters at the same shift, as the tables do. ``over="shifts"`` compares the
    columns of W^T: every filter at every shift, a filter's own shifts included. For a bank of filters the
    shifts are all multiples of ``stride``; for an operator those its n allows. With same padding the atoms
    cropped by the border are compared as they are, cropped; with circular padding and D < 2 ell - 1 two atoms
    can overlap on both sides, and both overlaps count. Atoms of zeros have no angle and are left out.

    Args:
        filters_or_op: filters, [K, M, *ell], or an operator.
        over: ``"filters"`` or ``"shifts"``.
        stride: t per axis, for a bank of filters over shifts only; 1 for None.

    Raises:
        ValueError: unknown ``over``; one filter only and ``over="filters"``; a stride where it has no
        meaning.

    Cost: one K x K product per pair of atom positions that overlap (about half of prod(2 ell - 1) at stride
    1; some times more with cropped atoms), one after the other, so memory stays at a few copies of the
    filters.
    """
    filters = filters_or_op.filters if isinstance(filters_or_op, ConvOperator) else as_float(filters_or_op)
    filters = filters.astype(wider(filters.dtype, np.float32))
    if filters.ndim < 3:
        raise ValueError(f"expected filters of shape [K, M, *ell], got {filters.shape}")
    if over == "filters":
        if stride is not None:
            raise ValueError("expected no stride for over='filters' (one shift only); leave it out")
        if filters.shape[0] == 1:
            raise ValueError(
                "expected at least two filters for over='filters', got 1; over='shifts' compares its shifts"
            )
        flat = filters.reshape(filters.shape[0], -1)
        return _largest_cosine(flat, flat, jnp.asarray(True))
    if over != "shifts":
        raise ValueError(f"expected over to be 'filters' or 'shifts', got {over!r}")
    if isinstance(filters_or_op, ConvOperator):
        if stride is not None:
            raise ValueError("expected no stride beside an operator, which has its own; leave it out")
        if math.prod(filters_or_op.code_shape) == 1:
            raise ValueError("expected at least two atoms, got an operator of one filter with one shift")
        if filters_or_op.padding == "circular":
            return _largest_on_circle(filters, filters_or_op)
        axes = [
            _axis_pairs_of_operator(*geometry)
            for geometry in zip(
                filters_or_op.length,
                filters_or_op.signal_shape,
                filters_or_op.stride,
                filters_or_op.shifts,
                (before for before, _ in filters_or_op.margins),
                strict=True,
            )
        ]
    else:
        length = filters.shape[2:]
        steps = per_axis(1 if stride is None else stride, len(length), "stride")
        axes = [_axis_pairs(ell, step) for ell, step in zip(length, steps, strict=True)]
    return _largest_over_pairs(filters, _half(axes))


def welch_bound(
    num_filters: int, channels: int, length: PerAxis, *, stride: PerAxis = 1, order: int | None = None
) -> float:
    """Return a lower bound of the coherence over all shifts of any K filters of this size (Welch 1974).

        mu^(2p) >= (K - R_p) / (R_p (K P - 1)),    P = prod(2 floor((ell - 1) / t) + 1)

    for every order p with R_p < K; without one the bound is 0. For p = 1, R_1 = M prod(min(t, ell)): at stride 1 and
    one channel mu^2 >= (K - 1) / (K (2 ell - 1) - 1) (Papyan, Sulam, Elad 2017); at stride ell, where atoms of
    different shifts do not overlap, Welch's own for K vectors of M prod(ell) numbers. For K <= R_1 nothing but 0 is
    true: filters of one tap each, in different channels or at different taps modulo t, are orthogonal at all shifts.

    Proof. Let B shifts of every unit-norm atom stand on a circle so long that no two atoms overlap on both sides: there
    all inner products are those over all shifts, and each atom meets K P - 1 others. The p-th entrywise power H of the
    Gram matrix is the Gram matrix of the atoms' p-th tensor powers, so it is positive semidefinite, with trace K B, and
    its rank is at most the number of different entries that these symmetric tensors can have, B R_p: the multisets of p
    cells (channel and sample) that some atom covers. Hence

        K B (1 + (K P - 1) mu^(2p)) >= |H|_F^2 >= (trace H)^2 / rank H >= K^2 B / R_p.

    An atom covers C(M prod(ell) + p - 1, p) multisets, and some of them are covered by the atom one shift on as well.
    The shifts that cover a given multiset form a box, so inclusion and exclusion count it once:
    R_p = sum over sets Q of axes of (-1)^|Q| C(M prod(ell_a, or max(ell_a - t_a, 0) for a in Q) + p - 1, p).

    Args:
        num_filters: K.
        channels: M.
        length: ell, one integer (1-D) or one per axis.
        stride: t.
        order: p; the largest bound of all orders for None.

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: sizes that are no positive integers.
    """
    ((count,), (depth,)) = per_axis(num_filters, 1, "num_filters"), per_axis(channels, 1, "channels")
    ell = lengths(length)
    steps = per_axis(stride, len(ell), "stride")
    neighbours = count * math.prod(2 * ((taps - 1) // step) + 1 for taps, step in zip(ell, steps, strict=True)) - 1
    orders = itertools.count(1) if order is None else per_axis(order, 1, "order")
    best = 0.0
    for power in orders:
        covered = 0
        for cut in itertools.product((False, True), repeat=len(ell)):
            axes = zip(ell, steps, cut, strict=True)
            cells = depth * math.prod(max(taps - step, 0) if less else taps for taps, step, less in axes)
            covered += (-1) ** sum(cut) * (math.comb(cells + power - 1, power) if cells else 0)
        # More cells of higher powers: no further order has fewer. At one cell all have one.
        if covered >= count:
            break
        best = max(best, ((count - covered) / (covered * neighbours)) ** (0.5 / power))
        if covered == 1 and depth * math.prod(ell) == 1:
            return best
    return best


# A pair of positions on one axis: the lag of the second against the first, in samples, and the taps [start,
# stop) that each of the two atoms keeps.
_Pair = tuple[int, int, int, int, int]


def _axis_pairs(length: int, stride: int) -> list[_Pair]:
    """Return whole atoms at every multiple of the stride that overlaps."""
    reach = (length - 1) // stride
    return [(step * stride, 0, length, 0, length) for step in range(-reach, reach + 1)]


def _axis_pairs_of_operator(length: int, size: int, stride: int, shifts: int, before: int) -> list[_Pair]:
    """Return the different pairs among the operator's positions; equal crops and lags count once."""
    kept = []
    for shift in range(shifts):
        origin = shift * stride - before
        kept.append((max(0, -origin), min(length, size - origin)))
    reach = (length - 1) // stride
    pairs = {
        ((second - first) * stride, *kept[first], *kept[second])
        for first in range(shifts)
        for second in range(max(0, first - reach), min(shifts, first + reach + 1))
    }
    return sorted(pairs)


def _half(axes: list[list[_Pair]]) -> Int[np.ndarray, "pairs rank 5"]:
    """Combine axes; lags below zero in lexicographic order are left out, (a, b) standing for (b, a)."""
    combined = [pairs for pairs in itertools.product(*axes) if tuple(pair[0] for pair in pairs) >= (0,) * len(axes)]
    return np.asarray(combined, np.int32)


def _largest_over_pairs(filters: FilterBank, pairs: Int[np.ndarray, "pairs rank 5"]) -> Scalar:
    rank = pairs.shape[1]
    length = filters.shape[2:]
    count = filters.shape[0]
    margin = ((0, 0, 0), (0, 0, 0), *((ell - 1, ell - 1, 0) for ell in length))
    zero = jnp.zeros((), filters.dtype)

    def crop(start: Array, stop: Array) -> FilterBank:
        kept = filters
        for axis in range(rank):
            tap = jax.lax.broadcasted_iota(np.int32, filters.shape, 2 + axis)
            kept = jnp.where((tap >= start[axis]) & (tap < stop[axis]), kept, zero)
        return kept

    def compare(pair: Int[Array, "rank 5"]) -> Scalar:
        lag, start, stop, other_start, other_stop = (pair[:, column] for column in range(5))
        first = _rescale(crop(start, stop))
        second = _rescale(crop(other_start, other_stop))
        # Tap u of the first atom meets tap u - lag of the second.
        origin = [jnp.zeros((), np.int32)] * 2 + [ell - 1 - lag[axis] for axis, ell in enumerate(length)]
        moved = jax.lax.dynamic_slice(jax.lax.pad(second, zero, margin), origin, filters.shape)
        return _largest_product(first.reshape(count, -1), moved.reshape(count, -1), jnp.all(lag == 0))

    return jnp.max(jax.lax.map(compare, jnp.asarray(pairs)))


def _largest_on_circle(filters: FilterBank, op: ConvOperator) -> Scalar:
    """Return the coherence of atoms that wrap around: of every filter at shift 0 with every one at any shift.

    A circle of 2 ell - 1 or more samples is cut to that many: nothing overlaps on both sides there.
    """
    sizes, lags = [], []
    for size, ell, step in zip(op.signal_shape, op.length, op.stride, strict=True):
        sizes.append(min(size, 2 * ell - 1))
        reach = (ell - 1) // step
        steps = range(size // step) if size < 2 * ell - 1 else range(-reach, reach + 1)
        lags.append([number * step % sizes[-1] for number in steps])
    # (a, b) at a lag and (b, a) at its opposite are one pair.
    kept = [
        lag
        for lag in itertools.product(*lags)
        if lag <= tuple(-one % size for one, size in zip(lag, sizes, strict=True))
    ]
    count = filters.shape[0]
    widths = [(0, 0, 0)] * 2 + [(0, size - ell, 0) for size, ell in zip(sizes, op.length, strict=True)]
    atoms = jax.lax.pad(_rescale(filters), jnp.zeros((), filters.dtype), widths)
    axes = tuple(range(2, filters.ndim))

    def compare(lag: Int[Array, " rank"]) -> Scalar:
        moved = jnp.roll(atoms, lag, axes)
        return _largest_product(atoms.reshape(count, -1), moved.reshape(count, -1), jnp.all(lag == 0))

    return jnp.max(jax.lax.map(compare, jnp.asarray(np.asarray(kept, np.int32))))


def _rescale(filters: Float[Array, " K *rest"]) -> Float[Array, " K *rest"]:
    """Give every atom unit norm; zeros stay zero."""
    axes = tuple(range(1, filters.ndim))
    squared = jnp.sum(filters * filters, axis=axes, keepdims=True)
    return filters / jnp.sqrt(jnp.where(squared == 0, 1.0, squared))


def _largest_product(first: Float[Array, "K N"], second: Float[Array, "K N"], same: Array) -> Scalar:
    """Return the largest |<a_i, b_j>|, without i = j where both are the same atoms."""
    product = jnp.abs(jnp.matmul(first, second.T, precision=PRECISION))
    own = jnp.eye(first.shape[0], dtype=bool) & same
    return jnp.max(jnp.where(own, 0.0, product))


def _largest_cosine(first: Float[Array, "K N"], second: Float[Array, "K N"], same: Array) -> Scalar:
    return _largest_product(_rescale(first), _rescale(second), same)
