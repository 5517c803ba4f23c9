"""The figure of the study of kernel sizes: similarity for both variants (Random DCN, Fig. 7c), and reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from cnninv_jax.experiments.dcn_panels import draw_curve, draw_grid, grey_bytes, same_limits, short, subtitle
from cnninv_jax.experiments.dcn_tables import VARIANTS


def kernel_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw similarity against kernel size for both variants, and reconstructions of typical similarity.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    found = report["findings"]
    columns = ["picture", *(f"{label} x {label}" for label in dataset["length"].to_numpy())]
    rows = []
    for at, name in enumerate(dataset["shown"].to_numpy()):
        original = grey_bytes(dataset["original"].to_numpy()[at])
        for variant in VARIANTS:
            texts = [f"{value:.2f}" for value in dataset[f"shown_similarity_{variant}"].to_numpy()[:, at]]
            outputs = dataset[f"grey_{variant}"].to_numpy()[:, at]
            rows.append((f"{short(str(name))}\n{variant}", [("", original), *zip(texts, outputs, strict=True)]))
    side = 1.25
    below = (side + 0.28) * len(rows) + 0.8
    figure = Figure(figsize=(max(11.0, 0.8 + side * len(columns)), 4.6 + below), layout="constrained")
    figure.suptitle(
        f"{report['source']}: Conv1_1-DeConv1_1 with random weights, {found['channels']} channels\n{subtitle(report)}",
        fontsize=12,
    )
    parts: Any = figure.subfigures(2, 1, height_ratios=(4.4, below))
    top, bottom = parts
    panels = top.subplots(1, 2)
    for axes, (variant, words) in zip(panels, VARIANTS.items(), strict=True):
        limit = None
        if variant == "mean" and found["limits"]:
            limit = {"mean": [entry["mean"] for entry in found["limits"]]}
        draw_curve(axes, found["variants"][variant], words, "kernel size (pixels)", limit)
    same_limits(panels, ("upper right", "lower left"))
    bottom.suptitle(
        "For each picture the reconstruction whose SSIM (above it) is closest to the mean over networks", fontsize=11
    )
    draw_grid(bottom, rows, columns)
    return figure
