"""Caffe's binary ``.caffemodel``: a protocol buffer, of which layers' names and blobs are read and nothing else.

The numbers of the fields are those of Caffe's ``caffe.proto``: a net holds layers (field 100, or 2 in files of 2014),
a layer its name (1, formerly 4) and blobs (7, formerly 6), a blob its shape (7, formerly 1 to 4) and numbers (5, or 8
in double precision).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnninv_jax.data._containers import Entry, check_claim
from cnninv_jax.data.errors import FilterFileError

#: Field of a layer in the net, of its name, and of its blobs: now, and in files of 2014.
_LAYERS = {100: (1, 7), 2: (4, 6)}
_NUMBERS = {5: np.dtype("<f4"), 8: np.dtype("<f8")}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def list_blobs(path: Path) -> list[Entry]:
    """List a file's blobs in file order, named ``layer/0`` (kernel) and ``layer/1`` (bias).

    Raises:
        ValueError: bytes that are no protocol buffer.
    """
    entries = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        for number, place in _fields(buffer, 0, len(buffer)):
            if number in _LAYERS and isinstance(place, tuple):
                entries += _layer(path, buffer, place, *_LAYERS[number])
    if not entries:
        raise ValueError("no layer with blobs")
    return entries


def _layer(path: Path, buffer: Any, place: tuple[int, int], name_field: int, blob_field: int) -> list[Entry]:
    name, blobs = "", []
    for number, value in _fields(buffer, *place):
        if number == name_field and isinstance(value, tuple):
            name = buffer[slice(*value)].decode("utf-8")
        elif number == blob_field and isinstance(value, tuple):
            blobs.append(value)
    return [_blob(path, buffer, f"{name}/{index}", blob) for index, blob in enumerate(blobs)]


def _blob(path: Path, buffer: Any, name: str, place: tuple[int, int]) -> Entry:
    shape: tuple[int, ...] | None = None
    old = [1, 1, 1, 1]
    numbers, dtype = (0, 0), _NUMBERS[5]
    for number, value in _fields(buffer, *place):
        if number == 7 and isinstance(value, tuple):
            shape = tuple(_dimensions(buffer, *value))
        elif 1 <= number <= 4 and isinstance(value, int):
            old[number - 1] = value
        elif number in _NUMBERS and isinstance(value, tuple):
            numbers, dtype = value, _NUMBERS[number]
    if shape is None:
        # Old files have four axes for everything, ones in front of what is a vector or a matrix.
        lead = 3 if old[:3] == [1, 1, 1] else 2 if old[:2] == [1, 1] else 0
        shape = tuple(old[lead:])

    def read() -> np.ndarray:
        begin, end = numbers
        check_claim(path, f"blob {name!r}", shape, dtype.itemsize, end - begin)
        with path.open("rb") as file:
            file.seek(begin)
            values = np.frombuffer(file.read(end - begin), dtype)
        if values.size != int(np.prod(shape)):
            raise FilterFileError(
                f"blob {name!r} of {str(path)!r} should have {shape} numbers, but has {values.size}: "
                "the file is damaged, so copy or download it again"
            )
        return values.reshape(shape)

    return Entry(name, shape, dtype, read)


def _dimensions(buffer: Any, begin: int, end: int) -> Iterator[int]:
    """Return the lengths of the axes, which may be written together or one by one."""
    for number, value in _fields(buffer, begin, end):
        if number != 1:
            continue
        if isinstance(value, int):
            yield value
        else:
            at, stop = value
            while at < stop:
                length, at = _varint(buffer, at, stop)
                yield length


def _fields(buffer: Any, begin: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Return every field's number, and its integer or the place of its bytes."""
    at = begin
    while at < end:
        tag, at = _varint(buffer, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(buffer, at, end)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(buffer, at, end)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"field {number} of unknown kind {kind}")
        if at + length > end:
            raise ValueError(f"field {number} is cut short")
        yield number, (at, at + length)
        at += length


def _varint(buffer: Any, at: int, end: int) -> tuple[int, int]:
    """Return the integer that begins at a place, seven bits a byte, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is cut short")


__all__ = ["list_blobs"]
