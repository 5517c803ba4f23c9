"""Whose filters crelu-ratio takes, and what enters them: random CReLU networks, known ReLU networks, any file."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cnninv_jax import data, filters
from cnninv_jax._random import normal
from cnninv_jax._typing import Array, FilterBank, PRNGKeyArray, Signal
from cnninv_jax.crelu.activation import max_pool
from cnninv_jax.crelu.layers import CReLULayer, forward
from cnninv_jax.experiments.crelu_ratio_draws import product_method
from cnninv_jax.experiments.layer_inputs import up_to
from cnninv_jax.experiments.network_pass import activations, check_picture, prepare
from cnninv_jax.operators import ConvOperator, analysis, conv_operator

#: Filters of the 3 x 3 layers of the CReLU (half) network (Shang et al. 2016, Table S3), and which are max-pooled.
HALF: Mapping[str, int] = {"conv1": 48, "conv2": 48, "conv3": 48, "conv4": 96, "conv5": 96, "conv6": 96}
POOLED = ("conv2", "conv5")
#: Window and step of max-pooling in Tables S2 and S3.
WINDOW, STEP = 3, 2
#: Mean and deviation of CIFAR-10's channels, RGB in [0, 1]: pictures are standardised by them where no network says.
CIFAR = np.array([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]])
#: Layers of a file that are taken where none are named.
MOST = 3


class Bank(NamedTuple):
    """Filters [K, M, *ell] and bias [K], or None."""

    filters: FilterBank
    bias: Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer whose ratio is wanted.

    Attributes:
        name: of the layer.
        shape: of its filters, [K, M, *ell].
        enters: what its signals are, for people.
        given: filters and bias of a file; None where they are drawn.
        stride: t.
        same: zeros around the signal, as many as keep its size; otherwise none, and what no shift sees is cut off.
    """

    name: str
    shape: tuple[int, ...]
    enters: str
    given: tuple[Float[np.ndarray, "K M *ell"], Float[np.ndarray, " K"] | None] | None = None
    stride: int = 1
    same: bool = True

    def banks(self, key: PRNGKeyArray, dtype: jax.typing.DTypeLike) -> dict[str, Bank]:
        """Return the file's filters as ``learned``, where there are any, and Gaussian ones as ``random``."""
        drawn = Bank(_drawn(key, self.name, self.shape, jnp.dtype(dtype)), None)
        if self.given is None:
            return {"random": drawn}
        kernel, bias = self.given
        return {
            "learned": Bank(jnp.asarray(kernel, dtype), None if bias is None else jnp.asarray(bias, dtype)),
            "random": drawn,
        }

    def whole(self, bank: FilterBank, signal: Signal) -> tuple[ConvOperator, Signal]:
        """Return the layer on a whole signal, and the signal as far as its shifts see it."""
        if self.same:
            return conv_operator(bank, signal.shape[1:], padding="same", method=product_method()), signal
        seen = [(size - ell) // self.stride * self.stride + ell
                for size, ell in zip(signal.shape[1:], self.shape[2:], strict=True)]  # fmt: skip
        cut = signal[(slice(None), *(slice(0, size) for size in seen))]
        return conv_operator(bank, cut.shape[1:], stride=self.stride, method=product_method()), cut

    def check(self, signal: Sequence[int], pool: int) -> None:
        """Refuse a signal that is smaller than what one pooling window sees.

        Raises:
            ValueError: it is.
        """
        wanted = tuple((pool - 1) * self.stride + ell for ell in self.shape[2:])
        if any(size < least for size, least in zip(signal[1:], wanted, strict=True)):
            raise ValueError(
                f"expected signals of at least {' x '.join(map(str, wanted))} for one pooling window of {self.name}, "
                f"got {' x '.join(map(str, signal[1:]))}; ask for a larger --picture-size"
            )


def number_of(text: str) -> int:
    """Return a number for a name, so that a key depends on the name and on nothing beside it."""
    return zlib.crc32(text.encode())


