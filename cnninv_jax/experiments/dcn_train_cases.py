"""The trainings of `dcn-train`, one by one: an encoder, its decoder, what the decoder reaches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax.experiments.classification import Steps, arrays_of, thinned
from cnninv_jax.experiments.files import save_json

if TYPE_CHECKING:
    from cnninv_jax.data import ImageClasses, Network
    from cnninv_jax.experiments.dcn_train import TrainParameters

#: Pictures over which features are scaled.
_SCALED = 256
#: Deviation of Gaussian filters of the main comparison (A.1.2).
DEVIATION = 0.015


@dataclasses.dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        group: ``main`` (random against learned), ``law`` or ``deviation``.
        network: architecture.
        depth: k of CDk.
        encoder: ``learned``, or the law of random filters.
        deviation: of Gaussian filters.
        seed: of the decoder, the order of the pictures, and random filters.
        scale: of features, see `TrainParameters.scale`.
    """

    group: str
    network: str
    depth: int
    encoder: str
    deviation: float
    seed: int
    scale: str

    @property
    def kind(self) -> str:
        """Random or learned."""
        return "learned" if self.encoder == "learned" else "random"

    @property
    def name(self) -> str:
        """Name of the training's folder."""
        law = f"gaussian{self.deviation:g}" if self.encoder == "gaussian" else self.encoder
        raw = "-raw" if self.group == "deviation" else ""
        return f"{self.network}-cd{self.depth}-{law}-{self.seed}{raw}"


def cases_of(p: TrainParameters) -> list[Case]:
    """Return the trainings of a study, those of the main comparison first."""
    found = [
        Case("main", network, depth, encoder, DEVIATION, seed, p.scale)
        for seed in range(p.num_seeds)
        for network in p.networks
        for depth in sorted(p.depths)
        for encoder in ("gaussian", "learned")
    ]
    deepest, network = max(p.depths), p.networks[0]
    others = [law for law in dict.fromkeys(p.laws) if law != "gaussian"]
    found += [Case("law", network, deepest, law, DEVIATION, 0, p.scale) for law in others]
    values = dict.fromkeys(p.deviations)
    return found + [Case("deviation", network, deepest, "gaussian", value, 0, "raw") for value in values]


