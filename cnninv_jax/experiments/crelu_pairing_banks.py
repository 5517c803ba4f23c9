"""Filter banks whose pairs are looked for: a network's layers, filters learned from patches, banks with planted pairs.

Spherical k-means (Coates and Ng 2012) learns filters from whitened patches. A patch belongs to the filter of largest
<w, x> (one-sided, as a ReLU answers) or of largest |<w, x>|, with the response's sign (two-sided, as a CReLU's two
phases answer together): the paper's conjecture in the smallest setting that has one, no network and no labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from cnninv_jax import data
from cnninv_jax._typing import PRNGKeyArray

#: Filters learned from patches: K, their side; how many patches and rounds.
KMEANS_FILTERS, KMEANS_SIDE, KMEANS_PATCHES, KMEANS_ROUNDS = 64, 8, 10_000, 20
#: Side that pictures of a folder are brought to; embedded ones have it.
SIDE = 224
#: Added to the patches' variances before they are whitened, as a part of the mean one.
WHITENING = 0.1
#: The layers whose sizes the planted banks have, those of the paper's Fig. 3.
PLANTED = data.ARCHITECTURES["alexnet-caffe"].layers[:4]
#: How many layers of a network are looked at where none are named, as in the paper's Fig. 2.
FIRST_LAYERS = 5


class Bank(NamedTuple):
    """Filters whose pairs are looked for.

    Attributes:
        name: what tables call it, and what is asked for by it.
        filters: [K, M / groups, *ell].
        groups: into which filters fall; those of different groups see different channels and are not compared.
        outgoing: kernel of the next layer, [K', C, *ell], or None.
        reason: why there is none.
        reverse: whether three channels are blue, green, red.
    """

    name: str
    filters: Float[np.ndarray, "K M *ell"]
    groups: int = 1
    outgoing: Float[np.ndarray, "K2 C *ell"] | None = None
    reason: str = ""
    reverse: bool = False


def network_banks(network: data.Network, names: Sequence[str]) -> list[Bank]:
    """Return layers of a network; a layer of several groups twice, by groups and as it is stored.

    Args:
        network: see `data.load_network`.
        names: of the layers; the first `FIRST_LAYERS` with two filters or more for none.

    Raises:
        FilterFileError: there is no such layer.
        ValueError: a layer of one filter, or of one a group.
    """
    if names:
        layers = [network.layer(name) for name in names]
    else:
        layers = [layer for layer in network.layers if layer.num_filters > layer.groups][:FIRST_LAYERS]
    if not layers:
        raise ValueError(f"expected --weights with a layer of two filters or more, got none in {network.source!r}")
    banks = []
    reverse = network.preprocessing is not None and network.preprocessing.reverse
    for layer in layers:
        if layer.num_filters <= layer.groups:
            raise ValueError(
                f"expected --layers of two filters or more in a group, got {layer.name} of shape {layer.filters.shape}"
            )
        outgoing, reason = _outgoing(network, layer)
        banks.append(Bank(layer.name, layer.filters, layer.groups, outgoing, reason, reverse))
        if layer.groups > 1:
            banks.append(Bank(f"{layer.name}, as stored", layer.filters, 1, None, "see the layer by its groups"))
    return banks


def _outgoing(network: data.Network, layer: data.ConvLayer) -> tuple[np.ndarray | None, str]:
    """Return the kernel that the layer's channels enter, or why it is not known."""
    known = network.layers if network.architecture is None else network.architecture.layers
    order = [spec.name for spec in known]
    at = order.index(layer.name) + 1
    held = {one.name: one for one in network.layers}
    if at == len(order):
        return None, "the last convolution"
    following = held.get(order[at])
    if following is None:
        return None, f"{order[at]} is not in the file"
    if following.groups > 1:
        return None, f"{following.name} has {following.groups} groups"
    if following.channels not in (layer.num_filters, 2 * layer.num_filters):
        return None, f"{following.name} has {following.channels} channels for {layer.num_filters} filters"
    return following.filters, ""


def default_banks(pictures: str, share: float, cosine: float, key: PRNGKeyArray) -> list[Bank]:
    """Return what there is without a network: filters learned from patches, and planted pairs in AlexNet's sizes.

    Args:
        pictures: folder of pictures, or ``"embedded"``.
        share: of the planted banks' filters that stand in pairs.
        cosine: of these pairs on average.
        key: of patches, first filters and planted pairs; each draw has a part of its own.
    """
    patches = whitened_patches(pictures, jax.random.fold_in(key, 0))
    banks = []
    for name, two_sided in (("kmeans-one-sided", False), ("kmeans-two-sided", True)):
        found = spherical_kmeans(patches, KMEANS_FILTERS, two_sided=two_sided, key=jax.random.fold_in(key, 1))
        shape = (KMEANS_FILTERS, 3, KMEANS_SIDE, KMEANS_SIDE)
        banks.append(Bank(name, found.reshape(shape), reason="learned alone, no layer follows"))
    for index, spec in enumerate(PLANTED):
        filters = planted(spec.shape, spec.groups, share, cosine, jax.random.fold_in(key, 2 + index))
        banks.append(Bank(f"planted-{spec.name}", filters, spec.groups, reason="drawn alone, no layer follows"))
    return banks


def planted(
    shape: tuple[int, ...], groups: int, share: float, cosine: float, key: PRNGKeyArray
) -> Float[np.ndarray, "K M *ell"]:
    """Draw Gaussian filters of which a share stand in pairs: w and cosine * w + sqrt(1 - cosine^2) v, v another draw.

    Args:
        shape: (K, M / groups, *ell).
        groups: a pair stands in one group.
        share: of the filters, rounded to whole pairs in each group.
        cosine: of a pair on average, from -1 to 1.
        key: random key.
    """
    rng = _generator(key)
    count, size = shape[0] // groups, math.prod(shape[1:])
    drawn = rng.standard_normal((groups, count, size))
    pairs = round(share * count / 2)
    # The pairs come first; nothing that is measured depends on the filters' order.
    first, second = drawn[:, :pairs], drawn[:, pairs : 2 * pairs]
    drawn[:, pairs : 2 * pairs] = cosine * first + math.sqrt(1 - cosine**2) * second
    return drawn.reshape(shape)


def whitened_patches(pictures: str, key: PRNGKeyArray) -> Float[np.ndarray, "patches N"]:
    """Return patches of pictures at random places, brightness and contrast taken out, decorrelated (ZCA).

    Raises:
        PictureError: the pictures cannot be read.
        ValueError: they are smaller than a patch.
    """
    images = data.load_pictures(pictures, size=SIDE).images
    rng = _generator(key)
    reach = [side - KMEANS_SIDE + 1 for side in images.shape[2:]]
    which = rng.integers(len(images), size=KMEANS_PATCHES)
    rows, columns = (rng.integers(most, size=KMEANS_PATCHES) for most in reach)
    windows = np.lib.stride_tricks.sliding_window_view(images, (KMEANS_SIDE, KMEANS_SIDE), axis=(2, 3))
    patches = windows[which, :, rows, columns].reshape(KMEANS_PATCHES, -1).astype(np.float64)
    patches -= patches.mean(axis=1, keepdims=True)
    # A tenth of full contrast beside the patch's own: flat patches are not blown up to noise.
    patches /= np.sqrt(patches.var(axis=1, keepdims=True) + 0.01)
    patches -= patches.mean(axis=0)
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    return patches @ (vectors / np.sqrt(values + WHITENING * values.mean())) @ vectors.T


def spherical_kmeans(
    patches: Float[np.ndarray, "patches N"], count: int, *, two_sided: bool, key: PRNGKeyArray
) -> Float[np.ndarray, "K N"]:
    """Return unit filters learned from patches (Coates and Ng 2012): w_j <- sum of s_j x + w_j, brought to norm 1.

    s_j = <w_j, x> for the filter of largest <w, x>, or of largest |<w, x>| (two-sided), 0 for the others.
    """
    rng = _generator(key)
    filters = rng.standard_normal((count, patches.shape[1]))
    filters /= np.linalg.norm(filters, axis=1, keepdims=True)
    everyone = np.arange(len(patches))
    for _ in range(KMEANS_ROUNDS):
        responses = patches @ filters.T
        winner = np.argmax(np.abs(responses) if two_sided else responses, axis=1)
        codes = np.zeros_like(responses)
        codes[everyone, winner] = responses[everyone, winner]
        filters += codes.T @ patches
        filters /= np.linalg.norm(filters, axis=1, keepdims=True)
    return filters


def _generator(key: PRNGKeyArray) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32))


__all__ = ["FIRST_LAYERS", "PLANTED", "Bank", "default_banks", "network_banks", "planted"]
