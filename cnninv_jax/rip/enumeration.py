"""The exact constant delta_k of a layer by enumeration (Gilbert et al. 2017, eq. 1)."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from cnninv_jax._numerics import wider
from cnninv_jax._typing import Array, Float, Int, PerAxis, Scalar
from cnninv_jax.operators import ConvOperator
from cnninv_jax.rip._eigen import spectral_norm
from cnninv_jax.rip._gram import gram_geometry, gram_table
from cnninv_jax.rip._patterns import Patterns, list_patterns, support_model

#: Most supports that `exact_constant` lists in its program.
LISTED_LIMIT = 2**18
#: Matrices worked on at a time: their entries stay in the cache.
LANES = 4096
#: Symmetric matrices side by side: [r, r, *lanes], or their lower triangles row by row, [*lanes] each.
Matrices: TypeAlias = list[Array] | Array

#: Larger matrices than these are factored column by column, each column one operation of the program.
_UNROLLED = 6


def exact_constant(op: ConvOperator, k: float, *, members: int = 1, pool: PerAxis | None = None) -> Scalar:
    """Return delta_k = max over supports S of |W_S W_S^T - I|_2 (Gilbert et al. 2017, eq. 1), for tiny layers.

    For Monte Carlo over filter banks: traceable, without LAPACK, the lanes of a ``vmap`` side by side. The supports
    that matter are listed when tracing: of full size, connected, and one of those that differ by a common shift only.

    Args:
        op: the layer; only its filters may be traced.
        k: number of non-zeros, or a fraction of the code's entries.
        members: 1 for M_k; 2 for M_k^2, sums of two members, whose constant the paper calls delta_2k.
        pool: pooling window; None for whole filter responses as blocks.

    Returns:
        The constant, to some units of rounding, in the filters' dtype (at least float32). Not differentiable.

    Raises:
        ValueError: more than `LISTED_LIMIT` supports matter, or k or ``members`` do not fit.

    Cost: for s supports of r entries, s (4/3 r^3 + 60 r) operations a layer.
    """
    model = support_model(op.code_shape, k, pool, members)
    geometry = gram_geometry(op)
    families = list_patterns(model, geometry, LISTED_LIMIT)
    if families is None:
        raise ValueError(
            f"expected at most {LISTED_LIMIT} supports that matter, got more for code shape {op.code_shape}, k = {k} "
            f"and members = {members}; use constant, which bounds what it cannot enumerate"
        )
    table = gram_table(op.filters.astype(wider(op.dtype, np.float32)), geometry).ravel()
    listed: dict[int, list[np.ndarray]] = {}
    for family in families:
        listed.setdefault(family.local.shape[1], []).append(_indices(family, op.num_filters))
    norms = [_largest_norm(table, np.concatenate(parts, axis=1)) for parts in listed.values()]
    return jnp.max(jnp.stack(norms))


def _indices(family: Patterns, num_filters: int) -> Int[np.ndarray, "entries supports"]:
    """Return where in the flattened table the lower triangle of every support's Gram matrix stands."""
    chosen = np.asarray(list(itertools.combinations(range(num_filters), family.filters)), np.int64)
    filters = chosen[:, family.local]  # [C, P, r]
    rows, columns = np.tril_indices(family.local.shape[1])
    flat = (family.ways[None, :, rows, columns] * num_filters + filters[..., rows]) * num_filters + filters[
        ..., columns
    ]
    return flat.reshape(-1, len(rows)).T.astype(np.int32)


def _largest_norm(table: Float[Array, " entries"], indices: Int[np.ndarray, "entries supports"]) -> Scalar:
    """Return the largest |G_S - I| over listed supports; the lanes of a vmap come last."""

    @custom_vmap
    def largest(table: Array) -> Array:
        return _over_lanes(table[:, None], indices)[0]

    @largest.def_vmap
    def _(lanes: int, batched: list[bool], table: Array) -> tuple[Array, bool]:
        del lanes, batched
        return _over_lanes(table.T, indices), True

    return largest(table)


