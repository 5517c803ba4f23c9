"""Convolutions in every form against loops in float64, their gradients against sums, and what is chosen when."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from cnninv_jax.nn import _winograd, convolution, strips
from cnninv_jax.nn.convolution import conv2d

X64 = jax.config.jax_enable_x64
DTYPES = ["float32", "float64"] if X64 else ["float32"]
METHODS = ("direct", "patches", "winograd2", "winograd4", "auto")
WINOGRAD = ("winograd2", "winograd4")
#: Largest error against the norm of the result: of Winograd's forms, of the others.
ERRORS = {"float32": (1e-5, 2e-6), "float64": (1e-13, 1e-14), "bfloat16": (1e-2, 1e-2)}


def margins_of(padding, sizes, sides, steps):
    if padding == "VALID":
        return (0, 0), (0, 0)
    if padding != "SAME":
        return padding
    missing = [
        max((math.ceil(size / step) - 1) * step + side - size, 0)
        for size, side, step in zip(sizes, sides, steps, strict=True)
    ]
    return tuple((zeros // 2, zeros - zeros // 2) for zeros in missing)


def by_loops(x, kernel, cotangent, steps, margins):
    """Responses, and the gradients of their product with a cotangent (made from the responses where None)."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    framed = np.pad(x, [(0, 0), *margins, (0, 0)])
    sides = kernel.shape[:2]
    counts = [(size - side) // step + 1 for size, side, step in zip(framed.shape[1:3], sides, steps, strict=True)]
    places = [
        (
            row,
            column,
            slice(row * steps[0], row * steps[0] + sides[0]),
            slice(column * steps[1], column * steps[1] + sides[1]),
        )
        for row, column in np.ndindex(*counts)
    ]
    responses = np.zeros((len(x), *counts, kernel.shape[3]))
    for row, column, rows, columns in places:
        responses[:, row, column] = np.einsum("bijm,ijmk->bk", framed[:, rows, columns], kernel)
    cotangent = np.cos(responses) if cotangent is None else cotangent
    for_maps, for_kernel = np.zeros_like(framed), np.zeros_like(kernel)
    for row, column, rows, columns in places:
        g = cotangent[:, row, column]
        for_maps[:, rows, columns] += np.einsum("bk,ijmk->bijm", g, kernel)
        for_kernel += np.einsum("bijm,bk->ijmk", framed[:, rows, columns], g)
    (top, _), (left, _) = margins
    return responses, for_maps[:, top : top + x.shape[1], left : left + x.shape[2]], for_kernel


def numbers(shape, kernel, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(kernel) / math.sqrt(math.prod(kernel[:3]))
    return jnp.asarray(rng.standard_normal(shape), dtype), jnp.asarray(w, dtype)


def with_gradients(x, kernel, **options):
    """Responses y and the gradients of sum sin(y)."""

    def objective(x, kernel):
        y = conv2d(x, kernel, **options)
        return jnp.sum(jnp.sin(y)), y

    (_, y), (for_maps, for_kernel) = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(x, kernel)
    return y, for_maps, for_kernel


def assert_near(found, truth, bound):
    for one, other in zip(found, truth, strict=True):
        assert one.shape == other.shape
        assert np.linalg.norm(np.asarray(one, np.float64) - other) <= bound * np.linalg.norm(other) + 1e-30


def check(x, kernel, stride=(1, 1), padding="SAME", method="auto"):
    margins = margins_of(padding, x.shape[1:3], kernel.shape[:2], stride)
    found = with_gradients(x, kernel, stride=stride, padding=padding, method=method)
    assert {one.dtype for one in found} == {x.dtype}
    winograd, plain = ERRORS[str(x.dtype)]
    bound = plain if method in ("direct", "patches") else winograd
    assert_near(found, by_loops(x, kernel, None, stride, margins), bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_forms_are_the_convolution_and_its_gradients(method, dtype):
    check(*numbers((3, 9, 6, 3), (3, 3, 3, 5), dtype), method=method)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "method"),
    [
        ((2, 8, 7, 2), (3, 2, 2, 4), (1, 2), ((2, 1), (0, 3)), "patches"),
        ((2, 9, 8, 2), (3, 3, 2, 4), (3, 2), "VALID", "patches"),
        ((2, 7, 9, 2), (3, 3, 2, 4), (1, 1), ((3, 0), (2, 4)), "winograd4"),
        ((2, 5, 4, 2), (3, 3, 2, 4), (1, 1), "VALID", "winograd2"),
        ((3, 5, 4, 6), (1, 1, 6, 4), (1, 1), "SAME", "auto"),
        ((2, 6, 5, 100), (3, 3, 100, 96), (2, 2), "SAME", "auto"),
        ((2, 6, 6, 9), (5, 5, 9, 3), (1, 1), "SAME", "auto"),
        ((5, 6, 6, 32), (3, 3, 32, 33), (1, 1), "SAME", "auto"),
    ],
)
def test_strides_margins_and_shapes(shape, kernel, stride, padding, method):
    check(*numbers(shape, kernel, DTYPES[-1]), stride=stride, padding=padding, method=method)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_geometry(data):
    method = data.draw(st.sampled_from(METHODS))
    winograd = method in WINOGRAD
    sides = (3, 3) if winograd else tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    stride = (1, 1) if winograd else tuple(data.draw(st.integers(1, 3)) for _ in range(2))
    free = tuple((data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(2))
    padding = data.draw(st.sampled_from(["SAME", "VALID", free]))
    sizes = tuple(data.draw(st.integers(side, 9)) for side in sides)
    batch, inputs, outputs = (data.draw(st.integers(1, 4)) for _ in range(3))
    dtype = data.draw(st.sampled_from(DTYPES))
    x, kernel = numbers((batch, *sizes, inputs), (*sides, inputs, outputs), dtype, seed=1)
    check(x, kernel, stride=stride, padding=padding, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_summed_in_float32(method):
    x, kernel = numbers((2, 8, 8, 32), (3, 3, 32, 4), "bfloat16")
    found = jax.jit(functools.partial(conv2d, method=method))(x, kernel)
    truth, _, _ = by_loops(x, kernel, None, (1, 1), ((1, 1), (1, 1)))
    assert found.dtype == jnp.bfloat16
    assert_near([found], [truth], ERRORS["bfloat16"][0])


@pytest.mark.parametrize(
    ("method", "bound"), [("direct", 5e-7), ("patches", 1e-6), ("winograd2", 1e-6), ("winograd4", 4e-6)]
)
def test_rounding_of_a_wide_layer(method, bound):
    """The bound of the documentation, at 256 channels; images are never negative behind a ReLU."""
    x, kernel = numbers((2, 8, 8, 256), (3, 3, 256, 32))
    x = jnp.maximum(x, 0)
    found = jax.jit(functools.partial(conv2d, method=method))(x, kernel)
    truth, _, _ = by_loops(x, kernel, None, (1, 1), ((1, 1), (1, 1)))
    assert_near([found], [truth], bound)


@pytest.mark.parametrize("tile", [2, 4])
def test_transforms_are_exact(tile):
    """A^T [(G g) . (B^T d)] is the correlation of any three taps with any tile + 2 samples (all are dyadic but G)."""
    forms = _winograd.transforms(tile)
    for taps, samples in itertools.product(np.eye(3), np.eye(tile + 2)):
        found = forms.outputs @ ((forms.filters @ taps) * (forms.inputs @ samples))
        np.testing.assert_allclose(found, np.correlate(samples, taps, "valid"), atol=1e-15)


@pytest.mark.parametrize("method", ["patches", "winograd4"])
def test_parts_of_a_batch_change_nothing(method, monkeypatch):
    """Seven pictures in parts of three or less: what is left over is done apart."""
    x, kernel = numbers((7, 6, 6, 24), (3, 3, 24, 24), DTYPES[-1])
    whole = with_gradients(x, kernel, method=method)
    monkeypatch.setattr(convolution, "TILE_BYTES", 1)
    monkeypatch.setattr(convolution, "LEAST_TILES", 12)
    monkeypatch.setattr(convolution, "PATCH_BYTES", 3 * 4 * 36 * 9 * 24)
    parts = with_gradients(x, kernel, method=method)
    assert_near(parts, [np.asarray(one) for one in whole], ERRORS[DTYPES[-1]][0])


def test_strips():
    assert [strips.split(count, 4) for count in (4, 5, 6, 7, 12, 13)] == [
        (4, 1),
        (3, 1),
        (3, 2),
        (4, 1),
        (4, 3),
        (4, 3),
    ]
    for count, size in itertools.product(range(1, 30), range(1, 9)):
        part, whole = strips.split(count, size)
        assert 1 <= part <= max(size, 1)
        assert 0 <= count - part * whole < part
    images = {"a": jnp.arange(14.0, dtype=np.float32).reshape(7, 2), "b": jnp.arange(7, dtype=np.int32)}

    def function(images, factors):
        return {"c": images["a"] * factors[:, None], "d": images["b"]}

    factors = jnp.arange(7.0, dtype=np.float32)
    found = strips.in_strips(function, 3, images, factors)
    jax.tree.map(np.testing.assert_array_equal, found, function(images, factors))
    np.testing.assert_array_equal(strips.in_strips(lambda a: -a, 100, factors), -factors)
    total = strips.sum_over_strips(lambda images, factors: images["a"].T @ factors, 3, images, factors)
    np.testing.assert_array_equal(total, images["a"].T @ factors)
    assert strips.strip_of((500, 32, 32, 3)) == 32
    assert strips.strip_of((500, 224, 400, 3)) == 1
    with pytest.raises(ValueError, match="expected parts of at least 1 example, got 0"):
        strips.in_strips(function, 0, images, factors)


def test_vmap_over_maps_and_filters():
    x, kernel = numbers((2, 2, 6, 6, 3), (2, 3, 3, 3, 4), DTYPES[-1])
    for method in ("patches", "winograd4"):
        found = jax.vmap(functools.partial(with_gradients, method=method))(x, kernel)
        for at in range(2):
            truth = by_loops(x[at], kernel[at], None, (1, 1), ((1, 1), (1, 1)))
            assert_near([one[at] for one in found], truth, ERRORS[DTYPES[-1]][0])


@pytest.mark.parametrize("method", ["patches", "winograd4"])
def test_second_derivatives_are_those_of_the_direct_form(method):
    x, kernel = numbers((1, 4, 4, 2), (3, 3, 2, 2), DTYPES[-1])

    def twice(method):
        def objective(x, kernel):
            return jnp.sum(jnp.sin(conv2d(x, kernel, method=method)))

        def along(x, kernel):
            for_maps, for_kernel = jax.grad(objective, (0, 1))(x, kernel)
            return jnp.vdot(for_maps, jnp.cos(x)) + jnp.vdot(for_kernel, jnp.cos(kernel))

        return jax.jit(jax.grad(along, (0, 1)))(x, kernel)

    assert_near(twice(method), [np.asarray(one) for one in twice("direct")], 10 * ERRORS[DTYPES[-1]][0])


@pytest.mark.skipif(not X64, reason="finite differences need float64")
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_are_finite_differences(method):
    x, kernel = numbers((1, 4, 4, 2), (3, 3, 2, 2), "float64")
    check_grads(jax.jit(functools.partial(conv2d, method=method)), (x, kernel), order=2, modes=["rev"])


def test_forward_mode_is_for_the_direct_form():
    x, kernel = numbers((1, 4, 4, 2), (3, 3, 2, 2))
    _, tangent = jax.jvp(functools.partial(conv2d, method="direct"), (x, kernel), (x, kernel))
    np.testing.assert_allclose(tangent, 2 * conv2d(x, kernel, method="direct"), rtol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(functools.partial(conv2d, method="patches"), (x, kernel), (x, kernel))


def test_choice():
    def chosen(maps, kernel, **options):
        x = jax.ShapeDtypeStruct(maps, np.float32)
        plan = convolution._checked(x, jax.ShapeDtypeStruct(kernel, np.float32), **{
            "stride": 1, "padding": "SAME", "precision": None, "method": "auto", **options
        })  # fmt: skip
        return convolution.choose(maps, kernel, plan)

    assert chosen((128, 32, 32, 3), (3, 3, 3, 256)) == "patches"
    assert chosen((128, 16, 16, 256), (1, 1, 256, 256)) == "patches"
    assert chosen((128, 16, 16, 256), (3, 3, 256, 256)) == "winograd4"
    assert chosen((128, 8, 8, 64), (3, 3, 64, 16)) == "winograd4"
    assert chosen((128, 2, 2, 64), (3, 3, 64, 64)) == "winograd2"
    assert chosen((128, 1, 1, 64), (3, 3, 64, 64)) == "direct"
    assert chosen((128, 32, 32, 16), (3, 3, 16, 16)) == "direct"
    assert chosen((128, 32, 32, 64), (3, 3, 64, 3)) == "direct"
    assert chosen((128, 16, 16, 256), (3, 3, 256, 256), stride=2) == "direct"
    assert chosen((128, 16, 16, 64), (5, 5, 64, 64)) == "direct"


def test_an_accelerator_gets_the_compilers_own(monkeypatch):
    x, kernel = numbers((1, 6, 6, 3), (3, 3, 3, 4))
    here = str(jax.make_jaxpr(lambda x, kernel: conv2d(x, kernel))(x, kernel))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = str(jax.make_jaxpr(lambda x, kernel: conv2d(x, kernel, precision=None))(x, kernel))
    assert "custom_vjp" in here
    assert "conv_general_dilated" not in here
    assert "custom_vjp" not in there
    assert "conv_general_dilated" in there


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "fast"}, "expected a method of auto, direct, .*, got 'fast'"),
        ({"x": (6, 6, 3)}, r"expected maps \[B, H, W, M\] and a kernel"),
        ({"x": (1, 6, 6, 2)}, r"got \(1, 6, 6, 2\) and \(3, 3, 3, 4\)"),
        ({"kernel": (3, 3, 3, 0)}, "expected maps"),
        ({"dtype": "int32"}, "expected maps and kernel of one floating dtype, got float32 and int32; cast one"),
        ({"stride": 0}, "expected stride to consist of integers of at least 1, got 0"),
        ({"padding": "full"}, "expected padding to be 'SAME', 'VALID' or .*, got 'full'"),
        ({"padding": 1}, "expected padding to be 'SAME'"),
        ({"padding": ((0, -1), (0, 0))}, "of at least 0"),
        ({"padding": ((1, 1), (1, 1), (1, 1))}, "expected padding to be"),
        ({"x": (1, 2, 6, 3), "padding": "VALID"}, "expected maps at least as large as the filters of 3 x 3, got 2 x 6"),
        ({"method": "winograd4", "stride": 2}, r"expected 3 x 3 filters and stride 1 for winograd4, got 3 x 3 and"),
        ({"method": "winograd2", "kernel": (1, 3, 3, 4)}, "got 1 x 3 and stride"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(options, said):
    options = dict(options)
    x = jnp.zeros(options.pop("x", (1, 6, 6, 3)), np.float32)
    kernel = jnp.zeros(options.pop("kernel", (3, 3, 3, 4)), options.pop("dtype", np.float32))
    with pytest.raises(ValueError, match=said) as caught:
        conv2d(x, kernel, **options)
    assert "\n" not in str(caught.value)
