"""Draws per second against lanes, devices and filter length, beside the floor: measured, stored, drawn.

``python -m benchmarks --scaling`` writes scaling.json and scaling.png into the device's folder. On a CPU every point is
measured in a process of its own: the number of devices is fixed when JAX starts, and no point inherits another's heap.
XLA's own threads are shared by all CPU devices, so one of them is not one core, and may pass its share of the floor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import store

#: What the three panels vary.
PANELS = {"lanes": "draws side by side (lanes)", "devices": "devices", "length": "filter length l"}


@dataclasses.dataclass(frozen=True)
class Task:
    """One point: Fig. 2's draw through the engine.

    Attributes:
        panel: what is varied, a name in `PANELS`.
        x: to which value.
        sampling: "conditional" or "plain".
        parameters: of Fig. 2, where they are not the paper's.
        lanes: draws side by side.
        block: draws of a block.
        devices: how many; None for all.
    """

    panel: str
    x: int
    sampling: str
    parameters: dict[str, int]
    lanes: int
    block: int
    devices: int | None = None


def tasks(platform: str, devices: int, *, smoke: bool = False) -> list[Task]:
    """Return the points for a device."""
    if smoke:
        tiny = {"K": 5, "M": 4, "ell": 2, "D": 4, "k": 2}
        lengths, lanes, middle, block = (3,), (4,), 8, 16
        counts: Sequence[int] = (1,)
    else:
        tiny = {}
        lengths = (3, 5, 9, 13, 21)
        lanes = (16, 32, 64, 128, 256) if platform == "cpu" else tuple(2**i for i in range(8, 17, 2))
        middle, block = (64, 1024) if platform == "cpu" else (8192, 1 << 17)
        counts = [2**i for i in range(20) if 2**i < devices] + [devices]
    found = []
    for sampling in ("plain",) if smoke else ("conditional", "plain"):
        found += [Task("lanes", x, sampling, tiny, x, block) for x in lanes]
        found += [Task("devices", x, sampling, tiny, middle, block, x) for x in counts]
        found += [Task("length", x, sampling, {**tiny, "ell": x}, middle, block) for x in lengths]
    return found


def measure(task: Task, seconds: float, repeats: int = 5) -> list[float]:
    """Return the rates of one point, in this process."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from benchmarks.measure import time_engine
    from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters

    parameters = Fig2Parameters(**task.parameters, sampling=task.sampling)  # type: ignore[arg-type]
    mesh = None
    if task.devices is not None:
        mesh = Mesh(np.asarray(jax.local_devices()[: task.devices]), ("draws",))
    timing, items = time_engine(
        FIG2.draw(parameters, "float32"), FIG2.statistics(parameters),
        block=task.block, lanes=task.lanes, seconds=seconds, repeats=repeats, mesh=mesh,
    )  # fmt: skip
    return [items / took for took in timing.seconds]


def _elsewhere(task: Task, seconds: float, repeats: int) -> list[float]:
    """Measure a point in a fresh process with as many CPU devices as it asks for."""
    import jax

    devices = task.devices or jax.local_device_count()
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    given = json.dumps({"task": dataclasses.asdict(task), "seconds": seconds, "repeats": repeats})
    command = [sys.executable, "-m", "benchmarks.scaling", "--child", given]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"expected a rate from a process with {devices} CPU devices, got: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def points(given: argparse.Namespace, note: Any = lambda text: None) -> Iterator[dict[str, Any]]:
    """Measure every point, with its floor."""
    import jax

    from benchmarks import floors
    from benchmarks.peaks import Peaks
    from cnninv_jax.experiments.gilbert2017 import Fig2Parameters

    cpu = jax.default_backend() == "cpu"
    peaks = Peaks(min(0.3, given.seconds), smoke=given.smoke)
    seconds, repeats = (0.01, 2) if given.smoke else (given.seconds, 5)
    everything = tasks(jax.default_backend(), jax.local_device_count(), smoke=given.smoke)
    for number, task in enumerate(everything, 1):
        note(f"scaling {number}/{len(everything)}: {task.panel} {task.x}, {task.sampling}")
        point: dict[str, Any] = {"panel": task.panel, "x": task.x, "series": task.sampling}
        try:
            rates = (_elsewhere if cpu else measure)(task, seconds, repeats)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            yield {**point, "error": " ".join(str(error).split())[:200]}
            continue
        parameters = Fig2Parameters(**task.parameters)  # type: ignore[arg-type]
        least = floors.floor(floors.fig2(task.sampling, lanes=task.lanes, parameters=parameters), peaks)
        assert least is not None
        share = 1.0 if task.devices is None else task.devices / jax.local_device_count()
        yield {
            **point,
            "rate": float(f"{statistics.median(rates):.4g}"),
            "low": float(f"{min(rates):.4g}"),
            "high": float(f"{max(rates):.4g}"),
            "floor": float(f"{share / least.seconds:.4g}"),
        }


