"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official files, checked; and a stand-in that needs no download.

The binary version is read as it is, the python version by an unpickler that calls nothing, both from a folder or from
the archive they are distributed in.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from cnninv_jax.data._cifar_python import python_labels, python_records
from cnninv_jax.data.embedded_classes import CLASSES, embedded_patches
from cnninv_jax.data.errors import CifarError, brief, did_you_mean
from cnninv_jax.data.fetch import PUBLIC_DATA_SETS, fetch_data_set

#: Numbers of one image: red, green and blue planes of 32 x 32.
PIXELS = 3 * 32 * 32
#: An official file holds so many images.
_IN_A_BATCH, _IN_TRAIN = 10_000, 50_000
#: No official file is larger; archives with more are refused unread.
_MOST_BYTES, _MOST_MEMBERS = 200 << 20, 64
_TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their classes.

    Attributes:
        images: [N, 3, 32, 32], RGB; read-only.
        labels: [N], from 0.
        coarse_labels: [N], the superclasses of CIFAR-100; None elsewhere.
    """

    images: UInt8[np.ndarray, "N 3 32 32"]
    labels: Int[np.ndarray, " N"]
    coarse_labels: Int[np.ndarray, " N"] | None = None

    def first(self, count: int | None) -> LabelledImages:
        """Return the first images."""
        coarse = None if self.coarse_labels is None else self.coarse_labels[:count]
        return LabelledImages(self.images[:count], self.labels[:count], coarse)


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """A data set for classifiers.

    Attributes:
        train: training set, in the official order.
        test: test set.
        classes: names.
        coarse_classes: names of CIFAR-100's superclasses; empty elsewhere.
        name: ``cifar10``, ``cifar100`` or ``embedded``.
        source: as it was asked for.
        notes: what was found odd, one sentence each; show them to the user.
    """

    train: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    coarse_classes: tuple[str, ...]
    name: str
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Format:
    """One of the four ways in which the data sets are distributed."""

    name: str
    python: bool
    train: tuple[str, ...]
    test: str
    names: tuple[str, ...]
    classes: int
    coarse: int

    @property
    def folder(self) -> str:
        """What the official folder is called."""
        ten = self.name == "cifar10"
        if self.python:
            return "cifar-10-batches-py" if ten else "cifar-100-python"
        return "cifar-10-batches-bin" if ten else "cifar-100-binary"

    @property
    def files(self) -> tuple[str, ...]:
        """Files with images."""
        return (*self.train, self.test)

    @property
    def labels(self) -> int:
        """Labels of one image: superclass and class in CIFAR-100."""
        return 2 if self.coarse else 1

    def usual(self, file: str) -> int:
        """Return how many images the official file has."""
        return _IN_TRAIN if self.name == "cifar100" and file == self.train[0] else _IN_A_BATCH


_FORMATS = (
    _Format("cifar10", False, tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin",
            ("batches.meta.txt",), 10, 0),
    _Format("cifar100", False, ("train.bin",), "test.bin", ("fine_label_names.txt", "coarse_label_names.txt"), 100, 20),
    _Format("cifar10", True, tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", ("batches.meta",), 10, 0),
    _Format("cifar100", True, ("train",), "test", ("meta",), 100, 20),
)  # fmt: skip


def load_cifar(
    source: str | os.PathLike[str] = "embedded", *, limit_train: int | None = None, limit_test: int | None = None
) -> ImageClasses:
    """Read CIFAR-10 or CIFAR-100, or make the stand-in.

    Args:
        source: a folder with the files of the binary or the python version, or the folder around it; a .tar.gz as it
            is distributed, which is not unpacked to disk; ``"fetch:cifar10"`` or ``"fetch:cifar100"``, which download
            the binary version once, compared with its checksum; or ``"embedded"``: ten classes of patches of
            photographs inside scikit-image (`embedded_classes`), which are no CIFAR.
        limit_train: no more than so many training images, the first of the official order (which is random, and
            class by class in turn in the stand-in).
        limit_test: the same of the test set.

    Raises:
        CifarError: nothing of the kind there; a file that is missing, cut short, or has labels out of range.

    Cost: 3 kB an image; CIFAR-10 takes 0.2 s and 184 MB.
    """
    for name, value in (("limit_train", limit_train), ("limit_test", limit_test)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise CifarError(f"expected {name} to be a positive whole number, got {value!r}")
    text = os.fspath(source)
    found = _embedded() if text == "embedded" else _read(text)
    return replace(found, train=found.train.first(limit_train), test=found.test.first(limit_test), source=text)


def _embedded() -> ImageClasses:
    train, test = (LabelledImages(*part) for part in embedded_patches())
    return ImageClasses(train, test, CLASSES, (), "embedded", "embedded")


def _read(source: str) -> ImageClasses:
    if source.startswith("fetch:"):
        path = fetch_data_set(source.removeprefix("fetch:"))
    else:
        path = Path(source).expanduser()
        if not path.exists():
            near = did_you_mean(source, ("embedded", *(f"fetch:{name}" for name in PUBLIC_DATA_SETS)))
            raise CifarError(
                f"there is no {source!r}{near}: give a folder or archive of CIFAR-10 or CIFAR-100, fetch:cifar10, "
                "fetch:cifar100 or embedded"
            )
    try:
        files = _archive(path) if path.is_file() else _folder(path)
    except OSError as error:
        raise CifarError(f"{source!r} cannot be read ({brief(error)}): check the path and its permissions") from error
    form = max(_FORMATS, key=lambda form: sum(name in files for name in form.files))
    missing = [name for name in form.files if name not in files]
    if len(missing) == len(form.files):
        raise CifarError(
            f"{source!r} holds no CIFAR: expected {_FORMATS[0].train[0]} and the like of "
            f"{', '.join(form.folder for form in _FORMATS)}; name such a folder, or the archive"
        )
    if missing:
        raise CifarError(
            f"{source!r} is no whole {form.folder}: {', '.join(missing)} missing; unpack the archive again"
        )
    return _assembled(form, files, source)


def _assembled(form: _Format, files: Mapping[str, Callable[[], bytes]], source: str) -> ImageClasses:
    notes: list[str] = []
    parts = {name: _part(form, name, files[name], notes) for name in form.files}
    train = parts[form.train[0]]
    if len(form.train) > 1:
        chosen = [parts[name] for name in form.train]
        train = LabelledImages(
            _fixed(np.concatenate([part.images for part in chosen])),
            _fixed(np.concatenate([part.labels for part in chosen])),
        )
    classes, coarse = _class_names(form, files, notes)
    return ImageClasses(train, parts[form.test], classes, coarse, form.name, source, tuple(notes))


def _part(form: _Format, name: str, read: Callable[[], bytes], notes: list[str]) -> LabelledImages:
    try:
        content = read()
    except OSError as error:
        raise CifarError(f"{name} cannot be read ({brief(error)}): check the file") from error
    if form.python:
        images, labels = python_records(content, name, form.coarse > 0)
    else:
        size = form.labels + PIXELS
        count, rest = divmod(len(content), size)
        if rest or not count:
            raise CifarError(
                f"expected {name} to have a multiple of {size:,} bytes (label{'s' if form.coarse else ''} and pixels "
                f"of an image), got {len(content):,}: the file is cut short or of another data set; get it again"
            )
        records = np.frombuffer(content, np.uint8).reshape(count, size)
        images, labels = records[:, form.labels :], records[:, : form.labels].astype(np.int32)
    if len(images) != form.usual(name):
        notes.append(f"{name} has {len(images):,} images; the official file has {form.usual(name):,}")
    # Superclass first, as in the binary version.
    for column, most in enumerate((form.coarse, form.classes)[-form.labels :]):
        wrong = np.flatnonzero((labels[:, column] < 0) | (labels[:, column] >= most))
        if len(wrong):
            raise CifarError(
                f"expected labels from 0 to {most - 1} in {name}, got {labels[wrong[0], column]} for image {wrong[0]}: "
                "the file is damaged or of another data set; get it again"
            )
    pixels = _fixed(np.ascontiguousarray(images).reshape(-1, 3, 32, 32))
    coarse = _fixed(labels[:, 0].copy()) if form.coarse else None
    return LabelledImages(pixels, _fixed(labels[:, -1].copy()), coarse)


def _class_names(
    form: _Format, files: Mapping[str, Callable[[], bytes]], notes: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names in the files beside the images; numbers where there are none."""
    found: dict[str, tuple[str, ...]] = {}
    for name in form.names:
        if name not in files:
            notes.append(
                f"{name} is missing: classes have no names but {'the usual ones' if form.classes == 10 else 'numbers'}"
            )
            continue
        content = files[name]()
        if form.python:
            found |= python_labels(content, name)
        else:
            lines = content.decode("utf-8", "replace").split()
            found["coarse_label_names" if name.startswith("coarse") else "label_names"] = tuple(lines)
    fine = found.get("fine_label_names") or found.get("label_names") or ()
    coarse = found.get("coarse_label_names", ())
    usual = _TEN if form.classes == 10 else tuple(map(str, range(100)))
    fine = fine if len(fine) == form.classes else usual
    return fine, coarse if len(coarse) == form.coarse else tuple(map(str, range(form.coarse)))


