"""The Rademacher study: samples, both sides against all signs, the ratio's interval, and the study as a whole."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cnninv_jax.experiments import crelu_rademacher_draws as draws
from cnninv_jax.experiments.crelu_rademacher import CRELU_RADEMACHER, RademacherParameters
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.montecarlo import Moments, run

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough")

SMALL = RademacherParameters(
    laws=("antipodal", "centred"), dims=(2,), samples=(2, 14), num_draws=64, starts=2, steps=4, size=16, limit=2
)  # fmt: skip


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return reproduce_study(CRELU_RADEMACHER, SMALL, StudyOptions(out=tmp_path_factory.mktemp("small"), quiet=True))


def cells(outcome):
    return {(cell["law"], cell["samples"]): cell for cell in outcome.report["findings"]["cells"]}


def drawn(law, count, dim, pictures=None, seed=0):
    return draws.sample(law, draws.cell_key(seed, law, count, dim), count, dim, pictures, "float32")


def test_laws_of_points():
    pictures = np.random.default_rng(0).uniform(size=(2, 9, 8))
    normals = drawn("gaussian", 2000, 3)
    assert np.all(np.abs(normals.mean(axis=0)) < 5 / np.sqrt(2000))
    np.testing.assert_allclose(normals.var(axis=0), 1, atol=5 * np.sqrt(2 / 2000))
    pairs = drawn("antipodal", 7, 2)
    np.testing.assert_array_equal(pairs[:6:2], -pairs[1:6:2])
    assert pairs.shape == (7, 2)
    assert np.all(drawn("positive", 9, 2) > 0)
    patches = drawn("patches", 5, 6, pictures)
    # Two rows of three pixels, side by side in a picture.
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (2, 3), axis=(1, 2)).reshape(-1, 6)
    assert all(np.any(np.all(np.isclose(windows, patch, atol=1e-6), axis=1)) for patch in patches)
    # The same patches, whatever law comes first.
    np.testing.assert_allclose(drawn("centred", 5, 6, pictures), patches - patches.mean(axis=0), atol=1e-6)


def test_keys_are_those_of_the_cell():
    seen = {
        tuple(np.asarray(jax.random.key_data(draws.cell_key(0, law, count, dim))).tolist())
        for law in ("gaussian", "antipodal", "positive", "patches")
        for count in (2, 3)
        for dim in (2, 3)
    }
    assert len(seen) == 16


@pytest.mark.parametrize("way", ["faces", pytest.param("ascent", marks=pytest.mark.slow)])
def test_drawn_signs_agree_with_all_signs(tmp_path, monkeypatch, way):
    points = drawn("antipodal", 6, 2)
    exact = draws.Effort(1, 1000, 1, 1).measure(points, jax.random.key(1), tmp_path / "none", "all")
    assert exact["kind"] == "all signs"
    monkeypatch.setattr(draws, "ENUMERATED", 0)
    effort = draws.Effort(2048, 1000 if way == "faces" else 0, 8, 24)
    found = effort.measure(points, jax.random.key(1), tmp_path / way, way)
    assert found["kind"] == ("exact suprema" if way == "faces" else "lower bounds")
    for name in draws.READINGS:
        value, low, high = draws.ratio(found, name, 1 - 6e-7)
        true = draws.ratio(exact, name, 0.95)
        assert true[0] == true[1] == true[2]
        assert low <= true[0] <= high
        assert low < value < high


def test_the_interval_of_a_ratio(tmp_path):
    # Against the covariance matrix of the draws themselves.
    def draw(key):
        first, second = jax.random.uniform(key, (2,))
        return {"linear": 1 + first, "crelu": 1.5 + first + second, "crelu_excess": 0.5 + second}

    result = run(draw, 3, 500, chunk_size=512, progress=False, keep=("linear", "crelu"),
                 statistics={name: Moments() for name in ("linear", "crelu", "crelu_excess")})  # fmt: skip
    numbers = {
        name: {leaf: float(held[name]) for leaf, held in result.statistics.items()} for name in ("mean", "variance")
    }
    cell = {"draws": 500, "means": numbers["mean"], "variances": numbers["variance"]}
    value, low, high = draws.ratio(cell, "crelu", 0.95)
    left, right = result.draws["crelu"], result.draws["linear"]
    np.testing.assert_allclose(value, left.mean() / right.mean(), rtol=1e-6)
    error = np.std(left - value * right, ddof=1) / right.mean() / np.sqrt(500)
    np.testing.assert_allclose([value - low, high - value], 1.9647 * error, rtol=1e-3)


@pytest.mark.slow
def test_the_study_finds_the_counterexample(outcome):
    found = cells(outcome)
    for law in SMALL.laws:
        two = found[law, 2]["ratios"]
        np.testing.assert_allclose(two["crelu"]["ratio"], np.sqrt(2), rtol=1e-5)
        assert two["crelu"]["verdict"] == "fails"
        assert two["relu"]["verdict"] == two["avr"]["verdict"] == "holds"
    assert found["centred", 14]["kind"] == "exact suprema"
    findings = outcome.report["findings"]
    assert findings["comparisons"] == 6
    np.testing.assert_allclose(findings["level"], 1 - 0.05 / 6)
    broken = {one["name"]: one for one in findings["classes"]}
    np.testing.assert_allclose(broken["e1 - e2, e2 - e3, e3 - e1"]["avr"], 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(broken["e1 + e3, e2 + e3, e1 - e2"]["relu"], 7 / 6, rtol=1e-5)
    assert broken["f = (-1)"]["relu"] == 0
    for cell in found.values():
        for name in draws.READINGS:
            assert cell["means"][name] <= cell["upper_bounds"][name] * 1.2
            assert cell["ratios"][name]["low"] <= cell["constants"][name] + 1e-5


@pytest.mark.slow
def test_what_the_study_leaves(outcome):
    first = outcome.tables[0]
    assert first.columns == ("sample", "L = 2", "L = 14")
    assert first.rows[0][1] == "1.414 fails"
    assert {file.suffix for file in outcome.files} == {".json", ".png", ".svg"}
    again = reproduce_study(CRELU_RADEMACHER, SMALL, StudyOptions(out=outcome.folder, quiet=True))
    assert again.report == outcome.report
    json.dumps(outcome.report)


@pytest.mark.slow
def test_a_cell_does_not_depend_on_the_others(outcome, tmp_path):
    alone = dataclasses.replace(SMALL, laws=("centred",), samples=(14,))
    found = cells(reproduce_study(CRELU_RADEMACHER, alone, StudyOptions(out=tmp_path / "alone", quiet=True)))
    assert found["centred", 14]["means"] == cells(outcome)["centred", 14]["means"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"laws": ("gaussian", "gaussian")}, "--laws to be different"),
        ({"laws": ("uniform",)}, "--laws out of"),
        ({"dims": ()}, "at least one value of --dims"),
        ({"samples": (1,)}, "--samples of at least 2"),
        ({"dims": (0,)}, "--dims"),
        ({"num_draws": 1}, "--num-draws of at least 2"),
        ({"most_faces": 0}, "--most-faces"),
        ({"dims": (32,)}, "--size 16"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_refused(tmp_path, change, words):
    bad = dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match=words):
        reproduce_study(CRELU_RADEMACHER, bad, StudyOptions(out=tmp_path / "bad", quiet=True))
