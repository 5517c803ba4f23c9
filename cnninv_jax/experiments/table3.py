"""Gilbert et al. 2017, 4.5 and Table 3: what one step W^T M(W f, k) gives back of VGG-16's activations.

The columns of activation space. Those of image space need a trained decoding network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import filters
from cnninv_jax.experiments.layer_inputs import TABLE_2, Filters, bring_network
from cnninv_jax.experiments.network_pass import activations, check_picture
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.experiments.table3_errors import (
    COUNTS,
    MAIN,
    READINGS,
    random_activation_error,
    reconstruction_errors,
    sizes,
)
from cnninv_jax.experiments.table3_tables import METHODS, PAPER, fits, tables
from cnninv_jax.montecarlo import mean_interval
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
    return Findings(content, tables(content), _dataset(layers, errors, pictures))


def above(layer: int) -> str:
    """Return the name of the layer that reconstructs the output of pool(i): conv(i+1, 1)."""
    return f"conv{layer + 1}_1"


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
            method: {reading: _mean(errors[place, number]) for number, reading in enumerate(READINGS)}
            for place, method in enumerate(METHODS)
            if np.isfinite(errors[place]).any()
        },
    }


def _mean(values: np.ndarray) -> dict[str, Any]:
    """Return the mean over pictures with its interval; pictures whose f or f_hat is zero have no error."""
    finite = values[np.isfinite(values)]
    mean, variance = finite.mean(), finite.var(ddof=1) if len(finite) > 1 else np.nan
    low, high = mean_interval(mean, variance, len(finite))
    return {
        "mean": float(mean), "interval_95": [float(low), float(high)], "standard_deviation": float(np.sqrt(variance)),
        "pictures": len(finite), "non_finite": len(values) - len(finite),
    }  # fmt: skip


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


def _figure(report: Mapping[str, Any], dataset: xr.Dataset | None) -> Figure:
    from cnninv_jax.experiments.table3_figure import table3_figure

    return table3_figure(report)


TABLE3 = Study(
    name="gilbert-table3",
    title="Activations of VGG-16 reconstructed by one step W^T M(W f, k), errors in activation space",
    source="Gilbert et al. 2017, Table 3",
    parameters=Table3Parameters,
    compute=_compute,
    figure=_figure,
)
