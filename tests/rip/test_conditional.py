"""Conditional sampling: every draw equals that of an explicit bank, and the law is that of the plain path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnninv_jax import montecarlo
from cnninv_jax.rip import READINGS, conditional, draw_ratios
from cnninv_jax.rip.conditional import Geometry

from .paths import (
    check_explicit,
    check_same_law,
    explicit,
    keys_of,
    randomness,
    run,
    sample,
    sizes,
    wide,
)

PAPER = Geometry(96, 32, 5, 32, 1, 10)
#: K, M, l, D, t, k and the law of z's values.
CASES = {
    "paper": (PAPER, "uniform"),
    "stride": (Geometry(8, 4, 5, 15, 2, 3), "gaussian"),
    "one": (Geometry(6, 4, 3, 6, 1, 1), "signs"),
    "all_but_one": (Geometry(5, 4, 3, 6, 1, 4), "uniform"),
    "one_channel": (Geometry(7, 1, 10, 14, 1, 3), "gaussian"),
    "square": (Geometry(9, 2, 3, 5, 1, 3), "signs"),
    "smallest": (Geometry(2, 2, 3, 3, 1, 1), "uniform"),
    "gaps": (Geometry(6, 8, 2, 12, 5, 3), "signs"),
    "crowded": (Geometry(18, 2, 5, 9, 1, 6), "gaussian"),
}
COMPARISONS = 6 * (len(CASES) + 1)


#: Minutes of compiling together.
LONG = ("paper", "stride", "one_channel", "square", "crowded", "gaps")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in CASES], ids=str)
def case(request):
    geo, values = CASES[request.param]
    return geo, values, np.float32 if geo == PAPER else wide()


def key_of(seed, index):
    return keys_of(seed)[index]


def draw_of(geo, values, dtype):
    return functools.partial(conditional.draw, geometry=geo, values=values, dtype=jnp.dtype(dtype))


def tolerance_of(dtype):
    return 3e-4 if dtype == np.float32 else 1e-9


def test_cases_are_at_the_edges_of_what_is_supported():
    geometries = [geo for geo, _ in CASES.values()]
    assert all(conditional.supported(geo) for geo in geometries)
    assert any(2 * geo.shifts == geo.channels * geo.length for geo in geometries)
    assert any(geo.shifts == 1 for geo in geometries)
    assert not conditional.supported(Geometry(9, 2, 3, 6, 1, 3))
    assert not conditional.supported(Geometry(9, 2, 3, 5, 1, 9))
    assert not conditional.supported(Geometry(257, 2, 3, 5, 1, 3))
    assert not conditional.supported(Geometry(9, 64, 3, 67, 1, 3))


def check_explicit_banks(geo, values, dtype):
    """Wrong responses, ranks, completions or placements change a number here, whatever their law."""
    got = sample(geo, values, "conditional", dtype)
    for index in range(8):
        outputs = {name: value[index] for name, value in got.items()}
        check_explicit(key_of(2, index), geo, values, dtype, outputs, tolerance_of(dtype))


def overlap(geo):
    """A: the expected number of overlapping shifts of a filter, weighted by the overlap's part of its length."""
    shift = np.abs(np.subtract.outer(np.arange(geo.shifts), np.arange(geo.shifts))) * geo.stride
    return np.maximum(geo.length - shift, 0).sum() / (geo.length * geo.shifts)


def check_mean_squares(geo, values, dtype, sampling):
    """E|W^T z|^2 = |z|^2; E|W_S W^T z|^2 and E|W W^T z|^2 by the second and fourth moments of Gaussian filters.

    With N = M l and A = `overlap`: 1 + 2/N + (k - 1) A/(n N) and 1 + 1/N + K A/N, for every law of z's values.
    """
    got = sample(geo, values, sampling, dtype)
    size, weight = geo.channels * geo.length, overlap(geo)
    expected = {
        "model_rip": 1.0,
        "restricted_gram": 1 + 2 / size + (geo.k - 1) * weight / (geo.shifts * size),
        "full_gram": 1 + 1 / size + geo.num_filters * weight / size,
    }
    for name, value in expected.items():
        squares = got[name].astype(np.float64) ** 2
        assert abs(squares.mean() - value) < 5 * squares.std() / np.sqrt(len(squares)), name
    if values == "signs":
        # Var|x|^2 = 2 k/N + 2 k (k - 1) A/(n N) where |z|^2 = k.
        squares = got["model_rip"].astype(np.float64) ** 2
        variance = 2 / (size * geo.k) * (1 + (geo.k - 1) * weight / geo.shifts)
        deviations = (squares - 1) ** 2
        assert abs(deviations.mean() - variance) < 5 * deviations.std() / np.sqrt(len(squares))


