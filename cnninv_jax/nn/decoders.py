"""Decoders that mirror a network back to the picture: without switches (Random DCN), with them (Gilbert et al. 2017).

Both take the network's convolutions backward, inputs and outputs exchanged, and learn all their filters. A convolution
that had padding p on every side is mirrored with ell - 1 - p zeros before and p behind: a value reaches what it was
computed from. AlexNet's first stride of 4 is undone like a pooling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from cnninv_jax._numerics import per_axis
from cnninv_jax._typing import Array, Float, PerAxis, PRNGKeyArray, Shaped
from cnninv_jax.data import ConvSpec, Pool
from cnninv_jax.dcn.architecture import Upsampling
from cnninv_jax.nn.backbones import Convolution, switches_name
from cnninv_jax.nn.blocks import LEAKY_SLOPE, Activation, activate, msra
from cnninv_jax.nn.geometry import feature_layer, layers_of, map_sizes
from cnninv_jax.nn.pooling import unpool, upsample

#: Maps behind a pool, the pool, and the size they had before it, to maps of about that size.
_Undo: TypeAlias = Callable[[Array, Pool, tuple[int, int]], Array]


class _Mirror(nnx.Module):
    """A network's convolutions backward; the way back through a pool is the caller's."""

    def __init__(
        self,
        layers: Sequence[ConvSpec],
        activation: Activation,
        upsampling: Upsampling,
        ceil: bool,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.layers = tuple(layers)
        self.activation: Activation = activation
        self.upsampling: Upsampling = upsampling
        self.ceil, self.dtype = ceil, dtype
        initialise = msra(LEAKY_SLOPE if activation == "leaky_relu" else 0.0)
        convolutions = {}
        for spec in reversed(self.layers):
            filters, channels, *length = spec.shape
            outputs = channels * spec.groups
            convolutions[spec.name] = Convolution(
                initialise(rngs.params(), (*length, filters // spec.groups, outputs), param_dtype),
                jnp.zeros(outputs, param_dtype),
                margins=_mirrored(length, spec.padding),
                groups=spec.groups,
                frozen=False,
                dtype=dtype,
            )
        self.convolutions = nnx.Dict(convolutions)

    def _back(self, maps: Array, size: PerAxis, undo: _Undo) -> Float[Array, "B H W 3"]:
        high, wide = per_axis(size, 2, "size")
        sizes = map_sizes(self.layers, (high, wide), ceil=self.ceil)
        first = self.layers[-1]
        top = first.name if first.pool is None else first.pool.name
        expected = (*sizes[top], first.shape[0])
        if maps.ndim != 4 or maps.shape[1:] != expected or not jnp.issubdtype(maps.dtype, jnp.floating):
            raise ValueError(
                f"expected float maps [B, {', '.join(map(str, expected))}] of {top} for pictures of {high} x {wide}, "
                f"got {maps.dtype} of shape {maps.shape}"
            )
        maps = maps.astype(self.dtype)
        for place, spec in reversed(list(enumerate(self.layers))):
            if spec.pool is not None:
                maps = undo(maps, spec.pool, sizes[spec.name])
            if max(spec.stride) > 1:
                below = self.layers[place - 1]
                seen = sizes[below.name if below.pool is None else below.pool.name] if place else (high, wide)
                maps = upsample(maps, spec.stride, self.upsampling, seen)
            maps = self.convolutions[spec.name](maps)
            if place:
                maps = activate(maps, self.activation)
        return maps[:, :high, :wide]


class DCN(_Mirror):
    """Decoder of conv[k]: mirrored convolutions, upsampling where the network pools, a final crop (Random DCN, 3.1).

    Leaky ReLU of slope 0.2 behind all convolutions but the last (A.1.1), filters initialised as He et al. 2015 have it
    ("MSRA", A.2.1). Where a pooling dropped samples at the lower right, the upsampled maps are filled up to the size
    they had; what is more than the picture is cropped at the end.

    Args:
        name: of the network whose features come in: ``vgg16``, ``alexnet`` or ``alexnet-caffe``.
        depth: k, 1 to 5: the features are conv[k] behind its ReLU and before pooling, see `geometry.feature_layer`.
        width: factor of the numbers of filters, that of the `Backbone`.
        upsampling: ``"zeros"``, a value first in a block of zeros (A.1.1), or ``"nearest"``.
        activation: ``"leaky_relu"``; or ``"relu"``, which the untrained decoders of Random DCN, 4, have.
        ceil: whether the network's pools keep windows that stick out, see `Backbone`.
        dtype: of computation.
        param_dtype: of what is stored.
        rngs: source of the first filters.

    Attributes:
        tap: what the decoder needs of a `Backbone`, such as conv3_3.

    Raises:
        ValueError: names, depth or width that do not fit.
    """

    def __init__(
        self,
        name: str = "vgg16",
        depth: int = 1,
        *,
        width: float | Fraction = 1,
        upsampling: Upsampling = "zeros",
        activation: Activation = "leaky_relu",
        ceil: bool = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.tap = feature_layer(name, depth)
        layers = layers_of(name, last=self.tap, width=width)
        super().__init__(layers, activation, upsampling, ceil, dtype, param_dtype, rngs)

    def __call__(
        self,
        features: Float[Array, "B h w K"],
        size: PerAxis | None = None,
        *,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B H W 3"]:
        """Return pictures.

        Args:
            features: of conv[k]: what a `Backbone` puts out at `tap`.
            size: H, W of the pictures; static. None for as many pixels as the upsampled features have: right where
                no pooling and no stride left a rest, as in VGG-16 at 224 x 224.
            train: as for every network here; nothing in a decoder depends on it.
            key: likewise.

        Raises:
            ValueError: features that no picture of this size has.
        """
        del train, key
        if size is None:
            steps = [step for spec in self.layers for step in (spec.stride, spec.pool.stride if spec.pool else (1, 1))]
            high, wide = (math.prod(step) for step in zip(*steps, strict=True))
            size = (high * features.shape[1], wide * features.shape[2])
        return self._back(
            features, size, lambda maps, pool, before: upsample(maps, pool.stride, self.upsampling, before)
        )


class WhatWhereDecoder(_Mirror):
    """Decoder of pool(i) that unpools with the switches of pool(i) and every pool below (Gilbert et al. 2017, 4.5).

    "What" is the pooled activation, "where" are the switches (Zhao et al. 2016; Zhang et al. 2016). It unpools, and
    goes through the mirrored convolutions with a ReLU behind each but the last.

    Args:
        name: of the network whose activations come in: ``vgg16``, ``alexnet`` or ``alexnet-caffe``.
        pool: the pool's name, such as pool4.
        width: factor of the numbers of filters, that of the `Backbone`.
        ceil: whether the network's pools keep windows that stick out, see `Backbone`.
        dtype: of computation.
        param_dtype: of what is stored.
        rngs: source of the first filters.

    Attributes:
        taps: what the decoder needs of a `Backbone`: the pool, and the switches from it downward.

    Raises:
        ValueError: an unknown network or pool, or a width that is not positive.
    """

    def __init__(
        self,
        name: str = "vgg16",
        pool: str = "pool1",
        *,
        width: float | Fraction = 1,
        ceil: bool = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers_of(name, last=pool, width=width)
        if layers[-1].pool is None:
            raise ValueError(f"expected the name of a pool, such as pool4, got {pool!r}")
        super().__init__(layers, "relu", "zeros", ceil, dtype, param_dtype, rngs)
        pools = [spec.pool.name for spec in reversed(layers) if spec.pool is not None]
        self.taps = (pool, *map(switches_name, pools))

    def __call__(
        self, maps: Float[Array, "B h w K"], switches: Mapping[str, Shaped[Array, "B h w C"]], size: PerAxis
    ) -> Float[Array, "B H W 3"]:
        """Return pictures.

        Args:
            maps: the pool's values, or others in their place.
            switches: by name, see `taps`; other entries are not read, so that all that a `Backbone` returns can be
                given.
            size: H, W of the pictures; static.

        Raises:
            ValueError: switches that lack, or maps that no picture of this size has.
        """
        missing = [tap for tap in self.taps[1:] if tap not in switches]
        if missing:
            raise ValueError(f"expected {', '.join(self.taps[1:])}, got no {missing[0]}; ask the network for them")

        def undo(maps: Array, pool: Pool, before: tuple[int, int]) -> Array:
            return unpool(maps, switches[switches_name(pool.name)], before, pool.window, pool.stride)

        return self._back(maps, size, undo)


def _mirrored(length: Sequence[int], padding: Sequence[int]) -> list[tuple[int, int]]:
    return [(ell - 1 - margin, margin) for ell, margin in zip(length, padding, strict=True)]


__all__ = ["DCN", "WhatWhereDecoder"]
