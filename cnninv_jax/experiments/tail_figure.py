"""The figure of `cnninv failure`, from its saved report: failure probability against delta, every method's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS

#: What a picture calls the sides.
_EVENTS = {
    "upper": r"P$\,(\|W^T z\|^2 > (1 + \delta)\,\|z\|^2)$",
    "lower": r"P$\,(\|W^T z\|^2 < (1 - \delta)\,\|z\|^2)$",
    "both": r"P$\,(\,|\,\|W^T z\|^2 / \|z\|^2 - 1| > \delta)$",
}


def failure_figure(report: Mapping[str, Any]) -> Figure:
    """Draw probability against delta on a logarithmic scale, with 95% intervals, over the closed form.

    Args:
        report: failure.json.
    """
    p, o, curve = report["parameters"], report["options"], report["curve"]
    figure = Figure(figsize=(8.6, 5.6), layout="constrained")
    figure.suptitle("How often eq. (1) of Gilbert et al. 2017 fails\n", fontsize=13, fontweight="bold")
    code = "one code" if p["code"] == "fixed" else "random codes"
    figure.text(
        0.5, 0.935,
        f"M={p['M']}, l={p['ell']}, D={p['D']}, t={p['stride']}, n={p['n']}, k={p['k']}; Gaussian filters, {code}, "
        f"{p['values']} values; {o['num_draws']:,} draws, {o['replicates']} x {o['particles']} particles, "
        f"seed {o['seed']}",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    axes = figure.subplots()
    reference = next(entry for entry in report["methods"] if entry["verdict"] == "reference")
    line = curve["reference"]
    axes.plot(line["deltas"], _numbers(line["probability"]), color="0.15", linewidth=1.4, label=reference["method"])
    _points(axes, curve["deltas"], curve["plain"], COLOURS[2], "s", "plain Monte Carlo", size=9)
    _points(axes, curve["deltas"], curve["importance"], COLOURS[0], "o", "importance sampling")
    _points(axes, curve["splitting"]["deltas"], curve["splitting"], COLOURS[1], "^", "splitting, every level")
    axes.axvline(p["delta"], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yscale("log")
    lowest = min(value for value in _numbers(line["probability"]) if value > 0)
    axes.set_ylim(lowest / 30.0, 2.0)
    axes.set_xlabel(r"$\delta$")
    axes.set_ylabel(_EVENTS[p["side"]])
    axes.grid(color="0.92")
    axes.legend(fontsize=9, frameon=False, loc="lower left", title="95% intervals", title_fontsize=8)
    return figure


def _points(
    axes: Axes,
    deltas: Sequence[float],
    values: Mapping[str, Any],
    colour: str,
    marker: str,
    label: str,
    size: float = 5,
) -> None:
    """Draw estimates with their intervals; one of nothing seen is a downward arrow from its upper end."""
    x = np.asarray(deltas, float)
    y, low, high = (_numbers(values[name]) for name in ("probability", "low", "high"))
    seen = np.isfinite(y) & (y > 0)
    believed = np.asarray(values.get("believed", np.ones(len(x), bool)), bool)
    for mask, face in ((seen & believed, colour), (seen & ~believed, "none")):
        if np.any(mask):
            ends = np.maximum([y[mask] - low[mask], high[mask] - y[mask]], 0.0)
            axes.errorbar(
                x[mask], y[mask], ends, fmt=marker, color=colour, markerfacecolor=face, markersize=size, capsize=3,
                linewidth=1.2, label=label if face == colour else f"{label}, too few effective hits",
            )  # fmt: skip
    nothing = np.isfinite(high) & (y == 0)
    if np.any(nothing):
        axes.plot(
            x[nothing], high[nothing], linestyle="none", marker=r"$\downarrow$", markersize=11, color=colour,
            label=f"{label}: none seen",
        )  # fmt: skip


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """Return JSON's numbers; null stands for what was not finite."""
    return np.array([np.nan if value is None else value for value in values], float)
