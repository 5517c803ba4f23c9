"""VGG-16's Conv[k]-DeConv[k] as a frozen description of sizes (Random DCN, Sec. 3.1, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from cnninv_jax._numerics import per_axis

#: Convolutions in each block of VGG-16, and how many filters each of them has.
VGG16_CONVOLUTIONS = (2, 2, 3, 3, 3)
VGG16_WIDTHS = (64, 128, 256, 512, 512)

#: How a picture comes out: by a convolution to its channels, or by the mean over channels (Random DCN, Sec. 4.2).
Last: TypeAlias = Literal["conv", "mean"]
#: How maps are doubled: a value first in a block of zeros (Dosovitskiy and Brox 2016), or in all places of its block.
Upsampling: TypeAlias = Literal["zeros", "nearest"]


@dataclass(frozen=True)
class Convolution:
    """One convolution of stride 1 with same padding.

    Attributes:
        name: in the paper's manner, conv1_2 or deconv1_2.
        inputs: channels that come in, M.
        outputs: filters, K.
        length: of the filters per spatial axis.
        relu: whether a ReLU follows.
    """

    name: str
    inputs: int
    outputs: int
    length: tuple[int, int]
    relu: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the filters, (K, M, *ell)."""
        return (self.outputs, self.inputs, *self.length)


