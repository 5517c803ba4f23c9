"""Semantically similar stimuli of a picture: flipped, rotated, translated or cropped (Shang et al. 2016, appendix D).

What a shifted or rotated picture shows beside its old border is not known. So the stimuli are windows of a larger
picture: the original is the one in the middle, and the others show what the picture has there. Where a window reaches
over the picture's border all the same, the border pixel is repeated; `View.unknown` says how often.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, per_axis
from cnninv_jax._typing import Array, Float, PerAxis

#: Degrees and pixels of appendix D.
DEGREES, SHIFT = 15.0, 3


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A way to look at a picture: the point of it that every pixel of the stimulus shows.

    Attributes:
        name: for people.
        rows: of the points, counted in pixels from the picture's first row, [h, w]; read-only.
        columns: of the points, [h, w]; read-only.
        picture: height and width of the picture.
    """

    name: str
    rows: Float[np.ndarray, "h w"]
    columns: Float[np.ndarray, "h w"]
    picture: tuple[int, int]

    def __call__(self, pictures: ArrayLike) -> Float[Array, "*batch h w"]:
        """Return the stimulus of pictures, [..., H, W]: bilinear, exact where a point is a pixel.

        Raises:
            ValueError: pictures of another size.
        """
        images = as_float(pictures)
        if images.shape[-2:] != self.picture:
            high, wide = self.picture
            raise ValueError(f"expected pictures of {high} x {wide} pixels, got shape {images.shape}; make a new view")
        return _looked_at(images, self.rows.astype(images.dtype), self.columns.astype(images.dtype))

    @property
    def unknown(self) -> float:
        """Share of the pixels whose point lies beside the picture; there the border pixel is repeated."""
        beside = np.zeros(self.rows.shape, bool)
        for points, length in zip((self.rows, self.columns), self.picture, strict=True):
            beside |= (points < -1e-9) | (points > length - 1 + 1e-9)
        return float(beside.mean())


def original(picture: PerAxis, size: PerAxis | None = None) -> View:
    """Return the view of the window in the middle of a picture, which all other views of that size vary.

    Args:
        picture: height and width.
        size: height and width of the window; None for the whole picture.

    Raises:
        ValueError: a window larger than the picture.
    """
    return _window("original", picture, size)


def flip(picture: PerAxis, size: PerAxis | None = None) -> View:
    """Return the view that exchanges left and right of the window; arguments as of `original`."""
    window = _window("flip", picture, size)
    return dataclasses.replace(window, columns=_held(window.columns[:, ::-1]))


def rotation(picture: PerAxis, size: PerAxis | None = None, *, degrees: float = DEGREES) -> View:
    """Return the view that turns the picture around its middle, counter-clockwise; arguments as of `original`.

    A square window of side s shows nothing unknown if the picture's shorter side is at least
    s (|cos| + |sin|), 1.225 s at 15 degrees.
    """
    window = _window(f"rotation by {degrees:g} degrees", picture, size)
    angle = math.radians(degrees)
    centres = [(length - 1) / 2 for length in window.picture]
    down, right = window.rows - centres[0], window.columns - centres[1]
    rows = centres[0] + math.cos(angle) * down + math.sin(angle) * right
    columns = centres[1] - math.sin(angle) * down + math.cos(angle) * right
    return dataclasses.replace(window, rows=_held(rows), columns=_held(columns))


def translation(picture: PerAxis, size: PerAxis | None = None, *, shift: Sequence[int]) -> View:
    """Return the view that moves the content by whole pixels, ``shift`` = (down, right); arguments as of `original`."""
    down, right = (int(step) for step in shift)
    window = _window(f"shift by {down:+d}, {right:+d}", picture, size)
    return dataclasses.replace(window, rows=_held(window.rows - down), columns=_held(window.columns - right))


