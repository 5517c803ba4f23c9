"""The papers' networks: shapes and exact numbers of parameters, derived by hand from the printed tables."""

import dataclasses
from typing import get_args

import pytest

from cnninv_jax.nn.architectures import (
    AllCnnVariant,
    ConvPoolVariant,
    all_cnn_b,
    convpool_cnn_c,
    parameter_table,
    random_cnn,
    vgg_cifar,
    without_dropout,
)
from cnninv_jax.nn.blocks import ParameterCounts, Pool
from cnninv_jax.nn.specs import ConvLayer, DenseLayer, NetworkSpec, multiply_adds, output_shapes, parameter_counts


def features(spec, size=None):
    return [shapes.features for shapes in output_shapes(spec, size)]


def sides(spec, size=None):
    return [shape[0] for shape in features(spec, size)[: len(spec.convolutions)]]


@pytest.mark.parametrize(
    ("depth", "learned", "kernels", "head"),
    [
        # 5 x 5 or 3 x 3 taps, channels in, channels out; then 4 x 4 maps times 10 classes.
        (1, False, 25 * 3 * 2048, 16 * 2048 * 10),
        (2, False, 9 * 3 * 2048 + 9 * 2048 * 2048, 16 * 2048 * 10),
        (3, False, 9 * 3 * 2048 + 9 * 2048 * 2048 + 9 * 2048 * 1024, 16 * 1024 * 10),
        (1, True, 25 * 3 * 1024, 16 * 1024 * 10),
        (2, True, 9 * 3 * 1024 + 9 * 1024 * 1024, 16 * 1024 * 10),
        (3, True, 9 * 3 * 1024 + 9 * 1024 * 1024 + 9 * 1024 * 1024, 16 * 1024 * 10),
    ],
)
def test_random_cnn_and_its_twin_are_table_5(depth, learned, kernels, head):
    spec = random_cnn(depth, learned=learned)
    channels = {False: (2048, 2048, 1024), True: (1024, 1024, 1024)}[learned][:depth]
    assert [layer.channels for layer in spec.convolutions] == list(channels)
    assert [layer.frozen for layer in spec.convolutions] == [not learned] * depth
    *_, last, scores = features(spec)
    assert last == (4, 4, channels[-1])
    assert scores == (10,)
    assert sides(spec) == {1: [4], 2: [16, 4], 3: [16, 8, 4]}[depth]
    assert parameter_counts(spec) == ParameterCounts(
        weights=head + (kernels if learned else 0),
        biases=10,
        norm=2 * sum(channels),
        frozen=0 if learned else kernels,
    )


def test_random_cnn_at_other_widths_and_norms():
    spec = random_cnn(3, width=1 / 8, norm="fixed", num_classes=100, kernel=7, dropout=0.2)
    assert [layer.channels for layer in spec.convolutions] == [256, 256, 128]
    assert parameter_counts(spec) == ParameterCounts(
        weights=16 * 128 * 100, biases=100, frozen=49 * (3 * 256 + 256 * 256 + 256 * 128)
    )
    assert spec.convolutions[-1].dropout == 0.2
    assert random_cnn(1, norm=None).convolutions[0].norm is None
    assert parameter_counts(random_cnn(1, norm=None)).biases == 2048 + 10
    # 3 x 3 over 32 x 32, 16 x 16 and 8 x 8 places, and the dense layer.
    taps = 49 * (3 * 256 * 32**2 + 256 * 256 * 16**2 + 256 * 128 * 8**2)
    assert multiply_adds(spec) == taps + 16 * 128 * 100


#: Weights by hand, layer by layer, from Tables S2 and S3; biases are one per filter.
CONVPOOL = {
    "baseline": (27 * 96 + 9 * 96 * 96 + 9 * 96 * 192 + 3 * 9 * 192 * 192 + 192 * 192 + 192 * 10, 2 * 96 + 5 * 192),
    "double": (27 * 192 + 9 * 192**2 + 9 * 192 * 384 + 3 * 9 * 384**2 + 384**2 + 384 * 10, 2 * 192 + 5 * 384),
    "crelu": (27 * 96 + 9 * 192 * 96 + 9 * 192**2 + 3 * 9 * 384 * 192 + 384 * 192 + 384 * 10, 2 * 96 + 5 * 192),
    "half": (
        27 * 48 + 2 * 9 * 96 * 48 + 9 * 96 * 96 + 2 * 9 * 192 * 96 + 192 * 96 + 192 * 10,
        3 * 48 + 4 * 96,
    ),
    "half-192": (27 * 48 + 9 * 96 * 48 + 9 * 96 * 96 + 3 * 9 * 192 * 96 + 192 * 96 + 192 * 10, 2 * 48 + 5 * 96),
}
CONVPOOL["avr"] = CONVPOOL["baseline"]


