"""The figure of the Rademacher study, from its saved report: left over right against L, by dimension and law."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from cnninv_jax.experiments.crelu_rademacher_draws import LAWS, READINGS
from cnninv_jax.experiments.crelu_rademacher_tables import PRINTED
from cnninv_jax.experiments.render import COLOURS

#: Colour and marker of every law.
STYLES = dict(zip(LAWS, zip((*COLOURS, "black"), "os^Dv", strict=True), strict=True))
#: Axis labels.
LABELS = {
    "crelu": "CReLU, Theorem 4.1",
    "relu": "ReLU, Corollary B.3",
    "avr": "AVR, Lemma B.1",
}


def rademacher_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw readings in rows and dimensions in columns.

    Args:
        report: the study's report.json as read back.
        dataset: none.
    """
    found = report["findings"]
    dims = sorted({cell["dim"] for cell in found["cells"]})
    laws = list(dict.fromkeys(cell["law"] for cell in found["cells"]))
    figure = Figure(figsize=(3.0 * len(dims) + 1.6, 9.6), layout="constrained")
    figure.suptitle(report["title"], fontsize=13, fontweight="bold")
    grid = figure.subplots(len(READINGS), len(dims), squeeze=False, sharex=True, sharey="row")
    for row, reading in zip(grid, READINGS, strict=True):
        for axes, dim in zip(row, dims, strict=True):
            for law in laws:
                own = [cell for cell in found["cells"] if (cell["dim"], cell["law"]) == (dim, law)]
                _curve(axes, own, reading, law)
            _lines(axes, reading, dim)
            if reading == next(iter(READINGS)):
                axes.set_title(f"input dimension $d$ = {dim}", fontsize=10)
            if reading == list(READINGS)[-1]:
                axes.set_xlabel("points $L$")
        row[0].set_ylabel(f"{LABELS[reading]}\ncomplexity / linear class")
    handles = [
        Line2D([], [], color=STYLES[law][0], marker=STYLES[law][1], label=LAWS[law], markersize=5) for law in laws
    ]
    handles += [
        Line2D([], [], color="0.3", marker="o", linestyle="", markerfacecolor="white", label="lower bound (ascent)"),
        Line2D([], [], color="0.2", linewidth=1.2, label="as printed: at most 1"),
        Line2D([], [], color="0.2", linewidth=1.2, linestyle="--", label="proved for every class"),
        Line2D([], [], color="0.5", linewidth=1.2, linestyle=":", label=r"$\pi/(2\sqrt{2})$: symmetric, $L\to\infty$"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    if found["comparisons"]:
        figure.text(
            0.5, 0.957, f"intervals of {100 * found['level']:.3f}% each, all {found['comparisons']} together 95%",
            ha="center", va="center", fontsize=9, color="0.3",
        )  # fmt: skip
        figure.suptitle(f"{report['title']}\n", fontsize=13, fontweight="bold")
    return figure


def _curve(axes: Axes, cells: list[Mapping[str, Any]], reading: str, law: str) -> None:
    """Draw the ratios of one law and dimension."""
    cells = sorted(cells, key=lambda cell: cell["samples"])
    x = np.array([cell["samples"] for cell in cells], float)
    seen = [cell["ratios"][reading] for cell in cells]
    values = np.array([[one["ratio"], one["low"], one["high"]] for one in seen])
    colour, marker = STYLES[law]
    axes.errorbar(
        x, values[:, 0], np.abs(values[:, 1:] - values[:, :1]).T, color=colour, linewidth=1.2, capsize=2, zorder=3
    )
    for place, value, one in zip(x, values[:, 0], seen, strict=True):
        axes.plot(
            place, value, marker, color=colour, markersize=5, zorder=4,
            markerfacecolor="white" if one["lower_bound"] else colour,
        )  # fmt: skip


def _lines(axes: Axes, reading: str, dim: int) -> None:
    axes.axhline(1.0, color="0.2", linewidth=1.2, zorder=1)
    axes.axhline(PRINTED[reading][1], color="0.2", linewidth=1.2, linestyle="--", zorder=1)
    if reading == "crelu" and dim == 1:
        axes.axhline(math.pi / math.sqrt(8), color="0.5", linewidth=1.2, linestyle=":", zorder=2)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.93")