def _over_lanes(table: Float[Array, "entries B"], indices: Int[np.ndarray, "entries supports"]) -> Float[Array, " B"]:
    """Two passes: a guess which support is the largest, then a test of all of them against its norm."""
    lanes = table.shape[1]
    count = indices.shape[1]
    block = max(1, min(count, LANES // lanes))
    blocks = -(-count // block)
    padded = np.concatenate([indices, np.repeat(indices[:, -1:], blocks * block - count, axis=1)], axis=1)
    parts = jnp.asarray(padded.reshape(len(indices), blocks, block).transpose(1, 0, 2))

    def step(best: Array, part: Array) -> tuple[Array, None]:
        lower = deviations(table[part])
        if len(indices) <= 3:  # closed forms
            return jnp.maximum(best, jnp.max(_norms(lower), axis=0)), None
        return raise_to(best, lower)[0], None

    def guess(carry: tuple[Array, Array], part: Array) -> tuple[tuple[Array, Array], None]:
        largest, entries = carry
        lower = deviations(table[part])
        score = _score(lower)
        here = jnp.argmax(score, axis=0)
        value = jnp.take_along_axis(score, here[None], axis=0)[0]
        better = value > largest
        taken = jnp.stack(_of_lanes(lower, here))
        return (jnp.where(better, value, largest), jnp.where(better[None], taken, entries)), None

    best = jnp.zeros((lanes,), table.dtype)
    if len(indices) > 3:
        start = (jnp.full((lanes,), -jnp.inf, table.dtype), jnp.zeros((len(indices), lanes), table.dtype))
        (_, entries), _ = jax.lax.scan(guess, start, parts)
        best = _norms(list(entries))
    best, _ = jax.lax.scan(step, best, parts)
    return best


def raise_to(best: Float[Array, " B"], matrices: Matrices) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
    """Return the larger of ``best`` and the norms of all matrices of a lane, and which it is (-1 for none).

    Whether b - A and b + A are positive definite costs a tenth of a norm, and hardly any matrix fails the test once b
    is near the maximum: only the most promising of those that fail are computed.

    Args:
        best: a number of every lane.
        matrices: symmetric, S of every lane: [r, r, S, B], or their lower triangles row by row, [S, B] each.
    """
    size = _size(matrices) if isinstance(matrices, list) else len(matrices)
    slack = size * float(jnp.finfo(best.dtype).eps)

    def failing(best: Array) -> Array:
        bound = (best + slack * (1.0 + best))[None]
        return ~(_definite(matrices, bound, 1.0) & _definite(matrices, bound, -1.0))

    def more(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, _, fails, improved = carry
        return jnp.any(improved & jnp.any(fails, axis=0))

    def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        best, which, fails, _ = carry
        here = jnp.argmax(jnp.where(fails, _score(matrices), -jnp.inf), axis=0).astype(np.int32)
        value = jnp.maximum(_norms(_of_lanes(matrices, here)), best)
        improved = value > best
        # A matrix within rounding of the bound may fail and improve nothing: such a lane is done.
        return value, jnp.where(improved, here, which), failing(value), improved

    nothing = jnp.full(best.shape, -1, np.int32)
    best, which, _, _ = jax.lax.while_loop(more, body, (best, nothing, failing(best), jnp.ones(best.shape, bool)))
    return best, which


class Listed(NamedTuple):
    """A family of patterns for the device, of a size that several families share: programs are few.

    Attributes:
        local: which filter of the choice, the largest first, every entry belongs to, [P, r].
        ways: table of every two entries, [P, r, r].
        binomials: C(c, F - i) in row i, c = 0 .. K - 1, [r, K]; rows from F on choose filter 0, which is not used.
        length: number of patterns, at most P.
        total: number of supports, length C(K, F).
    """

    local: Int[Array, "P r"]
    ways: Int[Array, "P r r"]
    binomials: Int[Array, "r K"]
    length: Int[Array, ""]
    total: Int[Array, ""]


def listed(family: Patterns, num_filters: int) -> Listed:
    """Return a family of patterns as `enumerate_patterns` takes it."""
    count, size = family.local.shape
    room = ((0, (1 << max(6, (count - 1).bit_length())) - count), (0, 0))
    largest = 2**31 - 1
    binomials = [
        [min(math.comb(c, slot), largest) if slot > 0 else min(c, 1) * largest for c in range(num_filters)]
        for slot in range(family.filters, family.filters - size, -1)
    ]
    return Listed(
        jnp.asarray(np.pad(family.filters - 1 - family.local, room)),
        jnp.asarray(np.pad(family.ways, (*room, (0, 0)))),
        jnp.asarray(binomials, np.int32),
        jnp.asarray(count, np.int32),
        jnp.asarray(count * math.comb(num_filters, family.filters), np.int32),
    )


@jax.jit
def enumerate_patterns(
    table: Float[Array, "ways K K"], patterns: Listed, best: Scalar
) -> tuple[Scalar, Int[Array, ""]]:
    """Return the larger of ``best`` and all |G_S - I| of a list of patterns, and the number of that support, or -1.

    Support s is pattern s mod P with choice s // P of the C(K, F) choices of filters, see `chosen_filters`.

    Args:
        table: inner products.
        patterns: fewer than 2^31 supports.
        best: a lower bound of the constant; the better it is, the fewer norms are computed.

    Cost: r^3 / 3 operations and r^2 / 2 look-ups a support; memory for `LANES` of them.
    """

    def step(block: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        best, found = carry
        # Beyond the end the last support comes again; the difference is taken first, as sums may overflow.
        left = patterns.total - 1 - block * LANES
        number = block * LANES + jnp.minimum(jnp.arange(LANES, dtype=np.int32), left)
        choice, pattern = number // patterns.length, number % patterns.length
        chosen = chosen_filters(choice, patterns.binomials)
        owner = jnp.take_along_axis(chosen, patterns.local[pattern].T, axis=0)
        pairs = patterns.ways[pattern].transpose(1, 2, 0)
        value, which = raise_to(best[None], matrices_of(table, pairs, owner))
        return value[0], jnp.where(which[0] >= 0, number[which[0]], found)

    blocks = (patterns.total - 1) // LANES + 1
    start = (best, jnp.full((), -1, np.int32))
    return jax.lax.fori_loop(0, blocks, lambda block, carry: step(jnp.asarray(block, np.int32), carry), start)


def chosen_filters(choice: Int[Array, " lanes"], binomials: Int[Array, "r K"]) -> Int[Array, "r lanes"]:
    """Return choice number ``choice`` in the combinatorial number system: filters in descending order."""
    rest, slots = choice, []
    for below in binomials:
        largest = jnp.sum(below[:, None] <= rest[None], axis=0, dtype=np.int32) - 1
        rest = rest - below[largest]
        slots.append(largest)
    return jnp.stack(slots)


def matrices_of(table: Float[Array, "ways K K"], pairs: Int[Array, "r r S"], filters: Int[Array, "r S"]) -> Matrices:
    """Return G - I of many supports, [.., S, 1], from the table of every two entries and the filter of each."""
    size = len(filters)
    if size <= _UNROLLED:
        rows, columns = np.tril_indices(size)
        lower = table[pairs[rows, columns], filters[rows], filters[columns]]
        return [entry[:, None] for entry in deviations(lower)]
    matrix = table[pairs, filters[:, None], filters[None]]
    return (matrix - jnp.eye(size, dtype=table.dtype)[:, :, None])[..., None]


def _of_lanes(matrices: Matrices, which: Int[Array, " B"]) -> Any:
    """Return one matrix of every lane, [.., B]."""
    if isinstance(matrices, list):
        return [jnp.take_along_axis(entry, which[None], axis=0)[0] for entry in matrices]
    return jnp.take_along_axis(matrices, which[None, None, None], axis=2)[:, :, 0]


def _size(lower: list[Array]) -> int:
    return math.isqrt(2 * len(lower))


def deviations(lower: Float[Array, " entries *lanes"]) -> list[Float[Array, " *lanes"]]:
    """Return the lower triangle of G - I, row by row, from that of G."""
    rows, columns = np.tril_indices(math.isqrt(2 * len(lower)))
    return [entry - 1.0 if i == j else entry for i, j, entry in zip(rows, columns, lower, strict=True)]


def _square(lower: list[Array]) -> list[list[Array]]:
    """Return the rows of a symmetric matrix given by its lower triangle."""
    size = _size(lower)
    return [[lower[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] for j in range(size)] for i in range(size)]


def _stacked(matrices: Matrices) -> Float[Array, "r r *lanes"]:
    return jnp.stack([jnp.stack(row) for row in _square(matrices)]) if isinstance(matrices, list) else matrices


def _norms(matrices: Matrices) -> Float[Array, " *lanes"]:
    return spectral_norm(_stacked(matrices))


def _score(matrices: Matrices) -> Float[Array, " *lanes"]:
    """Return tr A^4, which ranks matrices nearly as the norm does."""
    rows = _stacked(matrices)
    square = sum((rows[:, j, None] * rows[None, j] for j in range(len(rows))), start=jnp.zeros_like(rows))
    return jnp.sum(square * square, axis=(0, 1))


def _definite(matrices: Matrices, bound: Array, sign: float) -> Array:
    """Whether bound - sign A is positive definite: all pivots of its factorisation L D L^T are positive."""
    if not isinstance(matrices, list):
        return _definite_stacked(matrices, bound, sign)
    lower = matrices
    size = _size(lower)
    work = [
        [(bound if i == j else 0.0) - sign * entry for j, entry in enumerate(row[: i + 1])]
        for i, row in enumerate(_square(lower))
    ]
    fits = work[0][0] > 0
    for step in range(size - 1):
        inverse = 1.0 / jnp.where(fits, work[step][step], 1.0)
        for i in range(step + 1, size):
            factor = work[i][step] * inverse
            for j in range(step + 1, i + 1):
                work[i][j] = work[i][j] - factor * work[j][step]
        fits &= work[step + 1][step + 1] > 0
    return fits


def _definite_stacked(matrices: Float[Array, "r r *lanes"], bound: Array, sign: float) -> Array:
    """Return the same for larger matrices, in a program that does not grow with their cube."""
    diagonal = jnp.eye(len(matrices), dtype=matrices.dtype)[:, :, None, None]
    work = diagonal * bound[None, None] - sign * matrices
    fits = work[0, 0] > 0
    while work.shape[0] > 1:
        factor = work[1:, 0] / jnp.where(fits, work[0, 0], 1.0)[None]
        # Unless told otherwise XLA fuses all columns and computes each of them again for every later one.
        work = jax.lax.optimization_barrier(work[1:, 1:] - factor[:, None] * work[None, 0, 1:])
        fits &= work[0, 0] > 0
    return fits