def corners(picture: PerAxis, size: PerAxis) -> tuple[View, ...]:
    """Return the views of the windows in the four corners; arguments as of `original`."""
    window = _window("", picture, size)
    margins = [length - side for length, side in zip(window.picture, window.rows.shape, strict=True)]
    middle = [margin // 2 for margin in margins]
    places = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
    return tuple(
        dataclasses.replace(
            window,
            name=f"crop, {name}",
            rows=_held(window.rows + at[0] * margins[0] - middle[0]),
            columns=_held(window.columns + at[1] * margins[1] - middle[1]),
        )
        for name, at in places.items()
    )


def small_stimuli(picture: PerAxis, size: PerAxis | None = None, *, shift: int = SHIFT) -> tuple[View, ...]:
    """Return appendix D's stimuli for CIFAR: flip, rotation by 15 degrees, shifts by 3 pixels; as `original`.

    "Horizontal/vertical shifts by 3 pixels" are read as four: left, right, up and down.
    """
    steps = ((0, -shift), (0, shift), (-shift, 0), (shift, 0))
    moved = (translation(picture, size, shift=step) for step in steps)
    return (flip(picture, size), rotation(picture, size), *moved)


def large_stimuli(picture: PerAxis, size: PerAxis) -> tuple[View, ...]:
    """Return appendix D's stimuli for ImageNet: flip, rotation by 15 degrees, crops of the four corners; as `original`.

    Raises:
        ValueError: a window as large as the picture, of which all crops are the original.
    """
    crops = corners(picture, size)
    if all(np.array_equal(crop.rows, crops[0].rows) for crop in crops) and np.array_equal(
        crops[0].columns, crops[1].columns
    ):
        raise ValueError(f"expected a window smaller than the picture, got {size} of {picture}; there are no corners")
    return (flip(picture, size), rotation(picture, size), *crops)


def inside(length: int, layers: Sequence[tuple[int, int, int]], *, margin: int = 0) -> tuple[int, int]:
    """Return the places first, ..., stop - 1 of a map's axis that see no padding and none of the stimulus' margin.

    Zeros around a stimulus are at the same place for all stimuli: what fires there looks invariant and is not.

    Args:
        length: of the stimulus, along the axis.
        layers: (filter or pooling length, stride, padding on either side) of every layer up to the map.
        margin: pixels at either end of the stimulus that are not to be seen.

    Returns:
        First and stop; equal if no place is inside.
    """
    first, stop, size = margin, length - margin, length
    for window, stride, padding in layers:
        size = (size + 2 * padding - window) // stride + 1
        first = -(-(first + padding) // stride)
        stop = min((stop + padding - window) // stride + 1, size)
    return (first, stop) if first < stop else (0, 0)


def _window(name: str, picture: PerAxis, size: PerAxis | None) -> View:
    lengths = per_axis(picture, 2, "picture")
    sides = lengths if size is None else per_axis(size, 2, "size")
    if any(side > length for side, length in zip(sides, lengths, strict=True)):
        raise ValueError(f"expected a window no larger than the picture {lengths}, got {sides}; cut a smaller one")
    starts = [(length - side) // 2 for length, side in zip(lengths, sides, strict=True)]
    rows, columns = np.meshgrid(
        *(np.arange(start, start + side, dtype=float) for start, side in zip(starts, sides, strict=True)),
        indexing="ij",
    )
    return View(name, _held(rows), _held(columns), (lengths[0], lengths[1]))


def _held(points: np.ndarray) -> np.ndarray:
    own = np.array(points)
    own.setflags(write=False)
    return own


@jax.jit
def _looked_at(
    images: Float[Array, "*batch H W"], rows: Float[Array, "h w"], columns: Float[Array, "h w"]
) -> Float[Array, "*batch h w"]:
    one = functools.partial(map_coordinates, coordinates=[rows, columns], order=1, mode="nearest")
    flat = images.reshape(-1, *images.shape[-2:])
    return jax.vmap(one)(flat).reshape(*images.shape[:-2], *rows.shape)


__all__ = [
    "DEGREES",
    "SHIFT",
    "View",
    "corners",
    "flip",
    "inside",
    "large_stimuli",
    "original",
    "rotation",
    "small_stimuli",
    "translation",
]
