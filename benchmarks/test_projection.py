"""M(h, k) at the sizes of Figs. 2 and 3, k static and traced."""

import functools

import jax
import jax.numpy as jnp
import pytest

from benchmarks.measure import run
from cnninv_jax import sparsity

SIZES = {"fig2 1-D": ((64, 96, 28), 10, None), "fig3 2-D": ((4, 512, 15, 15), 6000, 2)}


@pytest.mark.parametrize("name", ["project", "project_fixed", "project_sparse"])
@pytest.mark.parametrize("size", SIZES)
def test_projection(benchmark, size, name):
    shape, k, pool = SIZES[size]
    h = jax.random.normal(jax.random.key(0), shape)
    run(benchmark, jax.vmap(functools.partial(getattr(sparsity, name), k=k, pool=pool)), h, work=shape[0])


@pytest.mark.parametrize("size", SIZES)
def test_traced_k(benchmark, size):
    shape, k, pool = SIZES[size]
    h = jax.random.normal(jax.random.key(0), shape)
    project = jax.vmap(lambda h, k: sparsity.project(h, k, pool=pool), in_axes=(0, None))
    run(benchmark, project, h, jnp.asarray(k), work=shape[0])


def test_sample_code(benchmark):
    keys = jax.random.split(jax.random.key(0), 1024)
    run(benchmark, jax.vmap(lambda key: sparsity.sample_code(key, 96, 28, 10)), keys, work=1024)
