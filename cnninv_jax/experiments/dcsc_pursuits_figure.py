"""The figure of `dcsc-pursuits`, from its saved report and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.dcsc_dictionaries import describe
from cnninv_jax.experiments.dcsc_pursuits_draws import METHODS
from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

#: A line for every pursuit: colour, marker, and a dash where two would lie on each other.
LINES = dict(
    zip(METHODS, [(COLOURS[0], "o", "-"), ("0.35", "s", "--"), (COLOURS[2], "^", "-"), (COLOURS[1], "D", "-"),
                  (COLOURS[3], "v", "--")], strict=True)
)  # fmt: skip


def pursuits_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw recovery and time over S, support errors of the first and the deepest layer, and greedy against exact.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    p, found = report["parameters"], report["findings"]
    figure = Figure(figsize=(15.5, 9.0), layout="constrained")
    figure.suptitle(f"{report['title']}\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.95, _subtitle(p, found, report["seed"]), ha="center", va="center", fontsize=9, color="0.3")
    panels = figure.subplots(2, 3).ravel()
    for axes, output, title in (
        (panels[0], "path", "(a) P(whole path recovered)"),
        (panels[1], "complete", "(b) P(no entry of a support missing)"),
    ):
        _shares(axes, dataset, output)
        axes.set_title(title, fontsize=11)
        axes.set_ylabel("probability")
        if found["uniform_bound"] > 0:
            axes.axvline(found["uniform_bound"], color="0.6", linestyle=":", linewidth=1.2)
    _time(panels[2], dataset)
    deepest = int(dataset["layer"][-1])
    _errors(panels[3], dataset, 1, "(d)")
    if deepest > 1:
        _errors(panels[4], dataset, deepest, "(e)")
    else:
        panels[4].set_axis_off()
    if "kept" in dataset:
        _gap(panels[5], dataset)
    else:
        panels[5].set_axis_off()
    for axes in panels:
        if axes.axison:
            _over_sparsity(axes, dataset["S"].to_numpy())
    _legend(figure, found)
    return figure


def _subtitle(p: Mapping[str, Any], found: Mapping[str, Any], seed: int) -> str:
    filters = ", ".join(map(str, p["num_filters"][: p["depth"]]))
    coherences = ", ".join(f"{mu:.2f}" for mu in found["coherence"])
    return (
        f"L = {p['depth']}, {filters} filters of length {p['ell']} on M = {p['M']} channels, D = {p['D']}, "
        f"{p['padding']}; {describe(p)}, $\\mu$ = {coherences}; $\\zeta_0$ = {p['noise']:g} $|X_{{min}}|$; "
        f"{p['num_draws']} draws of signs and noise over {p['num_codes']} codes for each S; seed {seed}"
    )


def _over_sparsity(axes: Axes, S: np.ndarray) -> None:
    axes.set_xscale("log")
    axes.set_xticks(S, [str(value) for value in S])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("$S_1$, non-zeros in a stripe of layer 1 (log scale)")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _plot(axes: Axes, S: np.ndarray, name: str, values: np.ndarray, **style: Any) -> None:
    colour, marker, dash = LINES[name]
    axes.plot(S, values, **{"color": colour, "marker": marker, "linestyle": dash, "linewidth": 1.5, "markersize": 4.5,
                            **style})  # fmt: skip


def _shares(axes: Axes, dataset: xr.Dataset, output: str) -> None:
    S = dataset["S"].to_numpy()
    for name in METHODS:
        own = dataset.sel(pursuit=name)
        axes.fill_between(S, own[output + "_low"], own[output + "_high"], color=LINES[name][0], alpha=0.15, linewidth=0)
        _plot(axes, S, name, own[output].to_numpy())
    axes.set_ylim(-0.03, 1.03)


def _time(axes: Axes, dataset: xr.Dataset) -> None:
    for name in METHODS:
        _plot(axes, dataset["S"].to_numpy(), name, 1e3 * dataset["seconds"].sel(pursuit=name).to_numpy())
    axes.set_yscale("log")
    axes.set_title("(c) time per draw, median over blocks", fontsize=11)
    axes.set_ylabel("milliseconds (log scale)")


def _errors(axes: Axes, dataset: xr.Dataset, layer: int, mark: str) -> None:
    """Draw misses and false alarms over the non-zeros of a layer; zeros at the foot of the axis."""
    own = dataset.sel(layer=layer)
    S, size = own["S"].to_numpy(), own["non_zeros"].to_numpy()
    for name in METHODS:
        for kind, fill in (("misses", LINES[name][0]), ("false_alarms", "white")):
            values = own[kind].sel(pursuit=name).to_numpy() / size
            _plot(axes, S, name, values, markerfacecolor=fill, linestyle="-" if kind == "misses" else ":")
    axes.set_yscale("symlog", linthresh=1e-3, linscale=0.4)
    axes.set_ylim(bottom=-1e-4)
    axes.set_title(f"{mark} layer {layer}: misses (full) and false alarms (open)", fontsize=11)
    axes.set_ylabel("entries per non-zero (log scale above 0.001)")


def _gap(axes: Axes, dataset: xr.Dataset) -> None:
    S, kept = dataset["S"].to_numpy(), dataset["kept"].to_numpy()
    for case in kept.T:
        axes.plot(S, case, "o", color=LINES["stripes"][0], markersize=3, alpha=0.5)
    axes.plot(S, kept.mean(axis=1), color=LINES["stripes"][0], linewidth=1.5)
    low = float(kept.min())
    axes.set_ylim(min(low - 0.1 * (1 - low), 0.99), 1.0 + 0.05 * max(1 - low, 0.01))
    axes.set_title("(f) greedy stripe projection against the exact one", fontsize=11)
    axes.set_ylabel("energy kept, greedy / exact")


def _legend(figure: Figure, found: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    lines = []
    for colour, marker, dash in LINES.values():
        style: Any = dash
        lines.append(Line2D([], [], color=colour, marker=marker, linestyle=style, linewidth=1.6))
    names = list(METHODS.values())
    if found["uniform_bound"] > 0:
        lines.append(Line2D([], [], color="0.6", linestyle=":", linewidth=1.4))
        names.append(f"uniform bound (2) of layer 1: $S_1$ < {found['uniform_bound']:.2f}")
    figure.legend(lines, names, loc="outside lower center", ncols=len(lines), fontsize=9)
