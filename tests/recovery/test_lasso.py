"""The l1 problem against scikit-learn and coordinate descent in NumPy, its gap, batches, supports and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.operators import conv_operator
from cnninv_jax.recovery import _proximal
from cnninv_jax.recovery.lasso import LassoStatus, duality_gap, lam_max, lasso

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32
#: Relative gap asked for where solutions are compared, and how close objectives then are.
TIGHT = 1e-11 if X64 else 2e-5

GEOMETRIES = {
    "1-D": (5, 2, (3,), (9,), 1, "valid"),
    "1-D strided": (4, 3, (3,), (9,), 2, "valid"),
    "2-D same": (3, 2, (3, 2), (5, 4), 1, "same"),
}


def make(geometry="1-D", seed=0):
    num_filters, channels, length, size, stride, padding = GEOMETRIES[geometry]
    rng = np.random.default_rng(seed)
    bank = rng.normal(size=(num_filters, channels, *length)) / np.sqrt(channels * np.prod(length))
    op = conv_operator(jnp.asarray(bank, DEFAULT), size, stride=stride, padding=padding)
    return op, jnp.asarray(rng.normal(size=op.input_shape), DEFAULT)


def dense(op):
    """The dictionary W^T, columns are atoms."""
    return oracles.dense_matrix(op.filters, op.signal_shape, op.stride, op.padding).T


def objective(matrix, x, code, lam):
    residual = np.asarray(x, np.float64).ravel() - matrix @ np.asarray(code, np.float64).ravel()
    return residual @ residual + lam * np.abs(code).sum()


def coordinate_descent(matrix, x, lam, allowed=None, nonnegative=False, sweeps=20_000):
    """Cyclic coordinate descent until no coordinate moves by more than rounding."""
    x = np.asarray(x, np.float64).ravel()
    code, squares = np.zeros(matrix.shape[1]), np.sum(matrix**2, axis=0)
    residual = x.copy()
    for _ in range(sweeps):
        moved = 0.0
        for i in range(matrix.shape[1]):
            if squares[i] == 0 or (allowed is not None and not allowed.ravel()[i]):
                continue
            free = code[i] + matrix[:, i] @ residual / squares[i]
            value = np.sign(free) * max(abs(free) - lam / (2 * squares[i]), 0.0)
            value = max(value, 0.0) if nonnegative else value
            if value != code[i]:
                residual += matrix[:, i] * (code[i] - value)
                moved, code[i] = max(moved, abs(value - code[i])), value
        if moved < 1e-14:
            break
    return code


_SOLVE = jax.jit(lambda op, x, lam: lasso(op, x, lam, tol=TIGHT))


@pytest.mark.parametrize("fraction", [0.5, 0.05])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_minimum_is_that_of_coordinate_descent(geometry, fraction):
    op, x = make(geometry)
    lam = fraction * lam_max(op, x)
    found = _SOLVE(op, x, lam)
    assert found.status == LassoStatus.CONVERGED
    matrix, lam = dense(op), float(lam)
    best = objective(matrix, x, coordinate_descent(matrix, x, lam), lam)
    assert abs(objective(matrix, x, found.code, lam) / best - 1) < (1e-9 if X64 else 3e-5)
    np.testing.assert_allclose(found.objective, best, rtol=1e-8 if X64 else 3e-5)
    if fraction == 0.5:  # exact zeros, and not the trivial solution
        assert 0 < np.count_nonzero(found.code) < found.code.size / 4


def test_scikit_learn_agrees():
    linear_model = pytest.importorskip("sklearn.linear_model")
    op, x = make("2-D same", seed=1)
    lam = 0.1 * float(lam_max(op, x))
    found = _SOLVE(op, x, jnp.asarray(lam, DEFAULT))
    model = linear_model.Lasso(lam / (2 * x.size), fit_intercept=False, tol=1e-14, max_iter=100_000)
    model.fit(dense(op), np.asarray(x, np.float64).ravel())
    best = objective(dense(op), x, model.coef_, lam)
    np.testing.assert_allclose(found.objective, best, rtol=1e-8 if X64 else 3e-5)


@pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "nonnegative"])
def test_restricted_to_a_support(nonnegative):
    op, x = make()
    support = np.random.default_rng(2).random(op.code_shape) < 0.5
    lam = 0.05 * lam_max(op, x, support=support, nonnegative=nonnegative)
    found = lasso(op, x, lam, support=support, nonnegative=nonnegative, tol=TIGHT)
    assert not np.any(np.asarray(found.code)[~support])
    assert not (nonnegative and np.any(np.asarray(found.code) < 0))
    code = coordinate_descent(dense(op), x, float(lam), support, nonnegative)
    assert np.count_nonzero(code) > 2
    best = objective(dense(op), x, code, float(lam))
    np.testing.assert_allclose(found.objective, best, rtol=1e-8 if X64 else 3e-5)


@pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "nonnegative"])
def test_lam_max_is_where_the_solution_vanishes(nonnegative):
    op, x = make("2-D same")
    support = np.random.default_rng(3).random(op.code_shape) < 0.5
    solve = jax.jit(lambda lam: lasso(op, x, lam, support=support, nonnegative=nonnegative, tol=1e-6))
    largest = lam_max(op, x, support=support, nonnegative=nonnegative)
    above, below = solve(1.001 * largest), solve(0.99 * largest)
    assert above.steps == 0
    assert not np.any(above.code)
    assert np.any(below.code)


_GAP = jax.jit(duality_gap, static_argnames="nonnegative")
_OPERATOR, _SIGNAL = make()
_BEST = {
    fraction: objective(
        dense(_OPERATOR),
        _SIGNAL,
        coordinate_descent(dense(_OPERATOR), _SIGNAL, fraction * float(lam_max(_OPERATOR, _SIGNAL))),
        fraction * float(lam_max(_OPERATOR, _SIGNAL)),
    )
    for fraction in (0.5, 0.1, 0.01)
}


@given(
    st.sampled_from(sorted(_BEST)),
    st.integers(0, 2**31),
    st.floats(0, 1),
    st.floats(1e-4, 2),
)
@settings(max_examples=100, deadline=None)
def test_the_gap_bounds_the_distance_to_the_minimum(fraction, seed, density, scale):
    rng = np.random.default_rng(seed)
    code = scale * rng.normal(size=_OPERATOR.code_shape) * (rng.random(_OPERATOR.code_shape) < density)
    lam = fraction * lam_max(_OPERATOR, _SIGNAL)
    gap = _GAP(_OPERATOR, _SIGNAL, jnp.asarray(code, DEFAULT), lam)
    excess = objective(dense(_OPERATOR), _SIGNAL, code, float(lam)) - _BEST[fraction]
    rounding = 1e-12 if X64 else 1e-5
    assert gap.absolute >= excess - rounding * float(gap.objective)
    np.testing.assert_allclose(gap.relative, gap.absolute / gap.objective, rtol=1e-6)


def test_the_gap_closes_at_the_solution_and_codes_not_allowed_have_none():
    op, x = make()
    lam = 0.1 * lam_max(op, x)
    found = lasso(op, x, lam, tol=TIGHT)
    gap = duality_gap(op, x, found.code, lam)
    # In eager mode and compiled, sums round differently.
    assert gap.relative < 20 * TIGHT
    np.testing.assert_allclose(gap.objective, found.objective, rtol=1e-6)
    off = duality_gap(op, x, found.code, lam, support=np.zeros(op.code_shape, bool))
    assert np.isinf(off.absolute)
    assert np.isinf(duality_gap(op, x, found.code, lam, nonnegative=True).relative)


@pytest.mark.float32
@pytest.mark.parametrize("fraction", [0.1, 0.02])
def test_a_gap_of_float32_agrees_with_float64(fraction):
    """Far below the default tolerance of 1e-4 a float32 gap still says what the same code's exact gap is."""
    rng = np.random.default_rng(0)
    op = conv_operator((rng.normal(size=(16, 3, 3, 3)) / np.sqrt(27)).astype(np.float32), (10, 10))
    x = jnp.asarray(rng.normal(size=op.input_shape), np.float32)
    lam = fraction * lam_max(op, x)
    found = jax.jit(lambda x: lasso(op, x, lam, tol=2e-5))(x)
    assert found.status == LassoStatus.CONVERGED
    matrix, code, signal = dense(op), np.asarray(found.code, np.float64).ravel(), np.asarray(x, np.float64).ravel()
    weight = float(lam)
    residual = signal - matrix @ code
    reach = 2 * np.abs(matrix.T @ residual).max()
    scale = min(weight / reach, residual @ signal / (residual @ residual))
    primal = residual @ residual + weight * np.abs(code).sum()
    exact = (primal - (2 * scale * residual @ signal - scale**2 * residual @ residual)) / primal
    assert abs(float(found.relative_gap) - exact) < 2e-6


