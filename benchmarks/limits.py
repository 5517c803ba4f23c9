"""Convergence values of infinitely wide CNNs with average pools: time, compilation and memory, beside neural-tangents.

``python -m benchmarks.limits [--peer-python PATH] [--rounds N] [--smoke]``

Three parts, float32: (a) a 32 x 32 x 3 picture through three times (3 x 3 same convolution, ReLU, 2 x 2 average pool)
and a closing 3 x 3 same convolution with ReLU, where both sides give the variances behind it: ours and the kernel
library's in processes of their own and in turns. (b) VGG-16's 13 convolutions with average pools behind the first
four blocks, 224 x 224 x 3: run, compile, memory, in a process of its own. (c) The same network against the side of the
picture, and against the number of pools, with exponents fitted.

The floor counts evaluations of the ReLU kernel (lags x pixels, over the convolutions) and divides by the rate of one
simple compiled loop over maps that stay in the cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import store
from benchmarks.growth import slope
from benchmarks.measure import compile_program, note

PEER = Path(__file__).parent / "peers" / "limits_peer.py"
BLOCKS = (2, 2, 3, 3, 3)


def small_network(pools: int = 3) -> tuple[Any, ...]:
    """Return convolution, ReLU and average pool so many times, and the closing convolution."""
    from cnninv_jax.limits.layers import AvgPool, Conv

    return (*(Conv(3, padding="same"), AvgPool(2)) * pools, Conv(3, padding="same"))


def vgg(pools: int = 4) -> tuple[Any, ...]:
    """Return VGG-16's 13 convolutions with average pools behind the first blocks."""
    from cnninv_jax.limits.layers import AvgPool, Conv

    layers: list[Any] = []
    for block, count in enumerate(BLOCKS):
        layers += [Conv(3, padding="same")] * count
        if block < pools:
            layers.append(AvgPool(2))
    return tuple(layers)


def evaluations(layers: Sequence[Any], shape: tuple[int, ...]) -> int:
    """Return how often the ReLU kernel has to be evaluated: lags times pixels, summed over the convolutions."""
    from cnninv_jax.limits import _band
    from cnninv_jax.limits.layers import Conv, plan

    stages = _band.stages_of(plan(layers, shape))
    return sum(
        len(_band.half(lags)) * int(np.prod(step.outputs))
        for stage in stages
        if stage.pool is not None
        for step, lags in zip(stage.steps, stage.lags[1:], strict=False)
        if isinstance(step.layer, Conv)
    )


def measured(layers: Sequence[Any], side: int, seconds: float, channels: int = 3) -> dict[str, Any]:
    """Compile, warm and time one case in this process."""
    import jax
    import jax.numpy as jnp

    from cnninv_jax.limits.values import convergence_maps

    shape = (channels, side, side)
    picture = jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)
    started = time.perf_counter()
    program, compiling, memory = compile_program(lambda x: convergence_maps(x, layers)[-1], picture)
    whole = time.perf_counter() - started
    found = jax.block_until_ready(program(picture))
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = time.perf_counter()
        jax.block_until_ready(program(picture))
        times.append(time.perf_counter() - started)
    return {
        "side": side,
        "pools": sum(type(layer).__name__ == "AvgPool" for layer in layers),
        "seconds": statistics.median(times),
        "fastest": min(times),
        "trace_seconds": whole - compiling,
        "compile_seconds": compiling,
        "temporary_MiB": None if memory is None else memory.temp_size_in_bytes / 2**20,
        "resident_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "evaluations": evaluations(layers, shape),
        "variances": np.asarray(found, np.float64).tolist() if side <= 32 else None,
    }


def peak_rate(seconds: float) -> float:
    """Return evaluations of the kernel per second over maps in the cache, the loop compiled by XLA."""
    import jax
    import jax.numpy as jnp

    from cnninv_jax.limits import _kernel

    rng = np.random.default_rng(0)
    norm = jnp.asarray(rng.uniform(0.5, 1, size=(128, 128)), jnp.float32)
    start = jnp.asarray(rng.uniform(0, 0.5, size=(128, 128)), jnp.float32)

    @jax.jit
    def loop(start):
        body = lambda _, maps: _kernel.relu_covariance(maps, norm, norm, 1 / norm, 1 / norm)  # noqa: E731
        return jax.lax.fori_loop(0, 1000, body, start)

    jax.block_until_ready(loop(start))
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = time.perf_counter()
        jax.block_until_ready(loop(start))
        times.append(time.perf_counter() - started)
    return 1000 * start.size / min(times)


