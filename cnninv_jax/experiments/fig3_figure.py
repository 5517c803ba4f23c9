"""The figure of Gilbert et al. 2017, Fig. 3, from its saved findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.fig3_tables import HIGH, LOW
from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

#: x label of all histograms.
RATIO = r"$\|W^T z\|_2\,/\,\|z\|_2$"
_HEADINGS = {"before": "(b) codes recovered before the ReLU", "after": "(c) codes recovered after the ReLU"}


def fig3_figure(report: Mapping[str, Any], dataset: xr.Dataset | None) -> Figure:
    """Draw the three histograms (top), and below them what each hangs on: the cut of x, and lambda.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    findings = report["findings"]
    figure = Figure(figsize=(14.0, 8.2), layout="constrained")
    figure.suptitle(f"{report['source']}: {report['title']}\n\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.945, _subtitle(findings), ha="center", va="center", fontsize=9, color="0.3")
    axes = figure.subplots(2, 3)
    if dataset is not None and findings["synthetic"]:
        banks = [str(name) for name in dataset["bank"].to_numpy()]
        for place, reading, heading in (
            (axes[0, 0], "cut", "(a) synthetic codes"),
            (axes[1, 0], "uncut", "(a) synthetic codes, $W^T z$ not cut to the map"),
        ):
            draws = dict(zip(banks, dataset[f"synthetic_{reading}"].to_numpy(), strict=True))
            _histograms(place, draws, heading, "centred around 1")
    else:
        _empty(axes[:, 0])
    for column, panel in enumerate(_HEADINGS, start=1):
        if dataset is None or not findings["recovered"]:
            _empty(axes[:, column])
            continue
        lam = findings["setting"]["recovered"]["lam"]
        chosen = dataset["recovered_cut"].sel(panel=panel).isel(fraction=0)
        draws = {str(name): chosen.sel(filters=name).to_numpy() for name in dataset["filters"].to_numpy()}
        _histograms(
            axes[0, column], draws, f"{_HEADINGS[panel]}, $\\lambda$ = {lam:g} $\\lambda_{{max}}$", "within 0.05 of 1"
        )
        _sensitivity(axes[1, column], findings["recovered"], panel)
    return figure


def _subtitle(findings: Mapping[str, Any]) -> str:
    parts = []
    setting = findings["setting"]
    if "synthetic" in setting:
        s = setting["synthetic"]
        parts.append(
            f"(a) {s['layer']}: K = {s['K']}, M = {s['M']}, l = {s['ell'][0]}, {s['map'][0]} x {s['map'][1]} maps, "
            f"{100 * s['k'] / s['entries']:.1f}% non-zero, {s['values']} values"
        )
    if "recovered" in setting:
        s = setting["recovered"]
        what = f"{s['pieces']} {s['map'][0]} x {s['map'][1]} {'maps' if s['whole_maps'] else 'pieces'}"
        parts.append(
            f"(b, c) {s['layer']} on {s['input']} of a {s['network']} network: {what} of {len(s['pictures'])} "
            f"pictures, at most {100 * s['k'] / s['entries']:.1f}% non-zero"
        )
    return "\n".join(parts)


def _histograms(axes: Axes, draws: Mapping[str, np.ndarray], heading: str, claim: str) -> None:
    """Draw densities on one axis that shows all draws and the paper's band."""
    kept = {name: values[np.isfinite(values)].astype(float) for name, values in draws.items()}
    everything = np.concatenate([*kept.values(), [LOW, HIGH]])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.06 * (high - low)
    axes.axvspan(LOW, HIGH, color="0.88", zorder=0, label=f"{LOW:g} to {HIGH:g} (paper: {claim})")
    axes.axvline(1.0, color="0.5", linewidth=0.8, zorder=1)
    for place, (name, values) in enumerate(kept.items()):
        if not len(values):
            continue
        colour = COLOURS[place % len(COLOURS)]
        width = max(float(np.ptp(values)), 1e-3 * abs(float(values.mean())), 1e-9)
        bins = int(np.clip(2.0 * len(values) ** (1 / 3), 5, 30))
        centre = (float(values.max()) + float(values.min())) / 2
        counts, edges = np.histogram(values, bins, (centre - 0.51 * width, centre + 0.51 * width))
        # A narrow peak would flatten the others to a line.
        density = counts / max(int(counts.max()), 1)
        text = f"{name} filters: {values.mean():.4f} ± {values.std(ddof=1) if len(values) > 1 else 0.0:.4f}"
        axes.stairs(density, edges, color=colour, fill=True, alpha=0.4)
        axes.stairs(density, edges, color=colour, linewidth=1.2, label=text)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(0.0, 1.25 + 0.11 * (1 + len(kept)))
    axes.set_title(heading, fontsize=11)
    axes.set_xlabel(RATIO)
    axes.set_ylabel("density, each scaled to its peak")
    axes.legend(fontsize=8, loc="upper left", framealpha=0.9, title="mean ± standard deviation", title_fontsize=7)


def _sensitivity(axes: Axes, recovered: Mapping[str, Any], panel: str) -> None:
    """Draw ratio and reconstruction error against lambda, for every filter bank."""
    axes.axhspan(LOW, HIGH, color="0.88", zorder=0)
    for colour, (name, panels) in zip(COLOURS, recovered.items(), strict=False):
        entries = sorted((entry for entry in panels[panel] if entry["cut"]["count"]), key=lambda e: e["fraction"])
        places = [entry["fraction"] for entry in entries]
        ratio = [entry["cut"]["mean"] for entry in entries]
        spread = [entry["cut"]["standard_deviation"] or 0.0 for entry in entries]
        axes.errorbar(places, ratio, spread, color=colour, marker="o", capsize=3, label=f"{name}: ratio ± deviation")
        error = [entry["error"]["mean"] for entry in entries]
        axes.plot(places, error, color=colour, marker="s", linestyle="--", label=f"{name}: $\\|x - W^T z\\|/\\|x\\|$")
    axes.set_xscale("log")
    fractions = sorted({entry["fraction"] for panels in recovered.values() for entry in panels[panel]})
    axes.set_xticks(fractions, [f"{fraction:g}" for fraction in fractions])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0.0)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.3)
    axes.set_title(f"{_HEADINGS[panel][:3]} and the choice of $\\lambda$", fontsize=11)
    axes.set_xlabel(r"$\lambda\,/\,\lambda_{max}$,  $\lambda_{max} = 2\,\|W x\|_\infty$")
    axes.set_ylabel("ratio; relative error")
    axes.legend(fontsize=8, loc="upper left", ncols=2, framealpha=0.9)


def _empty(column: np.ndarray) -> None:
    for axes in column:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not computed", ha="center", va="center", color="0.5", transform=axes.transAxes)
