"""Filters that are orthogonal to one another over all shifts, and to their own shifts: coherence zero."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import filters
from cnninv_jax._numerics import float_dtype, lengths, matmul, per_axis, wider
from cnninv_jax._typing import FilterBank, PerAxis, PRNGKeyArray


def most_orthogonal(channels: int, length: PerAxis, stride: PerAxis = 1) -> int:
    """Return M prod(min(t, ell)): so many filters can be orthogonal over all shifts, and no more."""
    taps = lengths(length)
    steps = per_axis(stride, len(taps), "stride")
    return channels * math.prod(min(step, ell) for step, ell in zip(steps, taps, strict=True))


def orthogonal_filters(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    *,
    stride: PerAxis = 1,
    dtype: jax.typing.DTypeLike | None = None,
) -> FilterBank:
    """Return random unit-norm filters that are orthogonal over all shifts, their own included: mu = 0.

    A paraunitary matrix in the polyphase domain: random orthogonal matrices with delays of half of the channels between
    them (Vaidyanathan, Multirate Systems and Filter Banks, 1993, 14.4). Taps beyond the largest multiple of the stride
    are 0.

    Args:
        key: typed key.
        num_filters: K, at most M prod(min(t, ell)).
        channels: M.
        length: ell, one integer (1-D) or one per axis.
        stride: t.
        dtype: of the filters; JAX's default float for None.

    Raises:
        ValueError: more filters than can be orthogonal.

    Cost: (sum(ell / t) - rank + 1) orthogonal matrices of order M prod(t), by LAPACK: not for a Monte-Carlo draw.
    """
    kind = float_dtype(dtype)
    (num_filters,), (channels,) = per_axis(num_filters, 1, "num_filters"), per_axis(channels, 1, "channels")
    ell = lengths(length)
    rank = len(ell)
    blocks = tuple(min(step, taps) for step, taps in zip(per_axis(stride, rank, "stride"), ell, strict=True))
    phases = most_orthogonal(channels, ell, blocks)
    if num_filters > phases:
        raise ValueError(
            f"expected at most M prod(min(t, l)) = {phases} filters that are orthogonal over all shifts, got "
            f"{num_filters}; take more channels or a larger stride"
        )
    delays = tuple(taps // block - 1 for taps, block in zip(ell, blocks, strict=True))
    # LAPACK knows no half precision.
    draws = jax.random.normal(key, (1 + sum(delays), phases, phases), wider(kind, np.float32))
    mixing = jnp.linalg.qr(draws)[0].astype(kind)
    # [K, phases, *blocks of taps]
    bank = mixing[0, :num_filters].reshape(num_filters, phases, *(1,) * rank)
    stage = 1
    for axis, number in enumerate(delays):
        for _ in range(number):
            before = [(0, 0)] * bank.ndim
            after = list(before)
            after[2 + axis], before[2 + axis] = (0, 1), (1, 0)
            half = phases // 2
            bank = jnp.concatenate([jnp.pad(bank[:, :half], before), jnp.pad(bank[:, half:], after)], axis=1)
            flat = matmul(mixing[stage].T, jnp.moveaxis(bank, 1, 0).reshape(phases, -1))
            bank = jnp.moveaxis(flat.reshape(phases, num_filters, *bank.shape[2:]), 0, 1)
            stage += 1
    # Phases become taps: tap = block * stride + phase.
    split = bank.reshape(num_filters, channels, *blocks, *bank.shape[2:])
    order = [0, 1]
    for axis in range(rank):
        order += [2 + rank + axis, 2 + axis]
    taps = [block * (delay + 1) for block, delay in zip(blocks, delays, strict=True)]
    whole = jnp.transpose(split, order).reshape(num_filters, channels, *taps)
    missing = [(0, full - tap) for full, tap in zip(ell, taps, strict=True)]
    return filters.normalize(jnp.pad(whole, [(0, 0), (0, 0), *missing]))
