"""`gilbert-bounds`: both sides of every bound against dense NumPy, the exact law of delta_1, the study on disk."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import stats

from cnninv_jax import montecarlo as mc
from cnninv_jax.experiments import bounds_calibration, bounds_draws
from cnninv_jax.experiments.bounds import GILBERT_BOUNDS, BoundsParameters, checked_draw
from cnninv_jax.experiments.bounds_draws import BOUNDS, Bank, BoundsDraw, ConstantsDraw
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.operators import conv_operator
from cnninv_jax.sparsity import SparseCode
from tests import oracles

BANK = Bank(K=4, M=8, ell=6, D=8, stride=1, halvings=2, dtype="float32")
SMALL = BoundsParameters(
    K=3, M=8, halvings=2, ell=8, D=9, k=1, num_draws=600, calibration_K=3, calibration_k=(1, 2),
    calibration_strides=(1,), calibration_draws=1000, starts=0,
)  # fmt: skip


def brute_force_deltas(gram, shifts, k):
    """delta_k and delta_2k from all supports."""
    found = []
    for members in (1, 2):
        sets = [
            s for s in itertools.combinations(range(len(gram)), members * k)
            if max(np.bincount([i // shifts for i in s])) <= members
        ]  # fmt: skip
        blocks = gram[np.array(sets)[:, :, None], np.array(sets)[:, None, :]] - np.eye(members * k)
        found.append(np.abs(np.linalg.eigvalsh(blocks)).max())
    return found


def dense_sides(op, code, other, k):
    """What `sides` computes, from the dense W in float64."""
    shifts = op.shifts[0]
    rows = oracles.dense_matrix(np.asarray(op.filters), op.signal_shape, op.stride)
    z = np.asarray(code.to_dense(), float).ravel()
    support = np.asarray(other.blocks) * shifts + np.asarray(other.shifts)[:, 0]
    x = rows.T @ z
    h = rows @ x
    kept = oracles.project(h.reshape(-1, shifts), k)
    fixed = oracles.project(h.reshape(-1, shifts), k, fixed=True).ravel()
    omega, pi = np.flatnonzero(kept), np.flatnonzero(z)
    dk, d2k = brute_force_deltas(rows @ rows.T, shifts, k)
    rest, missed = z.copy(), z.copy()
    rest[support], missed[omega] = 0.0, 0.0
    known = np.where(z != 0, h, 0.0)
    norm = np.linalg.norm
    errors = {name: norm(rows.T @ (e - z)) / norm(x) for name, e in
              (("model", kept.ravel()), ("known", known), ("fixed", fixed))}  # fmt: skip
    gap = 1 - dk
    theorem = 5 * d2k / gap * math.sqrt((1 + d2k) / (1 - d2k)) if max(dk, d2k) < 1 else math.inf
    return {
        "b1_analysis": (norm(h[omega]) / norm(x), math.sqrt(1 + dk)),
        "b1_gram_high": (norm(h[pi]) / norm(z), 1 + dk),
        "b1_gram_low": (norm(h[pi]) / norm(z), gap),
        "b2": (norm((rows @ (rows.T @ rest))[support]) / norm(rest) if norm(rest) else math.nan, d2k),
        "b3": (norm(missed) / norm(z), 2 * d2k / gap if gap > 0 else math.inf),
        "b4": (norm(z - kept.ravel()) / norm(z), 5 * d2k / gap if gap > 0 else math.inf),
        "theorem_3_3": (errors["model"], theorem),
        "known": (errors["known"], theorem),
        "fixed": (errors["fixed"], theorem),
    }


@pytest.fixture(scope="module")
def small_draws():
    """Many draws at once, k = 2."""
    draw = BoundsDraw(BANK, 2, "uniform")
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), 400)))


def test_both_sides_against_dense_matrices():
    """Banks and codes by NumPy, constants by brute force: what is left is `sides`."""
    rng = np.random.default_rng(0)
    banks = rng.standard_normal((25, 4, 2, 12)) / math.sqrt(24) * np.geomspace(0.5, 1, 25)[:, None, None, None]

    def codes():
        blocks = np.sort(np.stack([rng.choice(4, 2, replace=False) for _ in range(25)]), axis=1).astype(np.int32)
        shifts = rng.integers(0, 3, (25, 2, 1)).astype(np.int32)
        return SparseCode(*map(jnp.asarray, (blocks, shifts, rng.uniform(-1, 1, (25, 2)))), (4, 3), None)

    ops = jax.vmap(lambda bank: conv_operator(bank, 14))(jnp.asarray(banks))
    drawn = (ops, codes(), codes())
    rows = [oracles.dense_matrix(bank, (14,), (1,)) for bank in banks]
    deltas = jnp.asarray([brute_force_deltas(w @ w.T, 3, 2) for w in rows])
    compute = jax.jit(jax.vmap(lambda inputs, both: bounds_draws.sides(*inputs, both[0], both[1])))
    observed, bound, deviation = (np.asarray(value) for value in compute(drawn, deltas))
    tolerance = 1e-9 if jax.config.jax_enable_x64 else 2e-3
    for i in range(25):
        op, code, other = jax.tree.map(lambda leaf, i=i: leaf[i], drawn)
        expected = dense_sides(op, code, other, 2)
        for name, (left, right) in expected.items():
            at = list(BOUNDS).index(name)
            np.testing.assert_allclose(observed[i, at], left, rtol=tolerance, atol=tolerance / 10, err_msg=name)
            np.testing.assert_allclose(bound[i, at], right, rtol=tolerance, err_msg=name)
        z = np.asarray(code.to_dense(), float).ravel()
        ratio = np.sum((rows[i].T @ z) ** 2) / np.sum(z**2)
        np.testing.assert_allclose(deviation[i], abs(ratio - 1), rtol=tolerance, atol=tolerance / 10)
    assert np.isinf(bound).any()
    assert np.isfinite(bound[:, list(BOUNDS).index("theorem_3_3")]).any()


@pytest.mark.slow
def test_verdicts_follow_from_the_sides(small_draws):
    found = small_draws
    observed, bound = found["observed"], found["bound"]
    low = np.array([name == "b1_gram_low" for name in BOUNDS])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(low, observed / bound, bound / observed)
    counts = np.isfinite(bound) & (bound > 0) & (observed > 0)
    np.testing.assert_allclose(found["looseness"][counts], np.log10(ratio[counts]), atol=1e-5)
    assert np.isnan(found["looseness"][~counts]).all()
    np.testing.assert_array_equal(found["exceeded"], np.where(low, bound > observed, observed > bound))
    assert not np.any(found["violated"] & ~found["exceeded"])
    proved = [name != "fixed" for name in BOUNDS]
    assert not found["violated"][:, proved].any()
    # Short filters: some of the bounds speak, some do not.
    assert 0.1 < found["finite"][:, list(BOUNDS).index("theorem_3_3")].mean() < 0.9


@pytest.mark.slow
def test_a_wrong_bound_is_seen(small_draws):
    """Bounds a tenth as large, and the lower one of eq. (7) raised, are violated within a few draws."""
    low = np.array([name == "b1_gram_low" for name in BOUNDS])
    wrong = np.where(low, small_draws["bound"] + 0.3, small_draws["bound"] / 10)
    slack = bounds_draws.rounding(2, BANK.M * BANK.ell, np.float32)
    found = jax.vmap(bounds_draws.verdicts, in_axes=(0, 0, None))(small_draws["observed"], wrong, slack)
    rates = dict(zip(BOUNDS, np.asarray(found["violated"]).mean(axis=0), strict=True))
    assert min(rates[name] for name in ("b1_analysis", "b1_gram_high", "b1_gram_low", "b2")) > 0.1
    assert min(rates[name] for name in ("b3", "b4", "theorem_3_3_refined", "fixed")) > 0
    # What the rounding of float32 hides is far less than that.
    assert slack < 2e-4 * BANK.M * BANK.ell / 48


def test_fewer_channels_are_a_layer_of_fewer_channels():
    op, steps = jax.jit(jax.vmap(BANK.draw))(jax.random.split(jax.random.key(0), 400))
    for bank, step in zip(np.asarray(op.filters), np.asarray(steps), strict=True):
        used = BANK.channels[step]
        assert np.all(bank[:, used:] == 0)
        assert np.all(bank[:, :used] != 0)
    assert np.bincount(steps).min() > 133 - 5 * math.sqrt(400 * 2 / 9)
    energy = np.square(np.asarray(op.filters)).sum(axis=(2, 3)).mean()
    assert abs(energy - 1) < 5 * math.sqrt(2 / (2 * 6) / 1600)


def test_delta_1_follows_its_law():
    """The largest deviation of K chi-squares of M l degrees, in every row of channels, by the engine."""
    draw = ConstantsDraw(dataclasses.replace(BANK, dtype="float32"), (1,))
    histogram = mc.Histogram(0.0, 1.0, bounds_calibration.DELTA_BINS)
    result = mc.run(draw, 0, 6000, statistics={"delta_k": histogram}, chunk_size=2048, lanes=256, progress=False)
    beyond = bounds_calibration.exceedances(result, "delta_k")[:, 0]
    draws = np.asarray(result["delta_k"]["count"])
    assert draws.sum() == 6000
    delta = bounds_calibration.deltas()
    for row, m in enumerate(BANK.channels):
        degrees = m * BANK.ell
        single = stats.chi2.sf(degrees * (1 + delta), degrees) + stats.chi2.cdf(degrees * (1 - delta), degrees)
        exact = -np.expm1(BANK.K * np.log1p(-np.minimum(single, 1 - 1e-12)))
        count = draws[row, 0]
        error = np.sqrt(exact * (1 - exact) / count) + 1 / count
        assert np.all(np.abs(beyond[row] / count - exact) < 5 * error)
        assert exact[5] > 0.5 > exact[-1] or row == 2


def test_looseness_and_violations_of_probabilities():
    failures, draws = np.array([100, 50, 5, 900]), np.array([1000])
    bound = np.array([0.2, 0.025, 1e-9, 2.0])
    found = bounds_calibration.looseness(bound, failures, draws)
    # The third has too few failures to tell, the last says nothing.
    assert found == {"median": pytest.approx(1.25), "least": 0.5, "cells": 3, "speaks": 2}
    assert bounds_calibration.cells_violated(bound, failures, draws) == 2
    assert math.isnan(bounds_calibration.looseness(np.array([2.0]), np.array([50]), draws)["median"])


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds") / "study"
    return reproduce_study(GILBERT_BOUNDS, SMALL, StudyOptions(out=folder, quiet=True))


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.slow
def test_the_study_on_disk(outcome):
    report = strict(outcome.folder / "report.json")
    found = report["findings"]
    for name, entry in found["bounds"].items():
        assert entry["draws"] == 600
        if name != "fixed":
            assert entry["violated"] == 0, name
            assert entry["loose_least"] is None or entry["loose_least"] > 1 - 1e-3
    assert found["bounds"]["theorem_3_3"]["finite"] > 0.3
    assert found["channels"] == [8, 4, 2]
    theorem = found["theorem_3_1"]
    assert theorem["explicit"]["cells_violated"] == found["equation_4"]["cells_violated"] == 0
    for version in ("ijcai", "arxiv"):
        entry = theorem[version]
        assert entry["low"] < entry["C"] < entry["high"] < theorem["proved"]
        assert entry["C"] == max(part["C"] for name, part in entry["parts"].items() if name.startswith("k = "))
        assert entry["looseness"]["least"] == pytest.approx(1.0, rel=1e-3)
    # At k = 1 both texts say the same.
    assert theorem["ijcai"]["parts"]["k = 1"] == theorem["arxiv"]["parts"]["k = 1"]
    assert theorem["ijcai"]["parts"]["k = 2"]["C"] > theorem["arxiv"]["parts"]["k = 2"]["C"]
    with xr.open_dataset(outcome.folder / "result.nc", engine="h5netcdf") as dataset:
        assert dataset["observed"].shape == (600, len(BOUNDS))
        assert dataset["failures"].shape == (1, 3, 2, bounds_calibration.DELTA_BINS - 1)
        assert int(dataset["banks"].sum()) == 1000
    for kind in ("png", "svg"):
        assert (outcome.folder / f"gilbert-bounds.{kind}").stat().st_size > 10_000


@pytest.mark.slow
def test_the_tables_and_a_finished_folder(outcome):
    titles = [table.title for table in outcome.tables]
    assert titles[0] == "Lemmas B.1 to B.4 and Thm 3.3 with exact constants"
    assert len(titles) == 4  # Fig. 2's size was left out
    for table in outcome.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    again = reproduce_study(GILBERT_BOUNDS, SMALL, StudyOptions(out=outcome.folder, quiet=True))
    assert again.tables == outcome.tables


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 5}, "--k of at most 4"),
        ({"calibration_k": (1, 9)}, "--calibration-k of at most 6"),
        ({"calibration_k": ()}, "at least one value of --calibration-k"),
        ({"halvings": 7}, "--halvings from 0 to 6"),
        ({"num_draws": 0}, "--num-draws"),
        ({"D": 33, "stride": 3}, "integer n"),
        ({"starts": -1}, "--starts"),
    ],
    ids=["k", "calibration_k", "no_k", "halvings", "num_draws", "stride", "starts"],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        checked_draw(dataclasses.replace(BoundsParameters(), **changes), "float32")


@pytest.mark.slow
def test_certain_of_the_size_of_fig_2(tmp_path):
    """delta_10 > 1 there: Thm 3.3 says nothing."""
    small = dataclasses.replace(SMALL, starts=64, num_draws=100, calibration_draws=100)
    outcome = reproduce_study(GILBERT_BOUNDS, small, StudyOptions(out=tmp_path / "study", quiet=True))
    found = outcome.report["findings"]["paper_size"]
    assert 1 < found["lower"] < found["upper"]
    assert outcome.tables[-1].rows[1][1] == "infinite"


@pytest.mark.slow
def test_no_violation_in_float64():
    """20,000 draws of the default sizes, without any tolerance."""
    if not jax.config.jax_enable_x64:
        pytest.skip("needs 64-bit types")
    draw = checked_draw(BoundsParameters(), "float64")
    result = mc.run(draw, 1, 20_000, chunk_size=2048, lanes=256, progress=False)
    proved = np.array([name != "fixed" for name in BOUNDS])
    assert result["exceeded"]["successes"][proved].sum() == 0
    assert result["informative_violated"]["successes"][~proved] > 1000
    assert jnp.all(result["looseness"]["min"][proved] >= 0)
