"""Shares of non-zeros: counted as NumPy counts them, resumed, and set beside the printed numbers."""

import json

import numpy as np
import pytest
from PIL import Image

from cnninv_jax import data
from cnninv_jax.experiments import sparsity_tables
from cnninv_jax.experiments.network_pass import activations
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def weights(tmp_path):
    rng = np.random.default_rng(1)
    np.savez(
        tmp_path / "w.npz",
        conv1_1_W=rng.standard_normal((3, 3, 3, 64)).astype(np.float32),
        conv1_2_W=rng.standard_normal((3, 3, 64, 64)).astype(np.float32),
        conv1_2_b=rng.standard_normal(64).astype(np.float32),
    )
    return tmp_path / "w.npz"


def study(parameters, tmp_path, name="out"):
    return reproduce_study(sparsity_tables.TABLE2, parameters, StudyOptions(out=tmp_path / name, quiet=True))


def test_shares_are_counted(folder, weights, tmp_path):
    parameters = sparsity_tables.SparsityParameters(weights=str(weights), pictures=str(folder), size=16)
    outcome = study(parameters, tmp_path)
    network = data.load_network(weights)
    wanted = {"conv1_1": [], "conv1_2": [], "pool1": []}
    for image in data.load_pictures(folder, size=16).images:
        for output, value in activations(network, image).items():
            wanted[output].append(100 * np.mean(np.maximum(np.asarray(value), 0) != 0))
    found = outcome.report["findings"]["outputs"]
    assert list(found) == list(wanted)
    for output, values in wanted.items():
        np.testing.assert_allclose(found[output]["mean"], np.mean(values), rtol=1e-5)
        np.testing.assert_allclose(found[output]["standard_deviation"], np.std(values, ddof=1), rtol=1e-3)
        half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)  # Student, 2 degrees of freedom
        np.testing.assert_allclose(found[output]["high"] - found[output]["mean"], half, rtol=1e-3)
    assert found["pool1"]["printed"] == 80.8
    table = outcome.tables[0]
    assert len(table.rows) == 18
    assert table.rows[3] == ("conv2_1", "not at hand", "-", "67.4", "-")
    assert any("no biases for conv1_1" in note for note in table.notes)
    assert (tmp_path / "out" / "result.nc").is_file()


def test_a_count_goes_on(folder, weights, tmp_path):
    parameters = sparsity_tables.SparsityParameters(weights=str(weights), pictures=str(folder), size=16)
    whole = study(parameters, tmp_path).report["findings"]
    counted = tmp_path / "out" / "counted.json"
    content = json.loads(counted.read_text())
    # The first picture as if it had been counted otherwise: what is kept is believed, the others are counted.
    content["rows"] = [[0.5, 0.25, 0.125]]
    counted.write_text(json.dumps(content))
    (tmp_path / "out" / "report.json").unlink()
    again = study(parameters, tmp_path).report["findings"]
    rows = json.loads(counted.read_text())["rows"]
    assert len(rows) == 3
    assert rows[0] == [0.5, 0.25, 0.125]
    assert again["outputs"] != whole["outputs"]
    # Of other weights nothing is believed.
    np.savez(weights, **(dict(np.load(weights)) | {"conv1_2_b": np.ones(64, np.float32)}))
    network, files = data.load_network(weights), data.picture_files(folder)
    fresh = sparsity_tables.count_shares(network, files, 16, StudyOptions(quiet=True), tmp_path / "out")
    assert fresh[0].tolist() != [0.5, 0.25, 0.125]


def test_random_network_is_called_random(folder, tmp_path, monkeypatch):
    layers = (data.ConvSpec("conv1", (8, 3, 3, 3), pool=data.Pool("pool1", (2, 2), (2, 2))),)
    small = data.Architecture("alexnet-caffe", "a small net", layers, "caffe", 12)
    monkeypatch.setitem(data.ARCHITECTURES, "alexnet-caffe", small)
    parameters = sparsity_tables.AlexNetSparsityParameters(pictures=str(folder), limit=1)
    options = StudyOptions(out=tmp_path / "out", quiet=True)
    outcome = reproduce_study(sparsity_tables.TABLE7, parameters, options)
    found = outcome.report["findings"]
    assert (found["random"], found["num_pictures"], found["size"]) == (True, 1, 12)
    assert list(found["missing"]) == ["conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
    table = outcome.tables[0]
    assert table.columns[1] == "random filters"
    assert table.rows[0][2] == "-"  # one picture has no deviation
    assert any("not trained ones" in note for note in table.notes)


def test_refusals(folder, tmp_path):
    with pytest.raises(ValueError, match="--limit"):
        study(sparsity_tables.SparsityParameters(limit=0), tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        study(sparsity_tables.SparsityParameters(pictures=str(tmp_path / "nowhere")), tmp_path, "b")
