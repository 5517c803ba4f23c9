"""Tails of eq. (1): closed forms against scipy, a series and enumeration; tilted draws against the closed forms."""

import dataclasses
import decimal
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

from cnninv_jax import montecarlo as mc
from cnninv_jax import rip
from cnninv_jax.rip import tilted
from cnninv_jax.sparsity import SparseCode

SMALL = {"num_filters": 6, "channels": 3, "length": 3, "signal_shape": 8}
WEIGHTED = mc.WeightedProportion()


def series(weights, degrees, threshold, tail):
    """Ruben's mixture of chi-squares (1962): positive terms only, so that small tails keep their digits."""
    w = np.asarray(weights, float)
    w = w[w > 0]
    smallest = w.min()
    gamma, n = 1 - smallest / w, degrees * len(w)
    log_c, u, c, scale = [degrees / 2 * np.log(smallest / w).sum()], np.zeros(len(w)), 1.0, 0.0
    for k in range(1, 4000):
        u = gamma * (u + c)
        c = degrees / 2 * u.sum() / k
        if c == 0:
            break
        if not 1e-200 < c < 1e200:
            u, scale, c = u / c, scale + np.log(c), 1.0
        log_c.append(log_c[0] + scale + np.log(c))
    assert abs(np.exp(special.logsumexp(log_c)) - 1) < 1e-9
    law = stats.chi2.logsf if tail == "upper" else stats.chi2.logcdf
    terms = np.asarray(log_c) + law(threshold / smallest, n + 2 * np.arange(len(log_c)))
    return float(np.exp(special.logsumexp(terms)))


# Weighted sums of chi-squares.


@pytest.mark.parametrize("degrees", [1, 2, 3, 160])
def test_one_chi_square(degrees):
    """From all but certain to 1e-130, on both sides of the mean."""
    for q in degrees * np.array([0.01, 0.2, 0.9, 1.0, 1.1, 1.5, 4.0, 12.0]):
        for tail, law in (("upper", stats.chi2.sf), ("lower", stats.chi2.cdf)):
            found, exact = rip.weighted_chi_square_tail([1.0], degrees, q, tail), law(q, degrees)
            if exact > 1e-290:
                assert abs(found.probability - exact) <= 3e-13 * exact, (q, tail)
                assert found.relative_error < 1e-11


def test_two_exponentials():
    for q in (0.1, 1.0, 10.0, 100.0, 1000.0):
        a, b = 1.0, 0.25
        exact = (a * np.exp(-q / (2 * a)) - b * np.exp(-q / (2 * b))) / (a - b)
        np.testing.assert_allclose(rip.weighted_chi_square_tail([a, b, 0.0], 2, q).probability, exact, rtol=1e-12)


@pytest.mark.parametrize("least", [3e-3, 1e-6])
def test_uneven_pairs_against_eighty_digits(least):
    """Two degrees each: a sum of exponentials with signs, to 80 digits."""
    rng = np.random.default_rng(0)
    w = np.maximum(rng.uniform(size=12) ** 3, least * rng.uniform(1, 2, size=12))
    w /= 2 * w.sum()
    with decimal.localcontext(prec=80):
        exact_w = [decimal.Decimal(float(entry)) for entry in w]
        for q, tail in ((1.5, "upper"), (10.0, "upper"), (40.0, "upper"), (0.5, "lower"), (0.01, "lower")):
            total = decimal.Decimal(0)
            for j, one in enumerate(exact_w):
                others = (one / (one - other) for i, other in enumerate(exact_w) if i != j)
                total += math.prod(others, start=decimal.Decimal(1)) * (-decimal.Decimal(q) / (2 * one)).exp()
            exact = float(total if tail == "upper" else 1 - total)
            found = rip.weighted_chi_square_tail(w, 2, q, tail)
            assert abs(found.probability - exact) <= 1e-13 * exact
            assert found.relative_error < 1e-12


