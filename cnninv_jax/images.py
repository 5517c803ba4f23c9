"""Grey-scale, structural similarity and relative error of pictures, as pure functions.

Random DCN, Sec. 4, measures a reconstruction by the structural similarity (SSIM) of grey-scale pictures; `similarity`
is its rule as a whole. Every function takes one picture or one pair, `vmap` makes batches. Pictures are floating-point
numbers, [3, H, W] or [H, W], in [0, 1] unless said otherwise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._numerics import norm, wider
from cnninv_jax._typing import Array, Bool, Float, Scalar

#: Luminance of red, green and blue (ITU-R BT.709, as rounded by scikit-image's rgb2gray).
LUMINANCE = (0.2125, 0.7154, 0.0721)
#: Wang et al. 2004: a Gaussian window of 11 x 11 pixels, sigma 1.5, and constants C_i = (K_i data_range)^2.
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


class Comparison(NamedTuple):
    """A picture and an output, as they were compared.

    Attributes:
        similarity: SSIM of the two maps below.
        inverted: whether the output's luminance was inverted, its SSIM having been negative.
        picture: in grey.
        output: in grey, brought to [0, 1], inverted where that was called for.
    """

    similarity: Scalar
    inverted: Bool[Array, ""]
    picture: Float[Array, "H W"]
    output: Float[Array, "H W"]


def to_grey(picture: ArrayLike) -> Float[Array, " *batch H W"]:
    """Return the luminance 0.2125 R + 0.7154 G + 0.0721 B of pictures.

    Args:
        picture: [..., 3, H, W], RGB; or [..., 1, H, W], whose one channel is returned.

    Raises:
        ValueError: another number of channels, or integers.
    """
    rgb = _pixels(picture, "picture")
    channels = rgb.shape[-3] if rgb.ndim >= 3 else None
    if channels not in (1, 3):
        raise ValueError(
            f"expected a picture [..., 3, H, W] or [..., 1, H, W], got shape {rgb.shape}; put channels first"
        )
    if channels == 1:
        return rgb[..., 0, :, :]
    red, green, blue = (weight * rgb[..., i, :, :] for i, weight in enumerate(LUMINANCE))
    return red + green + blue


def rescale(picture: ArrayLike) -> Float[Array, " *shape"]:
    """Return (x - min x) / (max x - min x), a picture brought to [0, 1].

    Args:
        picture: one picture of any shape; its channels are scaled together.

    Returns:
        The same shape; zeros where all pixels are equal, since nothing can be told from such a picture.

    Raises:
        ValueError: an empty picture, or integers.
    """
    x = _pixels(picture, "picture")
    if x.size == 0:
        raise ValueError(f"expected a picture with pixels, got shape {x.shape}")
    lowest = jnp.min(x)
    span = jnp.max(x) - lowest
    return (x - lowest) / jnp.where(span == 0, 1.0, span)


def ssim(a: ArrayLike, b: ArrayLike, *, data_range: float | Array = 1.0) -> Scalar:
    r"""Return the mean structural similarity of two pictures (Wang et al. 2004, eq. 13).

    SSIM = (2 m_a m_b + C_1) (2 s_ab + C_2) / ((m_a^2 + m_b^2 + C_1) (s_a^2 + s_b^2 + C_2)) with local means, variances
    and covariance under a Gaussian window of 11 x 11 pixels, sigma 1.5, averaged over the windows that lie inside the
    picture; C_i = (K_i data_range)^2, K_1 = 0.01, K_2 = 0.03. Equal to scikit-image's ``structural_similarity`` with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``.

    Args:
        a: a picture, [H, W], or [C, H, W] for the mean over channels.
        b: another one of the same shape.
        data_range: largest minus smallest value that a pixel may have.

    Returns:
        A number in [-1, 1], 1 where the two are equal; in the wider dtype of the two.

    Raises:
        ValueError: shapes that differ or are no picture's, a side of fewer than 11 pixels, or integers.

    Cost: about 200 C H W operations; memory for seven times the picture when compiled.
    """
    a, b = _pair(a, b)
    if a.ndim not in (2, 3):
        raise ValueError(f"expected pictures [H, W] or [C, H, W], got shape {a.shape}; use jax.vmap for a batch")
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(
            f"expected pictures of at least {WINDOW} x {WINDOW} pixels, the size of SSIM's window, got "
            f"{a.shape[-2]} x {a.shape[-1]}; enlarge them"
        )
    means, variances = _moments(jnp.stack([a + b, a - b]))
    # Of (a + b) and (a - b) two means and two variances hold what the formula takes of five moments of a and b.
    c1, c2 = ((constant * jnp.asarray(data_range, a.dtype)) ** 2 for constant in (K1, K2))
    sum_mean, difference_mean = jnp.square(means) / 2
    sum_variance, difference_variance = variances / 2
    luminance = (sum_mean - difference_mean + c1) / (sum_mean + difference_mean + c1)
    structure = (sum_variance - difference_variance + c2) / (sum_variance + difference_variance + c2)
    return jnp.mean(luminance * structure)


def compare(picture: ArrayLike, output: ArrayLike) -> Comparison:
    """Compare a network's output with its picture by the rule of Random DCN, Sec. 4.

    Both are made grey, the output is brought to [0, 1] (`rescale`), and the SSIM of the two is taken; if it is
    negative, the output's luminance is inverted, 1 - output, and it is taken again. "So the value is in [0, 1]", as
    the paper has it, is true of all but odd cases: inverting turns the sign of every window's covariance, but changes
    its luminance term too, so a sum of both signs can stay negative. It is then returned as it is.

    Args:
        picture: RGB in [0, 1], [3, H, W], or grey, [H, W] or [1, H, W].
        output: of any range and sign, [3, H, W], [1, H, W] or [H, W].

    Returns:
        The similarity, whether the output was inverted, and both maps that were compared.

    Raises:
        ValueError: not pictures of one size, a side of fewer than 11 pixels, or integers.
    """
    first, second = _pair(*(_grey(value, name) for value, name in ((picture, "picture"), (output, "output"))))
    scaled = rescale(second)
    plain, turned = ssim(first, scaled), ssim(first, 1 - scaled)
    inverted = plain < 0
    return Comparison(jnp.where(inverted, turned, plain), inverted, first, jnp.where(inverted, 1 - scaled, scaled))


def similarity(picture: ArrayLike, output: ArrayLike) -> Scalar:
    """Return how alike a network's output is to its picture by the rule of Random DCN, Sec. 4; see `compare`."""
    return compare(picture, output).similarity


