"""Designs of several codes: each code's own law, and what holds between the codes."""

import itertools

import jax
import numpy as np
import oracles
import pytest
import scipy.stats

from cnninv_jax.sparsity import SparseCode, group_size, sample_codes, sign_patterns

from .test_codes import assert_uniform, draws

X64 = jax.config.read("jax_enable_x64")
DESIGNS = {
    "independent": {},
    "stratified": {"supports": "stratified"},
    "antithetic": {"signs": "antithetic"},
    "both": {"supports": "stratified", "signs": "antithetic"},
}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_code_has_the_law_of_a_single_one(design):
    """All 27 supports of K = 3, n = 3, k = 2 are equally likely for each code, and independent of its values."""
    total, count = 13_500, 4
    codes = draws(total, lambda key: sample_codes(key, count, 3, 3, 2, **DESIGNS[design]))
    assert codes.values.shape == (total, count, 2)
    assert codes.code_shape == (3, 3)
    for c in range(count):
        blocks, shifts = np.asarray(codes.blocks[:, c]), np.asarray(codes.shifts[:, c, :, 0])
        values = np.asarray(codes.values[:, c], np.float64)
        labels = (blocks[:, 0] * 3 + blocks[:, 1]) * 9 + shifts[:, 0] * 3 + shifts[:, 1]
        kinds, where, counts = np.unique(labels, return_inverse=True, return_counts=True)
        assert len(kinds) == 27
        assert_uniform(counts, total)
        for entry in range(2):
            assert scipy.stats.kstest(values[:, entry], scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-7
        # Products of values, signs and magnitudes vanish on average, over all supports and over each.
        for statistic in (values[:, 0] * values[:, 1], np.prod(values**2 - 1 / 3, axis=1)):
            assert abs(statistic.mean()) < 5 * statistic.std() / np.sqrt(total)
            sums = np.bincount(where, statistic)
            assert np.max(np.abs(sums)) < 5.5 * statistic.std() * np.sqrt(counts.max())


@pytest.mark.parametrize("values", ["gaussian", "signs"])
def test_other_laws_of_the_values(values):
    codes = draws(2000, lambda key: sample_codes(key, 4, 8, 4, 3, values=values, **DESIGNS["both"]))
    law = np.asarray(codes.values, np.float64)
    assert np.all(np.abs(law.mean(axis=0)) < 5 / np.sqrt(2000))
    if values == "signs":
        assert np.all(np.abs(law) == 1)
    else:
        assert all(scipy.stats.kstest(law[:, c, e], "norm").pvalue > 1e-7 for c in range(4) for e in range(3))


def test_shifts_are_uniform_in_every_block_partial_ones_too():
    """And any two entries of one code are independent, in each code of the design."""
    total = 16_000
    codes = draws(total, lambda key: sample_codes(key, 3, 1, (3, 5), 4, pool=(2, 3), supports="stratified"))
    blocks = oracles.blocks((1, 3, 5), (2, 3))
    for c in range(3):
        where = np.asarray(codes.shifts[:, c, :, 0] * 5 + codes.shifts[:, c, :, 1])
        places = [[entry[1] * 5 + entry[2] for entry in block] for block in blocks]
        labels = np.stack([np.argmax(where[:, [i]] == np.asarray(places[i]), axis=1) for i in range(4)], axis=1)
        for i in range(4):
            assert np.all(np.isin(where[:, i], places[i]))
        for i, j in itertools.combinations(range(4), 2):
            pairs = labels[:, i] * len(places[j]) + labels[:, j]
            assert_uniform(np.bincount(pairs, minlength=len(places[i]) * len(places[j])), total)


def test_stratified_supports_share_no_block_as_far_as_they_reach():
    """16 blocks serve five codes of three, one block is left over; then a new permutation is begun."""
    codes = draws(400, lambda key: sample_codes(key, 7, 16, 28, 3, supports="stratified"))
    blocks = np.asarray(codes.blocks)
    assert np.all(np.diff(blocks, axis=-1) > 0)
    for first in (blocks[:, :5], blocks[:, 5:]):
        flat = np.sort(first.reshape(400, -1), axis=1)
        assert np.all(np.diff(flat, axis=1) > 0)
    left = [set(range(16)) - set(row) for row in blocks[:, :5].reshape(400, -1)]
    assert {block for one in left for block in one} == set(range(16))
    assert np.mean(np.any(blocks[:, 0, :, None] == blocks[:, 5, None, :], axis=(1, 2))) > 0.2
    # Seven codes on 28 shifts: every fourth shift is taken once by each entry.
    shifts = np.sort(np.asarray(codes.shifts[..., 0]), axis=1)
    assert np.all(np.diff(shifts, axis=1) == 4)


@pytest.mark.parametrize("order", [2, 4, 8, 16])
def test_sign_patterns_are_orthogonal_and_all_different(order):
    for k in range(order.bit_length(), 2 * order + 3):
        signs = sign_patterns(order, k)
        assert signs.shape == (order, k)
        products = signs.T @ signs
        for i, j in itertools.combinations(range(k), 2):
            assert products[i, j] == (order if (i - j) % order == 0 else 0)
        # No two codes are equal or opposite: z and -z give the same readings.
        assert len({tuple(row * row[0]) for row in signs}) == order
    full = sign_patterns(order, order)
    assert sorted(map(tuple, full.T)) == sorted(map(tuple, scipy.linalg.hadamard(order)))


def test_groups_share_support_and_magnitudes():
    codes = draws(30, lambda key: sample_codes(key, 8, 20, 7, 5, signs="antithetic", group=4))
    blocks, shifts, values = (np.asarray(a).reshape(30, 2, 4, -1) for a in (codes.blocks, codes.shifts, codes.values))
    for array in (blocks, shifts, np.abs(values)):
        assert np.all(array == array[:, :, :1])
    assert np.all(np.any(blocks[:, 0] != blocks[:, 1], axis=(1, 2)))
    pattern = np.broadcast_to(sign_patterns(4, 5), values.shape)
    np.testing.assert_array_equal(np.sign(values) * np.sign(values[:, :, :1]), pattern)
    # Entries 0 and 4 have the same column of four; all other products cancel, exactly.
    products = np.einsum("dgci,dgcj->dgij", values.astype(np.float64), values.astype(np.float64))
    for i, j in itertools.combinations(range(5), 2):
        assert np.all(products[..., i, j] == 0) == ((i, j) != (0, 4))


def test_both_stratify_the_groups():
    codes = draws(30, lambda key: sample_codes(key, 8, 20, 7, 5, **DESIGNS["both"]))
    blocks = np.asarray(codes.blocks).reshape(30, 2, 4, 5)
    assert np.all(blocks == blocks[:, :, :1])
    assert all(not set(one) & set(two) for one, two in blocks[:, :, 0])
    shifts = np.asarray(codes.shifts).reshape(30, 2, 4, 5)
    assert np.all(shifts == shifts[:, :, :1])
    # Two groups on seven shifts: as far from each other as can be.
    assert set(np.abs(np.diff(shifts[:, :, 0], axis=1)).ravel()) == {3, 4}


def test_group_sizes():
    assert group_size(8, 10) == 1
    for count, k, size in [(8, 10, 8), (12, 10, 4), (6, 10, 2), (16, 3, 4), (64, 4, 8), (64, 40, 64)]:
        assert group_size(count, k, signs="antithetic") == size
    for count, k, size in [(8, 10, 4), (12, 10, 4), (4, 10, 2), (16, 3, 4)]:
        assert group_size(count, k, supports="stratified", signs="antithetic") == size
    assert group_size(8, 10, signs="antithetic", group=2) == 2
    for options, message in [
        ({"count": 8, "k": 10, "group": 2}, "no group for independent signs, got 2"),
        ({"count": 8, "k": 10, "signs": "antithetic", "group": 3}, "power of two that divides count = 8.* got 3"),
        ({"count": 12, "k": 10, "signs": "antithetic", "group": 8}, "divides count = 12.* got 8"),
        ({"count": 8, "k": 3, "signs": "antithetic", "group": 8}, r"at most 2\^\(k - 1\) = 4, got 8"),
        ({"count": 7, "k": 10, "signs": "antithetic"}, "even number of codes .*got k = 10 and 7 codes"),
        ({"count": 8, "k": 1, "signs": "antithetic"}, "k of at least 2 .*got k = 1 and 8 codes"),
        ({"count": 2, "k": 5, "signs": "antithetic", "supports": "stratified"}, "got k = 5 and 2 codes"),
        ({"count": 8, "k": 5, "signs": "mirrored"}, "'independent' or 'antithetic', got 'mirrored'"),
    ]:
        with pytest.raises(ValueError, match=message):
            group_size(**options)
    for options, message in [
        ({"supports": "disjoint"}, "'independent' or 'stratified', got 'disjoint'"),
        ({"k": 9}, "expected 1 <= k <= 4"),
        ({"count": 0}, "expected count to consist of integers of at least 1, got 0"),
        ({"values": "cauchy", "supports": "stratified"}, "'uniform', 'gaussian' or 'signs', got 'cauchy'"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample_codes(jax.random.key(0), **{"count": 4, "num_filters": 4, "shifts": 5, "k": 2, **options})


def test_codes_map_to_dense_and_trace_once():
    traces = []

    @jax.jit
    def dense(key):
        traces.append(1)
        codes = sample_codes(key, 4, 5, (3, 4), 0.1, pool=(2, 2), dtype=np.float32, **DESIGNS["both"])
        return jax.vmap(SparseCode.to_dense)(codes)

    arrays = [np.asarray(dense(jax.random.key(seed))) for seed in range(5)]
    assert len(traces) == 1
    assert all(array.shape == (4, 5, 3, 4) and array.dtype == np.float32 for array in arrays)
    assert all(np.all((array != 0).sum(axis=(1, 2, 3)) == 6) for array in arrays)
    assert len({array.tobytes() for array in arrays}) == 5
