"""The model-RIP constant at Fig. 2's size of Gilbert et al. 2017: supports looked at a second, and what they find.

``python -m benchmarks.constant [--full] [--smoke]`` times random supports (one |W_S W_S^T - I| each, or the proof
that it is no larger than the best), the truncated power method (one product by W W^T and one projection a support) and
exchanges, then the whole of `rip.constant`, compilation apart. ``--full`` compares with 10^7 random supports.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import store
from cnninv_jax import filters, rip
from cnninv_jax.operators import conv_operator
from cnninv_jax.rip._gram import gram_geometry, host_gram_table
from cnninv_jax.rip._patterns import support_model
from cnninv_jax.rip.search import Layer, exchange, power_search, random_supports, way_matrix

SIZES = {"num_filters": 96, "channels": 32, "length": 5, "signal": 32, "k": 10}
SMOKE = {"num_filters": 8, "channels": 4, "length": 3, "signal": 8, "k": 3}
#: Random supports of the comparison, in calls of so many.
FULL, CALL = 10_000_000, 409_600


def seconds(call, repeats):
    """Return the result, the seconds of the first call, and the median of some more."""
    times = []
    result = None
    for _ in range(1 + repeats):
        started = time.perf_counter()
        result = jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return result, times[0], float(np.median(times[1:]))


def main(arguments=None):
    """Measure and print one Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constant", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="compare with ten million random supports")
    parser.add_argument("--smoke", action="store_true", help="a small layer, few supports")
    parser.add_argument("--members", type=int, default=1, help="1 for M_k, 2 for sums of two members (default 1)")
    given = parser.parse_args(arguments)
    size = SMOKE if given.smoke else SIZES
    repeats, blocks, batches, kept = (1, 1, 1, 16) if given.smoke else (3, 10, 16, 64)
    bank = filters.gaussian(jax.random.key(0), size["num_filters"], size["channels"], size["length"], dtype=jnp.float32)
    op = conv_operator(bank, size["signal"])
    model = support_model(op.code_shape, size["k"], None, given.members)
    geometry = gram_geometry(op)
    table = host_gram_table(np.asarray(bank), geometry)
    layer = Layer(jnp.asarray(table, jnp.float32), jnp.asarray(way_matrix(geometry)))
    key = jax.random.key(1)
    print(f"{store.describe_device()['name']}; " + ", ".join(f"{name}={value}" for name, value in size.items()))
    print("\n| way | supports | compile s | s | supports/s | largest norm |\n| --- |" + " ---: |" * 5)

    def row(name, count, value, first, median):
        rate = count / median
        print(f"| {name} | {count:,} | {first - median:.1f} | {median:.3f} | {rate:,.0f} | {value:.4f} |", flush=True)
        return rate

    (value, _, count), *times = seconds(lambda: random_supports(key, layer, model, blocks), repeats)
    row("random", int(count), float(value), *times)
    steps = 30
    (values, found), *times = seconds(lambda: power_search(key, layer, model, batches, steps, kept), repeats)
    row("truncated power", batches * 64 * steps, float(values[0]), *times)
    (values, _), *times = seconds(lambda: exchange(layer, model, found, 3), repeats)
    row("exchanges", kept * 3 * model.size, float(jnp.max(values)), *times)
    effort = {"starts": 64, "steps": 10, "num_random": 0} if given.smoke else {}
    result, *times = seconds(
        lambda: rip.constant(op, size["k"], members=given.members, exact_limit=0, **effort), repeats
    )
    row("rip.constant", result.evaluations, float(result.lower), *times)
    bounds = ("upper", "upper_weighted", "upper_gershgorin", "upper_frobenius", "upper_spectral")
    print("\n" + ", ".join(f"{name} {float(getattr(result, name)):.4f}" for name in bounds))
    if given.full:
        best, count, started = 0.0, 0, time.perf_counter()
        while count < FULL:
            value, _, more = random_supports(jax.random.fold_in(key, count), layer, model, CALL // 4096)
            best, count = max(best, float(value)), count + int(more)
        elapsed = time.perf_counter() - started
        print(f"\n{count:,} random supports: {best:.4f} in {elapsed:.0f} s ({count / elapsed:,.0f} a second); "
              f"rip.constant: {float(result.lower):.4f} in {times[1]:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
