"""Sweeps of the Fig. 2 experiment: what --over means, folders, table, figure, and the command line."""

import dataclasses
import json
import shlex
import shutil

import jax
import numpy as np
import pytest
import xarray as xr
from commands import refused
from matplotlib.figure import Figure

from cnninv_jax import rip
from cnninv_jax.cli import main
from cnninv_jax.experiments import sweeps
from cnninv_jax.experiments.axes import parse_over
from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters
from cnninv_jax.experiments.sweep_figure import sweep_figure
from cnninv_jax.experiments.sweep_table import sweep_table
from cnninv_jax.experiments.sweeps import SWEEPABLE, SweepOptions, SweptDraw, sweep_experiment
from cnninv_jax.montecarlo import run
from cnninv_jax.montecarlo.grid import bind

pytestmark = [
    pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough"),
    pytest.mark.usefixtures("scratch"),
]

DERIVED = SWEEPABLE["gilbert-fig2"].derived
PARAMETERS = Fig2Parameters(K=6, ell=3, D=8)
OVER = ["k=1,2,3", "M=2,4"]
SIZES = shlex.split("--K 6 --ell 3 --D 8 --num-draws 64 --block 32 --lanes 8 --quiet")
COMMAND = ["sweep", "gilbert-fig2", *SIZES]
ASK = [*COMMAND, "--over", OVER[0], "--over", OVER[1]]


@pytest.fixture
def no_pictures(monkeypatch):
    """Numbers only, and those at the end."""

    def save(outcome, formats=("png", "svg")):
        if "svg" in formats:
            outcome.result.save_netcdf(outcome.folder / "result.nc")
        return []

    monkeypatch.setattr(sweeps, "_draw", save)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    options = SweepOptions(num_draws=64, block=32, lanes=8, out=tmp_path_factory.mktemp("sweep") / "run", quiet=True)
    return sweep_experiment(FIG2, PARAMETERS, OVER, options)


@pytest.fixture(scope="module")
def saved(outcome):
    with xr.open_dataset(outcome.folder / "result.nc", engine="h5netcdf") as dataset:
        return dataset.load()


