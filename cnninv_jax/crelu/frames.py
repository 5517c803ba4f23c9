"""Frames of Theorem A.5 (Shang et al. 2016, A.2): W_x, W~_x, W^_x of one signal when a whole response is pooled.

A signal of (S1) is x = W^T z with at most one non-zero of z per filter, a member of Gilbert's M_k: `sample_code` of
`cnninv_jax.sparsity` draws it. As printed, (S1) counts positive coefficients alone; any number of negative ones would
then be allowed, and the bound be wrong (`tests/crelu/test_frames.py` has the case D = 2, W = I, x = (-1, -1)). Here as
in the paper's sentence below it, a shift takes part when its coefficient is not zero.

Where a phase of a filter answers nowhere, max-pooling has no winner, its feature is 0, and W^_x and W~_x have no column
for it. Nothing here calls LAPACK.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, matmul, per_axis, wider
from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray, Scalar, Signal
from cnninv_jax.crelu.activation import max_pool
from cnninv_jax.operators import ConvOperator, analysis, frame_bounds, synthesis_sparse
from cnninv_jax.sparsity import SparseCode, sample_code

#: A column counts for a projection if more than so many roundings of it stand out of the span of those before it.
_INDEPENDENT = 64


class PooledFrames(NamedTuple):
    """One signal, its reconstruction by Algorithm 2, and what Theorem A.5 and its proof say of it.

    Attributes:
        ratio: |x - x'| / |x|; 0 for x = 0.
        smallest: lambda_min of W_x^T W_x, the shifts that take part; 0 where they depend on each other.
        largest: lambda~_max of W~_x^T W~_x: for every filter and sign of a shift that takes part, the winner in that
            phase, if there is one.
        largest_every: lambda~_max with the positive winners of the filters that do not take part as well. The paper's
            "the i-th column comes from W^+ if c_i >= 0" can be read so.
        largest_right: lambda~_max of those columns alone that stand for a shift which answers with the sign of its
            coefficient; the proof needs no more, see `theorems`.
        taking_part: number of shifts that take part.
        wrong: how many of them answer with the sign opposite to their coefficient.
        silent: how many of them belong to a phase that answers nowhere, so that W~_x has no column for it.
        step: |W~_x^T x|^2 / |W_x^T x|^2, which the paper's proof takes to be 1 or more.
    """

    ratio: Scalar
    smallest: Scalar
    largest: Scalar
    largest_every: Scalar
    largest_right: Scalar
    taking_part: Int[Array, ""]
    wrong: Int[Array, ""]
    silent: Int[Array, ""]
    step: Scalar


class _Winners(NamedTuple):
    """Columns of W^_x as rows, positive phases first: zeros where a phase does not answer; and their responses."""

    rows: Float[Array, "K2 size"]
    responses: Float[Array, " K2"]
    fired: Bool[Array, " K2"]


def sample_shifts(
    key: PRNGKeyArray,
    op: ConvOperator,
    k: int,
    *,
    per_filter: int = 1,
    values: str = "gaussian",
) -> SparseCode:
    """Draw coefficients of (S1), or with ``per_filter`` above 1 some that break it.

    Args:
        key: random key.
        op: the layer.
        k: number of filters that take part.
        per_filter: shifts of each of them, all different; 1 for (S1).
        values: ``"uniform"``, ``"gaussian"`` or ``"signs"`` as in `sample_code`; ``"positive"`` and ``"negative"``
            take the magnitudes of Gaussian ones.

    Returns:
        A code of k * per_filter entries; its signal is ``synthesis_sparse(op, code)``.

    Raises:
        ValueError: k not between 1 and K, per_filter not between 1 and n, or unknown values.
    """
    count = math.prod(op.shifts)
    (k,), (times,) = per_axis(k, 1, "k"), per_axis(per_filter, 1, "per_filter")
    if times > count:
        raise ValueError(f"expected per_filter of at most n = {count}, the shifts of a filter, got {times}")
    law = "gaussian" if values in ("positive", "negative") else values
    code_key, shift_key, value_key = jax.random.split(key, 3)
    code = sample_code(code_key, op.num_filters, op.shifts, k, values=law, dtype=op.dtype)
    if times > 1:
        orders = jax.vmap(lambda one: jax.random.permutation(one, count)[:times])(jax.random.split(shift_key, k))
        fresh = sample_code(value_key, k * times, 1, k * times, values=law, dtype=op.dtype)
        places = jnp.unravel_index(orders.ravel(), op.shifts)
        code = dataclasses.replace(
            code,
            blocks=jnp.repeat(code.blocks, times),
            shifts=jnp.stack(places, axis=-1).astype(code.shifts.dtype),
            values=fresh.values,
        )
    if values in ("positive", "negative"):
        sign = 1 if values == "positive" else -1
        code = dataclasses.replace(code, values=sign * jnp.abs(code.values))
    return code


def pooled_frames(op: ConvOperator, code: SparseCode, signal: Signal | None = None) -> PooledFrames:
    """Return both sides of Theorem A.5 for x = W_x c, one pooling region per filter (Shang et al. 2016, A.2).

    Args:
        op: the layer.
        code: the coefficients c and their shifts; under (S1) one entry per filter. Entries of value 0 take no part.
        signal: what goes into the layer, [M, *D]; None for x = W_x c. Another one breaks the assumption.

    Returns:
        `PooledFrames`, in the wider dtype of filters and code.

    Raises:
        ValueError: the code or the signal belongs to another layer.

    Cost: one analysis; (2 K)^2 M prod(D) multiply-adds for the projection, and eigenvalues of matrices of sizes k and
        K + k.
    """
    x = synthesis_sparse(op, code) if signal is None else as_float(signal)
    responses = analysis(op, x)
    won = _winners(op, responses)
    kind = wider(code.values.dtype, won.responses.dtype)
    flat, filters = x.astype(kind).ravel(), code.filter_indices
    own = responses[(filters, *jnp.moveaxis(code.shifts, -1, 0))]
    part = code.values != 0
    rows = _shift_rows(op, filters, code.shifts).astype(kind)
    # Pairs (filter, sign): two shifts of one filter and sign have one winner, which counts once.
    phase = filters + op.num_filters * (code.values < 0).astype(filters.dtype)
    right = part & (code.values * own > 0)
    columns, answers, fired = won.rows[phase], won.responses[phase], won.fired[phase]
    chosen = _first_of(phase, part & fired)
    positive = slice(0, op.num_filters)
    idle = jnp.ones(op.num_filters, bool).at[filters].min(~part) & won.fired[positive]
    smallest, largest = _extremes_of(rows, part, columns, (chosen, _first_of(phase, right)))
    every = jnp.where(jnp.concatenate([chosen, idle])[:, None], jnp.concatenate([columns, won.rows[positive]]), 0.0)
    answered = jnp.sum(jnp.where(part, jnp.square(own), 0.0))
    stepped = jnp.sum(jnp.where(chosen, jnp.square(answers), 0.0))
    return PooledFrames(
        ratio=_ratio(won.rows, flat),
        smallest=smallest,
        largest=largest[0],
        largest_every=extreme_eigenvalues(_gram(every))[1],
        largest_right=largest[1],
        taking_part=jnp.sum(part, dtype=np.int32),
        wrong=jnp.sum(part & (code.values * own < 0), dtype=np.int32),
        silent=jnp.sum(part & ~fired, dtype=np.int32),
        step=stepped / jnp.where(answered > 0, answered, 1.0),
    )


def any_signal_frames(op: ConvOperator, x: ArrayLike) -> PooledFrames:
    """Return what Theorem A.5 says of a signal of no (S1): every shift takes part, W_x = W and W~_x = W^_x.

    Any x is a combination of all shifts when these span R^D, with coefficients of both signs. lambda_min is then the
    lower frame bound of W, a frame's and no longer a smallest singular value of independent columns.

    Args:
        op: the layer.
        x: signal, [M, *D].

    Returns:
        `PooledFrames`; ``wrong`` and ``silent`` do not apply and are 0, ``largest_right`` is ``largest``.

    Cost: as `pooled_frames`, and a Lanczos run of M prod(D) steps.
    """
    signal = as_float(x)
    responses = analysis(op, signal)
    won = _winners(op, responses)
    largest = extreme_eigenvalues(_gram(won.rows))[1]
    answered, stepped = jnp.sum(jnp.square(responses)), jnp.sum(jnp.square(won.responses))
    none = jnp.zeros((), np.int32)
    return PooledFrames(
        ratio=_ratio(won.rows, signal.astype(won.rows.dtype).ravel()),
        smallest=frame_bounds(op, num_steps=math.prod(op.input_shape)).lower,
        largest=largest,
        largest_every=largest,
        largest_right=largest,
        taking_part=jnp.asarray(math.prod(op.code_shape), np.int32),
        wrong=none,
        silent=none,
        step=stepped / jnp.where(answered > 0, answered, 1.0),
    )


def distance_to_span(rows: Float[Array, "c size"], vector: Float[Array, " size"]) -> Scalar:
    """Return |v - P v|, P the orthogonal projection onto the span of the rows (modified Gram-Schmidt).

    A row that lies in the span of those before it, up to rounding, is left out; zeros may stand among the rows.

    Cost: 2 c^2 size multiply-adds.
    """
    work = jnp.concatenate([rows, vector[None]])
    sizes = jnp.sum(jnp.square(work), axis=1)
    least = (_INDEPENDENT * float(jnp.finfo(work.dtype).eps)) ** 2
    numbers = jnp.arange(work.shape[0], dtype=np.int32)

    def remove(j: Array, work: Array) -> Array:
        row = lax.dynamic_index_in_dim(work, j, 0, keepdims=False)
        size = jnp.sum(jnp.square(row))
        usable = size > least * sizes[j]
        scale = jnp.where(usable, 1.0 / jnp.where(usable, size, 1.0), 0.0)
        weights = jnp.where(numbers > j, matmul(work, row) * scale, 0.0)
        return work - weights[:, None] * row[None]

    left = lax.fori_loop(0, rows.shape[0], remove, work)[-1]
    return jnp.sqrt(jnp.sum(jnp.square(left)))


@custom_vmap
def extreme_eigenvalues(
    matrices: Float[Array, "n n *lanes"],
) -> tuple[Float[Array, " *lanes"], Float[Array, " *lanes"]]:
    """Return the smallest and the largest eigenvalues of positive semidefinite matrices, without LAPACK.

    Householder's reflections, then bisection on the signs of the pivots of T - s: both are backward stable, so errors
    are a few roundings of the largest eigenvalue.

    Args:
        matrices: entries (i, j) of all of them, [n, n, *lanes]; a `vmap` adds lanes.

    Cost: 4 n^3 operations a matrix, 30 n sequential steps whatever their number.
    """
    size, lanes = matrices.shape[0], matrices.shape[2:]
    low, high = _extremes(matrices.reshape(size, size, -1))
    return low.reshape(lanes), high.reshape(lanes)


@extreme_eigenvalues.def_vmap
def _(size: int, batched: Any, matrices: Array) -> tuple[Any, Any]:
    del size  # Called with a batch only.
    assert batched[0]
    low, high = extreme_eigenvalues(jnp.moveaxis(matrices, 0, -1))
    return (jnp.moveaxis(low, -1, 0), jnp.moveaxis(high, -1, 0)), (True, True)


def _extremes(matrices: Float[Array, "n n lanes"]) -> tuple[Array, Array]:
    diagonal, squares = _tridiagonal(matrices)
    zero = jnp.zeros_like(squares[:1])
    before = jnp.concatenate([zero, squares[:-1]])
    reach = jnp.sqrt(squares) + jnp.sqrt(before)
    top = jnp.max(diagonal + reach, axis=0)
    signs = jnp.asarray([[1.0], [-1.0]], matrices.dtype)

    def definite(shift: Float[Array, "2 lanes"]) -> Bool[Array, "2 lanes"]:
        """Whether T - shift_0 and shift_1 - T are positive definite."""

        def pivot(carry: tuple[Array, Array], entry: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            last, fits = carry
            value = signs * (entry[0][None] - shift) - entry[1][None] / jnp.where(last > 0, last, 1.0)
            return (value, fits & (value > 0)), None

        start = (jnp.ones_like(shift), jnp.ones(shift.shape, bool))
        return lax.scan(pivot, start, (diagonal, before), unroll=4)[0][1]

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        above = definite(middle) ^ np.asarray([[False], [True]])
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    steps = int(np.finfo(matrices.dtype).nmant) + 2
    low, high = lax.fori_loop(0, steps, halve, (jnp.zeros_like(top[None] * signs), jnp.stack([top, top])))
    # Ends that never moved are the answer itself: 0 for a singular matrix, not half of a step.
    found = jnp.where(low == 0, 0.0, (low + high) / 2)
    return found[0], found[1]


def _tridiagonal(matrices: Float[Array, "n n lanes"]) -> tuple[Array, Array]:
    """Return diagonals and squared off-diagonals (a zero behind them) of orthogonally similar tridiagonal matrices.

    A loop over columns of full height: `rip` unrolls shrinking ones, which saves work and takes a minute to compile at
    n = 32.
    """
    size, lanes = matrices.shape[0], matrices.shape[2]
    numbers = jnp.arange(size, dtype=np.int32)[:, None]

    def reflect(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        work, diagonal, squares = carry
        whole = lax.dynamic_index_in_dim(work, j, 1, keepdims=False)
        entry = lax.dynamic_index_in_dim(whole, j, 0, keepdims=False)
        column = jnp.where(numbers > j, whole, 0.0)
        square = jnp.sum(column * column, axis=0)
        norm = jnp.sqrt(square)
        head = jnp.sum(jnp.where(numbers == j + 1, column, 0.0), axis=0)
        vector = column + jnp.where(numbers == j + 1, jnp.where(head < 0, -norm, norm)[None], 0.0)
        half = norm * (norm + jnp.abs(head))
        scale = jnp.where(half > 0, 1.0 / jnp.where(half > 0, half, 1.0), 0.0)
        product = jnp.sum(work * vector[None], axis=1) * scale[None]
        along = jnp.sum(product * vector, axis=0) * scale / 2
        product = product - along[None] * vector
        work = work - vector[:, None] * product[None] - product[:, None] * vector[None]
        diagonal = lax.dynamic_update_index_in_dim(diagonal, entry, j, 0)
        return work, diagonal, lax.dynamic_update_index_in_dim(squares, square, j, 0)

    empty = jnp.zeros((size, lanes), matrices.dtype)
    _, diagonal, squares = lax.fori_loop(0, size, reflect, (matrices, empty, empty))
    return diagonal, squares


def _first_of(labels: Int[Array, " c"], which: Bool[Array, " c"]) -> Bool[Array, " c"]:
    """Return the entries of a mask whose label has not come before, within the mask."""
    earlier = np.tri(labels.shape[0], k=-1, dtype=bool)
    repeated = (labels[:, None] == labels[None]) & which[None] & earlier
    return which & ~jnp.any(repeated, axis=1)


def _gram(rows: Float[Array, "c size"]) -> Float[Array, "c c"]:
    return matmul(rows, rows.T)


def _extremes_of(
    rows: Float[Array, "c size"],
    part: Bool[Array, " c"],
    columns: Float[Array, "c size"],
    masks: Sequence[Bool[Array, " c"]],
) -> tuple[Scalar, Float[Array, " masks"]]:
    """Return the smallest eigenvalue of W_x^T W_x and the largest ones of some columns, in one pass."""
    own = _gram(jnp.where(part[:, None], rows, 0.0))
    # Shifts that take no part get an eigenvalue above all others.
    own = own + jnp.diag(jnp.where(part, 0.0, jnp.trace(own)))
    others = [_gram(jnp.where(mask[:, None], columns, 0.0)) for mask in masks]
    low, high = extreme_eigenvalues(jnp.stack([own, *others], axis=-1))
    smallest = low[0] if rows.shape[0] <= rows.shape[1] else jnp.zeros_like(low[0])
    return smallest, high[1:]


def _ratio(rows: Float[Array, "K2 size"], x: Float[Array, " size"]) -> Scalar:
    size = jnp.sqrt(jnp.sum(jnp.square(x)))
    return distance_to_span(rows, x) / jnp.where(size > 0, size, 1.0)


def _winners(op: ConvOperator, responses: Float[Array, " K *n"]) -> _Winners:
    pooled = max_pool(responses)
    features, switches = pooled.features.ravel(), pooled.switches.ravel()
    fired = switches >= 0
    places = jnp.stack(jnp.unravel_index(jnp.where(fired, switches, 0), op.shifts), axis=-1)
    filters = np.tile(np.arange(op.num_filters, dtype=np.int32), 2)
    rows = _shift_rows(op, jnp.asarray(filters), places).astype(features.dtype)
    return _Winners(jnp.where(fired[:, None], rows, 0.0), features, fired)


def _shift_rows(op: ConvOperator, filters: Int[Array, " c"], shifts: Int[Array, "c rank"]) -> Float[Array, "c size"]:
    """Return shifts of filters, w_i^j, as rows of M prod(D) numbers."""

    def one(number: Array, shift: Array) -> Array:
        entry = SparseCode(number[None], shift[None], jnp.ones(1, op.dtype), op.code_shape, None)
        return synthesis_sparse(op, entry).ravel()

    return jax.vmap(one)(filters, shifts)
