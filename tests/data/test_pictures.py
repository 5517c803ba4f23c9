"""Folders of pictures in, one array out; the embedded ones need no net."""

import numpy as np
import pytest
from PIL import Image

from cnninv_jax.data import PictureError, load_pictures, picture_files, read_picture
from cnninv_jax.data.pictures import EMBEDDED


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)


def colours(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_numbers_are_the_pixels(tmp_path):
    held = {name: colours(5, 7, seed) for seed, name in enumerate(("p2.png", "p10.bmp", "p1.ppm"))}
    for name, array in held.items():
        save(tmp_path / name, array)
    (tmp_path / "notes.txt").write_text("no picture")
    pictures = load_pictures(tmp_path)
    assert pictures.names == ("p1.ppm", "p2.png", "p10.bmp")
    assert pictures.images.shape == (3, 3, 5, 7)
    assert pictures.images.dtype == np.float32
    for image, name in zip(pictures.images, pictures.names, strict=True):
        np.testing.assert_array_equal(image, held[name].transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    assert load_pictures(tmp_path, limit=2).names == ("p1.ppm", "p2.png")
    files = picture_files(tmp_path)
    np.testing.assert_array_equal(read_picture(files[1]), pictures.images[1])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    grey = np.random.default_rng(3).integers(0, 2, (4, 4), dtype=np.uint8) * 255
    if mode == "I;16":
        save(tmp_path / "a.png", grey.astype(np.uint16) * 257)
    else:
        Image.fromarray(grey).convert(mode).save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    pictures = load_pictures(tmp_path)
    for channel in pictures.images[0]:
        np.testing.assert_allclose(channel, grey / 255, atol=0.02)
    assert bool(pictures.notes) == (mode in ("L", "LA", "1", "I;16"))


def test_the_centre_is_cut_out(tmp_path):
    array = np.zeros((10, 20, 3), np.uint8)
    array[:, 5:15] = 200
    save(tmp_path / "a.png", array)
    image = load_pictures(tmp_path, size=10).images
    np.testing.assert_allclose(image, 200 / 255, rtol=1e-6)


def test_shrinking_does_not_alias(tmp_path):
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    save(tmp_path / "a.png", stripes)
    image = load_pictures(tmp_path, size=12).images[0]
    assert image.shape == (3, 12, 12)
    # Every other column, far beyond what 12 pixels can hold: even grey, no pattern.
    assert np.max(np.abs(image[:, :, 1:-1] - 0.5)) < 0.03


def test_small_pictures_are_enlarged_and_said(tmp_path):
    save(tmp_path / "a.png", colours(4, 6))
    pictures = load_pictures(tmp_path, size=8)
    assert pictures.images.shape == (1, 3, 8, 8)
    assert pictures.notes == ("of 1 pictures: 1 were enlarged",)


def test_embedded():
    pictures = load_pictures(limit=2)
    assert pictures.images.shape == (2, 3, 224, 224)
    assert pictures.names == EMBEDDED[:2]
    assert 0 <= pictures.images.min() < pictures.images.max() <= 1
    # A colour picture: its channels differ.
    assert np.abs(pictures.images[0, 0] - pictures.images[0, 2]).mean() > 0.02
    assert load_pictures(limit=1, size=32).images.shape == (1, 3, 32, 32)


def test_refusals(tmp_path):
    with pytest.raises(PictureError, match="there is no folder"):
        load_pictures(tmp_path / "nowhere")
    with pytest.raises(PictureError, match="holds no pictures"):
        load_pictures(tmp_path)
    save(tmp_path / "a.png", colours(4, 6))
    with pytest.raises(PictureError, match="is not a folder"):
        load_pictures(tmp_path / "a.png")
    save(tmp_path / "b.png", colours(6, 4))
    with pytest.raises(PictureError, match=r"'a.png' has 4 x 6 pixels and 'b.png' 6 x 4: give a size"):
        load_pictures(tmp_path)
    assert load_pictures(tmp_path, size=4).images.shape == (2, 3, 4, 4)
    with pytest.raises(PictureError, match="expected size to be a positive whole number, got 0"):
        load_pictures(tmp_path, size=0)
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    with pytest.raises(PictureError, match=r"the picture '.*c.png' cannot be read"):
        load_pictures(tmp_path)
