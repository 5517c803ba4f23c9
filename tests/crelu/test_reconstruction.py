"""Algorithms 1 and 2 against dense pseudo-inverses built in NumPy by definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.crelu.activation import Pooled, crelu, max_pool
from cnninv_jax.crelu.reconstruction import reconstruct, reconstruct_pooled
from cnninv_jax.operators import analysis, conv_operator, synthesis
from tests import oracles

DTYPE = jnp.zeros(()).dtype
DOUBLE = np.float64 == DTYPE
TOL, CLOSE = (1e-13, 1e-8) if DOUBLE else (1e-6, 2e-3)
single = jax.jit(functools.partial(reconstruct, tol=TOL, max_steps=400))
pooled_jit = jax.jit(functools.partial(reconstruct_pooled, tol=TOL, max_steps=400))
analysis_jit = jax.jit(analysis)
pool_jit = jax.jit(max_pool, static_argnames=("pool", "stride"))

LAYERS = {
    # name: filters' shape, D, geometry of W, pooling window, its stride
    "one axis": ((5, 2, 4), 15, {}, 3, None),
    "one axis, stride": ((4, 2, 3), 17, {"stride": 2}, 3, 2),
    "paper: 3 x 3 windows, stride 2": ((6, 3, 3, 3), (8, 8), {"padding": "same"}, 3, 2),
    "single region, as in A.2": ((7, 2, 3), 14, {}, None, None),
    "two axes, valid, one region": ((5, 2, 3, 2), (6, 5), {}, None, None),
    "two axes, stride, same": ((4, 2, 3, 3), (9, 7), {"padding": "same", "stride": 2}, 2, 1),
}
SLOW = ("one axis", "two axes, valid, one region", "two axes, stride, same")


def made(name, seed=0):
    shape, size, geometry, pool, stride = LAYERS[name]
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal(shape)
    op = conv_operator(jnp.asarray(bank, DTYPE), size, **geometry)
    w = oracles.dense_matrix(bank, op.signal_shape, op.stride, op.padding)
    return op, w, rng.standard_normal(op.input_shape), pool, stride


def shifted_filters_that_won(w, h, window, stride):
    """W^_x and z by definition (A.2): for every window of every phase the signed w_i^j of its largest response.

    Windows of both phases one after another; a shift that wins several windows is there several times.
    """
    count, *shifts = h.shape
    rank = len(shifts)
    columns, values = [], []
    rows = w.reshape(count, *shifts, -1)
    for sign in (1, -1):
        for i in range(count):
            starts = [range(0, n - p + 1, s) for n, p, s in zip(shifts, window, stride, strict=True)]
            for corner in np.ndindex(*map(len, starts)):
                at = [starts[axis][corner[axis]] for axis in range(rank)]
                block = [slice(a, a + p) for a, p in zip(at, window, strict=True)]
                responses = sign * h[(i, *block)]
                place = np.unravel_index(np.argmax(responses), responses.shape)
                if responses[place] > 0:
                    shift = tuple(a + b for a, b in zip(at, place, strict=True))
                    columns.append(sign * rows[(i, *shift)])
                    values.append(responses[place])
    return np.asarray(columns).reshape(-1, w.shape[1]).T, np.asarray(values)


@functools.partial(jax.jit, static_argnames=("pool", "stride"))
def forth_and_back(op, x, pool, stride):
    """Return responses, Algorithm 1's answer, the pooled features, and Algorithm 2's answer."""
    h = analysis(op, x)
    pooled = max_pool(h, pool, stride=stride)
    full = reconstruct(op, crelu(h), tol=TOL, max_steps=400)
    return h, full, pooled, reconstruct_pooled(op, *pooled, tol=TOL, max_steps=400)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in LAYERS]
)
def test_both_algorithms_are_the_dense_formulas(name):
    """Algorithm 1 is Q x with the dense Q = pinv(W) W, Algorithm 2 pinv(W^_x^T) z; of rank-deficient banks too."""
    op, _, x, pool, stride = made(name)
    window = op.shifts if pool is None else (pool,) * op.rank
    step = window if stride is None else (stride,) * op.rank
    # Two filters alike but for a factor, one zero.
    deficient = np.asarray(op.filters).copy()
    deficient[1], deficient[2] = -2 * deficient[0], 0
    for bank in (np.asarray(op.filters), deficient):
        one = dataclasses.replace(op, filters=jnp.asarray(bank))
        w = oracles.dense_matrix(bank, op.signal_shape, op.stride, op.padding)
        h, full, pooled, part = forth_and_back(one, jnp.asarray(x, DTYPE), pool, stride)
        truth = np.linalg.pinv(w) @ w @ x.ravel()
        np.testing.assert_allclose(full.signal.ravel(), truth, atol=CLOSE * np.linalg.norm(truth))
        columns, values = shifted_filters_that_won(w, np.asarray(h, np.float64), window, step)
        assert np.count_nonzero(pooled.features) == len(values)
        winning = np.linalg.pinv(columns.T) @ values
        np.testing.assert_allclose(part.signal.ravel(), winning, atol=CLOSE * np.linalg.norm(truth))
        # It is x projected onto what won, and no nearer to x than what Algorithm 1 gives.
        projected = columns @ np.linalg.pinv(columns) @ x.ravel()
        np.testing.assert_allclose(winning, projected, atol=CLOSE * np.linalg.norm(truth))
        assert np.linalg.norm(projected - x.ravel()) >= np.linalg.norm(truth - x.ravel())
        if DOUBLE:
            assert int(full.status) == int(part.status) == 0


def test_features_that_disagree_are_met_in_the_middle():
    """Estimates of pooled features: the windows that one shift won say different things, every one a column."""
    op, w, x, pool, stride = made("paper: 3 x 3 windows, stride 2")
    h = (w @ x.ravel()).reshape(op.code_shape)
    columns, _ = shifted_filters_that_won(w, h, (pool,) * 2, (stride,) * 2)
    _, switches = pool_jit(jnp.asarray(h, DTYPE), pool, stride=stride)
    estimates = np.random.default_rng(4).standard_normal(switches.shape)
    found = pooled_jit(op, jnp.asarray(estimates, DTYPE), switches)
    truth = np.linalg.pinv(columns.T) @ estimates.ravel()[np.asarray(switches).ravel() >= 0]
    np.testing.assert_allclose(found.signal.ravel(), truth, atol=CLOSE * np.linalg.norm(truth))


@pytest.mark.parametrize("pooled", [False, True], ids=["algorithm 1", "algorithm 2"])
def test_a_bias_is_taken_off(pooled):
    op, w, x, _, _ = made("one axis")
    bias = np.linspace(-1, 2, op.num_filters)
    h = (w @ x.ravel()).reshape(op.code_shape) + bias[:, None]
    if pooled:
        features, switches = pool_jit(jnp.asarray(h, DTYPE), 2)
        found = pooled_jit(op, features, switches, bias=jnp.asarray(bias, DTYPE))
        columns, values = shifted_filters_that_won(w, h, (2,), (2,))
        # The columns of W^_x answer x without the bias, which bears the sign of the phase.
        truth = columns @ np.linalg.pinv(columns) @ x.ravel()
        assert len(values) == np.count_nonzero(features)
    else:
        found = single(op, crelu(jnp.asarray(h, DTYPE)), bias=jnp.asarray(bias, DTYPE))
        truth = np.linalg.pinv(w) @ w @ x.ravel()
    np.testing.assert_allclose(found.signal.ravel(), truth, atol=CLOSE * np.linalg.norm(truth))


def test_nothing_fired():
    op, *_ = made("one axis")
    bias = jnp.ones(op.num_filters, DTYPE)
    nothing = Pooled(jnp.zeros((2 * op.num_filters, 6), DTYPE), jnp.full((2 * op.num_filters, 6), -1, np.int32))
    np.testing.assert_array_equal(pooled_jit(op, *nothing, bias=bias).signal, np.zeros(op.input_shape))
    zero = single(op, jnp.zeros((2 * op.num_filters, *op.shifts), DTYPE), bias=jnp.zeros_like(bias))
    np.testing.assert_array_equal(zero.signal, np.zeros(op.input_shape))
    assert float(zero.residual) == 0


def test_proposition_1_of_gilbert_2017():
    """W an orthonormal basis: Psi [h_+, h_-] = W^T (h_+ - h_-) = x, and so does Algorithm 1, in one step."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0].reshape(12, 3, 2, 2)
    op = conv_operator(jnp.asarray(basis, DTYPE), (6, 4), stride=2)
    w = oracles.dense_matrix(basis, (6, 4), (2, 2))
    np.testing.assert_allclose(w @ w.T, np.eye(len(w)), atol=1e-12)
    assert w.shape[0] == w.shape[1]
    x = jnp.asarray(rng.standard_normal(op.input_shape), DTYPE)
    features = crelu(analysis_jit(op, x))
    psi = np.concatenate([w.T, -w.T], axis=1)
    np.testing.assert_allclose(
        psi @ np.asarray(features).ravel(), np.asarray(x).ravel(), atol=1e-5 if not DOUBLE else 1e-12
    )
    found = single(op, features)
    np.testing.assert_allclose(found.signal, x, atol=1e-5 if not DOUBLE else 1e-12)
    assert int(found.num_steps) <= 2


