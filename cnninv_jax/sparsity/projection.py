"""The structured projection M(h, k) of Gilbert et al. 2017 (2.3, eqs. 2 and 3) and the pooling it is made of.

M = block-sparsify(upsample(max-pool(h), switches), k): in every block the entry of largest magnitude, then
the k blocks of largest magnitude. That is the l2 projection onto M_k. Ties go to the lowest index.

k is a static integer, a static fraction of the code's entries, or a traced integer. A traced k cannot be
refused: one outside [0, blocks] is clipped to it.

NaN outranks every finite number: a NaN wins its block and its block is kept, so that a spoilt input shows in
the result.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, per_axis, wider
from cnninv_jax._typing import Array, Bool, Code, Float, Int, PerAxis, Shaped
from cnninv_jax.sparsity.codes import SparseCode, num_blocks, regions, support_size, window

#: Number of non-zeros: a static integer, a static fraction of the entries, or a traced integer.
Sparsity: TypeAlias = float | Int[Array, ""]


def max_pool(
    h: ArrayLike, pool: PerAxis | None = None, *, nonnegative: bool = False
) -> tuple[Float[Array, " K *regions"], Int[Array, " K *regions"]]:
    """Return the winner of every block: its value, with sign, and its position (Gilbert et al. 2017, 2.2).

    Args:
        h: hidden units, [K, *n].
        pool: window p, one integer or one per axis; None pools the whole response.
        nonnegative: the largest value wins in place of the largest magnitude; negatives count as zero.

    Returns:
        Values and switches, both [K, *regions]. A switch is the winner's flat index into n (row-major,
        int32), the lowest among equals; in a block of zeros it is the block's first.
    """
    code = _code(h)
    windows = _windows(_scores(code, nonnegative), pool)
    winner = jnp.argmax(windows, axis=-1)[..., None]
    values = jnp.take_along_axis(_windows(_visible(code, nonnegative), pool), winner, axis=-1)
    positions = jnp.broadcast_to(_positions(code.shape[1:], pool)[None], windows.shape)
    return values[..., 0], jnp.take_along_axis(positions, winner, axis=-1)[..., 0]


def switches_of(z: ArrayLike, pool: PerAxis | None = None) -> Int[Array, " K *regions"]:
    """Return where the non-zero of largest magnitude of each block stands, -1 where the block is all zero.

    Args:
        z: code, [K, *n]; that of M_k gives the switches of `project_known` for a known support.
        pool: pooling window; None for the whole response.
    """
    values, switches = max_pool(z, pool)
    return jnp.where(values == 0, -1, switches)


def unpool(
    values: Float[Array, " K *regions"], switches: Int[Array, " K *regions"], shifts: PerAxis
) -> Float[Array, " K *n"]:
    """Return [K, *n] with each value at its switch, zeros elsewhere (upsample of Gilbert et al. 2017, eq. 2).

    Args:
        values: pooled values, [K, *regions].
        switches: flat indices into n, [K, *regions]; a negative one drops its value.
        shifts: n per axis; one integer for one spatial axis.

    Raises:
        ValueError: values and switches differ in shape.
    """
    if values.shape != switches.shape:
        raise ValueError(f"expected switches of the values' shape {values.shape}, got {switches.shape}")
    rank = values.ndim - 1
    n = per_axis(shifts, rank, "shifts")
    size = math.prod(n)
    flat = switches.reshape(switches.shape[0], -1)
    columns = jnp.where(flat < 0, size, flat)
    rows = jnp.arange(values.shape[0], dtype=columns.dtype)[:, None]
    dense = jnp.zeros((values.shape[0], size), values.dtype)
    dense = dense.at[rows, columns].add(values.reshape(flat.shape), mode="drop")
    return dense.reshape(values.shape[0], *n)


def project(h: ArrayLike, k: Sparsity, *, pool: PerAxis | None = None, nonnegative: bool = False) -> Code:
    """Return M(h, k), the l2 projection onto M_k (Gilbert et al. 2017, eq. 2 with max-pooling switches).

    Args:
        h: hidden units, [K, *n].
        k: number of non-zeros: integer, fraction of the entries, or traced integer.
        pool: pooling window; None for the whole response.
        nonnegative: project onto the non-negative members of M_k (a ReLU ahead of the pooling).

    Returns:
        Code of h's shape and dtype with at most k non-zeros, at most one per block.

    Raises:
        ValueError: a static k not between 1 and the number of blocks.
    """
    code = _code(h)
    scores = _windows(_scores(code, nonnegative), pool)
    winner = jnp.argmax(scores, axis=-1)
    keep = _largest(jnp.max(scores, axis=-1), k, code.shape, pool)
    local = jnp.arange(scores.shape[-1], dtype=winner.dtype).reshape((1,) * winner.ndim + (-1,))
    mask = (local == winner[..., None]) & keep[..., None]
    return jnp.where(_dense(mask, code.shape[1:], pool), _visible(code, nonnegative), 0.0)


def project_known(
    h: ArrayLike,
    k: Sparsity,
    switches: Int[Array, " K *regions"] | None = None,
    *,
    pool: PerAxis | None = None,
) -> Code:
    """Return M_known(h, k): h at given switches, the k largest of them (Gilbert et al. 2017, eq. 3).

    Args:
        h: hidden units, [K, *n].
        k: number of non-zeros: integer, fraction of the entries, or traced integer.
        switches: flat index into n of the entry each block keeps, [K, *regions], such as `switches_of` a
            known code; a negative one, or one outside its block, keeps nothing there. None takes h's own
            max-pooling switches, which makes M_known the same as M. Entries elsewhere are not read.
        pool: pooling window; None for the whole response.

    Returns:
        Code of h's shape and dtype.

    Raises:
        ValueError: switches of another shape, or a static k not between 1 and the number of blocks.
    """
    code = _code(h)
    if switches is None:
        return project(code, k, pool=pool)
    expected = (code.shape[0], *regions(code.shape[1:], pool))
    if switches.shape != expected:
        raise ValueError(f"expected switches of shape (K, *regions) = {expected}, got {switches.shape}")
    positions = _positions(code.shape[1:], pool)[None]
    given = positions.astype(switches.dtype) == switches[..., None]
    given &= positions >= 0
    scores = jnp.max(jnp.where(given, _windows(jnp.abs(code), pool), 0.0), axis=-1)
    mask = given & _largest(scores, k, code.shape, pool)[..., None]
    return jnp.where(_dense(mask, code.shape[1:], pool), code, 0.0)


def project_fixed(h: ArrayLike, k: Sparsity, *, pool: PerAxis | None = None) -> Code:
    """Return M_fixed(h, k): the k largest pooled values on the first element of their region (2.3).

    Args:
        h: hidden units, [K, *n].
        k: number of non-zeros: integer, fraction of the entries, or traced integer.
        pool: pooling window; None for the whole response.

    Returns:
        Code of h's shape and dtype; a value stands at the lowest index (1-D) or top left (2-D) of its region.

    Raises:
        ValueError: a static k not between 1 and the number of blocks.
    """
    code = _code(h)
    values, _ = max_pool(code, pool)
    kept = jnp.where(_largest(jnp.abs(values), k, code.shape, pool), values, 0.0)[..., None]
    size = math.prod(window(code.shape[1:], pool))
    first = jax.lax.pad(kept, jnp.zeros((), kept.dtype), [(0, 0, 0)] * (kept.ndim - 1) + [(0, size - 1, 0)])
    return _dense(first, code.shape[1:], pool)


def project_sparse(h: ArrayLike, k: float, *, pool: PerAxis | None = None, nonnegative: bool = False) -> SparseCode:
    """Return M(h, k) in sparse form, entries in descending order of magnitude.

    Args:
        h: hidden units, [K, *n].
        k: number of non-zeros or fraction of the entries; static.
        pool: pooling window; None for the whole response.
        nonnegative: as in `project`.

    Returns:
        k entries; those of all-zero blocks have value zero.

    Raises:
        ValueError: k not between 1 and the number of blocks.
    """
    code = _code(h)
    n = code.shape[1:]
    size = support_size(k, code.shape, pool)
    values, switches = max_pool(code, pool, nonnegative=nonnegative)
    _, blocks = jax.lax.top_k(_ranking(jnp.abs(values)).ravel(), size)
    return SparseCode(
        blocks=blocks.astype(np.int32),
        shifts=jnp.stack(jnp.unravel_index(switches.ravel()[blocks], n), axis=-1).astype(np.int32),
        values=values.ravel()[blocks],
        code_shape=code.shape,
        pool=None if pool is None else per_axis(pool, len(n), "pool"),
    )


def _code(h: ArrayLike) -> Code:
    code = as_float(h)
    if code.ndim < 2 or 0 in code.shape:
        raise ValueError(f"expected a non-empty code of shape [K, *n], got {code.shape}; use jax.vmap for a batch")
    return code


def _visible(code: Code, nonnegative: bool) -> Code:
    """Return what may be kept: the code, or its positive part (NaN stays NaN)."""
    return jnp.maximum(code, 0.0) if nonnegative else code


def _scores(code: Code, nonnegative: bool) -> Code:
    return jnp.abs(_visible(code, nonnegative))


def _windows(array: Shaped[Array, " K *n"], pool: PerAxis | None) -> Shaped[Array, " K *regions p"]:
    """Cut [K, *n] into row-major windows, one a region; what a partial one lacks is -inf (never a winner)."""
    n = array.shape[1:]
    p, count = window(n, pool), regions(n, pool)
    missing = [(0, 0, 0), *((0, r * w - size, 0) for r, w, size in zip(count, p, n, strict=True))]
    if any(width != (0, 0, 0) for width in missing):
        array = jax.lax.pad(array, jnp.asarray(-np.inf, array.dtype), missing)
    split = array.reshape(array.shape[0], *(size for pair in zip(count, p, strict=True) for size in pair))
    rank = len(n)
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2))
    return split.transpose(order).reshape(array.shape[0], *count, math.prod(p))


def _dense(
    windows: Shaped[Array, " K *regions p"], shifts: tuple[int, ...], pool: PerAxis | None
) -> Shaped[Array, " K *n"]:
    """Undo `_windows`."""
    p, count = window(shifts, pool), regions(shifts, pool)
    rank = len(shifts)
    order = (
        0,
        *(axis for pair in zip(range(1, rank + 1), range(rank + 1, 2 * rank + 1), strict=True) for axis in pair),
    )
    merged = windows.reshape(windows.shape[0], *count, *p).transpose(order)
    full = merged.reshape(windows.shape[0], *(r * w for r, w in zip(count, p, strict=True)))
    return full[(slice(None), *(slice(size) for size in shifts))]


def _positions(shifts: tuple[int, ...], pool: PerAxis | None) -> Int[np.ndarray, " *regions p"]:
    """Return the flat index into n of every window element, -1 where a partial region has none."""
    p, count = window(shifts, pool), regions(shifts, pool)
    flat = np.arange(math.prod(shifts), dtype=np.int32).reshape(shifts)
    missing = [(0, r * w - size) for r, w, size in zip(count, p, shifts, strict=True)]
    padded = np.pad(flat, missing, constant_values=-1)
    split = padded.reshape([size for pair in zip(count, p, strict=True) for size in pair])
    rank = len(shifts)
    return split.transpose(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)).reshape(*count, math.prod(p))


def _ranking(magnitudes: Array) -> Array:
    """NaN ranks with infinity, so that no backend's ordering of NaN matters."""
    return jnp.where(jnp.isnan(magnitudes), np.inf, magnitudes)


