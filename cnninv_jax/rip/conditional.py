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
from cnninv_jax._numerics import PRECISION
from cnninv_jax._random import normal_pairs, random_words, uniform_from_words
from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray

#: Up to these sizes the unrolled loops compile within seconds; beyond them the plain path is taken.
MAX_SHIFTS, MAX_FILTERS = 64, 256

_product = functools.partial(jnp.matmul, precision=PRECISION)


class Geometry(NamedTuple):
    """The static numbers of one draw: K filters of M channels and length l, a signal of length D, stride t."""

    num_filters: int
    channels: int
    length: int
    signal_length: int
    stride: int
    k: int

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

    signal: Float[Array, "M D"]
    covariance: Float[Array, "n n"]  # P P^T
    columns: Float[Array, "n n"]  # its factors, see `ldl_factor`
    scales: Float[Array, " n"]
    cholesky: Float[Array, "n n"]  # L
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
    geo, slots = geometry, geometry.slots
    active, fresh, seeds = _normals(filters_key, geo, dtype)
    positions, z = _code(code_key, geo, values, dtype)

    signal = _product(active, _placed(geo, positions, z))  # x, [M, D]
    energy, code_energy = _sum_of_squares(signal), jnp.sum(z * z)
    answers = _responses(geo, signal, active, geo.k)
    gram = _product(signal.T, signal)
    covariance = _fold(jnp.add, jnp.stack([_every(geo, _every(geo, gram, s), s, axis=1) for s in range(geo.length)]))

    columns, solved, scales = ldl_factor(covariance, _responses(geo, signal, fresh, slots).T)
    cholesky = columns * jnp.sqrt(scales)
    inactive = _product(cholesky, seeds)  # responses of the K - k other filters, [n, K - k]

    # Ranks among all K filters by |max-pooled response|; the k first survive M.
    mine, theirs = (_fold(jnp.maximum, h * h) for h in (answers, inactive))
    active_wins = _beaten_by(mine, mine) + _beaten_by(mine, theirs) < geo.k
    order = _beaten_by(theirs, theirs)
    inactive_wins = order + _beaten_by(theirs, mine) < geo.k

    state = _Inactive(signal, covariance, columns, scales, cholesky, seeds, order, inactive_wins)
    model, fixed = _completed(geo, state, 0, fresh, solved)
    rest = min(geo.k, geo.num_filters - geo.k) - slots
    if rest:
        # More inactive winners than slots: rare, so the rest is computed only where some lane needs it.
        overflow = jnp.any((order == slots) & inactive_wins)
        more = _only_if_any(functools.partial(_remainder, geo, rest), overflow, extra_key, state)
        model, fixed = model + more[0], fixed + more[1]

    position, value = _peaks(answers)
    value = jnp.where(active_wins, value, 0.0)
    at_support = _fold(jnp.add, jnp.where(_is(geo, positions), answers, 0.0))  # h on the support of z
    change = _both_placed(geo, position, value) - _both_placed(geo, positions, z, fixed=False)
    active_model, active_fixed = _split(geo, _product(active, change))
    known = _product(active, _placed(geo, positions, at_support - z))
    start = signal[:, : geo.length]
    fixed_error = energy - _sum_of_squares(start) + _sum_of_squares(active_fixed + fixed - start)
    return {
        "model_rip": jnp.sqrt(energy / code_energy),
        "restricted_gram": jnp.sqrt(jnp.sum(at_support * at_support) / code_energy),
        "full_gram": jnp.sqrt((_sum_of_squares(answers) + _sum_of_squares(inactive)) / code_energy),
        "error_known_support": jnp.sqrt(_sum_of_squares(known) / energy),
        "error_model": jnp.sqrt(_sum_of_squares(active_model + model) / energy),
        "error_fixed": jnp.sqrt(fixed_error / energy),
    }


def _completed(
    geo: Geometry, state: _Inactive, first: int, fresh: Float[Array, "M l*q"], solved: Float[Array, "q n"]
) -> tuple[Float[Array, "M D"], Float[Array, "M l"]]:
    """Complete the q winners from rank ``first`` on among the inactive; return what they add to W^T M and W^T M_fixed.

    Args:
        geo: sizes.
        state: the inactive filters' responses.
        first: rank of the first slot.
        fresh: a fresh filter w' for every slot.
        solved: L^-1 P w' of the fresh filters.
    """
    ranks = first + np.arange(solved.shape[0], dtype=np.int32)
    chosen = ((state.order[:, None] == ranks) & state.wins[:, None]).astype(fresh.dtype)
    seed = _product(state.seeds, chosen)
    response = _product(state.cholesky, seed)
    # P w = L seed, hence (P P^T)^-1 (P w - P w') = L^-T (seed - L^-1 P w').
    weights = ldl_solve_transposed(state.columns, state.scales, seed - solved.T)
    filters = fresh + _product(state.signal, _spread(geo, weights))
    position, value = _peaks(response)  # an empty slot has response 0, hence value 0
    return _split(geo, _product(filters, _both_placed(geo, position, value)))


