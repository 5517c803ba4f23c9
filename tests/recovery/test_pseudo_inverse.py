"""The pseudo-inverse of W against dense ones in float64, scipy's LSMR, and what its statuses say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import dense_matrix

from cnninv_jax.operators import analysis, conv_operator, synthesis
from cnninv_jax.recovery._normal import autocorrelation, correlates, normal_operator
from cnninv_jax.recovery._patchwise import coverage, left_inverse
from cnninv_jax.recovery.pseudo_inverse import PseudoInverseStatus, pseudo_inverse

X64 = bool(jax.config.read("jax_enable_x64"))
needs_x64 = pytest.mark.skipif(not X64, reason="compares to 1e-8, which float32 does not hold")
DTYPE = np.float64 if X64 else np.float32

#: Filters, signal, stride, padding: filters enough to span patches, and too few; every border.
GEOMETRIES = {
    "1d-valid": ((8, 2, 3), (9,), 1, "valid"),
    "1d-circular": ((7, 3, 2), (9,), 1, "circular"),
    "1d-valid-few": ((2, 3, 3), (8,), 1, "valid"),
    "1d-gaps": ((7, 2, 2), (11,), 3, "valid"),
    "2d-same": ((9, 2, 2, 2), (4, 5), 1, "same"),
    "2d-same-stride": ((19, 2, 3, 3), (5, 6), 2, "same"),
}
CASES = pytest.mark.parametrize("name", GEOMETRIES)


def banks(rng, shape):
    """Nine banks: three random ones, and duplicates, zeros, rank 1, channels and taps that say the same."""
    found = [rng.normal(size=shape) for _ in range(9)]
    found[3][1::2] = found[3][:1]
    found[4][1:] = 0
    found[5][:] = rng.normal(size=(shape[0], *(1,) * (len(shape) - 1))) * found[5][:1]
    found[6][:] = found[6][:, :1]
    found[7][:] = found[7][..., :1]
    found[8][-1] = found[8][0]
    found[8][:, -1] = 0
    return np.stack(found).astype(DTYPE)


@functools.cache
def solver(name, **options):
    """`pseudo_inverse` of many banks at once, compiled once per geometry and choice of options."""
    _, size, stride, padding = GEOMETRIES[name]

    def solve(bank, z):
        return pseudo_inverse(conv_operator(bank, size, stride=stride, padding=padding), z, **options)

    return jax.jit(jax.vmap(solve))


def problem(name, seed=0):
    """Banks, their dense matrices, and responses that no signal gives."""
    shape, size, stride, padding = GEOMETRIES[name]
    rng = np.random.default_rng(seed)
    given = banks(rng, shape)
    dense = np.stack([dense_matrix(bank, size, (stride,) * len(size), padding) for bank in given])
    return given, dense, rng.normal(size=dense.shape[:2]).astype(DTYPE)


def apart(found, expected):
    """Relative distances, one per bank."""
    flat = np.asarray(found, np.float64).reshape(len(expected), -1)
    return np.linalg.norm(flat - expected, axis=1) / np.linalg.norm(expected, axis=1)


def code_shape(name):
    shape, size, stride, padding = GEOMETRIES[name]
    return conv_operator(np.zeros(shape, DTYPE), size, stride=stride, padding=padding).code_shape


@needs_x64
@CASES
def test_responses_of_signals_give_their_projection_onto_the_range(name):
    """Algorithm 1, on 54 banks, most of them without full rank."""
    given, dense, _ = problem(name)
    x = np.random.default_rng(1).normal(size=(len(given), dense.shape[2]))
    inverses = np.linalg.pinv(dense, rcond=1e-12)
    expected = np.einsum("bij,bjk,bk->bi", inverses, dense, x)
    z = np.einsum("bij,bj->bi", dense, x)
    result = solver(name, tol=1e-12)(jnp.asarray(given), jnp.asarray(z.reshape(-1, *code_shape(name))))
    assert np.all(apart(result.signal, expected) < 1e-8)
    assert np.all(np.asarray(result.status) == PseudoInverseStatus.CONVERGED)


@needs_x64
@pytest.mark.parametrize(
    ("name", "patchwise"), [*((name, True) for name in GEOMETRIES), ("2d-same", False), ("1d-valid", False)]
)
def test_responses_of_no_signal_give_the_smallest_least_squares_solution(name, patchwise):
    given, dense, z = problem(name)
    expected = np.einsum("bij,bj->bi", np.linalg.pinv(dense, rcond=1e-12), z)
    options = {} if patchwise else {"patchwise": False}
    result = solver(name, tol=1e-12, **options)(jnp.asarray(given), jnp.asarray(z.reshape(-1, *code_shape(name))))
    assert np.all(apart(result.signal, expected) < 1e-8)
    # The residual reported is that of x'.
    signal = np.asarray(result.signal).reshape(len(given), -1)
    right = np.einsum("bij,bi->bj", dense, z)
    rest = np.einsum("bij,bi->bj", dense, z - np.einsum("bij,bj->bi", dense, signal))
    true = np.linalg.norm(rest, axis=1) / np.linalg.norm(right, axis=1)
    assert np.all(true < 1e-11)
    assert np.allclose(np.asarray(result.residual), true, atol=2e-12)


@needs_x64
@pytest.mark.parametrize("name", ["2d-same", "1d-valid-few"])
def test_weights_leave_responses_out(name):
    """Algorithm 2: the columns of some shifts of some filters alone, some of them twice."""
    _, size, stride, padding = GEOMETRIES[name]
    given, dense, z = problem(name)
    weights = np.random.default_rng(2).integers(0, 3, size=z.shape) * 1.0
    roots = np.sqrt(weights)
    expected = np.einsum("bij,bj->bi", np.linalg.pinv(roots[:, :, None] * dense, rcond=1e-12), roots * z)

    @jax.jit
    @jax.vmap
    def solve(bank, z, weights):
        op = conv_operator(bank, size, stride=stride, padding=padding)
        return pseudo_inverse(op, z, weights=weights, tol=1e-12)

    both = [array.reshape(-1, *code_shape(name)) for array in (z, weights)]
    assert np.all(apart(solve(given, *both).signal, expected) < 1e-8)


@CASES
def test_the_normal_operator_is_the_dense_one(name):
    _, size, stride, padding = GEOMETRIES[name]
    given, dense, _ = problem(name)
    op = conv_operator(jnp.asarray(given[0]), size, stride=stride, padding=padding)
    columns = np.eye(dense.shape[2], dtype=DTYPE).reshape(-1, *op.input_shape)
    found = np.asarray(jax.jit(jax.vmap(normal_operator(op, None)))(jnp.asarray(columns))).reshape(len(columns), -1)
    expected = dense[0].T @ dense[0]
    assert np.allclose(found, expected, atol=(1e-12 if X64 else 1e-5) * np.abs(expected).max())
    assert correlates(op) == (stride == 1 and name != "1d-valid-few")


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_many_channels_correlate_by_the_operator_itself(padding):
    """With 16 channels the autocorrelation is no longer summed term by term."""
    rng = np.random.default_rng(3)
    op = conv_operator(jnp.asarray(rng.normal(size=(40, 16, 3)).astype(DTYPE)), (10,), padding=padding)
    assert correlates(op)
    assert autocorrelation(op.filters).size > 512
    x = jnp.asarray(rng.normal(size=op.input_shape).astype(DTYPE))
    expected = np.asarray(jax.jit(lambda x: synthesis(op, analysis(op, x)))(x))
    assert np.allclose(
        jax.jit(normal_operator(op, None))(x), expected, atol=(1e-12 if X64 else 1e-5) * np.abs(expected).max()
    )


@CASES
def test_coverage_counts_the_shifts_that_see_a_sample(name):
    shape, size, stride, padding = GEOMETRIES[name]
    ones = np.ones((1, 1, *shape[2:]))
    dense = dense_matrix(ones, size, (stride,) * len(size), padding)
    op = conv_operator(np.zeros(shape, DTYPE), size, stride=stride, padding=padding)
    assert np.array_equal(coverage(op).ravel(), dense.sum(axis=0))


def test_a_left_inverse_is_exact_and_knows_its_rank():
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(9, 5)).astype(DTYPE)
    inverse, full = jax.jit(left_inverse)(jnp.asarray(1e-12 * matrix))
    assert bool(full)
    assert np.allclose(np.asarray(inverse) * 1e-12, np.linalg.pinv(matrix), atol=1e-12 if X64 else 1e-4)
    # Learned filters: singular values over three decades still span.
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    steep = (u * np.logspace(0, -3.5, 5)) @ v
    inverse, full = jax.jit(left_inverse)(jnp.asarray(steep.astype(DTYPE)))
    assert bool(full)
    assert np.allclose(np.asarray(inverse) @ steep, np.eye(5), atol=1e-8 if X64 else 0.02)
    for broken in (matrix @ np.diag([1, 1, 0, 1, 1]), matrix[:, [0, 1, 2, 3, 0]], np.nan * matrix, 0 * matrix):
        inverse, full = jax.jit(left_inverse)(jnp.asarray(broken.astype(DTYPE)))
        assert not bool(full)
        assert np.all(np.asarray(inverse) == 0)


@needs_x64
def test_scipy_lsmr_agrees():
    from scipy.sparse.linalg import LinearOperator, lsmr

    name = "2d-same"
    given, dense, z = problem(name, seed=5)
    result = solver(name, tol=1e-12)(jnp.asarray(given), jnp.asarray(z.reshape(-1, *code_shape(name))))
    for at in (0, 3):
        matrix = dense[at]
        peer = LinearOperator(matrix.shape, matvec=lambda x, a=matrix: a @ x, rmatvec=lambda y, a=matrix: a.T @ y)
        expected = lsmr(peer, z[at], atol=1e-13, btol=1e-13, conlim=0, maxiter=2000)[0]
        assert np.linalg.norm(np.asarray(result.signal[at]).ravel() - expected) < 1e-8 * np.linalg.norm(expected)


def test_patchwise_start_needs_no_iteration_even_for_steep_filters():
    """Condition number 3000: conjugate gradients alone would take hundreds."""
    rng = np.random.default_rng(6)
    u, _, v = np.linalg.svd(rng.normal(size=(16, 8)), full_matrices=False)
    bank = jnp.asarray(((u * np.logspace(0, -3.5, 8)) @ v).reshape(16, 2, 4).astype(DTYPE))
    op = conv_operator(bank, (24,), padding="same")
    x = jnp.asarray(rng.normal(size=op.input_shape).astype(DTYPE))
    z = analysis(op, x)
    solve = jax.jit(pseudo_inverse, static_argnames="patchwise")
    tol = 1e-10 if X64 else 1e-5
    result = solve(op, z, tol=tol)
    assert result.num_steps <= 1
    assert result.status == PseudoInverseStatus.CONVERGED
    alone = solve(op, z, tol=tol, patchwise=False)
    assert alone.num_steps > 20


def test_float32_reaches_its_tolerance():
    name = "2d-same"
    given, dense, z = problem(name)
    options = {"tol": 1e-5, "patchwise": False}
    found = solver(name, **options)(
        jnp.asarray(given[:3], jnp.float32), jnp.asarray(z[:3].reshape(-1, *code_shape(name)), jnp.float32)
    )
    assert found.signal.dtype == jnp.float32
    assert found.residual.dtype == jnp.float32
    assert np.all(np.asarray(found.status) == PseudoInverseStatus.CONVERGED)
    expected = np.einsum("bij,bj->bi", np.linalg.pinv(dense[:3]), z[:3])
    condition = np.linalg.cond(dense[:3]) ** 2
    assert np.all(apart(found.signal, expected) < 2e-5 * condition)


#: Compiled once for all tests of a tiny problem.
SOLVE = jax.jit(pseudo_inverse, static_argnames="max_steps")


def _tiny():
    rng = np.random.default_rng(7)
    op = conv_operator(jnp.asarray(rng.normal(size=(3, 2, 3)).astype(DTYPE)), (12,))
    return op, jnp.asarray(rng.normal(size=op.code_shape).astype(DTYPE))


def test_every_status():
    op, z = _tiny()
    solve = SOLVE
    tol = 1e-10 if X64 else 1e-5
    assert solve(op, z, tol=tol).status == PseudoInverseStatus.CONVERGED
    capped = solve(op, z, tol=tol, max_steps=2)
    assert (capped.status, capped.num_steps) == (PseudoInverseStatus.CAP, 2)
    assert capped.residual > tol
    nothing = solve(op, jnp.zeros_like(z), tol=tol)
    assert (nothing.status, nothing.residual) == (PseudoInverseStatus.ZERO, 0)
    assert not np.any(np.asarray(nothing.signal))
    spoilt = solve(op, z.at[0, 0].set(jnp.nan), tol=tol)
    assert spoilt.status == PseudoInverseStatus.NOT_FINITE
    assert np.all(np.isnan(spoilt.signal))
    assert solve(op, z.at[0, 0].set(jnp.inf), tol=tol).status == PseudoInverseStatus.NOT_FINITE
    assert solve(op, z, weights=-jnp.ones_like(z), tol=tol).status == PseudoInverseStatus.NOT_FINITE
    exact = solve(op, z, tol=0.0)
    assert exact.status == PseudoInverseStatus.ROUNDING
    assert exact.num_steps < 1000
    assert exact.residual < 100 * np.finfo(DTYPE).eps
    assert all(status.message for status in PseudoInverseStatus)


def test_units_of_filters_and_responses_do_not_matter():
    op, z = _tiny()
    tol = 1e-10 if X64 else 1e-5
    usual = SOLVE(op, z, tol=tol)
    small = SOLVE(conv_operator(op.filters * 1e-15, (12,)), z * 1e10, tol=tol)
    assert np.allclose(np.asarray(small.signal) * 1e-25, np.asarray(usual.signal), rtol=1e-6 if X64 else 1e-3)
    assert abs(int(small.num_steps) - int(usual.num_steps)) <= 2


def test_lanes_of_a_vmap_are_as_alone():
    """One finished from the start, one not finite, one that needs many steps, with shared filters."""
    op, z = _tiny()
    tol = 1e-10 if X64 else 1e-5
    lanes = jnp.stack([jnp.zeros_like(z), z.at[1, 1].set(jnp.nan), z])
    found = jax.jit(jax.vmap(lambda one: pseudo_inverse(op, one, tol=tol)))(lanes)
    alone = SOLVE(op, z, tol=tol)
    expected = [PseudoInverseStatus.ZERO, PseudoInverseStatus.NOT_FINITE, PseudoInverseStatus.CONVERGED]
    assert found.status.tolist() == expected
    assert abs(int(found.num_steps[2]) - int(alone.num_steps)) <= 2
    assert np.allclose(found.signal[2], alone.signal, rtol=1e-9 if X64 else 1e-3, atol=1e-9 if X64 else 1e-3)


def test_new_filters_do_not_recompile():
    op, z = _tiny()
    traces = []

    @jax.jit
    def solve(op, z):
        traces.append(1)
        return pseudo_inverse(op, z, tol=1e-5)

    first = solve(op, z)
    second = solve(jax.tree.map(lambda leaf: 2 * leaf, op), z)
    assert len(traces) == 1
    assert np.allclose(2 * np.asarray(second.signal), first.signal, rtol=1e-3, atol=1e-3)


@needs_x64
def test_derivative_in_the_responses_is_the_pseudo_inverse():
    op, z = _tiny()
    direction = jnp.asarray(np.random.default_rng(8).normal(size=z.shape))

    @jax.jit
    def push(z, direction):
        return jax.jvp(lambda z: pseudo_inverse(op, z, tol=1e-12).signal, (z,), (direction,))[1]

    assert np.allclose(push(z, direction), SOLVE(op, direction, tol=1e-12).signal, atol=1e-8)


@needs_x64
@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 4])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_gradients_are_central_differences(count, weighted):
    """In reverse mode, with and without filters enough to span patches."""
    rng = np.random.default_rng(9)
    shape = conv_operator(np.zeros((count, 2, 3, 3)), (6, 7), padding="same").code_shape
    at = [rng.normal(size=(count, 2, 3, 3)), rng.normal(size=shape), rng.uniform(0.5, 2, size=shape)]
    at = [jnp.asarray(one) for one in at[: 3 if weighted else 2]]
    into = jnp.asarray(rng.normal(size=(2, 6, 7)))

    @jax.jit
    def value(filters, z, weights=None):
        op = conv_operator(filters, (6, 7), padding="same")
        return jnp.sum(into * pseudo_inverse(op, z, weights=weights, tol=1e-13).signal)

    found = jax.jit(jax.grad(value, argnums=tuple(range(len(at)))))(*at)
    for number, gradient in enumerate(found):
        direction = jnp.asarray(rng.normal(size=at[number].shape))
        step = 1e-5 * direction
        above, below = (value(*at[:number], at[number] + way * step, *at[number + 1 :]) for way in (1, -1))
        expected = float(above - below) / 2e-5
        size = float(jnp.linalg.norm(gradient) * jnp.linalg.norm(direction))
        assert abs(float(jnp.sum(gradient * direction)) - expected) < 1e-6 * size


@needs_x64
@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_gradients_of_a_deficient_layer(scale):
    """Fewer responses than samples: the cotangent is not in the range of W^T, and is to have any size."""
    rng = np.random.default_rng(3)
    at = tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((1, 1, 3), (1, 5)))
    into = jnp.asarray(rng.normal(size=(1, 7)))

    @jax.jit
    def value(filters, z):
        return scale * jnp.sum(into * pseudo_inverse(conv_operator(filters, 7), z, tol=1e-13).signal)

    @jax.jit
    def dense(filters, z):
        return scale * jnp.sum(into.ravel() * (jnp.linalg.pinv(_rows(filters)) @ z.ravel()))

    for own, expected in zip(jax.grad(value, (0, 1))(*at), jax.grad(dense, (0, 1))(*at), strict=True):
        assert np.allclose(own, expected, rtol=1e-6, atol=1e-8 * scale)


def _rows(filters):
    """Return W of one filter of 3 taps over one channel of 7 samples, valid."""
    return jnp.stack([jnp.zeros(7, filters.dtype).at[at : at + 3].set(filters[0, 0]) for at in range(5)])


def test_refusals():
    op, z = _tiny()
    with pytest.raises(ValueError, match=r"expected responses of shape .*got \(2, 10\)"):
        pseudo_inverse(op, z[:2])
    with pytest.raises(ValueError, match=r"expected weights of shape .*got \(3, 9\)"):
        pseudo_inverse(op, z, weights=z[:, :9])
    with pytest.raises(ValueError, match="expected a tolerance of at least 0, got -1"):
        pseudo_inverse(op, z, tol=-1)
    with pytest.raises(ValueError, match="max_steps"):
        pseudo_inverse(op, z, max_steps=0)
