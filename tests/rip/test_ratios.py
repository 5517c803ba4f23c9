"""The plain path: one draw's ratios against the dense matrix W and loops in NumPy float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import dense_matrix, project

from cnninv_jax.operators import conv_operator
from cnninv_jax.rip import READINGS, draw_ratios, ratios, ratios_of_code
from cnninv_jax.sparsity import sample_code

SEPARATE = jax.jit(ratios_of_code)


def oracle(filters, code, signal_shape, stride, padding, pool):
    """The six readings by the dense W: x = W^T z, h = W x, and each projection by loops."""
    w = dense_matrix(filters, signal_shape, stride, padding)
    z = np.zeros(code.code_shape)
    for block, shift, value in zip(code.blocks, np.asarray(code.shifts), np.asarray(code.values, float), strict=True):
        per_filter = 1 if pool is None else int(np.prod([-(-n // p) for n, p in zip(z.shape[1:], pool, strict=True)]))
        z[(int(block) // per_filter, *shift)] += value
    x = w.T @ z.ravel()
    h = w @ x
    support = z.ravel() != 0
    restricted = np.where(support, h, 0)
    k = int(support.sum())
    shaped = h.reshape(z.shape)

    def error(estimate):
        return np.linalg.norm(w.T @ estimate.ravel() - x) / np.linalg.norm(x)

    size = np.linalg.norm(z)
    return {
        "model_rip": np.linalg.norm(x) / size,
        "restricted_gram": np.linalg.norm(restricted) / size,
        "full_gram": np.linalg.norm(h) / size,
        "error_known_support": error(restricted),
        "error_model": error(project(shaped, k, pool)),
        "error_fixed": error(project(shaped, k, pool, fixed=True)),
    }


def bank_of(rng, shape, dtype=np.float64):
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(dtype)


def agree(got, want, tolerance):
    assert set(got) == set(want) == set(READINGS)
    for name, value in want.items():
        np.testing.assert_allclose(np.asarray(got[name], np.float64), value, rtol=tolerance, err_msg=name)


CASES = [
    # K, M, ell, D, stride, padding, pool, k
    (6, 2, (3,), (9,), (1,), "valid", None, 3),
    (5, 3, (4,), (12,), (2,), "valid", None, 5),
    (4, 2, (2,), (11,), (3,), "valid", (3,), 4),
    (5, 2, (3,), (12,), (1,), "valid", (4,), 6),
    (3, 1, (5,), (11,), (1,), "same", (4,), 5),
    (3, 2, (3,), (10,), (3,), "same", None, 2),
    (3, 2, (1,), (7,), (1,), "valid", (2,), 1),
    (4, 2, (2, 3), (6, 8), (2, 1), "valid", None, 3),
    (3, 2, (3, 3), (5, 5), (1, 1), "same", (2, 2), 7),
    (2, 1, (3, 2), (9, 8), (3, 2), "valid", (2, 3), 3),
    (3, 2, (2, 2), (5, 6), (2, 2), "same", (2, 2), 4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ratios_agree_with_the_dense_matrix(case):
    num_filters, channels, ell, size, stride, padding, pool, k = case
    rng = np.random.default_rng(1)
    wide = jax.config.jax_enable_x64
    # Each size in one of the two widths, and float32 alone where 64-bit types are off.
    dtypes = (np.float64 if wide and CASES.index(case) % 3 else np.float32,)
    filters = bank_of(rng, (num_filters, channels, *ell))
    for dtype in dtypes:
        op = conv_operator(filters.astype(dtype), size, stride=stride, padding=padding)
        for seed in range(3):
            key = jax.random.key(seed)
            code = sample_code(key, num_filters, op.shifts, k, pool=pool, dtype=dtype)
            got = SEPARATE(op, code)
            assert all(value.dtype == dtype and value.shape == () for value in got.values())
            want = oracle(filters.astype(dtype), code, size, stride, padding, pool)
            agree(got, want, 2e-5 if dtype is np.float32 else 1e-12)


@pytest.mark.parametrize("method", ["conv", "patches"])
def test_both_methods_give_the_same(method):
    rng = np.random.default_rng(2)
    filters = bank_of(rng, (5, 2, 3), np.float32)
    op = conv_operator(filters, 9, method=method)
    code = sample_code(jax.random.key(0), 5, 7, 3, dtype=np.float32)
    agree(SEPARATE(op, code), oracle(filters, code, (9,), (1,), "valid", None), 2e-5)


def test_the_wider_dtype_wins():
    if not jax.config.jax_enable_x64:
        pytest.skip("64-bit types are off")
    filters = bank_of(np.random.default_rng(3), (4, 2, 3), np.float32)
    code = sample_code(jax.random.key(1), 4, 6, 2, dtype=np.float64)
    got = SEPARATE(conv_operator(filters, 8), code)
    assert all(value.dtype == np.float64 for value in got.values())
    agree(got, oracle(filters, code, (8,), (1,), "valid", None), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "pool", "expected"), [(0.1, None, 3), (3, None, 3), (1.0, (1,), 30), (0.25, (2,), 8)])
def test_k_may_be_a_fraction_of_the_entries(k, pool, expected):
    filters = bank_of(np.random.default_rng(4), (5, 2, 3), np.float32)
    op = conv_operator(filters, 8)
    key = jax.random.key(9)
    got = jax.jit(functools.partial(ratios, k=k, pool=pool))(key, op)
    code = sample_code(jax.random.clone(key), 5, op.shifts, expected, pool=pool, dtype=np.float32)
    assert code.size == expected
    agree(got, oracle(filters, code, (8,), (1,), "valid", pool), 3e-5)


@pytest.mark.parametrize("values", ["uniform", "gaussian", "signs"])
def test_ratios_is_ratios_of_a_sampled_code(values):
    filters = bank_of(np.random.default_rng(5), (5, 2, 3), np.float32)
    op = conv_operator(filters, 8)
    key = jax.random.key(10)
    code = sample_code(jax.random.clone(key), 5, op.shifts, 2, values=values, dtype=np.float32)
    agree(ratios(key, op, 2, values=values), oracle(filters, code, (8,), (1,), "valid", None), 3e-5)


def test_fifty_banks_one_trace():
    traces = []

    @jax.jit
    def traced(op, key):
        traces.append(1)
        return ratios(key, op, 2)["model_rip"]

    rng = np.random.default_rng(6)
    outcomes = {
        float(traced(conv_operator(bank_of(rng, (4, 2, 3), np.float32), 8), key))
        for key in jax.random.split(jax.random.key(0), 50)
    }
    assert len(traces) == 1
    assert len(outcomes) == 50


def test_a_bank_axis_maps():
    rng = np.random.default_rng(7)
    banks = jnp.asarray(bank_of(rng, (6, 4, 2, 3), np.float32))
    code = sample_code(jax.random.key(3), 4, 6, 2, dtype=np.float32)
    got = jax.jit(jax.vmap(lambda bank: ratios_of_code(conv_operator(bank, 8), code)))(banks)
    for lane in range(6):
        want = oracle(banks[lane], code, (8,), (1,), "valid", None)
        agree({name: value[lane] for name, value in got.items()}, want, 3e-5)


def test_ratios_do_not_depend_on_the_scale_of_z():
    filters = bank_of(np.random.default_rng(8), (5, 2, 3), np.float32)
    op = conv_operator(filters, 8)
    code = sample_code(jax.random.key(4), 5, 6, 3, dtype=np.float32)
    tiny = dataclasses.replace(code, values=code.values * 2.0**-20)
    for name, value in SEPARATE(op, code).items():
        np.testing.assert_allclose(SEPARATE(op, tiny)[name], value, rtol=1e-6)


def test_nan_filters_give_nan():
    filters = np.full((4, 2, 3), np.nan, np.float32)
    code = sample_code(jax.random.key(5), 4, 6, 2, dtype=np.float32)
    assert all(np.isnan(value) for value in SEPARATE(conv_operator(filters, 8), code).values())


def test_one_nan_shows_wherever_its_filter_is_used():
    filters = bank_of(np.random.default_rng(9), (4, 2, 3), np.float32)
    code = sample_code(jax.random.key(5), 4, 6, 2, dtype=np.float32)
    inside = np.asarray(code.blocks)
    outside = np.setdiff1d(np.arange(4), inside)[0]
    filters[outside, 0, 1] = np.nan
    got = SEPARATE(conv_operator(filters, 8), code)
    shown = {name for name, value in got.items() if np.isnan(value)}
    assert shown == {"full_gram", "error_model", "error_fixed"}
    filters[inside[0], 0, 1] = np.nan
    assert all(np.isnan(value) for value in SEPARATE(conv_operator(filters, 8), code).values())


def test_a_code_of_norm_zero_gives_nan():
    filters = bank_of(np.random.default_rng(10), (4, 2, 3), np.float32)
    code = sample_code(jax.random.key(5), 4, 6, 2, dtype=np.float32)
    empty = dataclasses.replace(code, values=jnp.zeros_like(code.values))
    assert all(np.isnan(value) for value in SEPARATE(conv_operator(filters, 8), empty).values())


SIZES = {"num_filters": 6, "channels": 4, "length": 3, "signal_shape": 9, "k": 2}


@pytest.mark.parametrize(
    ("changes", "expected", "got"),
    [
        ({"ensemble": "cauchy"}, "expected ensemble to be one of gaussian", "got 'cauchy'"),
        ({"sampling": "fast"}, "expected sampling to be 'auto', 'plain' or 'conditional'", "got 'fast'"),
        ({"values": "ones"}, "expected values to be 'uniform', 'gaussian' or 'signs'", "got 'ones'"),
        ({"values": "ones", "sampling": "plain"}, "expected values to be 'uniform'", "got 'ones'"),
        ({"k": 0}, "expected 1 <= k <= 6", "got k = 0"),
        ({"k": 7}, "expected 1 <= k <= 6", "got k = 7"),
        ({"k": 7, "sampling": "plain"}, "expected 1 <= k <= 6", "got k = 7"),
        ({"k": 1.5}, "expected a fraction k in (0, 1]", "got 1.5"),
        ({"k": True}, "expected k to be an integer or a fraction", "got True"),
        ({"signal_shape": 9, "stride": 4}, "expected an integer n = (D - l)/t + 1", "got D = 9, l = 3, t = 4"),
        ({"signal_shape": 2}, "expected a signal at least as long as the filter", "got D = 2 and l = 3"),
        ({"stride": 0}, "expected stride", "got 0"),
        ({"padding": "full"}, "expected padding to be 'valid', 'same' or 'circular'", "got 'full'"),
        ({"dtype": np.int32}, "expected a floating-point dtype", "got int32"),
        ({"signal_shape": (9, 9)}, "expected signal_shape to be one integer or 1 of them", "got (9, 9)"),
        ({"sampling": "conditional", "normalize": True}, "conditional sampling does not apply", "not normalised"),
        ({"sampling": "conditional", "ensemble": "sphere"}, "conditional sampling does not apply", "Gaussian"),
        ({"sampling": "conditional", "padding": "same"}, "conditional sampling does not apply", "valid padding"),
        ({"sampling": "conditional", "pool": 2}, "conditional sampling does not apply", "whole filter responses"),
        ({"sampling": "conditional", "k": 6}, "needs k < K", "got k = 6, K = 6"),
        ({"sampling": "conditional", "channels": 1}, "2 n <= M l", "n = 7, M l = 3"),
        ({"sampling": "conditional", "signal_shape": 200, "channels": 200}, "n <= 64", "n = 198"),
        ({"sampling": "conditional", "num_filters": 257}, "K <= 256", "K = 257"),
        ({"num_filters": 0}, "expected", "0"),
        ({"channels": 0}, "expected", "0"),
        ({"length": 0}, "expected", "0"),
    ],
    ids=str,
)
def test_bad_arguments_give_a_sentence(changes, expected, got):
    with pytest.raises(ValueError, match=r"^[a-z]") as caught:
        draw_ratios(jax.random.key(0), **{**SIZES, **changes})
    assert expected in str(caught.value)
    assert got in str(caught.value)


def test_a_code_of_another_layer_is_refused():
    code = sample_code(jax.random.key(5), 4, 5, 2)
    op = conv_operator(np.ones((4, 2, 3)), 8)
    with pytest.raises(ValueError, match=r"expected a sparse code of shape \(K, \*n\) = \(4, 6\), got \(4, 5\)"):
        ratios_of_code(op, code)


@pytest.mark.parametrize("ensemble", ["gaussian", "uniform", "sphere"])
@pytest.mark.parametrize("normalize", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_plain_draws_of_every_kind_are_finite(ensemble, normalize):
    draw = functools.partial(draw_ratios, **SIZES, ensemble=ensemble, normalize=normalize, sampling="plain")
    got = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 64))
    assert set(got) == set(READINGS)
    assert all(np.all(np.isfinite(value)) and np.all(value >= 0) for value in got.values())


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_two_axes_draw(padding):
    draw = functools.partial(draw_ratios, num_filters=4, channels=2, length=(2, 2), signal_shape=(5, 5), k=0.05)
    got = jax.jit(jax.vmap(functools.partial(draw, padding=padding, pool=(2, 2))))(
        jax.random.split(jax.random.key(0), 9)
    )
    assert all(value.shape == (9,) and np.all(np.isfinite(value)) for value in got.values())


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_draws_are_sane(dtype):
    """The words behind conditional sampling have 32 bits: half precision has to take another path."""
    draw = functools.partial(draw_ratios, **{**SIZES, "channels": 8}, dtype=dtype)
    got = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 256))
    for value in got.values():
        assert value.dtype == dtype
        assert np.all(np.isfinite(np.asarray(value, np.float32)))
    squares = np.asarray(got["model_rip"], np.float32) ** 2
    assert abs(squares.mean() - 1) < 0.01 + 5 * squares.std() / 16
