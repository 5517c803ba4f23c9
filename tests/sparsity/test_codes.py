"""Sparse codes: dense form, sampling laws at five standard errors, exact counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats

from cnninv_jax.sparsity import (
    SparseCode,
    count_supports,
    num_blocks,
    regions,
    sample_code,
    sample_code_pair,
    support_size,
    window,
)

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32


def draws(count, sampler):
    return jax.jit(jax.vmap(sampler))(jax.random.split(jax.random.key(0), count))


def assert_uniform(counts, total):
    """Every class has the same probability: each count, and chi-square, within five standard errors."""
    classes = len(counts)
    expected = total / classes
    error = np.sqrt(expected * (1 - 1 / classes))
    assert np.max(np.abs(np.asarray(counts) - expected)) < 5 * error
    chi_square = np.sum((np.asarray(counts) - expected) ** 2) / expected
    assert chi_square < classes - 1 + 5 * np.sqrt(2 * (classes - 1))


def test_to_dense_places_and_adds():
    code = SparseCode(
        blocks=jnp.asarray([0, 5, 5, 8]),
        shifts=jnp.asarray([[1, 1], [2, 0], [2, 0], [0, 2]]),
        values=jnp.asarray([1.0, 2.0, 3.0, -4.0], DEFAULT),
        code_shape=(3, 3, 4),
        pool=(2, 3),
    )
    expected = np.zeros((3, 3, 4))
    expected[0, 1, 1], expected[1, 2, 0], expected[2, 0, 2] = 1, 5, -4
    np.testing.assert_array_equal(code.to_dense(), expected)
    assert code.size == 4
    assert code.filter_indices.tolist() == [0, 1, 1, 2]
    assert code.to_dense().dtype == DEFAULT


@pytest.mark.parametrize(
    ("shifts", "pool", "expected"),
    [
        (7, None, (1,)),
        ((7,), 2, (4,)),
        ((7, 4), 2, (4, 2)),
        ((7, 4), (3, 9), (3, 1)),
        ((15, 15), 2, (8, 8)),  # Gilbert et al. 2017: a 15 x 15 response with 2 x 2 pooling
        ((7, 4), None, (1, 1)),
    ],
)
def test_regions(shifts, pool, expected):
    assert regions(shifts, pool) == expected
    code_shape = (3, *((shifts,) if isinstance(shifts, int) else shifts))
    full = None if pool is None else window(shifts, pool)
    assert num_blocks(code_shape, pool) == len(oracles.blocks(code_shape, full)) == 3 * math.prod(expected)


@pytest.mark.parametrize(
    ("shifts", "pool", "k", "values"),
    [
        ((5,), None, 3, "uniform"),
        ((5,), (2,), 10, "gaussian"),
        ((3, 5), (2, 2), 7, "signs"),
        ((4,), 1, 5, "uniform"),
    ],
)
def test_samples_are_model_sparse(shifts, pool, k, values):
    codes = draws(20, lambda key: sample_code(key, 4, shifts, k, pool=pool, values=values))
    blocks = oracles.blocks((4, *shifts), (1,) if pool == 1 else pool)
    dense = np.asarray(jax.vmap(SparseCode.to_dense)(codes))
    for z, numbers in zip(dense, np.asarray(codes.blocks), strict=True):
        counts = [sum(z[entry] != 0 for entry in block) for block in blocks]
        assert max(counts) <= 1
        assert sum(counts) == k
        assert np.flatnonzero(counts).tolist() == numbers.tolist()  # ascending, all different


def test_supports_are_uniform_over_the_model():
    """All 3 * 3 * C(3, 2) = 27 supports of K = 3, n = 3, k = 2 are equally likely."""
    codes = draws(27_000, lambda key: sample_code(key, 3, 3, 2))
    labels = (codes.blocks[:, 0] * 3 + codes.blocks[:, 1]) * 9 + codes.shifts[:, 0, 0] * 3 + codes.shifts[:, 1, 0]
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    assert len(counts) == count_supports((3, 3), 2).exact == 27
    assert_uniform(counts, 27_000)


@pytest.mark.parametrize(("num_filters", "k"), [(12, 5), (40, 32), (60, 40)])
def test_blocks_are_uniform_without_replacement(num_filters, k):
    """Both algorithms; a marginal and a pair of blocks, which together any bias of Floyd's loop would show."""
    total = 8_000
    codes = draws(total, lambda key: sample_code(key, num_filters, 2, k))
    member = np.zeros((total, num_filters), bool)
    np.put_along_axis(member, np.asarray(codes.blocks), True, axis=1)
    assert np.all(member.sum(axis=1) == k)
    p = k / num_filters
    assert np.max(np.abs(member.mean(axis=0) - p)) < 5 * np.sqrt(p * (1 - p) / total)
    together = member.T.astype(float) @ member / total
    q = p * (k - 1) / (num_filters - 1)
    pairs = together[~np.eye(num_filters, dtype=bool)]
    assert np.max(np.abs(pairs - q)) < 5.5 * np.sqrt(max(q * (1 - q), 1e-12) / total) + 1e-12


def test_all_blocks_when_k_is_their_number():
    code = sample_code(jax.random.key(1), 6, (3, 3), 24, pool=2)
    assert code.blocks.tolist() == list(range(24))


