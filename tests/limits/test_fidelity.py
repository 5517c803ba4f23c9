"""Theorems 3 and 9: against plain loops, on photographs at every kernel size, and where their conditions fail."""

import functools
import itertools
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax import data, images
from cnninv_jax.limits import AvgPool, Conv, L2Pool, Upsample, fidelity, routes

X64 = jax.config.read("jax_enable_x64")
RTOL = 1e-12 if X64 else 1e-5
FOLDER = pathlib.Path(os.environ.get("CNNINV_DATA") or pathlib.Path(__file__).parents[3] / "shared" / "data")
CBSD68 = FOLDER / "pictures" / "cbsd68"
KERNELS = range(3, 16)


def window_means(x, length, *, zeros=True):
    """Mean over the window around every pixel, by loops; with zeros outside of the picture, or of the pixels alone."""
    before, _ = oracles.margins(length, x.shape, (1,) * x.ndim, "same")
    found = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        corner = [a - b for a, b in zip(at, before, strict=True)]
        window = x[tuple(slice(max(c, 0), c + ell) for c, ell in zip(corner, length, strict=True))]
        found[at] = window.sum() / (math.prod(length) if zeros else window.size)
    return found


@pytest.mark.parametrize(("shape", "length"), [((9,), (3,)), ((9,), (4,)), ((6, 8), (3, 2)), ((4, 5), (7, 5))], ids=str)
def test_theorem_9_by_loops(shape, length):
    x = np.random.default_rng(0).random(shape)
    epsilon = x - window_means(x, length)
    expected = 1 - np.sum(epsilon * x) / np.sum(x**2)
    np.testing.assert_allclose(fidelity.theorem_9(x[None], length), expected, rtol=RTOL)
    assert fidelity.theorem_3 is fidelity.theorem_9


def bounds_and_cosines(pictures, kernels):
    """Per picture and kernel: Theorem 9's bound, the refined one, cos(Phi)."""
    for length in kernels:
        layers = (Conv(length, padding="same"),)

        def one(image, layers=layers, length=length):
            return (
                fidelity.theorem_9(image, length),
                fidelity.theorem_9_refined(image, layers),
                fidelity.cosine_to_image(image, layers),
            )

        yield length, np.stack(jax.jit(functools.partial(jax.lax.map, one))(pictures))


def check(pictures, kernels):
    before = np.inf
    for _, (bound, refined, cosine) in bounds_and_cosines(pictures, kernels):
        slack = 1e-12 if X64 else 1e-5
        assert np.all(bound <= refined + slack)
        assert np.all(refined <= cosine + slack)
        assert np.all(bound > 0.5)
        # Not empty: the inequality is strict, and larger kernels promise less.
        assert np.all(cosine < 1 - 1e-5)
        assert np.all(bound < before)
        before = bound


def grey(pictures):
    return images.to_grey(jnp.asarray(pictures, float))[:, None]


@pytest.mark.slow
def test_theorem_9_on_embedded_photographs():
    check(grey(data.load_pictures(size=96).images), KERNELS)


@pytest.mark.skipif(
    not CBSD68.is_dir(), reason=f"the 68 pictures do not ship with the project and {CBSD68} is absent; set CNNINV_DATA"
)
@pytest.mark.parametrize(
    ("kernels", "step"),
    [((5,), 4), pytest.param(KERNELS, 1, marks=pytest.mark.slow)],
    ids=["a quarter of them", "all, every kernel"],
)
def test_theorem_9_on_68_pictures(kernels, step):
    files = data.picture_files(CBSD68)
    assert len(files) == 68
    read = [data.read_picture(file) for file in files[::step]]
    # Portraits lie down: a square kernel does not see it.
    check(grey(np.stack([one if one.shape[1] < one.shape[2] else one.transpose(0, 2, 1) for one in read])), kernels)


def test_the_border_has_to_count_zeros():
    """With the mean of the pixels alone a flat picture would be promised 1; its limit darkens at the border."""
    flat = np.ones((1, 8, 8))
    layers = (Conv(5, padding="same"),)
    cosine = float(fidelity.cosine_to_image(flat, layers))
    pixels_alone = 1 - np.sum((flat[0] - window_means(flat[0], (5, 5), zeros=False)) * flat[0]) / flat.sum()
    assert pixels_alone == 1
    assert cosine < 0.99
    assert float(fidelity.theorem_9(flat, 5)) < cosine


def test_negative_entries_are_reported():
    negative = -np.ones((1, 9))
    cosine = fidelity.cosine_to_image(negative, (Conv(3, padding="same"),))
    # The formula would promise much, and be wrong.
    formula = np.sum(negative[0] * window_means(negative[0], (3,))) / 9
    assert formula > 0.8 > -0.9 > float(cosine)
    one = np.ones((1, 9))
    one[0, 4] = -1e-3
    layers = (Conv(3, padding="same"),)
    for image in (negative, one, np.zeros((1, 9))):
        assert jnp.isnan(fidelity.theorem_9(image, 3))
        assert jnp.isnan(fidelity.theorem_9_refined(image, layers))
    assert fidelity.cosine_to_image(np.zeros((1, 9)), layers) == 0
    one[0, 4] = 0.0
    assert fidelity.theorem_9(one, 3) <= fidelity.cosine_to_image(one, layers)


def test_several_channels_enter_by_their_norm():
    image = np.random.default_rng(1).standard_normal((3, 7, 6))
    magnitude = np.linalg.norm(image, axis=0)[None]
    layers = (Conv(3, padding="same"), Conv(2, padding="same"))
    for function in (fidelity.theorem_9_multilayer, fidelity.theorem_9_refined, fidelity.cosine_to_image):
        np.testing.assert_allclose(function(image, layers), function(magnitude, layers), rtol=RTOL)
    assert fidelity.theorem_9_multilayer(image, layers) <= fidelity.cosine_to_image(image, layers)


