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
    """Return whether the methods agree at one level of the noise.

    "agree"; "agree (layer 1)" where nothing but layer 1's sum was there to compare with, no signs losing layer 2 while
    layer 1 is recovered; "differs: ..."; or "undecided".

    Every estimate is held against the exact probability if it is known, otherwise against the other estimates and
    against the exact sum of the responses' probabilities, and plain Monte Carlo always by its exact interval.
    """
    truth = float(entry["exact"][at]) if "exact" in entry else math.nan
    # The sum bounds the loss from above where there is one layer, or where the second is lost only with the first.
    held = "held" in entry and bool(entry["held"][at])
    faults, looked, like_sum = [], 0, False
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
        if "wrong" in entry and held:
            like_sum |= _near(p, error, float(entry["wrong"][at]), 0.0)
        if (
            "wrong" in entry
            and (entry["depth"] == 1 or held)
            and p - MOST_ERRORS * error > entry["wrong"][at] * (1 + 1e-6)
        ):
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
    if looked:
        return "agree"
    return "agree (layer 1)" if like_sum else "undecided"


def _near(p: float, first: float, q: float, second: float) -> bool:
    """Whether two estimates lie within their errors; rounding of float32 products moves ties at most."""
    return abs(p - q) <= MOST_ERRORS * math.hypot(first, second) + 1e-5 * max(p, q)


def rare_tables(models: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """Return a table per model: the noise down, the methods across."""
    return tuple(_table(entry) for entry in models)


def _table(entry: Mapping[str, Any]) -> Table:
    single = entry["depth"] == 1
    columns = ["zeta / |X_min|", "exact", *([] if single else ["layer 1 alone"]), "plain"]
    columns += [*(["tilted signs"] if single else []), "splitting", *(["Hoeffding"] if single else [])]
    columns += ["bound (3)", "verdict"]
    rows = []
    for at, zeta in enumerate(entry["zeta"]):
        cells = [f"{zeta:.2f}", _exact(entry, at), *([] if single else [_sum(entry, at)]), _cell(entry["plain"], at)]
        if single:
            cells.append(_cell(entry["tilted"], at))
        cells += [
            _cell(entry["splitting"], at),
            *([f"{min(entry['hoeffding'][at], 1):.2g}"] if single else []),
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
        ("Hoeffding: his inequality with the products of each response in place of mu^2 S. " if single else "")
        + "bound (3): in brackets as computed; from 1 on it says nothing.",
    ]
    if not single:
        notes += [_alone(entry), _support(entry)]
    for name in ("tilted", "splitting"):
        lines = entry[name]["note"] if name in entry else []
        for note in dict.fromkeys(note for note in lines if note):
            levels = (f"{zeta:.2f}" for zeta, one in zip(entry["zeta"], lines, strict=True) if one == note)
            notes.append(f"zeta {', '.join(levels)}: {note}")
    notes += [
        f"zeta {zeta:.2f}: {one}" for zeta, one in zip(entry["zeta"], entry["verdicts"], strict=True) if ":" in one
    ]
    return Table(f"{entry['name']}, {entry['signs']} signs", tuple(columns), tuple(rows), tuple(notes))


def _how(entry: Mapping[str, Any]) -> str:
    if "exact" in entry:
        return f"all {2 ** entry['signs']:,} patterns of signs."
    if entry["depth"] > 1 or "wrong" not in entry:
        return "unknown, too many signs to try all patterns."
    said = "not known; <= the sum of the responses' exact probabilities, a union bound."
    tilted = entry["tilted"]
    parts = [
        p / total
        for p, total, note in zip(tilted["probability"], entry["wrong"], tilted["note"], strict=True)
        if total > 0 and not note
    ]
    return f"{said} Tilted signs find {min(parts):.2f} to {max(parts):.2f} of it." if parts else said


def _alone(entry: Mapping[str, Any]) -> str:
    """Return what layer 1 says about two layers."""
    if "wrong" not in entry:
        return "layer 1 alone: unknown, too many signs."
    said = "layer 1 alone: <= the sum of its responses' exact probabilities, no bound for both layers"
    levels = [f"{zeta:.2f}" for zeta, held in zip(entry["zeta"], entry["held"], strict=True) if held]
    if not levels:
        return said + "; layer 2 may add to it."
    which = " at every zeta" if len(levels) == len(entry["zeta"]) else f" at zeta {', '.join(levels)}"
    return (
        f"{said}; but{which} no signs lose layer 2 while layer 1 is recovered (worst case), so it is one. "
        "agree (layer 1): splitting agrees with this sum, and there is nothing else to compare with."
    )


def _support(entry: Mapping[str, Any]) -> str:
    tried = "1 support was tried" if entry["tried"] == 1 else f"{entry['tried']} supports were tried"
    if entry["unlosable"]:
        return f"X^(2): {tried} for one that no pattern of D^(2) loses without noise, and the last is one."
    return f"X^(2): {tried} for one that no pattern of D^(2) loses without noise; none was found, the last is taken."


def _exact(entry: Mapping[str, Any], at: int) -> str:
    if "exact" in entry:
        return f"{entry['exact'][at]:.3g}"
    return _sum(entry, at) if entry["depth"] == 1 else "-"


def _sum(entry: Mapping[str, Any], at: int) -> str:
    """Return the union bound over the responses of layer 1."""
    if "wrong" not in entry:
        return "-"
    total = float(entry["wrong"][at])
    return f"<= {min(total, 1):.3g}" if total else "0"


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
