"""CIFAR's python version: batches of labels and an array, and lists of names, in pickles of which nothing is run."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from cnninv_jax.data._plain_pickle import (
    DTYPE,
    FROM_BUFFER,
    NDARRAY,
    RECONSTRUCT,
    Made,
    Named,
    PickleRefused,
    read_plain,
)
from cnninv_jax.data.errors import CifarError, brief

_PIXELS = 3 * 32 * 32
#: Labels outside of these are no labels of anything.
_LABELS = range(-(2**31), 2**31)


def python_records(
    content: bytes, name: str, coarse: bool
) -> tuple[UInt8[np.ndarray, "N 3072"], Int[np.ndarray, "N labels"]]:
    """Return pixels and labels of a batch, the superclass first where there are two.

    Args:
        content: of the file.
        name: of the file, for errors.
        coarse: whether there are superclasses.

    Returns:
        Pixels, a view of ``content``, and labels as they stand there.

    Raises:
        CifarError: no pickle, one that would run something, or not the arrays of CIFAR.
    """
    held = _mapping(content, name)
    pixels = _pixels(held.get("data"), name)
    keys = ("coarse_labels", "fine_labels") if coarse else ("labels",)
    columns = [_labels(held.get(key), key, name, len(pixels)) for key in keys]
    return pixels, np.stack(columns, axis=1)


def python_names(content: bytes, name: str) -> dict[str, tuple[str, ...]]:
    """Return the lists of names of classes, by what they are called in the file.

    Raises:
        CifarError: see `python_records`.
    """
    lists = {key: value for key, value in _mapping(content, name).items() if key.endswith("label_names")}
    for key, value in lists.items():
        if not (isinstance(value, list) and all(isinstance(entry, (bytes, str)) for entry in value)):
            raise CifarError(
                f"expected {key[:64]!r} of {name} to be a list of names, and it is not: get the file again"
            )
    return {
        key: tuple(entry if isinstance(entry, str) else entry.decode("utf-8", "replace") for entry in value)
        for key, value in lists.items()
    }


def _mapping(content: bytes, name: str) -> dict[str, Any]:
    try:
        held = read_plain(content)
    except PickleRefused as error:
        raise CifarError(
            f"expected {name} to be a file of CIFAR's python version, and it is not ({brief(error)}): get it again, or "
            "take the binary version"
        ) from error
    if not isinstance(held, dict):
        raise CifarError(f"expected {name} to hold a dictionary, got {type(held).__name__}: get it again")
    return held


def _pixels(held: Any, name: str) -> UInt8[np.ndarray, "N 3072"]:
    found = _array_parts(held)
    if found is None:
        raise CifarError(
            f"expected {name} to hold data, uint8 [N, 3072], and it does not: get it again, or take the binary version"
        )
    shape, fortran, raw = found
    if shape[1] != _PIXELS or shape[0] < 1 or len(raw) != shape[0] * _PIXELS:
        raise CifarError(
            f"expected {name} to hold {_PIXELS:,} bytes for each of its images, got {len(raw):,} bytes in all for an "
            "array of another size: get it again"
        )
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _array_parts(held: Any) -> tuple[tuple[int, int], bool, bytes | memoryview] | None:
    """Return shape, whether columns come first, and the numbers of a plain matrix of bytes; None for anything else."""
    match held:
        case Made(maker, (Named(name), *_), (_, shape, dtype, bool() | int() as fortran, raw)):
            plain = maker in RECONSTRUCT and name == NDARRAY
        case Made(maker, (raw, dtype, shape, ("C" | "F") as order, *_), None):
            plain, fortran = maker in FROM_BUFFER, order == "F"
        case _:
            return None
    match dtype:
        # A state says byte order, fields and the like: of these bytes have none.
        case Made(made_by, ("u1" | "|u1" | b"u1" | b"|u1", *_), None | (_, _, None, None, None, *_)):
            plain = plain and made_by == DTYPE
        case _:
            return None
    match shape:
        case (int() as rows, int() as columns):
            sized = plain and isinstance(raw, (bytes, memoryview))
            return ((rows, columns), bool(fortran), raw) if sized else None
    return None


def _labels(held: Any, key: str, name: str, count: int) -> Int[np.ndarray, " N"]:
    whole = isinstance(held, list) and all(type(label) is int and label in _LABELS for label in held)
    if not whole or len(held) != count:
        what = f"{len(held)} entries" if isinstance(held, list) else "none"
        raise CifarError(
            f"expected {name} to hold {key}, one whole number for each of {count} images, got {what}: get it again"
        )
    return np.array(held, np.int32)


__all__ = ["python_names", "python_records"]
