"""The model-RIP constant against brute force in NumPy, and its certificates against each other."""

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from cnninv_jax import rip
from cnninv_jax.operators import conv_operator, synthesis_sparse
from cnninv_jax.rip._gram import gram_geometry, gram_table, host_gram_table
from cnninv_jax.rip._patterns import count_model_supports, support_model
from cnninv_jax.rip.search import way_matrix
from cnninv_jax.sparsity import num_blocks
from tests import oracles

#: A search that takes little time; what it misses shows in the gap, not in the order of the three numbers.
QUICK = {"starts": 64, "steps": 6, "sweeps": 1, "num_random": 0}


def supports(code_shape, k, pool, members):
    """Every union of ``members`` supports of M_k, as sets of flat entries."""
    blocks = [[int(np.ravel_multi_index(entry, code_shape)) for entry in b] for b in oracles.blocks(code_shape, pool)]
    single = {
        frozenset(entries)
        for chosen in itertools.combinations(blocks, k)
        for entries in itertools.product(*chosen)
    }  # fmt: skip
    if members == 1:
        return single
    return {frozenset().union(*group) for group in itertools.combinations_with_replacement(single, members)}


def brute_force(op, k, pool=None, members=1):
    """The constant by eigenvalues over all supports, small ones included."""
    dense = oracles.dense_matrix(np.asarray(op.filters), op.signal_shape, op.stride, op.padding)
    gram = dense @ dense.T
    best = 0.0
    by_size = {}
    for support in supports(op.code_shape, k, pool, members):
        by_size.setdefault(len(support), []).append(sorted(support))
    for size, found in by_size.items():
        index = np.asarray(found)
        matrices = gram[index[:, :, None], index[:, None]] - np.eye(size)
        best = max(best, float(np.abs(np.linalg.eigvalsh(matrices)).max()))
    return best


def random_layer(seed, dtype=np.float64, most_supports=4000):
    """A small bank with its k, pool and members, all random."""
    rng = np.random.default_rng(seed)
    while True:
        rank = int(rng.integers(1, 3))
        count, channels = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        length, stride = (tuple(int(a) for a in rng.integers(1, top, rank)) for top in (4, 3))
        shifts = tuple(int(a) for a in rng.integers(1, 5 if rank == 1 else 3, rank))
        signal = tuple((n - 1) * t + ell for n, t, ell in zip(shifts, stride, length, strict=True))
        padding = ("valid", "same")[int(rng.integers(2))]
        pool = None if rng.random() < 0.5 else tuple(int(p) for p in rng.integers(1, 4, rank))
        scale = rng.uniform(0.8, 1.2, (count, 1, *[1] * rank)) / np.sqrt(channels * np.prod(length))
        filters = (rng.normal(size=(count, channels, *length)) * scale).astype(dtype)
        op = conv_operator(jnp.asarray(filters), signal, stride=stride, padding=padding)
        members = int(rng.integers(1, 3))
        k = int(rng.integers(1, min(3 if members == 1 else 2, num_blocks(op.code_shape, pool)) + 1))
        if count_model_supports(support_model(op.code_shape, k, pool, members)) <= most_supports:
            return op, k, pool, members


@pytest.mark.parametrize("seed", range(4))
def test_table_holds_the_gram_matrix(seed):
    op, *_ = random_layer(seed)
    geometry = gram_geometry(op)
    dense = oracles.dense_matrix(np.asarray(op.filters), op.signal_shape, op.stride, op.padding)
    ways = way_matrix(geometry)
    for table in (host_gram_table(np.asarray(op.filters), geometry), np.asarray(gram_table(op.filters, geometry))):
        full = table[ways].transpose(2, 0, 3, 1).reshape(len(dense), len(dense))
        np.testing.assert_allclose(full, dense @ dense.T, atol=1e-12)


