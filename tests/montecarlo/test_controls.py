"""Control variates: the regression estimator against NumPy, across blocks and devices, and what the draws look like."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo.accumulators import Leaf

from . import draws
from .test_accumulators import accumulate

X64 = jax.config.read("jax_enable_x64")
#: One device, for shorter compilations.
DEFAULT = np.float64 if X64 else np.float32
quiet = functools.partial(mc.run, progress=False, mesh=draws.mesh(1))


def regression(values, expectations):
    """Intercept, its standard error, slopes and degrees of freedom of y on c - mu, by least squares in float64."""
    y, c = values[:, 0].astype(np.float64), values[:, 1:].astype(np.float64) - np.asarray(expectations)
    design = np.column_stack([np.ones(len(y)), c])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    residual = y - design @ solution
    freedom = len(y) - design.shape[1]
    covariance = np.linalg.inv(design.T @ design) * (residual @ residual) / freedom
    return solution[0], np.sqrt(covariance[0, 0]), solution[1:], freedom


def sample(rng, count, controls, shape=(), noise=0.5):
    """Correlated (y, c_1, .., c_p) with means and scales of their own."""
    mixing = rng.normal(size=(controls, controls))
    c = rng.normal(size=(count, *shape, controls)) @ mixing + np.arange(controls)
    y = c @ rng.normal(size=controls) + noise * rng.normal(size=(count, *shape)) + 7
    return np.concatenate([y[..., None], c], axis=-1).astype(DEFAULT)


@pytest.mark.parametrize("controls", [1, 2, 4])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_it_is_the_regression_of_numpy(controls, shape):
    values = sample(np.random.default_rng(controls), 700, controls, shape)
    expectations = tuple(np.arange(controls) + 0.1)
    found = accumulate(mc.ControlledMean(expectations), values, 128, 32)
    tolerance = 1e-9 if X64 else 1e-4
    for index in np.ndindex(*shape):
        mean, error, slopes, freedom = regression(values[:, *index], expectations)
        np.testing.assert_allclose(found["mean"][index], mean, rtol=tolerance)
        np.testing.assert_allclose(found["standard_error"][index], error, rtol=tolerance)
        np.testing.assert_allclose(found["coefficients"][index], slopes, rtol=10 * tolerance, atol=10 * tolerance)
        assert found["degrees_of_freedom"][index] == freedom
        y = values[:, *index, 0].astype(np.float64)
        np.testing.assert_allclose(found["plain_mean"][index], y.mean(), rtol=tolerance)
        np.testing.assert_allclose(found["plain_standard_error"][index], y.std(ddof=1) / np.sqrt(700), rtol=tolerance)
        gain = (y.var(ddof=1) / 700) / error**2
        np.testing.assert_allclose(found["variance_reduction"][index], gain, rtol=10 * tolerance)
        np.testing.assert_allclose(found["variance"][index], 700 * error**2, rtol=10 * tolerance)
        c = values[:, *index, 1:].astype(np.float64)
        deviation = (c.mean(0) - expectations) / (c.std(0, ddof=1) / np.sqrt(700))
        np.testing.assert_allclose(found["control_deviation"][index], deviation, rtol=1e-6 if X64 else 1e-3)
    assert found["mean"].shape == found["count"].shape == shape
    assert found["coefficients"].shape == (*shape, controls)


def test_blocks_and_slices_change_only_the_rounding():
    values = sample(np.random.default_rng(9), 500, 2).astype(np.float32)
    accumulator = mc.ControlledMean((0.0, 1.0))
    whole = accumulate(accumulator, values, 512, 512)
    for block, lanes in [(1, 1), (7, 4), (100, 16), (500, 64)]:
        parts = accumulate(accumulator, values, block, lanes)
        for name, value in whole.items():
            np.testing.assert_allclose(parts[name], value, rtol=2e-4, atol=1e-5, err_msg=name)


def test_float32_far_from_zero_and_nearly_explained():
    """Mean 1000, deviation 1, and a control that takes away 10,000 times the variance."""
    rng = np.random.default_rng(3)
    c = rng.normal(size=50_000)
    values = np.stack([1000 + c + 0.01 * rng.normal(size=c.size), 500 + c], axis=1).astype(np.float32)
    mean, error, *_ = regression(values, [500])
    found = accumulate(mc.ControlledMean((500.0,)), values, 4096, 128)
    np.testing.assert_allclose(found["mean"], mean, atol=error / 10)
    np.testing.assert_allclose(found["standard_error"], error, rtol=2e-3)
    assert 9_000 < found["variance_reduction"] < 11_000


def test_a_draw_with_any_non_finite_entry_is_left_out_whole():
    values = sample(np.random.default_rng(4), 300, 2)
    good = values[3:]
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
    accumulator = mc.ControlledMean((0.0, 1.0))
    found, want = accumulate(accumulator, values, 64, 16), accumulate(accumulator, good, 64, 16)
    assert (found["count"], found["non_finite"]) == (297, 3)
    assert want["non_finite"] == 0
    for name in ("mean", "standard_error", "plain_mean", "plain_standard_error", "coefficients"):
        np.testing.assert_allclose(found[name], want[name], rtol=1e-9 if X64 else 1e-3)


def test_controls_that_say_nothing_are_left_out():
    rng = np.random.default_rng(5)
    y, c = rng.normal(size=(2, 400)).astype(DEFAULT)
    y = y + c
    one = accumulate(mc.ControlledMean((0.0,)), np.stack([y, c], axis=1), 128, 32)
    # A constant, and the same control twice, exactly and up to float32 rounding.
    columns = [y, c, np.full(400, 0.1, DEFAULT), 3 * c, (c * 0.7).astype(np.float32).astype(DEFAULT)]
    many = accumulate(mc.ControlledMean((0.0, 0.1, 0.0, 0.0)), np.stack(columns, axis=1), 128, 32)
    for name in ("mean", "standard_error", "degrees_of_freedom"):
        np.testing.assert_allclose(many[name], one[name], rtol=1e-5)
    alone = accumulate(mc.ControlledMean((0.1,)), np.stack([y, np.full(400, 0.1, DEFAULT)], axis=1), 128, 32)
    np.testing.assert_allclose(alone["mean"], y.mean(), rtol=1e-6)
    np.testing.assert_allclose(alone["standard_error"], y.std(ddof=1) / 20, rtol=1e-6)
    assert alone["degrees_of_freedom"] == 399


def test_too_few_draws_are_nan():
    values = sample(np.random.default_rng(6), 4, 2)
    accumulator = mc.ControlledMean((0.0, 1.0))
    for count, known in [(0, False), (1, False), (2, False), (3, False), (4, True)]:
        found = accumulate(accumulator, values[:count], 8, 4)
        assert found["count"] == count
        assert np.isfinite(found["mean"]) == np.isfinite(found["standard_error"]) == known
    exact = accumulate(accumulator, np.asarray([[np.nan, 1.0, 2.0]] * 9, DEFAULT), 4, 4)
    assert (exact["count"], exact["non_finite"]) == (0, 9)


def test_an_overflow_shows():
    values = np.asarray([[3e30, 1.0], [-3e30, 2.0]] * 8, np.float32)
    assert not np.isfinite(accumulate(mc.ControlledMean((1.5,)), values, 8, 4)["standard_error"])


def curved(key):
    """y = exp(c / 2) + noise: its mean is exp(1 / 8); a second output is an array."""
    first, second = jax.random.split(key)
    c = jax.random.normal(first)
    noise = jax.random.normal(second, (3,))
    return {"y": jnp.exp(c / 2) + 0.1 * noise[0], "c": c, "c2": c * c, "v": noise + c, "each": noise}


CONTROLS = {"y": {"c": 0.0, "c2": 1.0}, "v": {"c": 0.0, "each": 0.0}}


@pytest.fixture(scope="module")
def result():
    return quiet(
        mc.with_controls(curved, CONTROLS), 5, 20_000, statistics=mc.controlled_statistics(CONTROLS), keep=("y", "c")
    )


def test_the_mean_is_right_and_the_gain_is_the_regressions(result):
    numbers = result["y_controlled"]
    truth = np.exp(1 / 8)
    assert abs(numbers["mean"] - truth) < 5 * numbers["standard_error"]
    assert abs(numbers["plain_mean"] - truth) < 5 * numbers["plain_standard_error"]
    # Plain variance e^(1/2) - e^(1/4) + 0.01; c explains e^(1/4) / 4 and c^2, of variance 2, e^(1/4) / 32 of it.
    e = np.exp(0.25)
    gain = (e**2 - e + 0.01) / (e**2 - e + 0.01 - e / 4 - e / 32)
    assert gain == pytest.approx(numbers["variance_reduction"], rel=0.1)
    assert np.all(np.abs(numbers["control_deviation"]) < 5)
    np.testing.assert_allclose(numbers["plain_mean"], result["y"]["mean"], rtol=1e-6)
    # v - c - each is zero: nothing is left.
    assert np.all(result["v_controlled"]["variance_reduction"] > 1e5)
    np.testing.assert_allclose(result["v_controlled"]["coefficients"], 1.0, rtol=1e-4)
    assert result["v_controlled"]["mean"].shape == (3,)


def test_a_wrong_expectation_shows(result):
    controls = {"y": {"c": 0.2}}
    wrong = quiet(mc.with_controls(curved, controls), 5, 2000, statistics=mc.controlled_statistics(controls))
    assert wrong["y_controlled"]["control_deviation"][0] < -5
    assert "y_controlled: a control is" in str(wrong.summary())
    assert abs(wrong["y_controlled"]["mean"] - np.exp(1 / 8)) > 5 * wrong["y_controlled"]["standard_error"]


def test_a_table_counts_draws(result):
    row = {(row.name, row.statistic): row for row in result.summary().rows}[("y_controlled", "mean")]
    assert (row.count, row.non_finite) == (20_000, 0)
    assert row.value == result["y_controlled"]["mean"]
    assert row.standard_error == result["y_controlled"]["standard_error"]
    low, high = result.mean_interval("y_controlled")
    assert (row.low, row.high) == (low, high)
    assert high - low < 0.7 * np.diff(result.mean_interval("y"))


@pytest.mark.slow
def test_chunks_and_devices(result):
    draw, statistics = mc.with_controls(curved, CONTROLS), mc.controlled_statistics(CONTROLS)
    one, two = (quiet(draw, 5, 1111, chunk_size=64, statistics=statistics, mesh=draws.mesh(n)) for n in (1, 2))
    other = quiet(draw, 5, 1111, chunk_size=100, statistics=statistics)
    for name, number in one["y_controlled"].items():
        assert np.asarray(number).tobytes() == np.asarray(two["y_controlled"][name]).tobytes()
        np.testing.assert_allclose(number, other["y_controlled"][name], rtol=1e-8 if X64 else 2e-4, atol=1e-6)


def test_the_journal_holds_it(tmp_path):
    draw, statistics = mc.with_controls(curved, CONTROLS), mc.controlled_statistics(CONTROLS)
    first, again = (quiet(draw, 5, 300, chunk_size=64, statistics=statistics, out=tmp_path / "j") for _ in range(2))
    assert again.provenance["resumed_blocks"] == 5
    for name, number in first["v_controlled"].items():
        assert np.asarray(number).tobytes() == np.asarray(again["v_controlled"][name]).tobytes()


def test_the_arrays_of_the_draw_inside_stay_arguments():
    traces = []

    def draw(bank, key):
        traces.append(1)
        noise = jax.random.normal(key, bank.shape, bank.dtype)
        return {"y": jnp.sum(bank * noise), "c": jnp.sum(noise)}

    controls = {"y": {"c": 0.0}}
    means = set()
    for scale in (1.0, 2.0, 3.0):
        inside = jax.tree_util.Partial(draw, jnp.full((4,), scale))
        found = quiet(mc.with_controls(inside, controls), 0, 50, statistics=mc.controlled_statistics(controls))
        means.add(float(found["y"]["standard_error"]))
        assert found["y_controlled"]["coefficients"][0] == pytest.approx(scale)
        assert found.provenance["spec"]["name"] == "draw"
    assert len(means) == 3
    assert len(traces) == 1


def test_refusals():
    for given in ((), (np.nan,), (np.inf, 1.0)):
        with pytest.raises(ValueError, match="one finite expectation per control"):
            mc.ControlledMean(given)
    assert mc.ControlledMean([1, 2]) == mc.ControlledMean((1.0, 2.0))
    for shape in ((), (2,), (3, 2)):
        with pytest.raises(ValueError, match=r"'x' to hold 3 numbers .*2 controls"):
            mc.ControlledMean((0.0, 0.0)).check(Leaf("x", shape, np.dtype(np.float32)))
    with pytest.raises(ValueError, match="expected controls such as"):
        mc.with_controls(curved, {})
    with pytest.raises(ValueError, match="expected controls such as"):
        mc.controlled_statistics({"y": {}})
    for controls, message in [
        ({"y": {"z": 0.0}}, r"in controls, got \['z'\]; there are \['y', 'c', 'c2', 'v', 'each'\]"),
        ({"z": {"c": 0.0}}, r"got \['z'\]"),
        ({"y": {"each": 0.0}}, r"control 'each' to be a scalar or of the shape \(\) of 'y', got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            quiet(mc.with_controls(curved, controls), 0, 10)
    with pytest.raises(ValueError, match="a dict of named outputs, got"):
        quiet(mc.with_controls(draws.scalar, {"value": {"c": 0.0}}), 0, 10)
    taken = {"y": {"c": 0.0}}
    with pytest.raises(ValueError, match=r"no outputs called \['y_controlled'\]"):
        quiet(mc.with_controls(mc.with_controls(curved, taken), taken), 0, 10)


def test_a_dataset_has_an_axis_of_controls(tmp_path):
    draw, statistics = mc.with_controls(curved, CONTROLS), mc.controlled_statistics(CONTROLS)
    found = quiet(draw, 5, 300, statistics=statistics, keep=("y_controlled", "v_controlled"))
    dataset = found.to_xarray()
    assert dataset["y_controlled_coefficients"].dims == ("y_controlled_control",)
    assert dataset["v_controlled_control_deviation"].dims == ("v_controlled_axis0", "v_controlled_control")
    assert dataset["v_controlled_mean"].dims == dataset["v_controlled_count"].dims == ("v_controlled_axis0",)
    assert dataset["v_controlled_draws"].dims == ("draw", "v_controlled_axis0", "v_controlled_entry")
    np.testing.assert_array_equal(dataset["y_controlled_draws"][:, 0], found.draws["y_controlled"][:, 0])
    assert (dataset["y_controlled_mean_low"], dataset["y_controlled_mean_high"]) == found.mean_interval("y_controlled")
    assert "without its controls" in dataset["y_controlled_plain_mean"].attrs["long_name"]
    assert found.save_netcdf(tmp_path / "result.nc").stat().st_size > 0


def test_intervals_use_the_degrees_of_freedom_that_are_left():
    found = quiet(mc.with_controls(curved, CONTROLS), 5, 6, statistics=mc.controlled_statistics(CONTROLS))
    numbers = found["y_controlled"]
    assert numbers["degrees_of_freedom"] == 3
    low, high = found.mean_interval("y_controlled")
    np.testing.assert_allclose(high - low, 2 * scipy.stats.t.ppf(0.975, 3) * numbers["standard_error"], rtol=1e-9)
