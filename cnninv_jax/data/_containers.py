"""The file formats filters come in: opened, listed by name, shape and dtype, and read one tensor at a time.

Sizes that a header claims are compared with the bytes that are there *before* any memory is asked for, and
nothing that could hold a pickle is opened.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from cnninv_jax.data.errors import FilterFileError, brief

#: No convolution kernel comes near this size; a header that claims more is taken for a damaged one.
LARGEST_TENSOR_BYTES = 4 * 2**30
_LONGEST_NPY_HEADER = 2**16
#: Deflate cannot shrink anything further than this.
_DEFLATE_LIMIT = 1032
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_SUFFIXES = {
    ".npy": "npy", ".npz": "npz", ".safetensors": "safetensors", ".h5": "h5", ".hdf5": "h5", ".keras": "h5",
    ".caffemodel": "caffemodel",
}  # fmt: skip
_WHAT = {
    "npy": "a NumPy .npy array",
    "npz": "a zip archive (.npz)",
    "h5": "an HDF5 file",
    "safetensors": "a safetensors file",
    "caffemodel": "a Caffe model",
    "lfs": "a Git LFS pointer, the stand-in for a file that was not fetched",
    "html": "a web page",
}


@dataclass(frozen=True)
class Entry:
    """One array in a file: what its header says, and how to read it."""

    name: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | str  # a str names a type that NumPy lacks, such as "bfloat16"
    read: Callable[[], np.ndarray]

    def describe(self) -> str:
        """``'name' (3, 3, 64, 64) float32``, for lists in messages."""
        named = f"{self.name!r} " if self.name is not None else ""
        return f"{named}{self.shape} {self.dtype}"


def open_entries(path: Path) -> tuple[str, list[Entry]]:
    """List the arrays of the file at ``path``.

    Returns:
        The kind of file (``npy``, ``npz``, ``safetensors``, ``h5`` or ``caffemodel``) and its arrays in file order.

    Raises:
        FilterFileError: if the file is missing, unreadable, damaged, a pickle, or not what its name says.
    """
    head = _first_bytes(path)
    suffix = path.suffix.lower()
    if suffix in _PICKLES or (found := _kind_of(head)) == "pickle":
        raise FilterFileError(
            f"{str(path)!r} is a pickle (PyTorch or Python), which can run code when it is opened and is "
            "therefore not read: convert it to safetensors, for example with safetensors.torch.save_file"
        )
    kind = _SUFFIXES.get(suffix)
    if kind is None:
        raise FilterFileError(
            f"{str(path)!r} has the extension {suffix!r}, but filters are read from .npy, .npz, "
            ".safetensors, .h5, .hdf5 and .caffemodel files: convert or rename it"
        )
    if suffix == ".keras" and found == "npz":
        raise FilterFileError(
            f"{str(path)!r} is a Keras archive (a zip file): unpack it and give the model.weights.h5 inside"
        )
    # An HDF5 signature may stand behind a user block, so only another format's signature speaks against .h5.
    if found is not None and found != kind:
        raise FilterFileError(
            f"{str(path)!r} should hold {_WHAT[kind]} by its name but begins like {_WHAT[found]}: "
            f"{'fetch the real file' if found in ('lfs', 'html') else 'give it the extension of its format'}"
        )
    with _reading(path, _WHAT[kind]):
        return kind, _OPENERS[kind](path)


def _first_bytes(path: Path) -> bytes:
    """Return the first 16 bytes, or say why the path is not a readable file."""
    shown = repr(str(path))
    try:
        if path.is_dir():
            raise FilterFileError(f"{shown} is a folder: give one filter file inside it")
        if not path.exists():
            near = path.parent if path.parent.is_dir() else None
            hint = "" if near else f" (the folder {str(path.parent)!r} does not exist either)"
            raise FilterFileError(f"there is no file {shown}{hint}: check the path")
        if not path.is_file():
            raise FilterFileError(f"{shown} is not a regular file: give the path of a filter file")
        with path.open("rb") as file:
            head = file.read(16)
    except FilterFileError:
        raise
    except PermissionError as error:
        raise FilterFileError(f"{shown} may not be read: change its permissions") from error
    except (OSError, ValueError) as error:
        raise FilterFileError(f"{shown} cannot be opened ({brief(error)}): check the path") from error
    if not head:
        raise FilterFileError(f"{shown} is empty (0 bytes): copy or download it again")
    return head


def _kind_of(head: bytes) -> str | None:
    """Name the format whose signature the file begins with, or None."""
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "safetensors"
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return "pickle"
    if head.startswith(b"version https://"):
        return "lfs"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "html"
    return None


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a parser raises on damaged bytes into one sentence.

    The exceptions that NumPy, zipfile, h5py and safetensors raise on damage differ between versions and
    include SyntaxError, KeyError, struct.error and RecursionError, so every Exception is caught, and only
    here. Their warnings about odd headers are silenced: the file is either read in full or refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FilterFileError:
        raise
    except MemoryError as error:
        raise FilterFileError(
            f"{str(path)!r} asks for more memory than there is: free some, or check that the file is whole"
        ) from error
    except Exception as error:
        raise FilterFileError(
            f"{str(path)!r} cannot be read as {what} ({brief(error)}): it is damaged, cut short or "
            "of another format, so copy or download it again"
        ) from error


def check_claim(path: Path, entry: str, shape: tuple[int, ...], itemsize: int, available: int | None) -> None:
    """Refuse a header that claims more bytes than the file has, or than any filter bank needs."""
    claimed = math.prod(shape) * itemsize
    if claimed > LARGEST_TENSOR_BYTES:
        raise FilterFileError(
            f"{entry} in {str(path)!r} claims {claimed} bytes, more than the {LARGEST_TENSOR_BYTES} a filter "
            "bank may have: the file is damaged or holds no filters, so check it"
        )
    if available is not None and claimed > available:
        raise FilterFileError(
            f"{entry} in {str(path)!r} should have {claimed} bytes but only {available} are there: "
            "the file is cut short or damaged, so copy or download it again"
        )


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and the header's own length, from a bounded number of bytes whatever the header claims."""
    start = io.BytesIO(stream.read(_LONGEST_NPY_HEADER))
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    elif version in ((2, 0), (3, 0)):  # 3.0 differs only in how field names are encoded
        shape, _, dtype = np.lib.format.read_array_header_2_0(start)
    else:
        raise ValueError(f"unknown .npy version {version}")
    if any(length < 0 for length in shape):
        raise ValueError(f"negative length in shape {shape}")
    return shape, dtype, start.tell()


