"""The rate at which simulated squares fall with the width N: slopes and prefactors by least squares with known errors.

A mean square of a random CNN is c/N (1 + b/N + ...): small widths lie off the straight line of log y over log N. So the
slope is fitted together with two terms that let it bend,

    log y(N) = log c - s log N + b/N + d/N^2,

to all widths, and the interval of s holds what the bend leaves unknown. Dropping widths until a plain line is no longer
refused gives intervals half as wide that miss the slope too often: in simulations with b = 8, d = 60 and errors of 3%
only 70% to 85% of those that claim 95% held it. With four widths the last term is left out. Whether the form agrees
with the means at all, chi-square says.

The squares are skewed: a sample with a small mean has a small standard error too, and weights from these errors would
draw every fit down, by several percent with 32 draws. So the deviation of a draw relative to the mean, which changes
slowly with N, is smoothed over the widths first.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

#: Terms of the bend, 1/N and 1/N^2; one fewer where no degree of freedom would be left.
BENDS = 2
#: Two-sided 95% of a normal law: errors come from many draws and are taken as known.
NORMAL_95 = 1.959963984540054
#: Slope, prefactor and one term of the bend, with a degree of freedom left.
FEWEST = 4


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
        slope: s of y ~ N^-s, fitted with the bend; ``low``, ``high``: its 95% interval.
        probability: of a chi-square at least as large as that of this form, were it true.
        straight: s of the plain power law; ``straight_low``, ``straight_high`` its interval.
        straight_probability: of its chi-square; small where the curve bends visibly.
        prefactor: c of y = c/N (1 + b/N + ...); ``prefactor_low``, ``prefactor_high`` its interval.
        bend: b, d of the same form.
    """

    slope: float
    low: float
    high: float
    probability: float
    straight: float
    straight_low: float
    straight_high: float
    straight_probability: float
    prefactor: float
    prefactor_low: float
    prefactor_high: float
    bend: tuple[float, ...]


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


def relative_errors(widths: ArrayLike, means: ArrayLike, errors: ArrayLike, draws: ArrayLike) -> np.ndarray:
    """Return standard errors over means, smoothed: the deviation of one draw over the mean is taken as exp(u + v / N).

    Args:
        widths: N.
        means: mean at each width.
        errors: their standard errors.
        draws: draws at each width.
    """
    n, y, e, count = (np.asarray(part, float) for part in (widths, means, errors, draws))
    design = np.stack([np.ones_like(n), 1 / n], axis=1)
    smooth = least_squares(design, np.log(e / y * np.sqrt(count)), 1 / np.sqrt(count))
    return np.exp(design @ smooth.coefficients) / np.sqrt(count)


def fit_rate(widths: ArrayLike, means: ArrayLike, relative: ArrayLike) -> RateFit:
    """Fit the slope of log mean over log width, and the prefactor of 1/N; see the module's text.

    Args:
        widths: N, at least four of them.
        means: simulated mean at each width, positive.
        relative: their standard errors over themselves, see `relative_errors`.

    Raises:
        ValueError: fewer than four widths.
    """
    n, y, r = (np.asarray(part, float) for part in (widths, means, relative))
    if len(n) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} widths for a slope with a bend, got {len(n)}")
    bends = min(BENDS, len(n) - 3)
    # E log(mean) lies r^2 / 2 below the logarithm of what is estimated.
    logs = np.log(y) + np.square(r) / 2
    powers = np.stack([n**-power for power in range(bends + 1)], axis=1)  # 1, 1/N, ...
    curved = np.column_stack([-np.log(n), powers])
    bent = least_squares(curved, logs, r)
    straight = least_squares(curved[:, :2], logs, r)
    # N y = c (1 + b/N + d/N^2): linear, and its intercept is the prefactor. Errors from the fit, not from single means.
    constant = least_squares(powers, n * y, n * r * np.exp(curved @ bent.coefficients))
    prefactor = _interval(constant)
    return RateFit(
        *_interval(bent),
        bent.probability,
        *_interval(straight),
        straight.probability,
        *prefactor,
        tuple((constant.coefficients[1:] / prefactor[0]).tolist()),
    )


def weighted_mean(values: ArrayLike, errors: ArrayLike) -> tuple[float, float]:
    """Return the mean of independent estimates of one number, weighted by 1 / error^2, and its standard error."""
    v, e = np.asarray(values, float), np.asarray(errors, float)
    fit = least_squares(np.ones((len(v), 1)), v, e)
    return float(fit.coefficients[0]), math.sqrt(float(fit.covariance[0, 0]))


def _interval(fit: LeastSquares) -> tuple[float, float, float]:
    """Return the first coefficient and the ends of its 95% interval."""
    value, half = float(fit.coefficients[0]), NORMAL_95 * math.sqrt(float(fit.covariance[0, 0]))
    return value, value - half, value + half
