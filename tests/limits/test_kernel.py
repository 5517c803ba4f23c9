"""The ReLU kernel of Lemma 5 against its formula, and the window sums against loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.limits import _kernel


def formula(rho):
    """Lemma 5's kernel and its derivative, in long doubles from the angle, without its cancellation near rho = -1."""
    rho = rho.astype(np.longdouble)
    small = np.abs(rho)
    theta = 2 * np.arcsin(np.sqrt((1 - small) / 2))
    terms = [
        (-1) ** (n + 1) * 2 * n / np.longdouble(math.factorial(2 * n + 1)) * theta ** (2 * n + 1) for n in range(1, 24)
    ]
    value = np.maximum(rho, 0) + sum(reversed(terms)) / np.longdouble(np.pi)
    slope = np.where(rho < 0, theta / np.longdouble(np.pi), 1 - theta / np.longdouble(np.pi))
    return value, slope


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_polynomial_is_the_formula_to_a_few_units_in_the_last_place(dtype):
    rho = np.concatenate([np.linspace(-1, 1, 4001), 1 - np.logspace(-15, -1, 300), np.logspace(-15, -1, 300) - 1])
    rho = rho.astype(dtype)
    value, slope = formula(rho)
    eps = np.finfo(dtype).eps
    found = np.asarray(_kernel.kappa(jnp.asarray(rho)))
    assert found.dtype == dtype
    assert np.max(np.abs(found - value)) < 2 * eps
    assert np.max(np.abs(found - value) / np.maximum(value, np.finfo(dtype).tiny)) < 16 * eps
    assert np.max(np.abs(np.asarray(_kernel.kappa_slope(jnp.asarray(rho))) - slope)) < 4 * eps


def test_the_kernel_at_its_ends():
    ends = jnp.asarray([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(_kernel.kappa(ends), [0, 1 / np.pi, 1], atol=1e-15)
    np.testing.assert_allclose(_kernel.kappa_slope(ends), [0, 0.5, 1], atol=1e-15)


def test_the_kernel_is_the_expectation_over_gaussian_filters():
    first, second = np.asarray([1.0, 2.0, -0.5]), np.asarray([0.3, -1.0, 2.0])
    w = np.random.default_rng(0).normal(size=(400_000, 3))
    products = np.maximum(w @ first, 0) * np.maximum(w @ second, 0)
    norms = np.linalg.norm(first), np.linalg.norm(second)
    found = 0.5 * _kernel.relu_covariance(jnp.asarray(first @ second), *norms, 1 / norms[0], 1 / norms[1])
    assert abs(products.mean() - found) < 5 * products.std() / np.sqrt(len(products))


def test_derivatives_of_the_covariance_are_those_of_its_formula():
    def covariance(c, a, b):
        first, second = _kernel.root(a), _kernel.root(b)
        return _kernel.relu_covariance(c, first, second, _kernel.inverse(first), _kernel.inverse(second))

    def plain(c, a, b):
        angle = jnp.arccos(c / jnp.sqrt(a * b))
        return ((jnp.pi - angle) * jnp.cos(angle) + jnp.sin(angle)) / jnp.pi * jnp.sqrt(a * b)

    for point in ((0.3, 1.2, 0.7), (-0.5, 0.4, 2.0), (0.0, 1.0, 1.0)):
        np.testing.assert_allclose(covariance(*point), plain(*point), rtol=1e-13)
        np.testing.assert_allclose(
            jax.grad(covariance, (0, 1, 2))(*point), jax.grad(plain, (0, 1, 2))(*point), rtol=1e-10
        )


@pytest.mark.parametrize(
    "point", [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (-1.0, 1.0, 1.0)]
)
def test_derivatives_are_finite_where_there_is_no_angle(point):
    def covariance(c, a, b):
        first, second = _kernel.root(a), _kernel.root(b)
        return _kernel.relu_covariance(c, first, second, _kernel.inverse(first), _kernel.inverse(second))

    value, slopes = jax.value_and_grad(covariance, (0, 1, 2))(*point)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slopes))
    if 0.0 in point[1:]:
        assert value == 0


def test_root_passes_nan_and_infinity_on():
    found = np.asarray(_kernel.root(jnp.asarray([0.0, 4.0, np.inf, np.nan])))
    np.testing.assert_array_equal(found, [0, 2, np.inf, np.nan])
    assert jax.grad(_kernel.root)(0.0) == 0


@pytest.mark.parametrize(
    ("window", "stride", "margins"),
    [((3, 2), (1, 1), ((0, 0), (0, 0))), ((3, 3), (2, 1), ((1, 1), (1, 0))), ((1, 7), (3, 1), ((0, -1), (3, 3)))],
    ids=["valid", "same", "long"],
)
def test_window_means_are_those_of_loops(window, stride, margins):
    maps = np.random.default_rng(0).normal(size=(2, 8, 9))
    padded = np.pad(maps, ((0, 0), *((low, max(high, 0)) for low, high in margins)))
    counts = [
        (size + low + high - ell) // by + 1
        for size, (low, high), ell, by in zip((8, 9), margins, window, stride, strict=True)
    ]
    expected = np.asarray([
        [[plane[i * stride[0] : i * stride[0] + window[0], j * stride[1] : j * stride[1] + window[1]].mean()
          for j in range(counts[1])] for i in range(counts[0])]
        for plane in padded
    ])  # fmt: skip
    np.testing.assert_allclose(
        _kernel.window_means(jnp.asarray(maps), window, stride, margins), expected, rtol=1e-12, atol=1e-14
    )
