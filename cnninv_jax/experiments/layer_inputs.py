"""What Gilbert et al. 2017, Fig. 3 and Table 3 begin with: VGG-16's sparsity, its filters, and what enters a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnninv_jax import data
from cnninv_jax._typing import Array, Float, PRNGKeyArray
from cnninv_jax.experiments.network_pass import activations, random_network
from cnninv_jax.experiments.sparsity_tables import PRINTED2
from cnninv_jax.experiments.studies import progress_bar
from cnninv_jax.sparsity import num_blocks

#: Gilbert et al. 2017, Table 2: share of non-zeros after the ReLU, averaged over ILSVRC-2012's validation set.
TABLE_2: Mapping[str, float] = {name: round(percent / 100, 3) for name, percent in PRINTED2.items()}


class Filters(NamedTuple):
    """A network, and which of its layers hold given filters; the others were drawn."""

    network: data.Network
    given: frozenset[str]

    def origin(self, last: str) -> str:
        """Return ``learned``, ``random`` or ``learned to NAME, random above`` for the layers up to ``last``."""
        names = [layer.name for layer in self.network.layers]
        names = names[: names.index(last) + 1]
        held = [name for name in names if name in self.given]
        if not held:
            return "random"
        return "learned" if len(held) == len(names) else f"learned to {held[-1]}, random above"


def bring_network(weights: str | None, last: str, key: PRNGKeyArray, dtype: jax.typing.DTypeLike) -> Filters:
    """Return VGG-16 up to ``last`` with a file's filters, and Gaussian ones, N(0, 1/(M l^2)), above those it has.

    Args:
        weights: file or ``fetch:vgg16``; None draws every layer.
        last: the highest layer wanted.
        key: of the drawn layers.
        dtype: of the draws.

    Raises:
        FilterFileError: the file cannot be read, or is not VGG-16 from its first layer on.
    """
    names = [layer.name for layer in data.ARCHITECTURES["vgg16"].layers]
    count = names.index(last) + 1
    drawn = random_network("vgg16", key, layers=count, dtype=dtype)
    if weights is None:
        return Filters(drawn, frozenset())
    network = data.load_network(weights, architecture="vgg16")
    held = network.runnable[:count]
    rest = drawn.layers[len(held) :]
    notes = list(network.notes)
    if rest:
        notes.append(f"the file ends with {held[-1].name}: Gaussian filters N(0, 1/(M l^2)) from {rest[0].name} on")
    full = dataclasses.replace(network, layers=(*held, *rest), notes=tuple(notes))
    return Filters(full, frozenset(layer.name for layer in held))


def up_to(network: data.Network, last: str) -> data.Network:
    """Return the network without the layers above ``last``: a pass costs no more than it needs."""
    names = [layer.name for layer in network.layers]
    return dataclasses.replace(network, layers=network.layers[: names.index(last) + 1])


def inputs_before_relu(
    network: data.Network, name: str, pictures: data.Pictures, dtype: jax.typing.DTypeLike, *, quiet: bool
) -> Float[Array, "N M *D"]:
    """Return what enters a layer before the ReLU: the response of the layer below, max-pooled where a pool follows it.

    max(0, pool(h)) = pool(max(0, h)): the ReLU of the result is the layer's input.

    Args:
        network: a network that pictures pass through.
        name: layer; not the first one.
        pictures: what passes through.
        dtype: of the activations.
        quiet: show no progress.

    Raises:
        ValueError: the layer is the first one, or the pictures are too small.
    """
    names = [layer.name for layer in network.layers]
    if name not in names[1:]:
        raise ValueError(
            f"expected --layer to be one of {', '.join(names[1:])} (activations enter it), got {name!r}; "
            "the first layer sees the picture"
        )
    below = network.layers[names.index(name) - 1]
    part = up_to(network, below.name)
    found = []
    with progress_bar(f"pictures to {below.name}", len(pictures.images), quiet=quiet) as bar:
        for image in pictures.images:
            response = activations(part, jnp.asarray(image, dtype))[below.name]
            if below.pool is not None:
                window, stride = (1, *below.pool.window), (1, *below.pool.stride)
                response = lax.reduce_window(response, -jnp.inf, lax.max, window, stride, "VALID")
            found.append(jax.block_until_ready(response))
            bar.advance()
    return jnp.stack(found)


def input_name(network: data.Network, name: str) -> str:
    """Return what enters a layer, in the paper's words: conv2_1 or pool1."""
    names = [layer.name for layer in network.layers]
    below = network.layers[names.index(name) - 1]
    return below.name if below.pool is None else below.pool.name


def capped_size(share: float, code_shape: Sequence[int], pool: int) -> tuple[int, bool]:
    """Return k = share of the code's entries, and whether that is more than one entry per region allows (k = regions).

    Table 2 counts positive entries before pooling; M_k has at most one non-zero per region, a quarter of the entries
    with 2 x 2 regions (28.4% of 15 x 15 with partial regions at the border).
    """
    blocks = num_blocks(tuple(code_shape), pool)
    wanted = max(1, round(share * int(np.prod(code_shape))))
    return min(wanted, blocks), wanted > blocks
