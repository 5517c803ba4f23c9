"""The tables of dcn-laws, from its findings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cnninv_jax.experiments.studies import Table
from cnninv_jax.limits.laws import ISOTROPIC

#: How k_m and K_m are written.
NUMBERS = {"k1": "k_1", "k2": "k_2", "k4": "k_4", "K1": "K_1", "K2": "K_2"}
#: Whose k_m a ratio was taken over.
READINGS = {"own": "the law's own k_m", "gaussian": "k_m of a Gaussian of the same variance"}


def tables(content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return moments, ratios of one convolution for both inputs and readings, and of two convolutions."""
    found = [_moments(content)]
    for name in content["inputs"]:
        found += [_answers(content, name, reading) for reading in READINGS]
    found.append(_networks(content))
    return tuple(found)


def _moments(content: Mapping[str, Any]) -> Table:
    rows = []
    for law, numbers in content["moments"].items():
        for name, label in NUMBERS.items():
            held = numbers[name]
            z = "exact" if held["z"] is None else f"{held['z']:+.1f}"
            rows.append(
                (f"{law}: {label}", f"{held['closed']:.5g}", f"{held['simulated']:.5g}", f"{held['error']:.1g}", z)
            )
    notes = (
        "k_m = E|w_1|^m / 2 at the scales of A.1.2; the sphere has 9 dimensions and entries of deviation 0.015. "
        "K_1 = (k_2 - k_1^2) / k_1^2, K_2 = (k_4 - k_2^2) / k_2^2.",
        f"Largest |z| of {content['summary']['moments']} numbers: {content['summary']['moments_z']:.1f}. "
        "exact: no draw differs from the closed form (every filter of the sphere has one norm).",
    )
    return Table("moments of the laws", ("", "closed form", "simulated", "standard error", "z"), tuple(rows), notes)


def _answers(content: Mapping[str, Any], name: str, reading: str) -> Table:
    laws = content["laws"]
    rows = [
        (f"{side} x {side}", *(cell(content["answers"][law][name][reading][place]) for law in laws))
        for place, side in enumerate(content["kernels"])
    ]
    notes = [f"{content['num_filters']:,} filters and their negatives a cell; 95% intervals of the mean."]
    if name == "photograph":
        notes.append(f"The middle of {content['picture']}, in grey.")
    if name == "photograph" and reading == "own":
        ends = [f"{law} {_last_ratio(content, law):.4f}" for law in laws if law not in ISOTROPIC]
        if ends:
            notes.append(
                f"For large kernels and many pixels alike they tend to {', '.join(ends)}: w y becomes Gaussian."
            )
    if name == "one pixel" and reading == "gaussian":
        notes.append("One pixel alone meets one entry of w at any kernel size: no sum that could become Gaussian.")
    if reading == "gaussian":
        held = content["summary"]
        notes.append(
            "Where they should be, by quadrature of the characteristic function, all means lie within "
            f"{held['answers_z']:.1f} standard errors ({held['answers']} of them, both inputs, and mean squares over "
            "k_2 |y|^2 among them)."
        )
    title = f"one convolution: mean output / f* with {READINGS[reading]}, input: {name}"
    return Table(title, ("kernel", *laws), tuple(rows), tuple(notes))


def _last_ratio(content: Mapping[str, Any], law: str) -> float:
    """Return k_1 of a Gaussian of the same variance over the law's own."""
    own = content["moments"][law]
    return math.sqrt(own["k2"]["closed"] / math.pi) / own["k1"]["closed"]


def _networks(content: Mapping[str, Any]) -> Table:
    laws, any_law = content["laws"], content["networks"][content["laws"][0]]
    rows = [
        (f"{kind}, {name}: {reading}", *(cell(content["networks"][law][kind][name][reading]) for law in laws))
        for kind, inputs in any_law.items()
        for name in inputs
        for reading in READINGS
    ]
    off = max(_finite_width(numbers["K2"]["closed"], content["width"]) for numbers in content["moments"].values())
    notes = (
        f"Convolution 3 x 3 ({content['width']} filters), pooling 2 x 2, convolution 1 x 1; {content['num_draws']} "
        "draws; 95% intervals. own and gaussian: whose k_m stand in f*.",
        "At finite width the mean is not quite the limit: E sqrt(z^2) < sqrt(E z^2) takes up to K_2 / (8 width) of it, "
        "and a sum of so many terms is Gaussian but for (K_2 + 1) / (24 width) times the excess kurtosis of w: "
        f"together up to {100 * off:.2g}%.",
    )
    return Table("two convolutions: mean output / f*", ("network, input: k_m of", *laws), tuple(rows), notes)


def _finite_width(K2: float, width: int) -> float:
    """Return a bound on the part by which two convolutions' mean output misses the limit, at first order in 1/width."""
    excess_kurtosis = (K2 + 1) / 2 - 3
    return K2 / (8 * width) + abs(excess_kurtosis) * (K2 + 1) / (24 * width)


def cell(held: Mapping[str, float]) -> str:
    """Return a ratio with half of its interval."""
    return f"{held['ratio']:.4f} ± {(held['high'] - held['low']) / 2:.4f}"
