"""Style transfer on random features (Random DCN, 4.4 and A.4): the losses, and steps of Adam that make them small.

The features V of a picture after conv1_2 of a random network move until their activations in the layers above keep the
content's and have the style's statistics; `dcn.decode` makes a picture of them. The same losses of pixels, whose
features are computed anew in every step, are what Gatys et al. (2016) minimise.

A step is compiled once for sizes and statistic; pictures, networks, weights and rate are data.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from cnninv_jax import dcn
from cnninv_jax._numerics import as_float, matmul
from cnninv_jax._typing import Array, Float, PRNGKeyArray, Scalar
from cnninv_jax.data import Network
from cnninv_jax.nn.convolution import conv2d
from cnninv_jax.nn.geometry import layers_of
from cnninv_jax.operators import to_flax_kernel

Statistic: TypeAlias = Literal["gram", "moments"]
#: Blocks of convolutions, each with the pool in front of it: kernels [3, 3, M, K] and biases [K].
LossNetwork: TypeAlias = tuple[tuple[tuple[Array, Array], ...], ...]

#: Pictures are centred before the random convolutions, which have no biases: a ReLU then cuts half of what comes.
CENTRE = 0.5
#: Under the root of a variance, so that it has a derivative where all values are the same.
_LEAST_VARIANCE = 1e-12


class Targets(NamedTuple):
    """What activations are to have.

    Attributes:
        content: activations of the content, A_i(V_c).
        style: statistics of the style's, G(A_i(V_s)).
    """

    content: tuple[Float[Array, "h w K"], ...]
    style: tuple[Float[Array, "_ K"], ...]


class Problem(NamedTuple):
    """One style transfer, all of it data.

    Attributes:
        network: in which activations are compared.
        encoder: filters whose features are moved; not used where features themselves are the variable.
        targets: what is wanted.
        content_weight: alpha.
        style_weight: beta.
    """

    network: LossNetwork
    encoder: dcn.Weights
    targets: Targets
    content_weight: Scalar
    style_weight: Scalar


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What came of the steps.

    Attributes:
        variable: features [h, w, K], or the picture [3, H, W].
        content: L_c before every step, and at the end.
        style: L_s likewise.
        seconds: of all steps together, by the clock, without compilation.
        compile_seconds: of one step more in front of them: compilation, if it is the first of its kind.
    """

    variable: Array
    content: np.ndarray
    style: np.ndarray
    seconds: float
    compile_seconds: float


def loss_network(
    key: PRNGKeyArray,
    channels: int,
    *,
    blocks: Sequence[int] = (2, 3),
    width: float | Fraction = 1,
    network: Network | None = None,
    dtype: DTypeLike = jnp.float32,
) -> LossNetwork:
    """Return VGG-16's convolutions above conv1, random with N(0, 2 / fan_in) or given.

    Args:
        key: layer i draws from ``fold_in(key, i)``.
        channels: of the features, those of conv1_2.
        blocks: from conv2 upwards, without a gap: (2, 3, 4, 5) for all.
        width: factor of VGG-16's numbers of filters.
        network: filters of VGG-16; layers it lacks are random. Needs 64 channels and width 1.
        dtype: of the filters.

    Raises:
        ValueError: blocks, channels or width that do not fit.
    """
    blocks = tuple(blocks)
    if blocks != tuple(range(2, 2 + len(blocks))) or not 1 <= len(blocks) <= 4:
        raise ValueError(f"expected blocks to be 2 or 2 3 or 2 3 4 or 2 3 4 5, got {' '.join(map(str, blocks))}")
    if network is not None and (width != 1 or channels != 64):
        raise ValueError(
            f"expected 64 channels and width 1 with given filters of VGG-16, got {channels} and {float(width):g}"
        )
    held = {} if network is None else {layer.name: (layer.filters, layer.bias) for layer in network.layers}
    found: dict[int, list[tuple[Array, Array]]] = {block: [] for block in blocks}
    inputs = channels
    for index, spec in enumerate(layers_of("vgg16", width=width)):
        block = int(spec.name[4])
        if block not in found:
            continue
        outputs = spec.shape[0]
        filters, bias = held.get(spec.name, (None, None))
        if filters is None:
            shape = (3, 3, inputs, outputs)
            kernel = jax.random.normal(jax.random.fold_in(key, index), shape, dtype) * math.sqrt(2 / (9 * inputs))
        else:
            kernel = to_flax_kernel(jnp.asarray(filters)).astype(dtype)
        found[block].append((kernel, jnp.zeros(outputs, dtype) if bias is None else jnp.asarray(bias, dtype)))
        inputs = outputs
    return tuple(tuple(found[block]) for block in blocks)


