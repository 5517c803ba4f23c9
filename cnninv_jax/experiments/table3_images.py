"""Gilbert et al. 2017, Table 3 in image space (4.5, C.3): activations, reconstructed or random, through a decoder.

A what-where decoder of pool(i) is trained on the activations of pictures. Then it is given W^T M(W f, k) or Gaussian
activations in place of f, with the picture's own switches, and its pictures are compared.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cnninv_jax import filters
from cnninv_jax._typing import Array, FilterBank, Float, PRNGKeyArray
from cnninv_jax.experiments.classification import Steps
from cnninv_jax.experiments.layer_inputs import TABLE_2, bring_network
from cnninv_jax.experiments.studies import StudyOptions, progress_bar
from cnninv_jax.experiments.table3_crops import Crops, cifar_images, photograph_crops
from cnninv_jax.experiments.table3_errors import above, mean_of, random_activation, reconstruction
from cnninv_jax.experiments.table3_image_tables import READINGS, SHOWN
from cnninv_jax.experiments.table3_networks import learned_encoder, preparation, recipe, trained_decoder
from cnninv_jax.experiments.table3_tables import METHODS
from cnninv_jax.nn.backbones import Backbone
from cnninv_jax.nn.blocks import count_parameters
from cnninv_jax.operators import from_flax_kernel

if TYPE_CHECKING:
    import xarray as xr

    from cnninv_jax.experiments.table3 import Table3Parameters

#: What a decoder is given: f itself, and what comes in its place.
GIVEN = ("original", *METHODS)
#: Filters of the reduced network in place of VGG-16's.
REDUCED = Fraction(1, 8)
#: Crops whose pictures are kept for the figure.
_KEPT = 2


class _Network(NamedTuple):
    """A frozen network, which of its layers are learned, and what it is."""

    encoder: Backbone
    learned: frozenset[str]
    width: float | Fraction
    words: str
    training: dict[str, Any] | None


def image_space(
    p: Table3Parameters, layers: tuple[int, ...], options: StudyOptions, folder: Path
) -> tuple[dict[str, Any], xr.Dataset]:
    """Train what is to be trained, and return the errors in image space: for report.json, and every crop's.

    Args:
        p: the study's parameters.
        layers: i, of pool(i).
        options: of the study.
        folder: trainings are kept below it, and go on there.

    Raises:
        ValueError: parameters that do not fit.
    """
    dtype = jnp.dtype(options.precision)
    root = jax.random.fold_in(jax.random.key(options.seed), 5)
    crop_key, network_key, decoder_key, bank_key = jax.random.split(root, 4)
    crops = _crops(p, crop_key)
    side = crops.images.shape[-1]
    if side < 2 ** layers[-1]:
        raise ValueError(f"expected --crop-size of at least {2 ** layers[-1]} for pool{layers[-1]}, got {side}")
    trains = p.weights is None and p.classifier_steps > 0
    total = len(layers) * p.decoder_steps + (p.classifier_steps if trains else 0)
    outcomes: dict[int, _Outcome] = {}
    with progress_bar("Table 3, image space", total, quiet=options.quiet) as bar:
        steps = Steps(bar)
        network = _network(p, network_key, crops, layers[-1], dtype, folder, steps.begin("classifier"))
        for layer in layers:
            decoder, training = trained_decoder(
                jax.random.fold_in(decoder_key, layer), network.encoder, f"pool{layer}", network.width, crops,
                recipe(p.decoder_steps, p.batch_size, p.rate), dtype,
                folder=folder / "trainings" / f"decoder{layer}", report=steps.begin(f"decoder of pool{layer}"),
            )  # fmt: skip
            outcomes[layer] = _outcome(
                jax.random.fold_in(bank_key, layer), decoder, network, layer, p.pool, crops, training, dtype
            )
    content = {
        "layers": {str(layer): outcome.content for layer, outcome in outcomes.items()},
        "network": network.words,
        "classifier": network.training,
        "width": float(network.width),
        "side": side,
        "train": len(crops.images),
        "test": len(crops.test),
        "pictures": crops.words,
        "notes": [*network.encoder.notes, *crops.notes],
    }  # fmt: skip
    return content, _dataset(outcomes, crops)


class _Outcome(NamedTuple):
    content: dict[str, Any]
    errors: Float[np.ndarray, "given reading crop"]
    activations: Float[np.ndarray, "given crop"]
    shown: np.ndarray


def _crops(p: Table3Parameters, key: PRNGKeyArray) -> Crops:
    if p.cifar is not None:
        return cifar_images(p.cifar, num_train=p.num_crops, num_test=p.num_tests)
    return photograph_crops(
        key, p.pictures, size=p.crop_size, num_pictures=p.num_pictures, num_train=p.num_crops, num_test=p.num_tests
    )


def _network(
    p: Table3Parameters, key: PRNGKeyArray, crops: Crops, highest: int, dtype: jnp.dtype, folder: Path, report: Steps
) -> _Network:
    last = above(highest)
    if p.weights is not None:
        brought = bring_network(p.weights, last, key, dtype)
        encoder = Backbone(
            "vgg16", network=brought.network, last=last, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(key)
        )
        return _Network(encoder, brought.given, 1, f"VGG-16, {brought.origin(last)}", None)
    width = REDUCED if p.width is None else p.width
    size = f"VGG-16 with {float(width):g} of its filters"
    if p.classifier_steps > 0:
        encoder, training = learned_encoder(
            key, crops, last, width, recipe(p.classifier_steps, p.batch_size, p.rate), dtype,
            folder=folder / "trainings" / "classifier", report=report,
        )  # fmt: skip
        names = frozenset(spec.name for spec in encoder.layers)
        return _Network(encoder, names, width, f"{size}, learned here", training)
    encoder = nnx.jit(
        lambda key: Backbone(
            "vgg16", last=last, width=width, preprocessing="torchvision", dtype=dtype, param_dtype=dtype,
            rngs=nnx.Rngs(key),
        )
    )(key)  # fmt: skip
    return _Network(encoder, frozenset(), width, f"{size}, random", None)


def _outcome(
    key: PRNGKeyArray,
    decoder: Any,
    network: _Network,
    layer: int,
    pool: int,
    crops: Crops,
    training: dict[str, Any],
    dtype: jnp.dtype,
) -> _Outcome:
    """Give a trained decoder what comes in the place of f, and compare its pictures."""
    name, top = above(layer), f"pool{layer}"
    pictures = preparation(dtype)(None, {"images": jnp.asarray(crops.test)})["images"]
    features = nnx.jit(lambda model, images: model.encoder(images, model.decoder.taps))(decoder, pictures)
    f = jnp.moveaxis(features[top], -1, 1)
    held = from_flax_kernel(network.encoder.convolutions[name].kernel[...])
    banks: dict[str, FilterBank | None] = {"random": None}
    if name in network.learned:
        banks |= {"learned": filters.normalize(held), "learned as given": held}
    given = {"original": f, "activations": _random_activations(jax.random.fold_in(key, 0), f)} | {
        method: _reconstructions(
            jax.random.fold_in(key, 1 + place), f, bank, shape=held.shape, share=TABLE_2[name], pool=pool
        )
        for place, (method, bank) in enumerate(banks.items())
    }
    decode = nnx.jit(lambda model, maps, features: model.decode(maps, features, pictures.shape[1:3]))
    decoded = {
        method: np.asarray(decode(decoder, jnp.moveaxis(value, 1, -1), features)) for method, value in given.items()
    }
    count = len(crops.test)
    errors = np.full((len(GIVEN), len(READINGS), count), np.nan)
    activations = np.full((len(GIVEN), count), np.nan)
    shown = np.zeros((1 + len(SHOWN), min(_KEPT, count), *crops.test.shape[1:]), np.uint8)
    shown[0] = crops.test[: shown.shape[1]]
    truth = np.asarray(pictures, np.float64)
    for method, images in decoded.items():
        place = GIVEN.index(method)
        errors[place] = _readings(images.astype(np.float64), truth, decoded["original"].astype(np.float64))
        activations[place] = _relative(np.asarray(given[method], np.float64), np.asarray(f, np.float64))
        if method in SHOWN:
            bytes_ = np.round(255 * np.clip(images[: shown.shape[1]], 0, 1)).astype(np.uint8)
            shown[1 + SHOWN.index(method)] = np.moveaxis(bytes_, -1, 1)
    content = {
        "input": top,
        "filters": name,
        "learned": name in network.learned,
        "shape": list(f.shape[1:]),
        "parameters": count_parameters(decoder.decoder).learned,
        "training": training,
        "errors": {
            method: {reading: mean_of(errors[GIVEN.index(method), number]) for number, reading in enumerate(READINGS)}
            for method in GIVEN
            if method in decoded
        },
        "activations": {
            method: mean_of(activations[GIVEN.index(method)]) for method in GIVEN[1:] if method in decoded
        },
    }  # fmt: skip
    return _Outcome(content, errors, activations, shown)


@functools.partial(jax.jit, static_argnames=("shape", "share", "pool"))
def _reconstructions(
    key: PRNGKeyArray,
    f: Float[Array, "T M D D"],
    bank: FilterBank | None,
    *,
    shape: tuple[int, ...],
    share: float,
    pool: int,
) -> Float[Array, "T M D D"]:
    """Return W^T M(W f, k) of every crop's f, by one bank, or by Gaussian filters of its own for each."""

    def one(entry: tuple[PRNGKeyArray, Array]) -> Array:
        own, signal = entry
        used = bank
        if used is None:
            used = filters.gaussian(own, shape[0], shape[1], shape[2:], normalize=True, dtype=f.dtype)
        return reconstruction(signal, used, share=share, pool=pool)

    return lax.map(one, (jax.random.split(key, f.shape[0]), f))


