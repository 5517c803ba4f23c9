"""The figure of `dcsc-design`, from its saved report and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

#: The smallest probability drawn.
LOWEST = 1e-4
LABELS = {"start": "start", "designed": "designed"}


def design_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw mu over the steps, the correlations before and after, and P(support lost) over S.

    Args:
        report: the study's report.json as read back.
        dataset: its result.nc.
    """
    found, p = report["findings"], report["parameters"]
    shape = found["shape"]
    figure = Figure(figsize=(16.0, 6.0), layout="constrained")
    size = "x".join(map(str, shape[2:]))
    signal = "x".join(map(str, found["signal"]))
    noise = f"noise {p['noise']:g} of the threshold" if p["noise"] else "no noise"
    figure.suptitle(
        f"{report['title']}\n{shape[0]} filters, {shape[1]} channels, {size} taps, stride {p['stride']}, from "
        f"{found['origin']}; circular signal of {signal}, |X| = 1, {noise}; {p['supports']} supports, "
        f"{p['num_draws']:,} draws of signs each; seed {report['seed']}",
        fontsize=10,
    )
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.0, 1.0, 1.3])
    _history(left, found, dataset)
    _correlations(middle, found, dataset)
    _recovery(right, found, dataset)
    return figure


def _history(axes: Axes, found: Mapping[str, Any], dataset: xr.Dataset) -> None:
    steps, values = dataset["step"].to_numpy(), dataset["coherence"].to_numpy()
    axes.plot(steps, values, color=COLOURS[1], linewidth=1.4, label=f"design, best {np.min(values):.4f}")
    axes.plot(0, values[0], "o", color=COLOURS[0], markersize=6, label=f"start, {values[0]:.4f}", zorder=3)
    welch = found["welch"]
    if welch > 0:
        axes.axhline(welch, color="0.3", linestyle=(0, (4, 2)), linewidth=1.1, label=f"Welch's bound {welch:.4f}")
        axes.fill_between([steps[0], max(steps[-1], 1)], 0, welch, color="0.92", linewidth=0)
        axes.set_ylim(0, 1.05 * values.max())
    else:
        axes.set_yscale("log")
        axes.text(0.5, 0.03, "Welch's bound is 0", transform=axes.transAxes, ha="center", fontsize=9, color="0.3")
    axes.set_xlim(0, max(steps[-1], 1))
    axes.set_xlabel("step")
    axes.set_ylabel(r"coherence $\mu$ over all shifts")
    axes.set_title("coherence during the design", fontsize=11)
    axes.legend(fontsize=9, loc="upper right")


def _correlations(axes: Axes, found: Mapping[str, Any], dataset: xr.Dataset) -> None:
    for colour, name in zip(COLOURS, LABELS, strict=False):
        here, facts = dataset.sel(bank=name), found["banks"][name]
        axes.stairs(
            here["density"].to_numpy(), here["edges"].to_numpy(), color=colour, linewidth=1.3,
            label=f"{LABELS[name]}: largest {facts['coherence']:.3f}, rms {facts['rms']:.4f}",
        )  # fmt: skip
        axes.axvline(facts["coherence"], color=colour, linestyle=":", linewidth=1.1)
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("|correlation| of two atoms that overlap")
    axes.set_ylabel("density")
    axes.set_title("correlations over all filters and shifts", fontsize=11)
    axes.legend(fontsize=9, loc="upper right")


def _recovery(axes: Axes, found: Mapping[str, Any], dataset: xr.Dataset) -> None:
    axes.set_yscale("log")
    # Beside each other, where both lost nothing.
    for colour, (name, aside) in zip(COLOURS, (("start", -0.08), ("designed", 0.08)), strict=False):
        cells = [cell for cell in found["cells"] if cell["bank"] == name]
        sizes = np.array([max(cell["reached"]) for cell in cells], float)
        places = np.array([cell["S"] for cell in cells], float) + aside
        rate = np.array([cell["rate"] for cell in cells])
        low, high = np.array([cell["interval"] for cell in cells]).T
        some = rate > 0
        axes.errorbar(
            places[some], rate[some], yerr=np.abs(np.stack([rate - low, high - rate])[:, some]), fmt="o-",
            markersize=4.5, linewidth=1.3, capsize=2, color=colour, label=f"{LABELS[name]}: simulated", zorder=3,
        )  # fmt: skip
        axes.plot(places[~some], high[~some], "v", markersize=5, markerfacecolor="white", color=colour, zorder=3,
                  label=f"{LABELS[name]}: none lost, upper limit" if np.any(~some) else None)  # fmt: skip
        bound = np.asarray(dataset["bound"].sel(bank=name), float)
        says = bound < 1
        if np.any(says):
            drawn = np.clip(bound[: np.count_nonzero(says) + 1], LOWEST / 100, 1.0)
            axes.plot(sizes[: len(drawn)], drawn, "--", color=colour, linewidth=1.3,
                      label=f"{LABELS[name]}: bound (3), vacuous from S = {_vacuous(sizes, says)}")  # fmt: skip
        else:
            axes.plot([], [], "--", color=colour, label=f"{LABELS[name]}: bound (3) is vacuous at every S drawn")
        uniform = found["banks"][name]["uniform"]
        axes.axvline(uniform, color=colour, linestyle=":", linewidth=1.4,
                     label=f"{LABELS[name]}: uniform bound (2), S up to {uniform}")  # fmt: skip
    axes.axhline(1, color="0.6", linewidth=0.7)
    axes.set_ylim(LOWEST, 2)
    axes.set_xlim(0, 1.03 * float(dataset["reached"].max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, which="major", color="0.93", linewidth=0.6)
    axes.set_xlabel("S: most non-zeros in a stripe, as reached")
    axes.set_ylabel("P(support lost)")
    axes.set_title("one thresholding pass", fontsize=11)
    axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _vacuous(sizes: np.ndarray, says: np.ndarray) -> str:
    """Return the first S at which the bound is 1 or more, as text."""
    beyond = sizes[~says]
    return f"{beyond[0]:g}" if beyond.size else f"beyond {sizes[-1]:g}"
