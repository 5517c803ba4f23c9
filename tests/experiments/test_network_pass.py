"""The forward pass against loops in NumPy, and random networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax import data
from cnninv_jax.experiments.network_pass import activations, output_names, random_network, shares

#: The layers of the known networks with few filters: sizes play no part in the pass, names and geometry do.
WIDTHS = {"vgg16": (4, 5, 6), "alexnet": (4, 5, 6, 3, 2), "alexnet-caffe": (6, 4, 6, 4, 4)}
SIDE = {"vgg16": (7, 10), "alexnet": (67, 71), "alexnet-caffe": (67, 75)}


def small(name, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    architecture = data.ARCHITECTURES[name]
    layers, channels = [], 3
    for spec, width in zip(architecture.layers, WIDTHS[name], strict=False):
        shape = (width, channels // spec.groups, *spec.shape[2:])
        layers.append(
            data.ConvLayer(
                spec.name, rng.standard_normal(shape).astype(np.float32),
                rng.standard_normal(width).astype(np.float32) if bias else None,
                spec.stride, spec.padding, spec.groups, spec.pool, spec.normalize,
            )
        )  # fmt: skip
        channels = width
    return data.Network(name, tuple(layers), architecture, data.PREPROCESSINGS[architecture.preprocessing], "a test")


def oracle(network, picture):
    """One output after the other, one window after the other."""
    x = network.preprocessing(np.asarray(picture, np.float64))
    outputs = {}
    for layer in network.layers:
        x = np.pad(x, ((0, 0), *((margin, margin) for margin in layer.padding)))
        K, M, *ell = layer.filters.shape
        n = [(size - length) // step + 1 for size, length, step in zip(x.shape[1:], ell, layer.stride, strict=True)]
        h = np.zeros((K, *n))
        for i in range(K):
            first = i // (K // layer.groups) * M
            for a in range(n[0]):
                for b in range(n[1]):
                    top, left = a * layer.stride[0], b * layer.stride[1]
                    window = x[first : first + M, top : top + ell[0], left : left + ell[1]]
                    h[i, a, b] = np.sum(window * layer.filters[i]) + (0 if layer.bias is None else layer.bias[i])
        outputs[layer.name] = h
        x = np.maximum(h, 0)
        if layer.normalize:
            squares = [np.sum(x[max(0, i - 2) : i + 3] ** 2, axis=0) for i in range(K)]
            x = x / (1 + 1e-4 / 5 * np.array(squares)) ** 0.75
        if layer.pool is not None:
            (w, _), (s, _) = layer.pool.window, layer.pool.stride
            n = [(size - w) // s + 1 for size in x.shape[1:]]
            x = np.array(
                [[[c[a * s : a * s + w, b * s : b * s + w].max() for b in range(n[1])] for a in range(n[0])] for c in x]
            )
            outputs[layer.pool.name] = x
    return outputs


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
def test_pass_is_the_oracles(name, bias):
    network = small(name, bias)
    picture = np.random.default_rng(1).uniform(size=(3, *SIDE[name]))
    wanted = oracle(network, picture)
    # Strict about dtypes: float32 pictures compute in float32 whatever the width of JAX's numbers.
    found = activations(network, jnp.asarray(picture, jnp.float32))
    assert list(found) == list(wanted) == list(output_names(network.layers))
    for output, value in found.items():
        assert value.dtype == jnp.float32
        assert value.shape == wanted[output].shape
        np.testing.assert_allclose(value, wanted[output], rtol=2e-4, atol=2e-5 * np.abs(wanted[output]).max())
    for output, value in shares(network, jnp.asarray(picture, jnp.float32)).items():
        np.testing.assert_allclose(value, np.mean(wanted[output] > 0), atol=1e-3)


def test_float64_where_it_is_asked_for():
    if not jax.config.jax_enable_x64:
        pytest.skip("64-bit numbers are switched off")
    network = small("vgg16")
    picture = np.random.default_rng(1).uniform(size=(3, 6, 6))
    wanted = oracle(network, picture)
    for output, value in activations(network, picture).items():
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, wanted[output], rtol=1e-10, atol=1e-10)


def test_new_weights_compile_nothing():
    from cnninv_jax.experiments import network_pass

    picture = jnp.ones((3, 6, 6), jnp.float32)
    activations(small("vgg16", seed=1), picture)
    before = network_pass._forward._cache_size()
    activations(small("vgg16", seed=2), picture)
    assert network_pass._forward._cache_size() == before


def test_refusals():
    network = small("alexnet")
    with pytest.raises(ValueError, match=r"a picture \[3, H, W\], got shape \(67, 67, 3\); put the channels first"):
        activations(network, np.ones((67, 67, 3), np.float32))
    with pytest.raises(ValueError, match=r"large enough for conv5, got 50 x 50; alexnet was made for 224 x 224"):
        activations(network, np.ones((3, 50, 50), np.float32))
    with pytest.raises(ValueError, match="expected the network to be one of vgg16, alexnet"):
        random_network("resnet", jax.random.key(0))


def test_random_network_has_the_sizes_and_scale():
    network = random_network("alexnet-caffe", jax.random.key(3), layers=2)
    assert [layer.filters.shape for layer in network.layers] == [(96, 3, 11, 11), (256, 48, 5, 5)]
    for layer in network.layers:
        size = layer.filters[0].size
        assert layer.bias is None
        # 5 standard errors of a standard deviation.
        np.testing.assert_allclose(layer.filters.std() * np.sqrt(size), 1.0, atol=5 / np.sqrt(2 * layer.filters.size))
    other = random_network("alexnet-caffe", jax.random.key(4), layers=1)
    assert not np.array_equal(other.layers[0].filters, network.layers[0].filters)