def encode(weights: dcn.Weights, net: dcn.ConvDeconv, picture: Float[Array, "3 H W"]) -> Float[Array, "h w K"]:
    """Return V: the features of a picture in [0, 1], centred first (`CENTRE`), channels last."""
    return jnp.moveaxis(dcn.features(weights, net, picture - CENTRE), 0, -1)


def decode(
    weights: dcn.Weights, net: dcn.ConvDeconv, features: Float[Array, "h w K"], size: tuple[int, int]
) -> Float[Array, "3 H W"]:
    """Return the decoder's output, whose colours are arbitrary: see `colours.fit_colours`."""
    return dcn.decode(weights, net, jnp.moveaxis(features, -1, 0), size)


def activations(network: LossNetwork, features: Float[Array, "h w K"]) -> tuple[Float[Array, "_ _ _"], ...]:
    """Return A_i: the first convolution of every block behind its ReLU, as Gatys et al. (2016) take them.

    Pools are means over 2 x 2 (odd rows and columns at the lower right are left out), as there too.

    Raises:
        ValueError: features too small for the pools.
    """
    least = 2 ** len(network)
    if features.ndim != 3 or min(features.shape[:2]) < least:
        raise ValueError(
            f"expected features [h, w, K] of at least {least} x {least} for {len(network)} pools, got "
            f"{features.shape}; take a larger picture or fewer blocks"
        )
    maps, found = features[None], []
    for place, block in enumerate(network):
        maps = _mean_pool(maps)
        # What stands above the last activation does not matter to the losses.
        for index, (kernel, bias) in enumerate(block if place + 1 < len(network) else block[:1]):
            maps = jnp.maximum(conv2d(maps, kernel) + bias[None, None, None], 0)
            if index == 0:
                found.append(maps[0])
    return tuple(found)


def statistics(maps: Float[Array, "h w K"], kind: Statistic = "gram") -> Float[Array, "_ K"]:
    """Return what a style is: no position is in it.

    Args:
        maps: activations.
        kind: ``"gram"``, the Gram matrix G [K, K] of the K maps, divided by their number of positions and by K, so
            that size and width do not matter; ``"moments"``, mean and standard deviation of every map, [2, K].
    """
    rows = maps.reshape(-1, maps.shape[-1])
    if kind == "gram":
        return matmul(rows.T, rows) / math.prod(maps.shape)
    if kind != "moments":
        raise ValueError(f"expected a statistic among {', '.join(get_args(Statistic))}, got {kind!r}")
    mean = jnp.mean(rows, axis=0)
    variance = jnp.mean((rows - mean[None]) ** 2, axis=0)
    return jnp.stack([mean, jnp.sqrt(variance + _LEAST_VARIANCE)])


@functools.partial(jax.jit, static_argnames="kind")
def targets(
    network: LossNetwork, content: Float[Array, "h w K"], style: Float[Array, "p q K"], kind: Statistic = "gram"
) -> Targets:
    """Return what V is to have, from the features of content and style; their sizes may differ."""
    return Targets(activations(network, content), tuple(statistics(maps, kind) for maps in activations(network, style)))


def losses(
    network: LossNetwork, features: Float[Array, "h w K"], wanted: Targets, kind: Statistic = "gram"
) -> tuple[Scalar, Scalar]:
    """Return L_c of eq. (3) and L_s of eq. (4): squared distances, summed over the layers."""
    found = activations(network, features)
    content = sum(
        (jnp.sum((maps - target) ** 2) for maps, target in zip(found, wanted.content, strict=True)),
        jnp.zeros((), features.dtype),
    )
    style = sum(
        (jnp.sum((statistics(maps, kind) - target) ** 2) for maps, target in zip(found, wanted.style, strict=True)),
        jnp.zeros((), features.dtype),
    )
    return content, style


def relative_weights(wanted: Targets, content_weight: float, style_weight: float = 1.0) -> tuple[Scalar, Scalar]:
    """Return alpha and beta that weigh relative losses.

    alpha = content_weight / sum_i |A_i(V_c)|^2 and beta = style_weight / sum_i |G(A_i(V_s))|^2: the weights then mean
    the same for all pictures, networks and sizes.

    Raises:
        ValueError: a weight that is negative or not finite.
    """
    for name, value in (("content", content_weight), ("style", style_weight)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"expected a {name} weight of at least 0, got {value}")
    return (
        content_weight / sum_of_squares(wanted.content),
        style_weight / sum_of_squares(wanted.style),
    )


