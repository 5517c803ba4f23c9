"""Random DCN, Fig. 7c: similarity of random reconstructions by Conv1_1-DeConv1_1 against the size of its kernels.

With the mean over channels at the end, the network has a limit f* of infinite width (Theorem 1), whose similarity is
computed for every kernel size: what falls there falls because of the kernel alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnninv_jax import dcn
from cnninv_jax.experiments.dcn_reconstruction import (
    ReconstructionParameters,
    Reconstructions,
    Setting,
    checked_pictures,
    checked_values,
    hidden_layers,
)
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


@dataclasses.dataclass(frozen=True)
class KernelParameters(ReconstructionParameters):
    """Parameters of Fig. 7c."""

    lengths: tuple[int, ...] = (3, 5, 7, 9, 11, 13, 15)
    """Kernel sizes, one network architecture each (paper: a plot whose numbers are not in the text)."""
    channels: int = 64
    """Filters of conv1_1 (VGG-16: 64)."""


def _compute(p: KernelParameters, options: StudyOptions, folder: Path) -> Findings:
    lengths = checked_values(p.lengths, "--lengths", p.size)
    positive(p.channels, "--channels", 1 << 14)
    pictures = checked_pictures(p)
    settings = [
        Setting(f"{length} x {length}", str(length), {v: dcn.conv1_1(p.channels, length, v) for v in VARIANTS}, length)
        for length in lengths
    ]
    work = Reconstructions(settings, pictures, p, options)
    found = work.similarities(folder, "random reconstructions by Conv1_1-DeConv1_1")
    # By halves, so that the slope is that of two more pixels, which is the step from odd to odd.
    content = content_of(settings, found, [length / 2 for length in lengths], -1)
    limits = None
    if p.filters in ISOTROPIC:
        layers = [hidden_layers(setting.networks["mean"]) for setting in settings]
        limits = [
            limit_of(found[setting.name]["mean"].values, work.limits(each)[0])
            for setting, each in zip(settings, layers, strict=True)
            if each is not None
        ]
    count = min(p.show, len(pictures.names))
    shown = work.reconstructed(found, count)
    note = (
        f"{len(pictures.names)} pictures ({p.pictures}) at {p.size} x {p.size}, {p.num_networks} networks each, "
        f"{p.channels} channels."
    )
    wide = "infinitely wide: similarity of the limit f* (Thm 1) for this kernel size, exact for these pictures."
    tables = (
        trend_table(
            f"Random DCN, Fig. 7c: Conv1_1-DeConv1_1, {VARIANTS['conv']}", "kernel size", content["conv"],
            "per 2 pixels", notes=[note],
        ),
        trend_table(
            f"Random DCN, Fig. 7c: Conv1_1-DeConv1_1, {VARIANTS['mean']}", "kernel size", content["mean"],
            "per 2 pixels", limits=limits, explained=True, notes=[] if limits is None else [wide],
        ),
        deviation_table("Where deviations come from", "kernel size", content),
    )  # fmt: skip
    return Findings(
        {
            "lengths": lengths,
            "channels": p.channels,
            "pictures": len(pictures.names),
            "notes": list(pictures.notes),
            "variants": content,
            "limits": limits,
        },
        tables,
        dataset_of(settings, found, pictures.names, shown, pictures.images[:count], "length"),
    )


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcn_kernel_figure import kernel_figure

    return kernel_figure(report, dataset)


DCN_KERNEL = Study(
    name="dcn-kernel",
    title="Random reconstruction against the size of the kernels",
    source="Random DCN, Fig. 7c",
    parameters=KernelParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["DCN_KERNEL", "KernelParameters"]
