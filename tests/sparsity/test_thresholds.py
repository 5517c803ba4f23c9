"""Thresholds against loops over their definition; the soft one against the problem it solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.sparsity import thresholds

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32

BY_LOOPS = {
    "hard_threshold": lambda h, beta: h if abs(h) > beta else 0.0,
    "soft_threshold": lambda h, beta: np.sign(h) * max(abs(h) - beta, 0.0),
    "relu_threshold": lambda h, beta: h if h > beta else 0.0,
    "shifted_relu": lambda h, beta: max(h - beta, 0.0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64] if X64 else [np.float32])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", BY_LOOPS)
def test_thresholds_against_loops(name, beta, dtype):
    h = np.concatenate([np.random.default_rng(0).normal(size=9), [beta, -beta, 0.0]]).reshape(2, 6).astype(dtype)
    found = getattr(thresholds, name)(jnp.asarray(h), beta)
    assert found.dtype == dtype
    expected = np.vectorize(BY_LOOPS[name], otypes=[dtype])(h, dtype(beta))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found == 0, expected == 0)


def test_soft_threshold_minimises_its_problem():
    """beta |z| + (z - h)^2 / 2 has no smaller value on a fine grid."""
    grid = np.linspace(-3, 3, 6001)
    for h in (-1.7, -0.4, 0.0, 0.45, 2.2):
        found = float(thresholds.soft_threshold(jnp.asarray(h, DEFAULT), 0.5))
        value = 0.5 * abs(found) + (found - h) ** 2 / 2
        assert value <= np.min(0.5 * np.abs(grid) + np.square(grid - h) / 2) + 1e-6


@pytest.mark.parametrize("name", BY_LOOPS)
def test_one_threshold_per_filter_and_what_is_not_a_number(name):
    threshold = getattr(thresholds, name)
    h = jnp.asarray([[0.3, -0.8, jnp.nan], [0.3, 0.8, -0.1]], DEFAULT)
    betas = jnp.asarray([[0.5], [0.2]], DEFAULT)
    found = jax.jit(threshold)(h, betas)
    for row, beta in enumerate((0.5, 0.2)):
        np.testing.assert_array_equal(found[row], threshold(h[row], beta))
    assert jnp.isnan(found[0, 2])
    assert threshold(jnp.arange(3), 1).dtype == DEFAULT
    slope = jax.grad(lambda value: jnp.sum(threshold(value, 0.25)))(jnp.asarray([0.1, 0.9], DEFAULT))
    np.testing.assert_array_equal(slope, [0.0, 1.0])


@pytest.mark.parametrize("name", BY_LOOPS)
def test_a_threshold_that_is_no_number_keeps_nothing(name):
    found = getattr(thresholds, name)(jnp.asarray([[0.3, -2.0]], DEFAULT), jnp.asarray([[jnp.nan]], DEFAULT))
    assert np.all(np.isnan(found))


@pytest.mark.parametrize("name", BY_LOOPS)
@pytest.mark.parametrize("shape", [(2,), (1, 2, 1), (3, 1), (2, 6)])
def test_thresholds_refuse(name, shape):
    with pytest.raises(ValueError, match="expected beta to be one number"):
        getattr(thresholds, name)(jnp.ones((2, 3), DEFAULT), jnp.ones(shape, DEFAULT))
