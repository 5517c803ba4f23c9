"""Pooling before norm and activation is pooling behind them: values, gradients, statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.nn.normalised_pooling import normalised_max_pool


def norm_of(channels, seed, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    norm = nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, param_dtype=dtype, rngs=nnx.Rngs(0))
    norm.scale = nnx.Param(jnp.asarray(rng.normal(size=channels), dtype))  # of both signs
    norm.bias = nnx.Param(jnp.asarray(rng.normal(size=channels), dtype))
    norm.mean = nnx.BatchStat(jnp.asarray(rng.normal(size=channels), dtype))
    norm.var = nnx.BatchStat(jnp.asarray(rng.uniform(0.5, 2, size=channels), dtype))
    return norm


def reference(responses, norm, window, train):
    """NumPy in float64: norm, ReLU, then maxima window by window."""
    x = np.asarray(responses, np.float64)
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (np.asarray(norm.mean), np.asarray(norm.var))
    y = np.maximum((x - mean) / np.sqrt(var + 1e-5) * np.asarray(norm.scale) + np.asarray(norm.bias), 0)
    high, wide = (size // window for size in x.shape[1:3])
    out = np.empty((len(x), high, wide, x.shape[3]))
    for row in range(high):
        for column in range(wide):
            part = y[:, row * window : (row + 1) * window, column * window : (column + 1) * window]
            out[:, row, column] = part.max((1, 2))
    return out


@settings(max_examples=15, deadline=None)
@given(window=st.integers(1, 3), extra=st.integers(0, 2), seed=st.integers(0, 99), train=st.booleans())
def test_against_numpy(window, extra, seed, train):
    norm = norm_of(5, seed)
    responses = 3 + 2 * np.random.default_rng(seed).normal(size=(4, 2 * window + extra, 3 * window, 5))
    wanted = reference(responses, norm, window, train)
    before = np.array(norm.mean[...]), np.array(norm.var[...])
    found = jnp.maximum(normalised_max_pool(jnp.asarray(responses), norm, window, train), 0)
    np.testing.assert_allclose(found, wanted, atol=1e-10)
    batch = responses.mean((0, 1, 2)), responses.var((0, 1, 2))
    for past, new, held in zip(before, batch, (norm.mean, norm.var), strict=True):
        np.testing.assert_allclose(held[...], 0.9 * past + 0.1 * new if train else past, rtol=1e-12)


def plain(responses, norm, train):
    with jax.numpy_dtype_promotion("standard"):  # Flax's own statistics lean on it
        y = jnp.maximum(norm(responses, use_running_average=not train), 0)
    return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def pooled_first(responses, norm, train):
    return jnp.maximum(normalised_max_pool(responses, norm, 2, train), 0)


@pytest.mark.parametrize("train", [True, False])
def test_gradients_are_those_of_the_plain_order(train):
    norm = norm_of(6, 1)
    graphdef, params, rest = nnx.split(norm, nnx.Param, ...)
    rng = np.random.default_rng(2)
    responses, weights = jnp.asarray(rng.normal(size=(3, 4, 6, 6))), jnp.asarray(rng.normal(size=(3, 2, 3, 6)))

    def objective(responses, params, form):
        return jnp.sum(weights * form(responses, nnx.merge(graphdef, params, rest, copy=True), train))

    gradient = jax.grad(objective, (0, 1))
    for one, two in zip(
        *(jax.tree.leaves(gradient(responses, params, form)) for form in (plain, pooled_first)), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-9)


def test_statistics_of_bfloat16_are_taken_in_float32():
    norm = norm_of(3, 0, jnp.float32)
    responses = jnp.asarray(100 + np.random.default_rng(0).normal(size=(64, 16, 16, 3)), jnp.bfloat16)
    out = normalised_max_pool(responses, norm, 2, True)
    assert out.dtype == jnp.bfloat16
    exact = np.asarray(responses, np.float64)
    np.testing.assert_allclose(
        norm.mean[...] - 0.9 * norm_of(3, 0, jnp.float32).mean[...], 0.1 * exact.mean((0, 1, 2)), rtol=1e-4
    )