def by_routes(x, layers):
    """The three numbers from the dense route counts, as A.3.3 writes them."""
    n = routes.route_counts(layers, (1, *x.shape)).reshape(x.size, x.size)
    flat = x.ravel()
    omega = math.prod(math.prod(np.broadcast_to(layer.length, x.ndim)) for layer in layers if isinstance(layer, Conv))
    epsilon = flat - n @ flat / omega
    z = np.sqrt(n @ flat**2)
    rows = np.where(n.sum(axis=1) == 0, 1, n.sum(axis=1))
    cosine = z @ flat / (np.linalg.norm(z) * np.linalg.norm(flat))
    refined = np.sum(flat * (n @ flat) / np.sqrt(rows)) / (np.linalg.norm(z) * np.linalg.norm(flat))
    return 1 - np.sum(epsilon * flat) / np.sum(flat**2), refined, cosine


@pytest.mark.parametrize("shape", [(11,), (5, 6)], ids=str)
def test_the_multilayer_bound_by_routes(shape):
    x = np.random.default_rng(2).random(shape)
    layers = tuple(Conv(length, padding="same") for length in (3, 2, 4))
    bound, refined, cosine = by_routes(x, layers)
    np.testing.assert_allclose(fidelity.theorem_9_multilayer(x[None], layers), bound, rtol=RTOL)
    np.testing.assert_allclose(fidelity.theorem_9_refined(x[None], layers), refined, rtol=RTOL)
    np.testing.assert_allclose(fidelity.cosine_to_image(x[None], layers), cosine, rtol=RTOL)
    assert bound < refined < cosine


def test_routes_may_be_more_than_an_integer_holds():
    x = jnp.ones((1, 70, 70), jnp.float32)
    bound = fidelity.theorem_9_multilayer(x, (Conv(15, padding="same"),) * 4)  # 15^8 routes
    assert bound.dtype == jnp.float32
    assert 0.3 < bound < 1


ROUND_TRIPS = {
    "pool, upsample": (L2Pool(2), Conv(3, padding="same"), Upsample(2), Conv(3, padding="same")),
    "stride, upsample": (
        Conv(4, stride=3, padding="same"),
        Upsample(3),
        Conv(5, padding="same"),
        Conv(2, padding="same"),
    ),
    "upsample, stride": (Upsample(2), Conv(3, stride=2, padding="same")),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
@pytest.mark.parametrize("shape", [(12,), (6, 6)], ids=str)
def test_the_refined_bound_of_any_round_trip(name, shape):
    layers = ROUND_TRIPS[name]
    for seed, power in itertools.product(range(2), (1, 5)):
        x = np.random.default_rng(seed).random(shape) ** power
        _, refined, cosine = by_routes(x, layers)
        found = fidelity.theorem_9_refined(x[None], layers)
        np.testing.assert_allclose(found, refined, rtol=RTOL)
        np.testing.assert_allclose(fidelity.cosine_to_image(x[None], layers), cosine, rtol=RTOL)
        assert found <= cosine


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=10, max_size=10),
    st.sampled_from([(3,), (2, 3), (15,), (4, 5, 3)]),
)
def test_the_inequalities_for_any_picture(values, lengths):
    x = np.array(values)[None]
    if x.max() < 1e-3:
        return
    layers = tuple(Conv(length, padding="same") for length in lengths)
    bound, refined, cosine = _three(layers)(x)
    slack = 1e-12 if X64 else 1e-5
    assert bound <= refined + slack
    assert refined <= cosine + slack


@functools.cache
def _three(layers):
    functions = (fidelity.theorem_9_multilayer, fidelity.theorem_9_refined, fidelity.cosine_to_image)
    return jax.jit(lambda image: tuple(function(image, layers) for function in functions))


def test_transformations():
    layers = (Conv(3, padding="same"), Conv(3, padding="same"))
    batch = jnp.asarray(np.random.default_rng(5).random((3, 1, 6, 5)), jnp.float32)
    three = _three(layers)
    found = jax.jit(jax.vmap(three))(batch)
    for one, image in zip(np.stack(found, axis=1), batch, strict=True):
        np.testing.assert_allclose(one, np.stack(three(image)), rtol=1e-5)
    assert found[0].dtype == jnp.float32
    gradients = jax.jit(jax.grad(lambda image: sum(three(image))))(batch[0])
    assert jnp.all(jnp.isfinite(gradients))


def test_refusals():
    image = np.ones((1, 12))
    for layers, message in (
        ((Conv(3, padding="same"), Conv(3)), r"layer 2, Conv from \(12,\) to \(10,\) with stride \(1,\)"),
        (
            (L2Pool(2), Upsample(2), Conv(3, padding="same")),
            r"layer 1, L2Pool from \(12,\) to \(6,\) with stride \(2,\)",
        ),
        ((Upsample(2), Conv(2, stride=2)), "layer 1, Upsample"),
    ):
        with pytest.raises(ValueError, match=rf"expected layers of stride 1.*got {message}.*theorem_9_refined"):
            fidelity.theorem_9_multilayer(image, layers)
    for function in (fidelity.theorem_9_refined, fidelity.cosine_to_image):
        with pytest.raises(ValueError, match=r"as large as the picture, \(12,\), got \(10,\); use padding='same'"):
            function(image, (Conv(3),))
        with pytest.raises(ValueError, match="AvgPool"):
            function(image, (AvgPool(1), Conv(3, padding="same")))
    with pytest.raises(ValueError, match="the length of layer 1"):
        fidelity.theorem_9(image, (3, 3))
