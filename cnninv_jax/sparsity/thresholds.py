"""Thresholds: what a layer of a CNN does to its responses, entry by entry (Murray 2018, section 3).

Murray 2018 keeps responses of either sign (`hard_threshold`), a CNN only positive ones (`shifted_relu`, whose beta is
minus the bias); `relu_threshold` and `soft_threshold` are what lies between.

| | of either sign | positive only |
| --- | --- | --- |
| kept as they are | `hard_threshold` | `relu_threshold` |
| moved by beta towards zero | `soft_threshold` | `shifted_relu` |

Everywhere beta is at least 0: one number, or an array of h's rank that broadcasts against it, such as one number for
each filter as [K, 1]; any other shape is a ValueError. It may be traced. NaN stays NaN, in h and in beta.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float
from cnninv_jax._typing import Array, Float


def hard_threshold(h: ArrayLike, beta: ArrayLike) -> Float[Array, " *n"]:
    """Return h where |h| > beta, else 0.

    The projection by which Murray 2018 proves eq. (3), at beta_l = |X_min^(l)| / 2. An entry of magnitude beta is lost.

    Args:
        h: responses, of any shape.
        beta: threshold.
    """
    code, threshold = _pair(h, beta)
    return _unless_nan(threshold, jnp.where(jnp.abs(code) <= threshold, 0.0, code))


def soft_threshold(h: ArrayLike, beta: ArrayLike) -> Float[Array, " *n"]:
    """Return sign(h) max(|h| - beta, 0), the proximal point of beta |.|_1 (Papyan, Romano and Elad 2017).

    Args:
        h: responses, of any shape.
        beta: threshold.
    """
    code, threshold = _pair(h, beta)
    return code - jnp.clip(code, -threshold, threshold)


def relu_threshold(h: ArrayLike, beta: ArrayLike) -> Float[Array, " *n"]:
    """Return h where h > beta, else 0: the hard threshold of a CNN that keeps positive responses only.

    Args:
        h: responses, of any shape.
        beta: threshold.
    """
    code, threshold = _pair(h, beta)
    return _unless_nan(threshold, jnp.where(code <= threshold, 0.0, code))


def shifted_relu(h: ArrayLike, beta: ArrayLike) -> Float[Array, " *n"]:
    """Return max(h - beta, 0): a ReLU with bias -beta, the soft threshold of non-negative codes.

    Args:
        h: responses, of any shape.
        beta: threshold.
    """
    code, threshold = _pair(h, beta)
    return jnp.maximum(code - threshold, 0.0)


def _pair(h: ArrayLike, beta: ArrayLike) -> tuple[Array, Array]:
    """Return both as floats of the responses' dtype."""
    code = as_float(h)
    threshold = jnp.asarray(beta).astype(code.dtype)
    fits = len(threshold.shape) == len(code.shape) and all(
        size in (1, whole) for size, whole in zip(threshold.shape, code.shape, strict=True)
    )
    if threshold.shape and not fits:
        raise ValueError(
            f"expected beta to be one number, or an array of as many axes that broadcasts to h's shape {code.shape}, "
            f"got shape {threshold.shape}; one number for each filter is [K, 1]"
        )
    return code, threshold


def _unless_nan(threshold: Array, kept: Array) -> Array:
    """Return what is kept, NaN where the threshold is: a comparison with NaN would keep everything."""
    return jnp.where(jnp.isnan(threshold), jnp.nan, kept)
