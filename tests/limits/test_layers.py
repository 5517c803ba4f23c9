"""Sizes of described networks, against counting by hand and the padding of the operators; what is refused, and how."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.limits import AvgPool, ChannelMean, Conv, L2Pool, Upsample
from cnninv_jax.limits.layers import plan
from cnninv_jax.operators import conv_operator


def starts(size, window, stride):
    """Where a window fits into a signal, by walking along it."""
    return [start for start in range(0, size, stride) if start + window <= size]


@settings(deadline=None)
@given(window=st.integers(1, 7), stride=st.integers(1, 4), count=st.integers(1, 6))
def test_windows_that_tile_are_counted(window, stride, count):
    size = window + (count - 1) * stride
    for layer in (Conv(window, stride=stride), L2Pool(window, stride), AvgPool(window, stride)):
        step = plan((layer, Conv(1)), (1, size))[0]
        assert step.outputs == (len(starts(size, window, stride)),) == (count,)
        assert (step.inputs, step.window, step.stride, step.margins) == ((size,), (window,), (stride,), ((0, 0),))


@settings(deadline=None)
@given(size=st.integers(1, 20), window=st.integers(1, 7), stride=st.integers(1, 4))
def test_same_padding_is_that_of_the_operators(size, window, stride):
    (step,) = plan((Conv(window, stride=stride, padding="same"),), (1, size))
    op = conv_operator(np.zeros((1, 1, window)), size, stride=stride, padding="same")
    assert (step.margins, step.outputs) == (op.margins, op.shifts)
    # Every window lies inside of the padded maps, the last one at their end.
    before, after = step.margins[0]
    assert starts(before + size + after, window, stride)[-1] + window == before + size + after
    assert len(starts(before + size + after, window, stride)) == step.outputs[0]


def test_same_padding_is_that_of_the_operators_in_two_dimensions():
    for shape, length, stride in itertools.product([(9, 12), (7, 5)], [(3, 4), (2, 5)], [(1, 1), (2, 3)]):
        (step,) = plan((Conv(length, stride=stride, padding="same"),), (3, *shape))
        op = conv_operator(np.zeros((2, 3, *length)), shape, stride=stride, padding="same")
        assert (step.margins, step.outputs, step.window, step.stride) == (op.margins, op.shifts, length, stride)


def test_valid_padding_is_that_of_the_operators():
    (step,) = plan((Conv((3, 4), stride=(2, 3)),), (1, 9, 13))
    op = conv_operator(np.zeros((1, 1, 3, 4)), (9, 13), stride=(2, 3))
    assert (step.margins, step.outputs) == (op.margins, op.shifts) == (((0, 0), (0, 0)), (4, 4))


def test_a_network_is_walked_in_order():
    layers = (L2Pool(2), Conv(3, 8), AvgPool((2, 3)), Upsample(4), Conv(5, 4, stride=2, padding="same"), ChannelMean())
    steps = plan(layers, (3, 28, 40))
    assert [step.inputs for step in steps] == [(28, 40), (14, 20), (12, 18), (6, 6), (24, 24)]
    assert [step.outputs for step in steps] == [(14, 20), (12, 18), (6, 6), (24, 24), (12, 12)]
    assert [step.convolution for step in steps] == [0, 0, 1, 1, 1]
    assert [step.layer for step in steps] == list(layers[:-1])
    assert steps[3].window == (1, 1)
    assert steps[3].stride == (4, 4)
    assert steps[4].margins == ((1, 2), (1, 2))


def test_the_mean_over_channels_may_be_left_out():
    layers = (Conv(3), AvgPool(2), Conv(2))
    assert plan(layers, (1, 10)) == plan([*layers, ChannelMean()], [1, 10])


def test_pools_stand_side_by_side_unless_told():
    assert plan((L2Pool(3), Conv(1)), (1, 12))[0].outputs == (4,)
    assert plan((L2Pool(3, 1), Conv(1)), (1, 12))[0].outputs == (10,)
    assert plan((AvgPool((2, 3)), Conv(1)), (1, 4, 9))[0].outputs == (2, 3)
    assert plan((AvgPool((2, 3), (1, 2)), Conv(1)), (1, 4, 9))[0].outputs == (3, 4)


def test_a_stride_beyond_the_filter_leaves_entries_out():
    (step,) = plan((Conv(1, stride=3, padding="same"),), (1, 8))
    assert step.margins == ((0, -1),)
    assert step.outputs == (3,)


def test_descriptions_are_static():
    layers = (Conv((3, 3), 8), L2Pool(2), Upsample(2), Conv((3, 3), 4, padding="same"))
    assert hash(plan(layers, (3, 10, 10))) == hash(plan(tuple(layers), (3, 10, 10)))
    assert Conv(3, 8) == Conv(3, 8, 1, "valid")
    listed = (Conv([3, 2], stride=[1, 2]), L2Pool([2, 2]), AvgPool(2, [1, 1]), Upsample([2, 1]))
    assert listed == (Conv((3, 2), stride=(1, 2)), L2Pool((2, 2)), AvgPool(2, (1, 1)), Upsample((2, 1)))
    hash(listed)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layers[0].length = 5


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ((), (1, 8), "the last layer to be a Conv.*got no layer; add one"),
        ((ChannelMean(),), (1, 8), "got no layer"),
        ((Conv(3), L2Pool(2)), (1, 8), r"the last layer to be a Conv.*got L2Pool\(size=2, stride=None\); add one"),
        ((Conv(3), ChannelMean(), Conv(3)), (1, 8), "layer 2 to be a Conv, L2Pool.*got a ChannelMean before the end"),
        ((ChannelMean(), Conv(3)), (1, 8), "layer 1.*got a ChannelMean before the end"),
        ((Conv(3), "relu", Conv(3)), (1, 8), "layer 2 to be.*got 'relu'"),
        ((Conv(3),), (8,), r"a picture \[M, \*D\], got shape \(8,\); add the channel axis in front"),
        ((Conv(3), Conv((3, 3))), (1, 8), "the length of layer 2, Conv to be one integer or 1 of them"),
        ((Conv(0),), (1, 8), "the length of layer 1, Conv to consist of integers of at least 1, got 0"),
        ((Conv(2.5),), (1, 8), "the length of layer 1, Conv to consist of integers"),
        ((Conv(3, stride=0),), (1, 8), "the stride of layer 1, Conv"),
        ((Conv(3, channels=0),), (1, 8), "the channels of layer 1, Conv"),
        ((Conv(3, padding="full"),), (1, 8), "the padding of layer 1, Conv to be 'valid' or 'same', got 'full'"),
        ((L2Pool(0), Conv(1)), (1, 8), "the size of layer 1, L2Pool"),
        ((AvgPool(2, (1, 1)), Conv(1)), (1, 8), "the stride of layer 1, AvgPool"),
        ((Upsample(0), Conv(1)), (1, 8), "the factor of layer 1, Upsample"),
        ((Conv(3, stride=2),), (1, 8), r"layer 1, Conv \(window 3, stride 2\) to tile axis 0.*length is 8.*7 or 9"),
        ((Conv(1), L2Pool(3), Conv(1)), (1, 6, 8), r"layer 2, L2Pool \(window 3, stride 3\) to tile axis 1.*6 or 9"),
        ((Conv(5),), (1, 4), "layer 1, Conv .*whose length is 4; a length of 5 would fit"),
        ((AvgPool(4, 2), Conv(1)), (1, 3), "a length of 4 would fit"),
        (Conv(3), (1, 8), "a network as a tuple of layers, got Conv"),
        ((Conv(3, channels=(4,)),), (1, 8), "the channels of layer 1, Conv to be a whole number"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:24],
)
def test_what_is_no_network_is_refused(layers, shape, message):
    with pytest.raises(ValueError, match=message):
        plan(layers, shape)


@settings(deadline=None)
@given(size=st.integers(1, 24), window=st.integers(1, 7), stride=st.integers(1, 5))
def test_the_lengths_that_are_advised_fit(size, window, stride):
    try:
        plan((Conv(window, stride=stride),), (1, size))
    except ValueError as error:
        advice = str(error).rpartition("a length of ")[2].removesuffix(" would fit")
        for length in advice.split(" or "):
            assert plan((Conv(window, stride=stride),), (1, int(length)))[0].outputs[0] >= 1
        lengths = [int(length) for length in advice.split(" or ")]
        assert min(abs(length - size) for length in lengths) <= max(stride, window)
    else:
        assert (size - window) % stride == 0
