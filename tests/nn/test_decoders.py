"""Decoders against the transpose of the network they mirror, against `dcn.reconstruct`, counted and pinned."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnninv_jax import dcn
from cnninv_jax.nn import blocks
from cnninv_jax.nn.backbones import Backbone
from cnninv_jax.nn.decoders import DCN, WhatWhereDecoder
from cnninv_jax.nn.geometry import feature_layer, layers_of, map_sizes
from cnninv_jax.nn.pooling import max_pool

needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compares at float64")
RNG = np.random.default_rng(21)
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def built(kind, *args, seed=0, **settings):
    """A module whose filters are drawn by one program."""
    return nnx.jit(lambda: kind(*args, rngs=nnx.Rngs(seed), **settings))()


@nnx.jit
def back(encoder, decoder, images):
    """Pictures through a network and its decoder."""
    if isinstance(decoder, DCN):
        return decoder(encoder(images, (decoder.tap,))[decoder.tap], images.shape[1:3])
    features = encoder(images, decoder.taps)
    return decoder(features[decoder.taps[0]], features, images.shape[1:3])


def transposed(decoder, encoder):
    """Give the decoder the encoder's filters, turned by 180 degrees, inputs and outputs exchanged within groups."""
    for name, mirror in decoder.convolutions.items():
        spec = next(spec for spec in decoder.layers if spec.name == name)
        kernel = encoder.convolutions[name].kernel[...][::-1, ::-1]
        parts = jnp.split(kernel, spec.groups, axis=-1)
        mirror.kernel[...] = jnp.concatenate([jnp.swapaxes(part, -1, -2) for part in parts], axis=-1)


def linear(encoder, pool):
    """The encoder with another pool and no ReLU."""

    def run(images):
        maps = images
        for spec in encoder.layers:
            maps = encoder.convolutions[spec.name](maps)
            if spec.pool is not None:
                maps = pool(maps, spec.pool)
        return maps

    return run


@needs_x64
@pytest.mark.parametrize(
    ("name", "depth", "size"),
    [
        ("vgg16", 2, (13, 18)),
        pytest.param("alexnet", 3, (64, 80), marks=pytest.mark.slow),
        ("alexnet-caffe", 2, (67, 75)),
    ],
)
def test_the_mirror_is_the_transpose(name, depth, size):
    """Without activations, DCN is W_1^T U_1 W_2^T ..., U putting values where a pool that takes firsts read them."""
    encoder = built(Backbone, name, last=feature_layer(name, depth), width=1 / 16, **DOUBLE, seed=1)
    decoder = built(DCN, name, depth, width=1 / 16, activation="linear", **DOUBLE, seed=2)
    transposed(decoder, encoder)
    sizes = map_sizes(encoder.layers, size)

    def firsts(maps, pool):
        high, wide = sizes[pool.name]
        return maps[:, :: pool.stride[0], :: pool.stride[1]][:, :high, :wide]

    images = jnp.zeros((2, *size, 3))
    features = jnp.asarray(RNG.standard_normal(jax.eval_shape(linear(encoder, firsts), images).shape))
    (wanted,) = jax.jit(lambda features: jax.vjp(linear(encoder, firsts), images)[1](features))(features)
    found = jax.jit(lambda features: decoder(features, size))(features)
    assert found.shape == (2, *size, 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())


@needs_x64
@pytest.mark.parametrize("ceil", [False, True], ids=["floor", "ceil"])
def test_switches_are_the_transpose_of_max_pooling(ceil):
    encoder = built(Backbone, "vgg16", last="pool2", width=1 / 16, ceil=ceil, **DOUBLE, seed=1)
    decoder = built(WhatWhereDecoder, "vgg16", "pool2", width=1 / 16, ceil=ceil, **DOUBLE, seed=2)
    assert decoder.taps == ("pool2", "switches2", "switches1")
    transposed(decoder, encoder)
    decoder.activation = "linear"
    images = jnp.asarray(RNG.uniform(size=(2, 9, 14, 3)))
    switches = {}

    def pool(maps, spec):
        values, switches[spec.name.replace("pool", "switches")] = max_pool(maps, ceil=ceil)
        return values

    @jax.jit
    def both(images, cotangent):
        _, pull = jax.vjp(linear(encoder, lambda maps, spec: max_pool(maps, ceil=ceil)[0]), images)
        linear(encoder, pool)(images)
        return decoder(cotangent, switches, (9, 14)), *pull(cotangent)

    sizes = map_sizes(encoder.layers, (9, 14), ceil=ceil)
    found, wanted = both(images, jnp.asarray(RNG.standard_normal((2, *sizes["pool2"], 8))))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-13)


@needs_x64
@pytest.mark.parametrize(
    ("depth", "upsampling"), [(2, "zeros"), (1, "nearest"), pytest.param(3, "nearest", marks=pytest.mark.slow)]
)
def test_with_relu_it_is_the_untrained_decoder(depth, upsampling):
    layers = layers_of("vgg16", last=feature_layer("vgg16", depth), width=1 / 8)
    net = dcn.architecture(depth, channels=[spec.shape[0] for spec in layers], upsampling=upsampling)
    weights = jax.jit(lambda key: dcn.random_weights(key, net, dtype=jnp.float64))(jax.random.key(3))
    settings = {"width": 1 / 8, "ceil": True, **DOUBLE}
    encoder = built(Backbone, "vgg16", last=layers[-1].name, **settings, seed=0)
    decoder = built(DCN, "vgg16", depth, activation="relu", upsampling=upsampling, **settings, seed=0)
    modules = [encoder.convolutions[spec.name] for spec in layers]
    modules += [decoder.convolutions[spec.name] for spec in layers[::-1]]
    for bank, module in zip(weights, modules, strict=True):
        module.kernel[...] = jnp.transpose(bank, (2, 3, 1, 0))
    picture = jnp.asarray(RNG.uniform(size=(3, 11, 14)))
    found = back(encoder, decoder, jnp.moveaxis(picture, 0, -1)[None])
    wanted = jax.jit(dcn.reconstruct, static_argnums=1)(weights, net, picture)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found)[0], -1, 0), wanted, rtol=1e-9)


