"""The figure of `dcsc-depth`, from its saved report and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.dcsc_dictionaries import describe
from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

#: Markers of the supports and lines of the noises.
MARKERS, LINES = ("o", "s", "^", "D", "v"), ("-", "--", ":", "-.")


def depth_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw first losses by depth, failures by layer, propagated noise, and what follows a loss.

    Args:
        report: report.json.
        dataset: result.nc; not needed.
    """
    del dataset
    found = report["findings"]
    p = {**report["parameters"], **{key: sorted(report["parameters"][key]) for key in ("support", "noise")}}
    figure = Figure(figsize=(16.5, 9.4), layout="constrained")
    figure.suptitle(f"{report['title']}\n", fontsize=13, fontweight="bold")
    where = "X^{(1)}" if p["fixed"] == "bottom" else "X^{(L)}"
    figure.text(
        0.5, 0.955,
        f"filters {', '.join(map(str, p['num_filters']))} of length {p['ell']}; D = {p['D']}, M = {p['M']}, "
        f"{describe(p)} next to the signal, {p['nonzeros']} non-zeros in deep atoms; support: non-zeros of "
        f"${where}$; noise: $\\|V^{{(0)}}\\|_{{2,\\infty}} / |X^{{(1)}}_{{min}}|$; "
        f"{p['paths']} supports x {p['num_draws']} draws of "
        f"signs; seed {report['seed']}",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    # The fewest and the most non-zeros; of one --support a panel over both rows.
    shown = {"fewest": p["support"][0], "fewest" if len(p["support"]) == 1 else "most": p["support"][-1]}
    grid = figure.subplot_mosaic([["fewest", "given", "misses"], [list(shown)[-1], "noise", "alarms"]])
    for name, support in shown.items():
        _first(grid[name], p, [cell for cell in found["cells"] if cell["support"] == support], support)
    deepest = [cell for cell in found["cells"] if cell["depth"] == len(p["num_filters"])]
    _given(grid["given"], p, deepest)
    _noise(grid["noise"], p, deepest)
    _spread(grid["misses"], p, found["spread"], "misses", "missed")
    _spread(grid["alarms"], p, found["spread"], "alarms", "false alarms")
    return figure


def _colour(layer: int) -> Any:
    from matplotlib import colormaps

    return COLOURS[layer] if layer < len(COLOURS) else colormaps["cividis"](0.85 - 0.1 * (layer - len(COLOURS)))


def _first(axes: Axes, p: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], support: int) -> None:
    """Draw P(layer l is the first one lost) over depth as stacked bars, a bar for every noise."""
    levels, depth = p["noise"], len(p["num_filters"])
    width = 0.8 / len(levels)
    for cell in cells:
        at = cell["depth"] + (levels.index(cell["noise"]) - (len(levels) - 1) / 2) * width
        bottom = 0.0
        for layer, value in enumerate(cell["first"]):
            axes.bar(at, value, 0.92 * width, bottom=bottom, color=_colour(layer))
            bottom += value
        axes.vlines(at, cell["lost_low"], cell["lost_high"], color="0.15", linewidth=1.1)
        axes.text(at, 1.02, f"{cell['noise']:g}", ha="center", va="bottom", fontsize=7, color="0.35")
    for layer in range(depth):
        axes.bar([0], [0], color=_colour(layer), label=f"layer {layer + 1}")
    axes.set_xlim(0.4, depth + 0.6)
    axes.set_ylim(0.0, 1.32)
    axes.set_xticks(range(1, depth + 1))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlabel("depth $L$; noise above the bars")
    axes.set_ylabel("P(layer is the first one lost)")
    axes.set_title(f"which layer is lost first, support {support}", fontsize=11)
    axes.legend(fontsize=7.5, ncols=depth, loc="upper center", columnspacing=1.0, handlelength=1.2)


