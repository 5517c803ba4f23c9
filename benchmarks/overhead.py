"""What the engine costs: `montecarlo.run` with journal, statistics and progress against a bare jitted loop.

``python -m benchmarks.overhead [--draws 10000 100000 1000000] [--repeats 3]`` prints time, ratio and memory. The bare
loop draws the same numbers in the same slices and only adds the outputs up. Each is measured in turn, in one process,
compiled beforehand; the median of ratios of neighbouring runs is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from benchmarks.measure import resident_mib
from cnninv_jax import montecarlo
from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters

BLOCK, LANES = 4096, 64


def bare_loop(draw, devices):
    """Return ``loop(num_draws)``: blocks of draws on every device, their outputs summed."""
    mesh = Mesh(np.asarray(devices), ("draws",))

    def block(key, start):
        def step(total, index):
            numbers = start[0] + (index * LANES + jnp.arange(LANES)).astype(jnp.uint32)
            outputs = jax.vmap(lambda number: draw(jax.random.fold_in(key, number)))(numbers)
            return jax.tree.map(lambda sum_, values: sum_ + values.sum(), total, outputs), None

        zeros = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), jax.eval_shape(draw, key))
        total, _ = lax.scan(step, zeros, jnp.arange(BLOCK // LANES))
        return jax.tree.map(lambda leaf: leaf[None], total)

    spec = PartitionSpec("draws")
    mapped = jax.shard_map(block, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False)
    key = jax.random.key(0)
    starts = np.arange(len(devices), dtype=np.uint32) * BLOCK
    compiled = jax.jit(mapped).lower(key, starts).compile()

    def loop(num_draws):
        flight = []
        for first in range(0, num_draws, BLOCK * len(devices)):
            flight.append(compiled(key, starts + np.uint32(first)))
            if len(flight) > 2:
                jax.block_until_ready(flight.pop(0))
        jax.block_until_ready(flight)

    return loop


def main(arguments=None):
    """Print one line per number of draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--devices", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", given.devices)
    parameters = Fig2Parameters()
    draw, accumulators = FIG2.draw(parameters, "float32"), FIG2.statistics(parameters)
    bare = bare_loop(draw, jax.local_devices())

    def engine(num_draws, folder):
        with contextlib.redirect_stderr(io.StringIO()):
            return montecarlo.run(
                draw, 0, num_draws, chunk_size=BLOCK, lanes=LANES, statistics=accumulators, out=folder, progress=True
            )

    with tempfile.TemporaryDirectory() as folder:
        engine(BLOCK, Path(folder) / "warm")
        bare(BLOCK)
        print("| draws | bare loop (s) | run() with journal (s) | overhead | resident memory (MiB) | journal (KiB) |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for num_draws in given.draws:
            # Whole supersteps, so that both compute the same draws.
            step = BLOCK * given.devices
            num_draws = -(-num_draws // step) * step
            pairs = []
            for repeat in range(given.repeats):
                started = time.perf_counter()
                bare(num_draws)
                middle = time.perf_counter()
                place = Path(folder) / f"{num_draws}-{repeat}"
                result = engine(num_draws, place)
                pairs.append((middle - started, result.provenance["seconds"]))
            size = sum(file.stat().st_size for file in place.iterdir()) / 1024
            ratio = statistics.median(run / loop for loop, run in pairs)
            loop, run = (statistics.median(times) for times in zip(*pairs, strict=True))
            costs = f"{loop:.2f} | {run:.2f} | {100 * (ratio - 1):+.1f}%"
            print(f"| {num_draws:,} | {costs} | {resident_mib():.0f} | {size:.0f} |", flush=True)


if __name__ == "__main__":
    main()
