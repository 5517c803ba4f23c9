"""Shang et al. 2016, Fig. 4: invariance scores layer by layer, of random networks and of given filters.

The paper compares trained ReLU and CReLU networks. Here are random ones of both kinds, and a given ReLU network. Every
network is read in both ways of appendix D, negative responses set to zero and absolute values, since the reading alone
changes the score. Intervals are over networks and pictures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from cnninv_jax import data
from cnninv_jax.crelu import stimuli
from cnninv_jax.experiments.crelu_invariance_scores import (
    Layout,
    Responses,
    Scored,
    both_readings,
    crelu_responses,
    relu_responses,
    scored,
    through,
)
from cnninv_jax.experiments.crelu_invariance_tables import content_of, dataset_of, tables
from cnninv_jax.experiments.crelu_networks import ARCHITECTURES as CRELU_ARCHITECTURES
from cnninv_jax.experiments.crelu_networks import random_layers
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.layer_inputs import bring_network, up_to
from cnninv_jax.experiments.network_pass import check_picture, random_network
from cnninv_jax.experiments.rows import kept_rows
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnninv_jax._typing import PRNGKeyArray

#: Names of VGG-16's convolutional layers.
LAYERS = tuple(layer.name for layer in data.ARCHITECTURES["vgg16"].layers)
#: Fewest firings of a filter: below, the global rate is far from the one asked for, and intervals say nothing.
LEAST = 10


@dataclasses.dataclass(frozen=True)
class InvarianceParameters:
    """Networks, pictures and transformations."""

    weights: str | None = None
    """VGG-16's filters (.npz, .safetensors, .h5, .caffemodel, or fetch:vgg16), scored beside the random networks;
    layers that the file lacks are random."""
    pictures: str = "embedded"
    """Folder of pictures; by default the photographs inside scikit-image."""
    num_pictures: int = 100
    """Most pictures used."""
    picture_size: int = 128
    """Side the pictures are brought to; the original stimulus is the window in their middle."""
    size: int = 96
    """Side of the window that the network sees. Up to picture size / 1.225, a rotated window shows nothing unknown."""
    last: str = "conv2_2"
    """Highest layer scored (paper: the first seven of networks of its own)."""
    num_networks: int = 8
    """Random networks with VGG-16's sizes, so many with ReLU and so many with CReLU; at least 2."""
    translations: Literal["shifts", "corners"] = "shifts"
    """Shifts to the four sides, as the paper does for CIFAR, or crops of the picture's corners, as for ImageNet."""
    shift: int = stimuli.SHIFT
    """Pixels of a shift."""
    rate: float = 0.01
    """Global firing rate."""
    locations: Literal["all", "inside"] = "all"
    """Where firing counts: everywhere (the paper says nothing else), or only where a filter sees no padding."""


def _compute(p: InvarianceParameters, options: StudyOptions, folder: Path) -> Findings:
    _check(p)
    pictures = data.load_pictures(p.pictures, size=p.picture_size, limit=p.num_pictures)
    if len(pictures.images) < 2:
        raise ValueError(f"expected at least 2 pictures for an interval, got {len(pictures.images)} in {p.pictures}")
    dtype = jnp.dtype(options.precision)
    root = jax.random.key(options.seed)
    networks = _Networks(p, root, dtype)
    layout = _layout(p, networks, len(pictures.images))
    make = stimuli.small_stimuli if p.translations == "shifts" else stimuli.large_stimuli
    extra = {"shift": p.shift} if p.translations == "shifts" else {}
    views = make(p.picture_size, p.size, **extra)
    original = stimuli.original(p.picture_size, p.size)
    spec = {"parameters": dataclasses.asdict(p), "seed": options.seed, "precision": options.precision}
    del spec["parameters"]["num_networks"]
    spec["pictures"] = list(pictures.names)
    found: dict[str, list[Scored]] = {}
    with (
        results_folder(folder),
        kept_rows(folder / "networks.json", spec, seconds=0) as rows,
        progress_bar("invariance scores", len(networks.names), quiet=options.quiet) as bar,
    ):
        for name in networks.names:
            if not rows.of(name):
                features = both_readings(networks.responses(name), networks.geometry, layout, dtype)
                images = pictures.images.astype(dtype)
                rows.add(name, scored(features, images, views, original, layout, rate=p.rate).packed())
            entry = Scored.unpacked(rows.of(name)[0], layout)
            found.setdefault(name.split()[0], []).append(entry)
            bar.advance(note=f"{name}, {layout.outputs[-1]}: {entry.statistics[0, -1, 0, 0, 0]:.1f}")
    content = content_of(found, layout) | {
        "outputs": list(layout.outputs),
        "filters": list(layout.filters),
        "pictures": list(pictures.names),
        "source": pictures.source,
        "unknown": {view.name: view.unknown for view in views},
        "places": list(layout.places),
        "origin": networks.origin,
        "notes": [*networks.notes, *pictures.notes],
    }
    return Findings(content, tables(content, dataclasses.asdict(p)), dataset_of(found, layout))


