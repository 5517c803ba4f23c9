"""Routes from pixels to outputs: against walking every route by hand; the norms they weigh, and the constant."""

import collections
import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.limits import AvgPool, ChannelMean, Conv, FilterLaw, L2Pool, Moments, Upsample, routes
from cnninv_jax.limits.layers import plan

X64 = jax.config.read("jax_enable_x64")
RTOL = 1e-12 if X64 else 2e-5

NETWORKS = {
    "one convolution": ((Conv(3),), (1, 8)),
    "overlaps": ((Conv(3, padding="same"), Conv(4, padding="same"), Conv(2)), (2, 9)),
    "strides": ((Conv(3, stride=2), L2Pool(2, 1), Conv(2, stride=3, padding="same")), (1, 19)),
    "gaps": ((Conv(1, stride=2, padding="same"), Conv(2, stride=3)), (1, 9)),
    "pool first": ((L2Pool(2), Conv(3, padding="same"), ChannelMean()), (3, 12)),
    "upsampling": ((Conv(3), Upsample(2), Conv(3, padding="same"), Upsample(3), Conv(4)), (1, 7)),
    "only zeros seen": ((Upsample(4), Conv(2), Conv(1)), (1, 4)),
    "two axes": (
        (Conv((3, 2)), L2Pool((1, 2)), Upsample((2, 1)), Conv((3, 2), stride=(1, 2), padding="same")),
        (2, 5, 9),
    ),
}
each_network = pytest.mark.parametrize(("layers", "shape"), NETWORKS.values(), ids=list(NETWORKS))


