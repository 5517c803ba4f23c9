"""CReLU, its inverse, AVR, and max-pooling with switches (Shang et al. 2016, Definition 2.1 and A.2).

NaN stays NaN: it comes out in both phases, wins its window and keeps its switch, so that a spoilt input shows in the
result. Pooling and what undoes it take channels first, [K, *n]; the activations take any layout.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, per_axis
from cnninv_jax._typing import Array, Code, Float, Int, PerAxis, Shaped

#: Windows up to so long are looked at place by place, as that is faster (6 times for 3 x 3 windows, stride 2).
SHORT_WINDOW = 8


class Pooled(NamedTuple):
    """What max-pooling hands on; after CReLU C is 2 K, the positive phase of every filter first, then the negative one.

    Attributes:
        features: the largest value of every window, [C, *regions].
        switches: flat index into the shifts n (row-major, int32) of every winner, [C, *regions]; -1 where nothing
            fires, that is where the feature is 0.
    """

    features: Float[Array, " C *regions"]
    switches: Int[Array, " C *regions"]


def crelu(x: ArrayLike, axis: int = 0) -> Shaped[Array, " *shape"]:
    """Return rho_c(x) = ([x]_+, [-x]_+), put together along an axis (Shang et al. 2016, Definition 2.1).

    At x = 0 the derivative of each phase is the mean of its one-sided ones, 1/2 and -1/2, so that `inverse` of it has
    derivative 1 everywhere (``jax.nn.relu`` takes 0 at 0).

    Args:
        x: linear responses, any shape.
        axis: of the channels, whose length doubles; 0 for [K, *n], -1 for the layout of Flax.

    Raises:
        ValueError: x has no such axis.
    """
    responses = as_float(x)
    _check_axis(responses, axis)
    return jnp.concatenate([jnp.maximum(responses, 0), jnp.maximum(-responses, 0)], axis=axis)


def inverse(features: ArrayLike, axis: int = 0) -> Shaped[Array, " *shape"]:
    """Return rho_c^-1(p, q) = p - q, the linear responses that a CReLU came from (Shang et al. 2016, Alg. 1, line 3).

    Args:
        features: both phases, any shape. p - q is the only linear map that undoes CReLU, and features that no CReLU
            has (estimates) are taken so; `nearest` first replaces them by such that one has.
        axis: of the channels, whose length halves.

    Raises:
        ValueError: features have no such axis, or an odd number of channels.
    """
    positive, negative = _phases(features, axis)
    return positive - negative


def nearest(features: ArrayLike, axis: int = 0) -> Shaped[Array, " *shape"]:
    """Return the l2 projection onto the features that a CReLU has: p, q >= 0 and p q = 0.

    Of (p, q) the larger phase is kept if it is above 0, the other is set to 0. With p kept the squared distance is
    q^2 + min(p, 0)^2, with q kept p^2 + min(q, 0)^2, and the first is at most the second if and only if p >= q or
    neither is above 0. Between equals, equally near, the positive phase is kept.

    Args:
        features: estimates of both phases, any shape.
        axis: of the channels.

    Raises:
        ValueError: features have no such axis, or an odd number of channels.
    """
    positive, negative = _phases(features, axis)
    # NaN loses no comparison, and so stays.
    kept = jnp.where(negative > positive, 0, jnp.maximum(positive, 0))
    return jnp.concatenate([kept, jnp.where(positive >= negative, 0, jnp.maximum(negative, 0))], axis=axis)


def avr(x: ArrayLike) -> Shaped[Array, " *shape"]:
    """Return |x|, absolute value rectification (Shang et al. 2016, 2.1), which keeps the modulus and not the phase."""
    return jnp.abs(as_float(x))


def max_pool(h: ArrayLike, pool: PerAxis | None = None, *, stride: PerAxis | None = None) -> Pooled:
    """Return the CReLU of responses, max-pooled phase by phase (Shang et al. 2016, A.2: g = pool o CReLU).

    Args:
        h: linear responses W x, [K, *n].
        pool: window per axis; None pools the whole response into one region, as in Theorem A.5.
        stride: step from window to window; None for windows side by side. See `pool_features`.

    Returns:
        Features and switches, [2 K, *regions].

    Raises:
        ValueError: h without a spatial axis, or a window longer than n.
    """
    return pool_features(crelu(h, axis=0), pool, stride=stride)


def pool_features(features: ArrayLike, pool: PerAxis | None = None, *, stride: PerAxis | None = None) -> Pooled:
    """Return max-pooled features and switches, of any rectification: CReLU, AVR or ReLU.

    Args:
        features: [C, *n], one or more spatial axes.
        pool: window per axis; None pools the whole response into one region.
        stride: step from window to window; None for windows side by side. The paper's CIFAR nets pool 3 x 3 windows
            with stride 2. Windows that would reach over the end of n are left out (PyTorch's convention, not Caffe's):
            (n - pool) // stride + 1 regions per axis, and responses that no window reaches are not seen.

    Returns:
        Features and switches, [C, *regions]. The lowest flat index wins among equals.

    Raises:
        ValueError: features without a spatial axis, or a window longer than n.

    Cost: log2(pool) comparisons per axis and feature.
    """
    values = as_float(features)
    if values.ndim < 2:
        raise ValueError(f"expected features of shape [C, *n], got {values.shape}")
    return _pooled(values, *window_and_step(values.shape[1:], pool, stride))


@functools.partial(jax.jit, static_argnames=("window", "step"))
def _pooled(values: Array, window: tuple[int, ...], step: tuple[int, ...]) -> Pooled:
    """Return `pool_features`; one program, as there are many small operations."""
    shifts = values.shape[1:]
    numbers = np.arange(math.prod(shifts), dtype=np.int32).reshape(1, *shifts)
    places = jnp.broadcast_to(jnp.asarray(numbers), values.shape)
    # Axis by axis, the last first: then the lowest flat index wins among equals, as it would in a whole window.
    for axis in range(len(shifts), 0, -1):
        values, places = _slide(values, places, axis, window[axis - 1], step[axis - 1])
    return Pooled(values, jnp.where(values == 0, -1, places))


def window_and_step(
    shifts: tuple[int, ...], pool: PerAxis | None, stride: PerAxis | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return pooling window and stride per axis: the whole response for None, and windows side by side for None.

    Raises:
        ValueError: a window longer than the responses, or entries that are no integers of at least 1.
    """
    rank = len(shifts)
    window = shifts if pool is None else per_axis(pool, rank, "pool")
    step = window if stride is None else per_axis(stride, rank, "stride")
    if any(size > n for size, n in zip(window, shifts, strict=True)):
        raise ValueError(f"expected a pooling window no longer than the responses {shifts}, got {window}")
    return window, step


