"""Intervals: closed forms, and coverage by simulation at 5 standard errors."""

import numpy as np
import pytest
from scipy import stats

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo.intervals import clopper_pearson


def test_student_by_hand():
    low, high = mc.mean_interval(2.0, 9.0, 4, 0.95)
    half = stats.t.ppf(0.975, 3) * np.sqrt(9 / 4)
    np.testing.assert_allclose((low, high), (2 - half, 2 + half), rtol=1e-12)
    assert np.isnan(mc.mean_interval(2.0, np.nan, 1)).all()


def test_wilson_solves_its_equation_and_agrees_with_scipy():
    for successes, count, level in [(3, 10, 0.95), (50, 400, 0.9), (999, 1000, 0.99)]:
        low, high = mc.wilson(successes, count, level)
        z, p_hat = stats.norm.ppf(0.5 + level / 2), successes / count
        for p in (low, high):
            np.testing.assert_allclose((p_hat - p) ** 2, z**2 * p * (1 - p) / count, rtol=1e-8)
        reference = stats.binomtest(successes, count).proportion_ci(level, "wilson")
        np.testing.assert_allclose((low, high), (reference.low, reference.high), rtol=1e-10)


def test_wilson_at_the_ends():
    low, high = mc.wilson([0, 10, 0], [10, 10, 0])
    assert low[0] == 0
    assert high[1] == 1
    assert 0 < high[0] < 1
    assert 0 < low[1] < 1
    assert np.isnan(low[2])
    assert np.isnan(high[2])


def test_clopper_pearson_solves_its_equations_and_agrees_with_scipy():
    for successes, count, level in [(3, 10, 0.95), (50, 400, 0.9), (999, 1000, 0.99), (0, 7, 0.9), (7, 7, 0.9)]:
        low, high = clopper_pearson(successes, count, level)
        reference = stats.binomtest(successes, count).proportion_ci(level, "exact")
        np.testing.assert_allclose((low, high), (reference.low, reference.high), rtol=1e-10)
        one_low, one = clopper_pearson(successes, count, level, side="lower")
        zero, one_high = clopper_pearson(successes, count, level, side="upper")
        assert (zero, one) == (0, 1)
        if successes > 0:
            np.testing.assert_allclose(stats.binom.sf(successes - 1, count, one_low), 1 - level, rtol=1e-8)
        if successes < count:
            np.testing.assert_allclose(stats.binom.cdf(successes, count, one_high), 1 - level, rtol=1e-8)
        # One side spends all of 1 - level: it is what two sides say at a lower level.
        np.testing.assert_allclose((one_low, one_high), clopper_pearson(successes, count, 2 * level - 1), rtol=1e-10)


def test_clopper_pearson_where_nothing_was_seen():
    low, high = clopper_pearson([0, 0, 5, 0], [10, 10**9, 5, 0], 0.95, side="upper")
    np.testing.assert_allclose(high[:2], -np.expm1(np.log(0.05) / np.array([10, 1e9])), rtol=1e-10)
    assert high[2] == 1
    assert (low[:3] == 0).all()
    assert np.isnan([low[3], high[3]]).all()
    np.testing.assert_allclose(clopper_pearson(5, 5, 0.95, side="lower")[0], 0.05**0.2, rtol=1e-10)
    with pytest.raises(ValueError, match="'lower' or 'upper', got 'one'"):
        clopper_pearson(1, 2, side="one")  # type: ignore[arg-type]


def test_clopper_pearson_of_impossible_counts():
    for side in ("both", "lower", "upper"):
        low, high = clopper_pearson([6, -1, np.nan, 2, 2], [5, 5, 5, np.nan, 5], side=side)
        assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True] * 4 + [False]
    assert np.isnan(clopper_pearson(3, 2)).all()


def test_clopper_pearson_covers_whatever_the_proportion():
    """The exact coverage, a finite sum, is never below the level; Wilson's falls below it."""
    count, level = 40, 0.9
    k, p = np.arange(count + 1), np.linspace(0.001, 0.999, 400)
    law = stats.binom.pmf(k, count, p[:, None])
    for side in ("both", "lower", "upper"):
        low, high = clopper_pearson(k, count, level, side=side)
        assert (law * ((low <= p[:, None]) & (p[:, None] <= high))).sum(1).min() >= level
    low, high = mc.wilson(k, count, level)
    assert (law * ((low <= p[:, None]) & (p[:, None] <= high))).sum(1).min() < level


