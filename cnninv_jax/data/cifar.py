"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official files, checked; and a stand-in that needs no download.

The binary version is read as it is, the python version by an unpickler that calls nothing, both from a folder or from
the archive they are distributed in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from cnninv_jax.data._cifar_files import Format, Reader, find_files
from cnninv_jax.data._cifar_python import python_names, python_records
from cnninv_jax.data.embedded_classes import CLASSES, embedded_patches
from cnninv_jax.data.errors import CifarError, PictureError, brief, did_you_mean
from cnninv_jax.data.fetch import PUBLIC_DATA_SETS, fetch_data_set

#: Numbers of one image: red, green and blue planes of 32 x 32.
PIXELS = 3 * 32 * 32
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
        """Return the first images, in memory of their own; all of them, as they are, for None or a larger number."""
        if count is None or count >= len(self.labels):
            return self
        coarse = None if self.coarse_labels is None else _fixed(self.coarse_labels[:count].copy())
        return LabelledImages(_fixed(self.images[:count].copy()), _fixed(self.labels[:count].copy()), coarse)


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
            class by class in turn in the stand-in). Files past them are not opened, and so not checked.
        limit_test: the same of the test set.

    Raises:
        CifarError: nothing of the kind there; a file that is missing, cut short, or has labels out of range.

    Cost: 3 kB an image; CIFAR-10 takes 0.2 s and 184 MB.
    """
    for name, value in (("limit_train", limit_train), ("limit_test", limit_test)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise CifarError(f"expected {name} to be a positive whole number, got {value!r}")
    text = os.fsdecode(source)
    if text != "embedded":
        return _read(text, limit_train, limit_test)
    found = _embedded()
    return replace(found, train=found.train.first(limit_train), test=found.test.first(limit_test))


def _embedded() -> ImageClasses:
    try:
        train, test = (LabelledImages(*part) for part in embedded_patches())
    except PictureError as error:
        raise CifarError(str(error)) from error
    return ImageClasses(train, test, CLASSES, (), "embedded", "embedded")


def _read(source: str, limit_train: int | None, limit_test: int | None) -> ImageClasses:
    if source.startswith("fetch:"):
        path = fetch_data_set(source.removeprefix("fetch:"))
    else:
        try:
            path = Path(source).expanduser()
            there = path.exists()
        except (OSError, RuntimeError, ValueError) as error:  # no permission, "~nobody", a zero in the name
            raise CifarError(f"{source!r} cannot be looked up ({brief(error)}): check the path") from error
        if not there:
            names = ("embedded", *(f"fetch:{name}" for name in PUBLIC_DATA_SETS))
            near = f"fetch:{source.lower()}" if source.lower() in PUBLIC_DATA_SETS else source
            raise CifarError(
                f"there is no {source!r}{did_you_mean(near, names)}: give a folder or archive of CIFAR-10 or "
                "CIFAR-100, fetch:cifar10, fetch:cifar100 or embedded"
            )
    form, files = find_files(path, source)
    notes: list[str] = []
    classes, coarse = _class_names(form, files, notes)
    train = _joined(form, _parts(form, form.train, files, limit_train, notes))
    test = _joined(form, _parts(form, (form.test,), files, limit_test, notes))
    return ImageClasses(train, test, classes, coarse, form.name, source, tuple(notes))


#: Pixels [n, 3072] and labels [n, 1 or 2] of one file, superclass first as in the binary version.
Records = tuple[np.ndarray, np.ndarray]


def _parts(
    form: Format, names: tuple[str, ...], files: Mapping[str, Reader], limit: int | None, notes: list[str]
) -> list[Records]:
    """Read files until there are as many images as asked for."""
    parts: list[Records] = []
    left = limit
    for name in names:
        images, labels = _records(form, name, files[name], notes)
        parts.append((images[:left], labels[:left]))
        if left is not None:
            left -= len(parts[-1][0])
            if left == 0:
                break
    return parts


def _records(form: Format, name: str, read: Reader, notes: list[str]) -> Records:
    """Return what a file holds, checked, as views of its content."""
    content = read()
    widths = (form.coarse, form.classes) if form.coarse else (form.classes,)
    if form.python:
        images, labels = python_records(content, name, form.coarse > 0)
    else:
        size = len(widths) + PIXELS
        count, rest = divmod(len(content), size)
        if rest or not count:
            raise CifarError(
                f"expected {name} to have a multiple of {size:,} bytes (label{'s' if form.coarse else ''} and pixels "
                f"of an image), got {len(content):,}: the file is cut short or of another data set; get it again"
            )
        records = np.frombuffer(content, np.uint8).reshape(count, size)
        images, labels = records[:, len(widths) :], records[:, : len(widths)]
    for column, most in enumerate(widths):
        wrong = np.flatnonzero((labels[:, column] < 0) | (labels[:, column] >= most))
        if len(wrong):
            raise CifarError(
                f"expected labels from 0 to {most - 1} in {name}, got {labels[wrong[0], column]} for image {wrong[0]}: "
                "the file is damaged or of another data set; get it again"
            )
    if len(images) != form.usual(name):
        notes.append(f"{name} has {len(images):,} images; the official file has {form.usual(name):,}")
    return images, labels


def _joined(form: Format, parts: list[Records]) -> LabelledImages:
    """Copy the parts behind one another; the list is emptied, so that each is let go once it is copied."""
    pixels = np.empty((sum(len(images) for images, _ in parts), PIXELS), np.uint8)
    labels = np.concatenate([found for _, found in parts]).astype(np.int32)
    end = len(pixels)
    while parts:
        images, _ = parts.pop()
        pixels[end - len(images) : end] = images
        end -= len(images)
    coarse = _fixed(labels[:, 0].copy()) if form.coarse else None
    return LabelledImages(_fixed(pixels.reshape(-1, 3, 32, 32)), _fixed(labels[:, -1].copy()), coarse)


def _class_names(form: Format, files: Mapping[str, Reader], notes: list[str]) -> tuple[tuple[str, ...], ...]:
    """Return the names of classes and of superclasses; where their files are missing, a note and other names."""
    if missing := [name for name in form.names if name not in files]:
        others = "classes have their usual names" if form.name == "cifar10" else "classes are numbered"
        notes.append(f"{', '.join(missing)} missing: {others}")
        if form.name == "cifar10":
            return _TEN, ()
        return tuple(map(str, range(form.classes))), tuple(map(str, range(form.coarse)))
    found: dict[str, tuple[str, ...]] = {}
    for name in form.names:
        content = files[name]()
        if form.python:
            found |= python_names(content, name)
        else:
            key = name.removesuffix(".txt") if form.coarse else "label_names"
            found[key] = tuple(filter(None, map(str.strip, content.decode("utf-8", "replace").splitlines())))
    wanted = {"fine_label_names": form.classes, "coarse_label_names": form.coarse}
    wanted = wanted if form.coarse else {"label_names": form.classes}
    for key, count in wanted.items():
        names = found.get(key, ())
        if len(names) != count or len(set(names)) != count or not all(map(str.isprintable, names)):
            raise CifarError(
                f"expected {' and '.join(form.names)} to hold {count} different printable names ({key}), got "
                f"{len(set(names))} in {len(names)} entries: the file is damaged or of another data set; get it again"
            )
    return (*(found[key] for key in wanted), *(() if form.coarse else ((),)))


def _fixed(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


__all__ = ["ImageClasses", "LabelledImages", "load_cifar"]
