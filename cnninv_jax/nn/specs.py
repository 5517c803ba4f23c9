"""What a classifier is before it has numbers: a list of layers, the shapes and parameters it comes to."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeAlias

from cnninv_jax.nn.blocks import Activation, Norm, Padding, ParameterCounts, Pool, channels_after


@dataclasses.dataclass(frozen=True)
class ConvLayer:
    """A convolution and what follows it, see `blocks.ConvBlock`.

    Attributes:
        name: in the paper's manner, conv1.
        kernel: side of the filters.
        channels: K, filters.
        stride: of the convolution.
        padding: samples added on every side, "SAME" or "VALID".
        activation: of the responses; CReLU hands on 2 K channels.
        norm: batch norm before the activation; without one a bias is added.
        pools: pooling of the features, one after the other.
        dropout: behind pooling.
        frozen: random N(0, 1) filters that never learn.
    """

    name: str
    kernel: int
    channels: int
    stride: int = 1
    padding: Padding = "SAME"
    activation: Activation = "relu"
    norm: Norm | None = None
    pools: tuple[Pool, ...] = ()
    dropout: float = 0.0
    frozen: bool = False

    def responses(self, size: int) -> int:
        """Return the samples per axis of the responses to so many; below 1 if there are none."""
        if self.padding == "SAME":
            return -(-size // self.stride)
        padding = 0 if self.padding == "VALID" else self.padding
        return (size + 2 * padding - self.kernel) // self.stride + 1


@dataclasses.dataclass(frozen=True)
class DenseLayer:
    """A dense product of all features, see `blocks.Dense`.

    Attributes:
        name: in the paper's manner, fc14.
        channels: features, or classes on top.
        activation: linear on top.
        norm: batch norm before the activation; without one a bias is added.
        dropout: behind the activation.
    """

    name: str
    channels: int
    activation: Activation = "linear"
    norm: Norm | None = None
    dropout: float = 0.0


Layer: TypeAlias = ConvLayer | DenseLayer


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A classifier as a list of layers; hashable, so that it can be static.

    Attributes:
        name: for people.
        layers: convolutions first. Without a dense layer the scores are the means over the last maps.
        size: side of the images it is made for.
        channels: of the images.
        dropout: on the images.
    """

    name: str
    layers: tuple[Layer, ...]
    size: int
    channels: int = 3
    dropout: float = 0.0

    @property
    def convolutions(self) -> tuple[ConvLayer, ...]:
        """The convolutional layers."""
        return tuple(layer for layer in self.layers if isinstance(layer, ConvLayer))

    @property
    def classes(self) -> int:
        """Scores that come out."""
        last = self.layers[-1]
        return channels_after(last.channels, last.activation)


class LayerShapes(NamedTuple):
    """Shapes of one layer: (side, side, channels), or (channels,) for a dense one.

    Attributes:
        name: of the layer.
        inputs: what it sees; flattened for a dense layer.
        responses: what its product gives, the number of filters last.
        features: what it hands on, after activation and pooling.
    """

    name: str
    inputs: tuple[int, ...]
    responses: tuple[int, ...]
    features: tuple[int, ...]


def output_shapes(spec: NetworkSpec, size: int | None = None) -> tuple[LayerShapes, ...]:
    """Return the shapes of every layer for square images.

    Args:
        spec: the network.
        size: side of the images, by default the one that the network is made for.

    Raises:
        ValueError: no layer, a convolution behind a dense layer, or images too small for a layer.
    """
    if not spec.layers:
        raise ValueError(f"expected layers, got none in {spec.name!r}")
    found: list[LayerShapes] = []
    side = spec.size if size is None else size
    shape: tuple[int, ...] = (side, side, spec.channels)
    for layer in spec.layers:
        if isinstance(layer, DenseLayer):
            inputs = (shape[0] * shape[1] * shape[2],) if len(shape) == 3 else shape
            shape = (channels_after(layer.channels, layer.activation),)
            found.append(LayerShapes(layer.name, inputs, (layer.channels,), shape))
            continue
        if len(shape) != 3:
            raise ValueError(f"expected convolutions before dense layers, got {layer.name} behind {found[-1].name}")
        inputs, responses = shape, layer.responses(shape[0])
        features = responses
        for pool in layer.pools:
            features = pool.regions(features) if features > 0 else 0
        if min(responses, features) < 1:
            raise ValueError(
                f"expected images large enough for {layer.name} of {spec.name}, got {side} x {side}; "
                f"it is made for {spec.size} x {spec.size}"
            )
        shape = (features, features, channels_after(layer.channels, layer.activation))
        found.append(LayerShapes(layer.name, inputs, (responses, responses, layer.channels), shape))
    return tuple(found)


def parameter_counts(spec: NetworkSpec, size: int | None = None) -> ParameterCounts:
    """Return the numbers of a network; see `output_shapes` for arguments and errors.

    The size of the images matters to networks with dense layers only.
    """
    weights = biases = norm = frozen = 0
    for layer, shapes in zip(spec.layers, output_shapes(spec, size), strict=True):
        entries = _weights(layer, shapes)
        if isinstance(layer, ConvLayer) and layer.frozen:
            frozen += entries
        else:
            weights += entries
        if layer.norm is None:
            biases += layer.channels
        elif layer.norm == "learned":
            norm += 2 * layer.channels
    return ParameterCounts(weights, biases, norm, frozen)


def multiply_adds(spec: NetworkSpec, size: int | None = None) -> int:
    """Return multiply-adds of all products for one image, computed as defined (no fast convolution)."""
    total = 0
    for layer, shapes in zip(spec.layers, output_shapes(spec, size), strict=True):
        places = shapes.responses[0] * shapes.responses[1] if isinstance(layer, ConvLayer) else 1
        total += places * _weights(layer, shapes)
    return total


def _weights(layer: Layer, shapes: LayerShapes) -> int:
    taps = layer.kernel**2 if isinstance(layer, ConvLayer) else 1
    return taps * shapes.inputs[-1] * layer.channels


__all__ = [
    "ConvLayer",
    "DenseLayer",
    "Layer",
    "LayerShapes",
    "NetworkSpec",
    "multiply_adds",
    "output_shapes",
    "parameter_counts",
]
