"""Sparse atoms for the deep layers: X^(l-1) = A^(l) D^(l) X^(l) is sparse only if the columns of A^(l) are.

A code is hard to recover where two atoms answer to the same entries. So taps are put where few others meet them:

* an atom's taps lie in different channels (as far as there are channels), so that it never meets its own shifts;
* every atom takes the channels used least so far; where channels >= filters times taps, no two atoms ever meet: mu = 0;
* of several such placements each atom takes the one whose largest product with the atoms before it, over all shifts,
  is smallest. With q taps of equal size products are multiples of 1/q, and 1/q is the least that is not 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from cnninv_jax._numerics import float_dtype, per_axis
from cnninv_jax._typing import Array, FilterBank, Float, Int, PerAxis, PRNGKeyArray
from cnninv_jax.filters import normalize

AtomValues: TypeAlias = Literal["signs", "gaussian", "positive"]
Places: TypeAlias = Literal["spread", "random"]


def sparse_filters(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    nonzeros: int,
    *,
    values: str = "signs",
    places: str = "spread",
    stride: PerAxis = 1,
    tries: int = 32,
    dtype: jax.typing.DTypeLike | None = None,
) -> FilterBank:
    """Draw unit-norm filters with a given number of non-zero taps, for layers 2, ..., L of a D-CSC model.

    Args:
        key: random key.
        num_filters: K.
        channels: M, the filters of the layer below.
        length: ell; one integer for one spatial axis, a tuple for as many axes as it has entries.
        nonzeros: taps of every filter that are not zero, q <= M prod(ell).
        values: ``"signs"`` gives taps +-1/sqrt(q), ``"positive"`` 1/sqrt(q) (a ReLU network's codes stay
            non-negative), ``"gaussian"`` normal numbers divided by their norm.
        places: ``"spread"`` as the module says; ``"random"`` puts the taps anywhere with equal probability.
        stride: t of the layer; atoms meet at multiples of it only. Matters for ``"spread"``.
        tries: placements compared for every filter, at least 1; only for ``"spread"``.
        dtype: of the filters; JAX's default float for None.

    Returns:
        Filters, [K, M, *ell].

    Raises:
        ValueError: sizes that are no positive integers, more taps than places, unknown values or places.

    Cost: of ``"spread"``, tries K^2 q prod(2 ell - 1) operations, one filter after the other.
    """
    (count,) = per_axis(num_filters, 1, "num_filters")
    (depth,) = per_axis(channels, 1, "channels")
    (taps,) = per_axis(nonzeros, 1, "nonzeros")
    (trials,) = per_axis(tries, 1, "tries")
    ell = per_axis(length, len(length) if isinstance(length, Sequence) else 1, "length")
    step = per_axis(stride, len(ell), "stride")
    if taps > depth * math.prod(ell):
        raise ValueError(
            f"expected at most M prod(ell) = {depth * math.prod(ell)} taps in a filter of {depth} channels and "
            f"length {ell}, got {taps}"
        )
    if values not in get_args(AtomValues):
        raise ValueError(f"expected values to be one of {', '.join(get_args(AtomValues))}, got {values!r}")
    if places not in get_args(Places):
        raise ValueError(f"expected places to be one of {', '.join(get_args(Places))}, got {places!r}")
    kind = float_dtype(dtype)
    if places == "random":
        return _anywhere(key, (count, depth, *ell), taps, values, kind)
    return _spread(key, (count, depth, *ell), taps, values, step, trials, kind)


def _amplitudes(key: PRNGKeyArray, shape: tuple[int, ...], values: str, dtype: jnp.dtype) -> Float[Array, " *shape"]:
    """Return taps before normalisation."""
    if values == "positive":
        return jnp.ones(shape, dtype)
    return jax.random.normal(key, shape, dtype) if values == "gaussian" else jax.random.rademacher(key, shape, dtype)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _anywhere(key: PRNGKeyArray, shape: tuple[int, ...], taps: int, values: str, dtype: jnp.dtype) -> FilterBank:
    """Put taps at places drawn without replacement."""
    place_key, value_key = jax.random.split(key)
    size = math.prod(shape[1:])
    _, where = jax.lax.top_k(jax.random.uniform(place_key, (shape[0], size)), taps)
    flat = jnp.zeros((shape[0], size), dtype)
    rows = jnp.arange(shape[0])[:, None]
    return normalize(flat.at[rows, where].set(_amplitudes(value_key, where.shape, values, dtype)).reshape(shape))


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))
def _spread(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    taps: int,
    values: str,
    stride: tuple[int, ...],
    tries: int,
    dtype: jnp.dtype,
) -> FilterBank:
    """Add filter after filter, each the best of several placements in the channels used least."""
    count, channels, *length = shape
    ell = tuple(length)

    def trial(key: PRNGKeyArray, used: Float[Array, " M"]) -> Float[Array, " M *ell"]:
        place_key, value_key = jax.random.split(key)
        channel, tap = _places(place_key, used, taps, ell)
        amplitude = _amplitudes(value_key, (taps,), values, dtype)
        atom = jnp.zeros((channels, math.prod(ell)), dtype).at[channel, tap].set(amplitude)
        return normalize(atom.reshape(1, channels, *ell))[0]

    def cost(atom: Float[Array, " M *ell"], bank: FilterBank) -> Float[Array, ""]:
        others = _products(atom, bank, taps, ell, stride)
        own = _products(atom, atom[None], taps, ell, stride)
        own = own.at[(0, *(size - 1 for size in ell))].set(0)
        # Among equal maxima the placement with fewer coincidences.
        largest = jnp.maximum(jnp.max(jnp.abs(others)), jnp.max(jnp.abs(own)))
        return largest + 1e-3 * (jnp.sum(others**2) + jnp.sum(own**2)) / count

    def add(bank: FilterBank, index: Int[Array, ""]) -> tuple[FilterBank, None]:
        used = jnp.sum(bank != 0, axis=(0, *range(2, bank.ndim))).astype(dtype)
        keys = jax.random.split(jax.random.fold_in(key, index), tries)
        atoms = jax.vmap(trial, in_axes=(0, None))(keys, used)
        costs = jax.lax.map(lambda atom: cost(atom, bank), atoms)
        return bank.at[index].set(atoms[jnp.argmin(costs)]), None

    bank, _ = jax.lax.scan(add, jnp.zeros(shape, dtype), jnp.arange(count))
    return bank


def _places(
    key: PRNGKeyArray, used: Float[Array, " M"], taps: int, length: tuple[int, ...]
) -> tuple[Int[Array, " q"], Int[Array, " q"]]:
    """Return channels and taps: all channels as often as they can be, then the ones used least; ties at random."""
    channels, size = used.shape[0], math.prod(length)
    channel_key, tap_key = jax.random.split(key)
    rounds, rest = divmod(taps, channels)
    _, chosen = jax.lax.top_k(-(used + jax.random.uniform(channel_key, used.shape, used.dtype)), max(rest, 1))
    if rounds == 0:
        return chosen, jax.random.randint(tap_key, (taps,), 0, size)
    order = jnp.argsort(jax.random.uniform(tap_key, (channels, size)), axis=1)
    first = jnp.broadcast_to(jnp.arange(channels)[:, None], (channels, rounds)).ravel()
    extra = chosen[:rest]
    where = jnp.concatenate([order[:, :rounds].ravel(), order[extra, min(rounds, size - 1)]])
    return jnp.concatenate([first.astype(extra.dtype), extra]), where


def _products(
    atom: Float[Array, " M *ell"], bank: FilterBank, taps: int, length: tuple[int, ...], stride: tuple[int, ...]
) -> Float[Array, " K *lags"]:
    """Return the atom's products with a bank at every shift, 0 where the stride has none; [K, *(2 ell - 1)]."""
    size = math.prod(length)
    (where,) = jnp.nonzero(atom.ravel(), size=taps, fill_value=0)
    channel, tap = where // size, jnp.unravel_index(where % size, length)
    padded = jnp.pad(bank, ((0, 0), (0, 0), *((ell - 1, ell - 1) for ell in length)))
    lags = tuple(2 * ell - 1 for ell in length)

    def window(channel: Int[Array, ""], *start: Int[Array, ""]) -> Float[Array, " K *lags"]:
        zero = jnp.zeros((), channel.dtype)
        return jax.lax.dynamic_slice(padded, (zero, channel, *start), (bank.shape[0], 1, *lags))[:, 0]

    windows = jax.vmap(window)(channel, *tap)
    # A tap of value 0 fills up where a Gaussian happens to vanish: it adds nothing but repeats place 0.
    weights = jnp.where(jnp.arange(taps) < jnp.sum(atom != 0), atom.ravel()[where], 0)
    total = jnp.sum(weights.reshape(-1, *(1,) * (windows.ndim - 1)) * windows, axis=0)
    for axis, (ell, step) in enumerate(zip(length, stride, strict=True), start=1):
        meets = (jnp.arange(2 * ell - 1) - (ell - 1)) % step == 0
        total = jnp.where(meets.reshape(-1, *(1,) * (total.ndim - 1 - axis)), total, 0)
    return total


__all__ = ["AtomValues", "Places", "sparse_filters"]
