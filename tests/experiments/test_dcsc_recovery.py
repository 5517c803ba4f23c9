"""Recovery beside both bounds: cells, the search for the largest S, and the study as a whole."""

import dataclasses
import json
import math
import re
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from cnninv_jax.experiments.dcsc_recovery import DCSC_RECOVERY, RecoveryParameters, checked
from cnninv_jax.experiments.dcsc_recovery_cells import Cell, Family, largest, largest_sparsities
from cnninv_jax.experiments.dcsc_recovery_figure import _leaves, recovery_figure
from cnninv_jax.experiments.dcsc_recovery_tables import _beyond, verdict
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.montecarlo import program

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough")

SMALL = RecoveryParameters(
    ranks=(1,), depths=(2,), S=(1, 2, 6), noise=(0.0, 0.1), num_draws=300, delta=0.02, D=(12, 6), ell=(3, 2), M=8,
    num_filters=(6, 3), nonzeros=2, coherence=0.02,
)  # fmt: skip
FAMILY = Family("benign", 1, 2)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"ranks": (3,)}, "--ranks"),
        ({"depths": (1, 1)}, "--depths"),
        ({"depths": (3,)}, "--num-filters"),
        ({"S": (0,)}, "--S"),
        ({"S": ()}, "--S"),
        ({"noise": (-0.1,)}, "--noise"),
        ({"noise_law": "pink"}, "--noise-law"),
        ({"dictionaries": ("other",)}, "--dictionaries"),
        ({"num_draws": 0}, "--num-draws"),
        ({"num_draws": 188}, "--num-draws of at least 189"),
        ({"equal_draws": 188}, "--equal-draws of at least 189"),
        ({"dictionaries": ("equal",)}, "--ranks and among --depths for --dictionaries equal"),
        ({"depths": (1,), "M": 6}, "fewer --num-filters .* --dictionaries equal"),
        ({"depths": (1,), "stride": 2}, "multiple of --stride 2 for --dictionaries equal"),
        ({"delta": 1.0}, "--delta"),
        ({"D": (12,)}, "--D"),
        ({"coherence": 2.0}, "--coherence"),
    ],
)
def test_parameters_are_refused_by_their_flags(change, flag):
    with pytest.raises(ValueError, match=flag):
        checked(dataclasses.replace(SMALL, **change))


@pytest.mark.parametrize("limit", range(13))
@pytest.mark.parametrize("least", [1, 4])
def test_the_largest_s_is_found_between_the_tries(limit, least):
    asked = []

    def good(size):
        assert size >= least
        asked.append(size)
        return size <= limit

    expected = min(limit, 10) if limit >= least else 0
    assert largest(good, [size for size in (2, 5, 10) if size >= least], least) == expected
    assert len(asked) <= 6


def cell(failed, log_bound, *, promised=False, draws=2000):
    return Cell(FAMILY, 4, 0.0, draws, failed, (4, 2), (0.0, 0.1), log_bound, promised, True)


def test_a_cell_is_above_the_bound_only_beyond_chance():
    # 99.9% lower limit of 30 in 2000 draws: 0.00796.
    assert cell((20, 10), math.log(0.0081)).holds
    assert not cell((20, 10), math.log(0.0079)).holds
    assert cell((2000, 0), 3.0).holds
    assert cell((2000, 0), 3.0).vacuous
    assert cell((2000, 0), 3.0).bound == 1
    found = verdict([cell((0, 0), -5.0, promised=True), cell((1, 0), -900.0, promised=True), cell((9, 9), 0.0)])
    assert found == {
        "cells": 3, "vacuous": 1, "says_something": 2, "says_something_deep": 2, "says_something_and_lost": 1,
        "refuted_by_one_loss": 1, "above_bound": 1, "promised": 2, "promised_and_lost": 1,
    }  # fmt: skip


def test_what_a_single_lost_draw_refutes():
    # P(at least one of n) = 0.001 at p = 1 - 0.999^(1/n).
    limit = 1 - 0.999 ** (1 / 2000)
    assert math.isclose(cell((0, 0), -1.0).refutable, limit, rel_tol=1e-6)
    assert cell((1, 0), math.log(1.01 * limit)).holds
    assert not cell((1, 0), math.log(0.99 * limit)).holds


@pytest.mark.slow
def test_no_s_that_fits_is_refused_before_drawing(tmp_path):
    parameters = dataclasses.replace(SMALL, dictionaries=("generic",), S=(1,))
    with pytest.raises(ValueError, match=r"--S of at least 2, .* got at most 1"):
        reproduce_study(DCSC_RECOVERY, parameters, StudyOptions(out=tmp_path / "study", quiet=True))
    assert not list(tmp_path.rglob("journal.sqlite"))


