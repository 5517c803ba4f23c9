"""Laws of filters and their moments: against simulation, closed forms, and what has to be refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnninv_jax import filters
from cnninv_jax.limits import Conv, FilterLaw, L2Pool, Moments
from cnninv_jax.limits.laws import ISOTROPIC, laws_of, moments_of
from cnninv_jax.limits.layers import plan

NAMES = tuple(filters.ENSEMBLES)
#: E w_1^4 / (E w_1^2)^2.
KURTOSIS = {"gaussian": 3.0, "uniform": 1.8, "logistic": 4.2, "laplace": 6.0}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, (2,)), (3, (3, 2))], ids=["2", "18"])
def test_entries_have_the_stated_deviation(name, size):
    channels, length = size
    bank = FilterLaw(name, 0.3).sample(jax.random.key(7), 20_000, channels, length, jnp.float32)
    assert bank.shape == (20_000, channels, *length)
    assert bank.dtype == jnp.float32
    entries = np.asarray(bank, np.float64).reshape(20_000, -1)
    # Per filter: entries of one are independent of those of another, but on a sphere not of each other.
    means, squares = entries.mean(axis=1), (entries**2).mean(axis=1)
    assert abs(means.mean()) < 5 * means.std() / math.sqrt(20_000)
    assert abs(squares.mean() - 0.09) < 5 * max(squares.std(), 1e-8) / math.sqrt(20_000) + 1e-7
    correlations = entries[:, 0] * entries[:, 1]
    assert abs(correlations.mean()) < 5 * correlations.std() / math.sqrt(20_000)


def test_a_filter_on_the_sphere_has_one_norm():
    bank = FilterLaw("sphere", 0.5).sample(jax.random.key(1), 5, 3, (2, 2), jnp.float32)
    norms = np.linalg.norm(np.asarray(bank, np.float64).reshape(5, -1), axis=1)
    np.testing.assert_allclose(norms, 0.5 * math.sqrt(12), rtol=1e-6)


def test_laws_scale_their_filters():
    for name in NAMES:
        one = FilterLaw(name).sample(jax.random.key(3), 4, 2, (3,), jnp.float32)
        other = FilterLaw(name, 2.5).sample(jax.random.key(3), 4, 2, (3,), jnp.float32)
        np.testing.assert_allclose(other, 2.5 * np.asarray(one), rtol=1e-6)


def test_gaussian_moments_are_the_papers():
    found = FilterLaw("gaussian", 0.7).moments(12)
    np.testing.assert_allclose([found.k1, found.k2, found.k4], [0.7 / math.sqrt(2 * math.pi), 0.245, 1.5 * 0.7**4])
    np.testing.assert_allclose([found.K1, found.K2], [math.pi - 1, 5.0])
    assert FilterLaw("gaussian", 0.7).moments(None) == found


@pytest.mark.parametrize("name", ISOTROPIC)
@pytest.mark.parametrize("dimension", [2, 5])
def test_moments_are_those_of_an_answer(name, dimension):
    """E relu(w y)^m = k_m |y|^m (Lemma 5)."""
    law = FilterLaw(name, 0.6)
    y = np.arange(1.0, dimension + 1)
    bank = np.asarray(law.sample(jax.random.key(11), 100_000, 1, (dimension,), jnp.float32), np.float64)
    answers = np.maximum(bank[:, 0] @ y, 0)
    moments = law.moments(dimension)
    for m, k in ((1, moments.k1), (2, moments.k2), (4, moments.k4)):
        powers = answers**m / np.linalg.norm(y) ** m
        assert abs(powers.mean() - k) < 5 * powers.std() / math.sqrt(100_000)


def test_the_sphere_becomes_gaussian():
    limit, gaussian = FilterLaw("sphere", 0.4).moments(None), FilterLaw("gaussian", 0.4).moments(None)
    assert limit == gaussian
    before = math.inf
    for dimension in (2, 8, 32, 128, 512):
        found = FilterLaw("sphere", 0.4).moments(dimension)
        np.testing.assert_allclose(found.k2, gaussian.k2)
        gap = max(abs(found.k1 / gaussian.k1 - 1), abs(found.k4 / gaussian.k4 - 1))
        assert gap < min(before, 3 / dimension)
        # So the bounds with the limit's K_1 and K_2 hold for any dimension.
        assert found.K1 < gaussian.K1
        assert found.K2 < gaussian.K2
        before = gap


def test_sphere_moments_in_closed_form():
    """E w_1^4 = 3 / (n (n + 2)) on the unit sphere; E|w_1| is 2 / pi on a circle and 1 / 2 in three dimensions."""
    for n, absolute in ((2, 2 / math.pi), (3, 0.5)):
        found = FilterLaw("sphere", 1.0).moments(n)  # norm sqrt(n)
        np.testing.assert_allclose(found.k1, absolute * math.sqrt(n) / 2)
        np.testing.assert_allclose(found.k4, 1.5 * n / (n + 2))


@pytest.mark.parametrize("name", sorted(KURTOSIS))
def test_moments_of_any_ensemble(name):
    scale = FilterLaw(name, 0.3).scale(10)
    found = Moments.of(name, scale=scale)
    np.testing.assert_allclose(found.k2, 0.045)
    np.testing.assert_allclose(found.K2, 2 * KURTOSIS[name] - 1)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(ISOTROPIC)))
def test_laws_that_are_not_isotropic_have_no_limit_here(name):
    with pytest.raises(ValueError, match=rf"an isotropic law \(gaussian, sphere\), got '{name}'.*Moments.of"):
        FilterLaw(name).moments(9)


@given(k1=st.floats(0.01, 10), loose=st.tuples(st.floats(1, 5), st.floats(1, 5)))
def test_moments_of_a_law_are_accepted(k1, loose):
    """Jensen: (E|w|)^2 <= E w^2 and (E w^2)^2 <= E w^4."""
    k2 = 2 * k1**2 * loose[0]
    k4 = 2 * k2**2 * loose[1]
    found = Moments(k1, k2, k4)
    np.testing.assert_allclose([found.K1, found.K2], [2 * loose[0] - 1, 2 * loose[1] - 1], rtol=1e-9)
    for broken in ((k1, 0.9 * 2 * k1**2, 10 * k4), (k1, k2, 0.9 * 2 * k2**2), (-k1, k2, k4)):
        with pytest.raises(ValueError, match="moments k_m"):
            Moments(*broken)


@pytest.mark.parametrize("moments", [(0.0, 0.0, 0.0), (math.nan, 1.0, 3.0), (0.4, math.nan, 2.0), (0.4, 0.5, math.nan)])
def test_moments_of_no_law_are_refused(moments):
    with pytest.raises(ValueError, match="moments k_m"):
        Moments(*moments)


def test_unknown_laws_are_refused():
    with pytest.raises(ValueError, match=r"an ensemble among gaussian, .*got 'cauchy'"):
        FilterLaw("cauchy")
    for deviation in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="a positive deviation"):
            FilterLaw("gaussian", deviation)


STEPS = plan((L2Pool(2), Conv((3, 2)), L2Pool(2), Conv(2), Conv(1)), (3, 16, 22))


def test_one_law_for_all_or_one_for_each():
    assert laws_of("sphere", STEPS) == (FilterLaw("sphere"),) * 3
    assert laws_of(FilterLaw("laplace", 0.1), STEPS) == (FilterLaw("laplace", 0.1),) * 3
    mixed = ["gaussian", FilterLaw("sphere", 2.0), Moments(0.4, 0.5, 1.5)]
    assert laws_of(mixed, STEPS) == (FilterLaw("gaussian"), *mixed[1:])
    with pytest.raises(ValueError, match="one for each of the 3 convolutions, got 2"):
        laws_of(["gaussian", "sphere"], STEPS)
    with pytest.raises(ValueError, match="a name, a FilterLaw or Moments, got 3"):
        laws_of(["gaussian", 3, "sphere"], STEPS)


def test_the_first_filters_alone_are_finite():
    law, own = FilterLaw("sphere"), Moments(0.4, 0.5, 1.5)
    found = moments_of(law, STEPS, 3)
    assert found == (law.moments(3 * 6), law.moments(None), law.moments(None))
    assert found[0] != found[1]
    assert moments_of(["gaussian", own, law], STEPS, 3) == (FilterLaw().moments(None), own, law.moments(None))
    with pytest.raises(ValueError, match="isotropic"):
        moments_of(["gaussian", own, "uniform"], STEPS, 3)
