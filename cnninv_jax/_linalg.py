"""A batched Cholesky factorisation and triangular solve for small matrices, without LAPACK.

Inside `shard_map` over several CPU devices a batched LAPACK call can wait for ever for the threads that the other
devices hold (JAX 0.10), so a Monte-Carlo draw must not make one. Here the lanes of a `vmap` become the last, contiguous
axis and the columns a `fori_loop`; on a CPU that is 8 times as fast as an unrolled recursion.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from cnninv_jax._typing import Array, Float

#: Column stages: later ones work on shorter columns, which saves almost half of the operations.
_STAGES = 4
#: A pivot below this part of its diagonal entry is rounding; its direction carries no variance and is dropped.
_PIVOT = 1e-6


@custom_vmap
def ldl_factor(
    matrix: Float[Array, "n n"], rows: Float[Array, "q n"]
) -> tuple[Float[Array, "n n"], Float[Array, "q n"], Float[Array, " n"]]:
    """Factor A = C diag(s) C^T; return (C, rows L^-T, s), where L = C diag(sqrt(s)) is the Cholesky factor.

    ``C`` is lower triangular with the pivots d = 1/s on its diagonal. The ``rows`` are solved against L on the way.
    A column whose pivot vanishes has s = 0, so a singular positive semidefinite matrix is factored on its range.

    Args:
        matrix: symmetric positive semidefinite.
        rows: right-hand sides r, each returned as L^-1 r.

    Cost: n^3 / 3 + q n^2 / 2 multiplications; n steps, whatever the number of lanes.
    """
    return jax.tree.map(lambda a: a[0], _factor_lanes(matrix[None], rows[None]))


@ldl_factor.def_vmap
def _(lanes: int, batched: Any, matrix: Array, rows: Array) -> tuple[Any, Any]:
    return _factor_lanes(*_broadcast(lanes, batched, matrix, rows)), (True, True, True)


@custom_vmap
def ldl_solve_transposed(
    columns: Float[Array, "n n"], inverse_pivots: Float[Array, " n"], right: Float[Array, "n q"]
) -> Float[Array, "n q"]:
    """Solve L^T u = right with the factors (C, s) of `ldl_factor`; directions with s = 0 get u = 0.

    Cost: q n^2 / 2 multiplications; n steps.
    """
    return _solve_lanes(columns[None], inverse_pivots[None], right[None])[0]


@ldl_solve_transposed.def_vmap
def _(lanes: int, batched: Any, columns: Array, inverse_pivots: Array, right: Array) -> tuple[Any, Any]:
    return _solve_lanes(*_broadcast(lanes, batched, columns, inverse_pivots, right)), True


def _broadcast(lanes: int, batched: Any, *arrays: Array) -> list[Array]:
    return [
        array if is_batched else jnp.broadcast_to(array, (lanes, *array.shape))
        for array, is_batched in zip(arrays, batched, strict=True)
    ]


def _stages(size: int) -> list[tuple[int, int]]:
    count = min(_STAGES, size)
    edges = [round(size * stage / count) for stage in range(count + 1)]
    return list(itertools.pairwise(edges))


def _combine(start: Array, vectors: Array, weights: Array, count: int) -> Array:
    """Return start - sum_i vectors[i] weights[i]; unrolled, so that XLA keeps the sum in registers."""
    return functools.reduce(lambda total, i: total - vectors[i] * weights[i][None], range(count), start)


def _factor_lanes(
    matrix: Float[Array, "B n n"], rows: Float[Array, "B q n"]
) -> tuple[Float[Array, "B n n"], Float[Array, "B q n"], Float[Array, "B n"]]:
    size = matrix.shape[-1]
    augmented = jnp.moveaxis(jnp.concatenate([matrix, rows], axis=1), 0, -1)  # [n + q, n, B]
    height, lanes = augmented.shape[0], augmented.shape[2]
    zeros = functools.partial(jnp.zeros, dtype=matrix.dtype)
    done: list[tuple[Array, int]] = []
    scales = zeros((0, lanes))
    for low, high in _stages(size):
        block = augmented[low:, low:high]
        below = jnp.arange(height - low)[:, None]

        def column(
            j: Array,
            carry: tuple[Array, Array],
            low: int = low,
            high: int = high,
            block: Array = block,
            below: Array = below,
        ) -> tuple[Array, Array]:
            columns, scales = carry
            entries = lax.dynamic_index_in_dim(block, j, 1, keepdims=False)
            weights = lax.dynamic_index_in_dim(columns, j, 1, keepdims=False) * scales
            fresh = jnp.where(below >= j, _combine(entries, columns, weights, high), 0.0)
            columns = lax.dynamic_update_index_in_dim(columns, fresh, j + low, 0)
            # Read back rather than taken from `fresh`: XLA would compute the whole column again for every entry.
            pivot = lax.dynamic_slice(columns, (j + low, j, 0), (1, 1, lanes))[0]
            diagonal = lax.dynamic_slice(block, (j, j, 0), (1, 1, lanes))[0]
            usable = pivot > _PIVOT * diagonal
            scale = jnp.where(usable, 1.0 / jnp.where(usable, pivot, 1.0), 0.0)
            return columns, lax.dynamic_update_slice(scales, scale, (j + low, 0))

        earlier = [part[:, low - offset :] for part, offset in done]
        columns = jnp.concatenate([*earlier, zeros((high - low, height - low, lanes))])
        scales = jnp.concatenate([scales, zeros((high - low, lanes))])
        columns, scales = lax.fori_loop(0, high - low, column, (columns, scales))
        done.append((columns[low:], low))
    columns = jnp.concatenate([jnp.pad(part, ((0, 0), (offset, 0), (0, 0))) for part, offset in done])
    solved = columns[:, size:] * jnp.sqrt(scales)[:, None]
    return jnp.transpose(columns[:, :size], (2, 1, 0)), jnp.transpose(solved, (2, 1, 0)), scales.T


def _solve_lanes(
    columns: Float[Array, "B n n"], inverse_pivots: Float[Array, "B n"], right: Float[Array, "B n q"]
) -> Float[Array, "B n q"]:
    size, width, lanes = columns.shape[-1], right.shape[-1], right.shape[0]
    by_column = jnp.transpose(columns, (2, 1, 0))  # [column, row, B]
    scales = inverse_pivots.T
    usable = scales > 0
    roots = jnp.where(usable, lax.rsqrt(jnp.where(usable, scales, 1.0)), 0.0)
    target = jnp.moveaxis(right, 0, -1) * roots[:, None]
    solution = jnp.zeros((0, width, lanes), right.dtype)
    for low, high in reversed(_stages(size)):
        part, targets, scale = by_column[low:high, low:], target[low:high], scales[low:high]

        def row(
            step: Array,
            solution: Array,
            low: int = low,
            high: int = high,
            part: Array = part,
            targets: Array = targets,
            scale: Array = scale,
        ) -> Array:
            j = high - low - 1 - step
            weights = lax.dynamic_index_in_dim(part, j, 0, keepdims=False)
            start = lax.dynamic_index_in_dim(targets, j, 0, keepdims=False)
            value = _combine(start, solution, weights, size - low)
            value = value * lax.dynamic_index_in_dim(scale, j, 0, keepdims=False)[None]
            return lax.dynamic_update_index_in_dim(solution, value, j, 0)

        solution = jnp.concatenate([jnp.zeros((high - low, width, lanes), right.dtype), solution])
        solution = lax.fori_loop(0, high - low, row, solution)
    return jnp.moveaxis(solution, -1, 0)