class Trainer:
    """Encoders and decoders of one study."""

    def __init__(self, p: TrainParameters, cifar: ImageClasses, pictures: np.ndarray, seed: int, folder: Path) -> None:
        self._p, self._cifar, self._pictures, self._folder = p, cifar, pictures, folder
        self._root = jax.random.key(seed)
        self._network = _loaded(p)
        self._width = 1.0 if p.weights is not None else p.width
        self._learned: dict[tuple[str, int, int], Any] = {}
        #: What is known of learned encoders, by name.
        self.encoders: dict[str, dict[str, Any]] = {}
        #: What was assumed, for the user.
        self.notes: list[str] = [] if self._network is None else list(self._network.notes)

    def steps_of(self, case: Case) -> int:
        """Return the steps of a decoder."""
        del case
        return self._p.num_steps

    def encoder_total(self, cases: list[Case]) -> int:
        """Return the steps of all classifiers from which encoders come."""
        if self._network is not None:
            return 0
        learned = {(case.network, case.depth, case.seed) for case in cases if case.kind == "learned"}
        return self._p.encoder_steps * len(learned)

    def run(self, case: Case, steps: Steps) -> tuple[dict[str, Any], np.ndarray]:
        """Train a decoder; return its numbers, and what it makes of the larger pictures [N, H, W, 3]."""
        from flax import nnx

        from cnninv_jax.nn.autoencoders import (
            AutoEncoder,
            feature_scale,
            pixel_loss,
            pixel_metrics,
            reconstructions,
            unit_range,
        )
        from cnninv_jax.nn.decoders import DCN
        from cnninv_jax.nn.evaluation import evaluate
        from cnninv_jax.nn.training import train

        p = self._p
        key = jax.random.fold_in(self._root, case.seed)
        encoder = self._encoder(case, steps)
        decoder = DCN(case.network, case.depth, width=self._width, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))
        images = unit_range(None, {"images": jnp.asarray(self._cifar.train.images[:_SCALED])})["images"]
        scale = feature_scale(encoder, decoder.tap, images) if case.scale == "unit" else 1.0
        model = AutoEncoder(encoder, decoder, scale)
        training = {"images": np.asarray(self._cifar.train.images)}
        folder = self._folder / "decoders" / case.name
        trained = train(
            model, pixel_loss, training, _recipe(p), key=jax.random.fold_in(key, 2), prepare=unit_range,
            folder=folder, name=f"decoder {case.name}", progress=steps.begin(case.name),
        )  # fmt: skip
        test = evaluate(trained.model, pixel_metrics, {"images": self._cifar.test.images}, prepare=unit_range)
        part = {"images": training["images"][: len(self._cifar.test.images)]}
        own = evaluate(trained.model, pixel_metrics, part, prepare=unit_range)
        shown = np.stack([
            evaluate(trained.model, reconstructions, {"images": np.moveaxis(picture, 0, -1)[None]})["pictures"][0]
            for picture in self._pictures
        ])  # fmt: skip
        found = {
            **dataclasses.asdict(case),
            "kind": case.kind,
            "divided_by": scale,
            "test_loss": float(np.mean(test["loss"])),
            "train_loss": float(np.mean(own["loss"])),
            "mean_loss": geometric_mean(trained.history["loss"]),
            "curve": thinned(trained.history["loss"]),
            "status": trained.status,
            "message": trained.message,
            "seconds": trained.seconds,
        }
        save_json(found, folder / "outcome.json")
        return found, shown

    def _encoder(self, case: Case, steps: Steps) -> Any:
        from flax import nnx

        from cnninv_jax.nn.backbones import Backbone
        from cnninv_jax.nn.geometry import feature_layer

        key = jax.random.fold_in(jax.random.fold_in(self._root, case.seed), 0)
        tap = feature_layer(case.network, case.depth)
        if case.kind == "learned":
            if self._network is None:
                return self._trained(case, steps)
            return Backbone(case.network, network=self._network, last=tap, preprocessing="caffe", rngs=nnx.Rngs(key))
        scale = case.deviation if case.encoder == "gaussian" else None
        law: Any = case.encoder
        return Backbone(
            case.network, last=tap, width=self._width, law=law, scale=scale, preprocessing="caffe", rngs=nnx.Rngs(key)
        )

    def _trained(self, case: Case, steps: Steps) -> Any:
        """Return an encoder that learned to classify the pictures."""
        from flax import nnx

        from cnninv_jax.nn.autoencoders import EncoderClassifier, frozen_copy, unit_range
        from cnninv_jax.nn.backbones import Backbone
        from cnninv_jax.nn.evaluation import evaluate
        from cnninv_jax.nn.geometry import feature_layer
        from cnninv_jax.nn.objectives import classification_loss, classification_metrics
        from cnninv_jax.nn.recipes import Recipe
        from cnninv_jax.nn.training import train

        p, name = self._p, f"{case.network}-cd{case.depth}-{case.seed}"
        key = jax.random.fold_in(jax.random.fold_in(self._root, case.seed), 3)
        count = len(self._cifar.train.labels)
        settings: dict[str, Any] = {
            "last": feature_layer(case.network, case.depth), "width": p.width, "preprocessing": "torchvision",
        }  # fmt: skip
        rngs = nnx.Rngs(jax.random.fold_in(key, 0))
        model = EncoderClassifier(
            Backbone(case.network, trainable=True, **settings, rngs=rngs), len(self._cifar.classes), rngs=rngs
        )
        recipe = Recipe(
            p.encoder_steps, min(128, count), "adam", 1e-3,
            tuple(sorted({step for step in (6 * p.encoder_steps // 10, 85 * p.encoder_steps // 100) if step})),
            weight_decay=5e-4, warmup=min(50, p.encoder_steps // 10),
        )  # fmt: skip
        trained = train(
            model, classification_loss, arrays_of(self._cifar.train), recipe, key=jax.random.fold_in(key, 1),
            prepare=unit_range, folder=self._folder / "encoders" / name, name=f"encoder {name}",
            progress=steps.begin(f"classifier {name}"),
        )  # fmt: skip
        test = evaluate(trained.model, classification_metrics, arrays_of(self._cifar.test), prepare=unit_range)
        steps.end(p.encoder_steps, f"classifier {name}: {100 * np.mean(test['correct']):.0f}% of the test set")
        self.encoders[name] = {"accuracy": float(np.mean(test["correct"])), "message": trained.message}
        return frozen_copy(trained.model.backbone, Backbone(case.network, **settings, rngs=nnx.Rngs(0)))


def geometric_mean(losses: np.ndarray) -> float:
    """Return the geometric mean of the losses of all steps: the area under the curve on a logarithmic scale.

    On a linear one the first steps, whose losses follow from how the decoder begins, would be all that counts.
    """
    seen = losses[np.isfinite(losses) & (losses > 0)].astype(np.float64)
    return float(np.exp(np.mean(np.log(seen)))) if len(seen) else float("nan")


def _loaded(p: TrainParameters) -> Network | None:
    """Return the given network, which has to reach as deep as is asked."""
    if p.weights is None:
        return None
    from cnninv_jax import data
    from cnninv_jax.nn.geometry import feature_layer, layers_of

    network = data.load_network(p.weights)
    if network.name != "vgg16":
        raise ValueError(f"expected --weights of vgg16, got those of {network.name or 'an unknown network'}")
    held = {layer.name for layer in network.layers}
    wanted = [spec.name for spec in layers_of("vgg16", last=feature_layer("vgg16", max(p.depths)))]
    missing = [name for name in wanted if name not in held]
    if missing:
        raise ValueError(
            f"expected --weights with filters of {', '.join(wanted)} for --depths {max(p.depths)}, and "
            f"{', '.join(missing)} are missing; lower --depths"
        )
    return network


def _recipe(p: TrainParameters) -> Any:
    from cnninv_jax.nn.recipes import Recipe

    milestones = tuple(sorted({step for step in (6 * p.num_steps // 10, 85 * p.num_steps // 100) if step}))
    return Recipe(p.num_steps, p.batch_size, "adam", p.rate, milestones, weight_decay=p.weight_decay)


__all__ = ["DEVIATION", "Case", "Trainer", "cases_of", "geometric_mean"]
