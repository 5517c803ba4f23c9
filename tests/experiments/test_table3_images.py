"""Table 3 of Gilbert et al. in image space: crops apart, a tiny run, resumed to the same numbers."""

import shutil

import jax
import numpy as np
import pytest
import xarray as xr
from commands import refused

from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.experiments.table3 import TABLE3, Table3Parameters
from cnninv_jax.experiments.table3_crops import cifar_images, photograph_crops
from cnninv_jax.experiments.table3_image_tables import MAIN_IMAGES, PAPER_IMAGES, orders, printed_images

TINY = Table3Parameters(
    picture_size=32, num_pictures=2, layers=(1,), image_space=True, crop_size=16, num_crops=24, num_tests=4,
    width=1 / 32, classifier_steps=3, decoder_steps=4, batch_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return reproduce_study(TABLE3, TINY, StudyOptions(out=tmp_path_factory.mktemp("t") / "out", quiet=True))


@pytest.mark.slow
def test_errors_are_those_of_the_kept_crops(outcome):
    found = outcome.report["findings"]["image_space"]
    assert set(found["layers"]) == {"1"}
    errors = found["layers"]["1"]["errors"]
    assert set(errors) == {"original", "learned", "learned as given", "random", "activations"}
    with xr.open_dataset(outcome.folder / "result.nc", engine="h5netcdf") as dataset:
        kept = dataset["image_error"].sel(image_layer=1, decoded_from="random", image_reading=MAIN_IMAGES)
        assert errors["random"][MAIN_IMAGES]["mean"] == pytest.approx(float(kept.mean()), rel=1e-6)
        assert dataset["shown"].shape[2:] == (2, 3, 16, 16)
    # Random activations have f's norm and know nothing of f.
    assert found["layers"]["1"]["activations"]["activations"]["mean"] == pytest.approx(2**0.5, abs=0.15)
    assert errors["original"]["decoded.rgb"]["mean"] == 0
    assert found["classifier"]["classes"] == 2
    assert len(outcome.tables) == 4


@pytest.mark.slow
def test_resumed_on_the_same_numbers(outcome, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(outcome.folder, out)
    (out / "report.json").unlink()
    shutil.rmtree(out / "trainings" / "decoder1")
    again = reproduce_study(TABLE3, TINY, StudyOptions(out=out, quiet=True))
    first, second = (
        report["findings"]["image_space"]["layers"]["1"]["errors"] for report in (outcome.report, again.report)
    )
    assert first == second


def test_no_pixel_is_in_training_and_test_crops():
    crops = photograph_crops(jax.random.key(0), "embedded", size=16, num_pictures=2, num_train=200, num_test=8)
    assert crops.images.shape == (200, 3, 16, 16)
    assert crops.test.shape == (8, 3, 16, 16)
    assert set(crops.labels) == {0, 1} == set(crops.test_labels)
    seen = {row.tobytes() for image in crops.images for row in np.moveaxis(image, 0, -1)}
    assert sum(row.tobytes() in seen for image in crops.test for row in np.moveaxis(image, 0, -1)) <= 2
    own = cifar_images("embedded", num_train=10, num_test=5)
    assert (len(own.images), len(own.test), own.classes) == (10, 5, 10)


def test_the_papers_order():
    def layer(**means):
        return {"errors": {name.replace("_", " "): {MAIN_IMAGES: {"mean": mean}} for name, mean in means.items()}}

    content = {"layers": {str(i): layer(**PAPER_IMAGES[i]) for i in PAPER_IMAGES}}
    assert orders(content) == {"layers": 4, "random at most learned": 3, "both below random activations": 4}
    assert printed_images(1, "learned as given") == 0.423
    assert printed_images(1, "original") is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-tests", "1"), "expected --num-tests of at least 2"),
        (("--num-crops", "4"), "expected --num-crops of at least a batch of 32"),
        (("--width", "0"), "expected --width to be positive"),
        (("--classifier-steps", "-1"), "expected --classifier-steps of at least 0"),
    ],
)
def test_refusals(scratch, capsys, flags, message):
    arguments = ("reproduce", "gilbert-table3", "--image-space", "--picture-size", "64", "--num-pictures", "2")
    assert message in refused(capsys, *arguments, "--out", "x", *flags)
