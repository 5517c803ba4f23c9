"""What a sweep saves: 40 cells of Fig. 2 (8 values of k, 5 of M l^2/D) in one sweep against 40 runs of their own.

``python -m benchmarks.sweep [--num-draws 8192] [--smoke] [--no-store]``. The separate runs start with empty caches, as
40 commands would, but in one process: starting Python 40 times is left out. They are measured twice: with the
sweep's own draws (the numbers must agree to the last bit) and, on the grid's diagonal, as `cnninv reproduce` draws,
with k compiled in, where conditional sampling is faster per draw. Journals are written throughout. Processor time
stands beside wall time: on a machine that does other work it is the steadier of the two.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import store
from benchmarks.measure import use_all_cores

COUNTS, QUANTITIES = (1, 2, 4, 6, 8, 10, 15, 20), (6.25, 12.5, 25.0, 50.0, 100.0)
SMOKE_COUNTS, SMOKE_QUANTITIES = (1, 2), (4.5,)


class Case:
    """The grid, and the ways to run it."""

    def __init__(self, num_draws, *, smoke=False):
        from cnninv_jax.experiments.axes import parse_over
        from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters
        from cnninv_jax.experiments.sweeps import SWEEPABLE, SweptDraw

        counts, quantities = (SMOKE_COUNTS, SMOKE_QUANTITIES) if smoke else (COUNTS, QUANTITIES)
        self.experiment = FIG2
        self.parameters = Fig2Parameters(K=6, ell=3, D=8) if smoke else Fig2Parameters()
        over = [f"k={','.join(map(str, counts))}", f"Mll/D={','.join(map(str, quantities))}"]
        self.grid = dict(parse_over(over, self.parameters, SWEEPABLE["gilbert-fig2"].derived).grid)
        self.draw = SweptDraw("gilbert-fig2", self.parameters, "float32", max(counts))
        self.num_draws = num_draws
        block, lanes = (32, 8) if smoke else (4096, 64)
        self.options = {"chunk_size": block, "lanes": lanes, "progress": False, "headline": "error_model"}

    def statistics(self, **values):
        """Return the experiment's accumulators at a cell."""
        return self.experiment.statistics(self.of(values))

    def of(self, values):
        """Return the experiment's parameters at a cell."""
        return dataclasses.replace(self.parameters, **values)

    def sweep(self, folder):
        """Run the grid as one sweep; return its results by cell, and the times."""
        from cnninv_jax import montecarlo

        forget()
        started, busy = time.perf_counter(), time.process_time()
        result = montecarlo.sweep(
            self.draw, 0, self.grid, self.num_draws, traced=["k"], statistics=self.statistics, out=folder,
            **self.options,
        )  # fmt: skip
        seconds, processor = time.perf_counter() - started, time.process_time() - busy
        held = {cell.index: result[cell.parameters] for cell in result.cells}
        # One program serves several cells: count its compilation once.
        compiling = sum({one.provenance["compile_seconds"] for one in held.values()})
        compilations = result.provenance["compilations"]
        return held, {"compilations": compilations, "compile": compiling, "total": seconds, "processor": processor}

    def separate(self, folder, *, own):
        """Run cells by themselves with empty caches; ``own`` takes the experiment's own draw, with k compiled in."""
        from cnninv_jax import montecarlo
        from cnninv_jax.montecarlo.grid import bind, make_grid

        grid = make_grid(self.grid, traced=["k"])
        held, seconds, processor, compiling = {}, 0.0, 0.0, 0.0
        # Compiling k in takes long: one value of M for each k, all of them about equally often.
        cells = [cell for cell in grid.cells if not own or cell.index[1] == cell.index[0] % grid.shape[1]]
        for number, cell in enumerate(cells):
            forget()
            note(f"separate run {number + 1} of {len(cells)} ({cell})")
            draw = self.experiment.draw(self.of(cell.parameters), "float32") if own else bind(self.draw, grid, cell)
            started, busy = time.perf_counter(), time.process_time()
            one = montecarlo.run(
                draw, cell.key(jax.random.key(0)), self.num_draws, statistics=self.statistics(**cell.parameters),
                out=Path(folder) / cell.folder, **self.options,
            )  # fmt: skip
            seconds += time.perf_counter() - started
            processor += time.process_time() - busy
            compiling += one.provenance["compile_seconds"]
            held[cell.index] = one
        return held, {"compilations": len(held), "compile": compiling, "total": seconds, "processor": processor}


def forget():
    """Empty every cache of programs."""
    from cnninv_jax import montecarlo

    montecarlo.clear_cache()
    jax.clear_caches()


def note(text):
    """Say what is being done, on a line that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def check(swept, alone, conditional):
    """Hold the three against each other: the same bits; the same law within 5.5 standard errors (240 comparisons)."""
    from cnninv_jax.rip import READINGS

    assert swept.keys() == alone.keys()
    for index, name in itertools.product(swept, READINGS):
        for statistic in ("mean", "variance", "min", "max"):
            assert swept[index][name][statistic] == alone[index][name][statistic], (index, name, statistic)
    for index, name in itertools.product(conditional, READINGS):
        one, other = swept[index][name], conditional[index][name]
        error = np.hypot(one["standard_error"], other["standard_error"])
        assert abs(one["mean"] - other["mean"]) <= 5.5 * error + 1e-6, (index, name, one["mean"], other["mean"])


def main(arguments=None):
    """Measure, check, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-draws", type=int, default=8192, help="per cell (default 8192)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing stored")
    parser.add_argument("--no-store", action="store_true", help="print only")
    given = parser.parse_args(arguments)
    use_all_cores()
    case = Case(64 if given.smoke else given.num_draws, smoke=given.smoke)
    ways = {
        "one sweep, k traced": case.sweep,
        "separate runs of the same draws": functools.partial(case.separate, own=False),
        "separate runs, k compiled in (reproduce)": functools.partial(case.separate, own=True),
    }
    results, rows = [], []
    for name, way in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            note(name)
            held, times = way(folder)
        results.append(held)
        rows.append({"way": name, "cells": len(held), **times})
    note("")
    check(*results)
    device = store.describe_device()
    print(f"{case.num_draws:,} draws per cell on {device['name']}; numbers of the first two agree to the last bit\n")
    print("| | cells | compilations | compiling (s) | total (s) | processor (s) | wall a cell | processor a cell |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    first = rows[0]
    for row in rows:
        cells = row["cells"]
        ratios = [row[kind] / cells / (first[kind] / first["cells"]) for kind in ("total", "processor")]
        costs = f"{row['compile']:.1f} | {row['total']:.1f} | {row['processor']:.1f}"
        wall = f"{row['total'] / cells:.2f} s (x {ratios[0]:.1f})"
        busy = f"{row['processor'] / cells:.2f} s (x {ratios[1]:.1f})"
        print(f"| {row['way']} | {cells} | {row['compilations']} | {costs} | {wall} | {busy} |")
    if not (given.smoke or given.no_store):
        record = {"device": device, "versions": store.versions(), "num_draws": case.num_draws, "rows": rows}
        store.write(record, store.RESULTS / store.slug(device) / "sweep.json")


if __name__ == "__main__":
    main()
