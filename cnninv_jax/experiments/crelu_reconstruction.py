"""Pictures reconstructed from conv + CReLU features of one layer and of several (Shang et al. 2016, Fig. 5 and app. G).

Every layer is inverted by itself, by Algorithm 1 or, where it max-pools, by Algorithm 2 with the switches known. The
paper shows pictures and no number; here errors come with the least squares that made them, with what each layer loses
by itself (K n equations for M D unknowns, M = 2 K of the layer below), and with random filters in the same places.

What a layer hands down is an estimate of features, which the pseudo-inverse of the layer below takes for exact: where
that layer's filters have small singular values, as learned ones do, errors grow. It is the exact projection that blows
up, and least squares cut off at --max-steps hide some of it: with VGG-16's kernels on 4 x 4 samples, dense float64
pseudo-inverses leave errors of 0.33, 1e4 and 2e5 from 2, 3 and 4 layers (conv1_2 has condition number 2e6); with random
ones 0.48, 0.48 and 150 (layer 3 is square). So other ways stand beside the paper's: the nearest features that a CReLU
gives in place of the estimate, and least squares that stop early. A fourth asks for the picture alone, of all layers at
once, where the way layer by layer loses what every layer does not tell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import data, images
from cnninv_jax._typing import Array
from cnninv_jax.crelu.layers import CReLULayer
from cnninv_jax.experiments.crelu_networks import (
    ARCHITECTURES,
    POOLED,
    Geometry,
    Kernels,
    bring_kernels,
    build,
    on_device,
    random_layers,
)
from cnninv_jax.experiments.crelu_reconstruction_draws import (
    Limits,
    as_row,
    equations,
    from_row,
    passed_through,
    reconstructions,
)
from cnninv_jax.experiments.crelu_reconstruction_tables import Held, cells, dataset, label, tables
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.rows import KeptRows, kept_rows
from cnninv_jax.experiments.studies import Findings, ProgressBar, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.specification import array_digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class ReconstructionParameters:
    """Networks, pictures and least squares."""

    depths: tuple[int, ...] = (1, 2, 4)
    """Reconstruct from the features of so many layers (paper: 1 to 4)."""
    weights: str | None = None
    """Kernels (.npz, .safetensors, .h5, .caffemodel, or fetch:vgg16), shown beside random filters in their places: a
    CReLU network's, whose layers have 2 K input channels, or a ReLU network's, see --negative."""
    negative: Literal["pairing", "zero", "same"] = "pairing"
    """What a ReLU network's next layer gives the negative phase of filter j: the weights of the filter most opposite to
    j, zero (layers below the top are then the ReLU network's own), or the weights of j (as after AVR)."""
    architecture: Literal["vgg16", "all-cnn"] = "vgg16"
    """Sizes of the random networks where no weights are given: VGG-16's, or conv1 to conv4 of Table S9, with strides,
    the network of Fig. 5."""
    strides: tuple[int, ...] = ()
    """Strides of the layers of a network brought by --weights that is not known by name; 1 by default."""
    pool: Literal["no", "yes", "both"] = "both"
    """Whether layers that have it max-pool, 2 x 2, inverted by Algorithm 2: VGG-16's conv1_2, conv2_2, ..."""
    pool_after: tuple[int, ...] | None = None
    """Layers that max-pooling follows, counted from 1; by default as in the network."""
    num_networks: int = 3
    """Random networks; 0 for none beside --weights."""
    pictures: str = "embedded"
    """Folder of pictures; by default the photographs inside scikit-image."""
    size: int = 32
    """Side of the square that pictures are brought to (paper: 224)."""
    limit: int = 1
    """Most pictures."""
    show: int = 2
    """Pictures that are drawn, as the given network and the first random one reconstruct them."""
    preprocessing: Literal["own", "caffe", "torchvision", "none"] = "own"
    """What pictures become before the first layer: the file's own way (of random networks Caffe's: 0 to 255, minus
    ImageNet's mean), Caffe's, torchvision's, or nothing ([0, 1])."""
    tol: float = 1e-4
    """Relative residual of the normal equations at which a layer's least squares stops."""
    tol_below: float = 0.1
    """The same of layers below the top in the way "early", which starts from zero."""
    joint_rounds: int = 10
    """Most Gauss-Newton rounds of the way "joint", which inverts all layers at once; 0 leaves it out."""
    joint_steps: int = 30
    """Most conjugate-gradient steps of such a round."""
    joint_tol: float = 1e-4
    """Misfit of the top layer's responses at which "joint" ends."""
    max_steps: int = 200
    """Most steps of a layer's least squares; how many end so is counted."""


#: Parameters that are `Limits`.
LIMITS = Limits._fields


class Setting(NamedTuple):
    """A network, given or random, with or without max-pooling.

    Attributes:
        kind: ``given`` or ``random``.
        pooled: layers that max-pooling follows, counted from 1.
        depths: features of so many layers.
        draws: networks.
    """

    kind: str
    pooled: tuple[int, ...]
    depths: tuple[int, ...]
    draws: int


def _compute(p: ReconstructionParameters, options: StudyOptions, folder: Path) -> Findings:
    brought = _checked(p)
    geometry = [layer.geometry for layer in brought.layers] if brought else list(ARCHITECTURES[p.architecture])
    if max(p.depths) > len(geometry):
        raise ValueError(f"expected --depths of at most {len(geometry)}, the layers there are, got {max(p.depths)}")
    geometry = geometry[: max(p.depths)]
    settings = _settings(p, len(geometry), brought)
    way = _preprocessing(p, brought)
    pictures = data.load_pictures(p.pictures, size=p.size, limit=p.limit)
    for setting in settings:  # refuses pictures that are too small before anything is computed
        jax.eval_shape(lambda key, s=setting: _layers(p, options, geometry, s, brought, key)[-1].op.filters, _key(0, 0))
    work = _Work(p, options, geometry, brought, way, pictures)
    spec = {
        "pictures": array_digest([pictures.images]), "names": list(pictures.names),
        "kernels": array_digest([part for layer in brought.layers for part in layer[1:3] if part is not None])
        if brought else "",
        **{name: getattr(p, name) for name in ("negative", "architecture", "strides")},
        **{name: getattr(p, name) for name in LIMITS}, "show": p.show,
        "preprocessing": way.name, "seed": options.seed, "precision": options.precision,
    }  # fmt: skip
    with results_folder(folder), kept_rows(folder / "reconstructions.json", spec) as rows:
        missing = sum(
            len(pictures.names) - min(len(rows.of(_row_name(setting, depth, draw))), len(pictures.names))
            for setting in settings for draw in range(setting.draws) for depth in setting.depths
        )  # fmt: skip
        if missing:
            with progress_bar("reconstructions from CReLU features", missing, quiet=options.quiet) as bar:
                # One network of every setting after the other, so that all settings are known alike at any time.
                for draw in range(max(setting.draws for setting in settings)):
                    for setting in settings:
                        if draw < setting.draws:
                            work.fill(rows, bar, setting, draw)
        held = [
            Held(
                setting.kind, setting.pooled, depth,
                [
                    [
                        from_row(row, depth, p.size, joint=p.joint_rounds > 0)
                        for row in rows.of(_row_name(setting, depth, draw))
                    ]
                    for draw in range(setting.draws)
                ],
            )
            for setting in settings for depth in setting.depths
        ]  # fmt: skip
    content = {
        "given": brought.title if brought else None,
        "architecture": p.architecture if brought is None else "that of the given network",
        "preprocessing": way.name,
        "pictures": list(pictures.names),
        "layers": work.described(settings),
        "cells": cells(held),
        "notes": [*(brought.notes if brought else ()), *pictures.notes],
    }
    return Findings(content, tables(content, dataclasses.asdict(p)), dataset(held, pictures, p.show))


def _checked(p: ReconstructionParameters) -> Kernels | None:
    """Refuse parameters that do not fit, in the words of the command line; return the network that was brought."""
    for name in ("size", "limit", "show", "max_steps", "joint_steps", *(("joint_rounds",) if p.joint_rounds else ())):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 20)
    if p.size < images.WINDOW:
        raise ValueError(f"expected --size of at least {images.WINDOW}, SSIM's window, got {p.size}")
    for name in ("depths", "pool_after"):
        values, flag = getattr(p, name), "--" + name.replace("_", "-")
        if values is None:
            continue
        if not values and name == "depths":
            raise ValueError(f"expected at least one value of {flag}, got none")
        for value in values:
            positive(value, flag, 1 << 10)
        if len(set(values)) != len(values):
            raise ValueError(f"expected different values of {flag}, got {' '.join(map(str, values))}")
    for name in ("tol", "tol_below", "joint_tol"):
        value, flag = getattr(p, name), "--" + name.replace("_", "-")
        if not (isinstance(value, int | float) and 0 < value < 1):
            raise ValueError(f"expected {flag} between 0 and 1, got {value}")
    if p.strides and p.weights is None:
        raise ValueError(f"expected --strides beside --weights only, got {' '.join(map(str, p.strides))}")
    if p.num_networks != 0 or p.weights is None:
        positive(p.num_networks, "--num-networks", 1 << 20)
    return None if p.weights is None else bring_kernels(p.weights, p.negative, p.strides)


