"""The figure of the study of reconstruction from CReLU features: pictures by depth, and errors (Shang 2016, Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnninv_jax.experiments.crelu_reconstruction_tables import label, layers_of
from cnninv_jax.experiments.dcn_panels import draw_grid, short
from cnninv_jax.experiments.render import COLOURS

#: Lines and markers of the ways.
STYLES = {"linear": ("-", "o"), "nearest": ("--", "s"), "early": (":", "^"), "joint": ("-.", "D")}
#: Errors above it are drawn on a logarithmic axis.
LARGE = 4.0


def reconstruction_figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    """Draw pictures and their reconstructions, a row for every network and way, beside errors against the depth.

    Args:
        report: report.json.
        dataset: result.nc.
    """
    found, p = report["findings"], report["parameters"]
    there, errors, ssim = (dataset[name].to_numpy() for name in ("there", "error", "ssim"))
    pictures, originals = dataset["reconstruction"].to_numpy(), dataset["original"].to_numpy()
    depths = [int(depth) for depth in dataset["depth"].to_numpy()]
    rows = []
    for at, name in enumerate(dataset["shown"].to_numpy()):
        for row, text in enumerate(dataset["row"].to_numpy()):
            if not there[row].any():
                continue
            cells = [("", originals[at])] + [
                (f"{errors[row, column, at]:.3f} / {ssim[row, column, at]:.2f}", pictures[row, column, at])
                if there[row, column] else ("", None)
                for column in range(len(depths))
            ]  # fmt: skip
            kind, pooling, way = str(text).split(", ")
            beside = pooling.replace(" after", "\nafter")  # no longer than a row is high
            rows.append((f"{short(str(name))}\n{kind}\n{beside}\n{way}", cells))
    side = 1.55 if len(rows) <= 6 else 1.25
    wide, high = side * (1 + len(depths)) + 0.9, (side + 0.22) * len(rows) + 0.6
    figure = Figure(figsize=(wide + 4.8, max(high, 4.0) + 1.0), layout="constrained")
    given = f"; given kernels: {found['given']}" if found["given"] else ""
    figure.suptitle(
        f"{report['source']}: reconstruction from conv + CReLU features, {p['size']} x {p['size']}{given}", fontsize=11,
        wrap=True,
    )  # fmt: skip
    parts: Any = figure.subfigures(1, 2, width_ratios=(wide, 4.8))
    parts[0].suptitle("|x - x'| / |x| of the network's input / SSIM of the picture", fontsize=10)
    draw_grid(parts[0], rows, ["picture", *(layers_of(depth) for depth in depths)])
    panels = parts[1].subplots(2, 1)
    _curves(panels[0], found)
    _ratios(panels[1], found)
    for axes in panels:
        axes.set_xticks(range(1, max(depths) + 1))
        axes.set_xlim(0.7, max(depths) + 0.3)
        axes.grid(color="0.93")
    return figure


def _curves(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw errors against the depth."""
    for at, (kind, pooled) in enumerate(_settings(found)):
        own = [cell for cell in found["cells"] if (cell["kind"], tuple(cell["pooled"])) == (kind, pooled)]
        for way, (style, marker) in STYLES.items():
            seen = [(cell["depth"], cell["ways"][way]["error"]) for cell in own if way in cell["ways"]]
            if not seen:
                continue
            depth = [place for place, _ in seen]
            mean, low, high = (
                np.array([np.nan if one[name] is None else one[name] for _, one in seen], float)
                for name in ("mean", "low", "high")
            )
            bars = np.nan_to_num(np.stack([mean - low, high - mean]))
            axes.errorbar(
                depth, mean, bars, fmt=marker, linestyle=style, color=COLOURS[at % len(COLOURS)],
                markersize=7 - 2 * (at % 3), capsize=3,
                linewidth=1.4, label=f"{label(kind, pooled)}, {way}",
            )  # fmt: skip
    axes.set_ylim(bottom=0.0)
    high = axes.get_ylim()[1]
    if high > LARGE:
        axes.set_yscale("symlog", linthresh=1.0, linscale=1.0)
    # Room for the legend.
    axes.set_ylim(0.0, high * 1.45 if high <= LARGE else high**2)
    axes.set_xlabel("layers")
    axes.set_ylabel("|x - x'| / |x|" + (" (linear to 1, then logarithmic)" if high > LARGE else ""))
    over = sorted({cell["ways"]["linear"]["error"]["over"] for cell in found["cells"] if _known(cell)})
    axes.set_title("Error by depth" + (f" (bars: 95%, over {' or '.join(over)})" if over else ""), fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="upper left")


def _ratios(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw how many equations a layer's features give for the unknowns of its input."""
    for at, (kind, pooled) in enumerate(_settings(found)):
        own = [one for one in found["layers"] if (one["kind"], tuple(one["pooled"])) == (kind, pooled)]
        axes.plot(
            [one["layer"] for one in own], [one["ratio"] for one in own], "o", color=COLOURS[at % len(COLOURS)],
            linestyle=("-", "--", "-.", ":")[at % 4], markersize=7 - 2 * (at % 3), label=label(kind, pooled),
        )  # fmt: skip
    axes.axhline(1.0, color="0.4", linewidth=0.9, linestyle=":")
    axes.annotate("as many as unknowns", (0.98, 1.0), xycoords=("axes fraction", "data"), fontsize=8, ha="right",
                  va="bottom", color="0.3")  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel("equations / unknowns")
    axes.set_title("What a layer's features say of its input", fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="upper right")


def _settings(found: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    return list(dict.fromkeys((cell["kind"], tuple(cell["pooled"])) for cell in found["cells"]))


def _known(cell: Mapping[str, Any]) -> bool:
    high = cell["ways"]["linear"]["error"]["high"]
    return high is not None and bool(np.isfinite(high))


__all__ = ["STYLES", "reconstruction_figure"]
