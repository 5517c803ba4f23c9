"""The figure of `dcn-train`: training curves, losses, and pictures that came back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.dcn_panels import draw_grid, short
from cnninv_jax.experiments.render import COLOURS

_KIND = {"random": COLOURS[0], "learned": COLOURS[1]}
_STYLES = ("-", "--", ":", "-.", (0, (1, 3)))


def train_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw loss against steps for random and learned encoders and for laws of filters, final losses, and pictures.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    found, p = report["findings"], report["parameters"]
    held = found["data"]
    names = [name for name in dataset.data_vars if name != "original"]
    count = dataset.sizes["picture"]
    below = 1.45 * count + 0.9
    width = max(14.0, 1.3 * (len(names) + 1))
    figure = Figure(figsize=(width, 5.6 + below), layout="constrained")
    source = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(
        held["name"], "stand-in data (patches of photographs), NOT CIFAR-10"
    )
    features = "features of unit power" if p["scale"] == "unit" else "features as they are"
    figure.suptitle(
        f"{report['source']}: decoders above random and learned encoders\n{source}, {held['train']:,} pictures, "
        f"{p['num_steps']} steps of {p['batch_size']}, {features}, seeds: {p['num_seeds']}",
        fontsize=12,
    )
    parts: Any = figure.subfigures(2, 1, height_ratios=(5.0, below))
    others = [case for case in found["cases"].values() if case["group"] != "main"]
    panels = parts[0].subplots(1, 3 if others else 2)
    _main(panels[0], found, p)
    if others:
        _others(panels[1], found, p, others)
    _bars(panels[-1], found)
    rows = []
    for at in range(count):
        original = dataset["original"].to_numpy()[at]
        cells = [("", original), *(("", dataset[name].to_numpy()[at]) for name in names)]
        rows.append((short(str(dataset["picture"].to_numpy()[at])), cells))
    parts[1].suptitle("Larger pictures through encoder and decoder (seed 0), not in the training set", fontsize=11)
    draw_grid(parts[1], rows, ["picture", *(_column(found["cases"][name]) for name in names)])
    return figure


def _column(case: Mapping[str, Any]) -> str:
    kind = case["encoder"] if case["encoder"] != "gaussian" else f"N(0, {case['deviation']:g}²)"
    network = "" if case["network"] == "vgg16" else "AlexNet "
    return f"{network}CD{case['depth']}\n{kind}" + ("\nraw" if case["group"] == "deviation" else "")


def _main(axes: Axes, found: Mapping[str, Any], p: Mapping[str, Any]) -> None:
    groups: dict[tuple[str, int, str], list[list[float]]] = {}
    for case in found["cases"].values():
        if case["group"] == "main":
            groups.setdefault((case["network"], case["depth"], case["kind"]), []).append(case["curve"])
    places = list(dict.fromkeys((network, depth) for network, depth, _ in groups))
    for (network, depth, kind), curves in groups.items():
        style = _STYLES[places.index((network, depth)) % len(_STYLES)]
        steps = (np.arange(len(curves[0])) + 0.5) / len(curves[0]) * p["num_steps"]
        for curve in curves:
            axes.plot(steps, curve, color=_KIND[kind], linewidth=0.5, alpha=0.3, linestyle=style)
        shown = "" if network == "vgg16" else "AlexNet "
        axes.plot(
            steps, np.mean(curves, axis=0), color=_KIND[kind], linestyle=style, linewidth=1.6,
            label=f"{shown}CD{depth}, {kind}",
        )  # fmt: skip
    axes.axhline(found["variance"], color="0.6", linewidth=0.8)
    axes.annotate("variance of a pixel", (0.98, found["variance"]), xycoords=("axes fraction", "data"), ha="right",
                  va="bottom", fontsize=8, color="0.4")  # fmt: skip
    _curve_axes(axes, "random and learned encoders (thin: seeds)")


def _others(axes: Axes, found: Mapping[str, Any], p: Mapping[str, Any], others: list[Mapping[str, Any]]) -> None:
    first = others[0]
    base = [
        case for case in found["cases"].values()
        if case["group"] == "main" and case["kind"] == "random" and case["seed"] == 0
        and (case["network"], case["depth"]) == (first["network"], first["depth"])
    ]  # fmt: skip
    for place, case in enumerate([*base, *others]):
        steps = (np.arange(len(case["curve"])) + 0.5) / len(case["curve"]) * p["num_steps"]
        raw = case["group"] == "deviation"
        label = f"N(0, {case['deviation']:g}²)" if case["encoder"] == "gaussian" else case["encoder"]
        axes.plot(
            steps, case["curve"], color=COLOURS[place % len(COLOURS)], linestyle="--" if raw else "-", linewidth=1.3,
            label=label + (", raw features" if raw else ""),
        )  # fmt: skip
    _curve_axes(axes, f"laws of random filters, CD{first['depth']}, one seed")


def _curve_axes(axes: Axes, title: str) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("training loss (mean squared error of a pixel)")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, frameon=False)


def _bars(axes: Axes, found: Mapping[str, Any]) -> None:
    width = 0.2
    for place, entry in enumerate(found["comparisons"]):
        sets = [(kind, *one) for kind in ("random", "learned") for one in (("train_loss", 1.0), ("test_loss", 0.5))]
        for at, (kind, name, shade) in enumerate(sets):
            label = f"{kind}, {'training' if name == 'train_loss' else 'test'}" if place == 0 else None
            axes.bar(
                place + (at - 1.5) * width, entry[kind][name], 0.92 * width, color=_KIND[kind], alpha=shade, label=label
            )
    labels = [
        ("" if entry["network"] == "vgg16" else "AlexNet\n") + f"CD{entry['depth']}" for entry in found["comparisons"]
    ]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("mean squared error of a pixel")
    axes.set_title("when training ended (mean over seeds)", fontsize=11)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(fontsize=8, frameon=False, ncols=2)


__all__ = ["train_figure"]
