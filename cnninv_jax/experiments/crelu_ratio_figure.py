"""The figure of crelu-ratio, from its saved report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.crelu_ratio_tables import PRINTED, RANDOM, ROUNDED, readings
from cnninv_jax.experiments.render import COLOURS

#: Colour and marker of the paper's two layers.
LAYERS = {"conv2": (COLOURS[0], "o"), "conv5": (COLOURS[1], "s")}
#: Colour and marker of filters.
FILTERS = {"learned": (COLOURS[2], "o"), "random": (COLOURS[0], "s")}
#: Readings in the figure's words, in the table's order.
WORDS = (
    "C.1: D, K as in the text", "C.1: D of Table S3, K columns", "C.1: D as in the text, 2K columns",
    "C.1: D of Table S3, 2K columns", "white x: K columns at drawn shifts", "white x: Algorithm 2, M as in the text",
    "white x: Algorithm 2, M of Table S3", "features: K columns at drawn shifts", "features: Algorithm 2",
)  # fmt: skip


def ratio_figure(report: Mapping[str, Any]) -> Figure:
    """Draw Theorem C.1, the readings of Table S1, the layers of the network, and Theorem A.5.

    Args:
        report: the study's report.json as read back.
    """
    p, found = report["parameters"], report["findings"]
    figure = Figure(figsize=(14.5, 10.0), layout="constrained")
    figure.suptitle(f"{report['title']}\n", fontsize=13, fontweight="bold")
    source = "random filters" if p["weights"] is None else str(p["weights"]).rsplit("/", 1)[-1]
    pictures = "embedded" if p["pictures"] == "embedded" else str(p["pictures"]).rstrip("/").rsplit("/", 1)[-1]
    figure.text(
        0.5, 0.962,
        f"{report['source']}; {source}, {len(found['pictures'])} pictures ({pictures}) at {p['picture_size']} x "
        f"{p['picture_size']}; bars: 95% intervals",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    grid = figure.subplots(2, 2, gridspec_kw={"width_ratios": [1, 1.15]})
    _theorem(grid[0, 0], found["theorem"])
    _readings(grid[0, 1], found)
    _layers(grid[1, 0], found["features"])
    _bounds(grid[1, 1], found["bounds"])
    return figure


def _theorem(axes: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    """Draw means of |x_s| / |x| relative to the exact ones, in percent."""
    places = np.arange(len(entries))
    for name, offset, colour, marker, label in (
        ("direction", -0.1, COLOURS[0], "o", "simulated: uniform directions"),
        ("projection", 0.1, COLOURS[2], "s", "simulated: Algorithm 1"),
    ):
        held = [(place, entry["kept"]) for place, entry in enumerate(entries) if name in entry["kept"]]
        values = np.array(
            [[100 * (cell[name][end] / cell["exact"] - 1) for end in ("mean", "low", "high")] for _, cell in held]
        )
        axes.errorbar(
            [place + offset for place, _ in held], values[:, 0], np.abs(values[:, 1:] - values[:, :1]).T, fmt=marker,
            color=colour, capsize=3, markersize=5, label=label,
        )  # fmt: skip
    printed = [100 * (entry["kept"]["printed"] / entry["kept"]["exact"] - 1) for entry in entries]
    axes.plot(
        places, printed, "_", color=COLOURS[1], markersize=22, markeredgewidth=2.2, label=r"printed: $\sqrt{K/D}$"
    )
    axes.axhline(0, color="0.2", linewidth=1.0, label="exact")
    axes.set_xticks(places, [f"{entry['D']}\n{entry['K']}" for entry in entries], fontsize=9)
    axes.set_xlabel("D (above), K (below)")
    axes.set_ylabel(r"mean of $\|x_s\|/\|x\|$ less exact (%)")
    axes.set_title("Theorem C.1: what a random subspace keeps", fontsize=11)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))
    axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    axes.grid(color="0.93")


def _readings(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw what every reading of Table S1 gives for random filters, beside the printed number."""
    rows = list(readings(found))
    places = np.arange(len(rows))[::-1]
    axes.axvspan(*ROUNDED, color="0.88", zorder=0, label=f"printed as {RANDOM}")
    for at, (name, (colour, marker)) in enumerate(LAYERS.items()):
        shift = 0.13 if at == 0 else -0.13
        held = [(place, cells[at]) for place, (_, cells) in zip(places, rows, strict=True) if cells[at] is not None]
        values = np.array([[cell[end] for end in ("mean", "low", "high")] for _, cell in held if cell is not None])
        axes.errorbar(
            values[:, 0], [place + shift for place, _ in held], xerr=np.abs(values[:, 1:] - values[:, :1]).T,
            fmt=marker, color=colour, capsize=3, markersize=5, label=name,
        )  # fmt: skip
    axes.set_yticks(places, WORDS[: len(rows)], fontsize=9)
    axes.set_ylim(-0.7, len(rows) + 0.6)
    axes.set_xlabel(r"mean of $\|x - x'\|/\|x\|$ over one pooling region")
    axes.set_title(f"What the {RANDOM} of Table S1 (random filters) agrees with", fontsize=11)
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=3)
    axes.grid(color="0.93")


