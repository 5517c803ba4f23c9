"""Lemmas B.1 to B.4 and Theorem 3.3 of Gilbert et al. 2017: what the model-RIP promises about a layer.

delta_k is the constant of eq. (1) over M_k, delta_2k the one over M_k^2, sums of two members. For x = W^T z with z in
M_k, h = W x, and zhat = M(h, k) on the support Omega:

    B.3      |z outside Omega| <= 2 delta_2k / (1 - delta_k) |z|
    B.4      |z - zhat|        <= 5 delta_2k / (1 - delta_k) |z|
    Thm 3.3  |x - W^T zhat|    <= 5 delta_2k / (1 - delta_k) sqrt((1 + delta_2k) / (1 - delta_2k)) |x|

The last step of B.4's proof needs delta_2k <= 1. The lemma itself does not: its terms are also at most
|z| + delta_k |z| + (1 + delta_k) |z|, less than the 5 |z| that it promises once delta_2k > 1. All three need Omega to
be the best support for h, so that they do not cover M_fixed (naive unsampling), although the paper says of Theorem 3.3
that any kind of switches will do.

Every function is elementwise and works under jit. What a bound cannot promise is infinity; what lies outside its domain
is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_floats
from cnninv_jax._typing import Array, Float


class GramBounds(NamedTuple):
    """The factors of Lemma B.1: |W_S x| <= analysis |x| and gram_low |z| <= |W_S W_S^T z| <= gram_high |z|."""

    analysis: Float[Array, " *batch"]
    gram_high: Float[Array, " *batch"]
    gram_low: Float[Array, " *batch"]


class LayerBounds(NamedTuple):
    """Errors after one layer more, relative to the true codes and to the signal; see `compose_bounds`.

    Attributes:
        missed: |z_l outside Omega_l| / |z_l|, the energy that the layer's support misses.
        code: |z_l - zhat_l| / |z_l| on the way up.
        decoded: the same on the way down, after the layers above have been undone.
        reconstruction: |x - xhat| / |x|, a number.
    """

    missed: Float[Array, " layers"]
    code: Float[Array, " layers"]
    decoded: Float[Array, " layers"]
    reconstruction: Float[Array, ""]


def lemma_b_1(delta_k: ArrayLike) -> GramBounds:
    """Return the factors of Lemma B.1, eqs. (5), (6), (7): sqrt(1 + delta_k), 1 + delta_k and 1 - delta_k.

    Args:
        delta_k: constant of eq. (1) over M_k.

    Returns:
        The factors for every support S in M_k, every signal x and every z on S; a ``gram_low`` of zero or less says
        nothing.
    """
    (dk,) = as_floats(delta_k)
    dk = jnp.where(dk >= 0, dk, jnp.nan)
    return GramBounds(jnp.sqrt(1 + dk), 1 + dk, 1 - dk)


def lemma_b_2(delta_2k: ArrayLike) -> Float[Array, " *batch"]:
    """Return the factor of Lemma B.2: |W_S W^T z| <= delta_2k |z| for z in M_k without entries on S in M_k.

    Args:
        delta_2k: constant of eq. (1) over M_k^2.
    """
    (d2k,) = as_floats(delta_2k)
    return jnp.where(d2k >= 0, d2k, jnp.nan)


def lemma_b_3(delta_k: ArrayLike, delta_2k: ArrayLike) -> Float[Array, " *batch"]:
    """Return the factor of Lemma B.3 (identification): |z outside Omega| <= 2 delta_2k / (1 - delta_k) |z|.

    Args:
        delta_k: constant of eq. (1) over M_k.
        delta_2k: constant of eq. (1) over M_k^2.

    Returns:
        The factor, infinity where delta_k >= 1. One of 1 or more is true of any Omega.
    """
    return _over_gap(2.0, delta_k, delta_2k)


def lemma_b_4(delta_k: ArrayLike, delta_2k: ArrayLike) -> Float[Array, " *batch"]:
    """Return the factor of Lemma B.4 (estimation): |z - zhat| <= 5 delta_2k / (1 - delta_k) |z|.

    Args:
        delta_k: constant of eq. (1) over M_k.
        delta_2k: constant of eq. (1) over M_k^2.

    Returns:
        The factor, infinity where delta_k >= 1. One of 1 or more says no more than zhat = 0 would keep.
    """
    return _over_gap(5.0, delta_k, delta_2k)


def theorem_3_3(delta_k: ArrayLike, delta_2k: ArrayLike) -> Float[Array, " *batch"]:
    """Return the bound of Theorem 3.3 on |x - xhat| / |x|, xhat = W^T M(W x, k) (Gilbert et al. 2017).

    5 delta_2k / (1 - delta_k) sqrt((1 + delta_2k) / (1 - delta_2k)).

    Args:
        delta_k: constant of eq. (1) over M_k.
        delta_2k: constant of eq. (1) over M_k^2.

    Returns:
        The bound, infinity where delta_k >= 1 or delta_2k >= 1. One of 1 or more says no more than xhat = 0 would
        keep: the theorem speaks where delta_2k is under some 0.16.
    """
    dk, d2k = as_floats(delta_k, delta_2k)
    inside = d2k < 1
    safe = jnp.where(inside, d2k, 0.0)
    return jnp.where(inside, lemma_b_4(dk, d2k) * jnp.sqrt((1 + safe) / (1 - safe)), _infinite(dk, d2k))


def theorem_3_3_refined(delta_k: ArrayLike, delta_2k: ArrayLike) -> Float[Array, " *batch"]:
    """Return the bound that the proof of Theorem 3.3 gives before it is rounded up to 5 delta_2k.

    ((1 + delta_2k) m + delta_k) sqrt((1 + delta_2k) / (1 - delta_k)) with m = min(1, 2 delta_2k / (1 - delta_k)), what
    Omega may miss. z lies in M_k, so that |z| <= |x| / sqrt(1 - delta_k) will do in the last step.

    Args:
        delta_k: constant of eq. (1) over M_k.
        delta_2k: constant of eq. (1) over M_k^2.

    Returns:
        The bound on |x - xhat| / |x|, infinity where delta_k >= 1; never above `theorem_3_3`.
    """
    dk, d2k = as_floats(delta_k, delta_2k)
    missed = jnp.minimum(lemma_b_3(dk, d2k), 1.0)
    inside = dk < 1
    gap = jnp.where(inside, 1 - dk, 1.0)
    bound = ((1 + d2k) * missed + dk) * jnp.sqrt((1 + d2k) / gap)
    return jnp.where(inside, bound, _infinite(dk, d2k))


def compose_bounds(delta_k: Float[ArrayLike, " layers"], delta_2k: Float[ArrayLike, " layers"]) -> LayerBounds:
    """Return bounds for several layers, the output of one the input of the next (the paper's future work, 3.3).

    The signal is x = W_1^T z_1, z_1 = W_2^T z_2, ..., every z_l in its own M_k. Upward zhat_l = M(W_l zhat_{l-1}, k_l);
    downward z~_L = zhat_L and z~_{l-1} = W_l^T z~_l on the switches Omega_{l-1} that pooling chose on the way up, and
    xhat = W_1^T z~_1. With an error e on a layer's input, the proofs of B.3 and B.4 give

        |z outside Omega| <= (2 delta_2k |z| + 2 sqrt(1 + delta_k) |e|) / (1 - delta_k)
        |z - zhat|        <= (1 + delta_2k) |z outside Omega| + delta_k |z| + sqrt(1 + delta_k) |e|

    and |e_l| = |z_{l-1} - zhat_{l-1}|, |z_{l-1}| <= sqrt(1 + delta_k) |z_l|. Downward an error grows by
    sqrt((1 + delta_2k) / (1 - delta_k)); what the switches missed stands at right angles to it.
    The noise-free part is written with the paper's 5 delta_2k / (1 - delta_k): one layer is Theorem 3.3.

    Args:
        delta_k: constants of the layers over their M_k, lowest layer first, at least one.
        delta_2k: those over M_k^2.

    Returns:
        `LayerBounds`; infinite from the first layer on whose delta_k is 1 or more.

    Raises:
        ValueError: not one number per layer.
    """
    dk, d2k = as_floats(delta_k, delta_2k)
    if dk.ndim != 1 or not dk.size:
        raise ValueError(f"expected delta_k and delta_2k with one number per layer, got shape {dk.shape}")
    estimate = lemma_b_4(dk, d2k)
    gap = jnp.where(dk < 1, 1 - dk, 1.0)
    into, missed_noise = jnp.sqrt(1 + dk), jnp.where(dk < 1, 2 * jnp.sqrt(1 + dk) / gap, jnp.inf)
    zero = jnp.zeros((), dk.dtype)
    missed, code = [], []
    for layer in range(dk.size):
        # The noise on this layer's input, relative to this layer's code; inf * 0 would be NaN.
        noise = zero if not layer else into[layer] * code[-1]
        extra = jnp.where(noise > 0, missed_noise[layer] * noise, zero)
        missed.append(lemma_b_3(dk[layer], d2k[layer]) + extra)
        code.append(estimate[layer] + (1 + d2k[layer]) * extra + into[layer] * noise)
    down = jnp.where(dk < 1, jnp.sqrt((1 + d2k) / gap), jnp.inf)
    decoded = [code[-1]]
    for layer in range(dk.size - 1, 0, -1):
        grown = jnp.where(decoded[-1] > 0, down[layer] * decoded[-1], decoded[-1])
        decoded.append(jnp.hypot(missed[layer - 1], grown))
    last, inside = decoded[-1], d2k[0] < 1
    safe = jnp.where(inside, d2k[0], 0.0)
    factor = jnp.where(inside, jnp.sqrt((1 + safe) / (1 - safe)), jnp.inf)
    reconstruction = jnp.where(last > 0, last * factor, last)
    return LayerBounds(jnp.stack(missed), jnp.stack(code), jnp.stack(decoded[::-1]), reconstruction)


def _over_gap(factor: float, delta_k: ArrayLike, delta_2k: ArrayLike) -> Array:
    """Return factor * delta_2k / (1 - delta_k), infinity from delta_k = 1 on, NaN for what is no delta."""
    dk, d2k = as_floats(delta_k, delta_2k)
    inside = dk < 1
    bound = factor * d2k / jnp.where(inside, 1 - dk, 1.0)
    return jnp.where(inside, jnp.where((dk >= 0) & (d2k >= 0), bound, jnp.nan), _infinite(dk, d2k))


def _infinite(dk: Array, d2k: Array) -> Array:
    return jnp.where((dk >= 0) & (d2k >= 0), np.inf, np.nan).astype(dk.dtype)
