"""Grey-scale and structural similarity against scikit-image, and the rule by which outputs are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from cnninv_jax import images
from cnninv_jax.data import load_pictures

X64 = jax.config.jax_enable_x64
TOLERANCES = [(np.float32, 1e-6), *([(np.float64, 1e-12)] if X64 else [])]
precisions = pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=[f"{d.__name__}" for d, _ in TOLERANCES])
SSIM, COMPARE, SIMILARITY = jax.jit(images.ssim), jax.jit(images.compare), jax.jit(images.similarity)


@pytest.fixture(scope="module")
def pictures():
    return load_pictures(size=64).images


def skimage_ssim(a, b, data_range=1.0, **more):
    return structural_similarity(
        np.asarray(a, np.float64), np.asarray(b, np.float64), gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=data_range, **more,
    )  # fmt: skip


def pairs(pictures, count=50):
    """Pairs of grey pictures of one shape: noise, blur, shifts, negatives, flat areas and low contrast."""
    rng = np.random.default_rng(0)
    changes = (
        lambda a: a + 0.1 * rng.normal(size=a.shape),
        lambda a: gaussian_filter(a, 1.5),
        lambda a: 1 - a,
        lambda a: np.roll(a, 2, axis=1),
        lambda a: 0.9 + 0.05 * a,
        lambda a: np.round(a),
        lambda a: rng.uniform(size=a.shape),
        lambda a: a + 0.001 * rng.normal(size=a.shape),
        lambda a: a[::-1],
    )
    for i in range(count):
        picture = rgb2gray(np.moveaxis(np.asarray(pictures[i % len(pictures)], np.float64), 0, -1))
        top, left = rng.integers(0, 12, 2)
        crop = picture[top : top + 52, left : left + 47]
        # Black and white areas: variances of flat windows far from the mean are what float32 loses.
        crop = np.round(crop) if i % 4 == 3 else crop
        yield crop, np.clip(changes[i % len(changes)](crop), 0, 1)


@precisions
def test_grey_as_in_skimage(pictures, dtype, tolerance):
    found = images.to_grey(jnp.asarray(pictures, dtype))
    assert found.dtype == dtype
    assert found.shape == (len(pictures), 64, 64)
    expected = np.stack([rgb2gray(np.moveaxis(np.asarray(picture, dtype), 0, -1)) for picture in pictures])
    np.testing.assert_allclose(found, expected, atol=tolerance / 2, rtol=0)


def test_one_channel_is_grey_already():
    picture = jnp.arange(12.0).reshape(2, 1, 2, 3)
    np.testing.assert_array_equal(images.to_grey(picture), picture[:, 0])


@precisions
def test_ssim_as_in_skimage_on_fifty_pairs(pictures, dtype, tolerance):
    values = []
    for first, second in pairs(pictures):
        a, b = first.astype(dtype), second.astype(dtype)
        found = SSIM(a, b)
        assert found.dtype == dtype
        values.append(skimage_ssim(a, b))
        assert abs(float(found) - values[-1]) <= tolerance
    # From negatives to near-equal pictures.
    assert min(values) < -0.1
    assert max(values) > 0.95


@precisions
@pytest.mark.parametrize("data_range", [1e-9, 255.0], ids=["tiny", "bytes"])
def test_ssim_with_another_range(pictures, dtype, tolerance, data_range):
    a = (images.to_grey(np.asarray(pictures[0], np.float64 if X64 else np.float32)) * data_range).astype(dtype)
    b = a[::-1]
    found = SSIM(a, b, data_range=data_range)
    assert abs(float(found) - skimage_ssim(a, b, data_range)) <= tolerance


def test_ssim_where_flat_areas_cost_float32_its_digits():
    rows, columns = np.indices((120, 100)) // 40
    a = ((rows + columns) % 2).astype(np.float32)
    b = np.clip(a + 0.01 * np.random.default_rng(0).normal(size=a.shape), 0, 1).astype(np.float32)
    expected = skimage_ssim(a, b)
    assert abs(float(SSIM(a, b)) - expected) <= 2e-7

    # What the difference of raw moments makes of it, so that this test is known to ask for something.
    def smooth(x):
        return gaussian_filter(x, 1.5, truncate=3.5, output=np.float32)

    def variance(x, y):
        return smooth(x * y) - smooth(x) * smooth(y)

    c1, c2 = np.float32(1e-4), np.float32(9e-4)
    ratio = (2 * smooth(a) * smooth(b) + c1) / (smooth(a) ** 2 + smooth(b) ** 2 + c1)
    ratio *= (2 * variance(a, b) + c2) / (variance(a, a) + variance(b, b) + c2)
    assert abs(float(np.mean(ratio[5:-5, 5:-5], dtype=np.float64)) - expected) > 3e-7


def test_ssim_of_channels_is_their_mean(pictures):
    a, b = pictures[0], pictures[1]
    expected = skimage_ssim(a, b, channel_axis=0)
    assert abs(float(SSIM(a, b)) - expected) <= 1e-6


@pytest.mark.slow
def test_ssim_under_vmap_and_grad(pictures):
    grey = images.to_grey(jnp.asarray(pictures))[:3, :24, :24]
    batch = jax.jit(jax.vmap(images.ssim))(grey, grey[::-1])
    np.testing.assert_allclose(batch, [SSIM(a, b) for a, b in zip(grey, grey[::-1], strict=True)], rtol=1e-6)
    # By central differences, in float64.
    slope = jax.jit(jax.grad(images.ssim))
    if X64:
        a, b = np.asarray(grey[0], np.float64), np.asarray(grey[1], np.float64)
        way = np.random.default_rng(0).normal(size=a.shape)
        step = 1e-6
        change = float(SSIM(a + step * way, b)) - float(SSIM(a - step * way, b))
        np.testing.assert_allclose(np.sum(np.asarray(slope(a, b)) * way), change / (2 * step), rtol=1e-6)
    # Equal pictures, a constant one: the slope has no NaN.
    assert np.all(np.isfinite(slope(grey[0], grey[0])))
    assert np.all(np.isfinite(jax.jit(jax.grad(images.similarity))(grey[0], jnp.ones_like(grey[0]))))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), high=st.sampled_from([11, 17]), spread=st.floats(1e-3, 1.0))
def test_ssim_is_symmetric_bounded_and_one_for_equals(seed, high, spread):
    rng = np.random.default_rng(seed)
    a = rng.uniform(size=(high, 13)).astype(np.float32)
    b = (0.5 + spread * (rng.uniform(size=(high, 13)) - 0.5)).astype(np.float32)
    value = float(SSIM(a, b))
    assert -1 <= value <= 1
    assert abs(value - float(SSIM(b, a))) <= 1e-6
    assert float(SSIM(a, a)) == pytest.approx(1, abs=1e-6)
    assert value < 1


def test_rescale():
    found = images.rescale(jnp.array([[2.0, -2.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found, [[1, 0], [0.5, 0.75]])
    np.testing.assert_array_equal(images.rescale(jnp.full((2, 3), 7.0)), np.zeros((2, 3)))
    assert np.all(np.isfinite(jax.grad(lambda x: images.rescale(x).sum())(jnp.full((2, 3), 7.0))))


def test_similarity_is_the_papers_rule(pictures):
    picture, other = pictures[0], pictures[1]
    grey = np.asarray(images.to_grey(picture))
    # In grey, the output alone scaled, and no inversion where the value is positive.
    output = 40 * other - 7
    expected = np.asarray(images.to_grey(output))
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    found = COMPARE(picture, output)
    value = skimage_ssim(grey, expected)
    assert bool(found.inverted) == (value < 0)
    if value < 0:
        expected = 1 - expected
        value = skimage_ssim(grey, expected)
    assert float(found.similarity) == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(found.output, expected, atol=1e-6)
    np.testing.assert_allclose(found.picture, grey, atol=1e-6)
    assert float(SIMILARITY(picture, output)) == pytest.approx(float(found.similarity), abs=1e-6)


def test_a_negative_is_inverted(pictures):
    picture = pictures[2]
    negative = COMPARE(picture, -3 * picture)
    positive = COMPARE(picture, 3 * picture)
    assert bool(negative.inverted)
    assert not bool(positive.inverted)
    assert float(negative.similarity) == pytest.approx(float(positive.similarity), abs=1e-5)
    np.testing.assert_allclose(negative.output, positive.output, atol=1e-5)
    assert float(positive.similarity) > 0.9
    # Grey outputs, as those of a network that ends with the mean, with and without their one channel.
    grey = images.to_grey(picture)
    for output in (-grey, -grey[None]):
        assert float(SIMILARITY(picture, output)) == pytest.approx(float(positive.similarity), abs=1e-5)


def test_similarity_can_stay_negative_and_is_then_returned_as_it_is():
    # A dark picture; the output is its negative where dark too, and alike where bright, so that in the output and in
    # the inverted output what differs counts more than what is alike.
    texture = np.random.default_rng(0).uniform(-0.1, 0.1, size=(60, 120)).astype(np.float32)
    left = np.arange(120) < 60
    picture, output = 0.1 + texture, np.where(left, 0.1 - texture, 0.9 + texture).astype(np.float32)
    found = COMPARE(picture, output)
    assert bool(found.inverted)
    assert float(SSIM(picture, images.rescale(output))) < -0.2
    assert float(found.similarity) == pytest.approx(float(SSIM(picture, 1 - images.rescale(output))), abs=1e-5)
    assert float(found.similarity) < -0.2


def test_a_flat_output_is_worth_next_to_nothing(pictures):
    found = COMPARE(pictures[0], jnp.full((3, 64, 64), -2.0, jnp.float32))
    assert not bool(found.inverted)
    assert 0 <= float(found.similarity) < 0.1


def test_relative_error():
    x, y = jnp.array([[3.0, 0.0], [0.0, 4.0]]), jnp.array([[3.0, 1.0], [0.0, 4.0]])
    assert float(images.relative_error(x, y)) == pytest.approx(0.2)
    assert float(images.relative_error(x, x)) == 0
    assert np.isinf(images.relative_error(0 * x, x))


def test_dtypes_meet_in_the_wider_one():
    if not X64:
        pytest.skip("64-bit types are switched off")
    a, b = np.zeros((11, 11), np.float32), np.zeros((11, 11), np.float64)
    assert SSIM(a, b).dtype == np.float64
    assert SIMILARITY(a, a).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: images.to_grey(np.zeros((4, 8, 8))), r"\[\.\.\., 3, H, W\].*got shape \(4, 8, 8\)"),
        (lambda: images.to_grey(np.zeros((8, 8))), "got shape"),
        (lambda: images.to_grey(np.zeros((3, 8, 8), np.uint8)), "uint8; divide 8-bit pictures by 255"),
        (lambda: images.ssim(np.zeros((10, 30)), np.zeros((10, 30))), "at least 11 x 11 pixels.*10 x 30"),
        (lambda: images.ssim(np.zeros((12, 12)), np.zeros((12, 13))), r"one shape, got \(12, 12\) and \(12, 13\)"),
        (lambda: images.ssim(np.zeros((2, 3, 12, 12)), np.zeros((2, 3, 12, 12))), "jax.vmap"),
        (lambda: images.similarity(np.zeros((3, 12, 12)), np.zeros((3, 14, 12))), "one shape"),
        (lambda: images.rescale(np.zeros((0, 3))), "a picture with pixels"),
        (lambda: images.relative_error(np.zeros(3), np.zeros(4)), "one shape"),
    ],
    ids=["channels", "plain", "bytes", "small", "shapes", "batch", "sizes", "empty", "error"],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
