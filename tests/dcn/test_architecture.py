"""What Conv[k]-DeConv[k] of VGG-16 consists of."""

import pytest

from cnninv_jax import data, dcn


@pytest.mark.parametrize(("depth", "convolutions", "pools"), [(1, 4, 0), (2, 8, 1), (3, 14, 2), (4, 20, 3), (5, 26, 4)])
def test_counts(depth, convolutions, pools):
    # Random DCN, A.2.2: CD5 "involves 26 convolution operations and 4 max pooling operations"; 4.1: CD4 is "already
    # 10 layers deep".
    net = dcn.architecture(depth)
    assert (len(net.convolutions), net.num_pools) == (convolutions, pools)
    assert sum(len(block) for block in net.encoder) == convolutions // 2
    assert net.name == f"CD{depth}"


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_the_encoder_is_vgg16_and_the_decoder_its_mirror_image(depth):
    net = dcn.architecture(depth)
    half = len(net.convolutions) // 2
    encoder, decoder = net.convolutions[:half], net.convolutions[half:]
    published = data.ARCHITECTURES["vgg16"].layers
    assert [(layer.name, layer.shape) for layer in encoder] == [(layer.name, layer.shape) for layer in published[:half]]
    for there, back in zip(encoder, reversed(decoder), strict=True):
        assert back.name == "de" + there.name
        assert (back.inputs, back.outputs, back.length) == (there.outputs, there.inputs, there.length)
    assert [layer.relu for layer in net.convolutions] == [True] * (2 * half - 1) + [False]
    assert dcn.architecture(depth, final_relu=True).convolutions[-1].relu


def test_channels_and_length():
    def widths(net):
        return [layer.outputs for layer in net.convolutions]

    assert widths(dcn.architecture(1)) == [64, 64, 64, 3]
    assert widths(dcn.architecture(1, channels=7)) == [7, 7, 7, 3]
    # CD1(C, D) of Fig. 6.
    assert widths(dcn.architecture(1, channels=(5, 7))) == [5, 7, 5, 3]
    assert widths(dcn.architecture(2, channels=[4, 5, 6, 7])) == [4, 5, 6, 7, 6, 5, 4, 3]
    assert [layer.length for layer in dcn.architecture(1, length=(4, 5)).convolutions] == [(4, 5)] * 4
    assert widths(dcn.architecture(1, channels=8, picture_channels=1)) == [8, 8, 8, 1]


def test_the_mean_takes_the_place_of_the_last_convolution():
    net, mean = dcn.architecture(2, channels=8), dcn.architecture(2, channels=8, last="mean")
    assert mean.convolutions == net.convolutions[:-1]
    assert mean.last == "mean"


def test_conv1_1():
    net = dcn.conv1_1(32, 7)
    assert [(layer.name, layer.shape) for layer in net.convolutions] == [
        ("conv1_1", (32, 3, 7, 7)),
        ("deconv1_1", (3, 32, 7, 7)),
    ]
    assert [layer.name for layer in dcn.conv1_1(32, 7, "mean").convolutions] == ["conv1_1"]


def test_multiply_adds():
    net = dcn.architecture(2, channels=(2, 3, 4, 5))
    # Sizes of the maps at 6 x 7, and 3 x 4 after pooling.
    expected = 9 * (42 * (3 * 2 + 2 * 3 + 3 * 2 + 2 * 3) + 12 * (3 * 4 + 4 * 5 + 5 * 4 + 4 * 3))
    assert net.multiply_adds(6, 7) == expected


def test_descriptions_can_be_static_arguments():
    assert hash(dcn.architecture(3)) == hash(dcn.architecture(3))
    assert dcn.architecture(3) == dcn.architecture(3)
    assert dcn.architecture(3) != dcn.architecture(3, length=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dcn.architecture(6), "a depth of 1 to 5.*got 6"),
        (lambda: dcn.architecture(0), "a depth of 1 to 5"),
        (lambda: dcn.architecture(2, channels=(3, 4)), "one number or 4 of them"),
        (lambda: dcn.architecture(1, channels=0), "channels to consist of integers of at least 1"),
        (lambda: dcn.architecture(1, length=(3, 3, 3)), "length to be one integer or 2"),
        (lambda: dcn.architecture(1, last="average"), "'conv' or 'mean', got 'average'"),
        (lambda: dcn.conv1_1(4, picture_channels=0), "picture_channels"),
    ],
    ids=["deep", "none", "widths", "zero", "length", "last", "picture"],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
