"""Failure of the path against S beside both bounds, from the saved report: panels dictionary and rank x depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from cnninv_jax.experiments.dcsc_recovery_tables import TITLES, draws_of
from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

#: The smallest probability drawn; bound (3) goes on below it.
LOWEST = 1e-6
#: Strips above 1 show where the bound is vacuous: the distance between them, and where the axis ends.
STRIPS, HIGHEST = 1.8, 20.0
#: Noise levels stand beside each other by this factor.
ASIDE = 1.05
#: Most labels of the S axis.
LABELS = 8


def recovery_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw one panel for every dictionary, rank and depth.

    Args:
        report: the study's report.json as read back.
        dataset: its result.nc.
    """
    p, findings = report["parameters"], report["findings"]
    rows = list(dict.fromkeys((each["dictionary"], each["rank"]) for each in findings["families"]))
    depths = p["depths"]
    levels = sorted(p["noise"])
    colours = {level: COLOURS[number % len(COLOURS)] for number, level in enumerate(levels)}
    reached = dataset["S_1"].to_numpy()
    span = (np.nanmin(reached) / 1.25, np.nanmax(reached) * 1.25)
    figure = Figure(figsize=(1.6 + 4.2 * len(depths), 1.9 + 2.6 * len(rows)), layout="constrained")
    figure.suptitle(report["title"], fontsize=13, fontweight="bold")
    grid = figure.subplots(len(rows), len(depths), sharex=True, sharey=True, squeeze=False)
    for line, (dictionary, rank) in zip(grid, rows, strict=True):
        for axes, depth in zip(line, depths, strict=True):
            family = {"dictionary": dictionary, "rank": rank, "depth": depth}
            facts = next((each for each in findings["families"] if _is(each, family)), None)
            if facts is None:
                axes.set_axis_off()
                continue
            critical = [each for each in findings["critical"] if _is(each["family"], family)]
            _panel(axes, dataset.sel(family), facts, critical, colours, span)
            axes.set_title(_heading(facts), fontsize=9)
            if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]  # subplots have one
                axes.set_ylabel("P(path lost)")
    for column in grid.T:
        # Not every family has every depth: the lowest panel there is tells S.
        for axes in [axes for axes in column if axes.axison][-1:]:
            axes.set_xlabel("$S_1$: most non-zeros of $X^{(1)}$ in a stripe")
            axes.tick_params(labelbottom=True)
    grid[0, 0].yaxis.set_major_locator(FixedLocator([10.0**power for power in range(-6, 1, 2)]))
    grid[0, 0].yaxis.set_minor_locator(NullLocator())
    grid[0, 0].xaxis.set_major_locator(FixedLocator(_thinned(sorted(p["S"]))))
    grid[0, 0].xaxis.set_minor_locator(NullLocator())
    grid[0, 0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _legend(figure, colours, p, findings["families"])
    return figure


def _is(held: Mapping[str, Any], family: Mapping[str, Any]) -> bool:
    return all(held[name] == value for name, value in family.items())


def _heading(facts: Mapping[str, Any]) -> str:
    depth = facts["depth"]
    mu = ", ".join(f"{value:.2g}" for value in facts["coherence"])
    return (
        f"{TITLES[facts['dictionary']]}, {facts['rank']}-D, {depth} layer{'s' if depth > 1 else ''}\n"
        rf"$\mu_l$ = {mu}"
    )


def _panel(
    axes: Axes,
    cells: xr.Dataset,
    facts: Mapping[str, Any],
    critical: Sequence[Mapping[str, Any]],
    colours: Mapping[float, str],
    span: tuple[float, float],
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*span)
    axes.set_ylim(LOWEST, HIGHEST)
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color="0.93", linewidth=0.6)
    axes.axhline(1, color="0.6", linewidth=0.7)
    curves = {level: _curve(cells.sel(noise=level)) for level in colours}
    vacuous = max(_leaves(*curves[min(colours)]), span[0])
    if vacuous < span[1]:
        axes.axvspan(vacuous, span[1], facecolor="0.95", edgecolor="0.8", hatch="///", linewidth=0, zorder=0)
    if vacuous < span[1] / 4:
        axes.text(math.sqrt(vacuous * span[1]), 4 * LOWEST, "bound (3) vacuous", ha="center", fontsize=8, color="0.25",
                  bbox={"facecolor": "0.95", "edgecolor": "none", "pad": 1.5})  # fmt: skip
    for number, (level, colour) in enumerate(colours.items()):
        here = cells.sel(noise=level)
        aside = ASIDE ** (number - (len(colours) - 1) / 2)
        _simulated(axes, here, aside, colour)
        sizes, logs = curves[level]
        ends = _leaves(sizes, logs)
        says = logs < 0
        places = np.append(sizes[says], ends if math.isfinite(ends) and says.any() else [])
        values = np.append(logs[says], 0.0 if len(places) > says.sum() else [])
        # Down to far below the axis, where exp(log) is still a number.
        axes.plot(places, np.exp(np.maximum(values, -600)), color=colour, linewidth=1.5, zorder=2)
        promised = next(each["uniform"] for each in critical if each["noise"] == level)
        if promised:
            axes.axvline(promised * math.sqrt(aside), color=colour, linestyle=(0, (4, 2)), linewidth=1.2,
                         ymax=_height(1.0), zorder=1)  # fmt: skip
        if ends < span[1]:
            # Above 1, one strip for each level.
            axes.plot([max(ends, span[0]), span[1]], [STRIPS**(number + 1)] * 2, color=colour, linewidth=3,
                      solid_capstyle="butt", zorder=1)  # fmt: skip


