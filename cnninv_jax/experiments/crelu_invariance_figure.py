"""The figure of the study of invariance scores, from its saved report: scores against layers, like Fig. 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.crelu_invariance_scores import KINDS, READINGS
from cnninv_jax.experiments.crelu_invariance_tables import OWN, title_of
from cnninv_jax.experiments.render import COLOURS

#: Label, colour and marker of a reading.
STYLES = {"relu": ("$[h]_+$", COLOURS[0], "o"), "crelu": ("$|h|$", COLOURS[1], "s")}


def invariance_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw, for every kind of network, both readings with intervals over the filters' spread, and the transformations.

    Args:
        report: the study's report.json as read back.
        dataset: not needed.
    """
    p, found = report["parameters"], report["findings"]
    kinds = list(found["networks"])
    figure = Figure(figsize=(max(4.4, 0.62 * len(found["outputs"])) * len(kinds) + 0.8, 7.6), layout="constrained")
    figure.suptitle(f"{report['source']}: invariance scores layer by layer\n\n\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.935, _subtitle(p, found), ha="center", va="center", fontsize=9, color="0.3")
    upper, lower = figure.subplots(2, len(kinds), squeeze=False, sharey="row", sharex="col")
    for top, bottom, kind in zip(upper, lower, kinds, strict=True):
        outputs = found["networks"][kind]["outputs"]
        _readings(top, outputs, OWN[kind])
        _transformations(bottom, outputs, OWN[kind], p)
        top.set_title(title_of(found, kind), fontsize=10)
        for axes in (top, bottom):
            for at, name in enumerate(outputs):
                if name.startswith("pool"):
                    axes.axvspan(at - 0.5, at + 0.5, color="0.95", zorder=0, linewidth=0)
            axes.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
            axes.grid(color="0.92", axis="y")
            axes.set_axisbelow(True)
        bottom.set_xticks(range(len(outputs)), list(outputs), rotation=45, ha="right", fontsize=9)
    for row, label in zip((upper, lower), ("mean over transformations", "by transformation"), strict=True):
        row[0].set_ylim(0, 1.35 * row[0].get_ylim()[1])  # headroom for the legends
        row[0].set_ylabel(f"invariance score $S = L/G$\n{label}")
        right = row[-1].secondary_yaxis("right", functions=(lambda s: s * p["rate"], lambda rate: rate / p["rate"]))
        right.set_ylabel(f"local firing rate $L$ at $G$ = {p['rate']:g}")
    return figure


def _subtitle(p: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    moved = f"shifts by {p['shift']} pixels" if p["translations"] == "shifts" else "crops of the four corners"
    return (
        f"{len(found['pictures'])} pictures ({_source(found)}), stimuli {p['size']} x {p['size']}; flip, rotation by "
        f"15°, {moved}; locations: {p['locations']}\nS over filters that fire at the rate {p['rate']:g}; 95% intervals "
        "over networks and pictures; dotted: unrelated stimuli"
    )


def _source(found: Mapping[str, Any]) -> str:
    return str(found["source"]).rstrip("/").rsplit("/", 1)[-1]


def _array(values: list[Any]) -> np.ndarray:
    return np.array([[np.nan if one is None else one for one in row] for row in values], float)


def _ends(outputs: Mapping[str, Any], reading: str, way: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, and how far their intervals reach below and above."""
    held = [output["readings"][reading]["transformations"][way]["score"] for output in outputs.values()]
    value, low, high = _array([[one[name] for name in ("value", "low", "high")] for one in held]).T
    return value, np.nan_to_num(np.stack([value - low, high - value]))


def _readings(axes: Axes, outputs: Mapping[str, Any], own: str) -> None:
    x = np.arange(len(outputs))
    for number, reading in enumerate(READINGS):
        label, colour, marker = STYLES[reading]
        place = x + (number - 0.5) * 0.26
        spread = _array([output["readings"][reading]["quantiles"] for output in outputs.values()])
        axes.vlines(place, spread[:, 0], spread[:, -1], color=colour, alpha=0.22, linewidth=2.0)
        axes.vlines(place, spread[:, 1], spread[:, 3], color=colour, alpha=0.22, linewidth=5.5)
        value, ends = _ends(outputs, reading, "all")
        words = f"{label}, appendix D's reading" if reading == own else label
        axes.errorbar(
            place, value, ends, fmt=marker + "-", color=colour, markersize=4.5, capsize=2.5, linewidth=1.2,
            markerfacecolor=colour if reading == own else "white", label=words,
        )  # fmt: skip
    axes.vlines([], [], [], color="0.5", alpha=0.5, linewidth=5.5, label="half of the filters")
    axes.vlines([], [], [], color="0.5", alpha=0.5, linewidth=2.0, label="nine in ten filters")
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)


def _transformations(axes: Axes, outputs: Mapping[str, Any], own: str, p: Mapping[str, Any]) -> None:
    x = np.arange(len(outputs))
    moved = f"shifts by {p['shift']}" if p["translations"] == "shifts" else "corner crops"
    words = {"flip": "flip", "rotation": "rotation by 15°", "translation": moved}
    for number, way in enumerate(KINDS[1:]):
        value, ends = _ends(outputs, own, way)
        axes.errorbar(
            x + (number - 1) * 0.14, value, ends, fmt="^vD"[number] + "-", markersize=4, capsize=2.5, linewidth=1.2,
            color=("black", COLOURS[2], COLOURS[3])[number], label=f"{words[way]}, {STYLES[own][0]}",
        )  # fmt: skip
    axes.legend(fontsize=8, frameon=False, loc="upper left")
