"""Iterative hard thresholding by cross-correlations of filters, one problem after the other; made for a CPU.

W W^T z is a sum of k columns of W W^T, and the column of filter f at shift p is its cross-correlation
C[f, u, i] = sum over m, s of w[f, m, s + u t] w[i, m, s] with every filter i, moved by p: an iteration adds
k K (2 l - 1) numbers in place of 2 K n M l. C[f] is computed when filter f first enters a support.

Once the support stands still, the iteration is affine in its k values, and the rest of its path is known from powers of
a k x k matrix. What every other entry of h can become on that path is bounded, |h| + |W W^T| |dz|; where no bound
reaches the entries kept, the support provably stays and the path is the result. Else the full iteration goes on.

A problem runs through small kernels in the first two levels of cache, each with a loop count of its own; lanes side by
side would wait for the slowest and scatter element by element. So a `vmap` becomes a scan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Bool, Code, Float, Int, Scalar, Signal
from cnninv_jax.recovery._correlations import (
    Geometry,
    Workspace,
    correlate,
    empty,
    gram_matrix,
    minus_columns,
    windows,
)

#: Up to these sizes the unrolled loops compile within seconds and the correlations fit into memory at hand.
MAX_SUPPORT, MAX_SHIFTS, MAX_FILTERS, MAX_TABLE_BYTES = 256, 256, 1024, 2**26
#: The rest of the path is tried when the last move was this part of the gap between kept and dropped; too early
#: a trial is refused and costs two iterations.
CALM = 1.0
#: Rounding of a response, in units of the largest one.
ROUNDING = 64.0


class Found(NamedTuple):
    """The end of the iteration: code, relative residual norms, iterations taken, why it stopped, |x|."""

    code: Code
    norms: Float[Array, " steps+1"]
    steps: Int[Array, ""]
    reached: Bool[Array, ""]
    diverged: Bool[Array, ""]
    signal_norm: Scalar


class _Problem(NamedTuple):
    """One problem; arrays have time first."""

    bank: Float[Array, "K l*M"]
    signal: Float[Array, "D M"]
    responses: Float[Array, "n K"]  # W x
    norm: Scalar
    step: Scalar
    limit: Scalar


class _Run(NamedTuple):
    """An iterate in sparse form, and what has become of the iteration."""

    filters: Int[Array, " k"]
    places: Int[Array, " k"]
    values: Float[Array, " k"]
    norms: Float[Array, " steps+1"]
    steps: Int[Array, ""]
    reached: Bool[Array, ""]
    diverged: Bool[Array, ""]
    still: Bool[Array, ""]  # the last iteration changed nothing, or the rest of the path is taken
    calm: Bool[Array, ""]  # the rest of the path is worth a trial
    next_trial: Int[Array, ""]


def too_large(geo: Geometry) -> str:
    """Return which limit a size exceeds, in words; an empty string where none."""
    if geo.k > MAX_SUPPORT or geo.shifts > MAX_SHIFTS or geo.num_filters > MAX_FILTERS:
        return (
            f"it needs k <= {MAX_SUPPORT}, n <= {MAX_SHIFTS} and K <= {MAX_FILTERS}, got k = {geo.k}, "
            f"n = {geo.shifts} and K = {geo.num_filters}"
        )
    size = 4 * geo.lags * geo.num_filters**2
    if size > MAX_TABLE_BYTES:
        return f"the table of cross-correlations would take {size:,} bytes, more than {MAX_TABLE_BYTES:,}"
    return ""


def solve(geo: Geometry, filters: Float[Array, "K M l"], x: Signal, step: Scalar, limit: Scalar) -> Found:
    """Run the iteration from z = 0.

    Args:
        geo: sizes.
        filters: the bank w.
        x: signal, [M, D], of the same dtype.
        step: what W (x - W^T z) is multiplied by.
        limit: relative residual to stop at; negative for never.
    """

    @custom_vmap
    def one(*arrays: Array) -> Found:
        bank, signal, step, limit = arrays
        return _solve_one(geo, empty(geo, bank.dtype), bank, signal, step, limit)[1]

    @one.def_vmap
    def _(lanes: int, batched: Any, *arrays: Array) -> tuple[Found, Found]:
        found = _one_after_the_other(functools.partial(_solve_many, geo, tuple(batched), lanes))(*arrays)
        return found, jax.tree.map(lambda _: True, found)

    # Time first, so that patches of signals and filters are contiguous; outside of the scan, where it is one copy.
    return one(filters.transpose(0, 2, 1).reshape(geo.num_filters, -1), x.T, step, limit)


def _one_after_the_other(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, a `vmap` of which (and of that, and so on) maps sequentially."""

    @custom_vmap
    def call(*arrays: Array) -> Any:
        return function(*arrays)

    @call.def_vmap
    def _(lanes: int, batched: Any, *arrays: Array) -> tuple[Any, Any]:
        def mapped(*arrays: Array) -> Any:
            split = [array for array, is_batched in zip(arrays, batched, strict=True) if is_batched]

            def each(rows: list[Array]) -> Any:
                rest = iter(rows)
                both = zip(arrays, batched, strict=True)
                return function(*(next(rest) if is_batched else array for array, is_batched in both))

            return lax.map(each, split)

        found = _one_after_the_other(mapped)(*arrays)
        return found, jax.tree.map(lambda _: True, found)

    return call


