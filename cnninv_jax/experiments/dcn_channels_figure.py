"""The figure of the study of channels: Figs. 7a and 7b of Random DCN above, Fig. 8 below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from cnninv_jax.experiments.dcn_panels import draw_curve, draw_grid, grey_bytes, same_limits, short, subtitle
from cnninv_jax.experiments.dcn_tables import VARIANTS


def channels_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw similarity against channels for both variants, and reconstructions of typical similarity.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    found = report["findings"]
    labels = [str(label) for label in dataset["channels"].to_numpy()]
    with_limit = "limit" in dataset
    columns = ["picture", *labels, *(["infinite"] if with_limit else [])]
    rows = []
    for at, name in enumerate(dataset["shown"].to_numpy()):
        original = grey_bytes(dataset["original"].to_numpy()[at])
        for variant in VARIANTS:
            similar = dataset[f"shown_similarity_{variant}"].to_numpy()[:, at]
            outputs = dataset[f"grey_{variant}"].to_numpy()[:, at]
            cells = [("", original), *((f"{value:.2f}", map_) for value, map_ in zip(similar, outputs, strict=True))]
            if with_limit and variant == "mean":
                cells.append((f"{found['limit']['by_picture'][at]:.2f}", dataset["limit"].to_numpy()[at]))
            elif with_limit:
                cells.append(("", None))
            rows.append((f"{short(str(name))}\n{variant}", cells))
    side = 1.25
    width = max(11.0, 0.8 + side * len(columns))
    below = (side + 0.28) * len(rows) + 0.8
    figure = Figure(figsize=(width, 4.6 + below), layout="constrained")
    figure.suptitle(f"{report['source']}: {found['architecture']} with random weights\n{subtitle(report)}", fontsize=12)
    parts: Any = figure.subfigures(2, 1, height_ratios=(4.4, below))
    top, bottom = parts
    panels = top.subplots(1, 2)
    for axes, (variant, words), letter in zip(panels, VARIANTS.items(), "ab", strict=True):
        limit = found["limit"] if variant == "mean" else None
        draw_curve(axes, found["variants"][variant], f"({letter}) {words}", "channels of every hidden layer", limit)
    same_limits(panels, ("upper left", "lower right"))
    bottom.suptitle(
        "For each picture the reconstruction whose SSIM (above it) is closest to the mean over networks", fontsize=11
    )
    draw_grid(bottom, rows, columns)
    return figure
