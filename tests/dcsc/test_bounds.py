"""Bounds of Murray 2018 against printed formulas, exact probabilities by trying all signs, and hostile noise."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cnninv_jax._numerics import as_floats
from cnninv_jax.dcsc.bounds import (
    critical_sparsity,
    probabilistic_bound,
    propagated_noise,
    sparsity_limit,
    uniform_bound,
)


def all_signs(count):
    return np.array(list(itertools.product([1.0, -1.0], repeat=count)))


def unit_columns(rng, rows, columns):
    atoms = rng.normal(size=(rows, columns))
    return atoms / np.linalg.norm(atoms, axis=0)


def coherence_of(atoms):
    gram = np.abs(atoms.T @ atoms)
    return (gram - np.diag(np.diag(gram))).max()


def wrong(responses, active, beta):
    """Which responses are on the wrong side of a hard threshold, [..., N]."""
    return np.where(active, np.abs(responses) <= beta, np.abs(responses) > beta)


def test_uniform_bound_by_hand():
    found = uniform_bound(jnp.array([0.1, 0.2, 0.0, 0.0, 0.1]), 1.0, 2.0, jnp.array([0.1, 0.6, 0.1, 0.6, 0.0]))
    np.testing.assert_allclose(found.limit, [0.2 / 0.1 + 0.5, -0.05 / 0.2 + 0.5, np.inf, -np.inf, 3.0], rtol=1e-12)
    np.testing.assert_allclose(found.clipped, [2.5, 0.25, np.inf, 0, 3.0], rtol=1e-12)
    # Strictly below: a limit of 3 allows 2, however the quotient is rounded.
    assert found.largest_sparsity.tolist() == [2, 0, 2**31 - 2**7, 0, 2]
    assert uniform_bound(0.1, 1.0, 1.0).largest_sparsity == 5
    half = uniform_bound(0.1, 1.0, 1.0, threshold="half")
    np.testing.assert_allclose(half.limit, 5.0, rtol=1e-12)
    assert half.largest_sparsity == 4
    assert np.isnan(uniform_bound(-0.1, 1.0, 1.0).limit)
    assert np.isnan(uniform_bound(0.1, 1.0, 0.5).limit)


@pytest.mark.parametrize("threshold", ["best", "half"])
def test_uniform_bound_is_kept_by_the_worst_pattern_of_signs(threshold):
    """No pattern of signs, and no noise of the patch norm, loses a support within the bound; one beyond it can."""
    rng = np.random.default_rng(0)
    lost_beyond = 0
    for _ in range(60):
        atoms = unit_columns(rng, 24, 10)
        active = np.zeros(10, bool)
        active[rng.choice(10, rng.integers(1, 4), replace=False)] = True
        sizes, zeta = rng.uniform(0.8, 1.0, active.sum()), rng.uniform(0, 0.2)
        mu = coherence_of(atoms)
        beta = sizes.min() / 2 + (mu * sizes.max() / 2 if threshold == "best" else 0)
        gram = (atoms.T @ atoms)[:, active] * sizes
        interference = np.abs(gram)
        interference[active] -= np.diag(sizes)
        reach = interference.sum(1) + zeta
        safe = (reach[~active] < beta).all() and (sizes - reach[active] > beta).all()
        found = uniform_bound(mu, sizes.min(), sizes.max(), zeta, threshold=threshold)
        if active.sum() <= int(found.largest_sparsity):
            assert safe
        elif not safe:
            lost_beyond += 1
    assert lost_beyond > 5


def test_bound_three_by_hand():
    mu, low, high = np.array([0.02, 0.01]), np.array([1.0, 0.5]), np.array([1.2, 0.5])
    s, zeta, filters, shifts = np.array([3, 5]), np.array([0.05, 0.02]), np.array([8, 4]), 20
    terms = 2 * 3 * shifts * filters * np.exp(-(low**2) / (8 * (high**2 * mu**2 * s + zeta**2)))
    found = probabilistic_bound(mu, low, high, s, zeta, filters, shifts, num_data=3)
    np.testing.assert_allclose(found.terms, terms, rtol=1e-11)
    np.testing.assert_allclose(found.unclipped, terms.sum(), rtol=1e-11)
    np.testing.assert_allclose(found.log, np.log(terms.sum()), rtol=1e-11)
    assert found.probability == found.unclipped
    hostile = probabilistic_bound(mu, low, high, s, zeta, filters, shifts, num_data=3, noise="adversarial")
    terms = 2 * 3 * shifts * filters * np.exp(-((low / 2 - zeta) ** 2) / (2 * high**2 * mu**2 * s))
    np.testing.assert_allclose(hostile.terms, terms, rtol=1e-11)


def test_bound_three_at_the_ends():
    loud = probabilistic_bound(0.5, 1.0, 1.0, 50, 3.0, 1e6, 1e9)
    assert loud.probability == 1
    np.testing.assert_allclose(loud.unclipped, 2e15 * np.exp(-1 / (8 * 21.5)), rtol=1e-11)
    quiet = probabilistic_bound(1e-3, 1.0, 1.0, 1, 0.0, 8, 10)
    assert quiet.probability == 0
    np.testing.assert_allclose(quiet.log, math.log(160) - 1e6 / 8, rtol=1e-11)
    for kind in ("independent", "adversarial"):
        nothing = probabilistic_bound(0.0, 1.0, 1.0, 5, 0.0, 8, 10, noise=kind)
        assert (nothing.probability, nothing.log) == (0, -np.inf)
    # Noise beyond the threshold: the hostile one may take every response.
    assert probabilistic_bound(0.01, 1.0, 1.0, 1, 0.7, 8, 10, noise="adversarial").unclipped == pytest.approx(160)
    assert np.isnan(probabilistic_bound(0.1, 0.0, 1.0, 1, 0.0, 8, 10).probability)
    with pytest.raises(ValueError, match="noise to be one of independent, adversarial, got 'loud'"):
        probabilistic_bound(0.1, 1.0, 1.0, 1, 0.0, 8, 10, noise="loud")  # type: ignore[arg-type]


@pytest.mark.slow
def test_arrays_jit_vmap_and_dtype():
    mu = jnp.array([[0.01, 0.02], [0.03, 0.04]], jnp.float32)

    def bound(row):
        return probabilistic_bound(row, 1.0, 1.0, jnp.array([3, 4]), 0.0, 8, 10)

    each = jax.jit(jax.vmap(bound))(mu)
    assert each.terms.shape == (2, 2)
    assert each.log.dtype == jnp.float32
    for row, log in zip(mu, each.log, strict=True):
        np.testing.assert_allclose(bound(row).log, log, rtol=1e-6)
    # Leading axes are a batch.
    np.testing.assert_allclose(bound(mu).log, each.log, rtol=1e-6)
    assert jax.jit(uniform_bound)(mu, 1.0, 1.0).largest_sparsity.dtype == jnp.int32


@pytest.mark.parametrize("kind", ["independent", "adversarial"])
def test_no_unit_of_measurement_under_or_overflows(kind):
    """In float32 squares of these are 0 or inf; the bounds are those of unit 1. The second layer fails surely."""

    @jax.jit
    def found(scale):
        mu = jnp.float32(0.06)
        low, high, zeta = (scale * jnp.array(row, jnp.float32) for row in ([1.0, 1.0], [1.2, 2.0], [0.1, 3.0]))
        bound = probabilistic_bound(mu, low, high, 6, zeta, 8, 100, noise=kind)
        noise = propagated_noise(zeta[0], mu, low, high, 6, 4, kind="probabilistic", noise=kind)
        return bound, sparsity_limit(mu, low, high, zeta, 8, 100, 0.01, noise=kind), noise / scale

    usual = found(jnp.float32(1))
    assert usual[0].probability == 1
    for unit in (1e-22, 1e20, 1e30):
        for one, two in zip(jax.tree.leaves(found(jnp.float32(unit))), jax.tree.leaves(usual), strict=True):
            assert np.isfinite(one).all()
            np.testing.assert_allclose(one, two, rtol=1e-4)


def test_half_precision_is_widened():
    bounds = [
        probabilistic_bound(jnp.asarray(0.03125, dtype), 1.0, 1.0, 3, 0.0, 1000, 100_000)
        for dtype in (jnp.float32, jnp.float16, jnp.bfloat16)
    ]
    for bound in bounds:
        assert bound.log.dtype == jnp.float32
        assert np.isfinite(bound.log)
        assert bound.log == bounds[0].log


def test_lists_are_arrays():
    assert uniform_bound([0.1, 0.2], 1.0, (1.0, 1.0)).largest_sparsity.tolist() == [5, 2]  # type: ignore[arg-type]
    assert as_floats([1, 2], 3.0)[1].tolist() == [3.0, 3.0]
    narrow = jnp.ones(2, jnp.float32)
    # Numbers stay weak next to arrays, in a list and out of it.
    assert as_floats([narrow[0], narrow[1]], 0.5)[0].dtype == jnp.float32
    assert as_floats(narrow, 0.5, 3)[1].dtype == jnp.float32


def test_rounding_allows_no_atom_more():
    """The difference |X_min| / 2 - zeta loses digits; the limits are 1, and S has to stay strictly below it."""
    mu, zeta = jnp.array([0.02, 0.04, 0.01], jnp.float32), jnp.array([0.48, 0.46, 0.49], jnp.float32)
    found = uniform_bound(mu, 1.0, 1.0, zeta, threshold="half")
    np.testing.assert_allclose(found.limit, 1, rtol=1e-5)
    assert found.largest_sparsity.tolist() == [0, 0, 0]
    assert uniform_bound(0.02, 1.0, 1.0, 0.48, threshold="half").largest_sparsity == 0
    # In closed form, the noise being all but all that is allowed: limits of 3 more or less 1e-6.
    logs = 2 * math.log(2 * 6400 / 1e-2)
    zeta = math.sqrt(0.25 / logs - 3e-6)
    mu = jnp.sqrt((0.25 / logs - zeta**2) / (3 + jnp.array([-1e-6, 1e-6])))
    if mu.dtype == jnp.float64:
        assert sparsity_limit(mu, 1.0, 1.0, zeta, 64, 100, 1e-2).largest_sparsity.tolist() == [2, 3]


def test_orthogonal_atoms_and_noise_of_half_the_smallest_entry():
    """mu = 0: the noise alone decides, and at |X_min| / 2 it may hide a response."""
    zeta = jnp.array([0.4, 0.5, 0.6])
    for threshold in ("best", "half"):
        found = uniform_bound(0.0, 1.0, 3.0, zeta, threshold=threshold)
        assert found.limit.tolist() == [np.inf, -np.inf, -np.inf]
        assert found.largest_sparsity.tolist() == [2**31 - 2**7, 0, 0]
    hostile = sparsity_limit(0.0, 1.0, 3.0, zeta, 8, 10, 0.1, noise="adversarial")
    assert hostile.limit.tolist() == [np.inf, -np.inf, -np.inf]
    assert hostile.clipped.tolist() == [np.inf, 0, 0]
    assert probabilistic_bound(0.0, 1.0, 3.0, 1, 0.5, 8, 10, noise="adversarial").probability == 1
    independent = sparsity_limit(0.0, 1.0, 3.0, jnp.array([0.0, 0.1, 0.5]), 8, 10, 0.1)
    assert independent.limit.tolist() == [np.inf, np.inf, -np.inf]
    # With atoms that interfere, and no room: none.
    assert sparsity_limit(0.1, 1.0, 3.0, 0.5, 8, 10, 0.1, noise="adversarial").limit == 0


@settings(max_examples=12, deadline=None)
@given(
    st.floats(1e-3, 0.5), st.floats(0.3, 1.0), st.floats(0, 0.1), st.integers(1, 500), st.floats(1e-9, 1.0),
    st.sampled_from(["independent", "adversarial"]),
)  # fmt: skip
def test_the_inverse_inverts(mu, low, zeta, responses, delta, kind):
    """Eq. (4) solved for delta is eq. (3) for one layer."""
    given_numbers = (mu, low, 1.0, zeta)
    found = jax.tree.map(float, sparsity_limit(*given_numbers, responses, 7, delta, num_data=2, noise=kind))
    if found.limit <= 0:
        assert found.clipped == 0
        assert found.largest_sparsity == 0
        return
    back = probabilistic_bound(mu, low, 1.0, found.limit, zeta, responses, 7, num_data=2, noise=kind)
    np.testing.assert_allclose(back.log, math.log(delta), rtol=1e-9, atol=1e-9)
    assert found.limit - 1 < found.largest_sparsity <= found.limit * (1 + 1e-12)


def test_the_probabilistic_bound_passes_the_uniform_one_where_the_coherence_is_small():
    """For |X_min| = |X_max| and no noise: from about mu = 1 / (4 ln(2 M n / delta)) down."""
    turn = 1 / (4 * math.log(2 * 64 * 100 / 1e-2))
    for mu, above in ((turn * 0.9, True), (turn * 1.2, False)):
        assert (sparsity_limit(mu, 1.0, 1.0, 0.0, 64, 100, 1e-2).limit > uniform_bound(mu, 1.0, 1.0).limit) == above


def test_bounds_cover_the_exact_failure_probability_of_a_layer():
    """All 2^k patterns of signs of one layer, noise independent of them; equal products, so that (3) says something."""
    count = 14
    signs = all_signs(count)
    # Equal products of an inactive atom with orthogonal active ones: the sharpest case of Hoeffding's inequality.
    said = 0
    for mu, zeta in ((0.045, 0.0), (0.06, 0.02), (0.08, 0.0), (0.1, 0.05)):
        atoms = np.eye(count + 1)
        atoms[:, count] = np.append(np.full(count, mu), math.sqrt(1 - count * mu**2))
        noise = zeta * atoms[:, count]
        active = np.arange(count + 1) < count
        responses = signs @ atoms[:, :count].T @ atoms + noise @ atoms
        on_support = signs * responses[:, :count]
        assert np.allclose(on_support, 1 + signs * (noise @ atoms)[:count])
        exact = wrong(responses, active, 0.5).any(1).mean()
        bound = probabilistic_bound(mu, 1.0, 1.0, count, zeta, count + 1, 1)
        assert exact <= bound.unclipped
        hostile = probabilistic_bound(mu, 1.0, 1.0, count, zeta, count + 1, 1, noise="adversarial")
        assert exact <= hostile.unclipped
        assert hostile.log <= bound.log + 0.5
        said += int(float(bound.unclipped) < 1 and exact > 0)
    assert said > 0


def test_noise_of_the_second_layer_is_not_independent_of_its_signs():
    """Two layers, all signs tried: given D^(1), what reaches an active response has no random sign; its mean is 0."""
    rng = np.random.default_rng(4)
    low, high = unit_columns(rng, 30, 8), np.zeros((8, 3))
    high[[0, 1, 2], 0] = high[[3, 4, 5], 1] = 3**-0.5  # atoms that do not overlap in X^(1)
    high[[0, 3, 6], 2] = 3**-0.5
    beneath, above = all_signs(6), all_signs(2)
    noise = 0.05 * rng.normal(size=30)
    # N[D', D^(2), i] = D_ii <a_i, V^(1)> with D' = D^(1) sign(X^(1)), the signs that layer 1 sees.
    found = np.empty((len(beneath), len(above), 3))
    for one, first in enumerate(beneath):
        for two, second in enumerate(above):
            code = high[:, :2] @ second
            diagonal = np.append(first * np.sign(code[:6]), [1.0, 1.0])
            estimate = diagonal * (low.T @ (low @ (diagonal * code) + noise))
            v = np.where(np.arange(8) < 6, estimate - code, 0)
            found[one, two] = np.append(second, 1.0) * (high.T @ v)
    # On the support a shift that D^(2) does not change; off it a function of both.
    assert np.ptp(found[:, :, :2], axis=1).max() < 1e-12
    assert np.abs(found[:, :, :2]).max() > 0.02
    assert np.ptp(found[:, :, 2], axis=1).max() > 0.02
    # Of mean 0 over D^(1), whatever D^(2): what the proof needs.
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-14)


def test_a_single_response_can_break_its_share_of_bound_three_but_no_layer_does():
    """Noise of the sign of the interference: sure failure at S = 1 where 2 exp(-1) = 0.74 was the share."""
    mu, zeta = 0.25, 0.25
    share = probabilistic_bound(mu, 1.0, 1.0, 1, zeta, 1, 1)
    np.testing.assert_allclose(share.unclipped, 2 * math.exp(-1), rtol=1e-11)
    signs = all_signs(1)[:, 0]
    assert (np.abs(mu * signs + zeta * signs) >= 0.5).all()
    # Every layer has at least S + 1 responses then; of them all, no noise of norm zeta passes the sum.
    for count in range(1, 13):
        sums = np.abs(all_signs(count).sum(1))
        for level in np.unique(sums[sums > 0]):
            tail = np.mean(sums >= level)
            # Equal products mu, interference s = mu level, and the noise for which bound (3) is smallest.
            s, spread = float(level), float(count)
            noise = spread / s
            exponent = (s + noise) ** 2 / (2 * (spread + noise**2))
            for responses in range(count + 1, count + 40):
                assert min(1, (responses - count) * tail) <= 2 * responses * math.exp(-exponent)


def test_rademacher_sums_with_hostile_noise_keep_to_bound_three():
    """Random products: P(|Z| >= t - zeta) for a whole layer never passes 2 N exp(-t^2 / (2 (A + zeta^2)))."""
    rng = np.random.default_rng(7)
    closest = 0.0
    for _ in range(400):
        count = int(rng.integers(1, 11))
        responses = int(rng.integers(1, 30))
        products = rng.uniform(-1, 1, (responses, count)) ** rng.choice([1, 3])
        sums = np.abs(all_signs(count) @ products.T)
        zeta = rng.uniform(0, 3)
        t = zeta + rng.uniform(0, 1) * sums.max()
        exact = (sums >= t - zeta).any(1).mean()
        # The active responses, at least as many as signs, belong to the layer too.
        bound = 2 * (responses + count) * math.exp(-(t**2) / (2 * (count * np.square(products).max() + zeta**2)))
        assert exact <= bound
        closest = max(closest, exact / bound)
    assert closest > 0.05
    # The constants of the argument: Bentkus and Dzindzalieta's factor, and from where it suffices.
    factor = 2 / (4 * stats.norm.sf(math.sqrt(2)))
    q = np.linspace(1.7, 12, 400)
    assert (factor * stats.norm.sf(q) <= 2 * np.exp(-(q**2 + 1) / 2)).all()
    assert 2 * math.log(2 * 5) - 1 > 1.7**2
    assert 2 * math.log(2 * 6) - 1 > 1.7**2
    for count in (1, 2, 3):
        assert 2 * math.log(2 * (count + 1)) - 1 > count
    for count in (1, 2, 3, 4, 5):
        assert 2 * math.log(2 * count) - 1 > (count - 1) ** 2 / count


def test_propagated_noise_by_hand():
    mu, s, patch = jnp.array([0.02, 0.03]), jnp.array([4, 3]), jnp.array([9, 1])
    uniform = propagated_noise(0.1, mu, 0.5, 1.0, s, patch)
    np.testing.assert_allclose(uniform, [0.1, 3 * (0.1 + 0.06), 0.48 + 0.06], rtol=1e-12)
    soft = propagated_noise(0.1, mu, 0.5, 1.0, s, patch, shrinkage=0.25)
    np.testing.assert_allclose(soft, [0.1, 3 * 0.41, 1.23 + 0.06 + 0.25], rtol=1e-12)
    np.testing.assert_allclose(propagated_noise(0.1, mu, 0.5, 1.0, s, patch, kind="recovered"), [0.1, 0.75, 0.25])
    wide = jnp.array([400, 400])
    likely = propagated_noise(
        0.1, mu, 0.5, 1.0, wide, patch, kind="probabilistic", responses=50, delta=jnp.array([0.1, 0.2])
    )
    logs = [2 * math.log(100 / 0.1), 2 * math.log(100 / 0.2)]
    first = min(math.sqrt(logs[0] * (399 * 0.02**2 + 0.01)), 0.1 + math.sqrt(logs[0] * 399) * 0.02)
    np.testing.assert_allclose(likely[1], 3 * first, rtol=1e-12)
    np.testing.assert_allclose(likely[2], 3 * first + math.sqrt(logs[1] * 399) * 0.03, rtol=1e-12)
    assert (likely <= propagated_noise(0.1, mu, 0.5, 1.0, wide, patch)).all()
    with pytest.raises(ValueError, match="one number per layer"):
        propagated_noise(0.1, mu[None], 0.5, 1.0, s[None], patch[None])
    with pytest.raises(ValueError, match="kind to be one of"):
        propagated_noise(0.1, mu, 0.5, 1.0, s, patch, kind="sure")  # type: ignore[arg-type]


def test_propagated_noise_outside_its_domain():
    usual: dict[str, Any] = {"start": 0.1, "mu": 0.02, "smallest": 0.5, "largest": 1.0, "sparsity": 4, "per_patch": 9}
    for name, value in (
        ("mu", -0.02), ("smallest", 0.0), ("largest", 0.4), ("sparsity", -1), ("per_patch", -1), ("mu", math.nan),
        ("largest", math.inf), ("shrinkage", -0.1),
    ):  # fmt: skip
        found = propagated_noise(**{**usual, name: jnp.array([1.0, value, 1.0]) if name == "mu" else value})
        assert found[0] == 0.1
        # From the first such layer on.
        assert np.isnan(found[1:]).tolist() == ([False, True, True] if name == "mu" else [True])
        assert np.isnan(propagated_noise(**{**usual, name: value}, kind="recovered")[1])
    for start in (-0.1, math.nan):
        assert np.isnan(propagated_noise(**{**usual, "start": start}, kind="recovered")).all()
    wrong_chances: list[dict[str, Any]] = [{"delta": 0.0}, {"delta": 1.5}, {"responses": 0}]
    for chance in wrong_chances:
        assert np.isnan(propagated_noise(**usual, kind="probabilistic", **chance)[1])
        assert np.isfinite(propagated_noise(**usual, **chance)).all()
    for start in (jnp.array([0.1, 0.2]), jnp.array([0.1]), [0.1]):
        with pytest.raises(ValueError, match="expected start to be one number, got shape"):
            propagated_noise(**{**usual, "start": start})


@pytest.mark.parametrize("kind", ["uniform", "probabilistic", "recovered"])
def test_a_layer_of_zeros_passes_no_noise_on(kind):
    """What `generate` measures of it: |X_min| infinite, all else 0."""
    low, high = jnp.array([0.5, jnp.inf, 0.5]), jnp.array([1.0, 0.0, 1.0])
    numbers = jnp.array([4, 0, 1])
    found = propagated_noise(0.1, 0.02, low, high, numbers, numbers, kind=kind, responses=jnp.array([4, 0, 1]))
    assert np.isfinite(found).all()
    assert found[2] == 0


def test_propagated_noise_holds_for_all_patterns_of_signs():
    rng = np.random.default_rng(3)
    for _ in range(10):
        atoms, size, delta = unit_columns(rng, 40, 12), 6, 0.05
        mu, noise = coherence_of(atoms), rng.normal(size=40)
        noise *= 0.1 / np.linalg.norm(noise)
        signs = all_signs(size)
        answers = signs * ((signs @ atoms[:, :size].T + noise) @ atoms[:, :size])
        errors = np.linalg.norm(answers - 1, axis=1)
        given_numbers = (0.1, mu, 1.0, 1.0, size, size)
        assert errors.max() <= propagated_noise(*given_numbers)[1]
        likely = propagated_noise(*given_numbers, kind="probabilistic", responses=size, delta=delta)[1]
        assert (errors > likely).mean() <= delta


def test_critical_sparsity():
    calls = []

    def failure(s):
        calls.append(s)
        return s / 100

    assert critical_sparsity(failure, 0.37, 1000) == 37
    assert len(calls) <= 11
    assert critical_sparsity(failure, 0.001, 1000) == 0
    assert critical_sparsity(lambda s: 0.0, 0.5, 12) == 12
    bound = critical_sparsity(
        lambda s: float(probabilistic_bound(0.01, 1.0, 1.0, s, 0.0, 64, 100).unclipped), 1e-3, 500
    )
    assert bound == sparsity_limit(0.01, 1.0, 1.0, 0.0, 64, 100, 1e-3).largest_sparsity
    with pytest.raises(ValueError, match="at least 1"):
        critical_sparsity(failure, 0.5, 0)
