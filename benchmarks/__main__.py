"""``python -m benchmarks``: measure what suits this device, print one table, store it, say what has changed."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import store
from benchmarks.measure import use_all_cores
from benchmarks.store import engineering

COLUMNS = ("workload", "size", "compile", "run", "draws/s", "floor", "fraction of floor", "peak memory", "change")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", nargs="+", default=[], metavar="NAME", help="only these suites; see --list")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only workloads of such a name, as in a shell")
    parser.add_argument("--list", action="store_true", help="name the suites and their workloads")
    parser.add_argument("--show", action="store_true", help="print the last stored table as Markdown; measure nothing")
    parser.add_argument("--seconds", type=float, default=2.0, help="per workload, after compiling (default 2)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing stored: to see that all of it runs")
    parser.add_argument("--no-store", action="store_true", help="compare, but store nothing")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    parser.add_argument("--scaling", action="store_true", help="only the scaling plots: lanes, devices, filter length")
    parser.add_argument("--growth", action="store_true", help="only time and memory against the number of draws")
    parser.add_argument("--largest", type=int, default=1_000_000, help="most draws of --growth (default 10^6)")
    parser.add_argument("--all", action="store_true", help="the table, the scaling plots and the growth")
    given = parser.parse_args(arguments)
    if not given.seconds > 0:
        parser.error(f"expected --seconds to be positive, got {given.seconds:g}")
    if given.largest < 10_000:
        parser.error(f"expected --largest of at least 10000 draws, got {given.largest}")
    return given


def choose(sizes: Any, suites: Sequence[str], pattern: str) -> list[Any]:
    """Return the workloads asked for.

    Raises:
        ValueError: an unknown suite, or a pattern that nothing matches.
    """
    from benchmarks.workloads import SUITES

    unknown = [name for name in suites if name not in SUITES]
    if unknown:
        raise ValueError(f"expected suites out of {', '.join(SUITES)}, got {unknown[0]!r}")
    found = [one for name in suites or SUITES for one in SUITES[name](sizes) if fnmatch.fnmatch(one.name, pattern)]
    if not found:
        raise ValueError(f"expected a workload that matches {pattern!r}, found none; see --list")
    return found


def table(rows: Sequence[Mapping[str, Any]], changes: Mapping[tuple[str, str], Any], device: str) -> Table:
    """Return the one table. ``peak memory`` is the program's on one device: arguments, results and temporaries."""
    made = Table(title=f"{device}; floor in draws/s")
    for title in COLUMNS:
        made.add_column(title, justify="left" if title in ("workload", "size", "change") else "right")
    for row in rows:
        if "error" in row:
            made.add_row(row["workload"], row["size"], *["-"] * 6, "did not run, see below")
            continue
        fraction = row.get("fraction_of_floor")
        size = row["program_bytes"]
        made.add_row(
            row["workload"],
            row["size"],
            f"{row['compile_seconds']:.2f} s",
            f"{engineering(row['run_seconds'])}s",
            f"{engineering(row['rate']).strip()} ± {50 * (max(row['rates']) - min(row['rates'])) / row['rate']:.0f}%",
            engineering(row.get("floor_draws_per_second", float("nan"))),
            "-" if fraction is None else store.percent(fraction),
            "-" if size is None else f"{size / 2**20:,.1f} MiB",
            str(changes.get((row["workload"], row["size"]), "new")),
        )
    return made


