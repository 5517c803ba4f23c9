"""Similarities of many random networks on the same pictures: means, what they vary with, and whether they have a trend.

Random DCN, 4.2 averages over the pictures, network by network, and gives mean and standard deviation of these averages.
Intervals are Student's over networks; the pictures are the same in all settings, so differences are free of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cnninv_jax.montecarlo import mean_interval


def summary(values: Float[np.ndarray, "networks pictures"]) -> dict[str, Any]:
    """Summarise the similarities of one setting.

    Returns:
        ``mean``; its 95% interval ``low`` to ``high`` over networks, for these pictures; the standard deviations
        ``networks`` of the networks' averages over the pictures (the paper's) and ``pictures`` of the pictures'
        averages over the networks; ``split``, see `split_variance`. NaN where one of something has no deviation.
    """
    by_network, by_picture = values.mean(axis=1), values.mean(axis=0)
    mean, low, high = combination([1.0], [by_network])
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "networks": _deviation(by_network),
        "pictures": _deviation(by_picture),
        "split": split_variance(values),
        "by_picture": by_picture,
    }


def combination(
    coefficients: Sequence[float], groups: Sequence[Float[np.ndarray, " networks"]], level: float = 0.95
) -> tuple[float, float, float]:
    """Return sum_s c_s mean_s of independent groups of numbers, with its interval (Welch and Satterthwaite).

    With coefficients -1 and 1 it is Welch's interval of a difference.
    """
    value = sum(c * group.mean() for c, group in zip(coefficients, groups, strict=True))
    if min(len(group) for group in groups) < 2:
        return float(value), math.nan, math.nan
    parts = [c * c * group.var(ddof=1) / len(group) for c, group in zip(coefficients, groups, strict=True)]
    variance = sum(parts)
    if variance == 0:
        return float(value), float(value), float(value)
    freedom = variance**2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
    low, high = mean_interval(value, variance * (freedom + 1), freedom + 1, level)
    return float(value), float(low), float(high)


def change(
    before: Float[np.ndarray, "networks pictures"], after: Float[np.ndarray, "networks pictures"]
) -> dict[str, Any]:
    """Return what changes from one setting to another, on the same pictures and with other networks.

    Returns:
        ``value``, with its 95% interval ``low`` to ``high`` over networks for these pictures; ``picture_low`` to
        ``picture_high``, the interval over pictures like these, from the differences picture by picture; ``rising``,
        the number of pictures with a higher mean than before, out of ``pictures``.
    """
    value, low, high = combination([-1.0, 1.0], [before.mean(axis=1), after.mean(axis=1)])
    each = after.mean(axis=0) - before.mean(axis=0)
    _, picture_low, picture_high = combination([1.0], [each])
    return {
        "value": value,
        "low": low,
        "high": high,
        "picture_low": picture_low,
        "picture_high": picture_high,
        "rising": int((each > 0).sum()),
        "pictures": len(each),
    }


def paired_change(
    before: Float[np.ndarray, "networks pictures"], after: Float[np.ndarray, "networks pictures"]
) -> dict[str, float]:
    """Return what changes where networks, too, are the same but for their last layer; interval over networks."""
    value, low, high = combination([1.0], [(after - before).mean(axis=1)])
    return {"value": value, "low": low, "high": high}


def ratio(
    numerator: Float[np.ndarray, "networks pictures"], denominator: Float[np.ndarray, "networks pictures"]
) -> dict[str, float]:
    """Return the ratio of two means with Fieller's 95% interval: all r with mean(a) - r mean(b) within its own.

    The interval is NaN where the denominator's mean cannot be told from zero.
    """
    a, b = numerator.mean(axis=1), denominator.mean(axis=1)
    centre = a.mean() / b.mean() if b.mean() else math.nan
    _, b_low, b_high = combination([1.0], [b])
    if not (b_low > 0 or b_high < 0):
        return {"value": float(centre), "low": math.nan, "high": math.nan}

    def excluded(r: float) -> bool:
        _, low, high = combination([1.0, -r], [a, b])
        return low > 0 or high < 0

    ends = []
    for sign in (-1.0, 1.0):
        inside, outside = centre, centre + sign * (abs(centre) + 1e-3)
        for _ in range(60):
            if excluded(outside):
                break
            outside = centre + 2 * (outside - centre)
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
        ends.append((inside + outside) / 2)
    return {"value": float(centre), "low": float(ends[0]), "high": float(ends[1])}


def split_variance(values: Float[np.ndarray, "networks pictures"]) -> dict[str, float]:
    """Split the variance of Y_ip = m + a_i + b_p + e_ip over networks i, pictures p and both together.

    The components are those of the two-way layout without repetition: from the mean squares, Var a = (MS_i - MS_e) / P
    and Var b = (MS_p - MS_e) / N, no less than zero; Var e = MS_e is how differently a network treats the pictures.

    Returns:
        Standard deviations ``networks``, ``pictures`` and ``both``; NaN with fewer than two of either.
    """
    n, p = values.shape
    if n < 2 or p < 2:
        return dict.fromkeys(("networks", "pictures", "both"), math.nan)
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns[None, :] + values.mean()
    error = float((rest**2).sum() / ((n - 1) * (p - 1)))
    networks = max(p * float(rows.var(ddof=1)) - error, 0.0) / p
    pictures = max(n * float(columns.var(ddof=1)) - error, 0.0) / n
    return {name: math.sqrt(value) for name, value in (("networks", networks), ("pictures", pictures), ("both", error))}


def trend(
    places: Sequence[float], settings: Sequence[Float[np.ndarray, "networks pictures"]], expected: int
) -> dict[str, Any]:
    """Return whether similarity has a trend over settings that stand at places x_s.

    Args:
        places: x_s in ascending order.
        settings: the similarities of each.
        expected: 1 if the paper's similarity rises, -1 if it falls.

    Returns:
        ``slope`` of the least-squares line through the settings' means, ``low`` to ``high`` its 95% interval; how many
        of the ``steps`` between neighbours go ``along`` with what is expected, beyond their interval, and ``against``
        it, beyond an interval at 1 - 5% / steps, so that a plateau seldom has such a step by chance;
        ``verdict``: *agrees* where the slope's interval lies on the expected side, and no step goes against it;
        *differs* where it lies on the other side; *mixed* where some step goes against a slope that agrees;
        *undecided* otherwise.
    """
    if len(settings) < 2:
        return {"slope": math.nan, "low": math.nan, "high": math.nan, "steps": 0, "along": 0, "against": 0,
                "verdict": "undecided"}  # fmt: skip
    x = np.asarray(places, float) - np.mean(places)
    slope, low, high = combination(list(x / (x**2).sum()), [values.mean(axis=1) for values in settings])
    pairs = list(itertools.pairwise(settings))

    def beyond(sign: int, level: float) -> int:
        """Count the steps that go up (1) or down (-1) for sure."""
        found = [combination([-sign, sign], [part.mean(axis=1) for part in pair], level) for pair in pairs]
        return sum(low > 0 for _, low, _ in found)

    along, against = beyond(expected, 0.95), beyond(-expected, 1 - 0.05 / len(pairs))
    if (low > 0) if expected > 0 else (high < 0):
        verdict = "mixed" if against else "agrees"
    elif (high < 0) if expected > 0 else (low > 0):
        verdict = "differs"
    else:
        verdict = "undecided"
    return {"slope": slope, "low": low, "high": high, "steps": len(pairs), "along": along, "against": against,
            "verdict": verdict}  # fmt: skip


def typical(values: Float[np.ndarray, "networks pictures"], picture: int) -> int:
    """Return the network whose similarity on a picture is closest to the networks' mean on it (Random DCN, Fig. 8)."""
    column = values[:, picture]
    return int(np.abs(column - column.mean()).argmin())


def with_half_width(found: Mapping[str, Any], key: str = "mean", digits: int = 3, sign: bool = False) -> str:
    """Return ``0.412 ± 0.013`` of a value and its interval; the value alone where it has none, - where it is none."""
    value = found[key]
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    low, high = found["low"], found["high"]
    return text if low is None or math.isnan(low) else f"{text} ± {(high - low) / 2:.{digits}f}"


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


__all__ = [
    "change",
    "combination",
    "paired_change",
    "ratio",
    "split_variance",
    "summary",
    "trend",
    "typical",
    "with_half_width",
]