def _settings(p: ReconstructionParameters, count: int, brought: Kernels | None) -> list[Setting]:
    """Return the networks that are compared.

    Raises:
        ValueError: max-pooling after layers that are not there, or none where it is asked for.
    """
    own = brought.pooled if brought else POOLED[p.architecture]
    if p.pool_after is not None and max(p.pool_after, default=0) > count:
        raise ValueError(f"expected --pool-after of at most {count}, the layers of --depths, got {max(p.pool_after)}")
    pooled = tuple(sorted(layer for layer in (own if p.pool_after is None else p.pool_after) if layer <= count))
    if p.pool == "yes" and not pooled:
        raise ValueError("expected --pool-after with --pool yes: no max-pooling is known in the layers of --depths")
    kinds = [*(("given", 1),) * (brought is not None), *(("random", p.num_networks),) * (p.num_networks > 0)]
    depths = tuple(sorted(p.depths))
    found = []
    for kind, draws in kinds:
        if p.pool != "yes":
            found.append(Setting(kind, (), depths, draws))
        # Below the first pool both are the same.
        above = tuple(depth for depth in depths if p.pool == "yes" or depth >= min(pooled, default=math.inf))
        if p.pool != "no" and pooled and above:
            found.append(Setting(kind, pooled, above, draws))
    return found