@pytest.mark.parametrize("sequential", [False, True], ids=["together", "in sequence"])
def test_batches_agree_with_single_problems(sequential, monkeypatch):
    monkeypatch.setattr(_proximal, "SEQUENTIAL_SIZE", 0 if sequential else 2**60)
    ops, xs = zip(*(make("2-D same", seed) for seed in range(3)), strict=True)
    fractions = jnp.asarray([0.5, 0.1, 0.02], DEFAULT)
    banks = jnp.stack([op.filters for op in ops])

    def one(bank, x, fraction):
        op = conv_operator(bank, ops[0].signal_shape, padding="same")
        return lasso(op, x, fraction * lam_max(op, x), tol=1e-5)

    batch = jax.jit(jax.vmap(one))(banks, jnp.stack(xs), fractions)
    single = [jax.jit(one)(*arguments) for arguments in zip(banks, xs, fractions, strict=True)]
    # The easy lane stops at its own count and stands still.
    assert [int(found.steps) for found in single] == list(batch.steps)
    assert batch.steps[0] < batch.steps[2]
    for lane, found in enumerate(single):
        np.testing.assert_allclose(batch.code[lane], found.code, atol=1e-9 if X64 else 1e-4)
        assert batch.relative_gap[lane] <= 1e-5
    assert not np.any(batch.status)


