"""The figure of `gilbert-bounds`, from its saved report and arrays: every bound against what was observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.render import COLOURS

if TYPE_CHECKING:
    import xarray as xr

#: Panels of inequalities: title, axis label, and the bounds in it with their short names.
_PANELS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    (
        "Lemma B.1",
        "factor",
        {
            "b1_analysis": r"(5) $\|W_\Omega x\| / \|x\|$",
            "b1_gram_high": r"(6) $\|W_\Pi W_\Pi^T z\| / \|z\|$",
            "b1_gram_low": r"(7) the same, from below",
        },
    ),
    ("Lemma B.2", r"$\|W_S W^T z|_{S^c}\| / \|z|_{S^c}\|$", {"b2": "random support $S$"}),
    ("Lemma B.3", r"$\|z|_{\Omega^c}\| / \|z\|$", {"b3": "missed energy"}),
    ("Lemma B.4", r"$\|z - \hat z\| / \|z\|$", {"b4": "error of the code"}),
    (
        "Theorem 3.3",
        r"$\|x - \hat x\| / \|x\|$",
        {"theorem_3_3": "as printed", "theorem_3_3_refined": "its proof, not rounded up"},
    ),
    (
        "Theorem 3.3, other switches",
        r"$\|x - \hat x\| / \|x\|$",
        {"known": "those of $z$", "fixed": "naive unsampling"},
    ),
)
#: Where an error of one stands: an estimate of zero has it.
_ERRORS = ("Lemma B.3", "Lemma B.4", "Theorem 3.3", "Theorem 3.3, other switches")


def bounds_figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    """Draw six panels of inequalities, and two of probabilities.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    p, found = report["parameters"], report["findings"]
    figure = Figure(figsize=(16.0, 8.4), layout="constrained")
    figure.suptitle("Gilbert et al. 2017: bound against observed, with exact model-RIP constants\n", fontsize=14,
                    fontweight="bold")  # fmt: skip
    draws = next(iter(found["bounds"].values()))["draws"]
    figure.text(
        0.5, 0.955,
        f"K={p['K']}, l={p['ell']}, D={p['D']}, t={p['stride']}, n={found['n']}, k={p['k']}, "
        f"M={', '.join(map(str, found['channels']))}; Gaussian filters, {p['values']} values; {draws:,} draws, "
        f"{dataset.sizes['draw']:,} of them shown; seed {report['seed']}. Line: equality; dotted: an estimate of zero",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    grid = figure.subplots(2, 4)
    for axes, (title, label, names) in zip(grid.ravel()[[0, 1, 2, 3, 4, 5]], _PANELS, strict=True):
        _inequality(axes, dataset, found["bounds"], title, label, names)
    _concentration(grid[1, 2], p, dataset)
    _constants(grid[1, 3], p, found, dataset)
    return figure


def _inequality(
    axes: Axes, dataset: xr.Dataset, found: Mapping[str, Any], title: str, label: str, names: Mapping[str, str]
) -> None:
    """Draw observed over bound, one dot per draw, and the line on which they are equal."""
    seen = []
    for colour, (name, short) in zip(COLOURS, names.items(), strict=False):
        x = dataset["bound"].sel(bound_name=name).to_numpy()
        y = dataset["observed"].sel(bound_name=name).to_numpy()
        mask = np.isfinite(x) & (x > 0) & (y > 0)
        entry = found[name]
        loose = "-" if entry["loose_median"] is None else f"x{entry['loose_median']:.3g}"
        text = f"{short}: {loose}, {entry['violated']:,} violated"
        axes.plot(x[mask], y[mask], ".", color=colour, markersize=2.5, alpha=0.5, label=text)
        seen += [x[mask], y[mask]]
    x, y = np.concatenate(seen[::2]), np.concatenate(seen[1::2])
    (left, right), (low, high) = ((_range(values) if len(values) else (0.1, 10.0)) for values in (x, y))
    line = np.array([min(left, low), max(right, high)])
    axes.plot(line, line, color="0.2", linewidth=1.0, zorder=0)
    if title in _ERRORS:
        axes.axvline(1.0, color="0.6", linestyle=":", linewidth=1.0, zorder=0)
    # Room for the legend above the dots.
    if title == "Lemma B.1":
        axes.set_xlim(left, right)
        axes.set_ylim(low, high + 0.45 * (high - low))
    else:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(low, high * (high / low) ** 0.4)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("bound")
    axes.set_ylabel("observed " + label)
    legend = axes.legend(fontsize=7.5, loc="upper left", framealpha=0.9, title="median bound / observed",
                         title_fontsize=7)  # fmt: skip
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)  # type: ignore[union-attr]  # a line per entry
        handle.set_markersize(6)  # type: ignore[union-attr]


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return where all but the outermost thousandths lie, and a little more."""
    low, high = np.quantile(values, [0.001, 0.999])
    return float(low / 1.15), float(high * 1.15)


def _concentration(axes: Axes, p: Mapping[str, Any], dataset: xr.Dataset) -> None:
    """Draw eq. (4): how often one code's ratio is off by more than delta, beside the Gaussian bound."""
    delta = dataset["delta"].to_numpy()
    for colour, m in zip(COLOURS, _spread(dataset["M"].to_numpy(), 3), strict=False):
        cut = dataset.sel(M=m)
        probability = cut["deviations"].to_numpy() / max(float(cut["deviation_draws"]), 1.0)
        _curve(axes, delta, probability, colour, f"$M\\ell$ = {m * p['ell']}")
        axes.plot(delta, cut["equation_4"], color=colour, linewidth=1.1)
    _probability_axes(axes, "Equation (4), one code", r"P$\,(|\,\|W^T z\|^2 / \|z\|^2 - 1| > \delta)$", 2e-5)
    axes.legend(fontsize=8, loc="upper right", title="dots: observed; lines: bound, Gaussian filters", title_fontsize=7)


