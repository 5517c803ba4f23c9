"""Sizes of VGG-16 and AlexNet at any width: their layers, and the maps that a picture becomes in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from cnninv_jax._numerics import per_axis
from cnninv_jax._typing import PerAxis
from cnninv_jax.data import ARCHITECTURES, ConvSpec
from cnninv_jax.nn._pool import Pool

#: Blocks of layers with a pool, or the end, behind them: conv[k] of Random DCN.
DEPTHS = (1, 2, 3, 4, 5)


def layers_of(name: str, *, last: str | None = None, width: float | Fraction = 1) -> tuple[ConvSpec, ...]:
    """Return the convolutional layers of a network, with so many times the filters.

    Args:
        name: ``vgg16``, ``alexnet`` (torchvision's) or ``alexnet-caffe`` (two groups, local response normalisation).
        last: conv3_1, or pool3 for all that stands in front of it; by default the whole convolutional part.
        width: factor of the numbers of filters, 1/8 for an eighth; each is rounded to the next number that falls into
            the layer's groups, and that of the next one, and is no less than one filter a group.

    Raises:
        ValueError: an unknown network or layer, or a width that is not positive.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"expected the network to be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    if not width > 0:
        raise ValueError(f"expected a positive width, got {width}")
    specs = ARCHITECTURES[name].layers
    names = [spec.name for spec in specs]
    ends = {**{spec.name: place for place, spec in enumerate(specs)}, **_pools(specs)}
    if last is not None and last not in ends:
        raise ValueError(f"expected a layer of {name} out of {', '.join(ends)}, got {last!r}")
    count = len(names) if last is None else ends[last] + 1
    found, channels = [], 3
    for place, spec in enumerate(specs):
        above = specs[place + 1].groups if place + 1 < len(specs) else 1
        parts = max(spec.groups, above)
        filters = max(1, round(spec.shape[0] * width / parts)) * parts
        shape = (filters, channels // spec.groups, *spec.shape[2:])
        found.append(dataclasses.replace(spec, shape=shape))
        channels = filters
    chosen = found[:count]
    if last is not None and last in names and chosen[-1].pool is not None:
        chosen[-1] = dataclasses.replace(chosen[-1], pool=None)
    return tuple(chosen)


def feature_layer(name: str, depth: int) -> str:
    """Return the layer of conv[k]: the last convolution of the network's k-th part (Random DCN, 3.1 and A.1.1).

    VGG-16's parts end in front of its pools (conv3_3 for k = 3), AlexNet's are its five convolutions.

    Raises:
        ValueError: an unknown network, or a depth other than 1 to 5.
    """
    if not isinstance(depth, int) or depth not in DEPTHS:
        raise ValueError(f"expected a depth of 1 to {len(DEPTHS)}, got {depth!r}")
    specs = layers_of(name)
    if name == "vgg16":
        return next(spec.name for spec in specs if spec.pool is not None and spec.pool.name == f"pool{depth}")
    return specs[depth - 1].name


def map_sizes(layers: Sequence[ConvSpec], size: PerAxis, *, ceil: bool = False) -> dict[str, tuple[int, int]]:
    """Return H, W of what every layer and pool puts out.

    Args:
        layers: in order.
        size: of the picture.
        ceil: whether pools keep windows that stick out.

    Raises:
        ValueError: a layer has no place for one window.
    """
    first = high, wide = per_axis(size, 2, "size")
    found = {}
    for spec in layers:
        high, wide = (
            (length + 2 * margin - ell) // step + 1
            for length, margin, ell, step in zip((high, wide), spec.padding, spec.shape[2:], spec.stride, strict=True)
        )
        found[spec.name] = (high, wide)
        if spec.pool is not None and min(high, wide) > 0:
            windows = zip((high, wide), spec.pool.window, spec.pool.stride, strict=True)
            high, wide = (Pool(side, step, ceil=ceil).regions(length) for length, side, step in windows)
            found[spec.pool.name] = (high, wide)
        if min(high, wide) < 1:
            raise ValueError(
                f"expected a picture large enough for {spec.name}, got {first[0]} x {first[1]}; take a larger one"
            )
    return found


def _pools(specs: Sequence[ConvSpec]) -> dict[str, int]:
    return {spec.pool.name: place for place, spec in enumerate(specs) if spec.pool is not None}


__all__ = ["DEPTHS", "feature_layer", "layers_of", "map_sizes"]
