"""The published VGG-16 kernels, where the folder with them is at hand (CNNINV_DATA, or ../shared/data)."""

import os
import pathlib

import numpy as np
import pytest

from cnninv_jax.data import FilterFileError, load_filters

FOLDER = os.environ.get("CNNINV_DATA") or pathlib.Path(__file__).parents[3] / "shared" / "data"
KERNELS = pathlib.Path(FOLDER) / "vgg16" / "vgg16_conv1_1_to_conv2_2.npz"

pytestmark = pytest.mark.skipif(
    not KERNELS.is_file(),
    reason=f"the VGG-16 kernels do not ship with the project and {KERNELS} is absent; set CNNINV_DATA",
)


def test_conv1_2():
    loaded = load_filters(KERNELS, tensor="conv1_2_W", layout="llMK")
    assert loaded.filters.shape == (64, 64, 3, 3)
    assert loaded.filters.dtype == np.float32
    assert loaded.notes == ()
    stored = np.load(KERNELS)["conv1_2_W"]
    assert stored.shape == (3, 3, 64, 64)
    np.testing.assert_array_equal(loaded.filters, stored.transpose(3, 2, 0, 1))
    # Stored [0, 0, 0, :4]: the first four filters at their first tap.
    np.testing.assert_allclose(
        loaded.filters[:4, 0, 0, 0], [0.16621928, 0.14270182, -0.00402113, 0.04951802], rtol=1e-6
    )


def test_conv1_1_first_taps():
    filters = load_filters(KERNELS, tensor="conv1_1_W", layout="llMK").filters
    np.testing.assert_allclose(filters[:4, 0, 0, 0], [0.42947057, 0.11727387, 0.03401296, 0.35422093], rtol=1e-6)


def test_the_default_layout_is_questioned():
    loaded = load_filters(KERNELS, tensor="conv1_2_W")
    assert loaded.layout == "KMll"
    assert "looks like 'llMK'" in loaded.notes[0]


def test_four_candidates_are_listed():
    with pytest.raises(FilterFileError, match=r"4 tensors.*'conv1_1_W' \(3, 3, 3, 64\)"):
        load_filters(KERNELS)
