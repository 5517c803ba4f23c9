"""Pictures through many random CNN-DCNs: how similar they come out, network by network (Random DCN, Sec. 4.1 to 4.3).

What the studies of depth, width, channels and kernel size share. Network i of a setting is drawn from a key of its own,
so that results depend neither on the order nor on how many networks are asked for; variants of a setting (a convolution
or the mean at the end) share their hidden layers. Geometry is static, weights are data: one program for drawing and one
for comparing serve all networks and pictures of a setting.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cnninv_jax import data, dcn, images
from cnninv_jax._typing import Array, PRNGKeyArray
from cnninv_jax.experiments.dcn_statistics import combination, typical, with_half_width
from cnninv_jax.experiments.rows import KeptRows, kept_rows
from cnninv_jax.experiments.studies import StudyOptions, progress_bar
from cnninv_jax.limits.layers import Conv, Network
from cnninv_jax.limits.values import convergence_value
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.specification import array_digest

#: What was found so far, in the study's folder; what it holds of every picture, variant by variant.
FOUND, NUMBERS = "similarities.json", ("similarity", "inverted", "flat")
#: SSIM's window must fit.
SMALLEST = images.WINDOW


@dataclasses.dataclass(frozen=True)
class ReconstructionParameters:
    """What the four studies share."""

    pictures: str = "embedded"
    """Folder of pictures; by default the five photographs inside scikit-image (paper: 50 of ILSVRC-2012's validation
    set)."""
    size: int = 64
    """Side of the square that pictures are brought to; the paper's networks are VGG-16's, 224."""
    limit: int | None = None
    """Most pictures; by default all (paper: 50)."""
    num_networks: int = 30
    """Random networks for each setting (paper: 30)."""
    filters: Literal["gaussian", "uniform", "laplace", "logistic", "sphere"] = "gaussian"
    """Law of the weights. Their deviation does not matter: without biases it scales the output, which is brought to
    [0, 1] before it is compared."""
    show: int = 3
    """Pictures whose reconstructions are kept and drawn."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One place on the axis of a study.

    Attributes:
        name: of its rows.
        label: as a table shows it.
        networks: its variants by name; one begins as the other does, so that they share hidden layers.
        tag: stands for it among the random numbers; of settings with one tag, network i has the same key.
        side: pictures come to the network in this size, and its outputs are brought back; None leaves them.
    """

    name: str
    label: str
    networks: Mapping[str, dcn.ConvDeconv]
    tag: int
    side: int | None = None

    @property
    def widest(self) -> dcn.ConvDeconv:
        """The variant with the most layers, whose weights serve all."""
        return max(self.networks.values(), key=lambda network: len(network.convolutions))


class Outputs(NamedTuple):
    """What one network makes of one picture.

    Attributes:
        similarity: SSIM by the paper's rule.
        inverted: whether the luminance was inverted for it.
        flat: whether all pixels came out alike, so that there is nothing to compare.
        grey: the output as it was compared.
        colour: the output as it came, [3, H, W] or [H, W], brought to [0, 1].
    """

    similarity: Array
    inverted: Array
    flat: Array
    grey: Array
    colour: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Similarities:
    """What was found of a setting's variant.

    Attributes:
        values: similarity of every network and picture.
        inverted: whether its luminance was inverted.
        flat: whether all its pixels were alike: some layer's filters were all silent.
    """

    values: Float[np.ndarray, "networks pictures"]
    inverted: Float[np.ndarray, "networks pictures"]
    flat: Float[np.ndarray, "networks pictures"]


Found = dict[str, dict[str, Similarities]]


def checked_pictures(p: ReconstructionParameters) -> data.Pictures:
    """Check what the studies share; return the pictures.

    Raises:
        ValueError: numbers that do not fit, in the words of the command line, or pictures that cannot be read.
    """
    for name in ("size", "num_networks", "show"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 31)
    if p.limit is not None:
        positive(p.limit, "--limit", 1 << 31)
    if p.size < SMALLEST:
        raise ValueError(f"expected --size of at least {SMALLEST}, SSIM's window, got {p.size}")
    return data.load_pictures(p.pictures, size=p.size, limit=p.limit)


def checked_values(values: Sequence[int], flag: str, most: int) -> tuple[int, ...]:
    """Return the values of a flag that takes several, in ascending order.

    Raises:
        ValueError: none, twice the same, or out of range.
    """
    if not values:
        raise ValueError(f"expected at least one value of {flag}, got none")
    for value in values:
        positive(value, flag, most)
    if len(set(values)) < len(values):
        raise ValueError(f"expected different values of {flag}, got {' '.join(map(str, values))}")
    return tuple(sorted(values))


@functools.partial(jax.jit, static_argnames=("network", "law", "dtype"))
def draw_weights(key: PRNGKeyArray, network: dcn.ConvDeconv, law: str, dtype: str) -> dcn.Weights:
    """Draw the weights of a network; compiled once for each network."""
    return dcn.random_weights(key, network, law=law, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("networks",))
def reconstruct_variants(
    weights: dcn.Weights, picture: Float[Array, "3 h w"], networks: tuple[dcn.ConvDeconv, ...]
) -> tuple[Array, ...]:
    """Send a picture through variants of a network; compiled once for each tuple of them.

    Layers that variants share are computed once, since they are the same operations on the same arrays.

    Args:
        weights: of the variant with the most layers.
        picture: the picture.
        networks: the variants.
    """
    return tuple(dcn.reconstruct(weights[: len(network.convolutions)], network, picture) for network in networks)


@jax.jit
def compare_output(picture: Float[Array, "3 H W"], output: Float[Array, "*channels h w"]) -> Outputs:
    """Compare an output with its picture; one of another size is enlarged to it. Compiled once for all networks."""
    size = picture.shape[-2:]
    if output.shape[-2:] != size:
        output = jax.image.resize(output, (*output.shape[:-2], *size), "linear")
    found = images.compare(picture, output)
    flat = jnp.min(output) == jnp.max(output)
    return Outputs(found.similarity, found.inverted, flat, found.output, images.rescale(output))


class Reconstructions:
    """Settings, pictures and the programs between them."""

    def __init__(
        self, settings: Sequence[Setting], pictures: data.Pictures, p: ReconstructionParameters, options: StudyOptions
    ) -> None:
        self.settings, self.pictures, self._p, self._options = tuple(settings), pictures, p, options
        self._root = jax.random.key(options.seed)
        kind = options.precision
        self._images = [jnp.asarray(image, kind) for image in pictures.images]
        self._seen = {
            side: self._images
            if side in (None, p.size)
            else [jnp.asarray(image, kind) for image in data.load_pictures(p.pictures, size=side, limit=p.limit).images]
            for side in {setting.side for setting in settings}
        }

    def weights(self, setting: Setting, index: int) -> dcn.Weights:
        """Return the weights of network ``index`` of a setting."""
        key = jax.random.fold_in(jax.random.fold_in(self._root, setting.tag), index)
        return draw_weights(key, setting.widest, self._p.filters, self._options.precision)

    def outputs(self, setting: Setting, weights: dcn.Weights, picture: int) -> dict[str, Outputs]:
        """Return what the variants of a setting make of a picture."""
        seen = self._seen[setting.side][picture]
        found = reconstruct_variants(weights, seen, tuple(setting.networks.values()))
        return {
            variant: compare_output(self._images[picture], output)
            for variant, output in zip(setting.networks, found, strict=True)
        }

    def similarities(self, folder: Path, title: str) -> Found:
        """Return the similarities of all settings, networks and pictures.

        What is found is kept in the folder, picture by picture, and not computed again. Networks come in turns, one of
        every setting, so that all settings are known alike at any time.
        """
        count = self._p.num_networks
        # A count that goes on does so with the same pictures and random numbers, or begins anew.
        spec = {
            "pictures": array_digest([self.pictures.images]), "names": list(self.pictures.names),
            "size": self._p.size, "seed": self._options.seed, "filters": self._p.filters,
            "precision": self._options.precision,
        }  # fmt: skip
        with kept_rows(folder / FOUND, spec) as rows:
            missing = [
                (setting, index, picture)
                for index in range(count)
                for setting in self.settings
                for picture in range(len(rows.of(_row_name(setting, index))), len(self._images))
            ]
            # One of each setting ahead, which compiles its programs: afterwards the time left can be told.
            first = {step[0].name: step for step in reversed(missing)}
            ahead = [step for step in missing if first[step[0].name] is step]
            later = [step for step in missing if first[step[0].name] is not step]
            self._fill(rows, ahead, f"{title}: compiling")
            self._fill(rows, later, title)
            return {setting.name: self._gathered(rows, setting, count) for setting in self.settings}

    def reconstructed(self, found: Found, shown: int) -> dict[str, dict[str, Any]]:
        """Return typical reconstructions of the first pictures, by setting and variant.

        Typical is, for each picture, the network whose similarity is closest to the networks' mean (Fig. 8).

        Returns:
            ``{setting: {variant: {"grey": [shown, H, W], "colour": [shown, 3, H, W], "similarity": [shown],
            "network": [shown]}}}``; ``colour`` is [shown, H, W] where the mean is taken at the end.
        """
        results: dict[str, dict[str, Any]] = {}
        for setting in self.settings:
            drawn: dict[int, dcn.Weights] = {}
            results[setting.name] = {}
            for variant in setting.networks:
                values = found[setting.name][variant].values
                chosen = [typical(values, picture) for picture in range(shown)]
                outputs = []
                for picture, index in enumerate(chosen):
                    if index not in drawn:
                        drawn = {index: self.weights(setting, index)}  # one at a time: weights may be large
                    outputs.append(self.outputs(setting, drawn[index], picture)[variant])
                results[setting.name][variant] = {
                    "grey": np.stack([np.asarray(output.grey) for output in outputs]),
                    "colour": np.stack([np.asarray(output.colour) for output in outputs]),
                    "similarity": [float(values[index, picture]) for picture, index in enumerate(chosen)],
                    "network": chosen,
                }
        return results

    def limits(self, layers: Network) -> tuple[Float[np.ndarray, " pictures"], Float[np.ndarray, "pictures H W"]]:
        """Return what an infinitely wide network of these layers makes of every picture.

        Returns:
            Its similarity to the picture, and itself in grey, as it was compared.
        """
        found = [compare_output(image, _limit(image, tuple(layers))) for image in self._images]
        return np.array([float(output.similarity) for output in found]), np.stack([np.asarray(o.grey) for o in found])

    def _fill(self, rows: KeptRows, steps: Sequence[tuple[Setting, int, int]], title: str) -> None:
        """Compute the numbers of settings, networks and pictures."""
        if not steps:
            return
        began = told = time.perf_counter()
        held, weights, known = None, (), ""
        with progress_bar(title, len(steps), quiet=self._options.quiet) as bar:
            for done, (setting, index, picture) in enumerate(steps, 1):
                name = _row_name(setting, index)
                if name != held:
                    weights = ()  # weights may be large: drop one network's before drawing the next
                    held, weights = name, self.weights(setting, index)
                rows.add(name, _as_row(self.outputs(setting, weights, picture)))
                now = time.perf_counter()
                if not known or now - told > 1.0:
                    known, told = self._now(rows, setting, index), now
                bar.advance(1, note=f"{done / max(now - began, 1e-9):,.1f}/s  {known}")

    def _now(self, rows: KeptRows, setting: Setting, index: int) -> str:
        """Return what is known of a setting by now."""
        whole = [rows.of(_row_name(setting, i)) for i in range(index + 1)]
        means = [np.mean(row, axis=0)[:: len(NUMBERS)] for row in whole if len(row) == len(self._images)]
        if not means:
            return setting.label
        told = []
        for variant, column in zip(setting.networks, np.transpose(means), strict=True):
            mean, low, high = combination([1.0], [column])
            told.append(f"{variant} {with_half_width({'mean': mean, 'low': low, 'high': high})}")
        return f"{setting.label}: {', '.join(told)}"

    def _gathered(self, rows: KeptRows, setting: Setting, count: int) -> dict[str, Similarities]:
        table = np.array([rows.of(_row_name(setting, index)) for index in range(count)])
        return {
            variant: Similarities(*np.moveaxis(table[:, :, len(NUMBERS) * at : len(NUMBERS) * (at + 1)], -1, 0))
            for at, variant in enumerate(setting.networks)
        }


def hidden_layers(network: dcn.ConvDeconv) -> tuple[Conv, ...] | None:
    """Return a network that ends with the mean as `limits` describes it; None where that has no words for it.

    It has none for max-pooling, nor for filters of even length that lean to the upper left.

    The limit's 1/sqrt(N) and deviation of weights are other constants, which the similarity does not see.
    """
    decoder = [layer for block in network.decoder for layer in block]
    if network.num_pools or network.last != "mean":
        return None
    if any(size % 2 == 0 for layer in decoder for size in layer.length):  # these lean to the other side
        return None
    return tuple(Conv(layer.length, padding="same") for layer in network.convolutions)


@functools.partial(jax.jit, static_argnames=("layers",))
def _limit(picture: Float[Array, "3 H W"], layers: tuple[Conv, ...]) -> Float[Array, "H W"]:
    return convergence_value(picture, layers)


def _row_name(setting: Setting, index: int) -> str:
    return f"{setting.name}, network {index}"


def _as_row(outputs: Mapping[str, Outputs]) -> list[float]:
    return [float(getattr(output, name)) for output in outputs.values() for name in NUMBERS]


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    """Return pictures in [0, 1] with 8 bits a channel."""
    return np.round(255 * np.clip(pictures, 0.0, 1.0)).astype(np.uint8)


__all__ = [
    "FOUND",
    "Outputs",
    "ReconstructionParameters",
    "Reconstructions",
    "Setting",
    "Similarities",
    "as_bytes",
    "checked_pictures",
    "checked_values",
    "compare_output",
    "draw_weights",
    "hidden_layers",
    "reconstruct_variants",
]
