"""Layers by loops over places, NumPy float64."""

import numpy as np


def margins(size, side, step, padding):
    """Return the zeros before and behind an axis."""
    if padding == "SAME":
        missing = max((-(-size // step) - 1) * step + side - size, 0)
        return missing // 2, missing - missing // 2
    return (0, 0) if padding == "VALID" else (padding, padding)


def convolution(images, kernel, stride=1, padding="SAME"):
    """Return responses [B, h, w, K] of images [B, H, W, M] to a kernel [kh, kw, M, K]."""
    side = kernel.shape[0]
    sides = [margins(size, side, stride, padding) for size in images.shape[1:3]]
    framed = np.pad(images, [(0, 0), *sides, (0, 0)])
    counts = [(size - side) // stride + 1 for size in framed.shape[1:3]]
    found = np.empty((images.shape[0], *counts, kernel.shape[-1]))
    for i, j in np.ndindex(*counts):
        window = framed[:, i * stride : i * stride + side, j * stride : j * stride + side]
        found[:, i, j] = np.tensordot(window, kernel, 3)
    return found


def pooling(maps, window, step, kind="max", ceil=False):
    """Return pooled maps; a window that sticks out at the end is taken with what it holds, or not at all."""
    counts = []
    for size in maps.shape[1:3]:
        starts = range(0, size, step)
        counts.append(sum(start + window <= size for start in starts))
        if ceil and (counts[-1] == 0 or (counts[-1] - 1) * step + window < size) and counts[-1] * step < size:
            counts[-1] += 1
    found = np.empty((maps.shape[0], *counts, maps.shape[3]))
    for i, j in np.ndindex(*counts):
        part = maps[:, i * step : i * step + window, j * step : j * step + window]
        found[:, i, j] = part.max(axis=(1, 2)) if kind == "max" else part.mean(axis=(1, 2))
    return found


def normalised(x, mean=None, variance=None, epsilon=1e-5):
    """Return x with batch mean 0 and variance 1 per channel, or by given statistics."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes) if mean is None else mean
    variance = x.var(axis=axes) if variance is None else variance
    return (x - mean) / np.sqrt(variance + epsilon)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "avr": np.abs,
    "crelu": lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=-1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "linear": lambda x: x,
}
