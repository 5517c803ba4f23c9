"""Algorithm 2 of Gilbert et al. 2017: its three stages, the model its result belongs to, recovery of known codes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from cnninv_jax.operators import conv_operator, synthesis
from cnninv_jax.recovery.lasso import LassoStatus, duality_gap, lam_max, lasso
from cnninv_jax.recovery.sparse_code import sparse_code
from cnninv_jax.sparsity import sample_code

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32


def make(seed=0):
    rng = np.random.default_rng(seed)
    op = conv_operator(jnp.asarray(rng.normal(size=(6, 3, 2, 2)) / np.sqrt(12), DEFAULT), (6, 5), padding="same")
    return op, jnp.asarray(rng.normal(size=op.input_shape), DEFAULT)


@pytest.mark.parametrize(
    ("k", "pool", "nonnegative"),
    [(7, (2, 2), False), (None, (2, 3), True), (4, None, False)],
    ids=["k and pool", "blocks only, nonnegative", "whole responses"],
)
def test_the_stages_are_those_of_the_algorithm(k, pool, nonnegative):
    op, x = make()
    lam = 0.05 * lam_max(op, x, nonnegative=nonnegative)
    options = {"nonnegative": nonnegative, "tol": 1e-5}
    found = jax.jit(lambda x, lam: sparse_code(op, x, k, lam, pool=pool, **options))(x, lam)
    first = jax.jit(lambda x, lam: lasso(op, x, lam, **options))(x, lam)
    np.testing.assert_allclose(found.initial.code, first.code, atol=1e-10 if X64 else 1e-4)
    count = len(oracles.blocks(op.code_shape, pool)) if k is None else k
    model = oracles.project(found.initial.code, count, pool=pool, nonnegative=nonnegative)
    np.testing.assert_allclose(found.model, model, rtol=1e-6)
    np.testing.assert_array_equal(found.support, model != 0)
    assert np.count_nonzero(model) <= count
    # The switches name the support.
    flat = np.asarray(found.support).reshape(op.num_filters, -1)
    named = np.zeros_like(flat)
    for row, column in zip(*np.nonzero(np.asarray(found.switches).reshape(op.num_filters, -1) >= 0), strict=True):
        named[row, np.asarray(found.switches).reshape(op.num_filters, -1)[row, column]] = True
    np.testing.assert_array_equal(named, flat)
    # Step 3: nothing outside, no more than the tolerance above the restricted minimum, better than what it began at.
    assert not np.any(np.asarray(found.code)[model == 0])
    np.testing.assert_array_equal(found.code, found.restricted.code)
    gap = duality_gap(op, x, found.code, lam, found.support, nonnegative=nonnegative)
    assert gap.relative <= 2e-5
    begun = duality_gap(op, x, found.model, lam, found.support, nonnegative=nonnegative)
    assert begun.objective > gap.objective >= found.initial.objective
    assert found.initial.status == found.restricted.status == LassoStatus.CONVERGED


@pytest.mark.slow
def test_a_code_of_the_model_is_found_again():
    rng = np.random.default_rng(1)
    op = conv_operator(jnp.asarray(rng.normal(size=(8, 6, 3, 3)) / np.sqrt(54), DEFAULT), (8, 8))
    true = sample_code(jax.random.key(0), 8, op.shifts, 8, pool=3, values="signs", dtype=DEFAULT).to_dense()
    x = synthesis(op, true)
    solve = jax.jit(lambda lam: sparse_code(op, x, 8, lam * lam_max(op, x), pool=3, tol=1e-5))
    found = solve(0.02)
    np.testing.assert_array_equal(found.support, true != 0)
    # The l1 norm shrinks by about lam / 2 per entry; a smaller lam in step 3 takes most of that back.
    shrunk = float(jnp.max(jnp.abs(found.code - true)))
    assert 0 < shrunk < 0.05
    closer = sparse_code(op, x, 8, 0.02 * lam_max(op, x), pool=3, restricted_lam=1e-4, tol=1e-5)
    assert float(jnp.max(jnp.abs(closer.code - true))) < shrunk / 10


@pytest.mark.slow
def test_batches_and_derivatives():
    op, x = make()
    lam = 0.05 * lam_max(op, x)
    xs = jnp.stack([x, -2 * x, jnp.zeros_like(x)])
    solve = jax.jit(lambda x: sparse_code(op, x, 5, lam, pool=2, tol=1e-8 if X64 else 1e-5))
    batch = jax.vmap(solve)(xs)
    for lane, signal in enumerate(xs):
        np.testing.assert_allclose(batch.code[lane], solve(signal).code, atol=1e-7 if X64 else 1e-3)
    np.testing.assert_array_equal(batch.code[2], 0)
    assert not np.any(batch.restricted.status)
    value = lambda x: jnp.sum(jnp.square(solve(x).code))  # noqa: E731
    gradient = jax.grad(value)(x)
    if X64:
        direction = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
        slope = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-3)


@pytest.mark.slow
def test_a_signal_that_is_not_finite_is_reported():
    op, x = make()
    found = jax.jit(lambda x: sparse_code(op, x, 3, 0.1, pool=2))(x.at[0, 0, 0].set(jnp.nan))
    assert found.initial.status == LassoStatus.NOT_FINITE
    assert found.restricted.status == LassoStatus.NOT_FINITE
    with pytest.raises(ValueError, match="blocks"):
        sparse_code(op, x, 1000, 0.1, pool=2)
