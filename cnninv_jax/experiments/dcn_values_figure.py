"""The figure of dcn-values: the picture, f*, and the outputs of finite networks, from the saved arrays."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import xarray as xr

#: Headings of the rows.
ROWS = {"l2": r"$\ell_2$ pooling", "average": "average pooling", "none": "no pooling"}
#: Inches of a picture.
SIDE = 2.3


def values_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw a row for each pooling: the picture, the outputs from narrow to wide, f*.

    Args:
        report: report.json as read back.
        dataset: its result.nc.
    """
    found, p = report["findings"], report["parameters"]
    widths = sorted(int(width) for width in dataset["width"].to_numpy())
    names = [str(name) for name in dataset["pooling"].to_numpy()]
    columns = 2 + len(widths)
    figure = Figure(figsize=(SIDE * columns + 0.3, (SIDE + 0.75) * len(names) + 0.9), layout="constrained")
    figure.suptitle(f"{report['source']}: outputs of random CNNs and their limit", fontsize=13, fontweight="bold")
    figure.supxlabel(_caption(p, found), fontsize=9, color="0.3")
    grid = figure.subplots(len(names), columns, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        held = found["networks"][name]
        cut = dataset.sel(pooling=name)
        _show(row[0], dataset["picture"].to_numpy(), "the picture", found["picture"])
        for axes, width in zip(row[1:-1], widths, strict=True):
            angles = held["widths"][str(width)]
            note = f"{_angle(angles['limit'])} to $f^*$\n{_angle(angles['picture'])} to the picture"
            _show(axes, cut["output"].sel(width=width).to_numpy(), f"$N$ = {width}", note)
        bound = "" if held["theorem_9"] is None else f"\n(Thm 9: at most {held['theorem_9']:.1f}°)"
        note = f"{held['limit_to_picture']:.2f}° to the picture{bound}"
        _show(row[-1], cut["limit"].to_numpy(), r"limit $f^*$, $N \to \infty$", note)
        row[0].set_ylabel(ROWS[name], fontsize=11)
    return figure


def _caption(p: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    channels = "in colour" if found["channels"] > 1 else "of the grey picture"
    lines = [
        f"{found['layers']}, mean over channels, {channels}; shown: the first of {p['num_draws']} draws, "
        "from the smallest value (black) to the largest",
        "angles: mean over the draws ± half of the 95% interval",
    ]
    if "upsample" in found["layers"]:
        lines[1] += r"; upsampling inserts zeros, and the lattice it leaves is in $f^*$ too"
    # Some twelve letters of this size are an inch wide.
    width = round(11 * SIDE * (2 + len(p["widths"])))
    return "\n".join(textwrap.fill(line, width) for line in lines)


def _angle(held: Mapping[str, float]) -> str:
    return f"{held['mean']:.2f} ± {(held['high'] - held['low']) / 2:.2f}°"


def _show(axes: Axes, values: np.ndarray, title: str, note: str) -> None:
    axes.imshow(values, cmap="gray", interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(note, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
