"""Shang et al. 2016, Tables 1 and 2: classifiers with ReLU, AVR and CReLU, the same budget for all of them.

Seeds are paired: in every seed all networks see the same pictures in the same order, flipped alike. The paper's widths
want an accelerator; `width` multiplies the filters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from cnninv_jax.experiments.classification import Classified, Steps, check_training, classify, recipe_for
from cnninv_jax.experiments.crelu_table1_tables import LABELS, Model, compared, tables
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnninv_jax.nn.recipes import Recipe
    from cnninv_jax.nn.specs import NetworkSpec


@dataclasses.dataclass(frozen=True)
class CReLUTable1Parameters:
    """Data, networks and training."""

    cifar: str = "embedded"
    """Folder or archive of CIFAR-10 or CIFAR-100 (binary or python version), fetch:cifar10, or embedded: a stand-in
    that needs no download."""
    models: tuple[Model, ...] = ("baseline", "double", "avr", "crelu", "half")
    """Networks of Table 1, half-192 (CReLU half with 96 filters at conv3 in place of the printed 48), and of Table 2:
    vgg, vgg-1, vgg-1-3, vgg-1-3-5 (CReLU at conv1; conv1, 3; conv1, 3, 5)."""
    width: float = 1 / 12
    """Multiplies the filters: 1 for the paper's 96 and 192 (VGG: 64 to 512)."""
    num_seeds: int = 3
    """Networks of every kind."""
    epochs: float = 2.0
    """Passes over the training set (with --budget operations, of the first network)."""
    budget: Literal["steps", "operations"] = "steps"
    """Of what all networks get the same: steps, or multiply-adds, of which the first network gets --epochs."""
    limit: int | None = None
    """Training images used, the first of the official order; all by default."""
    batch_size: int = 64
    """Images per step."""
    rate: float = 2e-3
    """Learning rate of Adam at the beginning; a tenth after 60% of the steps, a hundredth after 85%."""
    weight_decay: float = 1e-4
    """Of kernels."""
    dropout: float = 0.0
    """Multiplies the networks' dropout rates (ConvPool-CNN-C: 0.2 on pictures, 0.5 behind pools; VGG: 0.1 to 0.5). The
    paper tuned them for every network; a short training does without."""
    scores: Literal["linear", "printed"] = "linear"
    """What stands behind conv8 of Table 1's networks: nothing, or the printed ReLU (AVR for AVR), through which narrow
    networks learn slowly or not at all."""
    flip: bool = True
    """Mirror training pictures at random."""
    shift: int = 0
    """Move training pictures by up to so many pixels at random (the paper does for VGG)."""
    arithmetic: Literal["float32", "bfloat16"] = "float32"
    """Of the networks; parameters stay float32."""


def _compute(parameters: CReLUTable1Parameters, options: StudyOptions, folder: Path) -> Findings:
    from cnninv_jax import data
    from cnninv_jax.nn.augmentation import preparation

    p = parameters
    _check(p, options)
    cifar = data.load_cifar(p.cifar, limit_train=p.limit)
    count, classes = len(cifar.train.labels), len(cifar.classes)
    specs = {name: spec_of(name, p.width, p.dropout, p.scores, classes) for name in p.models}
    recipes = _recipes(p, count, specs)
    prepare = preparation(cifar.train.images, flip=p.flip, shift=p.shift, dtype=p.arithmetic)
    found: dict[str, list[Classified]] = {name: [] for name in specs}
    total = p.num_seeds * sum(recipe.num_steps for recipe in recipes.values())
    with progress_bar("ReLU, AVR, CReLU", total, quiet=options.quiet) as bar:
        steps = Steps(bar)
        for seed in range(p.num_seeds):
            key = jax.random.fold_in(jax.random.key(options.seed), seed)
            for name, spec in specs.items():
                title = f"{LABELS[name]}, seed {seed}"
                outcome = classify(
                    _network(spec, name, key, p.arithmetic), cifar, recipes[name],
                    key=jax.random.fold_in(key, 0), folder=folder / "networks" / f"{name}-{seed}", prepare=prepare,
                    name=title, report=steps.begin(title),
                )  # fmt: skip
                found[name].append(outcome)
                error = f"{title}: error {100 * (1 - outcome.accuracy):.1f}% of the test set"
                steps.end(recipes[name].num_steps, error)
    content: dict[str, Any] = {
        "data": {"name": cifar.name, "source": cifar.source, "train": count, "test": len(cifar.test.labels),
                 "classes": classes, "notes": list(cifar.notes)},
        "networks": {name: _sizes(name, spec, recipes[name]) for name, spec in specs.items()},
        "cells": {name: [dataclasses.asdict(outcome) for outcome in outcomes] for name, outcomes in found.items()},
    }  # fmt: skip
    content["comparisons"] = compared(content["cells"])
    return Findings(content, tables(content, p))


