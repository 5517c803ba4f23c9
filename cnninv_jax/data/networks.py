"""A network's convolutional layers from a checkpoint: VGG-16 and AlexNet by name, any other as a list of kernels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cnninv_jax.data._containers import Entry, open_entries
from cnninv_jax.data._names import Tensors, bias_of, by_name, short_name
from cnninv_jax.data.architectures import ARCHITECTURES, PREPROCESSINGS, Architecture, ConvSpec, Pool, Preprocessing
from cnninv_jax.data.errors import FilterFileError, did_you_mean
from cnninv_jax.data.fetch import fetch
from cnninv_jax.data.pictures import natural_order
from cnninv_jax.data.weights import LAYOUTS, check_dtype, listed, suggested_layout, to_floating

#: Public files are named like this.
FETCH = "fetch:"


@dataclass(frozen=True, eq=False)
class ConvLayer:
    """One convolutional layer.

    Attributes:
        name: in the paper's manner (conv1_1, conv1); of an unknown network the tensor's own name.
        filters: ``[K, M / groups, *ell]`` float32, read-only.
        bias: ``[K]`` float32, or None where the file has none.
        stride: per axis; 1 where the file is of an unknown network, and so on.
        padding: zeros on either side, per axis; 0 of an unknown network.
        groups: into which input and output channels fall; 1 of an unknown network.
        pool: max-pooling after the ReLU, or None.
        normalize: local response normalisation between the ReLU and the pooling.
        tensor: name in the file.
    """

    name: str
    filters: Float[np.ndarray, "K M *ell"]
    bias: Float[np.ndarray, " K"] | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int = 1
    pool: Pool | None = None
    normalize: bool = False
    tensor: str | None = None

    @property
    def num_filters(self) -> int:
        """K."""
        return self.filters.shape[0]

    @property
    def channels(self) -> int:
        """Channels of the input: M, times the groups."""
        return self.filters.shape[1] * self.groups


@dataclass(frozen=True, eq=False)
class Network:
    """The convolutional layers of a network.

    Attributes:
        name: ``vgg16``, ``alexnet``, ``alexnet-caffe``, or the file's name.
        layers: those that are there, in order.
        architecture: None for an unknown network, which has no forward pass.
        preprocessing: what pictures become before the first layer; None for an unknown network.
        source: the file as it was given; ``random`` for drawn ones.
        notes: what was assumed, converted or missing, one sentence each; show them to the user.
    """

    name: str
    layers: tuple[ConvLayer, ...]
    architecture: Architecture | None
    preprocessing: Preprocessing | None
    source: str
    notes: tuple[str, ...] = ()

    @property
    def runnable(self) -> tuple[ConvLayer, ...]:
        """The layers a picture can be passed through: those before the first missing one.

        Raises:
            FilterFileError: the network is unknown, or its first layer is missing.
        """
        if self.architecture is None:
            raise FilterFileError(
                f"{self.source!r} is not one of {', '.join(ARCHITECTURES)}, and a file of weights does not say how its "
                "layers are joined: no picture can be passed through it"
            )
        first = self.architecture.layers[0].name
        names = [layer.name for layer in self.architecture.layers]
        count = next((i for i, layer in enumerate(self.layers) if layer.name != names[i]), len(self.layers))
        if count == 0:
            raise FilterFileError(
                f"{self.source!r} lacks {first}, so no picture can be passed through it: give a file that has it"
            )
        return self.layers[:count]

    def layer(self, name: str) -> ConvLayer:
        """Return the layer of that name.

        Raises:
            FilterFileError: there is none.
        """
        names = [layer.name for layer in self.layers]
        if name not in names:
            raise FilterFileError(
                f"{self.source!r} has no layer {name!r}{did_you_mean(name, names)}, it has: {listed(names)}"
            )
        return self.layers[names.index(name)]


def load_network(
    source: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    preprocessing: str | None = None,
    layout: str | None = None,
) -> Network:
    """Read the convolutional layers of a checkpoint.

    VGG-16 and AlexNet are recognised by the names and shapes of their tensors: torchvision's state dict
    (``features.0.weight``), Keras' files (``block1_conv1/...``), and Caffe's layer names in any format (``conv1_1_W``,
    ``conv1/weights``, ``data/conv1/0``). Layers may be missing. Of any other file every tensor with 3 or 4 axes is
    taken for a convolution kernel.

    Args:
        source: a ``.npz``, ``.safetensors``, ``.h5`` or ``.caffemodel`` file, or ``fetch:vgg16`` and
            ``fetch:alexnet-caffe`` for a public one, see `fetch`.
        architecture: ``vgg16``, ``alexnet`` or ``alexnet-caffe``: refuse a file that is not one. Where no names are
            recognised, kernels are then taken in the order of their names.
        preprocessing: ``caffe`` (BGR, 0 to 255, minus a mean), ``caffe-rgb`` (the same, RGB), ``torchvision`` or
            ``none``; by default torchvision's for its names and Caffe's for all others.
        layout: order of axes of an unknown network's kernels, see `load_filters`; by default what the shapes suggest.

    Returns:
        The layers, as float32.

    Raises:
        FilterFileError: the file, its shapes or its numbers do not fit; one sentence.

    Cost: reads the convolutional layers only.
    """
    for value, known, name in (
        (architecture, ARCHITECTURES, "architecture"),
        (preprocessing, PREPROCESSINGS, "preprocessing"),
        (layout, LAYOUTS, "layout"),
    ):
        if value is not None and value not in known:
            raise FilterFileError(
                f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}"
            )
    given = os.fspath(source)
    path = fetch(given.removeprefix(FETCH)) if given.startswith(FETCH) else Path(given).expanduser()
    kind, entries = open_entries(path)
    entries = sorted(entries, key=lambda entry: natural_order(entry.name or ""))
    candidates = ARCHITECTURES.values() if architecture is None else (ARCHITECTURES[architecture],)
    notes: list[str] = []
    for candidate in candidates:
        tensors = by_name(entries, candidate)
        if tensors is None:
            continue
        misfit = _misfit(tensors, candidate)
        if misfit is None:
            return _known(given, entries, candidate, tensors, preprocessing, notes)
        if architecture is not None:
            raise FilterFileError(f"{given!r} is not {candidate.title}: {misfit}; leave the architecture out")
        notes.append(f"not {candidate.title}: {misfit}")
    if architecture is not None:
        return _by_order(given, entries, ARCHITECTURES[architecture], preprocessing)
    if preprocessing is not None:
        raise FilterFileError(
            f"{given!r} is not one of {', '.join(ARCHITECTURES)}, so nothing is passed through it: "
            "leave the preprocessing out"
        )
    return _unknown(given, kind, entries, layout, notes)


def _misfit(tensors: Tensors, architecture: Architecture) -> str | None:
    """Say what speaks against these tensors being this architecture's layers, or None."""
    if tensors.unknown:
        return f"it has a kernel {tensors.unknown[0].describe()}"
    for name, entry in tensors.kernels.items():
        spec = architecture.layer(name)
        if spec is not None and _orientation(entry.shape, spec) is None:
            return f"{entry.describe()} should be {name} with shape {spec.shape} or {_last(spec.shape)}"
        bias = tensors.biases.get(name)
        if spec is not None and bias is not None and bias.shape != spec.shape[:1]:
            return f"{bias.describe()} should be the bias of {name} with shape {spec.shape[:1]}"
    return None


