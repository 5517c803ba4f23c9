"""Tables of the Rademacher study: left over right by sample, what is proved, finite classes that break Lemma B.1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cnninv_jax.experiments.crelu_rademacher_draws import LAWS, READINGS
from cnninv_jax.experiments.studies import Table

#: Classes of a few functions, by their values on a few points.
CLASSES: dict[str, tuple[tuple[float, ...], ...]] = {
    "f = (1, -1)": ((1, -1),),
    "f = (-1)": ((-1,),),
    "e1 - e2, e2 - e3, e3 - e1": ((1, -1, 0), (0, 1, -1), (-1, 0, 1)),
    "e1 + e3, e2 + e3, e1 - e2": ((1, 0, 1), (0, 1, 1), (1, -1, 0)),
}
#: The inequality that a reading's ratio is about, and the factor with which it holds for every class.
PRINTED = {
    "crelu": ("R(H∘CReLU∘G) <= sqrt(d_in) B R(F)", math.sqrt(3), "sqrt(3) = 1.732"),
    "relu": ("R(ReLU∘F) <= R(F)", 1.5, "3 / 2"),
    "avr": ("R(|F|) <= R(F)", 2.0, "2"),
}


def tables(content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the tables of what the study found."""
    return (*(_ratios(content, name) for name in READINGS), _proved(content), _classes(content))


def _grid(content: Mapping[str, Any]) -> tuple[list[int], list[tuple[str, list[Mapping[str, Any]]]]]:
    """Return the numbers of points, and the cells of every law and dimension in their order."""
    cells = content["cells"]
    counts = sorted({cell["samples"] for cell in cells})
    rows = []
    for dim in sorted({cell["dim"] for cell in cells}):
        for law in dict.fromkeys(cell["law"] for cell in cells):
            own = [cell for cell in cells if (cell["dim"], cell["law"]) == (dim, law)]
            rows.append((f"d = {dim}, {LAWS[law]}", sorted(own, key=lambda cell: cell["samples"])))
    return counts, rows


def _ratios(content: Mapping[str, Any], reading: str) -> Table:
    counts, rows = _grid(content)
    printed, _, word = PRINTED[reading]
    seen = [cell["ratios"][reading] for cell in content["cells"]]
    verdicts = [one["verdict"] for one in seen]
    drawn = [one for one, cell in zip(seen, content["cells"], strict=True) if cell["draws"]]
    failing = sum(one["verdict"] == "fails" for one in drawn)
    notes = [
        f"Left over right of {printed}. fails: above 1. In {verdicts.count('fails')} of {len(verdicts)} samples it is, "
        f"in {verdicts.count('holds')} it is not (seen, or proved for the sample), {verdicts.count('open')} are open. "
        f"With the factor {word} the inequality is proved for every class.",
    ]
    if above := [cell for cell in content["cells"] if cell["ratios"][reading]["verdict"] == "fails"]:
        worst = max(above, key=lambda cell: cell["ratios"][reading]["low"])
        one = worst["ratios"][reading]
        least = f", at least {one['low']:.4f}" if worst["draws"] else ""
        notes.append(
            f"Furthest above 1: {one['ratio']:.4f}{least} (d = "
            f"{worst['dim']}, L = {worst['samples']}, {LAWS[worst['law']]})."
        )
    if drawn:
        notes.append(
            f"Intervals: signs drawn, delta method with both sides on the same signs; {100 * content['level']:.3f}% "
            f"each, so that all {content['comparisons']} of the study's hold together with 95%; {failing} of "
            f"{len(drawn)} here lie above 1. Without interval: all signs were gone through."
        )
    if any(one["lower_bound"] for one in seen):
        notes.append(
            ">= : suprema by ascent are lower bounds, which can show that an inequality fails, not that it holds."
        )
    notes.append("One sample a cell. A, B and d_in scale both sides alike (units free of each other).")
    return Table(
        f"{READINGS[reading]}: complexity over that of the linear class",
        ("sample", *(f"L = {count}" for count in counts)),
        tuple((name, *_cells(own, reading)) for name, own in rows),
        tuple(notes),
    )


def _cells(own: Sequence[Mapping[str, Any]], reading: str) -> list[str]:
    shown = []
    for cell in own:
        one = cell["ratios"][reading]
        # Enough digits for a difference to 1 that is more than rounding.
        digits = 3 if abs(one["ratio"] - 1) > 0.005 else 5
        text = f"{'>= ' if one['lower_bound'] else ''}{one['ratio']:.{digits}f}"
        if cell["draws"]:
            text += f" ({one['low']:.{digits}f}-{one['high']:.{digits}f})"
        shown.append(text + (" fails" if one["verdict"] == "fails" else ""))
    return shown


def _proved(content: Mapping[str, Any]) -> Table:
    counts, rows = _grid(content)
    notes = (
        "c: R(CReLU) <= c R(F), proved for this sample from its second and fourth moments; (rho) stable rank, sum "
        "|x_i|^2 over the largest second moment. c is at most sqrt(5/2) = 1.581 for linear classes, sqrt(3) for all.",
        "[a, b]: a the estimate, b the bound (3) of the left side itself, (2A/L) sqrt(T (3 - 1/rho) / 2), at A = 1.",
    )
    return Table(
        "What is proved for these samples: c (rho) [estimate, bound of the left side]",
        ("sample", *(f"L = {count}" for count in counts)),
        tuple(
            (
                name,
                *(
                    f"{cell['constants']['crelu']:.3f} ({cell['stable_rank']:.2f}) "
                    f"[{cell['means']['crelu']:.3g}, {cell['upper_bounds']['crelu']:.3g}]"
                    for cell in own
                ),
            )
            for name, own in rows
        ),
        notes,
    )


def _classes(content: Mapping[str, Any]) -> Table:
    return Table(
        "Finite classes: Lemma B.1 is neither an equality nor an inequality",
        ("class, by its values", "R(F)", "R(ReLU∘F) / R(F)", "R(|F|) / R(F)", "R(CReLU) / R(F)"),
        tuple(
            (one["name"], *(f"{one[name]:.4f}" for name in ("linear", "relu", "avr", "crelu")))
            for one in content["classes"]
        ),
        (
            "Over all signs. Lemma B.1 has every ratio of ReLU and AVR at 1. e_i: the function that is 1 on point i "
            "and 0 on the others.",
        ),
    )


__all__ = ["CLASSES", "PRINTED", "tables"]
