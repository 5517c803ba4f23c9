"""The classifiers of the papers, layer by layer, and their parameters beside the printed ones.

Gilbert et al. 2017, Table 5; Shang et al. 2016, Tables S2 to S13. `specs` turns them into shapes and counts,
`classifiers` into networks.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple, TypeAlias, get_args

from cnninv_jax.nn.blocks import Activation, Norm, Pool
from cnninv_jax.nn.specs import ConvLayer, DenseLayer, Layer, NetworkSpec, multiply_adds, parameter_counts

ConvPoolVariant: TypeAlias = Literal["baseline", "double", "avr", "crelu", "half", "half-192"]
VggVariant: TypeAlias = Literal["baseline", "conv1", "conv1,3", "conv1,3,5"]
AllCnnVariant: TypeAlias = Literal[
    "baseline",
    "crelu conv1-4",
    "crelu conv1-7",
    "crelu conv1-9",
    "avr conv1-4",
    "avr conv1-7",
    "avr conv1-9",
    "crelu all",
    "crelu conv1,4,7",
]

#: Channels and kernel of Gilbert et al. 2017, Table 5, by depth.
_RANDOM_CNN = {
    True: {1: ((1024,), 5), 2: ((1024, 1024), 3), 3: ((1024, 1024, 1024), 3)},
    False: {1: ((2048,), 5), 2: ((2048, 2048), 3), 3: ((2048, 2048, 1024), 3)},
}
#: Average pooling that makes 4 x 4 maps of 32 x 32 images.
_LAST_AVERAGE = {1: 4, 2: 2, 3: 1}


def random_cnn(
    depth: int,
    *,
    learned: bool = False,
    width: float = 1,
    kernel: int | None = None,
    norm: Norm | None = "learned",
    dropout: float = 0.5,
    num_classes: int = 10,
) -> NetworkSpec:
    """Return a network of Gilbert et al. 2017, Tables 1 and 5: random filters or its learned twin, 4 x 4 maps on top.

    Args:
        depth: 1, 2 or 3 convolutional layers.
        learned: whether filters learn; they begin as `blocks.msra`, fixed ones are N(0, 1).
        width: multiplies the channels.
        kernel: side of the filters; by default that of Table 5 (the paper tried 3, 5 and 7).
        norm: batch norm before the ReLU; the paper's has a learned scale and bias, which "fixed" leaves at 1 and 0.
        dropout: before the soft-max layer (the paper has one and does not say its rate).
        num_classes: scores.

    Raises:
        ValueError: another depth, or a width that is not above 0.
    """
    if depth not in _LAST_AVERAGE:
        raise ValueError(f"expected a depth of 1, 2 or 3, got {depth}")
    channels, side = _RANDOM_CNN[learned][depth]
    layers: list[Layer] = []
    for number, count in enumerate(channels, 1):
        last = number == depth
        average = _LAST_AVERAGE[depth]
        layers.append(
            ConvLayer(
                f"conv{number}",
                side if kernel is None else kernel,
                _scaled(count, width),
                norm=norm,
                pools=(Pool(2), Pool(average, kind="average")) if last and average > 1 else (Pool(2),),
                dropout=dropout if last else 0.0,
                frozen=not learned,
            )
        )
    layers.append(DenseLayer("softmax", num_classes))
    return NetworkSpec(f"{'learned' if learned else 'random'} CNN, {_counted(depth)}", tuple(layers), 32)


def convpool_cnn_c(
    variant: ConvPoolVariant = "baseline",
    *,
    width: float = 1,
    dropout: tuple[float, float] = (0.2, 0.5),
    scores: Literal["printed", "linear"] = "printed",
    num_classes: int = 10,
) -> NetworkSpec:
    """Return ConvPool-CNN-C as Shang et al. 2016 have it for CIFAR, Tables S2 and S3.

    Max-pooling covers the last samples too (Caffe's rule): 32, 16, 8; the 1 x 1 convolution conv7 is printed with
    padding 1, which makes 10 x 10 maps, and so the printed 10 x 10 average is one over all of them. The half model has
    48 filters at conv3 as printed, although half of the baseline's are 96; "half-192" is that other reading (192
    channels behind CReLU, as the baseline has).

    Args:
        variant: activation and number of filters.
        width: multiplies the filters.
        dropout: on the images and behind both pools (Springenberg et al. 2014, whose network this is; Shang et al. say
            that they tuned it, and not to what).
        scores: what conv8's responses go through: the printed ReLU (AVR), or nothing. Behind a ReLU all scores of an
            image can be 0, where no gradient is left: narrow networks learn slowly so, or not at all.
        num_classes: scores.

    Raises:
        ValueError: an unknown variant, or a width that is not above 0.
    """
    _check(variant, ConvPoolVariant, "variant")
    halved = variant in ("half", "half-192")
    factor = {"double": 2.0, "half": 0.5, "half-192": 0.5}.get(variant, 1.0)
    activation: Activation = "crelu" if halved or variant == "crelu" else "avr" if variant == "avr" else "relu"
    third = 96 if variant == "half" else 192
    pool = (Pool(3, 2, ceil=True),)
    rows = ((3, 96), (3, 96), (3, third), (3, 192), (3, 192), (3, 192), (1, 192))
    layers = [
        ConvLayer(
            f"conv{number}",
            kernel,
            _scaled(factor * count, width),
            padding=1,
            activation=activation,
            pools=pool if number in (2, 5) else (),
            dropout=dropout[1] if number in (2, 5) else 0.0,
        )
        for number, (kernel, count) in enumerate(rows, 1)
    ]
    top: Activation = "linear" if scores == "linear" else "avr" if variant == "avr" else "relu"
    layers.append(ConvLayer("conv8", 1, num_classes, padding=0, activation=top))
    return NetworkSpec(f"ConvPool-CNN-C, {variant}", tuple(layers), 32, dropout=dropout[0])


#: Filters of VGG for CIFAR (Table S4), block by block, and dropout behind each layer; a pool ends a block.
_VGG_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG_DROPOUT = {1: 0.3, 3: 0.4, 5: 0.4, 6: 0.4, 8: 0.4, 9: 0.4, 11: 0.4, 12: 0.4, 13: 0.5}
#: CReLU layers of a variant, and the dropout rates that it changes (Tables S5 to S7).
_VGG_CRELU: dict[str, tuple[tuple[int, ...], dict[int, float]]] = {
    "baseline": ((), {}),
    "conv1": ((1,), {1: 0.1}),
    "conv1,3": ((1, 3), {1: 0.1, 3: 0.2}),
    "conv1,3,5": ((1, 3, 5), {1: 0.1, 3: 0.2, 5: 0.2, 6: 0.2}),
}


def vgg_cifar(
    variant: VggVariant = "baseline",
    *,
    width: float = 1,
    dropout: float = 1.0,
    norm_crelu: bool = False,
    num_classes: int = 10,
) -> NetworkSpec:
    """Return VGG for CIFAR, Shang et al. 2016, Tables S4 to S7: CReLU in place of ReLU, half the filters there.

    Args:
        variant: which layers have CReLU.
        width: multiplies filters and the features of fc14.
        dropout: multiplies the printed rates (0.1 to 0.5); 0 for none.
        norm_crelu: whether batch norm stands before CReLU, too; the tables have "BN+ReLU" and "CReLU".
        num_classes: scores.

    Raises:
        ValueError: an unknown variant, a width that is not above 0, or rates from 1.
    """
    _check(variant, VggVariant, "variant")
    doubled, changed = _VGG_CRELU[variant]
    rates = {number: dropout * rate for number, rate in {**_VGG_DROPOUT, **changed}.items()}
    ends = {2, 4, 7, 10, 13}
    layers: list[Layer] = []
    for number, count in enumerate((count for block in _VGG_BLOCKS for count in block), 1):
        both = number in doubled
        layers.append(
            ConvLayer(
                f"conv{number}",
                3,
                _scaled(count / 2 if both else count, width),
                padding=1,
                activation="crelu" if both else "relu",
                norm="learned" if not both or norm_crelu else None,
                pools=(Pool(2),) if number in ends else (),
                dropout=rates.get(number, 0.0),
            )
        )
    layers.append(DenseLayer("fc14", _scaled(512, width), activation="relu", norm="learned", dropout=0.5 * dropout))
    layers.append(DenseLayer("fc15", num_classes))
    return NetworkSpec(f"VGG, {variant}", tuple(layers), 32)


#: Kernel, filters, stride and padding of All-CNN-B (Table S8).
_ALL_CNN_B = (
    (11, 96, 4, 0),
    (1, 96, 1, 0),
    (3, 96, 2, 0),
    (5, 256, 1, 2),
    (1, 256, 1, 0),
    (3, 256, 2, 0),
    (3, 384, 1, 1),
    (1, 384, 1, 0),
    (3, 384, 2, 1),
    (3, 1024, 1, 1),
    (1, 1024, 1, 0),
)


def all_cnn_b(
    variant: AllCnnVariant = "baseline", *, width: float = 1, dropout: float = 0.25, num_classes: int = 1000
) -> NetworkSpec:
    """Return All-CNN-B for ImageNet with ReLU, CReLU or AVR, Shang et al. 2016, Tables S8 to S13.

    Images of 224 x 224 end in 6 x 6 maps, as the printed 6 x 6 average wants (227 x 227 would end in 7 x 7). Table S12
    ("all") contradicts itself: CReLU at conv10 and conv11 hands on 1024 channels, and conv11 and conv12 are printed to
    see 512. CReLU at conv10 and ReLU from conv11 on give the 4.7 million parameters of Table 5; the kernels as printed
    have 4.4, CReLU up to conv11 has 5.2. The first is taken.

    Args:
        variant: activation and where; "all" and "conv1,4,7" halve the filters before CReLU.
        width: multiplies the filters.
        dropout: behind conv9, where the variant has one (baseline and conv1-4 have none).
        num_classes: scores.

    Raises:
        ValueError: an unknown variant, or a width that is not above 0.
    """
    _check(variant, AllCnnVariant, "variant")
    kind, _, where = variant.partition(" ")
    changed = {
        "": (),
        "conv1-4": range(1, 5),
        "conv1-7": range(1, 8),
        "conv1-9": range(1, 10),
        "all": range(1, 11),
        "conv1,4,7": (1, 4, 7),
    }[where]
    halved = (*changed, 11) if where == "all" else changed if where == "conv1,4,7" else ()
    layers = []
    for number, (kernel, count, stride, padding) in enumerate(_ALL_CNN_B, 1):
        activation: Activation = "relu" if number not in changed else "avr" if kind == "avr" else "crelu"
        layers.append(
            ConvLayer(
                f"conv{number}",
                kernel,
                _scaled(count / 2 if number in halved else count, width),
                stride=stride,
                padding=padding,
                activation=activation,
                dropout=dropout if number == 9 and where not in ("", "conv1-4") else 0.0,
            )
        )
    layers.append(ConvLayer("conv12", 1, num_classes, padding=0))
    return NetworkSpec(f"All-CNN-B, {variant}", tuple(layers), 224)


class ParameterRow(NamedTuple):
    """One network's parameters.

    Attributes:
        network: its name.
        source: where its layers are printed.
        weights: of kernels that learn.
        others: biases, and scales and biases of batch norm, that learn.
        frozen: of random filters.
        multiply_adds: per image.
        printed: parameters in the paper, in millions; None where it gives none.
        remark: why they differ.
    """

    network: str
    source: str
    weights: int
    others: int
    frozen: int
    multiply_adds: int
    printed: float | None = None
    remark: str = ""


#: Printed millions of parameters: Shang et al. 2016, Tables 1 and 5.
PRINTED_CONVPOOL = {"baseline": 1.4, "double": 5.6, "avr": 1.4, "crelu": 2.8, "half": 0.7}
PRINTED_ALL_CNN = {"baseline": 9.4, "crelu all": 4.7, "crelu conv1,4,7": 8.6, "crelu conv1-4": 10.1}
_CONVPOOL_REMARK = (
    "printed: 1.4 (ConvPool-CNN-C with its third 96-channel convolution, 1.37) times 4, 1, 2 and 1/2; the tables have "
    "two such convolutions"
)
_REMARKS = {"half": "conv3 with 48 filters, as printed", "half-192": "conv3 with 96 filters, half of the baseline's"}


def parameter_table() -> tuple[ParameterRow, ...]:
    """Return every network of the papers with its parameters, ours beside the printed ones."""
    rows = []
    for learned in (False, True):
        for depth in _LAST_AVERAGE:
            rows.append(_row(random_cnn(depth, learned=learned), "Gilbert et al. 2017, Table 5"))
    for variant in get_args(ConvPoolVariant):
        source = f"Shang et al. 2016, Table {'S2' if variant in ('baseline', 'double', 'avr') else 'S3'}"
        remark = "; ".join(filter(None, (_REMARKS.get(variant), _CONVPOOL_REMARK if variant == "baseline" else "")))
        rows.append(_row(convpool_cnn_c(variant), source, PRINTED_CONVPOOL.get(variant), remark))
    for variant, table in zip(get_args(VggVariant), ("S4", "S5", "S6", "S7"), strict=True):
        rows.append(_row(vgg_cifar(variant), f"Shang et al. 2016, Table {table}"))
    tables = {"": "S8", "conv1-4": "S9", "conv1-7": "S10", "conv1-9": "S11", "all": "S12", "conv1,4,7": "S13"}
    for variant in get_args(AllCnnVariant):
        remark = "conv11 sees both phases of conv10; the text has 4.6" if variant == "crelu all" else ""
        source = f"Shang et al. 2016, Table {tables[variant.partition(' ')[2]]}"
        rows.append(_row(all_cnn_b(variant), source, PRINTED_ALL_CNN.get(variant), remark))
    return tuple(rows)


def without_dropout(spec: NetworkSpec) -> NetworkSpec:
    """Return the network with no dropout anywhere."""
    layers = tuple(dataclasses.replace(layer, dropout=0.0) for layer in spec.layers)
    return dataclasses.replace(spec, layers=layers, dropout=0.0)


def _row(spec: NetworkSpec, source: str, printed: float | None = None, remark: str = "") -> ParameterRow:
    counts = parameter_counts(spec)
    others = counts.biases + counts.norm
    return ParameterRow(spec.name, source, counts.weights, others, counts.frozen, multiply_adds(spec), printed, remark)


def _scaled(count: float, width: float) -> int:
    """Return channels at a width, at least one."""
    if not width > 0:
        raise ValueError(f"expected a width above 0, got {width}")
    return max(1, round(count * width))


def _check(value: str, choices: object, name: str) -> None:
    if value not in get_args(choices):
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")


def _counted(depth: int) -> str:
    return f"{depth} layer" if depth == 1 else f"{depth} layers"