@pytest.mark.parametrize("degrees", [1, 5, 8])
def test_uneven_weights_against_the_series(degrees):
    rng = np.random.default_rng(degrees)
    for _ in range(4):
        w = np.maximum(rng.uniform(size=12) ** 2, 0.03)
        w /= degrees * w.sum()
        for q, tail in ((1.5, "upper"), (3.0, "upper"), (1.05, "lower"), (0.5, "lower"), (0.1, "lower")):
            found = rip.weighted_chi_square_tail(w, degrees, q, tail)
            np.testing.assert_allclose(found.probability, series(w, degrees, q, tail), rtol=1e-11)


def test_rows_and_thresholds_broadcast():
    w = np.random.default_rng(0).uniform(size=(300, 1, 4))
    q = np.array([1.0, 30.0])
    both = rip.weighted_chi_square_tail(w, 2, q)
    assert both.probability.shape == both.relative_error.shape == (300, 2)
    one = rip.weighted_chi_square_tail(w[299, 0], 2, 30.0)
    np.testing.assert_allclose(both.probability[299, 1], one.probability, rtol=1e-12)
    assert one.probability.shape == ()


def test_mistakes_in_sums():
    tail = rip.weighted_chi_square_tail
    for weights in ([-1.0, 2.0], [0.0, 0.0], [np.nan], 1.0, []):
        with pytest.raises(ValueError, match="expected finite weights"):
            tail(weights, 1, 1.0)
    with pytest.raises(ValueError, match="expected a positive threshold"):
        tail([1.0], 1, -1.0)
    with pytest.raises(ValueError, match="degrees of freedom"):
        tail([1.0], 0, 1.0)
    with pytest.raises(ValueError, match="expected tail to be"):
        tail([1.0], 1, 1.0, "both")


# The law of the ratio.


def draw_code(seed, filters, shifts, k, dtype=np.float64):
    """A code of M_k by NumPy."""
    rng = np.random.default_rng(seed)
    blocks = np.sort(rng.choice(filters, k, replace=False)).astype(np.int32)
    places = np.stack([rng.integers(0, n, k) for n in shifts], axis=1).astype(np.int32)
    values = rng.uniform(-1, 1, k).astype(dtype)
    return SparseCode(jnp.asarray(blocks), jnp.asarray(places), jnp.asarray(values), (filters, *shifts), None)


@pytest.mark.parametrize(
    ("shifts", "length", "stride", "channels", "k"),
    [((6,), (3,), 1, 3, 4), ((4,), (4,), 2, 2, 3), ((3, 4), (2, 3), 1, 2, 4), ((3, 2), (2, 2), 2, 1, 3)],
)
def test_weights_are_the_eigenvalues_of_the_covariance(shifts, length, stride, channels, k):
    """x = A w for the filters' i.i.d. entries w: its covariance is A A^T, diagonal, and lambda M-fold."""
    code = draw_code(1, 7, shifts, k)
    signal = tuple((n - 1) * stride + ell for n, ell in zip(shifts, length, strict=True))
    blocks, places, values = (np.asarray(x) for x in (code.filter_indices, code.shifts, code.values))
    columns = []
    for channel, i in itertools.product(range(channels), range(k)):
        for offset in itertools.product(*map(range, length)):
            x = np.zeros((channels, *signal))
            x[(channel, *(places[i] * stride + offset))] = values[i] / math.sqrt(channels * math.prod(length))
            columns.append(x.ravel())
    assert len(set(blocks.tolist())) == k
    dense = np.stack(columns, axis=1)
    covariance = dense @ dense.T / np.square(values).sum()
    found = np.asarray(jax.jit(lambda code: rip.ratio_weights(code, channels, length, stride=stride))(code))
    np.testing.assert_allclose(covariance, np.diag(np.tile(found, channels)), atol=1e-12)
    np.testing.assert_allclose(channels * found.sum(), 1.0)


