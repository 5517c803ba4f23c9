"""Calibration of Theorem 3.1's constant: closed forms, exact binomial intervals, brackets, and its coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from cnninv_jax import rip

SIZES = {"num_filters": 6, "shifts": 3}


def one_entry(delta, degrees, num_filters=6):
    """P(delta_1 > delta): the largest deviation of K independent chi-squares, all shifts of a filter being alike."""
    single = stats.chi2.sf(degrees * (1 + delta), degrees) + stats.chi2.cdf(degrees * (1 - delta), degrees)
    return -np.expm1(num_filters * np.log1p(-single))


@pytest.mark.parametrize("version", ["ijcai", "arxiv"])
def test_the_constant_makes_the_theorem_agree_with_what_was_seen(version):
    """epsilon at the calibrated C is the observed probability; the ends of C belong to those of p."""
    cell = {"k": 2, "delta": 0.4, "ratio": 60.0, "version": version, **SIZES}
    found = rip.calibrate_C(30, 1000, **cell)
    low, high = (stats.beta.ppf(0.025, 30, 971), stats.beta.ppf(0.975, 31, 970))
    for constant, probability in ((found.estimate, 0.03), (found.low, low), (found.high, high)):
        np.testing.assert_allclose(rip.theorem_3_1(constant=constant, **cell).unclipped, probability, rtol=1e-3)
    assert found.low < found.estimate < found.high
    assert found.decisive == 0


def test_no_and_certain_failure():
    cell = {"k": 1, "delta": 0.4, "ratio": 60.0, **SIZES}
    never = rip.calibrate_C(0, 1000, **cell)
    assert math.isnan(never.estimate)
    assert math.isnan(never.high)
    assert never.decisive == -1
    assert never.cells == never.cells_low == 0.0
    np.testing.assert_allclose(
        never.cells_high, 60 * 0.16 / (math.log(18) - math.log(1 - 0.025 ** (1 / 1000))), rtol=1e-9
    )
    always = rip.calibrate_C(1000, 1000, **cell)
    np.testing.assert_allclose(always.high, 60 * 0.16 / math.log(18), rtol=1e-12)
    assert always.estimate == always.high > always.low
    # One filter with one shift: nothing but the failure term is left, and certain failure refutes any C.
    assert math.isinf(rip.calibrate_C(9, 9, num_filters=1, shifts=1, k=1, delta=0.4, ratio=60.0).estimate)


def test_the_grid_takes_its_largest_cell():
    failures = np.array([[500, 20, 0], [900, 100, 3]])
    delta = np.array([0.2, 0.4, 0.8])
    found = rip.calibrate_C(failures, 1000, k=2, delta=delta, ratio=np.array([[50.0], [30.0]]), **SIZES)
    assert found.cells.shape == (2, 3)
    assert found.decisive == int(np.argmax(found.cells)) == 5
    assert found.estimate == found.cells.max()
    assert found.low == found.cells_low.max()
    assert not found.counted[0, 2]
    # The cell where nothing failed has the largest upper end, and would hide all others.
    assert found.cells_high[0, 2] > found.high
    several = rip.calibrate_C(
        failures, 1000, k=2, delta=delta, ratio=np.array([[50.0], [30.0]]), least_failures=10, **SIZES
    )
    assert not several.counted[1, 2]
    assert several.decisive == 1
    # More cells, wider intervals.
    alone = rip.calibrate_C(20, 1000, k=2, delta=0.4, ratio=50.0, **SIZES)
    assert found.cells_low[0, 1] < alone.low < alone.high < found.cells_high[0, 1]


def test_certificates_widen_the_interval():
    cell = {"k": 2, "delta": 0.4, "ratio": 60.0, **SIZES}
    exact, bracketed = rip.calibrate_C(30, 1000, **cell), rip.calibrate_C(30, 1000, possible=200, **cell)
    assert bracketed.low == exact.low
    assert bracketed.estimate == exact.estimate
    assert bracketed.high == rip.calibrate_C(200, 1000, **cell).high > exact.high


def test_the_interval_covers_the_true_constant():
    """k = 1, where the failure probability is known: 1000 simulated grids at 90%, at least that many hold the truth."""
    rng = np.random.default_rng(0)
    delta = np.array([0.3, 0.45, 0.6])
    probability = one_entry(delta, 64)
    cell = {"k": 1, "delta": delta, "ratio": 60.0, **SIZES}
    truth = max(
        float(rip.theorem_3_1(epsilon=p, **{**cell, "delta": d}).value) for p, d in zip(probability, delta, strict=True)
    )
    held = 0
    for _ in range(1000):
        found = rip.calibrate_C(rng.binomial(400, probability), 400, level=0.9, **cell)
        held += found.low <= truth <= found.high
    assert held >= 900 - 5 * math.sqrt(1000 * 0.1 * 0.9)
    # An interval is no good if it holds everything.
    assert found.high - found.low < 0.5 * truth


def test_what_one_entry_needs_stays_bounded():
    """Along epsilon to 1e-200 the needed C stays below that of the chi-square's exponent, 1 / 0.153 l / D."""
    degrees, length_share = 4096.0, 32 / 34
    delta = np.linspace(0.05, 0.95, 40)
    p = one_entry(delta, degrees)
    delta, p = delta[p > 1e-290], p[p > 1e-290]
    needed = rip.calibrate_C(np.minimum(p, 1.0), 1, k=1, delta=delta, ratio=degrees * length_share, **SIZES).cells
    limit = length_share * delta**2 / ((delta - np.log1p(delta)) / 2)
    assert p.min() < 1e-100
    assert np.all(needed < limit)
    assert np.all(needed[p < 1e-60] > 0.8 * limit[p < 1e-60])


def test_mistakes():
    good = {"k": 2, "delta": 0.4, "ratio": 60.0, **SIZES}
    with pytest.raises(ValueError, match="failures <= possible <= draws"):
        rip.calibrate_C(11, 10, **good)
    with pytest.raises(ValueError, match="failures <= possible <= draws"):
        rip.calibrate_C(5, 10, possible=4, **good)
    with pytest.raises(ValueError, match="0 < delta < 1"):
        rip.calibrate_C(5, 10, **{**good, "delta": 1.0})
    with pytest.raises(ValueError, match="level"):
        rip.calibrate_C(5, 10, level=95, **good)
    with pytest.raises(ValueError, match="'ijcai' or 'arxiv'"):
        rip.calibrate_C(5, 10, version="both", **good)
