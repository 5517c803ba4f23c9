"""Layers against loops in NumPy, what learns and what does not, and what batch norm and dropout keep to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnninv_jax.nn.blocks import (
    ConvBlock,
    Dense,
    Frozen,
    ParameterCounts,
    Pool,
    activate,
    channels_after,
    count_parameters,
    dropout,
    msra,
    pooled,
    unit_normal,
)
from tests.nn.layer_oracles import ACTIVATIONS, convolution, normalised, pooling

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 9, 9, 2))
#: Double precision where the tests have it.
WIDE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
TOLERANCE = 1e-10 if WIDE is jnp.float64 else 2e-4


def rngs(seed=0):
    return nnx.Rngs(jax.random.key(seed))


def conv(channels=4, kernel=3, **options):
    return ConvBlock(2, channels, kernel, dtype=WIDE, param_dtype=WIDE, rngs=rngs(), **options)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_convolution_bias_activation_pool(activation):
    pool = Pool(3, 2, ceil=True)
    block = conv(activation=activation, padding=1, pool=pool)
    block.bias[...] = jnp.asarray(RNG.standard_normal(4), WIDE)
    responses = convolution(IMAGES, np.asarray(block.kernel[...]), padding=1) + np.asarray(block.bias[...])
    wanted = pooling(ACTIVATIONS[activation](responses), 3, 2, ceil=True)
    close(block(jnp.asarray(IMAGES, WIDE)), wanted)
    assert block.channels_out == wanted.shape[-1] == channels_after(4, activation)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, "SAME"), (5, 3, 0), (1, 1, 1), (4, 1, "VALID")])
def test_geometry_of_convolutions(kernel, stride, padding):
    block = conv(kernel=kernel, stride=stride, padding=padding, activation="linear", bias=False)
    assert block.bias is None
    wanted = convolution(IMAGES, np.asarray(block.kernel[...]), stride, padding)
    close(block(jnp.asarray(IMAGES, WIDE)), wanted)


def test_crelu_has_all_positive_phases_first():
    x = jnp.asarray([[1.0, -2.0, 3.0]], WIDE)
    np.testing.assert_array_equal(activate(x, "crelu"), [[1, 0, 3, 0, 2, 0]])


@pytest.mark.parametrize(
    ("pool", "size", "regions"),
    [
        (Pool(2), 32, 16),
        (Pool(3, 2), 32, 15),
        (Pool(3, 2), 15, 7),
        (Pool(3, 2, ceil=True), 32, 16),
        (Pool(3, 2, ceil=True), 16, 8),
        (Pool(2, ceil=True), 7, 4),
        (Pool(3, 2, ceil=True), 2, 1),
        (Pool(3), 2, 0),
        (Pool(2, 4, ceil=True), 8, 2),
        (Pool(2, 4, ceil=True), 7, 2),
        (Pool(1, 5, ceil=True), 5, 1),
    ],
)
def test_number_of_windows(pool, size, regions):
    assert pool.regions(size) == regions
    if regions:
        assert pooling(np.zeros((1, size, size, 1)), pool.window, pool.step, ceil=pool.ceil).shape[1] == regions


@pytest.mark.parametrize("pool", [Pool(2), Pool(4), Pool(3, 2), Pool(3, 2, ceil=True), Pool(2, 3, ceil=True)])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_by_loops(pool, kind):
    chosen = Pool(pool.window, pool.stride, kind, pool.ceil)
    wanted = pooling(IMAGES, pool.window, pool.step, kind, pool.ceil)
    close(pooled(jnp.asarray(IMAGES, WIDE), chosen), wanted)


def test_several_pools_follow_each_other():
    block = conv(pool=(Pool(2), Pool(4, kind="average")))
    features = np.maximum(convolution(IMAGES, np.asarray(block.kernel[...])), 0)
    close(block(jnp.asarray(IMAGES, WIDE)), pooling(pooling(features, 2, 2), 4, 4, "average"))


@pytest.mark.parametrize("activation", ["relu", "avr"])
@pytest.mark.parametrize("pool", [(), Pool(2), Pool(3, 2)])
@pytest.mark.parametrize("norm", ["learned", "fixed"])
def test_batch_norm_before_activation_and_pool(norm, pool, activation):
    block = conv(norm=norm, activation=activation, pool=pool)
    assert block.bias is None
    images = jnp.asarray(IMAGES, WIDE)
    responses = convolution(IMAGES, np.asarray(block.kernel[...]))
    scale, bias = np.ones(4), np.zeros(4)
    if norm == "learned":
        scale, bias = RNG.standard_normal((2, 4))
        block.norm.scale[...], block.norm.bias[...] = jnp.asarray(scale, WIDE), jnp.asarray(bias, WIDE)

    def features(x):
        found = ACTIVATIONS[activation](x * scale + bias)
        return pooling(found, pool.window, pool.step) if pool else found

    close(block(images, train=True), features(normalised(responses)))
    # Running statistics: from mean 0 and variance 1 a tenth of the way; evaluation uses them and keeps them.
    mean, variance = 0.1 * responses.mean(axis=(0, 1, 2)), 0.9 + 0.1 * responses.var(axis=(0, 1, 2))
    for _ in range(2):
        close(block.norm.mean[...], mean)
        close(block.norm.var[...], variance)
        close(block(images), features(normalised(responses, mean, variance)))
    learns = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(block, nnx.Param))}
    assert learns == ({"kernel", "scale", "bias"} if norm == "learned" else {"kernel"})


def test_dense_layer():
    x = RNG.standard_normal((5, 7))
    layer = Dense(7, 3, dtype=WIDE, param_dtype=WIDE, rngs=rngs())
    layer.bias[...] = jnp.arange(3, dtype=WIDE)
    close(layer(jnp.asarray(x, WIDE)), x @ np.asarray(layer.kernel[...]) + np.arange(3))
    layer = Dense(7, 3, norm="learned", activation="crelu", dtype=WIDE, param_dtype=WIDE, rngs=rngs())
    wanted = ACTIVATIONS["crelu"](normalised(x @ np.asarray(layer.kernel[...])))
    np.testing.assert_allclose(layer(jnp.asarray(x, WIDE), train=True), wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_frozen_filters_do_not_learn():
    block = conv(frozen=True, norm="learned")
    assert isinstance(block.kernel, Frozen)
    assert {path[-1] for path, _ in nnx.to_flat_state(nnx.state(block, nnx.Param))} == {"scale", "bias"}
    images = jnp.asarray(IMAGES, WIDE)
    gradient = nnx.grad(lambda model: jnp.sum(model(images, train=True) ** 2))(block)
    assert {path[-1] for path, _ in nnx.to_flat_state(gradient)} == {"scale", "bias"}
    assert count_parameters(block) == ParameterCounts(weights=0, biases=0, norm=8, frozen=72)


def test_initialisers_have_their_variance():
    shape = (3, 3, 50, 200)
    count, fan_in = np.prod(shape), 9 * 50
    five = 5 * np.sqrt(2 / count)  # relative standard error of a variance, five times
    for initialise, variance in (
        (msra(), 2 / fan_in),
        (msra(0.2), 2 / (1.04 * fan_in)),
        (unit_normal, 1.0),
    ):
        drawn = np.asarray(initialise(jax.random.key(1), shape, jnp.float32), float)
        assert abs(drawn.var() / variance - 1) < five
        assert abs(drawn.mean()) < 5 * np.sqrt(variance / count)
    wanted = {"relu": 2 / 18, "crelu": 2 / 18, "leaky_relu": 2 / (1.04 * 18), "avr": 1 / 18}
    blocks = [conv(channels=2000, activation=name) for name in wanted]
    for block, variance in zip([*blocks, conv(channels=2000, frozen=True)], [*wanted.values(), 1.0], strict=True):
        assert abs(np.asarray(block.kernel[...]).var() / variance - 1) < 5 * np.sqrt(2 / 36000)
        assert block.bias is not None
        assert not np.asarray(block.bias[...]).any()


@pytest.mark.parametrize("activation", ["relu", "avr", "crelu", "leaky_relu"])
def test_initial_layers_keep_the_energy(activation):
    """From layer to layer the mean square of the responses stays (He et al. 2015), within a few percent of 1."""
    x = jax.random.normal(jax.random.key(1), (64, 300), WIDE)
    powers = []
    for number in range(4):
        layer = Dense(x.shape[1], 300, activation=activation, dtype=WIDE, param_dtype=WIDE, rngs=rngs(number))
        powers.append(float(jnp.mean(jnp.square(x @ layer.kernel[...]))))
        x = layer(x)
    # The first layer sees no activation, so that its power alone differs.
    np.testing.assert_allclose(np.array(powers[1:]) / powers[0], 1, atol=0.25)


def test_dropout_drops_and_rescales():
    x = jnp.ones((200, 500), WIDE)
    np.testing.assert_array_equal(dropout(x, 0.3, train=False, key=None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, train=True, key=None), x)
    found = np.asarray(dropout(x, 0.3, train=True, key=jax.random.key(0)))
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.7], rtol=1e-6)
    assert abs((found == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / x.size)
    with pytest.raises(ValueError, match="expected a key for dropout while training, got none"):
        dropout(x, 0.3, train=True, key=None)
    block = conv(dropout=0.5, activation="linear")
    images = jnp.asarray(IMAGES, WIDE)
    kept = np.asarray(block(images, train=True, key=jax.random.key(3)))
    assert 0.3 < (kept == 0).mean() < 0.7
    np.testing.assert_allclose(kept[kept != 0], 2 * np.asarray(block(images))[kept != 0], rtol=1e-6)


def test_counts_with_and_without_numbers():
    def made():
        return ConvBlock(3, 8, 5, bias=True, norm="learned", rngs=nnx.Rngs(0))

    wanted = ParameterCounts(weights=600, biases=8, norm=16)
    assert count_parameters(made()) == count_parameters(nnx.eval_shape(made)) == wanted
    assert (wanted.learned, wanted.total) == (624, 624)


def test_lower_precision_of_computation():
    block = ConvBlock(2, 4, 3, norm="learned", activation="crelu", dtype=jnp.bfloat16, rngs=rngs())
    images = jnp.asarray(IMAGES, jnp.float32)
    found = block(images, train=True)
    assert found.dtype == jnp.bfloat16
    assert block.kernel[...].dtype == block.norm.mean[...].dtype == jnp.float32
    same = ConvBlock(2, 4, 3, norm="learned", activation="crelu", rngs=rngs())
    np.testing.assert_allclose(found.astype(jnp.float32), same(images, train=True), atol=0.05)


def test_what_does_not_fit_is_refused():
    for options, words in (
        ({"activation": "tanh"}, "expected an activation of relu, avr, crelu, leaky_relu, linear, got 'tanh'"),
        ({"norm": "batch"}, "expected norm to be 'learned', 'fixed' or None, got 'batch'"),
        ({"dropout": 1.0}, "expected dropout from 0 to below 1, got 1.0"),
        ({"channels": 0}, "expected kernel and channels of at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            conv(**options)
    block = conv()
    for images in (jnp.zeros((1, 9, 9, 3), WIDE), jnp.zeros((9, 9, 2), WIDE), jnp.zeros((1, 9, 9, 2), np.uint8)):
        with pytest.raises(ValueError, match=r"expected floats \[B, H, W, C\] with C = 2, got"):
            block(images)
    with pytest.raises(ValueError, match="expected maps of at least 10 x 10 for pooling, got 9 x 9"):
        pooled(jnp.zeros((1, 9, 9, 1), WIDE), Pool(10, kind="average"))
