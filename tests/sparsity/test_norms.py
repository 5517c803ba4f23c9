"""Stripe and patch norms against loops over the definition, and against which atoms overlap in a dense matrix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.sparsity import norms

X64 = jax.config.read("jax_enable_x64")
DEFAULT = np.float64 if X64 else np.float32

STATIC = ("length", "stride", "padding")
stripe_counts = jax.jit(norms.stripe_counts, static_argnames=STATIC)
patch_counts = jax.jit(norms.patch_counts, static_argnames=STATIC)
patch_norms = jax.jit(norms.patch_norms, static_argnames=STATIC)

# (shifts, length, stride): one and two axes, atoms that reach everywhere, a stride longer than the atom.
STRIPES = [((9,), (3,), (1,)), ((7,), (5,), (2,)), ((4,), (9,), (1,)), ((5, 6), (2, 3), (1, 2)), ((3,), (2,), (3,))]


def sparse(shape, seed=0, density=0.4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * (rng.random(shape) < density)


def overlapping(shift, other, shifts, length, stride, padding):
    """Whether two atoms share a sample: |j - j'| t < ell along every axis."""
    for j, i, n, ell, t in zip(shift, other, shifts, length, stride, strict=True):
        far = abs(j - i)
        far = min(far, n - far) if padding == "circular" else far
        if far * t >= ell:
            return False
    return True


def counts_by_loops(z, length, stride, padding):
    shifts = z.shape[1:]
    found = np.zeros(shifts, int)
    for j, i in itertools.product(np.ndindex(*shifts), repeat=2):
        if overlapping(j, i, shifts, length, stride, padding):
            found[j] += np.count_nonzero(z[(slice(None), *i)])
    return found


@pytest.mark.parametrize("padding", ["valid", "circular"])
@pytest.mark.parametrize(("shifts", "length", "stride"), STRIPES)
def test_stripes_hold_the_atoms_that_overlap(shifts, length, stride, padding):
    z = sparse((3, *shifts))
    found = stripe_counts(jnp.asarray(z, DEFAULT), length, stride=stride, padding=padding)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, counts_by_loops(z, length, stride, padding))
    most = norms.stripe_norm(jnp.asarray(z, DEFAULT), length, stride=stride, padding=padding)
    assert most == found.max()


@pytest.mark.parametrize(
    ("shape", "length", "stride"), [((20,), (5,), (1,)), ((21,), (5,), (2,)), ((6, 7), (3, 2), (1, 1))]
)
def test_stripes_are_the_neighbours_in_the_matrix(shape, length, stride):
    """The atoms of a stripe are those columns of W^T that share samples with one of its own."""
    dense = oracles.dense_matrix(np.ones((2, 1, *length)), shape, stride)
    shifts = tuple((d - ell) // t + 1 for d, ell, t in zip(shape, length, stride, strict=True))
    z = sparse((2, *shifts), seed=1)
    neighbours = (dense[: dense.shape[0] // 2] @ dense.T != 0).astype(int)
    expected = (neighbours @ (z.ravel() != 0)).reshape(shifts)
    np.testing.assert_array_equal(stripe_counts(jnp.asarray(z, DEFAULT), length, stride=stride), expected)


def patches_by_loops(v, length, stride, padding):
    rank = v.ndim - 1
    size = v.shape[1:]
    if padding == "circular":
        shifts = tuple(d // t for d, t in zip(size, stride, strict=True))
    else:
        shifts = tuple((d - ell) // t + 1 for d, ell, t in zip(size, length, stride, strict=True))
    found = {}
    for j in np.ndindex(*shifts):
        places = [[(j[axis] * stride[axis] + s) % size[axis] for s in range(length[axis])] for axis in range(rank)]
        found[j] = v[np.ix_(range(v.shape[0]), *places)]
    return shifts, found


PATCHES = [
    ((11,), (3,), (1,), "valid"),
    ((11,), (4,), (3,), "valid"),
    ((12,), (5,), (2,), "circular"),
    ((5,), (5,), (1,), "circular"),
    ((6, 8), (3, 2), (1, 2), "valid"),
    ((6, 8), (3, 5), (3, 2), "circular"),
    ((6,), (2,), (3,), "circular"),
]


@pytest.mark.parametrize(("size", "length", "stride", "padding"), PATCHES)
def test_patches_against_loops(size, length, stride, padding):
    v = sparse((2, *size), seed=2, density=0.6)
    shifts, patches = patches_by_loops(v, length, stride, padding)
    signal = jnp.asarray(v, DEFAULT)
    found = np.asarray(patch_norms(signal, length, stride=stride, padding=padding))
    counted = np.asarray(patch_counts(signal, length, stride=stride, padding=padding))
    assert found.shape == counted.shape == shifts
    tolerance = 1e-12 if X64 else 1e-5
    for j, patch in patches.items():
        np.testing.assert_allclose(found[j], np.linalg.norm(patch), rtol=tolerance)
        assert counted[j] == np.count_nonzero(patch)
    assert norms.patch_norm(signal, length, stride=stride, padding=padding) == found.max()
    assert norms.patch_sparsity(signal, length, stride=stride, padding=padding) == counted.max()


def test_norms_in_batches_and_of_what_is_not_finite():
    z = jnp.asarray(sparse((4, 2, 9)), DEFAULT)
    found = jax.vmap(lambda one: norms.stripe_norm(one, 3))(z)
    assert [int(value) for value in found] == [int(norms.stripe_norm(one, 3)) for one in z]
    assert norms.stripe_norm(z[0] != 0, 3) == found[0]
    spoilt = jnp.zeros((1, 6), DEFAULT).at[0, 2].set(jnp.nan)
    assert norms.stripe_norm(spoilt, 2) == 1
    assert jnp.isnan(norms.patch_norm(spoilt, 2))
    assert norms.patch_norm(jnp.ones((1, 4), np.int32), 4).dtype == DEFAULT


def test_derivatives_at_patches_of_zeros_are_zero():
    signal = jnp.zeros((1, 6), DEFAULT).at[0, 4].set(-2.0)
    slope = jax.grad(lambda v: jnp.sum(norms.patch_norms(v, 2)))(signal)
    np.testing.assert_allclose(slope, [[0, 0, 0, 0, -2, 0]])
    np.testing.assert_array_equal(jax.grad(lambda v: norms.patch_norm(v, 2))(jnp.zeros((1, 6), DEFAULT)), 0)


@given(st.integers(1, 6), st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_stripe_holds_at_most_two_patches_of_the_code(length, seed):
    """2 ell - 1 shifts are covered by two windows of ell: |Z|^P <= |Z|^Q <= 2 |Z|^P, ell along the shifts."""
    z = jnp.asarray(sparse((2, 9), seed), DEFAULT)
    patch, stripe = norms.patch_sparsity(z, length), norms.stripe_norm(z, length)
    assert patch <= stripe <= 2 * patch


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norms.stripe_norm(jnp.ones(4), 2), "non-empty code of shape"),
        (lambda: norms.stripe_norm(jnp.ones((1, 4)), 2, padding="same"), "'valid' or 'circular'"),
        (lambda: norms.stripe_norm(jnp.ones((1, 4)), 0), "length"),
        (lambda: norms.patch_norm(jnp.ones((1, 4)), 5), "fit into a signal"),
        (lambda: norms.patch_norm(jnp.ones((1, 4)), 2, stride=3, padding="circular"), "divides D = 4"),
        (lambda: norms.patch_norm(jnp.ones(4), 2), "non-empty signal"),
    ],
    ids=["no filters", "padding", "length", "long patch", "stride", "no channels"],
)
def test_norms_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