def scaling(given: argparse.Namespace, console: Any) -> None:
    """Measure, print, store and draw."""
    from rich.table import Table

    from benchmarks.measure import note

    device = store.describe_device()
    found = list(points(given, note))
    note("")
    table = Table(title=f"Fig. 2 through the engine on {device['name']}: draws per second")
    for title in ("against", "", "sampling", "draws/s", "lowest .. highest", "floor", "fraction of floor"):
        table.add_column(title, justify="left" if title in ("against", "sampling") else "right")
    for point in found:
        if "error" in point:
            table.add_row(point["panel"], str(point["x"]), point["series"], point["error"])
            continue
        spread = f"{point['low']:,.0f} .. {point['high']:,.0f}"
        part = store.percent(point["rate"] / point["floor"])
        numbers = (f"{point['rate']:,.0f}", spread, f"{point['floor']:,.0f}", part)
        table.add_row(point["panel"], f"{point['x']:,}", point["series"], *numbers)
    console.print(table)
    if given.smoke or given.no_store:
        return
    folder = given.results / store.slug(device)
    record = {"device": device, "versions": store.versions(), "points": found}
    store.write(record, folder / "scaling.json")
    draw(found, device["name"], folder / "scaling.png")
    console.print(f"Drawn in {folder / 'scaling.png'}.")


def draw(found: Sequence[dict[str, Any]], device: str, path: Path) -> None:
    """Draw rates beside floors, one panel for each thing varied."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    colours = {"conditional": "C0", "plain": "C1"}
    for axis, (panel, label) in zip(axes, PANELS.items(), strict=True):
        held = [point for point in found if point["panel"] == panel and "error" not in point]
        for series, colour in colours.items():
            line = sorted((p for p in held if p["series"] == series), key=lambda p: p["x"])
            if not line:
                continue
            x, rate = [p["x"] for p in line], [p["rate"] for p in line]
            below = [p["rate"] - p["low"] for p in line]
            above = [p["high"] - p["rate"] for p in line]
            axis.errorbar(x, rate, (below, above), color=colour, marker="o", ms=4, capsize=2, label=series)
            axis.plot(x, [p["floor"] for p in line], color=colour, ls="--", lw=1, label=f"{series}, floor")
        ticks = sorted({p["x"] for p in held})
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
        axis.set_xlabel(label)
    axes[0].set_ylabel("draws per second")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    title = f"Gilbert et al. 2017, Fig. 2, through the engine on {device}"
    figure.suptitle(f"{title}\nmedian of the runs, bars from the slowest to the fastest", fontsize=11)
    figure.savefig(path, dpi=110)


def _child(text: str) -> None:
    given = json.loads(text)
    print(json.dumps(measure(Task(**given["task"]), given["seconds"], given["repeats"])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A point of `python -m benchmarks --scaling`.")
    parser.add_argument("--child", required=True, help=argparse.SUPPRESS)
    _child(parser.parse_args().child)
