"""Theorems 3 and 9 of Random DCN: how far the limit of a random CNN is from the picture, for l2 pooling and upsampling.

Phi is the angle between the limit f* and the picture, whose entries are not negative. Several channels enter by their
norm |X_t|, which is all that f* sees of them.

Everything works under jit and vmap; what lies outside a bound's domain is NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, norm
from cnninv_jax._typing import Array, Float, PerAxis, Scalar
from cnninv_jax.limits._kernel import root
from cnninv_jax.limits.angles import cosine_angle
from cnninv_jax.limits.layers import Conv, Network, Step, Upsample
from cnninv_jax.limits.routes import route_factors, routed, weighted_norm, window_sums


def theorem_9(image: Float[ArrayLike, " M *D"], length: PerAxis) -> Scalar:
    """Return the bound of Theorem 9 on cos(Phi), for one convolution with zero padding (Random DCN).

    1 - (1/|X|^2) sum over t of epsilon_t X_t with epsilon_t = X_t - Xbar_t; Xbar_t is the mean of the window around
    pixel t with the zeros of the margin counted, as the proof needs it: the mean of the pixels alone would promise
    cos(Phi) = 1 of a flat picture, whose limit is darker at the border.

    Args:
        image: picture, [M, *D]. With several channels X_t is the norm over them, which is what f* sees.
        length: ell of the convolution.

    Returns:
        The bound; NaN where an entry of a picture of one channel is negative or where all are zero.

    Raises:
        ValueError: not a picture, or not a length.
    """
    return theorem_9_multilayer(image, (Conv(length, padding="same"),))


#: Theorem 3 is Theorem 9 in the text's own numbering.
theorem_3 = theorem_9


def theorem_9_multilayer(image: Float[ArrayLike, " M *D"], layers: Network) -> Scalar:
    """Return the bound of Theorem 9 on cos(Phi) for several convolutions with zero padding (Random DCN, A.3.3).

    As `theorem_9`, with Xbar_t = sum over alpha of n_(alpha,t) X_alpha / Omega; Omega counts the routes into an output
    entry far from the border, the product of the window sizes, so that a route from a margin counts as a zero.

    Args:
        image: picture, [M, *D].
        layers: convolutions of stride 1 with same padding; X_t then lies at a fixed place in the receptive field of
            output t, and n depends on their distance only, as the paper supposes.

    Returns:
        The bound; NaN where an entry of a picture of one channel is negative or where all are zero.

    Raises:
        ValueError: not such a network. `theorem_9_refined` takes strides, pools and upsampling.
    """
    picture = _magnitudes(image)
    steps = routed(layers, as_float(image).shape)
    for place, step in enumerate(steps):
        if isinstance(step.layer, Upsample) or max(step.stride) > 1 or step.inputs != step.outputs:
            raise ValueError(
                f"expected layers of stride 1 that keep the size of the maps, got layer {place + 1}, "
                f"{type(step.layer).__name__} from {step.inputs} to {step.outputs} with stride {step.stride}; use "
                "padding='same', or theorem_9_refined, which holds for any network as large at the end as the picture"
            )
    total = math.prod(float(math.prod(step.window)) for step in steps)
    return jnp.sum(picture * (_routes(picture, steps) / total)) / jnp.sum(picture * picture)


def theorem_9_refined(image: Float[ArrayLike, " M *D"], layers: Network) -> Scalar:
    """Return the bound on cos(Phi) that Theorem 9's proof gives before it rounds, for any network with l2 pooling.

    Cauchy-Schwarz in every receptive field is all that is used,

        cos(Phi) >= sum over t of X_t (sum over alpha of n_(alpha,t) X_alpha) / sqrt(sum over alpha of n_(alpha,t))
                    / (|z*| |X|),

    so that n may depend on the place: strides, pools and upsampling are welcome where they lead back to the size of
    the picture. Never below `theorem_9_multilayer`.

    Args:
        image: picture, [M, *D].
        layers: a network whose output is as large as the picture.

    Returns:
        The bound; NaN where an entry of a picture of one channel is negative, or where the picture or f* is zero.

    Raises:
        ValueError: not a network, average pooling, or an output of another size.
    """
    picture = _magnitudes(image)
    steps = _sized(layers, as_float(image).shape)
    rows = [factor.sum(axis=1) for factor in route_factors(layers, as_float(image).shape)]
    routes = jnp.asarray(functools.reduce(np.multiply.outer, rows), picture.dtype)
    below = jnp.where(routes == 0, 0.0, _routes(picture, steps) / jnp.sqrt(jnp.where(routes == 0, 1.0, routes)))
    return jnp.sum(picture * below) / (norm(weighted_norm(picture[None], layers)) * norm(picture))


def cosine_to_image(image: Float[ArrayLike, " M *D"], layers: Network) -> Scalar:
    """Return cos(Phi) itself, between the limit f* and the picture, for a network with l2 pooling (Random DCN, Thm 9).

    Args:
        image: picture, [M, *D]; several channels enter by their norm, as in `theorem_9`.
        layers: a network whose output is as large as the picture.

    Returns:
        A number in [-1, 1]; 0 where the picture or f* is zero.

    Raises:
        ValueError: not a network, average pooling, or an output of another size.
    """
    picture = as_float(image)
    _sized(layers, picture.shape)
    return cosine_angle(weighted_norm(picture, layers), picture[0] if picture.shape[0] == 1 else _magnitudes(picture))


def _routes(values: Float[Array, " *D"], steps: Sequence[Step]) -> Float[Array, " *D_out"]:
    """Return sum over alpha of n_(alpha,t) values_alpha."""
    return functools.reduce(window_sums, steps, values)


def _magnitudes(image: Float[ArrayLike, " M *D"]) -> Float[Array, " *D"]:
    """Return the picture of one channel, NaN all over if an entry is negative, or the norm over several channels."""
    picture = as_float(image)
    if picture.shape[0] > 1:
        return root(jnp.sum(picture * picture, axis=0))
    return jnp.where(jnp.min(picture) < 0, jnp.nan, picture[0])


def _sized(layers: Network, image_shape: tuple[int, ...]) -> tuple[Step, ...]:
    steps = routed(layers, image_shape)
    if steps[-1].outputs != image_shape[1:]:
        raise ValueError(
            f"expected an output as large as the picture, {image_shape[1:]}, got {steps[-1].outputs}; use "
            "padding='same', and an Upsample for every stride and pool"
        )
    return steps


__all__ = ["cosine_to_image", "theorem_3", "theorem_9", "theorem_9_multilayer", "theorem_9_refined"]
