"""Iterative hard thresholding against a dense float64 loop; the fast method against the direct one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cnninv_jax import recovery
from cnninv_jax.operators import as_matrix, conv_operator, synthesis
from cnninv_jax.recovery import RESULTS, iht
from cnninv_jax.recovery.steps import SAFETY
from cnninv_jax.sparsity import sample_code
from tests import oracles

DTYPE = jax.dtypes.canonicalize_dtype(np.float64)
WIDE = DTYPE.itemsize == 8
#: Of relative values: some hundred roundings.
CLOSE = 1e-10 if WIDE else 2e-4


def bank(seed, shape):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))


def problem(seed, shape=(8, 6, 3), size=12, k=2, pool=None, nonnegative=False, **geometry):
    """A layer and a member of M_k: the operator, x, and the code that made it."""
    op = conv_operator(jnp.asarray(bank(seed, shape), DTYPE), size, **geometry)
    code = sample_code(jax.random.key(seed), op.num_filters, op.shifts, k, pool=pool, dtype=DTYPE).to_dense()
    code = jnp.abs(code) if nonnegative else code
    return op, synthesis(op, code), code


def dense_iht(op, x, k, *, step=1.0, num_steps=50, pool=None, nonnegative=False):
    """Alg. 1 with the dense W; returns all iterates."""
    matrix = np.asarray(as_matrix(op), np.float64)
    x = np.asarray(x, np.float64).ravel()
    iterates = [np.zeros(op.code_shape)]
    for _ in range(num_steps):
        z = iterates[-1].ravel()
        h = (z + step * matrix @ (x - matrix.T @ z)).reshape(op.code_shape)
        iterates.append(oracles.project(h, k, pool, nonnegative))
    residuals = [np.linalg.norm(x - matrix.T @ z.ravel()) / np.linalg.norm(x) for z in iterates]
    return iterates, residuals


CASES = {
    "one axis": ({}, {}),
    "stride": ({"size": 13, "stride": 2}, {}),
    "same padding": ({"padding": "same"}, {}),
    "pooling": ({"pool": (4,)}, {"pool": 4}),
    "non-negative": ({"nonnegative": True}, {"nonnegative": True}),
    "two axes": ({"shape": (5, 4, 3, 2), "size": (6, 5)}, {}),
    "two axes, stride, pooling": (
        {"shape": (5, 4, 2, 3), "size": (8, 7), "stride": (2, 1), "pool": (2, 2)},
        {"pool": 2},
    ),
    "one channel": ({"shape": (4, 1, 2), "size": 6}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_against_the_dense_loop(name):
    making, solving = CASES[name]
    op, x, _ = problem(3, **making)
    pool = making.get("pool")
    step = 0.3 if op.channels == 1 else 0.7
    iterates, residuals = dense_iht(op, x, 2, num_steps=8, step=step, pool=pool, nonnegative="nonnegative" in making)
    found = jax.jit(lambda op, x: iht(op, x, 2, step=step, num_steps=8, method="direct", **solving))(op, x)
    np.testing.assert_allclose(found.code, iterates[-1], atol=CLOSE)
    np.testing.assert_allclose(found.residual_norms, residuals, atol=CLOSE)
    assert int(found.steps) == 8
    assert RESULTS(int(found.result)) is RESULTS.COMPLETED


@functools.cache
def solver(method, k, num_steps, nonnegative, stop):
    return jax.jit(
        jax.vmap(
            lambda op, x, step, tol: iht(
                op, x, k, step=step, num_steps=num_steps, nonnegative=nonnegative, method=method,
                tol=tol if stop else None,
            ),
            in_axes=(0, 0, None, None),
        )
    )  # fmt: skip


def many(count, k, **options):
    made = [problem(seed, k=k, **options) for seed in range(count)]
    ops, xs, codes = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *part) for part in zip(*made, strict=True))
    return ops, xs, codes


GRAM_CASES = {
    # Coherent banks: supports that settle late or never.
    "hard": {"k": 3, "shape": (9, 2, 3), "size": 12, "step": 0.5, "num_steps": 40},
    "stride": {"k": 3, "shape": (9, 6, 5), "size": 17, "stride": 2, "step": 0.8, "num_steps": 20},
    "non-negative": {"k": 3, "shape": (9, 8, 3), "size": 11, "nonnegative": True, "step": 0.8, "num_steps": 30},
    "easy": {"k": 2, "shape": (12, 16, 4), "size": 16, "step": 1.0, "num_steps": 30},
    "diverging": {"k": 4, "shape": (10, 1, 5), "size": 14, "step": 1.9, "num_steps": 30},
    "stride beyond length": {"k": 2, "shape": (6, 4, 2), "size": 14, "stride": 3, "step": 1.0, "num_steps": 10},
    "all filters": {"k": 4, "shape": (4, 12, 3), "size": 9, "step": 0.9, "num_steps": 20},
    "one shift": {"k": 2, "shape": (6, 8, 4), "size": 4, "step": 0.7, "num_steps": 20},
    "one step": {"k": 2, "shape": (6, 4, 3), "size": 8, "step": 1.0, "num_steps": 1},
}


def compare(ops, xs, k, *, step, num_steps, nonnegative=False, tol=None):
    arguments = ops, xs, jnp.asarray(step, DTYPE), jnp.asarray(0.0 if tol is None else tol, DTYPE)
    key = k, num_steps, nonnegative, tol is not None
    direct, gram = solver("direct", *key)(*arguments), solver("gram", *key)(*arguments)
    np.testing.assert_array_equal(gram.result, direct.result)
    np.testing.assert_array_equal(gram.steps, direct.steps)
    # A diverging iteration multiplies rounding as it does everything else.
    np.testing.assert_allclose(gram.code, direct.code, atol=1e-8)
    np.testing.assert_allclose(gram.residual_norms, direct.residual_norms, atol=2e-8)
    return direct


@pytest.mark.slow
@pytest.mark.skipif(not WIDE, reason="paths of different rounding part where supports do not settle")
@pytest.mark.parametrize("name", GRAM_CASES)
def test_gram_takes_the_path_of_direct(name):
    options = dict(GRAM_CASES[name])
    k, step, num_steps = options.pop("k"), options.pop("step"), options.pop("num_steps")
    ops, xs, _ = many(24, k, **options)
    direct = compare(ops, xs, k, step=step, num_steps=num_steps, nonnegative=options.get("nonnegative", False))
    if name == "diverging":
        assert np.any(direct.result == RESULTS.DIVERGED)
    if name == "hard":
        # Else the case would not test supports that never settle.
        assert np.any(np.asarray(direct.residual_norms)[:, -1] > 0.01)


@pytest.mark.slow
@pytest.mark.skipif(not WIDE, reason="tolerances are met at another step where rounding differs")
def test_gram_stops_where_direct_stops():
    ops, xs, codes = many(16, 2, shape=(12, 16, 4), size=16)
    direct = compare(ops, xs, 2, step=1.0, num_steps=60, tol=1e-6)
    assert np.all(direct.result == RESULTS.CONVERGED)
    assert len(np.unique(direct.steps)) > 2
    at_the_end = np.take_along_axis(np.asarray(direct.residual_norms), np.asarray(direct.steps)[:, None], 1)
    assert np.all(at_the_end <= 1e-6)
    np.testing.assert_array_equal(np.asarray(direct.residual_norms)[:, -1:], at_the_end)
    np.testing.assert_allclose(direct.code, codes, atol=1e-5)


@pytest.mark.slow
@hypothesis_settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**20), st.floats(0.2, 1.6))
def test_gram_takes_the_path_of_direct_everywhere(seed, step):
    if not WIDE:
        return
    # The shapes of "hard", whose programs are compiled already.
    rng = np.random.default_rng(seed)
    filters = jnp.asarray(rng.standard_normal((24, 9, 2, 3)) / np.sqrt(6))
    ops = jax.vmap(lambda bank: conv_operator(bank, 12))(filters)
    made = rng.standard_normal((24, 9, 10)) * (rng.random((24, 9, 10)) < 0.04)
    compare(ops, jax.vmap(synthesis)(ops, jnp.asarray(made)), 3, step=step, num_steps=40)


@pytest.mark.slow
def test_gram_is_held_to_its_own_oracle():
    """Against the dense loop at the paper's size, not against the other method."""
    op, x, code = problem(1, (96, 32, 5), 32, 10)
    iterates, residuals = dense_iht(op, x, 10, num_steps=12)
    found = jax.jit(lambda op, x: iht(op, x, 10, num_steps=12, method="gram"))(op, x)
    np.testing.assert_allclose(found.code, iterates[-1], atol=10 * CLOSE)
    np.testing.assert_allclose(found.residual_norms, residuals, atol=10 * CLOSE)
    assert np.linalg.norm(found.code - code) < 1e-2 * np.linalg.norm(code)


