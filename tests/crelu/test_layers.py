"""Networks of conv + CReLU layers forth and back, against a chain of dense pseudo-inverses in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.crelu import layers as layers_module
from cnninv_jax.crelu.layers import FEASIBLE, CReLULayer, Forward, check_layers, feasible_features, forward, invert
from cnninv_jax.operators import conv_operator
from tests import oracles

DTYPE = jnp.zeros(()).dtype
DOUBLE = np.float64 == DTYPE
TOL, CLOSE = (1e-13, 1e-7) if DOUBLE else (1e-6, 5e-3)


@functools.partial(jax.jit, static_argnames="feasible")
def there_and_back(layers, x, feasible="none"):
    passed = forward(layers, x)
    back = invert(
        layers, passed.features[-1], passed.switches,
        tol=TOL, max_steps=400, feasible=feasible, truth=passed.signals,
    )  # fmt: skip
    return passed, back


def layer(seed, shape, size, *, bias=False, pool=None, pool_stride=None, **geometry):
    rng = np.random.default_rng(seed)
    op = conv_operator(jnp.asarray(rng.standard_normal(shape), DTYPE), size, **geometry)
    offset = jnp.asarray(rng.standard_normal(shape[0]), DTYPE) if bias else None
    return CReLULayer(op, offset, pool, pool_stride)


NETWORKS = {
    "one axis, bias": lambda: (
        layer(0, (3, 2, 4), 14, bias=True),
        layer(1, (4, 6, 3), 11, bias=True, stride=2),
        layer(2, (3, 8, 2), 5),
    ),
    "two axes, pooling below and above": lambda: (
        layer(0, (4, 2, 3, 3), (8, 7), padding="same", pool=3, pool_stride=2),
        layer(1, (3, 8, 2, 2), (3, 3), bias=True, pool=(2, 1)),
    ),
}


def dense_forward(one, x):
    """Features of one layer and, with pooling, the flat positions of the winners, by loops."""
    op = one.op
    w = oracles.dense_matrix(op.filters, op.signal_shape, op.stride, op.padding)
    bias = np.zeros(op.num_filters) if one.bias is None else np.asarray(one.bias, np.float64)
    h = (w @ x.ravel()).reshape(op.num_filters, -1) + bias[:, None]
    both = np.concatenate([np.maximum(h, 0), np.maximum(-h, 0)])
    if one.pool is None:
        return w, bias, both.reshape(one.output_shape), None
    step = one.pool if one.pool_stride is None else one.pool_stride
    window, step = (np.broadcast_to(value, op.rank) for value in (one.pool, step))
    positions = np.arange(both.shape[1]).reshape(op.shifts)
    switches = np.full(one.output_shape, -1)
    for place in np.ndindex(*one.output_shape):
        block = tuple(slice(r * s, r * s + p) for r, s, p in zip(place[1:], step, window, strict=True))
        inside = positions[block].ravel()
        best = inside[np.argmax(both[place[0], inside])]
        if both[place[0], best] > 0:
            switches[place] = best
    channel = np.arange(len(both)).reshape(-1, *(1,) * op.rank)
    return w, bias, np.where(switches >= 0, both[channel, np.maximum(switches, 0)], 0), switches


def dense_backward(one, w, bias, features, switches):
    """The pseudo-inverse of what is known of the layer's responses, one row for every feature that counts."""
    count = one.op.num_filters
    if switches is None:
        z = (features[:count] - features[count:]).reshape(count, -1) - bias[:, None]
        return (np.linalg.pinv(w) @ z.ravel()).reshape(one.op.input_shape)
    rows, values = [], []
    n = np.prod(one.op.shifts)
    for place in zip(*np.nonzero(switches >= 0), strict=True):
        sign, i = (1, place[0]) if place[0] < count else (-1, place[0] - count)
        rows.append(sign * w[i * n + switches[place]])
        values.append(features[place] - sign * bias[i])
    return (np.linalg.pinv(np.asarray(rows)) @ np.asarray(values)).reshape(one.op.input_shape)


def dense_feasible(features, switches, feasible):
    if feasible == "none":
        return features
    positive = np.maximum(features, 0)
    if feasible == "clip":
        return positive
    if switches is not None:
        return np.where(switches < 0, 0, positive)
    first, second = np.split(positive, 2)
    return np.concatenate([np.where(first >= second, first, 0), np.where(first >= second, 0, second)])


