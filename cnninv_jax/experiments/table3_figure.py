"""The figure beside Gilbert et al. 2017, Table 3, from the saved findings: errors by layer, and every reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from cnninv_jax.experiments.dcn_panels import draw_grid
from cnninv_jax.experiments.render import COLOURS
from cnninv_jax.experiments.table3_image_tables import IMAGE_LABELS, MAIN_IMAGES, SHOWN, printed_images
from cnninv_jax.experiments.table3_tables import LABELS, METHODS, printed, words


def table3_figure(report: Mapping[str, Any], dataset: Any = None) -> Figure:
    """Draw the errors of every layer beside the paper's (left), and all readings of the filters' columns (right).

    Where image space was asked for, its errors and decoded pictures (Figs. 4 and 5) stand below.

    Args:
        report: report.json.
        dataset: result.nc, where there is image space.
    """
    findings = report["findings"]
    images = findings.get("image_space")
    if images is None or dataset is None:
        figure = Figure(figsize=(14.0, 6.2), layout="constrained")
        _activations(figure, report, 0.928)
        return figure
    rows = len(images["layers"]) * dataset.sizes["shown_crop"]
    below = 1.2 * rows + 0.8
    figure = Figure(figsize=(14.0, 6.2 + below), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(6.2, below))
    _activations(parts[0], report, 0.928)
    left, right = parts[1].subfigures(1, 2, width_ratios=(1.15, 1.0))
    _decoded(left, dataset)
    _by_image(right.subplots(), images)
    return figure


def _activations(figure: Figure | SubFigure, report: Mapping[str, Any], height: float) -> None:
    findings = report["findings"]
    layers = findings["layers"]
    figure.suptitle(f"{report['source']}: {report['title']}\n\n", fontsize=13, fontweight="bold")
    origins = "; ".join(f"{found['input']}: {found['origin']}" for found in layers.values())
    subtitle = f"filters below f: {origins}; {len(findings['pictures'])} pictures ({_name(findings['source'])})"
    figure.text(0.5, height, subtitle, ha="center", va="center", fontsize=9, color="0.3")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.25))
    _by_layer(left, layers, findings["main_reading"])
    _by_reading(right, layers)


def _decoded(figure: SubFigure, dataset: Any) -> None:
    """Draw crops, and what the decoders make of what is given to them."""
    columns = ["picture", *(IMAGE_LABELS[name].replace(" ", "\n", 1) for name in SHOWN)]
    shown = dataset["shown"].to_numpy()
    given = np.isfinite(dataset["image_error"].sel(decoded_from=list(SHOWN)).to_numpy()).any(axis=(2, 3))
    rows = []
    for place, layer in enumerate(dataset["image_layer"].to_numpy()):
        for crop in range(shown.shape[2]):
            cells: list[tuple[str, np.ndarray | None]] = [("", shown[place, 0, crop])]
            cells += [("", shown[place, 1 + at, crop] if given[place, at] else None) for at in range(len(SHOWN))]
            rows.append((f"pool{layer}", cells))
    figure.suptitle("Pictures decoded with their own switches (Figs. 4 and 5)", fontsize=11)
    draw_grid(figure, rows, columns)


def _by_image(axes: Axes, images: Mapping[str, Any]) -> None:
    """Draw errors in image space with their intervals, and the printed numbers as open diamonds."""
    colours = dict(zip(SHOWN, (COLOURS[2], COLOURS[0], COLOURS[1], COLOURS[3]), strict=True))
    for at, method in enumerate(SHOWN):
        rows = [
            (place, layer, found["errors"][method][MAIN_IMAGES])
            for place, (layer, found) in enumerate(images["layers"].items())
            if method in found["errors"]
        ]
        if not rows:
            continue
        places = np.asarray([place for place, _, _ in rows]) + 0.16 * (at - 1.5)
        means = np.asarray([numbers["mean"] for _, _, numbers in rows])
        bounds = [numbers["interval_95"] for _, _, numbers in rows]
        half = np.abs(np.asarray([[np.nan if end is None else end for end in pair] for pair in bounds]).T - means)
        axes.errorbar(places, means, half, fmt="o", color=colours[method], capsize=4, label=IMAGE_LABELS[method])
        paper = [printed_images(int(layer), method) for _, layer, _ in rows]
        if paper[0] is not None:
            axes.plot(places, paper, "D", markerfacecolor="none", color=colours[method], markersize=9)  # type: ignore[arg-type]
    axes.plot([], [], "D", markerfacecolor="none", color="0.3", label="paper (another network)")
    axes.set_xticks(range(len(images["layers"])), [f"pool{layer}" for layer in images["layers"]])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer whose activations are decoded")
    axes.set_ylabel("relative error of the decoded picture, RGB")
    axes.set_title(f"image space: {images['network']}", fontsize=11)
    axes.legend(fontsize=8)


def _name(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1]


def _by_layer(axes: Axes, layers: Mapping[str, Any], reading: str) -> None:
    """Draw means with their intervals, and the printed numbers as open diamonds."""
    shown = [method for method in METHODS if any(method in found["errors"] for found in layers.values())]
    offsets = dict(zip(shown, np.linspace(-0.27, 0.27, len(shown)), strict=True))
    for colour, method in zip(COLOURS, METHODS, strict=True):
        rows = [
            (place, layer, found["errors"][method][reading])
            for place, (layer, found) in enumerate(layers.items())
            if method in found["errors"]
        ]
        if not rows:
            continue
        places = np.asarray([place for place, _, _ in rows]) + offsets[method]
        means = np.asarray([numbers["mean"] for _, _, numbers in rows])
        bounds = [numbers["interval_95"] for _, _, numbers in rows]
        half = np.abs(np.asarray([[np.nan if end is None else end for end in pair] for pair in bounds]).T - means)
        axes.errorbar(places, means, half, fmt="o", color=colour, capsize=4, label=LABELS[method])
        paper = [printed(int(layer), method) for _, layer, _ in rows]
        axes.plot(places, paper, "D", markerfacecolor="none", color=colour, markersize=9)
    axes.plot([], [], "D", markerfacecolor="none", color="0.3", label="paper")
    axes.axhline(np.sqrt(2.0), color="0.6", linewidth=0.8, linestyle=":", label=r"$\sqrt{2}$")
    axes.set_xticks(
        range(len(layers)), [f"{layer}: {found['input']}\n{found['filters']}" for layer, found in layers.items()]
    )
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(0.6, 2.1)
    axes.set_title(f"{words(reading)}", fontsize=11)
    axes.set_xlabel("layer i: f, and the filters that reconstruct it")
    axes.set_ylabel(r"$\|f - \hat f\|_2\,/\,\|f\|_2$")
    axes.legend(fontsize=8, loc="upper left", title="mean, 95% interval over pictures", title_fontsize=7)


def _by_reading(axes: Axes, layers: Mapping[str, Any]) -> None:
    """Draw differences from the printed numbers for every reading: colours for filters, digits for layers."""
    readings: list[str] = []
    for colour, method, lift in zip(COLOURS, METHODS[:-1], (0.2, 0.0, -0.2), strict=False):
        for layer, found in layers.items():
            errors = found["errors"].get(method)
            if errors is None:
                continue
            readings = list(errors)
            gaps = [errors[name]["mean"] - printed(int(layer), method) for name in readings]
            heights = np.arange(len(readings))[::-1] + lift
            axes.plot(gaps, heights, linestyle="none", marker=f"${layer}$", markersize=7, color=colour)
        if any(method in found["errors"] for found in layers.values()):
            axes.plot([], [], "s", color=colour, label=LABELS[method])
    axes.axvspan(-0.05, 0.05, color="0.88", zorder=0, label="within 0.05")
    axes.axvline(0.0, color="0.5", linewidth=0.8)
    axes.set_yticks(np.arange(len(readings))[::-1], [words(name) for name in readings], fontsize=8)
    axes.set_title("every reading (digits: layers)", fontsize=11)
    axes.set_xlabel(r"found less printed $\|f - \hat f\|_2\,/\,\|f\|_2$")
    axes.legend(fontsize=8, loc="lower right")