def sum_of_squares(arrays: Sequence[Array]) -> Scalar:
    """Return the sum of the squares of all entries."""
    return functools.reduce(jnp.add, [jnp.sum(array**2) for array in arrays])


def transfer(
    problem: Problem,
    start: ArrayLike,
    *,
    steps: int,
    rate: float = 0.05,
    through: dcn.ConvDeconv | None = None,
    kind: Statistic = "gram",
) -> Transfer:
    """Minimise alpha L_c + beta L_s by a fixed number of Adam's steps.

    Args:
        problem: networks, targets and weights.
        start: features [h, w, K], usually V_c; or a picture [3, H, W] where ``through`` is given.
        steps: how many.
        rate: Adam's, as a multiple of the root mean square of the start (of a picture: of its difference from
            `CENTRE`); falls to zero along half a cosine.
        through: the network of ``problem.encoder``: the variable is a picture, whose features are computed in every
            step (Gatys et al. 2016). None: the variable is the features.
        kind: of statistics.

    Raises:
        ValueError: a number of steps or a rate that is not positive.

    Cost: per step one pass through the networks, forward and back; memory for their maps.
    """
    if steps < 1 or not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"expected a positive number of steps and a positive rate, got {steps} and {rate}")
    variable = jnp.array(as_float(start))  # a copy: the steps overwrite theirs
    centre = 0.0 if through is None else CENTRE
    size = float(jnp.sqrt(jnp.mean((variable - centre) ** 2)))
    rates = [
        np.asarray(rate * size * 0.5 * (1 + math.cos(math.pi * step / steps)), variable.dtype) for step in range(steps)
    ]
    began = time.perf_counter()
    tried = (jnp.array(variable), _OPTIMISER.init(variable))
    jax.block_until_ready(_step(tried, problem, rates[0], through=through, kind=kind))
    ready = time.perf_counter()
    state, history = (variable, _OPTIMISER.init(variable)), []
    for value in rates:
        state, found = _step(state, problem, value, through=through, kind=kind)
        history.append(found)
    jax.block_until_ready(state)
    ended = time.perf_counter()
    history.append(_evaluate(state[0], problem, through=through, kind=kind))
    content, style = np.asarray(jax.device_get(history)).T
    return Transfer(state[0], content, style, ended - ready, ready - began)


_OPTIMISER = optax.scale_by_adam()


@functools.partial(jax.jit, static_argnames=("through", "kind"), donate_argnums=0)
def _step(
    state: tuple[Array, Any], problem: Problem, rate: Array, *, through: dcn.ConvDeconv | None, kind: Statistic
) -> tuple[tuple[Array, Any], tuple[Scalar, Scalar]]:
    """Return the state after a step of Adam, and the losses before it."""
    variable, held = state

    def total(variable: Array) -> tuple[Scalar, tuple[Scalar, Scalar]]:
        content, style = _losses_of(variable, problem, through, kind)
        return problem.content_weight * content + problem.style_weight * style, (content, style)

    gradient, found = jax.grad(total, has_aux=True)(variable)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of its integer count
        update, held = _OPTIMISER.update(gradient, held)
    return (variable - rate * jnp.asarray(update), held), found


@functools.partial(jax.jit, static_argnames=("through", "kind"))
def _evaluate(
    variable: Array, problem: Problem, *, through: dcn.ConvDeconv | None, kind: Statistic
) -> tuple[Scalar, Scalar]:
    return _losses_of(variable, problem, through, kind)


def _losses_of(
    variable: Array, problem: Problem, through: dcn.ConvDeconv | None, kind: Statistic
) -> tuple[Scalar, Scalar]:
    features = variable if through is None else encode(problem.encoder, through, variable)
    return losses(problem.network, features, problem.targets, kind)


def _mean_pool(maps: Float[Array, "B h w K"]) -> Float[Array, "B p q K"]:
    count, high, wide, channels = maps.shape
    even = maps[:, : high // 2 * 2, : wide // 2 * 2]
    return jnp.mean(even.reshape(count, high // 2, 2, wide // 2, 2, channels), axis=(2, 4))


__all__ = [
    "CENTRE",
    "LossNetwork",
    "Problem",
    "Statistic",
    "Targets",
    "Transfer",
    "activations",
    "decode",
    "encode",
    "loss_network",
    "losses",
    "relative_weights",
    "statistics",
    "sum_of_squares",
    "targets",
    "transfer",
]