CASES = [
    pytest.param(name, feasible, marks=[] if feasible == ("none", "nearest")[number] else pytest.mark.slow)
    for number, name in enumerate(NETWORKS)
    for feasible in FEASIBLE
]


@pytest.mark.parametrize(("name", "feasible"), CASES)
def test_a_chain_of_dense_pseudo_inverses(name, feasible):
    layers = NETWORKS[name]()
    x = np.random.default_rng(7).standard_normal(layers[0].op.input_shape)
    passed, back = there_and_back(layers, jnp.asarray(x, DTYPE), feasible)
    signals, known = [x], []
    for one, features, switches in zip(layers, passed.features, passed.switches, strict=True):
        w, bias, truth, places = dense_forward(one, signals[-1])
        assert features.shape == one.output_shape
        np.testing.assert_allclose(features, truth, atol=CLOSE)
        if places is None:
            assert switches is None
        else:
            np.testing.assert_array_equal(switches, places)
        signals.append(truth)
        known.append((w, bias, places))
    current, errors = signals[-1], []
    for number in reversed(range(len(layers))):
        current = dense_backward(layers[number], *known[number][:2], current, known[number][2])
        if number:
            current = dense_feasible(current, known[number - 1][2], feasible)
        scale = np.linalg.norm(signals[number])
        np.testing.assert_allclose(back.signals[number], current, atol=CLOSE * scale)
        errors.append(np.linalg.norm(current - signals[number]) / scale)
    np.testing.assert_allclose(back.errors, errors[::-1], atol=CLOSE)
    assert np.all(back.errors > 0.01)
    if DOUBLE:
        np.testing.assert_array_equal(back.status, 0)


def injective(seed=0):
    """Two layers, each with at least as many responses as samples: K_1 >= 2, K_2 >= 2 K_1 = 8."""
    return (
        layer(seed, (4, 2, 3), 9, padding="same", bias=True),
        layer(seed + 1, (10, 8, 2), 9, padding="circular", bias=True),
    )


@pytest.mark.parametrize("feasible", ["none", pytest.param("nearest", marks=pytest.mark.slow)])
def test_injective_layers_lose_nothing(feasible):
    layers = injective()
    x = np.random.default_rng(0).standard_normal(layers[0].op.input_shape)
    passed, back = there_and_back(layers, jnp.asarray(x, DTYPE), feasible)
    np.testing.assert_allclose(back.signals[0], x, atol=CLOSE)
    assert np.all(back.errors < CLOSE)
    np.testing.assert_array_equal(passed.signals[0], jnp.asarray(x, DTYPE))
    assert len(passed.signals) == len(layers)
    if feasible == "none":
        # A zero signal that comes back as zero has no error, and no bias stands between it and zero features.
        silent = tuple(dataclasses.replace(one, bias=jnp.zeros_like(one.bias)) for one in layers)
        _, back = there_and_back(silent, jnp.zeros(layers[0].op.input_shape, DTYPE))
        np.testing.assert_array_equal(back.signals[0], 0)
        np.testing.assert_array_equal(back.errors, 0)


@pytest.mark.slow
def test_feasible_estimates_are_nearer():
    """The l2 projection onto a convex set that holds the truth brings no estimate further from it."""
    layers = NETWORKS["one axis, bias"]()[:2]
    xs = np.random.default_rng(8).standard_normal((20, *layers[0].op.input_shape)).astype(DTYPE)
    errors = {
        feasible: jax.jit(jax.vmap(lambda x, feasible=feasible: there_and_back(layers, x, feasible)[1].errors))(xs)
        for feasible in ("none", "clip")
    }
    assert np.all(errors["clip"][:, 1] < errors["none"][:, 1])


def test_batches_and_new_filters_compile_once():
    traces = []

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def errors(layers, x):
        traces.append(None)
        return there_and_back(layers, x)[1].errors

    xs = np.random.default_rng(9).standard_normal((3, 2, 9)).astype(DTYPE)
    for seed in (0, 10):
        layers = injective(seed)
        found = errors(layers, xs)
        assert found.shape == (3, 2)
        assert np.all(found < CLOSE)
    assert len(traces) == 1
    # A window given as a list is static all the same.
    assert hash(jax.tree.structure(layer(0, (2, 1, 3, 3), 6, pool=[2, 1]))) is not None


