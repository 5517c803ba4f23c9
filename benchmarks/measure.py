"""How a compiled function is measured: compilation apart, warmed, blocked, memory beside the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def compiled(benchmark: Any, function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """Compile ``function`` ahead of time; note compile time and memory in the benchmark's record."""
    lowered = jax.jit(function).lower(*arguments)
    started = time.perf_counter()
    program = lowered.compile()
    benchmark.extra_info["compile_seconds"] = round(time.perf_counter() - started, 3)
    memory = program.memory_analysis()
    if memory is not None:
        benchmark.extra_info["temporary_MiB"] = round(memory.temp_size_in_bytes / 2**20, 3)
        benchmark.extra_info["arguments_MiB"] = round(memory.argument_size_in_bytes / 2**20, 3)
    benchmark.extra_info["device"] = jax.devices()[0].device_kind
    return program


def run(benchmark: Any, function: Callable[..., Any], *arguments: Any, work: float = 0.0) -> Any:
    """Measure ``function`` under pytest-benchmark; ``work`` is the number of draws or multiply-adds of one call."""
    program = compiled(benchmark, function, *arguments)
    jax.block_until_ready(program(*arguments))
    result = benchmark(lambda: jax.block_until_ready(program(*arguments)))
    if work and benchmark.stats:
        benchmark.extra_info["per_second"] = round(work / benchmark.stats.stats.median)
    return result
