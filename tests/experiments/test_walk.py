"""A checkpoint walked layer by layer: every number against dense matrices."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cnninv_jax import data
from cnninv_jax.experiments import walk
from cnninv_jax.experiments.files import save_json
from cnninv_jax.experiments.walk import WalkOptions, walk_checkpoint
from cnninv_jax.experiments.walk_figure import walk_figure


def dense(bank, side):
    """Return W of unit-norm filters on [M, side, side] with zeros around: row (i, a, b)."""
    K, M, h, w = bank.shape
    bank = bank / np.linalg.norm(bank.reshape(K, -1), axis=1)[:, None, None, None]
    rows = []
    for i in range(K):
        for a in range(side):
            for b in range(side):
                x = np.zeros((M, side + h - 1, side + w - 1))
                x[:, a : a + h, b : b + w] = bank[i]
                top, left = (h - 1) // 2, (w - 1) // 2
                rows.append(x[:, top : top + side, left : left + side].ravel())
    return np.array(rows)


def shifted(bank):
    """Return the largest |cosine| between any two shifts of any two filters."""
    K, _, h, w = bank.shape
    bank = bank / np.linalg.norm(bank.reshape(K, -1), axis=1)[:, None, None, None]
    padded = np.pad(bank, ((0, 0), (0, 0), (h, h), (w, w)))
    largest = 0.0
    for a in range(2 * h + 1):
        for b in range(2 * w + 1):
            cosines = np.abs(np.einsum("kmij,lmij->kl", padded[:, :, a : a + h, b : b + w], bank))
            largest = max(largest, (cosines - np.eye(K) * ((a, b) == (h, w))).max())
    return largest


@pytest.mark.slow
def test_numbers_of_an_unknown_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((6, 2, 3, 3)).astype(np.float32)
    tensors = {"body.0.weight": bank, "single.weight": bank[:1]}
    save_file(tensors, tmp_path / "net.safetensors")
    network = data.load_network(tmp_path / "net.safetensors")
    options = WalkOptions(signal=5, random_banks=30, random_bounds=2, quiet=True)
    findings = walk_checkpoint(network, None, options, tmp_path)
    body, single = findings.content["layers"]
    assert [layer["layer"] for layer in (body, single)] == ["body.0", "single"]
    flat = bank.reshape(6, -1) / np.linalg.norm(bank.reshape(6, -1), axis=1, keepdims=True)
    np.testing.assert_allclose(body["coherence"], (np.abs(flat @ flat.T) - np.eye(6)).max(), rtol=1e-5)
    np.testing.assert_allclose(body["coherence_all_shifts"], shifted(bank), rtol=1e-5)
    # 32 Lanczos steps in 50 dimensions, from below.
    np.testing.assert_allclose(body["bound"], np.linalg.norm(dense(bank, 5), 2) ** 2, rtol=1e-4)
    random = body["random_coherence"]
    assert random["low"] < random["mean"] < random["high"]
    assert 0 <= random["p_not_larger"] <= 1
    # Of one filter only its own shifts can be compared.
    assert single["coherence"] is None
    np.testing.assert_allclose(single["coherence_all_shifts"], shifted(bank[:1]), rtol=1e-5)
    table = findings.tables[0]
    assert table.rows[1][2] == "-"
    assert any("A dash" in note for note in table.notes)
    save_json({"findings": findings.content}, tmp_path / "report.json")
    figure = walk_figure(json.loads((tmp_path / "report.json").read_text()))
    assert len(figure.axes) == 2


@pytest.mark.slow
def test_one_dimension_and_groups(tmp_path):
    rng = np.random.default_rng(0)
    line = rng.standard_normal((4, 3, 5)).astype(np.float32)
    save_file({"line.weight": line}, tmp_path / "net.safetensors")
    network = data.load_network(tmp_path / "net.safetensors")
    options = WalkOptions(signal=9, random_banks=2, random_bounds=2, quiet=True)
    (found,) = walk_checkpoint(network, None, options, tmp_path / "line").content["layers"]
    flat = line.reshape(4, -1) / np.linalg.norm(line.reshape(4, -1), axis=1, keepdims=True)
    np.testing.assert_allclose(found["coherence"], (np.abs(flat @ flat.T) - np.eye(4)).max(), rtol=1e-5)
    rows = np.zeros((4, 9, 3, 13))
    for j in range(9):
        rows[:, j, :, j : j + 5] = flat.reshape(4, 3, 5)
    wide = rows[..., 2:11].reshape(36, -1)
    np.testing.assert_allclose(found["bound"], np.linalg.norm(wide, 2) ** 2, rtol=1e-4)
    # Two halves: W is block diagonal, so the bound is the larger half's.
    layer = data.ConvLayer("conv", line[:, :1].copy(), None, (1,), (0,), groups=2)
    halves = data.Network("net", (layer,), None, None, "a test")
    (found,) = walk_checkpoint(halves, None, options, tmp_path / "halves").content["layers"]
    flat = line[:, 0] / np.linalg.norm(line[:, 0], axis=1, keepdims=True)
    cosines = np.abs(flat @ flat.T)
    np.testing.assert_allclose(found["coherence"], max(cosines[0, 1], cosines[2, 3]), rtol=1e-5)


def test_pictures_through_a_known_network(tmp_path, monkeypatch):
    # What is too large is left out: here everything but the pictures.
    monkeypatch.setattr(walk, "LARGEST_WORK", 0)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "w.npz", conv1_1_W=rng.standard_normal((3, 3, 3, 64)).astype(np.float32))
    (tmp_path / "pictures").mkdir()
    Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "pictures" / "a.png")
    options = WalkOptions(signal=4, random_banks=2, random_bounds=2, size=8, quiet=True)
    findings = walk_checkpoint(data.load_network(tmp_path / "w.npz"), str(tmp_path / "pictures"), options, tmp_path)
    (layer,) = findings.content["layers"]
    assert 5 < layer["non_zeros"]["mean"] < 95
    assert findings.tables[0].rows[0][2:7] == ("-",) * 5
    assert findings.tables[0].columns[-2:] == ("non-zeros (%)", "pooled (%)")
    assert len(walk_figure({"findings": json.loads(json.dumps(findings.content))}).axes) == 3


def test_refusals(tmp_path):
    save_file({"a.weight": np.ones((3, 2, 3, 3), np.float32)}, tmp_path / "net.safetensors")
    network = data.load_network(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="no picture can be passed"):
        walk_checkpoint(network, "embedded", WalkOptions(quiet=True), tmp_path)
    with pytest.raises(ValueError, match="--random-banks of at least 2, got 1"):
        walk_checkpoint(network, None, WalkOptions(random_banks=1, quiet=True), tmp_path)
