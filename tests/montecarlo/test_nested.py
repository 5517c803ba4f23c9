"""Nested draws: means by cluster, their variance components against closed forms, and what a budget wants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax import montecarlo as mc

from . import draws

X64 = jax.config.read("jax_enable_x64")
#: One device, for shorter compilations.
quiet = functools.partial(mc.run, progress=False, mesh=draws.mesh(1))
BETWEEN, WITHIN = 0.5, 2.0


def outer(key):
    return BETWEEN * jax.random.normal(key)


def inner(key, state):
    first, second = jax.random.split(key)
    x = 3.0 + state + WITHIN * jax.random.normal(first)
    return {"x": x, "v": {"w": jax.random.uniform(second, (2,))}, "positive": x > 3.0}


def together(key, state):
    """Five values whose mean is exactly the state's: an extreme of dependence."""
    noise = jax.random.normal(key, (5,))
    return {"x": 3.0 + state + noise - noise.mean()}


def test_a_cluster_is_what_it_says():
    got = mc.nested(outer, inner, 4)(jax.random.key(3))
    outer_key, inner_key = jax.random.split(jax.random.key(3))
    state = outer(outer_key)
    values = [inner(key, state) for key in jax.random.split(inner_key, 4)]
    assert set(got) == {"x", "x_within", "v.w", "v.w_within", "positive", "positive_within"}
    for name, array in (
        ("x", [value["x"] for value in values]),
        ("v.w", [value["v"]["w"] for value in values]),
        ("positive", [value["positive"] for value in values]),
    ):
        array = np.asarray(array, np.float64)
        np.testing.assert_allclose(got[name], array.mean(0), rtol=1e-5)
        np.testing.assert_allclose(got[f"{name}_within"], array.var(0, ddof=1), rtol=1e-4)


def test_one_inner_draw_has_no_inside():
    got = mc.nested(outer, inner, 1)(jax.random.key(3))
    assert set(got) == {"x", "v.w", "positive"}
    assert set(mc.nested(outer, lambda key, state: state, 2)(jax.random.key(3))) == {"value", "value_within"}


def test_a_joint_inner_draw():
    got = mc.nested(outer, together, 5, joint=True)(jax.random.key(4))
    outer_key, inner_key = jax.random.split(jax.random.key(4))
    values = np.asarray(together(inner_key, outer(outer_key))["x"])
    np.testing.assert_allclose(got["x"], values.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["x_within"], values.var(ddof=1), rtol=1e-5)


@pytest.fixture(scope="module")
def result():
    return quiet(mc.nested(outer, inner, 4), 11, 20_000)


def test_components_are_those_of_the_model(result):
    found = mc.variance_components(result, "x", 4)
    n = 20_000
    within, between = WITHIN**2, BETWEEN**2
    # Chi-square variances: n (m - 1) degrees of freedom inside, n - 1 of the cluster means.
    within_error = within * np.sqrt(2 / (3 * n))
    mean_error = (between + within / 4) * np.sqrt(2 / (n - 1))
    assert abs(found.within - within) < 5 * within_error
    assert abs(found.between - between) < 5 * np.hypot(mean_error, within_error / 4)
    rho = between / (between + within)
    assert found.intraclass_correlation == pytest.approx(rho, abs=0.02)
    assert found.design_effect == pytest.approx(1 + 3 * rho, abs=0.05)
    np.testing.assert_allclose(found.total, found.within + found.between)
    # The variance of a cluster's mean is what the run saw, and that of all 4 n draws is wider by the design effect.
    np.testing.assert_allclose(found.variance(4), result["x"]["variance"])
    np.testing.assert_allclose(found.variance(4), found.total / 4 * found.design_effect)


def test_the_standard_error_is_by_cluster(result):
    truth = np.sqrt((BETWEEN**2 + WITHIN**2 / 4) / 20_000)
    assert result["x"]["standard_error"] == pytest.approx(truth, rel=5 / np.sqrt(2 * 20_000))
    assert abs(result["x"]["mean"] - 3.0) < 5 * truth
    assert abs(result["positive"]["mean"] - 0.5) < 5 * result["positive"]["standard_error"]


def test_components_of_an_array_and_of_a_proportion(result):
    uniform = mc.variance_components(result, "v.w", 4)
    np.testing.assert_allclose(uniform.within, 1 / 12, atol=5 * 0.0745 / np.sqrt(60_000))
    assert uniform.between.shape == (2,)
    assert np.all(np.abs(uniform.between) < 5 * (1 / 48) * np.sqrt(4 / 20_000))
    # Two draws of one cluster agree in sign with the orthant probability 1/4 + asin(rho) / 2 pi.
    rho = BETWEEN**2 / (BETWEEN**2 + WITHIN**2)
    positive = mc.variance_components(result, "positive", 4)
    assert positive.between == pytest.approx(np.arcsin(rho) / (2 * np.pi), abs=5 * 0.08 * np.sqrt(2 / 20_000))
    assert positive.total == pytest.approx(0.25, abs=0.005)


