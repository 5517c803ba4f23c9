"""The convolutional parts of VGG-16 and AlexNet as tables of sizes, and what pictures have to become before them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Pool:
    """Max-pooling after a layer; windows that do not fit at the lower right border are dropped (floor mode).

    Attributes:
        name: in the paper's manner, pool1.
        window: per axis.
        stride: per axis.
    """

    name: str
    window: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class ConvSpec:
    """Sizes of one convolutional layer.

    Attributes:
        name: in the paper's manner, conv1_1 or conv1.
        shape: of the filters, (K, M / groups, *ell).
        stride: per axis.
        padding: zeros on either side, per axis.
        groups: into which input and output channels fall.
        pool: max-pooling after the ReLU, or None.
        normalize: local response normalisation between the ReLU and the pooling.
    """

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (1, 1)
    groups: int = 1
    pool: Pool | None = None
    normalize: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """What turns a picture (RGB in [0, 1]) into a network's input: (scale * channels - mean) / deviation.

    Attributes:
        name: ``caffe``, ``caffe-rgb``, ``torchvision`` or ``none``.
        scale: 255 or 1.
        reverse: whether the channels are BGR.
        mean: per channel, in the network's order.
        deviation: per channel, in the network's order.
    """

    name: str
    scale: float
    reverse: bool
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, images: Float[np.ndarray, "*batch 3 H W"]) -> Float[np.ndarray, "*batch 3 H W"]:
        """Prepare pictures, RGB in [0, 1], channels first."""
        channels = images[..., ::-1, :, :] if self.reverse else images
        mean, deviation = (np.asarray(values, images.dtype)[:, None, None] for values in (self.mean, self.deviation))
        return (channels * images.dtype.type(self.scale) - mean) / deviation


@dataclass(frozen=True)
class Architecture:
    """The convolutional part of a known network.

    Attributes:
        name: ``vgg16``, ``alexnet`` or ``alexnet-caffe``.
        title: for people.
        layers: in order.
        preprocessing: name of the usual one.
        size: side of the pictures it was made for.
    """

    name: str
    title: str
    layers: tuple[ConvSpec, ...]
    preprocessing: str
    size: int

    def layer(self, name: str) -> ConvSpec | None:
        """Return the layer of that name, or None."""
        return next((layer for layer in self.layers if layer.name == name), None)


#: Means of ImageNet, blue, green, red (Caffe's models), and red, green, blue with deviations (torchvision's).
_CAFFE_MEAN = (103.939, 116.779, 123.68)
PREPROCESSINGS = {
    "caffe": Preprocessing("caffe", 255.0, True, _CAFFE_MEAN),
    "caffe-rgb": Preprocessing("caffe-rgb", 255.0, False, (123.68, 116.779, 103.939)),
    "torchvision": Preprocessing("torchvision", 1.0, False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": Preprocessing("none", 1.0, False, (0.0, 0.0, 0.0)),
}

_VGG16_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _vgg16() -> Architecture:
    layers, channels = [], 3
    for group, widths in enumerate(_VGG16_GROUPS, 1):
        for number, width in enumerate(widths, 1):
            pool = Pool(f"pool{group}", (2, 2), (2, 2)) if number == len(widths) else None
            layers.append(ConvSpec(f"conv{group}_{number}", (width, channels, 3, 3), pool=pool))
            channels = width
    return Architecture("vgg16", "VGG-16", tuple(layers), "caffe", 224)


def _alexnet(name: str, title: str, widths: tuple[int, ...], groups: tuple[int, ...], caffe: bool) -> Architecture:
    lengths, channels, layers = (11, 5, 3, 3, 3), 3, []
    for index, (width, length, parts) in enumerate(zip(widths, lengths, groups, strict=True)):
        first, number = index == 0, index + 1
        margin = (0 if caffe else 2) if first else length // 2
        layers.append(
            ConvSpec(
                f"conv{number}",
                (width, channels // parts, length, length),
                stride=(4, 4) if first else (1, 1),
                padding=(margin, margin),
                groups=parts,
                pool=Pool(f"pool{number}", (3, 3), (2, 2)) if number in (1, 2, 5) else None,
                normalize=caffe and number <= 2,
            )
        )
        channels = width
    return Architecture(name, title, tuple(layers), "caffe" if caffe else "torchvision", 227 if caffe else 224)


ARCHITECTURES: dict[str, Architecture] = {
    "vgg16": _vgg16(),
    # Krizhevsky 2014, one tower, as torchvision has it.
    "alexnet": _alexnet("alexnet", "AlexNet (torchvision)", (64, 192, 384, 256, 256), (1, 1, 1, 1, 1), caffe=False),
    # Krizhevsky et al. 2012, two halves, as Caffe's reference model has it.
    "alexnet-caffe": _alexnet(
        "alexnet-caffe", "AlexNet (Caffe)", (96, 256, 384, 384, 256), (1, 2, 1, 2, 2), caffe=True
    ),
}

__all__ = ["ARCHITECTURES", "PREPROCESSINGS", "Architecture", "ConvSpec", "Pool", "Preprocessing"]
