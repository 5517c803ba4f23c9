"""Sparse atoms: how many taps, where, and how far they are from each other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from cnninv_jax.dcsc.atoms import sparse_filters
from cnninv_jax.operators import coherence

DEFAULT = np.dtype(jnp.zeros(()).dtype)


@functools.cache
def bank(filters, channels, length, taps, seed=0, **options):
    return np.asarray(sparse_filters(jax.random.key(seed), filters, channels, length, taps, **options))


def shifted_coherence(filters, stride=1):
    filters = np.asarray(filters, np.float64)
    return oracles.coherence(oracles.all_shifts_matrix(filters, (stride,) * (filters.ndim - 2)))


@pytest.mark.parametrize("places", ["spread", "random"])
@pytest.mark.parametrize("values", ["signs", "gaussian", "positive"])
def test_unit_norm_and_number_of_taps(values, places):
    filters = bank(6, 4, 5, 3, values=values, places=places)
    assert filters.shape == (6, 4, 5)
    assert filters.dtype == DEFAULT
    np.testing.assert_array_equal(np.count_nonzero(filters, axis=(1, 2)), 3)
    np.testing.assert_allclose(np.linalg.norm(filters.reshape(6, -1), axis=1), 1, rtol=1e-6)
    size = filters[filters != 0]
    if values == "gaussian":
        assert len(np.unique(np.abs(size))) == size.size
    else:
        np.testing.assert_allclose(np.abs(size), 1 / np.sqrt(3), rtol=1e-6)
        assert (size > 0).all() == (values == "positive")


@pytest.mark.parametrize(
    ("filters", "channels", "length", "taps", "own"),
    [(8, 6, (5,), 3, True), (5, 7, (2, 3), 4, True), (6, 3, (4,), 6, False), (5, 3, (3,), 5, False)],
    ids=["1-D", "2-D", "twice in every channel", "more taps than channels"],
)
def test_channels_are_used_evenly(filters, channels, length, taps, own):
    found = bank(filters, channels, length, taps, tries=2) != 0
    used = np.count_nonzero(found, axis=(0, *range(2, found.ndim)))
    assert used.sum() == filters * taps
    assert np.ptp(used) <= 1
    # Of one atom too: in different channels as far as there are any.
    each = np.count_nonzero(found, axis=tuple(range(2, found.ndim)))
    assert np.ptp(each, axis=1).max() <= 1
    if own:
        # No tap of an atom meets another one of its own.
        for atom in found:
            assert shifted_coherence(atom[None].astype(float)) == 0


def test_enough_channels_leave_nothing_in_common():
    assert shifted_coherence(bank(4, 12, 3, 3)) == 0
    assert shifted_coherence(bank(4, 12, 3, 3, places="random")) > 0


def test_spread_atoms_meet_in_one_entry_where_random_ones_meet_in_more():
    spread, random = [], []
    for seed in range(3):
        spread.append(shifted_coherence(bank(12, 12, 4, 3, seed=seed)))
        random.append(shifted_coherence(bank(12, 12, 4, 3, seed=seed, places="random")))
    np.testing.assert_allclose(spread, 1 / 3, rtol=1e-6)
    assert np.mean(random) > 1.2 / 3


def test_stride_separates_atoms():
    """Atoms as long as the stride never meet their shifts: only those at the same shift are kept apart."""
    found = bank(4, 2, 4, 2, stride=4)
    np.testing.assert_allclose(shifted_coherence(found, stride=4), coherence(found, over="shifts", stride=4), atol=1e-6)
    assert shifted_coherence(found, stride=4) == pytest.approx(0, abs=1e-15)  # products of zeros, but for rounding
    assert shifted_coherence(bank(4, 2, 4, 2), stride=1) > 0


def test_random_places_are_even():
    filters = bank(4000, 2, 3, 2, places="random")
    counts = np.count_nonzero(filters, axis=0)
    share = 4000 * 2 / 6
    assert np.abs(counts - share).max() < 5 * np.sqrt(share * (1 - 2 / 6))
    assert abs(np.sign(filters).sum()) < 5 * np.sqrt(8000)


def test_a_key_gives_its_filters_alone_and_in_a_batch():
    keys = jax.random.split(jax.random.key(1), 2)
    batch = jax.vmap(lambda key: sparse_filters(key, 5, 4, 3, 2, dtype=np.float32))(keys)
    assert batch.dtype == np.float32
    one = sparse_filters(jax.random.split(jax.random.key(1), 2)[1], 5, 4, 3, 2, dtype=np.float32)
    np.testing.assert_allclose(batch[1], one, atol=1e-7)
    assert np.any(np.asarray(batch[0]) != np.asarray(one))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((0, 2, 3, 1), {}, "num_filters"),
        ((2, 0, 3, 1), {}, "channels"),
        ((2, 2, 0, 1), {}, "length"),
        ((2, 2, 3, 0), {}, "nonzeros"),
        ((2, 2, 3, 7), {}, r"at most M prod\(ell\) = 6 taps"),
        ((2, 2, 3, 2), {"values": "uniform"}, "signs, gaussian, positive, got 'uniform'"),
        ((2, 2, 3, 2), {"places": "even"}, "spread, random, got 'even'"),
        ((2, 2, 3, 2), {"tries": 0}, "tries"),
        ((2, 2, 3, 2), {"stride": (1, 1)}, "stride"),
    ],
    ids=["filters", "channels", "length", "taps", "many", "values", "places", "tries", "stride"],
)
def test_sparse_filters_refuses(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        sparse_filters(jax.random.key(0), *sizes, **options)


@pytest.mark.slow
def test_one_coincidence_at_most_at_the_sizes_of_the_studies():
    for filters, channels, length, taps in itertools.product([32, 64], [64], [5, 9], [2, 4]):
        found = sparse_filters(jax.random.key(0), filters, channels, length, taps)
        assert coherence(found, over="shifts") < 1.001 / taps
