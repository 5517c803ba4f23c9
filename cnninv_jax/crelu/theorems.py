"""Theorems A.5 and C.1 of Shang et al. 2016: what is left of a signal after conv + CReLU + max-pooling.

x = W_x c, where the columns of W_x are the shifts of filters that take part, lambda_min is the smallest eigenvalue of
W_x^T W_x (0 where columns depend on each other), W~_x has for every filter that takes part the shift that won in the
phase of its coefficient, lambda~_max is the largest eigenvalue of W~_x^T W~_x, and x' is what Algorithm 2 returns.

    A.5      |x - x'| / |x| <= sqrt((lambda~_max - lambda_min) / lambda_min)
    refined  |x - x'| / |x| <= sqrt(1 - lambda_min / (m lambda~_max))

The proof of A.5 goes through |W_x^T x| <= |W~_x^T x|, which is wrong where a filter answers with the sign opposite to
its coefficient. The theorem is right all the same. With g = W_x^T x, |x|^2 = sum c_i g_i, to which filters of the wrong
sign only add negative terms. So over the filters R of the right sign

    |x|^2 <= sum over R of c_i g_i <= |c| |g_R| <= |x| |g_R| / sqrt(lambda_min),  hence  lambda_min |x|^2 <= |g_R|^2,

and a g_i of R is at most what won in its phase: |g_R|^2 <= |W~_x^T x|^2 <= lambda~_max |Px|^2, P the projection onto
those columns of W~_x that belong to R. From |Px|^2 + |x - Px|^2 = |x|^2 follows the refined bound with m = 1, which is
A.5's times sqrt(lambda_min / lambda~_max). It also shows how much of (S1) is needed: no more than one shift per filter
*and sign*; with at most m of them |g_R|^2 <= m |W~_x^T x|^2.

Every function is elementwise and works under jit, but for `projection_quantiles`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from cnninv_jax._numerics import as_floats
from cnninv_jax._typing import Array, Float

#: Gamma(a + 1/2) / (Gamma(a) sqrt(a)) in powers of 1/a; at `_FAR` and beyond the next term is below 1e-13.
_SERIES = (1.0, -1 / 8, 1 / 128, 5 / 1024, -21 / 32768, -399 / 262144, 869 / 4194304, 39325 / 33554432)
_FAR = 16
#: Negative differences of eigenvalues up to so many roundings of the larger one count as zero.
_ROUNDING = 64


class RatioLaw(NamedTuple):
    """Mean of a ratio of norms, exactly and as printed, and its standard deviation."""

    exact: Float[Array, " *batch"]
    printed: Float[Array, " *batch"]
    deviation: Float[Array, " *batch"]


class TheoremC1(NamedTuple):
    """Projection onto a random subspace: ``kept`` is |x_s| / |x|, ``lost`` the reconstruction ratio |x - x_s| / |x|."""

    kept: RatioLaw
    lost: RatioLaw


def theorem_a5(smallest: ArrayLike, largest: ArrayLike) -> Float[Array, " *batch"]:
    """Return the bound of Theorem A.5 on |x - x'| / |x|: sqrt((lambda~_max - lambda_min) / lambda_min).

    Args:
        smallest: lambda_min, the smallest eigenvalue of W_x^T W_x.
        largest: lambda~_max, the largest eigenvalue of W~_x^T W~_x.

    Returns:
        The bound; infinity where lambda_min = 0. One of 1 or more (lambda~_max >= 2 lambda_min) says no more than
        x' = 0 would keep. NaN outside of the domain: negative or NaN, or lambda~_max below lambda_min by more than
        rounding, which no signal of (S1) has.
    """
    low, high = as_floats(smallest, largest)
    gap = _gap(low, high)
    positive = low > 0
    bound = jnp.sqrt(gap / jnp.where(positive, low, 1.0))
    return jnp.where(positive | jnp.isnan(gap), bound, jnp.where(low == 0, jnp.inf, jnp.nan).astype(bound.dtype))


def theorem_a5_refined(smallest: ArrayLike, largest: ArrayLike, per_sign: ArrayLike = 1) -> Float[Array, " *batch"]:
    """Return what the proof of Theorem A.5 gives before its last step: sqrt(1 - lambda_min / (m lambda~_max)).

    Args:
        smallest: lambda_min, as in `theorem_a5`.
        largest: lambda~_max; the columns of filters that answer with the right sign are enough.
        per_sign: m, the most shifts of one filter whose coefficients have one sign; 1 under (S1).

    Returns:
        The bound on |x - x'| / |x|, at most 1; NaN outside of the domain, as in `theorem_a5`, and for m < 1.
    """
    low, high, times = as_floats(smallest, largest, per_sign)
    high = jnp.where(times >= 1, times, jnp.nan) * high
    gap = _gap(low, high)
    positive = high > 0
    bound = jnp.sqrt(gap / jnp.where(positive, high, 1.0))
    return jnp.where(positive | jnp.isnan(gap), bound, jnp.ones_like(bound))


def _gap(low: Array, high: Array) -> Array:
    """Return high - low, zero where it is negative by rounding, NaN where either is no eigenvalue of a Gram matrix."""
    allowed = _ROUNDING * float(jnp.finfo(low.dtype).eps) * high
    inside = (low >= 0) & (high >= 0) & (high - low >= -allowed)
    return jnp.where(inside, jnp.maximum(high - low, 0.0), jnp.nan)


def theorem_c1(dimension: ArrayLike, subspace: ArrayLike) -> TheoremC1:
    """Return Theorem C.1 with its exact constant: the mean part of x that a random subspace keeps, and that it loses.

    |x_s|^2 / |x|^2 has the law Beta(D_s / 2, (D - D_s) / 2), so that

        E |x_s| / |x| = Gamma((D_s + 1) / 2) Gamma(D / 2) / (Gamma(D_s / 2) Gamma((D + 1) / 2)),

    which is below the printed sqrt(D_s / D), the root of E |x_s|^2 / |x|^2 (Jensen). For |x - x_s| / |x| the same holds
    with D - D_s; there the printed one is sqrt((D - D_s) / D).

    Args:
        dimension: D >= 1.
        subspace: D_s, between 0 and D; the K of appendix C.

    Returns:
        Means and standard deviations, NaN outside of the domain. A deviation is the root of a difference of two means
        that agree to 1 / (2 D_s): in float32 it keeps five digits at D_s = 50 and two at D_s = 50 000.
    """
    total, part = as_floats(dimension, subspace)
    inside = (total >= 1) & (part >= 0) & (part <= total)
    total, part = jnp.where(inside, total, jnp.nan), jnp.where(inside, part, jnp.nan)
    return TheoremC1(_ratio_law(total, part), _ratio_law(total, total - part))


def _ratio_law(total: Array, part: Array) -> RatioLaw:
    square = part / total
    exact = jnp.where(part == total, 1.0, _half_step(part / 2) / _half_step(total / 2))
    return RatioLaw(exact, jnp.sqrt(square), jnp.sqrt(jnp.maximum(square - exact * exact, 0.0)))


def _half_step(a: Array) -> Array:
    """Return Gamma(a + 1/2) / Gamma(a), a >= 0; a difference of log-Gammas would lose float32's digits at large a."""
    factor, far = jnp.ones_like(a), a + _FAR
    for step in range(_FAR):
        factor = factor * ((a + step) / (a + step + 0.5))
    series = jnp.zeros_like(a)
    for coefficient in reversed(_SERIES):
        series = series / far + coefficient
    return factor * jnp.sqrt(far) * series


def projection_quantiles(
    quantiles: ArrayLike, dimension: int, subspace: int, part: Literal["kept", "lost"] = "lost"
) -> np.ndarray:
    """Return quantiles of |x_s| / |x| or |x - x_s| / |x| for a random subspace, from the Beta law of `theorem_c1`.

    Computed on the host in float64.

    Args:
        quantiles: probabilities in [0, 1].
        dimension: D.
        subspace: D_s, 0 < D_s < D.
        part: which of the two ratios.

    Raises:
        ValueError: D_s outside of 1 .. D - 1, or an unknown part.
    """
    if not 0 < subspace < dimension:
        raise ValueError(f"expected a subspace of 1 to D - 1 = {dimension - 1} dimensions, got {subspace}")
    if part not in ("kept", "lost"):
        raise ValueError(f"expected part to be 'kept' or 'lost', got {part!r}")
    kept = subspace if part == "kept" else dimension - subspace
    return np.sqrt(special.betaincinv(kept / 2, (dimension - kept) / 2, np.asarray(quantiles, np.float64)))
