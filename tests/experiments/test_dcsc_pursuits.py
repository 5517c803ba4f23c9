"""dcsc-pursuits: every pursuit sees the same draws and is told what it should be; the study and its figure."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.dcsc.generate import generate
from cnninv_jax.experiments.dcsc_dictionaries import build
from cnninv_jax.experiments.dcsc_pursuits import DCSC_PURSUITS, Clock, PursuitParameters, check
from cnninv_jax.experiments.dcsc_pursuits_draws import METHODS, PursuitDraw, Solvers
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.montecarlo import Progress

SMALL = PursuitParameters(
    D=12, M=6, num_filters=(5, 2), ell=3, S=(2, 6), noise=0.1, num_codes=2, num_draws=6, max_steps=200, iht_steps=8,
    gap_cases=1,
)  # fmt: skip
SOLVERS = Solvers(0.05, 1e-3, 200, 8)


def draw_of(sizes, S, noise):
    model = build(jax.random.key(3), sizes, sizes.depth, "float32")
    codes = generate(jax.random.key(4), model, sparsity=[S, None], columns=2).path[-1]
    return PursuitDraw(model, codes, jnp.float32(noise), SOLVERS)


@pytest.mark.slow
def test_a_problem_is_what_it_says():
    draw = draw_of(SMALL, 4, 0.2)
    problem = jax.jit(lambda own: draw.problem(own))(jax.random.key(8))
    path = [np.asarray(code) for code in problem.truth]
    assert any(np.array_equal(np.abs(path[-1]), np.abs(np.asarray(code))) for code in draw.codes)
    smallest = [np.abs(code[np.abs(code) > 1e-5]).min() for code in path[1:]]
    np.testing.assert_allclose(problem.thresholds, np.array(smallest) / 2, rtol=1e-5)
    assert [int(count) for count in problem.counts] == [np.sum(np.abs(code) > 1e-5) for code in path[1:]]
    for S, code in zip(problem.sparsity, path[1:], strict=True):
        per_shift = np.sum(np.abs(code) > 1e-5, axis=0)
        # Circular, ell = 3: two shifts on either side.
        stripes = [sum(np.roll(per_shift, by)[0] for by in range(-2 - j, 3 - j)) for j in range(per_shift.size)]
        assert max(stripes) == int(S)
    error = np.asarray(problem.x) - path[0]
    # The truth itself meets IHT's tolerance, with a little to spare.
    np.testing.assert_allclose(problem.iht_tol, 1.05 * np.linalg.norm(error) / np.linalg.norm(problem.x), rtol=1e-5)
    patches = [np.linalg.norm(np.roll(error, -j, axis=1)[:, :3]) for j in range(12)]
    np.testing.assert_allclose(max(patches), 0.2 * smallest[0], rtol=1e-4)


@pytest.mark.slow
def test_orthogonal_atoms_leave_nothing_to_lose():
    """mu = 0 without noise: responses are the code, and all but the stripe projection find exactly its support."""
    sizes = dataclasses.replace(SMALL, kind="orthogonal")
    draw = draw_of(sizes, 6, 0.0)
    found = jax.jit(lambda draw, keys: jax.vmap(draw)(keys))(draw, jax.random.split(jax.random.key(1), 3))
    for name in ("hard", "soft", "basis_pursuit", "iht"):
        assert np.all(found[f"{name}_path"]), name
    for name in METHODS:
        assert np.all(found[f"{name}_complete"]), name
        np.testing.assert_array_equal(
            found[f"{name}_hits"] + found[f"{name}_misses"], found["hard_hits"] + found["hard_misses"]
        )
    assert not np.any(found["basis_pursuit_unfinished"] | found["iht_unfinished"])
    drowned = dataclasses.replace(draw, noise=jnp.float32(50.0), methods=("hard",))
    lost = jax.jit(lambda draw, own: draw(own))(drowned, jax.random.key(2))
    assert not lost["hard_path"]


@pytest.mark.slow
def test_study(tmp_path):
    out = reproduce_study(DCSC_PURSUITS, SMALL, StudyOptions(seed=1, out=tmp_path / "study", quiet=True))
    import xarray as xr

    found = xr.load_dataset(tmp_path / "study" / "result.nc", engine="h5netcdf")
    assert dict(found.sizes) == {"S": 2, "pursuit": 5, "layer": 2, "case": 1}
    # The same draws: every pursuit's supports have the same size.
    sizes = (found["hits"] + found["misses"]).to_numpy()
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[:1], sizes.shape), rtol=1e-6)
    assert np.all(found["path"] <= found["complete"])
    assert np.all((found["path_low"] <= found["path"]) & (found["path"] <= found["path_high"]))
    # A path is recovered exactly where nothing is missed and no alarm is false.
    wrong = (found["misses"] + found["false_alarms"]).sum("layer")
    np.testing.assert_array_equal(found["path"] == 1, wrong == 0)
    assert np.all((found["reached"].sel(layer=1) <= found["S"]) & (found["reached_least"] >= 1))
    assert np.all((found["kept"] >= 0.5) & (found["kept"] <= 1 + 1e-6))
    assert np.all(found["seconds"] > 0)
    steps = found["steps"]
    assert np.all((steps.sel(pursuit="iht") >= 1) & (steps.sel(pursuit="iht") <= 8))
    assert np.all(np.isnan(steps.sel(pursuit=["hard", "soft", "stripes"])))
    report = json.loads((tmp_path / "study" / "report.json").read_text())
    half = [S for S, share in zip((2, 6), found["path"].sel(pursuit="iht").to_numpy(), strict=True) if share >= 0.5]
    assert report["findings"]["half"]["iht"] == (max(half) if half else None)
    assert [table.title.split(":")[0] for table in out.tables][-1] == "greedy against exact stripe projection"
    assert (tmp_path / "study" / "dcsc-pursuits.png").stat().st_size > 10_000


@pytest.mark.slow
def test_iht_ends_at_the_noise():
    """Under noise a residual of 1e-5 cannot be met, but the noise's own level can."""
    sizes = dataclasses.replace(SMALL, kind="orthogonal")
    draw = dataclasses.replace(draw_of(sizes, 6, 0.1), methods=("iht",))
    ended = jax.jit(lambda draw, own: draw(own))(draw, jax.random.key(5))
    assert ended["iht_path"]
    assert not ended["iht_unfinished"]
    assert np.all(ended["iht_steps"] < SOLVERS.iht_steps)


def test_clock_takes_the_median_over_blocks(monkeypatch):
    times = iter([0.0, 2.0, 2.5, 4.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = Clock()
    assert np.isnan(clock.median())
    for done in (0, 2, 4, 5):  # 1, 0.25 and 2 seconds a draw
        clock(Progress("running", done, 5))
    clock(Progress("finished", 5, 5))
    assert clock.median() == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"S": ()}, "--S"),
        ({"S": (0,)}, "--S"),
        ({"noise": -1.0}, "--noise"),
        ({"lam": 0.0}, "--lam"),
        ({"tol": 2.0}, "--tol"),
        ({"iht_tol": 0.0}, "--iht-tol"),
        ({"num_draws": 0}, "--num-draws"),
        ({"depth": 5}, "--num-filters"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_flags_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(SMALL, **change))


def test_a_sparsity_that_cannot_be_had(tmp_path):
    parameters = dataclasses.replace(SMALL, S=(1,), places="random", ell=1, D=4, nonzeros=3, num_filters=(4, 2))
    with pytest.raises(ValueError, match="--S 1 cannot be had"):
        reproduce_study(DCSC_PURSUITS, parameters, StudyOptions(out=tmp_path / "study", quiet=True))
