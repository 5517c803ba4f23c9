"""Tails of weighted sums of chi-squares, Q = sum_j w_j chi2_nu, to full relative accuracy however small they are.

With K(s) = -nu/2 sum_j log(1 - 2 s w_j) the logarithm of Q's moment generating function,

    P(Q > q) = 1 / (2 pi i) * integral of exp(K(s) - s q) / s ds

along a path that crosses the real axis between 0 and 1 / (2 max w); across the negative axis it gives -P(Q < q). A
path through the saddle point, along which the integrand is positive and bell-shaped, loses no digits to cancellation,
and the trapezoid rule on it converges exponentially (Rice 1980; Helstrom 1983). Inversion along the imaginary axis
(Imhof 1961) has an absolute error of 1e-16 at best, which says nothing of a probability of 1e-20.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Tail: TypeAlias = Literal["upper", "lower"]

#: Trapezoid points on the upper half of the path at first, and at most; doubled until two rules agree.
FIRST_POINTS, MOST_POINTS = 32, 4096
#: Relative difference at which two rules agree: rounding, not the rule, is what is left.
AGREEMENT = 1e-12
#: Rows worked on at a time, so that memory stays at tens of megabytes.
ROWS = 256


class TailProbability(NamedTuple):
    """A probability and the relative error of its quadrature, elementwise."""

    probability: np.ndarray
    relative_error: np.ndarray


def weighted_chi_square_tail(
    weights: ArrayLike, degrees: float, threshold: ArrayLike, tail: Tail = "upper"
) -> TailProbability:
    """Return P(Q > q) or P(Q < q) of Q = sum_j w_j chi2_nu, all chi-squares independent; on the host, in float64.

    Args:
        weights: w, [..., J], not negative, at least one of a row positive; zeros do not count.
        degrees: nu, of every chi-square, positive.
        threshold: q, positive, broadcast against the rows.
        tail: ``"upper"`` for P(Q > q), ``"lower"`` for P(Q < q).

    Returns:
        Probability and relative error (the difference between two step sizes, and rounding), [...]. Probabilities
        under 1e-307 underflow.

    Raises:
        ValueError: negative weights, no weight, or a threshold or degrees that are not positive.

    Cost: some hundred logarithms per weight.
    """
    w = np.asarray(weights, np.float64)
    if tail not in ("upper", "lower"):
        raise ValueError(f"expected tail to be 'upper' or 'lower', got {tail!r}")
    if w.ndim < 1 or w.shape[-1] < 1 or not np.isfinite(w).all() or (w < 0).any() or not (w.max(axis=-1) > 0).all():
        raise ValueError("expected finite weights that are not negative, at least one of each row positive, got others")
    if not (math.isfinite(degrees) and degrees > 0):
        raise ValueError(f"expected degrees of freedom to be positive, got {degrees}")
    q = np.asarray(threshold, np.float64)
    if not (np.isfinite(q).all() and (q > 0).all()):
        raise ValueError(f"expected a positive threshold, got {threshold}")
    shape = np.broadcast_shapes(w.shape[:-1], q.shape)
    rows = np.broadcast_to(w, (*shape, w.shape[-1])).reshape(-1, w.shape[-1])
    limits = np.broadcast_to(q, shape).reshape(-1)
    value, error = np.empty(len(rows)), np.empty(len(rows))
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        value[part], error[part] = _tail(rows[part], float(degrees), limits[part], tail)
    return TailProbability(value.reshape(shape), error.reshape(shape))


def _tail(
    w: Float[np.ndarray, "R J"], nu: float, q: Float[np.ndarray, " R"], tail: Tail
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tail of some rows and its relative error; on the long side of the mean as the complement."""
    mean = nu * w.sum(axis=1)
    short, sign = (q >= mean, 1.0) if tail == "upper" else (q <= mean, -1.0)
    value, error = _integrate(w, nu, q, np.where(short, sign, -sign))
    return np.where(short, value, 1.0 - value), np.where(short, error, error * value / np.maximum(1.0 - value, 1e-300))


