"""The recursion of Theorem 10 on a band of the covariance (Random DCN, A.3.3): only the lags that are needed later.

C_v(p) = sum over channels of X[p] X[p + v]. Average pooling needs C at the lags inside of its windows, and what stands
before it the lags that lead there; a network is cut behind its average pools into stages, and in a stage every lag
travels alone:

    convolution, stride t    lag v of the output is made of lag t v of the input
    average pooling          of lags t v + d, |d| < window
    zero insertion by r      of lag v / r; a lag that r does not divide is zero

C_{-v}(p) = C_v(p - v), so that lags of the first axis from 0 on suffice. A band is an array [*lags, *D], one axis of
lags per spatial axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax

from cnninv_jax._typing import Array, Float
from cnninv_jax.limits import _kernel
from cnninv_jax.limits.layers import AvgPool, Conv, L2Pool, Step, Upsample

#: Lags per spatial axis, in ascending order; the same with either sign.
Lags: TypeAlias = tuple[tuple[int, ...], ...]


class Stage(NamedTuple):
    """Steps up to an average pool, or up to the end.

    Attributes:
        steps: convolutions, zero insertions, pools of single entries.
        pool: the average pool behind them; None in the last stage.
        lags: lags needed in front of each step, then in front of the pool, then behind it.
    """

    steps: tuple[Step, ...]
    pool: Step | None
    lags: tuple[Lags, ...]


def stages_of(steps: Sequence[Step]) -> tuple[Stage, ...]:
    """Cut a network whose first layer is the first convolution, and walk back from lag 0.

    Raises:
        ValueError: l2 pooling before an average pool that needs more than lag 0.
    """
    lags: Lags = ((0,),) * len(steps[0].inputs)
    stages: list[Stage] = []
    inside: list[Step] = []
    seen: list[Lags] = [lags]
    pool: Step | None = None
    for step in reversed(steps):
        if _averages(step):
            stages.append(Stage(tuple(reversed(inside)), pool, tuple(reversed(seen))))
            inside, seen, pool = [], [lags], step
        elif isinstance(step.layer, L2Pool) and math.prod(step.window) > 1 and any(len(axis) > 1 for axis in lags):
            raise ValueError(
                "expected no l2 pooling between a convolution and an average pool, which has no closed form: the "
                "covariance of l2-pooled maps is unknown; simulate this network with random_output, or use one kind of "
                "pooling"
            )
        if not _averages(step):
            inside.append(step)
        lags = tuple(map(_lags_before, lags, step.window, step.stride, [step.layer] * len(lags)))
        seen.append(lags)
    stages.append(Stage(tuple(reversed(inside)), pool, tuple(reversed(seen))))
    return tuple(reversed(stages))


def _averages(step: Step) -> bool:
    """Whether a step joins lags; a pool of single entries does not."""
    return isinstance(step.layer, AvgPool) and math.prod(step.window) > 1


def _lags_before(lags: tuple[int, ...], window: int, stride: int, layer: object) -> tuple[int, ...]:
    if isinstance(layer, Upsample):
        return tuple(lag // stride for lag in lags if lag % stride == 0)
    reach = window - 1 if isinstance(layer, AvgPool) else 0
    return tuple(sorted({stride * lag + d for lag in lags for d in range(-reach, reach + 1)}))


def half(lags: Lags) -> Lags:
    """Return the lags that a band holds: from 0 on along the first axis."""
    return (tuple(lag for lag in lags[0] if lag >= 0), *lags[1:])


def variances(stage: Stage, start: Float[Array, " *D"]) -> tuple[Float[Array, " *n"], ...]:
    """Return the maps of lag 0 after every step of a stage, k_2 and the sizes of windows left out."""
    maps = []
    for step in stage.steps:
        start = _kernel.insert_zeros(start, step.stride) if isinstance(step.layer, Upsample) else _means(start, step)
        maps.append(start)
    return tuple(maps)


def _means(maps: Array, step: Step) -> Array:
    return _kernel.window_means(maps, step.window, step.stride, step.margins)


def picture_band(picture: Float[Array, " M *D"], lags: Lags) -> Float[Array, " *band"]:
    """Return C_v of a picture."""
    moved = _all_shifts(picture, half(lags))
    return jnp.sum(moved * picture[(None,) * len(lags)], axis=len(lags))


def _all_shifts(maps: Array, lags: Lags) -> Array:
    """Return maps shifted by every lag of every axis, [*lags, ..., *D]."""
    for axis in range(-1, -len(lags) - 1, -1):
        maps = _kernel.shifted(maps, axis - 0, lags[axis])
    return maps


def propagate(stage: Stage, band: Float[Array, " *band"], maps: Sequence[Float[Array, " *n"]]) -> Float[Array, " *out"]:
    """Take a band through a stage and its pool, all lags at once.

    Args:
        stage: the stage.
        band: in front of it.
        maps: `variances` of the stage.

    Returns:
        The band behind the pool.
    """
    assert stage.pool is not None
    rank = len(stage.lags[0])
    for step, variance, before, after in zip(stage.steps, maps, stage.lags, stage.lags[1:], strict=False):
        if isinstance(step.layer, Upsample):
            for axis, (old, new, by) in enumerate(zip(half(before), half(after), step.stride, strict=True)):
                places = [old.index(lag // by) if lag % by == 0 else None for lag in new]
                band = _select(band, axis, places)
            band = _kernel.insert_zeros(band, step.stride)
            continue
        band = _means(band, step)
        if isinstance(step.layer, Conv):
            norm = _kernel.root(variance)
            inverse = _kernel.inverse(norm)
            moved, moved_inverse = _all_shifts(norm, half(after)), _all_shifts(inverse, half(after))
            lead = (None,) * rank
            band = _kernel.relu_covariance(
                band, jnp.broadcast_to(norm[lead], band.shape), moved, inverse[lead], moved_inverse
            )
    fine, coarse = half(stage.lags[-2]), stage.lags[-1]
    for axis in range(1, rank):
        band = _pool_axis(band, axis, fine[axis], coarse[axis], stage.pool.window[axis], stage.pool.stride[axis])
    return _pool_first(band, fine[0], coarse, stage.pool)


def _pool_axis(band: Array, axis: int, fine: Sequence[int], coarse: Sequence[int], window: int, stride: int) -> Array:
    """Average over the windows along one spatial axis: lags ``coarse`` of the pooled maps."""
    rank = band.ndim // 2
    total = None
    for d in range(1 - window, window):
        places = [fine.index(stride * lag + d) if stride * lag + d in fine else None for lag in coarse]
        if all(place is None for place in places):
            continue
        part = _select(band, axis, places)
        outputs = (band.shape[rank + axis] - window) // stride + 1
        for start in range(max(0, -d), min(window, window - d)):
            piece = lax.slice_in_dim(part, start, start + (outputs - 1) * stride + 1, stride, rank + axis)
            total = piece if total is None else total + piece
    assert total is not None
    return total * (1 / window**2)


def _pool_first(band: Array, fine: Sequence[int], coarse: Lags, pool: Step) -> Array:
    """Average along the first axis, of which only lags from 0 on are there, and fold what falls on negative ones."""
    window, stride = pool.window[0], pool.stride[0]
    # What lags v > 0 give to lag u, lags -v give to lag -u, mirrored; lag 0 gives half of itself to both.
    weights = np.asarray([0.5 if lag == 0 else 1.0 for lag in fine])
    band = band * jnp.asarray(weights, band.dtype).reshape(-1, *(1,) * (band.ndim - 1))
    reached = [lag for lag in coarse[0] if any(abs(v - stride * lag) < window for v in fine)]
    sums = _pool_axis(band, 0, fine, reached, window, stride)
    kept = [lag for lag in coarse[0] if lag >= 0]
    rows = []
    for lag in kept:
        row = sums[reached.index(lag)]
        if -lag in reached:
            row = row + mirrored(sums[reached.index(-lag)], lag, coarse)
        rows.append(row)
    band = jnp.stack(rows)
    for axis, (lags, size, by) in enumerate(zip(half(coarse), pool.window, pool.stride, strict=True)):
        if size > by:
            # Windows overlap: one that begins behind the last one still has entries inside of the map.
            outputs = pool.outputs[axis]
            inside = np.asarray([[0 <= q + lag < outputs for q in range(outputs)] for lag in lags])
            shape = [1] * band.ndim
            shape[axis], shape[len(coarse) + axis] = inside.shape
            band = jnp.where(inside.reshape(shape), band, 0)
    return band


def mirrored(row: Float[Array, " *row"], lag: int, lags: Lags) -> Float[Array, " *row"]:
    """Return C_u(q) = C_{-u}(q + u) for u of first entry ``lag``, from the row of lags -u.

    Args:
        row: maps of the lags (-lag, *), [*lags of the other axes, *D].
        lag: of the first axis.
        lags: per axis.
    """
    rank = len(lags)
    row = jnp.flip(row, tuple(range(rank - 1)))
    row = _moved(row, rank - 1, lag)
    for axis in range(1, rank):
        pieces = [_moved(lax.index_in_dim(row, at, axis - 1), rank - 1 + axis, u) for at, u in enumerate(lags[axis])]
        row = jnp.concatenate(pieces, axis - 1)
    return row


def _moved(maps: Array, axis: int, lag: int) -> Array:
    """Return entry q + lag at place q, zero where it is outside."""
    if lag == 0:
        return maps
    config = [(0, 0, 0)] * maps.ndim
    config[axis] = (-lag, lag, 0)
    return lax.pad(maps, jnp.zeros((), maps.dtype), config)


def _select(array: Array, axis: int, places: Sequence[int | None]) -> Array:
    """Return the entries at the places along one axis; zeros for None."""
    held = [place for place in places if place is not None]
    steps = {second - first for first, second in itertools.pairwise(held)}
    gaps = {at for at, place in enumerate(places) if place is not None}
    first = min(gaps)
    regular = len(steps) <= 1 and min(steps, default=1) > 0 and gaps == set(range(first, first + len(held)))
    if not regular:
        index = np.asarray([-1 if place is None else place for place in places])
        shape = [1] * array.ndim
        shape[axis] = len(index)
        return jnp.where((index >= 0).reshape(shape), jnp.take(array, np.maximum(index, 0), axis), 0)
    part = lax.slice_in_dim(array, held[0], held[-1] + 1, min(steps, default=1), axis)
    config = [(0, 0, 0)] * array.ndim
    config[axis] = (first, len(places) - first - len(held), 0)
    return lax.pad(part, jnp.zeros((), array.dtype), config)
