"""The lanewise Cholesky factorisation and its solve against NumPy float64, alone, batched and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from cnninv_jax._linalg import ldl_factor, ldl_solve_transposed

DTYPES = [pytest.param(np.float32, marks=pytest.mark.float32), np.float64]
#: A new size is a new compilation: few examples, no shrinking.
QUICK = {"deadline": None, "phases": (Phase.explicit, Phase.generate)}
TOLERANCE = {np.dtype(np.float32): 3e-5, np.dtype(np.float64): 1e-13}


@pytest.fixture(autouse=True)
def _x64(request):
    dtype = request.node.callspec.params.get("dtype") if hasattr(request.node, "callspec") else None
    if dtype is np.float64 and not jax.config.jax_enable_x64:
        pytest.skip("64-bit types are off")


#: Compiled once a shape; called op by op the loops would compile piece by piece, for far longer.
FACTOR, SOLVE = jax.jit(ldl_factor), jax.jit(ldl_solve_transposed)
BATCHED, BATCHED_SOLVE = jax.jit(jax.vmap(ldl_factor)), jax.jit(jax.vmap(ldl_solve_transposed))


def definite(rng, size, lanes=None, rank=None):
    """Positive (semi)definite matrices of condition below a few hundred on their range."""
    shape = () if lanes is None else (lanes,)
    factor = rng.standard_normal((*shape, size, 2 * size if rank is None else rank))
    return factor @ np.swapaxes(factor, -1, -2) / factor.shape[-1]


def rebuilt(columns, scales):
    columns, scales = np.asarray(columns, np.float64), np.asarray(scales, np.float64)
    return (columns * scales[..., None, :]) @ np.swapaxes(columns, -1, -2)


def check(matrix, rows, right, dtype):
    """Compare with numpy.linalg on one definite matrix."""
    given_matrix, given_rows, given_right = (np.asarray(a, dtype) for a in (matrix, rows, right))
    columns, solved, scales = FACTOR(given_matrix, given_rows)
    solution = SOLVE(columns, scales, given_right)
    for array in (columns, solved, scales, solution):
        assert array.dtype == dtype
    exact = np.linalg.cholesky(given_matrix.astype(np.float64))
    condition = np.linalg.cond(exact) ** 2
    tolerance = TOLERANCE[np.dtype(dtype)]
    cholesky = np.asarray(columns, np.float64) * np.sqrt(np.asarray(scales, np.float64))
    np.testing.assert_array_equal(np.triu(columns, 1), 0)
    np.testing.assert_allclose(np.diag(columns) * scales, 1, rtol=10 * np.finfo(dtype).eps)
    np.testing.assert_allclose(cholesky, exact, atol=tolerance * condition * np.abs(exact).max())
    # Backward errors, which no condition number excuses.
    np.testing.assert_allclose(rebuilt(columns, scales), given_matrix, atol=tolerance * np.abs(given_matrix).max())
    residual = np.asarray(solved, np.float64) @ exact.T - given_rows
    assert np.all(np.abs(residual) <= tolerance * (1 + np.abs(solved).sum() * np.abs(exact).max()))
    residual = exact.T @ np.asarray(solution, np.float64) - given_right
    assert np.all(np.abs(residual) <= tolerance * (1 + np.abs(solution).sum() * np.abs(exact).max()))
    expected = np.linalg.solve(exact, given_rows.T.astype(np.float64)).T
    np.testing.assert_allclose(solved, expected, atol=tolerance * condition * (1 + np.abs(expected).max(initial=0)))
    expected = np.linalg.solve(exact.T, given_right.astype(np.float64))
    np.testing.assert_allclose(solution, expected, atol=tolerance * condition * (1 + np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=3, **QUICK)
@given(size=st.integers(1, 40), count=st.sampled_from([0, 3]), seed=st.integers(0, 2**32 - 1))
def test_factor_and_solve_agree_with_numpy(dtype, size, count, seed):
    rng = np.random.default_rng(seed)
    matrix = definite(rng, size)
    check(matrix, rng.standard_normal((count, size)), rng.standard_normal((size, count)), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 5, 28])
def test_every_stage_pattern(dtype, size):
    """Fewer columns than stages, uneven stages, the paper's n."""
    rng = np.random.default_rng(size)
    check(definite(rng, size), rng.standard_normal((2, size)), rng.standard_normal((size, 2)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(dtype, scale):
    """Pivots are judged relative to their own diagonal entry."""
    rng = np.random.default_rng(4)
    matrix = definite(rng, 9).astype(dtype)
    power = 2.0 ** np.round(np.log2(scale))
    columns, _, scales = FACTOR(matrix, np.zeros((0, 9), dtype))
    scaled, _, rescaled = FACTOR(matrix * dtype(power), np.zeros((0, 9), dtype))
    np.testing.assert_allclose(np.asarray(scaled) / power, columns, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(rescaled) * power, scales, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "count"), [(5, 0), pytest.param(13, 6, marks=pytest.mark.slow)])
def test_lanes_equal_single_calls_to_the_last_bit(dtype, size, count):
    rng = np.random.default_rng(size)
    matrices = definite(rng, size, 7).astype(dtype)
    rows = rng.standard_normal((7, count, size)).astype(dtype)
    right = rng.standard_normal((7, size, count)).astype(dtype)
    columns, solved, scales = BATCHED(matrices, rows)
    solution = BATCHED_SOLVE(columns, scales, right)
    for lane in range(7):
        alone = FACTOR(matrices[lane], rows[lane])
        for got, want in zip(alone, (columns, solved, scales), strict=True):
            np.testing.assert_array_equal(got, want[lane])
        np.testing.assert_array_equal(SOLVE(columns[lane], scales[lane], right[lane]), solution[lane])


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows_are_left_out(dtype):
    """A filter shifted off the support of x meets zeros: its row of P P^T is exactly zero."""
    rng = np.random.default_rng(0)
    matrix = definite(rng, 12)
    empty = [0, 4, 5, 11]
    matrix[empty], matrix[:, empty] = 0, 0
    matrix = matrix.astype(dtype)
    rows = rng.standard_normal((3, 12)).astype(dtype)
    columns, solved, scales = FACTOR(matrix, rows)
    np.testing.assert_array_equal(np.asarray(scales)[empty], 0)
    np.testing.assert_array_equal(np.asarray(solved)[:, empty], 0)
    np.testing.assert_allclose(rebuilt(columns, scales), matrix, atol=TOLERANCE[np.dtype(dtype)])
    solution = np.asarray(SOLVE(columns, scales, rows.T))
    np.testing.assert_array_equal(solution[empty], 0)
    rest = np.setdiff1d(np.arange(12), empty)
    exact = np.linalg.cholesky(matrix[np.ix_(rest, rest)].astype(np.float64))
    tolerance = 100 * TOLERANCE[np.dtype(dtype)]
    np.testing.assert_allclose(solution[rest], np.linalg.solve(exact.T, rows.T[rest]), atol=tolerance)
    np.testing.assert_allclose(np.asarray(solved)[:, rest], np.linalg.solve(exact, rows.T[rest]).T, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=6, **QUICK)
@given(copies=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_duplicated_rows_are_factored_on_their_range(dtype, copies, seed):
    rng = np.random.default_rng(seed)
    size = 12 - copies  # one shape, one compilation
    index = np.concatenate([np.arange(size), rng.integers(0, size, copies)])
    rng.shuffle(index)
    matrix = definite(rng, size)[np.ix_(index, index)].astype(dtype)
    # Rows in the range of the matrix, so that a solution exists.
    weights = rng.standard_normal((2, len(index)))
    rows = (weights @ matrix).astype(dtype)
    columns, solved, scales = FACTOR(matrix, rows)
    tolerance = 300 * TOLERANCE[np.dtype(dtype)]
    assert np.sum(np.asarray(scales) > 0) == size
    np.testing.assert_allclose(rebuilt(columns, scales), matrix, atol=tolerance * np.abs(matrix).max())
    cholesky = np.asarray(columns, np.float64) * np.sqrt(np.asarray(scales, np.float64))
    np.testing.assert_allclose(np.asarray(solved) @ cholesky.T, rows, atol=tolerance * np.abs(rows).max())
    # A u = L (L^T u) = rows through both halves of the solve.
    twice = np.asarray(SOLVE(columns, scales, np.asarray(solved).T), np.float64)
    np.testing.assert_allclose(matrix @ twice, rows.T, atol=10 * tolerance * np.abs(rows).max() * size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_and_zero_matrices(dtype):
    rng = np.random.default_rng(8)
    tolerance = 30 * TOLERANCE[np.dtype(dtype)]
    for rank in (1, 3, 9):
        matrix = definite(rng, 10, rank=rank).astype(dtype)
        columns, _, scales = FACTOR(matrix, np.zeros((0, 10), dtype))
        np.testing.assert_allclose(rebuilt(columns, scales), matrix, atol=tolerance * np.abs(matrix).max())
        assert np.all(np.isfinite(columns))
        assert np.all(np.isfinite(scales))
    columns, solved, scales = FACTOR(np.zeros((6, 6), dtype), np.ones((2, 6), dtype))
    for array in (columns, solved, scales, SOLVE(columns, scales, np.ones((6, 2), dtype))):
        np.testing.assert_array_equal(array, 0)


@pytest.mark.parametrize("which", ["matrix", "rows"])
def test_a_lane_with_nan_spoils_no_other(which):
    rng = np.random.default_rng(1)
    matrices, rows = definite(rng, 6, 4).astype(np.float32), rng.standard_normal((4, 2, 6)).astype(np.float32)
    clean = BATCHED(matrices, rows)
    (matrices if which == "matrix" else rows)[2] = np.nan
    spoilt = BATCHED(matrices, rows)
    for lane in (0, 1, 3):
        for got, want in zip(spoilt, clean, strict=True):
            np.testing.assert_array_equal(got[lane], want[lane])
    assert np.all(np.isnan(np.asarray(spoilt[1][2])) | (np.asarray(spoilt[1][2]) == 0))


@pytest.mark.slow
def test_partly_batched_arguments():
    """Only the right-hand sides batched, only the matrix, and a matrix shared by a nested vmap."""
    rng = np.random.default_rng(5)
    matrices = definite(rng, 8, 3).astype(np.float32)
    rows = rng.standard_normal((3, 2, 8)).astype(np.float32)
    for axes in ((None, 0), (0, None), (0, 0)):
        first = matrices[0] if axes[0] is None else matrices
        second = rows[0] if axes[1] is None else rows
        got = jax.jit(jax.vmap(ldl_factor, in_axes=axes))(first, second)
        for lane in range(3):
            want = FACTOR(*(a if x is None else a[lane] for a, x in zip((first, second), axes, strict=True)))
            for one, other in zip(got, want, strict=True):
                np.testing.assert_allclose(one[lane], other, rtol=1e-6, atol=1e-6)
    columns, _, scales = FACTOR(matrices[0], rows[0])
    right = np.swapaxes(rows, 1, 2)
    got = jax.jit(jax.vmap(ldl_solve_transposed, in_axes=(None, None, 0)))(columns, scales, right)
    want = np.stack([SOLVE(columns, scales, one) for one in right])
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    nested = jax.jit(jax.vmap(jax.vmap(ldl_factor, in_axes=(None, 0)), in_axes=(0, None)))(matrices, rows)
    flat = BATCHED(np.repeat(matrices, 3, axis=0), np.tile(rows, (3, 1, 1)))
    for one, other in zip(nested, flat, strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=1e-6, atol=1e-6)


def together(matrix, rows):
    columns, solved, scales = ldl_factor(matrix, rows)
    return solved, ldl_solve_transposed(columns, scales, solved.T)


@pytest.mark.slow
def test_under_jit_vmap_and_scan():
    rng = np.random.default_rng(6)
    matrices, rows = definite(rng, 11, 24).astype(np.float32), rng.standard_normal((24, 2, 11)).astype(np.float32)

    @jax.jit
    def scanned(matrices, rows):
        def step(total, batch):
            solved, solution = jax.vmap(together)(*batch)
            return total + jnp.sum(solved), solution

        return jax.lax.scan(step, jnp.zeros((), np.float32), (matrices, rows))

    total, solution = scanned(matrices.reshape(4, 6, 11, 11), rows.reshape(4, 6, 2, 11))
    solved, expected = jax.jit(jax.vmap(together))(matrices, rows)
    np.testing.assert_allclose(solution.reshape(24, 11, 2), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, np.sum(solved), rtol=1e-4)
    exact = np.linalg.solve(matrices.astype(np.float64), np.swapaxes(rows, 1, 2))
    np.testing.assert_allclose(expected, exact, atol=1e-3 * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.timeout(120, method="thread")  # a signal would not reach native code that waits
@pytest.mark.parametrize("devices", [2, 4])
def test_inside_shard_map_on_several_devices(devices):
    """Why the module exists: batched LAPACK calls on several CPU devices at once may wait for one another for ever."""
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("draws",))
    lanes, size = 1024 * devices, 28
    rng = np.random.default_rng(7)
    matrices = definite(rng, size, lanes).astype(np.float32)
    rows = rng.standard_normal((lanes, 6, size)).astype(np.float32)

    def local(matrices, rows):
        def step(carry, batch):
            return carry, jax.vmap(together)(*batch)[1]

        batches = jax.tree.map(lambda a: a.reshape(-1, 128, *a.shape[1:]), (matrices, rows))
        return jax.lax.scan(step, 0, batches)[1].reshape(-1, size, 6)

    spec = PartitionSpec("draws")
    # Every iteration of the scan on every device: the collision needs both at once, and several tries.
    sharded = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False))
    results = [np.asarray(sharded(matrices, rows)) for _ in range(3)]
    np.testing.assert_array_equal(results[0], results[2])
    exact = np.linalg.solve(matrices.astype(np.float64), np.swapaxes(rows, 1, 2))
    errors = np.abs(results[0] - exact).max(axis=(1, 2)) / np.abs(exact).max(axis=(1, 2))
    assert errors.max() < 1e-3
