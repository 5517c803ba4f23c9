"""Pooling with switches against loops, and unpooling against the semantics of `cnninv_jax.sparsity`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax import sparsity
from cnninv_jax.nn import blocks
from cnninv_jax.nn.pooling import flat_switches, max_pool, unpool, upsample

#: Window, stride, ceil mode; side by side and overlapping, with and without a rest.
WINDOWS = [(2, 2, False), (2, 2, True), (3, 2, False), (3, 2, True), (3, 3, True), ((2, 3), (2, 2), False)]
MAPS = np.random.default_rng(3).standard_normal((2, 7, 10, 3)).astype(np.float32)
MAPS[0, :4, :4, 0] = 0.0  # equal values


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def by_loops(maps, window, stride, ceil):
    (p, q), (s, t) = pair(window), pair(stride)
    counts = [
        max(1, (-(-(n - side) // step) if ceil else (n - side) // step) + 1)
        for n, side, step in zip(maps.shape[1:3], (p, q), (s, t), strict=True)
    ]
    values = np.zeros((maps.shape[0], *counts, maps.shape[3]), maps.dtype)
    switches = np.zeros(values.shape, np.uint8)
    for b, i, j, c in np.ndindex(*values.shape):
        best = -np.inf
        for a, d in np.ndindex(p, q):
            if i * s + a < maps.shape[1] and j * t + d < maps.shape[2] and maps[b, i * s + a, j * t + d, c] > best:
                best = maps[b, i * s + a, j * t + d, c]
                switches[b, i, j, c] = a * q + d
        values[b, i, j, c] = best
    return values, switches


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def pooled(maps, window, stride, ceil=False):
    """All that follows from maps: values, switches, maps again, switches in the whole map."""
    values, switches = max_pool(maps, window, stride, ceil=ceil)
    size = maps.shape[1:3]
    return (
        values,
        switches,
        unpool(values, switches, size, window, stride),
        flat_switches(switches, size, window, stride),
    )


@pytest.mark.parametrize(("window", "stride", "ceil"), WINDOWS)
def test_values_and_switches_by_loops(window, stride, ceil):
    values, switches, _, _ = pooled(MAPS, window, stride, ceil)
    wanted = by_loops(MAPS, window, stride, ceil)
    np.testing.assert_array_equal(values, wanted[0])
    np.testing.assert_array_equal(switches, wanted[1])
    assert switches.dtype == np.uint8
    if not isinstance(window, tuple):
        other = blocks.pooled(jnp.asarray(MAPS), blocks.Pool(window, stride, ceil=ceil))
        np.testing.assert_array_equal(values, other)


@pytest.mark.parametrize(("window", "stride", "ceil"), WINDOWS)
def test_unpooling_puts_every_value_at_its_switch(window, stride, ceil):
    values, _, found, where = map(np.asarray, pooled(MAPS, window, stride, ceil))
    wanted = np.zeros_like(MAPS).reshape(2, -1, 3)
    for b, i, j, c in np.ndindex(*values.shape):
        wanted[b, where[b, i, j, c], c] = values[b, i, j, c]
    # What overlapping windows chose together is one value, and so is their mean but for rounding.
    np.testing.assert_allclose(found, wanted.reshape(MAPS.shape), rtol=0 if window == stride else 1e-6)


def test_the_switches_are_those_of_sparsity():
    h = np.moveaxis(MAPS[1], -1, 0)
    other = np.random.default_rng(4).standard_normal(h.shape).astype(np.float32)

    @jax.jit
    def theirs(h, other):
        values, switches = sparsity.max_pool(h, 2)
        seen = jnp.take_along_axis(other.reshape(3, -1), switches.reshape(3, -1), axis=1).reshape(values.shape)
        # M_known (Gilbert 2017, eq. 3) with all blocks: what stands at the switches, and nothing else.
        known = sparsity.project_known(other, values.size, switches, pool=2)
        return values, switches, seen, known, sparsity.unpool(seen, switches, h.shape[1:])

    values, switches, seen, known, back = theirs(np.maximum(h, 0), other)
    np.testing.assert_array_equal(back, known)
    found = pooled(np.maximum(MAPS[1:], 0), 2, None, True)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(found[0])[0], -1, 0), values)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(found[3])[0], -1, 0), switches)
    ours = jax.jit(lambda seen: unpool(jnp.moveaxis(seen, 0, -1)[None], found[1], h.shape[1:]))(seen)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(ours)[0], -1, 0), known)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2)])
def test_gradients_go_to_the_winner(window, stride):
    values, switches, _, where = map(np.asarray, pooled(MAPS, window, stride))
    cotangent = np.random.default_rng(5).standard_normal(values.shape).astype(np.float32)

    @jax.jit
    def pulled(maps, cotangent):
        _, pull = jax.vjp(lambda maps: max_pool(maps, window, stride)[0], maps)
        _, back = jax.vjp(lambda values: unpool(values, switches, MAPS.shape[1:3], window, stride), jnp.asarray(values))
        return *pull(cotangent), *back(maps)

    found, back = pulled(MAPS, cotangent)
    wanted = np.zeros((2, 70, 3))
    for b, i, j, c in np.ndindex(*values.shape):
        wanted[b, where[b, i, j, c], c] += cotangent[b, i, j, c]
    np.testing.assert_allclose(found, wanted.reshape(MAPS.shape), rtol=1e-5, atol=1e-6)
    # Unpooling is linear in the values, and its transpose reads them at the switches.
    read = np.take_along_axis(MAPS.reshape(2, -1, 3), where.reshape(2, -1, 3), axis=1).reshape(values.shape)
    if window == stride:
        np.testing.assert_array_equal(back, read)
    else:
        shares = np.asarray(back)[read != 0] / read[read != 0]
        assert np.all((np.abs(shares - 1) < 1e-5) | (shares < 0.51))


def test_nan_is_seen():
    spoilt = jnp.asarray(MAPS).at[0, 3, 3, 1].set(jnp.nan)
    values, switches = max_pool(spoilt)
    assert np.isnan(values[0, 1, 1, 1])
    assert switches[0, 1, 1, 1] == 3
    assert np.isnan(values).sum() == 1


def test_upsampling():
    maps = jnp.arange(1.0, 5.0, dtype=np.float32).reshape(1, 2, 2, 1)
    zeros = upsample(maps, 2, "zeros", (5, 3))[0, :, :, 0]
    np.testing.assert_array_equal(zeros, [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    nearest = upsample(maps, (1, 2), "nearest", (3, 4))[0, :, :, 0]
    np.testing.assert_array_equal(nearest, [[1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])


def test_what_does_not_fit_is_said():
    maps = jnp.zeros((1, 2, 2, 1), np.float32)
    with pytest.raises(ValueError, match="at least 3 x 3 for pooling, got 2 x 2"):
        max_pool(maps, 3)
    with pytest.raises(ValueError, match="at most 256 entries"):
        max_pool(maps, 17)
    with pytest.raises(ValueError, match="switches of the values' shape"):
        unpool(maps, jnp.zeros((1, 2, 1, 1), np.uint8), 4)
    with pytest.raises(ValueError, match="'zeros' or 'nearest', got 'bilinear'"):
        upsample(maps, 2, "bilinear")
