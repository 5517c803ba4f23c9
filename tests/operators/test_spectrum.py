"""Norm, frame bounds and coherence against NumPy on the dense matrix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax import operators
from cnninv_jax.operators import coherence, conv_operator

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32
TOLERANCE = 200 * np.finfo(DEFAULT).eps

frame_bounds = jax.jit(operators.frame_bounds, static_argnames="num_steps")
cosines = jax.jit(operators.coherence, static_argnames=("over", "stride"))
norm_squared = jax.jit(operators.norm_squared, static_argnames="num_steps")


def make(num_filters, channels, length, size, stride=1, padding="valid", seed=0):
    bank = np.random.default_rng(seed).normal(size=(num_filters, channels, *length))
    return conv_operator(jnp.asarray(bank, DEFAULT), size, stride=stride, padding=padding)


def dense(op):
    return oracles.dense_matrix(op.filters, op.signal_shape, op.stride, op.padding)


def check_bounds(op):
    eigenvalues = np.linalg.eigvalsh(dense(op).T @ dense(op))
    bounds = frame_bounds(op)
    close = TOLERANCE * eigenvalues[-1]
    assert abs(bounds.upper - eigenvalues[-1]) < close
    assert abs(bounds.lower - max(eigenvalues[0], 0)) < close
    assert bounds.upper_residual < close
    assert bounds.lower_residual < close
    return eigenvalues, bounds


@pytest.mark.parametrize(
    "arguments",
    [
        (6, 2, (3,), (8,)),  # a frame
        (4, 2, (3, 2), (5, 6), (1, 2), "same"),
        (8, 1, (3, 3), (7, 5), 2),
        (3, 1, (2,), (8,), 3),  # fewer rows than some columns need: shifts leave gaps
        (1, 1, (1,), (1,)),  # one number
        (2, 1, (1,), (2,)),
        (5, 1, (1,), (6,), 2, "same"),  # every other sample unseen, and equal eigenvalues
        (2, 1, (4,), (2,), 1, "same"),
    ],
)
def test_small_operators_are_exact(arguments):
    check_bounds(make(*arguments))


@pytest.mark.slow
def test_equal_eigenvalues_break_the_krylov_space_down():
    """W^T W = I: the first Krylov vector is all there is, and no Ritz value may appear beside 1."""
    identity = conv_operator(jnp.eye(6, dtype=DEFAULT).reshape(6, 6, 1), (5,))
    _, bounds = check_bounds(identity)
    np.testing.assert_allclose(bounds[:2], 1, atol=TOLERANCE)
    # Two eigenvalues, 4 and 9, after a breakdown at the second step.
    scales = jnp.asarray([2.0, 2.0, 3.0, 3.0], DEFAULT)
    _, bounds = check_bounds(conv_operator(jnp.diag(scales).reshape(4, 4, 1), (5,)))
    np.testing.assert_allclose(bounds[:2], (4, 9), rtol=TOLERANCE)


def test_rank_deficient_operators():
    op = make(6, 2, (3,), (8,))
    twins = dataclasses.replace(op, filters=op.filters.at[:, 1].set(op.filters[:, 0]))
    eigenvalues, _ = check_bounds(twins)
    assert eigenvalues[7] < 1e-5 * eigenvalues[-1]
    zero = dataclasses.replace(op, filters=jnp.zeros_like(op.filters))
    assert all(float(number) == 0 for number in frame_bounds(zero))
    assert float(norm_squared(zero)) == 0


def test_fewer_rows_than_columns_means_a_lower_bound_of_exactly_zero():
    op = make(2, 3, (3,), (9,))
    _, bounds = check_bounds(op)
    assert float(bounds.lower) == float(bounds.lower_residual) == 0


@settings(deadline=None, max_examples=4, derandomize=True)
@given(
    num_filters=st.integers(1, 5),
    channels=st.integers(1, 2),
    ell=st.integers(1, 3),
    reach=st.integers(0, 4),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same"]),
    seed=st.integers(0, 1000),
)
def test_any_small_operator(num_filters, channels, ell, reach, stride, padding, seed):
    check_bounds(make(num_filters, channels, (ell,), (ell + reach * stride,), stride, padding, seed))


@pytest.mark.slow
def test_few_steps_stay_inside_and_the_residual_bounds_the_error():
    op = make(8, 4, (5,), (40,))
    eigenvalues = np.linalg.eigvalsh(dense(op).T @ dense(op))
    previous = 0.0
    for steps in (2, 24):
        bounds = frame_bounds(op, num_steps=steps)
        slack = TOLERANCE * eigenvalues[-1]
        assert previous - slack <= bounds.upper <= eigenvalues[-1] + slack
        assert bounds.lower >= eigenvalues[0] - slack
        for value, residual in [(bounds.upper, bounds.upper_residual), (bounds.lower, bounds.lower_residual)]:
            assert np.min(np.abs(eigenvalues - float(value))) <= float(residual) + slack
        previous = float(bounds.upper)
    assert abs(norm_squared(op) / eigenvalues[-1] - 1) < 1e-4


def test_norm_squared_under_vmap_is_a_loop():
    single = [make(4, 2, (3,), (7,), seed=seed) for seed in range(3)]
    bank = dataclasses.replace(single[0], filters=jnp.stack([op.filters for op in single]))
    together = jax.jit(jax.vmap(operators.norm_squared))(bank)
    expected = [np.linalg.norm(dense(op), 2) ** 2 for op in single]
    np.testing.assert_allclose(together, expected, rtol=TOLERANCE)


def test_another_key_gives_the_same_bounds():
    op = make(6, 2, (3,), (8,))
    np.testing.assert_allclose(
        np.asarray(frame_bounds(op, key=jax.random.key(7))[:2]), np.asarray(frame_bounds(op)[:2]), rtol=1e-5
    )


@pytest.mark.parametrize("bound", ["lower", "upper"])
def test_gradients_of_the_bounds(bound):
    op = make(6, 2, (3,), (8,))

    def loss(filters):
        return getattr(operators.frame_bounds(dataclasses.replace(op, filters=filters)), bound)

    gradient = jax.jit(jax.grad(loss))(op.filters)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=op.filters.shape), DEFAULT)
    step = 1e-6 if X64 else 1e-2
    matrices = [dense(dataclasses.replace(op, filters=op.filters + sign * step * direction)) for sign in (1, -1)]
    ends = [np.linalg.eigvalsh(matrix.T @ matrix) for matrix in matrices]
    index = -1 if bound == "upper" else 0
    slope = (ends[0][index] - ends[1][index]) / (2 * step)
    assert abs(jnp.sum(gradient * direction) - slope) < (1e-6 if X64 else 2e-2) * max(1, abs(slope))


def test_half_precision_is_widened():
    op = make(6, 2, (3,), (8,))
    half = dataclasses.replace(op, filters=op.filters.astype(jnp.bfloat16))
    matrix = dense(half)
    bounds = frame_bounds(half)
    assert bounds.upper.dtype == np.float32
    np.testing.assert_allclose(bounds.upper, np.linalg.norm(matrix, 2) ** 2, rtol=1e-5)
    assert coherence(half).dtype == np.float32


def test_refused_steps():
    with pytest.raises(ValueError, match="num_steps"):
        operators.norm_squared(make(2, 1, (2,), (4,)), num_steps=0)


@pytest.mark.parametrize("length", [(3,), (2, 3)])
def test_coherence_over_filters(length):
    op = make(5, 2, length, (6,) * len(length))
    expected = oracles.coherence(np.asarray(op.filters, np.float64).reshape(5, -1).T)
    np.testing.assert_allclose(coherence(op), expected, rtol=TOLERANCE)
    np.testing.assert_allclose(jax.jit(coherence)(op.filters), expected, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("length", "stride"), [((3,), (1,)), ((4,), (2,)), ((2,), (3,)), ((3, 2), (1, 1)), ((3, 3), (2, 1))]
)
@pytest.mark.parametrize("num_filters", [1, 3])
def test_coherence_of_filters_over_shifts(num_filters, length, stride):
    bank = np.random.default_rng(2).normal(size=(num_filters, 2, *length)).astype(DEFAULT)
    expected = oracles.coherence(oracles.all_shifts_matrix(bank, stride))
    found = cosines(jnp.asarray(bank), over="shifts", stride=stride)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    "arguments",
    [
        (3, 2, (3,), (7,), 1),
        (3, 1, (5,), (9,), 2),
        (2, 1, (5,), (6,), 1),  # few shifts: long lags do not occur
        (1, 2, (3,), (7,), 1),
        (2, 1, (2,), (8,), 3),
        (3, 1, (3, 2), (4, 3), 1),
        (2, 2, (3, 3), (5, 7), (1, 2)),
    ],
)
def test_coherence_of_an_operator_over_shifts(arguments, padding):
    op = make(*arguments, padding)
    expected = oracles.coherence(dense(op).T)
    np.testing.assert_allclose(cosines(op, over="shifts"), expected, rtol=TOLERANCE)


def test_cropped_atoms_matter():
    """Two filters that agree on the taps which the border leaves: coherent there and only there."""
    bank = jnp.asarray([[[3.0, 1.0, 1.0]], [[-3.0, 1.0, 1.0]]], DEFAULT)
    op = conv_operator(bank, (4,), padding="same")
    np.testing.assert_allclose(coherence(op, over="shifts"), 1, rtol=TOLERANCE)
    assert coherence(op) < 0.7


def test_coherence_leaves_out_atoms_of_zeros():
    bank = np.random.default_rng(3).normal(size=(3, 1, 3)).astype(DEFAULT)
    padded = np.concatenate([bank, np.zeros_like(bank[:1])])
    for over in ("filters", "shifts"):
        np.testing.assert_array_equal(coherence(padded, over=over), coherence(bank, over=over))
    assert np.isnan(coherence(bank * np.nan))


def test_coherence_of_a_wide_layer_of_unit_filters_is_the_gram_matrix():
    bank = np.random.default_rng(4).normal(size=(64, 16, 3, 3)).astype(np.float32)
    flat = bank.reshape(64, -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    gram = np.abs(flat @ flat.T) - np.eye(64)
    np.testing.assert_allclose(coherence(jnp.asarray(bank)), gram.max(), rtol=1e-5)
    assert coherence(jnp.asarray(bank), over="shifts") >= coherence(jnp.asarray(bank)) * (1 - 1e-6)


def test_refused_coherence():
    op = make(1, 1, (3,), (7,))
    with pytest.raises(ValueError, match="at least two filters"):
        coherence(op)
    with pytest.raises(ValueError, match="'filters' or 'shifts', got 'lags'"):
        coherence(op, over="lags")
    with pytest.raises(ValueError, match="no stride beside an operator"):
        coherence(op, over="shifts", stride=1)
    with pytest.raises(ValueError, match="no stride for over='filters'"):
        coherence(np.ones((2, 1, 3)), stride=1)
    with pytest.raises(ValueError, match=r"\[K, M, \*ell\]"):
        coherence(np.ones((2, 3)))
    with pytest.raises(ValueError, match="at least two atoms"):
        coherence(make(1, 1, (3,), (3,)), over="shifts")
