"""Pictures from a folder, or the few that ship inside scikit-image, as one array [N, 3, H, W] of RGB in [0, 1]."""

from __future__ import annotations

import importlib.resources
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cnninv_jax.data.errors import PictureError, brief

#: What is taken for a picture in a folder, by extension in lower case.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
#: Colour photographs inside scikit-image's wheel; nothing is downloaded.
EMBEDDED = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
#: Side of the embedded pictures where no size is named: their own sizes differ.
EMBEDDED_SIZE = 224


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures and where they came from.

    Attributes:
        images: ``[N, 3, H, W]`` float32, RGB in [0, 1]; read-only.
        names: file names.
        source: the folder as it was given, or ``embedded``.
        notes: what was converted, one sentence each; show them to the user.
    """

    images: Float[np.ndarray, "N 3 H W"]
    names: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()


def load_pictures(
    source: str | os.PathLike[str] = "embedded", *, size: int | None = None, limit: int | None = None
) -> Pictures:
    """Read the pictures of a folder, in the order of their names (numbers in names count as numbers).

    Args:
        source: a folder with .png, .jpg, .bmp, .webp, .ppm or .tif files, or ``"embedded"``: a few colour
            photographs inside scikit-image.
        size: side of the square pictures returned: the shorter side is brought to this length (bilinear, after a
            Gaussian against aliasing where it shrinks) and the centre is cut out. None keeps pictures as they are,
            which must then have one size; embedded ones become 224 x 224.
        limit: read no more than so many.

    Returns:
        The pictures; grey ones became RGB, and transparency was dropped.

    Raises:
        PictureError: no such folder, no pictures in it, a file that cannot be read, sizes that differ.

    Cost: 12 H W bytes a picture.
    """
    for name, value in (("size", size), ("limit", limit)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise PictureError(f"expected {name} to be a positive whole number, got {value!r}")
    notes: list[str] = []
    files = picture_files(source)[:limit]
    if os.fspath(source) == "embedded" and size is None:
        size = EMBEDDED_SIZE
    converted: dict[str, int] = {}
    images = [_brought(_read(file, converted), size, converted) for file in files]
    _one_size(files, images)
    counts = ", ".join(f"{count} {what}" for what, count in converted.items())
    if counts:
        notes.append(f"of {len(files)} pictures: {counts}")
    stacked = np.stack(images)
    stacked.setflags(write=False)
    return Pictures(stacked, tuple(file.name for file in files), os.fspath(source), tuple(notes))


def picture_files(source: str | os.PathLike[str] = "embedded") -> list[Path]:
    """Return the files that `load_pictures` would read, in its order; for `read_picture` one by one.

    Raises:
        PictureError: no such folder, or no pictures in it.
    """
    return _embedded() if os.fspath(source) == "embedded" else _folder(source)


def read_picture(file: str | os.PathLike[str], size: int | None = None) -> Float[np.ndarray, "3 H W"]:
    """Read one picture as `load_pictures` does: float32, RGB in [0, 1].

    Raises:
        PictureError: the file cannot be read.
    """
    return _brought(_read(Path(file), {}), size, {})


def _embedded() -> list[Path]:
    folder = Path(str(importlib.resources.files("skimage"))) / "data"
    files = [folder / name for name in EMBEDDED if (folder / name).is_file()]
    if not files:
        raise PictureError(
            f"expected scikit-image to ship {', '.join(EMBEDDED)}, but {str(folder)!r} has none of them: "
            "give a folder of pictures"
        )
    return files


def _folder(source: str | os.PathLike[str]) -> list[Path]:
    shown = repr(os.fspath(source))
    try:
        folder = Path(source).expanduser()
        if not folder.exists():
            raise PictureError(f"there is no folder {shown}: check the path, or leave it out for the embedded pictures")
        if not folder.is_dir():
            raise PictureError(f"{shown} is not a folder: give the folder the pictures are in")
        files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    except (OSError, RuntimeError) as error:
        raise PictureError(f"the folder {shown} cannot be read ({brief(error)}): check the path") from error
    if not files:
        raise PictureError(f"{shown} holds no pictures ({', '.join(SUFFIXES)}): give the folder they are in")
    return sorted(files, key=lambda file: natural_order(file.name))


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts 2 before 10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts]


def _read(file: Path, converted: dict[str, int]) -> Float[np.ndarray, "H W 3"]:
    """Return a picture as float32 in [0, 1]."""
    from PIL import Image

    try:
        # Pillow warns of odd metadata; what cannot be decoded it raises.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as picture:
                mode = picture.mode
                if mode.startswith("I") or mode == "F":
                    deep = np.asarray(picture, np.float64)
                    largest = 1.0 if mode == "F" else 65535.0
                    if not (np.all(np.isfinite(deep)) and deep.min() >= 0 and deep.max() <= largest):
                        raise PictureError(
                            f"{str(file)!r} should have numbers from 0 to {largest:g} (mode {mode}), got "
                            f"{deep.min():g} to {deep.max():g}: store it with 8 bits a channel"
                        )
                    image = np.repeat((deep / largest).astype(np.float32)[..., None], 3, axis=-1)
                else:
                    image = np.asarray(picture.convert("RGB"), np.float32) / np.float32(255)
    except PictureError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
        raise PictureError(
            f"the picture {str(file)!r} cannot be read ({brief(error)}): replace it, or move it out of the folder"
        ) from error
    if mode in ("1", "L", "LA", "F") or mode.startswith("I"):
        converted["grey ones became RGB"] = converted.get("grey ones became RGB", 0) + 1
    return image


def _brought(
    image: Float[np.ndarray, "H W 3"], size: int | None, converted: dict[str, int]
) -> Float[np.ndarray, "3 h w"]:
    """Resize so that the shorter side has ``size`` pixels, cut the centre out, and put channels first."""
    if size is not None:
        from skimage.transform import resize

        height, width = image.shape[:2]
        shorter = min(height, width)
        if shorter < size:
            converted["were enlarged"] = converted.get("were enlarged", 0) + 1
        if shorter != size:
            # The longer side is rounded, the shorter one exact.
            shape = tuple(max(size, round(length * size / shorter)) for length in (height, width))
            image = np.asarray(resize(image, (*shape, 3), order=1, anti_aliasing=shorter > size), np.float32)
        top, left = ((length - size) // 2 for length in image.shape[:2])
        image = image[top : top + size, left : left + size]
    return np.ascontiguousarray(np.moveaxis(np.clip(image, 0.0, 1.0), -1, 0))


def _one_size(files: Sequence[Path], images: Sequence[np.ndarray]) -> None:
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            first, other = images[0].shape[1:], image.shape[1:]
            raise PictureError(
                f"expected pictures of one size, but {files[0].name!r} has {first[0]} x {first[1]} pixels and "
                f"{file.name!r} {other[0]} x {other[1]}: give a size to bring them to"
            )


__all__ = ["EMBEDDED", "SUFFIXES", "PictureError", "Pictures", "load_pictures", "picture_files", "read_picture"]
