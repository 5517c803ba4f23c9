"""The figure of the pairing study, from its saved report: histograms of mu by layer, filters beside their pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS

#: Histograms side by side, pairs side by side, pairs at most.
COLUMNS, PAIRS_ACROSS, MOST_PAIRS = 4, 8, 96
#: Width of the lines between filters and between pairs, as parts of a filter's side.
THIN, WIDE = 0.06, 0.35


def pairing_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw a histogram for every layer, and below it the filters that can be seen beside their pairing filters.

    Args:
        report: the study's report.json as read back.
        dataset: filters that can be seen, or None.
    """
    found = report["findings"]
    layers = found["layers"]
    held = {} if dataset is None else dataset
    seen = [place for place in range(len(layers)) if f"filters_{place}" in held]
    across = 3 if len(layers) in (3, 5, 6) else min(COLUMNS, max(len(layers), 2))
    rows = math.ceil(len(layers) / across)
    # Wide enough for the title and the legend.
    width = max(3.6 * across, 9.6)
    mosaics = [_mosaic(np.asarray(held[f"filters_{place}"]), layers[place], len(seen)) for place in seen]
    heights = [3.1 * rows + 1.1]
    if seen:
        tallest = max(mosaic.shape[0] / mosaic.shape[1] for mosaic, _ in mosaics)
        heights.append(0.96 * width / len(seen) * tallest + 0.75)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.02, squeeze=False)[:, 0]
    where = "learned from patches of pictures, and planted" if found["source"] is None else found["source"]
    parts[0].suptitle(
        f"Lowest cosine of every filter with another one:\n{where.rsplit('/', 1)[-1]}", fontsize=13, fontweight="bold"
    )
    grid = parts[0].subplots(rows, across, squeeze=False)
    for place, axes in enumerate(grid.ravel()):
        if place < len(layers):
            _histogram(axes, layers[place], found["num_draws"])
        else:
            axes.set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    parts[0].legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    if seen:
        for place, axes, drawn in zip(seen, parts[1].subplots(1, len(seen), squeeze=False)[0], mosaics, strict=True):
            _filters(axes, layers[place], *drawn)
    return figure


def _histogram(axes: Axes, layer: Mapping[str, Any], draws: int) -> None:
    held = layer["histogram"]
    edges = np.asarray(held["edges"])
    low, high = np.asarray(held["random_low"]), np.asarray(held["random_high"])
    axes.stairs(
        100 * np.asarray(held["filters"]), edges, fill=True, color=COLOURS[0], alpha=0.55, label="these filters"
    )
    axes.stairs(100 * np.asarray(held["random"]), edges, color=COLOURS[1], linewidth=1.4, label="random, mean of banks")
    axes.stairs(
        100 * high, edges, baseline=100 * low, fill=True, color=COLOURS[1], alpha=0.22, linewidth=0,
        label="95% of random banks, by bin",
    )  # fmt: skip
    axes.stairs(
        100 * np.asarray(held["signs"]), edges, color="0.25", linestyle="--", linewidth=1.1,
        label="these filters with new signs",
    )  # fmt: skip
    axes.axvline(layer["mean"], color=COLOURS[0], linewidth=1.2)
    axes.axvline(layer["random"]["mean"], color=COLOURS[1], linewidth=1.2)
    size = " x ".join(map(str, layer["shape"])) + (f", {layer['groups']} groups" if layer["groups"] > 1 else "")
    axes.set_title(f"{layer['layer']}\n{size}", fontsize=10)
    axes.set_xlabel(r"$\mu_i = \min_{j \neq i} \langle \phi_i, \phi_j \rangle$")
    axes.set_ylabel("% of filters")
    axes.margins(x=0)
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])
    axes.text(
        0.03, 0.97,
        f"mean {layer['mean']:.3f}, random {layer['random']['mean']:.3f}\n"
        f"p {_p(layer['random']['p_lower'], draws)}, Cliff's δ = {layer['random']['cliffs_delta']:+.2f}\n"
        f"new signs {layer['signs']['mean']:.3f}, p {_p(layer['signs']['p_lower'], draws)}",
        transform=axes.transAxes, va="top", fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )  # fmt: skip
    axes.grid(color="0.93")
    axes.set_axisbelow(True)


def _p(value: float, draws: int) -> str:
    """Return a p-value; the smallest that so many draws can give is a bound."""
    return f"≤ {value:.2g}" if value * (draws + 1) < 1.5 else f"= {value:.2g}"


def _filters(axes: Axes, layer: Mapping[str, Any], mosaic: np.ndarray, ends: tuple[float, float, int]) -> None:
    """Draw each filter (left) beside its pairing filter (right), lowest cosine first."""
    axes.imshow(mosaic, cmap="gray", interpolation="nearest")
    axes.set_axis_off()
    some = "all" if ends[2] == layer["filters"] else f"the {ends[2]} lowest of"
    axes.set_title(
        f"{layer['layer']}: filter | pairing filter, {some} {layer['filters']},\n"
        f"cosine {ends[0]:.2f} (top left) to {ends[1]:.2f} (bottom right)",
        fontsize=10,
    )


def _mosaic(filters: np.ndarray, layer: Mapping[str, Any], beside: int) -> tuple[np.ndarray, tuple[float, float, int]]:
    """Return one picture of pairs, [H, W, 3] or [H, W], its first and last cosine, and how many there are.

    Grey is 0; each filter is scaled to its own largest entry.
    """
    mu = np.array([np.nan if value is None else value for value in layer["mu"]], float)
    pairs = np.asarray(layer["pairs"])
    order = [int(i) for i in np.argsort(np.where(np.isnan(mu), np.inf, mu), kind="stable") if pairs[i] >= 0]
    order = order[:MOST_PAIRS]
    magnify = max(1, round(12 / max(filters.shape[2:])))
    tall, broad = (side * magnify for side in filters.shape[2:])
    thin, wide = max(1, round(THIN * broad)), max(2, round(WIDE * broad))
    across = min(2 * PAIRS_ACROSS if beside == 1 else PAIRS_ACROSS, len(order))
    down = math.ceil(len(order) / across)
    channels = filters.shape[1]
    # A margin on either side keeps two pictures apart.
    picture = np.ones((down * (tall + wide) - wide, across * (2 * broad + thin + wide) + wide, channels))
    for place, i in enumerate(order):
        top = (place // across) * (tall + wide)
        for side, one in enumerate((i, int(pairs[i]))):
            left = wide + (place % across) * (2 * broad + thin + wide) + side * (broad + thin)
            shown = 0.5 + 0.5 * filters[one] / max(float(np.abs(filters[one]).max()), 1e-30)
            large = np.kron(np.moveaxis(shown, 0, -1), np.ones((magnify, magnify, 1)))
            picture[top : top + tall, left : left + broad] = large
    ends = (float(mu[order[0]]), float(mu[order[-1]]), len(order))
    return (picture if channels == 3 else picture[..., 0]), ends
