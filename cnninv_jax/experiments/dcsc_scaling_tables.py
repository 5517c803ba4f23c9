"""The tables of `dcsc-scaling`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax.experiments.dcsc_scaling_families import FAMILIES
from cnninv_jax.experiments.studies import Table

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcsc_scaling import Point, ScalingParameters


def scaling_tables(p: ScalingParameters, points: Sequence[Point], fits: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the exponents by family, and what was found of every level."""
    return _exponents(p, fits), _levels(p, points)


def _exponents(p: ScalingParameters, fits: Mapping[str, Any]) -> Table:
    rows = []
    for name, found in fits.items():
        for label, by_size in found.items():
            mu, rms, theory = by_size["mu"], by_size["rms"], -2 if label.startswith("random") else -1
            extent = "-" if math.isnan(mu["smallest"]) else f"{mu['smallest']:.3g} to {mu['largest']:.3g}"
            rows.append((
                FAMILIES[name].title, _kind(label), extent, _exponent(mu), f"{theory}", inside(mu, theory),
                _exponent(rms),
            ))  # fmt: skip
    own = [
        f"{_kind(label)} {_exponent(by_size['own'])}" for label, by_size in fits.get("equal", {}).items()
        if label.startswith("random") and "own" in by_size and not math.isnan(by_size["own"]["low"])
    ]  # fmt: skip
    pairs = _slower(fits.get("pairs", {}))
    notes = (
        "S = c mu^b by weighted least squares over logarithms, of the levels whose dictionaries all have "
        f"S >= {p.least:g}; 95% intervals from leaving out one level at a time.",
        "random signs P: half (or another share P) of the draws of places and signs lose the support. worst signs P: "
        "of a share P of the places some signs lose it. any places: the S that no places and no signs lose.",
        "theory: -2 from bound (3), -1 from the uniform bound (2); inside: whether the interval over mu holds it; "
        "undecided: it holds both -2 and -1.",
        "rms: root mean square of the correlations of an atom with all others of its stripe, its largest over atoms.",
        *(
            [
                "Equal correlations: all responses share one sum of signs, and an active atom of the other sign fails "
                "first: S is critical near ((1/(2 mu) - 1)/z)^2, steeper than mu^-2 where mu is not small. Over "
                f"mu/(1 - 2 mu): {'; '.join(own)}."
            ]
            if own
            else []
        ),
        *([f"Coherent pairs: mu is the largest correlation, and no typical one. {pairs}"] if pairs else []),
    )
    return Table(
        "fitted exponents of critical S",
        ("family", "critical S", "from S to S", "over mu", "theory", "inside", "over rms"), tuple(rows), notes,
    )  # fmt: skip


def inside(fit: Mapping[str, float], theory: float) -> str:
    """Return whether the interval of an exponent holds what theory says, and not the other theory's too."""
    if math.isnan(fit["low"]):
        return "-"
    held = [fit["low"] <= power <= fit["high"] for power in (-2, -1)]
    return "undecided" if all(held) else "yes" if fit["low"] <= theory <= fit["high"] else "no"


def _slower(found: Mapping[str, Any]) -> str:
    """Return in words which S of random signs fall more slowly than mu^-2; nothing where none is seen to."""
    labels = [
        f"{_kind(label)}: {_exponent(by_size['mu'])}" for label, by_size in found.items()
        if label.startswith("random") and by_size["mu"]["low"] > -2
    ]  # fmt: skip
    return f"S falls more slowly than mu^-2 ({'; '.join(labels)})." if labels else ""


def _levels(p: ScalingParameters, points: Sequence[Point]) -> Table:
    rows = []
    for name in p.families:
        own = [point for point in points if point.family == name]
        for level in dict.fromkeys(point.level for point in own):
            here = [point for point in own if point.level == level]

            def mean(values: Sequence[float]) -> str:
                array = np.asarray(values, float)
                return _size(float(np.exp(np.mean(np.log(array)))) if np.all(array > 0) else math.nan)

            rows.append((
                f"{FAMILIES[name].title}, {FAMILIES[name].level} {level:g}",
                f"{np.mean([point.mu for point in here]):.3f}",
                f"{np.mean([point.rms for point in here]):.4f}",
                *(mean([point.random[at][0] for point in here]) for at in range(len(p.p))),
                *(mean([point.worst[at][0] for point in here]) for at in range(len(p.p))),
                f"{np.mean([point.any_support for point in here]):.3g}",
                f"{np.mean([point.uniform for point in here]):.3g}",
                *(f"{np.mean([point.bound[at] for point in here]):.3g}" for at in range(len(p.p))),
            ))  # fmt: skip
    columns = (
        "dictionaries", "mu", "rms",
        *(f"random signs {100 * chance:g}%" for chance in p.p),
        *(f"worst signs {100 * chance:g}%" for chance in p.p),
        "any places", "bound (2)", *(f"bound (3) {100 * chance:g}%" for chance in p.p),
    )  # fmt: skip
    notes = (
        f"Means over {p.dictionaries} dictionaries a level (critical S: geometric); {p.num_draws} draws each.",
        f"{p.num_filters} filters at {p.positions} positions, {p.num_filters * p.positions} atoms, which all overlap; "
        f"zeta_0 = {p.noise:g}. Bounds with X_min = X_max = 1 and one column. A bound below 1 is vacuous.",
        "> : not lost so often by the largest S there is. < 1: one non-zero alone is lost as often.",
    )
    return Table("critical S by level", columns, tuple(rows), notes)


def _kind(label: str) -> str:
    kind, _, chance = label.partition(" ")
    if kind == "any":
        return "any places, worst signs"
    return f"{kind} signs, {100 * float(chance):g}%"


def _size(value: float) -> str:
    if math.isnan(value):
        return "< 1"
    return ">" if math.isinf(value) else f"{value:.3g}"


def _exponent(fit: Mapping[str, float]) -> str:
    if math.isnan(fit["low"]):
        return "-"
    return f"{fit['exponent']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"
