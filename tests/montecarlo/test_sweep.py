"""Sweeps: one program where only data change, cells that are runs of their own, folders that go on."""

import functools
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo.grid import bind
from cnninv_jax.montecarlo.journal import Journal
from cnninv_jax.montecarlo.program import compile_blocks
from cnninv_jax.montecarlo.progress import describe

from . import draws

TRACES = []
GRID = {"sigma": [0.5, 1.0, 2.0, 4.0, 8.0], "size": [1, 2, 3]}
#: The same everywhere, so that the programs of one test serve the others.
LOUD = {"chunk_size": 100, "lanes": 32, "mesh": draws.mesh(1)}
SIZES = {**LOUD, "progress": False}


def noisy(key, *, sigma, size):
    TRACES.append((size,))
    x = sigma * jax.random.normal(key, (4,))
    return {"x": x[:size].sum(), "large": x[0] > 1}


def both(key, *, scale, mode):
    x = jax.random.normal(key)
    return x * scale if mode == "linear" else x * x * scale


@pytest.fixture(scope="module")
def whole():
    return quick()


def quick(grid=None, num_draws=250, **options):
    return mc.sweep(noisy, 3, GRID if grid is None else grid, num_draws, **{**SIZES, **options})


def compiled():
    return compile_blocks.cache_info().misses


def same(first, second):
    """Whether two sweeps ended on the same bits; times are those of other sessions."""
    datasets = [held.to_xarray().drop_vars("cell_seconds") for held in (first, second)]
    return draws.variables_equal(*datasets)


def fresh_draws(result):
    """Draws that were computed, not read."""
    facts = [held.provenance for held in result.results.values()]
    return sum(fact["num_draws"] - min(fact["resumed_blocks"] * 100, fact["num_draws"]) for fact in facts)


# One program per combination of static parameters.


def test_traced_parameters_share_one_compilation():
    mc.clear_cache()
    TRACES.clear()
    result = quick()
    assert sorted(TRACES) == [(1,), (2,), (3,)]
    assert compiled() == result.provenance["compilations"] == 3
    assert len(result.results) == 15
    # Other values, another key, more draws: nothing new.
    again = mc.sweep(noisy, 1, {**GRID, "sigma": [0.1, 0.7]}, 60, **SIZES)
    assert len(TRACES) == 3
    assert again.provenance["compilations"] == 0


def test_exceptions_compile_as_asked():
    def shifted(key, *, shift, on):
        traces.append(1)
        return jax.random.normal(key) + jnp.where(on, shift, 0)

    traces = []
    grid = {"shift": [1, 2, 3], "on": [True, False]}
    result = mc.sweep(shifted, 0, grid, 8, traced=("shift", "on"), **SIZES)
    assert result.provenance["compilations"] == len(traces) == 1
    assert len({held["value"]["mean"].item() for held in result.results.values()}) == 6
    grid = {"shift": [1.5, 2.5], "on": [True]}
    result = mc.sweep(shifted, 0, grid, 8, static="shift", **SIZES)
    assert result.provenance["compilations"] == len(traces) - 1 == 2


def test_inside_a_level_cells_come_by_program():
    grid = {"scale": [0.5, 1.0, 2.0], "mode": ["linear", "square"]}
    result = mc.sweep(both, 0, grid, 8, **SIZES)
    assert [str(cell) for cell in result.cells] == [
        "scale=0.5, mode=linear",
        "scale=2, mode=linear",
        "scale=0.5, mode=square",
        "scale=2, mode=square",
        "scale=1, mode=square",
        "scale=1, mode=linear",
    ]
    assert result.provenance["compilations"] == 2


