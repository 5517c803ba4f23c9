"""A number of non-zeros that is data, not geometry: one compiled program for every k up to the largest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnninv_jax.operators import conv_operator
from cnninv_jax.rip import READINGS, draw_ratios, ratios, ratios_of_code
from cnninv_jax.sparsity import leading, sample_code, shuffle

SIZES = {"num_filters": 8, "channels": 4, "length": 3, "signal_shape": 9, "sampling": "plain"}
DRAWS = 20_000
SEPARATE = jax.jit(ratios_of_code)


def wide():
    return np.float64 if jax.config.jax_enable_x64 else np.float32


def bank_of(seed, shape=(6, 3, 3)):
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(wide())


def first_entries(code, count):
    return dataclasses.replace(code, blocks=code.blocks[:count], shifts=code.shifts[:count], values=code.values[:count])


@pytest.mark.slow
@pytest.mark.parametrize(("active", "pool"), [(1, None), (3, 3), (5, None)])
def test_readings_are_those_of_the_code_with_so_many_entries(active, pool):
    op = conv_operator(bank_of(0), 9)
    code_key, order_key = jax.random.split(jax.random.key(0))
    sampled = jax.jit(lambda key: sample_code(key, 6, op.shifts, 5, pool=pool, dtype=wide()))(code_key)
    code = shuffle(order_key, sampled)
    want = SEPARATE(op, first_entries(code, active))
    got = jax.jit(lambda op, code, active: ratios_of_code(op, code, active=active))(op, code, active)
    for name in READINGS:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-12 if wide() is np.float64 else 2e-5, err_msg=name)


@functools.partial(jax.jit, static_argnums=0)
def mapped(k, keys, active):
    draw = functools.partial(draw_ratios, **SIZES, k=k, values="gaussian")
    return jax.lax.map(lambda key: draw(key, active=active), keys, batch_size=200)


@functools.cache
def sample(k, active, seed):
    drawn = mapped(k, jax.random.split(jax.random.key(seed), DRAWS), active)
    return {name: np.asarray(value, float) for name, value in drawn.items()}


@pytest.mark.slow
@pytest.mark.parametrize("active", [1, 3])
def test_the_law_is_that_of_k(active):
    got, want = sample(6, active, 1), sample(active, None, 2)
    for name in READINGS:
        a, b = got[name], want[name]
        for f in (lambda x: x, np.square, lambda x: x < 0.5):
            first, second = np.asarray(f(a), float), np.asarray(f(b), float)
            error = np.hypot(first.std(), second.std()) / np.sqrt(DRAWS)
            assert abs(first.mean() - second.mean()) <= 5 * error + 1e-12, name
        assert stats.ks_2samp(a.round(6), b.round(6)).pvalue > 5.7e-7, name


@pytest.mark.slow
def test_the_law_moves_with_active():
    """The comparison above could tell: one entry more is another law."""
    a, b = sample(6, 3, 1)["error_model"], sample(4, None, 3)["error_model"]
    assert abs(a.mean() - b.mean()) > 5 * np.hypot(a.std(), b.std()) / np.sqrt(DRAWS)


def test_the_active_blocks_are_a_uniform_subset():
    """All C(6, 2) pairs of blocks alike; without the shuffle low blocks would lead."""

    def pair(key):
        code_key, order_key = jax.random.split(key)
        code = shuffle(order_key, sample_code(code_key, 6, 4, 4))
        blocks = jnp.sort(code.blocks[:2])
        return blocks[0] * 6 + blocks[1]

    pairs = np.asarray(jax.jit(jax.vmap(pair))(jax.random.split(jax.random.key(5), 30_000)))
    counts = np.unique(pairs, return_counts=True)[1]
    assert len(counts) == 15
    assert stats.chisquare(counts).pvalue > 5.7e-7


@pytest.mark.slow
def test_shuffle_keeps_the_entries_together():
    code = sample_code(jax.random.key(0), 9, 5, 7)
    mixed = shuffle(jax.random.key(1), code)
    np.testing.assert_array_equal(mixed.to_dense(), code.to_dense())
    assert not np.array_equal(mixed.blocks, code.blocks)
    for count in (0, 3, 7):
        np.testing.assert_array_equal(leading(mixed, count).to_dense(), first_entries(mixed, count).to_dense())


def test_one_trace_for_every_k():
    traces = []

    @jax.jit
    def traced(key, active):
        traces.append(1)
        return draw_ratios(key, **SIZES, k=6, active=active)

    outcomes = {float(traced(jax.random.key(0), active)["model_rip"]) for active in range(1, 7)}
    assert len(traces) == 1
    assert len(outcomes) == 6


@pytest.mark.parametrize("active", [0, 5])
def test_out_of_range_is_refused_or_nan(active):
    op = conv_operator(bank_of(1), 9)
    with pytest.raises(ValueError, match=f"expected 1 <= active <= k = 4, got {active}"):
        jax.eval_shape(lambda key: ratios(key, op, 4, active=active), jax.random.key(0))
    got = jax.jit(lambda key, active: ratios(key, op, 4, active=active))(jax.random.key(0), active)
    assert all(np.isnan(value) for value in got.values())


@pytest.mark.parametrize("active", [2.0, True, np.array([1, 2])])
def test_what_is_no_integer_is_refused(active):
    with pytest.raises(ValueError, match="expected active to be one integer"):
        jax.eval_shape(lambda key: draw_ratios(key, **SIZES, k=6, active=active), jax.random.key(0))


def test_conditional_sampling_takes_no_active():
    with pytest.raises(ValueError, match="conditional sampling takes no active"):
        draw_ratios(jax.random.key(0), **{**SIZES, "sampling": "conditional"}, k=2, active=1)
    # "auto" takes the plain path.
    paths = [
        jax.make_jaxpr(
            lambda key, sampling=sampling: draw_ratios(key, **{**SIZES, "sampling": sampling}, k=2, active=1)
        )
        for sampling in ("auto", "plain")
    ]
    assert len({str(path(jax.random.key(0))) for path in paths}) == 1
