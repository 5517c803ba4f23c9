"""Coherence of atoms against NumPy on the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from cnninv_jax import operators
from cnninv_jax.operators import coherence, conv_operator
from cnninv_jax.operators.angles import welch_bound

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32
TOLERANCE = 200 * np.finfo(DEFAULT).eps

cosines = jax.jit(operators.coherence, static_argnames=("over", "stride"))


def make(num_filters, channels, length, size, stride=1, padding="valid", seed=0):
    bank = np.random.default_rng(seed).normal(size=(num_filters, channels, *length))
    return conv_operator(jnp.asarray(bank, DEFAULT), size, stride=stride, padding=padding)


def dense(op):
    return oracles.dense_matrix(op.filters, op.signal_shape, op.stride, op.padding)


@pytest.mark.parametrize("length", [(3,), (2, 3)])
def test_coherence_over_filters(length):
    op = make(5, 2, length, (6,) * len(length))
    expected = oracles.coherence(np.asarray(op.filters, np.float64).reshape(5, -1).T)
    np.testing.assert_allclose(coherence(op), expected, rtol=TOLERANCE)
    np.testing.assert_allclose(jax.jit(coherence)(op.filters), expected, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("length", "stride"), [((3,), (1,)), ((4,), (2,)), ((2,), (3,)), ((3, 2), (1, 1)), ((3, 3), (2, 1))]
)
@pytest.mark.parametrize("num_filters", [1, 3])
def test_coherence_of_filters_over_shifts(num_filters, length, stride):
    bank = np.random.default_rng(2).normal(size=(num_filters, 2, *length)).astype(DEFAULT)
    expected = oracles.coherence(oracles.all_shifts_matrix(bank, stride))
    found = cosines(jnp.asarray(bank), over="shifts", stride=stride)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    "arguments",
    [
        (3, 2, (3,), (7,), 1),
        (3, 1, (5,), (9,), 2),
        (2, 1, (5,), (6,), 1),  # few shifts: long lags do not occur
        (1, 2, (3,), (7,), 1),
        (2, 1, (2,), (8,), 3),
        (3, 1, (3, 2), (4, 3), 1),
        (2, 2, (3, 3), (5, 7), (1, 2)),
    ],
)
def test_coherence_of_an_operator_over_shifts(arguments, padding):
    op = make(*arguments, padding)
    expected = oracles.coherence(dense(op).T)
    np.testing.assert_allclose(cosines(op, over="shifts"), expected, rtol=TOLERANCE)


@pytest.mark.parametrize(
    "arguments",
    [
        (3, 2, (3,), (7,), 1),
        (3, 2, (3,), (5,), 1),  # D = 2 ell - 1: just no overlap on both sides
        (3, 2, (3,), (4,), 1),
        (1, 2, (4,), (4,), 1),  # a filter against its rotations
        (3, 1, (5,), (8,), 2),
        (3, 1, (5,), (10,), 2),
        (2, 1, (2,), (9,), 3),  # no overlap at all
        (3, 1, (3, 2), (4, 6), 1),  # on both sides of one axis only
        (2, 2, (3, 3), (4, 3), (2, 1)),
    ],
)
def test_coherence_of_atoms_that_wrap_around(arguments):
    op = make(*arguments, "circular")
    expected = oracles.coherence(dense(op).T)
    np.testing.assert_allclose(cosines(op, over="shifts"), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_overlaps_on_both_sides_add():
    """(1, 0, 1) on a circle of four meets its next rotation nowhere and its opposite twice."""
    op = conv_operator(jnp.asarray([[[1.0, 0.0, 1.0]]], DEFAULT), (4,), padding="circular")
    np.testing.assert_allclose(coherence(op, over="shifts"), 1, rtol=TOLERANCE)
    assert coherence(op.filters, over="shifts") < 0.6


def test_cropped_atoms_matter():
    """Two filters that agree on the taps which the border leaves: coherent there and only there."""
    bank = jnp.asarray([[[3.0, 1.0, 1.0]], [[-3.0, 1.0, 1.0]]], DEFAULT)
    op = conv_operator(bank, (4,), padding="same")
    np.testing.assert_allclose(coherence(op, over="shifts"), 1, rtol=TOLERANCE)
    assert coherence(op) < 0.7


def test_half_precision_is_widened():
    op = make(6, 2, (3,), (8,))
    assert coherence(op.filters.astype(jnp.bfloat16)).dtype == np.float32


def test_coherence_leaves_out_atoms_of_zeros():
    bank = np.random.default_rng(3).normal(size=(3, 1, 3)).astype(DEFAULT)
    padded = np.concatenate([bank, np.zeros_like(bank[:1])])
    for over in ("filters", "shifts"):
        np.testing.assert_array_equal(coherence(padded, over=over), coherence(bank, over=over))
    assert np.isnan(coherence(bank * np.nan))


def test_coherence_of_a_wide_layer_of_unit_filters_is_the_gram_matrix():
    bank = np.random.default_rng(4).normal(size=(64, 16, 3, 3)).astype(np.float32)
    flat = bank.reshape(64, -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    gram = np.abs(flat @ flat.T) - np.eye(64)
    np.testing.assert_allclose(coherence(jnp.asarray(bank)), gram.max(), rtol=1e-5)
    assert coherence(jnp.asarray(bank), over="shifts") >= coherence(jnp.asarray(bank)) * (1 - 1e-6)


def test_refused_coherence():
    op = make(1, 1, (3,), (7,))
    with pytest.raises(ValueError, match="at least two filters"):
        coherence(op)
    with pytest.raises(ValueError, match="'filters' or 'shifts', got 'lags'"):
        coherence(op, over="lags")
    with pytest.raises(ValueError, match="no stride beside an operator"):
        coherence(op, over="shifts", stride=1)
    with pytest.raises(ValueError, match="no stride for over='filters'"):
        coherence(np.ones((2, 1, 3)), stride=1)
    with pytest.raises(ValueError, match=r"\[K, M, \*ell\]"):
        coherence(np.ones((2, 3)))
    with pytest.raises(ValueError, match="at least two atoms"):
        coherence(make(1, 1, (3,), (3,)), over="shifts")


def simplex(num_filters):
    """Unit vectors with all inner products -1 / (K - 1), in K - 1 dimensions."""
    centred = np.eye(num_filters) - 1 / num_filters
    basis = np.linalg.svd(centred)[0][:, :-1]
    return centred @ basis / np.linalg.norm(centred[0])


def rank_of_powers(num_filters, channels, length, stride, order):
    """Welch's bound from the numerical rank of the p-th power of a Gram matrix of random atoms on a circle."""
    size = tuple(-(-2 * ell // step) * step + step for ell, step in zip(length, stride, strict=True))
    bank = np.random.default_rng(0).normal(size=(num_filters, channels, *length))
    atoms = oracles.dense_matrix(bank, size, stride, "circular")
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    rank = np.linalg.matrix_rank((atoms @ atoms.T) ** order)
    near = np.count_nonzero(np.abs(atoms[0]) @ np.abs(atoms.T) > 0) - 1
    return ((len(atoms) / rank - 1) / near) ** (0.5 / order) if rank < len(atoms) else 0.0


@pytest.mark.parametrize(
    ("sizes", "stride", "order"),
    [
        ((4, 1, (3,)), (1,), 1),
        ((5, 1, (3,)), (1,), 2),
        ((9, 1, (3,)), (1,), 3),
        ((9, 2, (4,)), (3,), 1),
        ((17, 1, (4,)), (3,), 2),
        ((4, 2, (2,)), (3,), 1),  # samples that no atom covers
        ((3, 1, (2, 3)), (1, 2), 1),
        ((11, 1, (2, 2)), (1, 1), 2),
        ((3, 2, (2, 2)), (1, 2), 1),  # as many filters as channels and phases: no bound
    ],
    ids=str,
)
def test_welch_bound_counts_the_rank(sizes, stride, order):
    found = welch_bound(*sizes, stride=stride, order=order)
    np.testing.assert_allclose(found, rank_of_powers(*sizes, stride, order), rtol=1e-9, atol=1e-12)
    assert welch_bound(*sizes, stride=stride) >= found


def test_welch_bound_is_the_printed_one():
    for num_filters, ell in [(2, 3), (8, 16), (100, 5)]:
        printed = np.sqrt((num_filters - 1) / (num_filters * (2 * ell - 1) - 1))
        np.testing.assert_allclose(welch_bound(num_filters, 1, ell, order=1), printed, rtol=1e-12)
    # Many filters: the second order passes the first, as for equiangular lines.
    assert welch_bound(100, 1, 5) > 1.2 * welch_bound(100, 1, 5, order=1)


@pytest.mark.parametrize("num_filters", [3, 12])
@pytest.mark.parametrize(("length", "stride"), [((3,), (1,)), ((4,), (2,)), ((2, 2), (1, 1)), ((3, 2), (2, 3))])
def test_no_random_dictionary_passes_the_welch_bound(num_filters, length, stride):
    bound = welch_bound(num_filters, 1, length, stride=stride)
    for seed in range(4):
        bank = np.random.default_rng(seed).normal(size=(num_filters, 1, *length)).astype(DEFAULT)
        assert cosines(jnp.asarray(bank), over="shifts", stride=stride) >= bound


def test_dictionaries_that_attain_the_welch_bound():
    for channels, length in [(1, (3,)), (2, (2,)), (2, (1,)), (1, (2, 2))]:
        count = channels * int(np.prod(length)) + 1
        bank = jnp.asarray(simplex(count).reshape(count, channels, *length), DEFAULT)
        found = coherence(bank, over="shifts", stride=length)
        np.testing.assert_allclose(found, welch_bound(count, channels, length, stride=length), rtol=TOLERANCE)
    for filters in (1, 2, 6):  # one tap each, at different places modulo t
        bank = np.zeros((filters, 2, 5))
        bank[range(filters), [0, 1, 0, 1, 0, 1][:filters], [0, 0, 1, 1, 2, 2][:filters]] = 1.0
        assert welch_bound(filters, 2, 5, stride=3) == 0 == coherence(jnp.asarray(bank), over="shifts", stride=3)
    assert welch_bound(7, 2, 5, stride=3) > 0
    assert welch_bound(2, 1, 1) == 1
