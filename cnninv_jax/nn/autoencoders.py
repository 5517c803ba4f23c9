"""A frozen encoder below a decoder that learns, and the classifier from which a learned encoder comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnninv_jax._typing import Array, Float, PRNGKeyArray, Scalar
from cnninv_jax.nn._parameters import Frozen
from cnninv_jax.nn.backbones import Backbone
from cnninv_jax.nn.blocks import Dense
from cnninv_jax.nn.decoders import DCN


class AutoEncoder(nnx.Module):
    """Conv[k]-DeConv[k]: a frozen `Backbone`, and a `DCN` that learns to undo it (Random DCN, 3.2).

    Args:
        encoder: the network; its features at the decoder's tap are divided by ``scale``.
        decoder: its mirror image.
        scale: a number, see `feature_scale`; 1 for features as they are.

    Raises:
        ValueError: a scale that is not positive.
    """

    def __init__(self, encoder: Backbone, decoder: DCN, scale: float = 1.0) -> None:
        if not 0 < scale < np.inf:
            raise ValueError(f"expected a positive scale, got {scale}; the encoder's features are all zero?")
        self.encoder, self.decoder = encoder, decoder
        # What the layers are called and where they came from is for people; programs should not depend on it.
        self.encoder.notes, self.encoder.given = (), ()
        self.scale = Frozen(jnp.asarray(scale, jnp.float32))

    def features(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w K"]:
        """Return the encoder's features, before any pooling behind them."""
        tap = self.decoder.tap
        found = self.encoder(images, (tap,))[tap]
        return found / self.scale[...].astype(found.dtype)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B H W 3"]:
        """Return reconstructions of pictures, RGB in [0, 1].

        The decoder's outputs are differences from mid-grey, as the paper's are from the mean picture.
        """
        return 0.5 + self.decoder(self.features(images), images.shape[1:3], train=train, key=key)


def feature_scale(encoder: Backbone, tap: str, images: Float[Array, "B H W 3"]) -> float:
    """Return the root mean square of an encoder's features of some pictures.

    Divided by it, features of every encoder come with the same power, so that how fast a decoder learns does not follow
    from the scale of the weights below it. A decoder could take the number into its first layer.
    """
    features = encoder(images, (tap,))[tap]
    return float(jnp.sqrt(jnp.mean(jnp.square(features.astype(jnp.float32)))))


class EncoderClassifier(nnx.Module):
    """A backbone that learns to classify: its convolutions and ReLU, means over the last maps, a dense layer.

    Args:
        backbone: trainable.
        num_classes: scores.
        rngs: source of the dense layer.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.backbone = backbone
        channels, dtype = backbone.layers[-1].shape[0], backbone.dtype
        self.out = Dense(channels, num_classes, dtype=dtype, param_dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B C"]:
        """Return scores of pictures, RGB in [0, 1]."""
        (maps,) = self.backbone(images).values()
        return self.out(jnp.mean(maps, axis=(1, 2)), train=train, key=key)


def frozen_copy(backbone: Backbone, like: Backbone) -> Backbone:
    """Put the filters and biases of one network into a frozen one of the same layers, and return that.

    Raises:
        ValueError: other layers.
    """
    if backbone.layers != like.layers:
        raise ValueError(f"expected two networks of the same layers, got {backbone.layers} and {like.layers}")
    for name, convolution in like.convolutions.items():
        for variable in ("kernel", "bias"):
            held = getattr(convolution, variable)
            held[...] = getattr(backbone.convolutions[name], variable)[...].astype(held[...].dtype)
    like.notes = ()  # its filters are not random any more
    return like


def pixel_loss(model: Any, batch: Any, key: PRNGKeyArray) -> tuple[Scalar, Mapping[str, Scalar]]:
    """Mean squared pixel error of a reconstruction, Random DCN eq. (1) divided by the number of pixels."""
    error = model(batch["images"], train=True, key=key) - batch["images"]
    return jnp.mean(jnp.square(error.astype(jnp.float32))), {}


def pixel_metrics(model: Any, batch: Any) -> dict[str, Array]:
    """For every picture its mean squared pixel error, ``loss``."""
    error = model(batch["images"]) - batch["images"]
    return {"loss": jnp.mean(jnp.square(error.astype(jnp.float32)), axis=(1, 2, 3))}


def reconstructions(model: Any, batch: Any) -> dict[str, Array]:
    """Return the pictures a model gives back, ``pictures`` [B, H, W, 3]."""
    return {"pictures": model(batch["images"])}


def unit_range(key: PRNGKeyArray | None, batch: Any) -> Any:
    """Prepare stored pictures, uint8 [B, 3, H, W], as RGB in [0, 1], channels last."""
    del key
    images = jnp.moveaxis(batch["images"], 1, -1).astype(jnp.float32) / 255
    return {**batch, "images": images}


__all__ = [
    "AutoEncoder",
    "EncoderClassifier",
    "feature_scale",
    "frozen_copy",
    "pixel_loss",
    "pixel_metrics",
    "reconstructions",
    "unit_range",
]