def test_one_spoilt_signal_spoils_its_own_lane_only():
    op, x = make()
    xs = jnp.stack([x, jnp.full_like(x, jnp.nan), jnp.zeros_like(x), x])
    lams = jnp.asarray([1.0, 1.0, 1.0, -1.0], DEFAULT) * 0.1 * lam_max(op, x)
    found = jax.jit(jax.vmap(lambda x, lam: lasso(op, x, lam)))(xs, lams)
    expected = [LassoStatus.CONVERGED, LassoStatus.NOT_FINITE, LassoStatus.CONVERGED, LassoStatus.NOT_FINITE]
    assert list(found.status) == expected
    np.testing.assert_array_equal(found.code[2], 0)
    np.testing.assert_allclose(found.code[0], lasso(op, x, lams[0]).code, atol=1e-9 if X64 else 3e-5)


def test_the_cap_is_reported_and_a_warm_start_goes_on():
    op, x = make()
    lam = 0.02 * lam_max(op, x)
    short = lasso(op, x, lam, tol=TIGHT, max_steps=7)
    assert short.status == LassoStatus.STEP_LIMIT
    assert short.steps == 10  # rounded up to a check
    assert short.relative_gap > TIGHT
    full = lasso(op, x, lam, tol=TIGHT)
    again = lasso(op, x, lam, tol=10 * TIGHT, warm_start=full.code)
    assert int(again.steps) < int(full.steps) / 4
    assert short.objective > full.objective


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_solution_scales_with_the_signal(scale):
    op, x = make()
    lam = 0.1 * lam_max(op, x)
    small, large = lasso(op, x, lam, tol=1e-5), lasso(op, scale * x, scale * lam, tol=1e-5)
    assert large.status == LassoStatus.CONVERGED
    np.testing.assert_allclose(large.code, scale * small.code, rtol=1e-3, atol=scale * 1e-2)