@pytest.mark.slow
def test_joint_means_have_their_own_standard_error():
    found = quiet(mc.nested(outer, together, 5, joint=True), 2, 4000)
    assert found["x"]["variance"] == pytest.approx(BETWEEN**2, rel=5 * np.sqrt(2 / 4000))
    assert found["x_within"]["mean"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("cost_outer", "cost_inner"), [(1.0, 1.0), (30.0, 0.5), (0.01, 10.0)])
def test_the_best_count_is_the_cheapest(cost_outer, cost_inner):
    components = mc.VarianceComponents(np.asarray(4.0), np.asarray(0.25), 4)
    best = mc.best_count(components, cost_outer, cost_inner)
    counts = np.linspace(1, 200, 100_001)
    cost = (0.25 + 4.0 / counts) * (cost_outer + counts * cost_inner)
    assert best == pytest.approx(counts[np.argmin(cost)], abs=0.01)
    shared = mc.VarianceComponents(np.asarray([4.0, 4.0]), np.asarray([-0.1, 1e9]), 4)
    assert mc.best_count(shared, 1.0, 1.0).tolist() == [np.inf, 1.0]


@pytest.mark.slow
def test_chunks_and_devices():
    draw = mc.nested(outer, inner, 3)
    one, two = (quiet(draw, 5, 500, chunk_size=64, mesh=draws.mesh(n)).to_xarray() for n in (1, 2))
    assert draws.variables_equal(one, two)
    other = quiet(draw, 5, 500, chunk_size=100)
    np.testing.assert_allclose(other["x"]["mean"], one["x_mean"], rtol=1e-10 if X64 else 1e-5)
    np.testing.assert_allclose(other["x_within"]["mean"], one["x_within_mean"], rtol=1e-10 if X64 else 1e-5)


def test_arrays_of_both_draws_stay_arguments_and_controls_compose():
    traces = []

    def bank(scale, key):
        return scale * jax.random.normal(key, (3,), scale.dtype)

    def code(shift, key, state):
        traces.append(1)
        c = jax.random.normal(key, (), state.dtype)
        return {"y": shift + c + jnp.sum(state), "c": c}

    controls = {"y": {"c": 0.0}}
    means = []
    for shift in (0.0, 10.0, 20.0):
        parts = (jax.tree_util.Partial(bank, jnp.asarray(0.1)), jax.tree_util.Partial(code, jnp.asarray(shift)))
        draw = mc.with_controls(mc.nested(*parts, 6), controls)
        found = quiet(draw, 1, 200, statistics=mc.controlled_statistics(controls))
        assert found.provenance["spec"]["name"] == "code"
        means.append(float(found["y"]["mean"]))
        # The controls take away what varies inside a cluster, 1/6, and leave the 0.03 between.
        assert found["y_controlled"]["variance_reduction"] == pytest.approx((1 / 6 + 0.03) / 0.03, rel=0.5)
    assert np.allclose(np.diff(means), 10.0)
    assert len(traces) == 1


def test_refusals(result):
    for count in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="expected count to be a positive integer, got"):
            mc.nested(outer, inner, count)
    with pytest.raises(ValueError, match=r"output 'x' of a joint inner draw with a leading axis of 4, got \(5,\)"):
        quiet(mc.nested(outer, together, 4, joint=True), 0, 10)
    with pytest.raises(ValueError, match=r"distinct output names, got \['x_within'\] twice"):
        quiet(mc.nested(outer, lambda key, state: {"x": state, "x_within": state}, 2), 0, 10)
    with pytest.raises(ValueError, match=r"one of the draw's outputs .* got 'y'"):
        mc.variance_components(result, "y", 4)
    with pytest.raises(ValueError, match="expected an output 'x_within_within'"):
        mc.variance_components(result, "x_within", 4)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        mc.variance_components(result, "x", 1)
    bare = quiet(mc.nested(outer, inner, 2), 0, 10, statistics={"x": mc.Extremes()})
    with pytest.raises(ValueError, match=r"expected Moments\(\) for 'x' and 'x_within'"):
        mc.variance_components(bare, "x", 2)
    components = mc.variance_components(result, "x", 4)
    with pytest.raises(ValueError, match="expected cost_inner to be positive, got 0"):
        mc.best_count(components, 1.0, 0.0)
    with pytest.raises(ValueError, match="expected cost_outer to be positive, got -1"):
        mc.best_count(components, -1.0, 1.0)
