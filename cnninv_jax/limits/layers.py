"""What a random CNN consists of: small frozen descriptions of layers, and the sizes they lead to.

A network is a tuple of descriptions, such as ``(Conv(3, 64), AvgPool(2), Conv(3, 64, padding="same"))``. ReLU follows
every convolution (Random DCN, Sec. 5), feature maps are divided by sqrt(N_i) except the last ones, and the channels of
the last convolution are averaged; `ChannelMean` at the end says so in words and may be left out. The same description
gives the limit (`convergence_value`) and a draw of the finite network (`random_output`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from cnninv_jax._numerics import per_axis
from cnninv_jax._typing import PerAxis
from cnninv_jax.operators.conv import Padding


def _hashable(layer: object, *names: str) -> None:
    """Make lists tuples, so that a description can be a static argument."""
    for name in names:
        if isinstance(value := getattr(layer, name), list):
            object.__setattr__(layer, name, tuple(value))


@dataclass(frozen=True)
class Conv:
    """A convolution with random filters, followed by a ReLU.

    Attributes:
        length: ell, per spatial axis or one number for all.
        channels: number of filters N_i; None where only the limit is wanted, or to be given as ``width``.
        stride: t.
        padding: ``"valid"``, or ``"same"``: zeros around the maps, as many outputs as ceil(D / t).
    """

    length: PerAxis
    channels: int | None = None
    stride: PerAxis = 1
    padding: Padding = "valid"

    def __post_init__(self) -> None:
        _hashable(self, "length", "stride")


@dataclass(frozen=True)
class L2Pool:
    """The l2 norm of every window, channel by channel.

    Attributes:
        size: of the windows.
        stride: between them; None puts them side by side.
    """

    size: PerAxis
    stride: PerAxis | None = None

    def __post_init__(self) -> None:
        _hashable(self, "size", "stride")


@dataclass(frozen=True)
class AvgPool:
    """The arithmetic mean of every window, channel by channel.

    Attributes:
        size: of the windows.
        stride: between them; None puts them side by side.
    """

    size: PerAxis
    stride: PerAxis | None = None

    def __post_init__(self) -> None:
        _hashable(self, "size", "stride")


@dataclass(frozen=True)
class Upsample:
    """Zero insertion: every entry becomes a block of ``factor`` entries per axis, the value first, then zeros.

    Attributes:
        factor: r.
    """

    factor: PerAxis

    def __post_init__(self) -> None:
        _hashable(self, "factor")


@dataclass(frozen=True)
class ChannelMean:
    """The arithmetic mean over the channels of the last convolution; only at the end."""


Layer: TypeAlias = Conv | L2Pool | AvgPool | Upsample
Network: TypeAlias = Sequence[Layer | ChannelMean]


class Step(NamedTuple):
    """A layer with its sizes, one number per spatial axis; hashable, so that it can be static.

    Attributes:
        layer: its description.
        convolution: which convolution it is, from 0; for other layers, how many came before.
        window: what an output entry sees of the padded input; 1 for upsampling.
        stride: between windows; for upsampling, the factor.
        margins: zeros before and after the input (the second may be negative: entries that no window sees).
        inputs: spatial shape that comes in.
        outputs: spatial shape that goes out.
    """

    layer: Layer
    convolution: int
    window: tuple[int, ...]
    stride: tuple[int, ...]
    margins: tuple[tuple[int, int], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def plan(layers: Network, image_shape: Sequence[int]) -> tuple[Step, ...]:
    """Return the layers with their sizes; `ChannelMean` is left out, since the last convolution is averaged anyhow.

    Args:
        layers: the network.
        image_shape: of the picture, (M, *D).

    Raises:
        ValueError: not a network, or one that does not fit the picture.
    """
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise ValueError(f"expected a network as a tuple of layers, got {layers!r}; put it into one: (Conv(3),)")
    described = tuple(layers)
    if described and isinstance(described[-1], ChannelMean):
        described = described[:-1]
    network: list[Layer] = []
    for place, layer in enumerate(described):
        if not isinstance(layer, Layer):
            got = "a ChannelMean before the end" if isinstance(layer, ChannelMean) else repr(layer)
            raise ValueError(f"expected layer {place + 1} to be a Conv, L2Pool, AvgPool or Upsample, got {got}")
        network.append(layer)
    if not network or not isinstance(network[-1], Conv):
        got = repr(network[-1]) if network else "no layer"
        raise ValueError(f"expected the last layer to be a Conv, whose channels are averaged, got {got}; add one")
    if len(image_shape) < 2:
        raise ValueError(f"expected a picture [M, *D], got shape {tuple(image_shape)}; add the channel axis in front")
    steps: list[Step] = []
    shape = tuple(image_shape[1:])
    count = 0
    for place, layer in enumerate(network):
        name = f"layer {place + 1}, {type(layer).__name__}"
        step = _step(layer, count, shape, name)
        steps.append(step)
        shape = step.outputs
        count += isinstance(layer, Conv)
    return tuple(steps)


def _step(layer: Layer, index: int, shape: tuple[int, ...], name: str) -> Step:
    rank = len(shape)
    if isinstance(layer, Upsample):
        factor = per_axis(layer.factor, rank, f"the factor of {name}")
        grown = tuple(size * by for size, by in zip(shape, factor, strict=True))
        return Step(layer, index, (1,) * rank, factor, ((0, 0),) * rank, shape, grown)
    if isinstance(layer, Conv):
        window = per_axis(layer.length, rank, f"the length of {name}")
        stride = per_axis(layer.stride, rank, f"the stride of {name}")
        if layer.channels is not None and not hasattr(layer.channels, "__index__"):
            raise ValueError(f"expected the channels of {name} to be a whole number, got {layer.channels!r}; give one")
        if layer.channels is not None:
            per_axis(layer.channels, 1, f"the channels of {name}")
        if layer.padding not in ("valid", "same"):
            raise ValueError(f"expected the padding of {name} to be 'valid' or 'same', got {layer.padding!r}")
        same = layer.padding == "same"
    else:
        window = per_axis(layer.size, rank, f"the size of {name}")
        stride = per_axis(window if layer.stride is None else layer.stride, rank, f"the stride of {name}")
        same = False
    if same:
        outputs = tuple(-(-size // by) for size, by in zip(shape, stride, strict=True))
    else:
        outputs = tuple((size - ell) // by + 1 for size, ell, by in zip(shape, window, stride, strict=True))
        for axis, (size, ell, by, count) in enumerate(zip(shape, window, stride, outputs, strict=True)):
            fit = ell + max(0, count - 1) * by
            if size != fit:
                nearest = f"{fit} or {fit + by}" if size > ell else f"{ell}"
                raise ValueError(
                    f"expected {name} (window {ell}, stride {by}) to tile axis {axis} of the maps it meets, "
                    f"whose length is {size}; a length of {nearest} would fit"
                )
    margins = []
    for size, ell, by, count in zip(shape, window, stride, outputs, strict=True):
        total = (count - 1) * by + ell - size
        before = max(total, 0) // 2
        margins.append((before, total - before))
    return Step(layer, index, window, stride, tuple(margins), shape, outputs)


__all__ = [
    "AvgPool",
    "ChannelMean",
    "Conv",
    "L2Pool",
    "Layer",
    "Network",
    "Step",
    "Upsample",
    "plan",
]