def test_positions_are_uniform_in_their_block_and_partial_regions_have_fewer():
    total = 20_000
    codes = draws(total, lambda key: sample_code(key, 1, (3, 5), 6, pool=2))
    for number, block in enumerate(oracles.blocks((1, 3, 5), (2, 2))):
        rows = np.asarray(codes.shifts[:, number])
        counts = [np.sum(np.all(rows == np.asarray(entry[1:]), axis=1)) for entry in block]
        assert sum(counts) == total
        if len(block) > 1:
            assert_uniform(counts, total)


@pytest.mark.parametrize(("values", "law"), [("uniform", scipy.stats.uniform(-1, 2)), ("gaussian", scipy.stats.norm)])
def test_values_follow_their_law(values, law):
    codes = draws(2_000, lambda key: sample_code(key, 8, 4, 3, values=values))
    assert scipy.stats.kstest(np.ravel(codes.values), law.cdf).pvalue > 1e-6


def test_signs():
    codes = draws(2_000, lambda key: sample_code(key, 8, 4, 3, values="signs"))
    assert set(np.unique(codes.values)) == {-1.0, 1.0}
    assert abs(np.mean(codes.values)) < 5 / np.sqrt(6_000)


def test_dtypes():
    assert sample_code(jax.random.key(0), 4, 5, 2).values.dtype == DEFAULT
    code = sample_code(jax.random.key(0), 4, 5, 2, dtype=np.float32)
    assert (code.values.dtype, code.blocks.dtype, code.shifts.dtype) == (np.float32, np.int32, np.int32)
    assert code.shifts.shape == (2, 1)


@pytest.mark.slow
def test_pairs_are_sums_of_two_members():
    pair = sample_code_pair(jax.random.key(3), 4, (3, 5), 6, pool=2, coefficients=(2.0, -0.5))
    first, second = (sample_code(key, 4, (3, 5), 6, pool=2) for key in jax.random.split(jax.random.key(3), 2))
    assert pair.size == 12
    expected = 2 * np.asarray(first.to_dense()) - 0.5 * np.asarray(second.to_dense())
    np.testing.assert_allclose(pair.to_dense(), expected, rtol=1e-6)
    # One block of two places, drawn twice: equal positions add.
    crowded = draws(50, lambda key: sample_code_pair(key, 1, 2, 1, values="signs"))
    dense = np.asarray(jax.vmap(SparseCode.to_dense)(crowded))
    assert set(np.unique(np.abs(dense).sum(axis=(1, 2)))) == {0.0, 2.0}
    assert {1.0, 2.0} <= set(np.unique(np.abs(dense)))


def test_one_compilation_serves_every_key():
    traces = 0

    @jax.jit
    def sample(key):
        nonlocal traces
        traces += 1
        return sample_code(key, 5, 4, 2)

    codes = [sample(jax.random.key(seed)) for seed in range(5)]
    assert traces == 1
    assert len({tuple(np.ravel(code.values)) for code in codes}) == 5


@pytest.mark.parametrize(
    ("code_shape", "pool"), [((4, 5), None), ((3, 5), (2,)), ((2, 3, 5), (2, 2)), ((2, 3, 2), None), ((5, 1), None)]
)
def test_counts_are_those_of_enumeration(code_shape, pool):
    for k in range(1, num_blocks(code_shape, pool) + 1):
        count = count_supports(code_shape, k, pool)
        assert count.exact == oracles.count_supports(code_shape, k, pool)
        assert math.isclose(count.log, math.log(count.exact), rel_tol=1e-12, abs_tol=1e-12)


def test_counts_of_the_papers_sizes():
    assert count_supports((96, 28), 10).exact == 28**10 * math.comb(96, 10)
    large = count_supports((512, 14, 14), 300, 2)
    assert math.isclose(large.log, 300 * math.log(4) + math.log(math.comb(512 * 49, 300)))


def test_support_size():
    assert support_size(3, (4, 5)) == 3
    assert support_size(np.int64(3), (4, 5)) == 3
    assert support_size(0.1, (4, 5)) == 2
    assert support_size(1.0, (4, 5), 1) == 20
    assert support_size(1, (4, 5)) == 1
    for k, message in [
        (0, "1 <= k <= 4 .* got k = 0"),
        (5, r"1 <= k <= 4 .*\(4, 5\).* got k = 5"),
        (0.5, "got k = 10 from the fraction 0.5"),
        (0.01, "got k = 0 from the fraction"),
        (1.5, r"fraction k in \(0, 1\]"),
        (-0.1, r"fraction k in \(0, 1\]"),
        (float("nan"), r"fraction k in \(0, 1\]"),
        (True, "got True"),
        ("3", "got str"),
    ]:
        with pytest.raises(ValueError, match=message):
            support_size(k, (4, 5))


def test_refusals():
    with pytest.raises(ValueError, match="'uniform', 'gaussian' or 'signs', got 'cauchy'"):
        sample_code(jax.random.key(0), 4, 5, 2, values="cauchy")
    with pytest.raises(ValueError, match="num_filters"):
        sample_code(jax.random.key(0), 0, 5, 2)
    with pytest.raises(ValueError, match="shifts"):
        sample_code(jax.random.key(0), 4, (5, 0), 2)
    with pytest.raises(ValueError, match="pool to be one integer or 1"):
        sample_code(jax.random.key(0), 4, 5, 2, pool=(2, 2))
