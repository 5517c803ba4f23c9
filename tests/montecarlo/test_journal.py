"""The journal: killed, interrupted, refused, corrupted, locked, full."""

import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo import session
from cnninv_jax.montecarlo.engine import run
from cnninv_jax.montecarlo.journal import FILE_NAME, Journal
from cnninv_jax.montecarlo.sizing import DEFAULT_SIZES

from . import draws

quiet = functools.partial(run, progress=False)
WORKER = [sys.executable, str(Path(__file__).with_name("worker.py"))]
DRAWS = 2025


def worker_run(folder, **options):
    return quiet(draws.mixed, 11, DRAWS, **{"chunk_size": 50, "lanes": 16, "keep": ("x",), "out": folder, **options})


def start_worker(folder, pause):
    command = [*WORKER, str(folder), str(DRAWS), str(pause)]
    environment = dict(os.environ)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def uninterrupted():
    return worker_run(None)


def kill_and_resume(folder, lines, uninterrupted):
    process = start_worker(folder, 0.01)
    for _ in range(lines):
        process.stdout.readline()
    process.kill()
    process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0)
    resumed = worker_run(folder)
    assert draws.variables_equal(resumed.to_xarray(), uninterrupted.to_xarray())
    return resumed.provenance["resumed_blocks"]


needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="the killed process runs with 64-bit types")


@needs_x64
@pytest.mark.timeout(120)
@pytest.mark.parametrize("lines", [1, 4, 11])
def test_killed_and_resumed(tmp_path, uninterrupted, lines):
    resumed = kill_and_resume(tmp_path / "run", lines, uninterrupted)
    # Two devices, two blocks a report after "compiling" and the first "running".
    assert resumed >= 2 * (lines - 2)


@needs_x64
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_thirty_times(tmp_path, uninterrupted):
    rng = np.random.default_rng(0)
    for number in range(30):
        kill_and_resume(tmp_path / str(number), int(rng.integers(1, 22)), uninterrupted)


@needs_x64
@pytest.mark.timeout(120)
def test_second_process_is_told(tmp_path):
    process = start_worker(tmp_path, 0.5)
    try:
        for _ in range(3):
            process.stdout.readline()
        for attempt in (lambda: worker_run(tmp_path), lambda: mc.read_spec(tmp_path)):
            with pytest.raises(mc.JournalLockedError, match="in use by another process"):
                attempt()
    finally:
        process.kill()
        process.communicate()
    assert mc.read_spec(tmp_path)["num_draws"] == DRAWS


