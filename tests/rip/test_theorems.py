"""Appendices A and B of Gilbert et al. 2017: formulas, domains, and every step of the proofs on brute-force Grams."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnninv_jax import rip
from cnninv_jax.sparsity import SparseCode
from tests import oracles

# Theorem 3.1.

SIZES = {"num_filters": 96, "shifts": 28}


def condition(version, K, n, k, delta, epsilon, C):
    """The right side of the theorem's condition, as printed."""
    if version == "arxiv":
        return C * k / delta**2 * (np.log(K) + np.log(n) - np.log(epsilon))
    return C / delta**2 * (k * (np.log(K) + np.log(n)) - np.log(epsilon))


@pytest.mark.parametrize("unknown", ["k", "delta", "epsilon", "ratio", "constant"])
@pytest.mark.parametrize("version", ["ijcai", "arxiv"])
def test_theorem_3_1_solves_its_condition(version, unknown):
    rng = np.random.default_rng(0)
    K, n, k = (rng.integers(1, most, 300).astype(float) for most in (500, 60, 30))
    K = np.maximum(K, 2.0)
    delta, epsilon, C = rng.uniform(0.01, 0.99, 300), 10 ** rng.uniform(-6, 0, 300), 10 ** rng.uniform(-2, 2, 300)
    ratio = condition(version, K, n, k, delta, epsilon, C)
    known = {"k": k, "delta": delta, "epsilon": epsilon, "ratio": ratio, "constant": C}
    rest = {name: value for name, value in known.items() if name != unknown}
    found = rip.theorem_3_1(num_filters=K, shifts=n, version=version, **rest)
    # epsilon is exponentially sensitive to the rounding of the others.
    tolerance = 1e-9 if jax.config.jax_enable_x64 else (5e-3 if unknown == "epsilon" else 1e-4)
    np.testing.assert_allclose(found.unclipped, known[unknown], rtol=tolerance)


def test_the_versions_differ_in_the_failure_term_only():
    given_ = {"delta": 0.5, "constant": 2.0, **SIZES}
    for k in (1, 10):
        both = [rip.theorem_3_1(k=k, epsilon=1e-3, version=v, **given_).value for v in ("arxiv", "ijcai")]
        np.testing.assert_allclose(both[0] - both[1], 8.0 * (k - 1) * math.log(1e3), rtol=1e-5, atol=1e-4)
        certain = [rip.theorem_3_1(k=k, epsilon=1.0, version=v, **given_).value for v in ("arxiv", "ijcai")]
        np.testing.assert_allclose(certain[0], certain[1], rtol=1e-6)


def test_values_are_clipped_and_the_formula_is_kept():
    weak = rip.theorem_3_1(k=10, delta=0.5, ratio=25.0, constant=1.0, **SIZES)
    assert weak.value == 1.0
    assert weak.unclipped > 1e20
    wide = rip.theorem_3_1(k=10, epsilon=0.01, ratio=25.0, constant=1.0, **SIZES)
    assert jnp.isinf(wide.value)
    np.testing.assert_allclose(wide.unclipped, math.sqrt((10 * math.log(96 * 28) + math.log(100)) / 25), rtol=1e-5)
    few = rip.theorem_3_1(delta=0.9, epsilon=0.01, ratio=25.0, constant=1.0, **SIZES)
    assert few.value == 1.0  # 1.98 entries are one
    np.testing.assert_allclose(few.unclipped, (25 * 0.81 + math.log(0.01)) / math.log(96 * 28), rtol=1e-5)
    assert rip.theorem_3_1(delta=0.1, epsilon=0.01, ratio=25.0, constant=1.0, **SIZES).value == 0.0
    assert rip.theorem_3_1(delta=0.9, epsilon=0.01, ratio=1e6, constant=1.0, **SIZES).value == 96.0


def test_theorem_3_1_outside_its_domain_is_nan():
    good = {"k": 2.0, "delta": 0.5, "epsilon": 0.1, "ratio": 100.0}
    for name, bad in (("k", 0.5), ("delta", 0.0), ("delta", 1.0), ("epsilon", 0.0), ("epsilon", 1.5), ("ratio", 0.0)):
        assert jnp.isnan(rip.theorem_3_1(**{**good, name: bad}, **SIZES).value), name
    assert jnp.isfinite(rip.theorem_3_1(**good, **SIZES).value)
    assert jnp.isnan(rip.theorem_3_1(**good, num_filters=0, shifts=3).value)


