"""The networks of dcn-values: what comes out has the size of the picture."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from cnninv_jax.limits.layers import AvgPool, Conv, L2Pool, Layer, Upsample

Architecture: TypeAlias = Literal["encoder-decoder", "cd1", "conv", "deep"]
Pooling: TypeAlias = Literal["l2", "average", "none"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
#: Convolutions of the deep network.
DEPTH = 5
#: Pooling window and upsampling factor of the two that have them.
FACTOR = 2


def poolings(architecture: Architecture) -> tuple[Pooling, ...]:
    """Return the poolings that a network is compared with."""
    return ("none",) if architecture in ("conv", "deep") else ("l2", "average")


def network(architecture: Architecture, pooling: Pooling, kernel: int) -> tuple[Layer, ...]:
    """Return the layers; every convolution is zero-padded, has stride 1, and leaves its channels open.

    Args:
        architecture: ``"conv"``, one convolution and the mean over its channels: the two-layer network of Random DCN,
            Thm 3. ``"deep"``, five convolutions. ``"encoder-decoder"``, convolution, pooling, convolution, upsampling,
            convolution. ``"cd1"``, the first block of VGG-16 and its mirror image: two convolutions, pooling,
            upsampling, two convolutions.
        pooling: of 2 x 2 windows; ``"none"`` for the first two.
        kernel: side of the filters.
    """
    conv = Conv(kernel, padding="same")
    if architecture == "conv":
        return (conv,)
    if architecture == "deep":
        return (conv,) * DEPTH
    pool = (L2Pool if pooling == "l2" else AvgPool)(FACTOR)
    if architecture == "cd1":
        return (conv, conv, pool, Upsample(FACTOR), conv, conv)
    return (conv, pool, conv, Upsample(FACTOR), conv)


def described(layers: tuple[Layer, ...]) -> str:
    """Return a network as people read it, ``conv 3, pool 2, conv 3``."""
    words = []
    for layer in layers:
        if isinstance(layer, Conv):
            words.append(f"conv {layer.length}")
        elif isinstance(layer, Upsample):
            words.append(f"upsample {layer.factor}")
        else:
            words.append(f"pool {layer.size}")
    return ", ".join(words)
