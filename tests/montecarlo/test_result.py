"""Results: dataset, table, file, quantiles."""

import json
import os

import numpy as np
import pytest
import xarray as xr

from cnninv_jax import montecarlo as mc

from . import draws


@pytest.fixture(scope="module")
def result():
    return mc.run(
        draws.mixed,
        3,
        1500,
        statistics={"x": (mc.Moments(), mc.Histogram(-2, 2, 40), mc.Proportion(above=1))},
        keep=("v",),
        progress=False,
        name="four things",
        spec={"note": "ratio"},
    )


def test_dataset(result):
    dataset = result.to_xarray()
    assert dataset.sizes == {"v_axis0": 2, "v_axis1": 3, "x_bin": 40, "draw": 1500}
    assert dataset["x_histogram"].sum() + dataset["x_underflow"] + dataset["x_overflow"] == 1500
    np.testing.assert_allclose(dataset["x_bin"], np.linspace(-1.95, 1.95, 40))
    np.testing.assert_allclose(dataset["v_draws"].astype(float).mean("draw"), dataset["v_mean"], rtol=1e-6)
    low, high = mc.wilson(dataset["x_successes"], 1500)
    assert (dataset["x_proportion_low"], dataset["x_proportion_high"]) == (low, high)
    assert dataset["x_mean_low"] < dataset["x_mean"] < dataset["x_mean_high"]
    assert dataset["positive_count"].attrs["units"] == "1"
    assert all("long_name" in variable.attrs for variable in dataset.data_vars.values())
    specification = json.loads(dataset.attrs["specification"])
    assert specification["user"] == {"note": "ratio"}
    assert specification["num_draws"] == 1500
    assert dataset.attrs["title"] == "four things"


def test_saved_file_is_the_dataset(result, tmp_path):
    path = result.save_netcdf(tmp_path / "result.nc")
    assert os.listdir(tmp_path) == ["result.nc"]
    with xr.open_dataset(path, engine="h5netcdf") as loaded:
        assert draws.variables_equal(loaded.load(), result.to_xarray())
        assert loaded.attrs == result.to_xarray().attrs
    result.save_netcdf(path)


def test_failed_save_leaves_what_was_there(result, tmp_path, monkeypatch):
    path = tmp_path / "result.nc"
    path.write_text("before")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(mc.ResultError, match="the disk is full"):
        result.save_netcdf(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["result.nc"]
    monkeypatch.undo()
    with pytest.raises(mc.ResultError, match="choose another place"):
        result.save_netcdf(tmp_path / "missing" / "result.nc")


def test_summary(result):
    summary = result.summary(0.9, max_elements=4)
    assert [(row.name, row.statistic) for row in summary.rows] == [
        ("level", "mean"),
        ("positive", "proportion"),
        ("v[0,0]", "mean"),
        ("v[0,1]", "mean"),
        ("v[0,2]", "mean"),
        ("v[1,0]", "mean"),
        ("x", "mean"),
        ("x", "proportion"),
    ]
    row = summary.rows[-2]
    assert (row.low, row.high) == tuple(float(end) for end in result.mean_interval("x", 0.9))
    assert (row.count, row.non_finite) == (1500, 0)
    text = str(summary)
    assert "2 more elements" in text
    assert "90% low" in text
    lines = text.splitlines()[1:-1]
    assert len({len(line) for line in lines}) == 1
    assert summary._repr_html_().count("<tr>") == 1 + len(summary.rows)
    assert "four things" in repr(result)


def test_summary_of_a_leaf_without_moments():
    result = mc.run(draws.scalar, 0, 50, statistics={"value": mc.Extremes()}, progress=False)
    assert [row.statistic for row in result.summary().rows] == ["count"]
    with pytest.raises(ValueError, match=r"Moments\(\)"):
        result.mean_interval("value")
    with pytest.raises(ValueError, match="Histogram"):
        result.quantile("value", 0.5)
    with pytest.raises(ValueError, match=r"\['value'\], got 'y'"):
        result["y"]


def test_quantiles(result):
    value, low, high = result.quantile("x", 0.5)
    assert low < value < high
    assert abs(value) < 0.2
    value, low, high = result.quantile("v", 0.25)
    np.testing.assert_allclose(value, np.quantile(result.draws["v"], 0.25, axis=0), rtol=1e-6)
    assert np.all((low < value) & (value < high))


def test_provenance(result):
    provenance = result.provenance
    assert provenance["spec"]["key"] == {"impl": "threefry2x32", "data": [0, 3]}
    assert provenance["spec"]["matmul_precision"] is None
    assert provenance["device"] == "cpu: cpu"
    assert provenance["device_count"] == 4
    assert provenance["seconds"] > 0
    assert provenance["compile_seconds"] > 0
    assert provenance["draws_per_second"] > 0
