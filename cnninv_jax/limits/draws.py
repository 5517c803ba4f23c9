"""Draws of finite random CNNs, from the description that also gives their limit (Random DCN, Definition 2).

Filters are never held as a whole bank where a bank is large: every convolution draws them in blocks of at most
`BLOCK_FILTERS` filters and `BLOCK_NUMBERS` random numbers, uses a block and forgets it. How a bank falls into blocks
depends on N, M and ell only and is part of the draw: block b of convolution i has the key fold_in(fold_in(key, i), b).
`random_filters` returns the very filters that `random_output(..., sampling="plain")` and `random_maps` use.

Gram sampling draws a layer's responses in place of its filters, see `_gram_draws`. Of the maps between two layers drawn
in that way only the sums over channels of products of two entries are kept, block by block.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, float_dtype, matmul
from cnninv_jax._typing import Array, FilterBank, Float, PRNGKeyArray
from cnninv_jax.limits._channelwise import channelwise, patches, through
from cnninv_jax.limits._drawing import BLOCK_FILTERS, BLOCK_NUMBERS, Stage, drawing
from cnninv_jax.limits._gram_draws import gram_of, moments_size, root, second_moments
from cnninv_jax.limits.laws import Laws
from cnninv_jax.limits.layers import Network

#: Every filter, or a wide layer's responses with the same law.
Sampling: TypeAlias = Literal["plain", "gram"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)

Carry = TypeVar("Carry")
Made = TypeVar("Made")


class _Met(NamedTuple):
    """What a convolution meets: the maps before its `Stage.before` layers, or in their place `second_moments`."""

    maps: Array | None
    moments: Array | None


def random_output(
    key: PRNGKeyArray,
    image: ArrayLike,
    layers: Network,
    *,
    width: int | None = None,
    filters: Laws = "gaussian",
    sampling: Sampling = "plain",
) -> Float[Array, " *D_out"]:
    """Draw a random CNN and return its output f for a picture (Random DCN, Definition 2).

    X^(i+1) = relu(w^(i) * X^(i)) / sqrt(N_(i+1)) with fresh filters w^(i); the maps of the last convolution are not
    divided, and f is their mean over the channels.

    Args:
        key: typed key.
        image: picture, [M, *D].
        layers: the network, which ends with a Conv.
        width: channels of the convolutions that do not say how many they have.
        filters: the law of the filters, or one for each convolution.
        sampling: ``"plain"`` draws every filter. ``"gram"``, for Gaussian filters, draws the responses of a layer by
            their covariance wherever that is less work, which sizes alone decide: prod(n) random numbers a filter in
            place of M prod(ell). f has the same law (correlations of responses are off by some 1e-7 in float32), not
            the same value.

    Returns:
        f, [*D_out], in the dtype of the picture; with plain sampling differentiable in the picture.

    Raises:
        ValueError: not a network, one that does not fit the picture, a convolution with no number of channels, a law
            known by its moments only, an unknown sampling, gram sampling of filters that are not Gaussian, or a
            derivative of it.

    Cost: plain, N M prod(ell) random numbers and N M prod(ell) prod(n) multiply-adds a convolution, and the memory of
    a layer's maps, their patches and a block of filters. Gram, with n = prod(n): N n random numbers, some 2 N n^2 + n^3
    multiply-adds, and the memory of some n x n matrices.
    """
    picture = as_float(image)
    if sampling not in SAMPLINGS:
        raise ValueError(f"expected sampling to be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    return _output(key, picture, drawing(layers, picture.shape, width, filters, sampling))


def random_maps(
    key: PRNGKeyArray,
    image: ArrayLike,
    layers: Network,
    *,
    width: int | None = None,
    filters: Laws = "gaussian",
) -> tuple[Float[Array, " N *n"], ...]:
    """Draw a random CNN and return the maps after every layer, [N_i, *n_i] each (Random DCN, Definition 2).

    Those of a convolution come after its ReLU and after their division by sqrt(N_i), those of the last one without it:
    their mean over the channels is `random_output` of the same key with plain sampling.

    Args:
        key: typed key.
        image: picture, [M, *D].
        layers: the network, which ends with a Conv.
        width: channels of the convolutions that do not say how many they have.
        filters: the law of the filters, or one for each convolution.

    Returns:
        One array per layer, `ChannelMean` apart.

    Raises:
        ValueError: as `random_output`.
    """
    picture = as_float(image)
    return _maps(key, picture, drawing(layers, picture.shape, width, filters))


def random_filters(
    key: PRNGKeyArray,
    image_shape: tuple[int, ...],
    layers: Network,
    *,
    width: int | None = None,
    filters: Laws = "gaussian",
    dtype: jax.typing.DTypeLike | None = None,
) -> tuple[FilterBank, ...]:
    """Return the filters of every convolution, [N_i, M_i, *ell_i], that plain sampling draws from this key.

    Args:
        key: typed key.
        image_shape: of the picture, (M, *D).
        layers: the network.
        width: channels of the convolutions that do not say how many they have.
        filters: the law of the filters, or one for each convolution.
        dtype: of the filters; in a draw it is the picture's, and other dtypes mean other random bits. JAX's default
            float for None.

    Raises:
        ValueError: as `random_output`.

    Memory: all of them, whole.
    """
    return _filters(key, drawing(layers, tuple(image_shape), width, filters), float_dtype(dtype))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _filters(key: PRNGKeyArray, stages: tuple[Stage, ...], dtype: jnp.dtype) -> tuple[FilterBank, ...]:
    def bank(index: int, stage: Stage) -> FilterBank:
        blocks = [_sample(block, stage, dtype) for block in _block_keys(key, index, stage)]
        return jnp.concatenate(blocks)[: stage.num_filters]

    return tuple(bank(index, stage) for index, stage in enumerate(stages))


@functools.partial(jax.jit, static_argnums=2)
def _output(key: PRNGKeyArray, picture: Array, stages: tuple[Stage, ...]) -> Array:
    first = stages[0]
    met = _Met(None, second_moments(picture, first.before, first.conv)) if first.gram else _Met(picture, None)
    for index, (stage, following) in enumerate(itertools.pairwise(stages)):
        respond = _responder(met, stage)
        if following.gram:
            met = _Met(None, _moments(key, index, stage, following, respond, picture.dtype))
        else:
            met = _Met(_all_maps(key, index, stage, respond, picture.dtype), None)
    last = stages[-1]
    respond = _responder(met, last)

    def add(total: Array, used: Array, bank: FilterBank) -> tuple[Array, None]:
        return total + jnp.sum(_masked(respond(bank), used), axis=0), None

    start = jnp.zeros(last.conv.shifts, picture.dtype)
    total, _ = _over_blocks(key, len(stages) - 1, last, picture.dtype, add, start)
    return total / last.num_filters


@functools.partial(jax.jit, static_argnums=2)
def _maps(key: PRNGKeyArray, picture: Array, stages: tuple[Stage, ...]) -> tuple[Array, ...]:
    found = []
    maps = picture
    for index, stage in enumerate(stages):
        for layer in stage.before:
            maps = channelwise(maps, layer)
            found.append(maps)
        respond = _responder(_Met(maps, None), stage._replace(before=()))
        maps = _all_maps(key, index, stage, respond, picture.dtype)
        found.append(maps)
    return tuple(found)


def _responder(met: _Met, stage: Stage) -> Callable[[FilterBank], Float[Array, " K *n"]]:
    """Return the function from a block of what is drawn to its maps, after ReLU and division.

    What the responses are linear in is made once: patches, or a root of their Gram matrix. Patches and one product,
    since draws run inside loops, where XLA's convolution is 40 times slower on a CPU (32 filters of 512 x 3 x 3 on
    28 x 28 maps: 482 against 12 ms of processor time); outside of them it would be 1.5 to 5 times faster.
    """
    if stage.gram:
        assert met.moments is not None
        factor = root(gram_of(met.moments, stage.before, stage.conv))
    else:
        assert met.maps is not None
        factor = patches(through(met.maps, stage.before), stage.conv)

    def respond(bank: FilterBank) -> Array:
        responses = matmul(bank.reshape(bank.shape[0], -1), factor)
        return jax.nn.relu(responses).reshape(-1, *stage.conv.shifts) * stage.scale

    return respond


def _all_maps(
    key: PRNGKeyArray, index: int, stage: Stage, respond: Callable[[FilterBank], Array], dtype: jnp.dtype
) -> Float[Array, " N *n"]:
    """Return the maps of a convolution, of all blocks."""
    _, maps = _over_blocks(key, index, stage, dtype, lambda _, __, bank: (None, respond(bank)), None)
    return maps.reshape(-1, *stage.conv.shifts)[: stage.num_filters]


def _moments(
    key: PRNGKeyArray,
    index: int,
    stage: Stage,
    following: Stage,
    respond: Callable[[FilterBank], Array],
    dtype: jnp.dtype,
) -> Float[Array, "entries entries"]:
    """Return what the next convolution's Gram matrix takes, with no more than a block of maps at a time."""

    def add(total: Array, used: Array, bank: FilterBank) -> tuple[Array, None]:
        return total + second_moments(_masked(respond(bank), used), following.before, following.conv), None

    size = moments_size(stage.conv.shifts, following.before, following.conv)
    total, _ = _over_blocks(key, index, stage, dtype, add, jnp.zeros((size, size), dtype))
    return total


