"""The study of designed dictionaries: what it reports is what it saved, and what it draws is what a pass does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from cnninv_jax import data, dcsc
from cnninv_jax.dcsc.generate import generate
from cnninv_jax.experiments.dcsc_design import DCSC_DESIGN, Cell, DesignParameters, facts_of, limits_of, signal_shape
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.montecarlo import MonteCarloError, ResultError

SMALL = {"num_steps": 60, "S": (2, 4, 6), "supports": 1, "num_draws": 200}


def study(tmp_path, parameters, name="out"):
    options = StudyOptions(out=tmp_path / name, precision="float64", quiet=True)
    return reproduce_study(DCSC_DESIGN, DesignParameters(**parameters), options)


def over_shifts(bank, stride):
    return oracles.coherence(oracles.all_shifts_matrix(np.asarray(bank, np.float64), stride))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Filters of a file, zeros kept."""
    folder = tmp_path_factory.mktemp("design")
    bank = np.random.default_rng(0).normal(size=(4, 3, 5))
    bank[0, 0, 1] = 0
    np.save(folder / "mine.npy", bank)
    found = study(folder, {**SMALL, "start": folder / "mine.npy", "keep_zeros": True})
    return bank, found


@pytest.mark.slow
def test_the_filters_saved_are_those_reported(outcome):
    bank, found = outcome
    findings = found.report["findings"]
    saved = data.load_filters(found.folder / "filters.npz").filters
    assert saved.shape == bank.shape
    np.testing.assert_array_equal(saved == 0, bank == 0)
    for name, filters in (("start", bank), ("designed", saved)):
        np.testing.assert_allclose(findings["banks"][name]["coherence"], over_shifts(filters, (1,)), rtol=1e-9)
    assert findings["welch"] < findings["banks"]["designed"]["coherence"] < findings["banks"]["start"]["coherence"]
    assert findings["origin"] == "mine.npy"
    assert found.tables[0].rows[1][1] == f"{findings['banks']['designed']['coherence']:.5f}"
    # What the uniform bound promises, no draw breaks.
    for cell in findings["cells"]:
        assert cell["S"] == np.mean(cell["reached"]) <= cell["asked"]
        if max(cell["reached"]) <= findings["banks"][cell["bank"]]["uniform"]:
            assert sum(cell["lost"]) == 0
    assert {file.suffix for file in found.files} == {".json", ".nc", ".png", ".svg"}


@pytest.mark.slow
def test_the_failures_are_those_of_the_pass(outcome):
    """One support of one cell again, by dense matrices, sign by sign."""
    bank, found = outcome
    # Where the pass sometimes fails, and sometimes not.
    cell = next(cell for cell in found.report["findings"]["cells"] if 0.05 < cell["rate"] < 0.95)
    used = bank if cell["bank"] == "start" else data.load_filters(found.folder / "filters.npz").filters
    model = dcsc.layers([used], found.report["findings"]["signal"], padding="circular")
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 3), 0)
    code_key, _, _ = jax.random.split(key, 3)
    sample = generate(code_key, model, sparsity=cell["asked"])
    assert cell["reached"] == [int(sample.measured.sparsity[0])]
    code = np.abs(np.asarray(sample.path[-1])).ravel()
    matrix = oracles.dense_matrix(model[0].op.filters, model[0].op.signal_shape, (1,), "circular")
    rng = np.random.default_rng(0)
    lost = 0
    for _ in range(500):
        signs = rng.choice([-1.0, 1.0], size=code.shape)
        kept = np.abs(signs * (matrix @ (matrix.T @ (signs * code)))) > 0.5
        lost += np.any(kept != (code > 0))
    # Two proportions of one probability, at 5 standard errors.
    share = (lost + sum(cell["lost"])) / (500 + cell["draws"])
    error = np.sqrt(share * (1 - share) * (1 / 500 + 1 / cell["draws"]))
    assert abs(lost / 500 - sum(cell["lost"]) / cell["draws"]) < 5 * error


@pytest.mark.slow
def test_a_finished_study_is_read_and_a_broken_one_goes_on(outcome, tmp_path):
    bank, found = outcome
    np.save(tmp_path / "mine.npy", bank)
    parameters = {**SMALL, "start": tmp_path / "mine.npy", "keep_zeros": True}
    first = study(tmp_path, parameters)
    (first.folder / "report.json").unlink()
    filters = (first.folder / "filters.npz").stat().st_mtime_ns
    again = study(tmp_path, parameters)
    assert (first.folder / "filters.npz").stat().st_mtime_ns == filters
    assert json.dumps(again.report["findings"]) == json.dumps(first.report["findings"])
    assert again.report["findings"]["cells"] == found.report["findings"]["cells"]
    with pytest.raises(MonteCarloError, match="another study"):
        study(tmp_path, {**parameters, "num_steps": 61})


