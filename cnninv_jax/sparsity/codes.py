"""Model-k-sparse codes (Gilbert et al. 2017, 2.3): their sparse form, sampling and counting.

A *block* is one pooling region of one filter: in the theory the whole response (``pool=None``), in a network
a p-window, partial at the far border (ceil mode). M_k holds the codes with at most one non-zero per block and
k in total. Blocks are numbered filter by filter and row-major within a filter.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import float_dtype, per_axis
from cnninv_jax._typing import Array, Code, Float, Int, PerAxis, PRNGKeyArray

Values: TypeAlias = Literal["uniform", "gaussian", "signs"]

#: Supports of up to this size are drawn by Floyd's algorithm, larger ones by sorting random words.
FLOYD_LIMIT = 32


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["blocks", "shifts", "values"],
    meta_fields=["code_shape", "pool"],
)
@dataclasses.dataclass(frozen=True)
class SparseCode:
    """The non-zeros of a code: which block, which shift, what value.

    Attributes:
        blocks: block of every entry, [k], integers.
        shifts: absolute shift of every entry in [0, n), [k, rank], integers.
        values: value of every entry, [k].
        code_shape: (K, *n) of the dense code (static).
        pool: pooling window per axis; None makes a filter's whole response one block (static).
    """

    blocks: Int[Array, " k"]
    shifts: Int[Array, "k rank"]
    values: Float[Array, " k"]
    code_shape: tuple[int, ...]
    pool: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """Number of entries k."""
        return self.values.shape[-1]

    @property
    def filter_indices(self) -> Int[Array, " k"]:
        """Filter of every entry, [k]."""
        return self.blocks // math.prod(regions(self.code_shape[1:], self.pool))

    def to_dense(self) -> Code:
        """Return the code as an array, [K, *n]; entries of equal position add."""
        place = (self.filter_indices, *(self.shifts[..., axis] for axis in range(len(self.code_shape) - 1)))
        return jnp.zeros(self.code_shape, self.values.dtype).at[place].add(self.values)


class SupportCount(NamedTuple):
    """How many supports M_k has: the exact integer and its natural logarithm."""

    exact: int
    log: float


def window(shifts: PerAxis, pool: PerAxis | None) -> tuple[int, ...]:
    """Return the pooling window per axis: ``pool``, cut to n; the whole response for None."""
    n = _shifts(shifts)
    if pool is None:
        return n
    return tuple(min(p, size) for p, size in zip(per_axis(pool, len(n), "pool"), n, strict=True))


def regions(shifts: PerAxis, pool: PerAxis | None = None) -> tuple[int, ...]:
    """Return the pooling regions per axis, ceil(n / p); regions at the far border may be partial.

    Args:
        shifts: n per axis.
        pool: window p, one integer or one per axis; None for the whole response.
    """
    n = _shifts(shifts)
    return tuple(-(-size // p) for size, p in zip(n, window(n, pool), strict=True))


def num_blocks(code_shape: tuple[int, ...], pool: PerAxis | None = None) -> int:
    """Return the number of blocks of a code of shape (K, *n): K times the regions of a filter."""
    return code_shape[0] * math.prod(regions(code_shape[1:], pool))


def support_size(k: float, code_shape: tuple[int, ...], pool: PerAxis | None = None) -> int:
    """Return k as a number of non-zeros.

    Args:
        k: an integer, or a float in (0, 1]: the fraction of the code's K * prod(n) entries that are non-zero,
            rounded (Gilbert et al. 2017, Tables 2 and 7 report such fractions).
        code_shape: (K, *n).
        pool: pooling window; None for the whole response.

    Raises:
        ValueError: k is neither, or not between 1 and the number of blocks.
    """
    blocks = num_blocks(code_shape, pool)
    if isinstance(k, bool | np.bool_):
        raise ValueError(f"expected k to be an integer or a fraction, got {k}")
    if isinstance(k, int | np.integer):
        size = int(k)
    elif isinstance(k, float | np.floating):
        if not 0 < k <= 1:
            raise ValueError(f"expected a fraction k in (0, 1] or an integer, got {k}")
        size = round(float(k) * math.prod(code_shape))
    else:
        raise ValueError(f"expected k to be an integer or a fraction, got {type(k).__name__}")
    if not 1 <= size <= blocks:
        raise ValueError(
            f"expected 1 <= k <= {blocks} (the number of blocks of a code of shape {tuple(code_shape)} with "
            f"pool {pool}), got k = {size}" + ("" if size == k else f" from the fraction {k}")
        )
    return size


def sample_code(
    key: PRNGKeyArray,
    num_filters: int,
    shifts: PerAxis,
    k: float,
    *,
    pool: PerAxis | None = None,
    values: str = "uniform",
    dtype: jax.typing.DTypeLike | None = None,
) -> SparseCode:
    """Draw a member of M_k (Gilbert et al. 2017, 2.3 and Fig. 2).

    k blocks are drawn uniformly without replacement, a shift uniformly within each block, and values
    independently. Supports of up to `FLOYD_LIMIT` blocks come from Floyd's algorithm (k random integers),
    larger ones from a sort of 64-bit random words, whose ties (probability below blocks^2 / 2^65) go to the
    lower block.

    Args:
        key: random key.
        num_filters: K.
        shifts: n per axis; one integer for one spatial axis.
        k: number of non-zeros, or a fraction of the code's entries; static.
        pool: pooling window; None for the whole response.
        values: ``"uniform"`` on [-1, 1], ``"gaussian"`` N(0, 1) or ``"signs"`` (+-1 with equal probability).
        dtype: of the values; JAX's default float for None.

    Returns:
        A code with k entries, in ascending order of blocks.

    Raises:
        ValueError: unknown ``values``, or k not between 1 and the number of blocks.
    """
    n = _shifts(shifts)
    (filters,) = per_axis(num_filters, 1, "num_filters")
    code_shape = (filters, *n)
    pooling = None if pool is None else per_axis(pool, len(n), "pool")
    size = support_size(k, code_shape, pooling)
    kind = float_dtype(dtype)
    block_key, shift_key, value_key = jax.random.split(key, 3)
    blocks = _choose(block_key, num_blocks(code_shape, pooling), size)
    return SparseCode(
        blocks=blocks,
        shifts=_place(shift_key, blocks, n, pooling),
        values=_draw_values(value_key, size, values, kind),
        code_shape=code_shape,
        pool=pooling,
    )


def shuffle(key: PRNGKeyArray, code: SparseCode) -> SparseCode:
    """Return the code with its entries in uniformly random order: its first entries are then a random subset.

    The order is that of 32-bit random words; equal ones (probability below k^2 / 2^33) keep theirs.
    """
    order = jax.random.permutation(key, code.size)
    return dataclasses.replace(code, blocks=code.blocks[order], shifts=code.shifts[order], values=code.values[order])


def leading(code: SparseCode, count: int | Int[Array, ""]) -> SparseCode:
    """Return the code with the values of all but its first ``count`` entries set to zero; ``count`` may be traced."""
    slots = jnp.arange(code.size, dtype=np.int32)
    return dataclasses.replace(code, values=jnp.where(slots < jnp.asarray(count).astype(np.int32), code.values, 0.0))


def sample_code_pair(
    key: PRNGKeyArray,
    num_filters: int,
    shifts: PerAxis,
    k: float,
    *,
    pool: PerAxis | None = None,
    values: str = "uniform",
    coefficients: tuple[float | Array, float | Array] = (1.0, 1.0),
    dtype: jax.typing.DTypeLike | None = None,
) -> SparseCode:
    """Draw z = alpha_1 z_1 + alpha_2 z_2 of M_k^2, z_1 and z_2 independent in M_k (Gilbert et al. 2017, 2.3).

    Args:
        key: random key.
        num_filters: K.
        shifts: n per axis; one integer for one spatial axis.
        k: number of non-zeros of each member, or a fraction of the code's entries; static.
        pool: pooling window; None for the whole response.
        values: as in `sample_code`.
        coefficients: (alpha_1, alpha_2).
        dtype: of the values; JAX's default float for None.

    Returns:
        A code with 2k entries, first those of z_1; entries of equal position add.
    """
    members = [
        sample_code(one, num_filters, shifts, k, pool=pool, values=values, dtype=dtype)
        for one in jax.random.split(key, 2)
    ]
    scaled = [
        member.values * jnp.asarray(alpha, member.values.dtype)
        for member, alpha in zip(members, coefficients, strict=True)
    ]
    return SparseCode(
        blocks=jnp.concatenate([member.blocks for member in members]),
        shifts=jnp.concatenate([member.shifts for member in members]),
        values=jnp.concatenate(scaled),
        code_shape=members[0].code_shape,
        pool=members[0].pool,
    )


def count_supports(code_shape: tuple[int, ...], k: float, pool: PerAxis | None = None) -> SupportCount:
    """Return |M_k|, the number of supports: n^k C(K, k) for whole responses (Gilbert et al. 2017, 2.3).

    With partial regions it is the k-th elementary symmetric polynomial of the block sizes, computed exactly.

    Args:
        code_shape: (K, *n).
        k: number of non-zeros, or a fraction of the code's entries.
        pool: pooling window; None for the whole response.
    """
    size = support_size(k, code_shape, pool)
    n = tuple(code_shape[1:])
    sizes = {1: code_shape[0]}
    for length, p in zip(n, window(n, pool), strict=True):
        full, rest = divmod(length, p)
        parts = {p: full, rest: 1} if rest else {p: full}
        products: dict[int, int] = {}
        for part, times in parts.items():
            for block, count in sizes.items():
                products[part * block] = products.get(part * block, 0) + times * count
        sizes = products
    coefficients = [1]
    for block, count in sizes.items():
        factor = [math.comb(count, j) * block**j for j in range(min(count, size) + 1)]
        coefficients = [
            sum(coefficients[i] * factor[j - i] for i in range(len(coefficients)) if 0 <= j - i < len(factor))
            for j in range(min(len(coefficients) + len(factor) - 1, size + 1))
        ]
    exact = coefficients[size]
    return SupportCount(exact, math.log(exact))


def _shifts(shifts: PerAxis) -> tuple[int, ...]:
    rank = 1 if isinstance(shifts, int | np.integer) else len(shifts)
    return per_axis(shifts, rank, "shifts")


def _choose(key: PRNGKeyArray, blocks: int, k: int) -> Int[Array, " k"]:
    """Draw k of ``blocks`` numbers uniformly without replacement, in ascending order."""
    if k == blocks:
        return jnp.arange(blocks, dtype=np.int32)
    if k > FLOYD_LIMIT:
        words = jax.random.bits(key, (2, blocks), np.uint32)
        *_, order = jax.lax.sort((words[0], words[1], jnp.arange(blocks, dtype=np.int32)), num_keys=2)
        return jnp.sort(order[:k])
    # Floyd: for j = blocks - k, ..., blocks - 1 take a number t <= j, or j itself where t is taken already.
    last = jnp.arange(blocks - k, blocks, dtype=np.int32)
    draws = jax.random.randint(key, (k,), 0, last + 1, np.int32)

    def step(index: int | Array, chosen: Array) -> Array:
        draw = draws[index]
        return chosen.at[index].set(jnp.where(jnp.any(chosen == draw), last[index], draw))

    return jnp.sort(jax.lax.fori_loop(0, k, step, jnp.full((k,), -1, np.int32)))


def _place(
    key: PRNGKeyArray, blocks: Int[Array, " k"], shifts: tuple[int, ...], pool: tuple[int, ...] | None
) -> Int[Array, "k rank"]:
    """Draw a uniform shift inside every block; partial regions have fewer."""
    count = regions(shifts, pool)
    region = jnp.unravel_index(blocks % math.prod(count), count)
    corner = jnp.stack(region, axis=-1) * np.asarray(window(shifts, pool), np.int32).reshape(1, -1)
    end = np.asarray(shifts, np.int32).reshape(1, -1)
    width = jnp.minimum(end - corner, np.asarray(window(shifts, pool), np.int32).reshape(1, -1))
    return corner + jax.random.randint(key, width.shape, 0, width, np.int32)


def _draw_values(key: PRNGKeyArray, k: int, values: str, dtype: jnp.dtype) -> Float[Array, " k"]:
    if values == "uniform":
        return jax.random.uniform(key, (k,), dtype, -1.0, 1.0)
    if values == "gaussian":
        return jax.random.normal(key, (k,), dtype)
    if values == "signs":
        return jax.random.rademacher(key, (k,), dtype)
    raise ValueError(f"expected values to be 'uniform', 'gaussian' or 'signs', got {values!r}")