def gaussian_bank(key: PRNGKeyArray, name: str, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> FilterBank:
    """Draw a layer's filters, N(0, 1/(M l^2)); the ratio does not depend on their size."""
    return filters.gaussian(jax.random.fold_in(key, number_of(name)), shape[0], shape[1], tuple(shape[2:]), dtype=dtype)


#: The same in one program.
_drawn = jax.jit(gaussian_bank, static_argnums=(1, 2, 3))


class Inputs:
    """The layers asked for, and the signals that enter them for a picture."""

    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()

    def signals(self, picture: Float[np.ndarray, "3 H W"], key: PRNGKeyArray) -> dict[str, Signal]:
        """Return what enters every layer; the key draws networks and signals that no file gives."""
        raise NotImplementedError


class RandomHalf(Inputs):
    """The CReLU (half) network of Table S3 with Gaussian filters and no biases, anew for every key."""

    def __init__(self, names: Sequence[str], dtype: jax.typing.DTypeLike) -> None:
        unknown = [name for name in names if name not in list(HALF)[1:]]
        if unknown:
            raise ValueError(
                f"expected --layers out of {', '.join(list(HALF)[1:])} of the CReLU (half) network (Table S3), got "
                f"{unknown[0]!r}; other names are a file's, see --weights"
            )
        below = {name: list(HALF)[list(HALF).index(name) - 1] for name in names}
        self.layers = tuple(
            Layer(name, (HALF[name], 2 * HALF[below[name]], 3, 3), f"CReLU features of {below[name]}") for name in names
        )
        highest = max(list(HALF).index(name) for name in names)
        self._below = tuple(HALF.items())[:highest]
        self._dtype = jnp.dtype(dtype)

    def signals(self, picture: Float[np.ndarray, "3 H W"], key: PRNGKeyArray) -> dict[str, Signal]:
        """See `Inputs.signals`."""
        outputs = _half_features(self._below, jnp.asarray(standardised(picture), self._dtype), key)
        entering = dict(zip(list(HALF)[1:], outputs, strict=False))
        return {layer.name: entering[layer.name] for layer in self.layers}


@partial(jax.jit, static_argnums=0)
def _half_features(below: tuple[tuple[str, int], ...], picture: Signal, key: PRNGKeyArray) -> tuple[Signal, ...]:
    layers, channels, size = [], picture.shape[0], picture.shape[1:]
    for name, count in below:
        bank = gaussian_bank(key, name, (count, channels, 3, 3), picture.dtype)
        pooling = (WINDOW, STEP) if name in POOLED else (None, None)
        layers.append(CReLULayer(conv_operator(bank, size, padding="same"), None, *pooling))
        channels, size = layers[-1].output_shape[0], layers[-1].output_shape[1:]
    return forward(layers, picture).features


class Known(Inputs):
    """VGG-16 or AlexNet with a file's filters, inputs by the network's own pass with ReLUs."""

    def __init__(self, network: data.Network, names: Sequence[str], size: int, dtype: jax.typing.DTypeLike) -> None:
        held = {layer.name: layer for layer in network.runnable}
        chosen = [network.layer(name) for name in names] if names else list(held.values())[1 : 1 + MOST]
        missing = [layer.name for layer in chosen if layer.name not in held]
        if missing:
            raise ValueError(f"expected the layers below {missing[0]} in the file: pictures pass through them")
        grouped = [layer.name for layer in chosen if layer.groups > 1]
        if grouped or not chosen:
            raise ValueError(
                f"expected layers whose filters see all channels, got {grouped[0] if grouped else 'none'}; name others "
                "with --layers"
            )
        order = list(held)
        self._last = max(chosen, key=lambda layer: order.index(layer.name)).name
        self._network, self._dtype = network, jnp.dtype(dtype)
        below = order[: order.index(self._last)]
        if below:
            check_picture(up_to(network, below[-1]), (3, size, size))
        self._below = {}
        for layer in chosen:
            place = order.index(layer.name)
            under = held[order[place - 1]] if place else None
            self._below[layer.name] = None if under is None else (under.name if under.pool is None else under.pool.name)
        self.layers = tuple(
            Layer(
                layer.name,
                layer.filters.shape,
                "pictures" if self._below[layer.name] is None else f"ReLU features of {self._below[layer.name]}",
                (layer.filters, layer.bias),
                layer.stride[0],
                _keeps_size(layer.filters.shape, layer.stride) and layer.padding == (layer.filters.shape[-1] // 2,) * 2,
            )
            for layer in chosen
        )
        self.notes = tuple(network.notes)

    def signals(self, picture: Float[np.ndarray, "3 H W"], key: PRNGKeyArray) -> dict[str, Signal]:
        """See `Inputs.signals`."""
        image = jnp.asarray(picture, self._dtype)
        names = [layer.name for layer in self._network.layers]
        below = names[: names.index(self._last)]
        outputs = activations(up_to(self._network, below[-1]), image) if below else {}
        return {
            name: prepare(self._network, image) if under is None else jax.nn.relu(outputs[under])
            for name, under in self._below.items()
        }


class AnyFile(Inputs):
    """Kernels of a file whose network is not known: passed through as their sizes allow, else Gaussian signals.

    Layers follow in the order of their names. One whose M is 2 K of the layer below takes both phases of a CReLU, one
    whose M is K takes a ReLU's output; responses keep their size (stride 1, zeros around), and layers in ``pooled`` are
    max-pooled by 3 x 3 with step 2. Where that chain breaks, or does not begin with pictures, signals are white.
    """

    def __init__(
        self, network: data.Network, names: Sequence[str], size: int, pooled: Sequence[str], dtype: jax.typing.DTypeLike
    ) -> None:
        for name in pooled:
            network.layer(name)
        chosen = [network.layer(name) for name in names] if names else list(network.layers[: 1 + MOST])
        self._chain = _chain(network.layers)
        self._pooled, self._size, self._dtype = frozenset(pooled), size, jnp.dtype(dtype)
        self.layers = tuple(
            Layer(
                layer.name, layer.filters.shape, self._enters(layer), (layer.filters, layer.bias), 1,
                _keeps_size(layer.filters.shape, layer.stride),
            )
            for layer in chosen
        )  # fmt: skip
        self.notes = tuple(network.notes)
        if bare := [layer.name for layer in self.layers if layer.enters.startswith("white")]:
            self.notes += (f"no picture can be passed to {', '.join(bare)}: white Gaussian signals enter there",)

    def _enters(self, layer: data.ConvLayer) -> str:
        places = [held.name for held, _ in self._chain]
        if layer.name not in places:
            return "white Gaussian signals"
        place = places.index(layer.name)
        if place == 0:
            return "pictures"
        under, kind = self._chain[place - 1]
        return f"{kind} features of {under.name}"

    def signals(self, picture: Float[np.ndarray, "3 H W"], key: PRNGKeyArray) -> dict[str, Signal]:
        """See `Inputs.signals`."""
        wanted = {layer.name: layer for layer in self.layers}
        passed = [place for place, (layer, _) in enumerate(self._chain) if layer.name in wanted]
        current = jnp.asarray(standardised(picture), self._dtype)
        found: dict[str, Signal] = {}
        for layer, kind in self._chain[: max(passed, default=-1) + 1]:
            if layer.name in wanted:
                found[layer.name] = current
            current = _next(layer, kind, current, layer.name in self._pooled)
        for name, layer in wanted.items():
            if name not in found:
                shape = (layer.shape[1], *(self._size,) * (len(layer.shape) - 2))
                found[name] = normal(jax.random.fold_in(key, number_of(name)), shape, self._dtype)
        return found


def _chain(layers: Sequence[data.ConvLayer]) -> list[tuple[data.ConvLayer, str]]:
    """Return the layers that a picture can be passed through, each with what follows it: CReLU, ReLU or nothing."""
    found: list[tuple[data.ConvLayer, str]] = []
    channels = {3: "pictures"}
    for layer in layers:
        if layer.filters.ndim != 4 or layer.filters.shape[1] not in channels:
            break
        if found:
            found[-1] = (found[-1][0], channels[layer.filters.shape[1]])
        found.append((layer, "CReLU"))
        channels = {2 * layer.num_filters: "CReLU", layer.num_filters: "ReLU"}
    return found


def _next(layer: data.ConvLayer, kind: str, signal: Signal, pooled: bool) -> Signal:
    """Return what a layer hands on: both phases or the positive one, max-pooled or not."""
    op = conv_operator(jnp.asarray(layer.filters, signal.dtype), signal.shape[1:], padding="same")
    responses = analysis(op, signal)
    if layer.bias is not None:
        responses = responses + jnp.asarray(layer.bias, signal.dtype).reshape(-1, *(1,) * op.rank)
    window, step = (WINDOW, STEP) if pooled else (1, 1)
    features = max_pool(responses, window, stride=step).features
    return features if kind == "CReLU" else features[: op.num_filters]


def _keeps_size(shape: Sequence[int], stride: Sequence[int]) -> bool:
    return all(step == 1 for step in stride) and all(ell % 2 for ell in shape[2:])


def standardised(picture: Float[np.ndarray, "3 H W"]) -> Float[np.ndarray, "3 H W"]:
    """Return a picture less CIFAR-10's mean, divided by its deviation, channel by channel."""
    mean, deviation = CIFAR.astype(picture.dtype)
    return (picture - mean[:, None, None]) / deviation[:, None, None]


def bring(
    weights: str | None, names: Sequence[str], size: int, pooled: Sequence[str], dtype: jax.typing.DTypeLike
) -> Inputs:
    """Return layers and their inputs.

    Args:
        weights: file, or ``fetch:vgg16``; None for the random network of Table S3.
        names: layers; none for conv2 and conv5, or the first of a file.
        size: side of the pictures.
        pooled: layers of an unknown network that max-pooling follows.
        dtype: of signals and filters.

    Raises:
        FilterFileError: the file cannot be read, or has no such layer.
        ValueError: layers that are not there or cannot be used.
    """
    if weights is None:
        if pooled:
            raise ValueError("expected --pool-after with the --weights of an unknown network only")
        return RandomHalf(names or POOLED, dtype)
    network = data.load_network(weights)
    if network.architecture is None:
        return AnyFile(network, names, size, pooled, dtype)
    if pooled:
        raise ValueError(f"expected no --pool-after for {network.architecture.title}, whose pooling is known")
    return Known(network, names, size, dtype)


__all__ = ["HALF", "POOLED", "STEP", "WINDOW", "Bank", "Inputs", "Layer", "bring", "number_of", "standardised"]
