"""Random DCN, Thms 1/4 and 10: finite networks converge to f* with the constant of the squares.

A draw gives the projection <f, f*> / |f*|^2, whose mean tends to 1. At finite width it lies below: f depends on the
maps before it by way of z, and E sqrt(z^2) < sqrt(E z^2) by about Var(z^2) / (8 E(z^2)^2), at most K_2 / (8 N) =
5 / (8 N) for each convolution but the last. At N = 4096 that is 1.5e-4 each; the number of draws is such that a
standard error is several times that.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.limits import (
    AvgPool,
    Conv,
    FilterLaw,
    L2Pool,
    Upsample,
    constant,
    convergence_maps,
    convergence_value,
    random_maps,
    random_output,
    weighted_norm,
)

#: Three convolutions each, so that k_2 enters the constant twice; the picture's shape beside them.
ARCHITECTURES = {
    "l2 pool": ((Conv(2), L2Pool(2), Conv(2, padding="same"), Conv(2)), (1, 9)),
    "average pool": ((Conv(2), AvgPool(2), Conv(2, padding="same"), Conv(2)), (1, 9)),
    "upsampling": ((Conv(2), Conv(2), Upsample(2), Conv(3)), (1, 6)),
    "stride": ((Conv(3, stride=2), Conv(2, stride=2), Conv(2)), (1, 13)),
    "three input channels": ((Conv((2, 2)), Conv((2, 2)), Conv((2, 2), padding="same")), (3, 4, 4)),
}
LAW = FilterLaw("gaussian", 0.7)
#: k_2 of N(0, 0.7^2); two such factors where the paper has two roots of them.
K2 = 0.7**2 / 2
five = pytest.mark.parametrize(("layers", "shape"), ARCHITECTURES.values(), ids=list(ARCHITECTURES))
slow = pytest.mark.slow
one_width = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough")


def picture(shape):
    return jax.random.uniform(jax.random.key(8), shape, minval=0.1)


def projections(layers, shape, width, num_draws, sampling):
    """<f, f*> / |f*|^2 of so many draws, others for every architecture."""
    image = picture(shape)
    key = jax.random.key(1000 + list(ARCHITECTURES.values()).index((layers, shape)))
    limit = convergence_value(image, layers, filters=LAW)
    draw = functools.partial(random_output, image=image, layers=layers, width=width, filters=LAW, sampling=sampling)
    outputs = jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(key, num_draws))
    assert outputs.shape == (num_draws, *limit.shape)
    return np.sum(np.asarray(outputs * limit[None]), axis=tuple(range(1, outputs.ndim))) / float(jnp.sum(limit**2))


def check(values, width):
    """The mean is 1, and far from what the printed constant would make of it."""
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    # Otherwise five standard errors would also hide the bias.
    assert 2 * 5 / (8 * width) < error / 2, error
    assert abs(mean - 1) < 5 * error, (mean, error)
    # k_1 prod k_2 is k_1 prod sqrt(k_2) times K2: measured by it, the mean is 1 / K2 = 4.08 and not 1.
    assert mean / K2 - 1 > 30 * error / K2


@five
@one_width
def test_finite_networks_converge_with_the_constant_of_the_squares(layers, shape):
    check(projections(layers, shape, 512, 60, "gram"), 512)


@five
@one_width
@slow
def test_finite_networks_converge_at_4096_channels(layers, shape):
    check(projections(layers, shape, 4096, 400, "gram"), 4096)


@one_width
@slow
def test_filters_that_are_drawn_one_by_one_converge_at_4096_channels():
    layers, shape = ARCHITECTURES["l2 pool"]
    check(projections(layers, shape, 4096, 8, "plain"), 4096)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "average pool"])
def test_the_limit_has_that_constant_and_not_the_printed_one(name):
    layers, shape = ARCHITECTURES[name]
    image = picture(shape)
    limit, norm = convergence_value(image, layers, filters=LAW), weighted_norm(image, layers)
    proved, printed = (constant(layers, shape, filters=LAW, formula=formula) for formula in ("proved", "printed"))
    assert proved == pytest.approx(0.7 / math.sqrt(2 * math.pi) * K2)
    assert proved / printed == pytest.approx(4.08, abs=0.005)
    np.testing.assert_allclose(limit, proved * norm, rtol=1e-5 if limit.dtype == jnp.float32 else 1e-12)


@pytest.mark.parametrize("name", ["l2 pool", "upsampling", "three input channels"])
@one_width
def test_the_squares_of_the_hidden_maps_have_no_bias_at_any_width(name):
    layers, shape = ARCHITECTURES[name]
    image = picture(shape)
    draw = functools.partial(random_maps, image=image, layers=layers, width=8, filters=LAW)

    def ratios(key):
        sums = [jnp.sum(maps**2) for maps in draw(key)[:-1]]
        return jnp.stack(sums)

    found = np.asarray(jax.jit(lambda keys: jax.lax.map(ratios, keys))(jax.random.split(jax.random.key(5), 4000)))
    expected = np.array([float(jnp.sum(each)) for each in convergence_maps(image, layers, filters=LAW)[:-1]])
    means, errors = found.mean(axis=0) / expected, found.std(axis=0, ddof=1) / expected / math.sqrt(len(found))
    assert (abs(means - 1) < 5 * errors).all(), (means, errors)
    assert (errors < 0.02).all()
