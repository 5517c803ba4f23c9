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
from cnninv_jax.montecarlo.controls import (
    ControlledMean,
    controlled_name,
    controlled_statistics,
    with_controls,
)
from cnninv_jax.montecarlo.engine import run
from cnninv_jax.montecarlo.errors import (
    HostLostError,
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
from cnninv_jax.montecarlo.merge import find_parts, merge
from cnninv_jax.montecarlo.nested import (
    VarianceComponents,
    best_count,
    nested,
    variance_components,
    within_name,
)
from cnninv_jax.montecarlo.program import clear_cache
from cnninv_jax.montecarlo.progress import Progress
from cnninv_jax.montecarlo.result import Result
from cnninv_jax.montecarlo.stopping import Look, Stopping, Width
from cnninv_jax.montecarlo.summary import Row, Summary

__all__ = [
    "Accumulator",
    "ControlledMean",
    "Extremes",
    "Histogram",
    "HostLostError",
    "Interrupted",
    "JournalError",
    "JournalLockedError",
    "Leaf",
    "Look",
    "Moments",
    "MonteCarloError",
    "Progress",
    "Proportion",
    "Result",
    "ResultError",
    "Row",
    "Stopping",
    "Summary",
    "Tally",
    "VarianceComponents",
    "Width",
    "best_count",
    "clear_cache",
    "controlled_name",
    "controlled_statistics",
    "find_parts",
    "histogram_quantile",
    "mean_interval",
    "merge",
    "nested",
    "quantile_ranks",
    "read_spec",
    "run",
    "sample_quantile",
    "variance_components",
    "wilson",
    "with_controls",
    "within_name",
]
