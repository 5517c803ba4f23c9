"""The forward pass against dense matrices, layer by layer in NumPy."""

import jax
import numpy as np
import pytest

from cnninv_jax.dcsc.forward import forward
from cnninv_jax.dcsc.model import draw_signs, layers, reverse_pass, shapes
from cnninv_jax.operators import as_matrix

RULES = {
    "hard": lambda h, b: np.where(np.abs(h) > b, h, 0),
    "soft": lambda h, b: np.sign(h) * np.maximum(np.abs(h) - b, 0),
    "relu": lambda h, b: np.where(h > b, h, 0),
    "shifted_relu": lambda h, b: np.maximum(h - b, 0),
    "crelu": lambda h, b: np.maximum(h - b, 0) - np.maximum(-h - b, 0),
}


def deep_model(rank=1, strides=(1, 1, 1), dtype=np.float64, signal=(20,)):
    """Three layers; the atoms of the deeper ones are sparse."""
    rng = np.random.default_rng(7)
    banks = []
    for filters, channels in [(5, 3), (4, 5), (3, 4)]:
        bank = rng.standard_normal((filters, channels, *(4,) * rank))
        banks.append((bank if not banks else bank * (rng.random(bank.shape) < 0.2)).astype(dtype))
    model = layers(banks, signal, strides=strides)
    return draw_signs(jax.random.key(5), model)


def path_of(model, places=3, seed=1):
    rng = np.random.default_rng(seed)
    deepest = np.zeros(shapes(model)[-1], model[0].op.dtype)
    deepest.ravel()[rng.choice(deepest.size, places, replace=False)] = rng.choice([-1, 1], places)
    return reverse_pass(model, deepest)


def dense_pass(model, x, rule, betas):
    """Eq. (1) with dense A^(l) D^(l)."""
    codes, estimate = [], np.asarray(x)
    for layer, beta in zip(model, betas, strict=True):
        columns = np.asarray(as_matrix(layer.op)).T * np.asarray(layer.signs).ravel()
        h = (columns.T @ estimate.ravel()).reshape(layer.op.code_shape)
        estimate = rule(h, beta)
        codes.append(estimate)
    return codes


def windows(v, op):
    """The patches of a signal that one atom sees."""
    found = []
    for shift in np.ndindex(*op.shifts):
        window = v[
            (
                slice(None),
                *(np.arange(s * t, s * t + ell) for s, t, ell in zip(shift, op.stride, op.length, strict=True)),
            )
        ]
        found.append(np.linalg.norm(window))
    return found


@pytest.mark.parametrize("name", RULES)
def test_codes_equal_dense_products(name):
    model = deep_model()
    path = path_of(model)
    rng = np.random.default_rng(2)
    x = np.asarray(path[0]) + 0.05 * rng.standard_normal(shapes(model)[0])
    betas = np.array([0.3, 0.2, 0.1])
    found = forward(model, x, name, thresholds=betas)
    for mine, other in zip(found.codes, dense_pass(model, x, RULES[name], betas), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)
    assert found.hits is None
    assert found.noise is None
