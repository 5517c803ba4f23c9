"""Random DCN, 3.2 and A.2: decoders that learn to undo random and learned encoders.

Every training is one `Case`; those of a group differ in one thing only. Seeds are paired: the same first filters of the
decoder, the same order of the pictures, above a random and above a learned encoder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cnninv_jax.experiments.classification import Steps
from cnninv_jax.experiments.dcn_train_cases import Trainer, cases_of
from cnninv_jax.experiments.dcn_train_tables import summarised, tables
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class TrainParameters:
    """Data, encoders and training."""

    cifar: str = "embedded"
    """Pictures to train on: folder or archive of CIFAR-10 or CIFAR-100, fetch:cifar10, or embedded: patches of
    photographs, no download."""
    pictures: str = "embedded"
    """Larger pictures that are reconstructed for the figure: a folder, or embedded."""
    picture_size: int = 64
    """Side they are brought to."""
    weights: str | None = None
    """VGG-16's filters (.npz, .safetensors, .h5, or fetch:vgg16): the learned encoder, at full width. By default it is
    trained here to classify the pictures of --cifar."""
    depths: tuple[int, ...] = (1, 2)
    """k of CDk: the features are those of conv[k]."""
    networks: tuple[Literal["vgg16", "alexnet"], ...] = ("vgg16",)
    """Architectures."""
    width: float = 1 / 8
    """Multiplies the networks' filters; 1 with --weights."""
    num_seeds: int = 3
    """Trainings of every network, depth and kind of encoder."""
    laws: tuple[Literal["gaussian", "uniform", "logistic", "laplace"], ...] = ("uniform", "logistic", "laplace")
    """Other laws of random filters, with the parameters of A.1.2, at the greatest depth (Fig. 10c); the main comparison
    has Gaussian filters of deviation 0.015."""
    deviations: tuple[float, ...] = (0.015, 0.1, 1.0)
    """Deviations of Gaussian filters, at the greatest depth, features as they are whatever --scale says (Fig. 10b)."""
    scale: Literal["unit", "raw"] = "unit"
    """Features are divided by their root mean square, so that encoders differ in what their features hold and not in
    their size; or come as they are, as in the paper."""
    num_steps: int = 250
    """Steps of every decoder (paper: up to 200,000)."""
    batch_size: int = 32
    """Pictures per step, as in the paper."""
    rate: float = 3e-3
    """Learning rate of Adam at the beginning; a tenth after 60% of the steps, a hundredth after 85% (paper: 1e-4 over
    200,000 steps)."""
    weight_decay: float = 4e-4
    """Of kernels, as in the paper."""
    encoder_steps: int = 400
    """Steps of the classifier from which a learned encoder comes, where there are no --weights."""
    limit: int | None = None
    """Pictures of --cifar used."""
    test: int = 500
    """Test pictures."""
    show: int = 3
    """Larger pictures shown."""


def _compute(parameters: TrainParameters, options: StudyOptions, folder: Path) -> Findings:
    from cnninv_jax import data

    p = parameters
    _check(p, options)
    cifar = data.load_cifar(p.cifar, limit_train=p.limit, limit_test=p.test)
    pictures = data.load_pictures(p.pictures, size=p.picture_size, limit=p.show)
    trainer = Trainer(p, cifar, pictures.images, options.seed, folder)
    cases = cases_of(p)
    total = sum(trainer.steps_of(case) for case in cases) + trainer.encoder_total(cases)
    found: dict[str, dict[str, Any]] = {}
    shown: dict[str, np.ndarray] = {}
    with progress_bar("decoders", total, quiet=options.quiet) as bar:
        steps = Steps(bar)
        for case in cases:
            found[case.name], pictured = trainer.run(case, steps)
            steps.end(p.num_steps, f"{case.name}: test loss {found[case.name]['test_loss']:.4g}")
            if case.seed == 0:
                shown[case.name] = pictured
    variance = float(np.var(np.asarray(cifar.train.images[:2000], np.float64) / 255, axis=(0, 2, 3)).mean())
    content = {
        "data": {"name": cifar.name, "source": cifar.source, "train": len(cifar.train.labels),
                 "test": len(cifar.test.labels), "notes": list(cifar.notes)},
        "variance": variance,
        "encoders": trainer.encoders,
        "notes": trainer.notes,
        "cases": found,
    }  # fmt: skip
    content["comparisons"] = summarised(content, p)
    return Findings(content, tables(content, p), _pictures(shown, pictures))


def _pictures(shown: Mapping[str, np.ndarray], pictures: Any) -> Any:
    """Return the larger pictures and what came back, as bytes."""
    import xarray as xr

    axes = ("picture", "channel", "row", "column")
    arrays = {name: (axes, _bytes(np.moveaxis(found, -1, 1))) for name, found in shown.items()}
    return xr.Dataset({"original": (axes, _bytes(pictures.images)), **arrays}, {"picture": list(pictures.names)})


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def _check(p: TrainParameters, options: StudyOptions) -> None:
    """Refuse parameters that do not fit, in the words of the command line."""
    for name in ("num_seeds", "num_steps", "batch_size", "encoder_steps", "test", "show", "picture_size"):
        positive(getattr(p, name), f"--{name.replace('_', '-')}", 1 << 30)
    if p.limit is not None:
        positive(p.limit, "--limit", 1 << 20)
    if not p.depths or not set(p.depths) <= {1, 2, 3, 4, 5} or len(set(p.depths)) != len(p.depths):
        raise ValueError(f"expected --depths to be different numbers from 1 to 5, got {' '.join(map(str, p.depths))}")
    if not p.networks or len(set(p.networks)) != len(p.networks):
        raise ValueError("expected --networks vgg16, alexnet or both, each once")
    if not (math.isfinite(p.width) and 0 < p.width <= 4):
        raise ValueError(f"expected --width above 0 and at most 4, got {p.width}")
    if p.weights is not None and p.width != TrainParameters.width and p.width != 1:
        raise ValueError(f"expected no --width with --weights, which have their own, got {p.width}; leave it out")
    if p.weights is not None and tuple(p.networks) != ("vgg16",):
        raise ValueError("expected --networks vgg16 with --weights; AlexNet's are not read here")
    if any(not (math.isfinite(value) and value > 0) for value in p.deviations):
        raise ValueError(f"expected --deviations to be positive, got {' '.join(map(str, p.deviations))}")
    if not (math.isfinite(p.rate) and p.rate > 0):
        raise ValueError(f"expected --rate to be positive, got {p.rate}")
    if not (math.isfinite(p.weight_decay) and p.weight_decay >= 0):
        raise ValueError(f"expected --weight-decay of at least 0, got {p.weight_decay}")
    if options.precision != "float32":
        raise ValueError("expected --precision float32, got float64: networks are trained in float32")


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcn_train_figure import train_figure

    return train_figure(report, dataset)


DCN_TRAIN = Study(
    name="dcn-train",
    title="Decoders trained to undo random and learned encoders",
    source="Random DCN, Figs. 2 to 4 and 10 to 13",
    parameters=TrainParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["DCN_TRAIN", "TrainParameters"]
