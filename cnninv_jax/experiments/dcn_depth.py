"""Random DCN, Fig. 5: what comes out of CD1 to CD5 with random weights, and how similar it is to the picture.

The paper shows one picture; here similarities come with intervals over networks. That "the quality decays by about a
half" from CD1 to CD2 (Sec. 4.2) is put to the test too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cnninv_jax import dcn
from cnninv_jax.experiments.dcn_reconstruction import (
    ReconstructionParameters,
    Reconstructions,
    Setting,
    checked_pictures,
    checked_values,
)
from cnninv_jax.experiments.dcn_statistics import ratio
from cnninv_jax.experiments.dcn_tables import VARIANTS, content_of, dataset_of, deviation_table, trend_table
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, Table
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How maps are doubled, in words.
UPSAMPLINGS = {"zeros": "upsampling by zero insertion", "nearest": "upsampling by repetition"}
#: "About a half": a ratio CD2 / CD1 between these.
HALF = (0.4, 0.6)


@dataclasses.dataclass(frozen=True)
class DepthParameters(ReconstructionParameters):
    """Parameters of Fig. 5."""

    num_networks: int = 8
    """Random networks for each depth (paper: one, in a figure)."""
    show: int = 2
    """Pictures whose reconstructions are kept and drawn."""
    depths: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Values of k of CDk. CD5 at 224 x 224 takes 3.1e10 multiply-adds a picture and 0.4 GB."""
    same_channels: int | None = None
    """Channels of every hidden layer, as in Sec. 4.2; by default VGG-16's widths."""
    length: int = 3
    """Filter length."""
    last: Literal["conv", "mean"] = "conv"
    """What ends a network: a random convolution (the paper's), or the mean over channels."""
    upsampling: Literal["both", "zeros", "nearest"] = "both"
    """How the decoder doubles maps: a value first in a block of zeros (as the text has it), repeated, or both ways with
    the same weights."""


def _compute(p: DepthParameters, options: StudyOptions, folder: Path) -> Findings:
    depths = checked_values(p.depths, "--depths", len(dcn.VGG16_WIDTHS))
    if p.same_channels is not None:
        positive(p.same_channels, "--same-channels", 1 << 14)
    positive(p.length, "--length", p.size)
    pictures = checked_pictures(p)
    settings = [
        Setting(
            f"CD{depth}",
            f"CD{depth}",
            {
                way: dcn.architecture(depth, channels=p.same_channels, length=p.length, last=p.last, upsampling=way)
                for way in UPSAMPLINGS
                if p.upsampling in (way, "both")
            },
            depth,
        )
        for depth in depths
    ]
    work = Reconstructions(settings, pictures, p, options)
    found = work.similarities(folder, "random reconstructions by depth")
    content = content_of(settings, found, depths, -1)
    left = {
        way: {
            setting.name: ratio(found[setting.name][way].values, found[settings[0].name][way].values)
            for setting in settings[1:]
        }
        for way in content
    }
    count = min(p.show, len(pictures.names))
    shown = work.reconstructed(found, count)
    widths = "VGG-16's widths" if p.same_channels is None else f"{p.same_channels} channels in every hidden layer"
    title = f"Random DCN, Fig. 5: {widths}, {VARIANTS[p.last]}"
    note = f"{len(pictures.names)} pictures ({p.pictures}) at {p.size} x {p.size}, {p.num_networks} networks each."
    tables = [
        trend_table(f"{title}, {UPSAMPLINGS[way]}", "network", seen, "per block", explained=bool(at), notes=[note][at:])
        for at, (way, seen) in enumerate(content.items())
    ]
    if len(settings) > 1:
        tables.append(_left_table(left, settings[0].name))
    tables.append(deviation_table("Where deviations come from", "network", content))
    return Findings(
        {
            "widths": widths,
            "depths": depths,
            "last": p.last,
            "pictures": len(pictures.names),
            "notes": list(pictures.notes),
            "variants": content,
            "left": left,
        },
        tuple(tables),
        dataset_of(settings, found, pictures.names, shown, pictures.images[:count], "depth", kinds=("grey", "colour")),
    )


def _left_table(left: Mapping[str, Mapping[str, Mapping[str, float]]], first: str) -> Table:
    rows = []
    for way, ratios in left.items():
        for name, seen in ratios.items():
            printed = first == "CD1" and name == "CD2"
            verdict = ""
            if printed:
                inside = HALF[0] <= seen["low"] and seen["high"] <= HALF[1]
                outside = seen["high"] < HALF[0] or seen["low"] > HALF[1]
                verdict = "agrees" if inside else "differs" if outside else "undecided"
            rows.append((f"{name}, {way}", _with_ends(seen), "about a half" if printed else "-", verdict))
    notes = (
        f"Mean SSIM divided by that of {first}; Fieller's 95% interval over networks. Paper: Sec. 4.2, on 50 pictures "
        f"of ILSVRC-2012, number of channels not said; counted as agreeing from {HALF[0]:g} to {HALF[1]:g}.",
    )
    return Table(f"What is left of {first}'s SSIM", ("network", "ratio", "paper", "verdict"), tuple(rows), notes)


def _with_ends(seen: Mapping[str, float]) -> str:
    """Return ``0.42 (0.31-0.56)``: a ratio's interval is not symmetric."""
    if math.isnan(seen["low"]):
        return f"{seen['value']:.3f}"
    return f"{seen['value']:.3f} ({seen['low']:.3f}-{seen['high']:.3f})"


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcn_depth_figure import depth_figure

    return depth_figure(report, dataset)


DCN_DEPTH = Study(
    name="dcn-depth",
    title="Random reconstruction against the depth of the network",
    source="Random DCN, Fig. 5",
    parameters=DepthParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["DCN_DEPTH", "DepthParameters"]