def _given(axes: Axes, p: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> None:
    """Draw P(layer l lost | layers before recovered) at the largest depth."""
    depth = len(p["num_filters"])
    for at, cell in enumerate(cells):
        place = np.arange(1, depth + 1) + (at - (len(cells) - 1) / 2) * 0.09
        value, low, high = (_numbers(cell[name]) for name in ("given", "given_low", "given_high"))
        style = _style(p, cell)
        there = value > 0
        axes.errorbar(place[there], value[there], np.stack([value - low, high - value])[:, there], fmt=style["marker"],
                      color=style["color"], markersize=4.5, linewidth=1.1, markerfacecolor=style["face"],
                      label=style["label"])  # fmt: skip
        none = value == 0
        axes.plot(place[none], high[none], marker=7, linestyle="", color=style["color"], markersize=5)
    axes.set_yscale("log")
    drawn = np.concatenate([
        np.where(_numbers(cell["given"]) > 0, _numbers(cell["given"]), _numbers(cell["given_high"])) for cell in cells
    ])  # fmt: skip
    floor = min(1e-3, 0.5 * float(np.nanmin(np.append(drawn, 1.0))))
    axes.set_ylim(floor, floor**-0.5)  # a third of the height for the legend
    axes.set_xticks(range(1, depth + 1))
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    axes.set_xlabel("layer $l$; triangle: never lost, end of the interval")
    axes.set_ylabel("P(layer $l$ lost | layers before not)")
    axes.set_title(f"failures layer by layer, depth {depth}", fontsize=11)
    axes.grid(color="0.92", axis="y")
    axes.legend(fontsize=7.5, ncols=max(len(p["support"]), 1), loc="upper center")


def _noise(axes: Axes, p: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> None:
    """Draw measured patch norms of the propagated noise beside both recursions."""
    depth = len(p["num_filters"])
    layers = np.arange(depth + 1)
    for cell in cells:
        style = _style(p, cell)
        start = [cell["noise"] if cell["noise"] else np.nan]
        for name, line in (("zeta_mean", "-"), ("zeta_largest", ":")):
            values = np.concatenate([start, _numbers(cell[name])])
            axes.plot(layers, values, line, marker=style["marker"] if line == "-" else None, color=style["color"],
                      markersize=4.5, markerfacecolor=style["face"], linewidth=1.1)  # fmt: skip
    loudest = [cell for cell in cells if cell["support"] == p["support"][0]]
    for cell in (loudest[0], loudest[-1])[: len(loudest)]:
        colour = _style(p, cell)["color"]
        for name, line in (("uniform", (0, (6, 2))), ("probabilistic", (0, (3, 1, 1, 1)))):
            values = _numbers(cell[name])
            axes.plot(
                layers, np.where(values > 0, values, np.nan), linestyle=line, color=colour, linewidth=1.8, alpha=0.5
            )
    # |X_min^(l+1)| / 2, since taps of one size and atoms apart make |X_min^(l)| sqrt(nonzeros) smaller.
    half = np.full(depth, np.sqrt(p["nonzeros"]) / 2)
    half[0] = 0.5
    axes.plot(layers[:-1], half, color="0.4", linewidth=1.0, linestyle="-.", marker="_")
    axes.set_yscale("log")
    axes.set_xticks(layers)
    axes.set_xlabel("layer $l$ (0 is the signal)")
    axes.set_ylabel(r"$\|V^{(l)}\|_{2,\infty}\,/\,|X^{(l)}_{min}|$")
    axes.set_title(f"propagated noise, depth {depth}", fontsize=11)
    axes.grid(color="0.92", axis="y")
    for line, text in (("-", "measured mean"), (":", "measured largest"), ((0, (6, 2)), "uniform recursion"),
                       ((0, (3, 1, 1, 1)), "probabilistic recursion")):  # fmt: skip
        axes.plot([], [], linestyle=line, color="0.3", label=text)
    axes.plot([], [], color="0.4", linewidth=1.0, linestyle="-.", marker="_", label="half of $|X^{(l+1)}_{min}|$")
    low, high = axes.get_ylim()
    axes.set_ylim(low / (high / low) ** 0.5, high)  # room for the legend
    title = f"recursions: support {p['support'][0]}, least and most noise"
    axes.legend(fontsize=7.5, loc="lower left", ncols=2, title=title, title_fontsize=7.5)


def _spread(axes: Axes, p: Mapping[str, Any], spread: Sequence[Mapping[str, Any]], name: str, title: str) -> None:
    """Draw a layer's mean errors over its non-zeros, by the layer that was lost first, all noises together."""
    depth = len(p["num_filters"])
    for at, support in enumerate((p["support"][0], p["support"][-1])[: len(p["support"])]):
        own = [cell for cell in spread if cell["support"] == support]
        number = np.sum([cell["first"] for cell in own], axis=0)
        for first in range(depth):
            if not number[first]:
                continue
            total = np.sum([cell["first"][first] * np.nan_to_num(_numbers(cell[name][first])) for cell in own], axis=0)
            values = total / number[first]
            axes.plot(range(first + 1, depth + 1), values[first:], LINES[at], marker=MARKERS[at], markersize=4.5,
                      color=_colour(first), linewidth=1.2,
                      label=f"support {support}, first lost: {first + 1} ({int(number[first])})")  # fmt: skip
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.set_ylim(bottom=0.0)
    axes.set_xticks(range(1, depth + 1))
    axes.set_xlabel("layer $l$")
    axes.set_ylabel("mean number over non-zeros of $X^{(l)}$")
    axes.set_title(f"after the first loss: {title} (passes of all noises)", fontsize=11)
    axes.grid(color="0.92", axis="y")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="best")


def _style(p: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    support, level = p["support"].index(cell["support"]), p["noise"].index(cell["noise"])
    colour = COLOURS[level % len(COLOURS)]
    return {
        "marker": MARKERS[support % len(MARKERS)],
        "color": colour,
        "face": colour if support == 0 else "white",
        "label": f"support {cell['support']}, noise {cell['noise']:g}",
    }


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