def _solve_many(geo: Geometry, batched: tuple[bool, ...], lanes: int, *arrays: Array) -> Found:
    """Solve problems in turn with one workspace; a bank that they share is correlated once."""

    def turn(workspace: Workspace, rows: list[Array]) -> tuple[Workspace, Found]:
        rest = iter(rows)
        parts = [next(rest) if is_batched else array for array, is_batched in zip(arrays, batched, strict=True)]
        if batched[0]:
            workspace = workspace._replace(known=jnp.zeros_like(workspace.known))
        return _solve_one(geo, workspace, *parts)

    split = [array for array, is_batched in zip(arrays, batched, strict=True) if is_batched]
    return lax.scan(turn, empty(geo, arrays[0].dtype), split, length=lanes)[1]


def _solve_one(
    geo: Geometry,
    workspace: Workspace,
    bank: Float[Array, "K l*M"],
    signal: Float[Array, "D M"],
    step: Scalar,
    limit: Scalar,
) -> tuple[Workspace, Found]:
    patches = windows(signal[None], geo.shifts, geo.length, geo.stride)[0]
    responses = matmul(patches, bank.T)
    problem = _Problem(bank, signal, responses, _length(signal), step, limit)
    usable = (problem.norm > 0) & jnp.isfinite(problem.norm)

    zero = jnp.zeros((), np.int32)
    nowhere = jnp.zeros((geo.k,), np.int32)
    start = _Run(
        nowhere, nowhere, jnp.zeros((geo.k,), bank.dtype),
        jnp.broadcast_to(jnp.where(usable, jnp.ones_like(problem.norm), problem.norm)[None], (geo.num_steps + 1,)),
        zero, usable & (limit >= 1.0), zero > 0, ~usable, zero > 0, zero,
    )  # fmt: skip

    # The first iteration needs no correlations.
    begun = _move(geo, problem, start, step * responses, jnp.full_like(step, np.inf))
    run = jax.tree.map(lambda new, old: jnp.where(_ended(geo, start), old, new), begun, start)

    def iterate(carry: tuple[Workspace, _Run]) -> tuple[Workspace, _Run]:
        workspace, run = carry
        workspace = correlate(geo, problem.bank, workspace, run.filters)
        gradient = minus_columns(geo, workspace.table, problem.responses, run.filters, run.places, run.values)
        change = step * gradient[run.places, run.filters]
        moved = jnp.max(jnp.abs(change))
        h = (step * gradient).at[run.places, run.filters].add(run.values)
        return workspace, _move(geo, problem, run, h, moved)

    def until_calm(carry: tuple[Workspace, _Run]) -> tuple[Workspace, _Run]:
        workspace, run = lax.while_loop(lambda carry: ~(_ended(geo, carry[1]) | carry[1].calm), iterate, carry)
        return workspace, _finish(geo, problem, workspace.table, run)

    workspace, run = lax.while_loop(lambda carry: ~_ended(geo, carry[1]), until_calm, (workspace, run))
    # After the last iteration its norm repeats.
    last = jnp.minimum(np.arange(geo.num_steps + 1, dtype=np.int32), run.steps)
    code = jnp.zeros((geo.num_filters, geo.shifts), bank.dtype).at[run.filters, run.places].add(run.values)
    # A fixed point stays for all the iterations that were asked for.
    whole = run.still & usable & ~run.reached
    steps = jnp.where(whole, np.int32(geo.num_steps), run.steps)
    return workspace, Found(code, run.norms[last], steps, run.reached, run.diverged, problem.norm)


