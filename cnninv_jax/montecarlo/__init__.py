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
from cnninv_jax.montecarlo.importance import (
    DegenerateWeights,
    WeightedProportion,
    check_effective_sample_size,
    log_contribution,
    weight_note,
    weighted_interval,
)
from cnninv_jax.montecarlo.intervals import (
    clopper_pearson,
    histogram_quantile,
    mean_interval,
    quantile_ranks,
    sample_quantile,
    wilson,
)
from cnninv_jax.montecarlo.journal import read_part, read_spec
from cnninv_jax.montecarlo.merge import find_parts, merge
from cnninv_jax.montecarlo.nested import (
    VarianceComponents,
    best_count,
    nested,
    variance_components,
    within_name,
)
from cnninv_jax.montecarlo.program import clear_cache
from cnninv_jax.montecarlo.progress import Progress, SweepProgress
from cnninv_jax.montecarlo.result import Result
from cnninv_jax.montecarlo.splitting import Levels, SplittingDraw, splitting_draw, splitting_levels
from cnninv_jax.montecarlo.stopping import Look, Stopping, Width
from cnninv_jax.montecarlo.summary import Row, Summary
from cnninv_jax.montecarlo.sweep import sweep
from cnninv_jax.montecarlo.sweep_folder import merge_sweeps, read_sweep
from cnninv_jax.montecarlo.sweep_result import SweepResult

__all__ = [
    "Accumulator",
    "ControlledMean",
    "DegenerateWeights",
    "Extremes",
    "Histogram",
    "HostLostError",
    "Interrupted",
    "JournalError",
    "JournalLockedError",
    "Leaf",
    "Levels",
    "Look",
    "Moments",
    "MonteCarloError",
    "Progress",
    "Proportion",
    "Result",
    "ResultError",
    "Row",
    "SplittingDraw",
    "Stopping",
    "Summary",
    "SweepProgress",
    "SweepResult",
    "Tally",
    "VarianceComponents",
    "WeightedProportion",
    "Width",
    "best_count",
    "check_effective_sample_size",
    "clear_cache",
    "clopper_pearson",
    "controlled_name",
    "controlled_statistics",
    "find_parts",
    "histogram_quantile",
    "log_contribution",
    "mean_interval",
    "merge",
    "merge_sweeps",
    "nested",
    "quantile_ranks",
    "read_part",
    "read_spec",
    "read_sweep",
    "run",
    "sample_quantile",
    "splitting_draw",
    "splitting_levels",
    "sweep",
    "variance_components",
    "weight_note",
    "weighted_interval",
    "wilson",
    "with_controls",
    "within_name",
]
