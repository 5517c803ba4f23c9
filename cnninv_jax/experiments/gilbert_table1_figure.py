"""The figure of `gilbert-table1`: accuracy against depth beside the printed one, and how it was reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.gilbert_table1_tables import KINDS, PAPER
from cnninv_jax.experiments.render import COLOURS

_STYLES = {1: ":", 2: "--", 3: "-"}


def table1_figure(report: Mapping[str, Any]) -> Figure:
    """Draw accuracies with every seed, the paper's where the data are its own, and the training curves.

    Args:
        report: report.json.
    """
    found, p = report["findings"], report["parameters"]
    held = found["data"]
    figure = Figure(figsize=(13.5, 5.2), layout="constrained")
    source = "CIFAR-10" if held["name"] == "cifar10" else "CIFAR-100" if held["name"] == "cifar100" else (
        "stand-in data (patches of photographs), NOT CIFAR-10"
    )  # fmt: skip
    figure.suptitle(
        f"{report['source']}: random and learned filters\n{source}, {held['train']:,} training images, "
        f"{p['epochs']:g} epochs, seeds: {p['num_seeds']}, width {p['width']:.4g} of the paper's",
        fontsize=12,
    )
    left, middle, right = figure.subplots(1, 3)
    _accuracies(left, found, held["name"] == "cifar10")
    _curves(middle, found, p, "accuracy", "accuracy of training batches, %", 100)
    _curves(right, found, p, "loss", "cross-entropy of training batches", 1)
    right.set_yscale("log")
    return figure


def _accuracies(axes: Axes, found: Mapping[str, Any], comparable: bool) -> None:
    depths = sorted({int(name.split("-")[1]) for name in found["cells"]})
    for place, kind in enumerate(KINDS):
        points = [
            (depth, [100 * outcome["accuracy"] for outcome in found["cells"][f"{kind}-{depth}"]])
            for depth in depths
            if f"{kind}-{depth}" in found["cells"]
        ]
        if not points:
            continue
        offset = 0.06 * (2 * place - 1)
        axes.plot(
            [depth + offset for depth, _ in points], [np.mean(values) for _, values in points],
            color=COLOURS[place], marker="o", label=f"{kind} filters, mean",
        )  # fmt: skip
        for depth, values in points:
            axes.plot([depth + offset] * len(values), values, "_", color=COLOURS[place], markersize=12)
        if comparable:
            axes.plot(
                depths, [PAPER[kind][depth] for depth in depths], color=COLOURS[place], linestyle="--", marker="D",
                markerfacecolor="none", alpha=0.7, label=f"{kind} filters, paper (full width)",
            )  # fmt: skip
    axes.set_xticks(depths)
    axes.set_xlim(depths[0] - 0.4, depths[-1] + 0.4)
    axes.set_xlabel("convolutional layers")
    axes.set_ylabel("accuracy on the test set, %")
    axes.set_title("accuracy (bars: seeds)", fontsize=11)
    axes.grid(alpha=0.25)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _curves(axes: Axes, found: Mapping[str, Any], p: Mapping[str, Any], name: str, label: str, factor: float) -> None:
    for cell, outcomes in found["cells"].items():
        kind, depth = cell.split("-")
        curves = [outcome["curve"][name] for outcome in outcomes if outcome["curve"].get(name)]
        if not curves:
            continue
        count = min(map(len, curves))
        mean = factor * np.mean([curve[:count] for curve in curves], axis=0)
        steps = (np.arange(count) + 0.5) / count * p["epochs"]
        axes.plot(
            steps, _smoothed(mean), color=COLOURS[KINDS.index(kind)], linestyle=_STYLES[int(depth)], linewidth=1.3,
            label=f"{kind}, {depth}",
        )  # fmt: skip
    axes.set_xlabel("epochs")
    axes.set_ylabel(label)
    axes.set_title("while training (mean over seeds)", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, title="filters, layers", title_fontsize=8)


def _smoothed(values: np.ndarray, window: int = 9) -> np.ndarray:
    """Return a running mean that is shorter at the ends."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


__all__ = ["table1_figure"]
