"""Where the non-zeros of X^(L) may stand: supports that keep every layer's stripes below a limit.

A non-zero of X^(L) touches the same entries of X^(l) wherever it stands, shifted with it: its *footprint*, found once
for every deepest filter. Places are visited in random order, and each is taken or left for good, so that one pass ends
where no place fits any more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray
from cnninv_jax.dcsc.model import Layer, Layers
from cnninv_jax.operators import ConvOperator, conv_operator, synthesis


class Footprint(NamedTuple):
    """What a non-zero of X^(L) does to X^(l), l < L, relative to its place.

    Attributes:
        entries: whether an entry of X^(l) is touched, [n_L, n_l, *window].
        filled: touched entries in the stripe around every shift that has any, [n_L, *wide].
        meets: whether two of the atoms below one non-zero meet in an entry, [n_L].
    """

    entries: Bool[Array, "K_deep K *window"]
    filled: Int[Array, " K_deep *wide"]
    meets: Bool[Array, " K_deep"]


class _State(NamedTuple):
    visited: Int[Array, ""]
    taken: Int[Array, ""]
    support: Bool[Array, " places"]
    touched: tuple[Bool[Array, " k *n"], ...]
    stripes: tuple[Int[Array, " *wide"], ...]


def footprints(model: Layers) -> tuple[Footprint, ...]:
    """Return the footprints of the deepest filters in X^(1), ..., X^(L-1)."""
    found = []
    times = (model[-1].op.filters != 0).astype(np.float32)
    for level in range(len(model) - 1, 0, -1):
        if level < len(model) - 1:
            times = _below(model[level].op, times)
        boxes = _boxes(model[level - 1], times.shape[2:])
        touched = times > 0.5
        filled = jax.vmap(lambda entries, boxes=boxes: _filled(entries, boxes))(touched)
        found.append(Footprint(touched, filled, jnp.any(times > 1.5, axis=tuple(range(1, times.ndim)))))
    return tuple(reversed(found))


def place(
    key: PRNGKeyArray, model: Layers, limits: Int[Array, " L"], wanted: Int[Array, ""], *, disjoint: bool
) -> Bool[Array, " K *n"]:
    """Return a support of X^(L) whose stripes hold at most ``limits`` non-zeros, and ``wanted`` places at most.

    Args:
        key: random key.
        model: the layers.
        limits: largest S_l, [L].
        wanted: number of places at most.
        disjoint: let no two atoms meet in X^(l), 1 <= l < L.

    Cost: at most n_L M steps, each as large as a footprint.
    """
    prints = footprints(model)
    deepest = model[-1].op
    count = math.prod(deepest.code_shape)
    order = jax.random.permutation(key, count)
    apart = jnp.ones(deepest.num_filters, bool)
    for one in prints:
        apart = apart & ~one.meets
    boxes = [_boxes(layer, one.entries.shape[2:]) for layer, one in zip(model, prints, strict=False)]
    # A non-zero of X^(L) itself counts once in every stripe within reach.
    alone = jnp.ones([len(box) for box in _boxes(model[-1], (1,) * deepest.rank)], np.int32)

    def going(state: _State) -> Bool[Array, ""]:
        return (state.visited < count) & (state.taken < wanted)

    def step(state: _State) -> _State:
        candidate = order[state.visited]
        kind, *shift = jnp.unravel_index(candidate, deepest.code_shape)
        fits = apart[kind] if disjoint else jnp.ones((), bool)
        touched, stripes = [], []
        for number, layer in enumerate(model):
            circular = layer.op.padding == "circular"
            origin = [at * step for at, step in zip(shift, _scale(model, number), strict=True)]
            filled = alone
            if number < len(prints):
                entries, filled = prints[number].entries[kind], prints[number].filled[kind]
                before = _read(state.touched[number], origin, entries.shape[1:], circular)
                if disjoint:
                    fits = fits & ~jnp.any(entries & before)
                else:
                    filled = _filled(entries & ~before, boxes[number])
                touched.append((state.touched[number], origin, before | entries, before, circular))
            if circular:
                origin = [at - reach for at, reach in zip(origin, layer.reach, strict=True)]
            there = _read(state.stripes[number], origin, filled.shape, circular)
            fits = fits & jnp.all(there + filled <= limits[number])
            stripes.append((state.stripes[number], origin, there + filled, there, circular))

        def update(array: Array, origin: list[Array], after: Array, before: Array, circular: bool) -> Array:
            return _write(array, origin, jnp.where(fits, after, before), circular)

        return _State(
            state.visited + 1,
            state.taken + fits.astype(np.int32),
            state.support.at[candidate].set(fits),
            tuple(update(*change) for change in touched),
            tuple(update(*change) for change in stripes),
        )

    start = _State(
        jnp.zeros((), np.int32),
        jnp.zeros((), np.int32),
        jnp.zeros(count, bool),
        tuple(jnp.zeros(layer.op.code_shape, bool) for layer in model[:-1]),
        tuple(_no_stripes(layer) for layer in model),
    )
    return jax.lax.while_loop(going, step, start).support.reshape(deepest.code_shape)


def _no_stripes(layer: Layer) -> Int[Array, " *wide"]:
    """Return empty stripes: around every shift, and with valid padding around those a reach outside.

    A stripe outside the border holds no more than the one at the border, so that its limit changes nothing.
    """
    margin = 0 if layer.op.padding == "circular" else 2
    return jnp.zeros([n + margin * reach for n, reach in zip(layer.op.shifts, layer.reach, strict=True)], np.int32)


def _scale(model: Layers, number: int) -> list[int]:
    """Return how many shifts of this layer's code one of the deepest is, per axis."""
    steps = [layer.op.stride for layer in model[number + 1 :]]
    return [math.prod(step[axis] for step in steps) for axis in range(model[0].op.rank)]