def _masked(maps: Float[Array, " K *n"], used: Array) -> Float[Array, " K *n"]:
    """Set the maps of the filters that a block has too many to zero."""
    return jnp.where(used.reshape(-1, *(1,) * (maps.ndim - 1)), maps, 0)


def _block_keys(key: PRNGKeyArray, index: int, stage: Stage) -> PRNGKeyArray:
    """Return the keys of a convolution's blocks."""
    blocks = jnp.arange(stage.blocks[0], dtype=jnp.uint32)
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, index)))(blocks)


def _sample(key: PRNGKeyArray, stage: Stage, dtype: jnp.dtype) -> FilterBank:
    """Draw a block."""
    channels, length = stage.drawn
    return stage.law.sample(key, stage.blocks[1], channels, length, dtype)


def _over_blocks(
    key: PRNGKeyArray,
    index: int,
    stage: Stage,
    dtype: jnp.dtype,
    use: Callable[[Carry, Array, FilterBank], tuple[Carry, Made]],
    start: Carry,
) -> tuple[Carry, Made]:
    """Draw block after block and use each; returns what is carried on, and what was made of the blocks, stacked.

    Args:
        key: of the whole draw.
        index: of the convolution.
        stage: the convolution.
        dtype: of the numbers drawn.
        use: takes what is carried on, which filters of the block are in use, and the block.
        start: what is carried into the first block.
    """
    count, size = stage.blocks

    # Drawn again where a gradient needs them: kept, they would be the whole bank.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry: Carry, item: tuple[Array, PRNGKeyArray]) -> tuple[Carry, Made]:
        block, block_key = item
        used = block * size + jnp.arange(size) < stage.num_filters
        return use(carry, used, _sample(block_key, stage, dtype))

    keys = _block_keys(key, index, stage)
    if count == 1:  # no loop to compile
        carry, made = body(start, (jnp.zeros((), int), keys[0]))
        return carry, jax.tree.map(lambda one: one[None], made)
    return lax.scan(body, start, (jnp.arange(count), keys))


__all__ = [
    "BLOCK_FILTERS",
    "BLOCK_NUMBERS",
    "SAMPLINGS",
    "Sampling",
    "random_filters",
    "random_maps",
    "random_output",
]