def test_called_plainly_it_compiles_once():
    x = np.random.default_rng(3).standard_normal((2, 9)).astype(DTYPE)
    sizes = []
    for seed in (0, 10):
        layers = injective(seed)
        passed = forward(list(layers), x)
        back = invert(layers, passed.features[-1], tol=TOL, max_steps=400)
        np.testing.assert_allclose(back.signals[0], x, atol=CLOSE)
        assert back.errors is None
        sizes.append((layers_module._forward._cache_size(), layers_module._invert._cache_size()))
    assert sizes[0] == sizes[1]


def test_the_nearest_features():
    estimate = jnp.asarray([[2.0, -1.0], [-3.0, 0.5], [1.0, 4.0], [5.0, -2.0]], DTYPE)
    np.testing.assert_array_equal(feasible_features(estimate), [[2, 0], [0, 0.5], [0, 4], [5, 0]])
    # With pooling both phases of a region may fire, and what did not is 0.
    fired = jnp.asarray([[0, 0], [0, -1], [1, 1], [-1, 0]])
    np.testing.assert_array_equal(feasible_features(estimate, fired), [[2, 0], [0, 0], [1, 4], [0, 0]])
    assert feasible_features(estimate, fired, "none") is estimate


FIRST = layer(0, (3, 2, 3), 8)
POOLING = layer(0, (3, 2, 3), 8, pool=2)
FEATURES, WINNERS = np.ones((6, 6)), np.zeros((6, 3), int)
REFUSED = {
    "no layer": (lambda: forward((), np.ones((2, 8))), "expected at least one layer"),
    "phases": (
        lambda: check_layers((FIRST, layer(1, (3, 3, 2), 6))),
        r"layer 2 to take signals of shape \(6, 6\), both phases of 3 filters",
    ),
    "pooled": (lambda: check_layers((POOLING, layer(1, (3, 6, 2), 6))), r"of shape \(6, 3\)"),
    "window": (lambda: check_layers([layer(0, (3, 2, 3), 8, pool=7)]), "no longer than the responses"),
    "stride alone": (lambda: check_layers([layer(0, (3, 2, 3), 8, pool_stride=2)]), "a pooling window beside"),
    "bias": (lambda: check_layers([CReLULayer(FIRST.op, np.ones(2))]), r"a bias of shape \[K\] = \(3,\) in layer 1"),
    "signal": (lambda: forward([FIRST], np.ones((2, 9))), "a signal of shape"),
    "features": (lambda: invert([FIRST], np.ones((6, 5))), r"the features of layer 1, of shape \(6, 6\)"),
    "no switches": (
        lambda: invert([POOLING], np.ones((6, 3))),
        r"switches of shape \(6, 3\) for layer 1, which pools, got none",
    ),
    "switches": (
        lambda: invert([FIRST], FEATURES, [WINNERS]),
        "expected no switches for layer 1, which does not pool, got",
    ),
    "number": (lambda: invert([FIRST], FEATURES, [None, None]), "switches of 1 layers"),
    "feasible": (lambda: invert([FIRST], FEATURES, feasible="best"), "expected feasible to be one of none, clip"),
    "tol": (lambda: invert([FIRST], FEATURES, tol=-1.0), "a tolerance of at least 0, got -1.0"),
    "way": (lambda: feasible_features(FEATURES, None, "best"), "expected feasible to be one of none, clip"),
    "truth": (lambda: invert([FIRST], FEATURES, truth=[]), "the truth of 1 signals"),
    "one layer": (lambda: forward(FIRST, np.ones((2, 8))), r"got one CReLULayer; pass \[layer\]"),
    "operators": (lambda: forward((FIRST.op,), np.ones((2, 8))), "layer 1 to be a CReLULayer, got ConvOperator"),
    "filters": (lambda: forward((CReLULayer(np.ones((3, 2, 3))),), np.ones((2, 8))), "expected a ConvOperator, as"),
    "all features": (lambda: invert([FIRST], Forward(FEATURES, (FEATURES,), (None,))), r"pass its features\[-1\]"),
    "one array": (lambda: invert([POOLING], np.ones((6, 3)), WINNERS), "of every layer, as Forward.switches"),
    "truth's shape": (lambda: invert([FIRST], FEATURES, truth=[np.ones(3)]), "the truth of layer 1's signal"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
