"""Standardisation, flips and shifts; evaluation in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.nn.augmentation import Preparation, preparation, random_flip, random_shift
from cnninv_jax.nn.evaluation import evaluate

from . import small


def new_key(seed=0):
    return jax.random.key(seed)


def test_standardised_pictures_have_mean_0_and_deviation_1():
    images = small.DATA["images"]
    prepare = preparation(images)
    out = np.asarray(prepare(None, {"images": images, "labels": 1})["images"], np.float64)
    assert out.shape == (70, 8, 8, 3)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(prepare.mean, images.astype(np.float64).mean((0, 2, 3)), rtol=1e-12)
    assert hash(prepare) == hash(preparation(images))


def test_nothing_random_without_a_key():
    prepare = preparation(small.DATA["images"], flip=True, shift=2)
    first, second = (prepare(None, small.DATA)["images"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, prepare(new_key(), small.DATA)["images"])


def test_every_picture_is_itself_or_its_mirror_image():
    images = jax.random.normal(new_key(), (400, 4, 5, 2), jnp.float32)
    out = np.asarray(random_flip(jax.random.key(1), images))
    kept = np.all(out == images, axis=(1, 2, 3))
    mirrored = np.all(out == images[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(kept ^ mirrored)
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / 20


def test_shifts_are_uniform_and_bring_zeros_in():
    count, most = 900, 1
    images = jnp.zeros((count, 5, 5, 1), jnp.float32).at[:, 2, 2].set(1)
    places = np.argwhere(np.asarray(random_shift(new_key(), images, most))[..., 0] == 1)
    assert len(places) == count
    offsets = places[:, 1:] - 2
    assert set(map(tuple, offsets)) == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    shares = np.unique(offsets, axis=0, return_counts=True)[1] / count
    assert np.all(abs(shares - 1 / 9) < 5 * np.sqrt(1 / 9 * 8 / 9 / count))
    edge = random_shift(new_key(), jnp.ones((50, 4, 4, 1), jnp.float32), 3)
    assert float(edge.min()) == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.uint8), "channels that vary"),
        (np.zeros((3, 4, 4), np.uint8), r"expected images \[N, C, H, W\]"),
    ],
)
def test_pictures_without_a_scale(images, message):
    with pytest.raises(ValueError, match=message):
        preparation(images)


def test_other_channels():
    with pytest.raises(ValueError, match=r"expected images \[B, 3, H, W\]"):
        Preparation((0.0,) * 3, (1.0,) * 3)(None, {"images": np.zeros((2, 1, 4, 4), np.uint8)})


def numbers(model, batch):
    return {"sum": jnp.sum(batch["images"].astype(jnp.float32), axis=(1, 2, 3)), "label": batch["labels"]}


@pytest.mark.parametrize("size", [7, 70, 64, 500])
def test_evaluation_covers_every_example_once_in_order(size):
    seen = []
    found = evaluate(small.Net(), numbers, small.DATA, batch_size=size, progress=seen.append)
    np.testing.assert_allclose(found["sum"], small.DATA["images"].sum((1, 2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(found["label"], small.DATA["labels"])
    assert seen[-1] == 70
    with pytest.raises(ValueError, match="one number of examples"):
        evaluate(small.Net(), numbers, {"images": np.zeros((0, 3, 8, 8)), "labels": np.zeros(0)})
