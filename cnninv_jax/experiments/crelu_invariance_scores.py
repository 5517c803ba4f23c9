"""One network's invariance scores, in both readings of its responses, as numbers that a file can keep."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnninv_jax import data
from cnninv_jax._numerics import convolve
from cnninv_jax._typing import Array, Float
from cnninv_jax.crelu import invariance, stimuli
from cnninv_jax.crelu.activation import crelu
from cnninv_jax.experiments.network_pass import activations, prepare

#: Picture [3, H, W], RGB in [0, 1], to the responses of every layer.
Responses: TypeAlias = Callable[[Array], Mapping[str, Array]]

#: [h]_+ and |h|; of a pooled map the largest of a region.
READINGS = ("relu", "crelu")
#: Transformations together: all alike as in Goodfellow et al. 2009, and each kind by itself.
KINDS = ("all", "flip", "rotation", "translation")
#: What is averaged over the filters.
STATISTICS = ("score", "local rate")
#: Filters counted: never firing, firing in one picture only, with a threshold of zero; responses that are not finite.
COUNTS = ("never", "one picture", "untuned", "not finite")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is scored.

    Attributes:
        outputs: names of layers and pools, in order.
        filters: of each.
        places: first and stop, along both axes of each output's map.
        pictures: how many.
    """

    outputs: tuple[str, ...]
    filters: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    pictures: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the arrays of `Scored`, but for the last axis of ``each``, which is as long as there are filters."""
        ways = (len(READINGS), len(self.outputs))
        return (
            (*ways, len(KINDS), len(STATISTICS), 1 + self.pictures),
            (*ways, len(KINDS)),
            (*ways, len(COUNTS)),
            (len(READINGS), sum(self.filters)),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """What was found of one network.

    Attributes:
        statistics: means over filters, then what every picture adds to them, see `invariance.Estimate`;
            [reading, output, kind, statistic, 1 + pictures]. Scores are of filters that reach the firing rate asked
            for, local rates of all that fire.
        repeated: firings for transformed stimuli, divided by those for originals, mean over filters;
            [reading, output, kind].
        counts: numbers of filters, [reading, output, `COUNTS`].
        each: every filter's score, all outputs one after the other, [reading, filters]; NaN for filters that fire less
            often than asked for.
    """

    statistics: Float[np.ndarray, "2 outputs 4 2 row"]
    repeated: Float[np.ndarray, "2 outputs 4"]
    counts: Float[np.ndarray, "2 outputs 4"]
    each: Float[np.ndarray, "2 filters"]

    def packed(self) -> list[float]:
        """Return all numbers in one row."""
        return np.concatenate([np.ravel(getattr(self, field.name)) for field in dataclasses.fields(self)]).tolist()

    @classmethod
    def unpacked(cls, row: Sequence[float], layout: Layout) -> Scored:
        """Return what `packed` wrote."""
        shapes = layout.shapes
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        return cls(*(part.reshape(shape) for part, shape in zip(np.split(np.asarray(row), ends), shapes, strict=True)))


def relu_responses(network: data.Network) -> Responses:
    """Return picture to responses of a ReLU network, before the ReLU."""
    return lambda picture: activations(network, picture)


def crelu_responses(
    geometry: tuple[data.ConvSpec, ...], banks: Sequence[Array], network: data.Network
) -> Responses:  # fmt: skip
    """Return picture to responses h of a CReLU network: every layer but the first sees both phases of the one below.

    Args:
        geometry: the layers, of a ReLU network with as many filters.
        banks: filters of every layer, [K, M, *ell], M = 2 K of the layer below.
        network: whose input pictures become.
    """
    return lambda picture: _through_crelu(geometry, list(banks), prepare(network, picture))


@functools.partial(jax.jit, static_argnums=0)
def _through_crelu(
    geometry: tuple[data.ConvSpec, ...], banks: list[Array], image: Float[Array, "3 H W"]
) -> dict[str, Float[Array, " K *n"]]:
    outputs: dict[str, Array] = {}
    # Channels last, the layout in which a CPU convolves fastest.
    x = jnp.moveaxis(image, 0, -1)
    for spec, bank in zip(geometry, banks, strict=True):
        h = convolve(
            x[None], jnp.moveaxis(bank, (0, 1), (-1, -2)), window_strides=spec.stride,
            padding=[(margin, margin) for margin in spec.padding], dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]  # fmt: skip
        outputs[spec.name] = jnp.moveaxis(h, -1, 0)
        x = crelu(h, axis=-1)
        if spec.pool is not None:
            x = _pooled(x, (*spec.pool.window, 1), (*spec.pool.stride, 1))
    return outputs


def both_readings(
    responses: Responses, geometry: Sequence[data.ConvSpec], layout: Layout, dtype: jnp.dtype
) -> Callable[[Any], dict[str, Array]]:
    """Return pictures [B, 3, H, W] to maps of every reading and output, cut to the places that count."""

    def one(picture: Array) -> dict[str, Array]:
        found = responses(picture)
        return _read({spec.name: found[spec.name] for spec in geometry}, tuple(geometry), layout)

    def features(pictures: Any) -> dict[str, Array]:
        found = [one(jnp.asarray(picture, dtype)) for picture in pictures]
        return {name: jnp.stack([maps[name] for maps in found]) for name in found[0]}

    return features


@functools.partial(jax.jit, static_argnums=(1, 2))
def _read(responses: dict[str, Array], geometry: tuple[data.ConvSpec, ...], layout: Layout) -> dict[str, Array]:
    maps = {}
    places = dict(zip(layout.outputs, layout.places, strict=True))
    for spec in geometry:
        h = responses[spec.name]
        for reading, values in zip(READINGS, (jnp.maximum(h, 0), jnp.abs(h)), strict=True):
            read = {spec.name: values}
            if spec.pool is not None:
                read[spec.pool.name] = _pooled(values, (1, *spec.pool.window), (1, *spec.pool.stride))
            for name, whole in read.items():
                first, stop = places[name]
                maps[f"{reading} {name}"] = whole[:, first:stop, first:stop]
    return maps


def _pooled(maps: Array, window: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    return lax.reduce_window(maps, -jnp.inf, lax.max, window, stride, "VALID")


def through(
    geometry: Sequence[data.ConvSpec], size: int
) -> Iterator[tuple[str, int, int, list[tuple[int, int, int]]]]:  # fmt: skip
    """Yield every output's name, filters, side of its map, and (length, stride, padding) of all up to it."""
    passed: list[tuple[int, int, int]] = []
    for spec in geometry:
        steps = [(spec.name, (spec.shape[2], spec.stride[0], spec.padding[0]))]
        if spec.pool is not None:
            steps.append((spec.pool.name, (spec.pool.window[0], spec.pool.stride[0], 0)))
        for name, (length, stride, padding) in steps:
            size = (size + 2 * padding - length) // stride + 1
            passed.append((length, stride, padding))
            yield name, spec.shape[0], size, list(passed)


