"""Fig. 7c of Random DCN: kernel sizes, a study that is stopped and goes on, and what its limit says."""

import json

import numpy as np
import pytest
from commands import refused

from cnninv_jax import data, images
from cnninv_jax.experiments import rows
from cnninv_jax.experiments.dcn_kernel import DCN_KERNEL, KernelParameters
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.limits import Conv, convergence_value

P = KernelParameters(size=16, limit=2, num_networks=2, show=1, channels=8, lengths=(3, 4, 9))


def study(folder, p=P):
    return reproduce_study(DCN_KERNEL, p, StudyOptions(out=folder, quiet=True))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return study(tmp_path_factory.mktemp("kernel"))


def test_a_study_that_was_stopped_ends_on_the_same_report(outcome, tmp_path, monkeypatch):
    whole = rows.KeptRows.add
    count = 0

    def add(self, name, row):
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt
        whole(self, name, row)

    with monkeypatch.context() as patched:
        patched.setattr(rows.KeptRows, "add", add)
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path / "out")
    held = json.loads((tmp_path / "out" / "similarities.json").read_text())["rows"]
    assert sum(map(len, held.values())) == 5
    again = study(tmp_path / "out")
    assert again.report["findings"] == outcome.report["findings"]
    # Finished, it is only read.
    monkeypatch.setattr(rows.KeptRows, "add", None)
    assert study(tmp_path / "out").report == again.report


@pytest.mark.slow
def test_every_kernel_size_has_its_limit(outcome):
    pictures = data.load_pictures(size=16, limit=2).images
    for entry, length in zip(outcome.report["findings"]["limits"], (3, 4, 9), strict=True):
        wanted = [images.similarity(x, convergence_value(x, (Conv(length, padding="same"),))) for x in pictures]
        np.testing.assert_allclose(entry["by_picture"], np.array(wanted), atol=1e-5)
    table = outcome.tables[1]
    assert table.columns[3] == "infinitely wide"
    assert [row[0] for row in table.rows] == ["3", "4", "9", "per 2 pixels"]


def test_other_laws_have_no_limit(tmp_path):
    p = KernelParameters(size=16, limit=1, num_networks=1, show=1, channels=8, lengths=(3,), filters="laplace")
    outcome = study(tmp_path / "out", p)
    assert outcome.report["findings"]["limits"] is None
    assert "infinitely wide" not in outcome.tables[1].columns
    # One network, one picture, one setting: no interval, no deviation, no trend, but a report and a figure.
    assert outcome.tables[0].rows[0][2:] == ("-", "-", "-", "")


@pytest.mark.slow
def test_similarity_falls_with_kernel_size(tmp_path):
    p = KernelParameters(size=32, num_networks=30, lengths=(3, 7, 11, 15), show=1)
    found = study(tmp_path / "out", p).report["findings"]
    assert all(found["variants"][variant]["trend"]["verdict"] == "agrees" for variant in ("conv", "mean"))
    assert found["variants"]["mean"]["trend"]["along"] == 3
    limits = [entry["mean"] for entry in found["limits"]]
    assert limits == sorted(limits, reverse=True)


def test_what_does_not_fit_is_refused(scratch, capsys):
    command = ("reproduce", "dcn-kernel")
    for arguments, words in (
        (("--lengths", "3", "65"), "expected --lengths to be an integer from 1 to 64, got 65"),
        (("--channels", "-1"), "expected --channels to be an integer from 1 to 16384, got -1"),
    ):
        assert words in refused(capsys, *command, *arguments), arguments
