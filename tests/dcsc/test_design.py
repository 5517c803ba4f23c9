"""Designed filters: against brute force, known optima and Welch's bound."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax import filters
from cnninv_jax.dcsc.design import TOLERANCE, correlations, design, filters_of_coherence
from cnninv_jax.dcsc.orthogonal import orthogonal_filters
from cnninv_jax.operators import coherence
from cnninv_jax.operators.angles import welch_bound
from tests import oracles


def key():
    return jax.random.key(0)


def norms(bank):
    return np.linalg.norm(np.asarray(bank, np.float64).reshape(len(bank), -1), axis=1)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((3, 2, 4), (1,)), ((2, 1, 5), (2,)), ((2, 2, 2), (3,)), ((2, 1, 3, 2), (1, 1)), ((2, 2, 3, 5), (2, 3))],
    ids=str,
)
def test_correlations_are_those_of_the_shifted_filters(shape, stride):
    bank = np.random.default_rng(0).normal(size=shape)
    found = np.asarray(correlations(jnp.asarray(bank), stride))
    reach = [(ell - 1) // step for ell, step in zip(shape[2:], stride, strict=True)]
    assert found.shape == (shape[0], reach[0] + 1, *(2 * r + 1 for r in reach[1:]), shape[0])
    for lag in itertools.product(range(reach[0] + 1), *(range(-r, r + 1) for r in reach[1:])):
        expected = np.zeros((shape[0], shape[0]))
        for taps in np.ndindex(*shape[2:]):
            met = tuple(s + v * t for s, v, t in zip(taps, lag, stride, strict=True))
            if all(0 <= s < ell for s, ell in zip(met, shape[2:], strict=True)):
                expected += bank[(..., *met)] @ bank[(..., *taps)].T
        at = (lag[0], *(v + r for v, r in zip(lag[1:], reach[1:], strict=True)))
        np.testing.assert_allclose(found[(slice(None), *at)], expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "stride", "factor"),
    [
        ((6, 1, (8,)), (1,), 1.75),
        pytest.param((9, 1, (6, 3)), (2, 3), 1.75),
        pytest.param((5, 2, (3, 3)), (1, 1), 2.0),
    ],
    ids=str,
)
def test_a_design_comes_near_the_welch_bound(sizes, stride, factor):
    start = filters.gaussian(key(), *sizes, normalize=True)
    found = design(key(), *sizes, stride=stride, num_steps=200, start=start)
    dense = oracles.coherence(oracles.all_shifts_matrix(np.asarray(found.filters), stride))
    np.testing.assert_allclose(found.coherence, dense, rtol=1e-10)
    np.testing.assert_allclose(norms(found.filters), 1, rtol=1e-12)
    assert found.history.shape == (201,)
    np.testing.assert_allclose(found.history[0], coherence(start, over="shifts", stride=stride), rtol=1e-10)
    assert float(found.coherence) == np.min(found.history)
    assert found.welch == welch_bound(*sizes, stride=stride)
    assert found.welch <= found.coherence < factor * found.welch
    assert found.coherence < 0.7 * found.history[0]


@pytest.mark.slow
def test_without_overlaps_the_simplex_is_found_and_never_left():
    """Nine filters of 2 x 4 taps whose shifts do not overlap: the bound is attained, by a simplex."""
    found = design(key(), 9, 1, (2, 4), stride=(2, 4), num_steps=200, dtype=np.float32)
    assert found.filters.dtype == np.float32
    np.testing.assert_allclose(found.welch, 1 / 8, rtol=1e-12)
    np.testing.assert_allclose(found.coherence, 1 / 8, atol=1e-4)
    flat = np.asarray(found.filters).reshape(9, 8)
    np.testing.assert_allclose(np.abs(flat @ flat.T), np.where(np.eye(9), 1, 1 / 8), atol=1e-3)
    again = design(key(), 9, 1, (2, 4), stride=(2, 4), num_steps=200, start=3 * found.filters)
    assert again.coherence <= found.coherence + 1e-6


@pytest.mark.slow
def test_zeros_stay_where_they_are_asked_to():
    start = np.random.default_rng(1).normal(size=(4, 1, 6))
    start[:2, :, 1] = start[1:, :, 3] = 0
    options = {"num_steps": 60, "start": start, "restarts": 2}
    kept = design(key(), 4, 1, 6, **options, keep_zeros=True)
    np.testing.assert_array_equal(np.asarray(kept.filters) == 0, start == 0)
    assert kept.coherence < 0.9 * coherence(start, over="shifts")
    free = design(key(), 4, 1, 6, **options)
    assert np.all(np.asarray(free.filters) != 0)
    # The first of the restarts is the start as it is.
    alone = design(key(), 4, 1, 6, **options | {"restarts": 1})
    np.testing.assert_allclose(alone.history[0], coherence(start, over="shifts"), rtol=1e-10)
    assert free.coherence <= alone.coherence


def test_no_steps_measure_the_start():
    bank = np.random.default_rng(1).normal(size=(3, 2, 1))
    alone = design(key(), 3, 2, 1, num_steps=0, start=bank)
    np.testing.assert_allclose(alone.history, [coherence(bank)], rtol=1e-12)
    np.testing.assert_allclose(alone.filters, filters.normalize(bank), rtol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "stride"), [((3, 3, (4,)), (1,)), ((5, 2, (7,)), (3,)), ((4, 1, (2, 5)), (2, 3))], ids=str
)
def test_filters_orthogonal_over_shifts(sizes, stride):
    bank = orthogonal_filters(key(), *sizes, stride=stride)
    assert bank.shape == (*sizes[:2], *sizes[2])
    np.testing.assert_allclose(norms(bank), 1, rtol=1e-12)
    assert oracles.coherence(oracles.all_shifts_matrix(np.asarray(bank), stride)) < 1e-12
    # Filters, not single taps in disguise.
    assert np.count_nonzero(np.abs(bank) > 1e-6) > 2 * sizes[0]
    with pytest.raises(ValueError, match=r"at most M prod\(min\(t, l\)\) = "):
        orthogonal_filters(key(), 100, *sizes[1:], stride=stride)


def test_as_many_filters_as_can_be_orthogonal_are():
    found = design(key(), 3, 3, 4, num_steps=5)
    assert found.coherence < 1e-12
    assert found.welch == 0
    assert found.history.shape == (6,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "stride", "mu", "dtype"),
    [
        ((6, 1, (8,)), (1,), 0.4, "float64"),
        ((6, 1, (8,)), (1,), 0.55, "float64"),
        ((6, 1, (8,)), (1,), 0.97, "float32"),
        ((3, 3, (3,)), (1,), 0.01, "float32"),
        ((1, 1, (4,)), (1,), 0.6, "float64"),
        pytest.param((6, 1, (8,)), (1,), 0.4, "float32"),
        pytest.param((5, 1, (4, 2)), (2, 1), 0.6, "float64"),
    ],
    ids=str,
)
def test_filters_of_a_given_coherence(sizes, stride, mu, dtype):
    bank = filters_of_coherence(key(), *sizes, mu, stride=stride, num_steps=200, dtype=dtype)
    assert bank.dtype == dtype
    assert bank.shape == (*sizes[:2], *sizes[2])
    dense = oracles.coherence(oracles.all_shifts_matrix(np.asarray(bank, np.float64), stride))
    assert abs(dense - mu) < 1.5 * TOLERANCE
    np.testing.assert_allclose(norms(bank), 1, rtol=1e-6)


@pytest.mark.slow
def test_a_coherence_out_of_reach_is_refused_with_what_can_be_reached():
    with pytest.raises(ValueError, match=r"got 0.1; filters of this size have at least 0.2.* this design reaches 0.3"):
        filters_of_coherence(key(), 6, 1, 8, 0.1, num_steps=200)
    with pytest.raises(ValueError, match=r"got 1.5; these filters reach at most 1.000"):
        filters_of_coherence(key(), 6, 1, 8, 1.5)
    with pytest.raises(ValueError, match=r"got 0.9; these filters reach at most 0.750"):
        filters_of_coherence(key(), 1, 1, 4, 0.9)


def test_refusals():
    with pytest.raises(ValueError, match="at least two atoms"):
        design(key(), 1, 2, 3, stride=3)
    with pytest.raises(ValueError, match="a start whose zeros"):
        design(key(), 4, 1, 3, keep_zeros=True)
    with pytest.raises(ValueError, match=r"a start of shape \[K, M, \*ell\] = \(4, 1, 3\), got \(4, 3\)"):
        design(key(), 4, 1, 3, start=np.ones((4, 3)))
    with pytest.raises(ValueError, match="num_steps"):
        design(key(), 4, 1, 3, num_steps=-1)
    with pytest.raises(ValueError, match="float32 or float64"):
        filters_of_coherence(key(), 4, 1, 3, 0.5, dtype=jnp.bfloat16)