def test_largest_s_are_those_reached():
    cells = {asked: dataclasses.replace(cell((0, 0), -9.0), sparsity=(asked - asked % 3, 1)) for asked in range(3, 12)}

    class Held:
        p, family, least = dataclasses.replace(SMALL, S=(3, 11)), FAMILY, 3

        def cell(self, asked, level):
            return cells[asked]

        def promised(self, asked, level):
            return asked <= 7

        def sample(self, asked):
            return SimpleNamespace(measured=cells[asked])

    found = largest_sparsities(cast(Any, Held()), 0.0)
    assert (found.simulated, found.bound, found.uniform) == (9, 9, 6)
    assert found.asked == (11, 11, 7)
    beyond = _beyond(Held.p, [found])
    assert beyond.rows[0][1:] == (">= 9 (S_l: 9, 1)", ">= 9", "6", ">= 1.5")


@pytest.mark.slow
def test_equal_dictionaries_lose_draws_where_the_bound_says_something(tmp_path):
    parameters = dataclasses.replace(
        SMALL, dictionaries=("equal",), depths=(1,), S=(12,), noise=(0.0, 0.1, 0.1000001), equal_draws=20_000,
        ell=(6, 2), num_filters=(4,), coherence=0.045, delta=0.9,
    )  # fmt: skip
    outcome = reproduce_study(DCSC_RECOVERY, parameters, StudyOptions(out=tmp_path / "study", quiet=True))
    findings = outcome.report["findings"]
    # Levels close to each other keep their own draws.
    assert len(list((tmp_path / "study" / "cells").iterdir())) == 3
    # All atoms meet in every stripe: a |sum of 12 signs| beyond 1 / (2 mu) = 11.1 lets all others in.
    assert findings["verdict"]["says_something_and_lost"] == 3
    assert findings["verdict"]["above_bound"] == 0
    first = findings["cells"][0]
    assert first["sparsity"] == [12]
    exact = 2 * sum(math.comb(12, heads) for heads in range(13) if 2 * heads - 12 > 0.5 / 0.045) / 2**12
    assert abs(first["probability"] - exact) < 5 * math.sqrt(exact / 20_000)


def test_where_the_bound_leaves_one():
    sizes = np.array([2.0, 4.0, 8.0])
    # log bound = 3 - 10/S reaches 0 at S = 10/3.
    assert math.isclose(_leaves(sizes, 3 - 10 / sizes), 10 / 3)
    assert _leaves(sizes, np.array([-3.0, -2.0, -1.0])) == math.inf
    assert _leaves(sizes, np.array([0.0, 1.0, 2.0])) == 0


@pytest.mark.slow
def test_the_study(tmp_path):
    before = program.trace.cache_info().misses
    outcome = reproduce_study(DCSC_RECOVERY, SMALL, StudyOptions(out=tmp_path / "study", quiet=True))
    # One program a model: the zeros of its deep atoms shape the tables.
    assert program.trace.cache_info().misses - before == 2
    findings = outcome.report["findings"]
    grid = [each for each in findings["cells"] if each["on_grid"]]
    # An atom of two taps needs S = 2.
    assert len(grid) == findings["verdict"]["cells"] == 2 * 2 * 2
    assert findings["verdict"]["above_bound"] == findings["verdict_with_sought"]["above_bound"] == 0
    assert findings["verdict"]["promised_and_lost"] == 0
    benign = [each for each in grid if each["family"]["dictionary"] == "benign"]
    assert any(not each["vacuous"] for each in benign)
    generic = [each for each in grid if each["family"]["dictionary"] == "generic"]
    assert all(each["vacuous"] for each in generic if each["asked"] == 6)
    for each in grid:
        assert each["sparsity"][0] <= each["asked"]
        assert sum(each["failed"]) == round(each["probability"] * each["draws"])
    assert all(each["zeta"][0] == 0 for each in grid if each["noise"] == 0)
    for each in findings["critical"]:
        assert each["bound"] <= each["simulated"]
        assert each["uniform"] <= each["simulated"]
    assert findings["verdict"]["vacuous"] + findings["verdict"]["says_something"] == len(grid)
    failures, beyond = outcome.tables
    assert len(failures.rows) == len(beyond.rows) == 4
    assert [row[1] for row in failures.rows].count("-") == 4
    assert (tmp_path / "study" / "dcsc-recovery.png").stat().st_size > 10_000

    # Killed before its report: journals are read back, nothing is compiled or drawn again.
    (tmp_path / "study" / "report.json").unlink()
    assert len(list((tmp_path / "study" / "cells").rglob("journal.sqlite"))) == len(findings["cells"])
    program.clear_cache()
    again = reproduce_study(DCSC_RECOVERY, SMALL, StudyOptions(out=tmp_path / "study", quiet=True))
    assert again.report["findings"] == findings
    assert program.compile_blocks.cache_info().misses == 0
    import xarray as xr

    with xr.open_dataset(tmp_path / "study" / "result.nc", engine="h5netcdf") as dataset:
        figure = recovery_figure(json.loads(json.dumps(again.report)), dataset)
        assert isinstance(figure, Figure)
        titles = [axes.get_title() for axes in figure.axes]
        assert len(titles) == 2
        assert all(re.search(r"1-D, 2 layers", title) for title in titles)