@pytest.mark.parametrize("variant", get_args(ConvPoolVariant))
def test_convpool_cnn_c_is_tables_s2_and_s3(variant):
    spec = convpool_cnn_c(variant)
    weights, biases = CONVPOOL[variant]
    assert parameter_counts(spec) == ParameterCounts(weights=weights, biases=biases + 10)
    assert sides(spec) == [32, 16, 16, 16, 8, 8, 10, 10]
    seen = {"double": 384, "crelu": 384}.get(variant, 192)
    assert features(spec)[-2:] == [(10, 10, seen), (10, 10, 10)]
    assert spec.classes == 10
    pools = {layer.name: layer.pools for layer in spec.convolutions if layer.pools}
    assert pools == dict.fromkeys(("conv2", "conv5"), (Pool(3, 2, ceil=True),))
    assert [layer.dropout for layer in spec.convolutions] == [0, 0.5, 0, 0, 0.5, 0, 0, 0]
    assert spec.dropout == 0.2
    assert convpool_cnn_c(variant, num_classes=100).classes == 100
    activations = [layer.activation for layer in spec.convolutions]
    kind = {"avr": "avr", "baseline": "relu", "double": "relu"}.get(variant, "crelu")
    top = "avr" if variant == "avr" else "relu"
    assert activations == [kind] * 7 + [top]
    assert convpool_cnn_c(variant, scores="linear").convolutions[-1].activation == "linear"


def test_neurons_of_half_and_baseline():
    """As many maps everywhere but behind conv3, printed with 48 filters."""
    baseline, half = (features(convpool_cnn_c(variant)) for variant in ("baseline", "half"))
    assert [name for name, a, b in zip(range(1, 9), baseline, half, strict=True) if a != b] == [3]
    assert features(convpool_cnn_c("half-192")) == baseline
    assert features(convpool_cnn_c("double")) == features(convpool_cnn_c("crelu"))


@pytest.mark.parametrize(
    ("variant", "halved"), [("baseline", ()), ("conv1", (1,)), ("conv1,3", (1, 3)), ("conv1,3,5", (1, 3, 5))]
)
def test_vgg_is_tables_s4_to_s7(variant, halved):
    spec = vgg_cifar(variant)
    filters = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    maps = list(filters)
    for number in halved:
        filters[number - 1] //= 2
    weights = sum(9 * below * count for below, count in zip([3, *maps], filters, strict=False))
    # BN+ReLU everywhere but where "CReLU" is printed, which has biases then; fc14 has batch norm, fc15 a bias.
    alone = sum(filters[number - 1] for number in halved)
    assert parameter_counts(spec) == ParameterCounts(
        weights=weights + 512 * 512 + 512 * 10,
        biases=10 + alone,
        norm=2 * (sum(filters) - alone + 512),
    )
    assert [shape[-1] for shape in features(spec)] == [*maps, 512, 10]
    assert sides(spec) == [32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1]
    rates = {
        "baseline": {1: 0.3, 3: 0.4, 5: 0.4, 6: 0.4},
        "conv1": {1: 0.1, 3: 0.4, 5: 0.4, 6: 0.4},
        "conv1,3": {1: 0.1, 3: 0.2, 5: 0.4, 6: 0.4},
        "conv1,3,5": {1: 0.1, 3: 0.2, 5: 0.2, 6: 0.2},
    }[variant] | {8: 0.4, 9: 0.4, 11: 0.4, 12: 0.4, 13: 0.5, 14: 0.5}
    assert {i: layer.dropout for i, layer in enumerate(spec.layers, 1) if layer.dropout} == rates


def test_vgg_with_batch_norm_everywhere_has_no_convolution_bias():
    counts = parameter_counts(vgg_cifar("conv1,3,5", norm_crelu=True))
    assert counts.biases == 10
    assert counts.norm == 2 * (32 + 64 + 64 + 128 + 128 + 256 * 2 + 512 * 6 + 512)


#: Weights by hand from Tables S8 to S13.
BASELINE = (121 * 3 * 96, 96 * 96, 9 * 96 * 96, 25 * 96 * 256, 256 * 256, 9 * 256 * 256, 9 * 256 * 384, 384 * 384,
            9 * 384 * 384, 9 * 384 * 1024, 1024 * 1024, 1024 * 1000)  # fmt: skip
HALVES = (121 * 3 * 48, 96 * 48, 9 * 96 * 48, 25 * 96 * 128, 256 * 128, 9 * 256 * 128, 9 * 256 * 192, 384 * 192,
          9 * 384 * 192, 9 * 384 * 512)  # fmt: skip
ALL_CNN = {
    "baseline": sum(BASELINE),
    # A CReLU layer doubles what the next one sees.
    "crelu conv1-4": sum(BASELINE) + sum(BASELINE[1:5]),
    "crelu conv1-7": sum(BASELINE) + sum(BASELINE[1:8]),
    "crelu conv1-9": sum(BASELINE) + sum(BASELINE[1:10]),
    "avr conv1-4": sum(BASELINE),
    "avr conv1-7": sum(BASELINE),
    "avr conv1-9": sum(BASELINE),
    "crelu all": sum(HALVES) + 1024 * 512 + 512 * 1000,
    "crelu conv1,4,7": sum(BASELINE) - 121 * 3 * 48 - 25 * 96 * 128 - 9 * 256 * 192,
}


