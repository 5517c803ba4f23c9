"""The recursion of Theorem 10 on a band of the covariance (Random DCN, A.3.3): only the lags that are needed later.

C_v(p) = sum over channels of X[p] X[p + v]. Average pooling needs C at the lags inside of its windows, and what stands
before it the lags that lead there; a network is cut behind its average pools into stages, and in a stage every lag
travels alone:

    convolution, stride t    lag v of the output is made of lag t v of the input
    average pooling          of lags t v + d, |d| < window
    zero insertion by r      of lag v / r; a lag that r does not divide is zero

C_{-v}(p) = C_v(p - v), so that one lag of every pair suffices: the one whose first non-zero entry is positive. A band
is an array [lags, *D] of these, lag 0 in front. A stage is one loop over its fine lags, each of which goes through all
convolutions as a single map that stays in the cache, and is pooled into the coarse band behind: memory is that of the
coarse bands, under differentiation as well, and one body is compiled per stage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
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


def half(lags: Lags) -> tuple[tuple[int, ...], ...]:
    """Return one lag of every pair (v, -v) of the product of the axes, lag 0 first."""
    return tuple(lag for lag in itertools.product(*lags) if lag >= (0,) * len(lag))


def variances(stage: Stage, start: Float[Array, " *D"]) -> tuple[Float[Array, " *n"], ...]:
    """Return the maps of lag 0 after every step of a stage, k_2 and the sizes of windows left out."""
    maps = []
    for step in stage.steps:
        start = _insert_or_mean(start, step)
        maps.append(start)
    return tuple(maps)


def _insert_or_mean(maps: Array, step: Step) -> Array:
    if isinstance(step.layer, Upsample):
        return _kernel.insert_zeros(maps, step.stride)
    return _kernel.window_means(maps, step.window, step.stride, step.margins)


class Walk(NamedTuple):
    """How the fine lags of a stage travel: one row per fine lag.

    Attributes:
        before: lag in front of every step, and in front of the pool, [lags, steps + 1, rank].
        alive: whether every step hands the lag on; zero insertion kills what its factor does not divide, [lags, steps].
        entry: where the lag in front of the first step is in `half`, [lags].
        targets: rows of the sums that the lag is pooled into, [lags, combinations of the axes' targets].
        weights: per axis, of the entries of a window for each of the axis' targets, [lags, targets, window].
        coarse: coarse lag of every row of the sums: those of `half`, then the negative ones that are met.
    """

    before: np.ndarray
    alive: np.ndarray
    entry: np.ndarray
    targets: np.ndarray
    weights: tuple[np.ndarray, ...]
    coarse: tuple[tuple[int, ...], ...]


def walk_of(stage: Stage) -> Walk:
    """Return the ways of the fine lags of a stage that ends with a pool."""
    assert stage.pool is not None
    fine = half(stage.lags[-2])
    rank, depth = len(fine[0]), len(stage.steps)
    before = np.zeros((len(fine), depth + 1, rank), np.int32)
    alive = np.ones((len(fine), depth), bool)
    before[:, depth] = fine
    for at in range(depth - 1, -1, -1):
        step, by = stage.steps[at], np.asarray(stage.steps[at].stride)
        if isinstance(step.layer, Upsample):
            alive[:, at] = np.all(before[:, at + 1] % by == 0, axis=1)
            before[:, at] = np.where(alive[:, at, None], before[:, at + 1] // by, 0)
        else:
            before[:, at] = before[:, at + 1] * by
    index = {lag: place for place, lag in enumerate(half(stage.lags[0]))}
    entry = np.asarray([index[tuple(lag)] for lag in before[:, 0].tolist()], np.int32)

    met = [
        {
            lag: _targets(lag, stage.lags[-1][axis], stage.pool.window[axis], stage.pool.stride[axis])
            for lag in axis_lags
        }
        for axis, axis_lags in enumerate(stage.lags[-2])
    ]
    widths = [max(len(found) for found in axis.values()) for axis in met]
    weights = tuple(np.zeros((len(fine), width, size)) for width, size in zip(widths, stage.pool.window, strict=True))
    rows = {lag: place for place, lag in enumerate(half(stage.lags[-1]))}
    targets = np.zeros((len(fine), math.prod(widths)), np.int32)
    for place, lag in enumerate(fine):
        found = [axis[entry] for axis, entry in zip(met, lag, strict=True)]
        for axis, axis_found in enumerate(found):
            for at, (_, weight) in enumerate(axis_found):
                weights[axis][place, at] = weight
        for at, combination in enumerate(itertools.product(*map(range, widths))):
            if all(one < len(some) for one, some in zip(combination, found, strict=True)):
                target = tuple(some[one][0] for one, some in zip(combination, found, strict=True))
                targets[place, at] = rows.setdefault(target, len(rows))
    # The pair (v, -v) gives to (u, -u) together: once from v to u and once, mirrored, from v to -u. Lag 0 is its own
    # mirror image and gives half of itself to both.
    weights[0][0] *= 0.5
    return Walk(before, alive, entry, targets, weights, tuple(rows))


def _targets(lag: int, coarse: Sequence[int], window: int, stride: int) -> list[tuple[int, list[float]]]:
    """Return the coarse lags u with |v - stride u| < window, and the weights of a window's entries as first partner."""
    found = []
    for u in coarse:
        d = lag - stride * u
        if abs(d) < window:
            found.append((u, [float(0 <= start + d < window) / window**2 for start in range(window)]))
    return found


#: Zeros around a map, before and after it per axis; negative where entries are left out.
Frame: TypeAlias = tuple[tuple[int, int], ...]


def frames_of(stage: Stage) -> tuple[Frame, ...]:
    """Return the zeros around the maps in front of every step and of the pool.

    All of them are put around the stage's input before its loop begins. A convolution then has no margins, and what it
    computes outside of its outputs is zero because z is zero there: inside of the loop nothing has to be padded, which
    would keep XLA from vectorising.
    """
    frames: list[Frame] = [((0, 0),) * len(stage.lags[0])]
    for step in reversed(stage.steps):
        frame = []
        for (low, high), size, by, (before, _), inputs, outputs in zip(
            frames[0], step.window, step.stride, step.margins, step.inputs, step.outputs, strict=True
        ):
            if isinstance(step.layer, Upsample):
                frame.append((-(-low // by), -(-high // by)))
            else:
                seen = (low + outputs + high - 1) * by + size
                frame.append((low * by + before, seen - (low * by + before) - inputs))
        frames.insert(0, tuple(frame))
    return tuple(frames)


def _cropped(step: Step, inside: Frame, outside: Frame) -> Frame:
    """Return what is to be put around (taken away from) the output of zero insertion, to have the frame behind it."""
    return tuple(
        (wanted[0] - by * held[0], wanted[1] - by * held[1])
        for held, wanted, by in zip(inside, outside, step.stride, strict=True)
    )


def _channel_sum(first: Array, second: Array) -> Array:
    """Return the sum of first * second over the channels; of few channels by additions, which XLA fuses."""
    if first.shape[0] > 16:
        return jnp.sum(first * second, 0)
    total = first[0] * second[0]
    for channel in range(1, first.shape[0]):
        total = total + first[channel] * second[channel]
    return total


def propagate(
    stage: Stage, source: Float[Array, " lags_or_M *D"], maps: Sequence[Float[Array, " *n"]], *, picture: bool
) -> Float[Array, " lags *n"]:
    """Take a band through a stage and its pool.

    Args:
        stage: the stage.
        source: the band in front of it, or the picture.
        maps: `variances` of the stage.
        picture: which of the two the source is.

    Returns:
        The band behind the pool.
    """
    assert stage.pool is not None
    walk, pool, frames = walk_of(stage), stage.pool, frames_of(stage)
    rank, dtype = len(pool.inputs), source.dtype
    source = _kernel.framed(source, frames[0])
    moving = _Padded(source, walk.before[:, 0]) if picture else None
    norms: dict[int, tuple[Array, Array, _Padded, _Padded]] = {}
    for at, (step, variance) in enumerate(zip(stage.steps, maps, strict=True)):
        if isinstance(step.layer, Conv):
            norm = _kernel.framed(_kernel.root(variance), frames[at + 1])
            inverse = _kernel.inverse(norm)
            lags = walk.before[:, at + 1]
            norms[at] = (norm, inverse, _Padded(norm, lags), _Padded(inverse, lags))

    def pooled(row: dict[str, Array]) -> list[Array]:
        """Return what one fine lag gives to its targets."""

        def apart(function: Callable[..., Array], *arguments: Array) -> Array:
            # Every entry of a map is read by whole windows behind. Left alone, XLA fuses maps into their readers and
            # computes them anew for each entry of a window; it does not look into a branch (barriers it forgets).
            shape = jax.eval_shape(function, *arguments)
            return lax.cond(row["entry"] >= 0, function, lambda *_: jnp.zeros(shape.shape, shape.dtype), *arguments)

        before, weights = row["before"], [row[f"weights {axis}"] for axis in range(rank)]
        if moving is None:
            band = lax.dynamic_index_in_dim(source, row["entry"], keepdims=False)
        else:
            band = apart(lambda start, moving=moving: _channel_sum(source, moving.at(start)), before[0])
        for at, step in enumerate(stage.steps):
            if isinstance(step.layer, Upsample):
                band = _kernel.framed(
                    _kernel.insert_zeros(band, step.stride), _cropped(step, frames[at], frames[at + 1])
                )
                band = jnp.where(row["alive"][at], band, 0)
                continue

            def through(band: Array, lag: Array, at: int = at, step: Step = step) -> Array:
                band = _kernel.window_means(band, step.window, step.stride, ((0, 0),) * rank)
                if not isinstance(step.layer, Conv):
                    return band
                norm, inverse, moved, moved_inverse = norms[at]
                return _kernel.relu_covariance(band, norm, moved.at(lag), inverse, moved_inverse.at(lag))

            band = apart(through, band, before[at + 1])
        parts = [band]
        for axis, (size, by, outputs) in enumerate(zip(pool.window, pool.stride, pool.outputs, strict=True)):
            reach = (outputs - 1) * by + 1
            slices = [[lax.slice_in_dim(part, a, a + reach, by, axis) for a in range(size)] for part in parts]
            parts = [
                sum((weights[axis][target, a] * piece[a] for a in range(1, size)), weights[axis][target, 0] * piece[0])
                for piece in slices
                for target in range(weights[axis].shape[0])
            ]
        return parts

    def add(sums: Array, row: dict[str, Array]) -> tuple[Array, None]:
        for at, part in enumerate(jax.checkpoint(pooled)(row)):
            sums = _add_to(sums, row["targets"][at], part)
        return sums, None

    rows = {
        "before": jnp.asarray(walk.before),
        "alive": jnp.asarray(walk.alive),
        "entry": jnp.asarray(walk.entry),
        "targets": jnp.asarray(walk.targets),
        **{f"weights {axis}": jnp.asarray(table, dtype) for axis, table in enumerate(walk.weights)},
    }
    sums, _ = lax.scan(add, jnp.zeros((len(walk.coarse), *pool.outputs), dtype), rows)
    return _folded(sums, walk.coarse, half(stage.lags[-1]), pool)


def _folded(
    sums: Array, coarse: Sequence[tuple[int, ...]], kept: Sequence[tuple[int, ...]], pool: Step
) -> Float[Array, " lags *n"]:
    """Return C_u(q) = sums_u(q) + sums_{-u}(q + u) for the lags that are kept."""
    places = {lag: at for at, lag in enumerate(coarse)}
    band = sums[: len(kept)].at[0].multiply(2)
    negative = [(at, places[opposite], lag) for at, lag in enumerate(kept) if at
                for opposite in [tuple(-entry for entry in lag)] if opposite in places]  # fmt: skip
    if negative:
        lags = np.asarray([lag for _, _, lag in negative], np.int32)
        moving = _Padded(sums, lags)
        table = (
            jnp.asarray([at for at, _, _ in negative], jnp.int32),
            jnp.asarray([place for _, place, _ in negative], jnp.int32),
            jnp.asarray(lags),
        )

        def fold(band: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
            at, place, lag = row
            return _add_to(band, at, moving.entry(place, lag)), None

        band, _ = lax.scan(fold, band, table)
    for axis, (size, by, outputs) in enumerate(zip(pool.window, pool.stride, pool.outputs, strict=True)):
        if size > by:
            # Windows overlap: one that begins behind the last one still has entries inside of the map.
            inside = np.asarray([[0 <= q + lag[axis] < outputs for q in range(outputs)] for lag in kept])
            shape = [len(kept)] + [1] * len(pool.outputs)
            shape[1 + axis] = outputs
            band = jnp.where(inside.reshape(shape), band, 0)
    return band


def _add_to(array: Array, place: Array, part: Array) -> Array:
    """Add to one entry of the first axis."""
    old = lax.dynamic_index_in_dim(array, place, keepdims=False)
    return lax.dynamic_update_index_in_dim(array, old + part, place, 0)


class _Padded:
    """Maps that can be shifted by any of the given lags, zeros coming in from outside."""

    def __init__(self, maps: Array, lags: np.ndarray) -> None:
        rank = lags.shape[1]
        self.shape, self.lead = maps.shape, maps.ndim - rank
        before = np.maximum(0, -lags.min(0))
        config = [(0, 0, 0)] * self.lead + [
            (int(low), int(max(0, high)), 0) for low, high in zip(before, lags.max(0), strict=True)
        ]
        self.before = before.astype(np.int32)
        self.maps = lax.pad(maps, jnp.zeros((), maps.dtype), config)

    def at(self, lag: Array) -> Array:
        """Return entry p + lag at place p."""
        starts = [jnp.zeros((), lag.dtype)] * self.lead + list(lag + self.before)
        return lax.dynamic_slice(self.maps, starts, self.shape)

    def entry(self, place: Array, lag: Array) -> Array:
        """Return the same of one entry of the first axis only."""
        starts = [place, *(lag + self.before)]
        return lax.dynamic_slice(self.maps, starts, (1, *self.shape[1:]))[0]
