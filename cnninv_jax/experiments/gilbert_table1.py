"""Gilbert et al. 2017, Tables 1 and 5: classifiers on random filters beside their learned twins, 1 to 3 layers.

The paper's channels (1024 and 2048) want an accelerator; `width` multiplies them. Seeds are paired: the same order of
the pictures, the same flips, for random and learned filters and for every depth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax.experiments.classification import (
    Classified,
    Steps,
    arrays_of,
    check_training,
    classify,
    outcome_of,
    recipe_for,
)
from cnninv_jax.experiments.gilbert_table1_tables import KINDS, compared, tables
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnninv_jax.data import ImageClasses
    from cnninv_jax.nn.augmentation import Preparation
    from cnninv_jax.nn.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Table1Parameters:
    """Data, networks and training."""

    cifar: str = "embedded"
    """Folder or archive of CIFAR-10 or CIFAR-100 (binary or python version), fetch:cifar10, or embedded: a stand-in
    that needs no download."""
    width: float = 1 / 64
    """Multiplies the paper's channels: 1 for 2048, 2048, 1024 random filters and 1024 learned ones a layer."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Convolutional layers."""
    filters: tuple[Literal["random", "learned"], ...] = ("random", "learned")
    """Fixed N(0, 1) filters, and filters that learn."""
    num_seeds: int = 2
    """Networks of every kind and depth."""
    epochs: float = 6.0
    """Passes over the training set."""
    limit: int | None = None
    """Training images used, the first of the official order; all by default."""
    batch_size: int = 128
    """Images per step."""
    rate: float = 2e-3
    """Learning rate of Adam at the beginning; a tenth after 60% of the steps, a hundredth after 85%."""
    weight_decay: float = 1e-4
    """Of kernels."""
    dropout: float = 0.2
    """Before the soft-max layer."""
    flip: bool = True
    """Mirror training pictures at random."""
    shift: int = 0
    """Move training pictures by up to so many pixels at random."""
    features: Literal["live", "cached"] = "live"
    """Networks of random filters: live, with learned scale and bias of every batch norm; or cached: batch norm fixed at
    the statistics of 1,000 training images, features computed once (with --flip also of the mirrored pictures), and the
    classifier alone is trained on them."""
    arithmetic: Literal["float32", "bfloat16"] = "float32"
    """Of the networks; parameters stay float32."""


def _compute(parameters: Table1Parameters, options: StudyOptions, folder: Path) -> Findings:
    from cnninv_jax import data
    from cnninv_jax.nn.augmentation import preparation

    p = parameters
    _check(p, options)
    cifar = data.load_cifar(p.cifar, limit_train=p.limit)
    count = len(cifar.train.labels)
    recipe = recipe_for(p.epochs, count, p.batch_size, optimizer="adam", rate=p.rate, weight_decay=p.weight_decay)
    prepare = preparation(cifar.train.images, flip=p.flip, shift=p.shift, dtype=p.arithmetic)
    depths = tuple(sorted(set(p.depths)))
    cells = [
        (seed, depth, kind) for seed in range(p.num_seeds) for depth in depths for kind in KINDS if kind in p.filters
    ]
    found: dict[tuple[str, int], list[Classified]] = {(kind, depth): [] for _, depth, kind in cells}
    networks: dict[str, dict[str, Any]] = {}
    with progress_bar("Table 1", len(cells) * recipe.num_steps, quiet=options.quiet) as bar:
        steps = Steps(bar)
        for seed, depth, kind in cells:
            key = jax.random.fold_in(jax.random.key(options.seed), seed)
            name = f"{kind}, {depth} layer{'s' if depth > 1 else ''}, seed {seed}"
            place = folder / "networks" / f"{kind}-{depth}-{seed}"
            cached = kind == "random" and p.features == "cached"
            fit = _fit_cached if cached else _fit
            outcome, sizes = fit(p, cifar, recipe, prepare, depth, kind == "learned", key, place, steps.begin(name))
            networks[f"{kind}-{depth}"] = sizes
            found[kind, depth].append(outcome)
            steps.end(recipe.num_steps, f"{name}: {100 * outcome.accuracy:.1f}% of the test set")
    content = {
        "data": {"name": cifar.name, "source": cifar.source, "train": count, "test": len(cifar.test.labels),
                 "classes": len(cifar.classes), "notes": list(cifar.notes)},
        "steps": recipe.num_steps,
        "networks": networks,
        "cells": {
            f"{kind}-{depth}": [dataclasses.asdict(outcome) for outcome in outcomes]
            for (kind, depth), outcomes in found.items()
        },
    }  # fmt: skip
    content["comparisons"] = compared(content["cells"], depths)
    return Findings(content, tables(content, p))


def _model(p: Table1Parameters, cifar: ImageClasses, depth: int, learned: bool, norm: Any, key: Any) -> Any:
    from flax import nnx

    from cnninv_jax.nn.architectures import random_cnn
    from cnninv_jax.nn.classifiers import ConvNet

    spec = random_cnn(
        depth, learned=learned, width=p.width, norm=norm, dropout=p.dropout, num_classes=len(cifar.classes)
    )
    model_key = jax.random.fold_in(key, 2 * depth + learned)
    return spec, ConvNet(spec, dtype=jnp.dtype(p.arithmetic), rngs=nnx.Rngs(model_key))


