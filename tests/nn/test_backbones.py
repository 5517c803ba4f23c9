"""VGG-16 and AlexNet as modules: the pass of `experiments.network_pass` and `dcn.features`, counted and pinned."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnninv_jax import data, dcn, filters
from cnninv_jax.experiments.network_pass import activations, random_network
from cnninv_jax.nn import blocks
from cnninv_jax.nn.backbones import Backbone
from cnninv_jax.nn.geometry import feature_layer, layers_of, map_sizes
from cnninv_jax.nn.pooling import flat_switches

needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compares at float64")
KIND = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
RNG = np.random.default_rng(8)


def abstract(*args, **kwargs):
    """A network of which only shapes exist."""
    return nnx.eval_shape(lambda: Backbone(*args, rngs=nnx.Rngs(0), **kwargs))


def built(*args, **settings):
    """A network whose filters are drawn by one program."""
    return nnx.jit(lambda: Backbone(*args, rngs=nnx.Rngs(0), **settings))()


def with_biases(network):
    """The network with biases drawn."""
    layers = [
        data.ConvLayer(
            layer.name, layer.filters, RNG.standard_normal(layer.num_filters).astype(np.float32), layer.stride,
            layer.padding, layer.groups, layer.pool, layer.normalize,
        )
        for layer in network.layers
    ]  # fmt: skip
    return data.Network(network.name, tuple(layers), network.architecture, network.preprocessing, "test", ("a note",))


@pytest.mark.parametrize(
    ("name", "layers", "size", "last"),
    [
        ("vgg16", 3, (9, 14), "conv2_1"),
        pytest.param("alexnet", 5, (67, 71), "pool5", marks=pytest.mark.slow),
        ("alexnet-caffe", 5, (67, 75), "pool5"),
    ],
)
def test_the_pass_is_that_of_network_pass(name, layers, size, last):
    network = with_biases(random_network(name, jax.random.key(1), layers=layers))
    images = RNG.uniform(size=(2, *size, 3)).astype(np.float32)
    backbone = built(name, network=network, last=last, dtype=KIND, param_dtype=KIND)
    assert backbone.given == tuple(layer.name for layer in network.layers)
    assert backbone.notes == ("a note",)
    found = nnx.jit(lambda model, x: model(x, model.taps))(backbone, jnp.asarray(images, KIND))
    sizes = map_sizes(backbone.layers, size)
    for number, image in enumerate(images):
        wanted = activations(network, jnp.asarray(np.moveaxis(image, -1, 0), KIND))
        for tap, value in found.items():
            if tap.startswith("switches"):
                continue
            other = np.moveaxis(wanted[tap], 0, -1)
            assert value.shape[1:3] == sizes[tap]
            # Taps of convolutions stand behind the ReLU.
            scale = np.abs(other).max()
            np.testing.assert_allclose(value[number], np.maximum(other, 0), rtol=1e-4, atol=1e-6 * scale, err_msg=tap)


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_switches_say_where_the_maxima_stood(name):
    size = (13, 22) if name == "vgg16" else (67, 71)
    backbone = built(name, last="pool2", width=1 / 16)
    images = jnp.asarray(RNG.uniform(size=(2, *size, 3)), jnp.float32)
    before = feature_layer(name, 2)
    found = nnx.jit(lambda model, x: model(x, (before, "pool2", "switches2")))(backbone, images)
    assert set(found) == {before, "pool2", "switches2"}
    maps, pool = found[before], next(spec.pool for spec in backbone.layers if spec.pool and spec.pool.name == "pool2")
    flat = flat_switches(found["switches2"], maps.shape[1:3], pool.window, pool.stride)
    channels = maps.shape[-1]
    read = jnp.take_along_axis(maps.reshape(2, -1, channels), flat.reshape(2, -1, channels), axis=1)
    np.testing.assert_array_equal(read.reshape(found["pool2"].shape), found["pool2"])


@needs_x64
@pytest.mark.parametrize("depth", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_features_are_those_of_the_untrained_network(depth):
    widths = [spec.shape[0] for spec in layers_of("vgg16", last=feature_layer("vgg16", depth), width=1 / 8)]
    net = dcn.architecture(depth, channels=widths)
    weights = jax.jit(lambda key: dcn.random_weights(key, net, dtype=jnp.float64))(jax.random.key(3))
    double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    backbone = built("vgg16", last=feature_layer("vgg16", depth), width=1 / 8, ceil=True, **double)
    for bank, spec in zip(weights, backbone.layers, strict=False):
        backbone.convolutions[spec.name].kernel[...] = jnp.transpose(bank, (2, 3, 1, 0))
    picture = jnp.asarray(RNG.uniform(size=(3, 11, 14)))
    (found,) = nnx.jit(lambda model, x: model(x))(backbone, jnp.moveaxis(picture, 0, -1)[None]).values()
    wanted = jax.jit(dcn.features, static_argnums=1)(weights, net, picture)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found)[0], -1, 0), wanted, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "weights", "biases", "by_layer"),
    [
        ("vgg16", 14_710_464, 4_224, (1_728, 36_864, 73_728)),
        # 64 x 3 x 11 x 11 and so on; Caffe's halves see half of the channels below.
        ("alexnet", 2_468_544, 1_152, (23_232, 307_200, 663_552, 884_736, 589_824)),
        ("alexnet-caffe", 2_332_704, 1_376, (34_848, 307_200, 884_736, 663_552, 442_368)),
    ],
)
def test_numbers_of_parameters(name, weights, biases, by_layer):
    counts = blocks.count_parameters(abstract(name, trainable=True))
    assert (counts.weights, counts.biases, counts.total) == (weights, biases, weights + biases)
    frozen = blocks.count_parameters(abstract(name))
    assert (frozen.frozen, frozen.learned) == (weights + biases, 0)
    first = [math.prod(spec.shape) for spec in layers_of(name)][: len(by_layer)]
    assert first == list(by_layer)


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("vgg16", 224, {"conv1_2": (224, 64), "pool1": (112, 64), "conv3_3": (56, 256), "pool5": (7, 512)}),
        ("alexnet", 224, {"conv1": (55, 64), "pool1": (27, 64), "conv4": (13, 256), "pool5": (6, 256)}),
        ("alexnet-caffe", 227, {"conv1": (55, 96), "pool1": (27, 96), "conv3": (13, 384), "pool5": (6, 256)}),
    ],
)  # fmt: skip
def test_shapes_at_the_usual_size(name, size, shapes):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    found = nnx.eval_shape(lambda model, x: model(x, tuple(shapes)), abstract(name), images)
    assert {tap: (value.shape[1], value.shape[-1]) for tap, value in found.items()} == shapes
    assert all(value.shape[:2] == (2, value.shape[2]) for value in found.values())


def test_width_keeps_groups_whole():
    assert [spec.shape[:2] for spec in layers_of("alexnet-caffe", width=Fraction(1, 64))] == [
        (2, 3), (4, 1), (6, 4), (6, 3), (4, 3),
    ]  # fmt: skip
    assert [spec.shape[0] for spec in layers_of("vgg16", last="pool2", width=1 / 8)] == [8, 8, 16, 16]
    assert layers_of("vgg16", last="conv2_2")[-1].pool is None
    assert layers_of("vgg16", last="pool2")[-1].pool.name == "pool2"
    assert [feature_layer("vgg16", k) for k in range(1, 6)] == ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"]
    assert feature_layer("alexnet", 3) == "conv3"


@pytest.mark.parametrize(
    ("law", "scale", "deviation"),
    [
        ("msra", None, None), ("gaussian", None, 0.015), ("gaussian", 1.0, 1.0),
        ("uniform", None, 0.04 / math.sqrt(3)), ("laplace", None, 0.015 * math.sqrt(2)),
    ],
)  # fmt: skip
def test_laws_of_random_filters(law, scale, deviation):
    backbone = built(last="conv1_2", law=law, scale=scale)
    kernel = np.asarray(backbone.convolutions["conv1_2"].kernel[...], float)
    assert isinstance(backbone.convolutions["conv1_2"].kernel, blocks.Frozen)
    wanted = math.sqrt(2 / 576) if deviation is None else deviation
    # 36,864 entries; the fourth moment of the widest law (Laplace) is 6.
    assert kernel.std() == pytest.approx(wanted, rel=5 * math.sqrt(5 / 4 / kernel.size))
    assert abs(kernel.mean()) < 5 * wanted / math.sqrt(kernel.size)
    assert not np.any(np.asarray(backbone.convolutions["conv1_2"].bias[...]))
    assert filters.RANDOM_DCN_SCALES["uniform"] == 0.04


def test_layers_the_file_lacks_are_random_and_named():
    full = random_network("vgg16", jax.random.key(1), layers=3)
    partial = data.Network("vgg16", full.layers[::2], full.architecture, full.preprocessing, "file", ("2 of 13",))
    backbone = built(network=partial, last="pool2")
    assert backbone.given == ("conv1_1", "conv2_1")
    assert backbone.notes[0] == "2 of 13"
    assert backbone.notes[1].endswith(": conv1_2, conv2_2")
    assert backbone.preprocessing == "caffe"
    held = np.moveaxis(full.layers[2].filters, (0, 1), (-1, -2))
    np.testing.assert_array_equal(backbone.convolutions["conv2_1"].kernel[...], held)


def test_what_does_not_fit_is_said():
    network = random_network("vgg16", jax.random.key(1), layers=1)
    for arguments, message in (
        ({"name": "vgg19"}, "network to be one of vgg16, alexnet"),
        ({"last": "conv6_1"}, "layer of vgg16 out of conv1_1"),
        ({"width": 0}, "positive width"),
        ({"law": "cauchy"}, "law among msra, gaussian"),
        ({"scale": 0.1}, "no scale with law='msra'"),
        ({"network": network, "width": 1 / 2}, "width 1 with given filters, got 0.5"),
        ({"network": network, "name": "alexnet", "last": "conv1"}, "filters of alexnet, got those of 'vgg16'"),
        ({"preprocessing": "imagenet"}, "preprocessing to be one of caffe"),
    ):
        with pytest.raises(ValueError, match=message):
            built(**{"last": "conv1_1", **arguments})
    backbone = built(last="pool2", width=1 / 32)
    images = jnp.zeros((1, 8, 8, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"out of conv1_1, .*, got 'conv3_1'"):
        backbone(images, ("conv3_1",))
    with pytest.raises(ValueError, match="at least one tap"):
        backbone(images, ())
    with pytest.raises(ValueError, match=r"float images \[B, H, W, 3\]"):
        backbone(jnp.zeros((1, 3, 8, 8), jnp.float32))
    with pytest.raises(ValueError, match="large enough for conv2_2, got 3 x 3"):
        backbone(images[:, :3, :3])
    with pytest.raises(ValueError, match="depth of 1 to 5, got 6"):
        feature_layer("vgg16", 6)
