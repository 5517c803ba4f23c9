"""Convergence values: the l2 recursion against routes, transformations, precision, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.limits import values
from cnninv_jax.limits.laws import FilterLaw, Moments
from cnninv_jax.limits.layers import AvgPool, ChannelMean, Conv, L2Pool, Upsample, plan
from cnninv_jax.limits.values import convergence_maps, convergence_value
from tests.limits.full_matrix import index_sets

NETWORK = (Conv(3, padding="same"), AvgPool(2), Conv(3, padding="same"), Conv(2, stride=2), AvgPool(2, 1), Conv(1))
SHAPE = (3, 12, 12)


def picture(shape=SHAPE, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape))


def routes(steps):
    """n_(l, i) by following every route, [outputs, inputs]."""
    counts = np.eye(int(np.prod(steps[0].inputs)))
    for step in steps:
        after = np.zeros((int(np.prod(step.outputs)), counts.shape[1]))
        if isinstance(step.layer, Upsample):
            for at, place in enumerate(np.ndindex(*step.inputs)):
                after[
                    np.ravel_multi_index([p * by for p, by in zip(place, step.stride, strict=True)], step.outputs)
                ] = counts[at]
        else:
            for at, places in enumerate(index_sets(step)):
                after[at] = sum(counts[p] for p in places if p is not None)
        counts = after
    return counts


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((3, 8, 8), (Conv(3, padding="same"), L2Pool(2), Conv(3), ChannelMean())),
        ((1, 12), (Conv(3, stride=2, padding="same"), Upsample(3), Conv(4, padding="same"), L2Pool(3, 1), Conv(2))),
        ((2, 9, 9), (Conv(9, padding="same"), Conv(15, padding="same"))),
    ],
    ids=["two axes", "one axis", "wide"],
)
def test_theorem_4_is_a_sum_over_routes_with_the_constant_of_squares(shape, layers):
    x = picture(shape)
    laws = [FilterLaw("gaussian", 0.4 + 0.3 * at) for at in range(sum(isinstance(layer, Conv) for layer in layers))]
    known = [law.moments(None) for law in laws]
    constant = known[-1].k1 * np.prod([np.sqrt(one.k2) for one in known[:-1]])
    steps = plan(layers, shape)
    energy = np.sum(np.asarray(x) ** 2, 0).reshape(-1)
    expected = constant * np.sqrt(routes(steps) @ energy).reshape(steps[-1].outputs)
    np.testing.assert_allclose(convergence_value(x, layers, filters=laws), expected, rtol=1e-12)


def test_moments_and_laws_of_every_convolution():
    layers, x = (Conv(3), Conv(2)), picture((2, 6, 6))
    unit = convergence_value(x, layers)
    by_law = convergence_value(x, layers, filters=FilterLaw("gaussian", 0.1))
    by_moments = convergence_value(x, layers, filters=Moments.of("gaussian", scale=0.1))
    np.testing.assert_allclose(by_law, 0.01 * unit, rtol=1e-12)
    np.testing.assert_allclose(by_moments, by_law, rtol=1e-12)


@pytest.mark.slow
def test_gradient_is_that_of_finite_differences():
    x = picture(seed=1) - 0.3
    loss = lambda x: jnp.sum(jnp.sin(jnp.arange(9.0).reshape(3, 3)[:2, :2]) * convergence_value(x, NETWORK))  # noqa: E731
    directions = np.random.default_rng(2).normal(size=(2, *SHAPE))
    slope = jax.jit(jax.grad(loss))(x)
    value = jax.jit(loss)
    for direction in directions:
        step = 1e-5 * direction
        difference = (value(x + step) - value(x - step)) / 2e-5
        np.testing.assert_allclose(np.sum(slope * direction), difference, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.0, 1.0], ids=["black", "constant"])
def test_flat_pictures_have_finite_values_and_gradients(level):
    x = jnp.full(SHAPE, level)
    value, slope = jax.jit(jax.value_and_grad(lambda x: jnp.sum(convergence_value(x, NETWORK))))(x)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))
    if level == 0:
        assert value == 0
    else:
        # f* is homogeneous of degree one (Euler).
        np.testing.assert_allclose(np.sum(slope * x), value, rtol=1e-10)


def test_what_is_not_finite_stays_so():
    x = picture().at[0, 3, 3].set(jnp.nan)
    assert np.isnan(convergence_value(x, NETWORK)).any()


def test_a_batch_by_vmap_is_that_of_single_pictures():
    batch = jnp.stack([picture(seed=seed) for seed in range(3)])
    together = jax.jit(jax.vmap(lambda x: convergence_value(x, NETWORK)))(batch)
    apart = jnp.stack([convergence_value(x, NETWORK) for x in batch])
    np.testing.assert_allclose(together, apart, rtol=1e-12)


def test_float32_agrees_with_float64_and_stays_float32():
    x = picture()
    single = jax.jit(convergence_value, static_argnums=1)(x.astype(jnp.float32), NETWORK)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, convergence_value(x, NETWORK), rtol=1e-5)


def test_float32_neither_overflows_nor_underflows_in_a_deep_network():
    layers = (*(Conv(15, padding="same"),) * 20, Conv(1))
    x = picture((1, 16, 16)).astype(jnp.float32)
    value = np.asarray(convergence_value(x, layers, filters=FilterLaw("gaussian", 0.01)))
    wide = convergence_value(x.astype(jnp.float64), layers, filters=FilterLaw("gaussian", 0.01))
    np.testing.assert_allclose(value, wide, rtol=1e-4)


def test_one_trace_for_all_pictures():
    traces = []

    @jax.jit
    def value(x):
        traces.append(1)
        return convergence_value(x, NETWORK)

    assert not np.allclose(value(picture(seed=0)), value(picture(seed=1)))
    assert len(traces) == 1


def test_maps_have_the_sizes_of_the_plan_and_end_in_the_value():
    x = picture((3, 24, 24))
    maps = convergence_maps(x, (AvgPool(2), *NETWORK))
    assert [one.shape for one in maps] == [step.outputs for step in plan((AvgPool(2), *NETWORK), x.shape)]
    known = Moments.of("gaussian")
    value = convergence_value(x, (AvgPool(2), *NETWORK))
    np.testing.assert_allclose(value, known.k1 / np.sqrt(known.k2) * np.sqrt(maps[-1]), rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "filters", "message"),
    [
        ((Conv(3), AvgPool(2)), "gaussian", "last layer to be a Conv"),
        ((Conv(20),), "gaussian", "tile axis"),
        ((Conv(3),), "uniform", "isotropic"),
        ((Conv(3),), ["gaussian", "gaussian"], "one for each of the 1"),
        ((Conv(1), L2Pool(2), AvgPool(2), Conv(1)), "gaussian", "simulate"),
    ],
    ids=["no convolution at the end", "too long", "not isotropic", "too many laws", "l2 before average"],
)
def test_refusals(layers, filters, message):
    with pytest.raises(ValueError, match=message):
        convergence_value(picture(), layers, filters=filters)


@pytest.mark.slow
def test_second_derivatives_are_finite_and_those_of_differences():
    layers = (Conv(3, padding="same"), AvgPool(2), Conv(1))
    x = jnp.asarray(np.random.default_rng(0).uniform(0.2, 1, (1, 6)))

    def total(z):
        return jnp.sum(convergence_value(z, layers))

    hessian = np.asarray(jax.hessian(total)(x)).reshape(6, 6)
    step = 1e-5 * np.eye(6)
    gradient = jax.jit(jax.grad(total))
    differences = [(gradient(x + row[None]) - gradient(x - row[None]))[0] / 2e-5 for row in step]
    np.testing.assert_allclose(hessian, differences, rtol=1e-4, atol=1e-6)


def test_one_program_serves_every_width():
    x = jnp.ones((1, 9))
    before = values._squares._cache_size()
    for width in (3, 5, None):
        convergence_value(x, (Conv(3, width), Conv(2, width)))
    assert values._squares._cache_size() == before + 1