@pytest.mark.slow
def test_orthonormal_rows_and_orthonormal_columns():
    """With W W^T = I the projection is W^T W x, with W^T W = I it is x: no iteration is needed, W^T z is the answer."""
    rng = np.random.default_rng(3)
    tall = np.linalg.qr(rng.standard_normal((9, 5)))[0]
    for bank in (tall.T.reshape(5, 3, 3), tall.reshape(9, 5, 1)):
        op = conv_operator(jnp.asarray(bank, DTYPE), bank.shape[2] * 4, stride=bank.shape[2])
        x = jnp.asarray(rng.standard_normal(op.input_shape), DTYPE)
        found, once = jax.jit(lambda op, x: (reconstruct(op, crelu(analysis(op, x))), synthesis(op, analysis(op, x))))(
            op, x
        )
        np.testing.assert_allclose(found.signal, once, atol=1e-5 if not DOUBLE else 1e-12)
        exact = op.num_filters > op.channels * op.length[0]
        assert np.allclose(found.signal, x, atol=1e-5) == exact


def test_batches_and_new_filters_compile_once():
    op, _, _, pool, stride = made("one axis, stride")
    traces = []

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def ratios(op, x):
        traces.append(None)
        h = analysis(op, x)
        full = reconstruct(op, crelu(h), tol=TOL, max_steps=400)
        features, switches = max_pool(h, pool, stride=stride)
        part = reconstruct_pooled(op, features, switches, tol=TOL, max_steps=400)
        return full.signal, part.signal

    x = np.random.default_rng(6).standard_normal((3, *op.input_shape)).astype(DTYPE)
    for bank in (op.filters, 2 * op.filters[::-1]):
        one = conv_operator(bank, op.signal_shape, stride=op.stride)
        full, part = ratios(one, x)
        for number in range(3):
            _, whole, _, winning = forth_and_back(one, x[number], pool, stride)
            np.testing.assert_allclose(full[number], whole.signal, atol=CLOSE)
            np.testing.assert_allclose(part[number], winning.signal, atol=CLOSE)
    assert len(traces) == 1


