"""Supports with a large |W_S W_S^T - I|: random ones, the truncated power method and exchanges.

Every support found proves a lower bound of delta_k. The truncated power method (Yuan and Zhang 2013) repeats
z <- M(B z, k), normalised, with the model's own projection M as truncation; B = c + A for the largest eigenvalue of
A = W W^T - I and B = c - A for the smallest. Where B is positive semidefinite, z^T B z never falls; smaller c move
faster and stop elsewhere, so c differs between the starts. An exchange takes one entry out and puts the best one in.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray, Scalar
from cnninv_jax.rip._gram import Geometry
from cnninv_jax.rip._patterns import Model
from cnninv_jax.rip.enumeration import matrices_of, raise_to
from cnninv_jax.sparsity import regions, sample_code, window

#: Starts side by side.
_LANES = 64
#: Random supports side by side.
_SUPPORTS = 4096
#: Range of the shift c of the power method, in which log c is uniform.
_SHIFTS = (0.05, 2.0)


class Support(NamedTuple):
    """Entries of a support: filter and position (flat, row-major) of each, [r]."""

    filters: Array | np.ndarray
    positions: Array | np.ndarray


class Layer(NamedTuple):
    """Inner products of a layer on the device.

    Attributes:
        table: [ways, K, K].
        ways: table of every two positions, [positions, positions].
    """

    table: Float[Array, "ways K K"]
    ways: Int[Array, "positions positions"]


def way_matrix(geometry: Geometry) -> Int[np.ndarray, "positions positions"]:
    """Return the table of every two positions."""
    n = geometry.shifts
    every = np.stack(np.unravel_index(np.arange(math.prod(n)), n), axis=-1)
    return geometry.way(every[:, None], every[None])


def gram_of(layer: Layer, support: Support) -> Float[Array, "r r"]:
    """Return W_S W_S^T."""
    ways = layer.ways[support.positions[:, None], support.positions[None]]
    return layer.table[ways, support.filters[:, None], support.filters[None]]


@partial(jax.jit, static_argnums=(2, 3))
def random_supports(
    key: PRNGKeyArray, layer: Layer, model: Model, blocks: int
) -> tuple[Scalar, Support, Int[Array, ""]]:
    """Return the largest |G_S - I| over random supports, such a support, and how many were looked at.

    Of M_k supports are uniform. Of sums of two members they are unions, the shared entries left out; where entries
    coincide, the union is a smaller support, whose value counts all the same.
    """
    n = model.code_shape[1:]

    def draw(key: PRNGKeyArray) -> tuple[Array, Array]:
        if model.members == 1:
            code = sample_code(key, model.code_shape[0], n, model.size, pool=model.pool, dtype=np.float32)
            return code.filter_indices, jnp.ravel_multi_index(tuple(jnp.moveaxis(code.shifts, -1, 0)), n, mode="clip")
        random = jax.random.uniform(key, (model.code_shape[0], math.prod(n)), layer.table.dtype)
        return _keep_largest(random, model)[1:]

    def step(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best, filters, positions = carry
        drawn_filters, drawn_positions = jax.vmap(draw)(jax.random.split(jax.random.fold_in(key, index), _SUPPORTS))
        f, j = drawn_filters.T, drawn_positions.T
        value, which = raise_to(best, matrices_of(layer.table, layer.ways[j[:, None], j[None]], f))
        found, at = which[0] >= 0, jnp.maximum(which[0], 0)
        return value, jnp.where(found, f[:, at], filters), jnp.where(found, j[:, at], positions)

    empty = jnp.zeros((model.size,), np.int32)
    start = (jnp.zeros((1,), layer.table.dtype), empty, empty)
    best, filters, positions = jax.lax.fori_loop(0, blocks, step, start)
    return best[0], Support(filters, positions), jnp.asarray(blocks * _SUPPORTS)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def power_search(
    key: PRNGKeyArray, layer: Layer, model: Model, batches: int, steps: int, kept: int
) -> tuple[Float[Array, " kept"], Support]:
    """Run the truncated power method from random starts, half of them for either end of the spectrum.

    Args:
        key: of the starts.
        layer: inner products.
        model: supports.
        batches: number of starts over 64.
        steps: iterations of each.
        kept: how many of the best supports are returned.

    Returns:
        |z^T A z| of the best, a lower bound of |G_S - I|, and their supports.

    Cost: a step of one start adds r columns of W W^T, r K prod(n) numbers.
    """

    def one(key: PRNGKeyArray, sign: Array) -> tuple[Array, Support]:
        start_key, shift_key = jax.random.split(key)
        low, high = (math.log(c) for c in _SHIFTS)
        shift = jnp.exp(jax.random.uniform(shift_key, (), layer.table.dtype, low, high))
        response = jax.random.normal(start_key, (model.code_shape[0], layer.ways.shape[0]), layer.table.dtype)
        state = _truncate(response, model)

        def step(
            carry: tuple[Array, Support, Array, Support], _: None
        ) -> tuple[tuple[Array, Support, Array, Support], None]:
            values, support, best, best_support = carry
            response, own = _apply(layer, values, support)
            quotient = sign * jnp.sum(own * values)
            better = quotient > best
            best_support = jax.tree.map(lambda a, b: jnp.where(better, a, b), support, best_support)
            response = sign * response
            response = response.at[support.filters, support.positions].add(shift * values)
            return (*_truncate(response, model), jnp.maximum(quotient, best), best_support), None

        lowest = jnp.full((), -jnp.inf, layer.table.dtype)
        (_, _, best, support), _ = jax.lax.scan(step, (*state, lowest, state[1]), None, length=steps)
        return best, support

    signs = jnp.where(jnp.arange(_LANES) % 2 == 0, 1.0, -1.0).astype(layer.table.dtype)

    def batch(index: Array) -> tuple[Array, Support]:
        return jax.vmap(one)(jax.random.split(jax.random.fold_in(key, index), _LANES), signs)

    values, supports = jax.lax.map(batch, jnp.arange(batches))
    values = values.ravel()
    _, order = jax.lax.top_k(values, min(kept, values.size))
    return values[order], jax.tree.map(lambda a: a.reshape(values.size, -1)[order], supports)


@partial(jax.jit, static_argnums=(1, 3))
def exchange(layer: Layer, model: Model, supports: Support, sweeps: int) -> tuple[Float[Array, " starts"], Support]:
    """Improve supports by taking one entry out and putting the best one in, as long as that helps.

    Args:
        layer: inner products.
        model: supports.
        supports: where to start, [starts, r].
        sweeps: how often every entry takes its turn.

    Returns:
        |z^T A z| of the supports, and these.
    """

    def one(support: Support) -> tuple[Array, Support]:
        deviation = gram_of(layer, support) - jnp.eye(model.size, dtype=layer.table.dtype)
        value, vector = _leading(deviation)

        def step(carry: tuple[Array, Array, Support], slot: Array) -> tuple[tuple[Array, Array, Support], None]:
            value, vector, support = carry
            without = vector.at[slot].set(0.0)
            response, _ = _apply(layer, without, support)
            # With z fixed outside of the slot, the best entry has the largest |(A z)_e|: exact to second order.
            allowed = _allowed(support, slot, model)
            at = jnp.argmax(jnp.where(allowed, jnp.abs(response), -1.0))
            positions = layer.ways.shape[0]
            candidate = Support(
                jnp.asarray(support.filters).at[slot].set((at // positions).astype(support.filters.dtype)),
                jnp.asarray(support.positions).at[slot].set((at % positions).astype(support.positions.dtype)),
            )
            deviation = gram_of(layer, candidate) - jnp.eye(model.size, dtype=layer.table.dtype)
            fresh = (*_leading(deviation), candidate)
            better = fresh[0] > value
            return jax.tree.map(lambda a, b: jnp.where(better, a, b), fresh, carry), None

        slots = jnp.tile(jnp.arange(model.size), sweeps)
        (value, _, support), _ = jax.lax.scan(step, (value, vector, support), slots)
        return value, support

    return jax.vmap(one)(supports)


def _leading(deviation: Float[Array, "r r"]) -> tuple[Scalar, Float[Array, " r"]]:
    """Return |z^T A z| of a nearly extreme unit z, and that z, from high powers of 1 + A / |A| and 1 - A / |A|."""
    size = deviation.shape[0]
    scale = jnp.sqrt(jnp.sum(deviation * deviation)) + float(jnp.finfo(deviation.dtype).tiny)
    identity = jnp.eye(size, dtype=deviation.dtype)

    def end(sign: float) -> tuple[Array, Array]:
        power = identity + sign * deviation / scale
        for _ in range(6):
            power = jnp.sum(power[:, :, None] * power[None], axis=1)
            power = power / jnp.max(jnp.abs(power))
        # The column of the largest diagonal entry has the most of the leading vector.
        column = power[:, jnp.argmax(jnp.diagonal(power))]
        vector = column / jnp.sqrt(jnp.sum(column * column))
        return sign * jnp.sum(vector[:, None] * deviation * vector[None]), vector

    (top, first), (bottom, second) = end(1.0), end(-1.0)
    larger = top >= bottom
    return jnp.maximum(top, bottom), jnp.where(larger, first, second)


def _apply(
    layer: Layer, values: Float[Array, " r"], support: Support
) -> tuple[Float[Array, "K positions"], Float[Array, " r"]]:
    """Return A z on all entries, and on the support."""

    def add(slot: int | Array, total: Array) -> Array:
        columns = layer.table[layer.ways[support.positions[slot]], support.filters[slot]]
        return total + values[slot] * columns

    total = jnp.zeros((layer.ways.shape[0], layer.table.shape[1]), layer.table.dtype)
    response = jax.lax.fori_loop(0, values.shape[0], add, total).T
    response = response.at[support.filters, support.positions].add(-values)
    return response, response[support.filters, support.positions]


def _truncate(response: Float[Array, "K positions"], model: Model) -> tuple[Float[Array, " r"], Support]:
    """Return the projection onto the model, normalised."""
    values, filters, positions = _keep_largest(response, model)
    norm = jnp.sqrt(jnp.sum(values * values))
    return values / jnp.where(norm > 0, norm, 1.0), Support(filters, positions)


def _keep_largest(
    response: Float[Array, "K positions"], model: Model
) -> tuple[Float[Array, " r"], Int[Array, " r"], Int[Array, " r"]]:
    """Return the r largest of the ``members`` largest of every block: values, filters, positions."""
    places = _block_places(model)
    kept = min(model.members, places.shape[1])

    sizes = jnp.pad(jnp.abs(response), ((0, 0), (0, 1)), constant_values=-1.0)[:, places]  # [K, regions, p]
    winners = []
    for _ in range(kept):
        at = jnp.argmax(sizes, axis=-1)
        winners.append((jnp.max(sizes, axis=-1), at))
        sizes = jnp.where(jnp.arange(places.shape[1])[None, None] == at[..., None], -1.0, sizes)
    best = jnp.stack([value for value, _ in winners], axis=-1).reshape(-1)
    at = jnp.stack([at for _, at in winners], axis=-1).reshape(-1)
    _, order = jax.lax.top_k(best, model.size)
    block = order // kept
    filters = block // places.shape[0]
    chosen = jnp.asarray(places)[block % places.shape[0], at[order]]
    return response[filters, chosen], filters.astype(np.int32), chosen.astype(np.int32)


def _block_places(model: Model) -> Int[np.ndarray, "regions p"]:
    """Return the positions of every region; the number of positions where a partial one has none."""
    n = model.code_shape[1:]
    count, p = regions(n, model.pool), window(n, model.pool)
    places = np.full((math.prod(count), math.prod(p)), math.prod(n), np.int32)
    filled = np.zeros(len(places), int)
    for flat, at in enumerate(np.ndindex(*n)):
        region = np.ravel_multi_index(tuple(a // w for a, w in zip(at, p, strict=True)), count)
        places[region, filled[region]] = flat
        filled[region] += 1
    return places


def _allowed(support: Support, slot: Array, model: Model) -> Bool[Array, "K positions"]:
    """Return which entries may take the place of one slot: not in the support, their block not full without it."""
    n = model.code_shape[1:]
    places = _block_places(model)
    region_of = np.zeros(math.prod(n), np.int32)
    for region, row in enumerate(places):
        region_of[row[row < math.prod(n)]] = region
    blocks = jnp.asarray(region_of)
    others = jnp.arange(model.size) != slot
    used = jnp.zeros((model.code_shape[0], len(places)), np.int32)
    used = used.at[support.filters, blocks[support.positions]].add(others.astype(np.int32))
    allowed = used[:, region_of] < model.members
    allowed = allowed.at[support.filters, support.positions].set(False)
    # Where nothing else fits, the entry takes its own place again.
    return allowed.at[support.filters[slot], support.positions[slot]].set(~jnp.any(allowed))
