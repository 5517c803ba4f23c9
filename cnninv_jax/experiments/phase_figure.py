"""The phase diagram of recovery, from its saved dataset: maps over k and M l^2 / D with contours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.phase_draws import METHODS
from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

#: Lines of equal probability.
LEVELS: Mapping[float, Literal["dotted", "solid", "dashed"]] = {0.1: "dotted", 0.5: "solid", 0.9: "dashed"}


def phase_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw both ways of recovery in rows; exact support, small error and part found in columns.

    Args:
        report: the study's report.json as read back.
        dataset: its result.nc.
    """
    p, findings = report["parameters"], report["findings"]
    headings = {
        "support": "P(support recovered exactly)",
        "accurate": rf"P($\|\hat x - x\|_2 < {p['threshold']:g}\,\|x\|_2$)",
        "found": "mean part of the support found",
    }
    figure = Figure(figsize=(13.5, 8.6), layout="constrained")
    figure.suptitle(f"{report['title']}\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.952, _subtitle(p, findings), ha="center", va="center", fontsize=9, color="0.3")
    grid = figure.subplots(2, len(headings), sharex=True, sharey=True)
    image: Any = None
    for row, (method, name) in zip(grid, METHODS.items(), strict=True):
        for axes, (output, heading) in zip(row, headings.items(), strict=True):
            kind = "mean" if output == "found" else "proportion"
            values = dataset[f"{method}_{output}_{kind}"].transpose("M", "k").to_numpy()
            image = _map(axes, dataset["k"].to_numpy(), dataset["Mll_over_D"].to_numpy(), values)
            fit = findings["fits"].get(f"{method}_{output}")
            if fit is not None and fit["C"] is not None:
                _theorem(axes, fit, p["K"], findings["n"])
            axes.set_title(f"{name}\n{heading}", fontsize=10)
            if axes.get_subplotspec().is_last_row():  # type: ignore[union-attr]  # subplots have one
                axes.set_xlabel("non-zeros $k$")
            if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
                axes.set_ylabel(r"$M \ell^2 / D$  (log scale)")
    figure.colorbar(image, ax=grid, label="probability, or part (dimensionless)", shrink=0.8, pad=0.01)
    _legend(figure)
    return figure


def _subtitle(p: Mapping[str, Any], findings: Mapping[str, Any]) -> str:
    filters = "unit-norm Gaussian" if p["normalize"] else "Gaussian"
    return (
        f"K={p['K']}, l={p['ell']}, D={p['D']}, t={p['stride']}, n={findings['n']}; {filters} filters, {p['values']} "
        f"values; {findings['draws_per_cell']} draws a cell; converged: {p['step']} step, residual < {p['tol']:g} |x| "
        f"within {p['num_steps']} steps ({100 * findings['not_converged']['mean']:.0f}% of all draws do not converge)"
    )


def _map(axes: Axes, k: np.ndarray, ratio: np.ndarray, values: np.ndarray) -> Any:
    """Draw cells around their k and M l^2 / D, and lines of equal value."""
    across, up = _edges(k.astype(float)), np.exp(_edges(np.log(ratio)))
    axes.set_facecolor("0.88")
    image = axes.pcolormesh(across, up, np.ma.masked_invalid(values), cmap="viridis", vmin=0.0, vmax=1.0)
    axes.set_yscale("log")
    axes.set_xlim(across[0], across[-1])
    axes.set_ylim(up[0], up[-1])
    axes.set_xticks(_thinned(k))
    axes.set_yticks(ratio, [f"{value:.3g}" for value in ratio], minor=False)
    axes.set_yticks([], minor=True)
    axes.tick_params(labelsize=8)
    crossed = {level: style for level, style in LEVELS.items() if np.nanmin(values) < level < np.nanmax(values)}
    if min(values.shape) > 1 and crossed:
        # Dark under light: legible on both ends of the colour scale.
        for width, colour in ((3.2, "black"), (1.4, "white")):
            axes.contour(k, ratio, values, levels=list(crossed), colors=colour, linewidths=width,
                         linestyles=list(crossed.values()))  # fmt: skip
    return image


def _edges(places: np.ndarray) -> np.ndarray:
    """Return the borders of cells around places: half way between neighbours."""
    if places.size == 1:
        return np.array([places[0] - 0.5, places[0] + 0.5])
    middle = (places[1:] + places[:-1]) / 2
    return np.concatenate([[2 * places[0] - middle[0]], middle, [2 * places[-1] - middle[-1]]])


def _thinned(k: np.ndarray) -> list[int]:
    """Return the values of k that leave room for their labels."""
    shown, room = [], (k[-1] - k[0]) / 25
    for value in k:
        if not shown or value - shown[-1] >= room:
            shown.append(int(value))
    return shown


def _theorem(axes: Axes, fit: Mapping[str, float], num_filters: int, shifts: int) -> None:
    """Draw M l^2 / D = C k (log K + log n) with the fitted C."""
    low, high = axes.get_xlim()
    k = np.linspace(max(low, 0.5), high, 200)
    line = fit["C"] * k * (math.log(num_filters) + math.log(shifts))
    axes.plot(k, line, color=COLOURS[1], linewidth=1.8, label=f"fit: $C$ = {fit['C']:.3g}")
    # Where the line leaves the map through its top, the upper corner is taken.
    corner = "lower right" if line[-1] > axes.get_ylim()[1] else "upper right"
    axes.legend(loc=corner, fontsize=8, framealpha=0.9)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color="black", linewidth=1.6, linestyle=style) for style in LEVELS.values()]
    names = [f"{level:g}" for level in LEVELS]
    lines.append(Line2D([], [], color=COLOURS[1], linewidth=1.8))
    names.append(r"fit of $M \ell^2/D = C\,k\,(\log K + \log n)$ to the 0.5 contour, one $C$ per map")
    figure.legend(lines, names, loc="outside lower center", ncols=len(lines), fontsize=9)
