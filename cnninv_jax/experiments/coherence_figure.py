"""The figure of Tables 4 and 6 of Gilbert et al. 2017, from their saved report: coherence layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS


def coherence_figure(report: Mapping[str, Any]) -> Figure:
    """Draw coherence against the layers: random banks with the range of their draws, learned ones, the paper's numbers.

    Args:
        report: report.json.
    """
    found = report["findings"]
    layers = found["layers"]
    x = np.arange(len(layers))
    figure = Figure(figsize=(max(7.0, 1.6 + 0.62 * len(layers)), 5.2), layout="constrained")
    figure.suptitle(f"{report['source']}: coherence of {found['title']}\n", fontsize=13, fontweight="bold")
    weights = "no learned filters at hand" if found["weights"] is None else "learned filters from a file"
    figure.text(
        0.5, 0.935, f"filters at the same shift; {found['num_draws']} random banks a layer; {weights}",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    axes = figure.subplots()
    grouped = any(layer["groups"] > 1 for layer in layers)
    for place, (reading, label) in enumerate(
        {"within": "random, 95% of banks", "stored": "random, pairs across halves too"}.items()
    ):
        entries = [(i, layer["random"][reading]) for i, layer in enumerate(layers) if reading in layer["random"]]
        if not entries:
            continue
        at = np.array([i for i, _ in entries]) + (0.1 * (2 * place - 1) if grouped else 0.0)
        mean, low, high = (np.array([e[k] for _, e in entries]) for k in ("mean", "middle_low", "middle_high"))
        axes.errorbar(
            at, mean, [mean - low, high - mean], fmt="os"[place], color=COLOURS[2 * place], capsize=4, markersize=5,
            linewidth=1.4, label=label,
        )  # fmt: skip
    printed = [layer["random_printed"] for layer in layers]
    axes.plot(x, printed, "x", color="0.1", markersize=8, markeredgewidth=1.6, label="random, printed")
    measured = [(i, layer["learned"]["within"]) for i, layer in enumerate(layers) if layer["learned"] is not None]
    if measured:
        axes.plot(*zip(*measured, strict=True), "D", color=COLOURS[1], markersize=6, label="learned, measured")
    learned = [layer["learned_printed"] for layer in layers]
    axes.plot(x, learned, "+", color=COLOURS[1], markersize=10, markeredgewidth=1.6, label="learned, printed")
    axes.set_yscale("log")
    axes.set_ylim(0.8 * min(min(printed), *(layer["random"]["within"]["middle_low"] for layer in layers)), 1.25)
    axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1.0], ["0.05", "0.1", "0.2", "0.5", "1"])
    axes.minorticks_off()
    axes.set_xticks(x, [layer["layer"] for layer in layers], rotation=45 if len(layers) > 8 else 0)
    axes.set_ylabel(r"coherence $\mu$")
    axes.set_xlabel("layer")
    axes.grid(color="0.92")
    axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    return figure
