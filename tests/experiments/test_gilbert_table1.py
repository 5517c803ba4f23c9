"""Table 1 of Gilbert et al.: tiny runs, live and cached, resumed to the same bits; comparisons of given outcomes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from commands import refused

from cnninv_jax.experiments.classification import thinned
from cnninv_jax.experiments.gilbert_table1 import TABLE1, Table1Parameters, one_view
from cnninv_jax.experiments.gilbert_table1_tables import compared, tables
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

TINY = Table1Parameters(width=1 / 512, depths=(1,), num_seeds=2, epochs=2, limit=48, batch_size=16)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return reproduce_study(TABLE1, TINY, StudyOptions(out=tmp_path_factory.mktemp("t") / "out", quiet=True))


def test_every_cell_has_its_network(outcome):
    found = outcome.report["findings"]
    assert set(found["cells"]) == {"random-1", "learned-1"}
    assert found["networks"]["random-1"]["channels"] == [4]
    assert found["networks"]["learned-1"]["kernel"] == 5
    # conv 4 of 5 x 5 x 3, frozen; scale and bias; 4 x 4 x 4 features to 10 classes.
    assert found["networks"]["random-1"]["frozen"] == 300
    assert found["networks"]["random-1"]["learned"] == 8 + 640 + 10
    assert found["networks"]["learned-1"]["frozen"] == 0
    assert found["steps"] == 6
    for cells in found["cells"].values():
        assert [cell["status"] for cell in cells] == ["finished"] * 2
        assert len(cells[0]["curve"]["loss"]) == 6
    words = " ".join(note for table in outcome.tables for note in table.notes)
    assert "NOT numbers of CIFAR-10" in words
    assert {row[5] for row in outcome.tables[0].rows} == {"-"}
    assert {path.name for path in outcome.files} == {"report.json", "gilbert-table1.png", "gilbert-table1.svg"}


def test_a_killed_study_ends_on_the_same_numbers(outcome, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(outcome.folder, out)
    (out / "report.json").unlink()
    shutil.rmtree(out / "networks" / "learned-1-1")
    shutil.rmtree(out / "networks" / "random-1-0")
    again = reproduce_study(TABLE1, TINY, StudyOptions(out=out, quiet=True))
    for one, two in zip(
        *(report["findings"]["cells"].values() for report in (outcome.report, again.report)), strict=True
    ):
        assert [(cell["accuracy"], cell["curve"]) for cell in one] == [
            (cell["accuracy"], cell["curve"]) for cell in two
        ]


@pytest.mark.slow
def test_cached_features(tmp_path):
    parameters = dataclasses.replace(TINY, features="cached", filters=("random",), depths=(3,), num_seeds=1)
    found = reproduce_study(TABLE1, parameters, StudyOptions(out=tmp_path / "out", quiet=True))
    place = tmp_path / "out" / "networks" / "random-3-0"
    assert np.load(place / "features" / "features.npy").shape == (48, 4, 4, 2)
    assert (place / "features-mirrored" / "features.npy").exists()
    assert any("features computed once" in note for note in found.tables[0].notes)
    # A second call reads them.
    kept = (place / "features" / "features.npy").stat().st_mtime_ns
    (tmp_path / "out" / "report.json").unlink()
    again = reproduce_study(TABLE1, parameters, StudyOptions(out=tmp_path / "out", quiet=True))
    assert (place / "features" / "features.npy").stat().st_mtime_ns == kept
    first, second = (report["findings"]["cells"]["random-3"][0] for report in (found.report, again.report))
    assert first["accuracy"] == second["accuracy"]


def test_views():
    import jax

    views = np.arange(24.0).reshape(4, 2, 3)
    np.testing.assert_array_equal(one_view(None, {"images": views})["images"], views[:, 0])
    seen = np.asarray(one_view(jax.random.key(3), {"images": views})["images"])
    assert all(any(np.array_equal(row, view) for view in both) for row, both in zip(seen, views, strict=True))


def cells(**accuracies):
    curve = {"loss": [1.0], "accuracy": [0.5]}
    return {
        name.replace("_", "-"): [
            {"accuracy": value, "train_accuracy": value, "seconds": 1.0, "message": "", "curve": curve}
            for value in values
        ]
        for name, values in accuracies.items()
    }


def test_the_order_is_judged_seed_by_seed():
    held = cells(random_1=(0.5, 0.6, 0.7), learned_1=(0.6, 0.71, 0.79), random_2=(0.5, 0.59, 0.72))
    found = {entry["what"]: entry for entry in compared(held, (1, 2))}
    assert set(found) == {"learned - random, 1 layer", "random, 2 layers - 1 layer"}
    gain = found["learned - random, 1 layer"]
    assert gain["value"] == pytest.approx(0.1)
    assert gain["printed"] == pytest.approx(68.1 - 66.5)
    half = 4.302653 * np.std([0.1, 0.11, 0.09], ddof=1) / np.sqrt(3)  # Student's quantile with 2 degrees of freedom
    assert gain["high"] - gain["value"] == pytest.approx(half, rel=1e-5)
    network = {"channels": [4], "kernel": 3, "learned": 1, "frozen": 2}
    content = {
        "data": {"name": "cifar10", "source": "x", "train": 5, "test": 5, "notes": []},
        "networks": dict.fromkeys(held, network), "cells": held, "comparisons": list(found.values()),
    }  # fmt: skip
    accuracy, order = tables(content, TINY)
    assert [row[5] for row in accuracy.rows] == ["66.5", "68.1", "74.6"]
    assert [row[4] for row in order.rows] == ["higher", "undecided"]


def test_thinned_curves_are_means():
    np.testing.assert_allclose(thinned(np.array([1.0, 3.0, 5.0, 7.0, np.nan], np.float32), 2), [2.0, 6.0])
    assert thinned(np.full(3, np.nan)) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--width", "0"), "expected --width above 0 and at most 16, got 0"),
        (("--depths", "4"), "expected --depths among 1, 2 and 3, got 4"),
        (("--dropout", "1"), "expected --dropout from 0 to below 1"),
        (("--epochs", "-1"), "expected --epochs to be a positive number"),
        (("--batch-size", "9999"), "expected --batch-size of at most the 5000 training images"),
        (("--features", "cached", "--shift", "2"), "expected --features live with --shift"),
        (("--precision", "float64"), "expected --precision float32"),
        (("--cifar", "nowhere"), "there is no 'nowhere'"),
        (("--limit", "0"), "expected --limit"),
    ],
)
def test_refusals(scratch, capsys, flags, message):
    assert message in refused(capsys, "reproduce", "gilbert-table1", "--out", "x", *flags)


def test_another_training_in_the_folder(outcome, tmp_path, scratch, capsys):
    out = scratch / "out"
    shutil.copytree(outcome.folder, out)
    (out / "report.json").unlink()
    note = out / "networks" / "random-1-0" / "training.json"
    held = json.loads(note.read_text())
    note.write_text(json.dumps({**held, "key": [1, 2]}))
    said = refused(capsys, "resume", "out")
    assert "holds another training (key [1, 2] there" in said