# What --over means.


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("k=2,5,10", (2, 5, 10)),
        ("k=7", (7,)),
        (" k = 2 , 5 ", (2, 5)),
        ("k=2:6", (2, 3, 4, 5, 6)),
        ("k=2:20:6", (2, 8, 14, 20)),
        ("k=2:19:6", (2, 8, 14)),
        ("k=1,2:6:2,9", (1, 2, 4, 6, 9)),
        ("values=signs,gaussian", ("signs", "gaussian")),
        ("normalize=true,False", (True, False)),
        ("Mll/D=6.25,25", (8, 32)),
        ("Mll/D=5:15:5", (6, 13, 19)),
    ],
)
def test_values(text, values):
    (found,) = parse_over([text], Fig2Parameters(), DERIVED).grid.values()
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_the_papers_quantity_stands_beside_its_parameter():
    swept = parse_over(["k=2,5", "Mll/D=6,25"], Fig2Parameters(), DERIVED)
    assert list(swept.grid) == ["k", "M"]
    quantity, values = swept.derived["M"]
    assert quantity.coordinate == "Mll_over_D"
    assert values == (6.25, 25.0)  # of the M that were found, not those asked for
    assert set(parse_over(["M=8"], Fig2Parameters(), DERIVED).derived) == {"M"}
    assert parse_over(["M=8", "ell=3,5"], Fig2Parameters(), DERIVED).derived == {}


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "expected at least one --over NAME=VALUES"),
        (["k"], "expected --over NAME=VALUES, such as .*, got 'k'"),
        (["k="], "got 'k='"),
        (["k=2,,3"], "got 'k=2,,3'"),
        (["kk=2"], r"got 'kk' \(did you mean k\?\)"),
        (["k=two"], "expected k to be whole numbers, or ranges .*, got 'two'"),
        (["k=2.5"], "expected k to be whole numbers"),
        (["k=5:2"], "expected a range start:stop:step with start <= stop"),
        (["k=2:5:0"], "positive step, got k=2:5:0"),
        (["k=2:5:1:1"], "expected a range"),
        (["k=1:99999999"], "expected at most 10,000 values in a range, got 99,999,999"),
        (["k=2,3,2"], "expected every value of k once, got 2"),
        (["k=2", "k=3"], "expected every parameter in one --over"),
        (["M=2", "Mll/D=3"], "expected every parameter in one --over, got M and Mll/D"),
        (["Mll/D=3", "ell=3,5"], "expected Mll/D with fixed ell, D, got ell in --over"),
        (["Mll/D=1,1.01"], "expected values of Mll/D that differ in M, got 1 and 1.01, both nearest to M=1"),
        (["Mll/D=inf"], "expected Mll/D to be finite"),
        (["values=unifrom"], r"expected values to be one of uniform, .* \(did you mean uniform\?\)"),
        (["normalize=maybe"], "expected normalize to be true or false, got 'maybe'"),
    ],
    ids=str,
)
def test_axes_that_cannot_be(texts, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_over(texts, Fig2Parameters(), DERIVED)


def test_either_fixed_or_swept():
    with pytest.raises(ValueError, match="expected k either as --k or in --over, got both"):
        parse_over(["k=2"], Fig2Parameters(k=3), DERIVED)


# One program for all k.


def test_k_is_data_and_channels_are_compiled_in(outcome):
    assert outcome.result.provenance["compilations"] == 2
    assert [axis.traced for axis in outcome.result.grid.axes] == [True, False]
    assert len(outcome.result.results) == 6


def test_a_cell_is_the_separate_run_to_the_last_bit(outcome):
    grid = outcome.result.grid
    cell = grid.find({"k": 2, "M": 4})
    draw = SweptDraw("gilbert-fig2", PARAMETERS, "float32", 3)
    alone = run(
        bind(draw, grid, cell), cell.key(jax.random.key(0)), 64, chunk_size=32, lanes=8, progress=False,
        statistics=FIG2.statistics(dataclasses.replace(PARAMETERS, M=4)),
    )  # fmt: skip
    for name in rip.READINGS:
        for statistic in ("mean", "variance", "min", "max"):
            assert alone[name][statistic] == outcome.result[cell.parameters][name][statistic]


@pytest.mark.parametrize(
    ("parameters", "over", "traced", "most"),
    [
        (Fig2Parameters(), ["k=2,5", "M=8"], ["k"], 5),
        (Fig2Parameters(sampling="plain"), ["k=2,5"], ["k"], 5),
        (Fig2Parameters(sampling="conditional"), ["k=2,5", "M=32"], None, None),
        (Fig2Parameters(), ["k=2,5", "sampling=plain,conditional"], None, None),
        (Fig2Parameters(), ["M=16,32"], None, None),
    ],
)
def test_what_is_traced(monkeypatch, tmp_path, parameters, over, traced, most):
    seen = {}

    def stop(draw, *_, **options):
        seen.update(options, most=draw.most)
        raise ValueError("enough")

    monkeypatch.setattr(sweeps, "sweep", stop)
    with pytest.raises(ValueError, match="enough"):
        sweep_experiment(FIG2, parameters, over, SweepOptions(out=tmp_path / "out"))
    assert (seen["traced"], seen["most"]) == (traced, most)
    assert not (tmp_path / "out").exists()


def test_draws_with_static_parameters_are_the_experiments_own():
    key = jax.random.key(0)
    draw = SweptDraw("gilbert-fig2", PARAMETERS, "float32", None)
    swept = jax.make_jaxpr(lambda key: draw(key, M=4, k=2))(key)
    own = jax.make_jaxpr(FIG2.draw(Fig2Parameters(K=6, ell=3, D=8, M=4, k=2), "float32"))(key)
    assert str(swept) == str(own)
    assert hash(draw) == hash(SweptDraw("gilbert-fig2", PARAMETERS, "float32", None))


# What is written.


def test_the_saved_dataset(outcome, saved):
    assert dict(saved.sizes)["k"] == 3
    assert saved["error_model_mean"].dims == ("k", "M")
    assert saved["Mll_over_D"].dims == ("M",)
    np.testing.assert_allclose(saved["Mll_over_D"], [2 * 9 / 8, 4 * 9 / 8])
    assert (saved["cell_draws"] == 64).all()
    # The histogram of the full ratio reaches further where there are fewer channels: edges depend on M.
    assert saved["full_gram_bin_high"].dims == ("k", "M", "full_gram_bin")
    assert saved["model_rip_bin_high"].dims == ("model_rip_bin",)
    held = outcome.result[{"k": 3, "M": 2}]["full_gram"]
    np.testing.assert_array_equal(saved["full_gram_histogram"].sel(k=3, M=2), held["histogram"])
    user = json.loads(saved.attrs["specification"])["user"]
    assert user["parameters"] == {
        "K": 6, "ell": 3, "D": 8, "stride": 1, "values": "uniform", "ensemble": "gaussian", "normalize": False,
        "sampling": "auto",
    }  # fmt: skip
    assert user["largest"] == {"k": 3}


def test_the_summary_is_strict_json(outcome, saved):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((outcome.folder / "summary.json").read_text(), parse_constant=refuse)
    assert content["over"] == {"k": [1, 2, 3], "M": [2, 4]}
    assert content["derived"]["M"]["values"] == [2.25, 4.5]
    assert [cell["parameters"] for cell in content["cells"]] == [{"k": k, "M": m} for k in (1, 2, 3) for m in (2, 4)]
    for cell in content["cells"]:
        reading = cell["outputs"]["error_model"]
        assert reading["mean"] == float(saved["error_model_mean"].sel(cell["parameters"]))
        assert reading["interval_95"][0] < reading["mean"] < reading["interval_95"][1]
        assert reading["draws"] == cell["draws"] == 64


def test_the_table(outcome):
    table = sweep_table(outcome)
    assert [column.header for column in table.columns] == ["k", "M", "Mll_over_D", *rip.READINGS]
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["1", "1", "2", "2", "3", "3"]
    assert columns[2] == ["2.25", "4.5"] * 3
    mean = float(outcome.result[{"k": 1, "M": 2}]["error_fixed"]["mean"])
    assert columns[-1][0].startswith(f"{mean:.2f}"[:3])
    assert " ± " in columns[-1][0]


# The figure.


def texts(figure):
    return " ".join(text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title, axes.xaxis.label])


