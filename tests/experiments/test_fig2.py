"""Gilbert 2017, Fig. 2 as an experiment: claims, numbers on disk, table, figure."""

import dataclasses
import json
import xml.etree.ElementTree

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from cnninv_jax import rip
from cnninv_jax.experiments import render, runs
from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters
from cnninv_jax.experiments.registry import Claim, describe_parameters, experiments, find
from cnninv_jax.experiments.tables import outcome_table, rounded

SMALL = Fig2Parameters(K=6, M=3, ell=3, D=8, k=2, sampling="plain")


def options(folder, **changes):
    given = {"num_draws": 200, "block": 64, "lanes": 8, "out": folder, "precision": "float64", "quiet": True}
    return runs.RunOptions(**{**given, **changes})


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return runs.reproduce(FIG2, SMALL, options(tmp_path_factory.mktemp("fig2") / "run"))


@pytest.fixture(scope="module")
def saved(outcome):
    with xr.open_dataset(outcome.folder / "result.nc", engine="h5netcdf") as dataset:
        return dataset.load()


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.96, 1.04, "agrees"), (0.95, 1.05, "agrees"), (0.94, 1.0, "undecided"), (1.0, 1.06, "undecided"),
        (0.9, 1.1, "undecided"), (1.06, 1.07, "differs"), (0.8, 0.94, "differs"), (np.nan, np.nan, "undecided"),
    ],
)  # fmt: skip
def test_verdict(low, high, verdict):
    assert Claim("one", 0.95, 1.05).verdict(low, high) == verdict


def test_claims_are_made_for_the_papers_sizes_only():
    paper = FIG2.claims(Fig2Parameters())
    assert set(paper) == set(rip.READINGS) == set(FIG2.labels)
    # The way of sampling and the rounding of products are ours, not the paper's.
    assert FIG2.claims(Fig2Parameters(sampling="plain", products="tf32")) == paper
    for field in dataclasses.fields(Fig2Parameters):
        if field.name not in ("sampling", "products"):
            value = getattr(Fig2Parameters(), field.name)
            other = {int: value + 1 if isinstance(value, int) else None, bool: True}.get(type(value), "signs")
            other = "laplace" if field.name == "ensemble" else other
            assert FIG2.claims(dataclasses.replace(Fig2Parameters(), **{field.name: other})) == {}, field.name


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [("model_rip", "agrees"), ("restricted_gram", "agrees"), ("full_gram", "differs"),
     ("error_known_support", "agrees"), ("error_model", "differs"), ("error_fixed", "differs")],
)  # fmt: skip
def test_verdicts_of_the_paper(measured, verdict):
    # The means that an independent simulation of 160,000 draws gave, with intervals of a few standard errors.
    means = {"model_rip": 0.9995, "restricted_gram": 1.007, "full_gram": 1.96, "error_known_support": 0.15,
             "error_model": 0.31, "error_fixed": 1.43}  # fmt: skip
    claim = FIG2.claims(Fig2Parameters())[measured]
    assert claim.verdict(means[measured] - 0.002, means[measured] + 0.002) == verdict


def test_registry_finds_and_suggests():
    assert find("gilbert-fig2") is experiments()["gilbert-fig2"] is FIG2
    with pytest.raises(ValueError, match=r"did you mean 'gilbert-fig2'\?"):
        find("gilbert-fig-2")


def test_summary_repeats_the_result(outcome, saved):
    summary = strict(outcome.folder / "summary.json")
    assert summary["experiment"] == "gilbert-fig2"
    assert summary["parameters"] == dataclasses.asdict(SMALL)
    assert set(summary["outputs"]) == set(rip.READINGS)
    for name, entry in summary["outputs"].items():
        assert entry["mean"] == float(saved[f"{name}_mean"])
        assert entry["standard_error"] == float(saved[f"{name}_standard_error"])
        assert entry["standard_deviation"] == float(saved[f"{name}_standard_deviation"])
        assert entry["interval_95"] == [float(saved[f"{name}_mean_low"]), float(saved[f"{name}_mean_high"])]
        assert (entry["min"], entry["max"]) == (float(saved[f"{name}_min"]), float(saved[f"{name}_max"]))
        assert entry["draws"] + entry["non_finite"] == 200
        counted = saved[f"{name}_histogram"].sum() + saved[f"{name}_underflow"] + saved[f"{name}_overflow"]
        assert int(counted) == entry["draws"]
        for value, low, high in entry["quantiles_value_low_high"].values():
            # null: an end that so few draws do not bound.
            assert value is not None
            assert low is None or low <= value
            assert high is None or value <= high
        if name.startswith("error"):
            assert entry["share_under_0.5"] == float(saved[f"{name}_proportion"])
    spec = json.loads(saved.attrs["specification"])
    assert spec == summary["provenance"]["spec"]
    assert spec["user"]["parameters"] == describe_parameters(SMALL)


