"""Pictures for the decoders of Gilbert et al. 2017, Table 3: crops of photographs, or CIFAR, test ones apart."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from cnninv_jax._typing import PRNGKeyArray, Shaped

#: A photograph is brought to so many times the crops' side; its right quarter is for testing.
_TIMES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Crops:
    """Small pictures.

    Attributes:
        images: for training, uint8 [N, 3, S, S].
        labels: of the training pictures: which photograph, or the class.
        test: uint8 [N, 3, S, S].
        test_labels: of the test pictures.
        classes: how many labels there are.
        words: what these are, for people.
        notes: one sentence each.
    """

    images: Shaped[np.ndarray, "N 3 S S"]
    labels: Shaped[np.ndarray, " N"]
    test: Shaped[np.ndarray, "T 3 S S"]
    test_labels: Shaped[np.ndarray, " T"]
    classes: int
    words: str
    notes: tuple[str, ...] = ()


def photograph_crops(
    key: PRNGKeyArray, source: str, *, size: int, num_pictures: int, num_train: int, num_test: int
) -> Crops:
    """Cut crops out of photographs, labelled by the photograph.

    A photograph becomes a square of side 4 S. Training crops come from anywhere in its left three quarters, test crops
    from its right quarter, one below the other: no pixel is in both.

    Args:
        key: of the training crops' places.
        source: a folder, or ``embedded``.
        size: S.
        num_pictures: most photographs.
        num_train: training crops.
        num_test: most test crops: at most four of a photograph, taken in turn.

    Raises:
        PictureError: photographs that cannot be read.
    """
    from cnninv_jax.data import picture_files, read_picture

    files = picture_files(source)[:num_pictures]
    squares = np.stack([np.round(255 * read_picture(file, _TIMES * size)).astype(np.uint8) for file in files])
    labels, rows, columns = (
        np.asarray(jax.random.randint(jax.random.fold_in(key, place), (num_train,), 0, most))
        for place, most in enumerate((len(files), (_TIMES - 1) * size + 1, (_TIMES - 2) * size + 1))
    )
    windows = np.lib.stride_tricks.sliding_window_view(squares, (size, size), axis=(2, 3))
    places = [(number, row * size) for row in range(_TIMES) for number in range(len(files))][:num_test]
    test = np.stack([squares[number, :, top : top + size, -size:] for number, top in places])
    words = f"crops of {len(files)} photographs ({source}), test crops from parts of their own"
    return Crops(
        windows[labels, :, rows, columns], labels.astype(np.int32), test,
        np.asarray([number for number, _ in places], np.int32), len(files), words,
    )  # fmt: skip


def cifar_images(source: str, *, num_train: int, num_test: int) -> Crops:
    """Return the first pictures of CIFAR's training and test set, see `data.load_cifar`."""
    from cnninv_jax.data import load_cifar

    cifar = load_cifar(source, limit_train=num_train)
    train, test = ((part.images, np.asarray(part.labels, np.int32)) for part in (cifar.train, cifar.test))
    words = f"{cifar.name} ({cifar.source})"
    return Crops(
        train[0][:num_train], train[1][:num_train], test[0][:num_test], test[1][:num_test], len(cifar.classes), words,
        tuple(cifar.notes),
    )  # fmt: skip


__all__ = ["Crops", "cifar_images", "photograph_crops"]
