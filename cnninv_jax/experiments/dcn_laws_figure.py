"""The figure of dcn-laws, from its saved report: simulated means over f*, against the kernel size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.dcn_laws_tables import READINGS
from cnninv_jax.experiments.render import COLOURS

#: Colour and marker of a law.
STYLES = dict(zip(("gaussian", "sphere", "uniform", "logistic", "laplace"),
                  zip(("0.25", *COLOURS), "os^Dv", strict=True), strict=True))  # fmt: skip


def laws_figure(report: Mapping[str, Any]) -> Figure:
    """Draw ratios of one convolution against the kernel size and of two convolutions beside each other.

    Args:
        report: report.json as read back.
    """
    found = report["findings"]
    columns = (*found["inputs"], "networks")
    figure = Figure(figsize=(4.6 * len(columns), 8.0), layout="constrained")
    figure.suptitle(f"{report['source']}: what other laws make of f*\n", fontsize=13, fontweight="bold")
    figure.text(
        0.5, 0.945, f"simulated mean output / f*; {found['num_filters']:,} filters and their negatives a point, 95% "
        "intervals; lines: exact",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    grid = figure.subplots(len(READINGS), len(columns), sharey=True, squeeze=False)
    for row, (reading, label) in zip(grid, READINGS.items(), strict=True):
        for axes, name in zip(row, columns, strict=True):
            axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
            if name == "networks":
                _networks(axes, found, reading)
                heading = "two convolutions, pooling between"
            else:
                _kernels(axes, found, name, reading)
                heading = f"one convolution, input: {name}"
            axes.set_title(f"{heading}\nf* with {label.replace('k_m', '$k_m$')}", fontsize=10)
            axes.grid(axis="y", color="0.92")
            axes.tick_params(labelsize=8)
        row[0].set_ylabel("mean output / f*")
    grid[0][0].legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    low, high = grid[0][0].get_ylim()
    grid[0][0].set_ylim(low, high + 0.12 * (high - low))
    return figure


def _kernels(axes: Axes, found: Mapping[str, Any], name: str, reading: str) -> None:
    """Draw a law after the other, a little apart, so that points of equal height can be told."""
    places = np.arange(len(found["kernels"]), dtype=float)
    for index, law in enumerate(found["laws"]):
        colour, marker = STYLES[law]
        held = found["answers"][law][name][reading]
        at = places + 0.06 * (index - (len(found["laws"]) - 1) / 2)
        axes.plot(at, [entry["exact"] for entry in held], color=colour, linewidth=1.0)
        _points(axes, at, held, colour, marker, law)
    axes.set_xticks(places, [f"{side} x {side}" for side in found["kernels"]])
    axes.set_xlabel("kernel (pixels)")


def _networks(axes: Axes, found: Mapping[str, Any], reading: str) -> None:
    any_law = found["networks"][found["laws"][0]]
    cases = [(kind, name) for kind, inputs in any_law.items() for name in inputs]
    places = np.arange(len(cases), dtype=float)
    for index, law in enumerate(found["laws"]):
        colour, marker = STYLES[law]
        held = [found["networks"][law][kind][name][reading] for kind, name in cases]
        at = places + 0.13 * (index - (len(found["laws"]) - 1) / 2)
        for place, entry in zip(at, held, strict=True):
            if "exact" in entry:
                axes.plot([place - 0.06, place + 0.06], [entry["exact"]] * 2, color=colour, linewidth=1.0)
        _points(axes, at, held, colour, marker, law)
    axes.set_xticks(places, [f"{kind},\n{name}" for kind, name in cases], fontsize=8)
    axes.set_xlim(-0.5, len(cases) - 0.5)


def _points(axes: Axes, at: np.ndarray, held: list[Mapping[str, float]], colour: str, marker: str, label: str) -> None:
    ratio, low, high = (np.array([entry[name] for entry in held]) for name in ("ratio", "low", "high"))
    axes.errorbar(at, ratio, [ratio - low, high - ratio], fmt=marker, color=colour, markersize=4, capsize=2,
                  linewidth=1.0, label=label)  # fmt: skip
