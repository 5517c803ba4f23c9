"""`dcsc-depth`: pooled intervals, scaled noise and whole passes against tables, the study, refusals."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax.dcsc.generate import coherences
from cnninv_jax.experiments.dcsc_depth import DCSC_DEPTH, DepthParameters, check, deepest_count
from cnninv_jax.experiments.dcsc_depth_cells import pooled, sample_paths, under_noise
from cnninv_jax.experiments.dcsc_depth_draws import SpreadDraw
from cnninv_jax.experiments.dcsc_dictionaries import build, prepare
from cnninv_jax.experiments.studies import StudyOptions, progress_bar, reproduce_study

SMALL = DepthParameters(
    D=12, M=12, num_filters=(10, 8), ell=4, nonzeros=3, support=(3, 6), noise=(0.0, 3.0), paths=3, num_draws=60,
    spread_draws=64,
)  # fmt: skip


def test_pooled_intervals_know_that_supports_differ():
    alike = np.array([[10.0], [12], [9], [9]])
    apart = np.array([[40.0], [0], [0], [0]])
    draws = np.full((4, 1), 100.0)
    share, low, high = pooled(alike, draws)
    assert share == pytest.approx(0.1)
    wilson = mc.wilson(40, 400)
    np.testing.assert_allclose([low[0], high[0]], np.ravel(wilson))
    share, wide_low, wide_high = pooled(apart, draws)
    assert share == pytest.approx(0.1)
    # Between supports (30^2 + 3 10^2) 4/3 over 36: as if there were 400 / 44.4 = 9 draws, and 3.4 by Student's t.
    effect = (900 + 300) * 4 / 3 / 36 * (3.182446 / 1.959964) ** 2
    np.testing.assert_allclose(
        [wide_low[0], wide_high[0]], np.ravel(mc.wilson(0.1 * 400 / effect, 400 / effect)), rtol=1e-6
    )
    assert math.isnan(pooled(np.zeros((2, 1)), np.zeros((2, 1)))[0][0])


def test_the_pooled_interval_covers_the_truth():
    """Supports of probabilities 0.1 and 0.5: draws alone would claim too much."""
    generator, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(400):
        chances = generator.choice([0.1, 0.5], size=30)
        counts = generator.binomial(50, chances).astype(float)[:, None]
        _, low, high = pooled(counts, np.full((30, 1), 50.0))
        plain = mc.wilson(counts.sum(), 1500)
        hits += bool(low[0] <= 0.3 <= high[0])
        naive += bool(plain[0] <= 0.3 <= plain[1])
    assert hits / 400 > 0.95 - 5 * math.sqrt(0.95 * 0.05 / 400)
    assert naive / 400 < 0.7


def test_the_pooled_interval_of_six_supports_covers_the_truth():
    """Beta(1, 3) supports: a normal quantile of 6 supports covers 0.89."""
    generator = np.random.default_rng(1)
    counts = generator.binomial(100, generator.beta(1, 3, (6, 1000))).astype(float)
    _, low, high = pooled(counts, np.full(counts.shape, 100.0))
    hits = np.mean((low <= 0.25) & (high >= 0.25))
    assert abs(hits - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 1000)
    assert hits > 0.92


def test_the_figure_shows_rates_of_one_support_down_to_the_smallest():
    layers = {"first": [0.0, 2e-5], "given": [0.0, 2e-5], "given_low": [0.0, 1e-5], "given_high": [3e-5, 4e-5],
              "zeta_mean": [0.1, 0.1], "zeta_largest": [0.2, 0.2], "uniform": [1.0, 1.0, 1.0],
              "probabilistic": [1.0, 1.0, 1.0]}  # fmt: skip
    cells = [
        {"depth": 2, "support": 3, "noise": level, "lost_low": 1e-5, "lost_high": 4e-5, **layers}
        for level in (0.0, 3.0)
    ]  # fmt: skip
    # Named in the other order.
    p = dataclasses.asdict(dataclasses.replace(SMALL, support=(3,), noise=(3.0, 0.0)))
    nothing = np.zeros((2, 2)).tolist()
    spread = [
        {"support": 3, "noise": level, "first": [0.0, 0.0], "misses": nothing, "alarms": nothing}
        for level in (0.0, 3.0)
    ]  # fmt: skip
    report = {"title": "", "seed": 0, "parameters": p, "findings": {"cells": cells, "spread": spread}}
    panels = {axes.get_title(): axes for axes in DCSC_DEPTH.figure(report, xr.Dataset()).axes}
    assert len(panels) == 5
    assert panels["failures layer by layer, depth 2"].get_ylim()[0] < 2e-5


def _sampled(p, depth):
    model = build(jax.random.key(3), p, depth, "float64")
    with progress_bar("", 100, quiet=True) as bar:
        return model, sample_paths(jax.random.key(4), p, model, coherences(model), deepest_count(p, 6, depth), bar)


@pytest.mark.slow
def test_noise_is_scaled_in_the_tables():
    model, sampled = _sampled(SMALL, 2)
    clean = sampled.prepared[0]
    assert clean.zeta_0 == pytest.approx(float(clean.measured.smallest[0]))
    scaled = under_noise(clean, 3.0)
    capacity = [len(where) for where in clean.tables.support]
    direct = prepare(model, sampled.codes[0], 3 * sampled.noises[0], capacity, measured=clean.measured)
    assert scaled.zeta_0 == pytest.approx(direct.zeta_0)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-12), scaled.tables, direct.tables)


@pytest.mark.slow
def test_whole_passes_lose_what_the_tables_say():
    """One draw of signs through `forward` and through the tables: the same layer is lost first."""
    p = dataclasses.replace(SMALL, paths=1)
    model, sampled = _sampled(p, 2)
    ready = under_noise(sampled.prepared[0], 3.0)
    draw = SpreadDraw(model, jnp.stack(sampled.codes), 3 * jnp.stack(sampled.noises), ready.thresholds[None])

    @jax.jit
    def both(key):
        _, signs_key = jax.random.split(jax.random.clone(key))
        signed = dcsc.draw_signs(signs_key, model)
        places = [
            jnp.take(layer.signs.ravel(), where, mode="fill", fill_value=1.0)
            for layer, where in zip(signed, ready.tables.support, strict=True)
        ]
        # Tables start from |X^(L)|; its signs are the code's own times D^(L).
        own = jnp.take(jnp.sign(sampled.codes[0]).ravel(), ready.tables.support[-1], mode="fill", fill_value=1.0)
        places[-1] = places[-1] * own
        return draw(key), dcsc.path_outcome(ready.tables, places, ready.thresholds)

    firsts = []
    for seed in range(40):
        found, outcome = both(jax.random.key(seed))
        np.testing.assert_array_equal(np.asarray(found["first"]), np.asarray(outcome.failed))
        firsts.append(np.asarray(found["first"]))
        for layer in np.flatnonzero(firsts[-1]):
            # Nothing is lost before the first loss, and something at it.
            assert not np.any(np.asarray(found["lost"])[layer, :layer])
            assert float(found["lost"][layer, layer]) == 1
            assert float(found["misses"][layer, layer] + found["alarms"][layer, layer]) > 0
    assert 0 < np.any(firsts, axis=1).mean() <= 1


def test_supports_by_depth():
    p = DepthParameters()
    assert [deepest_count(p, 162, depth) for depth in range(1, 6)] == [162, 54, 18, 6, 2]
    fixed = dataclasses.replace(p, fixed="deepest")
    assert [deepest_count(fixed, 2, depth) for depth in range(1, 6)] == [2] * 5


@pytest.mark.slow
def test_the_study(tmp_path):
    named = dataclasses.replace(SMALL, support=(6, 3), noise=(3.0, 0.0))
    outcome = reproduce_study(DCSC_DEPTH, named, StudyOptions(seed=1, out=tmp_path / "d", quiet=True))
    assert "draws" in outcome.tables[1].columns
    report = json.loads((tmp_path / "d" / "report.json").read_text())
    cells = report["findings"]["cells"]
    assert [(cell["depth"], cell["support"], cell["noise"]) for cell in cells] == [
        (depth, support, level) for depth in (1, 2) for support in (3, 6) for level in (0.0, 3.0)
    ]
    for cell in cells:
        counts = np.asarray(cell["counts"])
        np.testing.assert_array_equal(cell["intact"], 180 - np.cumsum(counts.sum(axis=0)))
        assert counts.shape == (3, cell["depth"])
        np.testing.assert_allclose(np.sum(cell["first"]), counts.sum() / 180)
        assert cell["lost"] == pytest.approx(np.sum(cell["first"]))
        # The uniform recursion holds in every draw that recovered its supports.
        for measured, allowed in zip(cell["zeta_largest"], cell["uniform"][1:], strict=True):
            assert measured is None or measured <= allowed * (1 + 1e-5)
        assert cell["deepest"] == cell["support"] // 3 ** (cell["depth"] - 1)
    # Noise makes no path easier (5 standard errors of a difference of two shares of 180 draws are 0.26).
    assert cells[3]["lost"] > cells[2]["lost"] - 0.26
    assert len(outcome.tables) == 3
    assert len(report["findings"]["spread"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"support": (4,)}, "--support to be multiples of 3"), ({"noise": (-1.0,)}, "--noise"),
        ({"delta": 0.0}, "--delta"), ({"support": (3, 3)}, "--support to be different"),
        ({"noise": (1.0, 1.0)}, "--noise to be different"), ({"paths": 0}, "--paths"),
        ({"num_filters": ()}, "--num-filters"),
    ],
    ids=["support", "noise", "delta", "support-twice", "noise-twice", "paths", "filters"],
)  # fmt: skip
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(SMALL, **change))
