"""The figure of paths that are hardly ever lost: probability against noise on a log scale, from the saved report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS

#: What is drawn of each method: entry of the report, name, colour, marker, shift of the points aside.
METHODS = (
    ("plain", "plain Monte Carlo", COLOURS[0], "s", -0.004),
    ("tilted", "tilted signs", COLOURS[2], "^", 0.0),
    ("splitting", "splitting", COLOURS[1], "o", 0.004),
)


def rare_figure(report: Mapping[str, Any]) -> Figure:
    """Draw a panel per model.

    Args:
        report: the study's report.json as read back.
    """
    models = report["findings"]["models"]
    columns = min(len(models), 2)
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.0 * rows + 0.9), layout="constrained")
    figure.suptitle(report["title"], fontsize=13, fontweight="bold")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    floor = min(_least(entry) for entry in models) / 8
    for axes, entry in zip(grid, models, strict=False):
        _panel(axes, entry, floor)
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}
    for axes in grid[: len(models)]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _panel(axes: Axes, entry: Mapping[str, Any], floor: float) -> None:
    zeta = np.asarray(entry["zeta"], float)
    bound = np.asarray(entry["log10_bound"], float)
    shown = np.minimum(10.0 ** np.minimum(bound, 0), 1)
    axes.plot(zeta, shown, color="0.45", linestyle="dashed", label="bound (3), at most 1")
    single = entry["depth"] == 1
    if single:
        axes.plot(
            zeta, np.minimum(_floats(entry["hoeffding"]), 1), color="0.45", linestyle="dotted",
            label="Hoeffding, response by response (one layer)",
        )  # fmt: skip
    if "exact" in entry:
        axes.plot(zeta, _positive(entry["exact"]), color="black", linewidth=1.2, label="exact: all patterns of signs")
    elif "wrong" in entry:
        axes.plot(
            zeta, np.minimum(_positive(entry["wrong"]), 1), color="black" if single else "0.6", linewidth=1.2,
            linestyle="dashdot",
            label="sum over responses, an upper bound (one layer)" if single else "layer 1 alone: sum over responses",
        )  # fmt: skip
    for key, label, colour, marker, aside in METHODS:
        if key in entry:
            _points(axes, entry[key], zeta + aside, label, colour, marker, floor)
    axes.set_yscale("log")
    axes.set_ylim(floor, 3)
    axes.axhline(2.0 ** -entry["signs"], color="0.8", linewidth=0.8, zorder=0)
    axes.set_title(
        f"{entry['name']}, {entry['signs']} signs: S = {', '.join(f'{s:g}' for s in entry['measured']['sparsity'])}; "
        rf"$\mu$ = {', '.join(f'{mu:.3f}' for mu in entry['measured']['coherence'])}",
        fontsize=10,
    )
    axes.set_xlabel(r"noise $\zeta_0\,/\,|X^{(1)}_{\min}|$")
    axes.set_ylabel("P(activation path lost)")
    axes.grid(True, which="major", color="0.92")
    axes.tick_params(labelbottom=True)


def _points(
    axes: Axes, numbers: Mapping[str, Any], places: np.ndarray, label: str, colour: str, marker: str, floor: float
) -> None:
    p, low, high = (_floats(numbers[name]) for name in ("probability", "low", "high"))
    doubtful = np.array([bool(note) for note in numbers.get("note", [""] * len(p))])
    for chosen, face, name in ((~doubtful, colour, label), (doubtful, "white", f"{label}, doubtful")):
        there = chosen & (p > 0)
        if not there.any() and face == "white":
            continue
        errors = np.stack([(p - np.maximum(low, floor / 10))[there], (high - p)[there]])
        axes.errorbar(
            places[there], p[there], yerr=np.maximum(errors, 0), color=colour, marker=marker, markersize=5.5,
            markerfacecolor=face, linestyle="none", capsize=2.5, label=name,
        )  # fmt: skip
    if "successes" in numbers:
        # Nothing seen: what is excluded at 95%.
        unseen = (p == 0) & np.isfinite(high)
        axes.plot(
            places[unseen], high[unseen], linestyle="none", marker="v", color=colour, markerfacecolor="white",
            label=f"{label}: none lost, upper limit" if unseen.any() else None,
        )  # fmt: skip


def _least(entry: Mapping[str, Any]) -> float:
    """Return the smallest positive probability of a model."""
    found = [_floats(entry[key]["probability"]) for key, *_ in METHODS if key in entry]
    found += [_floats(entry[key]) for key in ("exact", "wrong") if key in entry]
    values = np.concatenate(found)
    return float(values[values > 0].min(initial=1e-3))


def _positive(values: Any) -> np.ndarray:
    """Return values for a log scale, gaps at 0."""
    found = _floats(values)
    return np.where(found > 0, found, np.nan)


def _floats(values: Any) -> np.ndarray:
    """Return a saved list, None being no number."""
    return np.array([np.nan if value is None else float(value) for value in values])