def test_heat_maps(saved):
    claims = FIG2.claims(Fig2Parameters())
    figure = sweep_figure(saved, claims, "title", "subtitle")
    assert isinstance(figure, Figure)
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 6
    for axes, name in zip(maps, rip.READINGS, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), saved[f"{name}_mean"].transpose("M", "k"))
        assert axes.get_xlabel() == "k"
        assert "M \\ell^2 / D" in axes.get_ylabel()
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["2\n(2.25)", "4\n(4.5)"]
    bars = [axes for axes in figure.axes if not axes.images]
    assert all("dimensionless" in axes.get_ylabel() for axes in bars)
    figure.draw_without_rendering()


def test_the_crossing_is_drawn_where_it_is(saved):
    data = saved.copy(deep=True)
    data["error_model_mean"][:] = np.array([[0.3, 0.4], [0.4, 0.6], [0.8, 0.9]])
    data["error_fixed_mean"][:] = 1.0
    figure = sweep_figure(data, {}, "title", "subtitle")
    _, model, fixed = [axes for axes in figure.axes if axes.images][3:]
    assert "line: 0.5" in model.title.get_text()
    assert "line" not in fixed.title.get_text()
    points = np.concatenate([path.vertices for path in model.collections[-1].get_paths()])
    # In places of cells: between k = 2 and 3 at M = 2, between M = 2 and 4 at k = 2.
    assert any(np.allclose(point, (1.25, 0.0), atol=0.01) for point in points)
    assert any(np.allclose(point, (1.0, 0.5), atol=0.01) for point in points)


def test_a_picture_that_sharpens(saved):
    part = saved.copy(deep=True)
    done = np.zeros((3, 2), bool)
    done[[0, 2]] = True
    part["cell_done"][:] = done
    for name in part.data_vars:
        if str(name).endswith("_mean"):
            part[name][1] = np.nan
    figure = sweep_figure(part, {}, "title", "subtitle")
    maps = [axes for axes in figure.axes if axes.images]
    assert maps[0].images[0].get_array().shape == (2, 2)  # a complete, coarser grid
    assert [tick.get_text() for tick in maps[0].get_xticklabels()] == ["1", "3"]
    done[1, 0] = True
    part["cell_done"][:] = done
    maps = [axes for axes in sweep_figure(part, {}, "title", "subtitle").axes if axes.images]
    assert maps[0].images[0].get_array().shape == (2, 3)
    assert maps[0].images[0].get_array().mask.sum() >= 1  # grey: not there yet


