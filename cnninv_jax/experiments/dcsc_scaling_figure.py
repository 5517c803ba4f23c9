"""The figure of `dcsc-scaling`, from its saved report and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.dcsc_scaling_families import FAMILIES
from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

#: Ends of the drawn exponents; intervals beyond them are cut.
EXPONENTS = (-4.0, 0.5)
LABELS = {
    "mu": r"coherence $\mu$ (largest correlation)",
    "rms": "root mean square of an atom's correlations",
}


def scaling_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw critical S over mu and over the root mean square of the correlations, and the fitted exponents.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    p, found = report["parameters"], report["findings"]
    chance = p["p"][0]
    figure = Figure(figsize=(16.5, 6.2), layout="constrained")
    figure.suptitle(f"{report['title']}\n", fontsize=13, fontweight="bold")
    noise = f"$\\zeta_0$ = {p['noise']:g}" if p["noise"] else "no noise"
    figure.text(
        0.5, 0.93,
        f"one layer, {p['num_filters']} filters at {found['positions']} positions of a circular signal, all "
        f"{found['atoms']} atoms in one stripe; |X| = 1, {noise}; {p['dictionaries']} dictionaries a level, "
        f"{p['num_draws']:,} draws of places and signs each; seed {report['seed']}",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1.0, 0.9])
    for axes, size in ((left, "mu"), (middle, "rms")):
        _points(axes, p, found, dataset, size)
        axes.set_xlabel(LABELS[size])
    _bounds(left, p, found, dataset)
    left.set_title(f"critical S, P(lost) = {100 * chance:g}%, over the largest correlation", fontsize=11)
    middle.set_title("the same over the typical correlation", fontsize=11)
    left.set_ylabel("critical S (non-zeros in a stripe)")
    _limits(left, middle, dataset)
    left.legend(fontsize=7.5, loc="lower left", ncols=1, framealpha=0.9)
    _slopes(middle, dataset)
    _exponents(right, p, found)
    return figure


def _colour(name: str) -> str:
    return COLOURS[list(FAMILIES).index(name)]


def _points(axes: Axes, p: Mapping[str, Any], found: Mapping[str, Any], dataset: xr.Dataset, size: str) -> None:
    """Draw every dictionary, with random signs and with the worst ones, and the fitted lines."""
    family = dataset["family"].to_numpy().astype(str)
    for name in p["families"]:
        own = dataset.isel(point=np.flatnonzero(family == name), p=0)
        x = own[size].to_numpy()
        for kind, marker, face in (("random", "o", _colour(name)), ("worst", "s", "white")):
            values, low, high = (own[kind + end].to_numpy() for end in ("", "_low", "_high"))
            there = np.isfinite(values)
            shown, low, high = values[there], low[there], high[there]
            errors = np.stack([shown - np.where(np.isfinite(low), low, shown),
                               np.where(np.isfinite(high), high, shown) - shown])  # fmt: skip
            label = FAMILIES[name].title if kind == "random" and size == "mu" else None
            axes.errorbar(x[there], shown, np.maximum(errors, 0), fmt=marker, color=_colour(name),
                          markerfacecolor=face, markersize=4.5, capsize=0, linewidth=1.0, label=label)  # fmt: skip
            fit = found["fits"][name][f"{kind} {p['p'][0]!r}"][size]
            if fit["exponent"] is not None:
                ends = np.array([fit["start"], fit["end"]])
                line = fit["prefactor"] * ends ** fit["exponent"]
                axes.plot(ends, line, "-" if kind == "random" else "--", color=_colour(name), linewidth=1.1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(color="0.92", which="both")
    axes.tick_params(labelsize=8, which="both")


def _bounds(axes: Axes, p: Mapping[str, Any], found: Mapping[str, Any], dataset: xr.Dataset) -> None:
    """Draw the S of both bounds, which depend on mu alone."""
    order = np.argsort(dataset["mu"].to_numpy())
    mu = dataset["mu"].to_numpy()[order]
    uniform, bound = dataset["uniform"].to_numpy()[order], dataset["bound"].isel(p=0).to_numpy()[order]
    axes.plot(mu, bound, "-", color="black", linewidth=1.8, label=f"bound (3), {100 * p['p'][0]:g}%: $\\mu^{{-2}}$")
    axes.plot(mu, uniform, "--", color="black", linewidth=1.8, label=r"uniform bound (2): $\mu^{-1}$")
    axes.plot([], [], "o-", color="0.4", markersize=4.5, label="random signs")
    axes.plot([], [], "s--", color="0.4", markerfacecolor="white", markersize=4.5, label="worst signs, random places")
    axes.axhspan(1e-9, 1.0, color="0.9", zorder=0)
    axes.text(mu[-1], 0.93, "S < 1: a bound says nothing", ha="right", va="top", fontsize=8, color="0.35")


def _limits(left: Axes, middle: Axes, dataset: xr.Dataset) -> None:
    """Give both panels one range of S, with room for the legend under the points."""
    values = dataset["random"].isel(p=0).to_numpy()
    high = float(np.max(np.where(np.isfinite(values), values, 1.0), initial=10.0))
    for axes in (left, middle):
        axes.set_ylim(0.008, high * 2)


def _slopes(axes: Axes, dataset: xr.Dataset) -> None:
    """Draw lines of slope -2 and -1 beside the points."""
    x = np.geomspace(float(dataset["rms"].min()), float(dataset["rms"].max()), 2)
    values = dataset["random"].isel(p=0).to_numpy()
    top = float(np.nanmax(np.where(np.isfinite(values), values, np.nan)))
    for power, style in ((2, "-"), (1, "--")):
        start = top * (1.0 if power == 2 else 0.11)
        axes.plot(x, start * (x / x[0]) ** -power, style, color="0.55", linewidth=1.0, zorder=0,
                  label=f"slope $-{power}$")  # fmt: skip
    axes.legend(fontsize=8, loc="lower left")


def _exponents(axes: Axes, p: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Draw the exponents with their intervals: filled over mu, open over the root mean square."""
    rows, row = [], 0.0
    for name in p["families"]:
        for kind in ("random", "worst"):
            for chance in p["p"]:
                fits = found["fits"][name][f"{kind} {chance!r}"]
                for size, offset in (("mu", 0.18), ("rms", -0.18)):
                    fit = fits[size]
                    if fit["low"] is None:
                        continue
                    low, high = np.clip([fit["low"], fit["high"]], *EXPONENTS)
                    axes.plot([low, high], [row + offset] * 2, color=_colour(name), linewidth=1.6,
                              linestyle="-" if size == "mu" else ":")  # fmt: skip
                    if EXPONENTS[0] <= fit["exponent"] <= EXPONENTS[1]:
                        axes.plot(fit["exponent"], row + offset, "o" if kind == "random" else "s",
                                  color=_colour(name), markersize=5,
                                  markerfacecolor=_colour(name) if size == "mu" else "white")  # fmt: skip
                if fits["mu"]["low"] is None and fits["rms"]["low"] is None:
                    axes.text(-1.5, row, "too few levels with S large enough", fontsize=7, color="0.4", ha="center",
                              va="center")  # fmt: skip
                rows.append((row, f"{kind}, {100 * chance:g}%", _colour(name)))
                row -= 1.0
        row -= 0.5
    for power in (-2.0, -1.0):
        axes.axvline(power, color="black", linewidth=1.0, linestyle="-" if power == -2 else "--", zorder=0)
    axes.set_xlim(*EXPONENTS)
    axes.set_ylim(row + 0.5, 2.2)
    axes.set_yticks([place for place, _, _ in rows], [text for _, text, _ in rows], fontsize=8)
    for label, (_, _, colour) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(colour)
    axes.set_xlabel("exponent $b$ of $S \\sim x^b$, 95% interval")
    axes.set_title("fitted exponents; theory: $-2$ random, $-1$ worst", fontsize=11)
    axes.plot([], [], "o-", color="0.4", markersize=5, label=r"over $\mu$")
    axes.plot([], [], "o:", color="0.4", markerfacecolor="white", markersize=5, label="over root mean square")
    axes.legend(fontsize=8, loc="upper center", ncols=2)
    axes.grid(color="0.92", axis="x")
