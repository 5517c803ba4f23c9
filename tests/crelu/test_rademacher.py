"""Rademacher complexities against grids of w and all signs in NumPy, closed forms, and what is proved against both."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.crelu import rademacher
from cnninv_jax.crelu.arrangement import faces, num_candidates

X64 = jax.config.jax_enable_x64
CLOSE = 1e-7 if X64 else 1e-5
SUPREMA = jax.jit(rademacher.suprema)
CONSTANTS = jax.jit(lambda x: jnp.stack(rademacher.constants(x)))
UPPER_BOUNDS = jax.jit(lambda x: jnp.stack(rademacher.upper_bounds(x)))
#: Points on lattices, doubled, opposite, zero, on lines and planes: arrangements that are not in general position.
DEGENERATE = {
    "doubled": [[1, 2], [1, 2], [-2, -4], [3, 1], [0, 0], [3, -1]],
    "lattice": [[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -1, 0], [0, 0, 1], [1, 0, 1]],
    "plane": [[1, 0, 1], [0, 1, 1], [1, 1, 2], [1, -1, 0], [2, 1, 3], [-1, -1, -2]],
    "axes": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]],
}


def readings(values, sigma):
    """The four readings of functions (rows of values), by their definition, times 2 / L."""
    p, q = np.maximum(values, 0) @ sigma, np.maximum(-values, 0) @ sigma
    found = np.array([np.abs(values @ sigma), np.maximum(np.abs(p), np.abs(q)), np.abs(p + q), np.hypot(p, q)])
    return 2 / len(sigma) * found


def directions(dim, count=200_000):
    """Many unit vectors, on a grid where that is one."""
    if dim == 1:
        return np.array([[1.0], [-1.0]])
    if dim == 2:
        angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Fibonacci's spiral on the sphere.
    height = 1 - (2 * np.arange(count) + 1) / count
    angles = np.pi * (1 + math.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(angles), ring * np.sin(angles), height], axis=1)


def all_signs(count):
    return np.array(list(itertools.product((1.0, -1.0), repeat=count)))


def sample(dim, count=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_suprema_are_those_of_a_fine_grid(dim, seed):
    x = sample(dim, seed=seed)
    arrangement = faces(x)
    grid = directions(dim) @ x.T
    for sigma in all_signs(6)[[1, 6, 13, 22]]:
        brute = readings(grid, sigma).max(axis=1)
        found = np.array(SUPREMA(arrangement, sigma))
        # Never below a w that exists, and above the best of the grid by no more than a step of it may gain.
        assert np.all(found >= brute - CLOSE)
        np.testing.assert_allclose(found, brute, rtol={1: CLOSE, 2: 1e-4, 3: 1e-2}[dim])


@pytest.mark.parametrize("name", DEGENERATE)
def test_points_that_are_not_in_general_position(name):
    x = np.array(DEGENERATE[name], float)
    arrangement = faces(x)
    grid = directions(x.shape[1]) @ x.T
    for sigma in all_signs(6)[[0, 5, 19, 26]]:
        brute = readings(grid, sigma).max(axis=1)
        found = np.array(SUPREMA(arrangement, sigma))
        assert np.all(found >= brute - CLOSE)
        np.testing.assert_allclose(found, brute, rtol=1e-2, atol=CLOSE)


def test_face_counts_of_points_in_general_position():
    # Half of the faces of n lines through 0: n rays and n cells; of n planes: n (n - 1) / 2 rays, n (n - 1) sectors and
    # (n (n - 1) + 2) / 2 cells.
    assert faces(sample(2, 7)).positive.shape == (14, 7)
    assert faces(sample(3, 7)).positive.shape == (21 + 42 + 22, 7)
    assert num_candidates(sample(3, 7)) == 21 * 9
    # Seven points in a plane of three dimensions are those of two.
    assert faces(sample(2, 7) @ sample(3, 2)).points.shape == (7, 2)
    assert faces(sample(3, 1)).positive.shape == (1, 1)


def test_the_counterexample_in_whole_numbers():
    # x = (1, -1): w = A and w = -A are all there is. Squares of the left side are whole, the right side is whole.
    left, right = set(), Fraction(0)
    for one, other in itertools.product((1, -1), repeat=2):
        p, q = one, other
        left.add(p * p + q * q)
        right += Fraction(abs(p - q), 4)
    assert left == {2}
    assert right == 1
    found = rademacher.exact_complexities(faces(np.array([[1.0], [-1.0]])), radius=3.0)
    np.testing.assert_allclose(found.crelu, 3 * math.sqrt(2), rtol=CLOSE)
    np.testing.assert_allclose(found.linear, 3.0, rtol=CLOSE)
    bound = rademacher.theorem_4_1(found.linear, 5, 2.0)
    left_side = rademacher.layer_complexity(found.crelu, 5, 2.0)
    assert bound.printed < left_side < bound.corrected
    np.testing.assert_allclose(left_side / bound.printed, math.sqrt(2), rtol=CLOSE)


def test_layer_complexity_is_the_supremum_over_maps_and_units():
    # Two units on a line, W in 4 dimensions of norm B: search everything.
    x, norm = np.array([1.0, -2.0, 0.5]), 1.5
    weights = np.random.default_rng(2).normal(size=(200_000, 4))
    weights *= norm / np.linalg.norm(weights, axis=1, keepdims=True)
    arrangement = faces(x[:, None])
    for sigma in all_signs(3)[:4]:
        best = 0.0
        for first, second in itertools.product((1, -1), repeat=2):
            units = np.stack([first * x, second * x])
            both = np.concatenate([np.maximum(units, 0), np.maximum(-units, 0)])
            best = max(best, np.abs(2 / 3 * weights @ (both @ sigma)).max())
        whole = float(rademacher.layer_complexity(SUPREMA(arrangement, sigma).crelu, 2, norm))
        assert best <= whole * (1 + 1e-6)
        np.testing.assert_allclose(best, whole, rtol=2e-2)


@pytest.mark.parametrize("dim", [1, 2])
def test_exact_complexities_are_means_over_all_signs(dim):
    x = sample(dim, 6, seed=3)
    grid = directions(dim, 20_000) @ x.T
    brute = np.mean([readings(grid, sigma).max(axis=1) for sigma in all_signs(6)], axis=0)
    found = np.array(rademacher.exact_complexities(faces(x)))
    np.testing.assert_allclose(found, brute, rtol=1e-3)
    assert np.all(found >= brute - CLOSE)


def test_finite_classes_break_lemma_b_1():
    both = rademacher.finite_complexities(np.array([[1.0, -1, 0], [0, 1, -1], [-1, 0, 1]]))
    np.testing.assert_allclose(both.avr / both.linear, 4 / 3, rtol=CLOSE)
    values = np.array([[1.0, 0, 1], [0, 1, 1], [1, -1, 0]])
    kept = rademacher.finite_complexities(np.maximum(values, 0)).linear / rademacher.finite_complexities(values).linear
    np.testing.assert_allclose(kept, 7 / 6, rtol=CLOSE)


def test_a_linear_class_breaks_lemma_b_1():
    # Points at 0 change nothing but 2 / L.
    x = np.concatenate([np.array(rademacher.LEMMA_B_1_POINTS), np.zeros((3, 2))])
    found = np.array(rademacher.exact_complexities(faces(x)))
    np.testing.assert_allclose(found / found[0], [1, 1.10629, 1.21858, 1.15274], atol=1e-5)
    grid = directions(2, 20_000) @ x.T
    brute = np.mean([readings(grid, sigma).max(axis=1) for sigma in all_signs(6)], axis=0)
    np.testing.assert_allclose(brute, found, rtol=1e-4)


def test_a_finite_class_by_its_definition():
    values = sample(5, 4, seed=8)
    brute = np.mean([readings(values, sigma).max(axis=1) for sigma in all_signs(5)], axis=0)
    np.testing.assert_allclose(rademacher.finite_complexities(values), brute, rtol=CLOSE)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0]))
def test_what_is_proved_for_every_class(seed, kept):
    rng = np.random.default_rng(seed)
    # Sparse values of one size are where the constants are large.
    values = np.round(rng.normal(size=(4, 5))) if kept < 1 else rng.normal(size=(4, 5))
    values[0, :2] = 1, -1
    found = np.array(rademacher.finite_complexities(values)) / float(rademacher.finite_complexities(values).linear)
    assert np.all(found <= np.array([1, 1.5, 2, math.sqrt(3)]) + 1e-5)
    # The class holds a function with a ratio above 1; none has been seen above sqrt(2).
    assert found[3] <= math.sqrt(2) + 1e-5


@pytest.mark.parametrize("law", ["gaussian", "antipodal", "positive", "line", "star"])
def test_what_is_proved_for_a_linear_class(law):
    x = sample(2, 6, seed=4)
    if law == "antipodal":
        x = np.concatenate([x[:3], -x[:3]])
    elif law == "positive":
        x = np.abs(x)
    elif law == "line":
        x = x[:, :1] * np.array([[0.6, 0.8]])
    elif law == "star":
        angles = 2 * np.pi / 3 * np.arange(3)
        x = np.concatenate([np.stack([np.cos(angles), np.sin(angles)], axis=1), np.zeros((3, 2))])
    exact = np.array(rademacher.exact_complexities(faces(x)))
    assert np.all(exact <= np.array(UPPER_BOUNDS(x)) * (1 + 1e-5))
    factors = np.array(CONSTANTS(x))
    assert np.all(exact <= factors * exact[0] * (1 + 1e-5))
    assert np.all(factors <= np.array([1, 1.5, 2, math.sqrt(2.5)]) + 1e-6)
    if law == "line":
        np.testing.assert_allclose(rademacher.stable_rank(x), 1, rtol=1e-5)
        np.testing.assert_allclose(exact[:3] / exact[0], 1, rtol=1e-5)
        np.testing.assert_allclose(factors[:3], 1, atol=2e-3)
        assert factors[3] <= math.sqrt(2) + 1e-3
    if law == "star":
        # |w, x_i| are 1, 1/2, 1/2 at best for equal signs; two against one give sqrt(3), s being 0 or of length 2.
        np.testing.assert_allclose(exact[0], 2 / 6 * 1.5, rtol=1e-5)
        np.testing.assert_allclose(exact[2], 2 / 6 * (2 + 3 * math.sqrt(3)) / 4, rtol=1e-5)


def test_second_moments_of_the_right_side():
    # E |s|^2 = T and E |s|^4 = T^2 + 2 sum <x_i, x_j>^2, what the constants rest on.
    x = sample(3, 5, seed=5)
    sums = all_signs(5) @ x
    gram = x @ x.T
    trace = np.trace(gram)
    mixed = (gram**2).sum() - (np.diag(gram) ** 2).sum()
    lengths = np.linalg.norm(sums, axis=1)
    np.testing.assert_allclose(np.mean(lengths**4), trace**2 + 2 * mixed)
    kappa = np.mean(lengths**2) / np.mean(lengths) ** 2
    assert kappa <= min(2, 1 + 2 * mixed / trace**2)
    np.testing.assert_allclose(UPPER_BOUNDS(x)[0], 2 / 5 * math.sqrt(trace), rtol=1e-5)


def test_ascent_stays_below_and_comes_near():
    x = sample(3, 12, seed=6)
    arrangement = faces(x)
    signs = jnp.asarray(np.random.default_rng(7).choice([-1.0, 1.0], size=(40, 12)))
    keys = jax.random.split(jax.random.key(8), 40)
    low = np.array(jax.jit(jax.vmap(lambda key, sigma: jnp.stack(rademacher.ascent(key, x, sigma))))(keys, signs))
    exact = np.array(jax.jit(jax.vmap(lambda sigma: jnp.stack(rademacher.suprema(arrangement, sigma))))(signs))
    assert np.all(low <= exact * (1 + 1e-5))
    np.testing.assert_allclose(low[:, 0], exact[:, 0], rtol=1e-5)
    assert np.all((low / exact).mean(axis=0) > 0.98)


def test_linear_supremum_and_scales():
    x, sigma = sample(3, 6, seed=9), np.array([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    one = rademacher.linear_supremum(x, sigma, 2.0)
    np.testing.assert_allclose(one, 2 * 2.0 / 6 * np.linalg.norm(sigma @ x), rtol=1e-5)
    arrangement = faces(x)
    twice = np.array(SUPREMA(arrangement, sigma, 2.0))
    np.testing.assert_allclose(twice, 2 * np.array(SUPREMA(arrangement, sigma)), rtol=1e-5)
    np.testing.assert_allclose(twice[0], one, rtol=1e-5)
    # The sign of all sigma together does not matter.
    np.testing.assert_allclose(SUPREMA(arrangement, -sigma), SUPREMA(arrangement, sigma), rtol=1e-5)


def test_dtype_follows_the_sample():
    x = np.asarray(sample(2, 3), np.float32)
    arrangement = faces(x)
    assert arrangement.projectors.dtype == np.float32
    signs = np.array([1, -1, 1], np.int8)
    for found in (
        jax.eval_shape(rademacher.suprema, arrangement, signs),
        jax.eval_shape(rademacher.constants, x),
        jax.eval_shape(rademacher.upper_bounds, x),
        jax.eval_shape(rademacher.ascent, jax.random.key(0), x, signs),
        jax.eval_shape(rademacher.finite_complexities, x),
    ):
        assert {leaf.dtype for leaf in found} == {np.dtype(np.float32)}


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="zeros only"):
        faces(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at most 10 faces"):
        faces(sample(3, 6), most=10)
    with pytest.raises(ValueError, match=r"shape \[L, d\]"):
        faces(np.ones(3))
    with pytest.raises(ValueError, match="L signs"):
        rademacher.suprema(faces(sample(2, 3)), np.ones(4))
    with pytest.raises(ValueError, match="to go through"):
        rademacher.sign_vectors(rademacher.MOST_ENUMERATED + 1)
    with pytest.raises(ValueError, match=r"\[functions, L\]"):
        rademacher.finite_complexities(np.ones(3))
    assert np.isnan(rademacher.theorem_4_1(-1.0, 4).printed)
    assert np.isnan(rademacher.constants(np.zeros((2, 2))).crelu)
