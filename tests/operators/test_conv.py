"""The operator against the dense matrix, its adjoint identity, transformations, and its refusals."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax import operators
from cnninv_jax.operators import conv_operator, from_flax_kernel, to_flax_kernel

# Compiled once per geometry; the plain functions run one operation at a time.
analysis, synthesis = jax.jit(operators.analysis), jax.jit(operators.synthesis)
as_matrix, synthesis_sparse = jax.jit(operators.as_matrix), jax.jit(operators.synthesis_sparse)

X64 = jax.config.read("jax_enable_x64")
DTYPES = (np.float32, np.float64) if X64 else (np.float32,)
DEFAULT = np.float64 if X64 else np.float32

PADDINGS = ("valid", "same", "circular")

# (K, M, ell, D, t): D - ell is a multiple of t on every axis, so each serves valid and same padding.
GEOMETRIES = [
    (4, 2, (3,), (7,), (1,)),
    (3, 2, (4,), (10,), (2,)),
    (2, 3, (2,), (8,), (3,)),
    (5, 1, (1,), (7,), (3,)),
    (3, 2, (3, 2), (5, 6), (1, 1)),
    (2, 2, (2, 3), (6, 9), (2, 3)),
]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["filter_indices", "shifts", "values"],
    meta_fields=["code_shape"],
)
@dataclasses.dataclass(frozen=True)
class Entries:
    """The least that a sparse code is."""

    filter_indices: jax.Array
    shifts: jax.Array
    values: jax.Array
    code_shape: tuple[int, ...]


def tolerance(dtype):
    return 50 * np.finfo(dtype).eps


def normal(seed, shape, dtype=DEFAULT):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make(geometry, padding="valid", method="conv", dtype=DEFAULT, seed=0):
    num_filters, channels, length, signal_shape, stride = geometry
    if padding == "circular":  # the next multiple of t
        signal_shape = tuple(-(-size // step) * step for size, step in zip(signal_shape, stride, strict=True))
    bank = normal(seed, (num_filters, channels, *length), dtype)
    return conv_operator(bank, signal_shape, stride=stride, padding=padding, method=method)


def dense(op):
    return oracles.dense_matrix(op.filters, op.signal_shape, op.stride, op.padding)


every_layer = pytest.mark.parametrize(
    ("geometry", "padding", "method"),
    list(itertools.product(GEOMETRIES, PADDINGS, ("conv", "patches"))),
)


@every_layer
def test_products_are_those_of_the_dense_matrix(geometry, padding, method):
    for dtype in DTYPES:
        op = make(geometry, padding, method, dtype)
        matrix = dense(op)
        assert matrix.shape == (np.prod(op.code_shape), np.prod(op.input_shape))
        x, z = normal(1, op.input_shape, dtype), normal(2, op.code_shape, dtype)
        h, y = analysis(op, x), synthesis(op, z)
        assert h.dtype == y.dtype == dtype
        assert h.shape == op.code_shape
        assert y.shape == op.input_shape
        scale = np.abs(matrix).sum()
        np.testing.assert_allclose(np.ravel(h), matrix @ np.ravel(x).astype(float), atol=tolerance(dtype) * scale)
        np.testing.assert_allclose(np.ravel(y), matrix.T @ np.ravel(z).astype(float), atol=tolerance(dtype) * scale)
        assert oracles.adjoint_gap(partial(analysis, op), partial(synthesis, op), x, z) < tolerance(dtype)


@every_layer
def test_as_matrix(geometry, padding, method):
    op = make(geometry, padding, method)
    np.testing.assert_allclose(as_matrix(op), dense(op), atol=tolerance(DEFAULT))


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_wrong_adjoint_is_refused(padding):
    op = make((4, 2, (3,), (9,), (2,)), padding)
    x, z = normal(1, op.input_shape), normal(2, op.code_shape)
    flipped = dataclasses.replace(op, filters=op.filters[..., ::-1])
    wrong = {
        "filters not flipped": partial(synthesis, flipped),
        "one sample late": lambda z: jnp.roll(synthesis(op, z), 1, axis=-1),
        "shifts reversed": lambda z: synthesis(op, z[:, ::-1]),
        "scaled": lambda z: synthesis(op, z) * 1.01,
        "negated": lambda z: -synthesis(op, z),
    }
    if padding == "circular":
        wrong["zeros outside"] = partial(synthesis, dataclasses.replace(op, padding="same"))
    for name, adjoint in wrong.items():
        assert oracles.adjoint_gap(partial(analysis, op), adjoint, x, z) > 10 * tolerance(DEFAULT), name


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    axes=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=2),
    num_filters=st.integers(1, 3),
    channels=st.integers(1, 2),
    padding=st.sampled_from(PADDINGS),
    cut=st.integers(0, 2),
)
def test_any_geometry_matches_the_dense_matrix(axes, num_filters, channels, padding, cut):
    length = tuple(ell for ell, _, _ in axes)
    stride = tuple(step for _, _, step in axes)
    # With same padding any D will do, a D shorter than the filter included.
    shorter = cut if padding == "same" else 0
    size = tuple(max(1, ell + reach * step - shorter) for ell, reach, step in axes)
    if padding == "circular":
        size = tuple((-(-ell // step) + reach) * step for ell, reach, step in axes)
    bank = normal(3, (num_filters, channels, *length))
    for method in ("conv", "patches"):
        op = conv_operator(bank, size, stride=stride, padding=padding, method=method)
        assert oracles.margins(length, size, stride, padding) == (
            tuple(before for before, _ in op.margins),
            op.shifts,
        )
        np.testing.assert_allclose(as_matrix(op), dense(op), atol=tolerance(DEFAULT))
        z = normal(4, op.code_shape)
        np.testing.assert_allclose(np.ravel(synthesis(op, z)), dense(op).T @ np.ravel(z), atol=100 * tolerance(DEFAULT))


def test_a_circular_operator_commutes_with_rotations():
    """Rotating x by the stride rotates h by one shift; and a filter as long as the signal sees all of it, always."""
    op = make((3, 2, (5, 4), (8, 6), (2, 1)), "circular")
    x = normal(1, op.input_shape)
    turned = analysis(op, jnp.roll(x, (2, 1), axis=(1, 2)))
    close = partial(np.testing.assert_allclose, atol=100 * tolerance(DEFAULT))
    close(turned, jnp.roll(analysis(op, x), 1, axis=(1, 2)))
    whole = conv_operator(np.ones((1, 2, 4)), 4, padding="circular")
    x = normal(2, (2, 4))
    close(analysis(whole, x), np.full((1, 4), x.sum()))


@pytest.mark.parametrize(("geometry", "padding"), list(itertools.product(GEOMETRIES, PADDINGS)))
def test_sparse_synthesis_is_dense_synthesis(geometry, padding):
    op = make(geometry, padding)
    rng = np.random.default_rng(5)
    k = 6  # entries may coincide: they add
    index = [rng.integers(0, n, k) for n in op.code_shape]
    values = rng.normal(size=k)
    z = np.zeros(op.code_shape)
    np.add.at(z, tuple(index), values)
    code = Entries(
        jnp.asarray(index[0], np.int32),
        jnp.asarray(np.stack(index[1:], -1), np.int32),
        jnp.asarray(values, DEFAULT),
        op.code_shape,
    )
    result = synthesis_sparse(op, code)
    np.testing.assert_allclose(np.ravel(result), dense(op).T @ z.ravel(), atol=10 * tolerance(DEFAULT))


def test_sparse_synthesis_drops_shifts_outside_and_refuses_another_code():
    op = make(GEOMETRIES[0])
    code = Entries(jnp.zeros(2, np.int32), jnp.asarray([[1], [5]], np.int32), jnp.ones(2, DEFAULT), op.code_shape)
    alone = dataclasses.replace(code, values=jnp.asarray([1.0, 0.0], DEFAULT))
    np.testing.assert_array_equal(synthesis_sparse(op, code), synthesis_sparse(op, alone))
    with pytest.raises(ValueError, match=r"shape \(K, \*n\) = \(4, 5\), got \(4, 6\)"):
        synthesis_sparse(op, dataclasses.replace(code, code_shape=(4, 6)))


@pytest.mark.parametrize("method", ["conv", "patches"])
def test_new_filters_do_not_recompile(method):
    traces = 0

    @jax.jit
    def round_trip(op, x):
        nonlocal traces
        traces += 1
        return synthesis(op, analysis(op, x))

    for seed in range(50):
        op = make(GEOMETRIES[0], method=method, seed=seed)
        result = round_trip(op, jnp.ones(op.input_shape, DEFAULT))
    assert traces == 1
    expected = dense(op).T @ dense(op) @ np.ones(np.prod(op.input_shape))
    np.testing.assert_allclose(np.ravel(result), expected, atol=100 * tolerance(DEFAULT))


@pytest.mark.parametrize("method", ["conv", "patches"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_vmap_over_filters_and_signals_is_a_loop(method, padding):
    geometry = GEOMETRIES[4]
    single = [make(geometry, padding, method, seed=seed) for seed in range(3)]
    bank = dataclasses.replace(single[0], filters=jnp.stack([op.filters for op in single]))
    xs, zs = normal(1, (3, *single[0].input_shape)), normal(2, (3, *single[0].code_shape))
    close = partial(np.testing.assert_allclose, rtol=0, atol=100 * tolerance(DEFAULT))
    close(jax.vmap(analysis)(bank, xs), np.stack([analysis(op, x) for op, x in zip(single, xs, strict=True)]))
    close(jax.vmap(synthesis)(bank, zs), np.stack([synthesis(op, z) for op, z in zip(single, zs, strict=True)]))
    shared = jax.vmap(analysis, in_axes=(None, 0))(single[0], xs)
    close(shared, np.stack([analysis(single[0], x) for x in xs]))


def test_operators_can_be_built_inside_a_trace():
    bank = normal(0, (3, 4, 2, 3))

    @jax.jit
    @jax.vmap
    def energy(filters):
        op = conv_operator(filters, 7)
        return jnp.sum(analysis(op, jnp.ones(op.input_shape, op.dtype)) ** 2)

    expected = [np.sum(oracles.dense_matrix(filters, (7,), (1,)).sum(axis=1) ** 2) for filters in bank]
    np.testing.assert_allclose(energy(bank), expected, rtol=100 * tolerance(DEFAULT))


@pytest.mark.parametrize(("padding", "method"), [("same", "conv"), ("same", "patches"), ("circular", "conv")])
@pytest.mark.parametrize("apply", [analysis, synthesis])
def test_gradients_against_finite_differences(padding, method, apply):
    op = make((2, 2, (3,), (7,), (2,)), padding, method)
    argument = normal(1, op.input_shape if apply is analysis else op.code_shape)

    def loss(op, argument):
        return jnp.sum(jnp.sin(apply(op, argument)))

    in_op, in_argument = jax.grad(loss, argnums=(0, 1))(op, argument)
    step, allowed = (1e-6, 1e-8) if X64 else (1e-2, 1e-2)
    for gradient, rebuild in [
        (in_op.filters, lambda delta: (dataclasses.replace(op, filters=op.filters + delta), argument)),
        (in_argument, lambda delta: (op, argument + delta)),
    ]:
        direction = normal(6, gradient.shape)
        slope = (loss(*rebuild(step * direction)) - loss(*rebuild(-step * direction))) / (2 * step)
        assert abs(slope - jnp.sum(gradient * direction)) < allowed * max(1, abs(slope))


@pytest.mark.parametrize("method", ["conv", "patches"])
def test_half_precision_and_mixed_dtypes(method):
    op = make(GEOMETRIES[0], method=method, dtype=np.float32)
    half = dataclasses.replace(op, filters=op.filters.astype(jnp.bfloat16))
    x = normal(1, op.input_shape, np.float32)
    expected = dense(half) @ np.ravel(x.astype(jnp.bfloat16)).astype(float)
    result = analysis(half, x.astype(jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.ravel(result).astype(float), expected, atol=0.1)
    assert synthesis(half, jnp.ones(op.code_shape, jnp.bfloat16)).dtype == jnp.bfloat16
    assert analysis(op, x.astype(jnp.bfloat16)).dtype == np.float32
    assert analysis(op, jnp.ones(op.input_shape, np.int32)).dtype == np.float32
    if X64:
        assert analysis(op, x.astype(np.float64)).dtype == np.float64


def test_flax_kernels():
    kernel = normal(0, (3, 5, 2, 4))
    filters = from_flax_kernel(kernel)
    assert filters.shape == (4, 2, 3, 5)
    np.testing.assert_array_equal(filters[3, 1], kernel[..., 1, 3])
    np.testing.assert_array_equal(to_flax_kernel(filters), kernel)
    np.testing.assert_array_equal(to_flax_kernel(from_flax_kernel(kernel[0])), kernel[0])
    # Flax convolves [batch, *D, M] by [*ell, M, K] with this very call.
    x = normal(1, (2, 6, 7))
    numbers = ("NHWC", "HWIO", "NHWC")
    flax = jax.lax.conv_general_dilated(jnp.moveaxis(x, 0, -1)[None], kernel, (1, 1), "SAME", dimension_numbers=numbers)
    ours = analysis(conv_operator(filters, (6, 7), padding="same"), x)
    np.testing.assert_allclose(jnp.moveaxis(flax[0], -1, 0), ours, atol=100 * tolerance(DEFAULT))
    with pytest.raises(ValueError, match="Flax kernel"):
        from_flax_kernel(kernel[0, 0])
    with pytest.raises(ValueError, match="filters of shape"):
        to_flax_kernel(kernel[0, 0])


def test_static_parts_and_leaves():
    op = make(GEOMETRIES[4], "same", "patches")
    leaves, structure = jax.tree_util.tree_flatten(op)
    assert len(leaves) == 1
    assert jax.tree_util.tree_unflatten(structure, leaves).signal_shape == (5, 6)
    assert (op.num_filters, op.channels, op.length, op.rank) == (3, 2, (3, 2), 2)
    assert (op.shifts, op.code_shape, op.input_shape, op.dtype) == ((5, 6), (3, 5, 6), (2, 5, 6), DEFAULT)
    assert conv_operator(op.filters, (5, 6)).method in ("conv", "patches")


REFUSALS = [
    ((3, 4), 8, {}, r"\[K, M, ell\] \(1-D\)"),
    ((3, 2, 2, 2, 2), 8, {}, r"\[K, M, ell\] \(1-D\)"),
    ((0, 2, 3), 8, {}, "at least one filter"),
    ((3, 2, 3), (8, 8), {}, "signal_shape to be one integer or 1"),
    ((3, 2, 3), 8.5, {}, "signal_shape to consist of integers"),
    ((3, 2, 3), 2, {}, "D = 2 and l = 3 on spatial axis 0"),
    ((3, 2, 3), 8, {"stride": 2}, "D = 8, l = 3, t = 2 on spatial axis 0; the nearest valid D are 7 and 9"),
    ((3, 2, 3, 3), (7, 9), {"stride": (2, 4)}, "D = 9, l = 3, t = 4 on spatial axis 1; .* 7 and 11"),
    ((3, 2, 3), 8, {"stride": 0}, "stride to consist of integers of at least 1"),
    ((3, 2, 3), 8, {"padding": "full"}, "'valid', 'same' or 'circular', got 'full'"),
    ((3, 2, 3), 9, {"stride": 2, "padding": "circular"}, "D = 9, l = 3, t = 2 on spatial axis 0; .* D are 8 and 10"),
    ((3, 2, 5), 5, {"stride": 2, "padding": "circular"}, "D = 5, l = 5, t = 2 on spatial axis 0; .* D is 6"),
    ((3, 2, 2, 5), (4, 4), {"padding": "circular"}, "D = 4, l = 5, t = 1 on spatial axis 1; .* D is 5"),
    ((3, 2, 2), 1, {"stride": 3, "padding": "circular"}, "D = 1, l = 2, t = 3 on spatial axis 0; .* D is 3"),
    ((3, 2, 3), 8, {"method": "fft"}, "got 'fft'"),
]


@pytest.mark.parametrize(("shape", "size", "options", "message"), REFUSALS)
def test_refusals(shape, size, options, message):
    with pytest.raises(ValueError, match=message):
        conv_operator(np.zeros(shape), size, **options)


def test_refused_signals_and_codes():
    op = make(GEOMETRIES[0])
    with pytest.raises(ValueError, match=r"\(M, \*D\) = \(2, 7\), got \(2, 8\)"):
        analysis(op, np.zeros((2, 8)))
    with pytest.raises(ValueError, match=r"\(K, \*n\) = \(4, 5\), got \(6, 4, 5\).*jax.vmap"):
        synthesis(op, np.zeros((6, 4, 5)))
    with pytest.raises(ValueError, match="real numbers"):
        analysis(op, jnp.zeros((2, 7), np.complex64))
