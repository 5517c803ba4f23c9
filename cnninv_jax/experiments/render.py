"""Figures, drawn from saved results only; the one module that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax._files import write_whole
from cnninv_jax.experiments.registry import Claim

if TYPE_CHECKING:
    import xarray as xr

#: Okabe and Ito's colours: told apart by most colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
#: Most bins drawn over the visible range of an output.
DRAWN_BINS = 70

#: Panels of the ratio figures: title, x label, and the outputs in it with their short names.
PANELS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("(a) model-RIP ratio", r"$\|W^T z\|_2\,/\,\|z\|_2$", {"model_rip": "all of $W$"}),
    (
        "(b) Gram ratio",
        r"$\|W W^T z\|_2\,/\,\|z\|_2$",
        {"restricted_gram": "rows in the support of $z$", "full_gram": "all rows"},
    ),
    (
        "(c) reconstruction error",
        r"$\|\hat x - x\|_2\,/\,\|x\|_2$",
        {
            "error_known_support": "support of $z$ known",
            "error_model": "own max-pooling switches",
            "error_fixed": "naive unsampling",
        },
    ),
)


def ratio_panels(
    dataset: xr.Dataset,
    claims: Mapping[str, Claim],
    title: str,
    subtitle: str,
    reference: xr.Dataset | None = None,
) -> Figure:
    """Draw the three panels of Gilbert et al. 2017, Fig. 2, in every reading.

    Args:
        dataset: a saved result with histograms of the outputs in `PANELS`.
        claims: the paper's claims, shaded.
        title: first line.
        subtitle: second line, smaller.
        reference: a second result, drawn as dashed outlines (random filters of the same size).
    """
    figure = Figure(figsize=(13.0, 4.3), layout="constrained")
    figure.suptitle(f"{title}\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.925, subtitle, ha="center", va="center", fontsize=9, color="0.3")
    for axes, (heading, label, outputs) in zip(figure.subplots(1, 3), PANELS, strict=True):
        draw_ratio_panel(axes, dataset, claims, heading, label, outputs, reference)
    return figure


def draw_ratio_panel(
    axes: Axes,
    dataset: xr.Dataset,
    claims: Mapping[str, Claim],
    heading: str,
    label: str,
    outputs: Mapping[str, str],
    reference: xr.Dataset | None = None,
) -> None:
    """Draw one panel: a density per output, the claim behind it."""
    sources = [(dataset, "")] + ([] if reference is None else [(reference, "random: ")])
    ranges = [visible_range(source, name) for source, _ in sources for name in outputs]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    margin = 0.04 * (high - low) or 0.05
    low, high = max(0.0, low - margin), high + margin
    shown: set[str] = set()
    for name in outputs:
        claim = claims.get(name)
        if claim is not None and claim.text not in shown:
            axes.axvspan(
                claim.low,
                claim.high,
                color="0.85",
                zorder=0,
                label=f"paper: {claim.text}\n(band: {claim.low:g} to {claim.high:g})",
            )
            shown.add(claim.text)
            low, high = min(low, claim.low), max(high, claim.high)
    for source, prefix in sources:
        for colour, (name, short) in zip(COLOURS, outputs.items(), strict=False):
            edges, density = rebinned(source, name)
            if reference is not None:
                # A narrow peak would flatten the others to a line.
                density = density / max(float(density.max()), 1e-300)
            mean, deviation = float(source[f"{name}_mean"]), float(source[f"{name}_standard_deviation"])
            text = f"{prefix}{short}: {mean:.3g} ± {deviation:.2g}"
            if prefix:
                axes.stairs(density, edges, color=colour, linestyle="--", linewidth=1.0, label=text)
            else:
                axes.stairs(density, edges, color=colour, fill=True, alpha=0.45)
                axes.stairs(density, edges, color=colour, linewidth=1.2, label=text)
    axes.set_xlim(low, high)
    # Headroom for the legend.
    axes.set_ylim(0.0, axes.get_ylim()[1] * (1.15 + 0.09 * len(axes.get_legend_handles_labels()[1])))
    axes.set_title(heading, fontsize=11)
    axes.set_xlabel(label)
    axes.set_ylabel("probability density" if reference is None else "density, each scaled to its peak")
    axes.legend(fontsize=8, loc="upper right", framealpha=0.9, title="mean ± standard deviation", title_fontsize=7)


def visible_range(dataset: xr.Dataset, name: str) -> tuple[float, float]:
    """Return where all but 2 in 10,000 of the histogrammed draws lie."""
    counts = dataset[f"{name}_histogram"].to_numpy().astype(float)
    lows, highs = dataset[f"{name}_bin_low"].to_numpy(), dataset[f"{name}_bin_high"].to_numpy()
    if counts.sum() == 0:
        return float(lows[0]), float(highs[-1])
    share = np.cumsum(counts) / counts.sum()
    first, last = int(np.searchsorted(share, 1e-4)), int(np.searchsorted(share, 1 - 1e-4))
    return float(lows[first]), float(highs[min(last, len(highs) - 1)])


def rebinned(dataset: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return edges and density of an output's histogram, bins joined to about `DRAWN_BINS` over its visible range."""
    counts = dataset[f"{name}_histogram"].to_numpy().astype(float)
    edges = np.append(dataset[f"{name}_bin_low"].to_numpy(), dataset[f"{name}_bin_high"].to_numpy()[-1])
    low, high = visible_range(dataset, name)
    # No finer than the draws support: a bin should hold some 30 of them around the mode.
    drawn = min(DRAWN_BINS, max(10, round(2.0 * counts.sum() ** (1 / 3))))
    step = max(1, round((high - low) / drawn / (edges[1] - edges[0])))
    starts = np.arange(0, len(counts), step)
    joined = np.add.reduceat(counts, starts)
    ends = np.append(edges[starts], edges[-1])
    total = float(dataset[f"{name}_count"])
    return ends, joined / (np.diff(ends) * max(total, 1.0))


def save_figure(figure: Figure, folder: Path, stem: str, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write a figure in several formats, each in one piece.

    Raises:
        OSError: a file cannot be written; nothing half-written is left.
    """
    import matplotlib as mpl

    written = []
    # Without date and with fixed ids, the same result gives the same file.
    with mpl.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
        for kind in formats:
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            written.append(write_whole(folder / f"{stem}.{kind}", drawn.getvalue()))
    return written
