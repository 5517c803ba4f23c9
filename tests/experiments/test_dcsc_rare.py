"""Paths that are hardly ever lost: every method against all patterns of signs, tried in NumPy."""

import dataclasses
import itertools
import math

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
from cnninv_jax.experiments.dcsc_rare_figure import rare_figure
from cnninv_jax.experiments.dcsc_rare_models import held_below
from cnninv_jax.experiments.dcsc_rare_tables import rare_tables, verdict
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


@pytest.mark.slow
def test_all_patterns_are_counted(case):
    _, _, tables, betas, lost = case
    counted = count_patterns(jax.tree.map(lambda *arrays: jnp.stack(arrays), *tables), betas)
    assert counted.tolist() == lost.any(2).sum(1).tolist()
    assert 0 < counted[0] < counted[1] < 2**SIGNS
    many = dataclasses.replace(tables[0], support=(jnp.zeros(25, jnp.int32),))
    many = jax.tree.map(lambda array: array[None], many)
    with pytest.raises(ValueError, match="at most 24 signs"):
        count_patterns(many, betas)


@pytest.mark.slow
def test_probabilities_of_single_responses(case):
    _, layers, _, _, lost = case
    exact = event_probabilities([events(layer) for layer in layers])
    # Off the support and on it alike: the two directions of a response exclude each other.
    np.testing.assert_allclose(exact.sum(1), lost.mean(1).sum(1), rtol=1e-12)
    assert (exact.max(1) <= lost.any(2).mean(1)).all()


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_two_layers_are_held_against_the_sum_of_layer_1_where_only_it_can_lose_them():
    plain = {"probability": [0.0], "wide_low": [0.0], "wide_high": [1e-4], "successes": [0]}
    split = {"probability": [4e-6], "error": [2e-7], "note": [""]}
    entry = {"depth": 2, "wrong": [4.2e-6], "most": [1e-6], "held": [True], "plain": plain, "splitting": split}
    assert verdict(entry, 0) == "agree (layer 1)"
    assert verdict(entry | {"held": [False]}, 0) == "undecided"
    # Below the sum of overlapping events a loss may well lie; above it, it cannot.
    assert verdict(entry | {"wrong": [9e-6]}, 0) == "undecided"
    assert verdict(entry | {"wrong": [2e-6]}, 0).startswith("differs: splitting 4e-06 above the responses' sum")


@pytest.mark.slow
@pytest.mark.parametrize(("zeta", "shared"), [(0.05, False), (0.3, False), (3.0, False), (0.3, True)])
def test_layer_2_is_held_by_layer_1_only_if_no_signs_say_otherwise(zeta, shared):
    """Worst cases against all patterns: where layer 2 is said to be held, none loses it while layer 1 is recovered."""
    filter_key, noise_key = jax.random.split(jax.random.key(5))
    # Each deep atom has two channels of its own, or the atoms share one.
    deep = np.zeros((2, 4, 2))
    deep[0, 0, 0] = deep[0, 1, 1] = deep[1, 2, 0] = deep[1, 3, 1] = np.sqrt(0.5)
    if shared:
        deep[1] = deep[0]
        deep[1, 1] = 0
        deep[1, 2, 1] = np.sqrt(0.5)
    model = dcsc.layers([jax.random.normal(filter_key, (4, 12, 2)), jnp.asarray(deep)], 4, padding="circular")
    code = np.zeros((2, 4))
    code[0, 0], code[1, 1] = 1.0, 1.1
    first = np.abs(np.asarray(dcsc.reverse_pass(model, code)[1]))
    beta = np.array([first[first > 0].min() / 2, 0.5])
    noise = aligned_noise(noise_key, model[0], zeta)
    (held,) = held_below(model, code, [first_layer(model, code, noise, beta[0])], beta[1])
    tables = dcsc.path_tables(model, code, noise=noise)
    patterns = jnp.array(list(itertools.product([1.0, -1.0], repeat=sum(tables.places))))
    splits = np.cumsum(tables.places)[:-1]
    outcome = jax.vmap(lambda signs: dcsc.path_outcome(tables, tuple(jnp.split(signs, splits)), beta))(patterns)
    only_second = int(np.sum(np.asarray(outcome.failed)[:, 1]))
    assert held == (zeta < 1 and not shared)
    assert only_second == 0 or not held


def table_entry(depth):
    """What the tables and the figure read of a model with two levels."""
    numbers = {"probability": [0.1, math.nan], "low": [0.09, math.nan], "high": [0.11, math.nan], "note": ["", "stuck"]}
    plain = {"probability": [0.1, 0.0], "low": [0.09, 0.0], "high": [0.11, 1e-4], "successes": [9, 0], "draws": 99}
    layers = [{"sparsity": 3.0, "coherence": 0.1}] * depth
    return {
        "name": "model", "depth": depth, "signs": 40, "channels": 9, "places": [9] * depth, "responses": [90] * depth,
        "measured": {name: [layer[name] for layer in layers] for name in ("sparsity", "coherence")},
        "zeta": [0.1, 0.2], "log10_bound": [1.0, -2.0], "wrong": [0.12, 0.0], "most": [0.05, 0.0],
        "held": [True, False], "tried": 64, "unlosable": False, "plain": plain,
        "splitting": numbers | {"evaluations": 100}, "verdicts": ["agree", "undecided"],
    } | ({"tilted": numbers | {"draws": 50}, "hoeffding": [0.5, 0.1]} if depth == 1 else {})  # fmt: skip


def test_exact_numbers_are_called_exact_and_bounds_are_not():
    tables = rare_tables([table_entry(1), table_entry(2), table_entry(2) | {"exact": [0.1, 0.05]}])
    cells = [[dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables]
    assert [row["exact"] for row in cells[0]] == ["<= 0.12", "0"]
    assert [row["exact"] for row in cells[1]] == ["-", "-"]
    assert [row["layer 1 alone"] for row in cells[1]] == ["<= 0.12", "0"]
    assert [row["exact"] for row in cells[2]] == ["0.1", "0.05"]
    assert "Hoeffding" in tables[0].columns
    assert "Hoeffding" not in tables[1].columns
    assert "zeta 0.20: stuck" in tables[0].notes
    assert "zeta 0.20: stuck" in tables[1].notes
    assert any("find 0.83 to 0.83 of it" in note for note in tables[0].notes)
    assert any("64 supports" in note and "none was found" in note for note in tables[1].notes)
    assert any("but at zeta 0.10 no signs" in note for note in tables[1].notes)


def test_the_figure_says_what_is_layer_1_alone():
    figure = rare_figure({"title": "", "findings": {"models": [table_entry(1), table_entry(2)]}})
    single, double = (axes.get_legend_handles_labels()[1] for axes in figure.axes)
    assert any("Hoeffding" in label for label in single)
    assert not any("Hoeffding" in label or "exact" in label for label in double)
    assert "layer 1 alone: sum over responses" in double


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
        ({"signs": (5000,)}, "--signs of at most 192"), ({"deep": (39,)}, "--deep of at most 38"),
        ({"signs": (8, 8)}, "--signs that differ"),
        ({"deep": (2, 2)}, "--deep that differ"),
        ({"zeta": (0.1, 0.2, 0.1)}, "--zeta that differ"),
        ({"replicates": 1}, "--replicates"),
        ({"num_filters": (4,)}, "--num-filters"),
    ):  # fmt: skip
        parameters = dataclasses.replace(RareParameters(), **changed)
        with pytest.raises(ValueError, match=match):
            reproduce_study(DCSC_RARE, parameters, StudyOptions(out=tmp_path / "no", quiet=True))
