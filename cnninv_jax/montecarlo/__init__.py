"""Monte-Carlo engine: draws that are pure functions of (key, index), streamed and journaled.

It knows no CNN: `run` takes any ``draw(key) -> pytree``.
"""

from cnninv_jax.montecarlo.accumulators import (
    Accumulator,
    Extremes,
    Histogram,
    Leaf,
    Moments,
    Proportion,
    Tally,
)
from cnninv_jax.montecarlo.engine import run
from cnninv_jax.montecarlo.errors import (
    Interrupted,
    JournalError,
    JournalLockedError,
    MonteCarloError,
    ResultError,
)
from cnninv_jax.montecarlo.intervals import (
    histogram_quantile,
    mean_interval,
    quantile_ranks,
    sample_quantile,
    wilson,
)
from cnninv_jax.montecarlo.journal import read_spec
from cnninv_jax.montecarlo.program import clear_cache
from cnninv_jax.montecarlo.progress import Progress
from cnninv_jax.montecarlo.result import Result
from cnninv_jax.montecarlo.summary import Row, Summary

__all__ = [
    "Accumulator",
    "Extremes",
    "Histogram",
    "Interrupted",
    "JournalError",
    "JournalLockedError",
    "Leaf",
    "Moments",
    "MonteCarloError",
    "Progress",
    "Proportion",
    "Result",
    "ResultError",
    "Row",
    "Summary",
    "Tally",
    "clear_cache",
    "histogram_quantile",
    "mean_interval",
    "quantile_ranks",
    "read_spec",
    "run",
    "sample_quantile",
    "wilson",
]
