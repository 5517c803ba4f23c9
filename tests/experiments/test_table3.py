"""Table 3 of Gilbert et al. 2017: every reading of W^T M(W f, k) against dense NumPy, and the study around it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import xarray as xr

from cnninv_jax import filters
from cnninv_jax.experiments import table3_errors, table3_tables
from cnninv_jax.experiments.layer_inputs import TABLE_2, bring_network
from cnninv_jax.experiments.network_pass import activations
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.experiments.table3 import TABLE3, Table3Parameters
from cnninv_jax.experiments.table3_figure import table3_figure
from cnninv_jax.experiments.table3_tables import PAPER, fits, printed

needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compares at float64")
RNG = np.random.default_rng(11)
BANK = RNG.standard_normal((4, 2, 3, 3))
F = np.maximum(RNG.standard_normal((2, 5, 5)), 0.0)


def by_hand(share, pool):
    """All readings by dense W and loops over the blocks."""
    dense = oracles.dense_matrix(BANK, (5, 5), (1, 1), "same")
    h = (dense @ F.ravel()).reshape(4, 5, 5)
    regions = len(oracles.blocks(h.shape, (pool, pool)))
    counts = {"entries": min(round(share * h.size), regions), "regions": round(share * regions)}
    norm = np.linalg.norm
    found = {}
    for projection in ("magnitude", "relu"):
        for count, k in counts.items():
            code = oracles.project(h, k, pool=(pool, pool), nonnegative=projection == "relu")
            estimate = (dense.T @ code.ravel()).reshape(F.shape)
            positive = np.maximum(estimate, 0)
            for scaling, value in (
                ("scaled", estimate / norm(estimate) * norm(F)),
                ("unscaled", estimate),
                ("rectified", positive / norm(positive) * norm(F)),
            ):
                found[f"{projection}.{count}.{scaling}"] = norm(F - value) / norm(F)
    return found


@needs_x64
@pytest.mark.parametrize("share", [0.15, 0.6], ids=["few", "capped"])
def test_every_reading_by_hand(share):
    found = table3_errors.reconstruction_errors(jnp.asarray(F), jnp.asarray(BANK), share=share, pool=2)
    expected = by_hand(share, 2)
    assert set(found) == set(expected) == set(table3_errors.READINGS)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)


def test_only_unscaled_errors_know_the_filters_scale():
    f, bank = jnp.asarray(F, jnp.float32), jnp.asarray(BANK, jnp.float32)
    first = table3_errors.reconstruction_errors(f, bank, share=0.15, pool=2)
    second = table3_errors.reconstruction_errors(f, 4.0 * bank, share=0.15, pool=2)
    for name in table3_errors.READINGS:
        same = np.allclose(first[name], second[name], rtol=1e-5)
        assert same == (not name.endswith("unscaled")), name


@pytest.mark.parametrize(
    ("shape", "share", "expected"),
    [((128, 112, 112), 0.674, (401408, 270549)), ((512, 14, 14), 0.239, (23984, 5996)), ((2, 3, 3), 0.01, (1, 1))],
    ids=["conv2_1", "conv5_1", "tiny"],
)
def test_k_in_both_readings(shape, share, expected):
    assert table3_errors.sizes(shape, share, 2) == expected


def test_random_activations_err_by_root_two():
    f = jnp.asarray(F, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 4000)
    squares = np.asarray(jax.vmap(lambda key: table3_errors.random_activation_error(key, f))(keys), float) ** 2
    # |f - g|^2 / |f|^2 = 2 - 2 cos, and cos is symmetric around 0 with variance 1 / 50.
    assert abs(squares.mean() - 2.0) < 5 * squares.std() / np.sqrt(len(squares))
    np.testing.assert_allclose(squares.var(), 4 / F.size, rtol=0.15)


def test_fits_prefer_layers_of_learned_filters():
    def layer(origin, mean):
        return {"origin": origin, "errors": {"random": {name: {"mean": mean} for name in table3_errors.READINGS}}}

    layers = {"1": layer("learned", 0.9), "2": layer("random", 5.0)}
    found = fits({"layers": layers})
    assert set(found) == {"random"}
    assert found["random"][table3_errors.MAIN] == pytest.approx(0.9 - 0.872)
    found = fits({"layers": {"2": layer("random", 5.0)}})
    assert found["random"][table3_errors.MAIN] == pytest.approx(5.0 - 0.926)


def test_the_papers_numbers():
    assert printed(4, "learned as given") == printed(4, "learned") == 1.051
    assert all(PAPER[layer]["activations"] == 1.414 for layer in (1, 2, 3, 4))
    # 4.5: random filters are the best quantitatively.
    assert all(PAPER[layer]["random"] < PAPER[layer]["learned"] < PAPER[layer]["activations"] for layer in PAPER)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 5)}, r"--layers out of 1, 2, 3, 4 \(pool1 to pool4\), got 1 5"),
        ({"layers": ()}, "--layers"),
        ({"num_pictures": 1}, "at least 2 pictures for an interval, got 1"),
        ({"picture_size": 8, "layers": (4,)}, "--picture-size 8: expected a picture large enough for conv4_"),
        ({"pool": 0}, "--pool"),
    ],
    ids=["layer 5", "no layers", "one picture", "small pictures", "pool"],
)
def test_impossible_parameters(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reproduce_study(TABLE3, Table3Parameters(**changes), StudyOptions(out=tmp_path / "out", quiet=True))
    assert not (tmp_path / "out").exists()


SIZES = {"num_pictures": 2, "picture_size": 16}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table3")
    rng = np.random.default_rng(1)
    shapes = {"conv1_1": (3, 3, 3, 64), "conv1_2": (3, 3, 64, 64), "conv2_1": (3, 3, 64, 128)}
    weights = str(folder / "w.npz")
    np.savez(weights, **{f"{name}_W": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    parameters = Table3Parameters(weights=weights, layers=(1, 2), **SIZES)
    return parameters, reproduce_study(TABLE3, parameters, StudyOptions(out=folder / "out", quiet=True))


@pytest.mark.slow
def test_the_study_measures_the_networks_activations(outcome):
    from cnninv_jax import data

    parameters, found = outcome
    layers = found.report["findings"]["layers"]
    assert [layers[i]["origin"] for i in "12"] == ["learned", "learned to conv2_1, random above"]
    assert set(layers["1"]["errors"]) == {"learned", "learned as given", "random", "activations"}
    assert set(layers["2"]["errors"]) == {"random", "activations"}
    assert layers["1"]["k"] == {"entries": 128 * 16, "regions": round(0.674 * 128 * 16)}

    network = bring_network(parameters.weights, "conv2_1", jax.random.key(9), jnp.float32).network
    pictures = data.load_pictures(size=16, limit=2)
    bank = filters.normalize(jnp.asarray(network.layer("conv2_1").filters))
    errors = [
        table3_errors.reconstruction_errors(
            activations(network, jnp.asarray(image))["pool1"], bank, share=TABLE_2["conv2_1"], pool=2
        )[table3_errors.MAIN]
        for image in pictures.images
    ]
    with xr.open_dataset(found.folder / "result.nc", engine="h5netcdf") as dataset:
        held = dataset["error"].sel(layer=1, filters="learned", reading=table3_errors.MAIN)
        np.testing.assert_allclose(held, np.asarray(errors), rtol=1e-5)
        assert np.isnan(dataset["error"].sel(layer=2, filters="learned")).all()
        random = dataset["error"].sel(layer=1, filters="random", reading=table3_errors.MAIN)
        assert float(random.std()) > 0
    assert layers["1"]["errors"]["learned"][table3_errors.MAIN]["mean"] == pytest.approx(float(np.mean(errors)), 1e-5)


@pytest.mark.slow
def test_tables_say_what_is_not_the_papers(outcome):
    _, found = outcome
    paper, readings = found.tables
    verdicts = {(row[0][0], row[2]): row[-1] for row in paper.rows}
    assert verdicts["2", table3_tables.LABELS["random"]] == "-"
    assert verdicts["2", table3_tables.LABELS["activations"]] == "agrees"
    assert any("image space need a trained decoding network" in note for note in paper.notes)
    assert any("region in layer 1, 2" in note for note in paper.notes)
    assert len(readings.rows) == len(table3_errors.READINGS) + 1
    assert all(len(row) == len(table.columns) for table in found.tables for row in table.rows)


@pytest.mark.slow
def test_the_figure_is_drawn_from_the_report(outcome):
    _, found = outcome
    report = json.loads((found.folder / "report.json").read_text(encoding="utf-8"))
    left, right = table3_figure(report).axes
    assert [text.get_text().split(":")[0] for text in left.get_xticklabels()] == ["1", "2"]
    assert len(right.get_yticks()) == len(table3_errors.READINGS)
    mean = report["findings"]["layers"]["2"]["errors"]["random"][table3_errors.MAIN]["mean"]
    drawn = np.concatenate([line.get_ydata() for line in left.get_lines()])
    assert np.any(np.isclose(drawn.astype(float), mean))
