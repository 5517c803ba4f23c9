"""Rounded products: rounding as NumPy and ml_dtypes do it, the operator of rounded filters, what each device gets."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest

from cnninv_jax import operators
from cnninv_jax._numerics import PRODUCTS, convolve, matmul, rounded
from cnninv_jax.operators import analysis, as_matrix, conv_operator, synthesis, synthesis_sparse
from cnninv_jax.sparsity import sample_code

ROUNDED = ("tf32", "bfloat16")
#: Largest relative error of rounding to nearest: half of the last kept bit.
HALF_BIT = {"tf32": 2.0**-11, "bfloat16": 2.0**-8}
# (K, M, ell, D, t)
GEOMETRIES = [(4, 2, (3,), (7,), (2,)), (2, 3, (2, 3), (6, 9), (2, 3))]
EPS = float(np.finfo(np.float32).eps)


def by_numpy(values, products):
    """Round float32 to nearest, ties to even."""
    values = np.asarray(values, np.float32)
    if products == "bfloat16":
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    dropped = 13
    bits += (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
    return ((bits >> dropped) << dropped).astype(np.uint32).view(np.float32)


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make(geometry, products, method="patches", padding="valid"):
    num_filters, channels, length, signal_shape, stride = geometry
    bank = normal(0, (num_filters, channels, *length))
    return conv_operator(bank, signal_shape, stride=stride, padding=padding, method=method, products=products)


@pytest.mark.parametrize("products", ROUNDED)
def test_rounding_is_that_of_numpy(products):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    kept = 13 if products == "tf32" else 16
    # Halfway cases, above and below an even neighbour.
    ties = (bits[:1000] >> kept << kept) | np.uint32(1 << (kept - 1))
    values = np.concatenate([bits, ties]).view(np.float32)
    size = np.abs(values)
    values = values[np.isfinite(values) & (size > 2.0**-126) & (size < 2.0**127)]
    got = np.asarray(jax.jit(rounded, static_argnums=1)(values, products))
    np.testing.assert_array_equal(got, by_numpy(values, products))
    error = np.abs(got.astype(np.float64) / values - 1).max()
    assert HALF_BIT[products] * 0.99 < error <= HALF_BIT[products]


@pytest.mark.parametrize("products", ROUNDED)
def test_a_product_is_that_of_rounded_inputs(products):
    first, second = normal(1, (5, 40)), normal(2, (40, 6))
    got = np.asarray(jax.jit(matmul, static_argnums=2)(first, second, products), np.float64)
    exact = by_numpy(first, products).astype(np.float64) @ by_numpy(second, products)
    scale = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=0)
    assert np.abs((got - exact) / scale).max() < 4 * EPS
    assert np.abs((got - first.astype(np.float64) @ second) / scale).max() > HALF_BIT[products] / 20


CASES = list(itertools.product(GEOMETRIES, ROUNDED, ("conv", "patches"), ("valid", "same")))


@pytest.mark.parametrize(("geometry", "products", "method", "padding"), CASES)
def test_the_operator_is_that_of_rounded_filters(geometry, products, method, padding):
    op = make(geometry, products, method, padding)
    matrix = oracles.dense_matrix(by_numpy(op.filters, products), op.signal_shape, op.stride, padding)
    x, z = normal(3, op.input_shape), normal(4, op.code_shape)
    scale = np.linalg.norm(matrix, 2)
    forward = np.asarray(jax.jit(analysis)(op, x), np.float64).ravel()
    want = matrix @ by_numpy(x, products).ravel()
    assert np.linalg.norm(forward - want) < 8 * EPS * scale * np.linalg.norm(x)
    backward = np.asarray(jax.jit(synthesis)(op, z), np.float64).ravel()
    assert np.linalg.norm(backward - matrix.T @ by_numpy(z, products).ravel()) < 8 * EPS * scale * np.linalg.norm(z)
    np.testing.assert_array_equal(as_matrix(op), matrix.astype(np.float32))
    # Adjoint, for vectors that rounding leaves alone; the operator of unrounded filters would not pass.
    x, z = by_numpy(x, products), by_numpy(z, products)
    sizes = scale * np.linalg.norm(x) * np.linalg.norm(z)
    there = np.vdot(np.asarray(analysis(op, x), np.float64), z)
    back = np.vdot(x.astype(np.float64), synthesis(op, z))
    assert abs(there - back) < 8 * EPS * sizes
    full = oracles.dense_matrix(op.filters, op.signal_shape, op.stride, padding)
    assert np.linalg.norm(forward - full @ x.ravel()) > 8 * EPS * scale * np.linalg.norm(x)


@pytest.mark.parametrize("products", PRODUCTS)
def test_sparse_synthesis_agrees_with_dense(products):
    op = make(GEOMETRIES[1], products)
    code = sample_code(jax.random.key(0), op.num_filters, op.shifts, 2, dtype=np.float32)
    np.testing.assert_allclose(synthesis_sparse(op, code), synthesis(op, code.to_dense()), atol=4 * EPS)


def lowered(function, arguments, platform):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("products", "platform", "algorithm"),
    [
        ("tf32", "cuda", "tf32"),
        ("tf32", "tpu", None),
        ("tf32", "cpu", None),
        ("bfloat16", "cuda", "bf16"),
        ("bfloat16", "tpu", "bf16"),
        ("bfloat16", "cpu", None),
        ("float32", "cuda", None),
    ],
)
def test_each_device_gets_its_own_product(products, platform, algorithm):
    batch = (normal(0, (3, 4, 5)), normal(1, (3, 5, 2)))
    text = lowered(jax.vmap(lambda a, b: matmul(a, b, products)), batch, platform)
    # One product is left per platform: the others are not even lowered.
    assert text.count("stablehlo.dot_general") == 1
    assert ("algorithm" in text) == (algorithm is not None)
    if algorithm:
        assert f"lhs_precision_type = {algorithm}, rhs_precision_type = {algorithm}, accumulation_type = f32" in text
    else:
        assert "precision = [HIGHEST, HIGHEST]" in text
    layer = (normal(2, (1, 2, 9)), normal(3, (4, 2, 3)))
    text = lowered(lambda x, w: convolve(x, w, products, window_strides=(1,), padding="VALID"), layer, platform)
    assert text.count("stablehlo.convolution") == 1
    assert ("precision DEFAULT" in text) == (algorithm is not None)
    assert ("precision HIGHEST" in text) == (algorithm is None)


def test_nothing_is_chosen_while_running():
    batch = (normal(0, (3, 4, 5)), normal(1, (3, 5, 2)))
    text = jax.jit(jax.vmap(lambda a, b: matmul(a, b, "tf32"))).lower(*batch).compile().as_text()
    assert "conditional" not in text
    assert "reduce-precision" in text


@pytest.mark.parametrize("method", ["conv", "patches"])
def test_by_default_nothing_is_rounded(method):
    geometry = GEOMETRIES[0]
    op = make(geometry, "float32", method)
    assert op == conv_operator(op.filters, geometry[3], stride=geometry[4], method=method)
    x, z = normal(3, op.input_shape), normal(4, op.code_shape)
    for text in (str(jax.make_jaxpr(analysis)(op, x)), str(jax.make_jaxpr(synthesis)(op, z))):
        assert "reduce_precision" not in text
        assert "platform_index" not in text
        assert "HIGHEST" in text


@pytest.mark.parametrize("method", ["conv", "patches"])
@pytest.mark.parametrize("products", ROUNDED)
def test_transformations(products, method):
    op = make(GEOMETRIES[0], products, method)
    x = normal(3, (3, *op.input_shape))
    batched = jax.jit(jax.vmap(analysis, in_axes=(None, 0)))(op, x)
    np.testing.assert_allclose(batched, np.stack([analysis(op, one) for one in x]), atol=8 * EPS)
    z = by_numpy(normal(4, op.code_shape), products)
    gradient = jax.grad(lambda x: jnp.vdot(z, analysis(op, x)))(jnp.asarray(x[0]))
    tolerance = 2 * HALF_BIT[products] * np.linalg.norm(z) * np.linalg.norm(as_matrix(op), 2)
    np.testing.assert_allclose(gradient, synthesis(op, z), atol=tolerance)


def test_refusals():
    bank = normal(0, (4, 2, 3))
    with pytest.raises(ValueError, match="expected products to be one of float32, tf32, bfloat16, got 'fp8'"):
        conv_operator(bank, 9, products="fp8")
    op = conv_operator(bank, 9, products="tf32")
    half = conv_operator(bank.astype(np.float16), 9)
    with pytest.raises(ValueError, match="expected float32 numbers with products='bfloat16', got float16"):
        conv_operator(half.filters, 9, products="bfloat16")
    if not jax.config.read("jax_enable_x64"):
        return
    with pytest.raises(ValueError, match="expected float32 numbers with products='tf32', got float64; take dtype"):
        conv_operator(bank.astype(np.float64), 9, products="tf32")
    with pytest.raises(ValueError, match="got float64"):
        operators.analysis(op, np.zeros(op.input_shape))
    with pytest.raises(ValueError, match="got float64"):
        matmul(jnp.zeros((2, 3)), jnp.zeros((3, 2)), "tf32")
