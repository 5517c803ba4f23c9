"""Random weights for a CNN-DCN, and pictures through it with no training at all (Random DCN, Sec. 4).

Weights are a tuple of filter banks [K, M, *ell], one for every convolution, no biases. With weights as data and the
description static, ``jax.vmap`` over pictures and over networks works as for any pure function. On a CPU, one picture
after the other is quicker, in a Python loop or by ``jax.lax.map``: CD1 with 64 channels, eight pictures of 224 x 224,
takes 29 MiB in place of 201 and two thirds of the time that ``vmap`` takes (`benchmarks/dcn.py`). Networks side by side
are slower still, since XLA computes convolutions whose filters differ from example to example slowly there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax import filters
from cnninv_jax._numerics import as_float, convolve, float_dtype, matmul, per_axis, wider
from cnninv_jax._typing import Array, FilterBank, Float, PRNGKeyArray
from cnninv_jax.dcn.architecture import ConvDeconv, Convolution, Upsampling

Weights = tuple[FilterBank, ...]


def random_weights(
    key: PRNGKeyArray,
    net: ConvDeconv,
    *,
    law: str = "gaussian",
    deviation: float | Array | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> Weights:
    """Draw the filters of every convolution, independent and of mean zero.

    Args:
        key: random key; convolution i draws from ``fold_in(key, i)``, so networks that begin alike have the same
            first filters.
        net: the network.
        law: an ensemble of `cnninv_jax.filters.ENSEMBLES`.
        deviation: standard deviation of an entry, the same in all layers; the paper's N(0, 0.1) is 0.1, or sqrt(0.1)
            should 0.1 be the variance. None means sqrt(2 / (M prod(ell))) in each layer, which keeps maps at one
            scale through any depth. It does not matter to the similarity: without biases a ReLU network is
            positively homogeneous in every layer's filters, so that another deviation multiplies its output by a
            positive number, which `images.rescale` takes out again.
        dtype: of the filters; JAX's default float for None.

    Returns:
        One bank [K, M, *ell] for every convolution, in order.

    Raises:
        ValueError: an unknown law, or a deviation that is not positive.
    """
    if law not in filters.ENSEMBLES:
        raise ValueError(f"expected a law among {', '.join(filters.ENSEMBLES)}, got {law!r}")
    if isinstance(deviation, int | float | np.number) and not 0 < deviation < math.inf:
        raise ValueError(f"expected a positive deviation, got {deviation}")
    kind = float_dtype(dtype)
    banks = []
    for index, layer in enumerate(net.convolutions):
        size = layer.inputs * math.prod(layer.length)
        spread = math.sqrt(2 / size) if deviation is None else deviation
        banks.append(
            filters.ENSEMBLES[law](
                jax.random.fold_in(key, index),
                layer.outputs,
                layer.inputs,
                layer.length,
                scale=filters.scale_of(law, spread, size),
                dtype=kind,
            )
        )
    return tuple(banks)


def features(weights: Sequence[ArrayLike], net: ConvDeconv, picture: ArrayLike) -> Float[Array, "K h w"]:
    """Return the feature of a picture: the encoder's last maps, after the ReLU and before any pooling (Sec. 3.1).

    Args, errors and cost are those of `reconstruct`; only the encoder's filters are used.
    """
    banks, x = _checked(weights, net, picture)
    return _channels_first(_encode(banks, net, x))


def reconstruct(weights: Sequence[ArrayLike], net: ConvDeconv, picture: ArrayLike) -> Float[Array, " *channels H W"]:
    """Send a picture through encoder and decoder (Random DCN, Sec. 3.1).

    Poolings of 2 x 2 keep windows that stick out at the lower right (ceil mode), the decoder doubles maps by zero
    insertion, value first (Dosovitskiy and Brox 2016), or by repetition, and the surplus is cropped at the end: any
    picture size works.
    Filters of even length look one sample further to the lower right in the encoder and to the upper left in the
    decoder, so that the picture stays where it is.

    Args:
        weights: one bank [K, M, *ell] for every convolution of the network, as `random_weights` draws them.
        net: the network.
        picture: [3, H, W] ([1, H, W] where the network is for grey pictures).

    Returns:
        The output, [3, H, W], or [H, W] from a network that ends with the mean; in the wider dtype of weights and
        picture. Its range is arbitrary: `images.similarity` compares it with the picture.

    Raises:
        ValueError: weights that are not the network's, or a picture of other channels.

    Cost: ``net.multiply_adds(H, W)`` multiply-adds; memory for a few times the largest maps, width H W numbers.
    """
    banks, x = _checked(weights, net, picture)
    height, width = x.shape[1:3]
    return _decode(banks, net, _encode(banks, net, x), (height, width))


def decode(
    weights: Sequence[ArrayLike], net: ConvDeconv, feature: ArrayLike, size: tuple[int, int]
) -> Float[Array, " *channels H W"]:
    """Send a feature through the decoder: ``reconstruct(w, net, x)`` is ``decode(w, net, features(w, net, x), size)``.

    The feature need not be that of any picture, which is what style transfer makes use of (Sec. 4.4).

    Args:
        weights: as `reconstruct` takes them; only the decoder's are used.
        net: the network.
        feature: [K, h, w], as `features` returns it.
        size: of the picture, (H, W); each side is halved, rounded up, at each pooling to give (h, w).

    Returns:
        As `reconstruct`, in the wider dtype of weights and feature.

    Raises:
        ValueError: weights that are not the network's, or a feature of other channels or another size.
    """
    banks = _checked_banks(weights, net)
    maps = as_float(feature)
    channels = net.encoder[-1][-1].outputs
    height, width = per_axis(size, 2, "size")
    wanted = (channels, *(-(-side // 2**net.num_pools) for side in (height, width)))
    if maps.shape != wanted:
        raise ValueError(
            f"expected a feature of shape {wanted} for {net.name} and pictures of {height} x {width}, got "
            f"{maps.shape}; take what features(weights, net, picture) returns"
        )
    dtype, banks = _one_dtype(banks, maps)
    return _decode(banks, net, jnp.moveaxis(maps.astype(dtype), 0, -1)[None], (height, width))


def _decode(banks: Weights, net: ConvDeconv, maps: Array, size: tuple[int, int]) -> Array:
    used = sum(len(block) for block in net.encoder)
    for place, block in enumerate(net.decoder):
        if place:
            maps = _upsample(maps, net.upsampling)
        for layer in block:
            maps = _convolve(maps, banks[used], layer, mirrored=True)
            used += 1
    maps = maps[:, : size[0], : size[1]]
    return jnp.mean(maps, axis=-1)[0] if net.last == "mean" else _channels_first(maps)


def _encode(banks: Weights, net: ConvDeconv, maps: Array) -> Array:
    used = 0
    for place, block in enumerate(net.encoder):
        if place:
            maps = _pool(maps)
        for layer in block:
            maps = _convolve(maps, banks[used], layer, mirrored=False)
            used += 1
    return maps


def _convolve(maps: Array, bank: Array, layer: Convolution, *, mirrored: bool) -> Array:
    """Return the layer's maps; channels are the last axis, which is the quick layout on a CPU."""
    margins = [(ell // 2, (ell - 1) // 2) if mirrored else ((ell - 1) // 2, ell // 2) for ell in layer.length]
    if layer.outputs * math.prod(layer.length) <= layer.inputs:
        found = _few_outputs(maps, bank, margins)
    else:
        found = convolve(
            maps,
            jnp.transpose(bank, (2, 3, 1, 0)),
            window_strides=(1, 1),
            padding=margins,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return jnp.maximum(found, 0) if layer.relu else found


def _few_outputs(maps: Array, bank: Array, margins: list[tuple[int, int]]) -> Array:
    """Convolve to few maps: products with every tap first, which are shifted and added then.

    Three outputs fill no vector register; three times nine do. The products take less memory than the maps.
    """
    _, high, wide, inputs = maps.shape
    outputs, _, rows, columns = bank.shape
    taps = jnp.transpose(bank, (2, 3, 0, 1)).reshape(-1, inputs)
    products = matmul(taps, maps.reshape(-1, inputs).T).reshape(rows, columns, outputs, high, wide)
    widths = ((0, 0, 0), (0, 0, 0), (0, 0, 0), *((before, after, 0) for before, after in margins))
    padded = lax.pad(products, jnp.zeros((), products.dtype), widths)
    total = jnp.zeros((outputs, high, wide), products.dtype)
    for row in range(rows):
        for column in range(columns):
            total = total + padded[row, column, :, row : row + high, column : column + wide]
    return jnp.moveaxis(total, 0, -1)[None]


def _pool(maps: Array) -> Array:
    """Keep the largest of every 2 x 2 window, of those that stick out the largest of what they hold."""
    surplus = [(0, 0), *((0, size % 2) for size in maps.shape[1:3]), (0, 0)]
    # -inf as a number of Python's: an array in its place has no derivative.
    return lax.reduce_window(maps, -math.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), surplus)


def _upsample(maps: Array, upsampling: Upsampling) -> Array:
    """Put every value first in a block of 2 x 2 zeros, or in all places of its block."""
    if upsampling == "nearest":
        return jnp.repeat(jnp.repeat(maps, 2, axis=1), 2, axis=2)
    return lax.pad(maps, jnp.zeros((), maps.dtype), ((0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0)))


def _channels_first(maps: Array) -> Array:
    return jnp.moveaxis(maps[0], -1, 0)


def _checked(weights: Sequence[ArrayLike], net: ConvDeconv, picture: ArrayLike) -> tuple[Weights, Array]:
    """Return filters and the picture [1, H, W, M] in one dtype."""
    banks = _checked_banks(weights, net)
    x = as_float(picture)
    if x.ndim != 3 or x.shape[0] != net.channels or 0 in x.shape:
        raise ValueError(
            f"expected a picture [{net.channels}, H, W] for {net.name}, got shape {x.shape}; use jax.vmap for a batch"
        )
    dtype, banks = _one_dtype(banks, x)
    return banks, jnp.moveaxis(x.astype(dtype), 0, -1)[None]


def _checked_banks(weights: Sequence[ArrayLike], net: ConvDeconv) -> Weights:
    banks = tuple(as_float(bank) for bank in weights)
    shapes = [layer.shape for layer in net.convolutions]
    if [bank.shape for bank in banks] != shapes:
        raise ValueError(
            f"expected filters of shapes {shapes} for {net.name}, got {[bank.shape for bank in banks]}; draw them with "
            "random_weights(key, net)"
        )
    return banks


def _one_dtype(banks: Weights, maps: Array) -> tuple[jnp.dtype, Weights]:
    """Return the widest dtype of filters and maps, and the filters in it."""
    dtype = functools.reduce(wider, (bank.dtype for bank in banks), maps.dtype)
    return dtype, tuple(bank.astype(dtype) for bank in banks)


__all__ = ["Weights", "decode", "features", "random_weights", "reconstruct"]
