"""Fig. 2's draw with rounded products: near the float32 draw of the same key, by as much as the rounding explains."""

import functools

import jax
import numpy as np
import pytest

from cnninv_jax.rip import READINGS, draw_ratios

SIZE = {"num_filters": 12, "channels": 8, "length": 3, "signal_shape": 9, "k": 3, "dtype": np.float32}
HALF_BIT = {"tf32": 2.0**-11, "bfloat16": 2.0**-8}
#: The readings that follow the filters continuously: no winner can change.
CONTINUOUS = ("model_rip", "restricted_gram", "full_gram", "error_known_support")
DRAWS = 256


@functools.cache
def sample(sampling, products):
    draw = functools.partial(draw_ratios, **SIZE, sampling=sampling, products=products)
    found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS))
    return {name: np.asarray(found[name], np.float64) for name in READINGS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "products"),
    [
        ("plain", "bfloat16"),
        ("plain", "tf32"),
        ("conditional", "bfloat16"),
        ("conditional", "tf32"),
    ],
)
def test_rounding_shows_and_is_as_small_as_it_must_be(sampling, products):
    full, low = sample(sampling, "float32"), sample(sampling, products)
    half = HALF_BIT[products]
    for name in CONTINUOUS:
        change = np.abs(low[name] - full[name])
        # A ratio is a norm of sums of some hundred independent roundings of relative size half / sqrt(3).
        assert half / 100 < np.sqrt(np.mean(change**2)) < half, name
        assert change.max() < 8 * half * max(1.0, full[name].max()), name
    for name in READINGS:
        # A winner changes in few draws only.
        change = np.abs(low[name] - full[name])
        assert np.median(change) < half, name


@pytest.mark.parametrize("products", ["tf32", "bfloat16"])
@pytest.mark.slow
def test_both_samplings_keep_one_law(products):
    plain, conditional = sample("plain", products), sample("conditional", products)
    for name in READINGS:
        first, second = plain[name], conditional[name]
        error = np.sqrt((first.var() + second.var()) / DRAWS)
        assert abs(first.mean() - second.mean()) < 5 * error, name


def test_default_is_float32():
    text = str(jax.make_jaxpr(functools.partial(draw_ratios, **SIZE))(jax.random.key(0)))
    chosen = str(jax.make_jaxpr(functools.partial(draw_ratios, **SIZE, products="float32"))(jax.random.key(0)))
    assert text == chosen
    assert "reduce_precision" not in text


@pytest.mark.parametrize("sampling", ["plain", "conditional"])
def test_refusals(sampling):
    go = functools.partial(draw_ratios, jax.random.key(0), sampling=sampling)
    with pytest.raises(ValueError, match="expected products to be one of"):
        go(**SIZE, products="half")
    if jax.config.read("jax_enable_x64"):
        with pytest.raises(ValueError, match="expected float32 numbers with products='tf32', got float64"):
            go(**{**SIZE, "dtype": np.float64}, products="tf32")