def _last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with filters last."""
    return (*shape[2:], shape[1], shape[0])


def _orientation(shape: tuple[int, ...], spec: ConvSpec) -> str | None:
    """Return the layout in which a tensor of this shape is the layer's kernel."""
    if shape == spec.shape:
        return "KMll"
    return "llMK" if shape == _last(spec.shape) else None


def _known(
    source: str,
    entries: list[Entry],
    architecture: Architecture,
    tensors: Tensors,
    preprocessing: str | None,
    notes: list[str],
) -> Network:
    notes = []  # what spoke against other architectures is settled
    layers = []
    for spec in architecture.layers:
        entry = tensors.kernels.get(spec.name)
        if entry is not None:
            bias = tensors.biases.get(spec.name)
            layers.append(_layer(spec, entry, bias, _orientation(entry.shape, spec) or "KMll", notes))
    missing = [spec.name for spec in architecture.layers if spec.name not in tensors.kernels]
    if missing:
        notes.append(f"{len(layers)} of {len(architecture.layers)} layers are there, missing: {listed(missing)}")
    bare = [layer.name for layer in layers if layer.bias is None]
    if bare:
        which = "its layers" if len(bare) == len(layers) else listed(bare)
        notes.append(f"the file has no biases for {which}: activations are those of a network without them")
    # Caffe's weights, and what was converted from them, expect Caffe's pictures.
    usual = "torchvision" if tensors.custom == "torchvision" else "caffe"
    prepared = PREPROCESSINGS[preprocessing or usual]
    if preprocessing is None and tensors.custom == "caffe" and layers and layers[0].channels == 3:
        notes.append("taken to expect BGR pictures, as Caffe does: give preprocessing='caffe-rgb' if it expects RGB")
    return Network(architecture.name, tuple(layers), architecture, prepared, source, tuple(notes))


