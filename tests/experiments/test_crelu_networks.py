"""Networks of conv + CReLU layers: drawn, made of a ReLU network's kernels, and read as they are."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax import data
from cnninv_jax.experiments.crelu_networks import (
    ARCHITECTURES,
    POOLED,
    Geometry,
    bring_kernels,
    build,
    doubled,
    picture_of,
    random_layers,
)

RNG = np.random.default_rng(5)
BELOW, ABOVE = RNG.standard_normal((4, 3, 3, 3)), RNG.standard_normal((5, 4, 3, 3))
SMALL = (Geometry("a", 4, (3, 3), (1, 1)), Geometry("b", 6, (5, 5), (2, 2)))


def saved(path: pathlib.Path, **arrays):
    np.savez(path, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})
    return str(path)


@pytest.mark.parametrize("negative", ["pairing", "zero", "same"])
def test_both_phases_of_a_relu_networks_kernels(negative):
    found = doubled(ABOVE, BELOW, negative)
    unit = BELOW.reshape(4, -1) / np.linalg.norm(BELOW.reshape(4, -1), axis=1, keepdims=True)
    assert found.shape == (5, 8, 3, 3)
    np.testing.assert_array_equal(found[:, :4], ABOVE)
    for j in range(4):
        others = [i for i in range(4) if i != j]
        opposite = min(others, key=lambda i: unit[i] @ unit[j])
        expected = {"pairing": ABOVE[:, opposite], "zero": 0 * ABOVE[:, j], "same": ABOVE[:, j]}[negative]
        np.testing.assert_array_equal(found[:, 4 + j], expected)


def test_a_filter_of_zeros_has_no_opposite():
    below = BELOW.copy()
    below[2] = 0
    np.testing.assert_array_equal(doubled(ABOVE, below, "pairing")[:, 6], 0)


def test_a_relu_networks_file_is_doubled_and_says_so(tmp_path):
    brought = bring_kernels(saved(tmp_path / "relu.npz", a=BELOW, b=ABOVE), "zero")
    np.testing.assert_allclose(brought.layers[1].filters[:, :4], ABOVE, rtol=1e-6)
    np.testing.assert_array_equal(brought.layers[1].filters[:, 4:], 0)
    assert "trained for ReLU" in brought.title
    assert any("not a trained CReLU network" in note for note in brought.notes)


def test_a_crelu_networks_file_is_used_as_it_is(tmp_path):
    above = RNG.standard_normal((5, 8, 3, 3))
    path = saved(tmp_path / "crelu.npz", **{"a.weight": BELOW, "a.bias": np.arange(4.0), "b.weight": above})
    brought = bring_kernels(path, "pairing", (1, 2))
    np.testing.assert_allclose(brought.layers[1].filters, above, rtol=1e-6)
    np.testing.assert_array_equal(brought.layers[0].bias, np.arange(4.0))
    assert [layer.stride for layer in brought.layers] == [(1, 1), (2, 2)]
    assert brought.preprocessing.name == "none"
    assert "ReLU;" not in brought.title


@pytest.mark.parametrize(
    ("arrays", "strides", "words"),
    [
        ({"a": BELOW, "b": RNG.standard_normal((5, 7, 3, 3))}, (), "kernels follow on one another"),
        ({"a": ABOVE}, (), "the 3 channels of a picture"),
        ({"a": BELOW, "b": ABOVE}, (1,), "expected 2 --strides"),
        ({"a": BELOW, "b": ABOVE}, (1, 0), "expected 2 --strides"),
        ({"a": RNG.standard_normal((4, 3, 3))}, (), "two spatial axes"),
    ],
    ids=["chain", "channels", "too few strides", "stride 0", "one axis"],
)
def test_what_is_no_network_is_refused(tmp_path, arrays, strides, words):
    with pytest.raises(ValueError, match=words):
        bring_kernels(saved(tmp_path / "odd.npz", **arrays), "pairing", strides)


def test_random_layers_keep_their_filters_whatever_is_above():
    key = jax.random.key(3)
    one, two = random_layers(key, SMALL[:1], 3, "float32"), random_layers(key, SMALL, 3, "float32")
    np.testing.assert_array_equal(one[0], two[0])
    assert two[1].shape == (6, 8, 5, 5)
    # 1,200 numbers of variance 2 / (8 * 25): 5 standard errors of their mean square.
    spread = np.mean(np.square(np.asarray(two[1], float))) * 100
    assert abs(spread - 1) < 5 * np.sqrt(2 / 1200)


def test_layers_follow_on_one_another():
    weights = [(bank, None) for bank in random_layers(jax.random.key(0), SMALL, 3, "float32")]
    layers = build(weights, SMALL, 12, (1,))
    assert [layer.output_shape for layer in layers] == [(8, 6, 6), (12, 3, 3)]
    assert [layer.output_shape for layer in build(weights, SMALL, 12)] == [(8, 12, 12), (12, 6, 6)]
    with pytest.raises(ValueError, match="expected --size large enough for max-pooling after b, got 2"):
        build(weights, SMALL, 2, (2,))


def test_known_sizes():
    assert POOLED["vgg16"] == (2, 4, 7, 10, 13)
    assert [layer.num_filters for layer in ARCHITECTURES["vgg16"][:4]] == [64, 64, 128, 128]
    assert [(layer.length[0], layer.stride[0]) for layer in ARCHITECTURES["all-cnn"]] == [
        (11, 4),
        (1, 1),
        (3, 2),
        (5, 1),
    ]


@pytest.mark.parametrize("name", list(data.PREPROCESSINGS))
def test_pictures_come_back(name):
    way = data.PREPROCESSINGS[name]
    picture = RNG.random((3, 4, 5))
    np.testing.assert_allclose(picture_of(way, way(picture)), picture, atol=1e-12)
    assert jnp.asarray(picture).shape == (3, 4, 5)
