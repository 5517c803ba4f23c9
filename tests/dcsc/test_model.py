"""The layers of the model against dense matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from cnninv_jax.dcsc import model as module
from cnninv_jax.dcsc.model import layers, shapes
from tests.dcsc.dcsc_oracles import Dense

DEFAULT = np.dtype(jnp.zeros(()).dtype)

draw_signs, reverse_pass = jax.jit(module.draw_signs), jax.jit(module.reverse_pass)
reverse, respond = jax.jit(module.reverse), jax.jit(module.respond)

# Filters and channels of every layer, lengths, signal, strides, padding.
GEOMETRIES = {
    "1-D": (((4, 2), (3, 4)), ((3,), (2,)), (9,), (1, 1), "valid"),
    "1-D with strides": (((3, 2), (4, 3), (2, 4)), ((4,), (3,), (2,)), (22,), (2, 1, 2), "valid"),
    "1-D around a circle": (((3, 1), (5, 3)), ((5,), (3,)), (12,), (2, 3), "circular"),
    "2-D": (((3, 2), (2, 3)), ((2, 3), (3, 2)), (7, 8), (1, 1), "valid"),
    "2-D around a torus": (((3, 2), (2, 3)), ((2, 3), (2, 2)), (8, 6), (2, 1), "circular"),
}


def banks_of(sizes, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*size, *length)).astype(DEFAULT) for size, length in zip(sizes, lengths, strict=True)]


def model_of(name, seed=0):
    sizes, lengths, signal, strides, padding = GEOMETRIES[name]
    plain = layers(banks_of(sizes, lengths, seed), signal, strides=strides, padding=padding)
    return draw_signs(jax.random.key(seed), plain)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_passes_equal_products_of_dense_matrices(name):
    model = model_of(name)
    rng = np.random.default_rng(1)
    expected = [rng.standard_normal(model[-1].op.code_shape).astype(DEFAULT)]
    path = reverse_pass(model, expected[0])
    for layer, matrix in reversed(list(zip(model, Dense(model).matrices, strict=True))):
        np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), 1, rtol=1e-5)
        signed = matrix * np.asarray(layer.signs, np.float64).ravel()
        expected.append((signed @ expected[-1].ravel()).reshape(layer.op.input_shape))
        x = rng.standard_normal(layer.op.input_shape).astype(DEFAULT)
        found = np.asarray(respond(layer, x)).ravel()
        np.testing.assert_allclose(found, signed.T @ x.ravel(), rtol=1e-4, atol=1e-5)
    assert tuple(x.shape for x in path) == shapes(model)
    for found, dense in zip(path, expected[::-1], strict=True):
        np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reverse_and_respond_are_adjoint(name):
    rng = np.random.default_rng(2)
    for layer in model_of(name):
        x = rng.standard_normal(layer.op.input_shape).astype(DEFAULT)
        z = rng.standard_normal(layer.op.code_shape).astype(DEFAULT)
        tolerance = 1e-12 if DEFAULT.itemsize == 8 else 1e-6
        gap = oracles.adjoint_gap(lambda v, own=layer: respond(own, v), lambda v, own=layer: reverse(own, v), x, z)
        assert gap < tolerance
        wrong = dataclasses.replace(layer, signs=-layer.signs)
        assert (
            oracles.adjoint_gap(lambda v, own=wrong: respond(own, v), lambda v, own=layer: reverse(own, v), x, z) > 0.01
        )


def test_reach_is_where_atoms_overlap():
    for name in GEOMETRIES:
        for layer in model_of(name):
            for reach, ell, step in zip(layer.reach, layer.op.length, layer.op.stride, strict=True):
                assert reach * step < ell <= (reach + 1) * step
            assert layer.positions == np.prod(layer.op.shifts)


def test_signs_are_fair_and_new_ones_compile_nothing():
    model = model_of("1-D")
    traces = []

    @jax.jit
    def path(model, code):
        traces.append(1)
        return module.reverse_pass(model, code)

    code = jnp.ones(shapes(model)[-1])
    total, count = 0.0, 0
    for seed in range(40):
        signed = draw_signs(jax.random.key(seed), model)
        path(signed, code)
        for layer in signed:
            assert set(np.unique(np.asarray(layer.signs))) <= {-1.0, 1.0}
            total, count = total + float(layer.signs.sum()), count + layer.signs.size
    assert abs(total) < 5 * np.sqrt(count)
    assert len(traces) == 1
    # Every layer draws its own.
    circle = layers(banks_of(((4, 4), (4, 4)), ((3,), (3,))), 16, padding="circular")
    first, second = draw_signs(jax.random.key(7), circle)
    assert np.any(np.asarray(first.signs) != np.asarray(second.signs))


def test_filters_get_unit_norm_and_keep_their_precision():
    bank = np.full((2, 1, 3), 5, np.float32)
    (layer,) = layers([bank], 9)
    assert layer.op.dtype == np.float32
    np.testing.assert_allclose(np.asarray(layer.op.filters), 1 / np.sqrt(3), rtol=1e-6)
    np.testing.assert_array_equal(layer.signs, 1)


def test_five_layers():
    model = layers(banks_of([(3, 2)] + [(3, 3)] * 4, [(3,)] * 5), 20)
    assert shapes(model) == ((2, 20), (3, 18), (3, 16), (3, 14), (3, 12), (3, 10))
    code = np.zeros((3, 10), DEFAULT)
    code[1, 4] = 1
    dense = code.ravel()
    for matrix in Dense(model).matrices[::-1]:
        dense = matrix @ dense
    np.testing.assert_allclose(reverse_pass(model, code)[0].ravel(), dense, rtol=1e-4, atol=1e-6)


ONE, TWO = banks_of(((4, 2), (3, 4)), ((3,), (2,)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], 9), {}, "at least one layer, got none"),
        (([ONE], 9), {"padding": "same"}, "'valid' or 'circular', got 'same'"),
        (([ONE, TWO], 9), {"strides": [1]}, "2 banks, 1 strides"),
        (([ONE, TWO], 9), {"signs": [np.ones((4, 7))]}, "1 arrays of signs"),
        (([ONE, ONE], 9), {}, "layer 2 to have 4 channels"),
        (([ONE], 9), {"signs": [np.ones((4, 6))]}, r"signs of layer 1 of shape \[K, \*n\] = \(4, 7\)"),
        (([ONE], 2), {}, "at least as long as the filter"),
        (([ONE], 9), {"strides": [4]}, "integer n"),
        (([ONE], 9), {"strides": [2], "padding": "circular"}, "D"),
    ],
    ids=["none", "same", "strides", "signs", "channels", "shape", "short", "stride", "circle"],
)
def test_layers_refuse(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        layers(*arguments, **options)


def test_layers_that_do_not_fit_are_refused():
    first, second = model_of("1-D")
    with pytest.raises(ValueError, match="expected layer 2 to take signals of shape"):
        shapes((first, first))
    assert shapes((first, second)) == ((2, 9), (4, 7), (3, 6))


@pytest.mark.parametrize(
    ("banks", "arguments", "sentence"),
    [
        (np.ones((3, 2, 4)), {}, "pass .bank."),
        ([np.zeros((3, 2, 4))], {}, "leave out filters of zeros"),
        ([np.full((3, 2, 4), np.nan)], {}, "that are finite"),
        ([np.ones((3, 2, 4))], {"signs": [2 * np.ones((3, 9))]}, r"to be \+1 or -1"),
    ],
    ids=["one array", "zeros", "not finite", "no signs"],
)
def test_what_cannot_be_a_layer_is_refused(banks, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        layers(banks, 12, **arguments)


def test_one_stride_serves_all_layers():
    bank = np.random.default_rng(0).standard_normal((2, 2, 3))
    assert [layer.op.stride for layer in layers([bank, bank], 15, strides=2)] == [(2,), (2,)]
