"""The rate at which simulated squares fall with the width N: slopes and prefactors by least squares with known errors.

A mean square of a random CNN is c/N (1 + b/N + ...). The slope is therefore fitted with a term that lets it bend,

    log y(N) = log c - s log N + b/N,

so that the interval of s holds what small widths leave unknown, and from the smallest width on at which that form
agrees with the simulated means: widths are dropped from below until chi-square does not refuse it (p >= 0.05), as long
as a degree of freedom is left. Where even then it is refused, ``agrees`` says so.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

#: A form is refused where chi-square is so large that it had less than this probability.
REFUSED = 0.05
#: Two-sided 95% of a normal law: errors come from many draws and are taken as known.
NORMAL_95 = 1.959963984540054


class LeastSquares(NamedTuple):
    """Coefficients of a weighted fit.

    Attributes:
        coefficients: by column of the design.
        covariance: of the coefficients.
        chi_square: sum of squared residuals over their errors.
        freedom: degrees of freedom left.
        probability: of a chi-square at least as large, were the form true; NaN without a degree of freedom.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    chi_square: float
    freedom: int
    probability: float


@dataclasses.dataclass(frozen=True)
class RateFit:
    """How means fall with N.

    Attributes:
        slope: s of y ~ N^-s, with the bending term; ``low``, ``high``: its 95% interval.
        first: smallest width that was used.
        agrees: the form with the bending term is not refused at these widths.
        probability: of a chi-square at least as large; NaN without a degree of freedom.
        straight: s of the plain power law over the same widths, ``straight_low``, ``straight_high`` its interval.
        straight_probability: of its chi-square; small where the curve bends visibly.
        prefactor: c of y = c/N (1 + b/N), ``prefactor_low``, ``prefactor_high`` its interval.
        bend: b of the same form.
    """

    slope: float
    low: float
    high: float
    first: int
    agrees: bool
    probability: float
    straight: float
    straight_low: float
    straight_high: float
    straight_probability: float
    prefactor: float
    prefactor_low: float
    prefactor_high: float
    bend: float


def least_squares(design: np.ndarray, values: np.ndarray, errors: np.ndarray) -> LeastSquares:
    """Fit ``values = design @ coefficients`` where every value has a known standard error.

    Args:
        design: ``[values, coefficients]``.
        values: to be fitted.
        errors: standard error of each, independent of the others.
    """
    from scipy.stats import chi2

    scaled = design / errors[:, None]
    # Columns of one size: 1/N and log N differ by orders of magnitude.
    sizes = np.linalg.norm(scaled, axis=0)
    inverse = np.linalg.pinv(scaled / sizes) / sizes[:, None]
    coefficients = inverse @ (values / errors)
    residual = (values - design @ coefficients) / errors
    total, freedom = float(residual @ residual), len(values) - design.shape[1]
    probability = float(chi2.sf(total, freedom)) if freedom > 0 else math.nan
    return LeastSquares(coefficients, inverse @ inverse.T, total, freedom, probability)


def fit_rate(widths: ArrayLike, means: ArrayLike, errors: ArrayLike) -> RateFit:
    """Fit the slope of log mean over log width, and the prefactor of 1/N; see the module's text.

    Args:
        widths: N, ascending, at least three of them.
        means: simulated mean at each width, positive.
        errors: their standard errors.

    Raises:
        ValueError: fewer than three widths.
    """
    n, y, e = (np.asarray(part, float) for part in (widths, means, errors))
    if len(n) < 3:
        raise ValueError(f"expected at least three widths for a slope with a bend, got {len(n)}")
    relative = e / y
    # E log(mean) lies relative^2 / 2 below the logarithm of what is estimated.
    logs = np.log(y) + np.square(relative) / 2
    bent = np.stack([np.ones_like(n), -np.log(n), 1 / n], axis=1)
    start = 0
    fit = least_squares(bent, logs, relative)
    while fit.probability < REFUSED and len(n) - start > 4:
        start += 1
        fit = least_squares(bent[start:], logs[start:], relative[start:])
    straight = least_squares(bent[start:, :2], logs[start:], relative[start:])
    # N y = c + c b / N: linear, and its intercept is the prefactor.
    scale = n[start:]
    constant = least_squares(np.stack([np.ones_like(scale), 1 / scale], axis=1), (y * n)[start:], (e * n)[start:])
    prefactor = float(constant.coefficients[0])
    return RateFit(
        *_interval(fit, 1),
        first=int(n[start]),
        agrees=not fit.probability < REFUSED,
        probability=fit.probability,
        **dict(zip(("straight", "straight_low", "straight_high"), _interval(straight, 1), strict=True)),
        straight_probability=straight.probability,
        **dict(zip(("prefactor", "prefactor_low", "prefactor_high"), _interval(constant, 0), strict=True)),
        bend=float(constant.coefficients[1]) / prefactor,
    )


def weighted_mean(values: ArrayLike, errors: ArrayLike) -> tuple[float, float]:
    """Return the mean of independent estimates of one number, weighted by 1 / error^2, and its standard error."""
    v, e = np.asarray(values, float), np.asarray(errors, float)
    fit = least_squares(np.ones((len(v), 1)), v, e)
    return float(fit.coefficients[0]), math.sqrt(float(fit.covariance[0, 0]))


def _interval(fit: LeastSquares, at: int) -> tuple[float, float, float]:
    """Return a coefficient and the ends of its 95% interval."""
    value, half = float(fit.coefficients[at]), NORMAL_95 * math.sqrt(float(fit.covariance[at, at]))
    return value, value - half, value + half
