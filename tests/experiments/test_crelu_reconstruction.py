"""The study of reconstruction from CReLU features: its ways against the dense formula, its rows, its refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import xarray as xr

from cnninv_jax import data
from cnninv_jax.crelu.layers import invert
from cnninv_jax.experiments import crelu_reconstruction_draws as draws
from cnninv_jax.experiments.crelu_networks import Geometry, build, random_layers
from cnninv_jax.experiments.crelu_reconstruction import CRELU_RECONSTRUCTION, ReconstructionParameters
from cnninv_jax.experiments.crelu_reconstruction_tables import summary
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compares at float64")
KIND = "float64" if jax.config.jax_enable_x64 else "float32"
SIDE = 6
GEOMETRY = (Geometry("a", 10, (2, 2), (1, 1)), Geometry("b", 8, (3, 3), (1, 1)))
TIGHT = draws.Limits(1e-12, 1e-12, 2000, 20, 200, 1e-9)
SMALL = ReconstructionParameters(size=12, num_networks=2, depths=(2, 1), max_steps=40, limit=2, show=1, joint_rounds=3)


def network(pooled=()):
    banks = random_layers(jax.random.key(1), GEOMETRY, 3, KIND)
    layers = build([(bank, None) for bank in banks], GEOMETRY, SIDE, pooled)
    x = jax.random.normal(jax.random.key(2), (3, SIDE, SIDE), KIND)
    return layers, draws.passed_through(layers, x)


def dense(layer):
    return oracles.dense_matrix(np.asarray(layer.op.filters), (SIDE, SIDE), (1, 1), "same")


@pytest.mark.slow
@needs_x64
def test_two_layers_by_the_dense_formula():
    layers, passed = network()
    first, second = (dense(layer) for layer in layers)
    f1 = np.linalg.pinv(second) @ (second @ np.asarray(passed.features[0]).ravel())
    f1 = f1.reshape(20, SIDE, SIDE)
    p, q = np.maximum(f1[:10], 0), np.maximum(f1[10:], 0)
    both = {"linear": f1[:10] - f1[10:], "nearest": np.where(p >= q, p, -q)}
    found = draws.inverted(layers, passed, 2, TIGHT)
    for way, responses in (*both.items(), ("early", both["linear"])):
        expected = np.linalg.pinv(first) @ responses.ravel()
        np.testing.assert_allclose(np.ravel(found[way][0]), expected, atol=1e-9, err_msg=way)
        error = np.linalg.norm(expected - np.ravel(passed.x)) / np.linalg.norm(passed.x)
        np.testing.assert_allclose(found[way][1][0, 0], error, atol=1e-9)
    # 288 responses for 108 unknowns: what layer by layer is lost comes back, and the numbers say how.
    signal, ((error, misfit, _, status),) = found["joint"]
    np.testing.assert_allclose(signal, passed.x, atol=1e-6)
    assert status == 0
    assert max(error, misfit) < 1e-6


@needs_x64
@pytest.mark.slow
def test_pooled_layers_as_invert_does():
    layers, passed = network((2,))
    found = draws.inverted(layers, passed, 2, TIGHT)
    for way, feasible in (("linear", "none"), ("nearest", "nearest"), ("early", "none")):
        expected = invert(
            layers, passed.features[-1], passed.switches, tol=1e-12, max_steps=2000, feasible=feasible,
            truth=passed.signals,
        )  # fmt: skip
        np.testing.assert_allclose(found[way][0], expected.signals[0], atol=1e-8, err_msg=way)
        # Of the features below the top, errors here are those before they are replaced by the nearest.
        np.testing.assert_allclose(found[way][1][0, 0], expected.errors[0], atol=1e-8)


def test_a_loose_tolerance_stops_below_the_top_only():
    layers, passed = network()
    found = draws.inverted(layers, passed, 2, draws.Limits(1e-5, 0.5, 2000))
    column = draws.SOLVES.index("residual")
    assert found["early"][1][1, column] <= 1e-5 < found["early"][1][0, column] <= 0.5
    assert draws.SOLVES.index("status") == 3
    np.testing.assert_array_equal(found["early"][1][:, 3], 0)


def test_equations_are_windows_that_fire():
    layers, passed = network((2,))
    assert draws.equations(layers[0], None) == 10 * SIDE * SIDE
    # 3 x 3 windows of 8 filters, in both phases; a window fires if it has a response of that sign.
    features = np.asarray(passed.features[1])
    assert draws.equations(layers[1], passed.switches[1]) == int((features > 0).sum()) <= 2 * 8 * 9


def test_rows_hold_what_was_found():
    rng = np.random.default_rng(0)
    found = {
        way: draws.Reconstruction(
            rng.random(len(draws.MEASURES)), rng.random((1 if way == "joint" else 2, len(draws.SOLVES))),
            rng.integers(0, 256, (3, 4, 4)).astype(np.uint8),
        )
        for way in draws.WAYS
    }  # fmt: skip
    for keep in (True, False):
        held = draws.from_row(json.loads(json.dumps(draws.as_row(found, keep=keep))), 2, 4, joint=True)
        assert list(held) == list(draws.WAYS)
        for way, one in held.items():
            np.testing.assert_array_equal(one.measures, found[way].measures)
            np.testing.assert_array_equal(one.solves, found[way].solves)
            assert one.shown.shape == ((3, 4, 4) if keep else (3, 0, 0))
            if keep:
                np.testing.assert_array_equal(one.shown, found[way].shown)


def test_intervals_are_over_networks_or_pictures():
    values = np.array([[1.0, 3.0], [2.0, 6.0]])
    found = summary(values)
    assert (found["mean"], found["over"]) == (3.0, "networks")
    # Student's t with 1 degree of freedom: 12.706 standard errors of the means 2 and 4.
    np.testing.assert_allclose([found["low"], found["high"]], [3 - 12.7062, 3 + 12.7062], rtol=1e-5)
    assert summary(values[:1])["over"] == "pictures"
    assert np.isnan(summary(values[:1, :1])["low"])


@pytest.mark.slow
def test_the_study_goes_on_and_shows_what_it_counted(tmp_path):
    options = StudyOptions(out=tmp_path / "out", quiet=True)
    outcome = reproduce_study(CRELU_RECONSTRUCTION, SMALL, options)
    cells = {(tuple(cell["pooled"]), cell["depth"]): cell for cell in outcome.report["findings"]["cells"]}
    assert set(cells) == {((), 1), ((), 2), ((2,), 2)}
    # 64 filters of 27 numbers give a picture back, whatever is drawn.
    one = cells[(), 1]["ways"]["linear"]
    assert max(max(row) for row in one["error"]["values"]) < 1e-2
    # What max-pooling leaves out is not there to be had.
    errors = [cells[pooled, 2]["ways"]["linear"]["layers"][1]["error"] for pooled in ((), (2,))]
    assert errors[1]["low"] > errors[0]["mean"]
    with xr.open_dataset(tmp_path / "out" / "result.nc", engine="h5netcdf") as dataset:
        assert dataset["reconstruction"].shape == (8, 2, 1, 3, 12, 12)
        np.testing.assert_allclose(
            dataset["reconstruction"][0, 0, 0].to_numpy().astype(float), dataset["original"][0].to_numpy(), atol=3
        )
    rows = json.loads((tmp_path / "out" / "reconstructions.json").read_text())
    # Killed after the first rows: the same numbers again, and the report of another folder has them too.
    kept = {name: values[:1] for name, values in rows["rows"].items()}
    again = tmp_path / "again"
    again.mkdir()
    (again / "reconstructions.json").write_text(json.dumps({**rows, "rows": kept}))
    second = reproduce_study(CRELU_RECONSTRUCTION, SMALL, dataclasses.replace(options, out=again))
    assert second.report["findings"] == outcome.report["findings"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": ()}, "at least one value of --depths"),
        ({"depths": (1, 1)}, "different values of --depths"),
        ({"depths": (1, 14)}, "--depths of at most 13"),
        ({"size": 8}, "--size of at least 11"),
        ({"tol": 0.0}, "--tol between 0 and 1"),
        ({"tol_below": 2.0}, "--tol-below between 0 and 1"),
        ({"joint_rounds": -1}, "--joint-rounds"),
        ({"joint_tol": 1.0}, "--joint-tol between 0 and 1"),
        ({"num_networks": 0}, "--num-networks"),
        ({"strides": (1,)}, "--strides beside --weights"),
        ({"pool_after": (3,)}, "--pool-after of at most 2"),
        ({"pool": "yes", "depths": (1,)}, "--pool-after with --pool yes"),
        ({"pictures": "nowhere-at-all"}, "there is no folder"),
        ({"weights": "nothing.npz"}, "nothing.npz"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, changes, words):
    with pytest.raises((ValueError, data.FilterFileError), match=words):
        reproduce_study(
            CRELU_RECONSTRUCTION, dataclasses.replace(SMALL, **changes), StudyOptions(out=tmp_path / "out", quiet=True)
        )
    assert not (tmp_path / "out" / "report.json").exists()


def test_the_best_scale_is_the_sine_of_an_angle():
    x, y = jnp.array([3.0, 4.0]), jnp.array([2.0, 0.0])
    np.testing.assert_allclose(draws._scaled_error(x, y), 0.8, rtol=1e-6)
    np.testing.assert_allclose(draws._scaled_error(x, 0 * y), 1.0, rtol=1e-6)
