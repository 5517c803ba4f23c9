"""Fig. 5 of Random DCN: depths of several kinds, and what is left of CD1's similarity."""

import numpy as np
import pytest
import xarray as xr
from commands import refused

from cnninv_jax.experiments.dcn_depth import DCN_DEPTH, DepthParameters
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study


def study(folder, p):
    return reproduce_study(DCN_DEPTH, p, StudyOptions(out=folder, quiet=True))


@pytest.mark.slow
def test_depths_are_compared(tmp_path):
    p = DepthParameters(size=17, limit=2, num_networks=2, show=2, depths=(3, 1, 2), same_channels=4)
    outcome = study(tmp_path / "out", p)
    found = outcome.report["findings"]
    for way in ("zeros", "nearest"):
        means = [entry["mean"] for entry in found["variants"][way]["settings"].values()]
        np.testing.assert_allclose(found["left"][way]["CD2"]["value"], means[1] / means[0])
    # CD1 has nothing to double, so that both ways are one network there.
    assert found["variants"]["zeros"]["settings"]["CD1"] == found["variants"]["nearest"]["settings"]["CD1"]
    assert [row[0] for row in outcome.tables[0].rows] == ["CD1", "CD2", "CD3", "per block"]
    assert [row[0] + row[2] for row in outcome.tables[2].rows] == [
        "CD2, zerosabout a half", "CD3, zeros-", "CD2, nearestabout a half", "CD3, nearest-"
    ]  # fmt: skip
    for row, way in ((0, "zeros"), (2, "nearest")):
        low, high = (found["left"][way]["CD2"][end] for end in ("low", "high"))
        expected = "undecided"
        if low is not None and (low >= 0.4 and high <= 0.6):
            expected = "agrees"
        elif low is not None and (high < 0.4 or low > 0.6):
            expected = "differs"
        assert outcome.tables[2].rows[row][3] == expected
    with xr.open_dataset(tmp_path / "out" / "result.nc", engine="h5netcdf") as dataset:
        assert dataset["colour_nearest"].shape == (3, 2, 3, 17, 17)
        # Brought to [0, 1], so every picture has a darkest and a brightest pixel, unless it is flat.
        extremes = dataset["colour_nearest"].to_numpy().reshape(6, -1)
        np.testing.assert_array_equal(np.ptp(extremes, axis=1)[np.ptp(extremes, axis=1) > 0], 255)


@pytest.mark.slow
def test_similarity_falls_with_depth(tmp_path):
    p = DepthParameters(size=32, num_networks=8, show=1, depths=(1, 2, 3), same_channels=32, last="mean")
    for found in study(tmp_path / "out", p).report["findings"]["variants"].values():
        assert found["trend"]["verdict"] == "agrees"
        assert found["changes"][0]["high"] < 0


def test_what_does_not_fit_is_refused(scratch, capsys):
    command = ("reproduce", "dcn-depth")
    for arguments, words in (
        (("--depths", "1", "6"), "expected --depths to be an integer from 1 to 5, got 6"),
        (("--same-channels", "0"), "expected --same-channels to be an integer from 1 to 16384, got 0"),
        (("--last", "max"), "max"),
        (("--upsampling", "linear"), "linear"),
    ):
        assert words in refused(capsys, *command, *arguments), arguments