def _integrate(
    w: Float[np.ndarray, "R J"], nu: float, q: Float[np.ndarray, " R"], side: Float[np.ndarray, " R"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tails on the sides +1 (upper) or -1 (lower) of some rows, and how far two rules were apart."""
    # In units of the largest weight the singularity nearest to 0 is at s = 1/2.
    largest = w.max(axis=1)
    w, q = w / largest[:, None], q / largest
    saddle = _saddle(w, nu, q, side)
    exponent, curvature, third = _expansion(saddle, w, nu, q)
    width = 1.0 / np.sqrt(curvature)
    # The path of steepest descent is a parabola near the saddle; it opens to the right, where exp(-s q) decays, and at
    # least so much that this decay ends the integral where exp(K) does not.
    bend = np.maximum(third / (6.0 * curvature), 0.05 / (q * width**2))
    previous = np.full(len(q), np.nan)
    value, points = previous, FIRST_POINTS
    while points <= MOST_POINTS:
        value = _trapezoid(saddle, exponent, width, bend, w, nu, q, points)
        if np.all(np.abs(value - previous) <= AGREEMENT * np.abs(value)):
            break
        previous, points = value, 2 * points
    rounding = np.finfo(np.float64).eps * (np.abs(exponent) + w.shape[1] * nu)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(value == 0, 1.0, np.abs(value - previous) / np.abs(value)) + rounding
    return value, error


def _expansion(s: np.ndarray, w: np.ndarray, nu: float, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return K(s) - s q - log |s| with its second and third derivative, at real s."""
    ratio = w / (1.0 - 2.0 * s[:, None] * w)
    value = -nu / 2 * np.log1p(-2.0 * s[:, None] * w).sum(axis=1) - s * q - np.log(np.abs(s))
    return value, 2 * nu * (ratio**2).sum(axis=1) + s**-2.0, 8 * nu * (ratio**3).sum(axis=1) - 2 * s**-3.0


def _saddle(w: np.ndarray, nu: float, q: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return the minimum of K(s) - s q - log |s| on the side of 0 that belongs to the tail, by bisection."""
    # On the left K'(s) < J nu / (2 |s|), so that the derivative is negative at the lower end.
    low = np.where(side > 0, 0.0, -(w.shape[1] * nu / 2 + 1.0) / q)
    high = np.where(side > 0, 0.5, 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        slope = nu * (w / (1.0 - 2.0 * middle[:, None] * w)).sum(axis=1) - q - 1.0 / middle
        low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
    return (low + high) / 2


def _trapezoid(
    saddle: np.ndarray,
    exponent: np.ndarray,
    width: np.ndarray,
    bend: np.ndarray,
    w: np.ndarray,
    nu: float,
    q: np.ndarray,
    points: int,
) -> np.ndarray:
    """Return the integral over s = saddle + bend y^2 + i y with y = width sinh(v), from conjugate halves."""
    step = 4.5 / points  # sinh(4.5) = 45 widths
    v = step * np.arange(points + 1)
    y, dy = width[:, None] * np.sinh(v), width[:, None] * np.cosh(v)
    s = saddle[:, None] + bend[:, None] * y**2 + 1j * y
    logs = _sum_of_logs(s, w, nu)
    sign = np.sign(saddle)[:, None]
    # Scaled by the integrand's size at the saddle; to the left of 0 the integral is minus the lower tail.
    integrand = np.exp(-nu / 2 * logs - s * q[:, None] - np.log(sign * s) - exponent[:, None])
    real = np.imag(integrand * (2.0 * bend[:, None] * y + 1j) * dy)
    total = step * (real.sum(axis=1) - 0.5 * real[:, 0])
    return total / np.pi * np.exp(exponent)


def _sum_of_logs(s: np.ndarray, w: np.ndarray, nu: float) -> np.ndarray:
    """Return sum_j log(1 - 2 s w_j), [R, points]; where nu / 2 is whole, up to multiples of 2 pi i, which drop out."""
    # One logarithm for several factors, few enough not to overflow.
    group = 8 if nu % 2 == 0 else 1
    total = np.zeros_like(s)
    for start in range(0, w.shape[1], group):
        product = np.ones_like(s)
        for column in w.T[start : start + group]:
            product *= 1.0 - 2.0 * column[:, None] * s
        total += np.log(product)
    return total
