"""Fig. 3 of Gilbert et al. 2017 against dense matrices, closed forms and a plain proximal gradient in NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import xarray as xr

from cnninv_jax import data
from cnninv_jax.experiments import fig3_draws, fig3_tables
from cnninv_jax.experiments.fig3 import FIG3, Fig3Parameters, _check
from cnninv_jax.experiments.fig3_figure import fig3_figure
from cnninv_jax.experiments.fig3_sources import choose
from cnninv_jax.experiments.layer_inputs import TABLE_2, bring_network, capped_size, input_name, inputs_before_relu
from cnninv_jax.experiments.network_pass import activations
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compares at float64")
RNG = np.random.default_rng(7)
BANK = RNG.standard_normal((3, 2, 3, 3)) * np.array([1.0, 0.2, 2.0])[:, None, None, None]
SIZE = 5


def vgg_file(path, *layers):
    rng = np.random.default_rng(1)
    shapes = {"conv1_1": (3, 3, 3, 64), "conv1_2": (3, 3, 64, 64), "conv2_1": (3, 3, 64, 128)}
    np.savez(path, **{f"{name}_W": rng.standard_normal(shapes[name]).astype(np.float32) for name in layers})
    return str(path)


@needs_x64
@pytest.mark.parametrize("length", [(3, 3), (2, 2)], ids=["3x3", "2x2"])
def test_ratios_against_dense_matrices(length):
    bank = RNG.standard_normal((3, 2, *length))
    z = RNG.standard_normal((3, SIZE, SIZE))
    found = fig3_draws.ratios_of(fig3_draws.layer(jnp.asarray(bank), SIZE), jnp.asarray(z))
    sizes = {"cut": (SIZE, SIZE), "uncut": tuple(SIZE + ell - 1 for ell in length)}
    for name, padding in (("cut", "same"), ("uncut", "valid")):
        dense = oracles.dense_matrix(bank, sizes[name], (1, 1), padding)
        expected = np.linalg.norm(dense.T @ z.ravel()) / np.linalg.norm(z)
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("pool", [2, 3])
def test_expected_square_enumerates_the_codes(size, pool):
    columns = oracles.dense_matrix(BANK, (size, size), (1, 1), "same")
    squares = np.sum(columns**2, axis=1).reshape(3, size, size)
    # One entry in a uniformly chosen block, uniform in it.
    each = [np.mean([squares[entry] for entry in block]) for block in oracles.blocks(squares.shape, (pool, pool))]
    np.testing.assert_allclose(fig3_draws.expected_square(BANK, size, pool), np.mean(each), rtol=1e-12)


def test_isotropic_filters_at_the_papers_size_lose_a_sixteenth():
    # Per axis a tap leaves the map at the first shift (chance 1/16) or the last (1/8: its region has one shift).
    even = np.full((4, 2, 3, 3), 1 / np.sqrt(18))
    np.testing.assert_allclose(fig3_draws.expected_square(even, 15, 2), (1 - (1 / 16 + 1 / 8) / 3) ** 2, rtol=1e-12)


@needs_x64
def test_synthetic_ratios_have_their_expected_square():
    op = fig3_draws.layer(jnp.asarray(BANK / np.sqrt(np.sum(BANK**2, axis=(1, 2, 3), keepdims=True))), SIZE)
    draw = jax.vmap(lambda key: fig3_draws.synthetic(key, op=op, k=12, pool=2, values="uniform"))
    found = jax.jit(draw)(jax.random.split(jax.random.key(3), 4000))
    for name, expected in (("cut", fig3_draws.expected_square(op.filters, SIZE, 2)), ("uncut", 1.0)):
        squares = np.asarray(found[name]) ** 2
        assert abs(squares.mean() - expected) < 5 * squares.std() / np.sqrt(len(squares)), name


def test_pieces_are_cut_everywhere_and_nowhere_else():
    maps = jnp.arange(2 * 1 * 4 * 5, dtype=jnp.float32).reshape(2, 1, 4, 5)
    pieces = np.asarray(jax.vmap(lambda key: fig3_draws.crop(key, maps, 3))(jax.random.split(jax.random.key(0), 400)))
    places = {
        (n, i, j): np.asarray(maps)[n, :, i : i + 3, j : j + 3] for n in range(2) for i in range(2) for j in range(3)
    }
    counts = {place: sum(np.array_equal(piece, part) for piece in pieces) for place, part in places.items()}
    assert sum(counts.values()) == 400
    # 12 places, 400 pieces: 5 standard errors below the mean of 33.3.
    assert min(counts.values()) > 33.3 - 5 * np.sqrt(33.3)


def lasso_by_hand(dense, x, lam, mask):
    """Minimise |x - W^T z|^2 + lam |z|_1 on a mask by plain proximal gradient."""
    step = 1 / (2 * np.linalg.norm(dense, 2) ** 2)
    z = np.zeros(len(dense))
    for _ in range(20000):
        moved = z - step * 2 * dense @ (dense.T @ z - x)
        z = mask * np.sign(moved) * np.maximum(np.abs(moved) - step * lam, 0)
    return z


@pytest.mark.slow
@needs_x64
def test_readings_of_recovered_codes():
    x = RNG.standard_normal((2, SIZE, SIZE))
    op = fig3_draws.layer(jnp.asarray(BANK), SIZE)
    found = fig3_draws.readings_of(op, jnp.asarray(x), 0.2, k=6, pool=2, tol=1e-10, max_steps=20000)

    dense = oracles.dense_matrix(BANK, (SIZE, SIZE), (1, 1), "same")
    lam = 0.2 * 2 * np.max(np.abs(dense @ x.ravel()))
    first = lasso_by_hand(dense, x.ravel(), lam, np.ones(len(dense)))
    model = oracles.project(first.reshape(3, SIZE, SIZE), 6, pool=(2, 2))
    z = lasso_by_hand(dense, x.ravel(), lam, model.ravel() != 0)
    norm = np.linalg.norm
    expected = {
        "cut": norm(dense.T @ z) / norm(z),
        "error": norm(x.ravel() - dense.T @ z) / norm(x),
        "density": np.mean(z != 0),
        "l1_error": norm(x.ravel() - dense.T @ first) / norm(x),
        "l1_density": np.mean(first != 0),
        "converged": 1.0,
    }
    assert 0 < np.sum(z != 0) <= 6
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert set(found) == set(fig3_draws.READINGS)
    assert found["gap"] <= 1e-10


@pytest.mark.parametrize(
    ("share", "shape", "expected"),
    [(0.206, (512, 15, 15), (23731, False)), (0.697, (64, 15, 15), (4096, True)), (1e-9, (2, 4, 4), (1, False))],
    ids=["conv5_2", "conv1_2", "tiny"],
)
def test_k_from_table_2(share, shape, expected):
    assert capped_size(share, shape, 2) == expected


def test_inputs_before_the_relu():
    brought = bring_network(None, "conv2_2", jax.random.key(0), jnp.float32)
    images = RNG.random((2, 3, 12, 12)).astype(np.float32)
    pictures = data.Pictures(images, ("a", "b"), "test")
    outputs = [activations(brought.network, jnp.asarray(image)) for image in images]
    for name, below in (("conv2_1", "pool1"), ("conv2_2", "conv2_1")):
        assert input_name(brought.network, name) == below
        found = inputs_before_relu(brought.network, name, pictures, jnp.float32, quiet=True)
        expected = np.stack([np.maximum(np.asarray(output[below]), 0) for output in outputs])
        np.testing.assert_allclose(np.maximum(np.asarray(found), 0), expected, rtol=1e-5, atol=1e-6)
        assert np.min(found) < 0
    with pytest.raises(ValueError, match="expected --layer to be one of conv1_2"):
        inputs_before_relu(brought.network, "conv1_1", pictures, jnp.float32, quiet=True)


def test_a_file_is_continued_with_random_filters(tmp_path):
    brought = bring_network(vgg_file(tmp_path / "w.npz", "conv1_1", "conv1_2"), "conv2_2", jax.random.key(0), "float32")
    assert [layer.name for layer in brought.network.layers] == ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
    assert [brought.origin(name) for name in ("conv1_2", "conv2_1")] == ["learned", "learned to conv1_2, random above"]
    assert any("from conv2_1 on" in note for note in brought.network.notes)
    assert bring_network(None, "conv1_2", jax.random.key(0), "float32").origin("conv1_2") == "random"


def test_which_filters(tmp_path):
    key = jax.random.key(0)
    chosen = choose(None, None, "abc", key, jnp.float32)
    assert (chosen.layer, chosen.shape, chosen.recovered_layer) == ("conv5_2", (512, 512, 3, 3), "conv2_2")
    assert chosen.learned is None

    path = vgg_file(tmp_path / "w.npz", "conv1_1", "conv1_2")
    chosen = choose(path, None, "abc", key, jnp.float32)
    assert (chosen.layer, chosen.shape) == ("conv1_2", (64, 64, 3, 3))
    np.testing.assert_array_equal(chosen.learned, np.load(path)["conv1_2_W"].transpose(3, 2, 0, 1))
    assert "conv1_2" in chosen.network.given

    for file, layer, note in (
        (path, "conv1_1", "first layer"),
        (vgg_file(tmp_path / "gap.npz", "conv1_1", "conv2_1"), "conv2_1", "missing below"),
    ):
        chosen = choose(file, layer, "abc", key, jnp.float32)
        assert chosen.network is None
        assert note in chosen.notes[-1]

    np.save(tmp_path / "bank.npy", BANK)
    chosen = choose(str(tmp_path / "bank.npy"), None, "abc", key, jnp.float32)
    assert (chosen.layer, chosen.network) == ("bank", None)
    with pytest.raises(ValueError, match=r"expected --layer to be one of conv1_2.*got 'conv9'"):
        choose(None, "conv9", "a", key, jnp.float32)
    np.save(tmp_path / "line.npy", BANK[..., 0])
    with pytest.raises(ValueError, match="two spatial axes"):
        choose(str(tmp_path / "line.npy"), None, "abc", key, jnp.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_draws": 1}, "--num-draws of at least 2"),
        ({"pool": 0}, "--pool"),
        ({"sparsity": 1.5}, "--sparsity"),
        ({"lam": 1.0}, "--lam and --other-lams between 0 and 1"),
        ({"other_lams": (0.0,)}, "--lam and --other-lams between 0 and 1"),
        ({"tol": 0.0}, "--tol"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_impossible_parameters(changes, message):
    with pytest.raises(ValueError, match=message):
        _check(Fig3Parameters(**changes))


def test_verdicts():
    assert fig3_tables.verdict({"count": 9, "interval_95": [0.96, 1.04]}) == "agrees"
    assert fig3_tables.verdict({"count": 9, "interval_95": [0.9, 0.94]}) == "differs"
    assert fig3_tables.verdict({"count": 9, "interval_95": [0.94, 0.96]}) == "undecided"
    assert fig3_tables.verdict({"count": 0}) == "undecided"
    found = fig3_tables.describe([0.9, 1.0, 1.04, np.nan])
    assert (found["count"], found["non_finite"], found["near_one"]) == (3, 1, pytest.approx(2 / 3))
    assert fig3_tables.describe([np.nan]) == {"count": 0, "non_finite": 1}


SMALL = {
    "size": 5, "num_draws": 12, "pieces": 3, "num_pictures": 2, "picture_size": 12, "lam": 0.5, "other_lams": (0.3,),
    "max_steps": 200,
}  # fmt: skip


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fig3")
    weights = vgg_file(folder / "w.npz", "conv1_1", "conv1_2")
    parameters = Fig3Parameters(weights=weights, banks=2, **SMALL)
    return parameters, reproduce_study(FIG3, parameters, StudyOptions(out=folder / "out", quiet=True))


@pytest.mark.slow
def test_the_study_tells_what_it_drew(outcome):
    _, found = outcome
    findings = found.report["findings"]
    with xr.open_dataset(found.folder / "result.nc", engine="h5netcdf") as dataset:
        assert list(dataset["bank"].to_numpy()) == ["learned", "random 1", "random 2"]
        assert dataset["synthetic_cut"].shape == (3, 12)
        assert dataset["recovered_cut"].dims == ("filters", "panel", "piece", "fraction")
        assert dataset["recovered_cut"].shape == (2, 2, 3, 2)
        mean = float(dataset["synthetic_uncut"].sel(bank="random 2").mean())
        assert findings["synthetic"]["random 2"]["uncut"]["mean"] == pytest.approx(mean, rel=1e-6)
        held = dataset["recovered_error"].sel(filters="learned", panel="after", fraction=0.3).mean()
        assert findings["recovered"]["learned"]["after"][1]["error"]["mean"] == pytest.approx(float(held), rel=1e-6)
        # The same codes and pieces, other filters.
        assert not np.array_equal(dataset["recovered_cut"][0], dataset["recovered_cut"][1])
    setting = findings["setting"]["recovered"]
    assert (setting["layer"], setting["input"], setting["network"]) == ("conv1_2", "conv1_1", "learned")
    assert setting["k"] == setting["blocks"] == 64 * 9
    assert setting["sparsity"] == TABLE_2["conv1_2"]
    assert [table.title[:3] for table in found.tables] == ["(a)", "(b,"]
    assert len(found.tables[1].rows) == 2 * 2 * 2
    assert all(len(row) == len(table.columns) for table in found.tables for row in table.rows)


@pytest.mark.slow
def test_the_figure_is_drawn_from_the_files(outcome):
    _, found = outcome
    report = json.loads((found.folder / "report.json").read_text(encoding="utf-8"))
    with xr.open_dataset(found.folder / "result.nc", engine="h5netcdf") as dataset:
        figure = fig3_figure(report, dataset)
    assert len(figure.axes) == 6
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    mean = report["findings"]["synthetic"]["learned"]["cut"]["mean"]
    assert any(label.startswith(f"learned filters: {mean:.4f}") for label in labels)
    assert figure.axes[4].get_xscale() == "log"


@pytest.mark.slow
def test_a_finished_folder_is_read_not_computed_again(outcome):
    parameters, found = outcome
    again = reproduce_study(FIG3, parameters, StudyOptions(out=found.folder, quiet=True))
    assert again.report == found.report


@pytest.mark.slow
def test_a_stopped_study_goes_on_from_its_journals(outcome, monkeypatch):
    parameters, found = outcome
    (found.folder / "report.json").unlink()
    # What is in the journals is not drawn again.
    monkeypatch.setattr("cnninv_jax.montecarlo.engine.agree_on_sizes", None)
    again = reproduce_study(FIG3, parameters, StudyOptions(out=found.folder, quiet=True))
    assert again.report["findings"] == found.report["findings"]


@pytest.mark.slow
def test_whole_maps_and_random_networks(tmp_path):
    changed = {**SMALL, "whole_maps": True, "panels": "bc", "layer": "conv2_1", "picture_size": 12}
    found = reproduce_study(FIG3, Fig3Parameters(**changed), StudyOptions(out=tmp_path, quiet=True))
    setting = found.report["findings"]["setting"]["recovered"]
    assert (setting["map"], setting["pieces"], setting["network"]) == ([6, 6], 2, "random")
    assert list(found.report["findings"]["recovered"]) == ["random"]
    assert any("not VGG-16" in note for note in found.tables[0].notes)
    assert found.report["findings"]["synthetic"] == {}
