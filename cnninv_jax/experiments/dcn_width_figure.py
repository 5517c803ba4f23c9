"""The figure of the study of width: reconstructions by CD1 of several widths (Random DCN, Fig. 6), and similarities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from cnninv_jax.experiments.dcn_panels import draw_curve, draw_grid, same_limits, short, subtitle

#: Headings of the readings, and labels of their horizontal axes.
TITLES = {
    "channels": ("width = channels", "channels of the hidden layers"),
    "dimension": ("width = channels and size of the maps", "channels at the size of the maps"),
}


def width_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw a row for every reading: typical reconstructions, the widest first as in the paper, beside the curve.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    found = report["findings"]
    last, readings = found["last"], list(found["readings"])
    names = [str(name) for name in dataset["shown"].to_numpy()]
    counts = [dataset.sizes[reading] for reading in readings]
    side = 1.4
    wide = side * (1 + max(counts)) + 0.8
    high = (side + 0.3) * len(names) + 0.9
    figure = Figure(figsize=(wide + 5.0, max(high, 4.0) * len(readings) + 0.7), layout="constrained")
    figure.suptitle(f"{report['source']}: CD1 with random weights\n{subtitle(report)}", fontsize=12)
    parts = figure.subfigures(len(readings), 1, squeeze=False)[:, 0]
    panels = []
    for part, reading in zip(parts, readings, strict=True):
        heading, label = TITLES[reading]
        left, right = part.subfigures(1, 2, width_ratios=(wide, 5.0))
        labels = [str(text).replace(": ", "\n") for text in dataset[reading].to_numpy()]
        # As in the paper, Conv1 first.
        order = range(len(labels)) if reading == "channels" else range(len(labels) - 1, -1, -1)
        rows = []
        for at, name in enumerate(names):
            texts = dataset[f"{reading}_shown_similarity_{last}"].to_numpy()[:, at]
            kind = "colour" if last == "conv" else "grey"
            outputs = dataset[f"{reading}_{kind}_{last}"].to_numpy()[:, at]
            cells = [("", dataset["original"].to_numpy()[at]), *((f"{texts[i]:.2f}", outputs[i]) for i in order)]
            rows.append((short(name), cells))
        left.suptitle(f"{heading}: reconstructions closest to the mean SSIM (above them)", fontsize=11)
        draw_grid(left, rows, ["picture", *(labels[i] for i in order)])
        axes = right.subplots()
        draw_curve(axes, found["variants"][reading][last], heading, label)
        short_labels = [text.split("\n")[-1].replace(" at ", "\nat ") for text in labels]
        axes.set_xticks(axes.get_xticks(), short_labels)
        panels.append(axes)
    same_limits(panels, ("upper left", "upper left")[: len(panels)])
    return figure
