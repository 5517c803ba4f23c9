"""Analysis, synthesis and spectra: patches against conv, one shared bank against many."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.measure import run
from cnninv_jax import filters, operators, sparsity

SIZES = {"fig2 1-D": (96, 32, 5, 32), "vgg conv1_2": (64, 64, (3, 3), (15, 15))}


def bank(size, batch=None):
    num_filters, channels, length, signal = SIZES[size]
    draw = lambda key: filters.gaussian(key, num_filters, channels, length)  # noqa: E731
    padding = "valid" if isinstance(signal, int) else "same"
    if batch is None:
        return draw(jax.random.key(0)), signal, padding
    return jax.vmap(draw)(jax.random.split(jax.random.key(0), batch)), signal, padding


@pytest.mark.parametrize("method", ["patches", "conv"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", ["analysis", "synthesis"])
def test_many_banks(benchmark, side, size, method):
    filters_, signal, padding = bank(size, 16)
    make = lambda w: operators.conv_operator(w, signal, padding=padding, method=method)  # noqa: E731
    one = make(filters_[0])
    shape = one.input_shape if side == "analysis" else one.code_shape
    x = jax.random.normal(jax.random.key(1), (16, *shape))
    result = run(benchmark, jax.vmap(lambda w, x: getattr(operators, side)(make(w), x)), filters_, x)
    assert jnp.all(jnp.isfinite(result))


@pytest.mark.parametrize("method", ["patches", "conv"])
@pytest.mark.parametrize("size", SIZES)
def test_shared_bank(benchmark, size, method):
    filters_, signal, padding = bank(size)
    op = operators.conv_operator(filters_, signal, padding=padding, method=method)
    x = jax.random.normal(jax.random.key(1), (16, *op.input_shape))
    run(benchmark, jax.vmap(operators.analysis, in_axes=(None, 0)), op, x)


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_synthesis_of_a_sparse_code(benchmark, form):
    filters_, signal, _ = bank("fig2 1-D")
    op = operators.conv_operator(filters_, signal)
    keys = jax.random.split(jax.random.key(1), 64)
    codes = jax.vmap(lambda key: sparsity.sample_code(key, 96, op.shifts, 10))(keys)
    if form == "sparse":
        run(benchmark, jax.vmap(operators.synthesis_sparse, in_axes=(None, 0)), op, codes)
    else:
        run(benchmark, jax.vmap(operators.synthesis, in_axes=(None, 0)), op, jax.vmap(lambda c: c.to_dense())(codes))


@pytest.mark.parametrize("what", ["norm_squared", "frame_bounds", "coherence"])
def test_spectrum(benchmark, what):
    filters_, signal, _ = bank("fig2 1-D")
    op = operators.conv_operator(filters_, signal)
    function = {"coherence": lambda op: operators.coherence(op, over="shifts")}.get(what, getattr(operators, what))
    run(benchmark, function, op)