@pytest.mark.slow
def test_another_process_compiles_nothing_anew(tmp_path):
    """JAX's compilation cache on disk: the second process finds every program of the first."""
    script = Path(__file__).with_name("sweep_worker.py")
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    counts = []
    for turn in range(2):
        command = [sys.executable, str(script), "cache", str(tmp_path / str(turn))]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
        counts.append(json.loads(ended.stdout.splitlines()[-1]))
    first, second = counts
    assert first["programs"] == second["programs"] == 3
    assert first["misses"] >= 3
    assert second["misses"] == 0
    assert second["hits"] >= 3
    assert first["means"] == second["means"]


@pytest.mark.slow
def test_two_processes_sweep_together(tmp_path):
    """One sweep on 2 processes x 2 devices: the same bits, files by the leader alone."""
    script = str(Path(__file__).with_name("sweep_worker.py"))
    environment = dict(os.environ)

    def together():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, script, "hosts", str(tmp_path / "pair"), str(port), "2"]
        pair = [
            subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, text=True, env=environment)
            for index in range(2)
        ]
        texts = [process.communicate(timeout=120)[0] for process in pair]
        assert [process.returncode for process in pair] == [0, 0]
        return [json.loads(text.splitlines()[-1]) for text in texts]

    alone = subprocess.run(
        [sys.executable, script, "cache", str(tmp_path / "alone")],
        capture_output=True, text=True, env=environment, timeout=120, check=True,
    )  # fmt: skip
    want = json.loads(alone.stdout.splitlines()[-1])["means"]
    first, again = together(), together()
    assert [held["means"] for held in (*first, *again)] == [want] * 4
    assert [held["programs"] for held in (*first, *again)] == [3, 3, 0, 0]
    assert len(list((tmp_path / "pair" / "cells").glob("*/cell.json"))) == 9


# A cell is a run.


def test_every_cell_is_the_separate_run_to_the_last_bit(whole):
    root = jax.random.key(3)
    for cell in whole.cells:
        # Once as data, as the sweep passes it, and for some cells compiled in.
        bound = [bind(noisy, whole.grid, cell)]
        if cell.parameters["sigma"] == 2.0:
            bound.append(functools.partial(noisy, **cell.parameters))
        for draw in bound:
            alone = mc.run(draw, cell.key(root), 250, **SIZES)
            assert draws.variables_equal(alone.to_xarray(), whole[cell.parameters].to_xarray())


def test_cells_are_independent_or_share_their_numbers():
    grid = {"sigma": [1.0, 2.0, 4.0], "size": [1]}
    options = {**SIZES, "keep": "x"}
    apart = mc.sweep(noisy, 3, grid, 4000, **options)
    kept = [apart[cell.parameters].draws["x"] / cell.parameters["sigma"] for cell in apart.cells]
    for one, two in itertools.combinations(kept, 2):
        assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(4000)
    common = mc.sweep(noisy, 3, grid, 4000, common_random_numbers=True, **options)
    alone = mc.run(bind(noisy, common.grid, common.grid.find({"sigma": 1.0, "size": 1})), 3, 4000, **options)
    for cell in common.cells:
        np.testing.assert_array_equal(common[cell.parameters].draws["x"], alone.draws["x"] * cell.parameters["sigma"])


def test_array_parameters_are_data(tmp_path):
    def with_bank(key, *, bank):
        return {"ratio": jnp.sum(bank * jax.random.normal(key, bank.shape, bank.dtype))}

    banks = [np.full(3, scale, np.float32) for scale in (1.0, 2.0, 3.0)]
    result = mc.sweep(with_bank, 0, {"bank": banks}, 400, **SIZES, out=tmp_path)
    assert result.provenance["compilations"] == 1
    data = result.to_xarray()
    assert data["bank"].values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(data["ratio_standard_deviation"], np.sqrt(3) * np.arange(1, 4), rtol=0.2)
    again = mc.sweep(with_bank, 0, {"bank": banks}, 400, **SIZES, out=tmp_path)
    assert fresh_draws(again) == 0