@pytest.mark.parametrize("variant", get_args(AllCnnVariant))
def test_all_cnn_b_is_tables_s8_to_s13(variant):
    spec = all_cnn_b(variant)
    assert parameter_counts(spec).weights == ALL_CNN[variant]
    assert sides(spec) == [54, 54, 26, 26, 26, 12, 12, 12, 6, 6, 6, 6]
    # 227 x 227 fits the layers, too, but not the printed 6 x 6 average.
    assert sides(spec, 227) == [55, 55, 27, 27, 27, 13, 13, 13, 7, 7, 7, 7]
    assert spec.classes == 1000
    assert spec.convolutions[8].dropout == (0.0 if variant in ("baseline", *_FOUR) else 0.25)


_FOUR = ("crelu conv1-4", "avr conv1-4")


def test_all_cnn_b_in_numbers():
    """The sums above once as numbers: 9.37, 10.14, 8.60 and 4.68 million, as printed."""
    assert [ALL_CNN[v] for v in ("baseline", "crelu conv1-4", "crelu conv1,4,7", "crelu all")] == [
        9_367_584, 10_139_680, 8_600_592, 4_683_792
    ]  # fmt: skip


def test_table_beside_the_printed_numbers():
    rows = {row.network: row for row in parameter_table()}
    assert len(rows) == 6 + 6 + 4 + 9
    printed = {name: row.printed for name, row in rows.items() if row.printed is not None}
    assert printed == {
        "ConvPool-CNN-C, baseline": 1.4, "ConvPool-CNN-C, double": 5.6, "ConvPool-CNN-C, avr": 1.4,
        "ConvPool-CNN-C, crelu": 2.8, "ConvPool-CNN-C, half": 0.7,
        "All-CNN-B, baseline": 9.4, "All-CNN-B, crelu conv1-4": 10.1, "All-CNN-B, crelu all": 4.7,
        "All-CNN-B, crelu conv1,4,7": 8.6,
    }  # fmt: skip
    # ImageNet's round to the printed ones, CIFAR's do not.
    for name, number in printed.items():
        assert (round(rows[name].weights / 1e6, 1) == number) == name.startswith("All-CNN-B"), name
    assert rows["ConvPool-CNN-C, baseline"].weights == 1_285_536
    assert rows["ConvPool-CNN-C, half"].weights == 519_312
    # With the third convolution of 96 channels that Springenberg et al. 2014 have, the baseline has 1.4 million.
    assert round((1_285_536 + 9 * 96 * 96) / 1e6, 1) == 1.4
    assert rows["random CNN, 3 layers"].frozen == 27 * 2048 + 9 * 2048 * 2048 + 9 * 2048 * 1024
    assert rows["ConvPool-CNN-C, half"].source == "Shang et al. 2016, Table S3"


def test_width_scales_channels_and_leaves_classes():
    spec = convpool_cnn_c("half", width=1 / 6)
    assert [layer.channels for layer in spec.convolutions] == [8, 8, 8, 16, 16, 16, 16, 10]
    assert [layer.channels for layer in convpool_cnn_c(width=1e-6).convolutions] == [1] * 7 + [10]
    assert vgg_cifar("conv1", width=1 / 8).layers[-2].channels == 64
    assert [layer.channels for layer in all_cnn_b("crelu all", width=1 / 16).convolutions][:4] == [3, 3, 3, 8]
    assert hash(spec) == hash(convpool_cnn_c("half", width=1 / 6))


def test_without_dropout():
    for spec in (convpool_cnn_c(), vgg_cifar(), all_cnn_b("crelu all"), random_cnn(2)):
        plain = without_dropout(spec)
        assert plain.dropout == 0
        assert not any(layer.dropout for layer in plain.layers)
        assert features(plain) == features(spec)


def test_what_does_not_fit_is_refused():
    conv, dense = ConvLayer("conv1", 3, 4), DenseLayer("top", 10)
    for call, words in (
        (lambda: random_cnn(4), "expected a depth of 1, 2 or 3, got 4"),
        (lambda: random_cnn(2, width=0), "expected a width above 0, got 0"),
        (lambda: convpool_cnn_c("third"), "expected variant to be one of 'baseline', .*, got 'third'"),
        (lambda: vgg_cifar("conv2"), "expected variant to be one of .*, got 'conv2'"),
        (lambda: all_cnn_b("crelu"), "expected variant to be one of .*, got 'crelu'"),
        (lambda: output_shapes(NetworkSpec("none", (), 8)), "expected layers, got none in 'none'"),
        (lambda: output_shapes(NetworkSpec("two", (dense, conv), 8)), "got conv1 behind top"),
        (
            lambda: output_shapes(all_cnn_b(), 32),
            "expected images large enough for conv6 of .*, got 32 x 32; it is made",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    too_small = dataclasses.replace(conv, padding="VALID")
    with pytest.raises(ValueError, match="expected images large enough for conv1 of small, got 2 x 2"):
        output_shapes(NetworkSpec("small", (too_small,), 8), 2)
