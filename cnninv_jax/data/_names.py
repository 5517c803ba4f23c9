"""Which tensor of a checkpoint is which layer: the naming customs of torchvision, Keras and Caffe's descendants."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cnninv_jax.data._containers import Entry
from cnninv_jax.data.architectures import Architecture

#: Last parts of names that belong to a bias, by the kernel's last part in lower case.
_BIAS_OF = {
    "weight": ("bias",), "weights": ("biases", "bias"), "kernel": ("bias",), "kernel:0": ("bias:0",),
    "w": ("b",), "w:0": ("b:0",), "0": ("1",),
}  # fmt: skip
_BLOCK = re.compile(r"(?:^|/)block([0-9])_conv([0-9])(?=[/_.])")
_FEATURES = re.compile(r"(?:^|\.)features\.([0-9]+)\.(weight|bias)$")
_PLAIN = re.compile(r"(?:^|[/.])conv([0-9])(?:_([0-9]))?[/._](?:W|w|weights?|kernel|0|b|bias|biases|1)(?::0)?$")


@dataclass
class Tensors:
    """Kernel and bias of every layer that a custom recognises, by layer name.

    Attributes:
        custom: ``torchvision``, ``keras`` or ``caffe``.
        kernels: tensors with 4 axes.
        biases: tensors with 1 axis.
        unknown: kernels whose names follow the custom but are no layer of this architecture.
    """

    custom: str
    kernels: dict[str, Entry] = field(default_factory=dict)
    biases: dict[str, Entry] = field(default_factory=dict)
    unknown: list[Entry] = field(default_factory=list)


def by_name(entries: Iterable[Entry], architecture: Architecture) -> Tensors | None:
    """Assign tensors to the layers of an architecture by the custom that names most kernels; None if none does."""
    entries = list(entries)
    found = [_assign(custom, entries, naming(architecture), architecture) for custom, naming in _CUSTOMS.items()]
    best = max(found, key=lambda tensors: len(tensors.kernels))
    return best if best.kernels else None


def _assign(
    custom: str, entries: list[Entry], layer_of: Callable[[str], str | None], architecture: Architecture
) -> Tensors:
    tensors = Tensors(custom)
    for entry in entries:
        layer = layer_of(entry.name or "")
        if layer is None:
            continue
        if len(entry.shape) == 4:
            if architecture.layer(layer) is None:
                tensors.unknown.append(entry)
            else:
                tensors.kernels.setdefault(layer, entry)
        elif len(entry.shape) == 1:
            tensors.biases.setdefault(layer, entry)
    return tensors


def _torchvision(architecture: Architecture) -> Callable[[str], str | None]:
    """Return a name's layer by the number of its module in ``features``: a convolution, its ReLU, sometimes a pool."""
    places, place = {}, 0
    for layer in architecture.layers:
        places[place] = layer.name
        place += 2 if layer.pool is None else 3

    def layer_of(name: str) -> str | None:
        found = _FEATURES.search(name)
        return None if found is None else places.get(int(found[1]), f"features.{found[1]}")

    return layer_of


def _keras(architecture: Architecture) -> Callable[[str], str | None]:
    def layer_of(name: str) -> str | None:
        found = _BLOCK.search(name)
        return None if found is None else f"conv{found[1]}_{found[2]}"

    return layer_of


def _caffe(architecture: Architecture) -> Callable[[str], str | None]:
    def layer_of(name: str) -> str | None:
        found = _PLAIN.search(name)
        if found is None:
            return None
        return f"conv{found[1]}" + (f"_{found[2]}" if found[2] else "")

    return layer_of


_CUSTOMS = {"torchvision": _torchvision, "keras": _keras, "caffe": _caffe}


def bias_of(kernel: Entry, entries: Iterable[Entry]) -> Entry | None:
    """Return the tensor with one axis that stands beside a kernel, by its name."""
    stem, mark, last = re.fullmatch(r"(.*?)([/._]?)([^/._]*)", kernel.name or "", re.DOTALL).groups()  # type: ignore[union-attr]  # everything matches
    wanted = {f"{stem}{mark}{bias}".lower() for bias in _BIAS_OF.get(last.lower(), ())}
    return next((entry for entry in entries if len(entry.shape) == 1 and (entry.name or "").lower() in wanted), None)


def short_name(name: str | None) -> str:
    """Return a kernel's name without its last, empty words: ``features.3.weight`` becomes ``features.3``."""
    return re.sub(r"(?i)[/._](?:weights?|kernel|w|vars/0)(?::0)?$", "", name or "") or "kernel"