def _folder(path: Path) -> dict[str, Callable[[], bytes]]:
    """Return readers of the files of the folder, or of an official one inside it."""
    inside = [path / form.folder for form in _FORMATS if (path / form.folder).is_dir()]
    known = {name for form in _FORMATS for name in (*form.files, *form.names)}
    for place in (path, *inside):
        files = {file.name: file.read_bytes for file in place.iterdir() if file.name in known and file.is_file()}
        if files:
            return files
    return {}


def _archive(path: Path) -> dict[str, Callable[[], bytes]]:
    """Return the files of an archive, in memory."""
    known = {name for form in _FORMATS for name in (*form.files, *form.names)}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for count, member in enumerate(archive):
                if count >= _MOST_MEMBERS or member.size > _MOST_BYTES:
                    raise CifarError(
                        f"{path.name!r} holds more than CIFAR's archives do ({member.name!r}); name one of those"
                    )
                name = member.name.rsplit("/", 1)[-1]
                stream = archive.extractfile(member) if member.isreg() and name in known else None
                if stream is not None:
                    found[name] = stream.read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        if isinstance(error, CifarError):
            raise
        raise CifarError(
            f"expected {path.name!r} to be an archive such as cifar-10-binary.tar.gz, and it cannot be read "
            f"({brief(error)}): download it again, or name the folder it was unpacked to"
        ) from error
    return {name: (lambda content=content: content) for name, content in found.items()}


def _fixed(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


__all__ = ["ImageClasses", "LabelledImages", "load_cifar"]
