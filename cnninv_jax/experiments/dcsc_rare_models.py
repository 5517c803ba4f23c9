"""The models of the study of paths that are hardly ever lost: sizes, supports, and what can be lost at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax import dcsc
from cnninv_jax._typing import Array
from cnninv_jax.dcsc.generate import Sample, generate
from cnninv_jax.dcsc.noise import aligned_noise
from cnninv_jax.experiments.dcsc_dictionaries import Dictionaries, build
from cnninv_jax.experiments.dcsc_rare_draws import FirstLayer, first_layer
from cnninv_jax.experiments.studies import StudyOptions
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.operators import analysis

#: Supports tried for a deep layer that no pattern of its own signs can lose.
SUPPORTS = 64


@dataclasses.dataclass(frozen=True)
class RareParameters:
    """Sizes of the four models (few and many signs, one and two layers), levels of the noise, effort."""

    signs: tuple[int, ...] = (18, 40)
    """Non-zeros of X^(1) of the models of one layer, each with a sign of its own; up to 20 all patterns are tried."""
    deep: tuple[int, ...] = (3, 7)
    """Non-zeros of X^(2) of the models of two layers."""
    nonzeros: int = 5
    """Non-zero entries of an atom of the second layer: X^(1) has so many for each of X^(2)."""
    num_filters: tuple[int, ...] = (16, 16)
    """Filters n_1, n_2 of the layers."""
    ell: int = 6
    """Filter length."""
    D: int = 12
    """Signal length; filters wrap around its border."""
    margin: tuple[float, ...] = (0.74, 0.92)
    """|X_min| / 2 over c_1 |X_max| / sqrt(M ell), the interference of c_1 aligned signs, for one layer and for two: it
    sets the channels M. Near 0.8, the mean of |N(0, 1)|, hardly any pattern of signs loses layer 1 without noise."""
    zeta: tuple[float, ...] = (0.09, 0.12, 0.16, 0.21, 0.27, 0.35, 0.44)
    """Patch norms of the noise V^(0), in the direction of single atoms, over |X_min^(1)|."""
    num_draws: int = 100_000
    """Draws of fair signs."""
    tilted_draws: int = 20_000
    """Draws of tilted signs, one layer."""
    replicates: int = 16
    """Independent repetitions of splitting."""
    particles: int = 256
    """Particles of a repetition."""
    moves: int = 4
    """Moves of every particle above every level, each through the signs of every layer."""


class Model(NamedTuple):
    """A model with its support, ready for draws at every level of the noise.

    Attributes:
        name: what the report calls it.
        layers: the layers.
        sample: path and what the theorem asks of it.
        thresholds: |X_min^(l)| / 2, [L].
        zetas: zeta_0 at every level.
        noise: V^(0) at every level.
        signs: c_1 + ... + c_L.
        channels: M.
        tried: supports looked at until this one was taken.
        unlosable: of two layers, whether no pattern of D^(2) loses the support without noise.
    """

    name: str
    layers: dcsc.Layers
    sample: Sample
    thresholds: Array
    zetas: np.ndarray
    noise: list[Array]
    signs: int
    channels: int
    tried: int
    unlosable: bool


def check(p: RareParameters) -> None:
    """Refuse sizes that do not fit, before anything is built.

    Raises:
        ValueError: see the messages.
    """
    for name in ("nonzeros", "ell", "D", "num_draws", "tilted_draws", "replicates", "particles", "moves"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 30)
    for name, least in (("num_draws", 2), ("tilted_draws", 2), ("replicates", 2), ("particles", 16)):
        if getattr(p, name) < least:
            raise ValueError(f"expected --{name.replace('_', '-')} to be at least {least}, got {getattr(p, name)}")
    for name in ("signs", "deep"):
        for value in getattr(p, name):
            positive(value, f"--{name}", 1 << 20)
        if len(set(getattr(p, name))) < len(getattr(p, name)):
            raise ValueError(f"expected --{name} that differ, got {getattr(p, name)}; name each number once")
    if not p.signs and not p.deep:
        raise ValueError("expected --signs or --deep, got neither; name at least one model")
    if len(p.num_filters) != 2:
        raise ValueError(f"expected two --num-filters, n_1 and n_2, got {len(p.num_filters)}")
    for number in p.num_filters:
        positive(number, "--num-filters", 1 << 30)
    for name, (atoms, each) in (
        ("signs", (p.num_filters[0] * p.D, 1)),
        ("deep", (min(p.num_filters[1] * p.D, p.num_filters[0] * p.D // p.nonzeros), p.nonzeros)),
    ):
        if max(getattr(p, name), default=0) > atoms:
            what = "the atoms of layer 1" if each == 1 else f"atoms of layer 2 with {each} places of X^(1) for each"
            raise ValueError(
                f"expected --{name} of at most {atoms}, {what}, got {max(getattr(p, name))}; take a longer --D"
            )
    if not p.zeta or not all(math.isfinite(value) and value >= 0 for value in p.zeta):
        raise ValueError(f"expected --zeta of 0 or more, at least one, got {p.zeta}")
    if len(set(p.zeta)) < len(p.zeta):
        raise ValueError(f"expected --zeta that differ, got {p.zeta}; name each number once")
    if len(p.margin) != 2 or not all(math.isfinite(value) and value > 0 for value in p.margin):
        raise ValueError(f"expected two positive numbers for --margin, got {p.margin}")


def make_model(p: RareParameters, options: StudyOptions, depth: int, count: int) -> Model:
    """Return a model with a support of this size and the noise of all levels."""
    c_1 = count if depth == 1 else count * p.nonzeros
    channels = max(round((2 * p.margin[depth - 1] * c_1) ** 2 / p.ell), 1)
    sizes = Dictionaries(D=p.D, M=channels, num_filters=p.num_filters, ell=p.ell, nonzeros=p.nonzeros)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(options.seed), depth), count)
    filter_key, code_key, noise_key = jax.random.split(key, 3)
    model = build(filter_key, sizes, depth, options.precision)
    sample, tried, unlosable = _sample(code_key, model, count)
    got = int(np.sum(np.asarray(sample.path[-1]) != 0))
    if got < count:
        flag = "signs" if depth == 1 else "deep"
        raise ValueError(
            f"expected --{flag} of at most {got}, what fits into the model, got {count}; take a longer --D"
        )
    smallest = np.asarray(sample.measured.smallest, np.float64)
    direction = aligned_noise(noise_key, model[0], 1.0)
    zetas = np.asarray(p.zeta) * smallest[0]
    name = "one layer" if depth == 1 else "two layers"
    return Model(
        name,
        model,
        sample,
        jnp.asarray(smallest / 2, options.precision),
        zetas,
        [direction * jnp.asarray(zeta, direction.dtype) for zeta in zetas],
        c_1 if depth == 1 else c_1 + count,
        channels,
        tried,
        unlosable,
    )


def _sample(key: Array, model: dcsc.Layers, count: int) -> tuple[Sample, int, bool]:
    """Return a support, how many were tried, and, of two layers, whether no pattern of D^(2) loses it without noise.

    Otherwise P >= 2^-c_2: such supports are passed over as long as there are trials left.
    """
    sample, measured, trial, unlosable = None, None, 0, False
    for trial in range(1 if len(model) == 1 else SUPPORTS):
        coherence = None if measured is None else measured.coherence
        sample = generate(jax.random.fold_in(key, trial), model, num_nonzeros=count, coherence=coherence)
        measured = sample.measured
        if len(model) == 1 or int(np.sum(np.asarray(sample.path[-1]) != 0)) < count:
            break
        deep = first_layer(model[1:], sample.path[-1], jnp.zeros(model[1].op.input_shape), measured.smallest[-1] / 2)
        interference = np.abs(np.asarray(deep.products)).sum(axis=1)
        interference[np.asarray(deep.places)] = 0
        if interference.max() < float(measured.smallest[-1]) / 2 * (1 - 1e-3):
            unlosable = True
            break
    assert sample is not None
    return sample, trial + 1, unlosable


def places_of(model: Model) -> list[int]:
    """Return c_1, ..., c_L."""
    return [int(np.sum(np.asarray(code) != 0)) for code in model.sample.path[1:]]


def held_below(model: dcsc.Layers, code: ArrayLike, layers: Sequence[FirstLayer], threshold: float) -> list[bool]:
    """Return at which levels of the noise no signs at all lose layer 2 while layer 1 recovers its support.

    A worst case: every entry of X^(1)_hat ranges by itself over (beta_1, |x_i| + e_i], e_i being what all signs and the
    noise can add to its response, and every D^(2) does its worst. False says only that this does not show it.

    Args:
        model: two layers.
        code: X^(2).
        layers: layer 1 at every level.
        threshold: beta_2.
    """
    op = model[1].op
    places, own = np.asarray(layers[0].places), np.flatnonzero(np.asarray(code))

    def column(place: Array) -> Array:
        unit = jnp.zeros(math.prod(op.input_shape), op.dtype).at[place].set(1)
        return analysis(op, unit.reshape(op.input_shape)).ravel()

    taps = np.asarray(jax.lax.map(column, layers[0].places), np.float64).T
    if np.any(np.count_nonzero(taps[own], axis=0) != 1):
        return [False] * len(layers)
    signed = taps[:, None, :] * np.sign(taps[own])[None]
    off, rank = np.setdiff1d(np.arange(len(taps)), own), np.arange(len(own))
    found = []
    for layer in layers:
        sizes, beta = np.asarray(layer.sizes, np.float64), float(layer.threshold)
        others = np.abs(np.asarray(layer.products, np.float64)[places]) * (1 - np.eye(len(places)))
        error = others.sum(axis=1) + np.abs(np.asarray(layer.offset, np.float64)[places])
        low, high = np.maximum(sizes - error, beta), sizes + error
        up = np.where(signed > 0, signed * high, signed * low).sum(axis=2)
        down = np.where(signed > 0, signed * low, signed * high).sum(axis=2)
        most = np.maximum(np.abs(up), np.abs(down))
        margin = down[own, rank] - (most[own].sum(axis=1) - most[own, rank])
        # Responses on the support of layer 1 exceed beta_1, so that equality, up to rounding, will do; none is flipped.
        found.append(
            bool(
                np.all(error < sizes + beta)
                and np.all(margin >= threshold * (1 - 1e-6))
                and np.all(most[off].sum(axis=1) < threshold * (1 - 1e-6))
            )
        )
    return found
