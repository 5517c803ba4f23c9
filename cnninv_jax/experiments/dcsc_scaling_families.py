"""Dictionaries of growing coherence for `dcsc-scaling`, and whether mu is what their atoms have in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cnninv_jax import filters
from cnninv_jax._typing import FilterBank, PRNGKeyArray

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcsc_scaling import ScalingParameters


@dataclasses.dataclass(frozen=True)
class Family:
    """Dictionaries that differ in one number.

    Attributes:
        title: what people read.
        flag: the parameter that holds its levels.
        level: what a level is, ``"M"`` or ``"mu"``.
        bank: ``bank(key, level, parameters)`` returns filters of unit norm, [K, M, ell].
    """

    title: str
    flag: str
    level: str
    bank: Callable[[PRNGKeyArray, float, ScalingParameters], FilterBank]


def equal_correlations(
    key: PRNGKeyArray, num_filters: int, channels: int, samples: int, coherence: float
) -> FilterBank:
    """Return filters as long as a circular signal, of which any two, at any two positions, have the same product mu.

    a_i = sqrt(1 - mu) u_i + sqrt(mu) 1 / |1|: u_i is one tap whose channels are orthonormal and add up to 0.

    Args:
        key: random key.
        num_filters: K, less than M.
        channels: M.
        samples: D = ell.
        coherence: mu.

    Raises:
        ValueError: too few channels.
    """
    if num_filters >= channels:
        raise ValueError(
            f"expected more than {num_filters} --channels for as many filters beside a common one, got {channels}"
        )
    start = jax.random.normal(key, (channels, num_filters + 1)).at[:, 0].set(1)
    taps = jnp.linalg.qr(start)[0][:, 1:].T
    own = jnp.zeros((num_filters, channels, samples), taps.dtype).at[:, :, 0].set(taps)
    return math.sqrt(1 - coherence) * own + math.sqrt(coherence / (channels * samples))


def pairs(key: PRNGKeyArray, num_filters: int, channels: int, length: int, coherence: float) -> FilterBank:
    """Return Gaussian filters of which the second, fourth, ... has the product mu with the one before it.

    Args:
        key: random key.
        num_filters: K.
        channels: M.
        length: ell.
        coherence: mu.
    """
    bank = filters.gaussian(key, num_filters, channels, length, normalize=True)
    first, second = bank[: 2 * (num_filters // 2) : 2], bank[1::2]
    along = jnp.sum(first * second, axis=(1, 2), keepdims=True)
    across = filters.normalize(second - along * first)
    return bank.at[1::2].set(coherence * first + math.sqrt(1 - coherence**2) * across)


def _gaussian(key: PRNGKeyArray, level: float, p: ScalingParameters) -> FilterBank:
    return filters.gaussian(key, p.num_filters, int(level), p.ell, normalize=True)


def _equal(key: PRNGKeyArray, level: float, p: ScalingParameters) -> FilterBank:
    return equal_correlations(key, p.num_filters, p.channels, p.positions * p.stride, level)


def _mixture(key: PRNGKeyArray, level: float, p: ScalingParameters) -> FilterBank:
    from cnninv_jax.dcsc.design import filters_of_coherence

    return filters_of_coherence(key, p.num_filters, p.channels, p.ell, level, stride=p.stride)


def _pairs(key: PRNGKeyArray, level: float, p: ScalingParameters) -> FilterBank:
    return pairs(key, p.num_filters, p.pair_channels, p.ell, level)


#: Families by name.
FAMILIES: Mapping[str, Family] = {
    "equal": Family("equal correlations", "equal_mu", "mu", _equal),
    "gaussian": Family("Gaussian, M grows", "M", "M", _gaussian),
    "mixture": Family("mixtures of given coherence", "mixture_mu", "mu", _mixture),
    "pairs": Family("Gaussian, coherent pairs", "pair_mu", "mu", _pairs),
}