@jax.jit
def _random_activations(key: PRNGKeyArray, f: Float[Array, "T M D D"]) -> Float[Array, "T M D D"]:
    return jax.vmap(random_activation)(jax.random.split(key, f.shape[0]), f)


def _relative(found: np.ndarray, wanted: np.ndarray, against: np.ndarray | None = None) -> np.ndarray:
    """Return |found - wanted| / |against| of every crop."""
    size = (wanted if against is None else against).reshape(len(wanted), -1)
    return np.linalg.norm((found - wanted).reshape(len(wanted), -1), axis=1) / np.linalg.norm(size, axis=1)


def _readings(found: np.ndarray, truth: np.ndarray, decoded: np.ndarray) -> Float[np.ndarray, "reading crop"]:
    """Return the errors of every crop in `READINGS`."""
    mean = truth.mean(axis=(0, 1, 2))
    return np.stack(
        [
            _relative(found, wanted, against)
            for wanted in (truth, decoded)
            for against in (wanted, wanted - mean)
        ]
    )  # fmt: skip


def _dataset(outcomes: dict[int, _Outcome], crops: Crops) -> xr.Dataset:
    import xarray as xr

    axes = {"image_layer": list(outcomes), "decoded_from": list(GIVEN), "image_reading": list(READINGS)}
    errors = np.stack([outcome.errors for outcome in outcomes.values()])
    activations = np.stack([outcome.activations for outcome in outcomes.values()])
    shown = np.stack([outcome.shown for outcome in outcomes.values()])
    return xr.Dataset(
        {
            "image_error": (
                ("image_layer", "decoded_from", "image_reading", "crop"), errors,
                {"long_name": "relative error of the decoded crop, NaN where there are no such filters", "units": "1"},
            ),
            "crop_activation_error": (
                ("image_layer", "decoded_from", "crop"), activations,
                {"long_name": "relative error |f - f_hat| / |f| of the crop's activation", "units": "1"},
            ),
            "shown": (("image_layer", "column", "shown_crop", "colour", "row", "pixel"), shown,
                      {"long_name": "crops as decoded", "units": "1"}),
        },
        {**axes, "column": ["picture", *SHOWN], "crop": np.arange(len(crops.test))},
    )  # fmt: skip


__all__ = ["GIVEN", "REDUCED", "image_space"]