def test_a_draw_that_holds_arrays_of_its_own():
    def draw(bank, key, *, sigma):
        return sigma * bank.sum() + jax.random.normal(key, (), bank.dtype)

    before = compiled()
    results = [
        mc.sweep(jax.tree_util.Partial(draw, jnp.full(2, value)), 0, {"sigma": [1.0, 2.0]}, 64, **SIZES)
        for value in (1.0, 5.0)
    ]
    assert compiled() == before + 1
    assert abs(results[1][{"sigma": 2.0}]["value"]["mean"] - 20.0) < 1


# Order, and what is there before the end.


def test_partial_results_sharpen():
    seen = []

    def look(result):
        data = result.to_xarray()
        seen.append((len(result.results), result.level))
        assert int(data["cell_done"].sum()) == len(result.results)
        assert np.isfinite(data["x_mean"].values).sum() == len(result.results)
        assert (data["x_count"].values > 0).sum() == len(result.results)
        complete = data["cell_level"].values <= result.level
        assert data["cell_done"].values[complete].all()

    result = quick(num_draws=10, on_cell=look)
    assert [count for count, _ in seen] == list(range(1, 16))
    levels = [cell.level for cell in result.cells]
    assert levels == sorted(levels) == [0] * 4 + [1] * 5 + [2] * 6
    assert [level for _, level in seen] == [-1] * 3 + [0] * 5 + [1] * 6 + [2]
    assert result.level == 2


# Folders.


def interrupted_at(cell, tmp_path, **options):
    seen = []

    def stop(progress):
        seen.append(progress)
        if progress.cells_done == cell and progress.done > cell * 250 + 100:
            raise KeyboardInterrupt

    with pytest.raises(mc.Interrupted) as caught:
        quick(progress=stop, out=tmp_path, **options)
    return str(caught.value)


def test_interrupted_and_continued(tmp_path, whole):
    message = interrupted_at(6, tmp_path)
    assert message.startswith(f"stopped: 6 of 15 cells are finished and safe in {tmp_path}")
    assert "start the same sweep again to go on from there" in message
    assert str(whole.cells[6]) in message
    held = quick(out=tmp_path)
    # Six cells, and at least one block of the seventh, are read and not computed again.
    read = [cell for cell in held.cells if held.results[cell.identity].provenance["resumed_blocks"] == 3]
    assert read == list(held.cells[:6])
    assert held.results[held.cells[6].identity].provenance["resumed_blocks"] in (1, 2)
    assert 8 * 250 < fresh_draws(held) <= 9 * 250 - 100
    assert same(whole, held)
    again = quick(out=tmp_path)
    assert fresh_draws(again) == 0
    assert again.provenance["compilations"] == 0
    # Times are those of the sessions that computed.
    np.testing.assert_array_equal(again.to_xarray()["cell_seconds"], held.to_xarray()["cell_seconds"])


def test_interrupted_without_a_folder():
    def stop(progress):
        if progress.cells_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(mc.Interrupted, match="stopped after 2 of 15 cells; nothing is saved, give out=folder"):
        quick(progress=stop)


def test_a_grown_grid_keeps_its_cells(tmp_path, whole):
    small = {"sigma": [1.0, 8.0], "size": [1, 3]}
    first = quick(small, out=tmp_path)
    assert fresh_draws(first) == 4 * 250
    grown = quick(out=tmp_path)
    assert fresh_draws(grown) == 11 * 250
    assert same(whole, grown)
    manifest = mc.read_sweep(tmp_path)
    assert [name for name, _ in manifest["grid"]] == ["sigma", "size"]
    assert len(manifest["cells"]) == len(list((tmp_path / "cells").iterdir())) == 15


def test_parts_fill_one_folder(tmp_path, whole):
    for index in range(1, 5):
        part = quick(out=tmp_path, part=(index, 4))
        assert part.cells == part.grid.cells[index - 1 :: 4]
        assert fresh_draws(part) == 250 * len(part.cells)
        assert int(part.to_xarray()["cell_done"].sum()) == len(part.cells)
    joined = quick(out=tmp_path)
    assert fresh_draws(joined) == 0
    assert same(whole, joined)


