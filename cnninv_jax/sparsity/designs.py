"""Several codes at once, arranged so that the mean over them varies less than that of independent codes.

Every code of a design has by itself exactly the law of `sample_code`; only the dependence between the codes changes, so
means over a design are unbiased whatever is averaged. Two arrangements, which may be combined:

**Stratified supports** (between groups of codes): blocks come from a random permutation dealt out k at a time, so that
no two supports share a block as far as count * k <= blocks (then a new permutation is begun); the shifts of the i-th
entries of all codes are spread evenly over their blocks by a random rotation (a Latin arrangement). It costs nothing
and helps whenever codes share a filter bank: two codes that share a filter share its accidents.

**Antithetic signs** (inside a group): |W^T z| and everything made of it is the same for z and -z, so flipping all signs
gains nothing. Instead the codes of a group share support and magnitudes and differ by signs from a Sylvester-Hadamard
matrix H of order g, the size of the group: code c is z_c[i] = H[c, column(i)] v_i. Columns are orthogonal, so
sum_c z_c[i] z_c[j] = 0 for all entries of different columns: averaged over a group, |W^T z_c|^2 is sum_i v_i^2 |w_i|^2,
without cross terms, where g >= k; with g < k a cross term remains between entries i and j of equal column. v has a
random sign of its own in every entry, so that each code has its law.
The price is the shared support: sum_i v_i^2 |w_i|^2 itself is averaged over nothing. So it pays where cross terms
dominate and supports coincide anyway (k close to the number of blocks, few shifts); at the sizes of Gilbert et al.
2017, Fig. 2 (k = 10 of 96), independent or stratified codes do several times better: measure before choosing it.

The two do not meet in one group: antithetic codes share a support, stratified ones must not. Together they stratify the
groups' supports. With one group, stratified supports change nothing.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import float_dtype, per_axis
from cnninv_jax._typing import Array, Int, PerAxis, PRNGKeyArray
from cnninv_jax.sparsity.codes import (
    SparseCode,
    _draw_values,
    _shifts,
    num_blocks,
    regions,
    sample_code,
    support_size,
    window,
)


def sample_codes(
    key: PRNGKeyArray,
    count: int,
    num_filters: int,
    shifts: PerAxis,
    k: float,
    *,
    pool: PerAxis | None = None,
    values: str = "uniform",
    supports: str = "independent",
    signs: str = "independent",
    group: int | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> SparseCode:
    """Draw ``count`` members of M_k together, each with the law of `sample_code` (Gilbert et al. 2017, 2.3).

    Args:
        key: random key.
        count: number of codes; static.
        num_filters: K.
        shifts: n per axis; one integer for one spatial axis.
        k: number of non-zeros, or a fraction of the code's entries; static.
        pool: pooling window; None for the whole response.
        values: ``"uniform"`` on [-1, 1], ``"gaussian"`` N(0, 1) or ``"signs"`` (+-1 with equal probability).
        supports: ``"independent"``, or ``"stratified"``: supports of different groups share no block as far as the
            blocks reach, and their shifts are spread evenly.
        signs: ``"independent"``, or ``"antithetic"``: the codes of a group share support and magnitudes, under signs
            whose products cancel over the group.
        group: codes per antithetic group, a power of two that divides ``count``, at most 2^(k - 1) (there are no more
            sign patterns up to a common sign). None: see `group_size`.
        dtype: of the values; JAX's default float for None.

    Returns:
        A code whose arrays have a leading axis ``count`` (`jax.vmap` over it); groups are consecutive, entries in
        ascending order of blocks.

    Raises:
        ValueError: an unknown name, a group that does not fit, or k not between 1 and the number of blocks.
    """
    (total,) = per_axis(count, 1, "count")
    n = _shifts(shifts)
    (filters,) = per_axis(num_filters, 1, "num_filters")
    code_shape = (filters, *n)
    pooling = None if pool is None else per_axis(pool, len(n), "pool")
    size = support_size(k, code_shape, pooling)
    kind = float_dtype(dtype)
    if supports not in ("independent", "stratified"):
        raise ValueError(f"expected supports to be 'independent' or 'stratified', got {supports!r}")
    each = group_size(total, size, supports=supports, signs=signs, group=group)
    groups = total // each
    if supports == "independent":
        codes = jax.vmap(lambda one: sample_code(one, filters, n, size, pool=pooling, values=values, dtype=kind))(
            jax.random.split(key, groups)
        )
    else:
        block_key, shift_key, value_key = jax.random.split(key, 3)
        blocks = _dealt_blocks(block_key, groups, num_blocks(code_shape, pooling), size)
        codes = SparseCode(
            blocks=blocks,
            shifts=_latin_shifts(shift_key, blocks, n, pooling),
            values=_draw_values(value_key, groups * size, values, kind).reshape(groups, size),
            code_shape=code_shape,
            pool=pooling,
        )
    if each == 1:
        return codes
    patterns = jnp.asarray(sign_patterns(each, size), kind)
    return SparseCode(
        blocks=jnp.repeat(codes.blocks, each, axis=0),
        shifts=jnp.repeat(codes.shifts, each, axis=0),
        values=(codes.values[:, None] * patterns[None]).reshape(total, size),
        code_shape=code_shape,
        pool=pooling,
    )


def group_size(
    count: int, k: int, *, supports: str = "independent", signs: str = "independent", group: int | None = None
) -> int:
    """Return how many of ``count`` codes share a support: 1 for independent signs.

    Antithetic groups are by default the largest power of two that divides ``count`` and is at most 2^(k - 1); with
    stratified supports at most count / 2, so that there are supports to stratify.

    Raises:
        ValueError: an unknown name, or a group that is no power of two, does not divide ``count`` or exceeds 2^(k - 1).
    """
    if signs not in ("independent", "antithetic"):
        raise ValueError(f"expected signs to be 'independent' or 'antithetic', got {signs!r}")
    if signs == "independent":
        if group not in (None, 1):
            raise ValueError(f"expected no group for independent signs, got {group}; use signs='antithetic'")
        return 1
    most = 1 << min(k - 1, 30)
    if group is not None:
        (given,) = per_axis(group, 1, "group")
        if given & (given - 1) or count % given or given > most:
            raise ValueError(
                f"expected group to be a power of two that divides count = {count}, at most 2^(k - 1) = {most}, "
                f"got {given}"
            )
        return given
    largest = math.gcd(count, most)  # a power of two, as `most` is
    if supports == "stratified" and largest == count:
        largest //= 2
    if largest < 2:
        raise ValueError(
            f"expected k of at least 2 and an even number of codes for antithetic signs (with stratified supports two "
            f"groups of an even number), got k = {k} and {count} codes; take 8 codes, or independent signs"
        )
    return largest


def sign_patterns(order: int, k: int) -> Int[np.ndarray, "order k"]:
    """Return k columns of the Sylvester-Hadamard matrix H of ``order``: signs of ``order`` codes of k entries.

    H[r, c] = (-1)^popcount(r & c). Columns 0, 1, 2, 4, 8, .. come first: with them no two codes agree, or are opposite,
    in all entries. The columns repeat after ``order`` entries.
    """
    powers = [1 << bit for bit in range(order.bit_length() - 1)]
    columns = [0, *powers, *(c for c in range(order) if c & (c - 1))]
    chosen = np.asarray([columns[entry % order] for entry in range(k)])
    parity = np.bitwise_count(np.arange(order)[:, None] & chosen[None]) % 2
    return 1 - 2 * parity.astype(np.int32)


def _dealt_blocks(key: PRNGKeyArray, groups: int, blocks: int, k: int) -> Int[Array, "groups k"]:
    """Deal k blocks to every group from random permutations, each of which serves floor(blocks / k) groups."""
    per_round = blocks // k
    rounds = -(-groups // per_round)
    # Two words per block, as in `sample_code`: ties have probability below blocks^2 / 2^65.
    words = jax.random.bits(key, (2, rounds, blocks), np.uint32)
    numbers = jnp.broadcast_to(jnp.arange(blocks, dtype=np.int32)[None], (rounds, blocks))
    *_, order = jax.lax.sort((words[0], words[1], numbers), dimension=1, num_keys=2)
    dealt = order[:, : per_round * k].reshape(rounds * per_round, k)[:groups]
    return jnp.sort(dealt, axis=1)


def _latin_shifts(
    key: PRNGKeyArray, blocks: Int[Array, "groups k"], shifts: tuple[int, ...], pool: tuple[int, ...] | None
) -> Int[Array, "groups k rank"]:
    """Draw a uniform shift inside every block, the i-th entries of all groups evenly spread.

    Group g takes (U_i + floor(p_i(g) width / groups)) mod width with U_i uniform and p_i a random permutation of the
    groups, both independent from entry to entry and axis to axis. So every shift is exactly uniform in its block, and
    the offsets are as even as the width allows. A partial region, which is narrower, gets a U of its own.
    """
    groups, k = blocks.shape
    count, full = regions(shifts, pool), np.asarray(window(shifts, pool), np.int32)
    region = jnp.unravel_index(blocks % math.prod(count), count)
    corner = jnp.stack(region, axis=-1).astype(np.int32) * full.reshape(1, 1, -1)
    width = jnp.minimum(np.asarray(shifts, np.int32).reshape(1, 1, -1) - corner, full.reshape(1, 1, -1))
    start_key, order_key, own_key = jax.random.split(key, 3)
    common = jax.random.randint(start_key, (1, k, len(shifts)), 0, full.reshape(1, 1, -1), np.int32)
    order = jnp.argsort(jax.random.bits(order_key, (groups, k, len(shifts)), np.uint32), axis=0).astype(np.int32)
    start = jnp.broadcast_to(common, order.shape)
    if any(n % p for n, p in zip(shifts, full, strict=True)):
        own = jax.random.randint(own_key, order.shape, 0, width, np.int32)
        start = jnp.where(width == full.reshape(1, 1, -1), start, own)
    return corner + (start + order * width // np.int32(groups)) % width
