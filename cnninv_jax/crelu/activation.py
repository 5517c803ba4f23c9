"""CReLU, its inverse, AVR, and max-pooling of both phases with switches (Shang et al. 2016, Definition 2.1 and A.2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, per_axis
from cnninv_jax._typing import Array, Code, Float, Int, PerAxis, Shaped


class Pooled(NamedTuple):
    """What conv + CReLU + max-pooling hands on.

    Attributes:
        features: [2 K, *regions], the positive phase of every filter first, then the negative one; never negative.
        switches: flat index into the shifts n (row-major, int32) of every winner, [2 K, *regions]; -1 where nothing
            fires, that is where the feature is 0.
    """

    features: Float[Array, " K2 *regions"]
    switches: Int[Array, " K2 *regions"]


def crelu(x: ArrayLike, axis: int = 0) -> Shaped[Array, " *shape"]:
    """Return rho_c(x) = ([x]_+, [-x]_+), put together along an axis (Shang et al. 2016, Definition 2.1).

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
        features: both phases, any shape; those of no CReLU (both phases of a response above 0) are answered too, by
            the response nearest to them in l2 but for its sign.
        axis: of the channels, whose length halves.

    Raises:
        ValueError: features have no such axis, or an odd number of channels.
    """
    positive, negative = _phases(features, axis)
    return positive - negative


def nearest(features: ArrayLike, axis: int = 0) -> Shaped[Array, " *shape"]:
    """Return the l2 projection onto the features that a CReLU has: p, q >= 0 and p q = 0.

    Of (p, q) the larger phase is kept if it is above 0, the other is set to 0: with p kept the squared distance is q^2
    + min(p, 0)^2, with q kept p^2 + min(q, 0)^2, and the former is at most the latter exactly where p >= q (unless
    both are below 0 and both are set to 0). Between equals the positive phase is kept.

    Args:
        features: estimates of both phases, any shape.
        axis: of the channels.

    Raises:
        ValueError: features have no such axis, or an odd number of channels.
    """
    positive, negative = _phases(features, axis)
    # Written so that NaN stays.
    first = positive >= negative
    return jnp.concatenate(
        [jnp.where(negative > positive, 0, jnp.maximum(positive, 0)), jnp.where(first, 0, jnp.maximum(negative, 0))],
        axis=axis,
    )


def avr(x: ArrayLike) -> Shaped[Array, " *shape"]:
    """Return |x|, absolute value rectification (Jarrett et al. 2009), which keeps the modulus and loses the phase."""
    return jnp.abs(as_float(x))


def max_pool(h: ArrayLike, pool: PerAxis | None = None, *, stride: PerAxis | None = None) -> Pooled:
    """Return the CReLU of responses, max-pooled phase by phase (Shang et al. 2016, A.2: g = pool o CReLU).

    Args:
        h: linear responses W x, [K, *n].
        pool: window per axis; None pools the whole response into one region.
        stride: step from window to window; None for windows side by side. Windows that would reach over the end of n
            are left out, so that with windows side by side n % pool responses at the end are not seen.

    Returns:
        Features and switches, [2 K, *regions]. The lowest index wins among equals.

    Raises:
        ValueError: h without a spatial axis, or a window longer than n.
    """
    both = crelu(h, axis=0)
    if both.ndim < 2:
        raise ValueError(f"expected responses of shape [K, *n], got {both.shape[1:]} after the channels")
    shifts = both.shape[1:]
    rank = len(shifts)
    window = shifts if pool is None else per_axis(pool, rank, "pool")
    step = window if stride is None else per_axis(stride, rank, "stride")
    if any(size > n for size, n in zip(window, shifts, strict=True)):
        raise ValueError(f"expected a pooling window no longer than the responses {shifts}, got {window}")
    # Where every window starts, and its places: an index table of static geometry, one gather for all windows.
    places = np.arange(np.prod(shifts), dtype=np.int32).reshape(shifts)
    views = np.lib.stride_tricks.sliding_window_view(places, window)[tuple(slice(None, None, s) for s in step)]
    table = views.reshape(*views.shape[:rank], -1)
    windows = both.reshape(both.shape[0], -1)[:, table]
    winner = jnp.argmax(windows, axis=-1)[..., None]
    features = jnp.take_along_axis(windows, winner, axis=-1)[..., 0]
    positions = jnp.take_along_axis(jnp.broadcast_to(table[None], windows.shape), winner, axis=-1)[..., 0]
    return Pooled(features, jnp.where(features == 0, -1, positions))


def winners(pooled: Pooled, code_shape: tuple[int, ...]) -> tuple[Code, Code]:
    """Return the responses that won, with their sign, and how often each won (the columns of W^_x, Shang et al., A.2).

    Args:
        pooled: features and switches of `max_pool`.
        code_shape: (K, *n).

    Returns:
        The responses, [K, *n], zeros where none won, averaged where one won in several windows; and the number of
        windows that each won, [K, *n]. Both phases of a filter never win at one shift.

    Raises:
        ValueError: features and switches of different shapes, or of another number of filters than code_shape's.
    """
    features, switches = as_float(pooled.features), jnp.asarray(pooled.switches)
    count, size = code_shape[0], int(np.prod(code_shape[1:]))
    if features.shape != switches.shape or features.shape[:1] != (2 * count,):
        raise ValueError(
            f"expected features and switches of shape [2 K, *regions] with K = {count}, got {features.shape} and "
            f"{switches.shape}"
        )
    signs = jnp.asarray(np.repeat([1.0, -1.0], count), features.dtype)[:, None]
    flat = switches.reshape(2 * count, -1)
    fired = flat >= 0
    columns = jnp.where(fired, flat, size)
    rows = jnp.asarray(np.tile(np.arange(count, dtype=np.int32), 2)[:, None])
    empty = jnp.zeros((count, size), features.dtype)
    counts = empty.at[rows, columns].add(fired.astype(features.dtype), mode="drop")
    sums = empty.at[rows, columns].add(signs * features.reshape(2 * count, -1), mode="drop")
    responses = jnp.where(counts > 0, sums / jnp.where(counts > 0, counts, 1), 0)
    return responses.reshape(code_shape), counts.reshape(code_shape)


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


def _check_axis(array: jax.Array, axis: int) -> None:
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"expected an axis of an array of shape {array.shape}, got axis {axis}")
