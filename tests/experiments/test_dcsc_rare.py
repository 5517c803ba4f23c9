"""Paths that are hardly ever lost: every method against all patterns of signs, tried in NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax.dcsc.generate import generate
from cnninv_jax.dcsc.noise import aligned_noise
from cnninv_jax.experiments.dcsc_rare import DCSC_RARE, RareParameters
from cnninv_jax.experiments.dcsc_rare_draws import (
    Score,
    TiltedDraw,
    count_patterns,
    event_probabilities,
    events,
    first_layer,
    refined,
    tilts,
)
from cnninv_jax.experiments.dcsc_rare_tables import verdict
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

SIGNS = 10


@pytest.fixture(scope="module")
def case():
    """One layer with 10 signs and two levels of noise; all responses of all patterns by NumPy."""
    keys = jax.random.split(jax.random.key(3), 3)
    model = dcsc.layers([jax.random.normal(keys[0], (4, 60, 3))], 6, padding="circular")
    code = generate(keys[1], model, num_nonzeros=SIGNS, magnitudes=(0.9, 1.1)).path[-1]
    direction = aligned_noise(keys[2], model[0], 1.0)
    noises = [zeta * direction for zeta in (0.05, 0.2)]
    beta = float(jnp.min(jnp.abs(code[code != 0]))) / 2
    flat = np.abs(np.asarray(code)).ravel()
    atoms = np.stack(
        [np.asarray(dcsc.reverse(model[0], jnp.zeros(flat.size).at[i].set(1).reshape(code.shape))).ravel()
         for i in range(flat.size)], axis=1,
    )  # fmt: skip
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=SIGNS)))
    places = np.flatnonzero(flat)
    lost = []
    for noise in noises:
        responses = (atoms[:, places] * flat[places] @ signs.T).T @ atoms + np.asarray(noise).ravel() @ atoms
        active = flat > 0
        lost.append(np.where(active, np.abs(responses) <= beta, np.abs(responses) > beta))
    layers = [first_layer(model, code, noise, beta) for noise in noises]
    tables = [dcsc.path_tables(model, code, noise=noise, capacity=[SIGNS]) for noise in noises]
    return model, layers, tables, jnp.array([beta]), np.stack(lost)


def test_all_patterns_are_counted(case):
    _, _, tables, betas, lost = case
    counted = count_patterns(jax.tree.map(lambda *arrays: jnp.stack(arrays), *tables), betas)
    assert counted.tolist() == lost.any(2).sum(1).tolist()
    assert 0 < counted[0] < counted[1] < 2**SIGNS
    many = dataclasses.replace(tables[0], support=(jnp.zeros(25, jnp.int32),))
    many = jax.tree.map(lambda array: array[None], many)
    with pytest.raises(ValueError, match="at most 24 signs"):
        count_patterns(many, betas)


def test_probabilities_of_single_responses(case):
    _, layers, _, _, lost = case
    exact = event_probabilities([events(layer) for layer in layers])
    # Off the support and on it alike: the two directions of a response exclude each other.
    np.testing.assert_allclose(exact.sum(1), lost.mean(1).sum(1), rtol=1e-12)
    assert (exact.max(1) <= lost.any(2).mean(1)).all()


def test_tilted_signs_estimate_the_loss_and_the_number_of_wrong_responses(case):
    _, layers, _, _, lost = case
    laws = [tilts(events(layer)) for layer in layers]
    draw = TiltedDraw(
        jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers),
        jnp.asarray(np.stack([one.logits for one in laws])),
        jnp.asarray(np.stack([one.log_shares for one in laws])),
    )
    names = ("lost", "wrong", "weight")
    result = mc.run(draw, 0, 8192, statistics={name: mc.WeightedProportion() for name in names}, progress=False)
    for name, truth in (("lost", lost.any(2).mean(1)), ("wrong", lost.sum(2).mean(1)), ("weight", np.ones(2))):
        numbers = result[name]
        error = numbers["probability_standard_error"]
        assert (np.abs(numbers["probability"] - truth) < 5 * error).all()
        # Far less spread than fair signs have.
        if name == "lost":
            assert (error < np.sqrt(truth / 8192)).all()


def test_splitting_with_refined_levels_is_unbiased(case):
    _, _, tables, betas, lost = case
    score = Score(tables[0], betas)
    levels = mc.splitting_levels(score, 1, 1.0, score.latent(), num_particles=256, num_moves=2)
    more = refined(levels, len(levels.thresholds) + 2)
    assert len(more.thresholds) == len(levels.thresholds) + 2
    assert (np.diff(more.thresholds) > 0).all()
    assert more.thresholds[-1] == 1
    assert set(np.asarray(levels.thresholds)) <= set(np.asarray(more.thresholds))
    draw = mc.splitting_draw(score, more, score.latent(), num_particles=128, num_moves=2)
    result = mc.run(draw, 2, 64, statistics={"log_probability": mc.WeightedProportion()}, progress=False)
    numbers = result["log_probability"]
    truth = lost[0].any(1).mean()
    assert abs(numbers["probability"] - truth) < 5 * numbers["probability_standard_error"]
    assert numbers["probability_standard_error"] < truth / 3


def test_a_wrong_estimate_is_called_out():
    plain = {"probability": [0.1], "wide_low": [0.08], "wide_high": [0.12], "successes": [100]}
    good = {"probability": [0.1], "error": [0.002], "note": [""]}
    entry = {"depth": 2, "exact": [0.1], "plain": plain, "splitting": good}
    assert verdict(entry, 0) == "agree"
    assert verdict(entry | {"splitting": good | {"probability": [0.112]}}, 0).startswith("differs: splitting 0.112")
    assert verdict(entry | {"exact": [0.2]}, 0).startswith("differs")
    doubtful = {"depth": 2, "plain": plain | {"successes": [0]}, "splitting": good | {"note": ["few"]}}
    assert verdict(doubtful, 0) == "undecided"


@pytest.mark.slow
def test_the_study(tmp_path):
    parameters = RareParameters(
        signs=(8,), deep=(2,), nonzeros=3, num_filters=(8, 8), ell=3, D=6, zeta=(0.2, 0.4), num_draws=2000,
        tilted_draws=2000, replicates=8, particles=64, moves=2,
    )  # fmt: skip
    done = reproduce_study(DCSC_RARE, parameters, StudyOptions(out=tmp_path, quiet=True))
    models = done.report["findings"]["models"]
    assert [one["depth"] for one in models] == [1, 2]
    assert done.report["findings"]["agree"]
    for one in models:
        assert one["exact"] == sorted(one["exact"])
    assert {path.suffix for path in done.files} == {".json", ".png", ".svg"}


def test_parameters_that_do_not_fit(tmp_path):
    for changed, match in (
        ({"zeta": ()}, "--zeta"), ({"margin": (0.0, 1.0)}, "--margin"), ({"signs": (0,)}, "--signs"),
        ({"replicates": 1}, "--replicates"), ({"num_filters": (4,)}, "--num-filters"),
    ):  # fmt: skip
        parameters = dataclasses.replace(RareParameters(), **changed)
        with pytest.raises(ValueError, match=match):
            reproduce_study(DCSC_RARE, parameters, StudyOptions(out=tmp_path / "no", quiet=True))
