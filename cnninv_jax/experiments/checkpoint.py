"""`cnninv analyze CHECKPOINT`: a file with several convolutions is walked, one row a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnninv_jax import data
from cnninv_jax.experiments.analysis import AnalysisOptions
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions
from cnninv_jax.experiments.walk import WalkOptions, walk_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Options of `analyze` that say something about one layer, and nothing about a whole network.
_ONE_LAYER = ("stride", "padding", "pool", "k", "values", "normalize", "num_draws", "constants", "layout")


@dataclasses.dataclass(frozen=True)
class CheckpointParameters:
    """A network, and how its layers are analysed."""

    checkpoint: str = "fetch:vgg16"
    """File with the convolutions."""
    pictures: str | None = None
    """Folder of pictures, or embedded: the share of non-zeros they leave (known networks only)."""
    signal: int | None = None
    """Side of the signal of the frame bound."""
    random_banks: int = 20
    """Random banks whose coherence is put beside a layer's."""


def as_checkpoint(source: str, options: AnalysisOptions) -> tuple[CheckpointParameters, StudyOptions] | None:
    """Return how to walk ``source``, or None where it is one bank of filters or an ensemble.

    Args:
        source: file, fetch:vgg16, or a random ensemble.
        options: those of `analyze`; ``tensor`` asks for one layer.

    Raises:
        ValueError: the file cannot be read, or an option that belongs to one layer was given with a whole network.
    """
    network = _several(source, options)
    if network is None:
        if options.pictures is not None:
            raise ValueError("expected --pictures with a whole network, got one bank of filters; leave it out")
        return None
    default = AnalysisOptions()
    given = [name for name in _ONE_LAYER if getattr(options, name) != getattr(default, name)]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"{source!r} holds {len(network.layers)} convolutions, and {flags} belong to one: name it with --tensor, "
            "or leave them out"
        )
    if options.signal is not None and not options.signal.isdigit():
        raise ValueError(f"expected --signal to be one number with a whole network, got {options.signal!r}")
    signal = None if options.signal is None else int(options.signal)
    name = source if source.startswith("fetch:") else str(Path(source).expanduser().absolute())
    parameters = CheckpointParameters(name, options.pictures, signal, options.random_banks)
    return parameters, StudyOptions(options.seed, options.out, options.precision, options.quiet)


def _several(source: str, options: AnalysisOptions) -> data.Network | None:
    """Return the network in ``source`` if it has several layers, and none of them was asked for by name."""
    fetched = source.startswith("fetch:")
    file = fetched or (Path(source).expanduser().is_file() and Path(source).suffix != ".npy")
    if options.tensor is not None or not file:
        return None
    try:
        network = data.load_network(source)
    except data.FilterFileError:
        if fetched or options.pictures is not None:
            raise
        return None  # one bank, or a file whose fault the analysis of one bank names
    return network if len(network.layers) > 1 else None


def _compute(parameters: CheckpointParameters, options: StudyOptions, folder: Path) -> Findings:
    p = parameters
    chosen = WalkOptions(
        signal=p.signal,
        random_banks=p.random_banks,
        seed=options.seed,
        precision=options.precision,
        quiet=options.quiet,
    )
    return walk_checkpoint(data.load_network(p.checkpoint), p.pictures, chosen, folder)


def _figure(report: Mapping[str, Any], _: Any) -> Figure:
    from cnninv_jax.experiments.walk_figure import walk_figure

    return walk_figure(report)


CHECKPOINT = Study(
    name="checkpoint",
    title="Every convolution of a checkpoint beside random filters of its size",
    source="Gilbert et al. 2017, Tables 2, 4, 6 and 7, for any network",
    parameters=CheckpointParameters,
    compute=_compute,
    figure=_figure,
)