def winners(pooled: Pooled, code_shape: tuple[int, ...]) -> tuple[Code, Code]:
    """Return the responses that won, with their sign, and how often each won (the columns of W^_x, Shang et al., A.2).

    Args:
        pooled: features and switches of `max_pool`. A switch outside [0, prod n) is of no winner, whatever the feature.
        code_shape: (K, *n).

    Returns:
        The responses, [K, *n], zeros where none won, averaged where one won in several windows; and the number of
        windows that each won, [K, *n]. Both phases of a filter never win at one shift (but for NaN).

    Raises:
        ValueError: features and switches of different shapes, or of another number of filters than code_shape's.
    """
    features, switches = as_float(pooled.features), jnp.asarray(pooled.switches)
    count, size = code_shape[0], math.prod(code_shape[1:])
    if features.shape != switches.shape or features.shape[:1] != (2 * count,):
        raise ValueError(
            f"expected features and switches of shape [2 K, *regions] with K = {count}, got {features.shape} and "
            f"{switches.shape}"
        )
    if not jnp.issubdtype(switches.dtype, jnp.integer):
        raise ValueError(f"expected switches to be integers, flat indices into n, got {switches.dtype}")
    positive, negative = jnp.split(features.reshape(2 * count, -1), 2)
    values = jnp.concatenate([positive, -negative], axis=1)
    # Both phases of a filter beside each other; what did not fire goes behind the end and is dropped.
    flat = jnp.concatenate(jnp.split(switches.reshape(2 * count, -1), 2), axis=1)
    columns = jnp.where((flat >= 0) & (flat < size), flat, size)
    rows = jnp.asarray(np.arange(count, dtype=columns.dtype)[:, None])
    empty = jnp.zeros((count, size), features.dtype)
    sums = empty.at[rows, columns].add(values, mode="drop")
    counts = empty.at[rows, columns].add(jnp.ones_like(values), mode="drop")
    responses = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), 0)
    return responses.reshape(code_shape), counts.reshape(code_shape)


def _slide(values: Array, places: Array, axis: int, window: int, step: int) -> tuple[Array, Array]:
    """Return the maximum of every window along one axis, and its place.

    A long window is first made short: a maximum over w and one over w further on make one over anything from w to 2 w,
    so that the width doubles until two of them cover the window, and no program is longer for a longer one.
    """

    def shifted(start: int, regions: int, stride: int) -> tuple[Array, Array]:
        end = start + (regions - 1) * stride + 1
        first, second = (lax.slice_in_dim(array, start, end, stride, axis) for array in (values, places))
        return first, second

    regions, width = (values.shape[axis] - window) // step + 1, 1
    while window > SHORT_WINDOW and 2 * width < window:
        length = values.shape[axis] - width
        values, places = _larger(*shifted(0, length, 1), *shifted(width, length, 1))
        width *= 2
    best = shifted(0, regions, step)
    for start in range(1, window) if width == 1 else (window - width,):
        best = _larger(*best, *shifted(start, regions, step))
    return best


def _larger(first: Array, place: Array, second: Array, other: Array) -> tuple[Array, Array]:
    """Return the larger of two and its place; the first among equals, and NaN before any number."""
    later = (second > first) | (jnp.isnan(second) & ~jnp.isnan(first))
    return jnp.where(later, second, first), jnp.where(later, other, place)


def _phases(features: ArrayLike, axis: int) -> tuple[Shaped[Array, " *shape"], Shaped[Array, " *shape"]]:
    values = as_float(features)
    _check_axis(values, axis)
    if values.shape[axis] % 2:
        raise ValueError(
            f"expected both phases of every filter, an even number of channels, got {values.shape[axis]} along axis "
            f"{axis} of {values.shape}"
        )
    positive, negative = jnp.split(values, 2, axis=axis)
    return positive, negative


def _check_axis(array: Array, axis: int) -> None:
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"expected an axis of an array of shape {array.shape}, got axis {axis}")