def walk(layers, sizes, entry):
    """Return the pixels at the ends of all routes from one output entry, each as often as there are routes to it.

    Written from the paper's words, one axis tuple at a time; it shares nothing with the library but the descriptions.
    """
    if not layers:
        return collections.Counter([entry])
    *before, layer = layers
    inner = sizes[: len(layers)]
    if isinstance(layer, Upsample):
        if any(place % layer_factor for place, layer_factor in zip(entry, each(layer.factor, entry), strict=True)):
            return collections.Counter()
        below = [tuple(place // factor for place, factor in zip(entry, each(layer.factor, entry), strict=True))]
    else:
        window = each(layer.length if isinstance(layer, Conv) else layer.size, entry)
        step = each(layer.stride or window, entry)
        same = isinstance(layer, Conv) and layer.padding == "same"
        first, _ = oracles.margins(window, inner[-1], step, "same" if same else "valid")
        ranges = [range(e * t - f, e * t - f + ell) for e, t, f, ell in zip(entry, step, first, window, strict=True)]
        below = [at for at in itertools.product(*ranges) if all(0 <= a < d for a, d in zip(at, inner[-1], strict=True))]
    found = collections.Counter()
    for at in below:
        found += walk(before, inner[:-1], at)
    return found


def each(value, like):
    return (value,) * len(like) if isinstance(value, int) else tuple(value)


def counted(layers, shape):
    """n_(l,i) by walking every route."""
    layers = [layer for layer in layers if not isinstance(layer, ChannelMean)]
    steps = plan(layers, shape)
    sizes = [step.inputs for step in steps]
    counts = np.zeros((*steps[-1].outputs, *shape[1:]))
    for entry in np.ndindex(*steps[-1].outputs):
        for pixel, number in walk(layers, sizes, entry).items():
            counts[(*entry, *pixel)] = number
    return counts


@each_network
def test_every_route_is_counted(layers, shape):
    np.testing.assert_array_equal(routes.route_counts(layers, shape), counted(layers, shape))


@each_network
def test_the_weighted_norm_weighs_by_routes(layers, shape):
    image = np.random.default_rng(2).standard_normal(shape)
    counts = counted(layers, shape)
    axes = len(shape) - 1
    expected = np.sqrt(np.tensordot(counts, (image**2).sum(axis=0), axes))
    found = jax.jit(functools.partial(routes.weighted_norm, layers=layers))(image)
    np.testing.assert_allclose(found, expected, rtol=RTOL)
    maps = jax.jit(functools.partial(routes.square_maps, layers=layers))(image)
    assert [value.shape for value in maps] == [step.outputs for step in plan(layers, shape)]
    np.testing.assert_allclose(maps[-1], expected**2, rtol=RTOL)


layer_1d = st.one_of(
    st.builds(Conv, st.integers(1, 4), stride=st.integers(1, 3), padding=st.just("same")),
    st.builds(L2Pool, st.integers(1, 3), st.just(1)),
    st.builds(Conv, st.integers(1, 3)),
    st.builds(Upsample, st.integers(1, 3)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(layer_1d, max_size=3), st.integers(8, 12))
def test_random_networks(layers, size):
    layers = (*layers, Conv(2, padding="same"))
    try:
        plan(layers, (1, size))
    except ValueError:
        return
    counts = routes.route_counts(layers, (1, size))
    np.testing.assert_array_equal(counts, counted(layers, (1, size)))
    field = routes.receptive_field(layers, (1, size))
    for row, seen in enumerate(counts):
        pixels = np.flatnonzero(seen)
        if pixels.size:
            assert pixels[-1] - pixels[0] < field.size[0]
            assert pixels[0] >= field.offset[0] + math.floor(row * field.stride[0])


def test_two_axes_are_a_product():
    layers, shape = NETWORKS["two axes"]
    first, second = routes.route_factors(layers, shape)
    assert first.shape[1], second.shape[1] == shape[1:]
    np.testing.assert_array_equal(np.einsum("ia,jb->ijab", first, second), routes.route_counts(layers, shape))


def test_receptive_fields():
    three = tuple(Conv(3, padding="same") for _ in range(3))
    assert routes.receptive_field(three, (3, 20, 30)) == ((7, 7), (1, 1), (-3, -3))
    assert routes.receptive_field((Conv(3), AvgPool(2), Conv(3)), (1, 16)) == ((8,), (2,), (0,))
    assert routes.receptive_field((Conv((7, 3), stride=(2, 1)),), (1, 21, 9)) == ((7, 3), (2, 1), (0, 0))
    # Pool and unpool: entries 2 i and 2 i + 1 see different windows, the longer one is told.
    assert routes.receptive_field((L2Pool(2), Upsample(2), Conv(3, padding="same")), (1, 8)) == ((4,), (1,), (0,))
    field = routes.receptive_field((Upsample(3), Conv(3)), (1, 5))
    assert field == ((1,), (Fraction(1, 3),), (0,))
    vgg = []
    for convolutions in (2, 2, 3, 3, 3):
        vgg += [Conv(3, padding="same")] * convolutions + [L2Pool(2)]
    assert routes.receptive_field((*vgg, Conv(1)), (3, 224, 224)) == ((212, 212), (32, 32), (-90, -90))


@each_network
def test_receptive_fields_are_where_the_routes_end(layers, shape):
    """Put the picture in the middle of a larger one: nothing is cut off at a border there."""
    field = routes.receptive_field(layers, shape)
    counts = counted(layers, shape)
    for axis in range(len(shape) - 1):
        others = tuple(a for a in range(counts.ndim) if a not in (axis, axis + len(shape) - 1))
        seen = counts.any(axis=others)
        for row in seen:
            pixels = np.flatnonzero(row)
            assert not pixels.size or pixels[-1] - pixels[0] + 1 <= field.size[axis]
        first = np.flatnonzero(seen[0])
        assert max(field.offset[axis], 0) == first[0]


def test_the_constant():
    layers = (L2Pool(2), Conv(3), Upsample(2), Conv(3), Conv(2), ChannelMean())
    shape = (3, 16)
    for deviation in (0.7, 1.0, 2.0):
        law = FilterLaw("gaussian", deviation)
        k1, k2 = deviation / math.sqrt(2 * math.pi), deviation**2 / 2
        assert routes.constant(layers, shape, filters=law) == pytest.approx(k1 * k2)
        assert routes.constant(layers, shape, filters=law, formula="printed") == pytest.approx(k1 * k2**2)
    # E3: with deviation 0.7 and three convolutions the printed constant is off by 4.08.
    law = FilterLaw("gaussian", 0.7)
    ratio = routes.constant(layers, shape, filters=law) / routes.constant(layers, shape, filters=law, formula="printed")
    assert ratio == pytest.approx(4.08, abs=5e-3)
    mixed = ("sphere", Moments(0.4, 0.5, 1.5), FilterLaw("gaussian", 3.0))
    expected = 3 / math.sqrt(2 * math.pi) * math.sqrt(FilterLaw("sphere").moments(9).k2 * 0.5)
    assert routes.constant(layers, shape, filters=mixed) == pytest.approx(expected)
    # Of one convolution on the sphere the dimension counts.
    assert routes.constant((Conv(2),), (1, 4), filters="sphere") == pytest.approx(math.sqrt(2) / math.pi)


@each_network
def test_the_constant_times_the_norm_is_the_convergence_value(layers, shape):
    from cnninv_jax.limits.values import convergence_value

    image = np.random.default_rng(4).standard_normal(shape)
    count = sum(isinstance(layer, Conv) for layer in layers)
    law = ["sphere", FilterLaw("gaussian", 0.6), Moments(0.4, 0.5, 1.5)][:count]
    expected = jax.jit(lambda image: convergence_value(image, layers, filters=law))(image)
    found = jax.jit(lambda image: routes.constant(layers, shape, filters=law) * routes.weighted_norm(image, layers))(
        image
    )
    np.testing.assert_allclose(found, expected, rtol=RTOL)


def test_gradients_are_finite_where_nothing_is_seen():
    layers, shape = NETWORKS["only zeros seen"]
    total = jax.jit(jax.grad(lambda image, layers: jnp.sum(routes.weighted_norm(image, layers))), static_argnums=1)
    gradient = total(jnp.zeros(shape), layers)
    np.testing.assert_array_equal(gradient, 0)
    image = jnp.asarray(np.random.default_rng(5).standard_normal((2, 9)))
    layers, _ = NETWORKS["overlaps"]
    gradient = jax.jit(jax.grad(lambda image: jnp.sum(routes.weighted_norm(image, layers) ** 2)))(image)
    ends = routes.route_counts(layers, image.shape).sum(axis=0)
    np.testing.assert_allclose(gradient, 2 * ends * np.asarray(image), rtol=RTOL * 10)


def test_over_pictures():
    layers, shape = NETWORKS["upsampling"]
    batch = np.random.default_rng(6).standard_normal((4, *shape)).astype(np.float32)
    one = jax.jit(lambda image: routes.weighted_norm(image, layers))
    found = jax.jit(jax.vmap(one))(batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([one(image) for image in batch]), rtol=1e-6)


def test_average_pooling_has_no_routes():
    layers = (Conv(3), AvgPool(2), Conv(2))
    for refused in (
        lambda: routes.route_counts(layers, (1, 10)),
        lambda: routes.route_factors(layers, (1, 10)),
        lambda: routes.weighted_norm(np.ones((1, 10)), layers),
        lambda: routes.square_maps(np.ones((1, 10)), layers),
        lambda: routes.constant(layers, (1, 10)),
    ):
        with pytest.raises(ValueError, match=r"got layer 2, AvgPool.*Thm 10.*convergence_value, or L2Pool"):
            refused()


def test_refusals():
    with pytest.raises(ValueError, match="at most 100000000 counts, got 625000000; take route_factors"):
        routes.route_counts((Conv(3, padding="same"), Conv(1)), (1, 25_000))
    with pytest.raises(ValueError, match="'proved' or 'printed', got 'other'"):
        routes.constant((Conv(1),), (1, 4), formula="other")
    with pytest.raises(ValueError, match="isotropic"):
        routes.constant((Conv(1),), (1, 4), filters="laplace")
