"""Angles between arrays: to rounding at every size of angle, in both precisions, with gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.limits.angles import cosine_angle, sine_angle

X64 = jax.config.read("jax_enable_x64")
DTYPES = [np.float32] + [np.float64] * X64
ANGLES = [0.0, 1e-6, 1e-4, 1e-2, 0.5, 1.5, math.pi / 2, 2.0, 3.0, math.pi - 1e-3, math.pi]


def pair(angle, size=2000, seed=0):
    """Two arrays at an angle, in float64."""
    rng = np.random.default_rng(seed)
    b = rng.standard_normal(size) + 1
    across = rng.standard_normal(size)
    across -= across @ b / (b @ b) * b
    a = math.cos(angle) * b / np.linalg.norm(b) + math.sin(angle) * across / np.linalg.norm(across)
    return a, b


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("angle", ANGLES, ids=lambda angle: f"{angle:.6g}")
def test_every_size_of_angle(dtype, angle):
    a, b = (array.astype(dtype).reshape(20, 100) for array in pair(angle))
    sine, cosine = sine_angle(a, b), cosine_angle(a, b)
    assert sine.dtype == cosine.dtype == dtype
    assert sine.shape == cosine.shape == ()
    # Rounding the arrays turns them by at most this.
    tolerance = np.finfo(dtype).eps * 1.5
    assert abs(float(sine) - math.sin(angle)) < tolerance
    assert abs(float(cosine) - math.cos(angle)) < tolerance
    assert 0 <= sine <= 1
    assert -1 <= cosine <= 1
    np.testing.assert_allclose(sine_angle(b, a), sine, atol=tolerance)
    np.testing.assert_allclose(cosine_angle(b, a), cosine, atol=tolerance)


def test_the_cosine_alone_would_not_do():
    """What `sine_angle` is for: in float32 1 - cos^2 of a small angle is rounding."""
    a, b = (array.astype(np.float32) for array in pair(1e-5))
    naive = math.sqrt(abs(1 - float(cosine_angle(a, b)) ** 2))
    assert abs(naive - 1e-5) > 5e-6
    assert abs(float(sine_angle(a, b)) - 1e-5) < 1e-7


def test_long_arrays_of_one_sign_in_single_precision():
    """Sums of 200,000 positive numbers round; a second projection takes their error out."""
    a = np.random.default_rng(1).random(200_000, np.float32) + 1
    b = 3.7 * a.astype(np.float64)
    assert sine_angle(a, b.astype(np.float32)) < 1e-7


@pytest.mark.parametrize("scale", [1e-33, 1e-20, 1e20, 1e36], ids=str)
def test_the_scale_does_not_matter(scale):
    a, b = (array.astype(np.float32) for array in pair(0.3))
    large = (a * np.float32(scale)).astype(np.float32)
    for angle in (sine_angle, cosine_angle):
        np.testing.assert_allclose(angle(large, b), angle(a, b), rtol=3e-6)
        np.testing.assert_allclose(angle(b, large), angle(a, b), rtol=3e-6)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=3),
    st.integers(1, 5),
)
def test_properties(entries, factor):
    a, b = np.array(entries, float).T
    sine, cosine = float(sine_angle(a, b)), float(cosine_angle(a, b))
    if not a.any() or not b.any():
        assert (sine, cosine) == (1.0, 0.0)
        return
    tolerance = 1e-12 if X64 else 1e-5
    exact = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert abs(cosine - exact) < tolerance
    assert abs(sine - np.linalg.norm(np.cross(a, b)) / (np.linalg.norm(a) * np.linalg.norm(b))) < tolerance
    assert abs(sine**2 + cosine**2 - 1) < tolerance
    assert abs(float(cosine_angle(-factor * a, b)) + cosine) < tolerance
    assert abs(float(sine_angle(-factor * a, b)) - sine) < tolerance


def test_the_sine_is_the_smallest_distance():
    """sin = min over g of |g a - b| / |b|, as the proof of Theorem 8 uses it."""
    a, b = pair(0.7, size=50)
    multiples = np.linspace(-3, 3, 100_001)[:, None] * a / (a @ a) * np.linalg.norm(b)
    smallest = (np.linalg.norm(multiples - b, axis=1) / np.linalg.norm(b)).min()
    np.testing.assert_allclose(sine_angle(a, b), smallest, rtol=1e-6)


@pytest.mark.parametrize("angle", [sine_angle, cosine_angle], ids=["sine", "cosine"])
def test_gradients(angle):
    a, b = (jnp.asarray(array) for array in pair(0.4, size=6))
    step = 1e-6 if X64 else 1e-2
    shifts = step * jnp.eye(6, dtype=a.dtype)
    many = jax.jit(jax.vmap(angle))
    copies = jnp.tile(a[None], (6, 1)), jnp.tile(b[None], (6, 1))
    tolerance = {"rtol": 1e-5, "atol": 1e-8} if X64 else {"rtol": 3e-2, "atol": 1e-3}
    for place, exact in enumerate(jax.jit(jax.grad(angle, (0, 1)))(a, b)):
        up, down = list(copies), list(copies)
        up[place], down[place] = up[place] + shifts, down[place] - shifts
        np.testing.assert_allclose(exact, (many(*up) - many(*down)) / (2 * step), **tolerance)


@pytest.mark.parametrize("angle", [sine_angle, cosine_angle], ids=["sine", "cosine"])
def test_gradients_are_finite_everywhere(angle):
    a, _ = (jnp.asarray(array, jnp.float32) for array in pair(0.4, size=6))
    across = jnp.asarray([1.0, -1, 0, 0, 0, 0], jnp.float32)
    both = jax.jit(jax.grad(angle, (0, 1)))
    for first, second in ((a, a), (a, -2 * a), (0 * a, a), (a, 0 * a), (0 * a, 0 * a), (across, jnp.abs(across))):
        for gradient in both(first, second):
            assert jnp.all(jnp.isfinite(gradient))


def test_under_jit_and_vmap():
    a, b = pair(0.9)
    batch = jnp.asarray(np.stack([a, b, 0 * a]), jnp.float32)
    other = jnp.asarray(b, jnp.float32)
    sines = jax.jit(jax.vmap(sine_angle, (0, None)))(batch, other)
    np.testing.assert_allclose(sines, [math.sin(0.9), 0, 1], atol=2e-7)


def test_dtypes():
    assert sine_angle(np.array([1, 0]), np.array([0, 2])).dtype == (np.float64 if X64 else np.float32)
    half = sine_angle(jnp.ones(4000, jnp.bfloat16) * 300, jnp.arange(4000).astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(half), 0.5, atol=4e-3)
    if X64:
        assert cosine_angle(np.ones(3, np.float32), np.ones(3)).dtype == np.float64


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 3), (3, 2)), ((1, 3), (3,)), ((0,), (0,))], ids=str)
def test_refused_shapes(shapes):
    for angle in (sine_angle, cosine_angle):
        with pytest.raises(ValueError, match=r"two arrays of one shape.*\[\*D_out\]"):
            angle(*(np.ones(shape) for shape in shapes))
