"""The tables of a path against the pass itself, draw by draw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.dcsc.model import draw_signs, layers, respond, reverse_pass, shapes
from cnninv_jax.dcsc.paths import path_outcome, path_tables


def model_of(depth, rank=1, padding="valid"):
    rng = np.random.default_rng(3)
    sizes = [(6, 4), (5, 6), (4, 5)][:depth]
    length = (4,) if rank == 1 else (2, 3)
    banks = []
    for filters, channels in sizes:
        bank = rng.standard_normal((filters, channels, *length))
        # Deeper atoms are sparse.
        banks.append(bank if not banks else bank * (rng.random(bank.shape) < 0.15))
    return layers(banks, (16,) if rank == 1 else (8, 9), padding=padding)


def pass_by_hand(model, x, truth, betas, soft):
    """Eq. (1) with plain NumPy comparisons; scores until the path is lost."""
    estimate, scores, noise = x, [], []
    for layer, code, beta in zip(model, truth[1:], betas, strict=True):
        h = np.asarray(respond(layer, estimate))
        code = np.asarray(code)
        active = np.abs(code) > 0
        off = np.abs(h[~active]).max() / beta
        scores.append(max(off, 2 - np.abs(h[active]).min() / beta))
        kept = np.where(np.abs(h) > beta, h - soft * beta * np.sign(h), 0.0)
        noise.append(kept - code)
        estimate = kept
    return scores, noise


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("depth", "rank"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_path_outcome_equals_the_pass(depth, rank, soft):
    model = model_of(depth, rank)
    shape = shapes(model)
    rng = np.random.default_rng(0)
    deepest = np.zeros(shape[-1])
    deepest.ravel()[rng.choice(deepest.size, 3, replace=False)] = [1.0, -0.8, 1.2]
    noise = 0.02 * rng.standard_normal(shape[0])
    tables = path_tables(model, deepest, noise=noise, capacity=[90, 40, 6][-depth:])
    betas = np.array([0.05, 0.04, 0.02])[:depth]
    compared = 0
    for number in range(12):
        signed = draw_signs(jax.random.key(number), model)
        # The tables take magnitudes: the code's own signs are part of D.
        truth = reverse_pass(signed, np.abs(deepest))
        scores, errors = pass_by_hand(signed, truth[0] + noise, truth, betas, soft)
        picked = [
            jnp.take(layer.signs.ravel(), where, mode="fill", fill_value=1)
            for layer, where in zip(signed, tables.support, strict=True)
        ]
        outcome = path_outcome(tables, picked, betas, soft=soft)
        for level in range(depth):
            np.testing.assert_allclose(outcome.score[level], scores[level], rtol=1e-9)
            assert np.isclose(outcome.largest[level], np.abs(truth[level + 1]).max())
            compared += 1
            if scores[level] >= 1:
                break
            if level + 1 == depth:
                np.testing.assert_allclose(outcome.noise[level], np.abs(errors[level]).max(), rtol=1e-9)
        lost = [score >= 1 for score in scores]
        first = lost.index(True) if True in lost else None
        assert [bool(f) for f in outcome.failed] == [level == first for level in range(depth)]
        assert bool(outcome.recovered) == (first is None)
    assert compared >= 12


def test_capacity_too_small_is_refused():
    model = model_of(2)
    code = np.zeros(shapes(model)[-1])
    code[0, 0] = 1
    with pytest.raises(ValueError, match="capacity of at least"):
        path_tables(model, code, capacity=[1, 1])


def test_equal_capacities_compile_once():
    model = model_of(2)
    traces = []

    @jax.jit
    def outcome(tables, signs):
        traces.append(1)
        return path_outcome(tables, signs, np.array([0.1, 0.1])).score

    for place in range(3):
        code = np.zeros(shapes(model)[-1])
        code[:, place] = 1
        tables = path_tables(model, code, capacity=[60, 8])
        outcome(tables, tuple(jnp.ones(count) for count in tables.places))
    assert len(traces) == 1
    assert dataclasses.is_dataclass(tables)
