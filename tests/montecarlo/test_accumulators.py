"""Accumulators against NumPy in float64, on the device and across blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo.accumulators import Leaf

needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compares 64-bit values")


def accumulate(accumulator, values, block, lanes):
    """Feed ``values`` through blocks of slices, as the engine does."""
    values = np.asarray(values)
    leaf = Leaf("x", values.shape[1:], values.dtype)
    total = accumulator.empty(leaf.shape)
    update = jax.jit(accumulator.update)
    for start in range(0, len(values), block):
        part, state = values[start : start + block], accumulator.init(leaf)
        for first in range(0, len(part), lanes):
            piece = part[first : first + lanes]
            padded = np.concatenate([piece, np.full((lanes - len(piece), *leaf.shape), 77, values.dtype)])
            state = update(state, jnp.asarray(padded), jnp.arange(lanes) < len(piece))
        total = accumulator.merge(total, jax.device_get(state))
    return accumulator.finalize(total)


def test_float32_with_a_large_mean():
    # Running sums of x and x^2 gave a negative variance here.
    values = (1000 + np.random.default_rng(0).normal(size=200_000)).astype(np.float32)
    exact = values.astype(np.float64)
    found = accumulate(mc.Moments(), values, 4096, 512)
    np.testing.assert_allclose(found["mean"], exact.mean(), rtol=1e-10)
    np.testing.assert_allclose(found["variance"], exact.var(ddof=1), rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1e4, -3e5])
def test_variance_survives_far_from_zero(mean):
    values = (mean + np.random.default_rng(1).normal(size=20_000)).astype(np.float32)
    found = accumulate(mc.Moments(), values, 1024, 128)
    np.testing.assert_allclose(found["variance"], values.astype(np.float64).var(ddof=1), rtol=1e-5)


@needs_x64
@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.integers(1, 9))
def test_moments_and_extremes_match_numpy(values, block):
    values = np.asarray(values, np.float64)
    moments = accumulate(mc.Moments(), values, block, 4)
    np.testing.assert_allclose(moments["mean"], values.mean(), rtol=1e-9, atol=1e-9)
    if len(values) > 1:
        np.testing.assert_allclose(moments["variance"], values.var(ddof=1), rtol=1e-9, atol=1e-9)
    else:
        assert np.isnan(moments["variance"])
    extremes = accumulate(mc.Extremes(), values, block, 4)
    assert (extremes["min"], extremes["max"]) == (values.min(), values.max())


@needs_x64
def test_histogram_agrees_with_numpy_on_the_edges_too():
    accumulator = mc.Histogram(-1.0, 2.0, 30)
    rng = np.random.default_rng(2)
    values = np.concatenate(
        [
            rng.normal(size=5000),
            accumulator.edges,
            np.nextafter(accumulator.edges, -9),
            [np.nan, np.inf, -np.inf],
        ]
    )
    # XLA on CPU reads subnormal numbers as zero; NumPy does not.
    values = values[~(np.abs(values) < 1e-300)]
    found = accumulate(accumulator, values, 1000, 64)
    finite = values[np.isfinite(values)]
    np.testing.assert_array_equal(found["histogram"], np.histogram(finite, accumulator.edges)[0])
    assert found["underflow"] == (finite < -1).sum() > 0
    assert found["overflow"] == (finite > 2).sum() > 0
    assert found["histogram"].sum() + found["underflow"] + found["overflow"] == len(finite)


def test_histogram_of_an_array_leaf():
    values = np.random.default_rng(3).normal(size=(700, 2, 3)).astype(np.float32)
    accumulator = mc.Histogram(-2.0, 2.0, 16)
    found = accumulate(accumulator, values, 256, 32)
    assert found["histogram"].shape == (2, 3, 16)
    for index in np.ndindex(2, 3):
        expected = np.histogram(values[:, *index], accumulator.edges.astype(np.float32))[0]
        np.testing.assert_array_equal(found["histogram"][index], expected)


def test_proportions():
    values = np.random.default_rng(4).normal(size=(500, 3))
    values[:5] = np.nan
    good = values[5:]
    for accumulator, truth in [
        (mc.Proportion(above=0.5), good > 0.5),
        (mc.Proportion(below=-1), good < -1),
        (mc.Proportion(above=-1, below=1), (good > -1) & (good < 1)),
    ]:
        found = accumulate(accumulator, values, 100, 16)
        np.testing.assert_array_equal(found["successes"], truth.sum(0))
        np.testing.assert_allclose(found["proportion"], truth.mean(0))
    flags = good > 0
    np.testing.assert_array_equal(accumulate(mc.Proportion(), flags, 100, 16)["successes"], flags.sum(0))


def test_integers_and_bools_are_cast():
    values = np.random.default_rng(5).integers(-5, 9, 300).astype(np.int32)
    assert accumulate(mc.Extremes(), values, 64, 8) == {"min": values.min(), "max": values.max()}
    np.testing.assert_allclose(accumulate(mc.Moments(), values, 64, 8)["mean"], values.mean(), rtol=1e-6)
    np.testing.assert_allclose(accumulate(mc.Moments(), values > 0, 64, 8)["mean"], (values > 0).mean(), rtol=1e-6)


def test_half_precision_is_accumulated_in_float32():
    values = (100 + np.random.default_rng(6).normal(size=4000)).astype(np.float16)
    exact = values.astype(np.float64)
    found = accumulate(mc.Moments(), values, 1024, 128)
    np.testing.assert_allclose(found["mean"], exact.mean(), rtol=1e-7)
    np.testing.assert_allclose(found["variance"], exact.var(ddof=1), rtol=1e-5)


def test_nothing_counted_is_nan():
    found = accumulate(mc.Moments(), np.full(10, np.nan, np.float32), 4, 4)
    assert np.isnan(found["mean"])
    assert np.isnan(found["variance"])


def test_huge_finite_draws_show_as_infinite_variance():
    found = accumulate(mc.Moments(), np.asarray([3e30, -3e30] * 8, np.float32), 8, 4)
    assert np.isinf(found["variance"])
    assert found["mean"] == 0


@pytest.mark.parametrize(
    "arguments",
    [(1.0, 1.0, 4), (2.0, 1.0, 4), (0.0, np.inf, 4), (0.0, 1.0, 0), (0.0, 1.0, 2.5), (np.nan, 1.0, 3)],
)
def test_histogram_arguments(arguments):
    with pytest.raises(ValueError, match="expected Histogram"):
        mc.Histogram(*arguments)


def test_accumulators_are_values():
    assert mc.Histogram(0, 1, 10) == mc.Histogram(0.0, 1.0, np.int64(10))
    assert len({mc.Moments(), mc.Moments(), mc.Proportion(above=1), mc.Proportion(above=1.0)}) == 2
    with pytest.raises(ValueError, match="nan"):
        mc.Proportion(above=np.nan)
