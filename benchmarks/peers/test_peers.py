"""Correct first: every form of every peer against the float64 loop, and against the expected means."""

import numpy as np
import pytest

from benchmarks.peers import convolve_fig2, numpy_fig2, torch_fig2
from benchmarks.peers.fig2 import CHANNELS, EXPECTED, FILTERS, LENGTH, SCALE, SHIFTS, SPARSITY, TAPS

BATCH = 6
needs_torch = pytest.mark.skipif(torch_fig2.UNAVAILABLE is not None, reason=str(torch_fig2.UNAVAILABLE))
NUMPY_FORMS = [{}, {"product": "n K"}, {"place": "windows"}]
TORCH_FORMS = [{}, *({"product": p} for p in ("K n", "baddbmm", "einsum", "conv")), {"place": "index_add"}]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((BATCH, FILTERS, LENGTH, CHANNELS)).astype(np.float32)
    support = np.stack([rng.permutation(FILTERS)[:SPARSITY] for _ in range(BATCH)])
    positions = rng.integers(SHIFTS, size=(BATCH, SPARSITY))
    values = rng.uniform(-1, 1, (BATCH, SPARSITY)).astype(np.float32)
    inputs = filters.reshape(BATCH, FILTERS, TAPS), support, positions, values
    scaled = filters.transpose(0, 1, 3, 2).astype(np.float64) * SCALE
    rows = [
        convolve_fig2.statistics(*one) for one in zip(scaled, support, positions, values.astype(float), strict=True)
    ]
    return inputs, {name: [row[name] for row in rows] for name in EXPECTED}


def agree(got, expected):
    assert set(got) == set(EXPECTED)
    for name in EXPECTED:
        np.testing.assert_allclose(np.asarray(got[name]), expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", NUMPY_FORMS)
def test_numpy_against_the_loop(problem, form):
    inputs, expected = problem
    agree(numpy_fig2.Statistics(BATCH, **form)(*inputs), expected)


@needs_torch
@pytest.mark.parametrize("form", TORCH_FORMS)
def test_torch_against_the_loop(problem, form):
    import torch

    inputs, expected = problem
    agree(torch_fig2.Statistics(BATCH, **form)(*map(torch.from_numpy, inputs)), expected)


def has_expected_means(sample):
    assert set(sample) == set(EXPECTED)
    for name, (mean, half_width) in EXPECTED.items():
        got = np.asarray(sample[name])
        assert got.dtype == np.float32
        assert abs(got.mean() - mean) < half_width, name


@pytest.mark.parametrize("normals", ["box-muller", "ziggurat"])
def test_numpy_means(normals):
    has_expected_means(numpy_fig2.draws(np.random.default_rng(1), 4096, normals=normals))


@needs_torch
@pytest.mark.parametrize("normals", ["torch", "numpy"])
def test_torch_means(normals):
    import torch

    has_expected_means(torch_fig2.draws(torch.Generator().manual_seed(1), 4096, normals=normals))


def test_box_muller_is_standard_normal():
    sample = numpy_fig2.BoxMuller(3, 2**22)().astype(float)
    assert np.isfinite(sample).all()
    # Moments 1 to 4 of N(0, 1), each to 5 standard errors.
    for order, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((sample**order).mean() - moment) < 5 * np.sqrt(variance / sample.size)
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 5 / np.sqrt(sample.size)
    grid = np.linspace(-4, 4, 33)
    from math import erf

    expected = np.array([0.5 * (1 + erf(g / 2**0.5)) for g in grid])
    assert np.abs((sample[:, None] < grid[None]).mean(0) - expected).max() < 5 * 0.5 / np.sqrt(sample.size)


def test_rates_are_positive():
    assert numpy_fig2.rate(0.05, 4, 2) > 0
    assert convolve_fig2.rate(0.05, 1, 1) > 0