def test_theorem_3_1_on_arrays_under_jit():
    k = jnp.arange(1, 5)
    delta = jnp.linspace(0.1, 0.9, 4, dtype=np.float32)
    found = jax.jit(lambda k, d: rip.theorem_3_1(k=k, delta=d, ratio=200, constant=5.0, **SIZES))(k, delta)
    assert found.value.dtype == np.float32
    assert found.value.shape == (4,)
    for i in range(4):
        alone = rip.theorem_3_1(k=int(k[i]), delta=float(delta[i]), ratio=200, constant=5.0, **SIZES)
        np.testing.assert_allclose(found.unclipped[i], alone.unclipped, rtol=1e-3)
        assert found.value[i] == np.clip(found.unclipped[i], 0.0, 1.0)


def test_mistakes_in_theorem_3_1():
    with pytest.raises(ValueError, match="all but one of k, delta"):
        rip.theorem_3_1(k=1, delta=0.5, **SIZES)
    with pytest.raises(ValueError, match="all but one of k, delta"):
        rip.theorem_3_1(k=1, delta=0.5, epsilon=0.1, ratio=1.0, constant=1.0, **SIZES)
    with pytest.raises(ValueError, match="'ijcai' or 'arxiv'"):
        rip.theorem_3_1(k=1, delta=0.5, epsilon=0.1, ratio=1.0, version="icml", **SIZES)


def test_measurement_ratio():
    assert rip.measurement_ratio(32, 5, 32) == 32 * 25 / 32
    assert rip.measurement_ratio(3, (2, 4), (5, 6)) == 3 * 64 / 30


# Lemma A.1 and eq. (4).


@pytest.mark.parametrize("same_filter", [False, True])
def test_lemma_a_1_over_random_filters(same_filter):
    """Also with two entries in one filter: its shifts are uncorrelated, though not independent."""
    rng = np.random.default_rng(0)
    blocks = np.array([1, 1 if same_filter else 2, 3], np.int32)
    code = SparseCode(
        jnp.asarray(blocks), jnp.asarray([[0], [1], [2]], np.int32), jnp.asarray([0.5, -1.0, 0.3]), (4, 3), None
    )
    z = np.asarray(code.to_dense()).ravel()
    energies = []
    for _ in range(2000):
        bank = rng.standard_normal((4, 2, 3)) / math.sqrt(6)
        energies.append(np.sum((dense(bank, 3).T @ z) ** 2))
    error = np.std(energies) / math.sqrt(len(energies))
    assert error < 0.03
    assert abs(np.mean(energies) - float(rip.lemma_a_1(code))) < 5 * error


def test_equation_4_takes_the_smaller_term():
    d, r = 160.0, 25.0
    small = rip.equation_4(0.1, ratio=r, degrees=d, constant=2.0).unclipped
    np.testing.assert_allclose(small, 2 * math.exp(-2 * 0.01 * r), rtol=1e-5)
    large = rip.equation_4(20.0, ratio=r, degrees=d, constant=1e-2).unclipped
    np.testing.assert_allclose(large, 2 * math.exp(-0.01 * 20 * d), rtol=1e-4)
    heavy = rip.equation_4(0.5, ratio=r, degrees=d, constant=2.0, norm=1.5).unclipped
    np.testing.assert_allclose(heavy, 2 * math.exp(-2 * 0.25 * r / 1.5**4), rtol=1e-5)
    assert rip.equation_4(0.01, ratio=r, degrees=d, constant=1.0).value == 1.0
    assert jnp.isnan(rip.equation_4(-0.1, ratio=r, degrees=d, constant=1.0).value)


