"""What the figures of the studies of random reconstruction consist of: curves of similarity, and grids of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from cnninv_jax.experiments.render import COLOURS
from cnninv_jax.images import LUMINANCE

#: Corners for a legend.
Place: TypeAlias = Literal["upper left", "upper right", "lower left", "lower right"]
#: Most characters of a picture's name beside its row.
NAME_LENGTH = 16


def draw_curve(
    axes: Axes, found: Mapping[str, Any], title: str, label: str, limit: Mapping[str, Any] | None = None
) -> None:
    """Draw mean similarity against the settings: bars of deviation, a band of the mean's interval, a line per picture.

    Args:
        axes: to draw on.
        found: what was found of one variant, as saved.
        title: above it.
        label: of the horizontal axis.
        limit: of infinite width, as saved: one line if it belongs to all settings, a curve if each has its own.
    """
    seen = list(found["settings"].values())
    x = np.array([entry["place"] for entry in seen], float)
    mean, low, high, deviation = (
        np.array([np.nan if entry[name] is None else entry[name] for entry in seen], float)
        for name in ("mean", "low", "high", "networks")
    )
    by_picture = np.array([entry["by_picture"] for entry in seen])
    for column in by_picture.T[:60]:
        axes.plot(x, column, color="0.8", linewidth=0.7, zorder=1)
    axes.plot([], [], color="0.8", linewidth=0.7, label=f"each of {by_picture.shape[1]} pictures, mean over networks")
    axes.fill_between(
        x, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, zorder=2, label="95% interval of the mean"
    )
    axes.errorbar(
        x, mean, np.nan_to_num(deviation), fmt="o-", color=COLOURS[0], markersize=4.5, capsize=3, linewidth=1.4,
        zorder=3, label="mean ± standard deviation over networks",
    )  # fmt: skip
    if limit is not None:
        values = np.broadcast_to(np.asarray(limit["mean"], float), x.shape)
        axes.plot(x, values, "--", color=COLOURS[1], linewidth=1.5, zorder=3, label="infinitely wide: exact mean")
    axes.set_xticks(x, [entry["label"] for entry in seen])
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(label)
    axes.set_ylabel("SSIM (grey-scale)")
    axes.grid(color="0.93")


def same_limits(panels: Sequence[Axes], places: Sequence[Place]) -> None:
    """Give panels one vertical range that begins at zero, with a legend at a place of its own in each."""
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes, place in zip(panels, places, strict=True):
        axes.set_ylim(0.0, min(1.0, 1.22 * top))  # headroom for the legend
        axes.legend(fontsize=8, frameon=False, loc=place)


def draw_grid(
    figure: Figure | SubFigure,
    rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray | None]]]],
    columns: Sequence[str],
) -> None:
    """Draw rows of pictures.

    Args:
        figure: to draw on.
        rows: name, then text and picture of every column; a picture [H, W] or [3, H, W] of bytes, or
            None for an empty place.
        columns: headings, above the first row's texts.
    """
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for at, (line, (name, cells)) in enumerate(zip(panels, rows, strict=True)):
        for place, (axes, (text, picture)) in enumerate(zip(line, cells, strict=True)):
            head = f"{columns[place]}\n" if at == 0 else ""
            axes.set_title(f"{head}{text}", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            if picture is None:
                axes.set_frame_on(False)
                continue
            axes.imshow(
                picture if picture.ndim == 2 else np.moveaxis(picture, 0, -1), cmap="gray", vmin=0, vmax=255,
                interpolation="nearest",
            )  # fmt: skip
            for spine in axes.spines.values():
                spine.set_color("0.7")
        line[0].set_ylabel(name, fontsize=9)


def short(name: str) -> str:
    """Return a picture's name without its extension, cut where it is long."""
    stem = name.rsplit(".", 1)[0]
    return stem if len(stem) <= NAME_LENGTH else f"{stem[: NAME_LENGTH - 1]}…"


def grey_bytes(picture: np.ndarray) -> np.ndarray:
    """Return an RGB picture of bytes in grey, as `images.to_grey` weighs it."""
    return np.tensordot(np.asarray(LUMINANCE), picture.astype(float), axes=(0, 0))


def subtitle(report: Mapping[str, Any]) -> str:
    """Return pictures, networks and law in one line."""
    p, found = report["parameters"], report["findings"]
    return (
        f"{found['pictures']} pictures ({p['pictures']}) at {p['size']} x {p['size']}, {p['num_networks']} random "
        f"networks for each setting, {p['filters']} weights"
    )


__all__ = ["draw_curve", "draw_grid", "grey_bytes", "same_limits", "short", "subtitle"]
