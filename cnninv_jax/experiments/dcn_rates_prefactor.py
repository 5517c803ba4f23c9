"""What a random CNN's distance from its limit is to first order in 1/N: the prefactor that a simulation should meet.

Random DCN, Thm 6's proof gives E|f - f*|^2 / |f*|^2 = K_1 / N exactly for one convolution. For several, the squares of
the norms (z^(i))^2 are sums over filters whose conditional mean is linear in the layer before (Lemma 5, Lemma 7), so
that their fluctuations add up layer by layer:

    N Cov (z^(i+1))^2 = P (k_2^2 N Cov (z^(i))^2 + S) P^T,        S_jk = E g_j^2 g_k^2 - k_2^2 z*_j^2 z*_k^2,

P summing over windows. By Lemma 5's rotation E g_j^2 g_k^2 = k_4 / (3 pi) [3 sin a cos a + (pi - a)(1 + 2 cos^2 a)]
z_j^2 z_k^2 for any isotropic law. At the end f = k_1 z + ..., and to first order dz = d(z^2) / (2 z). Terms of order
1/N^2 are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cnninv_jax.limits.laws import Moments
from cnninv_jax.limits.layers import Conv, Network, Step, plan


class Prefactors(NamedTuple):
    """Limits of N times a mean square, N to infinity.

    Attributes:
        deviation: of N E|f - f*|^2 / |f*|^2.
        sine: of N E sin^2 Theta, what of it does not point along f*.
    """

    deviation: float
    sine: float


def prefactors(image: Float[np.ndarray, " M *D"], layers: Network, moments: Sequence[Moments]) -> Prefactors:
    """Return both prefactors of a network of convolutions with N filters each.

    Args:
        image: the picture.
        layers: convolutions.
        moments: k_1, k_2, k_4 of each.

    Raises:
        ValueError: a layer that is no convolution.

    Cost: (inputs)^2 * window + (inputs)^3 per layer; for small maps.
    """
    steps = plan(layers, image.shape)
    for step in steps:
        if not isinstance(step.layer, Conv):
            raise ValueError(f"expected convolutions only, got {type(step.layer).__name__}; simulate it instead")
    pixels = np.asarray(image, np.float64).reshape(image.shape[0], -1)
    gram = pixels.T @ pixels
    spread = np.zeros_like(gram)
    for step, k in zip(steps, moments, strict=True):
        windows = window_places(step)
        gram, spread = _summed(gram, windows, both=True), _summed(spread, windows, both=False)
        z = np.sqrt(np.diagonal(gram))
        outer = np.outer(z, z)
        cosine = np.clip(np.divide(gram, outer, out=np.ones_like(gram), where=outer > 0), -1.0, 1.0)
        angle = np.arccos(cosine)
        first = ((np.pi - angle) * cosine + np.sin(angle)) / np.pi
        second = (3 * np.sin(angle) * cosine + (np.pi - angle) * (1 + 2 * np.square(cosine))) / (3 * np.pi)
        if step is not steps[-1]:
            # What enters the next layer: covariances of squares, and the pixels' own.
            spread = k.k2**2 * spread + (k.k4 * second - k.k2**2) * np.square(outer)
            gram = k.k2 * first * outer
            continue
        rooted = np.divide(spread, 4 * outer, out=np.zeros_like(spread), where=outer > 0)
        covariance = (k.k2 * first - k.k1**2) * outer + k.k1**2 * rooted
        energy = k.k1**2 * float(z @ z)
        total, along = float(np.trace(covariance)), float(z @ covariance @ z) / float(z @ z)
        return Prefactors(total / energy, (total - along) / energy)
    raise AssertionError("a planned network ends with a convolution")


def window_places(step: Step) -> Int[np.ndarray, "outputs window"]:
    """Return for every output entry the input entries of its window, as flat indices; -1 for padding."""
    places = []
    for output in np.ndindex(*step.outputs):
        corner = [at * by - before for at, by, (before, _) in zip(output, step.stride, step.margins, strict=True)]
        ranges = (range(start, start + size) for start, size in zip(corner, step.window, strict=True))
        places.append([
            int(np.ravel_multi_index(entry, step.inputs))
            if all(0 <= at < size for at, size in zip(entry, step.inputs, strict=True))
            else -1
            for entry in itertools.product(*ranges)
        ])  # fmt: skip
    return np.array(places)


def _summed(matrix: np.ndarray, windows: np.ndarray, *, both: bool) -> np.ndarray:
    """Sum a matrix over pairs of windows: equal offsets only (``both``, a Gram of patches), or all pairs of entries."""
    padded = np.pad(matrix, ((0, 1), (0, 1)))  # index -1 meets zeros
    if both:
        return sum((padded[np.ix_(column, column)] for column in windows.T), np.zeros((len(windows),) * 2))
    rows = sum((padded[column] for column in windows.T), np.zeros((len(windows), len(padded))))
    return sum((rows[:, column] for column in windows.T), np.zeros((len(windows),) * 2))