def test_leaky_relu_and_biases_stand_where_they_should():
    decoder = built(DCN, "vgg16", 1, width=1 / 16, seed=5)
    first, last = decoder.convolutions["conv1_2"], decoder.convolutions["conv1_1"]
    for module in (first, last):
        module.bias[...] = jnp.asarray(RNG.standard_normal(module.bias[...].shape), jnp.float32)
    features = jnp.asarray(RNG.standard_normal((1, 5, 6, 4)), jnp.float32)
    inner = np.asarray(first(features))
    assert (inner < 0).any()
    wanted = last(jnp.asarray(np.where(inner < 0, 0.2 * inner, inner)))
    np.testing.assert_allclose(decoder(features), wanted, rtol=1e-5, atol=1e-6)  # and no activation behind the last
    kernel = np.asarray(built(DCN, "vgg16", 1, seed=5).convolutions["conv1_2"].kernel[...], float)
    assert kernel.std() == pytest.approx(math.sqrt(2 / 1.04 / 576), rel=5 / math.sqrt(2 * kernel.size))


@pytest.mark.parametrize(
    ("kind", "name", "depth", "weights", "biases"),
    [
        # The network's weights again; biases, one for each of its layers' inputs.
        (DCN, "vgg16", 1, 38_592, 67), (DCN, "vgg16", 2, 259_776, 259), (DCN, "vgg16", 3, 1_734_336, 899),
        (DCN, "vgg16", 4, 7_632_576, 2_179), (DCN, "vgg16", 5, 14_710_464, 3_715),
        (DCN, "alexnet", 1, 23_232, 3), (DCN, "alexnet", 2, 330_432, 67), (DCN, "alexnet", 5, 2_468_544, 899),
        (DCN, "alexnet-caffe", 2, 342_048, 99), (DCN, "alexnet-caffe", 5, 2_332_704, 1_123),
        (WhatWhereDecoder, "vgg16", "pool1", 38_592, 67), (WhatWhereDecoder, "vgg16", "pool4", 7_632_576, 2_179),
        (WhatWhereDecoder, "alexnet", "pool5", 2_468_544, 899),
    ],
)  # fmt: skip
def test_numbers_of_parameters(kind, name, depth, weights, biases):
    counts = blocks.count_parameters(nnx.eval_shape(lambda: kind(name, depth, rngs=nnx.Rngs(0))))
    assert (counts.weights, counts.biases, counts.frozen, counts.norm) == (weights, biases, 0, 0)


@pytest.mark.parametrize(("name", "size"), [("vgg16", 97), ("alexnet", 224), ("alexnet-caffe", 199)])
def test_pictures_come_back_at_their_size(name, size):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def way(kind, depth, images):
        decoder = kind(name, depth, width=1 / 16, rngs=nnx.Rngs(0))
        encoder = Backbone(name, width=1 / 16, rngs=nnx.Rngs(0))
        return back(encoder, decoder, images)

    pools = [spec.pool.name for spec in layers_of(name) if spec.pool is not None]
    for kind, depths in ((DCN, (1, 2, 3, 4, 5)), (WhatWhereDecoder, pools)):
        for depth in depths:
            found = jax.eval_shape(functools.partial(way, kind, depth), images)
            assert (found.shape, found.dtype) == (images.shape, images.dtype)


def test_only_the_decoder_learns():
    encoder = built(Backbone, last="pool1", width=1 / 16, seed=1)
    decoder = built(WhatWhereDecoder, pool="pool1", width=1 / 16, seed=2)
    model = nnx.Dict(encoder=encoder, decoder=decoder)
    counts = blocks.count_parameters(model)
    assert counts.frozen == 3 * 4 * 9 + 4 * 4 * 9 + 4 + 4
    assert counts.learned == 3 * 4 * 9 + 4 * 4 * 9 + 3 + 4
    images = jnp.asarray(RNG.uniform(size=(2, 6, 6, 3)), jnp.float32)

    def loss(model, images):
        return jnp.mean(jnp.square(back(model["encoder"], model["decoder"], images) - images))

    gradient = nnx.jit(nnx.grad(loss))(model, images)
    assert all("decoder" in path for path in nnx.to_flat_state(gradient).paths)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradient))


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="name of a pool, such as pool4, got 'conv3_1'"):
        WhatWhereDecoder(pool="conv3_1", rngs=nnx.Rngs(0))
    decoder = nnx.eval_shape(lambda: WhatWhereDecoder(pool="pool2", width=1 / 16, rngs=nnx.Rngs(0)))
    maps = jnp.zeros((1, 2, 2, 8), jnp.float32)
    with pytest.raises(ValueError, match="expected switches2, switches1, got no switches1"):
        decoder(maps, {"switches2": jnp.zeros(maps.shape, np.uint8)}, 8)
    with pytest.raises(ValueError, match=r"float maps \[B, 4, 4, 4\] of conv1_2 for pictures of 4 x 4, got float32 of"):
        nnx.eval_shape(lambda: DCN(width=1 / 16, rngs=nnx.Rngs(0)))(maps, 4)
