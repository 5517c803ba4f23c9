"""Networks of conv + CReLU layers: drawn ones, a ReLU network's kernels made into one, and any that a file holds.

A CReLU layer hands on 2 K maps, the positive phase of every filter and the negative one, so that the kernels of a CReLU
network chain as M_{l+1} = 2 K_l. Those of a ReLU network chain as M_{l+1} = K_l and say nothing of the negative phase;
what they are given for it is stated by `Negative`. None of these is a trained CReLU network, and titles say so.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cnninv_jax import data, filters
from cnninv_jax._typing import Array, PRNGKeyArray
from cnninv_jax.crelu.filters import pairing
from cnninv_jax.crelu.layers import CReLULayer, check_layers
from cnninv_jax.operators import conv_operator

#: What a ReLU network's kernels give the negative phase of filter j: the weights of j's pairing filter
#: argmin_i <phi_i, phi_j>, which the paper supposes to play that part (Shang et al. 2016, 2.1); zero, so that the
#: layers below the top hand on what the ReLU network does; or the weights of j itself, which leaves |h| (AVR).
Negative: TypeAlias = Literal["pairing", "zero", "same"]
NEGATIVES: tuple[Negative, ...] = get_args(Negative)
#: The same in words.
NEGATIVE_WORDS = {
    "pairing": "negative phase through the pairing filter's weights",
    "zero": "negative phase dropped below the top layer, as by ReLU",
    "same": "negative phase through the same weights as the positive one, as by AVR",
}
#: Window of max-pooling, per axis.
WINDOW = 2


class Geometry(NamedTuple):
    """Sizes of one layer of a 2-D network.

    Attributes:
        name: of the layer.
        num_filters: K.
        length: filter length per axis.
        stride: per axis.
    """

    name: str
    num_filters: int
    length: tuple[int, int]
    stride: tuple[int, int]


def _architectures() -> dict[str, tuple[Geometry, ...]]:
    vgg = data.ARCHITECTURES["vgg16"].layers
    known = tuple(Geometry(spec.name, spec.shape[0], (3, 3), (1, 1)) for spec in vgg)
    rows = (("conv1", 96, 11, 4), ("conv2", 96, 1, 1), ("conv3", 96, 3, 2), ("conv4", 256, 5, 1))
    return {"vgg16": known, "all-cnn": tuple(Geometry(n, k, (ell, ell), (t, t)) for n, k, ell, t in rows)}


#: VGG-16's layers, and the four CReLU layers of the network of Fig. 5 (Shang et al. 2016, Table S9), by their sizes.
ARCHITECTURES = _architectures()
#: Layers that max-pooling follows, counted from 1.
POOLED = {
    "vgg16": tuple(i for i, spec in enumerate(data.ARCHITECTURES["vgg16"].layers, 1) if spec.pool is not None),
    "all-cnn": (),
}


class Kernel(NamedTuple):
    """One layer of a CReLU network.

    Attributes:
        name: of the layer.
        filters: [K, M, *ell]; M is 2 K of the layer below.
        bias: [K], or None.
        stride: per axis.
    """

    name: str
    filters: Float[np.ndarray, "K M ell_1 ell_2"]
    bias: Float[np.ndarray, " K"] | None
    stride: tuple[int, int]

    @property
    def geometry(self) -> Geometry:
        """Sizes, without the channels."""
        return Geometry(self.name, self.filters.shape[0], self.filters.shape[2:], self.stride)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, eq=False)
class Kernels:
    """A CReLU network as a file gives it.

    Attributes:
        title: what it is, for people.
        layers: in order.
        preprocessing: what pictures become before the first layer.
        pooled: layers that max-pooling follows in the network that the file is of, counted from 1.
        notes: what was assumed, one sentence each.
    """

    title: str
    layers: tuple[Kernel, ...]
    preprocessing: data.Preprocessing
    pooled: tuple[int, ...]
    notes: tuple[str, ...]


def random_layers(
    key: PRNGKeyArray, geometry: Sequence[Geometry], channels: int, dtype: jax.typing.DTypeLike
) -> list[Float[Array, "K M ell_1 ell_2"]]:
    """Draw the filters of a CReLU network, N(0, 2 / (M l^2)) (He et al. 2015), M = 2 K of the layer below.

    Half of the 2 K maps are zero at every place, so that with this deviation responses keep their energy from layer to
    layer. Reconstructions do not depend on it.

    Args:
        key: layer l uses fold_in(key, l), l from 0, so that more layers leave the lower ones as they are.
        geometry: the layers.
        channels: M of the first layer.
        dtype: of the draws.
    """
    drawn = []
    for number, layer in enumerate(geometry):
        drawn.append(
            filters.gaussian(
                jax.random.fold_in(key, number), layer.num_filters, channels, layer.length,
                scale=float(np.sqrt(2.0 / (channels * np.prod(layer.length)))), dtype=dtype,
            )
        )  # fmt: skip
        channels = 2 * layer.num_filters
    return drawn


def bring_kernels(weights: str, negative: Negative, strides: Sequence[int] = ()) -> Kernels:
    """Read a network and make a CReLU network of it, if it is none.

    Args:
        weights: file, or ``fetch:vgg16``.
        negative: what becomes of the negative phase where the kernels chain as a ReLU network's; nothing is changed
            where they chain as a CReLU network's.
        strides: one for every layer of a network that is not known by name, whose file does not say; 1 by default.

    Raises:
        FilterFileError: the file cannot be read.
        ValueError: kernels that chain as neither, that have groups or no two spatial axes, or strides that do not fit.
    """
    network = data.load_network(weights)
    known = network.architecture is not None
    layers = network.runnable if known else network.layers
    if known and strides:
        raise ValueError(f"expected no --strides with {network.name}, whose strides are known, got {list(strides)}")
    if strides and (len(strides) != len(layers) or min(strides) < 1):
        raise ValueError(f"expected {len(layers)} --strides of at least 1, one for every layer, got {list(strides)}")
    steps = [(step, step) for step in strides] or [layer.stride for layer in layers]
    notes = list(network.notes)
    for layer in layers:
        if layer.filters.ndim != 4 or layer.groups != 1:
            raise ValueError(
                f"expected --weights with kernels of two spatial axes and no groups, got {layer.name} of shape "
                f"{layer.filters.shape} in {layer.groups} groups"
            )
    chain = _chain(network)
    banks = [layer.filters for layer in layers]
    title = f"{_title(network)} (trained as a CReLU network or not: the file does not say)"
    if chain == "relu":
        banks = [banks[0], *(doubled(above, below, negative) for below, above in itertools.pairwise(banks))]
        title = f"{_title(network)}, trained for ReLU; {NEGATIVE_WORDS[negative]}"
        notes.append(
            f"kernels of a ReLU network: {NEGATIVE_WORDS[negative]}; this is not a trained CReLU network"
        )  # fmt: skip
    if any(layer.normalize for layer in layers):
        notes.append("local response normalisation between the layers was left out")
    if any(layer.padding != tuple((ell - 1) // 2 for ell in layer.filters.shape[2:]) for layer in layers):
        notes.append("layers surround their signals by zeros ('same' padding), whatever the network's own padding")
    if any(layer.pool is not None and layer.pool.window != (WINDOW, WINDOW) for layer in layers):
        notes.append(f"max-pooling, if asked for, is {WINDOW} x {WINDOW}, whatever the network's own windows")
    kernels = tuple(
        Kernel(layer.name, bank, layer.bias, step)  # type: ignore[arg-type]  # two axes, checked above
        for layer, bank, step in zip(layers, banks, steps, strict=True)
    )
    pooled = tuple(i for i, layer in enumerate(layers, 1) if layer.pool is not None)
    return Kernels(title, kernels, network.preprocessing or data.PREPROCESSINGS["none"], pooled, tuple(notes))


def doubled(above: np.ndarray, below: np.ndarray, negative: Negative) -> np.ndarray:
    """Return a ReLU layer's filters for both phases of what the layer below hands on, [K', 2 K, *ell].

    Args:
        above: filters of the layer, [K', K, *ell].
        below: filters of the layer below, [K, M, *ell], as the ReLU network has them.
        negative: what the negative phase goes through.
    """
    if negative == "pairing":
        index = np.asarray(pairing(below).index)
        # A filter of zeros has no pairing filter, and no responses.
        second = np.where((index >= 0)[:, None, None], above[:, index], 0)
    else:
        second = np.zeros_like(above) if negative == "zero" else above
    return np.concatenate([above, second], axis=1)


def build(
    layers: Sequence[tuple[Array, Array | None]],
    geometry: Sequence[Geometry],
    size: int,
    pooled: Sequence[int] = (),
) -> tuple[CReLULayer, ...]:
    """Return a network's layers for square pictures, with zeros around every signal (same padding).

    Args:
        layers: filters and bias of every layer.
        geometry: of every layer.
        size: side of the picture.
        pooled: layers that max-pooling follows, counted from 1.

    Raises:
        ValueError: layers that do not follow on one another, or a picture too small for them.
    """
    shape, built = (size, size), []
    for number, ((bank, bias), spec) in enumerate(zip(layers, geometry, strict=True), 1):
        op = conv_operator(bank, shape, stride=spec.stride, padding="same")
        layer = CReLULayer(op, bias, WINDOW if number in pooled else None)
        if number in pooled and min(op.shifts) < WINDOW:
            raise ValueError(
                f"expected --size large enough for max-pooling after {spec.name}, got {size}; its responses are "
                f"{op.shifts[0]} x {op.shifts[1]}"
            )
        shape = layer.output_shape[1:]
        built.append(layer)
    check_layers(built)
    return tuple(built)


def picture_of(way: data.Preprocessing, signal: np.ndarray) -> np.ndarray:
    """Return the picture, RGB, that a network's input came from: the inverse of a `data.Preprocessing`."""
    mean, deviation = (np.asarray(values, signal.dtype)[:, None, None] for values in (way.mean, way.deviation))
    channels = (signal * deviation + mean) / signal.dtype.type(way.scale)
    return channels[::-1] if way.reverse else channels


def on_device(layers: Sequence[Kernel], dtype: jax.typing.DTypeLike) -> list[tuple[Array, Array | None]]:
    """Return filters and bias of every layer on the device."""
    return [
        (jnp.asarray(layer.filters, dtype), None if layer.bias is None else jnp.asarray(layer.bias, dtype))
        for layer in layers
    ]


def _chain(network: data.Network) -> Literal["relu", "crelu"]:
    """Return how the kernels follow on one another.

    Raises:
        ValueError: in neither way.
    """
    layers = network.layers if network.architecture is None else network.runnable
    counts = [(below.num_filters, above.channels) for below, above in itertools.pairwise(layers)]
    if layers[0].channels != 3:
        raise ValueError(
            f"expected --weights whose first kernel sees the 3 channels of a picture, got {layers[0].name} of shape "
            f"{layers[0].filters.shape}"
        )
    if all(above == 2 * below for below, above in counts):
        return "crelu"
    if all(above == below for below, above in counts):
        return "relu"
    shapes = ", ".join(f"{layer.name} {layer.filters.shape}" for layer in layers)
    raise ValueError(
        "expected --weights whose kernels follow on one another, with 2 K input channels above K filters (CReLU) or K "
        f"(ReLU), got {shapes}"
    )


def _title(network: data.Network) -> str:
    return network.name if network.architecture is None else f"{network.architecture.title}'s kernels"


__all__ = [
    "ARCHITECTURES",
    "NEGATIVES",
    "NEGATIVE_WORDS",
    "POOLED",
    "WINDOW",
    "Geometry",
    "Kernel",
    "Kernels",
    "Negative",
    "bring_kernels",
    "build",
    "doubled",
    "on_device",
    "picture_of",
    "random_layers",
]
