"""Decoders above random and learned encoders: a tiny run, how speed is measured, what is refused."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import refused

from cnninv_jax.experiments.dcn_train import DCN_TRAIN, TrainParameters
from cnninv_jax.experiments.dcn_train_cases import cases_of
from cnninv_jax.experiments.dcn_train_tables import steps_to, summarised
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
TINY = TrainParameters(
    depths=(1,), width=1 / 32, num_seeds=1, num_steps=6, batch_size=4, encoder_steps=3, limit=24, test=6, show=1,
    picture_size=32, laws=("uniform",), deviations=(0.1,),
)  # fmt: skip


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return reproduce_study(DCN_TRAIN, TINY, StudyOptions(out=tmp_path_factory.mktemp("t") / "out", quiet=True))


def test_what_is_found(outcome):
    found = outcome.report["findings"]
    names = ["vgg16-cd1-gaussian0.015-0", "vgg16-cd1-learned-0", "vgg16-cd1-uniform-0", "vgg16-cd1-gaussian0.1-0-raw"]
    assert list(found["cases"]) == names
    assert found["cases"][names[3]]["divided_by"] == 1
    assert found["cases"][names[0]]["divided_by"] != 1
    assert all(len(case["curve"]) == 6 and np.isfinite(case["curve"]).all() for case in found["cases"].values())
    with xr.open_dataset(outcome.folder / "result.nc", engine="h5netcdf") as dataset:
        assert set(dataset.data_vars) == {"original", *names}
        assert dataset["original"].shape == (1, 3, 32, 32)
        assert dataset["original"].dtype == np.uint8
    assert set(found["encoders"]) == {"vgg16-cd1-0"}
    assert "NOT numbers of CIFAR-10" in " ".join(outcome.tables[0].notes)


def test_resumed_on_the_same_numbers(outcome, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(outcome.folder, out)
    (out / "report.json").unlink()
    shutil.rmtree(out / "decoders" / "vgg16-cd1-learned-0")
    again = reproduce_study(DCN_TRAIN, TINY, StudyOptions(out=out, quiet=True))
    for name, case in outcome.report["findings"]["cases"].items():
        other = again.report["findings"]["cases"][name]
        assert {**case, "seconds": 0} == {**other, "seconds": 0}


def test_cases_differ_in_one_thing_and_are_not_repeated():
    cases = cases_of(TrainParameters(num_seeds=2, laws=("gaussian", "uniform", "uniform")))
    assert len({case.name for case in cases}) == len(cases)
    main = [case for case in cases if case.group == "main"]
    assert len(main) == 2 * 2 * 2
    assert [case.encoder for case in cases if case.group == "law"] == ["uniform"]
    assert {case.depth for case in cases if case.group != "main"} == {2}


def test_steps_to_a_share_of_the_variance():
    curve = [1.0, 0.6, 0.4, 0.1, 0.05]
    assert steps_to(curve, 50, 1.0, 0.5, window=1) == 30
    assert steps_to(curve, 50, 1.0, 0.5, window=2) == 30  # (0.6 + 0.4) / 2
    assert steps_to(curve, 50, 1.0, 0.99, window=1) == math.inf
    assert steps_to([], 50, 1.0, 0.5) == math.inf


def test_random_against_learned_is_paired_by_seed():
    def case(kind, seed, loss):
        losses = dict.fromkeys(("mean_loss", "test_loss", "train_loss"), loss)
        return {"group": "main", "network": "vgg16", "depth": 1, "kind": kind, "seed": seed, "curve": [loss], **losses}

    cases = [case("random", 0, 1.0), case("learned", 0, 2.0), case("random", 1, 10.0), case("learned", 1, 20.0)]
    (found,) = summarised({"cases": dict(enumerate(cases)), "variance": 1.0}, TINY)
    assert found["mean_loss"]["each"] == pytest.approx([0.5, 0.5])
    assert found["mean_loss"]["ratio"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--depths", "6"), "expected --depths to be different numbers from 1 to 5"),
        (("--width", "9"), "expected --width above 0 and at most 4"),
        (("--num-steps", "0"), "expected --num-steps"),
        (("--deviations", "-1"), "expected --deviations to be positive"),
        (("--rate", "0"), "expected --rate to be positive"),
        (("--weights", "nowhere.npz", "--width", "0.5"), "expected no --width with --weights"),
        (("--weights", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_refusals(scratch, capsys, flags, message):
    assert message in refused(capsys, "reproduce", "dcn-train", "--out", "x", *flags)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "vgg16").exists(), reason="needs ../shared/data, which is not distributed")
def test_learned_filters_from_a_file(tmp_path):
    import dataclasses

    file = str(SHARED / "vgg16" / "vgg16_conv1_1_to_conv2_2.npz")
    parameters = dataclasses.replace(TINY, weights=file, laws=(), deviations=(), num_steps=3)
    found = reproduce_study(DCN_TRAIN, parameters, StudyOptions(out=tmp_path / "out", quiet=True))
    assert found.report["findings"]["encoders"] == {}
    deep = dataclasses.replace(parameters, depths=(3,))
    with pytest.raises(ValueError, match=r"conv3_1, conv3_2, conv3_3 are missing; lower --depths"):
        reproduce_study(DCN_TRAIN, deep, StudyOptions(out=tmp_path / "deep", quiet=True))