@pytest.mark.parametrize("foreign", [b"no archive", None])
def test_filters_of_something_else_are_not_taken_for_designed(tmp_path, foreign):
    file = tmp_path / "out" / "filters.npz"
    file.parent.mkdir()
    if foreign is None:
        np.savez(file, filters=np.ones((32, 16, 8)), history=np.ones(3), design=np.zeros(32, np.uint8))
    else:
        file.write_bytes(foreign)
    held = file.read_bytes()
    with pytest.raises(ResultError, match="choose another --out"):
        study(tmp_path, SMALL)
    assert file.read_bytes() == held


def test_limits_are_of_the_s_reached():
    def cell(asked, reached, lost):
        return Cell("start", asked, reached, lost, 1000, 0.5)

    cells = [cell(4, (4, 3), (0, 0)), cell(8, (6, 5), (0, 0)), cell(16, (10, 9), (1000, 1000))]
    found = limits_of(DesignParameters(), 0.09, cells, "start")
    # The uniform bound holds while S mu < 1/2; half-way between 5.5 and 9.5.
    assert found == {"uniform": 5, "half": 7.5, "safe": 5}


@pytest.mark.slow
def test_correlations_are_counted_over_both_directions():
    """Root mean square and energy by brute force: over all atoms that overlap an atom, in any direction."""
    for shape, stride in (((3, 2, 4), (1,)), ((2, 1, 3, 2), (1, 1)), ((3, 1, 4), (2,))):
        bank = np.random.default_rng(1).normal(size=shape)
        bank /= np.linalg.norm(bank.reshape(shape[0], -1), axis=1).reshape(-1, *[1] * (len(shape) - 1))
        columns = oracles.all_shifts_matrix(bank, stride)
        # An atom in the middle meets all its neighbours.
        size = [2 * ell * step + ell for ell, step in zip(shape[2:], stride, strict=True)]
        fitting = [length - (length - ell) % step for length, ell, step in zip(size, shape[2:], stride, strict=True)]
        shifts = [(length - ell) // step + 1 for length, ell, step in zip(fitting, shape[2:], stride, strict=True)]
        centre = np.ravel_multi_index([n // 2 for n in shifts], shifts)
        energy = 0.0
        for number in range(shape[0]):
            own = number * np.prod(shifts) + centre
            energy += np.sum(np.square(columns.T @ columns[:, own])) - 1
        facts = facts_of(jnp.asarray(bank), stride)
        np.testing.assert_allclose(facts["energy"], energy / shape[0], rtol=1e-9)
        reach = [(ell - 1) // step for ell, step in zip(shape[2:], stride, strict=True)]
        near = shape[0] * np.prod([2 * r + 1 for r in reach]) - 1
        np.testing.assert_allclose(facts["rms"], np.sqrt(energy / shape[0] / near), rtol=1e-9)
        np.testing.assert_allclose(np.sum(facts["density"] * np.diff(facts["edges"])), 1, rtol=1e-9)


def test_signals():
    assert signal_shape(DesignParameters(), (8,)) == (32,)
    assert signal_shape(DesignParameters(stride=3), (5, 3)) == (15, 9)
    assert signal_shape(DesignParameters(D=10, stride=2), (5,)) == (10,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"D": 14}, "--D to be a multiple of --stride 1 and at least 15, .* got 14"),
        ({"D": 17, "stride": 2}, "--D to be a multiple of --stride 2 and at least 16, .* got 17"),
        ({"S": (2, 2)}, "--S to be different"),
        ({"rank": 3}, "--rank 1 or 2"),
        ({"ensemble": "cauchy"}, "--ensemble of gaussian"),
        ({"keep_zeros": True}, "--start with --keep-zeros"),
        ({"layout": "KMl"}, "--start with --tensor"),
        ({"noise": 1.0}, "--noise from 0 to below 1"),
        ({"num_steps": 0}, "--num-steps"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refusals(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        study(tmp_path, {**SMALL, **change})


@pytest.mark.slow
def test_two_dimensions_with_noise_and_a_stride(tmp_path):
    found = study(tmp_path, {**SMALL, "rank": 2, "num_filters": 9, "M": 1, "ell": 4, "stride": 2, "noise": 0.5})
    findings = found.report["findings"]
    saved = data.load_filters(found.folder / "filters.npz").filters
    assert saved.shape == (9, 1, 4, 4)
    np.testing.assert_allclose(findings["banks"]["designed"]["coherence"], over_shifts(saved, (2, 2)), rtol=1e-9)
    assert "Gaussian noise of patch norm 0.25" in found.tables[1].notes[0]
