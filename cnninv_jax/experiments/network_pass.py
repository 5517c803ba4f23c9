"""Pictures through the convolutional layers of VGG-16 and AlexNet: responses before the ReLU, pooled outputs.

h_i = W_i x_{i-1} + b_i,  x_i = pool(max(h_i, 0)); AlexNet of 2012 normalises between ReLU and pool:
x / (1 + 1e-4 / 5 * (sum of x^2 over 5 channels))^0.75, Caffe's constants. The geometry is static and the weights are
data: other weights of the same network compile nothing anew.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax import data, filters
from cnninv_jax._numerics import PRECISION, as_float
from cnninv_jax._typing import Array, Float, PRNGKeyArray

#: Caffe's local response normalisation in AlexNet: channels in a window, factor, exponent.
_WINDOW, _FACTOR, _EXPONENT = 5, 1e-4, 0.75

#: Filters and bias of a layer, by its name; filters as [*ell, M / groups, K].
Weights: TypeAlias = Mapping[str, tuple[Array, Array]]


def random_network(
    name: str, key: PRNGKeyArray, *, layers: int | None = None, dtype: jax.typing.DTypeLike = jnp.float32
) -> data.Network:
    """Draw a network of a known architecture: filters N(0, 1/(M l^2)), no biases.

    Args:
        name: ``vgg16``, ``alexnet`` or ``alexnet-caffe``.
        key: random key; layer i uses fold_in(key, i).
        layers: only the first so many.
        dtype: of the draws; the network holds float32.

    Raises:
        ValueError: an unknown name.
    """
    if name not in data.ARCHITECTURES:
        raise ValueError(f"expected the network to be one of {', '.join(data.ARCHITECTURES)}, got {name!r}")
    architecture = data.ARCHITECTURES[name]
    drawn = []
    specs = architecture.layers[:layers]
    for spec, bank in zip(specs, _draw_banks(tuple(spec.shape for spec in specs), jnp.dtype(dtype), key), strict=True):
        values = np.asarray(bank, np.float32)
        values.setflags(write=False)
        drawn.append(
            data.ConvLayer(
                spec.name, values, None, spec.stride, spec.padding, spec.groups, spec.pool, spec.normalize, None
            )
        )  # fmt: skip
    note = "filters drawn from N(0, 1/(M l^2)), no biases: not a trained network"
    prepared = data.PREPROCESSINGS[architecture.preprocessing]
    return data.Network(name, tuple(drawn), architecture, prepared, "random", (note,))


def activations(network: data.Network, picture: ArrayLike) -> dict[str, Float[Array, " K *n"]]:
    """Return every layer's response before the ReLU and every pool's output, for one picture.

    Args:
        network: a known one, see `data.load_network`; layers after a missing one are left out.
        picture: [3, H, W], RGB in [0, 1]; prepared here as the network expects it.

    Returns:
        ``{"conv1_1": [K, *n], ..., "pool1": [K, *n]}`` in the order of the layers, in the picture's dtype.

    Raises:
        ValueError: the network is unknown or lacks its first layer; the picture has another shape or is too small.

    Cost: one pass; all responses are in memory (VGG-16 at 224 x 224: 60 MB).
    """
    image = as_float(picture)
    geometry = check_picture(network, image.shape)
    outputs = _forward(geometry, weights(network, image.dtype), prepare(network, image))
    return {name: jnp.moveaxis(outputs[name], -1, 0) for name in output_names(geometry)}


def shares(network: data.Network, picture: ArrayLike, held: Weights | None = None) -> dict[str, Float[Array, ""]]:
    """Return the share of positive entries of every layer after its ReLU, and of every pool (Gilbert 2017, Table 2).

    Args, errors and cost are those of `activations`; only one number a layer leaves the device. ``held`` are the
    network's `weights` in the picture's dtype, where many pictures are to be passed.
    """
    image = as_float(picture)
    geometry = check_picture(network, image.shape)
    held = weights(network, image.dtype) if held is None else held
    found = _shares(geometry, held, prepare(network, image))
    return {name: found[name] for name in output_names(geometry)}


def output_names(layers: Sequence[data.ConvSpec | data.ConvLayer]) -> tuple[str, ...]:
    """Return the names of what the layers put out, in order: conv1_1, conv1_2, pool1, ..."""
    return tuple(name for layer in layers for name in (layer.name, *(() if layer.pool is None else (layer.pool.name,))))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw_banks(shapes: tuple[tuple[int, ...], ...], dtype: jnp.dtype, key: PRNGKeyArray) -> list[Array]:
    return [
        filters.gaussian(jax.random.fold_in(key, index), shape[0], shape[1], shape[2:], dtype=dtype)
        for index, shape in enumerate(shapes)
    ]


def prepare(network: data.Network, picture: Float[Array, "3 H W"]) -> Float[Array, "3 H W"]:
    """Turn a picture (RGB in [0, 1]) into the network's input, see `data.Preprocessing`."""
    way = network.preprocessing or data.PREPROCESSINGS["none"]
    channels = picture[::-1] if way.reverse else picture
    mean, deviation = (np.asarray(values)[:, None, None] for values in (way.mean, way.deviation))
    return (channels * way.scale - mean.astype(picture.dtype)) / deviation.astype(picture.dtype)


