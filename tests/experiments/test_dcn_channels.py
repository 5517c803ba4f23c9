"""Figs. 7a, 7b and 8 of Random DCN: what the study saves is what it found, and the mean tends to its limit."""

import numpy as np
import pytest
import xarray as xr
from commands import refused

from cnninv_jax import data, images
from cnninv_jax.experiments.dcn_channels import DCN_CHANNELS, ChannelsParameters
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.limits import Conv, convergence_value

P = ChannelsParameters(size=16, limit=3, num_networks=3, show=2, channels=(16, 4))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return reproduce_study(DCN_CHANNELS, P, StudyOptions(out=tmp_path_factory.mktemp("channels"), quiet=True))


def test_what_is_saved_is_what_was_found(outcome):
    found = outcome.report["findings"]
    assert found["channels"] == [4, 16]
    with xr.open_dataset(outcome.folder / "result.nc", engine="h5netcdf") as dataset:
        values = dataset["similarity"].load()
        assert values.dims == ("variant", "channels", "network", "picture")
        assert values.shape == (2, 2, 3, 3)
        assert dataset["grey_conv"].shape == (2, 2, 16, 16)
        assert dataset["grey_conv"].dtype == np.uint8
        assert dataset["limit"].shape == (2, 16, 16)
    for variant in ("conv", "mean"):
        for channels in ("4", "16"):
            by_network = values.sel(variant=variant, channels=channels).mean("picture").to_numpy()
            seen = found["variants"][variant]["settings"][f"{channels} channels"]
            np.testing.assert_allclose(seen["mean"], by_network.mean())
            np.testing.assert_allclose(seen["networks"], by_network.std(ddof=1))
            half = 4.302653 * by_network.std(ddof=1) / np.sqrt(3)  # Student, 2 degrees of freedom
            np.testing.assert_allclose(seen["high"] - seen["mean"], half, rtol=1e-6)
    assert [table.columns[0] for table in outcome.tables] == ["channels"] * 3
    assert [row[0] for row in outcome.tables[1].rows] == ["4", "16", "infinitely wide", "per doubling"]
    assert {path.name for path in outcome.files} == {
        "report.json", "result.nc", "dcn-channels.png", "dcn-channels.svg"
    }  # fmt: skip


def test_the_limit_is_that_of_the_mean_over_channels(outcome):
    wanted = [
        float(images.similarity(image, convergence_value(image, (Conv(3, padding="same"),) * 3)))
        for image in data.load_pictures(size=16, limit=3).images
    ]
    limit = outcome.report["findings"]["limit"]
    np.testing.assert_allclose(limit["by_picture"], wanted, atol=1e-5)
    np.testing.assert_allclose(limit["mean"], np.mean(wanted), atol=1e-5)


@pytest.mark.slow
def test_similarity_rises_with_channels_and_tends_to_the_limit(tmp_path):
    p = ChannelsParameters(size=32, num_networks=16, channels=(4, 16, 64, 256), show=1)
    found = reproduce_study(DCN_CHANNELS, p, StudyOptions(out=tmp_path / "out", quiet=True)).report["findings"]
    seen = found["variants"]["mean"]
    assert seen["trend"]["verdict"] == "agrees"
    assert seen["trend"]["along"] >= 2
    # Its deviation falls as 1 / sqrt(N), and what is left to the limit less quickly than it did.
    means = [entry["mean"] for entry in seen["settings"].values()]
    gaps = found["limit"]["mean"] - np.array(means)
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > -0.02
    assert abs(gaps[3]) < 0.1 * gaps[0]


def test_what_does_not_fit_is_refused(scratch, capsys):
    command = ("reproduce", "dcn-channels")
    for arguments, words in (
        (("--channels", "0"), "expected --channels to be an integer from 1 to 16384, got 0"),
        (("--channels", "4", "4"), "expected different values of --channels, got 4 4"),
        (("--depth", "6"), "expected --depth to be an integer from 1 to 5, got 6"),
        (("--size", "10"), "expected --size of at least 11, SSIM's window, got 10"),
        (("--num-networks", "0"), "expected --num-networks"),
        (("--limit", "0"), "expected --limit"),
        (("--show", "0"), "expected --show"),
        (("--pictures", "nowhere"), "there is no folder 'nowhere'"),
    ):
        assert words in refused(capsys, *command, *arguments), arguments
