"""The figure of a sweep, from its saved dataset: lines over one parameter, heat maps over two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.registry import Claim
from cnninv_jax.experiments.render import COLOURS, PANELS

if TYPE_CHECKING:
    import xarray as xr

#: Errors under this bound are the paper's success; the heat maps draw where they cross it.
ERROR_BOUND = 0.5
#: Most cells whose values are written into a heat map.
_WRITTEN = 150


def sweep_figure(dataset: xr.Dataset, claims: Mapping[str, Claim], title: str, subtitle: str) -> Figure:
    """Draw the mean of every reading over the parameters.

    Values of a parameter of which no cell is finished are left out, so that the first refinement levels are a
    complete, coarser picture; cells that are not finished are grey.

    Args:
        dataset: a saved sweep over one or two parameters.
        claims: the paper's claims at its own parameters; shaded in lines, dashed contours in heat maps.
        title: first line.
        subtitle: second line, smaller.
    """
    names = list(dataset["cell_done"].dims)
    seen = dataset
    for name in names:
        others = [other for other in names if other != name]
        seen = seen.isel({name: np.flatnonzero(dataset["cell_done"].any(others).to_numpy())})
    figure = _lines(seen, names[0], claims) if len(names) == 1 else _maps(seen, names, claims)
    figure.suptitle(f"{title}\n", fontsize=13, fontweight="bold")
    height = figure.get_size_inches()[1]
    figure.text(0.5, 1 - 0.36 / height, subtitle, ha="center", va="center", fontsize=9, color="0.3")
    return figure


def _lines(dataset: xr.Dataset, name: Any, claims: Mapping[str, Claim]) -> Figure:
    figure = Figure(figsize=(13.0, 4.6), layout="constrained")
    places, ticks, label = _axis(dataset, name)
    for axes, (heading, quantity, outputs) in zip(figure.subplots(1, 3), PANELS, strict=True):
        shown = set()
        for output in outputs:
            claim = claims.get(output)
            if claim is not None and claim.text not in shown:
                text = f"paper: {claim.text}\n(band: {claim.low:g} to {claim.high:g})"
                axes.axhspan(claim.low, claim.high, color="0.88", zorder=0, label=text)
                shown.add(claim.text)
        if any(output.startswith("error") for output in outputs):
            axes.axhline(ERROR_BOUND, color="0.4", linestyle=":", linewidth=1.0, label=f"error {ERROR_BOUND:g}")
        for colour, (output, short) in zip(COLOURS, outputs.items(), strict=False):
            mean = dataset[f"{output}_mean"].to_numpy()
            low, high = dataset[f"{output}_mean_low"].to_numpy(), dataset[f"{output}_mean_high"].to_numpy()
            deviation = dataset[f"{output}_standard_deviation"].to_numpy()
            there = np.isfinite(mean)
            if not there.any():
                continue
            x = places[there]
            spread = (mean - deviation)[there], (mean + deviation)[there]
            axes.fill_between(x, *spread, color=colour, alpha=0.15, linewidth=0)
            ends = np.stack([mean - low, high - mean])[:, there]
            ends = np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)
            axes.errorbar(x, mean[there], yerr=ends, color=colour, marker="o", markersize=4, capsize=3, label=short)
        axes.set_title(heading, fontsize=11)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{quantity}  (dimensionless)")
        axes.set_xticks(places, ticks)
        bottom, top = axes.get_ylim()
        # Headroom for the legend.
        lines = sum(1 + text.count("\n") for text in axes.get_legend_handles_labels()[1])
        axes.set_ylim(bottom, top + (top - bottom) * (0.12 + 0.07 * lines))
        axes.legend(
            fontsize=8,
            loc="upper left",
            framealpha=0.9,
            title="mean, 95% interval; band: ± standard deviation",
            title_fontsize=7,
        )
    return figure


def _maps(dataset: xr.Dataset, names: list[Any], claims: Mapping[str, Claim]) -> Figure:
    horizontal, vertical = names
    rows, columns = dataset.sizes[vertical], dataset.sizes[horizontal]
    width = min(max(0.62 * columns + 2.0, 4.4), 9.0)
    figure = Figure(figsize=(3 * width, 2 * min(max(0.5 * rows + 1.6, 3.4), 8.0) + 0.8), layout="constrained")
    grid = figure.subplots(2, 3)
    panels = [(group, output) for group in PANELS for output in group[2]]
    for axes, ((heading, quantity, outputs), output) in zip(grid.flat, panels, strict=True):
        means = dataset[f"{output}_mean"].transpose(vertical, horizontal).to_numpy()
        done = dataset["cell_done"].transpose(vertical, horizontal).to_numpy()
        finite = means[np.isfinite(means)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        axes.set_facecolor("0.88")
        image = axes.imshow(
            np.ma.masked_invalid(means), origin="lower", aspect="auto", cmap="viridis",
            vmin=low, vmax=high if high - low > 1e-9 else low + 1e-3,
        )  # fmt: skip
        _write(axes, means, image)
        bounds = [ERROR_BOUND] if output.startswith("error") else []
        claim = claims.get(output)
        sides = [claim.low, claim.high] if claim is not None else []
        bound, side = _contour(axes, means, bounds, "solid"), _contour(axes, means, sides, "dashed")
        for name, place in ((horizontal, axes.set_xticks), (vertical, axes.set_yticks)):
            places, ticks, label = _axis(dataset, name)
            place(np.arange(len(places)), ticks)
            (axes.set_xlabel if name == horizontal else axes.set_ylabel)(label)
        drawn = [f"line: {_listed(bound)}"] if bound else []
        drawn += [f"dashed: {_listed(side)} (paper's range)"] if side else []
        note = f"\n{'; '.join(drawn)}" if drawn else ""
        lost = int(np.sum(done & ~np.isfinite(means)))
        note += f"\n{lost} cells without a finite draw" if lost else ""
        axes.set_title(f"{heading}: {outputs[output]}{note}", fontsize=10)
        figure.colorbar(image, ax=axes, label=f"mean of {quantity}  (dimensionless)")
    return figure


def _write(axes: Axes, means: np.ndarray, image: Any) -> None:
    """Write the values into the cells, dark on light and light on dark."""
    if means.size > _WRITTEN:
        return
    for (row, column), value in np.ndenumerate(means):
        if np.isfinite(value):
            dark = image.norm(value) < 0.6
            text = f"{value:.3f}" if value < 10 else f"{value:.3g}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _contour(axes: Axes, means: np.ndarray, levels: list[float], style: str) -> list[float]:
    """Draw where the means cross the levels; return those that are crossed."""
    if min(means.shape) < 2 or not np.isfinite(means).any():
        return []
    crossed = sorted(level for level in levels if np.nanmin(means) < level < np.nanmax(means))
    if crossed:
        axes.contour(np.ma.masked_invalid(means), levels=crossed, colors="white", linewidths=4.0, alpha=0.5)
        axes.contour(np.ma.masked_invalid(means), levels=crossed, colors="black", linewidths=1.6, linestyles=style)
    return crossed


def _listed(levels: list[float]) -> str:
    return " and ".join(f"{level:g}" for level in levels)


def _axis(dataset: xr.Dataset, name: Any) -> tuple[np.ndarray, list[str], str]:
    """Return places, tick labels and label of a parameter; what follows from it stands beside its values."""
    values = dataset[name].to_numpy()
    ticks = [f"{value:g}" if np.issubdtype(values.dtype, np.number) else str(value) for value in values]
    label = str(name)
    for other, coordinate in dataset.coords.items():
        if other != name and coordinate.dims == (name,):
            ticks = [f"{tick}\n({value:g})" for tick, value in zip(ticks, coordinate.to_numpy(), strict=True)]
            label += f"  ({coordinate.attrs['long_name']})"
    numeric = np.issubdtype(values.dtype, np.number)
    return (values.astype(float) if numeric else np.arange(len(values), dtype=float)), ticks, label