def scored(
    features: Callable[[Any], dict[str, Array]],
    pictures: Float[np.ndarray, "N 3 H W"],
    views: Sequence[stimuli.View],
    original: stimuli.View,
    layout: Layout,
    *,
    rate: float,
) -> Scored:
    """Score one network, a picture at a time.

    Args:
        features: of `both_readings`.
        pictures: what it sees.
        views: flip, rotation, then the translations.
        original: the untransformed stimulus.
        layout: what is scored.
        rate: global firing rate.
    """
    # Maps are read already; the absolute values are not negative.
    found = invariance.firings(features, pictures, views, rate=rate, original=original, groups=layout.pictures)
    statistics, repeated, counts = (np.full(shape, np.nan) for shape in layout.shapes[:3])
    each: list[list[np.ndarray]] = [[], []]
    kinds = dict(zip(KINDS, (slice(None), slice(0, 1), slice(1, 2), slice(2, None)), strict=True))
    for row, reading in enumerate(READINGS):
        for column, name in enumerate(layout.outputs):
            held: invariance.Firings = found[f"{reading} {name}"]
            # Scores of filters that fire less often than asked for are of another size: L counts them, S does not.
            estimates = ((invariance.invariance_score(held), held.tuned), (invariance.local_rate(held), None))
            fired = held.fired.sum(axis=0)
            sound = (fired > 0) & ~np.isnan(held.thresholds)
            for at, rows in enumerate(kinds.values()):
                for number, (estimate, where) in enumerate(estimates):
                    some = invariance.Estimate(estimate.value[rows], estimate.influence[rows])
                    mean = invariance.layer_mean(some, where=where)
                    statistics[row, column, at, number] = [mean.value, *mean.influence]
                if sound.any():
                    again = held.transformed[rows].sum(axis=1).mean(axis=0)
                    repeated[row, column, at] = np.mean(again[sound] / fired[sound])
            bad = np.isnan(held.thresholds)
            counts[row, column] = [
                np.sum((fired == 0) & ~bad), np.sum(invariance.seen_once(held)), np.sum(~held.tuned & ~bad), bad.sum()
            ]  # fmt: skip
            score, tuned = estimates[0]
            each[row].append(np.where(tuned, invariance.filter_mean(score).value, np.nan))
    return Scored(statistics, repeated, counts, np.stack([np.concatenate(part) for part in each]))


__all__ = [
    "COUNTS",
    "KINDS",
    "READINGS",
    "STATISTICS",
    "Layout",
    "Responses",
    "Scored",
    "both_readings",
    "crelu_responses",
    "relu_responses",
    "scored",
    "through",
]