def test_gaussian_concentration_bounds_the_law():
    """The exact law of ratios over many weights, one chi-square (the worst) included; and how loose it is."""
    code_weights = [np.full(8, 1 / 16), np.linspace(0.1, 1, 12), np.array([0.5, 0.5]), np.full(32, 1.0)]
    channels = 2
    for weights in code_weights:
        lam = weights / (channels * weights.sum())
        degrees = 1 / lam.max()  # the largest weight is 1 / (M l)
        for delta in (0.05, 0.3, 0.9, 1.4):
            exact = rip.weighted_chi_square_tail(lam, channels, 1 + delta).probability
            if delta < 1:
                exact += rip.weighted_chi_square_tail(lam, channels, 1 - delta, "lower").probability
            assert exact <= float(rip.gaussian_concentration(delta, degrees).unclipped) * (1 + 1e-6)
    # On one chi-square the exponent is the right one: the bound is off by a factor of order sqrt(degrees) delta only.
    one = stats.chi2.sf(1024 * 1.3, 1024) + stats.chi2.cdf(1024 * 0.7, 1024)
    assert 1 < rip.gaussian_concentration(0.3, 1024).unclipped / one < 40


def test_gaussian_failure_holds_for_one_entry():
    """k = 1: delta_1 is the largest deviation of K independent chi-squares."""
    for delta in (0.2, 0.5, 0.9):
        single = stats.chi2.sf(64 * (1 + delta), 64) + stats.chi2.cdf(64 * (1 - delta), 64)
        exact = -math.expm1(6 * math.log1p(-single))
        bound = rip.gaussian_failure(delta, num_filters=6, shifts=3, k=1, degrees=64)
        assert exact <= bound.unclipped
        np.testing.assert_allclose(bound.unclipped, 6 * rip.gaussian_concentration(delta, 64).unclipped, rtol=1e-5)
    two = rip.gaussian_failure(0.5, num_filters=6, shifts=3, k=2, degrees=4096)
    np.testing.assert_allclose(
        two.unclipped, 15 * 27**2 * rip.gaussian_concentration(0.25, 4096).unclipped, rtol=1e-4 if two.value > 0 else 1
    )
    assert jnp.isnan(rip.gaussian_failure(0.5, num_filters=2, shifts=3, k=3, degrees=64).value)


@pytest.mark.parametrize(("num_filters", "shifts"), [(2, 1), (6, 3), (96, 28)])
def test_theorem_3_1_is_proved_with_the_gaussian_constant(num_filters, shifts):
    """Wherever the theorem says anything with that C, the bound without open constants is below its epsilon."""
    C = float(rip.gaussian_constant(num_filters, shifts))
    sizes = {"num_filters": num_filters, "shifts": shifts}
    delta, degrees = (grid.ravel() for grid in np.meshgrid(np.linspace(0.05, 0.99, 30), np.geomspace(10, 1e5, 30)))
    spoke = 0
    for k in (1, 2, num_filters):
        # l <= D makes M l^2 / D at most M l.
        epsilon = np.asarray(rip.theorem_3_1(k=k, delta=delta, ratio=degrees, constant=C, **sizes).unclipped)
        proved = np.asarray(rip.gaussian_failure(delta, k=k, degrees=degrees, **sizes).unclipped)
        speaks = (epsilon < 1) & (epsilon > 1e-30)
        assert np.all(proved[speaks] <= epsilon[speaks])
        spoke += speaks.sum()
    assert spoke > 30
    assert jnp.isnan(rip.gaussian_constant(1, 1))


def test_the_sub_gaussian_norm_of_a_normal_variable_is_below_one():
    """The paper says that it is at least 1 ("note that ... >= 1"), by its own definition it is sqrt(2 / pi)."""
    p = np.linspace(1, 60, 2000)
    moments = (
        stats.norm.expect(np.abs),
        np.exp(  # E|w|^p of a standard normal
            (p / 2) * math.log(2) + [math.lgamma((q + 1) / 2) for q in p] - 0.5 * math.log(math.pi)
        ),
    )
    norms = moments[1] ** (1 / p) / np.sqrt(p)
    np.testing.assert_allclose(norms.max(), math.sqrt(2 / math.pi), rtol=1e-12)
    np.testing.assert_allclose(norms.max(), moments[0], rtol=1e-8)


# Appendix B.