OP = conv_operator(np.ones((2, 1, 3), np.float32), 8)
REFUSED = {
    "shape": (lambda: reconstruct(OP, np.ones((4, 5))), r"expected features of shape \[2 K, \*n\] = \(4, 6\)"),
    "one of a batch": (lambda: reconstruct(OP, np.ones((1, 4, 6))), "use jax.vmap for a batch"),
    "no operator": (lambda: reconstruct(np.ones((2, 1, 3)), np.ones((4, 6))), "expected a ConvOperator, .*got ndarray"),
    "no operator, pooled": (
        lambda: reconstruct_pooled([], np.ones((4, 2)), np.ones((4, 2), int)),
        "expected a ConvOperator, .*got list",
    ),
    "batch": (lambda: reconstruct(OP, np.ones((2, 4, 6))), "use jax.vmap for a batch"),
    "odd": (lambda: reconstruct(OP, np.ones((3, 6))), r"expected features .*got \(3, 6\)"),
    "bias": (lambda: reconstruct(OP, np.ones((4, 6)), bias=np.ones(4)), r"expected a bias of shape \[K\] = \(2,\)"),
    "filters": (lambda: reconstruct_pooled(OP, np.ones((6, 2)), np.ones((6, 2), int)), "with K = 2"),
    "switches": (
        lambda: reconstruct_pooled(OP, np.ones((4, 2)), np.ones((4, 3), int)),
        "got \\(4, 2\\) and \\(4, 3\\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
