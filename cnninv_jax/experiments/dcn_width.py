"""Random DCN, Fig. 6: reconstructions by CD1 with "the actual width of VGG Conv1 to Conv5".

The text does not say what is narrowed: "the smaller the dimension (width) is, the coarser the image is", for CD1(C, D).
Both readings are computed. *channels*: all hidden layers have the C = 64 ... 512 channels of the block. *dimension*:
they also have the block's maps, D = S, S/2, ..., S/16 pixels wide: the picture is brought to D x D, and what comes out
is enlarged again (bilinear) and compared with the picture.
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
from cnninv_jax.experiments.dcn_tables import VARIANTS, content_of, dataset_of, deviation_table, trend_table
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The readings of "width": channels of the hidden layers, and what the maps of a block are besides.
READINGS = {"channels": "the channels of Conv1 to Conv5", "dimension": "the channels and map sizes of Conv1 to Conv5"}


@dataclasses.dataclass(frozen=True)
class WidthParameters(ReconstructionParameters):
    """Parameters of Fig. 6."""

    num_networks: int = 12
    """Random networks for each width (paper: one, in a figure)."""
    blocks: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Blocks of VGG-16 whose widths CD1 is given: 64, 128, 256, 512, 512 channels."""
    reading: Literal["both", "channels", "dimension"] = "both"
    """What the width is: channels at the pictures' size, or channels at the size of the block's maps."""
    last: Literal["conv", "mean"] = "conv"
    """What ends a network: a random convolution (the paper's), or the mean over channels."""


def _compute(p: WidthParameters, options: StudyOptions, folder: Path) -> Findings:
    blocks = checked_values(p.blocks, "--blocks", len(dcn.VGG16_WIDTHS))
    pictures = checked_pictures(p)
    readings = {name: settings_of(name, blocks, p.size, p.last) for name in READINGS if p.reading in (name, "both")}
    work = Reconstructions([s for settings in readings.values() for s in settings], pictures, p, options)
    found = work.similarities(folder, "random reconstructions by width")
    count = min(p.show, len(pictures.names))
    shown = work.reconstructed(found, count)
    note = f"{len(pictures.names)} pictures ({p.pictures}) at {p.size} x {p.size}, {p.num_networks} networks each."
    notes = {
        "channels": "Conv4 and Conv5 have the same number of channels, so they are one line.",
        "dimension": "Pictures brought to D x D, outputs enlarged to the pictures' size; smaller D above.",
    }
    content, tables, arrays = {}, [], []
    for name, settings in readings.items():
        places = [math.log2(_place(name, setting)) for setting in settings]
        content[name] = content_of(settings, found, places, 1)
        title = f"Random DCN, Fig. 6: CD1 with {READINGS[name]}, {VARIANTS[p.last]}"
        tables.append(
            trend_table(
                title, "width", content[name][p.last], "per doubling", explained=bool(tables), notes=[notes[name], note]
            )
        )
        tables.append(deviation_table("Where deviations come from", "width", content[name]))
        arrays.append(
            dataset_of(settings, found, pictures.names, shown, pictures.images[:count], name, kinds=("grey", "colour"))
        )
    return Findings(
        {
            "readings": {name: [setting.name for setting in settings] for name, settings in readings.items()},
            "last": p.last,
            "pictures": len(pictures.names),
            "notes": list(pictures.notes),
            "variants": content,
        },
        tuple(tables),
        _joined(arrays, tuple(readings)),
    )


def settings_of(reading: str, blocks: tuple[int, ...], size: int, last: str) -> list[Setting]:
    """Return the settings of a reading in ascending order of its width."""
    settings = []
    for block in blocks:
        width = dcn.VGG16_WIDTHS[block - 1]
        network = {last: dcn.architecture(1, channels=width, last=last)}
        if reading == "dimension":
            side = -(-size // 2 ** (block - 1))
            label = f"Conv{block}: {width} at {side} x {side}"
            settings.insert(0, Setting(f"Conv{block}, dimension", label, network, 100 + block, side))
        elif block > 1 and block - 1 in blocks and dcn.VGG16_WIDTHS[block - 2] == width:
            before = settings.pop()
            settings.append(dataclasses.replace(before, label=before.label.replace(":", f", Conv{block}:")))
        else:
            settings.append(Setting(f"Conv{block}, channels", f"Conv{block}: {width}", network, block))
    return settings


def _place(reading: str, setting: Setting) -> int:
    """Return the width of a setting, as its reading has it."""
    if reading == "dimension" and setting.side is not None:
        return setting.side
    return setting.widest.convolutions[0].outputs


def _joined(arrays: list[Any], readings: tuple[str, ...]) -> Any:
    """Return one dataset; what belongs to a reading carries its name."""
    import xarray as xr

    shared = ("original",)
    named = [
        each.rename({name: f"{reading}_{name}" for name in each.data_vars if name not in shared})
        for each, reading in zip(arrays, readings, strict=True)
    ]
    return xr.merge(named, compat="identical", join="exact")


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcn_width_figure import width_figure

    return width_figure(report, dataset)


DCN_WIDTH = Study(
    name="dcn-width",
    title="Random reconstruction against the width of the network",
    source="Random DCN, Fig. 6",
    parameters=WidthParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["DCN_WIDTH", "READINGS", "WidthParameters", "settings_of"]
