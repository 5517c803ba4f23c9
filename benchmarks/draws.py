"""Draws of a random CNN (Random DCN, Definition 2) a second: every filter, or the responses by their Gram matrix.

``python -m benchmarks.draws [--widths 64 256 1024 4096] [--rounds 5] [--smoke]`` draws a network of three 3 x 3
convolutions over 16 x 16 maps of a picture with three channels, both ways in turns, compiled beforehand. Beside them
stand the random numbers and multiply-adds that a draw takes, and the least time these two need one after the other on
this device, at rates measured here: normals by `_random.normal`, products of 1024 x 1024 matrices.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import store
from benchmarks.measure import compile_program, note
from cnninv_jax._numerics import matmul
from cnninv_jax._random import normal
from cnninv_jax.limits import Conv
from cnninv_jax.limits._drawing import drawing
from cnninv_jax.limits._gram_draws import moments_work
from cnninv_jax.limits.draws import SAMPLINGS, random_output

SIDE, CHANNELS = 16, 3
LAYERS = (Conv(3, padding="same"), Conv(3, padding="same"), Conv(3, padding="same"))
#: Random numbers of one call in the plain way, about; narrow networks are drawn side by side.
NUMBERS = 2**22


def work(stages):
    """Return random numbers and multiply-adds of one draw."""
    numbers = products = 0
    for at, stage in enumerate(stages):
        channels, length = stage.drawn
        drawn = stage.num_filters * channels * math.prod(length)
        shifts = math.prod(stage.conv.shifts)
        numbers += drawn
        products += drawn * shifts
        if stage.gram:  # what precedes gives the sums of products; a factorisation takes a third of n^3
            before = stages[at - 1].num_filters if at else stage.channels
            products += before * moments_work(stage.before, stage.conv) + shifts**3 // 3
    return numbers, products


def best_seconds(call, seconds=0.3):
    """Return the shortest time of a call, over some of them."""
    jax.block_until_ready(call())
    times, until = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        started = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return min(times)


def rates(small=False):
    """Return normals and multiply-adds a second."""
    count, side = (2**12, 64) if small else (2**18, 1024)
    numbers = jax.jit(lambda key: normal(key, (count,), jnp.dtype("float32")))
    square = jnp.ones((side, side), jnp.float32)
    product = jax.jit(matmul)
    key = jax.random.key(0)
    return count / best_seconds(lambda: numbers(key)), side**3 / best_seconds(lambda: product(square, square))


def programs(width, picture):
    """Return for each way: lanes, the compiled program, compile seconds, temporary bytes."""
    numbers, _ = work(drawing(LAYERS, picture.shape, width, "gaussian"))
    lanes = max(1, min(64, NUMBERS // numbers))
    keys = jax.random.split(jax.random.key(width), lanes)
    made = {}
    for sampling in SAMPLINGS:

        def draw(key, sampling=sampling):
            return random_output(key, picture, LAYERS, width=width, sampling=sampling)

        program, seconds, memory = compile_program(jax.vmap(draw), keys)
        made[sampling] = (program, seconds, getattr(memory, "temp_size_in_bytes", 0))
    return lanes, keys, made


def measure(width, rounds, least):
    """Time both ways in turns; return what one row of the table says."""
    picture = jax.random.uniform(jax.random.key(0), (CHANNELS, SIDE, SIDE), jnp.float32)
    lanes, keys, made = programs(width, picture)
    calls, times = {}, {sampling: [] for sampling in made}
    for sampling, (program, _, _) in made.items():
        calls[sampling] = max(1, round(least / best_seconds(lambda program=program: program(keys), 0)))
    for _ in range(rounds):
        for sampling, (program, _, _) in made.items():
            started = time.perf_counter()
            for _ in range(calls[sampling]):
                jax.block_until_ready(program(keys))
            times[sampling].append((time.perf_counter() - started) / (calls[sampling] * lanes))
    ways = {}
    for sampling, (_, compile_seconds, temporary) in made.items():
        stages = drawing(LAYERS, picture.shape, width, "gaussian", sampling)
        numbers, products = work(stages)
        ways[sampling] = {
            "seconds": float(np.median(times[sampling])),
            "compile_seconds": compile_seconds,
            "temporary_MiB": temporary / 2**20,
            "normals": numbers,
            "multiply_adds": products,
            "by_gram": [stage.gram for stage in stages],
        }
    gain = float(np.median(np.divide(times["plain"], times["gram"])))
    return {"width": width, "lanes": lanes, "gain": gain, "ways": ways}


def main(arguments=None):
    """Measure and print one Markdown table; write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draws", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024, 4096], help="channels of every layer")
    parser.add_argument("--rounds", type=int, default=5, help="how often the two ways take turns (default 5)")
    parser.add_argument("--smoke", action="store_true", help="one narrow network, nothing stored")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    given = parser.parse_args(arguments)
    widths, rounds, least = ([16], 1, 0) if given.smoke else (given.widths, given.rounds, 0.2)
    device = store.describe_device()
    # Before and after every row, the best kept: other programs may hold the cores for a while.
    seen = [rates(given.smoke)]
    rows = []
    for width in widths:
        note(f"width {width}")
        rows.append(measure(width, rounds, least))
        seen.append(rates(given.smoke))
    note("")
    normals, multiply_adds = np.max(seen, axis=0).tolist()
    print(f"{device['name']}; {len(LAYERS)} convolutions 3 x 3, {CHANNELS} channels, {SIDE} x {SIDE}, float32")
    print(f"{normals / 1e6:,.0f} M normals/s, {multiply_adds / 1e9:,.0f} G multiply-adds/s\n")
    print("| width | way | draws/s | gain | normals (M) | multiply-adds (G) | floor (ms) | share | compile s | MiB |")
    print("| ---: | --- |" + " ---: |" * 8)
    for row in rows:
        for sampling, way in row["ways"].items():
            floor = way["normals"] / normals + way["multiply_adds"] / multiply_adds
            way["floor_seconds"] = floor
            cells = [
                f"{row['width']}",
                sampling,
                f"{1 / way['seconds']:,.1f}",
                f"{row['gain']:.2f}" if sampling == "gram" else "",
                f"{way['normals'] / 1e6:,.2f}",
                f"{way['multiply_adds'] / 1e9:,.2f}",
                f"{1e3 * floor:,.2f}",
                f"{floor / way['seconds']:.0%}",
                f"{way['compile_seconds']:.1f}",
                f"{way['temporary_MiB']:,.0f}",
            ]
            print("| " + " | ".join(cells) + " |")
    if not given.smoke:
        record = {
            "device": device,
            "versions": store.versions(),
            "normals_per_second": normals,
            "multiply_adds_per_second": multiply_adds,
            "rows": rows,
        }
        path = given.results / store.slug(device) / "draws.json"
        store.write(record, path)
        print(f"\nStored in {path}.")


if __name__ == "__main__":
    main()
