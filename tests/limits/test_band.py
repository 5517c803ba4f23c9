"""The band against the full covariance matrix, for every mix of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cnninv_jax.limits import _band
from cnninv_jax.limits.laws import FilterLaw, moments_of
from cnninv_jax.limits.layers import AvgPool, Conv, L2Pool, Upsample, plan
from cnninv_jax.limits.values import convergence_maps, convergence_value
from tests.limits.full_matrix import limit

MIXES = {
    "pools one after the other": (
        (2, 8, 8),
        (Conv(3, padding="same"), AvgPool(2), Conv(3, padding="same"), AvgPool(2), Conv(2)),
    ),
    "uneven windows": (
        (2, 9, 8),
        (Conv((3, 2), padding="same"), AvgPool((3, 2)), Conv(2, padding="same"), AvgPool((1, 2), 1), Conv(2)),
    ),
    "overlapping pools": (
        (1, 9, 9),
        (Conv(3, padding="same"), AvgPool(3, 2), Conv(3, padding="same"), AvgPool(3, 1), Conv(2)),
    ),
    "strides, one axis": (
        (3, 20),
        (Conv(3, stride=2, padding="same"), AvgPool(3, 1), Conv(3, padding="same"), AvgPool(2), Conv(2)),
    ),
    "upsampling before a convolution": (
        (2, 3, 4),
        (
            Conv(3, padding="same"),
            Upsample(2),
            Conv(3, padding="same"),
            AvgPool(2),
            Conv(3, padding="same", stride=2),
            AvgPool((2, 1), 1),
            Conv(1),
        ),
    ),
    "upsampling before a pool": (
        (1, 9),
        (Conv(3), Upsample(3), AvgPool(4, 1), Conv(2), AvgPool(3, 1), Conv(2, padding="same")),
    ),
    "gaps between windows": ((1, 12), (Conv(1), AvgPool(2, 5), Conv(2, padding="same"), AvgPool(2, 1), Conv(1))),
    "pools on the picture": (
        (2, 8, 8),
        (L2Pool(2), AvgPool(2), Upsample(2), Conv(2, padding="same"), AvgPool(2), Conv(2)),
    ),
    "l2 pooling behind": (
        (2, 8, 8),
        (Conv(3, padding="same"), AvgPool(2), Conv(2, padding="same"), L2Pool(2), Upsample(3), Conv(2)),
    ),
    "pools of single entries": (
        (1, 9),
        (Conv(2, padding="same"), AvgPool(1, 2), Conv(2, padding="same"), AvgPool(2, 1), Conv(1)),
    ),
    "three axes": ((1, 4, 3, 4), (Conv(2, padding="same"), AvgPool((2, 1, 2)), Conv(1))),
    "a pool over everything": ((3, 4, 4), (Conv(3, padding="same"), AvgPool(4), Conv(1))),
}


@pytest.mark.parametrize("name", MIXES)
def test_equal_to_the_full_matrix(name):
    shape, layers = MIXES[name]
    picture = np.random.default_rng(1).normal(size=shape)
    steps = plan(layers, shape)
    laws = [FilterLaw("gaussian", 0.3 + 0.2 * at) for at in range(sum(isinstance(layer, Conv) for layer in layers))]
    value, maps = limit(picture, steps, moments_of(laws, steps, shape[0]))
    both = jax.jit(lambda x: (convergence_value(x, layers, filters=laws), convergence_maps(x, layers, filters=laws)))
    found = both(picture)
    np.testing.assert_allclose(found[0], value, rtol=1e-10, atol=1e-10 * value.max())
    assert len(found[1]) == len(maps)
    for step, one, other in zip(steps, found[1], maps, strict=True):
        assert one.shape == step.outputs
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * other.max())


@st.composite
def networks(draw):
    """Small networks of one or two axes with what they are fed."""
    rank = draw(st.sampled_from((1, 1, 2)))
    size = tuple(draw(st.integers(4, 12 if rank == 1 else 6)) for _ in range(rank))
    shape, current, layers = (draw(st.integers(1, 3)), *size), size, []
    for place in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("conv", "average", "upsample"))) if place else "conv"
        if kind == "upsample":
            factor = draw(st.integers(2, 3))
            assume(np.prod(current) * factor**rank <= 100)
            layer = Upsample(factor)
        elif kind == "average":
            window = draw(st.integers(1, min(3, *current)))
            stride = draw(st.integers(1, 3))
            if any((length - window) % stride for length in current):
                stride = 1
            layer = AvgPool(window, stride)
        else:
            layer = Conv(draw(st.integers(1, 3)), stride=draw(st.integers(1, 2)), padding="same")
        layers.append(layer)
        current = plan((*layers, Conv(1)), shape)[-1].inputs
    return shape, (*layers, Conv(draw(st.integers(1, min(2, *current))))), draw(st.integers(0, 2**31))


@settings(max_examples=6, deadline=None)
@given(networks())
def test_equal_to_the_full_matrix_for_random_mixes(case):
    shape, layers, seed = case
    picture = np.random.default_rng(seed).normal(size=shape)
    steps = plan(layers, shape)
    value, maps = limit(picture, steps, moments_of("gaussian", steps, shape[0]))
    found = jax.jit(lambda x: (convergence_value(x, layers), convergence_maps(x, layers)))(picture)
    np.testing.assert_allclose(found[0], value, rtol=1e-10, atol=1e-10 * value.max())
    for one, other in zip(found[1], maps, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * other.max())


def test_only_the_lags_that_are_needed():
    layers = tuple(layer for _ in range(4) for layer in (Conv(3, padding="same"), AvgPool(2)))
    stages = _band.stages_of(plan((*layers, Conv(1)), (3, 32, 32)))
    assert [len(stage.lags[0][0]) for stage in stages] == [31, 15, 7, 3, 1]
    assert [len(_band.half(stage.lags[0])) for stage in stages] == [481, 113, 25, 5, 1]
    strided = _band.stages_of(plan((Conv(1), Conv(1, stride=2), AvgPool(2), Conv(1)), (1, 15)))
    assert strided[0].lags[:2] == (((-2, 0, 2),), ((-2, 0, 2),))
    spread = _band.stages_of(plan((Conv(1), Upsample(2), AvgPool(3, 1), Conv(1)), (1, 16)))
    assert spread[0].lags[:3] == (((-1, 0, 1),), ((-1, 0, 1),), ((-2, -1, 0, 1, 2),))


def test_one_loop_per_stage_and_no_more():
    """A deeper average pool has more lags, not a longer program."""
    sizes = []
    for window in (2, 8):
        layers = (Conv(3, padding="same"), AvgPool(window), Conv(1))
        program = jax.jit(lambda x, layers=layers: convergence_value(x, layers)).lower(jnp.ones((1, 16, 16))).as_text()
        sizes.append(program.count("stablehlo.while"))
    assert sizes[0] == sizes[1]
    assert 1 <= sizes[0] <= 2


def test_l2_pooling_ahead_of_average_pooling_is_refused():
    layers = (Conv(3), L2Pool(2), Conv(1), AvgPool(2), Conv(1))
    with pytest.raises(ValueError, match=r"no closed form.*random_output"):
        convergence_value(np.ones((1, 10, 10)), layers)