def _below(op: ConvOperator, times: Float[Array, "K_deep K *window"]) -> Float[Array, "K_deep M *wider"]:
    """Return how often entries of the layer's signal are touched, from how often those of its code are."""
    window = [(n - 1) * step + ell for n, step, ell in zip(times.shape[2:], op.stride, op.length, strict=True)]
    bare = conv_operator((op.filters != 0).astype(np.float32), window, stride=op.stride)
    spread = jax.vmap(lambda code: synthesis(bare, code))(times)
    if op.padding == "circular":
        for axis, size in enumerate(op.signal_shape, start=2):
            spread = _wrapped(spread, axis, size)
    return spread


def _wrapped(array: Array, axis: int, size: int) -> Array:
    """Add up what falls on the same sample of a circle."""
    if array.shape[axis] <= size:
        return array
    turns = -(-array.shape[axis] // size)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, turns * size - array.shape[axis])
    shape = (*array.shape[:axis], turns, size, *array.shape[axis + 1 :])
    return jnp.sum(jnp.pad(array, widths).reshape(shape), axis=axis)


def _boxes(layer: Layer, window: tuple[int, ...]) -> list[Int[np.ndarray, "wide window"]]:
    """Return for every axis which shifts of a window lie in the stripe around which shift, a reach before it first."""
    boxes = []
    for width, reach, size in zip(window, layer.reach, layer.op.shifts, strict=True):
        circular = layer.op.padding == "circular"
        wide = min(width + 2 * reach, size) if circular else width + 2 * reach
        lag = np.arange(width)[None, :] - (np.arange(wide)[:, None] - reach)
        if circular:
            lag = np.minimum(lag % size, -lag % size)
        boxes.append((np.abs(lag) <= reach).astype(np.int32))
    return boxes


def _filled(entries: Bool[Array, " k *window"], boxes: list[Int[np.ndarray, "wide window"]]) -> Int[Array, " *wide"]:
    """Return how many of the entries lie in every stripe."""
    counts = jnp.sum(entries, axis=0, dtype=np.int32)
    for axis, box in enumerate(boxes):
        counts = jnp.moveaxis(jnp.tensordot(jnp.asarray(box), counts, axes=(1, axis)), 0, axis)
    return counts


def _read(array: Array, origin: list[Array], window: tuple[int, ...], circular: bool) -> Array:
    """Return a window over the spatial axes, the last ones."""
    leading = array.ndim - len(window)
    if circular:
        turned = jnp.roll(array, -jnp.stack(origin), axis=range(leading, array.ndim))
        return turned[(..., *(slice(0, width) for width in window))]
    starts = [jnp.zeros((), origin[0].dtype)] * leading + origin
    return jax.lax.dynamic_slice(array, starts, (*array.shape[:leading], *window))


def _write(array: Array, origin: list[Array], block: Array, circular: bool) -> Array:
    """Return the array with a window replaced."""
    leading = array.ndim - len(origin)
    if circular:
        axes = range(leading, array.ndim)
        turned = jnp.roll(array, -jnp.stack(origin), axis=axes)
        window = (..., *(slice(0, width) for width in block.shape[leading:]))
        return jnp.roll(turned.at[window].set(block), jnp.stack(origin), axis=axes)
    starts = [jnp.zeros((), origin[0].dtype)] * leading + origin
    return jax.lax.dynamic_update_slice(array, block, starts)