@pytest.mark.slow
def test_gram_under_two_vmaps():
    """Every bank with every signal: banks inside, signals outside."""
    ops, xs, _ = many(3, 2)
    both = functools.partial(iht, k=2, num_steps=6)
    crossed = [
        jax.jit(jax.vmap(jax.vmap(functools.partial(both, method=method), (0, None)), (None, 0)))(ops, xs)
        for method in ("gram", "direct")
    ]
    np.testing.assert_allclose(crossed[0].code, crossed[1].code, atol=CLOSE)
    assert crossed[0].code.shape == (3, 3, 8, 10)


@pytest.mark.slow
def test_gram_under_other_vmaps():
    ops, xs, _ = many(3, 2)
    op = jax.tree.map(lambda leaf: leaf[0], ops)
    results = {}
    for method in ("gram", "direct"):
        one = functools.partial(iht, k=2, num_steps=6, method=method)
        shared = jax.vmap(one, in_axes=(None, 0))
        steps = jnp.asarray([0.5, 1.0], DTYPE)
        results[method] = (
            jax.vmap(shared, in_axes=(0, None))(ops, xs).code,
            shared(op, xs).code,
            one(op, xs[0]).code,
            jax.vmap(lambda step, one=one: one(op, xs[0], step=step).code)(steps),
        )
    for gram, direct in zip(results["gram"], results["direct"], strict=True):
        np.testing.assert_allclose(gram, direct, atol=CLOSE)


