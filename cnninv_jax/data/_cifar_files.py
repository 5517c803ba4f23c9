"""Where the files of CIFAR are: in a folder, in the folder around it, or in the archive they are distributed in."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cnninv_jax.data.errors import CifarError, brief

#: No official file and no official archive is larger: 155 MB and 185 MB. More is not read.
_MOST_BYTES, _MOST_IN_ARCHIVE = 200 << 20, 512 << 20
_MOST_MEMBERS = 64
#: An official file holds so many images.
_IN_A_BATCH, _IN_TRAIN = 10_000, 50_000

#: Reads a file whole; at most once.
Reader = Callable[[], bytes]


@dataclass(frozen=True)
class Format:
    """One of the four ways in which the data sets are distributed.

    Attributes:
        name: of the data set.
        folder: what the official folder is called.
        python: whether its files are pickles.
        train: files of the training set, in order.
        test: file of the test set.
        names: files with the names of classes.
        classes: how many.
        coarse: how many superclasses; 0 where there are none.
    """

    name: str
    folder: str
    python: bool
    train: tuple[str, ...]
    test: str
    names: tuple[str, ...]
    classes: int
    coarse: int

    @property
    def files(self) -> tuple[str, ...]:
        """Files with images."""
        return (*self.train, self.test)

    def usual(self, file: str) -> int:
        """Return how many images the official file has."""
        return _IN_TRAIN if self.name == "cifar100" and file == self.train[0] else _IN_A_BATCH


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
FORMATS = (
    Format("cifar10", "cifar-10-batches-bin", False, tuple(f"{batch}.bin" for batch in _BATCHES), "test_batch.bin",
           ("batches.meta.txt",), 10, 0),
    Format("cifar100", "cifar-100-binary", False, ("train.bin",), "test.bin",
           ("fine_label_names.txt", "coarse_label_names.txt"), 100, 20),
    Format("cifar10", "cifar-10-batches-py", True, _BATCHES, "test_batch", ("batches.meta",), 10, 0),
    Format("cifar100", "cifar-100-python", True, ("train",), "test", ("meta",), 100, 20),
)  # fmt: skip
_KNOWN = frozenset(name for form in FORMATS for name in (*form.files, *form.names))


def find_files(path: Path, shown: str) -> tuple[Format, dict[str, Reader]]:
    """Return the format of the one data set at ``path``, and readers of its files.

    Args:
        path: folder, the folder around it, or archive (.tar.gz or .tar), which is read into memory.
        shown: what the user called it.

    Raises:
        CifarError: none, several, or one with files missing; an archive that is damaged or of something else.
    """
    try:
        groups = _archive(path) if path.is_file() else _folders(path)
    except OSError as error:
        raise CifarError(f"{shown!r} cannot be read ({brief(error)}): check the path and its permissions") from error
    found = [(form, files) for files in groups for form in FORMATS if any(name in files for name in form.files)]
    whole = [(form, files) for form, files in found if all(name in files for name in form.files)]
    if not found:
        raise CifarError(
            f"{shown!r} holds no CIFAR: expected {FORMATS[0].train[0]} and the like of "
            f"{', '.join(form.folder for form in FORMATS)}; name such a folder, or the archive"
        )
    if len(whole) > 1:
        raise CifarError(
            f"expected one data set in {shown!r}, got {' and '.join(form.folder for form, _ in whole)}: name the "
            "folder or the archive of one of them"
        )
    if not whole:
        form, files = max(found, key=lambda pair: sum(name in pair[1] for name in pair[0].files))
        missing = ", ".join(name for name in form.files if name not in files)
        raise CifarError(f"{shown!r} is no whole {form.folder}: {missing} missing; unpack the archive again")
    return whole[0]


def _folders(path: Path) -> Iterable[dict[str, Reader]]:
    """Return readers of the files of the folder itself, and of each official one inside it."""
    inside = [path / form.folder for form in FORMATS if (path / form.folder).is_dir()]
    return [
        {file.name: _file_reader(file) for file in place.iterdir() if file.name in _KNOWN and file.is_file()}
        for place in (path, *inside)
    ]


def _file_reader(file: Path) -> Reader:
    def read() -> bytes:
        try:
            with file.open("rb") as stream:
                content = stream.read(min(file.stat().st_size, _MOST_BYTES) + 1)
        except OSError as error:
            raise CifarError(f"{str(file)!r} cannot be read ({brief(error)}): check its permissions") from error
        if len(content) > _MOST_BYTES:
            raise CifarError(f"{str(file)!r} is larger than any file of CIFAR: name the folder of the official files")
        return content

    return read


class _Bounded(io.RawIOBase):
    """A stream that refuses to go on for ever: a few bytes of gzip may stand for gigabytes."""

    def __init__(self, stream: gzip.GzipFile | IO[bytes], name: str) -> None:
        self.stream, self.name, self.left = stream, name, _MOST_IN_ARCHIVE

    def read(self, size: int = -1, /) -> bytes:
        found = self.stream.read(size)
        self.left -= len(found)
        if self.left < 0:
            raise CifarError(f"{self.name!r} holds more than CIFAR's archives do; name one of those")
        return found


def _archive(path: Path) -> Iterable[dict[str, Reader]]:
    """Return readers of what the archive's folders hold; nothing is written to disk."""
    held: dict[str, dict[str, bytes]] = defaultdict(dict)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = _Bounded(gzip.GzipFile(fileobj=file) if packed else file, path.name)
            # One pass, so that no header makes it look anywhere else.
            with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
                for count, member in enumerate(archive):
                    if count >= _MOST_MEMBERS or member.size > _MOST_BYTES:
                        raise CifarError(
                            f"{path.name!r} holds more than CIFAR's archives do ({member.name[:80]!r}); name one of "
                            "those"
                        )
                    folder, _, name = member.name.rpartition("/")
                    # Links are not followed, and what is not known by name is not read.
                    plain = member.isreg() and not member.issparse() and name in _KNOWN
                    content = archive.extractfile(member) if plain else None
                    if content is not None:
                        held[folder][name] = content.read()
            while stream.read(1 << 20):  # to the end, where gzip compares its checksum
                pass
    except (CifarError, OSError) as error:
        if isinstance(error, gzip.BadGzipFile):
            raise _unreadable(path, error) from error
        raise
    except Exception as error:  # tarfile and zlib have their own errors, and damaged headers cause any other
        raise _unreadable(path, error) from error
    return [{name: lambda files=files, name=name: files.pop(name) for name in files} for files in held.values()]


def _unreadable(path: Path, error: Exception) -> CifarError:
    return CifarError(
        f"expected {path.name!r} to be an archive such as cifar-10-binary.tar.gz, and it cannot be read "
        f"({brief(error)}): download it again, or name the folder it was unpacked to"
    )


__all__ = ["FORMATS", "Format", "Reader", "find_files"]