def test_one_entry_is_one_chi_square():
    code = draw_code(0, 4, (6,), 1)
    for threshold, tail, law in ((1.8, "upper", stats.chi2.sf), (0.2, "lower", stats.chi2.cdf)):
        found = rip.ratio_tail(code, 32, 5, threshold, tail).probability
        np.testing.assert_allclose(found, law(160 * threshold, 160), rtol=1e-12)
    both = rip.failure_probability(code, 32, 5, 0.5).probability
    np.testing.assert_allclose(both, stats.chi2.sf(240, 160) + stats.chi2.cdf(80, 160), rtol=1e-12)


@functools.cache
def many_codes(values):
    """Random codes of two entries, by NumPy."""
    rng, shape = np.random.default_rng(1), (4000, 2)
    entries = {"uniform": rng.uniform(-1, 1, shape), "signs": rng.choice([-1.0, 1.0], shape)}[values]
    blocks = np.tile(np.arange(2, dtype=np.int32), (4000, 1))
    places = rng.integers(0, 6, (*shape, 1)).astype(np.int32)
    return SparseCode(jnp.asarray(blocks), jnp.asarray(places), jnp.asarray(entries), (6, 6), None)


def test_stacked_codes():
    codes = many_codes("uniform")
    together = rip.failure_probability(codes, 3, 3, 0.8).probability
    for index in (0, 3999):
        one = jax.tree.map(lambda x, index=index: x[index], codes)
        np.testing.assert_allclose(together[index], rip.failure_probability(one, 3, 3, 0.8).probability, rtol=1e-12)


def average(values, delta, side):
    exact = rip.failure_probability(many_codes(values), 3, 3, delta, side).probability
    return exact.mean(), exact.std() / math.sqrt(len(exact))


def test_simulated_filters_follow_the_law():
    """|W^T z| / |z| of the library's own draws, random codes, beside the mean of closed forms."""
    count, delta = 40_000, 0.6
    keys = jax.random.split(jax.random.key(0), count)
    draw = functools.partial(rip.draw_ratios, k=2, sampling="plain", **SMALL)
    ratio = np.asarray(jax.jit(jax.vmap(lambda key: draw(key)["model_rip"]))(keys)) ** 2
    for side, failed in (("upper", ratio > 1 + delta), ("lower", ratio < 1 - delta), ("both", abs(ratio - 1) > delta)):
        exact, error = average("uniform", delta, side)
        assert 0.01 < exact < 0.3
        assert abs(failed.mean() - exact) < 5 * math.hypot(failed.std() / math.sqrt(count), error)


@pytest.mark.parametrize("values", ["uniform", pytest.param("signs", marks=pytest.mark.slow)])
def test_the_latent_form_has_the_same_law(values):
    count, delta = 40_000, 0.6
    shapes = rip.latent_shapes(3, 3, 1, 2)
    rng = np.random.default_rng(0)
    latent = {name: jnp.asarray(rng.normal(size=(count, *aval.shape))) for name, aval in shapes.items()}
    ratio = jax.jit(jax.vmap(lambda one: rip.ratio_of_latent(one, 8, values=values)))(latent)
    failed = np.asarray(rip.deviation(ratio, "both")) > delta
    exact, error = average(values, delta, "both")
    assert abs(failed.mean() - exact) < 5 * math.hypot(failed.std() / math.sqrt(count), error)


def test_the_latent_form_of_a_given_code():
    code = draw_code(3, 6, (6,), 3)
    filters = np.random.default_rng(0).normal(size=(3, 2, 3))
    x = np.zeros((2, 8))
    for i in range(3):
        start = int(code.shifts[i, 0])
        x[:, start : start + 3] += float(code.values[i]) * filters[i] / math.sqrt(6)
    expected = np.square(x).sum() / np.square(np.asarray(code.values)).sum()
    found = rip.ratio_of_latent({"filters": jnp.asarray(filters)}, 8, code=code)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# Tilted draws.


