"""Our own form of a draw of Fig. 2, through the engine, in the shape that `benchmarks.peers.table` measures."""

from __future__ import annotations


def rate(seconds: float, batch: int, threads: int, *, sampling: str = "conditional") -> float:
    """Return draws per second of `montecarlo.run` at the paper's size, all statistics and histograms included.

    Args:
        seconds: how long to measure, after compiling and warming up.
        batch: draws side by side in one block.
        threads: CPU devices.
        sampling: "conditional" or "plain".
    """
    from benchmarks.measure import time_engine, use_all_cores

    use_all_cores(threads)
    from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters

    parameters = Fig2Parameters(sampling=sampling)
    draw, accumulators = FIG2.draw(parameters, "float32"), FIG2.statistics(parameters)
    timing, num_draws = time_engine(draw, accumulators, block=4096, lanes=batch, seconds=seconds, repeats=3)
    return num_draws / timing.median
