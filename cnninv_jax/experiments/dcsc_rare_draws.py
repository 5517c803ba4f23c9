"""Activation paths that are hardly ever lost: fair signs, tilted signs, and exact counts (Murray 2018).

The support is fixed; several levels of the noise V^(0) are looked at together.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Float, Int, Scalar
from cnninv_jax.dcsc.paths import path_score, signs_of_latent
from cnninv_jax.operators import analysis, synthesis

#: Part of the tilted draws that are made under the law of fair signs: no weight is then above its inverse.
FAIR_SHARE = 0.05
#: Half of the log odds of a sign that has to take one value: the other one comes once in exp(24) draws.
PINNED = 12.0
#: Patterns of signs that are looked at together, and how many signs are counted out at most.
PATTERNS, MOST_SIGNS = 1 << 12, 24


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tables", "thresholds"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Score:
    """How near a path is to being lost, as a function of normal numbers whose signs are D: lost from 1 on."""

    tables: dcsc.PathTables
    thresholds: Float[Array, " L"]

    def __call__(self, latent: Sequence[Array]) -> Scalar:
        """Return the largest score of a layer."""
        return path_score(self.tables, signs_of_latent(latent), self.thresholds)

    def latent(self) -> list[jax.ShapeDtypeStruct]:
        """Return the template of the latent, a block of numbers per layer."""
        return [jax.ShapeDtypeStruct((count,), self.thresholds.dtype) for count in self.tables.places]


def refined(levels: mc.Levels, count: int) -> mc.Levels:
    """Return levels of a given number: the widest gaps are halved, the first one from 0.

    Any levels make an unbiased draw of splitting; more of them cost more and vary less.
    """
    thresholds, steps = np.asarray(levels.thresholds), np.asarray(levels.steps)
    while len(thresholds) < count:
        gaps = np.diff(thresholds, prepend=0)
        at = int(np.argmax(gaps))
        thresholds = np.insert(thresholds, at, thresholds[at] - gaps[at] / 2)
        # The step of the level below: longer ones are refused too often further up, and 1 draws anew.
        steps = np.insert(steps, at, steps[at - 1] if at else np.ones_like(steps[0]), axis=0)
    return mc.Levels(jnp.asarray(thresholds), jnp.asarray(steps))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tables", "thresholds"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class FairDraw:
    """One draw of fair signs: is the path lost, at every level of the noise?

    Attributes:
        tables: those of every level, stacked along a leading axis.
        thresholds: beta_l, [L].
    """

    tables: dcsc.PathTables
    thresholds: Float[Array, " L"]

    def __call__(self, key: jax.Array) -> dict[str, Array]:
        """Return ``lost``, [levels]."""
        signs = dcsc.path_signs(key, jax.tree.map(lambda array: array[0], self.tables))
        return {"lost": _lost(self.tables, self.thresholds, signs)}


def count_patterns(tables: dcsc.PathTables, thresholds: Float[Array, " L"]) -> Int[np.ndarray, " levels"]:
    """Return how many of all 2^c patterns of signs lose the path, c = c_1 + ... + c_L, by trying them all.

    Args:
        tables: those of every level, stacked along a leading axis.
        thresholds: beta_l, [L].

    Raises:
        ValueError: too many signs.

    Cost: 2^c passes per level.
    """
    places = tuple(array.shape[1] for array in tables.support)
    if sum(places) > MOST_SIGNS:
        raise ValueError(f"expected at most {MOST_SIGNS} signs to try all patterns of, got {sum(places)}; sample them")
    size = min(PATTERNS, 1 << sum(places))
    found = np.zeros(tables.values.shape[0], np.int64)
    for begin in range(0, 1 << sum(places), size):
        found += np.asarray(_count(tables, thresholds, jnp.asarray(begin, np.int32), places, size), np.int64)
    return found


@functools.partial(jax.jit, static_argnames=["places", "size"])
def _count(tables: dcsc.PathTables, thresholds: Array, begin: Array, places: tuple[int, ...], size: int) -> Array:
    shifts = jnp.arange(sum(places), dtype=np.int32)

    def one(number: Array) -> Array:
        signs = (1 - 2 * ((number >> shifts) & 1)).astype(thresholds.dtype)
        return _lost(tables, thresholds, tuple(jnp.split(signs, np.cumsum(places)[:-1])))

    return jnp.sum(jax.vmap(one)(begin + jnp.arange(size, dtype=np.int32)), axis=0, dtype=np.int32)


def _lost(tables: dcsc.PathTables, thresholds: Array, signs: tuple[Array, ...]) -> Array:
    return jax.vmap(lambda one: ~dcsc.path_outcome(one, signs, thresholds).recovered)(tables)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["products", "sizes", "places", "offset", "threshold"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class FirstLayer:
    """The responses of the first layer as a function of s = D^(1) sign(X^(1)): products @ s + offset.

    Where atoms do not overlap in X^(1), ..., X^(L-1), |X^(1)| is fixed and s are fair signs.

    Attributes:
        products: |x_k| <a_i, a_k>, [N, c].
        sizes: |x_k|, [c].
        places: flat index of the support, [c].
        offset: <a_i, V^(0)>, [N].
        threshold: beta_1.
    """

    products: Float[Array, "N c"]
    sizes: Float[Array, " c"]
    places: Int[Array, " c"]
    offset: Float[Array, " N"]
    threshold: Scalar

    def wrong(self, signs: Float[Array, " c"]) -> Array:
        """Return how many responses are on the wrong side of the threshold: at least 1 where the support is lost."""
        responses = jnp.abs(matmul(self.products, signs) + self.offset)
        lost = (responses > self.threshold).at[self.places].set(responses[self.places] <= self.threshold)
        return jnp.sum(lost, dtype=np.int32)


def first_layer(model: dcsc.Layers, code: ArrayLike, noise: ArrayLike, threshold: ArrayLike) -> FirstLayer:
    """Return the first layer's responses by themselves.

    Args:
        model: the layers, whose atoms do not overlap in X^(1), ..., X^(L-1).
        code: X^(L), [n_L, *n], concrete.
        noise: V^(0), [M, *D].
        threshold: beta_1.

    Cost: N_1 c_1 numbers.
    """
    op = model[0].op
    sizes = jnp.abs(dcsc.reverse_pass(model, code)[1]).ravel()
    places = jnp.flatnonzero(sizes).astype(np.int32)

    def column(place: Array) -> Array:
        unit = jnp.zeros(sizes.size, op.dtype).at[place].set(1).reshape(op.code_shape)
        return analysis(op, synthesis(op, unit)).ravel()

    products = jax.lax.map(column, places).T * sizes[places][None]
    return FirstLayer(products, sizes[places], places, analysis(op, noise).ravel(), jnp.asarray(threshold, op.dtype))


class Events(NamedTuple):
    """Failures of single responses, each sum_k w_k s_k beyond tau; the first layer is lost where any of them happens.

    Attributes:
        weights: w, [events, c].
        limits: tau, [events].
        pinned: index of a sign that has to take the value ``value`` besides, c where there is none, [events].
        value: +-1, [events].
    """

    weights: Float[np.ndarray, "events c"]
    limits: Float[np.ndarray, " events"]
    pinned: Int[np.ndarray, " events"]
    value: Float[np.ndarray, " events"]


def events(layer: FirstLayer) -> Events:
    """Return what can go wrong, in two directions for every response.

    Off the support |response| > beta. On it s_i response_i = x_i + s_i (sum_{k != i} w_k s_k + b) <= beta, with s_i
    either +1 or -1; that a response passes through to -beta, where it would count again, is left out of account.
    """
    products, sizes, offset = (np.asarray(array, np.float64) for array in (layer.products, layer.sizes, layer.offset))
    places, threshold, count = np.asarray(layer.places), float(layer.threshold), layer.sizes.shape[0]
    off = np.setdiff1d(np.arange(len(products)), places)
    parts = []
    for side in (1.0, -1.0):
        parts.append(
            (side * products[off], threshold - side * offset[off], np.full(len(off), count), np.ones(len(off)))
        )
        others = -side * products[places] * (1 - np.eye(count))
        parts.append((others, sizes - threshold + side * offset[places], np.arange(count), np.full(count, side)))
    return Events(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Tilts(NamedTuple):
    """Laws of independent signs, one for each event and, last, that of fair signs.

    Attributes:
        logits: half of the log odds of a +1, [laws, c].
        log_shares: logarithms of the laws' shares of the draws, [laws].
    """

    logits: Float[np.ndarray, "laws c"]
    log_shares: Float[np.ndarray, " laws"]


def tilts(given: Events) -> Tilts:
    """Return laws under which each event happens in the mean, with shares in proportion to Chernoff's bounds.

    P(s_k = +1) is proportional to exp(theta w_k), where theta solves sum_k w_k tanh(theta w_k) = tau.
    """
    weights, limits, count = given.weights, given.limits, given.weights.shape[1]
    most = np.abs(weights).sum(axis=1)
    # A mean of all of it would need an infinite theta.
    aim = np.clip(limits, 0, 0.97 * most)
    low, high = np.zeros(len(limits)), 1e4 / np.where(most > 0, most, 1.0)
    for _ in range(60):
        middle = (low + high) / 2
        short = np.sum(weights * np.tanh(middle[:, None] * weights), axis=1) < aim
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    logits = low[:, None] * weights
    sizes = np.abs(logits)
    logs = np.sum(sizes + np.log1p(np.exp(-2 * sizes)) - np.log(2), axis=1) - low * limits
    held = np.flatnonzero(given.pinned < count)
    logits[held, given.pinned[held]] = PINNED * given.value[held]
    logs[held] -= np.log(2)
    logs = np.where(limits > most * (1 + 1e-6), -np.inf, np.minimum(logs, 0.0))
    logits = np.concatenate([logits, np.zeros((1, count))])
    if not np.isfinite(logs).any():
        return Tilts(logits, np.append(logs, 0.0))
    return Tilts(logits, np.append(logs - np.logaddexp.reduce(logs) + np.log1p(-FAIR_SHARE), np.log(FAIR_SHARE)))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["layers", "logits", "log_shares"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TiltedDraw:
    """One weighted draw of signs per level of the noise, from the mixture of all tilted laws; one layer.

    The weight holds the mixture's density, not that of the law drawn from: a pattern that loses several responses is
    reached by several laws. (Owen, Maximov and Chertkov 2019 draw from the events themselves in place of tilted laws.)

    Attributes:
        layers: those of every level, stacked along a leading axis.
        logits: see `Tilts`, [levels, laws, c].
        log_shares: see `Tilts`, [levels, laws].
    """

    layers: FirstLayer
    logits: Float[Array, "levels laws c"]
    log_shares: Float[Array, "levels laws"]

    def __call__(self, key: jax.Array) -> dict[str, Array]:
        """Return logarithms for `montecarlo.WeightedProportion`, [levels] each.

        ``lost``: of the support being lost. ``wrong``: of the number of responses that go wrong, whose mean is the
        exactly known sum of their probabilities. ``weight``: of all draws; the mean is 1.
        """
        return jax.vmap(_tilted)(jax.random.split(key, self.logits.shape[0]), self.layers, self.logits, self.log_shares)


def _tilted(key: jax.Array, layer: FirstLayer, logits: Array, log_shares: Array) -> dict[str, Array]:
    law_key, sign_key = jax.random.split(key)
    own = logits[jax.random.categorical(law_key, log_shares)]
    plus = jax.random.uniform(sign_key, own.shape, own.dtype) < jax.nn.sigmoid(2 * own)
    signs = jnp.where(plus, 1, -1).astype(own.dtype)
    # A law's density relative to that of fair signs is the product of exp(h_k s_k) / cosh h_k.
    sizes = jnp.abs(logits)
    logs = matmul(logits, signs) - jnp.sum(sizes + jnp.log1p(jnp.exp(-2 * sizes)) - np.log(2).astype(own.dtype), axis=1)
    log_weight = -logsumexp(log_shares + logs)
    wrong = layer.wrong(signs)
    count = jnp.log(jnp.maximum(wrong, 1).astype(own.dtype))
    return {
        "lost": mc.log_contribution(wrong > 0, log_weight),
        "wrong": mc.log_contribution(wrong > 0, log_weight + count),
        "weight": log_weight,
    }


def event_probabilities(levels: Sequence[Events]) -> Float[np.ndarray, "levels events"]:
    """Return the exact probability of every event: patterns of one half of the signs against those of the other.

    Their sum bounds the probability of a loss from above, the largest from below.

    Args:
        levels: see `events`; they may differ in their limits only.

    Cost: c 2^(c/2) per event in place of 2^c.
    """
    given, limits = levels[0], np.stack([one.limits for one in levels])
    found = np.zeros(limits.shape)
    for event, weights in enumerate(given.weights):
        # A sign of weight 0 does not matter; a pinned one comes up every other time.
        own = weights[weights != 0]
        pinned = given.pinned[event] < weights.size
        within = np.flatnonzero(np.abs(own).sum() >= limits[:, event])
        if not within.size:
            continue
        order = np.argsort(-np.abs(own))
        first, second = np.sort(_sums(own[order[0::2]])), np.sort(_sums(own[order[1::2]]))
        for level in within:
            tau = limits[level, event]
            enough = first[np.searchsorted(first, tau - second[-1]) :]
            below = np.searchsorted(second, tau - enough, side="left" if pinned else "right")
            found[level, event] = (0.5 if pinned else 1.0) * ((second.size - below).sum() / 2.0**own.size)
    return found


def _sums(weights: Float[np.ndarray, " c"]) -> Float[np.ndarray, " patterns"]:
    """Return the sums of +-weights in all 2^c patterns of signs."""
    sums = np.zeros(1)
    for weight in weights:
        sums = np.concatenate([sums - weight, sums + weight])
    return sums
