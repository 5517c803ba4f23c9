"""Coherence of random banks: Bartlett's way against every entry drawn, both against the closed form; the tables."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnninv_jax import data
from cnninv_jax.experiments import coherence_tables, random_coherence
from cnninv_jax.experiments.random_coherence import (
    coherence_distribution,
    gaussian_factor,
    gram_coherence,
    simulate_coherence,
    simulated_two_sided,
    two_sided,
)
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.operators import coherence

PAPER = {"vgg16": (13, 14_710_464), "alexnet-caffe": (5, 2_332_704), "alexnet": (5, 2_468_544)}


@pytest.mark.parametrize("name", PAPER)
def test_architectures_have_the_published_sizes(name):
    """Weights without biases, as counted from the published models."""
    layers = data.ARCHITECTURES[name].layers
    assert (len(layers), sum(int(np.prod(layer.shape)) for layer in layers)) == PAPER[name]
    for before, after in itertools.pairwise(layers):
        assert after.shape[1] * after.groups == before.shape[0]


@pytest.mark.parametrize("groups", [1, 2])
def test_gram_coherence_is_the_operators(groups):
    bank = np.random.default_rng(0).standard_normal((6, 4, 3))
    found = gram_coherence(jnp.asarray(bank.reshape(6, -1)), groups)
    wanted = max(float(coherence(jnp.asarray(part))) for part in np.split(bank, groups))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_bartletts_factor_has_wisharts_moments():
    """Mean of A A^T is N I; variances are 2 N on the diagonal and N beside it."""
    draws, count, size = 20_000, 4, 7
    keys = jax.random.split(jax.random.key(1), draws)
    factor = jax.jit(jax.vmap(lambda key: gaussian_factor(key, count, size, jnp.dtype(jnp.float32))))(keys)
    gram = np.einsum("bij,bkj->bik", factor, factor).astype(np.float64)
    own = np.eye(count, dtype=bool)
    variance = np.where(own, 2.0 * size, size)
    assert np.all(np.abs(gram.mean(0) - size * own) < 5 * np.sqrt(variance / draws))
    # The variance of a variance: by the draws' own fourth moments.
    centred = (gram - size * own) ** 2
    assert np.all(np.abs(centred.mean(0) - variance) < 5 * centred.std(0) / np.sqrt(draws))
    assert np.all(np.asarray(factor)[:, ~np.tri(count, dtype=bool)] == 0)


def test_chi_squares_have_their_law():
    freedom = np.repeat([2, 3, 9, 4000], 4000)
    found = jax.jit(lambda key: random_coherence._chi_squares(key, freedom, jnp.dtype(jnp.float32)))(jax.random.key(2))
    for degrees in (2, 3, 9, 4000):
        assert stats.kstest(np.asarray(found)[freedom == degrees], stats.chi2(degrees).cdf).pvalue > 1e-5


@pytest.mark.slow
def test_both_ways_draw_one_law():
    """Kolmogorov and Smirnov at about 5 standard errors, against each other and against the closed form."""
    shape, count = (24, 4, 3, 3), 1500
    draws = {
        method: simulate_coherence(jax.random.key(5), shape, count, groups=2, method=method).draws
        for method in ("bartlett", "direct")
    }
    for reading, groups in (("within", 2), ("stored", 1)):
        first, second = draws["bartlett"][reading], draws["direct"][reading]
        assert stats.ks_2samp(first, second).pvalue > 1e-6
        for sample in (first, second):
            # The closed form is Poisson's approximation: within 0.05 of the law at this size, plus the sample's error.
            distance = stats.kstest(sample, lambda mu, g=groups: coherence_distribution(mu, 24, 36, g)).statistic
            assert distance < 0.05 + 1.95 / np.sqrt(count)


def test_a_pair_has_its_exact_law():
    """Two filters of N numbers: cos^2 is Beta(1/2, (N - 1)/2); the closed form differs by exp(-p) against 1 - p."""
    mu = np.array([0.1, 0.4, 0.9])
    above = 1 - stats.beta(0.5, 4.0).cdf(mu**2)
    np.testing.assert_allclose(coherence_distribution(mu, 2, 9), np.exp(-above), rtol=1e-10)


def test_p_values():
    assert two_sided(0.999, 8, 20) < 1e-6 > two_sided(0.001, 8, 20)
    middle = np.linspace(0.3, 0.6, 3001)
    median = middle[np.argmin(np.abs(coherence_distribution(middle, 8, 20) - 0.5))]
    assert two_sided(float(median), 8, 20) > 0.99
    draws = np.arange(99) / 99
    assert simulated_two_sided(2.0, draws) == 2 / 100
    assert simulated_two_sided(0.5, draws) == 1.0


@pytest.fixture
def tiny(monkeypatch):
    """Two layers small enough for a test, the second in two halves, under the name of AlexNet."""
    layers = (data.ConvSpec("conv1", (6, 3, 3, 3)), data.ConvSpec("conv2", (8, 3, 3, 3), groups=2))
    small = data.Architecture("alexnet-caffe", "a small net", layers, "caffe", 8)
    monkeypatch.setitem(data.ARCHITECTURES, "alexnet-caffe", small)
    return layers


@pytest.mark.slow
def test_table_with_learned_filters(tiny, tmp_path):
    rng = np.random.default_rng(7)
    kernel = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    kernel[5] = -2 * kernel[1]  # equal up to scale and sign, in different halves
    np.savez(tmp_path / "w.npz", conv2_W=kernel)
    parameters = coherence_tables.AlexNetCoherenceParameters(
        num_draws=40, weights=str(tmp_path / "w.npz"), method="direct"
    )
    outcome = reproduce_study(coherence_tables.TABLE6, parameters, StudyOptions(out=tmp_path / "out", quiet=True))
    first, second = outcome.report["findings"]["layers"]
    assert first["learned"] is None
    flat = kernel.reshape(8, -1) / np.linalg.norm(kernel.reshape(8, -1), axis=1, keepdims=True)
    cosines = np.abs(flat @ flat.T) - np.eye(8)
    halves = np.kron(np.eye(2), np.ones((4, 4)))
    np.testing.assert_allclose(second["learned"]["within"], (cosines * halves).max(), rtol=1e-5)
    np.testing.assert_allclose(second["learned"]["stored"], 1.0, rtol=1e-5)
    seen = second["random"]["within"]
    assert seen["middle_low"] < seen["mean_low"] < seen["mean"] < seen["mean_high"] < seen["middle_high"]
    assert seen["distance"] < 1.95 / np.sqrt(40) + 0.06
    table = outcome.tables[0]
    assert [row[2] for row in table.rows] == ["all pairs", "within a half", "across halves too"]
    assert table.rows[0][-2:] == ("not at hand", "0.9172")
    assert any("1 of 1 layers (conv2)" in note for note in table.notes)
    assert (tmp_path / "out" / "gilbert-table6.png").is_file()
    # The same numbers again, from the journals this time.
    (tmp_path / "out" / "report.json").unlink()
    again = reproduce_study(coherence_tables.TABLE6, parameters, StudyOptions(out=tmp_path / "out", quiet=True))
    assert json.dumps(again.report["findings"]) == json.dumps(outcome.report["findings"])


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="--num-draws of at least 2"):
        reproduce_study(
            coherence_tables.TABLE4,
            coherence_tables.CoherenceParameters(num_draws=1),
            StudyOptions(out=tmp_path / "out", quiet=True),
        )
    np.savez(tmp_path / "w.npz", conv1_1_W=np.ones((5, 5, 3, 64), np.float32))
    with pytest.raises(ValueError, match="not VGG-16"):
        reproduce_study(
            coherence_tables.TABLE4,
            coherence_tables.CoherenceParameters(weights=str(tmp_path / "w.npz")),
            StudyOptions(out=tmp_path / "out", quiet=True),
        )


@pytest.mark.slow
def test_table4_at_full_size(tmp_path):
    outcome = reproduce_study(
        coherence_tables.TABLE4,
        coherence_tables.CoherenceParameters(num_draws=40),
        StudyOptions(out=tmp_path / "out", quiet=True),
    )
    layers = outcome.report["findings"]["layers"]
    assert [layer["layer"] for layer in layers] == [spec.name for spec in data.ARCHITECTURES["vgg16"].layers]
    for layer in layers:
        seen = layer["random"]["within"]
        size = int(np.prod(layer["shape"][1:]))
        grid = np.linspace(0.0, 1.0, 100_001)
        # E mu = integral of P(mu > c), by the closed form.
        wanted = np.sum(1 - coherence_distribution(grid, layer["shape"][0], size)) * (grid[1] - grid[0])
        assert abs(seen["mean"] - wanted) < 5 * seen["standard_deviation"] / np.sqrt(40) + 0.01 * wanted
