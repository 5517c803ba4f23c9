"""Classifiers from specs: the whole pass against NumPy, what a trained state is, and the full sizes without numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnninv_jax.nn.architectures import all_cnn_b, convpool_cnn_c, random_cnn, vgg_cifar
from cnninv_jax.nn.blocks import Frozen, Pool, count_parameters
from cnninv_jax.nn.classifiers import ConvNet
from cnninv_jax.nn.specs import ConvLayer, DenseLayer, NetworkSpec, parameter_counts
from tests.nn.layer_oracles import ACTIVATIONS, convolution, normalised, pooling

WIDE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
TOLERANCE = 1e-9 if WIDE is jnp.float64 else 2e-4
RNG = np.random.default_rng(5)
IMAGES = RNG.standard_normal((4, 8, 8, 3))
SPEC = NetworkSpec(
    "small",
    (
        ConvLayer("conv1", 3, 4, padding=1, activation="crelu", pools=(Pool(3, 2, ceil=True),)),
        ConvLayer("conv2", 3, 5, norm="learned", pools=(Pool(2), Pool(2, kind="average")), frozen=True, dropout=0.5),
        DenseLayer("fc3", 6, activation="avr", norm="fixed"),
        DenseLayer("fc4", 3),
    ),
    8,
    dropout=0.25,
)


def network(spec, seed=0, **options):
    return ConvNet(spec, rngs=nnx.Rngs(jax.random.key(seed)), **options)


def by_hand(model, images, train):
    """Return scores in float64."""

    def number(variable):
        return np.asarray(variable[...], np.float64)

    def norm(layer, x):
        given = () if train else (number(layer.mean), number(layer.var))
        scale, bias = (1, 0) if layer.scale is None else (number(layer.scale), number(layer.bias))
        return normalised(x, *given) * scale + bias

    x = convolution(images, number(model.conv1.kernel), padding=1) + number(model.conv1.bias)
    x = pooling(ACTIVATIONS["crelu"](x), 3, 2, ceil=True)
    x = ACTIVATIONS["relu"](norm(model.conv2.norm, convolution(x, number(model.conv2.kernel))))
    x = pooling(pooling(x, 2, 2), 2, 2, "average").reshape(len(images), -1)
    x = np.abs(norm(model.fc3.norm, x @ number(model.fc3.kernel)))
    return x @ number(model.fc4.kernel) + number(model.fc4.bias)


def test_the_whole_pass_by_hand():
    model = network(SPEC, dtype=WIDE, param_dtype=WIDE)
    for name, path in (("conv1", "bias"), ("fc4", "bias")):
        held = getattr(getattr(model, name), path)
        held[...] = jnp.asarray(RNG.standard_normal(held[...].shape), WIDE)
    model.conv2.norm.scale[...] = jnp.asarray([1.0, -2.0, 0.5, 0.1, 3.0], WIDE)
    images = jnp.asarray(IMAGES, WIDE)
    for _ in range(2):  # the second pass is with statistics of the first
        np.testing.assert_allclose(model(images), by_hand(model, IMAGES, False), rtol=TOLERANCE, atol=TOLERANCE)
        model(images, train=True, key=jax.random.key(1))
    shapes = [layer.shape[1:] for layer in model.layers(images)]
    assert shapes == [(4, 4, 8), (1, 1, 5), (6,), (3,)]


def test_training_uses_the_statistics_of_the_batch():
    layers = (SPEC.layers[0], ConvLayer("conv2", 3, 5, norm="learned", pools=SPEC.layers[1].pools), *SPEC.layers[2:])
    model = network(NetworkSpec("no dropout", layers, 8), dtype=WIDE, param_dtype=WIDE)
    images = jnp.asarray(IMAGES, WIDE)
    wanted = by_hand(model, IMAGES, True)
    np.testing.assert_allclose(model(images, train=True), wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert float(jnp.max(jnp.abs(model.conv2.norm.mean[...]))) > 0


def test_scores_are_means_over_the_last_maps():
    model = network(convpool_cnn_c("half", width=1 / 24, dropout=(0.0, 0.0), num_classes=7))
    images = jax.random.normal(jax.random.key(2), (2, 32, 32, 3), jnp.float32)
    *_, maps, scores = model.layers(images)
    assert maps.shape == (2, 10, 10, 7)
    np.testing.assert_allclose(scores, np.asarray(maps).mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(scores, model(images))


def test_what_learns_and_what_does_not():
    model = network(random_cnn(2, width=1 / 256))
    learns = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    norms = {f"conv{i}/norm/{name}" for i in (1, 2) for name in ("scale", "bias")}
    assert learns == norms | {"softmax/kernel", "softmax/bias"}
    fixed = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, Frozen))}
    assert fixed == {"conv1/kernel", "conv2/kernel"}
    twin = network(random_cnn(2, learned=True, width=1 / 256))
    assert not nnx.to_flat_state(nnx.state(twin, Frozen))
    # One seed, one network; another seed, other filters.
    again, other = network(random_cnn(2, width=1 / 256)), network(random_cnn(2, width=1 / 256), seed=1)
    for path, held in nnx.to_flat_state(nnx.state(model)):
        same = dict(nnx.to_flat_state(nnx.state(again)))[path]
        np.testing.assert_array_equal(held.get_value(), same.get_value())
    assert not np.array_equal(model.conv1.kernel[...], other.conv1.kernel[...])


def test_dropout_needs_a_key_and_evaluation_draws_nothing():
    model = network(SPEC)
    images = jnp.asarray(IMAGES, jnp.float32)
    np.testing.assert_array_equal(model(images), model(images, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="expected a key for dropout while training, got none"):
        model(images, train=True)
    first, second = (model(images, train=True, key=jax.random.key(seed)) for seed in (1, 2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (random_cnn(3), None),
        (convpool_cnn_c("crelu"), None),
        (vgg_cifar("conv1,3,5"), None),
        (all_cnn_b("crelu all"), None),
        (all_cnn_b("avr conv1-4"), 227),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_full_sizes_without_numbers(spec, size):
    model = nnx.eval_shape(lambda: ConvNet(spec, size=size, rngs=nnx.Rngs(0)))
    assert count_parameters(model) == parameter_counts(spec, size)
    side = spec.size if size is None else size
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    graphdef, state = nnx.split(model)
    found = jax.eval_shape(lambda state, images: nnx.merge(graphdef, state)(images), state, images)
    assert found.shape == (2, spec.classes)


def test_other_images_are_refused():
    model = network(SPEC)
    for shape in ((1, 9, 9, 3), (1, 8, 8, 1), (8, 8, 3)):
        with pytest.raises(ValueError, match=r"expected images \[B, 8, 8, 3\], got shape"):
            model(jnp.zeros(shape, jnp.float32))