def _layers(axes: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    """Draw the ratios of every layer, over one region and over the whole input, with learned and random filters."""
    labelled: set[str] = set()
    names = [entry["layer"] for entry in entries]
    for place, entry in enumerate(entries):
        for kind, held in entry["kinds"].items():
            colour, marker = FILTERS[kind]
            for leaf, offset, face, words in (
                ("ratio", -0.16, colour, "one pooling region"),
                ("whole_ratio", 0.16, "white", "whole input"),
            ):
                cell, label = held[leaf], f"{kind} filters, {words}"
                x = place + offset + (0.06 if kind == "random" else -0.06)
                axes.plot([x] * len(held["by_picture"][leaf]), held["by_picture"][leaf], "_", color="0.75", zorder=1)
                ends = np.nan_to_num([[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]])
                axes.errorbar(
                    x, cell["mean"], ends, fmt=marker, color=colour, markerfacecolor=face, capsize=3, markersize=6,
                    label=None if label in labelled else label,
                )  # fmt: skip
                labelled.add(label)
        if set(entry["kinds"]) == {"random"} and entry["layer"] in PRINTED:
            learned, _, random = PRINTED[entry["layer"]]
            for value, words in ((learned, "printed: learned (CIFAR-10)"), (random, "printed: random")):
                axes.plot(
                    [place - 0.4, place + 0.02], [value, value], color="0.2", linewidth=1.1,
                    linestyle="--" if "learned" in words else "-", label=None if words in labelled else words,
                )  # fmt: skip
                labelled.add(words)
    axes.plot([], [], "_", color="0.75", label="each picture")
    axes.set_xticks(range(len(names)), [f"{e['layer']}\n({e['enters']})" for e in entries], fontsize=9)
    axes.set_xlim(-0.6, len(names) - 0.4)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.45 * (high - low))
    axes.set_ylabel(r"mean of $\|x - x'\|/\|x\|$, Algorithm 2")
    axes.set_title("What pooled features give back of a layer's input", fontsize=11)
    axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    axes.grid(color="0.93", axis="y")


def _bounds(axes: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    """Draw how far the bound of Theorem A.5 is above the ratio, as shares of all draws: none is off the panel."""
    for at, entry in enumerate(entries):
        held = entry["histogram"]
        share = 100 * np.cumsum([held["below"], *held["counts"]]) / entry["draws"]
        label = f"{entry['title']}: {entry['violated']} of {entry['draws']:,} violated"
        axes.plot(
            10 ** np.asarray(held["edges"]), share, color=COLOURS[at], linewidth=1.6,
            linestyle="-" if entry["satisfies"] else "--", label=label,
        )  # fmt: skip
    axes.axvline(1.0, ymax=100 / 142, color="0.2", linewidth=1.0)
    axes.annotate("violated", (0.93, 92), ha="right", fontsize=8, color="0.3")
    axes.set_xscale("log")
    axes.set_ylim(-2, 140)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("bound / ratio (an exact reconstruction has no finite one)")
    axes.set_ylabel("% of draws at or below")
    axes.set_title(r"Theorem A.5: bound over $\|x - x'\|/\|x\|$", fontsize=11)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    axes.grid(color="0.93")
