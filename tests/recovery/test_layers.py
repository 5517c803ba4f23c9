"""A CNN layer is one iteration from zero; several layers forth and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.operators import analysis, conv_operator, synthesis
from cnninv_jax.recovery import cnn_layer, iht, iht_layers
from cnninv_jax.sparsity import max_pool, regions, switches_of, unpool
from tests import oracles
from tests.recovery.test_iht import CLOSE, DTYPE, bank, problem

SHAPES = {
    "one axis": ({}, None, False),
    "one axis, non-negative": ({}, None, True),
    "pooling, partial region": ({"size": 13}, 4, False),
    "two axes, same padding": ({"shape": (5, 4, 3, 3), "size": (6, 7), "padding": "same"}, 2, True),
    "stride": ({"size": 13, "stride": 2}, 3, False),
}
SLOW = ("one axis, non-negative", "stride")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SHAPES]
)
def test_a_layer_is_one_iteration_from_zero(name):
    making, pool, nonnegative = SHAPES[name]
    op, x, _ = problem(9, **making)
    layer = cnn_layer(op, x, 3, pool=pool, nonnegative=nonnegative)
    step = iht(op, x, 3, num_steps=1, pool=pool, nonnegative=nonnegative, method="direct")
    np.testing.assert_array_equal(layer.code, step.code)
    window = None if pool is None else (pool,) * op.rank
    np.testing.assert_allclose(
        layer.code, oracles.project(np.asarray(analysis(op, x)), 3, window, nonnegative), atol=CLOSE
    )
    assert np.count_nonzero(layer.pooled) == 3
    assert layer.pooled.shape == layer.switches.shape == (op.num_filters, *regions(op.shifts, pool))
    np.testing.assert_array_equal(unpool(layer.pooled, layer.switches, op.shifts), layer.code)
    if name == "one axis":
        fast = jax.jit(lambda op, x: iht(op, x, 3, num_steps=1, method="gram"))(op, x)
        np.testing.assert_allclose(layer.code, fast.code, atol=CLOSE)


def test_sparsity_of_a_layer_as_a_fraction_and_traced():
    op, x, _ = problem(9)
    entries = np.prod(op.code_shape)
    np.testing.assert_array_equal(cnn_layer(op, x, 3 / entries).code, cnn_layer(op, x, 3).code)
    traced = jax.jit(lambda k: cnn_layer(op, x, k).code)(jnp.asarray(3))
    np.testing.assert_array_equal(traced, cnn_layer(op, x, 3).code)
    with pytest.raises(ValueError, match="expected 1 <= k <= 8"):
        cnn_layer(op, x, 9)


def stack(pool=2):
    """Three layers in one dimension, D 24 -> n 22 -> 11 pooled -> n 9 -> 5 -> n 3."""
    first = conv_operator(jnp.asarray(bank(0, (16, 4, 3)), DTYPE), 24)
    second = conv_operator(jnp.asarray(bank(1, (20, 16, 3)), DTYPE), *regions(first.shifts, pool))
    third = conv_operator(jnp.asarray(bank(2, (12, 20, 3)), DTYPE), *regions(second.shifts, pool))
    return first, second, third


@pytest.mark.slow
def test_layers_forth_and_back_by_hand():
    ops, ks, pools = stack(), (12, 8, 4), (2, 2, None)
    x = jax.random.normal(jax.random.key(0), ops[0].input_shape, DTYPE)
    found = iht_layers(ops, x, ks, pools=pools, step="safe", num_steps=6, method="direct")
    signals, codes = [x], []
    for op, k, pool in zip(ops, ks, pools, strict=True):
        codes.append(iht(op, signals[-1], k, step="safe", num_steps=6, pool=pool, method="direct").code)
        signals.append(max_pool(codes[-1], pool)[0])
    for layer, code in zip(found.layers, codes, strict=True):
        np.testing.assert_allclose(layer.code, code, atol=CLOSE)
    back = synthesis(ops[2], codes[2])
    np.testing.assert_allclose(found.reconstructions[2], back, atol=CLOSE)
    for number in (1, 0):
        back = synthesis(ops[number], unpool(back, switches_of(codes[number], pools[number]), ops[number].shifts))
        np.testing.assert_allclose(found.reconstructions[number], back, atol=CLOSE)
    for number in range(3):
        size = np.linalg.norm(signals[number])
        own = np.linalg.norm(signals[number] - synthesis(ops[number], codes[number])) / size
        np.testing.assert_allclose(found.errors[number], own, atol=CLOSE)
        np.testing.assert_allclose(found.layers[number].residual_norms[-1], own, atol=CLOSE)
        composed = np.linalg.norm(signals[number] - found.reconstructions[number]) / size
        np.testing.assert_allclose(found.composed_errors[number], composed, atol=CLOSE)
    np.testing.assert_allclose(found.composed_errors[-1], found.errors[-1], atol=CLOSE)


@pytest.mark.slow
def test_orthonormal_layers_lose_nothing():
    """Filters of one tap that form an orthonormal basis, all blocks kept: x comes back from the top."""
    rng = np.random.default_rng(3)
    bases = [np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(3)]
    ops = [conv_operator(jnp.asarray(basis[:, :, None], DTYPE), 7) for basis in bases]
    x = jnp.asarray(rng.standard_normal((5, 7)), DTYPE)
    for feed in ("pooled", "code"):
        found = iht_layers(ops, x, (35, 35, 35), pools=(1, 1, 1), num_steps=2, feed=feed, method="direct")
        np.testing.assert_allclose(found.reconstructions[0], x, atol=100 * CLOSE)
        assert np.all(found.composed_errors < 100 * CLOSE)
    # Fewer blocks in the top layer only: its own error is passed down unchanged by orthonormal layers.
    found = iht_layers(ops, x, (35, 35, 10), pools=(1, 1, 1), num_steps=2)
    assert found.errors[2] > 0.1
    np.testing.assert_allclose(found.composed_errors, found.errors[2], atol=100 * CLOSE)


@pytest.mark.slow
def test_layers_fed_with_codes():
    first = conv_operator(jnp.asarray(bank(0, (10, 4, 3)), DTYPE), 14)
    second = conv_operator(jnp.asarray(bank(1, (12, 10, 3)), DTYPE), 12)
    x = jax.random.normal(jax.random.key(0), first.input_shape, DTYPE)
    found = iht_layers((first, second), x, (5, 4), step="safe", num_steps=5, feed="code", method="direct")
    np.testing.assert_array_equal(found.signals[1], found.layers[0].code)
    above = np.where(np.asarray(found.layers[0].code) != 0, found.reconstructions[1], 0)
    np.testing.assert_allclose(found.reconstructions[0], synthesis(first, jnp.asarray(above)), atol=CLOSE)


@pytest.mark.slow
def test_layers_under_jit_vmap_and_grad():
    ops, ks, pools = stack(), (12, 8, 4), (2, 2, None)
    xs = jax.random.normal(jax.random.key(1), (2, *ops[0].input_shape), DTYPE)

    def error(ops, x):
        return iht_layers(ops, x, ks, pools=pools, num_steps=2, step=0.5).composed_errors[0]

    gradients = jax.jit(jax.vmap(jax.grad(error, argnums=1), in_axes=(None, 0)))(ops, xs)
    assert gradients.shape == xs.shape
    assert np.all(np.isfinite(gradients))
    assert np.all(np.linalg.norm(np.asarray(gradients).reshape(2, -1), axis=1) > 1e-4)


REFUSED = {
    "no layer": ({"ops": (), "ks": ()}, "at least one layer"),
    "too few k": ({"ks": (12, 8)}, "3 layers, 2 ks and 3 pools"),
    "feed": ({"feed": "all"}, "expected feed to be one of pooled, code"),
    "shape": ({"pools": (None, 2, None)}, r"expected layer 2 to take signals of shape \(16, 1\)"),
    "codes": ({"feed": "code"}, r"expected layer 2 to take signals of shape \(16, 22\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    options, message = REFUSED[name]
    given = {"ops": stack(), "ks": (12, 8, 4), "pools": (2, 2, None), **options}
    with pytest.raises(ValueError, match=message):
        iht_layers(x=jnp.zeros((4, 24), DTYPE), **given)
