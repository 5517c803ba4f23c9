"""Frames of Theorem A.5 against explicit matrices, and the cases that decide how the theorem must be read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax import filters
from cnninv_jax.crelu.activation import max_pool
from cnninv_jax.crelu.frames import (
    any_signal_frames,
    distance_to_span,
    extreme_eigenvalues,
    pooled_frames,
    sample_shifts,
)
from cnninv_jax.crelu.reconstruction import reconstruct_pooled
from cnninv_jax.crelu.theorems import theorem_a5, theorem_a5_refined
from cnninv_jax.operators import analysis, conv_operator, synthesis_sparse
from cnninv_jax.sparsity import SparseCode
from tests import oracles

X64 = jax.config.jax_enable_x64
DTYPE = np.float64 if X64 else np.float32
TIGHT = 1e-10 if X64 else 2e-4

#: One geometry, K = 4 filters of 3 taps, D = 12 and 4 entries: a program takes two seconds to compile.
FRAMES = jax.jit(pooled_frames)


def bank_of(key):
    return filters.gaussian(key, 4, 1, 3, dtype=DTYPE)


@functools.partial(jax.jit, static_argnames="times")
def drawn(key, times):
    """A layer and its coefficients: of (S1), or two shifts of two filters."""
    bank_key, code_key = jax.random.split(key)
    op = conv_operator(bank_of(bank_key), 12)
    return op, sample_shifts(code_key, op, 4 // times, per_filter=times)


def brute_force(op, entries, x=None):
    """Both sides of Theorem A.5 by numpy.linalg; entries are (filter, flat shift, coefficient)."""
    w = oracles.dense_matrix(op.filters, op.signal_shape, op.stride, op.padding)
    count = w.shape[0] // op.num_filters
    w = w.reshape(op.num_filters, count, -1)
    entries = [entry for entry in entries if entry[2] != 0]
    w_x = np.stack([w[i, j] for i, j, _ in entries])
    x = np.array([c for *_, c in entries]) @ w_x if x is None else np.asarray(x, np.float64).ravel()
    winner = {}
    for i in range(op.num_filters):
        for sign in (1, -1):
            h = sign * (w[i] @ x)
            if h.max() > 0:
                winner[i, sign] = int(np.argmax(h))
    hat = np.stack([w[i, j] for (i, _), j in winner.items()])
    z = hat @ x
    left = x - np.linalg.pinv(hat) @ z

    def largest(pairs):
        rows = [w[pair[0], winner[pair]] for pair in pairs if pair in winner]
        return np.linalg.svd(np.stack(rows), compute_uv=False)[0] ** 2 if rows else 0.0

    signs = {(i, int(np.sign(c))) for i, _, c in entries}
    idle = {(i, 1) for i in range(op.num_filters) if i not in {i for i, _ in signs}}
    answers = np.array([w[i, j] @ x for i, j, _ in entries])
    right = {(i, int(np.sign(c))) for (i, _, c), g in zip(entries, answers, strict=True) if c * g > 0}
    singular = np.linalg.svd(w_x, compute_uv=False)
    return {
        "ratio": np.linalg.norm(left) / np.linalg.norm(x),
        "smallest": singular[-1] ** 2 if len(entries) <= x.size else 0.0,
        "largest": largest(signs),
        "largest_every": largest(signs | idle),
        "largest_right": largest(right),
        "taking_part": len(entries),
        "wrong": sum(c * g < 0 for (*_, c), g in zip(entries, answers, strict=True)),
        "silent": sum((i, int(np.sign(c))) not in winner for i, _, c in entries),
        "step": sum((w[pair[0], winner[pair]] @ x) ** 2 for pair in signs if pair in winner) / np.sum(answers**2),
    }


def entries_of(code):
    flat = np.ravel_multi_index(tuple(np.asarray(code.shifts).T), code.code_shape[1:])
    return list(zip(np.asarray(code.filter_indices), flat, np.asarray(code.values, np.float64), strict=True))


def check(op, code, signal=None):
    found = FRAMES(op, code, signal)
    expected = brute_force(op, entries_of(code), signal)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=TIGHT, atol=TIGHT, err_msg=name)
    return found


def written(bank, entries):
    """An operator and a code from filters and (filter, shift, coefficient), both filled up with zeros."""
    whole = np.zeros((4, 1, 3), DTYPE)
    for i, taps in enumerate(bank):
        whole[i, 0, : len(taps)] = taps
    unused = [i for i in range(4) if i not in {i for i, _, _ in entries}]
    numbers, shifts, values = zip(*[*entries, *[(i, 0, 0.0) for i in unused]][:4], strict=True)
    op = conv_operator(whole, 12)
    code = SparseCode(
        jnp.asarray(numbers, np.int32), jnp.asarray(shifts, np.int32)[:, None], jnp.asarray(values, DTYPE),
        op.code_shape, None,
    )  # fmt: skip
    return op, code


# Against explicit matrices.


@pytest.mark.float32
def test_frames_equal_explicit_matrices():
    seen = []
    for seed in range(40):
        seen.append(check(*drawn(jax.random.key(seed), 1 + seed % 2)))
    assert any(int(one.wrong) for one in seen)
    assert any(float(one.ratio) > 0.05 for one in seen)
    assert any(float(one.largest_every) > float(one.largest) for one in seen)
    assert any(float(one.largest_right) < float(one.largest) for one in seen)


@pytest.mark.slow
def test_frames_in_two_dimensions_with_padding_stride_and_noise():
    bank_key, code_key, noise_key = jax.random.split(jax.random.key(3), 3)
    bank = filters.gaussian(bank_key, 4, 2, (3, 2), dtype=DTYPE)
    op = conv_operator(bank, (5, 6), stride=(1, 2), padding="same")
    code = sample_shifts(code_key, op, 3, values="uniform")
    check(op, code, synthesis_sparse(op, code) + 0.1 * jax.random.normal(noise_key, op.input_shape, DTYPE))


def test_a_coefficient_of_zero_takes_no_part():
    op, code = written([[1.0, 0.5], [0.3, -1.0], [1.0, 1.0]], [(0, 1, 1.0), (1, 3, 0.0), (2, 4, -2.0)])
    assert int(check(op, code).taking_part) == 2


@pytest.mark.slow
def test_ratio_is_that_of_algorithm_2():
    op, code = drawn(jax.random.key(5), 1)
    x = synthesis_sparse(op, code)
    features, switches = max_pool(analysis(op, x))[:2]
    back = reconstruct_pooled(op, features, switches, tol=1e-10 if X64 else 1e-6)
    ratio = jnp.linalg.norm(x - back.signal) / jnp.linalg.norm(x)
    np.testing.assert_allclose(FRAMES(op, code).ratio, ratio, rtol=1e-7 if X64 else 1e-3)
    assert ratio > 0.01


def test_any_signal_takes_every_shift():
    bank_key, signal_key = jax.random.split(jax.random.key(1))
    op = conv_operator(bank_of(bank_key), 12)
    x = jax.random.normal(signal_key, op.input_shape, DTYPE)
    w = oracles.dense_matrix(op.filters, op.signal_shape, op.stride)
    entries = [(i, j, sign) for i in range(4) for j in range(10) for sign in (1.0, -1.0)]
    expected = brute_force(op, entries, x)
    found = jax.jit(any_signal_frames)(op, x)
    np.testing.assert_allclose(found.smallest, np.linalg.eigvalsh(w.T @ w)[0], rtol=100 * TIGHT)
    for name in ("ratio", "largest", "largest_every", "largest_right"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=TIGHT, atol=TIGHT, err_msg=name)
    np.testing.assert_allclose(found.step, 2 * expected["step"], rtol=TIGHT)  # every shift was listed twice


# Small linear algebra.


@pytest.mark.float32
@pytest.mark.parametrize("size", [1, 6])
def test_extreme_eigenvalues_equal_numpy(size):
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((40, size, size + 2)) * 10.0 ** rng.uniform(-3, 3, (40, 1, 1))
    factors[0, -1] = 0.0
    factors[1] = np.eye(size, size + 2)
    factors[2] = 0.0
    factors[3, 0] = factors[3, -1]
    grams = np.asarray(factors @ np.swapaxes(factors, 1, 2), DTYPE)
    # Lanes of a call and lanes of two maps.
    lanes = jnp.moveaxis(jnp.asarray(grams).reshape(2, 4, 5, size, size), 2, -1)
    low, high = (np.ravel(one) for one in jax.jit(jax.vmap(jax.vmap(extreme_eigenvalues)))(lanes))
    exact = np.linalg.eigvalsh(grams.astype(np.float64))
    allowed = 30 * np.finfo(DTYPE).eps * np.maximum(exact[:, -1], 1e-300)
    assert np.all(np.abs(low - exact[:, 0]) <= allowed)
    assert np.all(np.abs(high - exact[:, -1]) <= allowed)
    assert low[2] == 0


@pytest.mark.float32
def test_distance_to_span_with_dependent_rows():
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((6, 9))
    rows[2], rows[4] = 0.0, rows[0] - 3 * rows[1]
    rows = np.concatenate([rows, rows[:2]])
    vector = rng.standard_normal(9)
    exact = np.linalg.norm(vector - np.linalg.pinv(rows) @ rows @ vector)
    measure = jax.jit(distance_to_span)
    np.testing.assert_allclose(measure(*(jnp.asarray(a, DTYPE) for a in (rows, vector))), exact, rtol=TIGHT)
    inside = jnp.asarray(rows.T @ rng.standard_normal(8), DTYPE)
    assert measure(jnp.asarray(rows, DTYPE), inside) < 1e-5 * jnp.linalg.norm(inside)


# Sampling.


@pytest.mark.parametrize(("per_filter", "values"), [(3, "signs"), pytest.param(1, "negative", marks=pytest.mark.slow)])
def test_sampled_shifts_are_different_and_as_many_as_asked_for(per_filter, values):
    op = conv_operator(jnp.ones((6, 1, 2), DTYPE), 5)
    draw = jax.jit(jax.vmap(functools.partial(sample_shifts, op=op, k=4, per_filter=per_filter, values=values)))
    codes = draw(jax.random.split(jax.random.key(0), 300))
    for filters_, shifts in zip(np.asarray(codes.filter_indices), np.asarray(codes.shifts)[..., 0], strict=True):
        pairs = set(zip(filters_.tolist(), shifts.tolist(), strict=True))
        assert len(pairs) == 4 * per_filter
        assert len(set(filters_.tolist())) == 4
        assert np.all(np.bincount(filters_, minlength=6)[np.unique(filters_)] == per_filter)
        assert np.all((shifts >= 0) & (shifts < 4))
    counts = np.bincount(np.asarray(codes.shifts).ravel(), minlength=4)
    total = counts.sum()
    assert np.all(np.abs(counts - total / 4) < 5 * np.sqrt(total * 3 / 16))
    values_ = np.asarray(codes.values)
    assert codes.values.dtype == DTYPE
    expected = {"positive": {1}, "negative": {-1}}.get(values, {1, -1})
    assert set(np.unique(np.sign(values_)).astype(int)) == expected


def test_more_shifts_than_there_are_are_refused():
    op = conv_operator(jnp.ones((2, 1, 3), DTYPE), 5)
    with pytest.raises(ValueError, match="at most n = 3"):
        sample_shifts(jax.random.key(0), op, 1, per_filter=4)


# How the theorem must be read.


def test_as_printed_the_assumption_lets_too_much_through():
    """(S1) counts positive coefficients; x = -w^1 - w^2 has none, and half of its energy is lost at bound 0."""
    op, code = written([[1.0]], [(0, 0, -1.0), (0, 1, -1.0)])
    found = check(op, code)
    np.testing.assert_allclose(found.ratio, np.sqrt(0.5), rtol=TIGHT)
    assert theorem_a5(found.smallest, found.largest) == 0
    # Two shifts of one filter and sign: the refined bound with m = 2 is attained.
    np.testing.assert_allclose(theorem_a5_refined(found.smallest, found.largest, 2), found.ratio, rtol=TIGHT)


def test_the_smallest_eigenvalue_of_dependent_columns_is_zero():
    """With the smallest singular value above 0 in its place (Lemma A.4's frame bound) the theorem is wrong."""
    op, code = written([[1.0], [0.1], [1.0]], [(0, 0, 1.01), (1, 1, 20.0), (2, 1, -1.0)])
    found = check(op, code)
    w_x = np.array([[1.0, 0.0, 0.0], [0.0, 0.1, 1.0]])
    above_zero = np.linalg.svd(w_x, compute_uv=False)[-1] ** 2
    np.testing.assert_allclose([above_zero, found.largest], [1.0, 1.01], rtol=TIGHT)
    np.testing.assert_allclose(theorem_a5(above_zero, found.largest), 0.1, rtol=1e-4)
    np.testing.assert_allclose(found.ratio, 1 / np.sqrt(1 + 1.01**2), rtol=TIGHT)
    assert theorem_a5(found.smallest, found.largest) > 1e3


def test_the_step_of_the_proof_fails_and_the_theorem_holds():
    """Two filters at an obtuse angle and a small coefficient: the second filter answers with the wrong sign."""
    op, code = written([[1.0, 0.0], [-0.6, 0.8]], [(0, 0, 1.0), (1, 0, 0.5)])
    found = check(op, code)
    assert (int(found.wrong), int(found.silent)) == (1, 1)
    assert found.step < 1
    np.testing.assert_allclose(found.largest, 1.0, rtol=TIGHT)
    assert found.ratio <= theorem_a5_refined(found.smallest, found.largest_right)


@pytest.mark.slow
def test_the_refined_bound_is_attained():
    """Two equal filters at their only two shifts: both choose the first, and nothing can be said better."""
    a, b = 0.8, -0.6
    op = conv_operator(jnp.asarray([[[a, b]], [[a, b]]], DTYPE), 3)
    shifts = jnp.asarray([[0], [1]], np.int32)
    code = SparseCode(jnp.arange(2, dtype=np.int32), shifts, jnp.asarray([1.0, 1.0001], DTYPE), op.code_shape, None)
    found = check(op, code)
    np.testing.assert_allclose([found.smallest, found.largest], [1 + a * b, 2.0], rtol=1e-6)
    refined = theorem_a5_refined(found.smallest, found.largest_right)
    np.testing.assert_allclose(found.ratio, refined, rtol=1e-4)
    assert found.ratio > 0.8
    assert found.ratio <= refined
    np.testing.assert_allclose(theorem_a5(found.smallest, found.largest), np.sqrt(1.48 / 0.52), rtol=1e-6)


def test_one_shift_per_filter_and_sign_is_enough():
    """A positive and a negative shift of every filter break (S1)'s sentence, and the proof still goes through."""
    margins = {"both": [], "one": []}
    for seed in range(60):
        op, code = drawn(jax.random.key(seed), 2)
        signs = {"both": np.array([1, -1, 1, -1], DTYPE), "one": np.ones(4, DTYPE)}
        for name, one in signs.items():
            found = FRAMES(op, dataclasses.replace(code, values=abs(code.values) * one))
            margins[name].append(float(1 - found.ratio**2 - found.smallest / found.largest_right))
    assert min(margins["both"]) > -100 * np.finfo(DTYPE).eps
    assert min(margins["both"]) < 0.5
    assert min(margins["one"]) < min(margins["both"])
