"""A classifier with numbers: the network that a list of layers describes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from cnninv_jax._typing import Array, Float, PRNGKeyArray
from cnninv_jax.nn.blocks import ConvBlock, Dense, dropout
from cnninv_jax.nn.specs import ConvLayer, NetworkSpec, output_shapes


class ConvNet(nnx.Module):
    """A convolutional classifier; its layers are attributes of their names, ``model.conv1.kernel``.

    Args:
        spec: its layers, see `architectures`.
        size: side of the images, by default the one that the network is made for.
        dtype: of computation.
        param_dtype: of what is stored.
        precision: of products; None for full float32, "default" for what the device does at its quickest.
        rngs: source of the filters, layer by layer.

    Raises:
        ValueError: layers that do not fit, or images too small for them.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        *,
        size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.spec = spec
        self.size = spec.size if size is None else size
        self.dtype = dtype
        for layer, shapes in zip(spec.layers, output_shapes(spec, self.size), strict=True):
            if isinstance(layer, ConvLayer):
                block: ConvBlock | Dense = ConvBlock(
                    shapes.inputs[-1],
                    layer.channels,
                    layer.kernel,
                    stride=layer.stride,
                    padding=layer.padding,
                    norm=layer.norm,
                    activation=layer.activation,
                    pool=layer.pools,
                    dropout=layer.dropout,
                    frozen=layer.frozen,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    precision=precision,
                    rngs=rngs,
                )
            else:
                block = Dense(
                    shapes.inputs[0],
                    layer.channels,
                    norm=layer.norm,
                    activation=layer.activation,
                    dropout=layer.dropout,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    precision=precision,
                    rngs=rngs,
                )
            setattr(self, layer.name, block)

    def __call__(
        self, images: Float[Array, "B H W M"], *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B C"]:
        """Return scores, one per class, whose soft-max are probabilities.

        Args:
            images: standardised, channels last.
            train: use and keep the batch's statistics, and drop features.
            key: of dropout.

        Raises:
            ValueError: images of another size, integers, or dropout without a key.
        """
        return self.layers(images, train=train, key=key)[-1]

    def layers(
        self, images: Float[Array, "B H W M"], *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> list[Array]:
        """Return the features of every layer, and the scores last; see `__call__`."""
        wanted = (self.size, self.size, self.spec.channels)
        if images.shape[1:] != wanted:
            raise ValueError(f"expected images [B, {', '.join(map(str, wanted))}], got shape {images.shape}")
        count = len(self.spec.layers) + 1
        keys = list(jax.random.split(key, count)) if train and key is not None else [None] * count
        features = dropout(images, self.spec.dropout, train=train, key=keys[0])
        found = []
        for layer, part in zip(self.spec.layers, keys[1:], strict=True):
            if not isinstance(layer, ConvLayer) and features.ndim == 4:
                features = features.reshape(features.shape[0], -1)
            features = getattr(self, layer.name)(features, train=train, key=part)
            found.append(features)
        if features.ndim == 4:
            found.append(jnp.mean(features, axis=(1, 2)))
        return found
