"""The command line: what a person types, what comes back, and every refusal in one sentence."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import xarray as xr
from commands import refused

from cnninv_jax import montecarlo as mc
from cnninv_jax.cli import main
from cnninv_jax.experiments import files, runs

_SIZES = "reproduce gilbert-fig2 --K 6 --M 3 --ell 3 --D 8 --k 2 --sampling plain --quiet"
SMALL = shlex.split(f"{_SIZES} --num-draws 64 --block 32 --lanes 8")
#: What is killed: many blocks.
LONG = shlex.split(f"{_SIZES} --num-draws 60000 --block 500 --lanes 4")

pytestmark = [
    pytest.mark.skipif(not jax.config.jax_enable_x64, reason="the child processes choose widths of their own"),
    pytest.mark.usefixtures("scratch"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*SMALL, "--out", str(folder)]) == 0
    return folder


# What a person sees.


def test_list_names_the_experiment(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "gilbert-fig2" in out
    assert "400,000" in out
    assert "cnninv reproduce NAME" in out


@pytest.mark.parametrize("words", [[], ["list"], ["reproduce"], ["reproduce", "gilbert-fig2"], ["resume"], ["analyze"]])
def test_help_pages(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code in (None, 0)
    out, err = capsys.readouterr()
    assert out.startswith("usage: cnninv")
    assert err == ""


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "gilbert-fig2", "--help"])
    out = capsys.readouterr().out
    parameters = "K M ell D k stride values ensemble normalize sampling"
    options = "num-draws seed out precision block lanes memory-limit quiet"
    for flag in shlex.split(f"{parameters} {options}"):
        assert f"--{flag}" in out


def test_table_files_and_facts(capsys, finished):
    capsys.readouterr()
    assert main([*SMALL, "--out", str(finished)]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # --quiet
    assert out.count("no claim at this size") == 6
    assert "K=6, M=3, l=3, D=8, t=1, n=6, k=2" in out
    assert "64 draws" in out
    assert "all from the journal" in out
    for name in ("result.nc", "summary.json", "gilbert-fig2.png", "gilbert-fig2.svg"):
        assert str(finished / name) in out


def test_progress_goes_to_stderr_only(capsys, finished):
    assert main(["resume", str(finished)]) == 0
    out, err = capsys.readouterr()
    assert "64 of 64 draws (100%)" in err
    assert "64 of 64" not in out


def test_a_reader_that_leaves_is_no_failure():
    script = "import sys; from cnninv_jax.cli import main; sys.exit(main(['list']))"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert ended.returncode == 0
    assert ended.stderr == ""


# Running, running again, resuming.


def test_the_same_command_is_read_back(finished, monkeypatch):
    before = (finished / "result.nc").read_bytes()

    def compiled(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("cnninv_jax.montecarlo.sizing.fit", compiled)
    assert main([*SMALL, "--out", str(finished)]) == 0
    assert main(["resume", str(finished), "--quiet"]) == 0
    assert len((finished / "result.nc").read_bytes()) == len(before)


def test_default_folder_is_found_again(scratch, capsys):
    assert main(SMALL) == 0
    assert main([*SMALL, "--lanes", "8"]) == 0
    assert "all from the journal" in capsys.readouterr().out
    assert len(list((scratch / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--K", "7"], "(K: journal has 6, this run asks 7)"),
        (["--num-draws", "65"], "(num_draws: journal has 64, this run asks 65)"),
        (["--seed", "1", "--values", "signs"], "(values: journal has uniform, this run asks signs; seed: "),
        (["--block", "16"], "(block: journal has 32, this run asks 16)"),
        (["--lanes", "16"], "lanes: journal has 8, this run asks 16"),
    ],
)
def test_another_run_is_refused_by_what_the_user_chose(capsys, finished, change, said):
    sentence = refused(capsys, *SMALL, "--out", finished, *change)
    assert said in sentence
    assert "draw.computation" not in sentence


def test_resume_after_every_block(tmp_path, finished, capsys):
    import sqlite3

    shutil.copytree(finished, tmp_path / "cut")
    for name in ("result.nc", "summary.json", "gilbert-fig2.png", "gilbert-fig2.svg"):
        (tmp_path / "cut" / name).unlink()
    with sqlite3.connect(tmp_path / "cut" / "journal.sqlite") as journal:
        journal.execute("DELETE FROM blocks WHERE position > 0")
    journal.close()
    assert main(["resume", str(tmp_path / "cut"), "--quiet"]) == 0
    assert same_data(tmp_path / "cut", finished)
    assert sorted(os.listdir(tmp_path / "cut")) == sorted(os.listdir(finished))


def same_data(first, second):
    with (
        xr.open_dataset(first / "result.nc", engine="h5netcdf") as one,
        xr.open_dataset(second / "result.nc", engine="h5netcdf") as other,
    ):
        assert set(one.variables) == set(other.variables)
        assert one.attrs["specification"] == other.attrs["specification"]
        return all(one[name].values.tobytes() == other[name].values.tobytes() for name in one.variables)


def start(*arguments):
    """Start the command line in a process of its own, small and quick to compile."""
    script = (
        "import sys, jax\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "from cnninv_jax.montecarlo import session\n"
        "session.COMMIT_SECONDS = 0.0\n"
        "from cnninv_jax.cli import main\n"
        "sys.exit(main())\n"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_journal(folder, process, size):
    """Wait until the journal has begun to fill."""
    end = time.monotonic() + 60
    log = folder / "journal.sqlite-wal"
    while process.poll() is None and time.monotonic() < end:
        if log.exists() and log.stat().st_size > size:
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main([*LONG, "--out", str(folder)]) == 0
    return folder


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_bit_for_bit(tmp_path, uninterrupted, number):
    folder = tmp_path / "run"
    process = start(*LONG, "--out", folder)
    wait_for_journal(folder, process, 200_000)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert not (folder / "result.nc").exists(), "it was over before it was stopped"
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert err.count("\n") == 1
        assert "draws are safe in" in err
    assert main(["resume", str(folder), "--quiet"]) == 0
    assert same_data(folder, uninterrupted)
    facts = json.loads((folder / "summary.json").read_text())["provenance"]
    assert 0 < facts["resumed_blocks"] < 120


def test_a_termination_request_is_heard_where_interrupts_are_ignored(tmp_path):
    """A shell starts a job in the background of a script with SIGINT ignored."""
    folder = tmp_path / "run"
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(*LONG, "--out", folder)
    finally:
        signal.signal(signal.SIGINT, previous)
    wait_for_journal(folder, process, 50_000)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_thirty_times_at_random(tmp_path, uninterrupted):
    rng = np.random.default_rng(2017)
    folder, kills = tmp_path / "run", 0
    for attempt in range(30):
        # A few of the kills hit start-up and compilation; every fifth run starts afresh.
        if attempt % 5 == 0:
            shutil.rmtree(folder, ignore_errors=True)
        process = start(*LONG, "--out", folder)
        time.sleep(rng.uniform(0.5, 6.0))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if attempt % 5 == 4:
            assert main([*LONG, "--out", str(folder)]) == 0
            assert same_data(folder, uninterrupted)
    assert kills >= 10


@pytest.mark.timeout(120)
def test_second_process_on_the_same_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    process = start(*LONG, "--num-draws", 4_000_000, "--out", folder)
    try:
        wait_for_journal(folder, process, 50_000)
        for command in ([*LONG, "--num-draws", 4_000_000, "--out", folder], ["resume", folder]):
            assert "is in use by another process" in refused(capsys, *command)
    finally:
        process.kill()
        process.communicate()


# Refusals.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--K 6.5", "expected --K to be a whole number, got '6.5'"),
        ("--num-draws 1e5", "expected --num-draws to be a whole number, got '1e5'"),
        ("--seed x", "expected --seed to be a whole number, got 'x'"),
        ("--memory-limit much", "expected --memory-limit to be a number, got 'much'"),
        ("--ensemble gausian", "(did you mean gaussian?)"),
        ("--num-drawz 3", "--num-drawz, 3 (did you mean --num-draws?)"),
        ("--stride 2", "the nearest valid D are 7 and 9"),
        ("--stride 0", "expected stride to consist of integers of at least 1, got 0"),
        ("--stride -1", "expected stride to consist of integers of at least 1, got -1"),
        ("--k 7", "expected 1 <= k <= 6"),
        ("--k 0", "expected 1 <= k <= 6"),
        ("--k -2", "expected 1 <= k <= 6"),
        ("--K 0", "of at least 1, got 0"),
        ("--M -3", "expected channels to consist of integers of at least 1, got -3"),
        ("--ell 9", "use D >= 9\n"),
        ("--K 100000000000", "expected sizes that fit into 32 bits"),
        ("--num-draws 0", "expected --num-draws to be an integer from 1 to 4294967296, got 0"),
        ("--num-draws -5", "got -5"),
        ("--num-draws 5000000000", "got 5000000000"),
        ("--seed -1", "expected a seed from 0 to 2^32 - 1, got -1"),
        ("--seed 4294967296", "expected a seed from 0 to 2^32 - 1"),
        ("--block 0", "expected --block to be an integer"),
        ("--lanes 0", "expected --lanes to be an integer"),
        ("--lanes 3", "expected --lanes to be a power of two, got 3; take 2"),
        ("--lanes 64", "raise --block or lower --lanes"),
        ("--memory-limit 0", "expected --memory-limit to be a positive number of gibibytes"),
        ("--memory-limit -1", "expected --memory-limit to be a positive number"),
        ("--memory-limit nan", "expected --memory-limit to be a positive number"),
        ("--memory-limit inf", "expected --memory-limit to be a positive number"),
        ("--memory-limit 0.000001", "raise --memory-limit, lower --block or --lanes"),
        ("--sampling conditional --normalize", "use --sampling plain"),
        ("--sampling conditional --ensemble laplace", "use --sampling plain"),
    ],
)
def test_impossible_parameters(capsys, change, said):
    assert said in refused(capsys, *SMALL, *change.split(), "--out", "new/folder")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "{list, reproduce, sweep, resume, merge, analyze, failure}"),
        (["lst"], "did you mean list?"),
        (["reproduce"], "{gilbert-fig2, gilbert-table1, "),
        (["reproduce", "gilbert-fig22"], "did you mean gilbert-fig2?"),
        (["resume"], "cnninv resume --help"),
        (["analyze", "x.npy", "--layout", "KMlll"], "did you mean KMll"),
    ],
)
@pytest.mark.parametrize("boxes", ["utf-8", "ascii"])
def test_words_that_are_not_understood(capsys, monkeypatch, words, said, boxes):
    from tyro import _fmtlib

    # How tyro draws its boxes depends on the terminal.
    monkeypatch.setattr(_fmtlib, "_FORCE_UTF8_BOXES", boxes == "utf-8", raising=False)
    sentence = refused(capsys, *words)
    assert said in sentence
    assert not set(sentence) & set("│╭╰─")
    assert "---" not in sentence


def test_places_that_cannot_be_written(capsys, scratch):
    (scratch / "file").write_text("x")
    assert f"got the file {scratch / 'file'};" in refused(capsys, *SMALL, "--out", scratch / "file")
    assert f"got the file {scratch / 'file'};" in refused(capsys, *SMALL, "--out", scratch / "file" / "sub")
    if os.path.isdir("/proc/self"):
        assert "choose another place with --out" in refused(capsys, *SMALL, "--out", "/proc/new")


@pytest.mark.parametrize("what", ["summary.json", "the figure", "result.nc"])
def test_disk_full_while_writing(capsys, finished, scratch, monkeypatch, what):
    shutil.copytree(finished, scratch / "run")
    for name in ("result.nc", "summary.json", "gilbert-fig2.png", "gilbert-fig2.svg"):
        (scratch / "run" / name).unlink()
    marked = {"summary.json": "summary.json", "the figure": "gilbert-fig2.svg", "result.nc": "result.nc"}[what]
    replace = os.replace

    def full(source, target):
        if os.path.basename(target) == marked:
            raise OSError(28, "No space left on device")
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        sentence = refused(capsys, *SMALL, "--out", scratch / "run")
    assert "the disk is full" in sentence
    assert what in sentence
    assert not [name for name in os.listdir(scratch / "run") if name.startswith(".")]
    assert main([*SMALL, "--out", str(scratch / "run")]) == 0
    assert same_data(scratch / "run", finished)


# Resuming what cannot be resumed.


def test_resume_without_a_journal(capsys, scratch):
    (scratch / "empty").mkdir()
    for place in ("missing", "empty"):
        assert "expected a journal at" in refused(capsys, "resume", place)
    assert not (scratch / "missing").exists()
    assert not os.listdir(scratch / "empty")


@pytest.mark.parametrize(
    ("user", "said"),
    [
        (None, "expected a run of `cnninv reproduce`"),
        ({"command": "reproduce"}, "expected a run that this version of cnninv began"),
        (
            {
                "command": "reproduce",
                "experiment": "gilbert-fig9",
            },
            "did you mean 'gilbert-fig2'?",
        ),
        (
            {
                "command": "reproduce",
                "experiment": "gilbert-fig2",
                "seed": 0,
                "precision": "float32",
                "parameters": {"Z": 1},
            },
            "expected a run that this version of cnninv began",
        ),
    ],
)
def test_resume_the_journal_of_another_program(capsys, scratch, user, said):
    mc.run(jax.random.normal, 0, 10, chunk_size=10, lanes=1, out=scratch / "run", progress=False, spec=user)
    assert said in refused(capsys, "resume", scratch / "run")


def test_damaged_journals(capsys, finished, scratch):
    whole = (finished / "journal.sqlite").read_bytes()
    (scratch / "run").mkdir()
    for content, said in (
        (whole[:5000], "is damaged"),
        (b"garbage" * 100, "is damaged"),
        (b"", "holds no run yet"),
    ):
        (scratch / "run" / "journal.sqlite").write_bytes(content)
        assert said in refused(capsys, "resume", scratch / "run")


def test_an_empty_journal_is_begun(finished, scratch):
    (scratch / "run").mkdir()
    (scratch / "run" / "journal.sqlite").touch()
    assert main([*SMALL, "--out", str(scratch / "run")]) == 0
    assert same_data(scratch / "run", finished)


def test_a_failing_run_removes_only_what_it_made(scratch):
    (scratch / "mine").mkdir()
    (scratch / "mine" / "notes.txt").write_text("keep")
    for folder in (scratch / "mine", scratch / "a" / "b"):
        with pytest.raises(ValueError, match="no"), files.results_folder(folder):
            raise ValueError("no")
    assert os.listdir(scratch) == ["mine"]
    assert os.listdir(scratch / "mine") == ["notes.txt"]


def test_resume_restores_the_precision(finished):
    assert runs.precision_of(finished) == "float32"
