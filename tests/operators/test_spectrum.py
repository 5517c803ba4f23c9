"""Norm and frame bounds against NumPy on the dense matrix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax import operators
from cnninv_jax.operators import conv_operator

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32
TOLERANCE = 200 * np.finfo(DEFAULT).eps

frame_bounds = jax.jit(operators.frame_bounds, static_argnames="num_steps")
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
        (4, 2, (3, 2), (3, 6), (1, 2), "circular"),
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
    padding=st.sampled_from(["valid", "same", "circular"]),
    seed=st.integers(0, 1000),
)
def test_any_small_operator(num_filters, channels, ell, reach, stride, padding, seed):
    size = -(-ell // stride) * stride + reach * stride if padding == "circular" else ell + reach * stride
    check_bounds(make(num_filters, channels, (ell,), (size,), stride, padding, seed))


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


def test_refused_steps():
    with pytest.raises(ValueError, match="num_steps"):
        operators.norm_squared(make(2, 1, (2,), (4,)), num_steps=0)
