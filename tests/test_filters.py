"""Ensembles: shapes, laws and moments, against scipy's integrals and against simulation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from cnninv_jax import filters

X64 = jax.config.read("jax_enable_x64")
NAMES = list(filters.ENSEMBLES)
LAWS = {
    "gaussian": scipy.stats.norm,
    "uniform": scipy.stats.uniform(-1, 2),
    "logistic": scipy.stats.logistic,
    "laplace": scipy.stats.laplace,
}


def sphere_law(dimension):
    """One coordinate of a uniform point of the unit sphere: density ~ (1 - x^2)^((N - 3)/2)."""
    return scipy.stats.beta((dimension - 1) / 2, (dimension - 1) / 2, loc=-1, scale=2)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_dtypes(name):
    sample = filters.ENSEMBLES[name]
    keys = iter(jax.random.split(jax.random.key(0), 3))
    bank = sample(next(keys), 4, 3, 5)
    assert bank.shape == (4, 3, 5)
    assert bank.dtype == (np.float64 if X64 else np.float32)
    assert sample(next(keys), 4, 3, (5, 2)).shape == (4, 3, 5, 2)
    half = sample(next(keys), 4, 3, 5, dtype=jnp.bfloat16, normalize=True)
    assert half.dtype == jnp.bfloat16
    norms = np.linalg.norm(np.asarray(half, np.float64).reshape(4, -1), axis=1)
    np.testing.assert_allclose(norms, 1, atol=4 * float(jnp.finfo(jnp.bfloat16).eps))


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_multiplies(name):
    sample = filters.ENSEMBLES[name]
    one = sample(jax.random.key(1), 4, 3, 5, scale=1.0)
    np.testing.assert_allclose(sample(jax.random.key(1), 4, 3, 5, scale=0.25), one / 4)
    traced = jax.jit(lambda scale: sample(jax.random.key(1), 4, 3, 5, scale=scale))(2.0)
    np.testing.assert_allclose(traced, 2 * one, rtol=1e-6)
    unit = sample(jax.random.key(1), 4, 3, 5)
    np.testing.assert_allclose(unit, one * filters.unit_scale(name, 15), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_default_filters_have_unit_expected_squared_norm(name):
    bank = np.asarray(filters.ENSEMBLES[name](jax.random.key(2), 20_000, 2, (3, 2)), np.float64)
    squares = (bank**2).sum(axis=(1, 2, 3))
    assert abs(squares.mean() - 1) <= 5 * squares.std() / np.sqrt(squares.size) + 1e-6
    assert abs(bank.mean()) < 5 * bank.std() / np.sqrt(bank.size)


@pytest.mark.parametrize("name", LAWS)
def test_entries_follow_the_law(name):
    bank = np.asarray(filters.ENSEMBLES[name](jax.random.key(3), 500, 4, 5, scale=1.0), np.float64)
    assert scipy.stats.kstest(bank.ravel(), LAWS[name].cdf).pvalue > 1e-6
    wrong = LAWS["logistic" if name == "gaussian" else "gaussian"]
    assert scipy.stats.kstest(bank.ravel(), wrong.cdf).pvalue < 1e-6


@pytest.mark.slow
def test_logistic_entries_have_no_outlier_in_float32():
    """Where the uniform number is 0, the logarithm of the smallest float32 would stand: -87, once in 2^23 entries."""
    draw = jax.jit(jax.vmap(lambda key: jnp.min(filters.logistic(key, 1, 1, 2**18, scale=1.0, dtype=jnp.float32))))
    lowest = np.asarray([draw(jax.random.split(key, 4)) for key in jax.random.split(jax.random.key(0), 64)])
    # 2^26 entries: below -20 lies less than one in 10^8.
    assert -20 < lowest.min() < -14


def test_sphere_has_fixed_norm_and_the_law_of_one_coordinate():
    bank = np.asarray(filters.sphere(jax.random.key(3), 5_000, 2, 3, scale=2.0), np.float64)
    np.testing.assert_allclose((bank**2).sum(axis=(1, 2)), 4, rtol=1e-5)
    for coordinate in bank.reshape(5_000, -1).T:
        assert scipy.stats.kstest(coordinate / 2, sphere_law(6).cdf).pvalue > 1e-6


@pytest.mark.parametrize("m", [0, 0.5, 1, 2, 3, 4, 6])
@pytest.mark.parametrize("name", NAMES)
def test_moments_against_integration(name, m):
    law = LAWS[name] if name != "sphere" else sphere_law(12)
    end = 1 if name in ("uniform", "sphere") else np.inf
    integral, error = scipy.integrate.quad(lambda w: w**m * law.pdf(w), 0, end, epsabs=0, epsrel=1e-11, limit=200)
    moment = filters.moment(name, m, dimension=12 if name == "sphere" else None)
    # E|w|^m / 2 is the integral over positive w.
    assert abs(moment - integral) < 1e-9 * integral + 2 * error
    scaled = filters.moment(name, m, scale=0.3, dimension=12 if name == "sphere" else None)
    assert math.isclose(scaled, moment * 0.3**m, rel_tol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "sphere"])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_moments_give_lemma_5(name, m):
    """E relu(w y)^m = k_m |y|^m for isotropic filters (Random DCN, Lemma 5)."""
    bank = np.asarray(filters.ENSEMBLES[name](jax.random.key(4), 100_000, 2, 3, scale=0.7), np.float64)
    patch = np.linspace(-1, 2, 6)
    values = np.maximum(bank.reshape(-1, 6) @ patch, 0) ** m
    expected = filters.moment(name, m, scale=0.7, dimension=6) * np.linalg.norm(patch) ** m
    assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(values.size)


def test_moment_ratios():
    np.testing.assert_allclose(filters.moment_ratio("gaussian"), (np.pi - 1, 5), rtol=1e-12)
    # By hand: uniform k_1, k_2, k_4 = 1/4, 1/6, 1/10; Laplace 1/2, 1, 12.
    np.testing.assert_allclose(filters.moment_ratio("uniform"), (5 / 3, 13 / 5), rtol=1e-12)
    np.testing.assert_allclose(filters.moment_ratio("laplace"), (3, 11), rtol=1e-12)
    # In many dimensions a coordinate of the sphere is Gaussian.
    np.testing.assert_allclose(filters.moment_ratio("sphere", dimension=10**6), (np.pi - 1, 5), rtol=1e-4)


def test_random_dcn_scales():
    assert set(filters.RANDOM_DCN_SCALES) == set(LAWS)
    variance = 2 * filters.moment("laplace", 2, scale=filters.RANDOM_DCN_SCALES["laplace"])
    assert math.isclose(variance, 2 * 0.015**2)


def test_normalize():
    bank = jax.random.normal(jax.random.key(5), (3, 2, 4))
    unit = np.asarray(filters.normalize(bank))
    np.testing.assert_allclose(np.linalg.norm(unit.reshape(3, -1), axis=1), 1, rtol=1e-6)
    for factor in (1e-30, 1e30):  # the squares of these over- and underflow in float32
        scaled = filters.normalize(bank.astype(np.float32) * np.float32(factor))
        np.testing.assert_allclose(scaled, unit, rtol=1e-5)
    zero = filters.normalize(bank.at[1].set(0))
    assert np.all(np.asarray(zero[1]) == 0)
    np.testing.assert_array_equal(zero[0], unit[0])
    assert filters.normalize(np.ones((2, 1, 4), np.int32)).tolist() == [[[0.5] * 4]] * 2


def test_the_gradient_of_normalize_is_finite_at_zero_filters():
    bank = jax.random.normal(jax.random.key(5), (3, 2, 4)).at[1].set(0)
    gradient = jax.grad(lambda bank: jnp.sum(jnp.sin(filters.normalize(bank))))(bank)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_keys(name):
    sample = filters.ENSEMBLES[name]
    together = jax.vmap(lambda key: sample(key, 2, 1, 3))(jax.random.split(jax.random.key(6), 3))
    assert len(np.unique(np.asarray(together))) == together.size
    second = jax.random.split(jax.random.key(6), 3)[1]
    np.testing.assert_allclose(together[1], sample(second, 2, 1, 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 3), "num_filters"),
        ((2, -1, 3), "channels"),
        ((2, 1.5, 3), "channels"),
        ((2, 1, (3, 0)), "length"),
        ((2, 1, ()), "spatial axis"),
    ],
)
def test_refused_sizes(arguments, message):
    for sample in filters.ENSEMBLES.values():
        with pytest.raises(ValueError, match=message):
            sample(jax.random.key(0), *arguments)


def test_other_refusals():
    with pytest.raises(ValueError, match="gaussian, uniform, logistic, laplace, sphere, got 'cauchy'"):
        filters.moment("cauchy", 1)
    with pytest.raises(ValueError, match="got 'cauchy'"):
        filters.unit_scale("cauchy", 3)
    with pytest.raises(ValueError, match="dimension"):
        filters.moment("sphere", 2)
    with pytest.raises(ValueError, match="order m"):
        filters.moment("gaussian", -1)
    with pytest.raises(ValueError, match="floating-point dtype"):
        filters.gaussian(jax.random.key(0), 1, 1, 3, dtype=np.int32)


def test_gaussian_entries_are_independent_at_odd_sizes():
    # 5 * 3 * 3 = 45 numbers come in pairs, one of which is half used.
    draw = functools.partial(filters.gaussian, num_filters=5, channels=3, length=3, dtype=np.float32)
    banks = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(9), 2000)))
    flat = banks.reshape(2000, -1).astype(np.float64) * 3
    assert np.max(np.abs(flat.mean(axis=0))) < 5 / np.sqrt(2000)
    assert np.max(np.abs(flat.T @ flat / 2000 - np.eye(45))) < 5.5 * np.sqrt(2 / 2000)
