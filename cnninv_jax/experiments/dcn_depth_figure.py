"""The figure of the study of depth: reconstructions by CD1 to CD5 (Random DCN, Fig. 5), and their similarity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from cnninv_jax.experiments.dcn_depth import UPSAMPLINGS
from cnninv_jax.experiments.dcn_panels import draw_curve, draw_grid, grey_bytes, same_limits, short, subtitle


def depth_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw reconstructions in colour and, as they are compared, in grey, beside the curve of similarity.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    found = report["findings"]
    labels = [str(label) for label in dataset["depth"].to_numpy()]
    rows = []
    for at, name in enumerate(dataset["shown"].to_numpy()):
        original = dataset["original"].to_numpy()[at]
        for way in found["variants"]:
            texts = [f"{value:.2f}" for value in dataset[f"shown_similarity_{way}"].to_numpy()[:, at]]
            for kind in ("colour", "grey") if found["last"] == "conv" else ("grey",):
                outputs = dataset[f"{kind}_{way}"].to_numpy()[:, at]
                first = original if kind == "colour" else grey_bytes(original)
                cells = [("", first), *zip(texts if kind == "grey" else [""] * len(texts), outputs, strict=True)]
                rows.append((f"{short(str(name))}\n{way}, {kind}", cells))
    side = 1.3
    high = (side + 0.26) * len(rows) + 0.7
    columns = ["picture", *labels]
    wide = side * len(columns) + 0.8
    figure = Figure(figsize=(wide + 4.6, max(high, 4.2) + 0.8), layout="constrained")
    figure.suptitle(f"{report['source']}: random weights, {found['widths']}\n{subtitle(report)}", fontsize=12)
    parts: Any = figure.subfigures(1, 2, width_ratios=(wide, 4.6))
    left, right = parts
    left.suptitle("Reconstructions closest to the mean SSIM (above the grey ones)", fontsize=11)
    draw_grid(left, rows, columns)
    panels = right.subplots(len(found["variants"]), 1, squeeze=False)[:, 0]
    for axes, (way, seen) in zip(panels, found["variants"].items(), strict=True):
        draw_curve(axes, seen, UPSAMPLINGS[way], "network")
        axes.set_box_aspect(1.0)
    same_limits(panels, ("upper right", "upper right")[: len(panels)])
    return figure
