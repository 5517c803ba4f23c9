"""Tables of `gilbert-table1`: accuracies beside the printed ones, and whether the paper's order comes out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnninv_jax.experiments.classification import STAND_IN
from cnninv_jax.experiments.dcn_statistics import combination
from cnninv_jax.experiments.studies import Table

#: The rows of Table 1, in its order, and what it prints, in percent.
KINDS = ("random", "learned")
PAPER = {"random": {1: 66.5, 2: 74.6, 3: 74.8}, "learned": {1: 68.1, 2: 83.3, 3: 89.3}}


def compared(cells: Mapping[str, Sequence[Mapping[str, Any]]], depths: Sequence[int]) -> list[dict[str, Any]]:
    """Return the differences in accuracy that the paper's order is made of, seed by seed, with 95% intervals.

    Args:
        cells: outcomes by kind and depth, one per seed.
        depths: in rising order.
    """
    pairs = [((f"random-{depth}", f"learned-{depth}"), f"learned - random, {_layers(depth)}") for depth in depths]
    for kind in KINDS:
        for less, more in itertools.pairwise(depths):
            pairs.append(((f"{kind}-{less}", f"{kind}-{more}"), f"{kind}, {_layers(more)} - {_layers(less)}"))
    found = []
    for (before, after), words in pairs:
        if before in cells and after in cells:
            each = np.array([cell["accuracy"] for cell in cells[after]])
            each = each - np.array([cell["accuracy"] for cell in cells[before]])
            value, low, high = combination([1.0], [each])
            printed = _printed(after) - _printed(before)
            found.append({"what": words, "value": value, "low": low, "high": high, "each": each, "printed": printed})
    return found


def tables(content: Mapping[str, Any], parameters: Any) -> tuple[Table, ...]:
    """Return the tables of a study.

    Args:
        content: its findings.
        parameters: `Table1Parameters`.
    """
    comparable = content["data"]["name"] == "cifar10"
    return _accuracies(content, parameters, comparable), _order(content, comparable)


def _accuracies(content: Mapping[str, Any], p: Any, comparable: bool) -> Table:
    rows = []
    for name, outcomes in content["cells"].items():
        kind, depth = name.split("-")
        size = content["networks"][name]
        accuracies = 100 * np.array([outcome["accuracy"] for outcome in outcomes])
        own = 100 * np.mean([outcome["train_accuracy"] for outcome in outcomes])
        rows.append(
            (
                f"{kind}, {_layers(int(depth))}",
                ", ".join(map(str, size["channels"])) + f" of {size['kernel']} x {size['kernel']}",
                f"{size['learned']:,} + {size['frozen']:,}",
                f"{accuracies.mean():.2f}" + (f" ± {accuracies.std(ddof=1):.2f}" if len(accuracies) > 1 else ""),
                f"{own:.1f}",
                f"{PAPER[kind][int(depth)]:.1f}" if comparable else "-",
                f"{np.mean([outcome['seconds'] for outcome in outcomes]):.0f}",
            )
        )
    held = content["data"]
    notes = [
        f"{held['train']:,} training and {held['test']:,} test images ({held['source']}), {p.epochs:g} epochs, "
        f"{p.num_seeds} seed{'s' if p.num_seeds > 1 else ''}; ± is the standard deviation over seeds. "
        f"Channels are {p.width:.4g} of Table 5's.",
        *held["notes"],
    ]
    if p.features == "cached":
        notes.append(
            "Random filters: features computed once, batch norm fixed at scale 1, bias 0; exact for that network, in "
            "which the paper's learned scales and biases are missing."
        )
    if held["name"] == "embedded":
        notes.append(STAND_IN)
    elif not comparable:
        notes.append(f"The paper's numbers are of CIFAR-10, these of {held['name']}.")
    elif p.width < 1:
        notes.append("The printed accuracies are of the full width; narrower networks reach less.")
    diverged = [outcome["message"] for outcomes in content["cells"].values() for outcome in outcomes]
    notes.extend(message for message in diverged if "not finite" in message)
    return Table(
        "Gilbert et al. 2017, Table 1: accuracy on the test set, %",
        ("network", "channels", "learned + fixed numbers", "accuracy", "training set", "paper", "seconds each"),
        tuple(rows),
        tuple(notes),
    )


def _order(content: Mapping[str, Any], comparable: bool) -> Table:
    rows = []
    for found in content["comparisons"]:
        value, low, high = (100 * found[name] for name in ("value", "low", "high"))
        each = np.asarray(found["each"])
        if np.isnan(low):
            interval, verdict = "one seed", "higher" if value > 0 else "lower"
        else:
            interval = f"{low:+.2f} .. {high:+.2f}"
            verdict = "higher" if low > 0 else "lower" if high < 0 else "undecided"
        seeds = f"{int((each > 0).sum())} of {len(each)}"
        rows.append(
            (
                found["what"],
                f"{value:+.2f}",
                interval,
                seeds,
                verdict,
                f"{found['printed']:+.1f}" if comparable else "-",
            )
        )
    notes = (
        "Differences seed by seed: the pictures come in the same order, flipped alike. 95% intervals (Student) over "
        "seeds, for this data set.",
    )
    return Table(
        "The order of Table 1: differences in accuracy, percentage points",
        ("difference", "mean", "95% interval", "seeds that rise", "so it is", "paper"),
        tuple(rows),
        notes,
    )


def _printed(name: str) -> float:
    kind, depth = name.split("-")
    return PAPER[kind][int(depth)]


def _layers(depth: int) -> str:
    return f"{depth} layer{'s' if depth > 1 else ''}"


__all__ = ["KINDS", "PAPER", "compared", "tables"]