@dataclass(frozen=True)
class ConvDeconv:
    """An encoder and its mirror image; build it with `architecture` or `conv1_1`, which validate.

    Hashable, so that it can be a static argument of a compiled function.

    Attributes:
        name: CD3, or Conv1_1-DeConv1_1.
        encoder: blocks of convolutions, 2 x 2 max-pooling between them, none after the last.
        decoder: blocks of convolutions, upsampling by 2 between them.
        last: ``"conv"``, or ``"mean"``: the channels are averaged in place of the last convolution.
        channels: of the picture.
        upsampling: ``"zeros"``, or ``"nearest"``: a value fills its block of 2 x 2.
    """

    name: str
    encoder: tuple[tuple[Convolution, ...], ...]
    decoder: tuple[tuple[Convolution, ...], ...]
    last: Last
    channels: int
    upsampling: Upsampling = "zeros"

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """All convolutions in order."""
        return tuple(layer for block in (*self.encoder, *self.decoder) for layer in block)

    @property
    def num_pools(self) -> int:
        """How often the encoder halves the maps, and the decoder doubles them."""
        return len(self.encoder) - 1

    def multiply_adds(self, height: int, width: int) -> int:
        """Return how many multiply-adds a picture of H x W pixels takes."""
        total = 0
        for blocks in (self.encoder, tuple(reversed(self.decoder))):
            high, wide = height, width
            for block in blocks:
                sizes = (layer.outputs * layer.inputs * layer.length[0] * layer.length[1] for layer in block)
                total += high * wide * sum(sizes)
                high, wide = -(-high // 2), -(-wide // 2)
        return total


def architecture(
    depth: int,
    *,
    channels: int | Sequence[int] | None = None,
    length: int | Sequence[int] = 3,
    last: str = "conv",
    final_relu: bool = False,
    picture_channels: int = 3,
    upsampling: str = "zeros",
) -> ConvDeconv:
    """Describe CDk, the network Conv[k]-DeConv[k] of VGG-16 (Random DCN, Sec. 3.1).

    The encoder is VGG-16 up to the last convolution of block k; its feature is taken before pooling. The decoder has
    the same convolutions backward, with inputs and outputs exchanged: CD1 has conv1_1, conv1_2, deconv1_2, deconv1_1;
    CD5 has 26 convolutions and 4 poolings. A ReLU follows each convolution but, by default, the last, about which the
    paper says nothing: with one there, a channel whose last filters answer negatively comes out black (half of all
    pixels in a trial), while the paper inverts the luminance of outputs that come out as negatives. The similarity
    changes little (0.29 against 0.33 for CD1 with 16 channels).

    Args:
        depth: k, 1 to 5.
        channels: None for VGG-16's widths; one number for all layers but the output (Sec. 4.2); or one for every
            convolution of the encoder, which the decoder mirrors: ``(C, D)`` is the CD1(C, D) of Fig. 6.
        length: of the filters, one number or one per axis (Sec. 4.3); may be even.
        last: ``"conv"``; or ``"mean"``, which puts the mean over channels in the place of the last convolution
            (Sec. 4.2), so that one grey map comes out.
        final_relu: put a ReLU after the last convolution too.
        picture_channels: 3, or 1 for grey pictures.
        upsampling: ``"zeros"``, a value first in a block of zeros, as the paper describes it (A.1.1); a random filter
            then answers differently to the four places in a block, which shows as a chequered pattern. ``"nearest"``
            repeats the value instead.

    Raises:
        ValueError: an unknown choice, or numbers of channels that do not fit the encoder.
    """
    if not isinstance(depth, int) or depth not in range(1, len(VGG16_CONVOLUTIONS) + 1):
        raise ValueError(f"expected a depth of 1 to {len(VGG16_CONVOLUTIONS)}, the blocks of VGG-16, got {depth!r}")
    blocks = VGG16_CONVOLUTIONS[:depth]
    count = sum(blocks)
    if channels is None:
        widths = [width for block, width in zip(blocks, VGG16_WIDTHS[:depth], strict=True) for _ in range(block)]
    else:
        widths = _widths(channels, count)
    names = [[f"{block}_{number}" for number in range(1, size + 1)] for block, size in enumerate(blocks, 1)]
    if upsampling not in get_args(Upsampling):
        raise ValueError(f"expected upsampling to be 'zeros' or 'nearest', got {upsampling!r}")
    network = _mirrored(f"CD{depth}", names, widths, length, last, final_relu, picture_channels)
    return replace(network, upsampling="nearest" if upsampling == "nearest" else "zeros")


def conv1_1(
    channels: int = 64,
    length: int | Sequence[int] = 3,
    last: str = "conv",
    *,
    final_relu: bool = False,
    picture_channels: int = 3,
) -> ConvDeconv:
    """Describe Conv1_1-DeConv1_1, which has two convolutions, or one and a mean (Random DCN, Sec. 4.3, Fig. 7c).

    Args, returns and errors are those of `architecture`; ``channels`` is the number of filters of conv1_1.
    """
    return _mirrored("Conv1_1-DeConv1_1", [["1_1"]], _widths(channels, 1), length, last, final_relu, picture_channels)


def _widths(channels: int | Sequence[int], count: int) -> list[int]:
    if isinstance(channels, Sequence) and len(channels) != count:
        raise ValueError(
            f"expected channels to be one number or {count} of them, one for every convolution of the encoder, got "
            f"{len(channels)}"
        )
    return list(per_axis(channels, count, "channels"))


def _mirrored(
    name: str,
    names: list[list[str]],
    widths: list[int],
    length: int | Sequence[int],
    last: str,
    final_relu: bool,
    picture_channels: int,
) -> ConvDeconv:
    if last not in get_args(Last):
        raise ValueError(f"expected last to be 'conv' or 'mean', got {last!r}")
    ell = per_axis(length, 2, "length")
    (pixels,) = per_axis(picture_channels, 1, "picture_channels")
    sizes = iter(zip([pixels, *widths[:-1]], widths, strict=True))
    encoder = [[(one, *next(sizes)) for one in block] for block in names]
    forward = tuple(
        tuple(Convolution(f"conv{one}", inputs, outputs, (ell[0], ell[1]), True) for one, inputs, outputs in block)
        for block in encoder
    )
    backward = [
        [Convolution(f"deconv{one}", outputs, inputs, (ell[0], ell[1]), True) for one, inputs, outputs in block[::-1]]
        for block in encoder[::-1]
    ]
    final = backward[-1].pop()
    if last == "conv":
        backward[-1].append(Convolution(final.name, final.inputs, final.outputs, final.length, final_relu))
    return ConvDeconv(name, forward, tuple(map(tuple, backward)), "conv" if last == "conv" else "mean", pixels)


__all__ = [
    "VGG16_CONVOLUTIONS",
    "VGG16_WIDTHS",
    "ConvDeconv",
    "Convolution",
    "Last",
    "Upsampling",
    "architecture",
    "conv1_1",
]