def test_parts_in_folders_of_their_own_are_merged(tmp_path, whole):
    folders = [tmp_path / str(index) for index in range(1, 4)]
    for index, folder in enumerate(folders, 1):
        quick(out=folder, part=(index, 3))
    with pytest.raises(mc.JournalError, match=r"5 of 15 cells are missing or unfinished \(sigma=.*; sigma=") as caught:
        mc.merge_sweeps(folders[:2], tmp_path / "whole")
    missing = whole.grid.cells[2::3]
    assert all(str(cell) in str(caught.value) for cell in missing)
    assert mc.merge_sweeps([tmp_path / "whole", folders[2]], tmp_path / "whole") == 15
    joined = quick(out=tmp_path / "whole")
    assert fresh_draws(joined) == 0
    assert same(whole, joined)


def test_what_cannot_be_merged(tmp_path):
    small = {"sigma": [1.0], "size": [1, 2]}
    quick(small, out=tmp_path / "a", part=(1, 2))
    mc.sweep(noisy, 4, small, 250, **SIZES, out=tmp_path / "b", part=(2, 2))
    quick({"sigma": [1.0], "size": [2]}, out=tmp_path / "c")
    with pytest.raises(mc.JournalError, match=r"expected parts of one sweep, got different ones \(key.data"):
        mc.merge_sweeps([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(mc.JournalError, match=r"different ones .*grid"):
        mc.merge_sweeps([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    with pytest.raises(mc.JournalError, match=r"expected a sweep in .*, got no sweep.json there"):
        mc.merge_sweeps([tmp_path / "d"], tmp_path / "out")
    with pytest.raises(mc.JournalError, match="got none"):
        mc.merge_sweeps([], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (home,) = (tmp_path / "a" / "cells").iterdir()
    with Journal(home), pytest.raises(mc.JournalLockedError, match="in use by another process"):
        mc.merge_sweeps([tmp_path / "a"], tmp_path / "out")


def test_a_cell_in_use_is_refused(tmp_path):
    result = quick({"sigma": [1.0], "size": [1]}, out=tmp_path)
    with (
        Journal(tmp_path / "cells" / result.cells[0].folder),
        pytest.raises(mc.JournalLockedError, match="in use by another process"),
    ):
        quick({"sigma": [1.0], "size": [1]}, out=tmp_path)


def other_noisy(key, *, sigma, size):
    held = noisy(key, sigma=sigma, size=size)
    return {**held, "x": held["x"] + 1.0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_draws": 300}, "num_draws: the folder has 250, this run asks 300"),
        ({"key": 4}, r"key.data: the folder has \[0,3\], this run asks \[0,4\]"),
        ({"common_random_numbers": True}, "common_random_numbers: the folder has false, this run asks true"),
        ({"static": ["sigma"]}, "static: "),
        ({"draw": other_noisy, "name": "noisy"}, "draw: its code is not the one the sweep was begun with"),
        ({"name": "another"}, "name: the folder has noisy, this run asks another"),
        ({"spec": {"a": 1}}, "user.a: the folder has nothing, this run asks 1"),
        ({"until": mc.Width("x", absolute=1.0)}, "until: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_sweep_is_refused_in_one_sentence(tmp_path, changes, named):
    given = {"draw": noisy, "key": 3, "grid": {"sigma": [1.0], "size": [1]}, "num_draws": 250, **SIZES}
    mc.sweep(**given, out=tmp_path)
    with pytest.raises(mc.JournalError, match=named) as caught:
        mc.sweep(**{**given, **changes}, out=tmp_path)
    assert str(caught.value).startswith(f"{tmp_path} holds another sweep (")
    assert str(caught.value).count("\n") == 0


def test_folders_that_cannot_be_used(tmp_path):
    mc.run(draws.scalar, 0, 10, out=tmp_path / "run", progress=False)
    with pytest.raises(mc.JournalError, match="holds a single run, not a sweep"):
        quick(out=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(mc.JournalError, match=r"expected a folder that can be written at .*file"):
        quick(out=tmp_path / "file")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sweep.json").write_text("{")
    with pytest.raises(mc.JournalError, match=r"sweep.json cannot be read"):
        quick(out=tmp_path / "broken")
    (tmp_path / "broken" / "sweep.json").write_text('{"format": 99}')
    with pytest.raises(mc.JournalError, match="to be a sweep's manifest in format 1"):
        quick(out=tmp_path / "broken")


# What comes out.


def test_one_labelled_dataset(tmp_path, whole):
    data = whole.to_xarray(level=0.9)
    assert dict(data.sizes) == {"sigma": 5, "size": 3}
    assert data["x_mean"].dims == ("sigma", "size")
    for cell in whole.cells:
        own = whole[cell.parameters].to_xarray(0.9)
        picked = data.sel(cell.parameters)
        for name in own.data_vars:
            np.testing.assert_array_equal(picked[name], own[name])
    assert data["x_mean_low"].attrs["level"] == 0.9
    assert data["cell_seconds"].attrs["units"] == "s"
    assert (data["cell_draws"] == 250).all()
    specification = json.loads(data.attrs["specification"])
    assert specification["num_draws"] == 250
    assert specification["grid"][1] == ["size", [1, 2, 3]]
    path = whole.save_netcdf(tmp_path / "result.nc", level=0.9)
    with xr.open_dataset(path, engine="h5netcdf") as loaded:
        xr.testing.assert_identical(loaded.load(), data)


def test_dimensions_of_other_kinds(tmp_path):
    def draw(key, *, law, on, shape):
        return {"v": jax.random.normal(key, (2,)) + len(law) + int(on)}

    grid = {"law": ["a", "bcd"], "on": [True], "shape": [(1, 2), None]}
    result = mc.sweep(draw, 0, grid, 16, statistics={"v": mc.Moments()}, **SIZES)
    data = result.to_xarray()
    assert data["v_mean"].dims == ("law", "on", "shape", "v_axis0")
    assert data["shape"].values.tolist() == ["1x2", "None"]
    picked = data["v_mean"].sel(law="bcd", on=True, shape="None")
    np.testing.assert_array_equal(picked, result[{"law": "bcd", "on": True, "shape": None}]["v"]["mean"])
    with xr.open_dataset(result.save_netcdf(tmp_path / "result.nc"), engine="h5netcdf") as loaded:
        xr.testing.assert_identical(loaded.load(), data)


def test_histograms_of_equal_and_of_own_edges(tmp_path):
    equal = quick({"sigma": [0.5, 1.0], "size": [1]}, statistics={"x": mc.Histogram(-3, 3, 6)}).to_xarray()
    assert equal["x_histogram"].dims == ("sigma", "size", "x_bin")
    assert equal["x_bin_low"].dims == ("x_bin",)
    np.testing.assert_allclose(equal["x_bin"], np.arange(-2.5, 3))

    def statistics(*, sigma, size):
        return {"x": (mc.Moments(), mc.Histogram(-3 * size, 3 * size, 6))}

    own = quick({"sigma": [0.5, 1.0], "size": [1, 2]}, statistics=statistics)
    assert own.provenance["compilations"] == 2  # edges depend on what is static
    data = own.to_xarray()
    assert data["x_bin"].values.tolist() == list(range(6))
    assert data["x_bin_low"].dims == ("sigma", "size", "x_bin")
    np.testing.assert_allclose(data["x_bin_high"].sel(sigma=0.5, size=2), np.arange(-4, 7, 2))
    cell = own[{"sigma": 0.5, "size": 2}]
    np.testing.assert_array_equal(data["x_histogram"].sel(sigma=0.5, size=2), cell["x"]["histogram"])
    path = own.save_netcdf(tmp_path / "result.nc")
    with xr.open_dataset(path, engine="h5netcdf") as loaded:
        xr.testing.assert_identical(loaded.load(), data)


def test_kept_draws_and_stopping(tmp_path):
    rule, grid = mc.Width("x", absolute=0.5, first=100), {**GRID, "size": [1]}
    result = quick(grid, 3000, until=rule, keep="x", out=tmp_path)
    data = result.to_xarray()
    counts = data["cell_draws"].values
    assert counts.min() < counts.max() == data.sizes["draw"]
    np.testing.assert_array_equal(np.isfinite(data["x_draws"].values).sum(axis=-1), counts)
    assert data["until_reached"].dtype == bool
    reached = data["until_reached"].values
    width = (data["until_high"] - data["until_low"]).values
    assert ((width <= 0.5) == reached).all()
    assert reached.any()
    again = quick(grid, 3000, until=rule, keep="x", out=tmp_path)
    assert again.provenance["compilations"] == 0
    assert all(np.isnan(held.provenance["draws_per_second"]) for held in again.results.values())
    assert same(result, again)


def test_summary(whole):
    text = str(whole)
    assert "noisy: 15 of 15 cells" in text
    assert "sigma=0.5, size=1: large" in text
    assert "other outputs: x" in text
    assert len(whole.summary().rows) == 15
    assert len(whole.summary(names=["large", "x"]).rows) == 30
    assert whole._repr_html_().count("<tr>") == 16
    with pytest.raises(ValueError, match=r"expected names of outputs \['large', 'x'\], got \['y'\]"):
        whole.summary(names=["y"])


def test_a_cell_that_is_not_finished(tmp_path):
    part = quick(out=tmp_path, part=(1, 4))
    with pytest.raises(ValueError, match="expected a finished cell, got sigma="):
        part[part.grid.cells[1].parameters]
    with pytest.raises(ValueError, match="expected one of the values 1, 2, 3 of size, got 9"):
        part[{"sigma": 0.5, "size": 9}]


# Progress.


def test_progress_is_that_of_the_whole_grid(tmp_path):
    seen = []
    quick(progress=seen.append, out=tmp_path)
    assert [seen[0].stage, seen[-1].stage] == ["compiling", "finished"]
    assert {report.stage for report in seen[1:-1]} == {"running"}
    done = [report.done for report in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 15 * 250)
    assert {report.total for report in seen} == {15 * 250}
    assert [report.cells_done for report in seen] == sorted(report.cells_done for report in seen)
    assert (seen[-1].cells_done, seen[-1].cells) == (15, 15)
    assert len({report.cell for report in seen[:-1]}) == 15
    assert any(report.headline.startswith("large: ") for report in seen)
    assert seen[-1].draws_per_second > 0
    assert seen[-1].seconds_left == 0
    seen.clear()
    quick(progress=seen.append, out=tmp_path)
    assert np.isnan(seen[-1].draws_per_second)  # nothing was drawn


def test_progress_counts_cells_that_stopped_early():
    seen = []
    rule = mc.Width("x", absolute=0.5, first=100)
    result = quick(GRID, 3000, until=rule, progress=seen.append)
    drawn = sum(record["draws"] for record in result.records.values())
    assert seen[-1].done == seen[-1].total == drawn
    totals = [report.total for report in seen]
    assert totals == sorted(totals, reverse=True)


def test_few_lines_in_a_log(capsys):
    mc.sweep(noisy, 3, GRID, 50, **LOUD)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "noisy: compiling"
    assert lines[-1].startswith("noisy: 750 of 750 draws (100%)  15 of 15 cells")
    assert len(lines) == 2
    quick(num_draws=50)
    assert capsys.readouterr() == ("", "")


def test_one_bar_on_a_terminal(monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    mc.sweep(noisy, 3, {"sigma": [1.0, 2.0], "size": [1]}, 400, **LOUD)
    text = stream.getvalue()
    assert "800/800" in text
    assert "2 of 2 cells" in text


def test_the_line_names_the_cell():
    report = mc.SweepProgress("running", 300, 1000, 50.0, 14.0, "x: 1 +- 0.1 (95%)", 3, 10, "k=2, M=8")
    assert describe(report) == (
        "300 of 1,000 draws (30%)  cell 4 of 10 (k=2, M=8)  50 draws/s  14 s left  x: 1 +- 0.1 (95%)"
    )
    report = mc.SweepProgress("running", 300, 1000, cells_done=3, cells=10, cell="k=2, M=8", compiling=True)
    assert describe(report) == "300 of 1,000 draws (30%)  cell 4 of 10 (k=2, M=8, compiling)"


# Mistakes.


def shaped(key, *, size):
    return jax.random.normal(key, (size,))


def picky(key, *, k, m):
    if k > m:
        raise ValueError(f"expected k <= m, got {k} and {m}")
    return jax.random.normal(key)


@pytest.mark.parametrize(
    ("draw", "grid", "options", "sentence"),
    [
        (noisy, {}, {}, "expected grid to map parameter names"),
        (3, GRID, {}, "expected draw to be a function of a key and parameters, got int"),
        (noisy, {"sigma": [1.0]}, {}, "sigma=1: .*missing 1 required keyword-only argument: 'size'"),
        (noisy, {**GRID, "y": [1]}, {}, "unexpected keyword argument 'y'"),
        (shaped, {"size": [1, 2]}, {}, r"expected the same outputs in all cells, got .* at size=1 and .* at size=2"),
        (picky, {"k": [1, 5], "m": [3, 9]}, {}, "k=5, m=3: expected k <= m, got 5 and 3"),
        (noisy, GRID, {"statistics": {"y": mc.Moments()}}, r"sigma=0.5, size=1: .*\['y'\]"),
        (noisy, GRID, {"keep": "y"}, r"in keep, got \['y'\]"),
        (noisy, GRID, {"headline": "y"}, "expected headline to be a scalar output"),
        (noisy, GRID, {"part": (3, 2)}, r"expected a part \(i, N\) with 1 <= i <= N"),
        (noisy, GRID, {"num_draws": 0}, "expected num_draws to be an integer from 1"),
        (noisy, GRID, {"chunk_size": 0}, "^expected chunk_size"),
        (noisy, GRID, {"lanes": 3}, "^expected lanes to be a power of two"),
        (noisy, GRID, {"until": mc.Width("y", absolute=1.0)}, "^expected until to name one of the outputs"),
        (noisy, GRID, {"key": "a"}, "expected key to be one typed key"),
        (noisy, GRID, {"spec": {"a": object()}}, "expected a specification of plain numbers"),
        (
            noisy,
            GRID,
            {"statistics": lambda sigma, size: {"x": mc.Moments() if size == 1 else mc.Extremes()}},
            "expected the same statistics of 'x' in all cells",
        ),
        (
            noisy,
            GRID,
            {"statistics": lambda sigma, size: {"x": mc.Histogram(0, 1, size)}},
            "histograms of equal numbers of bins",
        ),
        (lambda key, *, x_mean: {"x": x_mean + jax.random.normal(key)}, {"x_mean": [1.0]}, {}, "got 'x_mean'; rename"),
        (lambda key, *, cell_done: jax.random.normal(key), {"cell_done": [1]}, {}, "got 'cell_done'; rename"),
    ],
    ids=itertools.count(),
)
def test_mistakes_are_named_before_anything_runs(tmp_path, draw, grid, options, sentence):
    given = {"draw": draw, "key": 0, "grid": grid, "num_draws": 10, **SIZES, **options}
    with pytest.raises(ValueError, match=sentence):
        mc.sweep(**given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_importing_loads_no_heavy_library():
    script = (
        "import sys, cnninv_jax.montecarlo; "
        "print([name for name in ('scipy.stats', 'xarray', 'rich', 'matplotlib') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
