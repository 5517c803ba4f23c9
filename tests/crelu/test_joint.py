"""Joint inversion of several layers: what is lost layer by layer and found at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.crelu.joint import JointStatus, invert_jointly
from cnninv_jax.crelu.layers import CReLULayer, forward, invert
from cnninv_jax.operators import conv_operator
from tests import oracles

DTYPE = jnp.zeros(()).dtype
DOUBLE = np.float64 == DTYPE


def layer(seed, shape, size, **options):
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    op = conv_operator(jnp.asarray(bank, DTYPE), size, padding=options.pop("padding", "same"))
    bias = jnp.asarray(0.1 * rng.standard_normal(shape[0]), DTYPE)
    return CReLULayer(op, bias, **options)


def narrow():
    """K_2 = 10 filters over the 12 channels of 6: the second layer sees no more than 10 of 12 dimensions a sample."""
    return (layer(0, (6, 2, 3), 16), layer(1, (10, 12, 1), 16))


forward_jit = jax.jit(forward)


@jax.jit
def jointly(layers, features, start, num_rounds=30):
    return invert_jointly(layers, features, start=start, tol=1e-5, num_rounds=num_rounds)


def test_what_layers_lose_one_by_one_is_found_at_once():
    layers = narrow()
    x = jnp.asarray(np.random.default_rng(5).standard_normal((2, 16)), DTYPE)
    passed = forward_jit(layers, x)
    by_layer = jax.jit(lambda one, f: invert(one, f.features[-1], truth=f.signals))(layers, passed)
    assert np.all(by_layer.errors > 0.05)
    found = jointly(layers, passed.features[-1], by_layer.signals[0])
    assert JointStatus(int(found.status)) is JointStatus.CONVERGED
    assert float(found.misfit) <= 1e-5
    np.testing.assert_allclose(found.signal, x, atol=1e-3)
    # The misfit is that of the features' responses, computed anew.
    again = forward_jit(layers, found.signal).features[-1]
    wanted = passed.features[-1]
    responses = [np.asarray(f[:10] - f[10:], np.float64) for f in (again, wanted)]
    expected = np.linalg.norm(responses[0] - responses[1]) / np.linalg.norm(responses[1])
    np.testing.assert_allclose(found.misfit, expected, rtol=1e-2, atol=1e-7)

    # Fewer rounds than it takes, the truth as start, and a start that is not finite.
    assert int(jointly(layers, wanted, by_layer.signals[0], num_rounds=1).status) == JointStatus.CAP
    held = jointly(layers, wanted, x)
    assert int(held.num_rounds) == 0
    np.testing.assert_array_equal(held.signal, x)
    assert int(jointly(layers, wanted, x.at[0, 0].set(jnp.nan)).status) == JointStatus.NOT_FINITE


def test_with_switches_it_is_one_least_squares_problem():
    """Both layers pool: what won is linear in x, and the answer is the dense pseudo-inverse of its rows."""
    layers = (layer(2, (4, 2, 3), 12, pool=3, pool_stride=2), layer(3, (2, 8, 2), 5, pool=2))
    x = np.random.default_rng(6).standard_normal((2, 12))
    passed = forward_jit(layers, jnp.asarray(x, DTYPE))
    inverting = jax.jit(functools.partial(invert_jointly, tol=1e-12 if DOUBLE else 1e-5, num_rounds=30))
    found = inverting(layers, passed.features[-1], passed.switches, start=jnp.zeros((2, 12), DTYPE))

    matrix, offset = np.eye(24), np.zeros(24)
    for one, switches in zip(layers, passed.switches, strict=True):
        op, places = one.op, np.asarray(switches)
        w = oracles.dense_matrix(op.filters, op.signal_shape, op.stride, op.padding)
        matrix, offset = w @ matrix, w @ offset + np.repeat(np.asarray(one.bias, np.float64), op.shifts[0])
        count, n = op.num_filters, op.shifts[0]
        rows = np.zeros((places.size, count * n))
        for row, (channel, region) in enumerate(np.ndindex(*places.shape)):
            if places[channel, region] >= 0:
                rows[row, (channel % count) * n + places[channel, region]] = 1 if channel < count else -1
        matrix, offset = rows @ matrix, rows @ offset
    target = np.asarray(passed.features[-1], np.float64).ravel()
    np.testing.assert_allclose(matrix @ x.ravel() + offset, target, atol=1e-12 if DOUBLE else 1e-5)
    truth = np.linalg.pinv(matrix) @ (target - offset)
    np.testing.assert_allclose(found.signal.ravel(), truth, atol=1e-8 if DOUBLE else 1e-2)


@pytest.mark.slow
def test_batches_start_by_themselves():
    layers = narrow()
    xs = jnp.asarray(np.random.default_rng(7).standard_normal((3, 2, 16)), DTYPE)
    features = jax.vmap(lambda x: forward(layers, x).features[-1])(xs)
    found = jax.jit(jax.vmap(lambda f: invert_jointly(layers, f, num_rounds=30)))(features)
    for number in range(3):
        one = jax.jit(lambda f: invert_jointly(layers, f, num_rounds=30))(features[number])
        assert int(found.status[number]) == int(one.status)
        np.testing.assert_allclose(found.signal[number], one.signal, atol=1e-3)


def test_what_is_refused():
    layers = narrow()
    with pytest.raises(ValueError, match="the features of layer 2"):
        invert_jointly(layers, np.ones((20, 15)))
    with pytest.raises(ValueError, match="expected a start of shape"):
        invert_jointly(layers, np.ones((20, 16)), start=np.ones((2, 15)))


@pytest.mark.parametrize("status", list(JointStatus), ids=[status.name for status in JointStatus])
def test_every_status_has_a_message(status):
    assert len(status.message) > 20
