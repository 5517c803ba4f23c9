"""Draws of finite random CNNs, from the description that also gives their limit (Random DCN, Definition 2).

Filters are never held as a whole bank where a bank is large: every convolution draws them in blocks of at most
`BLOCK_FILTERS` filters and `BLOCK_NUMBERS` entries, uses a block and forgets it. How a bank falls into blocks depends
on N, M and ell only and is part of the draw: block b of convolution i has the key fold_in(fold_in(key, i), b).
`random_filters` returns the very filters that `random_output(..., sampling="plain")` and `random_maps` use.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, matmul, per_axis
from cnninv_jax._typing import Array, FilterBank, Float, PRNGKeyArray
from cnninv_jax.limits.laws import FilterLaw, Laws, laws_of
from cnninv_jax.limits.layers import AvgPool, Conv, L2Pool, Network, Upsample, plan
from cnninv_jax.operators._patches import unfold

Sampling: TypeAlias = Literal["plain", "gram"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)

#: A block of filters has at most so many, with so many entries in total.
BLOCK_FILTERS, BLOCK_NUMBERS = 256, 2**22

Carry = TypeVar("Carry")


class Geometry(NamedTuple):
    """A layer as its arithmetic sees it; what `unfold` reads of an operator.

    Attributes:
        kind: class of the layer.
        length: window per axis.
        stride: between windows; of upsampling, the factor.
        margins: zeros before and after.
        shifts: windows per axis.
    """

    kind: type
    length: tuple[int, ...]
    stride: tuple[int, ...]
    margins: tuple[tuple[int, int], ...]
    shifts: tuple[int, ...]


class Stage(NamedTuple):
    """A convolution and the layers that follow it, up to the next one.

    Attributes:
        conv: its sizes.
        law: of its filters.
        num_filters: N.
        channels: M, of the maps that it meets.
        scale: what its maps are multiplied by after the ReLU: 1/sqrt(N), or 1 for the last.
        after: the layers that follow.
    """

    conv: Geometry
    law: FilterLaw
    num_filters: int
    channels: int
    scale: float
    after: tuple[Geometry, ...]

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks that the filters are drawn in, and filters in each; the last block may have some too many."""
        entries = self.channels * math.prod(self.conv.length)
        most = max(1, min(BLOCK_FILTERS, BLOCK_NUMBERS // entries))
        count = -(-self.num_filters // most)
        return count, -(-self.num_filters // count)


class Plan(NamedTuple):
    """A network that can be drawn; hashable, so that it can be static.

    Attributes:
        before: layers before the first convolution; they act on the picture.
        stages: the convolutions.
    """

    before: tuple[Geometry, ...]
    stages: tuple[Stage, ...]


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
        sampling: ``"plain"`` draws every filter.

    Returns:
        f, [*D_out], in the dtype of the picture; differentiable in the picture.

    Raises:
        ValueError: not a network, one that does not fit the picture, a convolution with no number of channels, a law
            known by its moments only, or an unknown sampling.

    Cost: N M prod(ell) random numbers and N M prod(ell) prod(n) multiply-adds a convolution. Memory: the maps of one
    layer, their patches, and a block of filters.
    """
    picture = as_float(image)
    if sampling not in SAMPLINGS:
        raise ValueError(f"expected sampling to be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    return _output(key, picture, drawing_plan(layers, picture.shape, width, filters))


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
    their mean over the channels is `random_output` of the same key.

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
    return _maps(key, picture, drawing_plan(layers, picture.shape, width, filters))


def random_filters(
    key: PRNGKeyArray,
    image_shape: tuple[int, ...],
    layers: Network,
    *,
    width: int | None = None,
    filters: Laws = "gaussian",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[FilterBank, ...]:
    """Return the filters of every convolution, [N_i, M_i, *ell_i], that plain sampling draws from this key.

    Args:
        key: typed key.
        image_shape: of the picture, (M, *D).
        layers: the network.
        width: channels of the convolutions that do not say how many they have.
        filters: the law of the filters, or one for each convolution.
        dtype: of the filters; in a draw, that of the picture.

    Raises:
        ValueError: as `random_output`.

    Memory: all of them, whole.
    """
    stages = drawing_plan(layers, image_shape, width, filters).stages
    return tuple(_bank(_block_keys(key, i, stage), stage, jnp.dtype(dtype)) for i, stage in enumerate(stages))


def drawing_plan(layers: Network, image_shape: tuple[int, ...], width: int | None, filters: Laws) -> Plan:
    """Return the network with everything that a draw needs to know of it.

    Raises:
        ValueError: as `random_output`.
    """
    steps = plan(layers, image_shape)
    if width is not None:
        per_axis(width, 1, "width")
    laws = laws_of(filters, steps)
    last = len(laws) - 1
    channels = image_shape[0]
    before: tuple[Geometry, ...] = ()
    stages: list[Stage] = []
    for place, step in enumerate(steps):
        geometry = Geometry(type(step.layer), step.window, step.stride, step.margins, step.outputs)
        if not isinstance(step.layer, Conv):
            if stages:
                stages[-1] = stages[-1]._replace(after=(*stages[-1].after, geometry))
            else:
                before = (*before, geometry)
            continue
        count = width if step.layer.channels is None else step.layer.channels
        if count is None:
            raise ValueError(
                f"expected a number of channels for layer {place + 1}, a Conv, got none; set its channels, or pass "
                "width=... for all convolutions without"
            )
        law = laws[step.convolution]
        if not isinstance(law, FilterLaw):
            raise ValueError(
                f"expected a law that filters can be drawn from, a name or a FilterLaw, got {law!r} for layer "
                f"{place + 1}; its moments give the limit only"
            )
        scale = 1.0 if step.convolution == last else 1 / math.sqrt(count)
        stages.append(Stage(geometry, law, int(count), channels, scale, ()))
        channels = int(count)
    return Plan(before, tuple(stages))


@functools.partial(jax.jit, static_argnums=2)
def _output(key: PRNGKeyArray, picture: Array, network: Plan) -> Array:
    maps = _through(picture, network.before)
    *hidden, last = network.stages
    for i, stage in enumerate(hidden):
        maps = _through(_convolved(key, i, maps, stage), stage.after)
    respond = _responder(maps, last.conv)
    size = last.blocks[1]

    def add(total: Array, block: Array, bank: FilterBank) -> tuple[Array, None]:
        answers = respond(bank)
        used = block * size + jnp.arange(size) < last.num_filters
        answers = jnp.where(used.reshape(-1, *(1,) * (answers.ndim - 1)), answers, 0)
        return total + jnp.sum(answers, axis=0), None

    total, _ = _over_blocks(key, len(hidden), last, picture.dtype, add, jnp.zeros(last.conv.shifts, picture.dtype))
    return total / last.num_filters


@functools.partial(jax.jit, static_argnums=2)
def _maps(key: PRNGKeyArray, picture: Array, network: Plan) -> tuple[Array, ...]:
    found = []
    maps = picture
    for geometry in network.before:
        maps = _channelwise(maps, geometry)
        found.append(maps)
    for i, stage in enumerate(network.stages):
        maps = _convolved(key, i, maps, stage)
        found.append(maps)
        for geometry in stage.after:
            maps = _channelwise(maps, geometry)
            found.append(maps)
    return tuple(found)


def _convolved(key: PRNGKeyArray, index: int, maps: Float[Array, " M *D"], stage: Stage) -> Float[Array, " N *n"]:
    """Return a convolution's maps, after ReLU and division."""
    respond = _responder(maps, stage.conv)

    def collect(carry: None, block: Array, bank: FilterBank) -> tuple[None, Array]:
        return None, respond(bank) * stage.scale

    _, answers = _over_blocks(key, index, stage, maps.dtype, collect, None)
    assert answers is not None
    return answers.reshape(-1, *stage.conv.shifts)[: stage.num_filters]


def _responder(maps: Float[Array, " M *D"], conv: Geometry) -> Callable[[FilterBank], Float[Array, " K *n"]]:
    """Return the function that answers to filters with the ReLU of their responses; the patches are made once.

    Patches and one product, since a convolution inside an XLA loop is 15 to 30 times slower on a CPU.
    """
    padded = lax.pad(maps, jnp.zeros((), maps.dtype), ((0, 0, 0), *((*margin, 0) for margin in conv.margins)))
    patches = unfold(padded, conv).reshape(-1, math.prod(conv.shifts))

    def respond(bank: FilterBank) -> Array:
        return jax.nn.relu(matmul(bank.reshape(bank.shape[0], -1), patches)).reshape(-1, *conv.shifts)

    return respond


def _through(maps: Float[Array, " M *D"], layers: tuple[Geometry, ...]) -> Array:
    """Apply layers that keep channels apart, one after the other."""
    return functools.reduce(_channelwise, layers, maps)


def _channelwise(maps: Float[Array, " M *D"], layer: Geometry) -> Float[Array, " M *n"]:
    """Apply one pooling or upsampling layer."""
    if layer.kind is Upsample:
        grown = tuple((0, by - 1, by - 1) for by in layer.stride)
        return lax.pad(maps, jnp.zeros((), maps.dtype), ((0, 0, 0), *grown))
    if layer.kind is AvgPool:
        return _window_sums(maps, layer) / math.prod(layer.length)
    assert layer.kind is L2Pool
    energy = _window_sums(jnp.square(maps), layer)
    # The guard stands inside the root, whose slope at zero would make gradients NaN.
    present = energy > 0
    return jnp.where(present, jnp.sqrt(jnp.where(present, energy, 1)), 0)


def _window_sums(maps: Float[Array, " M *D"], layer: Geometry) -> Float[Array, " M *n"]:
    """Sum over every window: one axis after the other, by the strided slices of its entries."""
    for axis, (size, step, count) in enumerate(zip(layer.length, layer.stride, layer.shifts, strict=True), start=1):
        if size == step:
            apart = (*maps.shape[:axis], count, size, *maps.shape[axis + 1 :])
            maps = jnp.sum(maps.reshape(apart), axis=axis + 1)
            continue
        ends = (count - 1) * step + 1
        slices = (lax.slice_in_dim(maps, start, start + ends, step, axis=axis) for start in range(size))
        maps = functools.reduce(jnp.add, slices)
    return maps


def _block_keys(key: PRNGKeyArray, index: int, stage: Stage) -> PRNGKeyArray:
    """Return the keys of a convolution's blocks."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, index)))(
        jnp.arange(stage.blocks[0], dtype=jnp.uint32)
    )


def _bank(keys: PRNGKeyArray, stage: Stage, dtype: jnp.dtype) -> FilterBank:
    """Draw a convolution's filters, all of them."""
    size = stage.blocks[1]
    blocks = [stage.law.sample(key, size, stage.channels, stage.conv.length, dtype) for key in keys]
    return jnp.concatenate(blocks)[: stage.num_filters]


def _over_blocks(
    key: PRNGKeyArray,
    index: int,
    stage: Stage,
    dtype: jnp.dtype,
    use: Callable[[Carry, Array, FilterBank], tuple[Carry, Array | None]],
    start: Carry,
) -> tuple[Carry, Array | None]:
    """Draw the filters block by block and use each; returns what is carried, and what was returned, stacked."""
    count, size = stage.blocks
    keys = _block_keys(key, index, stage)

    # Drawn again where a gradient needs them: kept, they would be the whole bank.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry: Carry, item: tuple[Array, PRNGKeyArray]) -> tuple[Carry, Array | None]:
        block, block_key = item
        bank = stage.law.sample(block_key, size, stage.channels, stage.conv.length, dtype)
        return use(carry, block, bank)

    if count == 1:
        carry, one = body(start, (jnp.zeros((), int), keys[0]))
        return carry, None if one is None else one[None]
    return lax.scan(body, start, (jnp.arange(count), keys))


__all__ = ["SAMPLINGS", "Sampling", "random_filters", "random_maps", "random_output"]
