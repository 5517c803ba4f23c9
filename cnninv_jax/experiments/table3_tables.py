"""Gilbert et al. 2017, Table 3 beside what was found: the table, its readings, and which of them fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cnninv_jax.experiments.studies import Table
from cnninv_jax.experiments.table3_errors import READINGS

#: Errors in activation space as printed: learned filters, random filters, random activations; by layer i.
PAPER: Mapping[int, Mapping[str, float]] = {
    1: {"learned": 0.895, "random": 0.872, "activations": 1.414},
    2: {"learned": 0.961, "random": 0.926, "activations": 1.414},
    3: {"learned": 0.912, "random": 0.862, "activations": 1.414},
    4: {"learned": 1.051, "random": 0.992, "activations": 1.414},
}
#: What reconstructs: learned filters with norm 1 and as the file has them, random ones, and no filters at all.
METHODS = ("learned", "learned as given", "random", "activations")
LABELS = {
    "learned": "learned filters, unit norm", "learned as given": "learned filters as given",
    "random": "random filters", "activations": "random activations",
}  # fmt: skip
#: A mean this close to the printed number agrees with it: the paper's pictures are others.
TOLERANCE = 0.05
_WORDS = {"relu": "ReLU", "rectified": "positive part scaled"}


def printed(layer: int, method: str) -> float:
    """Return the paper's number; it does not say whether learned filters were normalised."""
    return PAPER[layer]["learned" if method == "learned as given" else method]


def words(reading: str) -> str:
    """Return a reading in words, such as ``magnitude, entries, scaled``."""
    return ", ".join(_WORDS.get(part, part) for part in reading.split("."))


def fits(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the mean distance of every reading from the paper, over the layers there are, for each kind of filters.

    Only layers whose activations come from learned filters count; where there are none, all do.
    """
    layers = {int(layer): found for layer, found in content["layers"].items()}
    real = {layer: found for layer, found in layers.items() if found["origin"] == "learned"} or layers
    distances: dict[str, dict[str, float]] = {}
    for method in METHODS[:-1]:
        known = {layer: found["errors"][method] for layer, found in real.items() if method in found["errors"]}
        if known:
            distances[method] = {
                reading: float(
                    np.mean([abs(found[reading]["mean"] - printed(i, method)) for i, found in known.items()])
                )
                for reading in READINGS
            }
    return distances


def tables(content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the paper's table in its own reading, and all readings."""
    return _paper_table(content), _all_readings(content)


def _paper_table(content: Mapping[str, Any]) -> Table:
    rows = []
    for layer, found in content["layers"].items():
        for method, errors in found["errors"].items():
            numbers, paper = errors[content["main_reading"]], printed(int(layer), method)
            low, high = numbers["interval_95"]
            real = found["origin"] == "learned" or method == "activations"
            close = abs(numbers["mean"] - paper) <= TOLERANCE
            rows.append(
                (
                    f"{layer}: {found['input']}, {found['filters']}", found["origin"], LABELS[method],
                    f"{numbers['mean']:.3f} [{low:.3f}, {high:.3f}]", f"{paper:.3f}",
                    f"{numbers['mean'] - paper:+.3f}", ("agrees" if close else "differs") if real else "-",
                )
            )  # fmt: skip
    capped = [
        layer for layer, found in content["layers"].items() if found["share"] * found["entries"] > found["regions"]
    ]
    notes = [
        f"Reading: {words(content['main_reading'])}; means over {len(content['pictures'])} pictures "
        f"({content['source']}). Verdict: within {TOLERANCE:g} of the printed number; none where f is not learned.",
        "The paper's columns of image space need a trained decoding network: --image-space trains one for each layer.",
    ]
    if capped:
        notes.append(
            f"Table 2's share of entries is more than one per {content['pool']} x {content['pool']} region in layer "
            f"{', '.join(capped)}: k is the number of regions there."
        )
    notes += content["notes"]
    columns = ("layer", "f from", "reconstructed with", "|f - f_hat|/|f| [95%]", "paper", "difference", "verdict")
    return Table("Relative errors in activation space", columns, tuple(rows), tuple(notes))


def _all_readings(content: Mapping[str, Any]) -> Table:
    kinds = [
        (layer, method)
        for method in METHODS[:-1]
        for layer, found in content["layers"].items()
        if method in found["errors"]
    ]
    rows = [
        (
            words(reading),
            *(f"{content['layers'][layer]['errors'][method][reading]['mean']:.3f}" for layer, method in kinds),
        )
        for reading in READINGS
    ]
    rows.append(("paper", *(f"{printed(int(layer), method):.3f}" for layer, method in kinds)))
    notes = [
        f"Nearest to the paper, {LABELS[method]}: {words(min(distances, key=lambda name: distances[name]))} "
        f"(mean distance {min(distances.values()):.3f})."
        for method, distances in content["fits"].items()
    ]
    notes.insert(
        0,
        "Reading: what M keeps of every region (its largest magnitude, or its largest value after a ReLU); what k is a "
        "share of, by Table 2 (entries, at most one per region, or regions); f_hat brought to |f| (scaled), as it is, "
        "or its positive part brought to |f|.",
    )
    if all(found["origin"] != "learned" for found in content["layers"].values()):
        notes.append("All activations come from random filters: distances from the paper say little.")
    columns = ("reading", *(f"{layer} {method}" for layer, method in kinds))
    return Table("All readings", columns, tuple(rows), tuple(notes))