def test_tilts_solve_their_equation():
    """Newton's steps from the bound, against brentq; also where one weight dwarfs the others."""
    rng = np.random.default_rng(0)
    rows = [np.full(8, 1.0), rng.uniform(size=8), np.array([1.0] + 7 * [1e-6]), rng.uniform(size=8) ** 6]
    tilts = {channels: jax.jit(functools.partial(tilted._tilt, channels=channels)) for channels in (1, 32)}
    for row in rows:
        for channels, threshold in itertools.product((1, 32), (0.05, 0.5, 0.95, 1.05, 1.5, 4.0, 20.0)):
            w = row / (channels * row.sum())
            theta, cumulant, spread = tilts[channels](jnp.asarray(w), threshold=jnp.asarray(threshold))
            edge = 1 / (2 * w.max())
            exact = optimize.brentq(
                lambda s, w=w, channels=channels, threshold=threshold: (
                    (channels * w / (1 - 2 * s * w)).sum() - threshold
                ),
                -0.5 * channels * 8 / threshold / 1.0 - 1.0,
                edge * (1 - 1e-12),
                xtol=1e-14,
                rtol=1e-14,
            )
            assert float(theta) < edge
            np.testing.assert_allclose(theta, exact, rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(cumulant, -channels / 2 * np.log1p(-2 * float(theta) * w).sum(), rtol=1e-9)
            np.testing.assert_allclose(spread, (2 * channels * w**2 / (1 - 2 * float(theta) * w) ** 2).sum(), rtol=1e-9)


TRACES = []


def contribution(delta, key, **options):
    TRACES.append(1)
    out = rip.draw_tail(key, delta=delta, dtype=jnp.float32, **options)
    return {"failure": mc.log_contribution(out["failure"], out["log_weight"]), "weight": out["log_weight"]}


def contribution_of_code(delta, code, key):
    out = rip.draw_tail_of_code(key, code, 32, 5, delta)
    return {"failure": mc.log_contribution(out["failure"], out["log_weight"]), "weight": out["log_weight"]}


def estimate(draw, num_draws=20_000):
    statistics = {"failure": WEIGHTED, "weight": WEIGHTED}
    return mc.run(draw, 0, num_draws, chunk_size=2500, lanes=64, statistics=statistics, progress=False)


def agrees(result, exact, relative):
    numbers = result["failure"]
    mc.check_effective_sample_size(result, "failure", weights="weight")
    assert numbers["probability_standard_error"] < relative * exact
    return abs(numbers["probability"] - exact) < 5 * numbers["probability_standard_error"]


@pytest.mark.parametrize(
    ("side", "delta"), [("both", 0.8), pytest.param("lower", 0.52, marks=pytest.mark.slow)]
)  # fmt: skip
def test_one_entry_far_below_one_in_a_hundred_million(side, delta):
    """Fig. 2's filters: M l = 160 degrees of freedom."""
    draw = jax.tree_util.Partial(
        contribution, jnp.float32(delta), num_filters=96, channels=32, length=5, signal_shape=32, k=1, side=side,
        candidates=1,
    )  # fmt: skip
    exact = stats.chi2.cdf(160 * (1 - delta), 160) + (stats.chi2.sf(160 * (1 + delta), 160) if side == "both" else 0)
    assert exact < 1e-8
    assert agrees(estimate(draw), exact, 0.04)


def test_a_given_code_to_one_in_a_trillion():
    code = draw_code(5, 96, (28,), 10, np.float32)
    exact = float(rip.failure_probability(code, 32, 5, 0.6).probability)
    assert exact < 1e-12
    assert agrees(estimate(jax.tree_util.Partial(contribution_of_code, jnp.float32(0.6), code)), exact, 0.04)


def exact_of_two_signs(delta, side):
    """Codes of two signs: the shifts decide, and there are 36 pairs of them."""
    total = 0.0
    for pair in itertools.product(range(6), repeat=2):
        code = SparseCode(jnp.arange(2), jnp.asarray(pair)[:, None], jnp.ones(2), (6, 6), None)
        total += float(rip.failure_probability(code, 3, 3, delta, side).probability) / 36
    return total


@functools.cache
def seven(candidates, delta=7.0):
    """P(ratio > 8) for random codes of two signs."""
    draw = jax.tree_util.Partial(
        contribution, jnp.float32(delta), k=2, values="signs", side="upper", candidates=candidates, defensive=0.2,
        **SMALL,
    )  # fmt: skip
    return estimate(draw)


@pytest.mark.parametrize("candidates", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_random_codes_against_enumeration(candidates):
    exact = exact_of_two_signs(7.0, "upper")
    assert exact < 1e-11
    assert agrees(seven(candidates), exact, 0.09)


@pytest.mark.slow
def test_candidates_make_rare_codes_common_and_weights_are_bounded():
    few, many = seven(1), seven(8)
    assert many["failure"]["effective_hits"] > 2 * few["failure"]["effective_hits"]
    for result in (few, many):
        highest = result["weight"]["probability"] * result["weight"]["count"] * result["weight"]["largest_share"]
        assert 4.0 < highest <= 5.0 * (1 + 1e-5)


def test_conditional_average_against_enumeration():
    count = 4000
    propose = jax.vmap(lambda key: rip.draw_code_for_tail(key, k=2, delta=7.0, side="upper", values="signs", **SMALL))
    codes, log_weights = jax.jit(propose)(jax.random.split(jax.random.key(0), count))
    terms = rip.failure_probability(codes, 3, 3, 7.0, "upper").probability * np.exp(np.asarray(log_weights))
    error = terms.std() / math.sqrt(count)
    exact = exact_of_two_signs(7.0, "upper")
    assert error < 0.02 * exact
    assert abs(terms.mean() - exact) < 5 * error
    assert np.abs(np.exp(log_weights).mean() - 1) < 5 * np.exp(log_weights).std() / math.sqrt(count)


def test_other_deltas_compile_nothing():
    seven(8)
    before = len(TRACES)
    found = [float(seven(8, delta)["failure"]["probability"]) for delta in (2.0, 4.0, 8.0)]
    assert len(TRACES) == before
    for delta, probability in zip((2.0, 4.0, 8.0), found, strict=True):
        assert abs(probability / exact_of_two_signs(delta, "upper") - 1) < 0.2


# What is refused.


def test_mistakes_in_one_sentence():
    code = draw_code(0, 6, (6,), 2)
    twice = SparseCode(jnp.zeros(2, np.int32), jnp.zeros((2, 1), np.int32), jnp.ones(2), (6, 6), None)
    pooled = dataclasses.replace(code, pool=(2,))
    with pytest.raises(ValueError, match="expected entries in different filters"):
        rip.ratio_tail(twice, 3, 3, 1.5)
    with pytest.raises(ValueError, match="expected whole filter responses as blocks"):
        rip.ratio_weights(pooled, 3, 3)
    with pytest.raises(ValueError, match="expected a code with a non-zero entry"):
        rip.ratio_tail(dataclasses.replace(code, values=jnp.zeros(2)), 3, 3, 1.5)
    for side, delta in (("both", 1.0), ("lower", 0.0), ("upper", -1.0), ("both", math.nan)):
        with pytest.raises(ValueError, match="expected delta to be"):
            rip.failure_probability(code, 3, 3, delta, side)
    with pytest.raises(ValueError, match="expected side to be"):
        rip.failure_probability(code, 3, 3, 0.5, "left")
    for options, said in (
        ({"defensive": 1.0}, "expected a defensive share"),
        ({"candidates": 0}, "expected candidates"),
        ({"values": "cauchy"}, "expected values"),
        ({"dtype": jnp.bfloat16}, "expected float32 or float64"),
        ({"k": 7}, "expected 1 <= k <= 6"),
        ({"signal_shape": 2}, "expected"),
    ):
        with pytest.raises(ValueError, match=said):
            jax.eval_shape(
                lambda key, options=options: rip.draw_tail(key, **{"k": 2, "delta": 0.5, **SMALL, **options}),
                jax.random.key(0),
            )