def _height(value: float) -> float:
    """Return where a probability stands as part of the axis."""
    return math.log(value / LOWEST) / math.log(HIGHEST / LOWEST)


def _curve(cells: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return S_1 as reached, ascending, and the logarithm of bound (3)."""
    sizes, logs = cells["S_1"].to_numpy(), cells["log_bound"].to_numpy()
    order = np.argsort(sizes[~np.isnan(sizes)], kind="stable")
    return sizes[~np.isnan(sizes)][order], logs[~np.isnan(sizes)][order]


def _leaves(sizes: np.ndarray, logs: np.ndarray) -> float:
    """Return the S at which bound (3) reaches 1: 0 if it is nowhere below, infinity if it is everywhere."""
    above = np.flatnonzero(logs >= 0)
    if not above.size:
        return math.inf
    first = int(above[0])
    if first == 0:
        return 0.0
    # The exponent of the bound is linear in 1/S where noise is small.
    inverse = 1 / sizes[first - 1 : first + 1]
    share = -logs[first - 1] / (logs[first] - logs[first - 1])
    return float(1 / (inverse[0] + share * (inverse[1] - inverse[0])))


def _simulated(axes: Axes, cells: xr.Dataset, aside: float, colour: str) -> None:
    """Draw proportions with Wilson's intervals; where no draw failed, an arrow at the interval's upper end."""
    sizes, value, low, high = (cells[name].to_numpy() for name in ("S_1", "probability", "low", "high"))
    some = value > 0
    axes.errorbar(
        sizes[some] * aside, value[some], yerr=np.abs(np.stack([value - low, high - value])[:, some]), fmt="o",
        markersize=3.5, linewidth=1.0, capsize=2, color=colour, zorder=3,
    )  # fmt: skip
    axes.plot(sizes[value == 0] * aside, high[value == 0], "v", markersize=4, markerfacecolor="white", color=colour,
              zorder=3)  # fmt: skip


def _thinned(sizes: Sequence[int]) -> list[int]:
    """Return values of S far enough from each other for their labels."""
    shown: list[int] = []
    room = (max(sizes) / min(sizes)) ** (1 / LABELS) if len(sizes) > 1 else 1.0
    for size in sizes:
        if not shown or size >= shown[-1] * room:
            shown.append(size)
    return shown


def _legend(
    figure: Figure, colours: Mapping[float, str], p: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]
) -> None:
    handles: list[Any] = [Line2D([], [], color=colour, linewidth=4) for colour in colours.values()]
    names = [
        r"no noise" if not level else rf"noise $\zeta_0$ = {level:g} of the threshold $|X_{{\min}}^{{(1)}}|/2$"
        for level in colours
    ]
    plain = [
        (Line2D([], [], color="black", marker="o", markersize=4, linewidth=1),
         f"simulated, {draws_of(p, facts)} draws of signs; Wilson's 95% interval"),
        (Line2D([], [], color="black", marker="v", markerfacecolor="white", markersize=5, linestyle="none"),
         "no draw failed: upper end of the interval"),
        (Line2D([], [], color="black", linewidth=1.5), "bound (3), where it is below 1"),
        (Line2D([], [], color="black", linestyle=(0, (4, 2)), linewidth=1.2), "largest $S_1$ by the uniform bound (2), "
         "as reached; no line: none"),
        (Line2D([], [], color="black", linewidth=3), "above 1: bound (3) is vacuous at this noise"),
        (Patch(facecolor="0.95", edgecolor="0.8", hatch="///"), "bound (3) is vacuous at every noise shown"),
    ]  # fmt: skip
    figure.legend(
        handles + [handle for handle, _ in plain], names + [name for _, name in plain], loc="outside lower center",
        ncols=3, fontsize=8.5,
    )  # fmt: skip
