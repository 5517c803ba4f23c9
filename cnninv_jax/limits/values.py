"""Convergence values: what a random CNN computes when all its layers are infinitely wide (Random DCN, Sec. 5 and A.3).

Let z^2 be the sum over channels of X^2 and C_v(p) = sum of X[p] X[p + v]. With k_1, k_2 of the law of the filters,

    convolution and ReLU    C'_v = k_2 kappa(S C_v / (z z')) z z', S the sum over the window: Theorem 10; at lag 0
                            z'^2 = k_2 S z^2: Theorem 4
    l2 pooling              z'^2 = S z^2
    average pooling         the mean of C over pairs of entries of two windows
    zero insertion          C, spread
    the last convolution    f* = k_1 sqrt(S z^2)

so that with l2 pooling f* = k_1 prod sqrt(k_2) z* (the paper prints prod k_2; the recursion is on squares). Layers
before the first convolution act on the picture itself.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float
from cnninv_jax._typing import Array, Float
from cnninv_jax.limits import _band, _kernel
from cnninv_jax.limits.laws import Laws, moments_of
from cnninv_jax.limits.layers import AvgPool, Conv, L2Pool, Network, Step, Upsample, plan


def convergence_value(image: ArrayLike, layers: Network, *, filters: Laws = "gaussian") -> Float[Array, " *D_out"]:
    """Return f*, the output of the network when all its widths go to infinity (Random DCN, Theorems 4 and 10).

    Args:
        image: the picture, [M, *D].
        layers: the network, static under jit.
        filters: law of the filters' entries, or one for each convolution: a name (entries of deviation 1), a
            `FilterLaw` or `Moments`.

    Returns:
        f*, [*D_out], of the picture's dtype.

    Raises:
        ValueError: not a network, one that does not fit the picture, a law without closed form, or l2 pooling of maps
            that are average-pooled later.
    """
    squares, scales, k1 = _walk(image, layers, filters)
    return _kernel.root(squares[-1]) * (k1 * math.sqrt(scales[-1]))


def convergence_maps(
    image: ArrayLike, layers: Network, *, filters: Laws = "gaussian"
) -> tuple[Float[Array, " *n"], ...]:
    """Return z^2 after every layer when all widths go to infinity: the sum over channels of X^2.

    Args:
        image: the picture, [M, *D].
        layers: the network, static under jit.
        filters: law of the filters' entries, see `convergence_value`.

    Returns:
        One map per layer of `plan`, [*outputs]. The maps of the last convolution are not divided by sqrt(N), so that
        its entry is the mean over channels instead.

    Raises:
        ValueError: see `convergence_value`.
    """
    squares, scales, _ = _walk(image, layers, filters)
    return tuple(square * scale for square, scale in zip(squares, scales, strict=True))


def _walk(image: ArrayLike, layers: Network, filters: Laws) -> tuple[tuple[Array, ...], list[float], float]:
    """Return z^2 after every step divided by a factor, these factors, and k_1 / sqrt(k_2) of the last convolution.

    The arrays hold means over windows; k_2 and the sizes of windows are kept apart as Python's numbers, so that a
    deep network neither overflows in float32 nor pays for them.
    """
    picture = as_float(image)
    steps = plan(layers, picture.shape)
    moments = moments_of(filters, steps, picture.shape[0])
    scales, factor, convolved = [], 1.0, False
    for step in steps:
        # Before the first convolution the picture itself is walked.
        convolved = convolved or isinstance(step.layer, Conv)
        if convolved and isinstance(step.layer, (Conv, L2Pool)):
            factor *= math.prod(step.window)
        if isinstance(step.layer, Conv):
            factor *= moments[step.convolution].k2
        scales.append(factor)
    # The limit knows no channels: one program serves descriptions of every width.
    bare = tuple(
        step._replace(layer=replace(step.layer, channels=None)) if isinstance(step.layer, Conv) else step
        for step in steps
    )
    return _squares(picture, bare), scales, moments[-1].k1 / math.sqrt(moments[-1].k2)


# Compiled here, so that a call from a notebook does not compile a stage at a time, and again each time.
@functools.partial(jax.jit, static_argnames="steps")
def _squares(picture: Float[Array, " M *D"], steps: tuple[Step, ...]) -> tuple[Array, ...]:
    """Return z^2 after every step, k_2 and the sizes of windows left out."""
    first = next(place for place, step in enumerate(steps) if isinstance(step.layer, Conv))
    stages = _band.stages_of(steps[first:])
    squares: list[Array] = []
    for step in steps[:first]:
        picture = _on_picture(picture, step)
        squares.append(jnp.sum(jnp.square(picture), 0))
    source, variance = picture, jnp.sum(jnp.square(picture), 0)
    for place, stage in enumerate(stages):
        maps = _band.variances(stage, variance)
        squares += maps
        if stage.pool is not None:
            source = _band.propagate(stage, source, maps, picture=place == 0)
            variance = source[0]
            squares.append(variance)
    return tuple(squares)


def _on_picture(picture: Array, step: Step) -> Array:
    """Apply a layer that stands before the first convolution."""
    if isinstance(step.layer, Upsample):
        return _kernel.insert_zeros(picture, step.stride)
    if isinstance(step.layer, L2Pool):
        means = _kernel.window_means(jnp.square(picture), step.window, step.stride, step.margins)
        return _kernel.root(means) * math.sqrt(math.prod(step.window))
    assert isinstance(step.layer, AvgPool)
    return _kernel.window_means(picture, step.window, step.stride, step.margins)


__all__ = ["convergence_maps", "convergence_value"]
