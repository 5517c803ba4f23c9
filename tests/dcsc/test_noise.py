"""Noise of a given patch norm, by loops over patches, and of a given ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.dcsc.model import layers
from cnninv_jax.dcsc.noise import aligned_noise, noise
from tests.dcsc.dcsc_oracles import Dense, patch

DEFAULT = np.dtype(jnp.zeros(()).dtype)

# Filters and channels, length, signal, stride, padding.
GEOMETRIES = {
    "1-D": ((4, 2), (3,), (13,), 2, "valid"),
    "circle": ((3, 2), (5,), (12,), 1, "circular"),
    "circle shorter than two atoms": ((3, 2), (5,), (6,), 2, "circular"),
    "2-D": ((3, 2), (2, 3), (7, 8), 1, "valid"),
}


def model_of(name):
    size, length, signal, stride, padding = GEOMETRIES[name]
    bank = np.random.default_rng(0).standard_normal((*size, *length)).astype(DEFAULT)
    return layers([bank], signal, strides=[stride], padding=padding)


@pytest.mark.parametrize("law", ["gaussian", "modulus"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_largest_patch_has_the_norm_asked_for(name, law):
    (layer,) = model_of(name)
    op = layer.op
    options = {"stride": op.stride, "padding": op.padding, "law": law}
    found = noise(jax.random.key(1), op.input_shape, op.length, patch_norm=0.3, **options)
    assert found.shape == op.input_shape
    np.testing.assert_allclose(patch(found, layer)[1], 0.3, rtol=1e-6)
    assert not np.any(noise(jax.random.key(1), op.input_shape, op.length, patch_norm=0, **options))
    if law == "modulus":
        np.testing.assert_allclose(np.abs(found), np.abs(found).max(), rtol=1e-6)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_aligned_noise_puts_all_of_the_norm_into_single_atoms(name):
    model = model_of(name)
    (layer,) = model
    (matrix,), (stripes,) = Dense(model).matrices, Dense(model).stripes
    draw = jax.jit(aligned_noise)
    places = []
    for seed in range(4):
        found = np.asarray(draw(jax.random.key(seed), layer, 0.2))
        np.testing.assert_allclose(patch(found, layer)[1], 0.2, rtol=1e-5)
        responses = np.abs(matrix.T @ found.ravel().astype(np.float64)).reshape(layer.op.num_filters, -1)
        # No response exceeds the patch norm, and the atoms of the noise attain it.
        assert responses.max() <= 0.2 * (1 + 1e-5)
        where = np.nonzero(responses.max(axis=0) > 0.2 * (1 - 1e-5))[0]
        assert where.size
        # Patches see one of them at most, and there is one within two reaches of every patch on each axis.
        assert stripes[:, where].sum(axis=1).max() == 1
        places.append(tuple(where))
    assert len(set(places)) > 1 or stripes.all()


def test_ratio_in_decibels():
    signal = np.random.default_rng(0).standard_normal((2, 30)).astype(np.float32)
    for snr in (-3.0, 20.0):
        found = noise(jax.random.key(2), (2, 30), 3, snr=snr, signal=signal)
        assert found.dtype == np.float32
        ratio = 20 * np.log10(np.linalg.norm(signal) / np.linalg.norm(found))
        np.testing.assert_allclose(ratio, snr, atol=1e-4)


def test_gaussian_noise_has_no_preferred_direction():
    keys = jax.random.split(jax.random.key(3), 400)
    draws = jax.vmap(lambda key: noise(key, (1, 24), 6, patch_norm=1.0))(keys)
    moments = np.asarray(jnp.mean(draws, axis=0))
    spread = np.asarray(jnp.std(draws, axis=0)) / 20
    assert np.all(np.abs(moments) < 5 * spread)
    assert jax.jit(jax.vmap(lambda level: jnp.max(noise(jax.random.key(0), (1, 8), 8, patch_norm=level))))(
        jnp.ones(2)
    ).shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either patch_norm or snr"),
        ({"patch_norm": 1.0, "snr": 3.0}, "either patch_norm or snr"),
        ({"patch_norm": -1.0}, "at least 0, got -1"),
        ({"patch_norm": [1.0, 2.0]}, "at least 0"),
        ({"patch_norm": 1.0, "law": "uniform"}, "gaussian, modulus, got 'uniform'"),
        ({"snr": 3.0}, "got none"),
        ({"snr": 3.0, "signal": np.ones((2, 8))}, r"got \(2, 8\)"),
        ({"patch_norm": 1.0, "signal": np.ones((2, 9))}, "none without"),
        ({"patch_norm": 1.0, "padding": "same"}, "padding"),
    ],
    ids=["neither", "both", "negative", "vector", "law", "no signal", "shape", "signal", "padding"],
)
def test_noise_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        noise(jax.random.key(0), (2, 9), 3, **options)


def test_aligned_noise_refuses_a_negative_norm():
    with pytest.raises(ValueError, match="at least 0"):
        aligned_noise(jax.random.key(0), model_of("1-D")[0], -1.0)
