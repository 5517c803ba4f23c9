"""Checkpoints: whole or absent, checked, the newest sound one."""

import errno
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.nn import checkpoints as module
from cnninv_jax.nn.checkpoints import CheckpointError, open_checkpoints


def state(step):
    return {"w": jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3) + step, "n": np.int32(step)}


@pytest.fixture
def folder(tmp_path):
    kept = open_checkpoints(tmp_path / "run", {"name": "x"})
    for step in (10, 20, 30):
        kept.save(step, state(step), {"seconds": 1.5})
    return tmp_path / "run"


def restored(folder):
    kept = open_checkpoints(folder, {"name": "x"})
    return kept.restore(state(0)), kept.complaints


def test_the_newest_two_stay_and_come_back(folder):
    (step, held, facts), complaints = restored(folder)
    assert (step, facts, complaints) == (30, {"seconds": 1.5}, [])
    np.testing.assert_array_equal(held["w"], state(30)["w"])
    assert held["w"].dtype == jnp.float32
    assert int(held["n"]) == 30
    assert sorted(place.name for place in folder.iterdir() if place.is_dir()) == ["step_000000020", "step_000000030"]


def damage(folder, how):
    place = folder / "step_000000030"
    files = sorted((file for file in place.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    if how == "flip":
        content = bytearray(files[-1].read_bytes())
        content[len(content) // 2] ^= 1
        files[-1].write_bytes(content)
    elif how == "truncate":
        files[-1].write_bytes(files[-1].read_bytes()[:-7])
    elif how == "missing":
        files[0].unlink()
    elif how == "gone":
        shutil.rmtree(place)
    elif how == "seal":
        place.with_name(place.name + ".seal.json").write_text('{"step"')


@pytest.mark.parametrize("how", ["flip", "truncate", "missing", "gone", "seal"])
def test_a_damaged_one_is_passed_over_in_one_sentence(folder, how):
    damage(folder, how)
    (step, held, _), complaints = restored(folder)
    assert step == 20
    np.testing.assert_array_equal(held["w"], state(20)["w"])
    assert len(complaints) == 1
    assert "the checkpoint of step 30" in complaints[0]
    assert "is damaged" in complaints[0]
    assert complaints[0].endswith("; the one of step 20 is used")
    assert "\n" not in complaints[0]


def test_all_damaged(folder):
    damage(folder, "flip")
    (folder / "step_000000020.seal.json").write_text("{}")
    found, complaints = restored(folder)
    assert found is None
    assert [words.rpartition("; ")[2] for words in complaints] == ["there is no other one, so it begins anew"] * 2


def test_one_without_its_seal_was_never_finished(folder):
    (folder / "step_000000030.seal.json").unlink()
    (step, _, _), complaints = restored(folder)
    assert (step, complaints) == (20, [])


def test_none_at_all(tmp_path):
    assert restored(tmp_path / "new") == (None, [])


def test_a_full_disk_leaves_the_earlier_ones(folder, monkeypatch):
    kept = open_checkpoints(folder, {"name": "x"})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(CheckpointError, match=r"step 40 was not written .*No space left.*earlier ones are safe"):
        kept.save(40, state(40))
    monkeypatch.undo()
    assert restored(folder)[0][0] == 30
    assert not (folder / "step_000000040").exists()


def test_another_training(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r'holds another training \(name "x" there, "y" here\)'):
        open_checkpoints(folder, {"name": "y"})
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be used"):
        open_checkpoints(tmp_path / "file", {})
    (folder / module.SPEC).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be used"):
        open_checkpoints(folder, {"name": "x"})
    with pytest.raises(ValueError, match="at least 2 checkpoints"):
        open_checkpoints(folder, {}, keep=1)


def test_the_seal_can_be_read_by_people(folder):
    seal = json.loads((folder / "step_000000030.seal.json").read_text())
    assert seal["step"] == 30
    assert all(len(digest) == 64 for digest in seal["digests"].values())
