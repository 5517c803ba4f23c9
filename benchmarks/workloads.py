"""What `python -m benchmarks` measures: suites of workloads, sized for the device they run on."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import floors
from benchmarks.floors import Work
from benchmarks.measure import (
    REPEATS,
    Timing,
    device_peak_bytes,
    everywhere,
    place,
    resident_mib,
    time_engine,
    time_program,
)
from benchmarks.peaks import Peaks, worth_measuring
from cnninv_jax import filters, montecarlo, operators, rip, sparsity
from cnninv_jax._numerics import Products
from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters

#: A function that measures for so many seconds, so many times: the timing, and the draws (or examples) of one call.
Measure = Callable[[float, int], tuple[Timing, int]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """One line of the table.

    Attributes:
        suite: what `--suite` calls it.
        name: what is computed.
        size: with which sizes; name and size identify it among stored results.
        work: what one draw needs at least.
        measure: compiles and times it.
    """

    suite: str
    name: str
    size: str
    work: Work
    measure: Measure


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes that suit a device.

    Attributes:
        parameters: of Fig. 2.
        lanes: draws side by side, one line of the table for each.
        block: draws of one block.
        layer: K = M, filter length and signal length of a two-dimensional layer.
        batch: examples side by side of the operators.
        fig3: filters and side of a map of the projection of Fig. 3.
        choices: precisions.
    """

    parameters: Fig2Parameters
    lanes: tuple[int, ...]
    block: int
    layer: tuple[int, int, int]
    batch: int
    fig3: tuple[int, int]
    choices: tuple[Products, ...]


def scale(*, smoke: bool = False) -> Scale:
    """Return the sizes for the device at hand, or tiny ones."""
    if smoke:
        tiny = Fig2Parameters(K=5, M=4, ell=2, D=4, k=2)
        return Scale(tiny, (8,), 16, (4, 3, 6), 2, (4, 6), ("float32",))
    if jax.default_backend() == "cpu":
        return Scale(Fig2Parameters(), (64,), 4096, (64, 3, 15), 16, (512, 15), worth_measuring(False))
    lanes = (1024, 2048, 4096, 8192, 16384)
    return Scale(Fig2Parameters(), lanes, 1 << 17, (64, 3, 15), 512, (512, 15), worth_measuring(True))


def fig2_draw(parameters: Fig2Parameters) -> Callable[[jax.Array], Any]:
    """Return the draw of Fig. 2 in float32."""
    return FIG2.draw(parameters, "float32")


def _program(function: Callable[..., Any], build: Callable[[int], tuple[Sequence[Any], Sequence[Any], int]]) -> Measure:
    """Time a function of arrays that every device gets and arrays that are split.

    Args:
        function: ``function(*shared, *split)``.
        build: ``build(devices)`` returns the shared arrays, the split ones, and the examples in them.
    """

    def measure(seconds: float, repeats: int) -> tuple[Timing, int]:
        shared, split, items = build(jax.local_device_count())
        arguments = place(shared, split)
        return time_program(everywhere(function, len(shared)), *arguments, seconds=seconds, repeats=repeats), items

    return measure


def _engine(draw: Callable[..., Any], statistics: Any, block: int, lanes: int) -> Measure:
    def measure(seconds: float, repeats: int) -> tuple[Timing, int]:
        return time_engine(draw, statistics, block=block, lanes=lanes, seconds=seconds, repeats=repeats)

    return measure


def _draws(draw: Callable[..., Any], lanes: int) -> Measure:
    def build(devices: int) -> tuple[Sequence[Any], Sequence[Any], int]:
        return (), (jax.random.split(jax.random.key(0), devices * lanes),), devices * lanes

    return _program(jax.vmap(draw), build)


def _fig2(sizes: Scale) -> Iterator[Workload]:
    for sampling in ("conditional", "plain"):
        for products in sizes.choices:
            for lanes in sizes.lanes:
                parameters = dataclasses.replace(sizes.parameters, sampling=sampling, products=products)
                yield Workload(
                    "fig2",
                    f"Fig. 2, {sampling}, engine",
                    f"{products}, lanes {lanes:,}, block {sizes.block:,}",
                    floors.fig2(sampling, lanes=lanes, products=products, parameters=parameters),
                    _engine(fig2_draw(parameters), FIG2.statistics(parameters), sizes.block, lanes),
                )


def _plain_with(key: jax.Array, parameters: Fig2Parameters, method: str) -> Any:
    """Draw Fig. 2's readings plainly, with an operator that multiplies in a given way."""
    p = parameters
    filter_key, code_key = jax.random.split(key)
    bank = filters.gaussian(filter_key, p.K, p.M, p.ell, dtype=np.float32)
    return rip.ratios(code_key, operators.conv_operator(bank, p.D, stride=p.stride, method=method), p.k)


