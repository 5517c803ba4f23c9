"""Weighted proportions: against NumPy in float64, against known tails, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo.accumulators import Leaf
from cnninv_jax.montecarlo.importance import LEAST_EFFECTIVE_SIZE

from . import draws

quiet = functools.partial(mc.run, progress=False)
WEIGHTED = mc.WeightedProportion()
LOWEST = np.finfo(np.float32).min


def shifted(shift, key, level=6.0, shape=()):
    """P(N(0, 1) > level) by N(shift, 1) draws."""
    x = jax.random.normal(key, shape, jnp.float32) + shift
    log_weight = shift * (0.5 * shift - x)
    return {"tail": mc.log_contribution(x > level, log_weight), "weight": log_weight}


def at_the_level(level, key):
    return shifted(level, key, level)


def run_shifted(shift, num_draws, seed=0, **options):
    draw = jax.tree_util.Partial(shifted, jnp.float32(shift))
    return quiet(draw, seed, num_draws, statistics={"tail": WEIGHTED, "weight": WEIGHTED}, **options)


def spread(scale, key):
    """Log contributions over many orders of magnitude, some of them zero, in an array."""
    first, second = jax.random.split(key)
    log_weight = scale * jax.random.normal(first, (2, 3), jnp.float32)
    return {"y": mc.log_contribution(jax.random.bernoulli(second, 0.3, (2, 3)), log_weight)}


def expected(logs):
    """The finalised numbers by definition, in float64, of log contributions [n, ...]."""
    logs = np.asarray(logs, np.float64)
    hit = logs > LOWEST
    peak = np.where(hit, logs, -np.inf).max(0)
    y = np.where(hit, np.exp(logs - peak), 0.0)
    n = len(y)
    return {
        "probability": y.mean(0) * np.exp(peak),
        "probability_standard_error": y.std(0, ddof=1) / np.sqrt(n) * np.exp(peak),
        "hits": hit.sum(0),
        "effective_hits": y.sum(0) ** 2 / (y**2).sum(0),
        "largest_share": 1.0 / y.sum(0),
    }


@pytest.mark.parametrize(("scale", "block", "lanes"), [(0.5, 64, 16), (5.0, 64, 16), (80.0, 64, 16), (5.0, 1000, 8)])
def test_matches_numpy_in_float64(scale, block, lanes):
    result = quiet(
        jax.tree_util.Partial(spread, jnp.float32(scale)), 3, 900,
        chunk_size=block, lanes=lanes, statistics={"y": WEIGHTED}, keep=("y",),
    )  # fmt: skip
    for name, value in expected(result.draws["y"]).items():
        np.testing.assert_allclose(result["y"][name], value, rtol=2e-5, err_msg=name)
    assert result["y"]["count"].shape == (2, 3)


def test_scale_does_not_matter():
    """Weights of 1e-4000 overflow nothing; what depends on their ratios only stays as it is."""

    def moved(offset, key):
        return {"y": spread(jnp.float32(2.0), key)["y"] + offset}

    here, far, near = (
        quiet(jax.tree_util.Partial(moved, jnp.float32(offset)), 3, 500, statistics={"y": WEIGHTED})["y"]
        for offset in (0.0, -9000.0, 500.0)
    )
    assert np.all(far["probability"] == 0)
    for name in ("hits", "effective_hits", "largest_share"):
        # The offset costs digits of the float32 logarithm: 9000 is known to 5e-4.
        np.testing.assert_allclose(far[name], here[name], rtol=5e-3)
        np.testing.assert_allclose(near[name], here[name], rtol=1e-3)
    np.testing.assert_allclose(near["probability"], here["probability"] * np.exp(500.0), rtol=1e-3)


def test_zero_is_the_smallest_number_and_minus_infinity_is_not_lost():
    log_weight = jnp.asarray([0.5, -jnp.inf, jnp.nan, 1.0], jnp.float32)
    np.testing.assert_array_equal(
        mc.log_contribution(jnp.asarray([True, True, True, False]), log_weight), [0.5, LOWEST, np.nan, LOWEST]
    )

    def draw(key):
        x = jax.random.uniform(key, (), jnp.float32)
        return {"y": jnp.where(x < 0.25, jnp.nan, mc.log_contribution(x > 0.5, jnp.where(x > 0.75, -jnp.inf, 0.0)))}

    result = quiet(draw, 0, 4000, statistics={"y": WEIGHTED}, keep="y")
    numbers = result["y"]
    assert numbers["non_finite"] == np.isnan(result.draws["y"]).sum() > 800
    assert numbers["count"] + numbers["non_finite"] == 4000
    np.testing.assert_allclose(numbers["probability"], numbers["hits"] / numbers["count"])
    assert "non-finite weights" in mc.weight_note(numbers, "y")


def test_half_precision_keeps_its_own_zero():
    def draw(key):
        x = jax.random.normal(key, (), jnp.float32)
        return {"y": mc.log_contribution(x > 0, jnp.zeros((), jnp.bfloat16))}

    numbers = quiet(draw, 0, 2000, statistics={"y": WEIGHTED})["y"]
    assert 850 < numbers["hits"] < 1150
    np.testing.assert_allclose(numbers["probability"], numbers["hits"] / 2000)


@pytest.mark.timeout(120)
def test_devices_do_not_change_a_bit():
    one, two, four = (run_shifted(6.0, 1234, chunk_size=100, lanes=16, mesh=draws.mesh(count)) for count in (1, 2, 4))
    for other in (two, four):
        for leaf in ("tail", "weight"):
            for name, value in one[leaf].items():
                assert np.asarray(value).tobytes() == np.asarray(other[leaf][name]).tobytes()


def test_blocks_change_only_the_rounding():
    first, other = (run_shifted(6.0, 1000, chunk_size=size)["tail"] for size in (100, 9))
    for name, value in first.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-5)


def test_journal_gives_the_same_bits(tmp_path):
    fresh = run_shifted(6.0, 700, chunk_size=100, out=tmp_path / "run")
    read = run_shifted(6.0, 700, chunk_size=100, out=tmp_path / "run")
    assert read.provenance["resumed_blocks"] == 7
    assert all(fresh["tail"][name] == read["tail"][name] for name in fresh["tail"])


def test_a_sweep_of_proposals_compiles_once():
    traces = []

    def counted(shift, key):
        traces.append(1)
        return shifted(shift, key)

    for shift in np.linspace(4.0, 7.0, 12):
        draw = jax.tree_util.Partial(counted, jnp.float32(shift))
        quiet(draw, 0, 100, chunk_size=100, statistics={"tail": WEIGHTED, "weight": WEIGHTED})
    assert len(traces) == 1


@pytest.mark.parametrize("level", [3.0, 6.0, 9.0, 30.0])
def test_normal_tails(level):
    """Down to 5e-198, far below what float32 holds."""
    draw = jax.tree_util.Partial(at_the_level, jnp.float32(level))
    result = quiet(draw, 1, 40_000, statistics={"tail": WEIGHTED})
    numbers = result["tail"]
    exact = stats.norm.sf(level)
    mc.check_effective_sample_size(result, "tail")
    assert abs(numbers["probability"] - exact) < 5 * numbers["probability_standard_error"]
    assert numbers["probability_standard_error"] < 0.05 * exact


# What is refused.


def test_a_bad_proposal_is_refused():
    with pytest.raises(mc.DegenerateWeights, match=r"expected at least 100 effective hits, got \d+\.\d \(\d+ hits"):
        mc.check_effective_sample_size(run_shifted(3.0, 5000), "tail")
    with pytest.raises(mc.DegenerateWeights, match="no draw reached the event"):
        mc.check_effective_sample_size(run_shifted(0.0, 5000), "tail")
    # Drawn beyond the event: many hits, but a handful of them carries the sum.
    beyond = run_shifted(10.0, 5000)
    assert beyond["tail"]["hits"] > 4000
    with pytest.raises(mc.DegenerateWeights, match="the largest"):
        mc.check_effective_sample_size(beyond, "tail")
    good = run_shifted(6.0, 5000)
    mc.check_effective_sample_size(good, "tail")
    assert good["tail"]["effective_hits"] > LEAST_EFFECTIVE_SIZE


def mixture(key, forgotten=0.0):
    """Half of the draws nominal, half from N(1.5, 1): all weights are at most 2."""
    choice, noise = jax.random.split(key)
    nominal = jax.random.bernoulli(choice, 0.5)
    x = jax.random.normal(noise, (), jnp.float32) + jnp.where(nominal, 0.0, 1.5)
    half = np.float32(np.log(0.5))
    log_weight = -jnp.logaddexp(half, half + 1.5 * x - 1.125 + forgotten)
    return {"tail": mc.log_contribution(x > 3, log_weight), "weight": log_weight}


@pytest.mark.parametrize("forgotten", [0.0, -0.2, 0.2])
def test_wrong_weights_are_caught_by_their_mean(forgotten):
    draw = functools.partial(mixture, forgotten=forgotten)
    result = quiet(draw, 0, 20_000, statistics={"tail": WEIGHTED, "weight": WEIGHTED})
    mc.check_effective_sample_size(result, "tail")
    if forgotten:
        with pytest.raises(mc.DegenerateWeights, match="expected weights of mean 1"):
            mc.check_effective_sample_size(result, "tail", weights="weight")
    else:
        mc.check_effective_sample_size(result, "tail", weights="weight")
        assert abs(result["weight"]["probability"] - 1) < 5 * result["weight"]["probability_standard_error"]


def test_even_contributions_need_no_hundred():
    def note(values):
        numbers = {name: np.asarray(value) for name, value in expected(np.log(values)).items()}
        return mc.weight_note({**numbers, "count": len(values), "non_finite": 0}, "x")

    assert note(np.linspace(1.0, 2.0, 20)) == ""
    assert "expected at least 100" in note(np.linspace(1.0, 2.0, 8))
    assert "expected at least 100" in note(np.append(np.ones(60), 40.0))
    assert note(np.append(np.ones(400), 4.0)) == ""


def test_the_worst_element_of_an_array_speaks():
    def draw(key):
        x = jax.random.normal(key, (), jnp.float32) + 6.0
        return {"tail": mc.log_contribution(x > jnp.asarray([5.0, 6.0, 40.0], jnp.float32), (18.0 - 6.0 * x)[None])}

    result = quiet(draw, 0, 4000, statistics={"tail": WEIGHTED})
    assert "no draw reached the event" in mc.weight_note(result["tail"], "tail")
    low, high = interval(result["tail"])
    assert np.isfinite(low[:2]).all()
    assert np.isnan([low[2], high[2]]).all()


def test_mistakes_in_one_sentence():
    with pytest.raises(ValueError, match=r"expected a floating leaf 'value' for WeightedProportion\(\), got int32"):
        WEIGHTED.check(Leaf("value", (), np.dtype(np.int32)))
    plain = quiet(draws.scalar, 0, 100)
    with pytest.raises(ValueError, match=r"expected WeightedProportion\(\) for 'value'"):
        mc.check_effective_sample_size(plain, "value")
    with pytest.raises(ValueError, match="confidence level"):
        mc.weighted_interval(1.0, 0.1, 100.0, 95.0)


# The interval.


def interval(numbers, level=0.95):
    return mc.weighted_interval(
        numbers["probability"], numbers["probability_standard_error"], numbers["effective_hits"], level
    )


def test_interval_by_hand():
    low, high = mc.weighted_interval([1e-9, 2.0], [1e-10, 0.0], [50.0, 7.0])
    t = stats.t.ppf(0.975, 49)
    np.testing.assert_allclose([low[0], high[0]], [1e-9 * np.exp(-0.1 * t), 1e-9 * np.exp(0.1 * t)], rtol=1e-9)
    np.testing.assert_allclose([low[1], high[1]], 2.0)
    assert np.isnan(mc.weighted_interval([0.0, 1.0], [0.0, 0.1], [0.0, 1.0])).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "level", "num_draws"),
    [(6.0, 6.0, 1000), (5.3, 6.0, 1200), (9.0, 9.0, 2000), (2.0, 3.0, 1200), (0.0, 1.5, 1600)],
)
def test_the_interval_covers(shift, level, num_draws):
    """2,000 independent runs at once, as elements of one output; some 100 effective hits each."""

    def draw(key):
        return shifted(jnp.float32(shift), key, level, (2000,))

    numbers = quiet(draw, 11, num_draws, chunk_size=128, lanes=32, statistics={"tail": WEIGHTED})["tail"]
    assert 80 < np.median(numbers["effective_hits"]) < 300
    low, high = interval(numbers)
    exact = stats.norm.sf(level)
    cover = np.mean((low <= exact) & (exact <= high))
    assert 0.935 < cover < 0.965, cover
    # Neither side takes more than its part: 2.5% each, and 5 standard errors.
    for side in (exact < low, exact > high):
        assert np.mean(side) < 0.025 + 5 * np.sqrt(0.025 * 0.975 / 2000)


def test_table_and_dataset_show_the_interval_and_the_doubt():
    result = run_shifted(6.0, 4000)
    low, high = result.probability_interval("tail")
    dataset = result.to_xarray()
    assert float(dataset["tail_probability_low"]) == low < float(dataset["tail_probability"]) < high
    assert low < stats.norm.sf(6.0) < high
    assert "tail: expected" not in str(result.summary())
    (row,) = [row for row in result.summary().rows if row.name == "tail"]
    assert (row.statistic, row.low, row.high) == ("probability", low, high)
    assert "tail: expected at least 100 effective hits" in str(run_shifted(0.0, 4000).summary())
