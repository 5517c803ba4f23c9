"""Gilbert et al. 2017, 4.5 and Table 3: what one step W^T M(W f, k) gives back of VGG-16's activations.

The columns of activation space, and with ``--image-space`` those of image space (`table3_images`), for which a decoder
of each pool is trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import filters
from cnninv_jax.experiments.layer_inputs import TABLE_2, Filters, bring_network
from cnninv_jax.experiments.network_pass import activations, check_picture
from cnninv_jax.experiments.registry import NEW
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.experiments.table3_errors import (
    COUNTS,
    MAIN,
    READINGS,
    above,
    mean_of,
    random_activation_error,
    reconstruction_errors,
    sizes,
)
from cnninv_jax.experiments.table3_image_tables import image_tables
from cnninv_jax.experiments.table3_tables import METHODS, PAPER, fits, tables
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.sparsity import num_blocks

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from cnninv_jax import data
    from cnninv_jax._typing import FilterBank, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Table3Parameters:
    """Network, pictures and layers; k comes from the paper's Table 2."""

    weights: str | None = None
    """VGG-16's filters (.npz, .safetensors, .h5, .caffemodel, or fetch:vgg16); layers that the file lacks, and all of
    them by default, are random."""
    pictures: str = "embedded"
    """Folder of pictures that pass through the network; by default the photographs inside scikit-image."""
    num_pictures: int = 16
    """Most pictures used."""
    picture_size: int = 224
    """Side the pictures are brought to."""
    layers: tuple[int, ...] = (1, 2, 3, 4)
    """Layers i of the table: f is the output of pool(i), reconstructed with filters of conv(i+1,1)."""
    pool: int = 2
    """Side of the pooling regions of M."""
    image_space: bool = dataclasses.field(default=False, metadata=NEW)
    """The columns of image space, too: train a what-where decoder for each layer, and send through it what comes in the
    place of f (Figs. 4 and 5)."""
    cifar: str | None = dataclasses.field(default=None, metadata=NEW)
    """Pictures of image space: CIFAR's 32 x 32 (folder, archive, fetch:cifar10 or embedded) in place of crops of
    --pictures."""
    crop_size: int = dataclasses.field(default=64, metadata=NEW)
    """Side of the crops in image space: photographs are brought to four times that, test crops come from the right
    quarter."""
    num_crops: int = dataclasses.field(default=4000, metadata=NEW)
    """Training pictures of image space."""
    num_tests: int = dataclasses.field(default=20, metadata=NEW)
    """Most test pictures of image space."""
    width: float | None = dataclasses.field(default=None, metadata=NEW)
    """Network of image space: so many times VGG-16's filters, 1/8 by default; with --weights always 1."""
    classifier_steps: int = dataclasses.field(default=400, metadata=NEW)
    """Steps in which the network of image space learns to tell the photographs (or CIFAR's classes) apart, which is
    what learned filters are there; 0 leaves it random. Not with --weights."""
    decoder_steps: int = dataclasses.field(default=400, metadata=NEW)
    """Steps of training for each decoder."""
    batch_size: int = dataclasses.field(default=32, metadata=NEW)
    """Pictures a step."""
    rate: float = dataclasses.field(default=2e-3, metadata=NEW)
    """Learning rate of Adam at the beginning, 0.3 of it after 60% of the steps, 0.09 after 85%."""


def _compute(p: Table3Parameters, options: StudyOptions, folder: Path) -> Findings:
    from cnninv_jax import data

    _check(p)
    dtype = jnp.dtype(options.precision)
    layers = tuple(sorted(set(p.layers)))
    network_key, bank_key, noise_key = jax.random.split(jax.random.key(options.seed), 3)
    pictures = data.load_pictures(p.pictures, size=p.picture_size, limit=p.num_pictures)
    if len(pictures.images) < 2:
        raise ValueError(f"expected at least 2 pictures for an interval, got {len(pictures.images)} in {p.pictures}")
    brought = bring_network(p.weights, above(layers[-1]), network_key, dtype)
    network = brought.network
    # The highest layer only reconstructs.
    below = dataclasses.replace(network, layers=network.layers[:-1])
    try:
        check_picture(below, pictures.images.shape[1:])
    except ValueError as error:
        raise ValueError(f"--picture-size {p.picture_size}: {error}") from None

    errors = np.full((len(layers), len(METHODS), len(READINGS), len(pictures.images)), np.nan)
    shapes: dict[int, tuple[int, ...]] = {}
    with progress_bar("Table 3", len(pictures.images), quiet=options.quiet) as bar:
        for index, image in enumerate(pictures.images):
            outputs = activations(below, jnp.asarray(image, dtype))
            for row, layer in enumerate(layers):
                keys = [jax.random.fold_in(jax.random.fold_in(key, index), layer) for key in (bank_key, noise_key)]
                f = outputs[f"pool{layer}"]
                shapes[layer] = f.shape
                for method, bank in _banks(brought, layer, keys[0], dtype).items():
                    found = reconstruction_errors(f, bank, share=TABLE_2[above(layer)], pool=p.pool)
                    errors[row, METHODS.index(method), :, index] = [float(found[name]) for name in READINGS]
                errors[row, METHODS.index("activations"), :, index] = float(random_activation_error(keys[1], f))
            bar.advance(note=f"pool{layers[0]}, random filters: {errors[0, 2, READINGS.index(MAIN), index]:.3f}")
    content = {
        "layers": {
            str(layer): _describe(brought, layer, shapes[layer], p.pool, errors[row])
            for row, layer in enumerate(layers)
        },
        "pictures": list(pictures.names),
        "source": pictures.source,
        "pool": p.pool,
        "notes": [*network.notes, *pictures.notes],
        "main_reading": MAIN,
    }
    content["fits"] = fits(content)
    dataset = _dataset(layers, errors, pictures)
    if not p.image_space:
        return Findings(content, tables(content), dataset)
    from cnninv_jax.experiments.table3_images import image_space

    content["image_space"], images = image_space(p, layers, options, folder)
    return Findings(content, (*tables(content), *image_tables(content["image_space"])), dataset.merge(images))