@pytest.mark.slow
def test_both_paths(case):
    """Draws of an explicit bank, the plain path's law, theory's moments; one test, so that a process samples once."""
    check_explicit_banks(*case)
    for sampling in ("conditional", "plain"):
        check_mean_squares(*case, sampling)
    geo, values, dtype = case
    check_same_law(*(sample(geo, values, sampling, dtype) for sampling in ("conditional", "plain")), COMPARISONS)


@pytest.mark.slow
def test_no_random_number_serves_twice():
    active, fresh, seeds, _, z = randomness(jax.random.key(0), PAPER, "gaussian", np.float32)
    numbers = np.concatenate([part.ravel() for part in (active, fresh, seeds, z)])
    # Box and Muller on 2^32 words in float32: a few values coincide by chance, blocks of them would not.
    assert len(np.unique(np.abs(numbers))) > 0.999 * numbers.size
    scaled = np.concatenate([part.ravel() for part in (active, fresh, seeds)]) * np.sqrt(160)
    assert stats.kstest(scaled, "norm").pvalue > 1e-6


OVERFLOW = CASES["crowded"][0]


@functools.cache
def winners():
    """Inactive winners of the first draws of the crowded case."""
    return np.array([explicit(key_of(2, index), OVERFLOW, "gaussian", wide())[2] for index in range(100)])


@pytest.fixture
def one_slot(monkeypatch):
    monkeypatch.setattr(conditional.Geometry, "slots", property(lambda self: 1))


@pytest.mark.slow
def test_the_overflow_branch_is_exact_and_keeps_the_law(one_slot):
    """One slot, so that nearly every draw takes the branch."""
    dtype = wide()
    got = run(draw_of(OVERFLOW, "gaussian", dtype), keys_of(3))
    found = []
    for index in range(8):
        outputs = {name: value[index] for name, value in got.items()}
        found.append(check_explicit(key_of(3, index), OVERFLOW, "gaussian", dtype, outputs, tolerance_of(dtype)))
    assert np.median(found) > 1
    check_same_law(got, sample(OVERFLOW, "gaussian", "plain", dtype), COMPARISONS)


@pytest.mark.slow
def test_the_overflow_branch_is_exact_where_it_comes_by_itself():
    got = sample(OVERFLOW, "gaussian", "conditional", wide())
    busy = np.flatnonzero(winners() > OVERFLOW.slots)
    assert len(busy)
    for index in busy[:4]:
        outputs = {name: value[index] for name, value in got.items()}
        check_explicit(key_of(2, index), OVERFLOW, "gaussian", wide(), outputs, tolerance_of(wide()))


@pytest.mark.slow
def test_neighbours_that_overflow_change_no_bit():
    """One program, twice: the first 32 lanes need no branch, the other 32 do or do not."""
    quiet, busy = (np.flatnonzero(found) for found in (winners() <= OVERFLOW.slots, winners() > OVERFLOW.slots))
    quiet = np.resize(quiet, 64)
    batch = jax.jit(jax.vmap(draw_of(OVERFLOW, "gaussian", wide())))
    alone = batch(keys_of(2)[quiet])
    mixed = batch(keys_of(2)[np.concatenate([quiet[:32], np.resize(busy, 32)])])
    for name in READINGS:
        np.testing.assert_array_equal(alone[name][:32], mixed[name][:32])
        assert np.all(np.isfinite(mixed[name]))


@pytest.mark.slow
def test_nested_maps_and_single_draws_take_the_branch_too():
    dtype = wide()
    draw = draw_of(OVERFLOW, "gaussian", dtype)
    flat = sample(OVERFLOW, "gaussian", "conditional", dtype)
    nested = jax.jit(jax.vmap(jax.vmap(draw)))(keys_of(2)[:100].reshape(10, 10))
    # One winner too many: the least that needs the branch, with no neighbour that needs it more.
    busy = np.flatnonzero(winners() == OVERFLOW.slots + 1)[0]
    single = jax.jit(draw)(key_of(2, busy))
    for name in READINGS:
        np.testing.assert_allclose(np.ravel(nested[name]), flat[name][:100], rtol=tolerance_of(dtype))
        np.testing.assert_allclose(single[name], flat[name][busy], rtol=tolerance_of(dtype))


