"""Colours for what a random decoder puts out: three maps become red, green and blue by least squares.

The output's three channels are random mixtures of random features (Random DCN, 4.4: "slight differences in the
background color"); the paper does not say how it shows them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def fit_colours(output: Float[np.ndarray, "3 H W"], picture: Float[np.ndarray, "3 H W"]) -> Float[np.ndarray, "3 4"]:
    """Return the affine map of an output's three channels that comes closest to a picture's colours.

    Args:
        output: of the decoder, for the features of this very picture.
        picture: RGB.

    Returns:
        Three columns of factors and one of offsets, by least squares in float64; the least one if there are many.
    """
    rows = np.asarray(output, np.float64).reshape(3, -1)
    wanted = np.asarray(picture, np.float64).reshape(3, -1)
    return np.linalg.lstsq(np.vstack([rows, np.ones(rows.shape[1])]).T, wanted.T, rcond=None)[0].T


def apply_colours(colours: Float[np.ndarray, "3 4"], output: Float[np.ndarray, "3 H W"]) -> Float[np.ndarray, "3 H W"]:
    """Return the picture in [0, 1]: mapped colours, cut where they leave the range."""
    rows = np.asarray(output, np.float64)
    return np.clip(np.tensordot(colours[:, :3], rows, axes=1) + colours[:, 3][:, None, None], 0, 1)


def stretch_colours(output: Float[np.ndarray, "3 H W"]) -> Float[np.ndarray, "3 H W"]:
    """Return every channel brought to [0, 1] by its least and greatest value; a constant one becomes 0."""
    rows = np.asarray(output, np.float64)
    low, high = (function(rows, axis=(1, 2), keepdims=True) for function in (np.min, np.max))
    return (rows - low) / np.where(high > low, high - low, 1.0)


__all__ = ["apply_colours", "fit_colours", "stretch_colours"]
