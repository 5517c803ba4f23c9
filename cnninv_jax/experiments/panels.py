"""The figure of `cnninv analyze`, from its saved report and draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS, PANELS, draw_ratio_panel

if TYPE_CHECKING:
    import xarray as xr

_BINS = 2000


def analysis_figure(report: Mapping[str, Any], own: xr.Dataset, random: xr.Dataset) -> Figure:
    """Draw norms, angles and frame bounds (top) and the ratios (bottom) beside those of random filters.

    Args:
        report: report.json.
        own: draws with these filters.
        random: draws with random filters.
    """
    shape, setting, origin = report["shape"], report["setting"], report["origin"]
    figure = Figure(figsize=(16.0, 8.4), layout="constrained")
    name = Path(origin["source"]).name + ("" if origin["tensor"] is None else f" : {origin['tensor']}")
    figure.suptitle(f"{name}\n", fontsize=13, fontweight="bold")
    size = " x ".join(str(entry) for entry in (shape["K"], shape["M"], *shape["ell"]))
    pool = "whole responses" if setting["pool"] is None else f"{'x'.join(map(str, setting['pool']))} pooling"
    figure.text(
        0.5, 0.958,
        f"K x M x l = {size}; signal {'x'.join(map(str, setting['signal']))}, stride {setting['stride'][0]}, "
        f"{setting['padding']} padding, {pool}, k = {setting['k']} of {setting['blocks']} blocks; "
        f"{'unit-norm filters' if setting['normalize'] else 'filters as given'}; {setting['num_draws']:,} draws; "
        "dashed: Gaussian random filters of the same size",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    grid = figure.add_gridspec(2, 12)
    for place, panel in enumerate((_norms, _cosines, _pairing, _bounds)):
        panel(figure.add_subplot(grid[0, 3 * place : 3 * place + 3]), report)
    mine, beside = _with_histograms(own), _with_histograms(random)
    for place, (heading, label, outputs) in enumerate(PANELS):
        axes = figure.add_subplot(grid[1, 4 * place : 4 * place + 4])
        draw_ratio_panel(axes, mine, {}, heading, label, outputs, beside)
    return figure


def _norms(axes: Axes, report: Mapping[str, Any]) -> None:
    norms = np.asarray(report["norms"]["values"], float)
    spread = norms.max() - norms.min()
    # A bank whose norms differ by rounding only is one bar.
    bins: Any = (
        np.array([0.9, 1.1]) * norms.mean() if spread <= 1e-6 * norms.mean() else min(40, max(5, len(norms) // 4))
    )
    axes.hist(norms, bins=bins, color=COLOURS[0], alpha=0.6)
    axes.axvline(norms.mean(), color="0.2", linewidth=1.0, label=f"mean {norms.mean():.4g}")
    axes.set_title("filter norms, as given", fontsize=11)
    axes.set_xlabel(r"$\|w_i\|_2$")
    axes.set_ylabel("filters")
    axes.legend(fontsize=8, frameon=False)


def _cosines(axes: Axes, report: Mapping[str, Any]) -> None:
    cosines = report["cosines"]
    edges = np.asarray(cosines["edges"])
    for kind, colour, style in (("filters", COLOURS[0], "-"), ("random", "0.3", "--")):
        counts = np.asarray(cosines[kind], float)
        label = "these filters" if kind == "filters" else "random"
        axes.stairs(
            np.maximum(counts, 0.5), edges, color=colour, linestyle=style, label=f"{label}: {counts.sum():,.0f} pairs"
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_title("pairs of filters, same shift", fontsize=11)
    axes.set_xlabel(r"$|\langle w_i, w_j\rangle|\,/\,(\|w_i\|\,\|w_j\|)$")
    axes.set_ylabel("pairs per 0.01")
    axes.legend(fontsize=8, frameon=False)


def _pairing(axes: Axes, report: Mapping[str, Any]) -> None:
    """Draw the lowest cosine of every filter, beside that of all random banks together."""
    found = report["pairing"]
    axes.set_title("lowest cosine of a filter, same shift", fontsize=11)
    axes.set_xlabel(r"$\mu_i = \min_{j \neq i}\,\langle w_i, w_j\rangle\,/\,(\|w_i\|\,\|w_j\|)$")
    axes.set_ylabel("% of filters")
    if found is None:
        axes.text(0.5, 0.5, "none: fewer than two filters", transform=axes.transAxes, ha="center", color="0.3")
        return
    edges, mine, random = (np.asarray(found[name]) for name in ("edges", "filters", "random"))
    axes.stairs(
        100 * mine, edges, fill=True, color=COLOURS[0], alpha=0.6, label=f"these filters: mean {found['mean']:.3f}"
    )
    axes.stairs(
        100 * random, edges, color="0.3", linestyle="--",
        label=f"random: mean {found['random_mean']:.3f}; lower: p = {found['p_lower']:.2g}",
    )  # fmt: skip
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _bounds(axes: Axes, report: Mapping[str, Any]) -> None:
    labels = {
        "coherence_filters": "coherence,\nsame shift", "coherence_shifts": "coherence,\nall shifts",
        "frame_lower": "frame bound A", "frame_upper": "frame bound B",
    }  # fmt: skip
    lower = report["compared"]["frame_lower"]["filters"]
    if lower is not None and report["frame_residuals"]["lower"] > 0.1 * lower:
        labels["frame_lower"] += ",\nat most"
    rows = [(label, report["compared"][name]) for name, label in labels.items() if name in report["compared"]]
    places = np.arange(len(rows))[::-1]
    for kind, height, offset, colour in (("filters", 0.36, 0.2, COLOURS[0]), ("random_mean", 0.36, -0.2, "0.6")):
        values = [entry[kind] for _, entry in rows]
        errors = None if kind == "filters" else [entry["random_standard_deviation"] for _, entry in rows]
        label = (
            "these filters" if kind == "filters" else f"random, mean ± sd of {report['setting']['random_banks']} banks"
        )
        axes.barh(places + offset, values, height, xerr=errors, color=colour, label=label)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.4g}", (max(value, 0.0), place + offset), textcoords="offset points", xytext=(14, 0),
                va="center", fontsize=8,
            )  # fmt: skip
    axes.set_xscale("symlog", linthresh=1.0)
    most = max(1.0, *(max(entry["filters"], entry["random_mean"]) for _, entry in rows))
    # A fifth of the axis for the numbers beside the bars: it is one unit up to 1 and one for every decade above.
    axes.set_xlim(0.0, max(3.0 * most, 10.0 ** ((1.0 + np.log10(most)) / 0.8 - 1.0)))
    axes.set_ylim(-0.6, len(rows) + 0.25)
    axes.set_yticks(places, [label for label, _ in rows], fontsize=9)
    axes.set_title(r"coherence and $A\|x\|^2 \leq \|W x\|^2 \leq B\|x\|^2$", fontsize=11)
    axes.set_xlabel("value (linear to 1, then logarithmic)")
    axes.legend(fontsize=8, frameon=False, loc="upper right")


def _with_histograms(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with histograms of its kept draws over their own ranges."""
    added = dataset.load().copy()
    for name in (name for _, _, outputs in PANELS for name in outputs):
        draws = dataset[f"{name}_draws"].to_numpy().astype(float)
        finite = draws[np.isfinite(draws)]
        bins = _BINS
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        # One value but for the rounding of float32: (a) and (b) are 1 where a code has one entry.
        if high - low <= 1e-5 * max(abs(high), 1.0):
            bins, low, high = 1, low - 0.02, high + 0.02
        counts, edges = np.histogram(finite, bins, (low, high))
        dim = f"{name}_bin"
        added[f"{name}_histogram"] = (dim, counts)
        added[f"{name}_bin_low"], added[f"{name}_bin_high"] = (dim, edges[:-1]), (dim, edges[1:])
    return added