def test_lines(saved):
    claims = FIG2.claims(Fig2Parameters())
    figure = sweep_figure(saved.isel(M=0, drop=True), claims, "title", "subtitle")
    assert len(figure.axes) == 3
    assert "paper: around 0.1-0.2" in str([text.get_text() for text in figure.axes[2].get_legend().get_texts()])
    line = figure.axes[2].containers[1].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), saved["error_model_mean"].isel(M=0))
    figure.draw_without_rendering()
    words = saved.isel(M=0, drop=True).assign_coords(k=["a", "b", "c"])
    figure = sweep_figure(words, {}, "title", "subtitle")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]


def test_the_figure_is_drawn_after_every_level(monkeypatch, tmp_path):
    levels = []

    def draw(outcome, formats=("png", "svg")):
        levels.append((outcome.result.level, len(outcome.result.results), *formats))
        return []

    monkeypatch.setattr(sweeps, "_draw", draw)
    options = SweepOptions(num_draws=64, block=32, lanes=8, out=tmp_path / "run", quiet=True)
    sweep_experiment(FIG2, PARAMETERS, OVER, options)
    assert levels == [(0, 4, "png"), (1, 6, "png", "svg")]


# The command line.


def same_data(first, second):
    with (
        xr.open_dataset(first / "result.nc", engine="h5netcdf") as one,
        xr.open_dataset(second / "result.nc", engine="h5netcdf") as other,
    ):
        names = set(one.variables) - {"cell_seconds", "Mll_over_D"}
        assert names == set(other.variables) - {"cell_seconds", "Mll_over_D"}
        return all(one[name].values.tobytes() == other[name].values.tobytes() for name in names)