def apart(case: str, side: int, pools: int, seconds: float) -> dict[str, Any]:
    """Measure one of our cases in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.limits",
        "--case",
        case,
        str(side),
        str(pools),
        "--seconds",
        str(seconds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a case ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peer(python: str, side: int, pools: int, seconds: float) -> dict[str, Any]:
    """Measure the kernel library on the same picture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.npy"
        np.save(path, np.random.default_rng(0).uniform(size=(3, side, side)))
        done = subprocess.run(
            [python, str(PEER), str(path), str(seconds), str(pools)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"the peer ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def middle(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of several rounds."""
    numbers = {name for name, value in rows[0].items() if isinstance(value, float)}
    return {**rows[0], **{name: statistics.median(row[name] for row in rows) for name in numbers}}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the record."""
    side = 8 if given.smoke else 32
    pools = 2 if given.smoke else 3
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    run = measured_here if given.smoke else apart
    for turn in range(given.rounds):
        note(f"32 x 32: round {turn + 1} of {given.rounds}")
        ours.append(run("small", side, pools, given.seconds))
        if given.peer_python:
            theirs.append(peer(given.peer_python, side, pools, given.seconds))
    record: dict[str, Any] = {"device": store.describe_device(), "versions": store.versions()}
    record["small"] = {"ours": middle(ours)}
    if theirs:
        ratios = [other["seconds"] / one["seconds"] for one, other in zip(ours, theirs, strict=True)]
        record["small"]["neural_tangents"] = middle(theirs)
        record["small"]["ratios"] = ratios
        first, second = (np.asarray(rows[0]["variances"]) for rows in (ours, theirs))
        record["small"]["largest_relative_difference"] = float(np.max(np.abs(first / second - 1)))
    sides, counts = ([4, 8], [1]) if given.smoke else ([48, 80, 112, 160, 224, 320, 448], [0, 1, 2, 3, 4])
    if not given.smoke:
        note("VGG-16 at 224")
        record["vgg"] = middle([run("vgg", 224, 4, given.seconds) for _ in range(given.rounds)])
    record["kernel_rate"] = peak_rate(0.1 if given.smoke else given.seconds)
    record["sides"], record["pools"] = [], []
    for size in sides:
        note(f"side {size}")
        record["sides"].append(run("vgg", size, 1 if given.smoke else 4, given.seconds))
    for count in counts:
        note(f"{count} pools")
        record["pools"].append(run("vgg", 16 if given.smoke else 224, count, given.seconds))
    note("")
    for name in ("ours", "neural_tangents"):
        record["small"].get(name, {}).pop("variances", None)
    for row in record["sides"] + record["pools"]:
        row.pop("variances", None)
    return record


def measured_here(case: str, side: int, pools: int, seconds: float) -> dict[str, Any]:
    """Measure one of our cases in this process."""
    return measured({"small": small_network, "vgg": vgg}[case](pools), side, seconds)


def exponents(record: dict[str, Any]) -> dict[str, Any]:
    """Return exponents of time in the side (a power) and in the number of pools (a power of the lags, 4 a pool)."""
    sides = record["sides"]
    pools = [row for row in record["pools"] if row["pools"]]
    found: dict[str, Any] = {}
    for name, rows, key in (("side", sides, "side"), ("pools", pools, None)):
        values = [row[key] if key else np.exp(row["pools"]) for row in rows]
        found[name] = slope(values, [row["seconds"] for row in rows]) if len(rows) > 1 else (float("nan"),) * 2
    return found


def show(record: dict[str, Any]) -> None:
    """Print what was measured."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{record['device']['name']}; float32")
    for title in ("case", "ms", "fastest", "compile (s)", "temporary MiB", "peak RSS MiB", "of the floor"):
        table.add_column(title, justify="left" if title == "case" else "right")

    def add(name: str, row: dict[str, Any]) -> None:
        floor = row.get("evaluations", 0) / record["kernel_rate"]
        temporary = row.get("temporary_MiB")
        cells = [f"{1e3 * row['seconds']:.2f}", f"{1e3 * row['fastest']:.2f}", f"{row['compile_seconds']:.1f}"]
        cells += ["-" if temporary is None else f"{temporary:.1f}", f"{row['resident_MiB']:.0f}"]
        table.add_row(name, *cells, f"{100 * floor / row['seconds']:.0f}%" if floor else "-")

    small = record["small"]
    add("3 x (conv, ReLU, pool), cnninv_jax", small["ours"])
    if "neural_tangents" in small:
        add("the same, neural-tangents", small["neural_tangents"])
    if "vgg" in record:
        add("VGG-16, 4 pools, 224 x 224, own process", record["vgg"])
    for row in record["sides"] + record["pools"]:
        add(f"VGG-16, {row['pools']} pools, side {row['side']}", row)
    console = Console(width=130)
    console.print(table)
    if "ratios" in small:
        ratios = small["ratios"]
        console.print(
            f"neural-tangents / ours: {statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f}); "
            f"largest relative difference {small['largest_relative_difference']:.1e}"
        )
    for name, (value, error) in record["exponents"].items():
        unit = "power of the side" if name == "side" else "growth of log time per pool"
        console.print(f"{unit}: {value:.2f} ± {error:.2f}")


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw time against side and against pools."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = record["sides"]
    left.loglog([row["side"] for row in rows], [row["seconds"] for row in rows], "o-")
    left.set_xticks([row["side"] for row in rows], [str(row["side"]) for row in rows])
    left.minorticks_off()
    value, error = record["exponents"]["side"]
    left.set_title(f"4 average pools: power {value:.2f} ± {error:.2f}", fontsize=10)
    left.set_xlabel("side of the picture (pixels)")
    rows = record["pools"]
    right.semilogy([row["pools"] for row in rows], [row["seconds"] for row in rows], "o-")
    value, error = record["exponents"]["pools"]
    right.set_title(f"224 x 224: log time {value:.2f} ± {error:.2f} a pool (lags 1.39)", fontsize=10)
    right.set_xlabel("average pools")
    right.set_xticks([row["pools"] for row in rows])
    for axis in (left, right):
        axis.set_ylabel("seconds")
        axis.grid(alpha=0.3)
    figure.suptitle(f"Convergence values through VGG-16, {record['device']['name']}", fontsize=11)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of ours and the peer in turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--peer-python", help="an interpreter that has neural-tangents; without it, ours alone")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, no peers, nothing stored")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.case:
        case, side, pools = given.case
        print(json.dumps(measured_here(case, int(side), int(pools), given.seconds)))
        return
    if given.smoke:
        given.rounds, given.seconds, given.peer_python = 1, 0.05, None
    record = measure(given)
    record["exponents"] = exponents(record)
    show(record)
    if not given.smoke:
        folder = given.results / store.slug(record["device"])
        store.write(record, folder / "limits.json")
        plot(record, folder / "limits.png")
        print(f"Stored in {folder / 'limits.json'}.")


if __name__ == "__main__":
    main()
