"""Trainings behind the image-space columns of Gilbert et al. 2017, Table 3: an encoder, a decoder for each pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from cnninv_jax._progress import Progress
from cnninv_jax._typing import Array, Float, PRNGKeyArray, Shaped
from cnninv_jax.experiments.table3_crops import Crops
from cnninv_jax.nn.augmentation import Preparation
from cnninv_jax.nn.autoencoders import EncoderClassifier, feature_scale, frozen_copy, pixel_loss
from cnninv_jax.nn.backbones import Backbone
from cnninv_jax.nn.decoders import WhatWhereDecoder
from cnninv_jax.nn.evaluation import evaluate
from cnninv_jax.nn.objectives import classification_loss, classification_metrics
from cnninv_jax.nn.recipes import Recipe
from cnninv_jax.nn.training import Trained, train

#: Rates are multiplied by 0.3 after these shares of the steps.
_MILESTONES, _FACTOR = (0.6, 0.85), 0.3
#: Training pictures whose activations say what scale a decoder has to expect.
_SCALED_BY = 64

Report = Callable[[Progress], object]


class ImageDecoder(nnx.Module):
    """A frozen network and the what-where decoder of one of its pools, whose input is brought to scale 1.

    Args:
        encoder: frozen.
        decoder: of one of its pools.
        scale: what activations are divided by before the decoder.
    """

    def __init__(self, encoder: Backbone, decoder: WhatWhereDecoder, scale: float) -> None:
        self.encoder, self.decoder, self.scale = encoder, decoder, scale

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B H W 3"]:
        """Return the pictures that come back from the pictures' own activations."""
        del train, key
        features = self.encoder(images, self.decoder.taps)
        return self.decode(features[self.decoder.taps[0]], features, images.shape[1:3])

    def decode(
        self, maps: Float[Array, "B h w K"], switches: Mapping[str, Shaped[Array, "B h w C"]], size: tuple[int, ...]
    ) -> Float[Array, "B H W 3"]:
        """Return pictures from activations of the pool and switches; the decoder's output is what differs from grey."""
        return 0.5 + self.decoder(maps / self.scale, switches, size)


def preparation(dtype: DTypeLike) -> Preparation:
    """Return what makes crops RGB in [0, 1], and mirrors half of them while training."""
    return Preparation((0.0,) * 3, (255.0,) * 3, flip=True, dtype=jnp.dtype(dtype).name)


def recipe(steps: int, batch_size: int, rate: float) -> Recipe:
    """Return Adam with a multistep schedule; the paper does not say how its decoders were trained."""
    milestones = sorted({step for step in (round(share * steps) for share in _MILESTONES) if 0 < step < steps})
    return Recipe(steps, batch_size, "adam", rate, tuple(milestones), _FACTOR, warmup=min(50, steps // 10))


def learned_encoder(
    key: PRNGKeyArray,
    crops: Crops,
    last: str,
    width: float | Fraction,
    recipe: Recipe,
    dtype: DTypeLike,
    *,
    folder: Path | None,
    report: Report,
) -> tuple[Backbone, dict[str, Any]]:
    """Train VGG-16's first layers, narrowed, to tell the labels of crops, and freeze them.

    Returns:
        The frozen network, and how the training went: accuracy on training and test crops, the last losses.
    """
    build_key, train_key = jax.random.split(key)
    way = preparation(dtype)
    settings: dict[str, Any] = {
        "last": last, "width": width, "preprocessing": "torchvision", "dtype": dtype, "param_dtype": dtype,
    }  # fmt: skip
    model = nnx.jit(
        lambda key: EncoderClassifier(
            Backbone("vgg16", trainable=True, **settings, rngs=nnx.Rngs(key)),
            crops.classes,
            rngs=nnx.Rngs(jax.random.fold_in(key, 1)),
        )
    )(build_key)
    data = {"images": crops.images, "labels": crops.labels}
    trained = train(
        model, classification_loss, data, recipe,
        key=train_key, prepare=way, folder=folder, progress=report, name="classifier",
    )  # fmt: skip
    frozen = frozen_copy(trained.model.backbone, Backbone("vgg16", **settings, rngs=nnx.Rngs(0)))
    parts = {
        "train": {name: values[:1000] for name, values in data.items()},
        "test": {"images": crops.test, "labels": crops.test_labels},
    }
    accuracies = {
        name: float(np.mean(evaluate(trained.model, classification_metrics, part, prepare=way)["correct"]))
        for name, part in parts.items()
    }
    return frozen, {"accuracy": accuracies, "classes": crops.classes, **_course(trained)}


def trained_decoder(
    key: PRNGKeyArray,
    encoder: Backbone,
    pool: str,
    width: float | Fraction,
    crops: Crops,
    recipe: Recipe,
    dtype: DTypeLike,
    *,
    folder: Path | None,
    report: Report,
) -> tuple[ImageDecoder, dict[str, Any]]:
    """Train the what-where decoder of a pool on the crops' own activations and switches.

    Returns:
        Network and decoder, and how the training went.
    """
    build_key, train_key = jax.random.split(key)
    decoder = nnx.jit(
        lambda key: WhatWhereDecoder(
            "vgg16", pool, width=width, ceil=encoder.ceil, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(key)
        )
    )(build_key)
    some = preparation(dtype)(None, {"images": jnp.asarray(crops.images[:_SCALED_BY])})["images"]
    # Activations that are all zero, of a network that died, are so at any scale.
    scale = feature_scale(encoder, pool, some) or 1.0
    trained = train(
        ImageDecoder(encoder, decoder, scale), pixel_loss, {"images": crops.images}, recipe,
        key=train_key, prepare=preparation(dtype), folder=folder, progress=report, name=f"decoder of {pool}",
    )  # fmt: skip
    return trained.model, {"scale": scale, **_course(trained)}


def _course(trained: Trained[Any]) -> dict[str, Any]:
    last = {name: float(np.nanmean(values[-50:])) for name, values in trained.history.items()}
    return {
        "last_50_steps": last, "steps": int(np.isfinite(trained.history["loss"]).sum()), "status": trained.status,
        "message": trained.message, "seconds": trained.seconds,
    }  # fmt: skip


__all__ = ["ImageDecoder", "learned_encoder", "preparation", "recipe", "trained_decoder"]
