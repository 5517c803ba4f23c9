"""The figure of a checkpoint's analysis, from its saved report: coherence, frame bound and non-zeros by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS

#: Layers that still have room for their names.
NAMED = 40


def walk_figure(report: Mapping[str, Any]) -> Figure:
    """Draw every layer's coherence and frame bound beside random banks', and its non-zeros where counted.

    Args:
        report: report.json, or any mapping with the content of `walk_checkpoint` under "findings".
    """
    found = report["findings"]
    layers = found["layers"]
    counted = any(layer.get("non_zeros") is not None for layer in layers)
    rows = 3 if counted else 2
    figure = Figure(figsize=(min(16.0, max(7.0, 2.0 + 0.55 * len(layers))), 1.6 + 2.6 * rows), layout="constrained")
    figure.suptitle(f"Convolutions of {found['network']}", fontsize=13, fontweight="bold")
    panels = figure.subplots(rows, 1, sharex=True)
    _points(panels[0], layers, "coherence", COLOURS[1], "o", "filters at one shift")
    _points(panels[0], layers, "coherence_all_shifts", COLOURS[3], "^", "all shifts")
    _spread(panels[0], layers, "random_coherence", f"random at one shift, {found['random_banks']} banks")
    panels[0].set_ylabel(r"coherence $\mu$")
    panels[0].set_ylim(0.0, 1.3)
    _points(panels[1], layers, "bound", COLOURS[1], "o", "these filters, norm 1")
    _spread(panels[1], layers, "random_bound", f"random, {found['random_bounds']} banks")
    panels[1].set_yscale("log")
    low, high = panels[1].get_ylim()
    panels[1].set_ylim(low / 1.2, high * (high / low) ** 0.25)
    panels[1].set_ylabel(r"$B = \max\ \|W x\|^2 / \|x\|^2$")
    if counted:
        _spread(panels[2], layers, "non_zeros", "after ReLU (bars: from picture to picture)", COLOURS[0])
        _spread(panels[2], layers, "non_zeros_pooled", "after pooling", COLOURS[2])
        panels[2].set_ylim(0.0, 125.0)
        panels[2].set_yticks(range(0, 101, 25))
        panels[2].set_ylabel("non-zeros (%)")
    for axes in panels:
        axes.grid(color="0.92")
        axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=3)
    step = -(-len(layers) // NAMED)
    at = np.arange(0, len(layers), step)
    names = [layers[i]["layer"] for i in at]
    panels[-1].set_xticks(at, names, rotation=90 if max(map(len, names)) > 8 else 45, fontsize=8)
    panels[-1].set_xlabel("layer" if step == 1 else f"layer (every {step}th named)")
    return figure


def _points(axes: Axes, layers: list[dict[str, Any]], name: str, colour: str, marker: str, label: str) -> None:
    at = [i for i, layer in enumerate(layers) if layer[name] is not None]
    axes.plot(at, [layers[i][name] for i in at], marker, color=colour, markersize=5, label=label)


def _spread(axes: Axes, layers: list[dict[str, Any]], name: str, label: str, colour: str = COLOURS[0]) -> None:
    """Draw means with their standard deviations."""
    at = [i for i, layer in enumerate(layers) if layer.get(name) is not None]
    if not at:
        return
    mean = [layers[i][name]["mean"] for i in at]
    # null stands for a deviation of one number.
    spread = [layers[i][name]["standard_deviation"] or 0.0 for i in at]
    axes.errorbar(at, mean, np.nan_to_num(spread), fmt="s", color=colour, markersize=4, capsize=3, label=label)
