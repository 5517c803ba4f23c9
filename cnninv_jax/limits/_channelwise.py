"""The layers of a random CNN that keep channels apart, and the patches that a convolution sees."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp

from cnninv_jax._typing import Array, Float
from cnninv_jax.limits._kernel import framed, insert_zeros, root, window_means
from cnninv_jax.limits.layers import AvgPool, L2Pool, Step, Upsample
from cnninv_jax.operators._patches import unfold


class Geometry(NamedTuple):
    """A layer as its arithmetic sees it; hashable, and what `unfold` reads of an operator.

    Attributes:
        kind: class of the layer.
        length: window per axis.
        stride: between windows; of upsampling, the factor.
        margins: zeros before and after.
        inputs: spatial shape that comes in.
        shifts: windows per axis: the spatial shape that goes out.
    """

    kind: type
    length: tuple[int, ...]
    stride: tuple[int, ...]
    margins: tuple[tuple[int, int], ...]
    inputs: tuple[int, ...]
    shifts: tuple[int, ...]

    @classmethod
    def of(cls, step: Step) -> Geometry:
        """Return the sizes of a planned layer."""
        return cls(type(step.layer), step.window, step.stride, step.margins, step.inputs, step.outputs)


def channelwise(maps: Float[Array, " M *D"], layer: Geometry) -> Float[Array, " M *n"]:
    """Apply one pooling or upsampling layer; the gradient of an l2 norm at zero is zero."""
    if layer.kind is Upsample:
        return insert_zeros(maps, layer.stride)
    if layer.kind is AvgPool:
        return window_means(maps, layer.length, layer.stride, layer.margins)
    assert layer.kind is L2Pool
    means = window_means(jnp.square(maps), layer.length, layer.stride, layer.margins)
    return root(means) * math.sqrt(math.prod(layer.length))


def through(maps: Float[Array, " M *D"], layers: tuple[Geometry, ...]) -> Float[Array, " M *n"]:
    """Apply such layers one after the other."""
    return functools.reduce(channelwise, layers, maps)


def patches(maps: Float[Array, " M *D"], conv: Geometry) -> Float[Array, " M*prod(ell) prod(n)"]:
    """Return what the windows of a convolution see, a column each."""
    return unfold(framed(maps, conv.margins), conv).reshape(-1, math.prod(conv.shifts))


__all__ = ["Geometry", "channelwise", "patches", "through"]