def test_formulas_of_appendix_b():
    dk, d2k = 0.2, 0.4
    np.testing.assert_allclose(rip.lemma_b_1(dk), (math.sqrt(1.2), 1.2, 0.8), rtol=1e-6)
    np.testing.assert_allclose(rip.lemma_b_2(d2k), 0.4, rtol=1e-6)
    np.testing.assert_allclose(rip.lemma_b_3(dk, d2k), 1.0, rtol=1e-6)
    np.testing.assert_allclose(rip.lemma_b_4(dk, d2k), 2.5, rtol=1e-6)
    np.testing.assert_allclose(rip.theorem_3_3(dk, d2k), 2.5 * math.sqrt(1.4 / 0.6), rtol=1e-6)
    np.testing.assert_allclose(rip.theorem_3_3_refined(dk, d2k), 1.6 * math.sqrt(1.4 / 0.8), rtol=1e-6)


def test_bounds_that_say_nothing_are_infinite_and_bad_deltas_nan():
    for bound in (rip.lemma_b_3, rip.lemma_b_4, rip.theorem_3_3, rip.theorem_3_3_refined):
        assert jnp.isinf(bound(1.0, 1.2)), bound.__name__
        assert jnp.isinf(bound(3.0, 5.0))
        assert jnp.isnan(bound(-0.1, 0.2))
        assert jnp.isnan(bound(0.1, -0.2))
        assert jnp.isnan(bound(jnp.nan, 0.2))
        assert jnp.isnan(bound(0.1, jnp.nan))
        assert bound(0.0, 0.0) == 0.0
    assert jnp.isinf(rip.theorem_3_3(0.5, 1.0))
    assert jnp.isfinite(rip.lemma_b_4(0.5, 1.0))
    assert jnp.isnan(rip.lemma_b_2(-1.0))
    assert jnp.isnan(rip.lemma_b_1(-1.0).gram_low)


def test_bounds_on_arrays_under_jit_keep_the_dtype():
    dk, d2k = jnp.linspace(0, 1.2, 7, dtype=np.float32), jnp.linspace(0, 1.5, 7, dtype=np.float32)
    for bound in (rip.lemma_b_3, rip.lemma_b_4, rip.theorem_3_3, rip.theorem_3_3_refined):
        together = jax.jit(bound)(dk, d2k)
        assert together.dtype == np.float32
        alone = [float(bound(float(a), float(b))) for a, b in zip(dk, d2k, strict=True)]
        np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_the_last_step_of_b_4_and_the_refinement():
    """(1 + d2k) 2 d2k / (1 - dk) + dk <= 5 d2k / (1 - dk) for dk <= d2k <= 1; the proof's own bound is never larger."""
    dk, rest = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 0.999, 60), np.linspace(0, 1, 60)))
    d2k = dk + rest * (1 - dk)
    assert np.all((1 + d2k) * 2 * d2k / (1 - dk) + dk <= 5 * d2k / (1 - dk) * (1 + 1e-12))
    refined, printed = rip.theorem_3_3_refined(dk, d2k), rip.theorem_3_3(dk, d2k)
    assert np.all(np.asarray(refined) <= np.asarray(printed) * (1 + 1e-5))


def test_the_last_step_of_b_4_fails_beyond_one_and_the_lemma_does_not_need_it():
    dk, d2k = 0.5, 1.45
    assert (1 + d2k) * 2 * d2k / (1 - dk) + dk > 5 * d2k / (1 - dk)
    assert 1 + dk + (1 + dk) <= float(rip.lemma_b_4(dk, d2k))


