"""The figure of `dcn-rates`, from its saved report and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.dcn_rates_fit import NORMAL_95
from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr


def rates_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw the fall of |f - f*|^2, the bounds on sin Theta, and cos Phi with its bound.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    p, found = report["parameters"], report["findings"]
    figure = Figure(figsize=(16.5, 5.6), layout="constrained")
    figure.suptitle(f"{report['title']}\n", fontsize=13, fontweight="bold")
    figure.text(
        0.5, 0.925,
        f"{p['law'].capitalize()} filters; {len(found['pictures'])} pictures, {p['size']} x {p['size']} in the "
        f"simulation, {p['angle_size']} x {p['angle_size']} on the right; "
        f"{max(found['draws'])} to {min(found['draws'])} draws per width and picture; seed {report['seed']}",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    left, middle, right = figure.subplots(1, 3)
    _fall(left, found, dataset)
    _bounds(middle, p, found)
    _angles(right, found)
    return figure


def _fall(axes: Axes, found: Mapping[str, Any], dataset: xr.Dataset) -> None:
    """Draw mean squares of one filter length over N, the fitted c/N (1 + b/N + d/N^2), and slopes in the legend."""
    widths = dataset["width"].to_numpy()
    # Of two kinds of network the one with overlapping windows, of several filter lengths the first.
    one_route, lengths = dataset["one_route"].to_numpy(), dataset["length"].to_numpy()
    length = int(lengths[np.argmin(one_route)])
    shown = dataset.isel(network=np.flatnonzero((one_route == one_route.min()) & (lengths == length)))
    fine = np.geomspace(widths[0], widths[-1], 100)
    for colour, name in zip(_colours(shown.sizes["network"]), shown["network"].to_numpy(), strict=True):
        rate, cut = found["rates"][str(name)], shown.sel(network=name)
        for kind, marker, style in (("deviation", "o", "-"), ("sine_squared", "^", "--")):
            mean, error = cut[kind].to_numpy(), NORMAL_95 * cut[f"{kind}_error"].to_numpy()
            axes.errorbar(widths, mean, error, fmt=marker, color=colour, markersize=4, capsize=2, linewidth=1.0)
            fit = rate[kind]
            bend = sum(term * fine**-power for power, term in enumerate(fit["bend"], start=1))
            axes.plot(fine, fit["prefactor"] / fine * (1 + bend), style, color=colour, linewidth=1.2)
            half = (fit["high"] - fit["low"]) / 2
            text = f"{rate['depth']} conv: slope {fit['slope']:.3f} ± {half:.3f}"
            axes.plot([], [], style, marker=marker, color=colour, markersize=4, label=text)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.55)  # room for the legend
    axes.set_xlabel("filters $N$ of every convolution")
    axes.set_ylabel("mean over draws and pictures")
    axes.set_title(f"mean squares, {length} x {length} filters", fontsize=11)
    axes.grid(color="0.92")
    handles, labels = axes.get_legend_handles_labels()
    order = [*range(0, len(labels), 2), *range(1, len(labels), 2)]
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], ncols=2, fontsize=7.5, loc="upper right",
        title=r"circles: $\|f - f^*\|^2 / \|f^*\|^2$        triangles: $\sin^2\Theta$     (theory: slope 1)",
        title_fontsize=8, columnspacing=1.0, handlelength=1.6,
    )  # fmt: skip


def _bounds(axes: Axes, p: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Draw bound and observed quantile of sin Theta over N: Thm 6 on one convolution, Thm 8 on one-route networks."""
    names = [name for name, rate in found["rates"].items() if rate["one_route"]]
    if not names:
        length = min(rate["length"] for rate in found["rates"].values())
        names = [name for name, rate in found["rates"].items() if rate["length"] == length]
    widths = np.array(p["widths"])
    for colour, name in zip(_colours(len(names)), names, strict=True):
        for kind, bound in found["bounds"][name].items():
            style = {"theorem_2": ":", "refined": "-."}.get(kind, "-")
            axes.plot(widths, bound["bound"], style, color=colour, linewidth=1.3)
        first = next(iter(found["bounds"][name].values()))
        axes.plot(widths, first["quantile"], "o", color=colour, markersize=4,
                  label=f"{found['rates'][name]['depth']} conv: looseness {first['looseness'][-1]:.3g}")  # fmt: skip
    axes.axhspan(1.0, 1e6, color="0.93", zorder=0)
    axes.text(widths[-1], 10.0, "a bound above 1 says nothing", fontsize=8, color="0.35", ha="right", va="top")
    quantiles = np.concatenate([next(iter(found["bounds"][name].values()))["quantile"] for name in names])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(quantiles.min() / 12, 12.0)
    for style, text in (("-", "bound: Thm 6, Thm 8"), (":", "Thm 2, with $z^*$"), ("-.", "Thm 8's proof, not rounded")):
        if style == "-" or any(len(found["bounds"][name]) > 1 for name in names):
            axes.plot([], [], style, color="0.3", label=text)
    kind = "windows side by side" if found["rates"][names[0]]["one_route"] else "overlapping windows"
    axes.set_title(f"{100 * (1 - p['delta']):g}% quantile of $\\sin\\Theta$ and its bounds, {kind}", fontsize=11)
    axes.set_xlabel("filters $N$ of every convolution")
    axes.set_ylabel(r"$\sin\Theta$")
    axes.grid(color="0.92")
    axes.legend(fontsize=8, loc="lower left", ncols=2,
                title=f"dots: observed; looseness at $N$ = {widths[-1]}", title_fontsize=8)  # fmt: skip


def _angles(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw cos Phi (filled) and Thm 9's bound (open) over the filter length, mean and range over the pictures."""
    angles = found["angles"]
    lengths = np.array(angles["lengths"])
    for at, (colour, depth) in enumerate(zip(_colours(len(angles["depths"])), angles["depths"], strict=True)):
        for name, style in (("cosine", "-"), ("bound", "--")):
            values = np.asarray(angles[name][at], float)
            axes.plot(lengths, values.mean(axis=1), style, color=colour, marker="o", markersize=4, linewidth=1.2,
                      markerfacecolor=colour if name == "cosine" else "white",
                      label=f"{depth} conv" if name == "cosine" else None)  # fmt: skip
            axes.fill_between(lengths, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.07, linewidth=0)
    axes.set_xlabel("filter length")
    axes.set_ylabel(r"$\cos\Phi$")
    axes.set_xticks(lengths if len(lengths) < 16 else lengths[:: len(lengths) // 8])
    axes.set_title(r"$\cos\Phi$ between picture and $f^*$ (filled), Thm 9's bound (open)", fontsize=11)
    axes.grid(color="0.92")
    axes.legend(fontsize=8, loc="lower left",
                title=f"{angles['violated']} of {angles['compared']:,} violated; shaded: all pictures",
                title_fontsize=8)  # fmt: skip


def _colours(count: int) -> Sequence[str]:
    """Return so many colours, again from the first where there are more than four."""
    return [COLOURS[at % len(COLOURS)] for at in range(count)]
