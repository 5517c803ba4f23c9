"""Our own form of a draw of Fig. 2, through the engine, in the shape that `benchmarks.peers.table` measures."""

from __future__ import annotations

import statistics
import time


def rate(seconds: float, batch: int, threads: int, *, sampling: str = "conditional") -> float:
    """Return draws per second of `montecarlo.run` at the paper's size, all statistics and histograms included.

    Args:
        seconds: how long to measure, after compiling and warming up.
        batch: draws side by side in one block.
        threads: CPU devices.
        sampling: "conditional" or "plain".
    """
    import jax

    jax.config.update("jax_num_cpu_devices", threads)
    from cnninv_jax import montecarlo
    from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters

    parameters = Fig2Parameters(sampling=sampling)
    draw, accumulators = FIG2.draw(parameters, "float32"), FIG2.statistics(parameters)

    def run(num_draws: int, seed: int) -> float:
        started = time.perf_counter()
        montecarlo.run(draw, seed, num_draws, chunk_size=4096, lanes=batch, statistics=accumulators, progress=False)
        return time.perf_counter() - started

    step = 4096 * threads
    run(step, 0)  # compiles
    took = run(step, 1)
    num_draws = step * max(1, round(seconds / 3 / took))
    return statistics.median(num_draws / run(num_draws, seed) for seed in range(2, 5))