def _largest(
    magnitudes: Float[Array, " K *regions"], k: Sparsity, code_shape: tuple[int, ...], pool: PerAxis | None
) -> Bool[Array, " K *regions"]:
    """Mark the k blocks of largest magnitude, the lower index first among equals."""
    ranking = _ranking(magnitudes).ravel()
    if isinstance(k, jax.Array):
        if k.ndim or not jnp.issubdtype(k.dtype, jnp.integer):
            raise ValueError(
                f"expected a traced k to be an integer scalar, got shape {k.shape} and dtype {k.dtype}; "
                "a fraction must be a Python float"
            )
        return _most(ranking, k).reshape(magnitudes.shape)
    size = support_size(k, code_shape, pool)
    if size == num_blocks(code_shape, pool):
        return jnp.ones(magnitudes.shape, bool)
    _, order = jax.lax.top_k(ranking, size)
    return jnp.zeros(ranking.shape, bool).at[order].set(True).reshape(magnitudes.shape)


def _most(ranking: Float[Array, " blocks"], k: Int[Array, ""]) -> Bool[Array, " blocks"]:
    """Mark the k largest of numbers of at least 0, the lower index first among equals, for a traced k.

    The k-th largest is found by halving the range of their bits, which order as the numbers do: as many counts as bits,
    where a sort takes ten times as long on a CPU.
    """
    wide = ranking.astype(wider(ranking.dtype, np.float32)) + 0.0  # no zero has a sign
    kind = np.int32 if wide.dtype.itemsize == 4 else np.int64
    bits = jax.lax.bitcast_convert_type(wide, kind)
    count = k.astype(np.int32)

    def halve(_: int | Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2 + (high - low) % 2
        enough = jnp.sum(bits >= middle, dtype=np.int32) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    ends = (jnp.zeros((), kind), jnp.asarray(np.asarray(np.inf, wide.dtype).view(kind)))
    last, _ = jax.lax.fori_loop(0, 8 * wide.dtype.itemsize, halve, ends)
    more, equal = bits > last, bits == last
    left = count - jnp.sum(more, dtype=np.int32)
    return more | (equal & (jnp.cumsum(equal, dtype=np.int32) <= left))
