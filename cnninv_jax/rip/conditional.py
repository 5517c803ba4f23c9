"""One draw of Gilbert et al. 2017, Fig. 2, with most of the filters never drawn.

x = W^T z touches the k filters in the support only. Another filter w enters through its responses P w to the patches of
x (P: one row for each of the n shifts), a Gaussian vector with covariance P P^T / (M l): n numbers in place of M l. The
few of them that win a place in M(W x, k) are completed conditionally on their responses (Matheron's rule):
w = w' + P^T (P P^T)^-1 (P w - P w') with w' a fresh filter. The law of the draw is exactly that of
`draw_ratios(..., sampling="plain")`, for i.i.d. Gaussian filters that are not normalised.

At the paper's size a draw takes 5,000 normal numbers in place of 15,400, and about half of the multiplications.
The arrangement below is for XLA: products with the channels contracted, placements written as comparisons with iota,
reductions over a short leading axis unrolled so that the trailing one is vectorised.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from cnninv_jax._linalg import ldl_factor, ldl_solve_transposed
from cnninv_jax._numerics import PRECISION, Products, matmul, rounded
from cnninv_jax._random import normal_pairs, random_words, uniform_from_words
from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray, UInt32

#: Up to these sizes the unrolled loops compile within seconds; beyond them the plain path is taken.
MAX_SHIFTS, MAX_FILTERS = 64, 256

#: Whatever precision is chosen, sums of squares and the moving of positions and values round nothing.
_full_product = functools.partial(jnp.matmul, precision=PRECISION)


class Geometry(NamedTuple):
    """What is static of a draw: K filters of M channels and length l, a signal of length D, stride t; its products."""

    num_filters: int
    channels: int
    length: int
    signal_length: int
    stride: int
    k: int
    products: Products = "float32"

    @property
    def shifts(self) -> int:
        """Shifts of a filter, n = (D - l) / t + 1."""
        return (self.signal_length - self.length) // self.stride + 1

    @property
    def slots(self) -> int:
        """Inactive winners completed in every draw; more of them (1 draw in 5,000 at the paper's size) cost extra."""
        return min(self.k, self.num_filters - self.k, max(2, math.ceil(0.6 * self.k)))


class _Inactive(NamedTuple):
    """The K - k filters outside the support: their responses, and what completing one takes."""

    signal: Float[Array, "D M"]
    covariance: Float[Array, "n n"]  # P P^T
    columns: Float[Array, "n n"]  # its factors, see `ldl_factor`
    scales: Float[Array, " n"]
    responses: Float[Array, "n K-k"]  # L seeds
    seeds: Float[Array, "n K-k"]
    order: Int[Array, " K-k"]  # rank by |max-pooled response| among themselves
    wins: Bool[Array, " K-k"]  # among the k first of all filters


def supported(geometry: Geometry) -> bool:
    """Whether `draw` covers this size: an inactive filter, and P P^T small and of full rank but for zero patches."""
    return (
        geometry.k < geometry.num_filters <= MAX_FILTERS
        and geometry.shifts <= MAX_SHIFTS
        and 2 * geometry.shifts <= geometry.channels * geometry.length
    )


def draw(key: PRNGKeyArray, geometry: Geometry, values: str, dtype: jnp.dtype) -> dict[str, Float[Array, ""]]:
    """Return the six ratios of one draw; arguments are those of `draw_ratios`, already checked."""
    filters_key, code_key, extra_key = jax.random.split(key, 3)
    geo, slots, active_rows = geometry, geometry.slots, geometry.length * geometry.k
    bank, seeds = _normals(filters_key, geo, dtype)
    active, fresh = bank[:active_rows], bank[active_rows:]
    positions, z = _code(code_key, geo, values, dtype)

    signal = _product(geo, _placed(geo, positions, z), active)  # x, time first: [D, M]
    # Materialised: XLA would fold the transposition into the product, which then takes a slower path.
    channels_first = lax.optimization_barrier(signal.T)
    answers = _responses(geo, _product(geo, active, channels_first)).T
    gram = _product(geo, signal, channels_first)
    covariance = _fold(jnp.add, jnp.stack([_every(geo, _every(geo, gram, s, 0), s, 1) for s in range(geo.length)]))

    columns, solved, scales = ldl_factor(covariance, _responses(geo, _product(geo, fresh, channels_first)))
    inactive = _product(geo, columns * jnp.sqrt(scales)[None], seeds)  # responses of the other filters, [n, K - k]

    # Ranks among all K filters by |max-pooled response|; the k first survive M.
    mine, theirs = (_fold(jnp.maximum, h * h) for h in (answers, inactive))
    active_wins = _beaten_by(mine, mine) + _beaten_by(mine, theirs) < geo.k
    order = _beaten_by(theirs, theirs)
    inactive_wins = order + _beaten_by(theirs, mine) < geo.k

    state = _Inactive(signal, covariance, columns, scales, inactive, seeds, order, inactive_wins)
    placed, filled, fixed = _completed(geo, state, 0, fresh, solved)
    rest = min(geo.k, geo.num_filters - geo.k) - slots
    extra: Array | float = 0.0
    if rest:
        # More inactive winners than slots: rare, so the rest is computed only where some lane needs it.
        overflow = jnp.any((order == slots) & inactive_wins)
        # The key travels as words: a branch under two vmaps becomes a select, which the key-reuse check refuses.
        remainder = functools.partial(_remainder, geo, rest, jax.random.key_impl(extra_key))
        extra, more = _only_if_any(remainder, overflow, jax.random.key_data(extra_key), state)
        fixed = fixed + more

    position, value = _peaks(answers)
    value = jnp.where(active_wins, value, 0.0)
    at_support = jnp.sum(jnp.where(_is(geo, positions), answers, 0.0), axis=0)  # h on the support of z
    change = _placed(geo, position, value) - _placed(geo, positions, z)
    # One product for active and completed filters: XLA's fusion of two with their sum is slow.
    model = _product(geo, jnp.concatenate([change, placed], axis=1), jnp.concatenate([active, filled])) + extra
    known = _product(geo, _placed(geo, positions, at_support - z), active)
    start = signal[: geo.length]
    fixed = fixed + _unsampled(geo, active, value) - start
    energy, code_energy = _sum_of_squares(signal), jnp.sum(z * z)
    return {
        "model_rip": jnp.sqrt(energy / code_energy),
        "restricted_gram": jnp.sqrt(jnp.sum(at_support * at_support) / code_energy),
        "full_gram": jnp.sqrt((_sum_of_squares(answers) + _sum_of_squares(inactive)) / code_energy),
        "error_known_support": jnp.sqrt(_sum_of_squares(known) / energy),
        "error_model": jnp.sqrt(_sum_of_squares(model) / energy),
        # M_fixed touches the first l samples only; elsewhere the error is x itself. Summed there rather than taken
        # as a difference of energies, which could come out below zero.
        "error_fixed": jnp.sqrt((_sum_of_squares(signal[geo.length :]) + _sum_of_squares(fixed)) / energy),
    }


def _completed(
    geo: Geometry, state: _Inactive, first: int, fresh: Float[Array, "l*q M"], solved: Float[Array, "q n"]
) -> tuple[Float[Array, "D l*q"], Float[Array, "l*q M"], Float[Array, "l M"]]:
    """Complete the q winners from rank ``first`` on among the inactive.

    Returns their part of W^T M as placement and filters, and their part of W^T M_fixed.

    Args:
        geo: sizes.
        state: the inactive filters' responses.
        first: rank of the first slot.
        fresh: a fresh filter w' for every slot.
        solved: L^-1 P w' of the fresh filters.
    """
    count = solved.shape[0]
    slot = jnp.where(state.order < first, count, state.order - first)  # beyond the last slot: dropped
    filters = jnp.arange(state.order.shape[0], dtype=jnp.int32)
    chosen = jnp.zeros((count,), jnp.int32).at[slot].set(filters, mode="drop")
    # P w = L seed, hence (P P^T)^-1 (P w - P w') = L^-T (seed - L^-1 P w').
    weights = ldl_solve_transposed(state.columns, state.scales, state.seeds[:, chosen] - solved.T)
    filled = fresh + _product(geo, _spread(geo, weights.T), state.signal)
    position, value = _peaks(state.responses[:, chosen])
    value = jnp.where(state.wins[chosen], value, 0.0)
    return _placed(geo, position, value), filled, _unsampled(geo, filled, value)


def _remainder(
    geo: Geometry, rest: int, impl: Any, words: UInt32[Array, " words"], state: _Inactive
) -> tuple[Array, Array]:
    """Return what the ``rest`` inactive winners beyond the slots add to W^T M and W^T M_fixed."""
    key = jax.random.wrap_key_data(words, impl=impl)
    fresh = normal_pairs(key, geo.channels * geo.length * rest, state.signal.dtype)[0]
    fresh = fresh.reshape(geo.length * rest, geo.channels) * _scale(geo)
    solved = ldl_factor(state.covariance, _responses(geo, _product(geo, fresh, state.signal.T)))[1]
    placed, filled, fixed = _completed(geo, state, geo.slots, fresh, solved)
    return _product(geo, placed, filled), fixed


def _scale(geo: Geometry) -> float:
    return 1.0 / math.sqrt(geo.channels * geo.length)


def _normals(key: PRNGKeyArray, geo: Geometry, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Return filters, the active ones before the fresh ones of the slots [l (k + slots), M], and seeds [n, K - k].

    A group of q filters takes l q rows, tap by tap: row s q + f is tap s of filter f.
    """
    rows, inactive = geo.length * (geo.k + geo.slots), geo.num_filters - geo.k
    pairs = normal_pairs(key, max(rows * geo.channels, geo.shifts * inactive), dtype)
    first, second = (part * _scale(geo) for part in pairs)
    bank = first[: rows * geo.channels].reshape(rows, geo.channels)
    return bank, second[: geo.shifts * inactive].reshape(geo.shifts, inactive)


def _code(
    key: PRNGKeyArray, geo: Geometry, values: str, dtype: jnp.dtype
) -> tuple[Int[Array, " k"], Float[Array, " k"]]:
    """Return positions and values of z. Which filters carry them does not matter: filters are exchangeable."""
    place_key, value_key = jax.random.split(key)
    # 23 random bits per position: the most and the least likely differ by n 2^-23 of their probability.
    uniform = uniform_from_words(random_words(place_key, 2 * geo.k), dtype)
    positions = jnp.floor(uniform[: geo.k] * geo.shifts).astype(jnp.int32)
    uniform = uniform[geo.k :]
    if values == "gaussian":
        return positions, normal_pairs(value_key, geo.k, dtype)[0]
    return positions, 2.0 * uniform - 1.0 if values == "uniform" else jnp.where(uniform < 0.5, -1.0, 1.0).astype(dtype)


def _product(geo: Geometry, first: Array, second: Array) -> Array:
    return matmul(first, second, geo.products)


def _responses(geo: Geometry, table: Float[Array, "l*q D"]) -> Float[Array, "q n"]:
    """Return h[f, j] = sum_s table[(s, f), j t + s], the table being filters times signal over the channels."""
    taps = table.reshape(geo.length, -1, geo.signal_length)
    return _fold(jnp.add, jnp.stack([_every(geo, taps[s], s, 1) for s in range(geo.length)]))


def _every(geo: Geometry, array: Array, start: int, axis: int) -> Array:
    """Return the n entries start, start + t, ... of an axis."""
    return lax.slice_in_dim(array, start, start + (geo.shifts - 1) * geo.stride + 1, geo.stride, axis)


def _spread(geo: Geometry, weights: Float[Array, "q n"]) -> Float[Array, "l*q D"]:
    """Return U[(s, f), d] = weights[f, (d - s) / t], so that P^T weights = U x."""
    end = geo.signal_length - (geo.shifts - 1) * geo.stride - 1
    zero = jnp.zeros((), weights.dtype)
    shifted = [lax.pad(weights, zero, ((0, 0, 0), (s, end - s, geo.stride - 1))) for s in range(geo.length)]
    return jnp.concatenate(shifted)


def _placed(geo: Geometry, positions: Int[Array, " q"], values: Float[Array, " q"]) -> Float[Array, "D l*q"]:
    """Return B[d, (s, f)] = values[f] where d = positions[f] t + s: the filters' synthesis is B @ filters."""
    count = positions.shape[0]
    # Repeated for every tap by a product with ones and zeros (exact): XLA would carry the reductions behind positions
    # and values into every entry of B, but it never fuses through a product.
    both = jnp.stack([(positions * geo.stride).astype(values.dtype), values])
    repeated = _full_product(both, jnp.asarray(np.tile(np.eye(count), geo.length), values.dtype))
    taps = np.repeat(np.arange(geo.length), count)
    place = jnp.asarray(np.arange(geo.signal_length)[:, None] - taps, values.dtype)
    return jnp.where(place == repeated[:1], repeated[1:], 0.0)


def _unsampled(geo: Geometry, filters: Float[Array, "l*q M"], values: Float[Array, " q"]) -> Float[Array, "l M"]:
    """Return sum_f values[f] filters[f]: every pooled value at the first shift."""
    taps = rounded(filters, geo.products).reshape(geo.length, -1, geo.channels)
    values = rounded(values, geo.products)
    return _fold(jnp.add, jnp.stack([values[f] * taps[:, f] for f in range(values.shape[0])]))


def _is(geo: Geometry, positions: Int[Array, " f"]) -> Bool[Array, "n f"]:
    return jnp.arange(geo.shifts, dtype=jnp.int32)[:, None] == positions[None]


def _peaks(responses: Float[Array, "n f"]) -> tuple[Int[Array, " f"], Float[Array, " f"]]:
    """Return position (the first, in a tie) and value of the response of largest magnitude, per filter.

    True reductions, not `_fold`: XLA would carry an unrolled chain into every entry of what is placed with it.
    """
    squares, shifts = responses * responses, responses.shape[0]
    rows = np.arange(shifts, dtype=np.int32)[:, None]
    position = jnp.min(jnp.where(squares >= jnp.max(squares, axis=0)[None], rows, np.int32(shifts)), axis=0)
    return position, jnp.sum(jnp.where(rows == position[None], responses, 0.0), axis=0)


def _beaten_by(mine: Float[Array, " f"], others: Float[Array, " g"]) -> Int[Array, " f"]:
    """Return by how many of ``others`` each entry is beaten; within one array a tie goes to the lower index."""
    same = mine is others
    rank = jnp.zeros(mine.shape, jnp.int32)
    for j in range(others.shape[0]):
        wins = others[j] > mine
        if same:
            wins |= (others[j] == mine) & (np.arange(mine.shape[0]) > j)
        rank += wins.astype(jnp.int32)
    return rank


def _fold(operation: Callable[[Array, Array], Array], array: Array) -> Array:
    """Reduce the leading axis by an unrolled chain: XLA's CPU reduction would not vectorise the trailing axis."""
    return functools.reduce(operation, [array[row] for row in range(array.shape[0])])


def _sum_of_squares(array: Array) -> Float[Array, ""]:
    flat = array.ravel()
    return _full_product(flat, flat)


def _only_if_any(compute: Callable[..., Any], needed: Bool[Array, ""], *operands: Any) -> Any:
    """Return ``compute(*operands)`` if ``needed`` holds in any lane of the surrounding `vmap`, else zeros.

    A plain `lax.cond` with a batched predicate computes both branches in every lane. ``compute`` must return zeros by
    itself in a lane that has no need, so that what a lane gets never depends on its neighbours.
    """

    def select(needed: Array, compute: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        like = jax.eval_shape(compute, *operands)
        zeros = functools.partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
        return lax.cond(needed, lambda values: compute(*values), lambda _: zeros(like), operands)

    @custom_vmap
    def branch(needed: Array, operands: tuple[Any, ...]) -> Any:
        return select(needed, compute, operands)

    @branch.def_vmap
    def _(lanes: int, batched: Any, needed: Array, operands: tuple[Any, ...]) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched[1])
        outputs = select(jnp.any(needed), jax.vmap(compute, in_axes=axes, axis_size=lanes), operands)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return branch(needed, operands)
