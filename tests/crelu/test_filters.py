"""Pairing filters and outgoing correlations against loops in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.crelu import filters as crelu_filters
from cnninv_jax.crelu.filters import outgoing_correlation, pairing

PAIRING = jax.jit(pairing)
OUTGOING = jax.jit(outgoing_correlation)
TOLERANCE = 1e-12 if jax.config.jax_enable_x64 else 2e-6
FLOAT = np.float64 if jax.config.jax_enable_x64 else np.float32


def paired(bank):
    """The definition, filter by filter."""
    rows = bank.reshape(len(bank), -1).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    index, cosine = np.full(len(rows), -1), np.full(len(rows), np.nan)
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i != j and norms[i] > 0 and norms[j] > 0:
                value = rows[i] @ rows[j] / (norms[i] * norms[j])
                if index[i] < 0 or value < cosine[i]:
                    index[i], cosine[i] = j, value
    return index, cosine


@settings(max_examples=30, deadline=None)
@given(zeros=st.sets(st.integers(0, 5)), seed=st.integers(0, 99))
def test_pairing_is_the_definition(zeros, seed):
    bank = np.random.default_rng(seed).standard_normal((6, 2, 3)).astype(FLOAT)
    bank[list(zeros)] = 0
    index, cosine = paired(bank)
    found = PAIRING(bank)
    assert found.cosine.dtype == FLOAT
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.cosine, cosine, atol=TOLERANCE)


def test_blocks_of_rows_change_nothing(monkeypatch):
    """Seven filters in blocks of two rows, the last of which is not full; two banks side by side."""
    banks = np.random.default_rng(1).standard_normal((2, 7, 2, 3, 2)).astype(FLOAT)
    monkeypatch.setattr(crelu_filters, "HELD_PRODUCTS", 14)
    found = jax.jit(jax.vmap(pairing))(banks)
    for bank, index, cosine in zip(banks, *found, strict=True):
        wanted = paired(bank)
        np.testing.assert_array_equal(index, wanted[0])
        np.testing.assert_allclose(cosine, wanted[1], atol=TOLERANCE)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30], ids=["tiny", "unit", "huge"])
def test_opposite_filters_find_each_other(scale):
    half = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    found = PAIRING(np.concatenate([half, -2 * half]) * np.float32(scale))
    assert found.index.tolist() == [3, 4, 5, 0, 1, 2]
    np.testing.assert_allclose(found.cosine, -1.0, atol=1e-6)
    assert np.all(np.asarray(found.cosine) >= -1)


def test_filters_without_an_angle_are_left_out():
    """One direction only: mu = 1 by definition, with another filter. Nobody left to be paired with: nothing."""
    same = np.ones((3, 4), np.float32)
    assert PAIRING(same).index.tolist() == [1, 0, 0]
    np.testing.assert_allclose(PAIRING(same).cosine, 1.0, rtol=1e-6)
    same[1] = np.inf
    assert PAIRING(same).index.tolist() == [2, -1, 0]
    same[2] = 0
    alone = PAIRING(same)
    assert alone.index.tolist() == [-1, -1, -1]
    assert np.all(np.isnan(alone.cosine))


def test_low_precision_is_widened():
    bank = jnp.asarray(np.random.default_rng(3).standard_normal((5, 6)), jnp.bfloat16)
    found = PAIRING(bank)
    assert found.cosine.dtype == jnp.float32
    np.testing.assert_allclose(found.cosine, paired(np.asarray(bank.astype(jnp.float32)))[1], atol=1e-6)


def correlated(kernel, partner, phases=None, centred=False):
    """Cosines of pairs and of the others, channel by channel; ordered pairs (i, j)."""
    rows = np.moveaxis(kernel, 1, 0).reshape(kernel.shape[1], -1).astype(np.float64)
    if centred:
        rows = rows - rows.mean(axis=1, keepdims=True)
    pair, rest = [], []
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            size = np.linalg.norm(one) * np.linalg.norm(other)
            if i == j or size == 0:
                continue
            if partner[i] == j:
                pair.append(one @ other / size)
            elif partner[j] != i and (phases is None or phases[i] != phases[j]):
                rest.append(one @ other / size)
    return np.array(pair), np.array(rest)


def check(found, values):
    size = np.abs(values)
    wanted = (values.mean(), values.std(), size.mean(), size.std())
    np.testing.assert_allclose(np.array(found[:4]), wanted, atol=30 * TOLERANCE)


@pytest.mark.parametrize("unmatched", ["any", "opposite"])
@pytest.mark.parametrize("centred", [False, True], ids=["cosine", "pearson"])
def test_phases_of_a_crelu(monkeypatch, unmatched, centred):
    monkeypatch.setattr(crelu_filters, "HELD_PRODUCTS", 24)
    kernel = (0.3 + np.random.default_rng(4).standard_normal((3, 8, 2, 2))).astype(FLOAT)
    kernel[:, 6] = 0
    partner = np.roll(np.arange(8), 4)
    phases = None if unmatched == "any" else np.arange(8) < 4
    found = jax.jit(partial(outgoing_correlation, unmatched=unmatched, centred=centred))(kernel)
    pair, rest = correlated(kernel, partner, phases, centred)
    # Every pair stands in the list twice, every other pair as often here as there.
    assert (int(found.pair.number), int(found.non_pair.number)) == (len(pair) // 2, len(rest))
    assert np.isnan(found.cosine[2])
    check(found.pair, pair)
    check(found.non_pair, rest)


def test_partners_of_a_relu():
    kernel = np.random.default_rng(5).standard_normal((4, 5, 3)).astype(FLOAT)
    partner = np.array([1, 0, 1, -1, 2], np.int32)
    found = OUTGOING(kernel, partner)
    pair, rest = correlated(kernel, partner)
    assert (int(found.pair.number), int(found.non_pair.number)) == (len(pair), len(rest)) == (4, 14)
    assert np.isnan(found.cosine).tolist() == [False, False, False, True, False]
    check(found.pair, pair)
    check(found.non_pair, rest)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["modulus", "linear"])
def test_a_layer_that_sees_modulus_or_phase_only(sign):
    """|x| is the sum of both phases and x is their difference: outgoing weights are equal, or each other's negation."""
    half = np.random.default_rng(6).standard_normal((5, 4, 3, 3)).astype(FLOAT)
    found = OUTGOING(np.concatenate([half, sign * half], axis=1))
    np.testing.assert_allclose(found.cosine, sign, rtol=1e-6)
    np.testing.assert_allclose(found.pair.mean_absolute, 1.0, rtol=1e-6)
    assert float(found.non_pair.mean_absolute) < 0.9


def test_refusals():
    with pytest.raises(ValueError, match="at least two filters, got 1"):
        pairing(np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match=r"shape \[K, M, \*ell\]"):
        pairing(np.ones(3))
    with pytest.raises(TypeError, match=r"^expected filters as an array, got dict$"):
        pairing({"kernel": np.ones((4, 2, 3))})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an even number of channels, got 3"):
        outgoing_correlation(np.ones((2, 3, 1)))
    with pytest.raises(ValueError, match="a partner of each of the 3 channels"):
        outgoing_correlation(np.ones((2, 3, 1)), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="unmatched"):
        outgoing_correlation(np.ones((2, 4, 1)), unmatched="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="which have no phases"):
        outgoing_correlation(np.ones((2, 4, 1)), np.zeros(4, np.int32), unmatched="opposite")
    with pytest.raises(ValueError, match="shape"):
        outgoing_correlation(np.ones(4))