def test_finished_run_is_read_back_without_computing(tmp_path, uninterrupted):
    first = worker_run(tmp_path)
    again = worker_run(tmp_path)
    assert again.provenance["resumed_blocks"] == -(-DRAWS // 50)
    assert again.provenance["compile_seconds"] == 0
    for result in (first, again):
        assert draws.variables_equal(result.to_xarray(), uninterrupted.to_xarray())


@pytest.mark.timeout(120)
def test_resumed_on_another_number_of_devices(tmp_path, uninterrupted):
    stop_after(tmp_path, 500)
    resumed = worker_run(tmp_path, mesh=draws.mesh(1))
    assert 0 < resumed.provenance["resumed_blocks"] < 41
    assert draws.variables_equal(resumed.to_xarray(), uninterrupted.to_xarray())


def stop_after(folder, done, **options):
    def interrupt(progress):
        if progress.done >= done:
            raise KeyboardInterrupt

    with pytest.raises(mc.Interrupted) as caught:
        worker_run(folder, progress=interrupt, **options)
    return str(caught.value)


def test_interrupt_flushes_and_says_how_to_go_on(tmp_path, uninterrupted):
    message = stop_after(tmp_path, 500)
    assert "of 2,025 draws are safe" in message
    safe = int(message.split()[1].replace(",", ""))
    assert safe >= 500
    resumed = worker_run(tmp_path)
    assert resumed.provenance["resumed_blocks"] * 50 == safe
    assert draws.variables_equal(resumed.to_xarray(), uninterrupted.to_xarray())
    assert "nothing is saved" in stop_after(None, 500)


def test_sizes_left_open_come_from_the_journal(tmp_path, monkeypatch):
    first = quiet(draws.scalar, 1, 300, out=tmp_path)
    monkeypatch.setitem(DEFAULT_SIZES, "cpu", (64, 8))
    again = quiet(draws.scalar, 1, 300, out=tmp_path)
    assert again.provenance["spec"] == first.provenance["spec"]
    with pytest.raises(mc.JournalError, match="block: journal has 1024, this run asks 64"):
        quiet(draws.scalar, 1, 300, out=tmp_path, chunk_size=64)


def test_another_run_is_refused_by_name(tmp_path):
    bank = np.ones(3, np.float32)
    draw = jax.tree_util.Partial(draws.with_bank, bank)
    ask = functools.partial(quiet, chunk_size=64, lanes=8, out=tmp_path)
    ask(draw, 0, 100, spec={"filters": {"count": 3}})
    for arguments, options, phrases in [
        ((draw, 0, 200), {}, ["num_draws: journal has 100, this run asks 200", "user.filters"]),
        ((draw, 1, 100), {}, ["key.data: journal has [0,0], this run asks [0,1]"]),
        (
            (draw, 0, 100),
            {"spec": {"filters": {"count": 4}}},
            ["user.filters.count: journal has 3, this run asks 4"],
        ),
        ((draw, 0, 100), {"keep": "ratio"}, ['keep: journal has [], this run asks ["ratio"]']),
        ((draw, 0, 100), {"statistics": {"ratio": mc.Moments()}}, ["statistics.ratio: journal has"]),
        ((draw, 0, 100), {"lanes": 16}, ["lanes: journal has 8, this run asks 16"]),
        ((draw, 0, 100), {"name": "other"}, ["name: journal has with_bank, this run asks other"]),
        ((jax.tree_util.Partial(draws.with_bank, 2 * bank), 0, 100), {}, ["draw.data: journal has"]),
        (
            (
                jax.tree_util.Partial(lambda b, key: {"ratio": draws.with_bank(b, key)["ratio"] * 2}, bank),
                0,
                100,
            ),
            {},
            ["draw.computation"],
        ),
    ]:
        with pytest.raises(mc.JournalError) as caught:
            ask(*arguments, **options)
        for phrase in phrases:
            assert phrase in str(caught.value)
    ask(draw, 0, 100, spec={"filters": {"count": 3}})


def test_captured_constants_and_closures_are_part_of_the_computation(tmp_path):
    def make(scale):
        captured = scale * np.ones(3)
        return lambda key: jax.random.normal(key, (3,)) * captured

    quiet(make(1.0), 0, 10, out=tmp_path)
    quiet(make(1.0), 0, 10, out=tmp_path)
    with pytest.raises(mc.JournalError, match=r"draw\.computation"):
        quiet(make(2.0), 0, 10, out=tmp_path)


def damaged(tmp_path, damage):
    worker_run(tmp_path)
    path = tmp_path / FILE_NAME
    damage(path)
    with pytest.raises(mc.JournalError) as caught:
        worker_run(tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def execute(path, *statements):
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_flipped_payload(tmp_path):
    def flip(path):
        execute(path, "UPDATE blocks SET payload = zeroblob(length(payload)) WHERE position = 7")

    assert "block 7 does not match its checksum" in damaged(tmp_path, flip)


@pytest.mark.parametrize("keep_bytes", [10, 5000, 20_000])
def test_truncated(tmp_path, keep_bytes):
    assert "is damaged" in damaged(tmp_path, lambda path: os.truncate(path, keep_bytes))


def test_overwritten(tmp_path):
    assert "is damaged" in damaged(tmp_path, lambda path: path.write_bytes(b"not a database at all" * 200))


def test_random_bytes_never_change_a_result(tmp_path, uninterrupted):
    original = tmp_path / "original"
    worker_run(original)
    rng = np.random.default_rng(3)
    refused = 0
    for number in range(20):
        copy = tmp_path / str(number)
        shutil.copytree(original, copy)
        path = copy / FILE_NAME
        content = bytearray(path.read_bytes())
        at = rng.integers(0, len(content), 8)
        for position in at:
            content[position] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            result = worker_run(copy)
        except mc.JournalError:
            refused += 1
        else:
            assert draws.variables_equal(result.to_xarray(), uninterrupted.to_xarray())
    assert refused > 5


def test_wrong_length_and_missing_block(tmp_path, uninterrupted):
    worker_run(tmp_path)
    execute(tmp_path / FILE_NAME, "DELETE FROM blocks WHERE position IN (3, 9)")
    resumed = worker_run(tmp_path)
    assert resumed.provenance["resumed_blocks"] == 3
    assert draws.variables_equal(resumed.to_xarray(), uninterrupted.to_xarray())
    execute(tmp_path / FILE_NAME, "UPDATE blocks SET draws = 49 WHERE position = 2")
    with pytest.raises(mc.JournalError, match="block 2 holds 49 draws"):
        worker_run(tmp_path)


def test_other_format_and_other_database(tmp_path):
    message = damaged(tmp_path / "a", lambda path: execute(path, "UPDATE meta SET value = '99' WHERE key = 'format'"))
    assert "journal format 1, got 99" in message
    message = damaged(
        tmp_path / "b",
        lambda path: execute(path, "DROP TABLE meta", "DROP TABLE blocks", "CREATE TABLE t (a)"),
    )
    assert "another SQLite file" in message
    message = damaged(tmp_path / "c", lambda path: execute(path, "UPDATE meta SET value = '{}' WHERE key = 'spec'"))
    assert "does not match its hash" in message


def test_places_that_cannot_be_used(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder, match in [
        (file, "got the file"),
        (file / "below", "can be written"),
        (Path("/proc/nowhere"), "can be written"),
        (Path("/proc"), "can be written|to be writable"),
    ]:
        with pytest.raises(mc.JournalError, match=match):
            worker_run(folder)
    with pytest.raises(mc.JournalError, match="expected a journal at"):
        mc.read_spec(tmp_path)
    Journal(tmp_path / "empty").close()
    with pytest.raises(mc.JournalError, match="holds no run yet"):
        mc.read_spec(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(mc.JournalError, match="read-only"):
        worker_run(folder)


def test_full_disk(tmp_path, monkeypatch, uninterrupted):
    original = Journal.bind

    def bind(self, spec, part):
        original(self, spec, part)
        pages = next(self._execute("PRAGMA page_count"))[0]
        self._execute(f"PRAGMA max_page_count = {pages + 4}")

    monkeypatch.setattr(Journal, "bind", bind)
    monkeypatch.setattr(session, "COMMIT_SECONDS", 0.0)
    with pytest.raises(mc.JournalError, match="the disk is full"):
        worker_run(tmp_path)
    monkeypatch.undo()
    resumed = worker_run(tmp_path)
    assert resumed.provenance["resumed_blocks"] > 0
    assert draws.variables_equal(resumed.to_xarray(), uninterrupted.to_xarray())


def test_failing_progress_leaves_the_journal_usable(tmp_path, uninterrupted):
    def fail(progress):
        if progress.done > 500:
            raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        worker_run(tmp_path, progress=fail)
    resumed = worker_run(tmp_path)
    assert resumed.provenance["resumed_blocks"] > 0
    assert draws.variables_equal(resumed.to_xarray(), uninterrupted.to_xarray())
