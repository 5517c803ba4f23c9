"""Views of a picture against slices of it and scikit-image's rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.transform import rotate

from cnninv_jax.crelu import stimuli

RNG = np.random.default_rng(3)
PICTURES = RNG.standard_normal((2, 3, 14, 13)).astype(np.float32)
#: The window of 8 x 7 in the middle.
MIDDLE = PICTURES[..., 3:11, 3:10]


def test_whole_pixels_are_slices():
    picture, size = (14, 13), (8, 7)
    np.testing.assert_array_equal(stimuli.original(picture, size)(PICTURES), MIDDLE)
    np.testing.assert_array_equal(stimuli.flip(picture, size)(PICTURES), MIDDLE[..., ::-1])
    moved = stimuli.translation(picture, size, shift=(2, -1))
    # Two down: what stood two rows above is seen.
    np.testing.assert_array_equal(moved(PICTURES), PICTURES[..., 1:9, 4:11])
    assert moved.unknown == 0
    crops = stimuli.corners(picture, size)
    for crop, wanted in zip(
        crops,
        (PICTURES[..., :8, :7], PICTURES[..., :8, 6:], PICTURES[..., 6:, :7], PICTURES[..., 6:, 6:]),
        strict=True,
    ):
        np.testing.assert_array_equal(crop(PICTURES), wanted)
        assert crop.unknown == 0


def test_borders_are_repeated_and_counted():
    moved = stimuli.translation((14, 13), shift=(0, 3))
    wanted = np.concatenate([np.repeat(PICTURES[..., :1], 3, axis=-1), PICTURES[..., :-3]], axis=-1)
    np.testing.assert_array_equal(moved(PICTURES), wanted)
    np.testing.assert_allclose(moved.unknown, 3 / 13)


@pytest.mark.parametrize("degrees", [15.0, -40.0])
def test_rotation_against_scikit_image(degrees):
    square = PICTURES[0, 0, :, :13][:13].astype(float)
    wanted = rotate(square, degrees, order=1, mode="edge")
    found = stimuli.rotation(13, degrees=degrees)(square if jax.config.jax_enable_x64 else square.astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-9 if jax.config.jax_enable_x64 else 1e-5)
    inner = stimuli.rotation(13, 7, degrees=degrees)(square.astype(np.float32))
    np.testing.assert_allclose(inner, wanted[3:10, 3:10], atol=1e-5)


def test_quarter_turns_are_exact_and_a_small_window_stays_inside():
    quarter = stimuli.rotation(13, degrees=90)(PICTURES[..., :13, :])
    np.testing.assert_allclose(quarter, np.rot90(PICTURES[..., :13, :], axes=(-2, -1)), atol=1e-5)
    # 64 (cos 15 + sin 15) = 78.4.
    assert stimuli.rotation(80, 64).unknown == 0
    assert 0 < stimuli.rotation(74, 64).unknown < 0.02
    # Area beside a turned square of side 1: (sec - 1) of 15 degrees / ... counted on a fine grid here.
    grid = (np.arange(400) + 0.5) / 400 - 0.5
    y, x = np.meshgrid(grid, grid, indexing="ij")
    c, s = np.cos(np.pi / 12), np.sin(np.pi / 12)
    beside = np.mean((np.abs(c * y + s * x) > 0.5) | (np.abs(c * x - s * y) > 0.5))
    np.testing.assert_allclose(stimuli.rotation(256).unknown, beside, atol=0.01)


def test_sets_of_the_appendix():
    small = stimuli.small_stimuli(40, 32)
    assert [view.name for view in small] == [
        "flip", "rotation by 15 degrees", "shift by +0, -3", "shift by +0, +3", "shift by -3, +0", "shift by +3, +0",
    ]  # fmt: skip
    assert len(stimuli.large_stimuli(40, 32)) == 6
    with pytest.raises(ValueError, match="smaller than the picture"):
        stimuli.large_stimuli(32, 32)
    with pytest.raises(ValueError, match="no larger than the picture"):
        stimuli.original(32, 33)
    with pytest.raises(ValueError, match="expected pictures of 14 x 13"):
        small[0].__class__.__call__(stimuli.original((14, 13)), PICTURES[..., 1:])


@pytest.mark.parametrize(
    ("length", "layers", "margin"),
    [
        (16, [(3, 1, 1)], 0), (16, [(3, 1, 1), (3, 1, 1), (2, 2, 0), (3, 1, 1)], 0), (17, [(3, 2, 1), (5, 1, 2)], 0),
        (15, [(3, 1, 1), (2, 2, 0)], 2), (8, [(7, 1, 3), (7, 1, 3)], 0),
    ],
    ids=["one", "pooled", "strided", "margin", "none"],
)  # fmt: skip
def test_inside_sees_neither_padding_nor_margin(length, layers, margin):
    """What reaches each place, followed layer by layer: a place is clean if nothing dirty enters its window."""
    clean = np.ones(length, bool)
    clean[:margin] = clean[length - margin :] = False
    for window, stride, padding in layers:
        padded = np.pad(clean, padding)
        clean = np.array([padded[i : i + window].all() for i in range(0, len(padded) - window + 1, stride)])
    first, stop = stimuli.inside(length, layers, margin=margin)
    wanted = np.zeros(len(clean), bool)
    wanted[first:stop] = True
    np.testing.assert_array_equal(clean, wanted)


def test_dtype_follows_the_pictures():
    assert stimuli.rotation(13)(jnp.ones((2, 13, 13), jnp.float32)).dtype == jnp.float32