class _Networks:
    """The given network, if there is one, and the random ones; each made when it is asked for."""

    def __init__(self, p: InvarianceParameters, root: PRNGKeyArray, dtype: jnp.dtype) -> None:
        relu, crelu, rest = (jax.random.fold_in(root, number) for number in range(3))
        self._keys = {"relu": relu, "crelu": crelu}
        self._dtype, self._count = dtype, LAYERS.index(p.last) + 1
        self._given: data.Network | None = None
        self.origin, self.notes = "random", ()
        if p.weights is not None:
            brought = bring_network(p.weights, p.last, rest, dtype)
            self._given = up_to(brought.network, p.last)
            self.origin, self.notes = brought.origin(p.last), brought.network.notes
        #: Layers, without their numbers.
        self.frame = self._random(jax.random.fold_in(relu, 0)) if self._given is None else self._given
        try:
            self.geometry = check_picture(self.frame, (3, p.size, p.size))
        except ValueError as error:
            raise ValueError(f"--size {p.size}: {error}") from None
        given = () if self._given is None else ("given",)
        self.names = (*given, *(f"{kind} {i}" for i in range(p.num_networks) for kind in ("relu", "crelu")))

    def responses(self, name: str) -> Responses:
        """Return what a network answers to pictures."""
        if name == "given" and self._given is not None:
            return relu_responses(self._given)
        kind, number = name.split()
        key = jax.random.fold_in(self._keys[kind], int(number))
        if kind == "relu":
            return relu_responses(self._random(key))
        sizes = CRELU_ARCHITECTURES["vgg16"][: self._count]
        return crelu_responses(self.geometry, random_layers(key, sizes, 3, self._dtype), self.frame)

    def _random(self, key: PRNGKeyArray) -> data.Network:
        return random_network("vgg16", key, layers=self._count, dtype=self._dtype)


def _layout(p: InvarianceParameters, networks: _Networks, count: int) -> Layout:
    """Return what is scored: outputs, their filters, and the places of their maps."""
    outputs, filters, places = [], [], []
    for name, num_filters, size, passed in through(networks.geometry, p.size):
        first, stop = stimuli.inside(p.size, passed) if p.locations == "inside" else (0, size)
        held = count * (stop - first) ** 2
        if p.rate * held < LEAST:
            raise ValueError(
                f"expected at least {math.ceil(LEAST / p.rate)} locations of {name}, so that a filter fires {LEAST} "
                f"times at --rate {p.rate:g}, got {held} ({count} pictures of {stop - first} x {stop - first}); take "
                "more or larger pictures, or a lower --last"
            )
        outputs.append(name)
        filters.append(num_filters)
        places.append((first, stop))
    return Layout(tuple(outputs), tuple(filters), tuple(places), count)


def _check(p: InvarianceParameters) -> None:
    """Refuse impossible parameters by the names of their flags."""
    for name in ("num_pictures", "picture_size", "size", "num_networks", "shift"):
        positive(getattr(p, name), f"--{name.replace('_', '-')}", 1 << 30)
    if p.last not in LAYERS:
        raise ValueError(f"expected --last to be one of {', '.join(LAYERS)}, got {p.last!r}")
    if p.num_networks < 2:
        raise ValueError(f"expected --num-networks of at least 2 for an interval, got {p.num_networks}")
    if not 0 < p.rate < 1:
        raise ValueError(f"expected --rate between 0 and 1, got {p.rate}; one percent is 0.01")
    if p.translations == "shifts" and p.shift >= p.size:
        raise ValueError(f"expected --shift below --size {p.size}, got {p.shift}: no pixel would be left in sight")
    if p.size > p.picture_size or (p.translations == "corners" and p.size == p.picture_size):
        raise ValueError(
            f"expected --size to be at most --picture-size ({p.picture_size}), and less with --translations corners, "
            f"got {p.size}"
        )


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.crelu_invariance_figure import invariance_figure

    return invariance_figure(report, dataset)


CRELU_INVARIANCE = Study(
    name="crelu-invariance",
    title="Invariance scores layer by layer, of random networks and of given filters",
    source="Shang et al. 2016, Fig. 4",
    parameters=InvarianceParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["CRELU_INVARIANCE", "InvarianceParameters"]