def _constants(axes: Axes, p: Mapping[str, Any], found: Mapping[str, Any], dataset: xr.Dataset) -> None:
    """Draw P(delta_k > delta), beside Thm 3.1 with the C that its cells calibrate."""
    delta = dataset["delta"].to_numpy()
    stride, m = int(dataset["stride"][0]), int(dataset["M"][dataset.sizes["M"] // 2])
    counts = dataset.sel(stride=stride, M=m)
    for colour, k in zip(COLOURS, _spread(dataset["k"].to_numpy(), 2), strict=False):
        probability = counts["failures"].sel(k=k).to_numpy() / max(float(counts["banks"]), 1.0)
        _curve(axes, delta, probability, colour, f"k = {k}")
        for name, style in (("ijcai", "-"), ("arxiv", "--"), ("gaussian", ":")):
            axes.plot(delta, counts[f"theorem_3_1_{name}"].sel(k=k), color=colour, linestyle=style, linewidth=1.1)
    _probability_axes(axes, f"Theorem 3.1, $M\\ell$ = {m * p['ell']}, t = {stride}", r"P$\,(\delta_k > \delta)$", 2e-5)
    names = {"-": "IJCAI", "--": "arXiv", ":": "Gaussian, no constant"}
    for style, name in names.items():
        constant = found["theorem_3_1"].get(name.lower(), {}).get("C")
        text = name if constant is None else f"{name}, C = {constant:.3g}"
        axes.plot([], [], color="0.3", linestyle=style, label=text)
    axes.legend(fontsize=8, loc="upper right", title="dots: observed; lines: bounds", title_fontsize=7)


def _curve(axes: Axes, delta: np.ndarray, probability: np.ndarray, colour: str, label: str) -> None:
    seen = probability > 0
    axes.plot(delta[seen], probability[seen], "o", color=colour, markersize=3, label=label)


def _probability_axes(axes: Axes, title: str, label: str, lowest: float) -> None:
    axes.set_yscale("log")
    # Room for the legend above 1.
    axes.set_ylim(lowest, 100.0)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(r"$\delta$")
    axes.set_ylabel(label)
    axes.grid(color="0.92")


def _spread(values: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """Return so many of the values, the first and the last among them."""
    at = np.unique(np.round(np.linspace(0, len(values) - 1, min(count, len(values)))).astype(int))
    return [int(values[i]) for i in at]