def test_the_objective_never_rises_from_a_step_far_too_long():
    op, x = make()
    problem = _proximal.Problem(op, x, 0.05 * lam_max(op, x), None, False)
    state = _proximal.start(problem, None)
    state = state._replace(step=1e6 * state.step)
    objectives = [float(state.objective)]
    step = jax.jit(lambda state: _proximal.advance(problem, state))
    for _ in range(200):
        state = step(state)
        objectives.append(float(state.objective))
    assert np.all(np.diff(objectives) <= 1e-5 * objectives[0])
    assert objectives[-1] < 0.9 * objectives[0]


@pytest.mark.slow
@pytest.mark.skipif(not X64, reason="finite differences need float64")
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_derivatives_of_the_code(mode):
    op, x = make("2-D same")
    rng = np.random.default_rng(5)
    lam = 0.1 * lam_max(op, x)
    weights = jnp.asarray(rng.normal(size=op.code_shape))

    def value(bank, x, lam):
        changed = conv_operator(bank, op.signal_shape, padding="same")
        found = lasso(changed, x, lam, tol=1e-13)
        return jnp.sum(weights * jnp.square(found.code)) + found.objective

    arguments = (op.filters, x, lam)
    directions = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in arguments)
    compiled, h = jax.jit(value), 1e-6
    ends = [compiled(*(a + sign * h * d for a, d in zip(arguments, directions, strict=True))) for sign in (1, -1)]
    if mode == "reverse":
        gradients = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*arguments)
        slope = sum(jnp.sum(g * d) for g, d in zip(gradients, directions, strict=True))
    else:
        _, slope = jax.jit(lambda a, d: jax.jvp(value, a, d))(arguments, directions)
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-5)


def test_derivatives_under_vmap():
    op, x = make()
    lam = 0.1 * lam_max(op, x)
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(lasso(op, x, lam, tol=TIGHT).code)))
    xs = jnp.stack([x, 2 * x])
    batch = jax.jit(jax.vmap(gradient))(xs)
    np.testing.assert_allclose(batch[1], jax.jit(gradient)(xs[1]), rtol=1e-4, atol=1e-4 if X64 else 1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 8))}, "x of shape"),
        ({"lam": np.zeros(2)}, "lam to be a scalar"),
        ({"support": np.zeros((5, 6), bool)}, "support of shape"),
        ({"support": np.zeros((5, 7))}, "booleans"),
        ({"warm_start": np.zeros((5, 6))}, "a code of shape"),
        ({"max_steps": 0}, "max_steps"),
        ({"check_every": 0}, "check_every"),
        ({"tol": np.zeros(1)}, "tol to be a scalar"),
    ],
    ids=["x", "lam", "support shape", "support dtype", "warm start", "max_steps", "check_every", "tol"],
)
def test_what_does_not_fit_is_refused(change, message):
    op, x = make()
    arguments = {"x": x, "lam": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        lasso(op, arguments.pop("x"), arguments.pop("lam"), **arguments)


@pytest.mark.slow
def test_half_precision_is_widened_and_rounded_products_are_not_used():
    op, x = make()
    half = conv_operator(op.filters.astype(jnp.bfloat16), op.signal_shape)
    assert lasso(half, x.astype(jnp.bfloat16), 0.5).code.dtype == jnp.float32
    single = op.filters.astype(np.float32)
    codes = [
        lasso(conv_operator(single, op.signal_shape, products=name), x.astype(np.float32), np.float32(0.1)).code
        for name in ("float32", "bfloat16")
    ]
    np.testing.assert_array_equal(*codes)
