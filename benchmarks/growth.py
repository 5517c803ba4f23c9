"""Time and memory against the number of draws, through the engine with its journal.

``python -m benchmarks --growth --largest 10000000``: time has to grow with slope 1, memory not at all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import store


def sizes(largest: int, step: int) -> list[int]:
    """Return numbers of draws from 10^4 to ``largest``, two a decade, each a whole number of supersteps of ``step``.

    A part of a superstep would leave devices idle, which at the smallest sizes is a good part of the run.
    """
    wanted = [round(10 ** (exponent / 2)) for exponent in range(8, 40)]
    wanted = [size for size in wanted if size < largest] + [largest]
    return sorted({max(1, round(size / step)) * step for size in wanted})


def slope(draws: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return slope of log seconds against log draws by least squares, and its standard error (NaN below 3 points)."""
    if len(draws) < 2:
        return float("nan"), float("nan")
    x, y = np.log(np.asarray(draws, float)), np.log(np.asarray(seconds, float))
    design = np.stack([x, np.ones_like(x)], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, y)
    if len(x) < 3:
        return float(coefficients[0]), float("nan")
    residual = y - design @ coefficients
    variance = residual @ residual / (len(x) - 2) / np.sum((x - x.mean()) ** 2)
    return float(coefficients[0]), float(np.sqrt(variance))


def points(given: argparse.Namespace, note: Any = lambda text: None) -> Iterator[dict[str, Any]]:
    """Run every size with its journal; small ones three times, for the median."""
    import jax

    from benchmarks.measure import device_peak_bytes, resident_mib
    from cnninv_jax import montecarlo
    from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters

    parameters = Fig2Parameters()
    block, lanes = (4096, 64) if jax.default_backend() == "cpu" else (1 << 15, 8192)
    if given.smoke:
        parameters, block, lanes = Fig2Parameters(K=5, M=4, ell=2, D=4, k=2, sampling="plain"), 32, 16
    draw, accumulators = FIG2.draw(parameters, "float32"), FIG2.statistics(parameters)
    step = block * jax.local_device_count()

    def run(num_draws: int, seed: int, folder: Path) -> Any:
        return montecarlo.run(
            draw, seed, num_draws, chunk_size=block, lanes=lanes, statistics=accumulators, out=folder, progress=False
        )

    with tempfile.TemporaryDirectory() as scratch:
        run(2 * step, 0, Path(scratch) / "warm")
        for num_draws in [step, 2 * step, 4 * step] if given.smoke else sizes(given.largest, step):
            times = []
            for repeat in range(3 if num_draws <= 200_000 else 1):
                note(f"growth: {num_draws:,} draws")
                folder = Path(scratch) / f"{num_draws}-{repeat}"
                times.append(run(num_draws, repeat, folder).provenance["seconds"])
                journal = sum(file.stat().st_size for file in folder.iterdir())
                for file in folder.iterdir():
                    file.unlink()
            peak = device_peak_bytes()
            yield {
                "draws": num_draws,
                "seconds": float(f"{statistics.median(times):.4g}"),
                "resident_mib": round(resident_mib(), 1),
                "device_peak_mib": None if peak is None else round(peak / 2**20, 1),
                "journal_mib": float(f"{journal / 2**20:.3g}"),
            }


def growth(given: argparse.Namespace, console: Any) -> None:
    """Measure, print, store and draw."""
    from rich.table import Table

    from benchmarks.measure import note

    device = store.describe_device()
    found = list(points(given, note))
    note("")
    table = Table(title=f"Fig. 2 through the engine with its journal on {device['name']}")
    for title in ("draws", "seconds", "draws/s", "resident memory", "device peak", "journal"):
        table.add_column(title, justify="right")
    for point in found:
        peak = point["device_peak_mib"]
        memory = (f"{point['resident_mib']:,.0f} MiB", "-" if peak is None else f"{peak:,.0f} MiB")
        speed = f"{point['draws'] / point['seconds']:,.0f}"
        table.add_row(
            f"{point['draws']:,}", f"{point['seconds']:.3g}", speed, *memory, f"{point['journal_mib']:.3g} MiB"
        )
    console.print(table)
    fitted, error = slope([p["draws"] for p in found], [p["seconds"] for p in found])
    resident = [point["resident_mib"] for point in found]
    text = f"slope of log time on log draws {fitted:.3f} ± {error:.3f}"
    console.print(f"{text}; resident memory from {min(resident):,.0f} to {max(resident):,.0f} MiB.")
    if given.smoke or given.no_store:
        return
    folder = given.results / store.slug(device)
    record = {"device": device, "versions": store.versions(), "slope": fitted, "slope_error": error, "points": found}
    store.write(record, folder / "growth.json")
    plot(found, f"{device['name']}: {text}", folder / "growth.png")
    console.print(f"Drawn in {folder / 'growth.png'}.")


def plot(found: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw time with the line of slope 1 through its last point, and memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    draws = np.asarray([point["draws"] for point in found], float)
    seconds = np.asarray([point["seconds"] for point in found], float)
    time.loglog(draws, draws * seconds[-1] / draws[-1], color="0.6", ls="--", label="slope 1")
    time.loglog(draws, seconds, "o-", ms=4, label="measured")
    time.set_ylabel("seconds, journal included")
    time.legend(frameon=False)
    memory.semilogx(draws, [point["resident_mib"] for point in found], "o-", ms=4, label="resident memory")
    if found[-1]["device_peak_mib"] is not None:
        memory.semilogx(draws, [point["device_peak_mib"] for point in found], "s-", ms=4, label="device peak")
    memory.set_ylim(bottom=0)
    memory.set_ylabel("MiB")
    memory.legend(frameon=False)
    for axis in (time, memory):
        axis.set_xlabel("draws")
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
