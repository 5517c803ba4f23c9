"""`cnninv failure`: four methods on one number, their table, file and picture; what is refused."""

import json
import math
import os
import shlex

import jax
import numpy as np
import pytest
from commands import refused
from scipy import stats

from cnninv_jax import montecarlo as mc
from cnninv_jax.cli import main
from cnninv_jax.experiments import failure as module
from cnninv_jax.experiments.failure import FailureOptions, FailureParameters, failure, verdict
from cnninv_jax.experiments.failure_draws import Score, Setting, WeightedDraw
from cnninv_jax.experiments.tail_figure import failure_figure

pytestmark = [
    pytest.mark.skipif(not jax.config.jax_enable_x64, reason="the command line chooses widths of its own"),
    pytest.mark.usefixtures("scratch"),
]

SMALL = shlex.split(
    "failure --K 4 --M 2 --ell 2 --D 4 --k 1 --side upper --delta 8 --num-draws 3000 --candidates 2 --replicates 16 "
    "--particles 256 --moves 3 --codes 500 --quiet"
)
METHODS = ["plain Monte Carlo", "importance sampling", "splitting", "closed form (chi-square)"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a small run, and what it printed."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("failure") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*SMALL, "--out", str(folder)]) == 0
    return folder, said.getvalue()


def content(folder):
    return json.loads((folder / "failure.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_all_methods_agree_on_a_rare_failure(finished):
    report = content(finished[0])
    methods = {entry["method"]: entry for entry in report["methods"]}
    assert list(methods) == METHODS
    truth = methods[METHODS[-1]]["probability"]
    np.testing.assert_allclose(truth, stats.chi2.sf(4 * 9, 4), rtol=1e-11)
    assert truth < 1e-6
    assert report["agree"] is True
    for name in METHODS[1:3]:
        entry = methods[name]
        low, high = entry["interval_95"]
        assert low < entry["probability"] < high
        assert entry["verdict"].startswith("agrees")
        assert abs(entry["probability"] - truth) < 5 * entry["standard_error"]
    plain = methods["plain Monte Carlo"]
    assert plain["hits"] == 0
    assert plain["interval_95"][0] == 0.0
    np.testing.assert_allclose(plain["interval_95"][1], mc.wilson(0, 3000)[1])
    assert methods["importance sampling"]["draws"] == 3000
    assert methods["splitting"]["draws"] == 16
    assert abs(methods["importance sampling"]["mean_weight"] - 1) < 0.2


@pytest.mark.slow
def test_the_curve_runs_through_every_method(finished):
    report = content(finished[0])
    curve, reference = report["curve"], report["curve"]["reference"]
    assert 8.0 in curve["deltas"]
    line = np.log(reference["probability"])
    assert np.all(np.diff(line) < 0)
    for deltas, points in (
        (curve["deltas"], curve["importance"]), (curve["splitting"]["deltas"], curve["splitting"]),
    ):  # fmt: skip
        inside = np.asarray(deltas) >= reference["deltas"][0]
        expected = np.interp(deltas, reference["deltas"], line)
        off = (np.log(points["probability"]) - expected)[inside]
        assert np.all(np.abs(off) < 1.0)
    assert curve["splitting"]["deltas"][-1] == 8.0


@pytest.mark.slow
def test_table_names_methods_verdict_and_files(finished):
    folder, said = finished
    for word in (*METHODS, "effective hits", "all methods agree with the reference", "|W^T z|^2 > (1 + 8) |z|^2"):
        assert word in said
    for name in ("failure.json", "failure.png", "failure.svg"):
        assert (folder / name).stat().st_size > 1000
        assert str(folder / name) in said


@pytest.mark.slow
def test_figure_shows_what_was_saved(finished):
    report = content(finished[0])
    axes = failure_figure(report).axes[0]
    assert axes.get_yscale() == "log"
    labels = axes.get_legend_handles_labels()[1]
    assert {METHODS[-1], "importance sampling", "splitting, every level"} <= set(labels)
    assert "plain Monte Carlo: none seen" in labels
    np.testing.assert_allclose(axes.lines[0].get_ydata(), report["curve"]["reference"]["probability"])
    # A report with nothing to show of splitting still draws.
    report["curve"]["splitting"] = {"deltas": [], "probability": [], "low": [], "high": []}
    assert failure_figure(report).axes


@pytest.mark.slow
def test_the_same_command_reads_its_journals(finished, capsys):
    folder, _ = finished
    before = content(folder)
    assert main([*SMALL, "--out", str(folder)]) == 0
    after = content(folder)
    for first, second in zip(before["methods"], after["methods"], strict=True):
        assert {k: v for k, v in first.items() if "seconds" not in k} == {
            k: v for k, v in second.items() if "seconds" not in k
        }
    assert "journal.sqlite" in os.listdir(folder / "importance")
    sentence = refused(capsys, *SMALL, "--seed", "1", "--out", folder)
    assert "holds another run" in sentence
    assert "seed" in sentence


def small(**changes):
    parameters = {"K": 4, "M": 2, "ell": 2, "D": 4, "k": 2, "side": "upper", "delta": 8.0}
    given = {name: changes.pop(name) for name in list(changes) if name in {*parameters, "code", "values"}}
    options = {"num_draws": 3000, "candidates": 4, "replicates": 16, "particles": 600, "moves": 3, "quiet": True}
    return FailureParameters(**{**parameters, **given}), FailureOptions(**{**options, **changes})


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [{"code": "random"}, {"code": "fixed"}, {"k": 1, "delta": 0.995, "side": "both"}, {"values": "signs"}]
)
def test_other_settings(case, tmp_path):
    parameters, options = small(**case, out=tmp_path / "run")
    report = failure(parameters, options).content
    reference = report["methods"][-1]
    closed = parameters.k == 1 or parameters.code == "fixed"
    assert reference["method"].startswith("closed form" if closed else "conditional")
    assert reference["standard_error"] < (1e-10 if closed else 0.05) * reference["probability"]
    assert report["agree"], [(entry["method"], entry["verdict"]) for entry in report["methods"]]


def test_one_program_for_all_deltas_and_codes():
    setting = Setting(K=4, M=2, ell=2, D=4, k=2)
    first, second = (WeightedDraw(np.float32(delta), None, setting, 4, "float32") for delta in (0.5, 0.9))
    structure = [jax.tree_util.tree_structure(draw) for draw in (first, second)]
    assert structure[0] == structure[1]
    assert structure[0] != jax.tree_util.tree_structure(Score(None, setting))
    # What is asked of delta does not shape the computation.
    assert FailureParameters(delta=0.3).setting == FailureParameters(delta=0.4, code="fixed").setting


def estimate(probability, error=0.0, **more):
    return {"probability": probability, "standard_error": error, "note": "", **more}


def test_verdicts():
    truth = estimate(1e-8)
    assert verdict(estimate(1.2e-8, 1e-9), truth) == "agrees (+2.2 s.e.)"
    assert verdict(estimate(2e-8, 1e-9), truth).startswith("differs (+")
    assert verdict(estimate(0.5e-8, 1e-9), estimate(1e-8, 5e-9)).startswith("agrees")
    assert verdict(estimate(1e-8, 1e-9, note="x: too few; more"), truth) == "undecided (see the note)"
    assert verdict(estimate(1e-8, 1e-9), estimate(1e-8, note="few")).startswith("undecided (see the reference")
    assert verdict(estimate(0.0, successes=0, draws=1000), truth) == "agrees"
    assert verdict(estimate(0.01, successes=10, draws=1000), truth) == "differs"


def test_what_splitting_cannot_reach_is_said(monkeypatch, tmp_path):
    parameters, options = small(out=tmp_path / "run")

    def stuck(*_, **__):
        raise ValueError("expected levels to rise, got stuck")

    monkeypatch.setattr(module.mc, "splitting_levels", stuck)
    work = module._Work(parameters, options, {}, tmp_path)
    entry = work.splitting()
    assert math.isnan(entry["probability"])
    assert entry["note"] == "splitting: expected levels to rise, got stuck"
    assert verdict(entry, estimate(1e-8)).startswith("undecided")


# What is refused.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--delta", "1.5"], "expected delta to be between 0 and 1"),
        (["--delta", "0", "--side", "upper"], "expected delta to be positive"),
        (["--delta", "nan"], "expected delta to be between 0 and 1"),
        (["--delta", "inf", "--side", "upper"], "expected delta"),
        (["--k", "200"], "expected 1 <= k <= 96"),
        (["--K", "0"], "expected --K to be an integer"),
        (["--stride", "2"], "(D - ell) / stride"),
        (["--D", "3"], "expected"),
        (["--num-draws", "0"], "expected --num-draws"),
        (["--replicates", "1"], "expected --replicates to be at least 2, got 1"),
        (["--particles", "3"], "expected --particles to be at least 16, got 3"),
        (["--candidates", "0"], "expected --candidates"),
        (["--seed", "-1"], "expected a seed"),
        (["--side", "left"], "left"),
        (["--values", "cauchy"], "cauchy"),
        (["--deltas", "0.5"], "--deltas"),
    ],
)
def test_bad_input(capsys, words, said):
    sentence = refused(capsys, "failure", *words)
    assert said.split("(")[0] in sentence
    assert os.listdir() == []