@functools.cache
def supports(num_filters, shifts, k, members):
    """All supports of sums of members of M_k: at most k members entries, at most one of a member in a filter."""
    entries = itertools.combinations(range(num_filters * shifts), members * k)
    kept = [s for s in entries if max(np.bincount([i // shifts for i in s])) <= members]
    return np.array(kept)


def dense(bank, shifts):
    """W as the oracle has it, for stride 1 and one axis, by slices."""
    num_filters, channels, length = bank.shape
    rows = np.zeros((num_filters, shifts, channels, length + shifts - 1))
    for j in range(shifts):
        rows[:, j, :, j : j + length] = bank
    return rows.reshape(num_filters * shifts, -1)


def brute_force_delta(gram, sets):
    blocks = gram[sets[:, :, None], sets[:, None, :]] - np.eye(sets.shape[1])
    return np.abs(np.linalg.eigvalsh(blocks)).max()


def proof_steps(gram, z, k, shifts, dk, d2k, theorem):
    """Both sides of every inequality in App. B for one code, from the Gram matrix alone."""
    h = gram @ z
    pi = np.flatnonzero(z)
    omega = np.flatnonzero(oracles.project(h.reshape(-1, shifts), k).ravel())
    outside, inside = np.zeros_like(z), np.zeros_like(z)
    outside[np.setdiff1d(pi, omega)] = z[np.setdiff1d(pi, omega)]
    inside[omega] = z[omega]
    estimate = np.zeros_like(z)
    estimate[omega] = h[omega]
    size, norm = np.linalg.norm(z), np.linalg.norm
    missed, extra = np.setdiff1d(pi, omega), np.setdiff1d(omega, pi)
    signal, error = np.sqrt(z @ gram @ z), estimate - z
    yield "b1.5", norm(h[omega]), math.sqrt(1 + dk) * signal
    yield "b1.6", norm(h[pi]), (1 + dk) * size
    yield "b1.7", (1 - dk) * size, norm(h[pi])
    yield "b2", norm((gram @ outside)[omega]), d2k * norm(outside)
    yield "b3 best support", norm(h[missed]), norm(h[extra])
    yield "b3 upper", norm(h[extra]), d2k * size
    yield "b3 lower", (1 - dk) * norm(outside) - d2k * norm(inside), norm(h[missed])
    yield "b3", norm(outside), 2 * d2k / (1 - dk) * size
    yield "b4 on omega", norm(inside[omega] - (gram @ inside)[omega]), dk * norm(inside)
    yield "b4", norm(error), 5 * d2k / (1 - dk) * size
    reconstruction = math.sqrt(max(error @ gram @ error, 0.0))
    yield "3.3", reconstruction, theorem[0] * signal
    yield "3.3 refined", reconstruction, theorem[1] * signal


def test_the_slices_are_the_oracle():
    bank = np.random.default_rng(0).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(dense(bank, 3), oracles.dense_matrix(bank, (6,), (1,)))


@pytest.mark.parametrize(("channels", "length", "k"), [(1, 12, 2), (4, 16, 1), (4, 16, 2), (16, 16, 2)])
def test_every_step_of_the_proofs_on_brute_force_deltas(channels, length, k):
    rng = np.random.default_rng(channels + k)
    num_filters, shifts = 4, 3
    single, pairs = supports(num_filters, shifts, k, 1), supports(num_filters, shifts, k, 2)
    assert len(single) == math.comb(num_filters, k) * shifts**k
    spoke = 0
    for _ in range(40):
        bank = rng.standard_normal((num_filters, channels, length)) / math.sqrt(channels * length)
        rows = dense(bank, shifts)
        gram = rows @ rows.T
        dk, d2k = brute_force_delta(gram, single), brute_force_delta(gram, pairs)
        assert dk <= d2k + 1e-12
        if dk >= 1:
            continue
        spoke += 1
        theorem = float(rip.theorem_3_3(dk, d2k)), float(rip.theorem_3_3_refined(dk, d2k))
        for _ in range(10):
            z = np.zeros(num_filters * shifts)
            chosen = single[rng.integers(len(single))]
            z[chosen] = rng.uniform(-1, 1, k) * rng.choice([0.05, 1.0], k)
            for name, low, high in proof_steps(gram, z, k, shifts, dk, d2k, theorem):
                assert low <= high + 1e-6 * max(high, 1.0), (name, low, high, dk, d2k)
    assert spoke >= 10


def test_naive_unsampling_breaks_theorem_3_3():
    """The theorem "is applicable to any type of upsampling switches": not to the first place of every region."""
    rng = np.random.default_rng(0)
    num_filters, shifts, k, channels, length = 4, 3, 2, 64, 64
    bank = rng.standard_normal((num_filters, channels, length)) / math.sqrt(channels * length)
    rows = dense(bank, shifts)
    gram = rows @ rows.T
    dk = brute_force_delta(gram, supports(num_filters, shifts, k, 1))
    d2k = brute_force_delta(gram, supports(num_filters, shifts, k, 2))
    bound = float(rip.theorem_3_3(dk, d2k))
    z = np.zeros((num_filters, shifts))
    z[0, 1], z[2, 2] = 1.0, -0.7
    estimate = oracles.project((gram @ z.ravel()).reshape(z.shape), k, fixed=True)
    x, error = rows.T @ z.ravel(), rows.T @ (estimate - z).ravel()
    assert bound < 0.8
    assert np.linalg.norm(error) > 1.3 * np.linalg.norm(x)


# Several layers.


def test_one_layer_composes_to_theorem_3_3():
    for dk, d2k in ((0.3, 0.7), (0.6, 1.0), (1.0, 1.5), (0.0, 0.0)):
        bounds = rip.compose_bounds(np.array([dk]), np.array([d2k]))
        np.testing.assert_allclose(bounds.reconstruction, rip.theorem_3_3(dk, d2k), rtol=1e-6)
        np.testing.assert_allclose(bounds.code[0], rip.lemma_b_4(dk, d2k), rtol=1e-6)
        np.testing.assert_allclose(bounds.missed[0], rip.lemma_b_3(dk, d2k), rtol=1e-6)


def test_perfect_layers_add_nothing_and_silent_ones_silence_the_stack():
    perfect = rip.compose_bounds(np.zeros(2), np.zeros(2))
    assert perfect.reconstruction == 0.0
    silent = rip.compose_bounds(np.array([0.1, 1.0, 0.1]), np.array([0.2, 1.3, 0.2]))
    assert jnp.isfinite(silent.code[0])
    assert jnp.all(jnp.isinf(silent.code[1:]))
    assert jnp.isinf(silent.reconstruction)
    assert jnp.isnan(rip.compose_bounds(np.array([0.1, -0.1]), np.array([0.2, 0.2])).reconstruction)
    growing = [float(rip.compose_bounds(np.full(depth, 0.05), np.full(depth, 0.1)).reconstruction) for depth in (1, 2)]
    assert growing[0] < growing[1]
    with pytest.raises(ValueError, match="one number per layer"):
        rip.compose_bounds(0.1, 0.2)


def test_two_layers_stay_within_their_bounds():
    """z_1 = W_2^T z_2 with sparse atoms, so that z_1 lies in M_2; encoder and decoder with pooling switches."""
    rng = np.random.default_rng(0)
    observed, all_deltas = [], []
    for _ in range(25):
        # Layer 2: 3 filters over the 6 codes of layer 1, two taps in two channels of their own each.
        second = np.zeros((3, 6, 2))
        for i in range(3):
            taps = np.sqrt(0.5) * rng.choice([-1, 1], 2) * rng.uniform(0.97, 1.03, 2)
            second[i, 2 * i, rng.integers(2)], second[i, 2 * i + 1, rng.integers(2)] = taps
        first = rng.standard_normal((6, 128, 64)) / math.sqrt(128 * 64)
        upper = dense(second, 2)
        lower = dense(first, 3)
        grams = upper @ upper.T, lower @ lower.T
        deltas = [
            [brute_force_delta(grams[1], supports(6, 3, 2, m)) for m in (1, 2)],
            [brute_force_delta(grams[0], supports(3, 2, 1, m)) for m in (1, 2)],
        ]
        all_deltas.append(np.array(deltas).T)
        z2 = np.zeros((3, 2))
        z2[rng.integers(3), rng.integers(2)] = 1.0
        z1 = (upper.T @ z2.ravel()).reshape(6, 3)
        x = lower.T @ z1.ravel()
        up1 = oracles.project((lower @ x).reshape(6, 3), 2)
        up2 = oracles.project((upper @ up1.ravel()).reshape(3, 2), 1)
        down1 = np.where(up1 != 0, (upper.T @ up2.ravel()).reshape(6, 3), 0.0)
        back = lower.T @ down1.ravel()
        pairs = [(up1, z1), (up2, z2), (down1, z1)]
        found = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
        found.append(np.linalg.norm(back - x) / np.linalg.norm(x))
        observed.append(found)
    bounds = jax.jit(jax.vmap(lambda both: rip.compose_bounds(both[0], both[1])))(np.stack(all_deltas))
    promised = np.column_stack([bounds.code, bounds.decoded[:, 0], bounds.reconstruction])
    observed = np.array(observed)
    assert np.all(observed <= promised)
    assert np.all(promised < 20)
    assert np.all(observed.max(axis=0) > 0.01)
