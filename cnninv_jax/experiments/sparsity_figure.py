"""The figure of Tables 2 and 7 of Gilbert et al. 2017, from their saved report: non-zeros layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS


def sparsity_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw the share of non-zeros of every picture and their mean against the layers, beside the printed numbers.

    Args:
        report: report.json.
        dataset: result.nc, the shares [picture, output].
    """
    found = report["findings"]
    names = [*found["outputs"], *found["missing"]]
    printed = [entry["printed"] for entry in found["outputs"].values()] + list(found["missing"].values())
    which = "random filters" if found["random"] else "weights from a file"
    figure = Figure(figsize=(max(7.0, 1.6 + 0.5 * len(names)), 5.2), layout="constrained")
    figure.suptitle(f"{report['source']}: non-zeros in {found['title']}\n", fontsize=13, fontweight="bold")
    figure.text(
        0.5, 0.935, f"{which}; {found['num_pictures']} pictures at {found['size']} x {found['size']} "
        f"({found['pictures']})", ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    axes = figure.subplots()
    values = 100 * dataset["share"].to_numpy()
    for row in values[:200]:
        axes.plot(np.arange(values.shape[1]), row, ".", color=COLOURS[0], alpha=0.25, markersize=5)
    mean = np.array([entry["mean"] for entry in found["outputs"].values()])
    low, high = (
        np.array([np.nan if entry[end] is None else entry[end] for entry in found["outputs"].values()], float)
        for end in ("low", "high")
    )
    ends = np.nan_to_num(np.maximum([mean - low, high - mean], 0.0))
    axes.errorbar(
        np.arange(len(mean)), mean, ends, fmt="o", color=COLOURS[0], capsize=4, markersize=5, linewidth=1.4,
        label=f"{which}: mean, 95% interval (dots: pictures)",
    )  # fmt: skip
    at = [i for i, value in enumerate(printed) if value is not None]
    axes.plot(
        at, [printed[i] for i in at], "x", color=COLOURS[1], markersize=8, markeredgewidth=1.8,
        label="printed: trained weights, ILSVRC-2012",
    )  # fmt: skip
    for i, name in enumerate(names):
        if name.startswith("pool"):
            axes.axvspan(i - 0.5, i + 0.5, color="0.95", zorder=0)
    axes.set_xticks(np.arange(len(names)), names, rotation=45 if len(names) > 8 else 0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0.0, 118.0 if len(names) > 12 else 125.0)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("non-zeros (%)")
    axes.set_xlabel("output of layer (shaded: after pooling)")
    axes.grid(color="0.92", axis="y")
    axes.legend(fontsize=9, frameon=False, loc="upper center", ncols=2 if len(names) > 12 else 1)
    return figure