def test_quantile_ranks_by_the_binomial_law():
    for q, n in [(0.5, 25), (0.9, 40), (0.01, 500)]:
        low, high = mc.quantile_ranks(q, n, 0.95)
        # P(X_(low) <= x_q < X_(high)) = P(low <= Binomial(n, q) <= high - 1)
        assert stats.binom.cdf(high - 1, n, q) - stats.binom.cdf(low - 1, n, q) >= 0.95
    assert mc.quantile_ranks(0.5, 0) == (0, 1)
    assert mc.quantile_ranks(0.0, 10)[0] == 0
    assert mc.quantile_ranks(1.0, 10)[1] == 11


def test_sample_quantile_agrees_with_numpy():
    x = np.random.default_rng(0).normal(size=(301, 4))
    for q in (0.0, 0.05, 0.5, 0.77, 1.0):
        value, low, high = mc.sample_quantile(x, q)
        np.testing.assert_allclose(value, np.quantile(x, q, axis=0), rtol=1e-12)
        assert np.all(low <= value)
        assert np.all(value <= high)
    holes = np.where(x > 1, np.nan, x)
    np.testing.assert_allclose(mc.sample_quantile(holes, 0.3)[0], np.nanquantile(holes, 0.3, axis=0), rtol=1e-12)
    value, low, high = mc.sample_quantile(np.full((5, 1), np.nan), 0.5)
    assert np.isnan(value[0])
    assert (low[0], high[0]) == (-np.inf, np.inf)


def test_histogram_quantile_contains_the_sample_quantile():
    x = np.random.default_rng(1).normal(size=4000)
    edges = np.linspace(-2, 2, 81)
    counts, under, over = np.histogram(x, edges)[0], (x < -2).sum(), (x > 2).sum()
    for q in (0.05, 0.25, 0.5, 0.9):
        value, low, high = mc.histogram_quantile(counts, edges, under, over, q)
        exact, exact_low, exact_high = mc.sample_quantile(x, q)
        assert abs(value - exact) <= edges[1] - edges[0]
        assert low <= exact_low <= exact_high <= high
        assert high - low <= exact_high - exact_low + 2 * (edges[1] - edges[0]) + 1e-12
    value, low, high = mc.histogram_quantile(counts, edges, under, over, 0.001)
    assert np.isnan(value)
    assert low == -np.inf
    assert high == edges[0]
    value, low, high = mc.histogram_quantile(counts, edges, under, over, 0.999)
    assert np.isnan(value)
    assert high == np.inf
    assert np.isnan(mc.histogram_quantile(np.zeros(3), np.arange(4), 0, 0, 0.5)[0])


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage(level):
    rng, repeats, n = np.random.default_rng(2), 20_000, 30
    error = 5 * np.sqrt(level * (1 - level) / repeats)
    x = rng.normal(3.0, 2.0, size=(n, repeats))
    low, high = mc.mean_interval(x.mean(0), x.var(0, ddof=1), n, level)
    assert abs(np.mean((low <= 3) & (high >= 3)) - level) < error

    # Discrete: the exact coverage of Wilson's interval is a finite sum; simulation must agree with it.
    p, count = 0.3, 60
    k = np.arange(count + 1)
    low, high = mc.wilson(k, count, level)
    exact = stats.binom.pmf(k, count, p)[(low <= p) & (p <= high)].sum()
    drawn = rng.binomial(count, p, repeats)
    assert abs(np.mean((low[drawn] <= p) & (p <= high[drawn])) - exact) < error
    assert abs(exact - level) < 0.03

    _, low, high = mc.sample_quantile(x, 0.7, level)
    truth = stats.norm.ppf(0.7, 3, 2)
    assert np.mean((low <= truth) & (truth <= high)) > level - error


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_level(level):
    for call in (mc.mean_interval, mc.wilson, clopper_pearson):
        with pytest.raises(ValueError, match=r"level=0\.95"):
            call(1, 1, *([1] if call is mc.mean_interval else []), level)
    with pytest.raises(ValueError, match="quantile q"):
        mc.quantile_ranks(1.5, 10)
