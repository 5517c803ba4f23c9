"""M, M_known and M_fixed against loops and against a search of every support."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax import sparsity
from cnninv_jax.sparsity import max_pool, num_blocks, regions, switches_of, unpool

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32

STATIC = ("k", "pool", "nonnegative")
# Compiled once per layout; the plain functions run one operation at a time.
project = jax.jit(sparsity.project, static_argnames=STATIC)
project_known = jax.jit(sparsity.project_known, static_argnames=STATIC[:2])
project_fixed = jax.jit(sparsity.project_fixed, static_argnames=STATIC[:2])
project_sparse = jax.jit(sparsity.project_sparse, static_argnames=STATIC)
project_traced = jax.jit(sparsity.project, static_argnames=("pool", "nonnegative"))

# (code shape, pool): whole responses, full regions, partial borders, one and two axes.
LAYOUTS = [((4, 3), None), ((2, 5), (2,)), ((1, 3, 5), (2, 2)), ((3, 2, 2), None), ((2, 3, 3), (2, 3)), ((5, 1), None)]


def code(shape, seed=0, kind="normal"):
    rng = np.random.default_rng(seed)
    # Small integers: many ties, many zeros.
    values = rng.normal(size=shape) if kind == "normal" else rng.integers(-2, 3, size=shape)
    return jnp.asarray(values, DEFAULT)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(("shape", "pool"), LAYOUTS)
def test_project_is_the_nearest_member(shape, pool, nonnegative):
    """No support of M_k does better, and the result is a member of M_k."""
    for k in {1, min(num_blocks(shape, pool), 3)}:
        for kind in ("normal", "ties"):
            h = code(shape, k, kind)
            z = np.asarray(project(h, k, pool=pool, nonnegative=nonnegative))
            assert z.dtype == DEFAULT
            counts = [sum(z[entry] != 0 for entry in block) for block in oracles.blocks(shape, pool)]
            assert max(counts) <= 1
            assert sum(counts) <= k
            best = oracles.projection_distance(h, k, pool, nonnegative)
            assert abs(np.sum((np.asarray(h, np.float64) - z) ** 2) - best) < 1e-5 * (1 + best)


@pytest.mark.parametrize(("shape", "pool"), LAYOUTS)
def test_every_reading_is_that_of_the_loops(shape, pool):
    """Exact equality, ties included: the lowest index wins."""
    equal = np.testing.assert_array_equal
    for k, kind in itertools.product({2, num_blocks(shape, pool)}, ("normal", "ties")):
        h, truth = code(shape, k, kind), code(shape, k + 50, "ties")
        switches = switches_of(truth, pool)
        equal(project(h, k, pool=pool), oracles.project(h, k, pool))
        equal(project(h, k, pool=pool, nonnegative=True), oracles.project(h, k, pool, nonnegative=True))
        equal(project_known(h, k, pool=pool), oracles.project(h, k, pool))
        equal(project_known(h, k, switches, pool=pool), oracles.project(h, k, pool, switches=switches))
        equal(project_fixed(h, k, pool=pool), oracles.project(h, k, pool, fixed=True))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    values=st.lists(st.integers(-2, 2), min_size=15, max_size=15),
    k=st.integers(1, 6),
    layout=st.sampled_from([((1, 15), (4,)), ((3, 5), (2,)), ((1, 3, 5), (2, 2))]),
)
def test_ties_go_to_the_lowest_index(values, k, layout):
    shape, pool = layout
    k = min(k, num_blocks(shape, pool))
    h = jnp.asarray(values, DEFAULT).reshape(shape)
    np.testing.assert_array_equal(project_traced(h, jnp.asarray(k), pool=pool), oracles.project(h, k, pool))


@pytest.mark.parametrize("function", [project, project_known, project_fixed])
@pytest.mark.parametrize(("shape", "pool"), [((3, 3), None), ((1, 3, 3), (2, 2))])
def test_traced_k_is_static_k(shape, pool, function):
    blocks = num_blocks(shape, pool)
    h = code(shape, 3, "ties")
    static = [function(h, k, pool=pool) for k in range(1, blocks + 1)]
    plain = getattr(sparsity, function.__name__)
    traced = jax.jit(jax.vmap(lambda k: plain(h, k, pool=pool)))(jnp.arange(-2, blocks + 8))
    # Out of range: clipped.
    expected = [np.zeros(shape)] * 3 + static + [static[-1]] * 7
    np.testing.assert_array_equal(traced, np.stack(expected))


def test_traced_k_must_be_an_integer_scalar():
    h = code((4, 3))
    for k in (jnp.asarray(0.5), jnp.asarray([1, 2])):
        with pytest.raises(ValueError, match="integer scalar"):
            sparsity.project(h, k)


def test_fractions_count_entries():
    h = code((6, 5))
    np.testing.assert_array_equal(project(h, 0.1), project(h, 3))
    np.testing.assert_array_equal(project(h, 1.0, pool=1), h)
    for function in (project, project_known, project_fixed, project_sparse):
        with pytest.raises(ValueError, match=r"1 <= k <= 6 .* got k = 7"):
            function(h, 7)
        with pytest.raises(ValueError, match=r"got k = 15 from the fraction 0\.5"):
            function(h, 0.5)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(("shape", "pool"), LAYOUTS)
def test_max_pool_and_unpool(shape, pool, nonnegative):
    h = code(shape, 1, "ties")
    values, switches = max_pool(h, pool, nonnegative=nonnegative)
    assert values.shape == switches.shape == (shape[0], *regions(shape[1:], pool))
    assert switches.dtype == np.int32
    seen = np.maximum(h, 0) if nonnegative else np.asarray(h)
    for number, block in enumerate(oracles.blocks(shape, pool)):
        winner = max(block, key=lambda entry: abs(seen[entry]))  # max() takes the first among equals
        assert values.ravel()[number] == seen[winner]
        assert np.unravel_index(switches.ravel()[number], shape[1:]) == winner[1:]
    blocks = num_blocks(shape, pool)
    np.testing.assert_array_equal(
        unpool(values, switches, shape[1:]), project(h, blocks, pool=pool, nonnegative=nonnegative)
    )


@pytest.mark.parametrize(("shape", "pool"), LAYOUTS)
def test_switches_of_a_code(shape, pool):
    k = min(2, num_blocks(shape, pool))
    z = sparsity.sample_code(jax.random.key(1), shape[0], shape[1:], k, pool=pool, values="signs").to_dense()
    switches = switches_of(z, pool)
    assert np.sum(np.asarray(switches) >= 0) == k
    values, _ = max_pool(z, pool)
    np.testing.assert_array_equal(unpool(values, switches, shape[1:]), z)
    # The true support is known: M_known reads h there and nowhere else.
    h = code(shape, 4)
    np.testing.assert_array_equal(
        project_known(h, num_blocks(shape, pool), switches, pool=pool), jnp.where(z != 0, h, 0.0)
    )


def test_switches_of_takes_the_largest_and_marks_empty_blocks():
    z = jnp.asarray([[0.0, 1.0, -3.0, 0.0], [0.0, 0.0, 0.0, 0.0]], DEFAULT)
    assert switches_of(z).tolist() == [[2], [-1]]
    assert switches_of(z, 2).tolist() == [[1, 2], [-1, -1]]


def test_known_switches_outside_their_block_keep_nothing():
    h = code((1, 4))
    kept = project_known(h, 2, jnp.asarray([[3, 99]], np.int32), pool=2)
    np.testing.assert_array_equal(kept, np.zeros((1, 4)))
    # A partial region lacks elements: the switch -1 must not be taken for one of those.
    h = code((1, 3))
    kept = project_known(h, 2, jnp.asarray([[0, -1]], np.int32), pool=2)
    np.testing.assert_array_equal(kept, h * jnp.asarray([[1.0, 0.0, 0.0]], DEFAULT))


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(("shape", "pool"), LAYOUTS)
def test_sparse_form(shape, pool, nonnegative):
    for k in {1, num_blocks(shape, pool)}:
        for kind in ("normal", "ties"):
            h = code(shape, 2, kind)
            sparse = project_sparse(h, k, pool=pool, nonnegative=nonnegative)
            assert sparse.size == k
            dense = project(h, k, pool=pool, nonnegative=nonnegative)
            np.testing.assert_array_equal(sparse.to_dense(), dense)
            assert np.all(np.diff(np.abs(sparse.values)) <= 0)
            assert len(set(sparse.blocks.tolist())) == k


def test_nonnegative_drops_negatives():
    h = jnp.asarray([[-5.0, 1.0], [-1.0, -2.0], [0.5, 0.0]], DEFAULT)
    np.testing.assert_array_equal(project(h, 3, nonnegative=True), [[0, 1], [0, 0], [0.5, 0]])
    np.testing.assert_array_equal(project(h, 1), [[-5, 0], [0, 0], [0, 0]])


def test_nan_shows():
    """One NaN among larger numbers is in every result, k = 1 and a traced k included."""
    pool = (2,)
    h = code((4, 5)) * 100
    spoilt = h.at[2, 3].set(jnp.nan)
    results = [
        project(spoilt, 1, pool=pool),
        project(spoilt, 1, pool=pool, nonnegative=True),
        project_traced(spoilt, jnp.asarray(1), pool=pool),
        project_known(spoilt, 1, pool=pool),
        project_known(spoilt, 1, max_pool(spoilt, pool)[1], pool=pool),
        project_fixed(spoilt, 1, pool=pool),
        project_sparse(spoilt, 1, pool=pool).to_dense(),
        project_sparse(spoilt, 1, pool=pool, nonnegative=True).to_dense(),
        max_pool(spoilt, pool)[0],
        max_pool(-spoilt, pool, nonnegative=True)[0],
    ]
    assert [int(np.sum(np.isnan(result))) for result in results] == [1] * len(results)
    # Known switches elsewhere do not read it.
    elsewhere = project_known(spoilt, 1, max_pool(h.at[2, 3].set(0), pool)[1], pool=pool)
    assert not np.any(np.isnan(elsewhere))


def test_gradients_pass_through_what_is_kept():
    h = code((4, 3))
    for function in (sparsity.project, sparsity.project_known):
        gradient = jax.grad(lambda h, function=function: jnp.sum(function(h, 2) ** 2))(h)
        np.testing.assert_allclose(gradient, 2 * project(h, 2), rtol=1e-6)
    gradient = jax.grad(lambda h: jnp.sum(sparsity.project_fixed(h, 2) ** 2))(h)
    np.testing.assert_allclose(gradient, 2 * project(h, 2), rtol=1e-6)
    gradient = jax.grad(lambda h: jnp.sum(sparsity.project_sparse(h, 2).values ** 2))(h)
    np.testing.assert_allclose(gradient, 2 * project(h, 2), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32])
def test_dtype_and_vmap(dtype):
    h = code((3, 4, 5)).astype(dtype)
    together = jax.vmap(lambda h: sparsity.project(h, 2, pool=2))(h)
    assert together.dtype == dtype
    expected = np.stack([oracles.project(one, 2, (2,)) for one in h])
    np.testing.assert_array_equal(np.asarray(together, np.float64), expected)
    assert sparsity.project_fixed(h[0], 2).dtype == dtype
    assert sparsity.project(np.arange(12).reshape(4, 3), 2).dtype == DEFAULT


def test_refusals():
    h = code((2, 5))
    with pytest.raises(ValueError, match=r"\(K, \*regions\) = \(2, 3\), got \(2, 1\)"):
        sparsity.project_known(h, 1, jnp.zeros((2, 1), np.int32), pool=2)
    with pytest.raises(ValueError, match=r"values' shape \(2, 3\), got \(2, 1\)"):
        unpool(jnp.zeros((2, 3)), jnp.zeros((2, 1), np.int32), 5)
    with pytest.raises(ValueError, match=r"\[K, \*n\], got \(5,\)"):
        sparsity.project(h[0], 1)
    with pytest.raises(ValueError, match="pool"):
        sparsity.project(h, 1, pool=0)