def _preprocessing(p: ReconstructionParameters, brought: Kernels | None) -> data.Preprocessing:
    if p.preprocessing != "own":
        return data.PREPROCESSINGS[p.preprocessing]
    return data.PREPROCESSINGS["caffe"] if brought is None else brought.preprocessing


def _key(seed: int, draw: int) -> Array:
    return jax.random.fold_in(jax.random.key(seed), draw)


def _layers(
    p: ReconstructionParameters,
    options: StudyOptions,
    geometry: Sequence[Geometry],
    setting: Setting,
    brought: Kernels | None,
    key: Array,
) -> tuple[CReLULayer, ...]:
    """Return a network's layers; a random network's filters are the same with max-pooling and without."""
    if setting.kind == "given" and brought is not None:
        weights = on_device(brought.layers[: len(geometry)], options.precision)
    else:
        weights = [(bank, None) for bank in random_layers(key, geometry, 3, options.precision)]
    return build(weights, geometry, p.size, setting.pooled)


class _Work:
    """Networks and pictures, and what is computed of them."""

    def __init__(
        self,
        p: ReconstructionParameters,
        options: StudyOptions,
        geometry: Sequence[Geometry],
        brought: Kernels | None,
        way: data.Preprocessing,
        pictures: data.Pictures,
    ) -> None:
        self._p, self._options, self._geometry, self._brought, self._way = p, options, geometry, brought, way
        self._pictures = [jnp.asarray(image, options.precision) for image in pictures.images]
        self._signals = [jnp.asarray(way(image.astype(options.precision))) for image in pictures.images]

    def layers(self, setting: Setting, draw: int) -> tuple[CReLULayer, ...]:
        """Return the layers of network ``draw``."""
        key = _key(self._options.seed, draw)
        return _layers(self._p, self._options, self._geometry, setting, self._brought, key)

    def fill(self, rows: KeptRows, bar: ProgressBar, setting: Setting, draw: int) -> None:
        """Compute what is missing of one network: a row for every depth and picture."""
        layers = None
        for picture, (image, signal) in enumerate(zip(self._pictures, self._signals, strict=True)):
            passed = None
            for depth in setting.depths:
                name = _row_name(setting, depth, draw)
                if len(rows.of(name)) > picture:
                    continue
                layers = layers or self.layers(setting, draw)
                passed = passed or passed_through(layers, signal)
                limits = Limits(**{name: getattr(self._p, name) for name in LIMITS})
                found = reconstructions(layers, passed, image, self._way, depth, limits)
                rows.add(name, as_row(found, keep=draw == 0 and picture < self._p.show))
                known = ", ".join(f"{way} {one.measures[0]:.3f}" for way, one in found.items())
                bar.advance(1, note=f"{label(setting.kind, setting.pooled)}, {depth} layers: error {known}")

    def described(self, settings: Sequence[Setting]) -> list[dict[str, Any]]:
        """Return sizes of every layer: unknowns M D of its input, and equations that its features of a picture give."""
        found = []
        for setting in settings:
            layers = self.layers(setting, 0)
            passed = [passed_through(layers, signal) for signal in self._signals]
            for number, (layer, spec) in enumerate(zip(layers, self._geometry, strict=True)):
                given = [equations(layer, one.switches[number]) for one in passed]
                unknowns = math.prod(layer.op.input_shape)
                found.append({
                    "kind": setting.kind, "pooled": list(setting.pooled), "layer": number + 1, "name": spec.name,
                    "filters": list(layer.op.filters.shape), "stride": list(spec.stride), "unknowns": unknowns,
                    "equations": float(np.mean(given)), "ratio": float(np.mean(given)) / unknowns,
                })  # fmt: skip
        return found


def _row_name(setting: Setting, depth: int, draw: int) -> str:
    pooled = ", ".join(map(str, setting.pooled)) or "none"
    return f"{setting.kind}, pooled {pooled}, depth {depth}, network {draw}"


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.crelu_reconstruction_figure import reconstruction_figure

    return reconstruction_figure(report, dataset)


CRELU_RECONSTRUCTION = Study(
    name="crelu-reconstruction",
    title="Pictures reconstructed from conv + CReLU features of one layer and of several",
    source="Shang et al. 2016, Fig. 5 and appendix G",
    parameters=ReconstructionParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["CRELU_RECONSTRUCTION", "ReconstructionParameters"]
