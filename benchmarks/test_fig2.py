"""The draw of Gilbert et al. 2017, Fig. 2: bare, and through the engine."""

import functools

import jax
import pytest

from benchmarks.measure import run
from cnninv_jax import montecarlo, rip
from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters

SIZE = {"num_filters": 96, "channels": 32, "length": 5, "signal_shape": 32, "k": 10}


@pytest.mark.parametrize("sampling", ["conditional", "plain"])
def test_draw(benchmark, sampling):
    keys = jax.random.split(jax.random.key(0), 128)
    run(benchmark, jax.vmap(functools.partial(rip.draw_ratios, **SIZE, sampling=sampling)), keys, work=128)


def test_ratios_of_given_filters(benchmark):
    from cnninv_jax import filters, operators

    op = operators.conv_operator(filters.gaussian(jax.random.key(0), 96, 32, 5), 32)
    keys = jax.random.split(jax.random.key(1), 128)
    run(benchmark, jax.vmap(lambda key, op: rip.ratios(key, op, 10), in_axes=(0, None)), keys, op, work=128)


def test_engine(benchmark):
    parameters = Fig2Parameters()
    draw, accumulators = FIG2.draw(parameters, "float32"), FIG2.statistics(parameters)
    go = lambda: montecarlo.run(  # noqa: E731
        draw, 0, 8192, chunk_size=4096, lanes=64, statistics=accumulators, progress=False
    )
    benchmark.extra_info["compile_seconds"] = go().provenance["compile_seconds"]
    benchmark.extra_info["memory_bytes"] = go().provenance["memory_bytes"]
    benchmark(go)