def _sizes(spec: Any, model: Any) -> dict[str, Any]:
    from cnninv_jax.nn.blocks import count_parameters
    from cnninv_jax.nn.specs import multiply_adds

    counts = count_parameters(model)
    return {
        "channels": [layer.channels for layer in spec.convolutions],
        "kernel": spec.convolutions[0].kernel,
        "learned": counts.learned,
        "frozen": counts.frozen,
        "multiply_adds": multiply_adds(spec),
    }


def _fit(
    p: Table1Parameters,
    cifar: ImageClasses,
    recipe: Recipe,
    prepare: Preparation,
    depth: int,
    learned: bool,
    key: jax.Array,
    folder: Path,
    report: Steps,
) -> tuple[Classified, dict[str, Any]]:
    """Train a network as a whole: what is not frozen learns."""
    spec, model = _model(p, cifar, depth, learned, "learned", key)
    train_key = jax.random.fold_in(key, 0)
    outcome = classify(
        model, cifar, recipe, key=train_key, folder=folder, prepare=prepare, name=report.name, report=report
    )
    return outcome, _sizes(spec, model)


def _fit_cached(
    p: Table1Parameters,
    cifar: ImageClasses,
    recipe: Recipe,
    prepare: Preparation,
    depth: int,
    learned: bool,
    key: jax.Array,
    folder: Path,
    report: Steps,
) -> tuple[Classified, dict[str, Any]]:
    """Train the classifier alone on features that are computed once."""
    from flax import nnx

    from cnninv_jax.nn.features import FeatureClassifier, cached_features, calibrated
    from cnninv_jax.nn.objectives import classification_loss
    from cnninv_jax.nn.training import train

    spec, model = _model(p, cifar, depth, learned, "fixed", key)
    model = calibrated(model, prepare(None, {"images": jnp.asarray(cifar.train.images[:1000])})["images"])
    training, test = arrays_of(cifar.train), arrays_of(cifar.test)
    plain = cached_features(model, last_features, training, folder / "features", prepare=prepare)
    parts = [plain]
    if p.flip:
        mirrored = {**training, "images": training["images"][..., ::-1]}
        parts.append(cached_features(model, last_features, mirrored, folder / "features-mirrored", prepare=prepare))
    held = {
        # Both views of a picture side by side: which one a step sees is drawn with the batch.
        "images": np.stack(parts, axis=1),
        "labels": training["labels"],
    }
    seen = cached_features(model, last_features, test, folder / "features-test", prepare=prepare)
    sizes = math.prod(seen.shape[1:])
    head = FeatureClassifier(
        sizes, len(cifar.classes), dropout=p.dropout, dtype=jnp.dtype(p.arithmetic),
        rngs=nnx.Rngs(jax.random.fold_in(key, 8 + depth)),
    )  # fmt: skip
    trained = train(
        head, classification_loss, held, recipe,
        key=jax.random.fold_in(key, 0), prepare=one_view, folder=folder, progress=report, name=report.name,
    )  # fmt: skip
    views = {"images": np.asarray(seen)[:, None], "labels": test["labels"]}
    return outcome_of(trained, views, held, one_view, folder), _sizes(spec, model)


def last_features(model: Any, batch: Any) -> jax.Array:
    """Return the maps below the soft-max layer."""
    return model.layers(batch["images"])[-2]


def one_view(key: jax.Array | None, batch: Any) -> Any:
    """Take one of the kept views of every picture, at evaluation the first."""
    views = batch["images"]
    if key is None or views.shape[1] == 1:
        return {**batch, "images": views[:, 0]}
    chosen = jax.random.randint(key, (views.shape[0],), 0, views.shape[1])
    return {**batch, "images": views[jnp.arange(views.shape[0]), chosen]}


def _check(p: Table1Parameters, options: StudyOptions) -> None:
    """Refuse parameters that do not fit, in the words of the command line."""
    check_training(p, options)
    if not p.depths or not set(p.depths) <= {1, 2, 3}:
        raise ValueError(f"expected --depths among 1, 2 and 3, got {' '.join(map(str, p.depths)) or 'none'}")
    if not p.filters:
        raise ValueError("expected --filters random, learned or both, got none")
    if not 0 <= p.dropout < 1:
        raise ValueError(f"expected --dropout from 0 to below 1, got {p.dropout}")
    if p.features == "cached" and p.shift:
        raise ValueError(
            "expected --features live with --shift, got cached: kept features have one place; leave out one"
        )


def _figure(report: Mapping[str, Any], _: Any) -> Figure:
    from cnninv_jax.experiments.gilbert_table1_figure import table1_figure

    return table1_figure(report)


TABLE1 = Study(
    name="gilbert-table1",
    title="Accuracy of classifiers on random and on learned filters",
    source="Gilbert et al. 2017, Tables 1 and 5",
    parameters=Table1Parameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["TABLE1", "Table1Parameters"]
