"""The figure of `gilbert-constant`, from its saved report: three numbers against k, M and l."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

_LABELS = {"k": "non-zeros $k$", "M": "channels $M$", "ell": r"filter length $\ell$"}
#: The numbers that are drawn: line style and marker.
_STYLES = {"upper": ("--", "v"), "exact": ("-", "o"), "lower": (":", "^")}
_MODELS = {1: r"$\delta_k$ ($\mathcal{M}_k$)", 2: r"$\delta_{2k}$ ($\mathcal{M}_k^2$)"}


def constant_figure(report: Mapping[str, Any], dataset: xr.Dataset | None) -> Figure:
    """Draw lower bound, exact value and upper bound against k, M and l.

    Args:
        report: report.json.
        dataset: not needed.
    """
    del dataset
    p, rows = report["parameters"], report["findings"]["rows"]
    figure = Figure(figsize=(14.0, 4.8), layout="constrained")
    figure.suptitle("Model-RIP constant of random Gaussian banks (Gilbert et al. 2017, eq. 1)\n", fontsize=13,
                    fontweight="bold")  # fmt: skip
    figure.text(
        0.5, 0.925,
        f"K={p['K']}, n={p['n']}; k={p['k']}, M={p['M']}, l={p['ell']} where not varied; mean "
        f"and range of {p['num_banks']} banks",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    grid = figure.subplots(1, 3, sharey=True)
    for axes, panel in zip(grid, _LABELS, strict=True):
        _panel(axes, [row for row in rows if row["panel"] == panel], panel)
    grid[0].set_ylabel(r"$\max_S \|W_S W_S^T - I\|_2$")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return figure


def _panel(axes: Axes, rows: list[Mapping[str, Any]], panel: str) -> None:
    for colour, (members, model) in zip(COLOURS, _MODELS.items(), strict=False):
        for name, (line, marker) in _STYLES.items():
            values, bands = [], []
            for value in sorted({row["value"] for row in rows}):
                group = [row[name] for row in rows if row["value"] == value and row["members"] == members]
                if all(number is not None for number in group):
                    values.append(value)
                    bands.append((np.mean(group), np.min(group), np.max(group)))
            mean, low, high = np.asarray(bands).reshape(-1, 3).T
            axes.plot(values, mean, line, marker=marker, markersize=5, color=colour, label=f"{model}: {name}")
            axes.fill_between(values, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    if panel == "M":
        axes.set_xscale("log", base=2)
    ticks = sorted({row["value"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel(_LABELS[panel])
    axes.grid(visible=True, which="both", color="0.92", linewidth=0.6)
