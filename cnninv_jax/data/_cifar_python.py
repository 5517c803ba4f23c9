"""CIFAR's python version is pickles. This reads them and calls nothing that a pickle names.

A pickle is a program. The official ones use NumPy's constructor of arrays and nothing else; here those names stand for
inert objects that write down what they are given, every other name is refused, and the array is made from the bytes.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from cnninv_jax.data.errors import CifarError, brief


class _Inert:
    """Stands for a thing of NumPy: takes its arguments and its state, does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Inert):
    """An array that was not made."""


class _DType(_Inert):
    """A type of numbers, by name."""


class _ArrayClass(_Inert):
    """``numpy.ndarray`` itself."""


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stand for ``_codecs.encode``, by which Python 3 writes bytes into old pickles."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in an unusual form")
    return text.encode("latin1")


_KNOWN = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}


# The one written in Python: its memo is a dictionary, where the C one allocates as much as a pickle names.
class _Reader(pickle._Unpickler):  # type: ignore[name-defined, misc]  # undocumented, the same since Python 3.0
    """Reads a pickle without calling anything but the inert stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in.

        Raises:
            pickle.UnpicklingError: any other name.
        """
        found = _KNOWN.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return found


def python_records(
    content: bytes, name: str, coarse: bool
) -> tuple[UInt8[np.ndarray, "N 3072"], Int[np.ndarray, "N labels"]]:
    """Return pixels and labels of a batch, the superclass first where there are two.

    Args:
        content: of the file.
        name: of the file, for errors.
        coarse: whether there are superclasses.

    Raises:
        CifarError: no pickle, one that would run something, or not the arrays of CIFAR.
    """
    held = _mapping(content, name)
    pixels = _pixels(held.get("data"), name)
    columns = [_labels(held.get(key), key, name, len(pixels)) for key in _keys(coarse)]
    return pixels, np.stack(columns, axis=1)


def python_labels(content: bytes, name: str) -> dict[str, tuple[str, ...]]:
    """Return the names of classes by what they are called in the file.

    Raises:
        CifarError: see `python_records`.
    """
    found = {}
    for key, value in _mapping(content, name).items():
        if key.endswith("label_names") and isinstance(value, list):
            found[key] = tuple(entry.decode("utf-8", "replace") if isinstance(entry, bytes) else str(entry)[:64]
                               for entry in value[:1000] if isinstance(entry, bytes | str))  # fmt: skip
    return found


def _keys(coarse: bool) -> tuple[str, ...]:
    return ("coarse_labels", "fine_labels") if coarse else ("labels",)


def _mapping(content: bytes, name: str) -> dict[str, Any]:
    try:
        held = _Reader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle raises whatever its operations raise
        raise CifarError(
            f"expected {name} to be a batch of CIFAR's python version, and it is not ({brief(error)}): get it again, "
            "or take the binary version"
        ) from error
    if not isinstance(held, dict):
        raise CifarError(f"expected {name} to hold a dictionary, got {type(held).__name__}: get it again")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key)[:64]: value for key, value in held.items()}


def _pixels(held: Any, name: str) -> UInt8[np.ndarray, "N 3072"]:
    wrong = CifarError(
        f"expected {name} to hold data, uint8 [N, 3072], and it does not: get it again, or take the binary version"
    )
    if not isinstance(held, _Array) or not isinstance(held.state, tuple) or len(held.state) != 5:
        raise wrong
    _, shape, dtype, fortran, raw = held.state
    plain = isinstance(dtype, _DType) and dtype.arguments[:1] in ((b"u1",), ("u1",), (b"|u1",), ("|u1",))
    sized = isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(side, int) for side in shape)
    if not (plain and sized and isinstance(raw, bytes) and fortran in (False, True, 0, 1)):
        raise wrong
    count, width = shape
    if width != 3072 or count < 1 or len(raw) != count * width:
        raise CifarError(
            f"expected {name} to hold 3,072 bytes for each of its images, got {len(raw):,} for shape {shape}: "
            "get it again"
        )
    flat = np.frombuffer(raw, np.uint8)
    return flat.reshape(shape, order="F" if fortran else "C")


def _labels(held: Any, key: str, name: str, count: int) -> Int[np.ndarray, " N"]:
    whole = isinstance(held, list) and all(isinstance(label, int) and -(2**31) <= label < 2**31 for label in held)
    if not whole or len(held) != count:
        what = f"{len(held)} entries" if isinstance(held, list) else "none"
        raise CifarError(
            f"expected {name} to hold {key}, one whole number for each of {count} images, got {what}: get it again"
        )
    return np.array(held, np.int32)


__all__ = ["python_labels", "python_records"]
