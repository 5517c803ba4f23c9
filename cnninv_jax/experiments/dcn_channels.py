"""Random DCN, Figs. 7a, 7b and 8: similarity of random reconstructions against the number of random channels.

Every hidden layer of CD1 has the same number of channels. As the paper has them, (a) ends with a random convolution
and (b) with the mean over channels; both are computed from the same hidden layers. The mean has a limit of infinite
width (Theorem 1): its similarity is where (b) goes.
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
    hidden_layers,
)
from cnninv_jax.experiments.dcn_statistics import paired_change, with_half_width
from cnninv_jax.experiments.dcn_tables import (
    VARIANTS,
    content_of,
    dataset_of,
    deviation_table,
    limit_of,
    trend_table,
)
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions
from cnninv_jax.limits.laws import ISOTROPIC
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Why the convolution has no line for infinite width.
_FIELD = (
    "A random convolution at the end has no limit of infinite width: its output tends to a Gaussian field, whose "
    "similarity stays random. So networks go on to differ, and the mean levels off."
)


@dataclasses.dataclass(frozen=True)
class ChannelsParameters(ReconstructionParameters):
    """Parameters of Figs. 7a, 7b and 8."""

    channels: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    """Channels of all hidden layers, one network architecture each (paper: 4, 8, up to 2048). A picture in C channels
    takes about 3 C S^2 numbers and its two large filter banks 36 C^2: at 2048 and 224 x 224 some 2 GB, and 3.8e12
    operations."""
    depth: int = 1
    """k of CDk (paper: 1 in the figures; 2 in a remark). From 2 on, max-pooling leaves no limit to compare with."""
    length: int = 3
    """Filter length."""
    upsampling: Literal["zeros", "nearest"] = "zeros"
    """How the decoder doubles maps: a value first in a block of zeros (as the text has it), or repeated."""


def _compute(p: ChannelsParameters, options: StudyOptions, folder: Path) -> Findings:
    channels = checked_values(p.channels, "--channels", 1 << 14)
    positive(p.depth, "--depth", len(dcn.VGG16_WIDTHS))
    positive(p.length, "--length", p.size)
    pictures = checked_pictures(p)
    settings = [
        Setting(
            f"{count} channels",
            str(count),
            {
                v: dcn.architecture(p.depth, channels=count, length=p.length, last=v, upsampling=p.upsampling)
                for v in VARIANTS
            },
            count,
        )
        for count in channels
    ]
    work = Reconstructions(settings, pictures, p, options)
    found = work.similarities(folder, f"random reconstructions by CD{p.depth}")
    content = content_of(settings, found, [math.log2(count) for count in channels], 1)
    layers = hidden_layers(settings[0].networks["mean"]) if p.filters in ISOTROPIC else None
    widest = found[settings[-1].name]
    alike, maps = (None, None) if layers is None else work.limits(layers)
    limit = None if alike is None else limit_of(widest["mean"].values, alike)
    gain = paired_change(widest["conv"].values, widest["mean"].values)
    count = min(p.show, len(pictures.names))
    shown = work.reconstructed(found, count)
    extra = {} if maps is None else {"limit": maps[:count]}
    name = f"CD{p.depth}"
    note = f"{len(pictures.names)} pictures ({p.pictures}) at {p.size} x {p.size}, {p.num_networks} networks each."
    tables = [
        trend_table(
            f"Random DCN, Fig. {figure}: {name}, {VARIANTS[variant]}", "channels", content[variant], "per doubling",
            limit=limit if variant == "mean" else None, explained=variant == "mean", notes=notes,
        )
        for variant, figure, notes in (
            ("conv", "7a", [note, _FIELD]),
            ("mean", "7b", _mean_notes(limit, gain, channels[-1])),
        )
    ]  # fmt: skip
    tables.append(deviation_table(f"{name}: where deviations come from", "channels", content))
    return Findings(
        {
            "architecture": name,
            "channels": channels,
            "pictures": len(pictures.names),
            "notes": list(pictures.notes),
            "variants": content,
            "limit": limit,
            "mean_against_conv": gain,
        },
        tuple(tables),
        dataset_of(settings, found, pictures.names, shown, pictures.images[:count], "channels", extra=extra),
    )


def _mean_notes(limit: Mapping[str, Any] | None, gain: Mapping[str, float], widest: int) -> list[str]:
    notes = [
        f"With {widest} channels the mean is by {with_half_width(gain, 'value', sign=True)} more similar than the "
        "convolution (same hidden layers, so paired)."
    ]
    if limit is not None:
        notes.append(
            "infinitely wide: similarity of the limit f* (Thm 1), exact for these pictures; change: from the widest "
            "networks here."
        )
    return notes


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcn_channels_figure import channels_figure

    return channels_figure(report, dataset)


DCN_CHANNELS = Study(
    name="dcn-channels",
    title="Random reconstruction against the number of channels",
    source="Random DCN, Figs. 7a, 7b and 8",
    parameters=ChannelsParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["DCN_CHANNELS", "ChannelsParameters"]
