"""The command line at scale: parts and their merge, stopping on precision, several processes."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import xarray as xr
from commands import refused

from cnninv_jax.cli import main
from cnninv_jax.experiments.cluster import ClusterOptions, joined
from cnninv_jax.experiments.options import RunOptions, parse_until

SMALL = ["reproduce", "gilbert-fig2", "--quiet", "--K", "6", "--M", "3", "--ell", "3", "--D", "8", "--k", "2"]
BLOCKS = ["--block", "32", "--lanes", "8"]
RUN = [*SMALL, *BLOCKS, "--num-draws", "1000"]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*RUN, "--out", str(folder)]) == 0
    return folder


def same_data(first, second):
    with (
        xr.open_dataset(first / "result.nc", engine="h5netcdf") as one,
        xr.open_dataset(second / "result.nc", engine="h5netcdf") as other,
    ):
        assert set(one.variables) == set(other.variables)
        return all(one[name].values.tobytes() == other[name].values.tobytes() for name in one.variables)


def test_parts_and_merge(capsys, scratch, whole):
    for part in (3, 1, 4):
        assert main([*RUN, "--part", f"{part}/4"]) == 0
    (run,) = (scratch / "runs").iterdir()
    out = capsys.readouterr().out
    assert "part 3/4 of gilbert-fig2 is done: 256 of 1,000 draws" in out
    assert f"cnninv merge {run.relative_to(scratch)}" in out
    assert "part 2/4 is missing" in refused(capsys, "merge", run)
    assert main([*RUN, "--part", "2/4"]) == 0
    assert main(["merge", str(run)]) == 0
    assert "all from the journal" in capsys.readouterr().out
    assert same_data(run, whole)
    # The undivided command finds the merged run; a part can be asked for again.
    assert main(RUN) == 0
    assert "all from the journal" in capsys.readouterr().out
    assert main(["resume", str(run / "part-2-of-4"), "--quiet"]) == 0
    assert "part 2/4 of gilbert-fig2 is done" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_in_folders_of_their_own(capsys, scratch, whole):
    for part in (1, 2):
        assert main([*RUN, "--out", f"jobs-{part}", "--part", f"{part}/2"]) == 0
    folders = [scratch / "jobs-1" / "part-1-of-2", scratch / "jobs-2" / "part-2-of-2"]
    assert "expected --out for parts of 2 different folders" in refused(capsys, "merge", *folders)
    assert main(["merge", *map(str, folders), "--out", "joined"]) == 0
    assert same_data(scratch / "joined", whole)


def test_until(capsys, scratch):
    command = [*SMALL, *BLOCKS, "--until", "model_rip=0.05", "--out", "run"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "95% interval of the mean of model_rip narrower than 0.05" in out
    summary = json.loads((scratch / "run" / "summary.json").read_text())
    stopping = summary["stopping"]
    assert stopping["reached"]
    last = stopping["looks"][-1]
    assert last["high"] - last["low"] <= 0.05
    assert f"stopped at {last['draws']:,} draws" in out
    assert summary["outputs"]["model_rip"]["draws"] == last["draws"]
    before = (scratch / "run" / "result.nc").read_bytes()
    assert main(["resume", "run", "--quiet"]) == 0
    assert "all from the journal" in capsys.readouterr().out
    assert len((scratch / "run" / "result.nc").read_bytes()) == len(before)
    assert "until: " in refused(capsys, *command[:-4], "--until", "model_rip=0.04", "--out", "run")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a=0.1", ("a", 0.1, None, "mean", None)),
        ("a.b = 5%", ("a.b", None, 0.05, "mean", None)),
        ("a:proportion=1e-3", ("a", 1e-3, None, "proportion", None)),
        ("a:q0.999=0.1", ("a", 0.1, None, "quantile", 0.999)),
    ],
)
def test_until_is_read(text, rule):
    found = parse_until(text)
    assert (found.output, found.absolute, found.relative, found.statistic, found.q) == rule


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--part", "5/4"], "expected --part i/N with 1 <= i <= N, such as 2/4, got '5/4'"),
        (["--part", "two"], "expected --part i/N"),
        (["--part", "1/2", "--until", "model_rip=1"], "expected --part or --until"),
        (["--until", "model_rip"], "expected --until OUTPUT=WIDTH"),
        (["--until", "model_rip=x"], "expected --until OUTPUT=WIDTH"),
        (["--until", "model_rip=-1"], "positive width"),
        (["--until", "model_rip:q2=1"], "between 0 and 1"),
        (["--until", "speed=1"], "expected --until to name one of the outputs"),
        (["--coordinator", "a:1"], "--coordinator, --num-processes and --process-id together"),
        (["--coordinator", "a", "--num-processes", "2", "--process-id", "0"], "HOST:PORT"),
        (["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"], "from 0 to 1, got 2"),
    ],
)
def test_mistakes_are_one_sentence(capsys, scratch, change, said):
    assert said in refused(capsys, *RUN, *change)
    assert not (scratch / "runs").exists()


def test_nothing_to_merge(capsys, scratch, whole):
    assert "got none" in refused(capsys, "merge")
    assert "found none; run them with --part" in refused(capsys, "merge", scratch)
    assert "holds the whole run already" in refused(capsys, "merge", whole)


def test_part_and_draws_of_options():
    assert RunOptions().most_draws(7) == 7
    assert RunOptions(num_draws=5, until="a=1").most_draws(7) == 5
    assert RunOptions(until="a=1").most_draws(7) == 100_000_000
    assert RunOptions(part="2/3").parsed_part() == (2, 3)
    with joined(ClusterOptions()):
        pass


def start(index, port, *arguments):
    script = "import sys\nfrom cnninv_jax.montecarlo import session\nsession.COMMIT_SECONDS = 0.0\n"
    script += "from cnninv_jax.cli import main\nsys.exit(main())\n"
    cluster = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(index)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments, *cluster],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.timeout(120)
def test_no_cluster_is_one_sentence(scratch):
    # In a process of its own: JAX joins a cluster before it touches a device, or not at all.
    script = "import sys; from cnninv_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, *RUN, "--distributed"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("cnninv: error: expected --distributed on a cluster that says who takes part")
    assert ended.stderr.count("\n") == 1
    assert not (scratch / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_lost_process_is_named_and_one_process_finishes_the_run(capsys, scratch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    long = [*SMALL, "--block", "2048", "--lanes", "64", "--num-draws", "600000", "--out", "run"]
    processes = [start(index, port, *long) for index in range(2)]
    log = scratch / "run" / "journal.sqlite-wal"
    while not (log.exists() and log.stat().st_size > 1_000_000) and processes[0].poll() is None:
        pass
    processes[1].send_signal(signal.SIGKILL)
    _, err = processes[0].communicate(timeout=120)
    processes[1].communicate()
    assert processes[0].returncode != 0
    if processes[0].returncode == 2:
        (said,) = [line for line in err.splitlines() if line.startswith("cnninv: ")]
        assert said.startswith("cnninv: error: another process of this run has gone")
        assert "draws are safe in run/journal.sqlite; start the same run again to go on from there" in said
    # One process finishes it: the same bits as a run that nobody killed.
    assert main(["resume", "run", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "600,000 draws" in out
    assert "all from the journal" not in out
    assert main([*long[:-1], "alone"]) == 0
    assert same_data(scratch / "run", scratch / "alone")
