"""Batches in parts: on a CPU a loop over small parts is quicker than one pass over maps that no cache holds.

Fresh memory costs a CPU more than arithmetic does (its pages come from the system one by one); a part's maps are
overwritten by those of the next part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from cnninv_jax._typing import Array

Tree = TypeVar("Tree")

#: Pixels that go through a network at a time.
_PIXELS = 32 * 32 * 32


def in_strips(function: Callable[..., Tree], size: int, *batches: Any) -> Tree:
    """Return ``function(*batches)``, computed part after part on a CPU, whole elsewhere.

    Args:
        function: of pytrees whose arrays have one leading axis of examples that know nothing of each other, such as a
            network at evaluation; its results have it, too.
        size: most examples of a part; static.
        *batches: pytrees of arrays of one length.

    Raises:
        ValueError: a size below 1.

    Cost: results once, and the memory that one part takes.
    """
    if size < 1:
        raise ValueError(f"expected parts of at least 1 example, got {size}")
    count = _length(batches)
    if count <= size or jax.default_backend() != "cpu":
        return function(*batches)
    part, whole = split(count, size)
    done = lax.map(lambda parts: function(*parts), _parts(batches, part, whole))
    done = jax.tree.map(lambda leaf: leaf.reshape(whole * part, *leaf.shape[2:]), done)
    if whole * part == count:
        return done
    rest = function(*_rest(batches, part, whole))
    return jax.tree.map(lambda first, last: jnp.concatenate([first, last]), done, rest)


def strip_of(shape: Sequence[int]) -> int:
    """Return how many images [B, H, W, C] go through a network at a time: as many as have 32 times 32 x 32 pixels."""
    return max(1, _PIXELS // (shape[1] * shape[2]))


def sum_over_strips(function: Callable[..., Array], size: int, *batches: Any) -> Array:
    """Return the sum of ``function`` over parts of the batch, none of them larger than ``size``; on any device."""
    count = _length(batches)
    if count <= size:
        return function(*batches)
    part, whole = split(count, size)
    parts = _parts(batches, part, whole)
    kind = jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], parts))
    start = jnp.zeros(kind.shape, kind.dtype) if whole * part == count else function(*_rest(batches, part, whole))
    total, _ = lax.scan(lambda held, parts: (held + function(*parts), None), start, parts)
    return total


def split(count: int, size: int) -> tuple[int, int]:
    """Return the length of parts and how many of them are whole: none longer than ``size``, the last one shorter.

    Parts of one length are preferred if they need not be shorter than half of ``size``.
    """
    even = next((part for part in range(size, size // 2, -1) if count % part == 0), None)
    if even is not None:
        return even, count // even
    part = -(-count // -(-count // size))
    return part, count // part


def _length(batches: Any) -> int:
    return jax.tree.leaves(batches)[0].shape[0]


def _parts(batches: Any, part: int, whole: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[: whole * part].reshape(whole, part, *leaf.shape[1:]), batches)


def _rest(batches: Any, part: int, whole: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[whole * part :], batches)


__all__ = ["in_strips", "split", "strip_of", "sum_over_strips"]
