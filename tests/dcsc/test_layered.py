"""Layered pursuits against the optimality conditions and iterations of dense matrices in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.dcsc.forward import default_thresholds, forward
from cnninv_jax.dcsc.layered import layered_basis_pursuit, layered_iht
from cnninv_jax.dcsc.model import draw_signs, layers, reverse_pass, shapes
from cnninv_jax.operators import as_matrix
from cnninv_jax.recovery import RESULTS, LassoStatus

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32

pursue = jax.jit(layered_basis_pursuit, static_argnames=("relative", "tol", "max_steps"))
iterate = jax.jit(layered_iht, static_argnames=("step", "num_steps", "tol"))


def two_layers(dtype=DEFAULT, padding="valid"):
    """Gaussian filters below, atoms of two signs above; signs drawn."""
    rng = np.random.default_rng(3)
    bank = rng.standard_normal((6, 8, 4)).astype(dtype)
    deep = np.zeros((3, 6, 4), dtype)
    for atom in deep:
        atom.ravel()[rng.choice(24, 2, replace=False)] = rng.choice([-1, 1], 2)
    return draw_signs(jax.random.key(1), layers([bank, deep], 20, padding=padding))


def path_of(model, places=(5,)):
    deepest = np.zeros(shapes(model)[-1], model[0].op.dtype)
    for place in places:
        deepest.ravel()[place] = 1
    return reverse_pass(model, deepest)


def dense(layer):
    """A^(l), without signs."""
    return np.asarray(as_matrix(layer.op), np.float64).T


@pytest.mark.slow
@pytest.mark.parametrize("relative", [pytest.param(True), False], ids=["fractions", "absolute"])
def test_every_layer_is_optimal(relative):
    """2 A^T (x - A u) = lam sign(u) where u is not zero, and within lam elsewhere."""
    model = two_layers()
    path = path_of(model, (5, 20))
    x = path[0] + 0.05 * np.random.default_rng(0).standard_normal(path[0].shape).astype(DEFAULT)
    lams, betas = np.array([0.2, 0.1]), np.array([0.02, 0.02])
    found = pursue(model, x, lams, relative=relative, thresholds=betas, tol=1e-9 if X64 else 1e-5, truth=path)
    assert list(found.status) == [LassoStatus.CONVERGED] * 2
    signal = np.asarray(x, np.float64).ravel()
    for layer, code, weight, beta in zip(model, found.forward.codes, lams, betas, strict=True):
        matrix = dense(layer)
        lam = weight * 2 * np.abs(matrix.T @ signal).max() if relative else weight
        u = (np.asarray(layer.signs) * np.asarray(code)).ravel()
        assert np.abs(u[u != 0]).min() > beta
        # What the threshold took away is part of the solution that the conditions are about.
        whole = pursue(
            (layer,), jnp.asarray(signal.reshape(layer.op.input_shape), DEFAULT), np.array([lam]),
            relative=False, tol=1e-9 if X64 else 1e-5,
        )  # fmt: skip
        solution = (np.asarray(layer.signs) * np.asarray(whole.forward.codes[0], np.float64)).ravel()
        np.testing.assert_allclose(np.where(np.abs(solution) > beta, solution, 0), u, atol=1e-4 if X64 else 1e-2)
        gradient = 2 * matrix.T @ (signal - matrix @ solution)
        assert np.abs(gradient).max() <= lam * (1 + 1e-3)
        active = np.abs(solution) > 1e-3
        assert active.any()
        np.testing.assert_allclose(gradient[active], lam * np.sign(solution[active]), rtol=2e-3 if X64 else 3e-2)
        signal = np.asarray(code, np.float64).ravel()


def keep(h, k):
    """The k largest, ties to the lowest index."""
    chosen = np.argsort(-np.abs(h), kind="stable")[:k]
    kept = np.zeros_like(h)
    kept[chosen] = h[chosen]
    return kept


@pytest.mark.slow
def test_iht_is_the_dense_iteration():
    model = two_layers()
    path = path_of(model, (5, 20))
    counts, step = (4, 2), 0.3
    found = iterate(model, path[0], jnp.asarray(counts, np.int32), step=step, num_steps=5, tol=None, truth=path)
    signal = np.asarray(path[0], np.float64).ravel()
    for layer, code, k in zip(model, found.forward.codes, counts, strict=True):
        matrix = dense(layer)
        u = np.zeros(matrix.shape[1])
        for _ in range(5):
            u = keep(u + step * matrix.T @ (signal - matrix @ u), k)
        expected = np.asarray(layer.signs).ravel() * u
        np.testing.assert_allclose(np.asarray(code).ravel(), expected, atol=1e-9 if X64 else 1e-4)
        signal = expected
    assert list(found.status) == [RESULTS.COMPLETED] * 2
    assert list(found.steps) == [5, 5]


@pytest.mark.slow
@pytest.mark.parametrize("padding", [pytest.param("valid"), "circular"])
def test_both_recover_the_path_where_one_pass_does_not(padding):
    """Exact data, a few atoms that meet in the signal: thresholding once fails, solving the problem does not."""
    model = two_layers(padding=padding)
    path = path_of(model, (5, 7, 20))
    betas = default_thresholds(path)
    counts = tuple(int(np.count_nonzero(code)) for code in path[1:])
    once = forward(model, path[0], "hard", thresholds=betas, truth=path)
    pursued = pursue(model, path[0], np.array([0.01, 0.01]), thresholds=betas, truth=path)
    iterated = iterate(model, path[0], jnp.asarray(counts, np.int32), truth=path)
    assert not once.path_recovered
    assert pursued.forward.path_recovered
    assert iterated.forward.path_recovered
    assert list(iterated.forward.hits) == list(counts)
    for code, expected in zip(iterated.forward.codes, path[1:], strict=True):
        np.testing.assert_allclose(code, expected, atol=1e-3)
    shrunk = pursue(model, path[0], np.array([1.01, 1.01]), truth=path)
    assert list(shrunk.forward.misses) == list(counts)


@pytest.mark.slow
def test_batches_of_signs_and_float32():
    model = two_layers(np.float32)
    path = path_of(model)

    def one(key):
        drawn = draw_signs(key, model)
        truth = reverse_pass(drawn, path[-1])
        return layered_basis_pursuit(drawn, truth[0], np.array([0.1, 0.1], np.float32), truth=truth)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), 3))
    assert found.forward.hits.shape == found.steps.shape == (3, 2)
    assert found.forward.codes[0].dtype == np.float32
    alone = jax.jit(one)(jax.random.split(jax.random.key(4), 3)[1])
    np.testing.assert_array_equal(found.forward.misses[1], alone.forward.misses)
    bare = layered_iht(model, path[0], (2, 1), num_steps=1)
    assert bare.forward.hits is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: layered_basis_pursuit(model, x, np.ones(3)), "lams of shape"),
        (lambda model, x: layered_basis_pursuit(model, x, np.ones(2), thresholds=np.ones(1)), "thresholds of shape"),
        (lambda model, x: layered_basis_pursuit(model, x[:1], np.ones(2)), "a signal of shape"),
        (lambda model, x: layered_iht(model, x, (1,)), "one k for each of 2 layers"),
        (lambda model, x: layered_iht(model, x, (0, 1)), "1 <= k"),
        # Refused before a solver runs, which would refuse the count.
        (lambda model, x: layered_iht(model, x, (0, 1), truth=[x]), "expected truth"),
    ],
    ids=["weights", "thresholds", "signal", "counts", "no count", "truth"],
)
def test_layered_refuses(call, message):
    model = two_layers()
    with pytest.raises(ValueError, match=message):
        call(model, path_of(model)[0])
