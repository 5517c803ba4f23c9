"""The phase diagram: its draw against NumPy, what follows from its counts, and the study as a whole."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from oracles import dense_matrix

from cnninv_jax import montecarlo as mc
from cnninv_jax.experiments.phase import (
    MEANS,
    PHASE,
    PROBABILITIES,
    PhaseParameters,
    checked_draw,
    crossing,
    fit_theorem,
    nearest,
)
from cnninv_jax.experiments.phase_draws import METHODS, PhaseDraw, scores
from cnninv_jax.experiments.phase_figure import phase_figure
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.operators import conv_operator, synthesis

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough")

SMALL = PhaseParameters(K=6, ell=2, D=6, M=(2, 8), k=(1, 2, 3), num_draws=60, values="signs", num_steps=15)
TINY = PhaseDraw(6, 2, 6, 1, 4, "signs", False, 0.3, "normalized", 12, 1e-3, "float32")


def largest(h, k):
    """M(h, k) for [K, n], by sorting."""
    kept = np.zeros_like(h)
    best = np.argmax(np.abs(h), axis=1)
    for block in np.argsort(-np.abs(h[np.arange(len(h)), best]), kind="stable")[:k]:
        kept[block, best[block]] = h[block, best[block]]
    return kept


def next_iterate(w, x, z, k, step):
    """One iteration of Alg. 1, or of Blumensath and Davies 2010, Alg. 1, with the same safeguards as the library."""
    project = lambda h: largest(h.reshape(z.shape), k).ravel()  # noqa: E731
    flat = z.ravel()
    g = w @ (x - w.T @ flat)
    if step == "unit":
        return project(flat + g).reshape(z.shape)
    support = (flat if flat.any() else project(g)) != 0
    restricted = np.where(support, g, 0.0)
    mu = restricted @ restricted / np.sum((w.T @ restricted) ** 2)
    for _ in range(31):
        proposal = project(flat + mu * g)
        change = proposal - flat
        if np.array_equal(proposal != 0, support) or mu <= 0.99 * change @ change / np.sum((w.T @ change) ** 2):
            break
        mu /= 2 * 0.99
    return proposal.reshape(z.shape)


def numpy_draw(generator, draw, k, channels):
    """The same law as `PhaseDraw`, dense and in float64."""
    n = draw.signal_length - draw.length + 1
    bank = generator.normal(size=(draw.num_filters, channels, draw.length)) / math.sqrt(channels * draw.length)
    w = dense_matrix(bank, (draw.signal_length,), (1,))
    z = np.zeros((draw.num_filters, n))
    blocks = generator.choice(draw.num_filters, k, replace=False)
    z[blocks, generator.integers(0, n, k)] = generator.choice([-1.0, 1.0], k)
    x = w.T @ z.ravel()
    size = np.linalg.norm(x)
    estimates = {"one_step": largest((w @ x).reshape(z.shape), k)}
    code, result = np.zeros_like(z), "cap"
    for _ in range(draw.num_steps):
        proposal = next_iterate(w, x, code, k, draw.step)
        residual = np.linalg.norm(x - w.T @ proposal.ravel()) / size
        if residual > 10:
            result = "diverged"
            break
        code = proposal
        if residual <= draw.tol:
            result = "converged"
            break
    estimates["iht"] = code
    held = {"iht_not_converged": result != "converged", "iht_diverged": result == "diverged"}
    for method, estimate in estimates.items():
        both = (estimate != 0) & (z != 0)
        error = np.linalg.norm(w.T @ estimate.ravel() - x) / size
        held |= {
            f"{method}_support": np.array_equal(estimate != 0, z != 0),
            f"{method}_accurate": error < draw.threshold,
            f"{method}_found": both.sum() / k,
            f"{method}_energy": np.sum(z[both] ** 2) / np.sum(z**2),
        }
    return held


@pytest.mark.slow
@pytest.mark.parametrize(("step", "k", "channels"), [("unit", 2, 6), ("normalized", 3, 4)])
def test_the_draw_has_the_law_of_a_plain_simulation(step, k, channels):
    draw = dataclasses.replace(TINY, step=step)
    many = jax.jit(lambda keys, k: jax.vmap(lambda key: draw(key, k=k, M=channels))(keys))
    ours = many(jax.random.split(jax.random.key(3), 4000), jnp.asarray(k))
    generator = np.random.default_rng(4)
    plain = [numpy_draw(generator, draw, k, channels) for _ in range(800)]
    undecided = 0
    for name in plain[0]:
        first, second = np.asarray(ours[name], float), np.array([one[name] for one in plain], float)
        error = math.sqrt(first.var() / first.size + second.var() / second.size)
        assert abs(first.mean() - second.mean()) <= 5 * error + 1e-12, (name, first.mean(), second.mean(), error)
        undecided += 0.05 < second.mean() < 0.95
    # A cell where everything or nothing is found would test nothing.
    assert undecided >= 6


@pytest.mark.slow
def test_with_very_many_channels_everything_is_recovered():
    draw = PhaseDraw(4, 3, 8, 1, 2, "signs", False, 0.1, "normalized", 50, 1e-5, "float32")
    many = jax.jit(jax.vmap(lambda key: draw(key, k=jnp.asarray(2), M=2048)))
    outcome = many(jax.random.split(jax.random.key(0), 64))
    # |w|^2 is 1 to within sqrt(2 / 6144) = 0.018, inner products are zero to within 0.013.
    rates = {name: float(outcome[name].mean()) for name in (*PROBABILITIES, "iht_not_converged")}
    assert rates == {**dict.fromkeys(PROBABILITIES, 1.0), "iht_not_converged": 0.0}


def test_scores_of_known_estimates():
    op = conv_operator(jax.random.normal(jax.random.key(0), (3, 2, 2)), 5)
    z = jnp.zeros((3, 4)).at[0, 1].set(3.0).at[2, 0].set(-4.0)
    x = synthesis(op, z)

    def held(estimate, threshold=0.1):
        return {name: float(value) for name, value in scores(op, estimate, z, x, threshold).items()}

    assert held(z) == {"support": 1, "accurate": 1, "found": 1, "energy": 1}
    assert held(1.2 * z)["support"] == 1
    assert held(1.2 * z)["accurate"] == 0
    assert held(1.2 * z, 0.21)["accurate"] == 1
    half = held(z.at[0, 1].set(0.0).at[0, 2].set(3.0))
    assert (half["support"], half["found"]) == (0, 0.5)
    assert half["energy"] == pytest.approx(16 / 25)
    more = held(z.at[1, 1].set(1e-6))
    assert more == {"support": 0, "accurate": 1, "found": 1, "energy": 1}
    for spoilt in (jnp.nan, jnp.inf):
        assert held(jnp.full_like(z, spoilt)) == {"support": 0, "accurate": 0, "found": 0, "energy": 0}


def test_crossing_interpolates_the_last_rise_over_log_positions():
    assert crossing([1, 4, 16], np.array([0.0, 0.25, 0.75])) == pytest.approx(8.0)
    assert crossing([1, 4, 16], np.array([0.0, 0.5, 0.75])) == pytest.approx(4.0)
    # Up, down, and up again.
    assert crossing([1, 2, 4, 8], np.array([0.6, 0.4, 0.6, 0.9])) == pytest.approx(math.sqrt(8))
    for outside in ([0.6, 0.7, 0.9], [0.1, 0.2, 0.4], [0.0, 0.9, math.nan]):
        assert math.isnan(crossing([1, 4, 16], np.array(outside)))


def test_the_fit_finds_the_theorems_own_form_and_the_exponent_of_another():
    k = np.array([1, 2, 5, 10])
    law = math.log(96) + math.log(28)
    exact = fit_theorem(k, 0.7 * k * law, 96, 28)
    assert exact == pytest.approx({"C": 0.7, "factor": 1.0, "exponent": 1.0, "points": 4})
    cubic = fit_theorem(k, [*(2.0 * k[:-1] ** 3), math.nan], 96, 28)
    assert cubic["exponent"] == pytest.approx(3.0)
    assert cubic["points"] == 3
    assert cubic["factor"] > 4
    nothing = fit_theorem(k, [math.nan] * 4, 96, 28)
    assert nothing["points"] == 0
    assert math.isnan(nothing["C"])
    assert math.isnan(fit_theorem([1], [2.0], 96, 28)["exponent"])


def test_the_tables_cut_where_the_paper_is():
    assert nearest((2, 16, 80), 32) == 16
    assert nearest((1, 2, 10, 40), 10) == 10


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": (1, 7)}, r"--k of at most K = 6"),
        ({"k": (0,)}, r"--k"),
        ({"M": ()}, r"at least one value of --M"),
        ({"M": (4, -1)}, r"--M"),
        ({"threshold": math.nan}, r"--threshold"),
        ({"tol": 0.0}, r"--tol"),
        ({"num_draws": 0}, r"--num-draws"),
        ({"num_steps": 0}, r"--num-steps"),
        ({"stride": 3}, r"integer n"),
        ({"step": "long"}, r"expected step"),
        ({"values": "ones"}, r"expected values"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        checked_draw(dataclasses.replace(SMALL, **change), "float32")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phase") / "run"
    mc.clear_cache()
    return reproduce_study(PHASE, SMALL, StudyOptions(out=folder, quiet=True))


def dataset_of(folder):
    import xarray as xr

    with xr.open_dataset(folder / "result.nc", engine="h5netcdf") as dataset:
        return dataset.load()


@pytest.mark.slow
def test_the_study_keeps_every_cell_with_its_intervals(study):
    dataset = dataset_of(study.folder)
    assert dict(dataset.sizes) == {"k": 3, "M": 2}
    np.testing.assert_allclose(dataset["Mll_over_D"], [2 * 4 / 6, 8 * 4 / 6])
    for name in (*PROBABILITIES, "iht_not_converged", "iht_diverged"):
        assert (dataset[f"{name}_count"] == SMALL.num_draws).all()
        low, high = mc.wilson(dataset[f"{name}_successes"], SMALL.num_draws)
        np.testing.assert_allclose(dataset[f"{name}_proportion_low"], low)
        np.testing.assert_allclose(dataset[f"{name}_proportion_high"], high)
    for method in METHODS:
        exact, found = dataset[f"{method}_support_proportion"], dataset[f"{method}_found_mean"]
        assert (exact <= found + 1e-6).all()
    # With signs every non-zero holds as much.
    np.testing.assert_allclose(dataset["iht_found_mean"], dataset["iht_energy_mean"], rtol=1e-5)


@pytest.mark.slow
def test_all_k_share_the_program_of_their_channels(study):
    assert json.loads(dataset_of(study.folder).attrs["provenance"])["compilations"] == len(SMALL.M)


@pytest.mark.slow
def test_a_cell_is_the_run_of_its_draw(study):
    draw = checked_draw(SMALL, "float32")
    one = {"k": (2,), "M": (8,)}
    sizes = {"chunk_size": 20, "lanes": 4, "statistics": {name: mc.Moments() for name in MEANS}, "progress": False}
    cell = mc.sweep(draw, 0, one, SMALL.num_draws, static=["M"], traced=["k"], **sizes)[{"k": 2, "M": 8}]
    held = dataset_of(study.folder).sel(k=2, M=8)
    for name in PROBABILITIES:
        assert int(held[f"{name}_successes"]) == int(cell[name]["successes"])


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_numbers(study, tmp_path):
    folder = shutil.copytree(study.folder, tmp_path / "copy")
    (folder / "report.json").unlink()
    lost = sorted((folder / "sweep" / "cells").iterdir())[0]
    shutil.rmtree(lost)
    again = reproduce_study(PHASE, SMALL, StudyOptions(out=folder, quiet=True))
    assert again.report["findings"] == study.report["findings"]
    assert lost.is_dir()
    first, second = dataset_of(study.folder), dataset_of(folder)
    same = [name for name in first.variables if not str(name).startswith("cell_seconds")]
    assert first[same].equals(second[same])


@pytest.mark.slow
def test_the_tables_and_the_report(study):
    along_k, along_m, halves = study.tables
    assert [row[0] for row in along_k.rows] == ["1", "2", "3"]
    assert [row[0] for row in along_m.rows] == ["1.33333 (2)", "5.33333 (8)"]
    assert [row[0] for row in halves.rows] == ["1", "2", "3", "fitted C", "exponent of k"]
    for table in study.tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert set(study.report["findings"]["fits"]) == set(PROBABILITIES)


@pytest.mark.slow
@pytest.mark.parametrize("few", [{}, {"k": slice(1)}, {"M": slice(1)}], ids=["grid", "one k", "one M"])
def test_the_figure_shows_six_maps_of_what_was_saved(study, few):
    dataset = dataset_of(study.folder).isel(few)
    figure = phase_figure(study.report, dataset)
    assert isinstance(figure, Figure)
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert len(maps) == 6
    shown = maps[4].collections[0].get_array()
    expected = dataset["iht_accurate_proportion"].transpose("M", "k").to_numpy()
    np.testing.assert_allclose(np.asarray(shown).reshape(expected.shape), expected)