def markdown(record: Mapping[str, Any]) -> str:
    """Return a stored record as a table for a page of documentation."""
    titles = ("workload", "size", "compile (s)", "draws/s", "floor", "fraction of floor", "peak memory (MiB)")
    lines = [f"| {' | '.join(titles)} |", "| --- | --- |" + " ---: |" * (len(titles) - 2)]
    for row in record["rows"]:
        if "error" in row:
            continue
        size, fraction = row["program_bytes"], row.get("fraction_of_floor")
        cells = (
            row["workload"],
            row["size"],
            f"{row['compile_seconds']:.1f}",
            f"{min(row['rates']):,.0f} - {max(row['rates']):,.0f}",
            "" if fraction is None else f"{row['floor_draws_per_second']:,.0f}",
            "" if fraction is None else store.percent(fraction),
            "" if size is None else f"{size / 2**20:,.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def suites(given: argparse.Namespace, console: Console) -> None:
    """Measure the suites, print the table and store it."""
    from benchmarks import floors
    from benchmarks.measure import REPEATS, note
    from benchmarks.peaks import Peaks
    from benchmarks.workloads import measure, scale, with_floor

    chosen = choose(scale(smoke=given.smoke), given.suite, given.only)
    device = store.describe_device()
    earlier = None if given.smoke else store.last(device, given.results)
    busy = _load()
    peaks = Peaks(min(0.3, given.seconds), smoke=given.smoke)
    for workload in chosen:
        floors.floor(workload.work, peaks)
    seconds, repeats = (0.01, 2) if given.smoke else (given.seconds, REPEATS)
    rows = []
    for number, workload in enumerate(chosen, 1):
        note(f"{number}/{len(chosen)} {workload.name}")
        rows.append(measure(workload, seconds, repeats))
    note("")
    if not given.smoke:
        peaks.again()
    rows = [with_floor(row, workload.work, peaks) for row, workload in zip(rows, chosen, strict=True)]
    console.print(table(rows, store.compare(rows, earlier), device["name"]))
    for row in rows:
        if "error" in row:
            console.print(f"{row['workload']}, {row['size']}: {row['error']}", highlight=False)
    best = max(peaks.generators, key=lambda name: peaks.generators[name])
    joined = "the largest of its terms" if peaks.accelerator else "the sum of its terms"
    console.print(f"Floor: {joined} at peaks measured here; normals {engineering(peaks.normals)}/s ({best}).")
    if rows[-1].get("resident_mib"):
        console.print(f"Resident memory of this process: {rows[-1]['resident_mib']:,} MiB.")
    if busy > 0.25:
        console.print(
            f"Other work was running ({busy:.1f} processes per core in the minute before): measure again in quiet."
        )
    if earlier is not None:
        before = earlier.get("processes_per_core")
        console.print(
            f"Compared with {earlier['date']}" + (f" ({before} other processes per core)." if before else ".")
        )
    if not (given.smoke or given.no_store):
        whole = not given.suite and given.only == "*"
        # A part of the suites must not hide the other rows from the next comparison.
        kept = [] if whole or earlier is None else _others(earlier["rows"], rows)
        record = {"device": device, "versions": store.versions(), "processes_per_core": busy, "peaks": peaks.measured()}
        record["rows"] = [*kept, *rows]
        console.print(f"Stored in {store.save(record, given.results)}.")


def _load() -> float:
    """Return how many processes wished to run on each core in the last minute; zero where that is not known."""
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    except (AttributeError, OSError):
        return 0.0


def _others(held: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    fresh = {(row["workload"], row["size"]) for row in rows}
    return [row for row in held if (row["workload"], row["size"]) not in fresh]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    given = parse(arguments)
    use_all_cores()
    if given.smoke:
        # What is tiny is compiled, not computed.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that scaling starts
        jax.config.update("jax_disable_most_optimizations", True)
    console = Console(width=None if sys.stdout.isatty() else 190)
    try:
        if given.list:
            from benchmarks.workloads import SUITES, scale

            for name in SUITES:
                for one in choose(scale(smoke=given.smoke), [name], "*"):
                    console.print(f"{name:<12}{one.name:<42}{one.size}", highlight=False)
            return 0
        if given.show:
            held = store.last(store.describe_device(), given.results)
            if held is None:
                raise ValueError("expected a stored table of this device, found none; run python -m benchmarks")
            print(markdown(held))
            return 0
        everything = given.all or (given.smoke and not (given.suite or given.scaling or given.growth))
        # Growth comes first: its memory is to be that of nothing else.
        if everything or given.growth:
            from benchmarks.growth import growth

            growth(given, console)
        if given.all or not (given.scaling or given.growth):
            suites(given, console)
        if everything or given.scaling:
            from benchmarks.scaling import scaling

            scaling(given, console)
    except (ValueError, OSError) as error:
        print(f"benchmarks: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
