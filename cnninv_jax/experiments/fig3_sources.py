"""Which filters Gilbert et al. 2017, Fig. 3 is drawn for: a layer of a network, any tensor, or random ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from cnninv_jax import data
from cnninv_jax._typing import PRNGKeyArray
from cnninv_jax.experiments.layer_inputs import Filters, bring_network

#: The paper's layer, and the one of random networks where the user names none.
PAPER_LAYER, RANDOM_LAYER = "conv5_2", "conv2_2"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Filters and network of the figure.

    Attributes:
        layer: of panel (a), a name of VGG-16 or of a tensor.
        shape: of its filters, (K, M, ell, ell).
        learned: the user's filters, [K, M, ell, ell]; None where all are random.
        network: what activations come from; None where no picture can be passed through to the layer.
        recovered_layer: of panels (b) and (c).
        notes: what was assumed, one sentence each.
    """

    layer: str
    shape: tuple[int, ...]
    learned: np.ndarray | None
    network: Filters | None
    recovered_layer: str
    notes: tuple[str, ...]


def choose(
    weights: str | None, layer: str | None, panels: str, key: PRNGKeyArray, dtype: jax.typing.DTypeLike
) -> Chosen:
    """Return the filters that ``--weights`` and ``--layer`` name.

    Args:
        weights: file, ``fetch:vgg16``, or None for random filters.
        layer: layer or tensor; None for the default.
        panels: a network is drawn or read only for (b) and (c).
        key: of random networks.
        dtype: of their draws.

    Raises:
        ValueError: no such layer, or filters without two spatial axes.
    """
    if weights is None:
        return _random(layer, panels, key, dtype)
    if Path(weights).suffix.lower() == ".npy":
        loaded = data.load_filters(weights)
        return _only_a(layer or Path(weights).stem, loaded.filters, (*loaded.notes,), "an array is no network")
    network = data.load_network(weights)
    if network.name != "vgg16":
        entries = list(network.layers)
        if layer is None and len(entries) > 1:
            names = ", ".join(entry.name for entry in entries[:12])
            raise ValueError(f"expected --layer to name one of the {len(entries)} layers, such as {names}")
        found = entries[0] if layer is None else network.layer(layer)
        return _only_a(found.name, found.filters, network.notes, f"{weights} is not VGG-16")
    runnable = [entry.name for entry in network.runnable]
    held = [entry.name for entry in network.layers]
    name = layer or (PAPER_LAYER if PAPER_LAYER in held else runnable[-1])
    bank = network.layer(name).filters
    if "b" not in panels:
        return Chosen(name, bank.shape, bank, None, name, network.notes)
    if name not in runnable[1:]:
        reason = "is the first layer, which sees pictures" if name == runnable[0] else "has layers missing below it"
        return _only_a(name, bank, network.notes, f"{name} {reason}")
    full = bring_network(weights, name, key, dtype)
    return Chosen(name, bank.shape, bank, full, name, full.network.notes)


def _only_a(name: str, bank: np.ndarray, notes: tuple[str, ...], why: str) -> Chosen:
    if bank.ndim != 4:
        raise ValueError(f"expected filters with two spatial axes for Fig. 3, got shape {bank.shape} ({name})")
    data.check_filters(bank, name)
    left_out = f"panels (b) and (c) need activations of the layer below and are left out: {why}"
    return Chosen(name, bank.shape, bank, None, name, (*notes, left_out))


def _random(layer: str | None, panels: str, key: PRNGKeyArray, dtype: jax.typing.DTypeLike) -> Chosen:
    known = data.ARCHITECTURES["vgg16"]
    name, below = layer or PAPER_LAYER, layer or RANDOM_LAYER
    spec = known.layer(name)
    names = [entry.name for entry in known.layers[1:]]
    if spec is None or name not in names:
        raise ValueError(f"expected --layer to be one of {', '.join(names)} without --weights, got {name!r}")
    network = bring_network(None, below, key, dtype) if "b" in panels else None
    notes = () if network is None else network.network.notes
    return Chosen(name, spec.shape, None, network, below, notes)
