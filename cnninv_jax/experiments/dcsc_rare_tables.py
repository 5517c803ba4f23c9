"""Tables of the study of paths that are hardly ever lost, and whether its methods agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnninv_jax.experiments.studies import Table

#: Standard errors that may lie between two estimates of one number.
MOST_ERRORS = 4.0


def verdict(entry: Mapping[str, Any], at: int) -> str:
    """Return whether the methods agree at one level of the noise: "agree", "differs: ...", or "undecided".

    Every estimate is held against the exact probability if it is known, otherwise against the other estimates and
    against the exact sum of the responses' probabilities, and plain Monte Carlo always by its exact interval.
    """
    truth = float(entry["exact"][at]) if "exact" in entry else math.nan
    faults, looked = [], 0
    named = {name: entry[key] for name, key in (("tilted signs", "tilted"), ("splitting", "splitting")) if key in entry}
    believed = {name: numbers for name, numbers in named.items() if not numbers["note"][at]}
    for name, numbers in believed.items():
        p, error = float(numbers["probability"][at]), float(numbers["error"][at])
        if not math.isnan(truth):
            looked += 1
            if not _near(p, error, truth, 0.0):
                faults.append(f"{name} {p:.3g} against {truth:.3g}")
        plain = entry["plain"]
        if not plain["wide_low"][at] - MOST_ERRORS * error <= p <= plain["wide_high"][at] + MOST_ERRORS * error:
            faults.append(f"{name} {p:.3g} against plain {plain['probability'][at]:.3g}")
        looked += bool(plain["successes"][at] >= 10)
        # Exact probabilities of the first layer's responses bound its loss; deeper layers can only add to it.
        if "most" in entry and p + MOST_ERRORS * error < entry["most"][at] * (1 - 1e-6):
            faults.append(f"{name} {p:.3g} below a response's {entry['most'][at]:.3g}")
        if "wrong" in entry and entry["depth"] == 1 and p - MOST_ERRORS * error > entry["wrong"][at] * (1 + 1e-6):
            faults.append(f"{name} {p:.3g} above the responses' sum {entry['wrong'][at]:.3g}")
    if not math.isnan(truth):
        looked += 1
        if not entry["plain"]["wide_low"][at] <= truth <= entry["plain"]["wide_high"][at]:
            faults.append(f"plain {entry['plain']['probability'][at]:.3g} against {truth:.3g}")
    if len(believed) == 2:
        looked += 1
        (p, a), (q, b) = ((float(one["probability"][at]), float(one["error"][at])) for one in believed.values())
        if not _near(p, a, q, b):
            faults.append(f"tilted signs {p:.3g} against splitting {q:.3g}")
    if "tilted signs" in believed:
        sums = entry["tilted_wrong"]
        if "wrong" in entry and not sums["note"][at]:
            looked += 1
            got, error = float(sums["probability"][at]), float(sums["error"][at])
            if not _near(got, error, float(entry["wrong"][at]), 0.0):
                faults.append(f"wrong responses {got:.3g} against {entry['wrong'][at]:.3g}")
    if faults:
        return "differs: " + "; ".join(faults)
    return "agree" if looked else "undecided"


def _near(p: float, first: float, q: float, second: float) -> bool:
    """Whether two estimates lie within their errors; rounding of float32 products moves ties at most."""
    return abs(p - q) <= MOST_ERRORS * math.hypot(first, second) + 1e-5 * max(p, q)


def rare_tables(models: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """Return a table per model: the noise down, the methods across."""
    return tuple(_table(entry) for entry in models)


def _table(entry: Mapping[str, Any]) -> Table:
    columns = ["zeta / |X_min|", "exact", "plain", "tilted signs", "splitting", "Hoeffding", "bound (3)", "verdict"]
    if entry["depth"] > 1:
        columns.remove("tilted signs")
    rows = []
    for at, zeta in enumerate(entry["zeta"]):
        cells = [f"{zeta:.2f}", _exact(entry, at), _cell(entry["plain"], at)]
        if entry["depth"] == 1:
            cells.append(_cell(entry["tilted"], at))
        cells += [
            _cell(entry["splitting"], at),
            f"{min(entry['hoeffding'][at], 1):.2g}",
            f"1 ({_power(entry['log10_bound'][at])})" if entry["log10_bound"][at] >= 0 else _power(
                entry["log10_bound"][at]
            ),
            entry["verdicts"][at].split(":")[0],
        ]  # fmt: skip
        rows.append(tuple(cells))
    measured = {name: np.asarray(value) for name, value in entry["measured"].items()}
    plain, split = entry["plain"], entry["splitting"]
    sizes = ", ".join(
        f"layer {layer}: c = {count}, S = {int(stripe)}, mu = {mu:.3f}, {number} responses"
        for layer, (count, stripe, mu, number) in enumerate(
            zip(entry["places"], measured["sparsity"], measured["coherence"], entry["responses"], strict=True), start=1
        )
    )
    notes = [
        f"M = {entry['channels']}; {sizes}.",
        f"plain: {plain['draws']:,} draws; splitting: {split['evaluations']:,} passes for each number"
        + (f"; tilted signs: {entry['tilted']['draws']:,} draws" if entry["depth"] == 1 else "")
        + ". In brackets 95% intervals, Clopper and Pearson's for plain.",
        "exact: " + _how(entry),
        "Hoeffding: his inequality with the products of each response of layer 1 in place of mu^2 S. bound (3): in "
        "brackets as computed; from 1 on it says nothing.",
    ]
    for name in ("tilted", "splitting"):
        lines = entry[name]["note"] if name in entry else []
        notes += sorted({note for note in lines if note})[:2]
    notes += [
        f"zeta {zeta:.2f}: {one}" for zeta, one in zip(entry["zeta"], entry["verdicts"], strict=True) if ":" in one
    ]
    return Table(f"{entry['name']}, {entry['signs']} signs", tuple(columns), tuple(rows), tuple(notes))


def _how(entry: Mapping[str, Any]) -> str:
    if "exact" in entry:
        return f"all {2 ** entry['signs']:,} patterns of signs."
    if "wrong" not in entry:
        return "unknown."
    what = "sum of the responses' exact probabilities, hardly more than that of a loss"
    return what + ("." if entry["depth"] == 1 else " of layer 1; layer 2 may add to it.")


def _exact(entry: Mapping[str, Any], at: int) -> str:
    if "exact" in entry:
        return f"{entry['exact'][at]:.3g}"
    return f"{entry['wrong'][at]:.3g}" if "wrong" in entry else "-"


def _cell(numbers: Mapping[str, Any], at: int) -> str:
    p, low, high = (float(numbers[name][at]) for name in ("probability", "low", "high"))
    if p == 0 and "successes" in numbers:
        return f"< {high:.1g}"
    if math.isnan(p) or p == 0:
        return "-"
    mark = "?" if "note" in numbers and numbers["note"][at] else ""
    return f"{p:.3g}{mark} ({low:.2g}-{high:.2g})"


def _power(exponent: float) -> str:
    return f"{10**exponent:.2g}" if abs(exponent) < 300 else f"1e{exponent:.0f}"