@pytest.mark.parametrize(("shape", "k", "pool", "members"), [
    ((3, 3), 2, None, 1), ((3, 3), 2, None, 2), ((2, 5), 2, (2,), 2), ((2, 3), 3, (2,), 1), ((2, 2, 3), 2, (2, 2), 2),
    ((3, 1), 2, None, 2),
])  # fmt: skip
def test_support_count_is_that_of_unions(shape, k, pool, members):
    model = support_model(shape, k, pool, members)
    unions = supports(shape, k, pool, members)
    assert model.size == max(map(len, unions))
    assert count_model_supports(model) == sum(len(support) == model.size for support in unions)


@pytest.mark.parametrize("seed", range(4))
def test_exact_constant_is_brute_force(seed):
    op, k, pool, members = random_layer(100 + seed, most_supports=1500)
    found = rip.exact_constant(op, k, members=members, pool=pool)
    np.testing.assert_allclose(float(found), brute_force(op, k, pool, members), atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_exact_values_are_brute_force_on_fifty_banks(seed):
    op, k, pool, members = random_layer(1000 + seed)
    expected = brute_force(op, k, pool, members)
    result = rip.constant(op, k, pool=pool, members=members, **QUICK)
    np.testing.assert_allclose(float(result.exact), expected, atol=1e-10)
    np.testing.assert_allclose(float(rip.exact_constant(op, k, members=members, pool=pool)), expected, atol=1e-10)
    assert float(result.lower) <= expected + 1e-12
    assert expected <= float(result.upper)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batches_equal_single_layers(members, dtype):
    filters = np.random.default_rng(5).normal(size=(3, 4, 2, 3)) / np.sqrt(6)
    banks = jnp.asarray(filters, dtype)

    def one(bank):
        return rip.exact_constant(conv_operator(bank, 5), 2, members=members)

    expected = [brute_force(conv_operator(bank, 5), 2, members=members) for bank in banks]
    found = jax.jit(jax.vmap(one))(banks)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), single=st.booleans())
def test_lower_exact_upper_are_in_order(seed, single):
    """Certified numbers bracket the true constant, in float32 as well: every kind of layer of `random_layer`."""
    op, k, pool, members = random_layer(seed, np.float32 if single else np.float64, most_supports=1000)
    result = rip.constant(op, k, pool=pool, members=members, exact_limit=0, **QUICK)
    expected = brute_force(op, k, pool, members)
    assert np.isnan(float(result.exact))
    assert float(result.lower) <= expected <= float(result.upper)
    assert float(result.upper) <= min(
        float(bound)
        for bound in (result.upper_gershgorin, result.upper_weighted, result.upper_frobenius, result.upper_spectral)
    )
    for bound in (result.upper_gershgorin, result.upper_weighted, result.upper_frobenius, result.upper_spectral):
        assert expected <= float(bound)


@functools.cache
def larger(k, members=1, padding="valid"):
    filters = np.random.default_rng(2).normal(size=(8, 3, 3)) / 3.0
    op = conv_operator(jnp.asarray(filters, np.float32), 6, padding=padding)
    return op, rip.constant(op, k, members=members)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "members", "padding"),
    [(3, 1, "valid"), (2, 2, "valid"), (3, 1, "same")],
)
def test_witness_proves_the_lower_bound(k, members, padding):
    op, result = larger(k, members, padding)
    witness = result.witness
    per_block = np.unique(np.asarray(witness.blocks), return_counts=True)[1]
    assert per_block.max() <= members
    assert witness.size == result.size == members * k
    entries = np.concatenate([np.asarray(witness.filter_indices)[:, None], np.asarray(witness.shifts)], axis=1)
    assert len(np.unique(entries, axis=0)) == witness.size
    energy = float(jnp.sum(jnp.square(synthesis_sparse(op, witness)))) / float(jnp.sum(jnp.square(witness.values)))
    np.testing.assert_allclose(abs(energy - 1.0), float(result.lower), atol=5e-6)


@pytest.mark.slow
def test_three_numbers_are_in_order_where_all_are_known():
    for k in (2, 3):
        _, result = larger(k)
        assert result.enumerated
        assert float(result.lower) <= float(result.exact) <= float(result.upper)


