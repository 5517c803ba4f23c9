"""Several processes as one run: same bits, one journal, and a lost process named."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from jax.sharding import Mesh

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo.hosts import Hosts

from . import draws

WORKER = [sys.executable, str(Path(__file__).with_name("host_worker.py"))]
DRAWS = 2025
needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="the other processes run with 64-bit types")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(port, index, folder, *, count=2, num_draws=DRAWS, pause=0.0, **options):
    command = [*WORKER, *map(str, (port, count, index, folder, num_draws, pause))]
    command += [f"{name}={value}" for name, value in options.items()]
    environment = dict(os.environ)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, bufsize=1
    )


def together(folder, options=({}, {}), **shared):
    port = free_port()
    processes = [start(port, index, folder, **shared, **options[index]) for index in range(2)]
    texts = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], texts


def alone(**options):
    return mc.run(draws.mixed, 11, DRAWS, chunk_size=50, lanes=16, keep=("x",), progress=False, **options)


@pytest.fixture(scope="module")
def uninterrupted():
    return alone().to_xarray()


def same_file(path, expected):
    with xr.open_dataset(path, engine="h5netcdf") as found:
        return all(found[name].values.tobytes() == expected[name].values.tobytes() for name in expected.variables)


@needs_x64
@pytest.mark.timeout(180)
def test_two_processes_of_two_devices_give_the_same_bits(tmp_path, uninterrupted):
    codes, texts = together(tmp_path)
    assert codes == [0, 0], texts
    assert [text.splitlines()[-1] for text in texts] == ["end 2 4", "end 2 4"]
    assert all("collectives in the draw: []" in text for text in texts)
    assert all(same_file(tmp_path / f"process-{index}.nc", uninterrupted) for index in range(2))
    # The journal is the single run's: read back here without computing.
    again = alone(out=tmp_path)
    assert again.provenance["compile_seconds"] == 0.0
    assert draws.variables_equal(again.to_xarray(), uninterrupted)


@pytest.mark.slow
@needs_x64
@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", [0, pytest.param(1)])
def test_a_killed_process_ends_the_other_and_one_process_goes_on(tmp_path, uninterrupted, victim):
    port = free_port()
    processes = [start(port, index, tmp_path, pause=0.03) for index in range(2)]
    for line in processes[0].stdout:
        if line.startswith("running") and int(line.split()[1]) >= 400:
            break
    processes[victim].send_signal(signal.SIGKILL)
    text = processes[1 - victim].communicate(timeout=120)[0]
    processes[victim].communicate()
    # The survivor says so in one sentence; where the runtime notices first, it ends the process itself.
    if processes[1 - victim].returncode == 7:
        assert "HostLostError: another process of this run has gone" in text
        assert ("draws are safe in" if victim == 1 else "start the same run again") in text
    else:
        assert processes[1 - victim].returncode != 0
    resumed = alone(out=tmp_path)
    assert 0 < resumed.provenance["resumed_blocks"] < 41
    assert draws.variables_equal(resumed.to_xarray(), uninterrupted)


@pytest.mark.slow
@needs_x64
@pytest.mark.timeout(240)
def test_two_processes_go_on_where_one_stopped(tmp_path, uninterrupted):
    class Enough(Exception):
        pass

    def stop(progress):
        if progress.done >= 600:
            raise Enough

    with pytest.raises(Enough):
        mc.run(draws.mixed, 11, DRAWS, chunk_size=50, lanes=16, keep=("x",), progress=stop, out=tmp_path)
    codes, texts = together(tmp_path)
    assert codes == [0, 0], texts
    assert all(same_file(tmp_path / f"process-{index}.nc", uninterrupted) for index in range(2))


@pytest.mark.slow
@needs_x64
@pytest.mark.timeout(240)
def test_stopping_is_decided_alike(tmp_path):
    rule = mc.Width("x", absolute=0.15)
    expected = alone(until=rule).to_xarray()
    assert 1000 < expected.sizes["draw"] <= DRAWS
    codes, texts = together(tmp_path, until=0.15)
    assert codes == [0, 0], texts
    assert all(same_file(tmp_path / f"process-{index}.nc", expected) for index in range(2))


@needs_x64
@pytest.mark.timeout(180)
def test_processes_that_ask_for_different_runs_are_refused(tmp_path):
    codes, texts = together(tmp_path, ({}, {"chunk_size": 60}))
    assert codes == [7, 7]
    assert all("process 0" in text for text in texts)


def test_a_mesh_of_this_process_is_a_run_of_its_own():
    hosts = Hosts.of(Mesh(np.asarray(jax.devices()[:2]), ("draws",)))
    assert (hosts.count, hosts.index, hosts.leads) == (1, 0, True)
    assert hosts.share(lambda: (1, 2)) == (1, 2)
    assert hosts.agree(lambda: 3) == [3]


def test_fetched_numbers_outlive_their_buffers():
    hosts = Hosts.of(Mesh(np.asarray(jax.devices()[:1]), ("draws",)))
    overwrite = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    array = jax.device_put(np.zeros((1, 1000), np.float32), jax.devices()[0])
    (held,) = hosts.fetch((array,))
    jax.block_until_ready(overwrite(array))
    assert not held.any()
