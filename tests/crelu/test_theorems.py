"""Theorems A.5 and C.1: formulas, domains, the Beta law and what the paper prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from cnninv_jax.crelu.theorems import projection_quantiles, theorem_a5, theorem_a5_refined, theorem_c1

X64 = jax.config.jax_enable_x64
DTYPE = np.float64 if X64 else np.float32
TIGHT = 1e-12 if X64 else 2e-6

pytestmark = pytest.mark.float32


def test_theorem_a5_is_its_formula():
    low = np.array([0.5, 1.0, 2.0], DTYPE)
    high = np.array([3.0, 1.5, 2.0], DTYPE)
    np.testing.assert_allclose(theorem_a5(low, high), np.sqrt([5.0, 0.5, 0.0]), rtol=TIGHT)
    np.testing.assert_allclose(theorem_a5_refined(low, high), np.sqrt([2.5 / 3, 1 / 3, 0.0]), rtol=TIGHT)
    np.testing.assert_allclose(theorem_a5_refined(1.0, 1.5, 2), np.sqrt(2 / 3), rtol=TIGHT)
    both = np.asarray(theorem_a5(low, high)) * np.sqrt(low / high)
    np.testing.assert_allclose(theorem_a5_refined(low, high), both, rtol=TIGHT)


def test_theorem_a5_at_and_outside_the_ends_of_its_domain():
    eps = float(np.finfo(DTYPE).eps)
    assert theorem_a5(0.0, 2.0) == np.inf
    assert theorem_a5(0.0, 0.0) == np.inf
    assert theorem_a5_refined(0.0, 2.0) == 1
    assert theorem_a5_refined(0.0, 0.0) == 1
    # Rounding of equal eigenvalues promises 0; more than that no signal of (S1) has.
    assert theorem_a5(1.0, 1.0 - 4 * eps) == 0
    for function in (theorem_a5, theorem_a5_refined):
        for low, high in ((1.0, 0.9), (-1.0, 1.0), (np.nan, 1.0), (1.0, np.nan), (0.5, 0.0)):
            assert jnp.isnan(function(low, high)), (function.__name__, low, high)
    assert jnp.isnan(theorem_a5_refined(1.0, 2.0, 0))


def test_theorem_a5_under_jit_keeps_the_dtype():
    found = jax.jit(theorem_a5)(jnp.float32(1), jnp.asarray([2.0, 3.0], np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.sqrt([1.0, 2.0]), rtol=1e-6)


SIZES = [(1200, 48), (2400, 96), (1200, 1), (2, 1), (100, 99), (7, 7), (7, 0), (300000, 5000), (27, 3)]


def exact(D, D_s):
    if D_s == 0:
        return 0.0
    if D_s == D:
        return 1.0
    logs = special.gammaln([(D_s + 1) / 2, D / 2, D_s / 2, (D + 1) / 2])
    return float(np.exp(logs[0] + logs[1] - logs[2] - logs[3]))


@pytest.mark.parametrize(("D", "D_s"), SIZES)
def test_theorem_c1_equals_the_gamma_functions(D, D_s):
    found = theorem_c1(D, D_s)
    # SciPy's differences of log-Gammas lose digits at large D themselves.
    tolerance = max(TIGHT, 1e-14 * D)
    np.testing.assert_allclose(found.kept.exact, exact(D, D_s), rtol=tolerance)
    np.testing.assert_allclose(found.lost.exact, exact(D, D - D_s), rtol=tolerance)
    np.testing.assert_allclose(found.kept.printed, np.sqrt(D_s / D), rtol=TIGHT)
    np.testing.assert_allclose(found.lost.printed, np.sqrt((D - D_s) / D), rtol=TIGHT)
    for law in found:
        assert law.exact <= law.printed * (1 + TIGHT)
    np.testing.assert_allclose(
        found.kept.exact**2 + found.kept.deviation**2, D_s / D, rtol=TIGHT, atol=1e-30
    )  # fmt: skip


def test_one_dimension_of_two_is_a_cosine():
    """E |cos| = 2 / pi, where the paper prints sqrt(1/2)."""
    found = theorem_c1(2, 1)
    np.testing.assert_allclose(found.kept.exact, 2 / np.pi, rtol=TIGHT)
    np.testing.assert_allclose(found.lost.exact, 2 / np.pi, rtol=TIGHT)


@pytest.mark.parametrize(("D", "D_s"), [(1200, 48), (5, 2), (3, 1)])
def test_theorem_c1_is_the_mean_of_the_beta_law(D, D_s):
    found = theorem_c1(D, D_s)
    for law, kept in ((found.kept, D_s), (found.lost, D - D_s)):
        beta = stats.beta(kept / 2, (D - kept) / 2)
        mean = beta.expect(np.sqrt, epsabs=1e-13)
        np.testing.assert_allclose(law.exact, mean, rtol=1e-9 if X64 else 2e-6)
        spread = np.sqrt(beta.expect(lambda s, mean=mean: (np.sqrt(s) - mean) ** 2, epsabs=1e-15))
        np.testing.assert_allclose(law.deviation, spread, rtol=1e-6 if X64 else 2e-2)


def test_the_paper_s_sizes():
    """D = 48 x 5 x 5, K = 48: the two constants differ in the fourth digit of the loss."""
    found = theorem_c1(1200, 48)
    np.testing.assert_allclose(found.lost.printed, 0.9797959, rtol=1e-6)
    np.testing.assert_allclose(found.lost.exact, 0.9797874, rtol=1e-6)
    np.testing.assert_allclose(found.kept.printed, 0.2, rtol=1e-6)
    np.testing.assert_allclose(found.kept.exact, 0.1990025, rtol=2e-6)


def test_theorem_c1_against_projections():
    """Explicit random subspaces, D = 12, D_s = 4."""
    rng = np.random.default_rng(0)
    bases = np.linalg.qr(rng.standard_normal((4000, 12, 4)))[0]
    x = rng.standard_normal(12)
    x /= np.linalg.norm(x)
    parts = np.einsum("bij,i->bj", bases, x)
    kept = np.linalg.norm(parts, axis=1)
    lost = np.linalg.norm(x - np.einsum("bij,bj->bi", bases, parts), axis=1)
    found = theorem_c1(12, 4)
    for law, values in ((found.kept, kept), (found.lost, lost)):
        error = 5 * values.std() / np.sqrt(values.size)
        assert abs(values.mean() - float(law.exact)) < error
        assert abs(values.mean() - float(law.printed)) > error
        assert abs(values.std() - float(law.deviation)) < 0.06 * values.std()
    for part, values in (("kept", kept), ("lost", lost)):
        for level, place in zip((0.1, 0.5, 0.9), projection_quantiles((0.1, 0.5, 0.9), 12, 4, part), strict=True):
            assert abs(np.mean(values < place) - level) < 5 * np.sqrt(level * (1 - level) / values.size)


def test_quantiles_equal_scipy():
    levels = np.array([0.0, 0.025, 0.5, 0.975, 1.0])
    expected = np.sqrt(stats.beta(1152 / 2, 48 / 2).ppf(levels))
    np.testing.assert_allclose(projection_quantiles(levels, 1200, 48), expected, rtol=1e-10)
    with pytest.raises(ValueError, match="1 to D - 1 = 9"):
        projection_quantiles(0.5, 10, 10)
    with pytest.raises(ValueError, match="'kept' or 'lost'"):
        projection_quantiles(0.5, 10, 3, "both")  # type: ignore[arg-type]


def test_theorem_c1_outside_its_domain_is_nan_and_batches():
    for D, D_s in ((0, 0), (3, 4), (3, -1)):
        for law in theorem_c1(D, D_s):
            assert all(jnp.isnan(value) for value in law), (D, D_s)
    found = jax.jit(theorem_c1)(jnp.asarray([10.0, 20.0], DTYPE), jnp.asarray(4.0, DTYPE))
    assert found.kept.exact.shape == (2,)
    assert found.kept.exact.dtype == DTYPE