def _draw(sizes: Scale) -> Iterator[Workload]:
    p = sizes.parameters
    for lanes in sizes.lanes:
        draw = fig2_draw(dataclasses.replace(p, sampling="conditional"))
        work = floors.fig2("conditional", lanes=lanes, parameters=p)
        yield Workload("draw", "Fig. 2, conditional, bare", f"lanes {lanes:,}", work, _draws(draw, lanes))
        for method in ("patches", "conv"):
            draw = functools.partial(_plain_with, parameters=p, method=method)
            work = floors.fig2("plain", lanes=lanes, parameters=p)
            yield Workload("draw", f"Fig. 2, plain, bare, {method}", f"lanes {lanes:,}", work, _draws(draw, lanes))


def _layer_draw(key: jax.Array, width: int, taps: int, side: int, k: int, method: str) -> Any:
    """One draw of the readings for a two-dimensional layer with same padding."""
    filter_key, code_key = jax.random.split(key)
    bank = filters.gaussian(filter_key, width, width, (taps, taps), dtype=np.float32)
    op = operators.conv_operator(bank, (side, side), padding="same", method=method)
    return rip.ratios(code_key, op, k)


def _layer(sizes: Scale) -> Iterator[Workload]:
    width, taps, side = sizes.layer
    k = max(1, width // 8)
    lanes = max(1, sizes.batch // 2)
    work = floors.plain_draw(width, width, taps**2, side**2, side**2, k, lanes=lanes, products="float32")
    for method in ("patches", "conv"):
        draw = functools.partial(_layer_draw, width=width, taps=taps, side=side, k=k, method=method)
        size = f"K = M = {width}, {taps} x {taps}, D {side} x {side}, lanes {lanes}"
        yield Workload("layer", f"2-D layer, new filters, {method}", size, work, _draws(draw, lanes))


def _operators(sizes: Scale) -> Iterator[Workload]:
    width, taps, side = sizes.layer
    for which in ("analysis", "synthesis"):
        for method in ("patches", "conv"):
            work = floors.layer(width, width, taps**2, side**2, side**2, lanes=sizes.batch, shared=True)
            size = f"K = M = {width}, {taps} x {taps}, D {side} x {side}, batch {sizes.batch}"
            yield Workload("operators", f"{which}, one bank, {method}", size, work, _one_bank(which, method, sizes))
    p = sizes.parameters
    batch, shifts = 4 * sizes.batch, (p.D - p.ell) // p.stride + 1
    for method in ("patches", "conv"):
        work = floors.layer(p.K, p.M, p.ell, shifts, p.D, lanes=batch, shared=False)
        size = f"K {p.K}, M {p.M}, l {p.ell}, D {p.D}, batch {batch}"
        yield Workload("operators", f"analysis, many banks, {method}", size, work, _many_banks(method, p, batch))


def _one_bank(which: str, method: str, sizes: Scale) -> Measure:
    width, taps, side = sizes.layer

    def apply(bank: jax.Array, arrays: jax.Array) -> jax.Array:
        op = operators.conv_operator(bank, (side, side), padding="same", method=method)
        return jax.vmap(getattr(operators, which), in_axes=(None, 0))(op, arrays)

    def build(devices: int) -> tuple[Sequence[Any], Sequence[Any], int]:
        bank = filters.gaussian(jax.random.key(0), width, width, (taps, taps), dtype=np.float32)
        arrays = jax.random.normal(jax.random.key(1), (devices * sizes.batch, width, side, side), np.float32)
        return (bank,), (arrays,), devices * sizes.batch

    return _program(apply, build)


def _many_banks(method: str, p: Fig2Parameters, batch: int) -> Measure:
    def apply(bank: jax.Array, x: jax.Array) -> jax.Array:
        return operators.analysis(operators.conv_operator(bank, p.D, stride=p.stride, method=method), x)

    def build(devices: int) -> tuple[Sequence[Any], Sequence[Any], int]:
        banks = jax.random.normal(jax.random.key(0), (devices * batch, p.K, p.M, p.ell), np.float32)
        x = jax.random.normal(jax.random.key(1), (devices * batch, p.M, p.D), np.float32)
        return (), (banks, x), devices * batch

    return _program(jax.vmap(apply), build)


def _projection(sizes: Scale) -> Iterator[Workload]:
    p = sizes.parameters
    count, side = sizes.fig3
    maps = [((p.K, (p.D - p.ell) // p.stride + 1), p.k, None, 4 * sizes.batch)]
    # The 6,000 of 512 x 15 x 15 entries that the second panel of Fig. 3 keeps, or as large a part of a smaller map.
    maps.append(((count, side, side), max(1, round(count * side**2 * 6000 / 115_200)), 2, max(1, sizes.batch // 4)))
    for shape, k, pool, batch in maps:
        for name in ("project", "project_sparse"):
            function = jax.vmap(functools.partial(getattr(sparsity, name), k=k, pool=pool))

            def build(
                devices: int, shape: tuple[int, ...] = shape, batch: int = batch
            ) -> tuple[Sequence[Any], Sequence[Any], int]:
                h = jax.random.normal(jax.random.key(0), (devices * batch, *shape), np.float32)
                return (), (h,), devices * batch

            entries = float(np.prod(shape))
            written = entries if name == "project" else k * (2 + len(shape) - 1)
            work = Work(num_bytes=4 * (entries + written), lanes=batch)
            size = f"h {' x '.join(map(str, shape))}, k {k:,}, batch {batch}"
            yield Workload("projection", f"M(h, k), {name}", size, work, _program(function, build))


def _sweep(sizes: Scale) -> Iterator[Workload]:
    p = sizes.parameters
    # One number of non-zeros per cell, traced: all cells share one program.
    actives = sorted({max(1, round(p.k * part / 4)) for part in range(1, 5)})
    draw = functools.partial(
        rip.draw_ratios, num_filters=p.K, channels=p.M, length=p.ell, signal_shape=p.D, k=p.k, stride=p.stride,
        sampling="plain", dtype=np.float32,
    )  # fmt: skip
    lanes = sizes.lanes[0]

    def measure(seconds: float, repeats: int) -> tuple[Timing, int]:
        num_draws = sizes.block * jax.local_device_count()

        def run(seed: int) -> float:
            started = time.perf_counter()
            grid = {"active": actives}
            montecarlo.sweep(
                draw, seed, grid, num_draws, traced=["active"], chunk_size=sizes.block, lanes=lanes, progress=False
            )
            return time.perf_counter() - started

        first = run(0)
        once = run(1)
        repeats = max(2, min(repeats, round(seconds / once)))
        times = tuple(run(seed) for seed in range(2, 2 + repeats))
        return Timing(max(0.0, first - once), times), num_draws * len(actives)

    size = f"{len(actives)} cells, lanes {lanes:,}, block {sizes.block:,}"
    work = floors.fig2("plain", lanes=lanes, parameters=p)
    yield Workload("sweep", "Fig. 2, plain, sweep over k", size, work, measure)


def _nearly_free(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (), jnp.float32)


def _overhead(sizes: Scale) -> Iterator[Workload]:
    for lanes in sizes.lanes[:1] if len(sizes.lanes) == 1 else (sizes.lanes[0], sizes.lanes[-1]):
        size = f"lanes {lanes:,}, block {sizes.block:,}"
        measure = _engine(_nearly_free, {"value": montecarlo.Moments()}, sizes.block, lanes)
        # No floor: what a draw of one number costs is the engine.
        yield Workload("engine", "one normal, mean and variance, engine", size, Work(), measure)


SUITES: dict[str, Callable[[Scale], Iterator[Workload]]] = {
    "fig2": _fig2,
    "draw": _draw,
    "layer": _layer,
    "operators": _operators,
    "projection": _projection,
    "sweep": _sweep,
    "engine": _overhead,
}


def measure(workload: Workload, seconds: float, repeats: int = REPEATS) -> dict[str, Any]:
    """Measure one workload; return its row of the table as it is stored, the floor still missing.

    A workload that does not fit is a row with an ``error`` and no rates.
    """
    row: dict[str, Any] = {"suite": workload.suite, "workload": workload.name, "size": workload.size}
    try:
        timing, items = workload.measure(seconds, repeats)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        return {**row, "rates": [], "error": " ".join(str(error).split())[:200]}
    return row | {
        "compile_seconds": _short(timing.compile_seconds),
        "run_seconds": _short(timing.median),
        "draws_per_run": items,
        "rates": [_short(items / seconds) for seconds in timing.seconds],
        "rate": _short(items / timing.median),
        "program_bytes": timing.program_bytes,
        "device_peak_bytes": device_peak_bytes(),
        "resident_mib": round(resident_mib()),
        "products": workload.work.products,
    }


def with_floor(row: dict[str, Any], work: Work, peaks: Peaks) -> dict[str, Any]:
    """Return the row with its floor, where the workload has one."""
    least = floors.floor(work, peaks)
    if least is None or "error" in row:
        return row
    terms = ("random", "product", "memory", "highest", "total")
    return row | {
        "floor_draws_per_second": _short(1 / least.seconds),
        "fraction_of_floor": _short(row["rate"] * least.seconds),
        "floor_ns": {name: _short(1e9 * getattr(least, name)) for name in terms},
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