@pytest.mark.slow
@pytest.mark.float32
def test_a_draw_is_a_function_of_its_key_alone():
    """vmap widths change the order of sums only; the random numbers are the same to the last bit."""
    geo = CASES["one"][0]
    words = functools.partial(conditional._normals, geo=geo, dtype=jnp.dtype(np.float32))

    def both(keys):
        return jax.vmap(draw_of(geo, "uniform", np.float32))(keys), jax.vmap(words)(jax.random.clone(keys))

    outputs, numbers = [], []
    for width in (1, 7, 64):
        got, drawn = jax.jit(lambda keys: jax.lax.map(both, keys))(keys_of(4, 448).reshape(-1, width))
        outputs.append({name: np.ravel(value) for name, value in got.items()})
        numbers.append([np.asarray(part).reshape(448, -1) for part in drawn])
    for other, drawn in zip(outputs[1:], numbers[1:], strict=True):
        for got, want in zip(drawn, numbers[0], strict=True):
            np.testing.assert_array_equal(got, want)
        for name in READINGS:
            np.testing.assert_allclose(other[name], outputs[0][name], rtol=1e-5, atol=1e-6)


EDGES = [pytest.param("one_channel", marks=pytest.mark.slow), "square"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGES)
def test_float32_is_good_at_the_edges(name):
    """float32 against float64 on the same random words: only a near-tie among ranks may move a draw visibly."""
    if wide() is np.float32:
        pytest.skip("64-bit types are off")
    geo, values = CASES[name]
    narrow = sample(geo, values, "conditional", np.float32)
    exact = sample(geo, values, "conditional", np.float64)
    for reading in READINGS:
        gap = np.abs(narrow[reading] - exact[reading])
        assert np.all(np.isfinite(gap)), reading
        assert np.median(gap) < 2e-6, reading
        assert np.mean(gap > 1e-3) < 1e-3, reading


@pytest.mark.float32
@pytest.mark.slow
def test_an_estimate_near_x_gives_no_nan():
    """One filter carries z and wins: its error may be zero to rounding, which no difference of energies survives."""
    geo = Geometry(2, 128, 3, 4, 1, 1)
    got = run(
        functools.partial(draw_ratios, **sizes(geo), sampling="conditional", dtype=np.float32), keys_of(6, 65_536)
    )
    for reading in READINGS:
        assert np.all(np.isfinite(got[reading])), reading
    # At the first shift M_fixed and M are one.
    same = np.isclose(got["error_model"], got["error_fixed"], rtol=1e-4, atol=1e-6)
    small = got["error_model"] < 1e-3
    assert np.sum(small & (got["error_fixed"] < 0.5)) > 50
    assert np.all(same | (got["error_fixed"] > 0.05))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_random_supported_sizes_equal_an_explicit_bank():
    rng = np.random.default_rng(0)
    done = 0
    while done < 25:
        num_filters, channels, length, stride = (int(rng.integers(1, top)) for top in (20, 6, 7, 4))
        geo = Geometry(
            num_filters, channels, length, length + stride * int(rng.integers(0, 12)), stride, int(rng.integers(1, 12))
        )
        if not conditional.supported(geo):
            continue
        done += 1
        values = ("uniform", "gaussian", "signs")[done % 3]
        got = run(
            functools.partial(draw_ratios, **sizes(geo), values=values, sampling="conditional"), keys_of(done, 64)
        )
        for index in range(64):
            outputs = {name: value[index] for name, value in got.items()}
            check_explicit(keys_of(done, 64)[index], geo, values, wide(), outputs, tolerance_of(wide()))


@pytest.mark.slow
@pytest.mark.float32
@pytest.mark.timeout(1500)
def test_a_million_draws_of_each_path_at_the_papers_size():
    """Kolmogorov and Smirnov, and two tail quantiles: their order-statistic intervals at 5 standard errors meet."""
    draws = {}
    for seed, sampling in enumerate(("plain", "conditional")):
        draw = functools.partial(draw_ratios, **sizes(PAPER), sampling=sampling, dtype=np.float32)
        result = montecarlo.run(draw, seed, 1_000_000, keep=tuple(READINGS), progress=False)
        draws[sampling] = {name: np.asarray(result.draws[name], np.float64) for name in READINGS}
    lines = []
    for name in READINGS:
        plain, other = draws["plain"][name], draws["conditional"][name]
        p = stats.ks_2samp(plain, other, method="asymp").pvalue
        lines.append(f"{name}: KS p = {p:.3g}, means {plain.mean():.6f} {other.mean():.6f}")
        for q in (0.999, 0.9999):
            intervals = [montecarlo.sample_quantile(part, q, 1 - 5.7e-7) for part in (plain, other)]
            (_, low, high), (_, other_low, other_high) = intervals
            shown = [montecarlo.sample_quantile(part, q) for part in (plain, other)]
            lines.append(f"  {q}: " + " | ".join(f"{e:.5f} [{a:.5f}, {b:.5f}]" for e, a, b in shown))
            assert max(low, other_low) <= min(high, other_high), (name, q)
        assert p > 5.7e-7 / len(READINGS), (name, p)
    print("\n".join(lines))