def _banks(brought: Filters, layer: int, key: PRNGKeyArray, dtype: jnp.dtype) -> dict[str, FilterBank]:
    """Return the filters to reconstruct with: learned ones where the file has them, and Gaussian ones."""
    held = brought.network.layer(above(layer)).filters
    banks = {"random": filters.gaussian(key, held.shape[0], held.shape[1], held.shape[2:], normalize=True, dtype=dtype)}
    if above(layer) in brought.given:
        given = jnp.asarray(held, dtype)
        banks |= {"learned": filters.normalize(given), "learned as given": given}
    return banks


def _describe(brought: Filters, layer: int, shape: tuple[int, ...], pool: int, errors: np.ndarray) -> dict[str, Any]:
    """Return sizes, where f comes from, and every method's errors in every reading."""
    names = [entry.name for entry in brought.network.layers]
    code_shape = (brought.network.layer(above(layer)).num_filters, *shape[1:])
    share = TABLE_2[above(layer)]
    return {
        "input": f"pool{layer}",
        "filters": above(layer),
        "origin": brought.origin(names[names.index(above(layer)) - 1]),
        "shape": list(shape),
        "share": share,
        "k": dict(zip(COUNTS, sizes(code_shape, share, pool), strict=True)),
        "regions": num_blocks(code_shape, pool),
        "entries": int(np.prod(code_shape)),
        "errors": {
            method: {reading: mean_of(errors[place, number]) for number, reading in enumerate(READINGS)}
            for place, method in enumerate(METHODS)
            if np.isfinite(errors[place]).any()
        },
    }


def _dataset(layers: tuple[int, ...], errors: np.ndarray, pictures: data.Pictures) -> xr.Dataset:
    import xarray as xr

    axes = {"layer": list(layers), "filters": list(METHODS), "reading": list(READINGS), "picture": list(pictures.names)}
    attributes = {"long_name": "relative error |f - f_hat| / |f|, NaN where there are no such filters", "units": "1"}
    return xr.Dataset({"error": (tuple(axes), errors, attributes)}, axes)


def _check(p: Table3Parameters) -> None:
    """Refuse impossible parameters by the names of their flags."""
    for name in ("num_pictures", "picture_size", "pool"):
        positive(getattr(p, name), f"--{name.replace('_', '-')}", 1 << 30)
    if not p.layers or not set(p.layers) <= set(PAPER):
        raise ValueError(f"expected --layers out of 1, 2, 3, 4 (pool1 to pool4), got {' '.join(map(str, p.layers))}")
    if not p.image_space:
        return
    for name in ("crop_size", "num_crops", "num_tests", "decoder_steps", "batch_size"):
        positive(getattr(p, name), f"--{name.replace('_', '-')}", 1 << 30)
    if p.classifier_steps < 0:
        raise ValueError(f"expected --classifier-steps of at least 0, got {p.classifier_steps}")
    for flag, value in (("--rate", p.rate), ("--width", 1.0 if p.width is None else p.width)):
        if not 0 < value < math.inf:
            raise ValueError(f"expected {flag} to be positive, got {value}")
    if p.weights is not None and p.width not in (None, 1):
        raise ValueError(
            f"expected no --width with --weights, whose filters are VGG-16's, got {p.width:g}; leave one out"
        )
    if p.num_tests < 2:
        raise ValueError(f"expected --num-tests of at least 2 for an interval, got {p.num_tests}")
    if p.num_crops < p.batch_size:
        raise ValueError(f"expected --num-crops of at least a batch of {p.batch_size}, got {p.num_crops}")


def _figure(report: Mapping[str, Any], dataset: xr.Dataset | None) -> Figure:
    from cnninv_jax.experiments.table3_figure import table3_figure

    return table3_figure(report, dataset)


TABLE3 = Study(
    name="gilbert-table3",
    title="Activations of VGG-16 reconstructed by one step W^T M(W f, k)",
    source="Gilbert et al. 2017, Table 3",
    parameters=Table3Parameters,
    compute=_compute,
    figure=_figure,
)