def test_sweep_and_resume(tmp_path, outcome, capsys):
    assert main([*ASK, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "6 cells, 384 draws" in out
    assert "K=6" in out
    for name in ("result.nc", "summary.json", "gilbert-fig2-sweep.png", "gilbert-fig2-sweep.svg"):
        assert f"run/{name}" in out
        (tmp_path / "run" / name).unlink()
    assert main(["resume", "run"]) == 0
    out, err = capsys.readouterr()
    assert "384 of 384 draws (100%)  6 of 6 cells" in err
    assert "0 compilations" in out
    assert same_data(tmp_path / "run", outcome.folder)


def test_a_grown_grid_in_the_default_folder(tmp_path, outcome, capsys, no_pictures):
    assert main([*COMMAND, "--over", "k=1,3", "--over", "M=2"]) == 0
    assert main([*COMMAND, "--over", "k=1,2,3", "--over", "M=2,4"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("gilbert-fig2-sweep-")
    assert same_data(folder, outcome.folder)
    assert "largest" not in capsys.readouterr().out
    # Fewer values go on in it too; a larger k has programs and numbers of its own, and so a folder of its own.
    assert main([*COMMAND, "--over", "k=1,3", "--over", "M=2", "--out", str(folder)]) == 0
    assert "largest k: the folder has 3, this run asks 4" in refused(
        capsys, *COMMAND, "--over", "k=1,4", "--over", "M=2", "--out", folder
    )


def test_parts_in_one_folder(tmp_path, outcome, capsys, no_pictures):
    for index in (1, 2):
        assert main([*ASK, "--out", "run", "--part", f"{index}/2"]) == 0
        out = capsys.readouterr().out
        assert f"part {index}/2 of the sweep is done: 3 of 6 cells in run" in out
        assert "cnninv resume run" in out
        assert not (tmp_path / "run" / "result.nc").exists()
    assert main(["resume", "run", "--quiet"]) == 0
    assert same_data(tmp_path / "run", outcome.folder)


def test_parts_in_folders_of_their_own(tmp_path, outcome, capsys, no_pictures):
    for index in (1, 2):
        assert main([*ASK, "--out", f"part{index}", "--part", f"{index}/2"]) == 0
    sentence = refused(capsys, "merge", "part1", "--out", "whole", leaves=["whole"])
    assert "3 of 6 cells are missing or unfinished (k=" in sentence
    assert "expected --out for the sweeps of 2 folders" in refused(capsys, "merge", "part1", "part2")
    assert main(["merge", "part1", "part2", "--out", "whole"]) == 0
    assert same_data(tmp_path / "whole", outcome.folder)


def test_stopped_by_a_person(no_pictures, monkeypatch, tmp_path, capsys, outcome):
    real = sweeps._draw

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "_draw", stop)
    assert main([*ASK, "--out", "run"]) == 130
    err = capsys.readouterr().err
    assert "of 6 cells are finished and safe in run" in err
    assert "start the same sweep again to go on from there" in err
    monkeypatch.setattr(sweeps, "_draw", real)
    assert main(["resume", "run", "--quiet"]) == 0
    assert same_data(tmp_path / "run", outcome.folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected at least one --over NAME=VALUES"),
        (["--over", "k=0,2"], "expected k of at least 1, got 0"),
        (["--over", "k=2,7"], "k=2: expected 1 <= k <= 6 (the number of blocks"),
        (["--over", "k=2", "--M", "0"], "expected"),
        (["--over", "k=2", "--part", "3/2"], "expected --part i/N"),
        (["--over", "k=2", "--until", "foo=1"], "expected --until to name one of the outputs"),
        (["--over", "k=2", "--until", "foo"], "expected --until OUTPUT=WIDTH"),
        (["--over", "k=2", "--seed", "-1"], "expected a seed from 0"),
        (["--over", "k=2", "--lanes", "7"], "error: expected --lanes to be a power of two"),
        (["--over", "k=2", "--block", "0"], "expected --block"),
        (["--over", "k=2", "--num-draws", "0"], "expected --num-draws"),
        (["--over", "k=2", "--memory-limit", "0"], "expected --memory-limit to be a positive number"),
        (["--over", "k=2", "--sampling", "conditional", "--ensemble", "sphere"], "use --sampling plain"),
        (["--over", "stride=1,2", "--k", "2"], "stride=2: expected an integer n"),
        (["--ovr", "k=2"], "did you mean --over?"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(capsys, tmp_path, arguments, said):
    assert said in refused(capsys, *COMMAND, *arguments, "--out", "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--num-draws", "65"], "num_draws: the folder has 64, this run asks 65"),
        (["--seed", "1"], "seed: the folder has 0, this run asks 1"),
        (["--values", "signs"], "values: the folder has uniform, this run asks signs"),
        (["--lanes", "4"], "lanes: the folder has 8, this run asks 4"),
        (["--common-random-numbers"], "common_random_numbers: the folder has false, this run asks true"),
    ],
    ids=str,
)
def test_another_sweep_is_refused_by_what_the_user_chose(capsys, outcome, changes, said):
    sentence = refused(capsys, *ASK, "--out", outcome.folder, *changes)
    assert said in sentence
    assert "computation" not in sentence
    assert "key.data" not in sentence


def test_folders_that_are_no_sweeps(capsys, tmp_path, outcome):
    shutil.copytree(outcome.folder, tmp_path / "foreign")
    manifest = json.loads((tmp_path / "foreign" / "sweep.json").read_text())
    manifest["sweep"]["user"] = {}
    (tmp_path / "foreign" / "sweep.json").write_text(json.dumps(manifest))
    assert "expected a sweep of `cnninv sweep` in foreign" in refused(capsys, "resume", "foreign")
    manifest["sweep"]["user"] = {"command": "sweep", "experiment": "gilbert-fig2"}
    (tmp_path / "foreign" / "sweep.json").write_text(json.dumps(manifest))
    assert "expected a sweep that this version of cnninv began in foreign" in refused(capsys, "resume", "foreign")
    assert "expected a journal" in refused(capsys, "resume", "nowhere")


def test_help(capsys):
    for words in (["sweep"], ["sweep", "gilbert-fig2"]):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--help"])
        assert stop.value.code in (None, 0)
    out = capsys.readouterr().out
    for flag in ("--over", "--part", "--common-random-numbers", "--num-draws", "--until", "--distributed", "--K"):
        assert flag in out