def relative_error(x: ArrayLike, y: ArrayLike) -> Scalar:
    """Return |y - x|_2 / |x|_2.

    Args:
        x: what was to be had, of any shape; not zero (the result is then inf, or NaN where y is zero too).
        y: what was had, of the same shape.

    Raises:
        ValueError: shapes that differ, or integers.
    """
    x, y = _pair(x, y)
    return norm(y - x) / norm(x)


def _grey(value: ArrayLike, name: str) -> Array:
    pixels = _pixels(value, name)
    return pixels if pixels.ndim == 2 else to_grey(pixels)


def _pixels(value: ArrayLike, name: str) -> Array:
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"expected the {name} as floating-point numbers, got {array.dtype}; divide 8-bit pictures by 255"
        )
    return array


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = _pixels(a, "first picture"), _pixels(b, "second picture")
    if first.shape != second.shape:
        raise ValueError(
            f"expected two pictures of one shape, got {first.shape} and {second.shape}; crop or resize one"
        )
    dtype = wider(first.dtype, second.dtype)
    return first.astype(dtype), second.astype(dtype)


def _moments(x: Float[Array, " *maps H W"]) -> tuple[Array, Array]:
    """Return local means and variances under the window, where it fits.

    E x^2 - (E x)^2 loses half of the digits in float32, and errs by 1e-5 where a picture is flat. Here, one axis after
    the other, deviations are taken from the mean of the window itself, and the variance within its rows and among them
    is added (the law of total variance). Shifted sums of stacked maps are what XLA makes quick: three times as quick
    as five separate moments.
    """
    taps = _taps()

    def windows(x: Array, axis: int) -> list[Array]:
        outputs = x.shape[axis] - WINDOW + 1
        return [lax.slice_in_dim(x, tap, tap + outputs, axis=axis) for tap in range(WINDOW)]

    def average(parts: list[Array]) -> Array:
        total = taps[0] * parts[0]
        for weight, part in zip(taps[1:], parts[1:], strict=True):
            total = total + weight * part
        return total

    mean, variance = x, jnp.zeros_like(x)
    for axis in (x.ndim - 1, x.ndim - 2):
        among, within = windows(mean, axis), windows(variance, axis)
        mean = average(among)
        variance = average([one + jnp.square(part - mean) for one, part in zip(within, among, strict=True)])
    return mean, variance


def _taps() -> list[float]:
    positions = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (positions / SIGMA) ** 2)
    return [float(weight) for weight in weights / math.fsum(weights)]


__all__ = ["LUMINANCE", "WINDOW", "Comparison", "compare", "relative_error", "rescale", "similarity", "ssim", "to_grey"]