def _by_order(source: str, entries: list[Entry], architecture: Architecture, preprocessing: str | None) -> Network:
    """Take the kernels in the order of their names, if their shapes are those of the layers in order."""
    kernels = [entry for entry in entries if len(entry.shape) == 4]
    if not kernels:
        raise FilterFileError(
            f"{source!r} should hold the kernels of {architecture.title}, but has no tensor with 4 axes: "
            "give another file, or leave the architecture out"
        )
    tensors = Tensors("order")
    for index, entry in enumerate(kernels):
        spec = architecture.layers[index] if index < len(architecture.layers) else None
        if spec is None or _orientation(entry.shape, spec) is None:
            wanted = (
                "no further layer" if spec is None else f"{spec.name} with shape {spec.shape} or {_last(spec.shape)}"
            )
            raise FilterFileError(
                f"kernel {index + 1} of {source!r}, {entry.describe()}, should be {wanted} of {architecture.title}: "
                "give another file, or leave the architecture out"
            )
        tensors.kernels[spec.name] = entry
        bias = bias_of(entry, entries)
        if bias is not None and bias.shape == spec.shape[:1]:
            tensors.biases[spec.name] = bias
    network = _known(source, entries, architecture, tensors, preprocessing or architecture.preprocessing, [])
    note = f"no layer names were recognised: kernels taken in the order of their names, {kernels[0].name!r} first"
    return Network(network.name, network.layers, architecture, network.preprocessing, source, (note, *network.notes))


def _layer(spec: ConvSpec, entry: Entry, bias: Entry | None, layout: str, notes: list[str]) -> ConvLayer:
    filters = _read(entry, layout, notes)
    vector = None if bias is None else _read(bias, None, notes)
    return ConvLayer(
        spec.name, filters, vector, spec.stride, spec.padding, spec.groups, spec.pool, spec.normalize, entry.name
    )


def _read(entry: Entry, layout: str | None, notes: list[str]) -> np.ndarray:
    """Return a tensor as float32, filters first, finite."""
    where = f"tensor {entry.name!r}"
    check_dtype(where, "", entry.dtype)
    converted: list[str] = []
    array = to_floating(entry.read(), str(entry.dtype), converted)
    if array.dtype != np.float32:
        converted = [f"converted from {entry.dtype} to float32"]
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    notes.extend(note for note in converted if note not in notes)
    if layout is not None and layout.endswith("MK"):
        array = np.moveaxis(array, (-1, -2), (0, 1))
    array = np.ascontiguousarray(array)
    if bad := int(array.size - np.count_nonzero(np.isfinite(array))):
        raise FilterFileError(
            f"{where} should hold finite float32 numbers, but {bad} of its {array.size} entries are not: "
            "repair or retrain the model it came from"
        )
    array.setflags(write=False)
    return array


def _unknown(source: str, kind: str, entries: list[Entry], layout: str | None, notes: list[str]) -> Network:
    """Take every tensor with 3 or 4 axes for a kernel; the axes in the order most shapes suggest."""
    kernels = []
    for entry in entries:
        if len(entry.shape) in (3, 4) and 0 not in entry.shape:
            try:
                check_dtype(f"tensor {entry.name!r}", kind, entry.dtype)
            except FilterFileError:
                notes.append(f"left out {entry.describe()}, whose numbers are not real")
            else:
                kernels.append(entry)
    if not kernels:
        raise FilterFileError(
            f"{source!r} should hold convolution kernels, tensors with 3 or 4 axes, but has: "
            f"{listed([entry.describe() for entry in entries]) or 'nothing'}"
        )
    if layout is None:
        votes = [suggested_layout(entry.shape) for entry in kernels]
        last, first = votes.count("K"), votes.count("l")
        custom = kind == "h5"
        filters_last = last > first or (last == first and custom)
        order = "filters last (Keras, Flax)" if filters_last else "filters first (torch)"
        notes.append(
            f"axes read as {order}, which {max(first, last)} of {len(kernels)} shapes suggest"
            if first != last
            else f"axes read as {order}, the custom of .{kind} files, since the shapes do not tell"
        )
    else:
        filters_last = layout.endswith("MK")
    layers = []
    for entry in kernels:
        axes = len(entry.shape)
        filters = _read(
            entry, ("llMK" if filters_last else "KMll") if axes == 4 else "lMK" if filters_last else "KMl", notes
        )
        bias = bias_of(entry, entries)
        vector = None if bias is None or bias.shape != filters.shape[:1] else _read(bias, None, notes)
        rank = axes - 2
        layers.append(ConvLayer(short_name(entry.name), filters, vector, (1,) * rank, (0,) * rank, tensor=entry.name))
    return Network(Path(source).name, tuple(layers), None, None, source, tuple(notes))


__all__ = ["ConvLayer", "Network", "load_network"]
