"""Multilevel splitting: unbiased whatever its size, right where the answer is known, one compilation for all levels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnninv_jax import montecarlo as mc

from . import draws

quiet = functools.partial(mc.run, progress=False)
WEIGHTED = mc.WeightedProportion()
DIMENSIONS = 50
LATENT = jax.ShapeDtypeStruct((DIMENSIONS,), jnp.float32)
STATISTICS = {"log_probability": WEIGHTED, "log_level_probability": WEIGHTED}


def projection(direction, u):
    return jnp.sum(direction * u)


def score():
    return jax.tree_util.Partial(projection, jnp.full(DIMENSIONS, DIMENSIONS**-0.5, jnp.float32))


def plain_score(u):
    return u[0]


def levels(thresholds, steps=None, blocks=1):
    thresholds = jnp.asarray(thresholds, jnp.float32)
    return mc.Levels(thresholds, jnp.full((len(thresholds), blocks), 0.5 if steps is None else steps, jnp.float32))


@pytest.fixture(scope="module")
def pilot():
    return mc.splitting_levels(score(), 1, 6.0, LATENT, num_particles=1024, num_moves=4)


def run_six_sigma(pilot, **options):
    draw = mc.splitting_draw(score(), pilot, LATENT, num_particles=400, num_moves=4)
    keep = ("probability", "log_probability")
    return quiet(draw, 2, 38, chunk_size=4, lanes=2, statistics=STATISTICS, keep=keep, **options)


@pytest.fixture(scope="module")
def six_sigma(pilot):
    return run_six_sigma(pilot)


def test_levels_rise_to_the_event(pilot):
    thresholds = np.asarray(pilot.thresholds)
    assert np.all(np.diff(thresholds) > 0)
    assert thresholds[-1] == 6.0
    # A factor of about 0.2 each, but for the last.
    conditional = stats.norm.sf(thresholds[1:]) / stats.norm.sf(thresholds[:-1])
    assert np.all((conditional[:-1] > 0.1) & (conditional[:-1] < 0.3))
    assert conditional[-1] < 1
    assert pilot.steps.shape == (len(thresholds), 1)
    assert np.all((np.asarray(pilot.steps) > 0) & (np.asarray(pilot.steps) <= 1))


def test_six_sigma_in_fifty_dimensions(six_sigma):
    numbers, exact = six_sigma["log_probability"], stats.norm.sf(6.0)
    assert abs(numbers["probability"] - exact) < 5 * numbers["probability_standard_error"]
    assert numbers["probability_standard_error"] < 0.15 * exact
    assert six_sigma["degenerate"]["successes"] == 0
    assert mc.weight_note(numbers, "log_probability") == ""
    low, high = mc.weighted_interval(
        numbers["probability"], numbers["probability_standard_error"], numbers["effective_hits"]
    )
    assert 0.6 * exact < low < high < 1.7 * exact
    np.testing.assert_allclose(six_sigma.draws["probability"], np.exp(six_sigma.draws["log_probability"]), rtol=1e-5)


def test_every_level_is_an_estimate(six_sigma, pilot):
    numbers, exact = six_sigma["log_level_probability"], stats.norm.sf(np.asarray(pilot.thresholds, float))
    error = numbers["probability_standard_error"]
    assert np.all(np.abs(numbers["probability"] - exact) < 5 * error)
    assert numbers["probability"][-1] == six_sigma["log_probability"]["probability"]
    np.testing.assert_array_less(np.diff(np.log(numbers["probability"])), 0.0)
    assert 0.1 < six_sigma["fraction"]["mean"].min() < six_sigma["fraction"]["mean"].max() < 0.8
    assert 0.1 < six_sigma["acceptance"]["mean"] < 0.6
    assert 1 <= six_sigma["families"]["min"] <= six_sigma["families"]["max"] <= 400


@pytest.mark.slow
def test_unbiased_with_a_handful_of_particles():
    """8 particles lose every one of them now and then: such replicates count as zero, and the mean is right."""
    draw = mc.splitting_draw(plain_score, levels([1.0, 2.0, 2.5]), LATENT, num_particles=8, num_moves=1)
    result = quiet(draw, 5, 20_000, chunk_size=5000, lanes=64, statistics=STATISTICS)
    numbers, degenerate = result["log_probability"], result["degenerate"]["proportion"]
    assert 0.2 < degenerate < 0.9
    np.testing.assert_allclose(numbers["hits"] / numbers["count"], 1 - degenerate)
    exact = stats.norm.sf([1.0, 2.0, 2.5])
    each = result["log_level_probability"]
    assert np.all(np.abs(each["probability"] - exact) < 5 * each["probability_standard_error"])
    assert each["probability_standard_error"][-1] < 0.05 * exact[-1]


def test_moves_keep_the_conditional_law():
    """From exact draws above 2, moves lead to exact draws above 2; the other entries stay standard normal."""
    count = 100_000
    draw = mc.splitting_draw(plain_score, levels([2.0]), jax.ShapeDtypeStruct((2,), jnp.float32), num_particles=count)
    draws_above = stats.norm.isf(stats.norm.sf(2.0) * np.random.default_rng(0).uniform(size=count))
    other = np.random.default_rng(1).normal(size=count)
    start = jnp.asarray(np.stack([draws_above, other], axis=1), jnp.float32)
    particles, scores, rates = jax.jit(draw.move)(
        jax.random.key(3), start, start[:, 0], jnp.float32(2.0), jnp.full(1, 0.4, jnp.float32)
    )
    particles = np.asarray(particles, float)
    np.testing.assert_array_equal(particles[:, 0], scores)
    assert particles[:, 0].min() >= 2.0
    assert 0.2 < float(rates[0]) < 0.8
    assert np.corrcoef(particles[:, 1], other)[0, 1] < 0.8
    for sample, law in ((particles[:, 0], stats.truncnorm(2.0, np.inf)), (particles[:, 1], stats.norm())):
        for power in (1, 2):
            off = np.mean(sample**power) - law.moment(power)
            assert abs(off) < 5 * np.sqrt((law.moment(2 * power) - law.moment(power) ** 2) / count)


def test_survivors_have_equally_many_children():
    from cnninv_jax.montecarlo.splitting import _resample

    alive = np.zeros(50, bool)
    alive[[3, 10, 11, 29, 30, 31, 48]] = True
    keys = jax.random.split(jax.random.key(0), 3000)
    parents = np.asarray(jax.vmap(lambda key: _resample(key, jnp.asarray(alive)))(keys))
    children = np.stack([np.bincount(row, minlength=50) for row in parents])
    assert np.all(children[:, ~alive] == 0)
    assert set(np.unique(children[:, alive])) == {7, 8}
    # 50 = 7 * 7 + 1: each gets the extra child with probability 1 / 7.
    share = (children[:, alive] == 8).mean(0)
    assert np.all(np.abs(share - 1 / 7) < 5 * np.sqrt(1 / 7 * 6 / 7 / 3000))


@pytest.mark.slow
def test_latent_pytree_and_folded_laws():
    """P(|x| + E > 25) for normal x and exponential E, two blocks of different step sizes."""

    def far(latent):
        # -log(Phi(-u)) is exponential; log_ndtr keeps its digits far out.
        return jnp.abs(latent["x"]) + jnp.sum(-jax.scipy.special.log_ndtr(-latent["e"]))

    latent = {"x": jnp.zeros((), jnp.float32), "e": jnp.zeros(1, jnp.float32)}
    found = mc.splitting_levels(far, 0, 25.0, latent, num_particles=1000)
    assert found.steps.shape[1] == 2
    draw = mc.splitting_draw(far, found, latent, num_particles=256)
    numbers = quiet(draw, 1, 40, chunk_size=10, lanes=2, statistics=STATISTICS)["log_probability"]
    # E exp(|x|) e^-25 but for the negligible |x| > 25.
    exact = 2 * stats.norm.cdf(1.0) * np.exp(0.5 - 25.0)
    assert abs(numbers["probability"] - exact) < 5 * numbers["probability_standard_error"]
    assert numbers["probability_standard_error"] < 0.2 * exact


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_devices_do_not_change_a_bit(pilot, six_sigma):
    one = run_six_sigma(pilot, mesh=draws.mesh(1))
    for leaf, numbers in one.statistics.items():
        for name, value in numbers.items():
            assert np.asarray(value).tobytes() == np.asarray(six_sigma[leaf][name]).tobytes()


def test_other_levels_and_scores_compile_nothing():
    traces = []

    def counted(direction, u):
        traces.append(1)
        return projection(direction, u)

    def once(scale, thresholds, seed):
        mine = jax.tree_util.Partial(counted, jnp.full(DIMENSIONS, scale, jnp.float32))
        draw = mc.splitting_draw(mine, levels(thresholds), LATENT, num_particles=32, num_moves=1)
        return quiet(draw, seed, 8, chunk_size=4, lanes=2)["log_probability"]["mean"]

    first = once(0.1, [0.1, 0.2, 0.3], 0)
    shape_checks = 1  # eval_shape of the score when the draw is made
    after_first = len(traces)
    values = {float(once(0.1 + 0.01 * number, [0.1, 0.2, 0.3 + 0.02 * number], number)) for number in range(1, 9)}
    assert len(traces) == after_first + 8 * shape_checks
    assert len(values | {float(first)}) == 9


# What is refused.


def bounded(u):
    return jnp.minimum(u[0], 1.0)


def test_what_cannot_be_reached():
    find = functools.partial(mc.splitting_levels, bounded, 0, latent=LATENT, num_particles=64, num_moves=1)
    with pytest.raises(
        ValueError, match=r"expected levels to rise to 2, got stuck at 1 after \d+ levels; the score is"
    ):
        find(threshold=2.0)
    with pytest.raises(ValueError, match=r"expected to reach 2 within 1 levels, got to 0\.\d+; raise max_levels"):
        find(threshold=2.0, max_levels=1)
    with pytest.raises(ValueError, match="expected finite scores"):
        mc.splitting_levels(lambda u: jnp.log(u[0]), 0, 6.0, LATENT, num_particles=64, num_moves=1)


def test_mistakes_in_one_sentence():
    some = levels([1.0])
    with pytest.raises(ValueError, match="expected score to be a function"):
        mc.splitting_draw(3, some, LATENT)
    with pytest.raises(ValueError, match="expected score to return one floating scalar"):
        mc.splitting_draw(lambda u: u, some, LATENT)
    with pytest.raises(ValueError, match="expected score to return one floating scalar"):
        mc.splitting_draw(lambda u: u[0] > 0, some, LATENT)
    with pytest.raises(ValueError, match="expected latent to hold floating arrays"):
        mc.splitting_draw(plain_score, some, jnp.zeros(3, np.int32))
    with pytest.raises(ValueError, match="expected latent to hold at least one array"):
        mc.splitting_draw(plain_score, some, ())
    with pytest.raises(ValueError, match="expected num_particles to be an integer"):
        mc.splitting_draw(plain_score, some, LATENT, num_particles=0)
    with pytest.raises(ValueError, match=r"expected steps of shape \(1, 1\) .* got \(1, 2\)"):
        mc.splitting_draw(plain_score, levels([1.0], blocks=2), LATENT)
    for fraction in (0.0, 1.0):
        with pytest.raises(ValueError, match="expected fraction between 0 and 1"):
            mc.splitting_levels(plain_score, 0, 1.0, LATENT, fraction=fraction)
    with pytest.raises(ValueError, match="expected a finite threshold"):
        mc.splitting_levels(plain_score, 0, float("inf"), LATENT)


def test_an_event_that_is_not_rare_is_one_level():
    found = mc.splitting_levels(bounded, 0, 0.0, LATENT, num_particles=64, num_moves=1)
    assert found.thresholds.tolist() == [0.0]
    draw = mc.splitting_draw(bounded, found, LATENT, num_particles=64, num_moves=1)
    out = jax.jit(jax.vmap(lambda index: draw(jax.random.fold_in(jax.random.key(1), index))))(jnp.arange(400))
    assert abs(float(out["probability"].mean()) - 0.5) < 5 * 0.5 / np.sqrt(400 * 64)
    np.testing.assert_array_equal(out["acceptance"], 1.0)


@pytest.mark.slow
def test_intervals_over_replicates_cover():
    """1,000 times 32 replicates of P(x > 4) = 3e-5."""
    thresholds = stats.norm.isf(0.2 ** np.arange(1, 7))
    thresholds = [*thresholds[thresholds < 3.9], 4.0]
    latent = jax.ShapeDtypeStruct((2,), jnp.float32)
    draw = mc.splitting_draw(plain_score, levels(thresholds), latent, num_particles=128, num_moves=6)
    logs = quiet(draw, 4, 32_000, chunk_size=2000, lanes=16, keep=("log_probability",)).draws["log_probability"]
    y = np.where(logs > np.finfo(np.float32).min, np.exp(logs.astype(float)), 0.0).reshape(1000, 32)
    low, high = mc.weighted_interval(y.mean(1), y.std(1, ddof=1) / np.sqrt(32), y.sum(1) ** 2 / np.square(y).sum(1))
    exact = stats.norm.sf(4.0)
    assert 0.935 < np.mean((low <= exact) & (exact <= high)) < 0.965