def _ended(geo: Geometry, run: _Run) -> Bool[Array, ""]:
    return run.reached | run.diverged | run.still | (run.steps >= geo.num_steps)


def _move(geo: Geometry, problem: _Problem, run: _Run, h: Float[Array, "n K"], moved: Array) -> _Run:
    """Take M(h, k) as the next iterate and judge it; ``moved`` is by how much the values kept last have changed."""
    best, place, value = _max_pool(geo, h)
    ranks = _ranks(best)
    kept = min(geo.k + 1, geo.num_filters)
    numbers = np.arange(geo.num_filters, dtype=np.int32)
    order = jnp.zeros((kept,), np.int32).at[ranks].set(numbers, mode="drop")
    filters = order[: geo.k]
    places, values = place[filters], value[filters]
    norm = _residual_norm(geo, problem, filters, places, values)
    # NaN compares false.
    taken = norm <= geo.divergence
    as_before = (filters[:, None] == run.filters[None]) & (places[:, None] == run.places[None])
    same = jnp.all(jnp.any(as_before, axis=1))
    still = same & jnp.all(jnp.any(as_before & (values[:, None] == run.values[None]), axis=1))
    gap = best[filters[-1]] - (best[order[-1]] if kept > geo.k else 0.0)
    count = run.steps + 1
    found = _Run(
        filters, places, values, run.norms.at[count].set(norm), count, norm <= problem.limit, run.diverged,
        still, same & (moved <= CALM * gap) & (count >= run.next_trial), run.next_trial,
    )  # fmt: skip
    refused = run._replace(diverged=~taken, calm=~taken)
    return jax.tree.map(lambda new, old: jnp.where(taken, new, old), found, refused)


def _finish(geo: Geometry, problem: _Problem, table: Float[Array, "K u K"], run: _Run) -> _Run:
    """Take the rest of the path at once if its support provably stays; else set the next trial."""
    eps = float(jnp.finfo(table.dtype).eps)
    gradient = minus_columns(geo, table, problem.responses, run.filters, run.places, run.values)
    at_support = gradient[run.places, run.filters]
    gram = gram_matrix(geo, table, run.filters, run.places)
    path = _path(geo, jnp.eye(geo.k, dtype=table.dtype) - problem.step * gram, problem.step * at_support)

    rest = geo.num_steps - run.steps
    ahead = np.arange(path.shape[1], dtype=np.int32)
    on_path = (ahead <= rest)[None]
    away = jnp.max(jnp.where(on_path, jnp.abs(path), 0.0), axis=1)
    values = run.values[:, None] + path
    size = values if geo.nonnegative else jnp.abs(values)
    least = jnp.min(jnp.where(on_path, size, np.inf), axis=1)

    reach = minus_columns(geo, table, jnp.abs(gradient), run.filters, run.places, -away, absolute=True) * jnp.abs(
        problem.step
    )
    reach = reach.at[run.places, run.filters].set(0.0)
    highest = _fold(jnp.maximum, reach)
    bar = jnp.broadcast_to(jnp.min(least)[None], highest.shape).at[run.filters].set(least)
    slack = ROUNDING * eps * jnp.max(highest)
    stays = jnp.all(highest + slack < bar)

    # Residuals along the path from the last of it, e = z - z_last: |r|^2 = |r_last|^2 - 2 <e, W r_last> + |W^T e|^2, in
    # which nothing large cancels.
    final = _column(path, rest)
    last = _residual_norm(geo, problem, run.filters, run.places, run.values + final) * problem.norm
    behind = path - final[:, None]
    gradient_last = at_support - matmul(gram, final)
    energy = last**2 - 2.0 * matmul(gradient_last, behind) + jnp.sum(behind * matmul(gram, behind), axis=0)
    norms = jnp.sqrt(jnp.maximum(energy, 0.0)) / problem.norm
    here = on_path[0] & (ahead > 0)
    accepted = stays & jnp.all(jnp.where(here, norms <= geo.divergence, True)) & ~_ended(geo, run)

    low = here & (norms <= problem.limit)
    reached = jnp.any(low)
    taken = jnp.where(reached, jnp.argmax(low).astype(np.int32), rest)
    at = np.arange(geo.num_steps + 1, dtype=np.int32) - run.steps
    tail = norms[jnp.clip(at, 0, path.shape[1] - 1)]
    done = run._replace(
        values=run.values + _column(path, taken),
        norms=jnp.where(at > 0, tail, run.norms),
        steps=run.steps + taken,
        reached=reached,
        still=~reached,
    )
    again = run._replace(calm=jnp.zeros_like(run.calm), next_trial=run.steps + 2)
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), done, again)