@pytest.mark.slow
def test_sharded_over_devices():
    ops, xs, _ = many(4, 2)
    mesh = jax.make_mesh((4,), ("draws",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("draws")
    solve = jax.vmap(functools.partial(iht, k=2, num_steps=6, method="gram"))
    split = jax.jit(jax.shard_map(solve, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    expected = jax.jit(jax.vmap(functools.partial(iht, k=2, num_steps=6, method="direct")))(ops, xs)
    np.testing.assert_allclose(split(ops, xs).code, expected.code, atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "method"),
    [("unit", "auto"), ("normalized", "direct"), ("safe", "direct")],
)
def test_gradient_is_that_of_finite_differences(step, method):
    if not WIDE:
        pytest.skip("finite differences need float64")
    op, x, _ = problem(5, (8, 12, 3), 10, 2)
    weights = jnp.asarray(np.random.default_rng(0).standard_normal(op.code_shape))

    def loss(filters, x):
        op = conv_operator(filters, 10)
        found = iht(op, x, 2, step=step, num_steps=4, method=method)
        return jnp.sum(weights * found.code) + jnp.sum(found.residual_norms)

    loss = jax.jit(loss)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(op.filters, x)
    rng = np.random.default_rng(1)
    direction = tuple(jnp.asarray(rng.standard_normal(array.shape)) for array in (op.filters, x))
    size = 1e-6
    ends = [loss(op.filters + sign * size * direction[0], x + sign * size * direction[1]) for sign in (1, -1)]
    slope = sum(float(jnp.vdot(one, along)) for one, along in zip(gradients, direction, strict=True))
    assert slope == pytest.approx(float((ends[0] - ends[1]) / (2 * size)), rel=1e-5)
    _, forward = jax.jvp(loss, (op.filters, x), direction)
    assert float(forward) == pytest.approx(slope, rel=1e-9)


@pytest.mark.slow
def test_gradient_with_a_tolerance_is_that_of_the_steps_taken():
    op, x, _ = problem(5, (8, 12, 3), 10, 2)
    stopped = iht(op, x, 2, num_steps=40, tol=0.05, method="direct")
    taken = int(stopped.steps)
    assert 0 < taken < 40

    def energy(x, num_steps, tol):
        return jnp.sum(iht(op, x, 2, num_steps=num_steps, tol=tol, method="direct").code ** 2)

    by_tol, by_count = jax.grad(energy)(x, 40, 0.05), jax.grad(energy)(x, taken, None)
    np.testing.assert_allclose(by_tol, by_count, atol=CLOSE)
    assert np.linalg.norm(by_tol) > 0.1


@pytest.mark.slow
def test_gradient_at_a_recovered_code_is_finite():
    op, x, _ = problem(2, (4, 1, 1), 6, 2)
    unit = conv_operator(op.filters / jnp.abs(op.filters), 6)
    gradient = jax.grad(lambda x: jnp.sum(iht(unit, x, 4, num_steps=3).residual_norms))(x)
    assert np.all(np.isfinite(gradient))


def test_traced_sparsity():
    op, x, _ = problem(4)
    codes = jax.vmap(lambda k: iht(op, x, k, num_steps=5).code)(jnp.arange(1, 4, dtype=np.int32))
    for row, k in enumerate((1, 2, 3)):
        np.testing.assert_allclose(codes[row], iht(op, x, k, num_steps=5, method="direct").code, atol=CLOSE)


@pytest.mark.slow
def test_safe_step_never_lets_the_residual_grow():
    op, x, _ = problem(7, (12, 2, 3), 14, 5)
    assert np.any(np.diff(np.asarray(iht(op, x, 5, num_steps=30, method="direct").residual_norms)) > 0.01)
    norms = np.asarray(iht(op, x, 5, step="safe", num_steps=30, method="direct").residual_norms)
    assert np.all(np.diff(norms) <= CLOSE)
    assert norms[-1] < 0.9


@pytest.mark.slow
def test_normalized_step_is_the_papers():
    """Blumensath and Davies 2010, Alg. 1, in NumPy: step, safeguard and all."""
    op, x, _ = problem(11, (12, 2, 3), 14, 5)
    scaled = conv_operator(3.0 * op.filters, 14)
    matrix = np.asarray(as_matrix(scaled), np.float64)
    signal = np.asarray(x, np.float64).ravel()
    z, shrunk = np.zeros(matrix.shape[0]), 0

    def projected(h):
        return oracles.project(h.reshape(op.code_shape), 5).ravel()

    norms = [1.0]
    for _ in range(25):
        gradient = matrix @ (signal - matrix.T @ z)
        support = (projected(gradient) if not z.any() else z) != 0
        step = np.sum(gradient[support] ** 2) / np.sum((matrix[support].T @ gradient[support]) ** 2)
        while True:
            proposal = projected(z + step * gradient)
            change = proposal - z
            limit = (1 - SAFETY) * np.sum(change**2) / np.sum((matrix.T @ change) ** 2)
            if np.array_equal(proposal != 0, support) or step <= limit:
                break
            step /= 2 * (1 - SAFETY)
            shrunk += 1
        z = proposal
        norms.append(np.linalg.norm(signal - matrix.T @ z) / np.linalg.norm(signal))
    assert shrunk > 0
    found = iht(scaled, x, 5, step="normalized", num_steps=25)
    np.testing.assert_allclose(found.residual_norms, norms, atol=100 * CLOSE)
    np.testing.assert_allclose(np.asarray(found.code).ravel(), z, atol=100 * CLOSE)
    # The plain step 1 cannot live with filters of norm 3.
    assert RESULTS(int(iht(scaled, x, 5).result)) is RESULTS.DIVERGED


def test_own_loop():
    op, x, _ = problem(6)
    state = recovery.iht_init(op, x)
    norms = [float(state.norm)]
    done = False
    while not done and int(state.steps) < 9:
        state = recovery.iht_step(op, x, 2, state, step=0.8)
        done, state = recovery.iht_terminate(state, 1e-3)
        norms.append(float(state.norm))
    found = iht(op, x, 2, step=0.8, num_steps=9, tol=1e-3, method="direct")
    np.testing.assert_allclose(state.code, found.code, atol=CLOSE)
    np.testing.assert_allclose(norms, found.residual_norms[: len(norms)], atol=CLOSE)
    expected = RESULTS.CAP if int(state.result) == RESULTS.COMPLETED else int(state.result)
    assert int(found.result) == expected


@pytest.mark.parametrize("method", ["direct", "gram"])
def test_ways_to_end(method):
    """One program, a lane for everything that can happen; lanes do not meet."""
    op, x, _ = problem(1, (12, 16, 4), 16, 2)

    def of(bad):
        return dataclasses.replace(op, filters=op.filters.at[2, 0, 1].set(bad))

    nan, inf = np.nan, np.inf
    lanes = [
        (op, x), (op, jnp.zeros_like(x)), (op, x.at[0, 0].set(nan)), (op, x.at[3, 2].set(inf)),
        (of(nan), x), (of(inf), x), (of(1e3), x), (op, x), (op, jnp.ones_like(x)),
    ]  # fmt: skip
    ops, xs = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *part) for part in zip(*lanes, strict=True))
    solve = functools.partial(solver(method, 2, 50, False, True), ops, xs, jnp.ones((), DTYPE))
    found = solve(jnp.asarray(1e-3, DTYPE))
    names = [RESULTS(int(one)).name for one in found.result]
    assert names == ["CONVERGED", "ZERO_SIGNAL", *["NOT_FINITE"] * 2, *["DIVERGED"] * 3, "CONVERGED", "CAP"]
    np.testing.assert_array_equal(found.code[0], found.code[7])
    assert found.residual_norms[0, -1] <= 1e-3
    assert 0 < int(found.steps[0]) < 50
    assert int(found.steps[1]) == 0
    assert not np.any(found.code[1])
    assert not np.any(found.residual_norms[1])
    assert np.all(np.isnan(found.code[2:4]))
    assert np.all(np.isnan(found.residual_norms[2:4]))
    assert np.all(np.isfinite(found.code[4:7]))
    assert np.all(found.residual_norms[4:7] <= 10)
    for text in ("2 of 9: the relative residual reached tol", "1 of 9: x is zero", "3 of 9: the residual grew"):
        assert text in found.message
    already = solve(jnp.asarray(1.0, DTYPE))
    assert (int(already.steps[0]), int(already.result[0])) == (0, RESULTS.CONVERGED)
    assert not np.any(already.code[0])


def test_every_result_has_a_message():
    messages = [result.message for result in RESULTS]
    assert len(set(messages)) == len(RESULTS) == 6


@pytest.mark.parametrize("method", ["direct", "gram"])
def test_dtype_follows_the_input(method):
    op, x, _ = problem(1)
    narrow = conv_operator(op.filters.astype(np.float32), 12)

    def dtypes(x):
        found = jax.eval_shape(lambda x: iht(narrow, x, 2, num_steps=3, tol=1e-3, method=method), x)
        return found.code.dtype, found.residual_norms.dtype

    assert dtypes(x.astype(np.float32)) == (np.float32, np.float32)
    assert dtypes(x) == (DTYPE, DTYPE)
    assert dtypes(np.ones(x.shape, np.int32)) == (np.float32, np.float32)


def test_auto_falls_back_where_gram_does_not_apply():
    for name in ("same padding", "pooling", "two axes"):
        making, solving = CASES[name]
        op, x, _ = problem(3, **making)
        assert recovery.gram_obstacle(op, 2, **solving)
        with pytest.raises(ValueError, match="method='gram' does not apply"):
            iht(op, x, 2, method="gram", **solving)
        assert jax.eval_shape(functools.partial(iht, k=2, **solving), op, x).code.shape == op.code_shape
    op, x, _ = problem(3)
    assert not recovery.gram_obstacle(op, 2)
    assert "traced" in recovery.gram_obstacle(op, jnp.asarray(2))
    assert "normalized" in recovery.gram_obstacle(op, 2, step="normalized")
    large = jax.eval_shape(lambda: conv_operator(jnp.zeros((1024, 1, 65), np.float32), 128))
    assert "bytes" in recovery.gram_obstacle(large, 2)


REFUSED = {
    "shape of x": ({"x": jnp.zeros((5, 12))}, "expected a signal of shape"),
    "k of zero": ({"k": 0}, "expected 1 <= k <= 8"),
    "too many": ({"k": 9}, "expected 1 <= k <= 8"),
    "fraction traced": ({"k": jnp.asarray(0.5)}, "traced k to be an integer"),
    "rule": ({"step": "fast"}, "expected step to be one of unit, safe, normalized"),
    "negative step": ({"step": -1.0}, "finite step above zero"),
    "step array": ({"step": jnp.ones(2)}, "step to be one real number"),
    "no steps": ({"num_steps": 0}, "num_steps to consist of integers of at least 1"),
    "tol of zero": ({"tol": 0.0}, "expected tol to be a finite number above zero"),
    "tol array": ({"tol": jnp.ones(2)}, "expected tol to be one number"),
    "method": ({"method": "fft"}, "expected method to be one of auto, direct, gram"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    options, message = REFUSED[name]
    op, x, _ = problem(1)
    with pytest.raises(ValueError, match=message):
        iht(op, **{"x": x, "k": 2, **options})
