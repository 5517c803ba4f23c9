"""Random CNN-DCNs against a network by plain loops in float64, and what follows from their having no biases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from cnninv_jax import dcn, filters, images
from cnninv_jax.data import load_pictures

X64 = jax.config.jax_enable_x64
random_weights = jax.jit(dcn.random_weights, static_argnums=1, static_argnames=("law", "dtype"))
reconstruct = jax.jit(dcn.reconstruct, static_argnums=1)
features = jax.jit(dcn.features, static_argnums=1)


def reference(weights, net, picture):
    """Feature and output by scipy's correlation of single maps, pooling and zero insertion by loops."""
    maps, used = np.asarray(picture, np.float64), iter(weights)

    def convolution(maps, relu, mirrored):
        bank = np.asarray(next(used), np.float64)
        pads = []
        for ell in bank.shape[2:]:
            before, after = (ell - 1) // 2, ell - 1 - (ell - 1) // 2
            pads.append((after, before) if mirrored else (before, after))
        padded = np.pad(maps, [(0, 0), *pads])
        total = np.stack(
            [sum(correlate2d(one, tap, "valid") for one, tap in zip(padded, bank_k, strict=True)) for bank_k in bank]
        )
        return np.maximum(total, 0) if relu else total

    for place, block in enumerate(net.encoder):
        if place:
            high, wide = (-(-size // 2) for size in maps.shape[1:])
            maps = np.array(
                [[[one[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max() for j in range(wide)] for i in range(high)]
                 for one in maps]
            )  # fmt: skip
        for layer in block:
            maps = convolution(maps, layer.relu, False)
    feature = maps
    for place, block in enumerate(net.decoder):
        if place:
            grown = np.zeros((len(maps), 2 * maps.shape[1], 2 * maps.shape[2]))
            for down, right in [(0, 0)] if net.upsampling == "zeros" else np.ndindex(2, 2):
                grown[:, down::2, right::2] = maps
            maps = grown
        for layer in block:
            maps = convolution(maps, layer.relu, True)
    maps = maps[:, : picture.shape[1], : picture.shape[2]]
    return feature, maps.mean(axis=0) if net.last == "mean" else maps


NETS = {
    "CD1": dcn.architecture(1, channels=(4, 6)),
    "CD1, even": dcn.architecture(1, channels=4, length=(4, 2)),
    "CD2": dcn.architecture(2, channels=(3, 4, 5, 6)),
    "CD3, repetition": dcn.architecture(3, channels=3, upsampling="nearest"),
    "CD4, mean": dcn.architecture(4, channels=3, last="mean"),
    "Conv1_1, even, few outputs": dcn.conv1_1(48, 4),
    "Conv1_1, one pixel": dcn.conv1_1(5, 1),
    "Conv1_1, mean, long": dcn.conv1_1(5, 11, "mean"),
    "Conv1_1, final ReLU": dcn.conv1_1(4, 3, final_relu=True),
    "Conv1_1, grey": dcn.conv1_1(4, 3, picture_channels=1),
}


@pytest.mark.parametrize("name", NETS)
def test_as_by_plain_loops(name):
    net = NETS[name]
    # Odd sizes: windows stick out at every pooling, and the crop cuts the surplus.
    picture = np.random.default_rng(0).uniform(size=(net.channels, 21, 18)).astype(np.float64 if X64 else np.float32)
    weights = random_weights(jax.random.key(1), net)
    feature, expected = reference(weights, net, picture)
    found, seen = reconstruct(weights, net, picture), features(weights, net, picture)
    assert found.dtype == picture.dtype
    assert found.shape == expected.shape == (picture.shape[1:] if net.last == "mean" else picture.shape)
    assert np.abs(expected).max() > 0
    tolerance = 1e-12 if X64 else 1e-5
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)
    np.testing.assert_allclose(seen, feature, atol=tolerance * np.abs(feature).max(), rtol=0)


@pytest.mark.parametrize("name", ["CD1, even", "CD4, mean"])
def test_decoded_features_are_the_reconstruction(name):
    net = NETS[name]
    weights = random_weights(jax.random.key(2), net)
    # The size of the test above, whose programs serve here too.
    picture = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 21, 18)), weights[0].dtype)
    feature, whole = features(weights, net, picture), reconstruct(weights, net, picture)
    found = jax.jit(dcn.decode, static_argnums=(1, 3))(weights, net, feature, (21, 18))
    tolerance = (1e-13 if X64 else 1e-6) * float(jnp.abs(whole).max())
    np.testing.assert_allclose(found, whole, rtol=0, atol=tolerance)


