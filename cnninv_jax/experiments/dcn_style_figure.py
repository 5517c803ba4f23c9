"""The figure of the study of style transfer: pictures along the content weight, and the loss against seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cnninv_jax.experiments.dcn_panels import draw_grid, short
from cnninv_jax.experiments.render import COLOURS


def style_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw content, style and the sweep for every rrVGG and style, that of pixels below, and losses against seconds.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    found, p = report["findings"], report["parameters"]
    weights = dataset["weight"].to_numpy()
    names = [short(name) for name in found["styles"]]
    content, styles = dataset["content"].to_numpy(), dataset["style_picture"].to_numpy()
    features, pixels = dataset["features"].to_numpy(), dataset["pixels"].to_numpy()
    sweeps = [("features", seed, place) for place in range(len(names)) for seed in range(len(features))]
    sweeps += [("pixels", 0, place) for place in range(len(names))]
    rows = []
    for variable, seed, place in sweeps:
        sweep = features[seed, place] if variable == "features" else pixels[place]
        cells = [
            (f"SSIM {found['cells'][f'{variable}-seed{seed}-style{place}-weight{weight:g}']['ssim']:.2f}", picture)
            for weight, picture in zip(weights, sweep, strict=True)
        ]
        label = f"rrVGG {seed + 1}" if variable == "features" else "pixels"
        rows.append((label, [("", content), (names[place], styles[place]), *cells]))
    columns = ["content", "style", *(f"weight {weight:g}" for weight in weights)]
    side = 1.3
    below = (side + 0.28) * len(rows) + 0.5
    figure = Figure(figsize=(max(8.5, 0.8 + (side + 0.1) * len(columns)), below + 3.8), layout="constrained")
    figure.suptitle(
        f"{report['source']}\n{p['channels']} random channels, {p['size']} x {p['size']}, {p['steps']} steps of Adam; "
        "content weight from left to right",
        fontsize=11,
    )
    parts: Any = figure.subfigures(2, 1, height_ratios=(below, 3.3))
    draw_grid(parts[0], rows, columns)
    axes = parts[1].subplots()
    for colour, variable in zip(COLOURS, ("features", "pixels"), strict=False):
        cells = [cell for cell in found["cells"].values() if cell["variable"] == variable and cell["seed"] == 0]
        for at, cell in enumerate(cells):
            total = np.asarray(cell["total"], float)
            seconds = np.linspace(0, cell["seconds"], len(total))
            axes.plot(seconds, total, color=colour, linewidth=1.1, alpha=0.75, label=None if at else variable)
    axes.set_yscale("log")
    axes.set_xlabel("seconds of steps, without compilation")
    axes.set_ylabel("total loss / at the start")
    axes.set_title("First rrVGG: a line per style and content weight", fontsize=10)
    axes.grid(color="0.93")
    axes.legend(fontsize=9, frameon=False, loc="upper right")
    return figure


__all__ = ["style_figure"]
