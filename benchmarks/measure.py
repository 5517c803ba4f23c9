"""How a compiled function is measured: compilation apart from running, warmed, blocked, memory beside the time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

#: Timings of one workload; their spread is what a later run is compared against.
REPEATS = 7


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one compiled workload took.

    Attributes:
        compile_seconds: tracing excluded.
        seconds: of one call, once per repeat.
        program_bytes: arguments, results and temporaries of the program on one device; None where it does not say.
    """

    compile_seconds: float
    seconds: tuple[float, ...]
    program_bytes: int | None = None

    @property
    def median(self) -> float:
        """The middle one of the repeats, in seconds."""
        return statistics.median(self.seconds)


def use_all_cores(devices: int | None = None) -> None:
    """Give a CPU one device per core, as the command line does; to be called before JAX starts."""
    if devices is None and ("JAX_NUM_CPU_DEVICES" in os.environ or "host_platform" in os.environ.get("XLA_FLAGS", "")):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX runs already
        jax.config.update("jax_num_cpu_devices", devices or cores)


def everywhere(function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """Let every local device apply ``function`` to its part of the arguments' leading axis; no word between devices.

    Args:
        function: of ``shared`` arguments that every device gets whole, then of arguments that are split.
        shared: how many.
    """
    mesh = Mesh(np.asarray(jax.local_devices()), ("draws",))

    def call(*arguments: Any) -> Any:
        split = len(arguments) - shared
        specs = (*[PartitionSpec()] * shared, *[PartitionSpec("draws")] * split)
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("draws"), check_vma=False
        )(*arguments)  # fmt: skip

    return call


def place(shared: Sequence[Any], split: Sequence[Any]) -> tuple[Any, ...]:
    """Put the arguments of an `everywhere` function where they are used, so that no call copies them."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("draws",))
    whole, parts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("draws"))
    return (*(jax.device_put(one, whole) for one in shared), *(jax.device_put(one, parts) for one in split))


def compile_program(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, Any]:
    """Compile ahead of time; return the program, the seconds it took, and its memory analysis (or None)."""
    lowered = jax.jit(function).lower(*arguments)
    started = time.perf_counter()
    program = lowered.compile()
    return program, time.perf_counter() - started, program.memory_analysis()


def time_program(function: Callable[..., Any], *arguments: Any, seconds: float, repeats: int = REPEATS) -> Timing:
    """Compile, warm and time ``function(*arguments)``."""
    program, compile_seconds, memory = compile_program(function, *arguments)
    size = None
    if memory is not None:
        fields = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
        size = sum(int(getattr(memory, field, 0) or 0) for field in fields)
    return Timing(compile_seconds, time_calls(lambda: program(*arguments), seconds, repeats), size)


def time_calls(call: Callable[[], Any], seconds: float, repeats: int = REPEATS) -> tuple[float, ...]:
    """Return the seconds of one call, ``repeats`` times; each is the mean over a share of ``seconds`` of calls.

    Two calls are under way at a time, as in the engine, so that dispatch and computation overlap.
    """
    jax.block_until_ready(call())
    started = time.perf_counter()
    jax.block_until_ready(call())
    once = max(time.perf_counter() - started, 1e-7)
    calls = max(1, round(seconds / repeats / once))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        flight: list[Any] = []
        for _ in range(calls):
            flight.append(call())
            if len(flight) > 2:
                jax.block_until_ready(flight.pop(0))
        jax.block_until_ready(flight)
        times.append((time.perf_counter() - started) / calls)
    return tuple(times)


def time_engine(
    draw: Callable[..., Any],
    accumulators: Any,
    *,
    block: int,
    lanes: int,
    seconds: float,
    repeats: int = REPEATS,
    mesh: Mesh | None = None,
) -> tuple[Timing, int]:
    """Time `montecarlo.run`, statistics included, without a journal.

    Returns:
        Timing (the bytes are those that two supersteps take on a device), and the number of draws of one call.
    """
    from cnninv_jax import montecarlo

    devices = jax.local_device_count() if mesh is None else mesh.size
    step = block * devices

    def run(num_draws: int, seed: int) -> Any:
        return montecarlo.run(
            draw, seed, num_draws, chunk_size=block, lanes=lanes, statistics=accumulators, mesh=mesh, progress=False
        )

    provenance = run(step, 0).provenance
    started = time.perf_counter()
    run(step, 1)
    once = time.perf_counter() - started
    # Where one superstep takes long, fewer of them; three are the least that have a middle.
    repeats = max(min(3, repeats), min(repeats, round(seconds / once)))
    num_draws = step * max(1, round(seconds / repeats / once))
    times = []
    for seed in range(2, 2 + repeats):
        started = time.perf_counter()
        run(num_draws, seed)
        times.append(time.perf_counter() - started)
    return Timing(provenance["compile_seconds"], tuple(times), provenance["memory_bytes"]), num_draws


def note(text: str) -> None:
    """Show on a terminal what is being measured; an empty text clears the line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def resident_mib() -> float:
    """Return the resident memory of this process, in MiB (Linux; elsewhere the largest it ever had)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 1024)


def device_peak_bytes() -> int | None:
    """Return the most memory an accelerator has held since this process began, summed over devices; None on a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    return int(sum(peaks)) if peaks else None


def compiled(benchmark: Any, function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """Compile ``function`` ahead of time; note compile time and memory in a pytest-benchmark record."""
    program, seconds, memory = compile_program(function, *arguments)
    benchmark.extra_info["compile_seconds"] = round(seconds, 3)
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