def spec_of(
    model: str,
    width: float,
    dropout: float = 1.0,
    scores: Literal["linear", "printed"] = "printed",
    num_classes: int = 10,
) -> NetworkSpec:
    """Return a network of Tables 1 and 2.

    Args:
        model: its name.
        width: multiplies the filters.
        dropout: multiplies the dropout rates.
        scores: see `CReLUTable1Parameters`.
        num_classes: scores.
    """
    from cnninv_jax.nn.architectures import convpool_cnn_c, vgg_cifar

    if model.startswith("vgg"):
        where: Any = "conv" + ",".join(model.split("-")[1:]) if "-" in model else "baseline"
        return vgg_cifar(where, width=width, dropout=dropout, num_classes=num_classes)
    variant: Any = model
    rates = (0.2 * dropout, 0.5 * dropout)
    return convpool_cnn_c(variant, width=width, dropout=rates, scores=scores, num_classes=num_classes)


def _network(spec: NetworkSpec, name: str, key: jax.Array, arithmetic: str) -> Any:
    from flax import nnx

    from cnninv_jax.nn.classifiers import ConvNet

    # By the place in the list of all models, so that a network does not depend on which others are asked for.
    rngs = nnx.Rngs(jax.random.fold_in(key, 1 + list(LABELS).index(name)))
    return ConvNet(spec, dtype=jnp.dtype(arithmetic), rngs=rngs)


def _recipes(p: CReLUTable1Parameters, count: int, specs: Mapping[str, NetworkSpec]) -> dict[str, Recipe]:
    """Return every network's recipe: as many steps, or as many multiply-adds as the first network's."""
    from cnninv_jax.nn.specs import multiply_adds

    cost = {name: multiply_adds(spec) for name, spec in specs.items()}
    first = cost[p.models[0]]
    return {
        name: recipe_for(
            p.epochs * (first / cost[name] if p.budget == "operations" else 1.0), count, p.batch_size,
            optimizer="adam", rate=p.rate, weight_decay=p.weight_decay,
        )
        for name in specs
    }  # fmt: skip


def _sizes(name: str, spec: NetworkSpec, recipe: Recipe) -> dict[str, Any]:
    """Return what a network costs here and at the paper's width."""
    from cnninv_jax.nn.specs import multiply_adds, parameter_counts

    counts = parameter_counts(spec)
    full = parameter_counts(spec_of(name, 1.0, num_classes=spec.classes))
    return {
        "channels": [layer.channels for layer in spec.convolutions],
        "weights": counts.weights,
        "learned": counts.learned,
        "full_weights": full.weights,
        "full_learned": full.learned,
        "multiply_adds": multiply_adds(spec),
        "steps": recipe.num_steps,
    }


def _check(p: CReLUTable1Parameters, options: StudyOptions) -> None:
    """Refuse parameters that do not fit, in the words of the command line."""
    check_training(p, options)
    if not p.models or len(set(p.models)) != len(p.models):
        raise ValueError(f"expected different --models, got {' '.join(p.models) or 'none'}")
    if not 0 <= p.dropout < 2:
        raise ValueError(f"expected --dropout from 0 to below 2 (times rates of up to 0.5), got {p.dropout}")


def _figure(report: Mapping[str, Any], _: Any) -> Figure:
    from cnninv_jax.experiments.crelu_table1_figure import crelu_table1_figure

    return crelu_table1_figure(report)


CRELU_TABLE1 = Study(
    name="crelu-table1",
    title="Error of classifiers with ReLU, AVR and CReLU on the same budget",
    source="Shang et al. 2016, Tables 1 and 2",
    parameters=CReLUTable1Parameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["CRELU_TABLE1", "CReLUTable1Parameters", "spec_of"]