def test_what_is_no_feature_is_not_decoded():
    net = dcn.architecture(2, channels=3)
    weights = [np.zeros(layer.shape, np.float32) for layer in net.convolutions]
    feature = np.zeros((3, 4, 5), np.float32)
    assert jax.eval_shape(lambda v: dcn.decode(weights, net, v, (7, 9)), feature).shape == (3, 7, 9)
    for wrong, size in ((feature, (9, 9)), (feature[:2], (7, 9)), (feature[None], (7, 9))):
        with pytest.raises(ValueError, match=r"a feature of shape \(3, .* for CD2 and pictures of .* x 9, got"):
            dcn.decode(weights, net, wrong, size)
    with pytest.raises(ValueError, match="expected filters of shapes"):
        dcn.decode(weights[1:], net, feature, (7, 9))
    with pytest.raises(ValueError, match="expected size to be"):
        dcn.decode(weights, net, feature, (7,))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 33)], ids=str)
def test_any_size_comes_back(size):
    net = dcn.architecture(5, channels=2)
    weights = [np.zeros(layer.shape, np.float32) for layer in net.convolutions]
    out = jax.eval_shape(functools.partial(dcn.reconstruct, weights, net), jax.ShapeDtypeStruct((3, *size), np.float32))
    assert out.shape == (3, *size)
    seen = jax.eval_shape(functools.partial(dcn.features, weights, net), jax.ShapeDtypeStruct((3, *size), np.float32))
    assert seen.shape == (2, *(-(-length // 16) for length in size))


def test_widths_of_vgg16():
    net = dcn.architecture(5)
    weights = jax.eval_shape(lambda key: dcn.random_weights(key, net, dtype=jnp.float32), jax.random.key(0))
    picture = jax.ShapeDtypeStruct((3, 224, 224), np.float32)
    assert jax.eval_shape(lambda w, x: dcn.features(w, net, x), weights, picture).shape == (512, 14, 14)
    assert jax.eval_shape(lambda w, x: dcn.reconstruct(w, net, x), weights, picture).shape == (3, 224, 224)


def test_the_mean_variant_is_the_mean_of_the_maps_before_the_last_convolution():
    net, mean = dcn.architecture(2, channels=5), dcn.architecture(2, channels=5, last="mean")
    weights = random_weights(jax.random.key(0), net)
    # The same key: the same filters.
    for one, other in zip(weights[:-1], random_weights(jax.random.key(0), mean), strict=True):
        np.testing.assert_array_equal(one, other)
    picture = jax.random.uniform(jax.random.key(1), (3, 12, 14))
    # A last convolution that averages: 1/5 at the centre.
    averaging = jnp.zeros_like(weights[-1]).at[:, :, 1, 1].set(0.2)
    expected = reconstruct((*weights[:-1], averaging), net, picture)
    found = reconstruct(weights[:-1], mean, picture)
    np.testing.assert_allclose(jnp.broadcast_to(found, (3, 12, 14)), expected, rtol=1e-5)


def test_a_picture_stays_where_it_is_with_even_filters():
    # A filter of ones and its mirror image: what a point becomes is centred at the point.
    net = dcn.conv1_1(1, 4, picture_channels=1)
    ones = (jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 4, 4)))
    point = jnp.zeros((1, 15, 15)).at[0, 7, 7].set(1.0)
    out = np.asarray(reconstruct(ones, net, point))[0]
    np.testing.assert_array_equal(out, out[::-1])
    np.testing.assert_array_equal(out, out[:, ::-1])
    assert out[7, 7] == out.max()


@pytest.mark.parametrize("law", filters.ENSEMBLES)
def test_laws_and_deviations(law):
    net = dcn.architecture(1, channels=32, length=5)
    chosen = random_weights(jax.random.key(0), net, law=law, deviation=0.1)
    usual = random_weights(jax.random.key(0), net, law=law)
    for layer, bank, other in zip(net.convolutions, chosen, usual, strict=True):
        assert bank.shape == other.shape == layer.shape
        spread = np.asarray(bank, np.float64)
        size = spread.size
        # Five standard errors; no law here has a fourth moment above Laplace's 6.
        assert abs(spread.mean()) < 5 * 0.1 / np.sqrt(size)
        assert abs(np.mean(spread**2) / 0.01 - 1) < 5 * np.sqrt(5 / size)
        np.testing.assert_allclose(other / np.sqrt(2 / (layer.inputs * 25)), bank / 0.1, rtol=1e-5)


@pytest.mark.slow
def test_the_deviation_does_not_matter_to_the_similarity():
    # E8: N(0, 0.1), deviation or variance; He's deviations; and a factor of its own for every layer.
    picture = jnp.asarray(load_pictures(size=40).images[0])
    net = dcn.architecture(2, channels=6)
    compared = jax.jit(lambda weights: images.similarity(picture, dcn.reconstruct(weights, net, picture)))
    for law in ("gaussian", "laplace"):
        draws = [
            random_weights(jax.random.key(3), net, law=law, deviation=deviation, dtype=jnp.float32)
            for deviation in (None, 0.1, 0.1**0.5, 3.0)
        ]
        factors = np.random.default_rng(0).uniform(0.01, 100, len(draws[0])).astype(np.float32)
        draws.append(tuple(factor * bank for factor, bank in zip(factors, draws[0], strict=True)))
        values = [float(compared(weights)) for weights in draws]
        np.testing.assert_allclose(values, values[0], atol=2e-6)
    # And other filters do matter.
    assert abs(float(compared(random_weights(jax.random.key(4), net, dtype=jnp.float32))) - values[0]) > 1e-3


def test_the_output_is_positively_homogeneous():
    net = dcn.architecture(2, channels=4)
    weights = random_weights(jax.random.key(0), net)
    picture = jax.random.uniform(jax.random.key(1), (3, 10, 10))
    once = reconstruct(weights, net, picture)
    np.testing.assert_allclose(reconstruct(weights, net, 8 * picture), 8 * once, rtol=1e-5)
    longer = (weights[0], 4 * weights[1], *weights[2:])
    np.testing.assert_allclose(reconstruct(longer, net, picture), 4 * once, rtol=1e-5)


@pytest.mark.slow
def test_under_vmap_over_pictures_and_over_networks():
    net = dcn.architecture(2, channels=4, last="mean")
    keys = jax.random.split(jax.random.key(0), 3)
    pictures = jax.random.uniform(jax.random.key(1), (2, 3, 9, 11))
    weights = jax.vmap(lambda key: dcn.random_weights(key, net))(keys)
    many = jax.jit(jax.vmap(jax.vmap(lambda w, x: dcn.reconstruct(w, net, x), in_axes=(None, 0)), in_axes=(0, None)))(
        weights, pictures
    )
    assert many.shape == (3, 2, 9, 11)
    for i, key in enumerate(keys):
        alone = random_weights(key, net)
        for j, picture in enumerate(pictures):
            np.testing.assert_allclose(many[i, j], reconstruct(alone, net, picture), atol=1e-6)


def test_gradient():
    if not X64:
        pytest.skip("differences want 64 bits")
    net = dcn.architecture(2, channels=3)
    weights = random_weights(jax.random.key(0), net)
    rng = np.random.default_rng(0)
    picture, way = rng.uniform(size=(2, 3, 8, 9))
    aim = rng.normal(size=(3, 8, 9))

    def inner(x):
        return jnp.sum(dcn.reconstruct(weights, net, x) * aim)

    slope = np.sum(np.asarray(jax.jit(jax.grad(inner))(picture)) * way)
    step = 1e-7
    value = jax.jit(inner)
    change = (float(value(picture + step * way)) - float(value(picture - step * way))) / (2 * step)
    np.testing.assert_allclose(slope, change, rtol=1e-5)


def test_dtypes_meet_in_the_wider_one():
    if not X64:
        pytest.skip("64-bit types are switched off")
    net = dcn.conv1_1(2)
    weights = random_weights(jax.random.key(0), net, dtype=jnp.float32)
    picture = np.zeros((3, 5, 5))
    assert jax.eval_shape(lambda x: dcn.reconstruct(weights, net, x), picture).dtype == np.float64
    assert jax.eval_shape(lambda x: dcn.reconstruct(weights, net, x), picture.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, w, x: dcn.reconstruct(w[:-1], net, x), "expected filters of shapes.*for CD1.*random_weights"),
        (lambda net, w, x: dcn.reconstruct(w, net, x[:2]), r"a picture \[3, H, W\].*got shape \(2, 8, 8\)"),
        (lambda net, w, x: dcn.features(w, net, x[None]), "jax.vmap"),
        (lambda net, w, x: dcn.random_weights(jax.random.key(0), net, law="cauchy"), "a law among.*'cauchy'"),
        (lambda net, w, x: dcn.random_weights(jax.random.key(0), net, deviation=0.0), "a positive deviation, got 0"),
    ],
    ids=["weights", "channels", "batch", "law", "deviation"],
)
def test_refusals(call, message):
    net = dcn.architecture(1, channels=2)
    weights = random_weights(jax.random.key(0), net, dtype=jnp.float32)
    with pytest.raises(ValueError, match=message):
        call(net, weights, np.zeros((3, 8, 8), np.float32))