def test_numbers_are_those_of_the_draws(outcome):
    import jax

    # The same keys, one draw at a time and without the engine.
    draw = jax.jit(FIG2.draw(SMALL, "float64"))
    key = jax.random.key(0)
    draws = [draw(jax.random.fold_in(key, index)) for index in range(200)]
    for reading in outcome.readings:
        values = np.array([float(entry[reading.name]) for entry in draws])
        np.testing.assert_allclose(reading.mean, values.mean(), rtol=1e-12)
        np.testing.assert_allclose(reading.deviation, values.std(ddof=1), rtol=1e-10)


def test_table_shows_every_reading(outcome, capsys):
    from rich.console import Console

    Console(width=200).print(outcome_table(outcome))
    out = capsys.readouterr().out
    for reading in outcome.readings:
        assert reading.label in out
        assert f"{reading.mean:.4f} ± {reading.deviation:.4f}" in out
    assert out.count("no claim at this size") == 6


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(1.95553, 0.0013, "1.9555"), (0.31, 0.1, "0.31"), (12345.6, 30.0, "12346"), (1.0, 0.0, "1"), (np.nan, 1.0, "-")],
)
def test_rounded(value, error, text):
    assert rounded(value, error) == text


def test_files_are_whole(outcome):
    assert [path.name for path in outcome.files] == [
        "result.nc", "summary.json", "gilbert-fig2.png", "gilbert-fig2.svg",
    ]  # fmt: skip
    assert not [path.name for path in outcome.folder.iterdir() if path.name.startswith(".")]
    assert (outcome.folder / "gilbert-fig2.png").read_bytes().startswith(b"\x89PNG\r\n")
    root = xml.etree.ElementTree.parse(outcome.folder / "gilbert-fig2.svg").getroot()
    assert root.tag.endswith("svg")


def test_figure_comes_from_the_saved_file_alone(outcome, saved, tmp_path):
    figure = FIG2.figure(saved, FIG2.claims(Fig2Parameters()), "below")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3
    for axes, (heading, _, outputs) in zip(figure.axes, render.PANELS, strict=True):
        assert axes.get_title() == heading
        assert axes.get_xlabel()
        assert axes.get_ylabel() == "probability density"
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert sum(text.startswith("paper: ") for text in texts) == 1
        assert len(texts) == 1 + len(outputs)
        outlines = [patch for patch in axes.patches if hasattr(patch, "get_data")]
        assert all(np.any(patch.get_data().values > 0) for patch in outlines)
        assert len(outlines) == 2 * len(outputs)
    # The same file gives the same picture, whenever it is drawn.
    written = [render.save_figure(FIG2.figure(saved, {}, "x"), tmp_path, "a")[1].read_bytes() for _ in range(2)]
    assert written[0] == written[1]


def test_density_integrates_to_the_share_inside(saved):
    for name in rip.READINGS:
        edges, density = render.rebinned(saved, name)
        inside = float(saved[f"{name}_histogram"].sum()) / float(saved[f"{name}_count"])
        np.testing.assert_allclose(np.sum(density * np.diff(edges)), inside, rtol=1e-12)


def test_legend_stays_above_the_data(saved):
    figure = FIG2.figure(saved, FIG2.claims(Fig2Parameters()), "below")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        box = axes.get_legend().get_window_extent().transformed(axes.transData.inverted())
        for patch in axes.patches:
            if hasattr(patch, "get_data"):
                values, edges, _ = patch.get_data()
                under = (edges[1:] > box.x0) & (edges[:-1] < box.x1)
                assert values[under].max(initial=0.0) < box.y0


def test_read_back_and_resumed(outcome, tmp_path):
    again = runs.reproduce(FIG2, SMALL, options(outcome.folder))
    assert again.result.provenance["resumed_blocks"] == 4
    assert again.result.provenance["compile_seconds"] == 0
    assert again.readings == outcome.readings
    assert runs.resume(outcome.folder, quiet=True).readings == outcome.readings


def test_default_folders_tell_runs_apart():
    names = {runs.default_folder("x", {"seed": seed}) for seed in range(20)}
    assert len(names) == 20
    assert runs.default_folder("x", {"a": 1, "b": 2}) == runs.default_folder("x", {"b": 2, "a": 1})


@pytest.mark.parametrize("change", [{"values": "signs"}, {"normalize": True}, {"ensemble": "sphere"}, {"stride": 5}])
def test_description_names_what_was_changed(change):
    text = FIG2.describe(dataclasses.replace(SMALL, **change))
    assert {"values": "signs", "normalize": "unit-norm", "ensemble": "sphere", "stride": "t=5, n=2"}[
        next(iter(change))
    ] in text
