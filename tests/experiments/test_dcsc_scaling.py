"""`dcsc-scaling`: correlations and worst-case sums against brute force, draws against the library, fits."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import binom

from cnninv_jax import dcsc, filters
from cnninv_jax import montecarlo as mc
from cnninv_jax.experiments.dcsc_scaling import (
    DCSC_SCALING,
    Point,
    ScalingParameters,
    bits_of,
    bounds_of,
    fits_of,
    own_share,
)
from cnninv_jax.experiments.dcsc_scaling_draws import (
    NestedDraw,
    coherence_of,
    correlations_of,
    offsets_of,
    positions_of,
)
from cnninv_jax.experiments.dcsc_scaling_families import equal_correlations, pairs
from cnninv_jax.experiments.dcsc_scaling_fit import Crossing, critical, fit_power
from cnninv_jax.experiments.dcsc_scaling_tables import inside, scaling_tables
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.operators import analysis, coherence
from cnninv_jax.sparsity.norms import patch_norm, stripe_norm

SMALL = ScalingParameters(
    families=("gaussian", "pairs"), num_filters=4, ell=3, M=(8, 16, 64), pair_mu=(0.3, 0.4), pair_channels=16,
    dictionaries=1, num_draws=60, least=1.0,
)  # fmt: skip


def _dense(bank, positions, stride):
    """Return every atom as a column of the signal's samples, in the order of a code's entries."""
    count, channels, length = bank.shape
    columns = np.zeros((count, positions, channels, positions * stride))
    for place, tap in itertools.product(range(positions), range(length)):
        columns[:, place, :, (place * stride + tap) % (positions * stride)] += np.moveaxis(bank[:, :, tap], 0, 0)
    return columns.reshape(count * positions, -1)


def _bank(seed, *shape):
    bank = np.random.default_rng(seed).standard_normal(shape)
    return bank / np.sqrt(np.square(bank).sum(axis=(1, 2), keepdims=True))


@pytest.mark.parametrize(("length", "stride"), [(3, 1), (4, 2), (5, 3), (2, 2)])
def test_correlations_and_noise_are_those_of_a_circular_layer(length, stride):
    bank, positions = _bank(0, 3, 2, length), positions_of(length, stride)
    atoms = _dense(bank, positions, stride)
    found = correlations_of(bank, positions, stride)
    np.testing.assert_allclose(found, atoms @ atoms.T, atol=1e-12)
    (layer,) = dcsc.layers([bank], positions * stride, strides=[stride], padding="circular")
    sizes = coherence_of(found)
    assert sizes.largest == pytest.approx(float(coherence(layer.op, over="shifts")))
    off = found - np.eye(len(found))
    assert sizes.root_mean_square == pytest.approx(np.sqrt(np.square(off).sum(axis=1).max() / (len(found) - 1)))
    # All of a code is one stripe.
    assert int(stripe_norm(jnp.ones(layer.op.code_shape), length, stride=stride, padding="circular")) == len(found)
    generator = np.random.default_rng(1)
    offsets = offsets_of(generator, bank, positions, stride, 0.3, 2)
    noise = np.linalg.lstsq(atoms, offsets.T, rcond=None)[0].T.reshape(2, *layer.op.input_shape)
    np.testing.assert_allclose(np.asarray(analysis(layer.op, noise[0])).ravel(), offsets[0], atol=1e-9)
    np.testing.assert_array_equal(offsets_of(generator, bank, positions, stride, 0.0, 2), np.zeros((1, len(found))))


def test_noise_has_its_level():
    """As many atoms as samples: the noise can be found from what they answer."""
    bank, generator = np.eye(3)[:, :, None] * np.array([1.0, 0, 0]), np.random.default_rng(0)
    offsets = offsets_of(generator, bank, 5, 1, 0.3, 4)
    for row in offsets:
        assert float(patch_norm(row.reshape(3, 5), 3, padding="circular")) == pytest.approx(0.3)


def test_the_largest_safe_support_against_all_supports():
    correlations = correlations_of(_bank(3, 2, 24, 2), 3)
    off = np.abs(correlations) * (1 - np.eye(6))
    sums = [
        max(off[row, list(chosen)].sum() for row in range(6) for chosen in itertools.combinations(range(6), size))
        for size in range(1, 6)
    ]
    assert coherence_of(correlations).any_support == sum(value < 0.5 for value in sums)
    assert 0 < coherence_of(correlations).any_support < 5


def test_a_draw_against_paths_and_against_all_signs():
    bank, positions = _bank(5, 3, 12, 3), 5
    correlations = jnp.asarray(correlations_of(bank, positions))
    (layer,) = dcsc.layers([bank], positions, padding="circular")
    offsets = offsets_of(np.random.default_rng(2), bank, positions, 1, 0.15, 1)
    nested, most = NestedDraw(correlations, jnp.asarray(offsets), 6), 6
    draw = jax.jit(lambda key: nested(key))
    seen, code = set(), np.zeros(15)
    for seed in range(12):
        key = jax.random.key(seed)
        found = draw(key)
        places_key, signs_key, _ = jax.random.split(jax.random.clone(key), 3)
        places = np.asarray(jax.random.choice(places_key, 15, (most,), replace=False))
        signs = np.asarray(jax.random.rademacher(signs_key, (most,), float))
        for size in range(1, most + 1):
            code = np.zeros(15)
            code[places[:size]] = signs[:size]
            response = np.asarray(correlations) @ code + offsets[0]
            kept = np.abs(response) > 0.5
            assert bool(found["random"][size - 1]) == bool(np.any(kept != (code != 0)))
            seen.add(bool(found["random"][size - 1]))
            # Whatever the signs of code and noise: the extremes of every response are reached.
            lost = False
            for pattern in itertools.product((-1, 1), repeat=size):
                for sign in (-1, 1):
                    code[places[:size]] = pattern
                    answer = np.asarray(correlations) @ code + sign * offsets[0]
                    aligned = np.where(code != 0, code * answer, 1 - np.abs(answer))
                    lost |= bool(np.any(aligned <= 0.5))
            # An offset that differs between atoms takes one sign for each response, as do the sums.
            assert bool(found["worst"][size - 1]) == lost
    assert seen == {False, True}
    outcome = dcsc.path_outcome(
        dcsc.path_tables((layer,), jnp.asarray(code != 0, float).reshape(3, 5)), (jnp.ones(6),), jnp.asarray([0.5])
    )
    clean = np.asarray(correlations) @ (code != 0)
    lost = np.any((np.abs(clean) > 0.5) != (code != 0))
    assert bool(outcome.recovered) == (not lost)


def test_equal_correlations_lose_their_support_as_a_sum_of_signs_does():
    """All responses are mu times the same sum: P(lost) is a binomial probability."""
    mu, positions, total = 0.17, 5, 20
    bank = equal_correlations(jax.random.key(0), 4, 6, positions, mu)
    correlations = correlations_of(bank, positions)
    np.testing.assert_allclose(correlations, (1 - mu) * np.eye(total) + mu, atol=1e-7)
    draws = 4000
    result = mc.run(
        NestedDraw(jnp.asarray(correlations), jnp.zeros((1, total)), 10), 1, draws, chunk_size=1000, progress=False
    )
    for size in (3, 6, 9):
        ups = np.arange(size + 1)
        sums = 2 * ups - size
        # Off the support mu |s|; on it an atom of the other sign has 1 - mu (|s| + 1).
        lost = (mu * np.abs(sums) >= 0.5) | ((np.abs(sums) < size) & (1 - mu * (np.abs(sums) + 1) <= 0.5))
        exact = float(binom.pmf(ups, size, 0.5)[lost].sum())
        assert 0.02 < exact < 0.98
        error = math.sqrt(exact * (1 - exact) / draws)
        assert abs(float(result["random"]["proportion"][size - 1]) - exact) < 5 * error
    # Worst signs: |s| = S off the support.
    expected = mu * np.arange(1, 11) >= 0.5
    np.testing.assert_array_equal(np.asarray(result["worst"]["proportion"]), expected)
    with pytest.raises(ValueError, match="more than 4 --channels"):
        equal_correlations(jax.random.key(0), 4, 4, positions, mu)


def test_pairs_have_their_products():
    bank = np.asarray(pairs(jax.random.key(0), 5, 7, 3, 0.4))
    products = np.einsum("imf,jmf->ij", bank, bank)
    np.testing.assert_allclose(np.diag(products), 1)
    np.testing.assert_allclose([products[0, 1], products[2, 3]], 0.4)
    plain = np.asarray(filters.gaussian(jax.random.key(0), 5, 7, 3, normalize=True))
    np.testing.assert_array_equal(bank[4], plain[4])


def test_crossings():
    exact = critical([0, 0, 200, 400, 800, 1000], 1000, 0.3)
    assert exact.value == pytest.approx(math.exp((math.log(3) + math.log(4)) / 2), rel=1e-6)
    assert exact.low < exact.value < exact.high
    assert critical([0, 10], 100, 0.5).value == math.inf
    assert math.isnan(critical([90, 95], 100, 0.5).value)
    # Out of order by parity: pooled to 45, 45, so that 50% lies behind them.
    assert 2 < critical([50, 40, 100], 100, 0.5).value < 3


def test_the_interval_of_the_exponent_covers_the_truth():
    generator = np.random.default_rng(0)
    levels = np.repeat(np.geomspace(0.05, 0.4, 6), 3)
    hits, exponents, fit = [], [], None
    for _ in range(400):
        noise = 0.08 * generator.standard_normal(18) + 0.03 * generator.standard_normal(18)
        fit = fit_power(levels, 0.5 * levels**-2.0 * np.exp(noise), np.full(18, 0.03), levels)
        hits.append(fit.holds(-2.0))
        exponents.append(fit.exponent)
    assert abs(np.mean(hits) - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 400)
    assert abs(np.mean(exponents) + 2) < 5 * np.std(exponents) / 20
    assert fit is not None
    assert fit.scatter == pytest.approx(0.08, rel=0.6)
    assert not fit.holds(-1.0)


def test_the_fit_of_exact_powers_and_of_too_few_levels():
    mu = np.array([0.1, 0.2, 0.4, 0.8, 0.05])
    fit = fit_power(mu, np.array([300.0, 75.0, 18.75, 4.6875, np.nan]), np.zeros(5), mu)
    assert (fit.exponent, fit.prefactor, fit.points) == (pytest.approx(-2), pytest.approx(3), 4)
    assert fit.high - fit.low < 1e-6
    assert math.isnan(fit_power(mu[:2], [1.0, 2.0], [0, 0], mu[:2]).exponent)


def _points(family, sizes):
    """Return dictionaries of critical S by mu, with any signs alike."""
    return [
        Point(family, mu, at, mu, mu, (one,), (one,), 1.0, 1.0, (1.0,), (0.01,), (0.01,))
        for mu, values in sizes.items() for at, size in enumerate(values)
        for one in [Crossing(size, 0.98 * size, 1.02 * size)]
    ]  # fmt: skip


def test_levels_are_left_out_whole():
    p = dataclasses.replace(SMALL, p=(0.5,), least=4.0)
    sizes = {0.05: (160.0, 160.0), 0.1: (40.0, 40.0), 0.2: (10.0, 10.0), 0.3: (4.4, 3.9), 0.4: (9.0, math.inf)}
    fit = fits_of(_points("pairs", sizes), p)["random 0.5"]["mu"]
    assert (fit["points"], fit["groups"], fit["exponent"]) == (6, 3, pytest.approx(-2))
    # Lines are drawn over what was fitted.
    assert (fit["start"], fit["end"], fit["smallest"], fit["largest"]) == (0.05, 0.2, 10, 160)


def test_intervals_that_hold_both_theories_decide_nothing():
    def answers(low, high):
        return [inside({"low": low, "high": high}, theory) for theory in (-2, -1)]

    assert answers(-2.2, -0.9) == ["undecided", "undecided"]
    assert answers(-2.2, -1.8) == ["yes", "no"]
    assert answers(-1.2, -0.8) == ["no", "yes"]
    assert answers(-1.8, -1.4) == ["no", "no"]
    assert answers(math.nan, math.nan) == ["-", "-"]


@pytest.mark.parametrize(("power", "said"), [(-0.5, True), (-2.0, False), (-2.5, False)])
def test_what_is_said_of_pairs_follows_from_the_fit(power, said):
    p = dataclasses.replace(SMALL, families=("pairs",), p=(0.5,))
    points = _points("pairs", {mu: (20 * mu**power,) * 2 for mu in (0.05, 0.1, 0.2, 0.4)})
    table, _ = scaling_tables(p, points, {"pairs": fits_of(points, p)})
    assert any("more slowly than mu^-2" in note for note in table.notes) == said


def test_keys_are_those_of_levels_and_not_of_their_places():
    assert bits_of(64) == 64
    assert bits_of(0.5) == 0x3F000000
    assert bits_of(0.1) != bits_of(0.11)


def test_bounds_and_the_own_share():
    p = dataclasses.replace(SMALL, p=(0.5, 0.01), noise=0.02)
    uniform, probable = bounds_of(p, 0.1)
    atoms = p.num_filters * p.positions
    assert uniform == pytest.approx(0.48 / 0.1 + 0.5)
    assert probable[1] == pytest.approx((1 / (8 * math.log(2 * atoms / 0.01)) - 0.02**2) / 0.01)
    assert 1 / own_share(0.1) == pytest.approx(8)


@pytest.mark.slow
def test_the_study(tmp_path):
    outcome = reproduce_study(DCSC_SCALING, SMALL, StudyOptions(seed=1, out=tmp_path / "s", quiet=True))
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    points = report["findings"]["points"]
    assert len(points) == 5
    gaussian = [point for point in points if point["family"] == "gaussian"]
    # More channels: smaller correlations, larger critical S.
    for name in ("mu", "rms"):
        assert gaussian[0][name] > gaussian[-1][name]
    held = xr.load_dataset(tmp_path / "s" / "result.nc")
    critical_size, worst = held["random"].isel(p=0).to_numpy(), held["worst"].isel(p=0).to_numpy()
    assert 1 < critical_size[0] < critical_size[2]
    # Random signs are no worse than the worst.
    assert np.all(np.isnan(worst) | (critical_size >= 0.99 * worst))
    assert isinstance(DCSC_SCALING.figure(report, held), Figure)
    assert len(outcome.tables) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ("gauss",)}, "--families"), ({"p": (1.0,)}, "--p"), ({"noise": 0.5}, "--noise"),
        ({"pair_mu": (0.2, 1.5)}, "--pair-mu"), ({"families": ("equal",), "channels": 4}, "--channels"),
        ({"least": 0.0}, "--least"), ({"p": (0.5, 0.1, 0.5)}, "--p to be different"),
    ],
    ids=["family", "p", "noise", "mu", "channels", "least", "p-twice"],
)  # fmt: skip
def test_refusals(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        DCSC_SCALING.compute(dataclasses.replace(SMALL, **change), StudyOptions(quiet=True), tmp_path)