def _open_npy(path: Path) -> list[Entry]:
    with path.open("rb") as file:
        shape, dtype, header = _npy_header(file)
    available = path.stat().st_size - header

    def read() -> np.ndarray:
        check_claim(path, "the array", shape, dtype.itemsize, available)
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    return [Entry(None, shape, dtype, _guarded(read, path, "npy"))]


def _open_npz(path: Path) -> list[Entry]:
    entries = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith("data.pkl"):
                raise FilterFileError(
                    f"{str(path)!r} is a PyTorch file with a pickle inside, which can run code when it is "
                    "opened: convert it to safetensors, for example with safetensors.torch.save_file"
                )
            if info.filename.endswith(".npy"):
                entries.append(_npz_entry(path, archive, info))
    return entries


def _npz_entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as member:
        shape, dtype, header = _npy_header(member)
    # The archive's own directory may lie too: what is stored bounds what can come out.
    growth = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_LIMIT}.get(info.compress_type)
    available = min(info.file_size, info.compress_size * growth if growth else info.file_size) - header

    def read() -> np.ndarray:
        check_claim(path, f"tensor {name!r}", shape, dtype.itemsize, available)
        with zipfile.ZipFile(path) as archive, archive.open(info.filename) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            member.read(1)  # reaching the end makes zipfile compare the checksum
            return array

    return Entry(name, shape, dtype, _guarded(read, path, "npz"))


_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip


def _open_safetensors(path: Path) -> list[Entry]:
    from safetensors import safe_open

    def entry(name: str, shape: tuple[int, ...], stored: str) -> Entry:
        named = _SAFETENSORS_DTYPES.get(stored, stored)
        dtype = named if named == "bfloat16" or stored not in _SAFETENSORS_DTYPES else np.dtype(named)

        def read() -> np.ndarray:
            itemsize = 2 if isinstance(dtype, str) else dtype.itemsize
            check_claim(path, f"tensor {name!r}", shape, itemsize, None)
            if dtype == "bfloat16":
                return _read_bfloat16(path, name, shape)
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return Entry(name, shape, dtype, _guarded(read, path, "safetensors"))

    # safe_open compares every tensor's range with its shape and with the length of the file.
    with safe_open(path, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return [entry(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()]


def _read_bfloat16(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Widen bfloat16, which NumPy lacks: it is the upper half of a float32, so zeros fill the lower half."""
    import json

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(length))[name]["data_offsets"]
        file.seek(8 + length + begin)
        halves = np.frombuffer(file.read(end - begin), dtype="<u2").astype(np.uint32)
    return (halves << 16).view(np.float32).reshape(shape)


def _open_h5(path: Path) -> list[Entry]:
    import h5py

    entries: list[Entry] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.shape is not None:
            entries.append(_h5_entry(path, name, node))

    with h5py.File(path, "r") as file:
        file.visititems(visit)  # hard links only: nothing outside this file is reached
    return entries


def _h5_entry(path: Path, name: str, node: Any) -> Entry:
    shape, dtype = tuple(node.shape), node.dtype
    elsewhere = node.is_virtual or bool(node.external)
    # Without chunks every byte is in the file; chunks may be compressed, or missing (the fill value is read).
    available = None if node.chunks or elsewhere else path.stat().st_size

    def read() -> np.ndarray:
        import h5py

        if elsewhere:
            raise FilterFileError(
                f"tensor {name!r} of {str(path)!r} keeps its numbers in another file: copy it into one file"
            )
        check_claim(path, f"tensor {name!r}", shape, dtype.itemsize, available)
        with h5py.File(path, "r") as file:
            return np.asarray(file[name][()])  # type: ignore[index]  # visititems found a dataset here

    return Entry(name, shape, dtype, _guarded(read, path, "h5"))


def _open_caffemodel(path: Path) -> list[Entry]:
    from cnninv_jax.data._caffemodel import list_blobs

    return [replace(entry, read=_guarded(entry.read, path, "caffemodel")) for entry in list_blobs(path)]


def _guarded(read: Callable[[], np.ndarray], path: Path, kind: str) -> Callable[[], np.ndarray]:
    def guarded() -> np.ndarray:
        with _reading(path, _WHAT[kind]):
            return read()

    return guarded


_OPENERS: dict[str, Callable[[Path], list[Entry]]] = {
    "npy": _open_npy, "npz": _open_npz, "safetensors": _open_safetensors, "h5": _open_h5,
    "caffemodel": _open_caffemodel,
}  # fmt: skip
