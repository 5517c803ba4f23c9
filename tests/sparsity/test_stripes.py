"""The greedy projection against one entry after the other; the exact one against every selection."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax import sparsity
from cnninv_jax.sparsity import norms, stripes

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32

STATIC = ("length", "stride", "padding")
# S is traced: one program for every S.
project = jax.jit(stripes.project_stripes, static_argnames=STATIC)

# (code shape, length, stride): one and two axes, atoms that reach everywhere or their own shift only.
LAYOUTS = [
    ((3, 12), (3,), (1,)),
    ((2, 9), (5,), (2,)),
    ((4, 5), (9,), (1,)),
    ((2, 5, 6), (2, 3), (1, 2)),
    ((5, 4), (1,), (1,)),
]


def responses(shape, seed=0, kind="normal"):
    rng = np.random.default_rng(seed)
    # Small integers: many ties, many zeros.
    return rng.normal(size=shape) if kind == "normal" else rng.integers(-2, 3, size=shape).astype(float)


def one_after_the_other(h, most, length, stride, padding):
    """Greedy by its definition: the list of stripes that hold an entry, and a count for each."""
    shifts = h.shape[1:]

    def near(j, i):
        far = [abs(a - b) for a, b in zip(j, i, strict=True)]
        if padding == "circular":
            far = [min(d, n - d) for d, n in zip(far, shifts, strict=True)]
        return all(d * t < ell for d, t, ell in zip(far, stride, length, strict=True))

    holds = {j: [i for i in np.ndindex(*shifts) if near(j, i)] for j in np.ndindex(*shifts)}
    counts, kept = dict.fromkeys(holds, 0), np.zeros_like(h)
    for flat in np.argsort(-np.where(np.isnan(h), np.inf, np.abs(h)).ravel(), kind="stable"):
        entry = np.unravel_index(flat, h.shape)
        place = tuple(int(index) for index in entry[1:])
        if h[entry] != 0 and all(counts[stripe] < most for stripe in holds[place]):
            kept[entry] = h[entry]
            for stripe in holds[place]:
                counts[stripe] += 1
    return kept


@pytest.mark.parametrize("padding", ["valid", "circular"])
@pytest.mark.parametrize(("shape", "length", "stride"), LAYOUTS)
def test_rounds_are_one_entry_after_the_other(shape, length, stride, padding):
    for kind, seed in itertools.product(("normal", "ties"), range(3)):
        h = responses(shape, seed, kind).astype(DEFAULT)
        for most in (0, 1, 2, 5, h.size):
            found = project(jnp.asarray(h), jnp.int32(most), length, stride=stride, padding=padding)
            np.testing.assert_array_equal(found, one_after_the_other(h, most, length, stride, padding))
            assert norms.stripe_norm(np.asarray(found), length, stride=stride, padding=padding) <= most


@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from(["normal", "ties"]))
@settings(max_examples=25, deadline=None)
def test_rounds_on_longer_responses(seed, most, kind):
    h = responses((4, 30), seed, kind).astype(DEFAULT)
    found = project(jnp.asarray(h), jnp.int32(most), 4, padding="valid")
    np.testing.assert_array_equal(found, one_after_the_other(h, most, (4,), (1,), "valid"))


def test_batches_of_responses_and_budgets():
    h = jnp.asarray(responses((5, 2, 9)), DEFAULT)
    most = jnp.arange(5, dtype=np.int32)
    found = jax.jit(jax.vmap(lambda one, S: stripes.project_stripes(one, S, 3)))(h, most)
    for one, S, kept in zip(h, most, found, strict=True):
        np.testing.assert_array_equal(kept, project(one, S, 3))
    np.testing.assert_array_equal(project(h[0], jnp.int32(-3), 3), jnp.zeros_like(h[0]))
    np.testing.assert_array_equal(stripes.project_stripes(h[0], 2, 3), project(h[0], jnp.int32(2), 3))


def test_atoms_that_overlap_nothing_are_the_largest_of_every_shift():
    """One sample long: a stripe is a shift, and the projection keeps its S largest filters."""
    h = jnp.asarray(responses((4, 6)), DEFAULT)
    sizes = np.sort(np.abs(np.asarray(h)), axis=0)
    np.testing.assert_array_equal(project(h, jnp.int32(2), 1) != 0, np.abs(h) >= sizes[-2])
    # Atoms as long as the signal's shifts: one stripe, M(h, S) of Gilbert et al. with a block for every entry.
    np.testing.assert_array_equal(project(h, jnp.int32(5), 20), sparsity.project(h, 5, pool=1))


def test_what_is_not_finite_shows_and_derivatives_hold_the_selection():
    h = jnp.asarray([[0.5, jnp.nan, 2.0, 0.1, jnp.inf]], DEFAULT)
    found = np.asarray(project(h, jnp.int32(1), 2))
    np.testing.assert_array_equal(found, [[0, np.nan, 0, 0, np.inf]])
    finite = jnp.asarray(responses((2, 7)), DEFAULT)
    slope = jax.grad(lambda value: jnp.sum(jnp.square(stripes.project_stripes(value, 1, 2))))(finite)
    np.testing.assert_allclose(slope, 2 * project(finite, jnp.int32(1), 2), rtol=1e-6)
    whole = stripes.project_stripes(jnp.asarray([[3, -1, 2]]), 2, 2)
    np.testing.assert_array_equal(whole, [[3.0, 0.0, 2.0]])


def test_a_second_call_without_jit_compiles_nothing(caplog):
    h = jnp.asarray(responses((2, 7)), DEFAULT)
    stripes.project_stripes(h, 1, 2)
    with jax.log_compiles():
        caplog.clear()
        kept = stripes.project_stripes(h, 2, 2)
        assert not caplog.records
        jax.jit(lambda value: value + 1)(h)
        assert caplog.records
    assert norms.stripe_norm(np.asarray(kept), 2) == 2


def best_energy(h, most, reach):
    """The largest energy of any selection with at most S in every stripe."""
    places = list(np.ndindex(*h.shape))
    best = 0.0
    for chosen in itertools.product((0, 1), repeat=len(places)):
        mask = np.reshape(chosen, h.shape)
        per_shift = mask.sum(axis=0)
        counts = [per_shift[max(j - reach, 0) : j + reach + 1].sum() for j in range(h.shape[1])]
        if max(counts) <= most:
            best = max(best, float(np.sum(mask * np.square(h))))
    return best


@pytest.mark.parametrize(
    ("shape", "length", "stride"), [((1, 9), 3, 1), ((2, 5), 2, 1), ((2, 5), 4, 2), ((1, 8), 1, 1)]
)
def test_exact_against_every_selection(shape, length, stride):
    for seed, most in itertools.product(range(3), (1, 2, 3)):
        h = responses(shape, seed, "normal" if seed else "ties").astype(DEFAULT)
        found = stripes.project_stripes_exact(h, most, length, stride=stride)
        best = best_energy(h, most, (length - 1) // stride)
        np.testing.assert_allclose(np.sum(np.square(found)), best, rtol=max(1e-9, 8 * np.finfo(DEFAULT).eps))
        np.testing.assert_array_equal(found[found != 0], h[found != 0])
        assert norms.stripe_norm(found, length, stride=stride) <= most
        assert stripes.greedy_gap(h, most, length, stride=stride) <= 1 + 1e-6


def test_greedy_keeps_half_and_not_always_more():
    """Two entries of 1 on either side of one of 1 + e: greedy takes the middle, the projection both others."""
    h = np.array([[1.0, 0, 1.001, 0, 1.0]], DEFAULT)
    np.testing.assert_array_equal(stripes.project_stripes_exact(h, 1, 1), h)
    np.testing.assert_array_equal(stripes.project_stripes_exact(h, 1, 2), [[1.0, 0, 0, 0, 1.0]])
    assert stripes.greedy_gap(h, 1, 2) == pytest.approx(1.001**2 / 2, rel=1e-5)
    shares = [stripes.greedy_gap(responses((3, 20), seed), 2, 3) for seed in range(10)]
    assert 0.5 <= min(shares) < max(shares) <= 1 + 1e-6
    assert stripes.greedy_gap(np.zeros((1, 4)), 1, 2) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stripes.project_stripes(jnp.ones(4), 1, 2), "shape \\[K, \\*n\\]"),
        (lambda: stripes.project_stripes(jnp.ones((1, 4)), -1, 2), "S to consist of integers of at least 0"),
        (lambda: stripes.project_stripes(jnp.ones((1, 4)), jnp.ones(2), 2), "S to be an integer scalar"),
        (lambda: stripes.project_stripes(jnp.ones((1, 4)), 1, 2, padding="same"), "'valid' or 'circular'"),
        (lambda: stripes.project_stripes_exact(jnp.ones((1, 4)), 1, 2, padding="circular"), "intervals"),
        (lambda: stripes.project_stripes_exact(jnp.ones((1, 4, 4)), 1, 2), "intervals"),
        (lambda: stripes.project_stripes_exact(jnp.array([[1.0, jnp.nan]]), 1, 2), "finite"),
    ],
    ids=["no filters", "budget", "budgets", "padding", "circular", "two axes", "nan"],
)
def test_stripes_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
