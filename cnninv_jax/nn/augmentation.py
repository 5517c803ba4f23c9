"""From stored pictures to a network's input: standardisation, flips and shifts, inside the compiled step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._typing import Array, Float, PRNGKeyArray


@dataclass(frozen=True)
class Preparation:
    """Standardise every channel, flip and shift at random (Shang et al. 2016, 3.1); hashable.

    ``preparation(key, batch)`` takes ``{"images": uint8 or float [B, C, H, W], ...}`` and returns the same with images
    [B, H, W, C]; other entries pass. With key None nothing random happens.

    Attributes:
        mean: per channel, in units of the stored pictures (0 to 255).
        deviation: per channel.
        flip: mirror every picture left to right with probability 1/2.
        shift: move by up to so many pixels along both axes, zeros (the mean) coming in.
        dtype: of the output.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    flip: bool = False
    shift: int = 0
    dtype: str = "float32"

    def __call__(self, key: PRNGKeyArray | None, batch: Any) -> Any:
        """Prepare a batch."""
        images = batch["images"]
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(f"expected images [B, {len(self.mean)}, H, W], got {images.shape}")
        mean, deviation = (jnp.asarray(value, self.dtype).reshape(1, 1, 1, -1) for value in (self.mean, self.deviation))
        images = (jnp.moveaxis(images, 1, -1).astype(self.dtype) - mean) / deviation
        if key is not None:
            flip_key, shift_key = jax.random.split(key)
            images = random_flip(flip_key, images) if self.flip else images
            images = random_shift(shift_key, images, self.shift) if self.shift else images
        return {**batch, "images": images}


def preparation(images: ArrayLike, *, flip: bool = False, shift: int = 0, dtype: str = "float32") -> Preparation:
    """Return the preparation with the mean and deviation of every channel of these pictures.

    Args:
        images: the training set, [N, C, H, W].
        flip: see `Preparation`.
        shift: see `Preparation`.
        dtype: see `Preparation`.

    Raises:
        ValueError: not four axes, or a channel that is constant.
    """
    array = np.asarray(images)
    if array.ndim != 4:
        raise ValueError(f"expected images [N, C, H, W], got {array.shape}")
    # Channel by channel in float64: 150 million values, no copy of all of them at once.
    channels = [array[:, channel] for channel in range(array.shape[1])]
    mean = tuple(float(np.mean(channel, dtype=np.float64)) for channel in channels)
    deviation = tuple(float(np.std(channel, dtype=np.float64)) for channel in channels)
    if not all(value > 0 for value in deviation):
        raise ValueError(f"expected channels that vary, got deviations {deviation}")
    return replace(Preparation(mean, deviation), flip=flip, shift=shift, dtype=dtype)


def random_flip(key: PRNGKeyArray, images: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Mirror every picture left to right with probability 1/2."""
    chosen = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)


def random_shift(key: PRNGKeyArray, images: Float[Array, "B H W C"], most: int) -> Float[Array, "B H W C"]:
    """Move every picture by a whole number of pixels from -most to most along each axis; zeros come in."""
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    offsets = jax.random.randint(key, (batch, 2), 0, 2 * most + 1)

    def cut(image: Array, offset: Array) -> Array:
        zero = jnp.zeros((), offset.dtype)
        return lax.dynamic_slice(image, (offset[0], offset[1], zero), (height, width, channels))

    return jax.vmap(cut)(padded, offsets)


__all__ = ["Preparation", "preparation", "random_flip", "random_shift"]
