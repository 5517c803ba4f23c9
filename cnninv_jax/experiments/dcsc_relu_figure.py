"""The figure of the ReLU study, from its saved report: recovery against S, and entries lost and made up by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cnninv_jax.experiments.dcsc_dictionaries import describe
from cnninv_jax.experiments.dcsc_relu_draws import PAIRS, SETTINGS
from cnninv_jax.experiments.render import COLOURS

#: How projections are drawn: label, colour, line, marker. CReLUs lie on the two-sided threshold that they equal.
STYLES: dict[str, tuple[str, str, str, str]] = {
    "hard": ("hard threshold |h| > β", COLOURS[0], "-", "o"),
    "crelu": ("CReLU, both halves h > β", "black", "", "x"),
    "relu": ("one-sided h > β", COLOURS[1], "-", "s"),
    "soft": ("soft threshold", COLOURS[2], "--", "o"),
    "shifted_crelu": ("CReLU with bias −β", "black", "", "+"),
    "shifted_relu": ("ReLU with bias −β", COLOURS[3], "--", "s"),
}
#: Those whose entries are counted; CReLUs repeat two of them.
BARS = ("hard", "relu", "soft", "shifted_relu")


def relu_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw the settings in rows; the probability against S for every depth, and the deepest model's layers, in columns.

    Args:
        report: the study's report.json as read back.
        dataset: none.
    """
    p, found = report["parameters"], report["findings"]
    depths = sorted({cell["depth"] for cell in found["cells"]})
    columns = len(depths) + 1
    figure = Figure(figsize=(3.5 * columns + 1.2, 10.2), layout="constrained")
    figure.suptitle(f"{report['title']}\n\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.957, _subtitle(p, found), ha="center", va="center", fontsize=9, color="0.3")
    grid = figure.subplots(
        len(SETTINGS), columns, squeeze=False, gridspec_kw={"width_ratios": [1] * len(depths) + [1.15]}
    )
    span = [cell["S"][0] for cell in found["cells"]]
    for row, (setting, title) in zip(grid, SETTINGS.items(), strict=True):
        for axes, depth in zip(row, depths, strict=False):
            own = [cell for cell in found["cells"] if cell["depth"] == depth]
            _curves(axes, own, setting)
            axes.set_xlim(min(span) * 0.85, max(span) * 1.15)
            axes.set_title(f"$L$ = {depth}", fontsize=10)
            if setting == list(SETTINGS)[-1]:
                axes.set_xlabel(r"$S$: mean of $\|X^{(1)}\|_{0,\infty}^Q$ (non-zeros)")
        row[0].set_ylabel(f"{_broken(title)}\n\nP(path recovered)")
        shown = found["shown"][str(depths[-1])]
        cell = next(cell for cell in found["cells"] if cell["depth"] == depths[-1] and cell["asked"] == shown)
        _layers(row[-1], cell, setting)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    return figure


def _subtitle(p: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    mu = next(iter(sorted(found["models"].items(), reverse=True)))[1]["coherence"]
    sizes = ", ".join(map(str, p["num_filters"]))
    return (
        f"D = {p['D']}, M = {p['M']}, {describe(p)} below; n = {sizes}, ℓ = {p['ell']}, {p['nonzeros']} "
        f"non-zeros in a deep atom, μ = {', '.join(f'{value:.2g}' for value in mu)}; {found['draws_per_cell']} draws "
        f"a point, 95% intervals; β = |X_min|/2, times {p['shrink']:g} a layer below where projections subtract β"
    )


def _broken(title: str) -> str:
    return title.replace(", ", ",\n").replace(": ", ":\n")


def _curves(axes: Axes, cells: list[Mapping[str, Any]], setting: str) -> None:
    """Draw the probabilities of one depth."""
    x = np.array([cell["S"][0] for cell in cells])
    for name, (label, colour, line, marker) in STYLES.items():
        values = np.array([cell["settings"][setting]["projections"][name]["path"] for cell in cells])
        middle, ends = values[:, 0], np.abs(values[:, 1:] - values[:, :1]).T
        if not line:
            axes.plot(x, middle, marker, color=colour, markersize=7, markeredgewidth=1.1, label=label, zorder=4)
        else:
            axes.errorbar(
                x, middle, ends, fmt=marker + line, color=colour, markersize=4, capsize=2, label=label,
                markerfacecolor="white" if line == "--" else colour,
                # What lies on top of another is thinner.
                linewidth=3.2 if name in PAIRS.values() else 1.3, elinewidth=1.2,
                alpha=0.65 if name in PAIRS.values() else 1.0,
            )  # fmt: skip
    axes.set_ylim(-0.05, 1.07)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="0.92")


def _layers(axes: Axes, cell: Mapping[str, Any], setting: str) -> None:
    """Draw what is lost (upwards) and made up (downwards) in every layer, as part of its non-zeros."""
    held = cell["settings"][setting]
    entries = np.asarray(held["entries"], float)
    layers = np.arange(1, len(entries) + 1)
    width = 0.8 / len(BARS)
    largest = 0.0
    for at, name in enumerate(BARS):
        one = held["projections"][name]
        lost, made = (100 * np.asarray(one[count], float) / entries for count in ("misses", "false_alarms"))
        places = layers + (at - (len(BARS) - 1) / 2) * width
        colour = STYLES[name][1]
        axes.bar(places, lost, width, color=colour, edgecolor="white", linewidth=0.5)
        axes.bar(places, -made, width, color=colour, alpha=0.45, hatch="////", edgecolor="white", linewidth=0.5)
        largest = max(largest, float(np.max(made)))
    for layer, part in zip(layers, 100 * np.asarray(held["negative"]) / entries, strict=True):
        axes.plot([layer - 0.46, layer + 0.46], [part, part], color="black", linewidth=1.2)
    axes.plot([], [], color="black", linewidth=1.2, label="negative entries of $X^{(l)}$")
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_ylim(-max(15.0, 1.3 * largest), 112)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    axes.set_xticks(layers)
    axes.set_xlabel("layer $l$")
    axes.set_ylabel("% made up  |  % lost\nof the non-zeros of $X^{(l)}$")
    axes.set_title(f"$L$ = {cell['depth']}, $S$ = {cell['S'][0]:.1f}, layer by layer", fontsize=10)
    axes.grid(color="0.92", axis="y")
    axes.set_axisbelow(True)
