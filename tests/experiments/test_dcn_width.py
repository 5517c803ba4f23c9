"""Fig. 6 of Random DCN: both readings of width."""

import pytest
import xarray as xr
from commands import refused

from cnninv_jax import dcn
from cnninv_jax.experiments import dcn_width
from cnninv_jax.experiments.dcn_width import DCN_WIDTH, WidthParameters, settings_of
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study


def test_settings_are_the_widths_of_vgg():
    channels = settings_of("channels", (1, 2, 3, 4, 5), 224, "conv")
    assert [s.label for s in channels] == ["Conv1: 64", "Conv2: 128", "Conv3: 256", "Conv4, Conv5: 512"]
    assert [s.widest.convolutions[0].outputs for s in channels] == [64, 128, 256, 512]
    assert {s.side for s in channels} == {None}
    dimension = settings_of("dimension", (1, 2, 3, 4, 5), 224, "mean")
    assert [s.side for s in dimension] == [14, 28, 56, 112, 224]
    assert [s.widest.convolutions[0].outputs for s in dimension] == [512, 512, 256, 128, 64]
    assert len({s.tag for s in (*channels, *dimension)}) == 9
    assert settings_of("channels", (5,), 224, "conv")[0].label == "Conv5: 512"


@pytest.mark.slow
def test_both_readings_are_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(dcn, "VGG16_WIDTHS", (4, 6, 8, 8, 8))
    p = WidthParameters(size=16, limit=2, num_networks=2, show=1, blocks=(1, 2, 3, 4))
    outcome = reproduce_study(DCN_WIDTH, p, StudyOptions(out=tmp_path / "out", quiet=True))
    found = outcome.report["findings"]
    assert list(found["readings"]) == ["channels", "dimension"] == list(dcn_width.READINGS)
    assert len(found["variants"]["channels"]["conv"]["settings"]) == 3
    assert len(found["variants"]["dimension"]["conv"]["settings"]) == 4
    assert outcome.tables[2].rows[0][0] == "Conv4: 8 at 2 x 2"
    with xr.open_dataset(tmp_path / "out" / "result.nc", engine="h5netcdf") as dataset:
        assert dataset["channels_colour_conv"].shape == (3, 1, 3, 16, 16)
        assert dataset["dimension_similarity"].shape == (1, 4, 2, 2)
        assert dataset["original"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("reading", dcn_width.READINGS)
def test_a_reading_comes_alone(tmp_path, monkeypatch, reading):
    monkeypatch.setattr(dcn, "VGG16_WIDTHS", (4, 6, 8, 8, 8))
    p = WidthParameters(size=16, limit=2, num_networks=1, show=1, blocks=(1, 2), reading=reading)
    outcome = reproduce_study(DCN_WIDTH, p, StudyOptions(out=tmp_path / "out", quiet=True))
    assert list(outcome.report["findings"]["readings"]) == [reading]
    assert len(outcome.tables) == 2


def test_what_does_not_fit_is_refused(scratch, capsys):
    assert "expected --blocks to be an integer from 1 to 5, got 0" in refused(
        capsys, "reproduce", "dcn-width", "--blocks", "0"
    )
