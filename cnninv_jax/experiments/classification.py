"""One classifier of a study: trained on labelled pictures, evaluated on the test set, its numbers kept.

A training has a folder of its own below the study's; the same study goes on there, and a finished one is only read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax._progress import Progress
from cnninv_jax.experiments.files import save_json
from cnninv_jax.experiments.studies import ProgressBar, StudyOptions
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from cnninv_jax._typing import PRNGKeyArray
    from cnninv_jax.data import ImageClasses
    from cnninv_jax.nn.augmentation import Preparation
    from cnninv_jax.nn.recipes import Recipe

#: What is said of the stand-in data, wherever its numbers are shown.
STAND_IN = (
    "Data: patches of five photographs inside scikit-image, a stand-in that needs no download. These are NOT numbers "
    "of CIFAR-10 and say nothing about the paper's; give --cifar FOLDER (or fetch:cifar10)."
)
#: A curve in a report has so many points.
POINTS = 200


@dataclasses.dataclass(frozen=True)
class Classified:
    """What a trained classifier does.

    Attributes:
        accuracy: share of the test set whose class is found.
        train_accuracy: the same of (at most 10,000 of) the training set, nothing augmented.
        cross_entropy: mean over the test set.
        status: see `nn.training.Trained`.
        message: how the training ended.
        seconds: of training.
        images_per_second: of training.
        curve: smoothed loss and accuracy of the batches, at most `POINTS` points.
    """

    accuracy: float
    train_accuracy: float
    cross_entropy: float
    status: str
    message: str
    seconds: float
    images_per_second: float
    curve: Mapping[str, list[float]]


def recipe_for(
    epochs: float, count: int, batch_size: int, *, optimizer: str, rate: float, weight_decay: float = 0.0
) -> Recipe:
    """Return a recipe of so many passes over ``count`` examples: rate a tenth after 60%, a hundredth after 85%.

    Raises:
        ValueError: numbers that are no recipe, in the words of the command line.
    """
    from cnninv_jax.nn.recipes import Recipe

    if not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"expected --epochs to be a positive number, got {epochs}")
    positive(batch_size, "--batch-size", 1 << 20)
    if count < batch_size:
        raise ValueError(f"expected --batch-size of at most the {count} training images, got {batch_size}")
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"expected --rate to be positive, got {rate}")
    steps = max(1, round(epochs * (count // batch_size)))
    milestones = tuple(sorted({step for step in (round(0.6 * steps), round(0.85 * steps)) if step >= 1}))
    chosen: Any = optimizer
    return Recipe(steps, batch_size, chosen, rate, milestones, weight_decay=weight_decay, warmup=min(100, steps // 20))


def check_training(p: Any, options: StudyOptions) -> None:
    """Refuse what no study of classifiers can have: its seeds, width, shift, limit, precision.

    Raises:
        ValueError: in the words of the command line.
    """
    positive(p.num_seeds, "--num-seeds", 1000)
    if not (math.isfinite(p.width) and 0 < p.width <= 16):
        raise ValueError(f"expected --width above 0 and at most 16, got {p.width}")
    if p.shift < 0:
        raise ValueError(f"expected --shift of at least 0 pixels, got {p.shift}")
    if p.limit is not None:
        positive(p.limit, "--limit", 1 << 20)
    if options.precision != "float32":
        raise ValueError(
            "expected --precision float32, got float64: networks are trained in --arithmetic float32 or bfloat16"
        )


def arrays_of(images: Any) -> dict[str, np.ndarray]:
    """Return labelled images as trainings take them."""
    return {"images": np.asarray(images.images), "labels": np.asarray(images.labels, np.int32)}


def classify(
    model: Any,
    cifar: ImageClasses,
    recipe: Recipe,
    *,
    key: PRNGKeyArray,
    folder: Path,
    prepare: Preparation,
    name: str,
    report: Any,
) -> Classified:
    """Train a classifier and evaluate it, or read what was found before.

    Args:
        model: ``model(images, train=, key=)`` returns scores.
        cifar: training and test set.
        recipe: of the training.
        key: of order, augmentation and dropout.
        folder: of its own.
        prepare: standardisation and augmentation.
        name: for people.
        report: receives `Progress` of the training.
    """
    from cnninv_jax.nn.objectives import classification_loss
    from cnninv_jax.nn.training import train

    trained = train(
        model, classification_loss, arrays_of(cifar.train), recipe,
        key=key, prepare=prepare, folder=folder, progress=report, name=name,
    )  # fmt: skip
    return outcome_of(trained, arrays_of(cifar.test), arrays_of(cifar.train), prepare, folder)


def outcome_of(
    trained: Any, test: Mapping[str, np.ndarray], training: Mapping[str, np.ndarray], prepare: Any, folder: Path
) -> Classified:
    """Evaluate a trained classifier; what was found is kept in its folder."""
    from cnninv_jax.nn.evaluation import evaluate
    from cnninv_jax.nn.objectives import classification_metrics

    found = evaluate(trained.model, classification_metrics, test, prepare=prepare)
    part = {name: values[:10_000] for name, values in training.items()}
    seen = evaluate(trained.model, classification_metrics, part, prepare=prepare)
    result = Classified(
        float(np.mean(found["correct"])),
        float(np.mean(seen["correct"])),
        float(np.mean(found["cross_entropy"])),
        trained.status,
        trained.message,
        trained.seconds,
        trained.examples_per_second,
        {name: thinned(values) for name, values in trained.history.items()},
    )
    save_json(dataclasses.asdict(result), folder / "outcome.json")
    return result


def thinned(values: np.ndarray, points: int = POINTS) -> list[float]:
    """Return a curve as means over equal stretches of steps, at most ``points`` of them."""
    held = values[np.isfinite(values)]
    if not len(held):
        return []
    parts = np.array_split(held.astype(np.float64), min(points, len(held)))
    return [float(part.mean()) for part in parts]


@dataclasses.dataclass
class Steps:
    """Hands the progress of one training after another to a study's bar, whose unit is the step."""

    bar: ProgressBar
    name: str = ""
    _done: int = 0

    def begin(self, name: str) -> Steps:
        """Go on to another training."""
        self.name, self._done = name, 0
        return self

    def __call__(self, progress: Progress) -> None:
        """Receive one report."""
        if progress.stage != "compiling":
            note = ", ".join(part for part in (self.name, progress.rate, progress.headline) if part)
            self.bar.advance(progress.done - self._done, note=note)
            self._done = progress.done

    def end(self, total: int, note: str) -> None:
        """Count the steps that were not reported: a training finished by an earlier session, or one that diverged."""
        self.bar.advance(total - self._done, note=note)
        self._done = total


__all__ = [
    "POINTS",
    "STAND_IN",
    "Classified",
    "Steps",
    "arrays_of",
    "check_training",
    "classify",
    "outcome_of",
    "recipe_for",
    "thinned",
]