def _path(geo: Geometry, matrix: Float[Array, "k k"], first: Float[Array, " k"]) -> Float[Array, "k w"]:
    """Return dz_0 = 0, dz_1, ... of dz_{j+1} = A dz_j + a, at least num_steps, their number doubled each time."""
    path, power = jnp.zeros((geo.k, 1), matrix.dtype), matrix
    following = first
    while path.shape[1] < geo.num_steps:
        path = jnp.concatenate([path, matmul(power, path) + following[:, None]], axis=1)
        following = matmul(matrix, path[:, -1]) + first
        if path.shape[1] < geo.num_steps:
            power = matmul(power, power)
    return path


def _max_pool(geo: Geometry, h: Float[Array, "n K"]) -> tuple[Float[Array, " K"], Int[Array, " K"], Float[Array, " K"]]:
    """Return size, place and value of every filter's winner, the lowest place in a tie; unrolled, one kernel."""
    visible = jnp.maximum(h, 0.0) if geo.nonnegative else h
    value = visible[0]
    best, place = jnp.abs(value), jnp.zeros((geo.num_filters,), np.int32)
    for at in range(1, geo.shifts):
        size = jnp.abs(visible[at])
        wins = size > best
        best, value = jnp.where(wins, size, best), jnp.where(wins, visible[at], value)
        place = jnp.where(wins, np.int32(at), place)
    return best, place, value


def _ranks(sizes: Float[Array, " K"]) -> Int[Array, " K"]:
    """Return by how many each entry is beaten, the lower index first in a tie."""
    earlier = np.triu(np.ones((sizes.shape[0],) * 2, bool), 1)  # [other, own]
    own, others = sizes[None], sizes[:, None]
    return jnp.sum((others > own) | ((others == own) & earlier), axis=0, dtype=np.int32)


def _residual_norm(
    geo: Geometry, problem: _Problem, filters: Int[Array, " k"], places: Int[Array, " k"], values: Float[Array, " k"]
) -> Scalar:
    """Return |x - W^T z| / |x|, from a product of placed values with the k filters."""
    taps = np.arange(geo.length, dtype=np.int32)
    positions = (places[:, None] * np.int32(geo.stride) + taps[None]).reshape(1, -1)
    spread = jnp.broadcast_to(values[:, None], (geo.k, geo.length)).reshape(1, -1)
    samples = np.arange(geo.signal_length, dtype=np.int32)[:, None]
    placed = jnp.where(samples == positions, spread, 0.0)
    rebuilt = matmul(placed, problem.bank[filters].reshape(geo.k * geo.length, geo.channels))
    return _length(problem.signal - rebuilt) / problem.norm


def _length(array: Array) -> Scalar:
    flat = array.ravel()
    return jnp.sqrt(matmul(flat, flat))


def _column(matrix: Float[Array, "k w"], at: Int[Array, ""]) -> Float[Array, " k"]:
    return lax.dynamic_slice_in_dim(matrix, at, 1, axis=1)[:, 0]


def _fold(operation: Callable[[Array, Array], Array], array: Array) -> Array:
    """Reduce the leading axis by an unrolled chain: XLA's CPU reduction would not vectorise the trailing axis."""
    return functools.reduce(operation, [array[row] for row in range(array.shape[0])])
