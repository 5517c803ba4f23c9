"""CReLU, its inverse and projection, and max-pooling with switches, against plain loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.crelu.activation import Pooled, avr, crelu, inverse, max_pool, nearest, pool_features, winners
from cnninv_jax.sparsity import max_pool as block_pool

DTYPE = jnp.zeros(()).dtype
pool_jit = jax.jit(pool_features, static_argnames=("pool", "stride"))
both_jit = jax.jit(max_pool, static_argnames=("pool", "stride"))
winners_jit = jax.jit(winners, static_argnames="code_shape")


def pooled_by_loops(features, window, stride):
    """The first of the largest of every window and its flat index, window by window."""
    channels, *shifts = features.shape
    corners = [range(0, n - p + 1, s) for n, p, s in zip(shifts, window, stride, strict=True)]
    values = np.zeros((channels, *map(len, corners)))
    switches = np.zeros(values.shape, int)
    for c in range(channels):
        for region in np.ndindex(*values.shape[1:]):
            corner = [starts[r] for starts, r in zip(corners, region, strict=True)]
            best, place = -np.inf, None
            for offset in itertools.product(*map(range, window)):
                at = tuple(a + o for a, o in zip(corner, offset, strict=True))
                value = features[(c, *at)]
                if place is None or value > best or (np.isnan(value) and not np.isnan(best)):
                    best, place = value, at
            values[(c, *region)] = best
            switches[(c, *region)] = -1 if best == 0 else np.ravel_multi_index(place, shifts)
    return values, switches


def test_both_phases_and_back():
    x = jnp.asarray([[2.0, -3.0, 0.0], [-1.0, 0.5, -0.0]], DTYPE)
    features = crelu(x)
    np.testing.assert_array_equal(features, [[2, 0, 0], [0, 0.5, 0], [0, 3, 0], [1, 0, 0]])
    np.testing.assert_array_equal(inverse(features), x)
    np.testing.assert_array_equal(avr(x), [[2, 3, 0], [1, 0.5, 0]])
    np.testing.assert_array_equal(crelu(x, axis=-1), [[2, 0, 0, 0, 3, 0], [0, 0.5, 0, 1, 0, 0]])
    np.testing.assert_array_equal(inverse(crelu(x, axis=-1), axis=-1), x)
    np.testing.assert_array_equal(nearest(features), features)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), min_size=4, max_size=4),
    st.sampled_from([-2, -1, 0, 1]),
)
def test_inverse_undoes_exactly(values, axis):
    x = np.asarray(values, np.float32).reshape(2, 2)
    features = np.asarray(crelu(x, axis))
    assert np.all(features >= 0)
    np.testing.assert_array_equal(inverse(features, axis), x)
    np.testing.assert_array_equal(nearest(features, axis), features)
    positive, negative = np.split(features, 2, axis)
    np.testing.assert_array_equal(positive + negative, avr(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_stays(dtype):
    x = jnp.asarray([[1.5, -2.0]], dtype)

    @jax.jit
    def answers(x):
        return crelu(x), inverse(crelu(x)), avr(x), nearest(crelu(x)), *winners(max_pool(x), (1, 2))

    for answer in answers(x):
        assert answer.dtype == x.dtype


def test_integers_become_numbers():
    np.testing.assert_array_equal(crelu(np.asarray([3, -4])), [3, 0, 0, 4])
    assert crelu(np.asarray([3, -4])).dtype == DTYPE
    # In 8 bits -(-128) is -128 again.
    np.testing.assert_array_equal(crelu(np.asarray([-128], np.int8)), [0, 128])


def test_nan_comes_out_everywhere():
    x = jnp.asarray([[1.0, np.nan, -2.0, 0.0]], DTYPE)
    features = crelu(x)
    np.testing.assert_array_equal(np.isnan(features), [[False, True, False, False]] * 2)
    np.testing.assert_array_equal(inverse(features), x)
    np.testing.assert_array_equal(nearest(features), features)
    half = nearest(jnp.asarray([np.nan, 1.0], DTYPE))
    assert np.all(np.isnan(half[:1]))
    pooled = both_jit(x, 2)
    np.testing.assert_array_equal(pooled.features, [[np.nan, 0], [np.nan, 2]])
    np.testing.assert_array_equal(pooled.switches, [[1, -1], [1, 2]])
    responses, counts = winners_jit(pooled, (1, 4))
    np.testing.assert_array_equal(responses, [[0, np.nan, -2, 0]])
    np.testing.assert_array_equal(counts, [[0, 2, 1, 0]])


def test_derivatives_at_zero_are_those_of_the_identity():
    x = jnp.asarray([0.0, 1.0, -1.0], DTYPE)
    both, identity = jax.jit(lambda x: (jax.jacobian(crelu)(x), jax.jacobian(lambda x: inverse(crelu(x)))(x)))(x)
    np.testing.assert_array_equal(both[:, 0], [0.5, 0, 0, -0.5, 0, 0])
    np.testing.assert_array_equal(identity, np.eye(3))


def test_nearest_is_the_nearest():
    """No CReLU on a fine grid of responses is nearer, and the answer is one itself."""
    grid = np.linspace(-3, 3, 25)
    responses = np.linspace(-4, 4, 1601)
    set_of = np.stack([np.maximum(responses, 0), np.maximum(-responses, 0)])
    pairs = np.stack([axis.ravel() for axis in np.meshgrid(grid, grid)])
    found = np.asarray(nearest(jnp.asarray(pairs, DTYPE)))
    np.testing.assert_array_equal(np.asarray(crelu(inverse(found))), found)
    distance = np.sum((found - pairs) ** 2, axis=0)
    best = np.min(np.sum((set_of[:, None, :] - pairs[:, :, None]) ** 2, axis=0), axis=-1)
    assert np.all(distance <= best + 1e-5)
    np.testing.assert_allclose(distance, best, atol=1e-4)
    # Between equals the positive phase.
    np.testing.assert_array_equal(nearest(jnp.asarray([2.0, 2.0], DTYPE)), [2, 0])


POOLS = {
    "paper: 3 x 3, stride 2": ((2, 9, 8), (3, 3), (2, 2)),
    "side by side, a rest": ((3, 7, 8), (2, 3), (2, 3)),
    "gaps": ((2, 9), (2,), (4,)),
    "one axis, long window": ((2, 31), (13,), (3,)),
    "whole response": ((3, 4, 5), (4, 5), (4, 5)),
    "one by one": ((2, 4, 3), (1, 1), (1, 1)),
    "nine long": ((2, 19), (9,), (1,)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_against_loops(name):
    shape, window, stride = POOLS[name]
    rng = np.random.default_rng(len(name))
    # Few different values: many ties, and windows of zeros.
    values = np.maximum(rng.integers(-6, 4, shape), 0).astype(DTYPE)
    features, switches = pooled_by_loops(values, window, stride)
    found = pool_jit(values, pool=window, stride=stride)
    np.testing.assert_array_equal(found.features, features)
    np.testing.assert_array_equal(found.switches, switches)
    assert found.switches.dtype == np.int32


def test_pooling_of_both_phases():
    rng = np.random.default_rng(1)
    h = rng.standard_normal((3, 6, 4)).astype(DTYPE)
    found = both_jit(h, 2)
    features, switches = pooled_by_loops(np.concatenate([np.maximum(h, 0), np.maximum(-h, 0)]), (2, 2), (2, 2))
    np.testing.assert_allclose(found.features, features, rtol=1e-7)
    np.testing.assert_array_equal(found.switches, switches)
    np.testing.assert_array_equal(both_jit(h).features, np.max(np.concatenate([h, -h]), axis=(1, 2))[:, None, None])
    # AVR through the same door is the other package's pooling by magnitude.
    by_magnitude = pool_jit(avr(h), 2)
    values, places = jax.jit(lambda h: block_pool(h, 2))(h)
    np.testing.assert_array_equal(by_magnitude.features, np.abs(values))
    np.testing.assert_array_equal(by_magnitude.switches, places)


def test_pooling_hands_the_derivative_to_the_winner():
    h = jnp.asarray([[1.0, 3.0, -2.0, -5.0]], DTYPE)
    gradient = jax.jit(jax.grad(lambda h: jnp.sum(max_pool(h, 2).features)))(h)
    np.testing.assert_array_equal(gradient, [[0, 1, 0, -1]])


@pytest.mark.parametrize("name", ["paper: 3 x 3, stride 2", "one axis, long window", "whole response"])
def test_winners_against_loops(name):
    shape, window, stride = POOLS[name]
    rng = np.random.default_rng(3)
    h = rng.standard_normal(shape).astype(DTYPE)
    pooled = both_jit(h, window, stride=stride)
    responses, counts = winners_jit(pooled, code_shape=shape)
    expected = np.zeros((shape[0], int(np.prod(shape[1:]))))
    for c, region in itertools.product(range(2 * shape[0]), np.ndindex(*pooled.switches.shape[1:])):
        if pooled.switches[(c, *region)] >= 0:
            expected[c % shape[0], pooled.switches[(c, *region)]] += 1
    expected = expected.reshape(shape)
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_allclose(responses, np.where(expected > 0, h, 0), rtol=1e-6)
    # Changed features of one shift are averaged over its windows.
    estimates = rng.standard_normal(pooled.features.shape).astype(DTYPE)
    mean, _ = winners_jit(Pooled(jnp.asarray(estimates), pooled.switches), code_shape=shape)
    sums = np.zeros((shape[0], int(np.prod(shape[1:]))))
    for c, region in itertools.product(range(2 * shape[0]), np.ndindex(*pooled.switches.shape[1:])):
        if pooled.switches[(c, *region)] >= 0:
            sign = 1 if c < shape[0] else -1
            sums[c % shape[0], pooled.switches[(c, *region)]] += sign * estimates[(c, *region)]
    np.testing.assert_allclose(mean, sums.reshape(shape) / np.maximum(expected, 1), atol=1e-6)


def test_switches_outside_are_of_no_winner():
    pooled = Pooled(jnp.ones((2, 3), DTYPE), jnp.asarray([[0, -1, 4], [-7, 3, 100]]))
    responses, counts = winners_jit(pooled, (1, 4))
    np.testing.assert_array_equal(responses, [[1, 0, 0, -1]])
    np.testing.assert_array_equal(counts, [[1, 0, 0, 1]])


def test_batches():
    h = np.random.default_rng(5).standard_normal((3, 2, 7)).astype(DTYPE)
    many = jax.jit(jax.vmap(lambda h: winners(max_pool(h, 3, stride=2), (2, 7))))(h)
    for number in range(3):
        one = winners_jit(both_jit(h[number], 3, stride=2), (2, 7))
        for found, expected in zip(many, one, strict=True):
            np.testing.assert_array_equal(found[number], expected)


REFUSED = {
    "axis": (lambda: crelu(np.ones((2, 3)), 2), "expected an axis of an array of shape"),
    "scalar": (lambda: crelu(1.0), "expected an axis of an array of shape"),
    "odd": (lambda: inverse(np.ones((3, 2))), "an even number of channels, got 3"),
    "odd, nearest": (lambda: nearest(np.ones((2, 3)), -1), "an even number of channels, got 3"),
    "no spatial axis": (lambda: max_pool(np.ones(4)), r"expected features of shape \[C, \*n\]"),
    "window": (lambda: max_pool(np.ones((1, 4)), 5), "no longer than the responses"),
    "stride": (lambda: max_pool(np.ones((1, 4)), 2, stride=0), "expected stride to consist of integers of at least 1"),
    "shapes": (lambda: winners(Pooled(np.ones((2, 2)), np.ones((2, 3), int)), (1, 4)), "features and switches of"),
    "filters": (lambda: winners(Pooled(np.ones((2, 2)), np.ones((2, 2), int)), (2, 4)), "with K = 2"),
    "float switches": (lambda: winners(Pooled(np.ones((2, 2)), np.ones((2, 2))), (1, 4)), "switches to be integers"),
    "complex": (lambda: crelu(np.ones(2) * 1j), "expected real numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
