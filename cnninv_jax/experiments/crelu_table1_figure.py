"""The figure of `crelu-table1`: error against parameters, who beats whom, and the way there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from cnninv_jax.experiments.crelu_table1_tables import BUDGETS, LABELS, PAPER

#: By the order of the models; told apart by people who see no red or no green.
_COLOURS = ("#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "0.45", "#56B4E9", "#7B3294", "#8C510A")
_MARKERS = "osD^vP*X<>"


def crelu_table1_figure(report: Mapping[str, Any]) -> Figure:
    """Draw errors with every seed against parameters, paired differences, and the training curves.

    Args:
        report: report.json.
    """
    found, p = report["findings"], report["parameters"]
    held = found["data"]
    figure = Figure(figsize=(13.5, 9.2), layout="constrained")
    source = {
        "cifar10": "CIFAR-10",
        "cifar100": "CIFAR-100",
        "embedded": "stand-in data (patches of photographs), NOT CIFAR-10",
    }
    figure.suptitle(
        f"{report['source']}: ReLU, AVR and CReLU on the same {BUDGETS[p['budget']]}\n"
        f"{source.get(held['name'], held['name'])}, "
        f"{held['train']:,} training images, {p['epochs']:g} epochs, {p['num_seeds']} seed(s), width {p['width']:.3g} "
        "of the paper's",
        fontsize=12,
    )
    (left, right), (first, second) = figure.subplots(2, 2)
    full = p["width"] == 1 and PAPER.get(held["name"])
    _errors(left, found, full or {})
    _differences(right, found, PAPER.get(held["name"], {}))
    _curves(first, found, "loss", "cross-entropy of training batches", 1.0)
    first.set_yscale("log")
    _curves(second, found, "accuracy", "error of training batches, %", 100.0)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure


def _style(name: str) -> dict[str, Any]:
    place = list(LABELS).index(name)
    return {"color": _COLOURS[place], "marker": _MARKERS[place]}


def _errors(axes: Axes, found: Mapping[str, Any], printed: Mapping[str, Any]) -> None:
    for name, outcomes in found["cells"].items():
        errors = 100 * np.array([1 - outcome["accuracy"] for outcome in outcomes])
        own = 100 * np.mean([1 - outcome["train_accuracy"] for outcome in outcomes])
        size, style = found["networks"][name]["learned"], _style(name)
        deviation = errors.std(ddof=1) if len(errors) > 1 else 0.0
        axes.errorbar(size, errors.mean(), deviation, capsize=4, markersize=7, **style)
        axes.plot([size] * len(errors), errors, "_", color=style["color"], markersize=9, alpha=0.6)
        axes.plot(size, own, style["marker"], color=style["color"], markerfacecolor="none", markersize=6)
        if name in printed:
            axes.plot(size, printed[name].test, "k", marker="_", markersize=16)
    axes.plot([], [], "o", color="0.4", label="test set")
    axes.plot([], [], "o", color="0.4", markerfacecolor="none", label="training set")
    if printed:
        axes.plot([], [], "k_", markersize=12, label="paper, test")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("10$^6$ parameters that learn")
    axes.set_ylabel("error, %")
    axes.set_title("error (bar: standard deviation over seeds; dashes: seeds)", fontsize=11)
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def _differences(axes: Axes, found: Mapping[str, Any], printed: Mapping[str, Any]) -> None:
    pairs = found["comparisons"]
    axes.axvline(0, color="0.4", linewidth=0.8)
    for row, pair in enumerate(reversed(pairs)):
        colour = _style(pair["after"])["color"]
        value = 100 * pair["value"]
        low, high = pair["low"], pair["high"]
        if low is not None and np.isfinite(low):
            axes.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2)
        axes.plot(value, row, "o", color=colour)
        axes.plot(100 * np.asarray(pair["each"]), [row + 0.22] * len(pair["each"]), "|", color=colour, alpha=0.7)
        if pair["before"] in printed and pair["after"] in printed:
            axes.plot(printed[pair["after"]].test - printed[pair["before"]].test, row - 0.22, "D", color="0.3",
                      markerfacecolor="none", markersize=5)  # fmt: skip
    if printed:
        axes.plot([], [], "D", color="0.3", markerfacecolor="none", label="paper (full width)")
    axes.plot([], [], "|", color="0.3", label="seeds")
    axes.plot([], [], "-o", color="0.3", label="mean, 95% interval")
    names = [f"{LABELS[pair['after']]}\n- {LABELS[pair['before']]}" for pair in reversed(pairs)]
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.set_xlabel("difference in test error, percentage points (left: the first is better)")
    axes.set_title("who beats whom, seed by seed", fontsize=11)
    axes.grid(alpha=0.25, axis="x")
    axes.legend(fontsize=8, frameon=False)


def _curves(axes: Axes, found: Mapping[str, Any], name: str, label: str, factor: float) -> None:
    for cell, outcomes in found["cells"].items():
        curves = [outcome["curve"][name] for outcome in outcomes if outcome["curve"].get(name)]
        if not curves:
            continue
        count = min(map(len, curves))
        mean = np.mean([curve[:count] for curve in curves], axis=0)
        values = factor * (1 - mean if name == "accuracy" else mean)
        steps = (np.arange(count) + 0.5) / count * found["networks"][cell]["steps"]
        axes.plot(steps, _smoothed(values), markevery=[-1], linewidth=1.4, label=LABELS[cell], **_style(cell))
    axes.set_xlabel("steps")
    axes.set_ylabel(label)
    axes.set_title("while training (mean over seeds)", fontsize=11)
    axes.grid(alpha=0.25)


def _smoothed(values: np.ndarray, window: int = 9) -> np.ndarray:
    """Return a running mean that is shorter at the ends."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


__all__ = ["crelu_table1_figure"]