def weights(network: data.Network, dtype: jax.typing.DTypeLike) -> Weights:
    """Return the layers' filters as [*ell, M / groups, K], and their biases (zeros for none), on the device."""
    return {
        layer.name: (
            jnp.asarray(np.moveaxis(layer.filters, (0, 1), (-1, -2)), dtype),
            jnp.zeros(layer.num_filters, dtype) if layer.bias is None else jnp.asarray(layer.bias, dtype),
        )
        for layer in network.runnable
    }


def check_picture(network: data.Network, shape: Sequence[int]) -> tuple[data.ConvSpec, ...]:
    """Return the static geometry of the layers that a picture of this shape passes through.

    Raises:
        ValueError: the picture has another number of channels, or a layer has no place for one window.
    """
    layers = network.runnable
    geometry = tuple(
        data.ConvSpec(
            layer.name, layer.filters.shape, layer.stride, layer.padding, layer.groups, layer.pool, layer.normalize
        )
        for layer in layers
    )
    channels = layers[0].channels
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(f"expected a picture [{channels}, H, W], got shape {tuple(shape)}; put the channels first")
    size = tuple(shape[1:])
    for spec in geometry:
        size = _windows(size, spec.shape[2:], spec.stride, spec.padding)
        if min(size) > 0 and spec.pool is not None:
            size = _windows(size, spec.pool.window, spec.pool.stride, (0, 0))
        if min(size) < 1:
            raise ValueError(
                f"expected a picture large enough for {spec.name}, got {shape[1]} x {shape[2]}; "
                f"{network.name} was made for {_usual(network)}"
            )
    return geometry


def _usual(network: data.Network) -> str:
    size = 224 if network.architecture is None else network.architecture.size
    return f"{size} x {size}"


def _windows(
    size: Sequence[int], window: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, ...]:
    axes = zip(size, window, stride, padding, strict=True)
    return tuple((length + 2 * margin - ell) // step + 1 for length, ell, step, margin in axes)


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    geometry: tuple[data.ConvSpec, ...], weights: Weights, image: Float[Array, "3 H W"]
) -> dict[str, Float[Array, "*n K"]]:
    """Return responses and pools with channels last, the layout in which a CPU convolves fastest."""
    outputs: dict[str, Any] = {}
    x = jnp.moveaxis(image, 0, -1)[None]
    for spec in geometry:
        kernel, bias = weights[spec.name]
        response = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=spec.stride,
            padding=[(margin, margin) for margin in spec.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=spec.groups,
            precision=PRECISION,
        )
        response = response + bias[None, None, None, :]
        outputs[spec.name] = response[0]
        x = jax.nn.relu(response)
        if spec.normalize:
            x = _normalized(x)
        if spec.pool is not None:
            window, stride = (1, *spec.pool.window, 1), (1, *spec.pool.stride, 1)
            x = lax.reduce_window(x, -jnp.inf, lax.max, window, stride, "VALID")
            outputs[spec.pool.name] = x[0]
    return outputs


def _normalized(x: Float[Array, "1 *n K"]) -> Float[Array, "1 *n K"]:
    """Divide by (1 + factor / window * sum of squares over a window of channels)^exponent, Caffe's LRN."""
    margin = [(0, 0, 0)] * (x.ndim - 1) + [(_WINDOW // 2, _WINDOW // 2, 0)]
    squares = lax.pad(x * x, jnp.zeros((), x.dtype), margin)
    total = sum(lax.slice_in_dim(squares, i, i + x.shape[-1], axis=-1) for i in range(_WINDOW))
    return x * (1.0 + _FACTOR / _WINDOW * total) ** -_EXPONENT


@functools.partial(jax.jit, static_argnums=0)
def _shares(
    geometry: tuple[data.ConvSpec, ...], weights: Weights, image: Float[Array, "3 H W"]
) -> dict[str, Float[Array, ""]]:
    outputs = _forward(geometry, weights, image)
    return {name: jnp.mean((value > 0).astype(image.dtype)) for name, value in outputs.items()}


__all__ = ["activations", "check_picture", "output_names", "prepare", "random_network", "shares", "weights"]