@pytest.mark.slow
def test_all_three_grow_with_k_and_with_members():
    results = [larger(2)[1], larger(3)[1]]
    for name in ("exact", "upper_gershgorin", "upper_weighted"):
        small, large = (float(getattr(result, name)) for result in results)
        assert small <= large
    # A member of M_3 is a sum of two members of M_2.
    assert float(results[1].exact) <= float(larger(2, 2)[1].exact)


@pytest.mark.slow
def test_search_reaches_the_exact_value_here():
    op, result = larger(3)
    alone = rip.constant(op, 3, exact_limit=0)
    np.testing.assert_allclose(float(alone.lower), float(result.exact), rtol=1e-5)


@pytest.mark.parametrize("members", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_orthonormal_bank_has_constant_zero(members):
    # Each filter on a channel of its own, one tap: W W^T = I.
    op = conv_operator(jnp.eye(4)[:, :, None], 5)
    result = rip.constant(op, 2, members=members, **QUICK)
    assert float(result.lower) == 0.0
    np.testing.assert_allclose([float(result.exact), float(result.upper)], 0.0, atol=1e-13)
    np.testing.assert_allclose(float(rip.exact_constant(op, 2, members=members)), 0.0, atol=1e-13)


def test_norms_count_without_any_overlap():
    # Orthogonal filters of squared norm 4 and 1/4: |G - I| = 3.
    op = conv_operator(jnp.diag(jnp.asarray([2.0, 0.5]))[:, :, None], 1)
    result = rip.constant(op, 1, **QUICK)
    np.testing.assert_allclose([float(result.lower), float(result.exact), float(result.upper)], 3.0, atol=1e-12)


@pytest.mark.slow
def test_a_constant_above_one_is_reported():
    op = conv_operator(jnp.ones((3, 1, 1)), 2)
    # Three equal filters: G_S is the matrix of ones, with eigenvalue 3.
    result = rip.constant(op, 3, **QUICK)
    np.testing.assert_allclose([float(result.lower), float(result.exact), float(result.upper)], 2.0, atol=1e-12)


def test_spectral_bound_is_the_norm_of_a_circular_layer():
    # With k = K and one shift, S is everything, and circular and valid are the same up to the grid.
    filters = np.random.default_rng(3).normal(size=(3, 4, 1)) / 2.0
    op = conv_operator(jnp.asarray(filters), 1)
    gram = filters[..., 0] @ filters[..., 0].T
    result = rip.constant(op, 3, **QUICK)
    expected = np.abs(np.linalg.eigvalsh(gram) - 1.0).max()
    np.testing.assert_allclose([float(result.upper_spectral), float(result.exact)], expected, rtol=1e-12)


def test_spoilt_filters_show():
    op = conv_operator(jnp.full((2, 1, 2), jnp.nan), 3)
    result = rip.constant(op, 2, **QUICK)
    assert np.isnan([float(result.lower), float(result.exact), float(result.upper)]).all()
    assert np.isnan(float(rip.exact_constant(op, 2)))


@pytest.mark.parametrize(("change", "message"), [
    ({"k": 9}, "1 <= k"),
    ({"members": 0}, "members"),
    ({"starts": 0}, "starts"),
    ({"exact_limit": -1}, "exact_limit"),
])  # fmt: skip
def test_refusals(change, message):
    op = conv_operator(jnp.ones((2, 1, 2)), 3)
    with pytest.raises(ValueError, match=message):
        rip.constant(op, **({"k": 1} | change))


def test_atoms_that_wrap_around_are_refused():
    op = conv_operator(jnp.ones((2, 1, 2)), 3, padding="circular")
    for constant in (rip.constant, rip.exact_constant):
        with pytest.raises(ValueError, match=r"got 'circular'.*padding='valid'"):
            constant(op, 1)


def test_traced_filters_and_too_many_supports_are_refused():
    with pytest.raises(ValueError, match="exact_constant"):
        jax.jit(lambda bank: rip.constant(conv_operator(bank, 3), 1).lower)(jnp.ones((2, 1, 2)))
    with pytest.raises(ValueError, match="use constant"):
        rip.exact_constant(conv_operator(jnp.ones((40, 1, 5)), 20), 5)
