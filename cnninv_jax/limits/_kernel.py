"""Pieces of the recursions: the ReLU kernel of Lemma 5, window means, zero insertion, shifted maps.

Spatial axes are the last ones everywhere, whatever stands in front.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnninv_jax._typing import Array, Float

#: Degree of the polynomials below, by the width of the numbers; their errors are one unit in the last place or less.
DEGREES = {2: 4, 4: 9, 8: 22}


@functools.cache
def coefficients(degree: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return polynomials q and p in t = 1 - r, lowest power first, such that for 0 <= r <= 1

        (sqrt(1 - r^2) - r arccos r) / pi = t^(3/2) q(t)        arccos(r) / pi = t^(1/2) p(t).

    With theta = arccos r, t = 2 sin^2(theta / 2), both are analytic in t up to t = 2, so that Chebyshev interpolation
    on [0, 1] gains a factor 3 + sqrt(8) with every degree.
    """
    nodes = 0.5 + 0.5 * np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    theta = 2 * np.arcsin(np.sqrt(nodes / 2))
    # sin theta - theta cos theta as its series: the difference itself loses digits where theta is small.
    terms = [(-1) ** (n + 1) * 2 * n / math.factorial(2 * n + 1) * theta ** (2 * n + 1) for n in range(1, 20)]
    found = []
    for values in (sum(reversed(terms)) / (np.pi * nodes**1.5), theta / (np.pi * np.sqrt(nodes))):
        fitted = np.polynomial.Chebyshev.fit(nodes, values, degree, domain=[0, 1])
        found.append(tuple(fitted.convert(kind=np.polynomial.Polynomial, domain=[-1, 1]).coef.tolist()))
    return found[0], found[1]


def _polynomial(which: int, t: Array) -> Array:
    *rest, last = coefficients(DEGREES[t.dtype.itemsize])[which]
    value = jnp.full_like(t, last)
    for coefficient in reversed(rest):
        value = value * t + coefficient
    return value


def kappa(rho: Float[Array, " *any"]) -> Float[Array, " *any"]:
    """Return (sqrt(1 - rho^2) + (pi - arccos rho) rho) / pi, Lemma 5's h(arccos rho), by one root and a polynomial.

    Args:
        rho: a cosine; |rho| <= 1 is the caller's.
    """
    t = 1 - jnp.abs(rho)
    return jnp.maximum(rho, 0) + t * root(t) * _polynomial(0, t)


def kappa_slope(rho: Float[Array, " *any"]) -> Float[Array, " *any"]:
    """Return the derivative 1 - arccos(rho) / pi, which is finite at both ends."""
    t = 1 - jnp.abs(rho)
    angle = root(t) * _polynomial(1, t)
    return jnp.where(rho < 0, angle, 1 - angle)


@jax.custom_jvp
def relu_covariance(
    covariance: Float[Array, " *any"],
    first: Float[Array, " *any"],
    second: Float[Array, " *any"],
    first_inverse: Float[Array, " *any"],
    second_inverse: Float[Array, " *any"],
) -> Float[Array, " *any"]:
    """Return E relu(w y) relu(w y') / k_2 = kappa(cos phi) z z' (Random DCN, Lemma 5).

    Args:
        covariance: <y, y'>.
        first: z = |y|.
        second: z' = |y'|, zero where there is no y'.
        first_inverse: 1 / z, and 0 where z = 0; see `inverse`.
        second_inverse: 1 / z', likewise.

    Returns:
        The covariance after the ReLU; 0 where z or z' is. Its derivatives are finite everywhere.
    """
    rho = jnp.clip(covariance * (first_inverse * second_inverse), -1.0, 1.0)
    return first * second * kappa(rho)


@relu_covariance.defjvp
def _relu_covariance_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    covariance, first, second, first_inverse, second_inverse = primals
    value = relu_covariance(*primals)
    # Once more, and differentiably: the inverses that are given are constants to a second derivative.
    rho = jnp.clip(covariance * (_reciprocal(first) * _reciprocal(second)), -1.0, 1.0)
    # d kappa / d rho = 1 - arccos(rho) / pi, and kappa - rho kappa' = sqrt(1 - rho^2) / pi. Where z or z' is zero there
    # is no angle; the derivative that is taken there is zero.
    present = first_inverse * second_inverse > 0
    slope = jnp.where(present, kappa_slope(rho), 0.0)
    across = jnp.where(present, root((1 - rho) * (1 + rho)) / math.pi, 0.0)
    return value, slope * tangents[0] + across * (second * tangents[1] + first * tangents[2])


def root(squares: Float[Array, " *any"]) -> Float[Array, " *any"]:
    """Return the square root, with derivative zero at zero."""
    positive = squares > 0
    found = jnp.sqrt(jnp.where(positive, squares, 1.0))
    # A comparison is false for NaN: it has to come out again.
    return jnp.where(positive, found, jnp.where(squares == 0, jnp.zeros_like(found), squares))


def inverse(norms: Float[Array, " *any"]) -> Float[Array, " *any"]:
    """Return 1 / norms, and 0 where they are 0; a constant to differentiation, as `relu_covariance` expects it."""
    return _reciprocal(lax.stop_gradient(norms))


def _reciprocal(norms: Array) -> Array:
    return jnp.where(norms == 0, 0.0, 1 / jnp.where(norms == 0, 1.0, norms))


def window_means(
    maps: Float[Array, " *batch_D"], window: Sequence[int], stride: Sequence[int], margins: Sequence[tuple[int, int]]
) -> Float[Array, " *batch_n"]:
    """Return the mean of every window, zeros outside of the maps included."""
    rank = len(window)
    lead = maps.ndim - rank
    maps = framed(maps, margins)
    for axis, (size, step) in enumerate(zip(window, stride, strict=True)):
        maps = _sums(maps, lead + axis, size, step)
    scale = math.prod(window)
    return maps if scale == 1 else maps * (1 / scale)


def _sums(maps: Array, axis: int, window: int, stride: int) -> Array:
    """Return the sum of every window along one axis."""
    outputs = (maps.shape[axis] - window) // stride + 1
    total = None
    for start in range(window):
        part = lax.slice_in_dim(maps, start, start + (outputs - 1) * stride + 1, stride, axis)
        total = part if total is None else total + part
    assert total is not None
    return total


def framed(maps: Float[Array, " *batch_D"], frame: Sequence[tuple[int, int]]) -> Float[Array, " *batch_n"]:
    """Put zeros before and after the maps on every spatial axis, or take entries away where a number is negative."""
    if not any(before or after for before, after in frame):
        return maps
    config = [(0, 0, 0)] * (maps.ndim - len(frame)) + [(before, after, 0) for before, after in frame]
    return lax.pad(maps, jnp.zeros((), maps.dtype), config)


def insert_zeros(maps: Float[Array, " *batch_D"], factor: Sequence[int]) -> Float[Array, " *batch_n"]:
    """Make every entry a block of ``factor`` entries per axis: the value first, then zeros."""
    config = [(0, 0, 0)] * (maps.ndim - len(factor)) + [(0, by - 1, by - 1) for by in factor]
    return lax.pad(maps, jnp.zeros((), maps.dtype), config)


__all__ = [
    "DEGREES",
    "coefficients",
    "insert_zeros",
    "inverse",
    "kappa",
    "kappa_slope",
    "relu_covariance",
    "root",
    "window_means",
]
