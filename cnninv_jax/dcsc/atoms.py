"""Sparse atoms for the deep layers: X^(l-1) = A^(l) D^(l) X^(l) is sparse only if the columns of A^(l) are.

A code is hard to recover where two atoms answer to the same entries. So taps are put where few others meet them:

* an atom's taps lie in different channels (as far as there are channels), so that it never meets its own shifts;
* every atom takes the channels used least so far; where channels >= filters times taps, no two atoms ever meet: mu = 0;
* of several such placements each atom takes the one whose largest product with the atoms before it, over all shifts,
  is smallest. With q taps of equal size products are multiples of 1/q, and 1/q is the least that is not 0.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import PRECISION, float_dtype, lengths, per_axis
from cnninv_jax._typing import Array, FilterBank, Float, Int, PerAxis, PRNGKeyArray

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
    ell = lengths(length)
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


class _Atom(NamedTuple):
    """The taps of one atom: where, and what."""

    channel: Int[Array, " q"]
    tap: tuple[Int[Array, " q"], ...]
    amplitude: Float[Array, " q"]


def _amplitudes(key: PRNGKeyArray, shape: tuple[int, ...], values: str, dtype: jnp.dtype) -> Float[Array, "*rows q"]:
    """Return the taps of atoms of unit norm, along the last axis."""
    if values == "gaussian":
        drawn = jax.random.normal(key, shape, dtype)
        return drawn / jnp.sqrt(jnp.sum(drawn**2, axis=-1, keepdims=True))
    ones = jnp.ones(shape, dtype) if values == "positive" else jax.random.rademacher(key, shape, dtype)
    return ones / math.sqrt(shape[-1])


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _anywhere(key: PRNGKeyArray, shape: tuple[int, ...], taps: int, values: str, dtype: jnp.dtype) -> FilterBank:
    """Put taps at places drawn without replacement."""
    place_key, value_key = jax.random.split(key)
    count, size = shape[0], math.prod(shape[1:])
    _, where = jax.lax.top_k(jax.random.uniform(place_key, (count, size)), taps)
    amplitudes = _amplitudes(value_key, where.shape, values, dtype)
    return jnp.zeros((count, size), dtype).at[jnp.arange(count)[:, None], where].set(amplitudes).reshape(shape)


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
    """Add atom after atom, each the best of several in the channels used least."""
    count, length = shape[0], shape[2:]
    center = tuple(ell - 1 for ell in length)
    # Lags at which atoms stand: multiples of the stride.
    axes = [np.arange(1 - ell, ell) % step == 0 for ell, step in zip(length, stride, strict=True)]
    meet = np.logical_and.reduce(np.meshgrid(*axes, indexing="ij"))[None]

    def draw(key: PRNGKeyArray, used: Int[Array, " M"]) -> _Atom:
        place_key, value_key = jax.random.split(key)
        channel, tap = _places(place_key, used, taps, math.prod(length))
        return _Atom(channel, jnp.unravel_index(tap, length), _amplitudes(value_key, (taps,), values, dtype))

    def dense(atom: _Atom) -> FilterBank:
        return jnp.zeros((1, *shape[1:]), dtype).at[(0, atom.channel, *atom.tap)].set(atom.amplitude)

    def cost(atom: _Atom, bank: FilterBank) -> Float[Array, ""]:
        own = jnp.abs(_products(atom, dense(atom))).at[(0, *center)].set(0)
        products = jnp.where(meet, jnp.concatenate([jnp.abs(_products(atom, bank)), own]), 0)
        # Of equal maxima the one with fewer coincidences: their squares sum to less than the weight takes away.
        return jnp.max(products) + 1e-3 * jnp.sum(products**2) / count

    def add(bank: FilterBank, index: Int[Array, ""]) -> tuple[FilterBank, None]:
        used = jnp.sum(bank != 0, axis=(0, *range(2, bank.ndim)), dtype=np.int32)
        atoms = jax.vmap(draw, in_axes=(0, None))(jax.random.split(jax.random.fold_in(key, index), tries), used)
        best = jnp.argmin(jax.lax.map(lambda atom: cost(atom, bank), atoms))
        return bank.at[index].set(dense(jax.tree.map(lambda leaf: leaf[best], atoms))[0]), None

    bank, _ = jax.lax.scan(add, jnp.zeros(shape, dtype), jnp.arange(count))
    return bank


def _places(
    key: PRNGKeyArray, used: Int[Array, " M"], taps: int, size: int
) -> tuple[Int[Array, " q"], Int[Array, " q"]]:
    """Return channels and taps: every channel as often as all can be, then those used least; ties at random."""
    channels = used.shape[0]
    channel_key, tap_key = jax.random.split(key)
    rounds, rest = divmod(taps, channels)
    _, chosen = jax.lax.top_k(
        -(used.astype(np.float32) + jax.random.uniform(channel_key, used.shape, np.float32)), rest
    )
    if rounds == 0:
        return chosen, jax.random.randint(tap_key, (taps,), 0, size, np.int32)
    order = jnp.argsort(jax.random.uniform(tap_key, (channels, size), np.float32), axis=1).astype(np.int32)
    every = jnp.repeat(jnp.arange(channels, dtype=np.int32), rounds)
    tap = jnp.concatenate([order[:, :rounds].ravel(), order[chosen, min(rounds, size - 1)]])
    return jnp.concatenate([every, chosen]), tap


def _products(atom: _Atom, bank: FilterBank) -> Float[Array, " K *lags"]:
    """Return the products of an atom with the atoms of a bank at every lag, [K, *(2 ell - 1)]."""
    length = bank.shape[2:]
    lags = [2 * ell - 1 for ell in length]
    padded = jnp.pad(bank, ((0, 0), (0, 0), *((ell - 1, ell - 1) for ell in length)))

    def seen(channel: Int[Array, ""], *tap: Int[Array, ""]) -> Float[Array, " K *lags"]:
        start = [jnp.zeros((), channel.dtype), channel, *tap]
        return jax.lax.dynamic_slice(padded, start, (bank.shape[0], 1, *lags))[:, 0]

    windows = jax.vmap(seen)(atom.channel, *atom.tap)
    return jnp.tensordot(atom.amplitude, windows, axes=1, precision=PRECISION)


__all__ = ["AtomValues", "Places", "sparse_filters"]
