"""What Gilbert et al. 2017, Fig. 3 says beside what was found: numbers, verdicts, tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnninv_jax.experiments.studies import Table
from cnninv_jax.montecarlo import mean_interval

#: "The center offset to 1 is less than 0.05 and the range bound is roughly less than 0.05" (4.4, of b and c).
LOW, HIGH = 0.95, 1.05
#: Panels of recovered codes.
PANEL_NAMES = {"before": "(b)", "after": "(c)"}


def describe(values: ArrayLike) -> dict[str, Any]:
    """Return mean with its interval, spread and range of draws, and how many are finite and within 0.05 of 1."""
    draws = np.asarray(values, np.float64)
    finite = draws[np.isfinite(draws)]
    count = len(finite)
    if count == 0:
        return {"count": 0, "non_finite": len(draws)}
    mean, variance = finite.mean(), finite.var(ddof=1) if count > 1 else np.nan
    low, high = mean_interval(mean, variance, count)
    return {
        "mean": float(mean),
        "interval_95": [float(low), float(high)],
        "standard_deviation": float(np.sqrt(variance)),
        "min": float(finite.min()),
        "max": float(finite.max()),
        "near_one": float(np.mean((finite >= LOW) & (finite <= HIGH))),
        "count": count,
        "non_finite": len(draws) - count,
    }


def verdict(numbers: Mapping[str, Any]) -> str:
    """Return whether the mean lies within 0.05 of 1: ``agrees``, ``differs``, or ``undecided`` by its interval."""
    if not numbers["count"]:
        return "undecided"
    low, high = numbers["interval_95"]
    if low >= LOW and high <= HIGH:
        return "agrees"
    return "differs" if high < LOW or low > HIGH else "undecided"


def tables(content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the table of panel (a) and that of panels (b) and (c), as far as they were computed."""
    made = []
    if content["synthetic"]:
        made.append(_synthetic(content))
    if content["recovered"]:
        made.append(_recovered(content))
    notes = tuple(content["notes"])
    if notes and made:
        made[-1] = Table(made[-1].title, made[-1].columns, made[-1].rows, (*made[-1].notes, *notes))
    return tuple(made)


def _synthetic(content: Mapping[str, Any]) -> Table:
    setting = content["setting"]["synthetic"]
    rows = []
    for bank, readings in content["synthetic"].items():
        for reading, label in (("cut", "cut to the map"), ("uncut", "uncut")):
            numbers = readings[reading]
            rows.append(
                (
                    f"{bank} filters, x {label}", mean_text(numbers), f"{numbers['standard_deviation']:.4f}",
                    range_text(numbers), f"{numbers['expected']:.4f}", "1, tail < 1", verdict(numbers),
                )
            )  # fmt: skip
    sizes = f"K={setting['K']}, M={setting['M']}, l={'x'.join(map(str, setting['ell']))}"
    notes = [
        "Cut: same padding as in VGG-16, x is cut to the map, so that the outermost shifts lose taps. Uncut: the "
        "theory's W^T, nothing is lost. Expected: root of E |W^T z|^2 / E |z|^2, exact.",
        "Verdict: the mean's 95% interval within 0.05 of 1. The paper says centred around 1, with a short tail bounded "
        "by delta_k < 1.",
    ]
    if setting["capped"]:
        notes.append(_capped(setting))
    title = (
        f"(a) |W^T z| / |z| of synthetic codes; {setting['layer']}: {sizes}, {setting['map'][0]} x {setting['map'][1]} "
        f"maps, k = {setting['k']:,} of {setting['entries']:,} ({100 * setting['k'] / setting['entries']:.1f}%)"
    )
    columns = ("filters, x", "mean [95%]", "deviation", "range", "expected", "paper", "verdict")
    return Table(title, columns, tuple(rows), tuple(notes))


def _recovered(content: Mapping[str, Any]) -> Table:
    setting = content["setting"]["recovered"]
    rows = []
    for panel, name in PANEL_NAMES.items():
        for bank, panels in content["recovered"].items():
            for entry in sorted(panels[panel], key=lambda entry: -entry["fraction"]):
                numbers = entry["cut"]
                if not numbers["count"]:
                    rows.append((f"{name} {bank}", f"{entry['fraction']:g}", *("-",) * 6, "undecided"))
                    continue
                rows.append(
                    (
                        f"{name} {bank}", f"{entry['fraction']:g}", mean_text(numbers, 3), range_text(numbers),
                        f"{100 * numbers['near_one']:.0f}%", f"{entry['l1_error']['mean']:.3f}",
                        f"{entry['error']['mean']:.3f}", f"{100 * entry['density']['mean']:.1f}%", verdict(numbers),
                    )
                )  # fmt: skip
    columns = (
        "filters", "lam", "|W^T z|/|z| [95%]", "range", "near 1", "step 1's error", "error", "non-zeros", "verdict",
    )  # fmt: skip
    notes = [
        "(b) before, (c) after the ReLU. Near 1: pieces within 0.05 of 1.",
        "lam is a fraction of 2 |W x|_inf; the paper names no lambda. Errors are |x - W^T z| / |x|: of Algorithm 2's "
        "step 1, and of its result, at most one non-zero per region. Verdict: the mean's 95% interval within 0.05 of "
        "1 (paper: offset below 0.05, range about 0.05). A ratio near 1 says little where the error is near 1.",
        f"Intervals are over pieces of {len(setting['pictures'])} pictures ({setting['source']}), not over pictures."
        if not setting["whole_maps"]
        else f"One code per picture ({setting['source']}).",
    ]
    if setting["network"] == "random":
        notes.append("A network of random filters, not VGG-16: give --weights for learned ones.")
    if setting["capped"]:
        notes.append(_capped(setting))
    entries = [entry for panels in content["recovered"].values() for part in panels.values() for entry in part]
    known = [entry for entry in entries if entry["converged"]["count"]]
    if known:
        stopped = 1.0 - float(np.mean([entry["converged"]["mean"] for entry in known]))
        gap = max(entry["gap"].get("max", 0.0) for entry in known)
        cut = f"; {100 * stopped:.1f}% of the recoveries ended at --max-steps" if stopped > 0 else ""
        notes.append(f"Largest relative duality gap {gap:.1e} (--tol {setting['tol']:g}){cut}.")
    title = (
        f"(b, c) |W^T z| / |z| of recovered codes; {setting['layer']} on {setting['input']}, {setting['network']} "
        f"network, {setting['pieces']} {setting['map'][0]} x {setting['map'][1]} "
        f"{'maps' if setting['whole_maps'] else 'pieces'}, k = {setting['k']:,} of {setting['entries']:,}"
    )
    return Table(title, columns, tuple(rows), tuple(notes))


def _capped(setting: Mapping[str, Any]) -> str:
    return (
        f"{100 * setting['sparsity']:.1f}% of the entries is more than one per pooling region: k is the number of "
        f"regions, {setting['blocks']:,} ({100 * setting['blocks'] / setting['entries']:.1f}%)."
    )


def mean_text(numbers: Mapping[str, Any], digits: int = 4) -> str:
    """Return ``0.9373 [0.9370, 0.9376]``."""
    low, high = numbers["interval_95"]
    return f"{numbers['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def range_text(numbers: Mapping[str, Any]) -> str:
    """Return smallest and largest draw."""
    return f"{numbers['min']:.3f} to {numbers['max']:.3f}"
