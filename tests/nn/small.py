"""A network and a data set that take no time."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnninv_jax.nn.augmentation import preparation
from cnninv_jax.nn.blocks import ConvBlock, Dense, Frozen  # noqa: F401
from cnninv_jax.nn.objectives import classification_loss
from cnninv_jax.nn.recipes import Recipe

RECIPE = Recipe(num_steps=40, batch_size=16, optimizer="adam", rate=1e-2, milestones=(20, 30), weight_decay=1e-3)


class Net(nnx.Module):
    """A frozen convolution with a learned norm, and a classifier with dropout."""

    def __init__(self, seed=0, *, frozen=True, dropout=0.25, dtype=jnp.float32):
        rngs = nnx.Rngs(seed)
        self.conv = ConvBlock(3, 8, 3, norm="learned", frozen=frozen, dtype=dtype, rngs=rngs)
        self.out = Dense(8, 4, dtype=dtype, rngs=rngs)
        self.rate = dropout

    def __call__(self, images, *, train=False, key=None):
        from cnninv_jax.nn.blocks import dropout

        features = jnp.mean(self.conv(images, train=train), axis=(1, 2))
        return self.out(dropout(features, self.rate, train=train, key=key))


def data(count=70, seed=0):
    """Pictures whose class is which quarter is bright, and noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count).astype(np.int32)
    images = rng.integers(0, 128, (count, 3, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label % 3, :, : 2 + 2 * label] += 100
    return {"images": images, "labels": labels}


DATA = data()
PREPARE = preparation(DATA["images"], flip=True, shift=1)
LOSS = classification_loss