def _remainder(geo: Geometry, rest: int, key: PRNGKeyArray, state: _Inactive) -> tuple[Array, Array]:
    """Complete the ``rest`` inactive winners beyond the slots."""
    size = geo.channels * geo.length
    fresh = normal_pairs(key, size * rest, state.signal.dtype)[0].reshape(geo.channels, -1) * _scale(geo)
    solved = ldl_factor(state.covariance, _responses(geo, state.signal, fresh, rest).T)[1]
    return _completed(geo, state, geo.slots, fresh, solved)


def _scale(geo: Geometry) -> float:
    return 1.0 / math.sqrt(geo.channels * geo.length)


def _normals(key: PRNGKeyArray, geo: Geometry, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
    """Return the active filters [M, l k], fresh ones for the slots [M, l slots] and seeds [n, K - k] (scaled)."""
    size = geo.channels * geo.length
    inactive = geo.num_filters - geo.k
    first, second = normal_pairs(key, max(size * (geo.k + geo.slots), geo.shifts * inactive), dtype)
    active = first[: size * geo.k].reshape(geo.channels, -1)
    fresh = first[size * geo.k : size * (geo.k + geo.slots)].reshape(geo.channels, -1)
    seeds = second[: geo.shifts * inactive].reshape(geo.shifts, inactive)
    scale = _scale(geo)
    return active * scale, fresh * scale, seeds * scale


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


def _responses(geo: Geometry, signal: Array, filters: Array, count: int) -> Float[Array, "n f"]:
    """Return h[j, f] = sum_ms x[m, j t + s] w_f[m, s], by one product over the channels and l shifted sums."""
    table = _product(signal.T, filters).reshape(geo.signal_length, geo.length, count)
    return _fold(jnp.add, jnp.stack([_every(geo, table[:, s], s) for s in range(geo.length)]))


def _every(geo: Geometry, array: Array, start: int, axis: int = 0) -> Array:
    """Return the n entries start, start + t, ... of an axis."""
    return lax.slice_in_dim(array, start, start + (geo.shifts - 1) * geo.stride + 1, geo.stride, axis)


def _spread(geo: Geometry, weights: Float[Array, "n q"]) -> Float[Array, "D l*q"]:
    """Return U[d, (s, q)] = weights[(d - s) / t, q], so that P^T weights = x U."""
    end = geo.signal_length - (geo.shifts - 1) * geo.stride - 1
    shifted = [
        lax.pad(weights, jnp.zeros((), weights.dtype), ((s, end - s, geo.stride - 1), (0, 0, 0)))
        for s in range(geo.length)
    ]
    return jnp.stack(shifted, axis=1).reshape(geo.signal_length, -1)


def _placed(
    geo: Geometry, positions: Int[Array, " f"], values: Float[Array, " f"], offset: int = 0, width: int | None = None
) -> Float[Array, "l*f width"]:
    """Return B[(s, f), d] = values[f] where d - offset = positions[f] t + s: synthesis is filters @ B."""
    width = geo.signal_length if width is None else width
    place = np.arange(width, dtype=np.int32)[None, None] - np.arange(geo.length, dtype=np.int32)[:, None, None] - offset
    # Outside of this panel (d before or after it) no position may match.
    inside = (np.arange(width) >= offset) & (np.arange(width) < offset + geo.signal_length)
    place = np.where(inside, place, -1)
    hit = jnp.asarray(place) == (positions * geo.stride)[None, :, None]
    return jnp.where(hit, values[None, :, None], 0.0).reshape(-1, width)


def _both_placed(geo: Geometry, positions: Array, values: Array, *, fixed: bool = True) -> Float[Array, "l*f D+l"]:
    """Return `_placed` for M in the first D columns and, in l more, for M_fixed (every value at the first shift)."""
    width = geo.signal_length + geo.length
    table = _placed(geo, positions, values, width=width).reshape(geo.length, -1, width)
    if fixed:
        tap = np.arange(width)[None] - geo.signal_length == np.arange(geo.length)[:, None]
        table = jnp.where(jnp.asarray(tap)[:, None], values[None, :, None], table)
    return table.reshape(-1, width)


def _split(geo: Geometry, both: Float[Array, "M D+l"]) -> tuple[Array, Array]:
    return both[:, : geo.signal_length], both[:, geo.signal_length :]


def _is(geo: Geometry, positions: Int[Array, " f"]) -> Bool[Array, "n f"]:
    return jnp.arange(geo.shifts, dtype=jnp.int32)[:, None] == positions[None]


def _peaks(responses: Float[Array, "n f"]) -> tuple[Int[Array, " f"], Float[Array, " f"]]:
    """Return position (the first, in a tie) and value of the response of largest magnitude, per filter."""
    squares, shifts = responses * responses, responses.shape[0]
    rows = np.arange(shifts, dtype=np.int32)[:, None]
    position = _fold(jnp.minimum, jnp.where(squares >= _fold(jnp.maximum, squares)[None], rows, np.int32(shifts)))
    return position, _fold(jnp.add, jnp.where(rows == position[None], responses, 0.0))


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
    return jnp.sum(array * array)


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
