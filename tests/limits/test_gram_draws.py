"""Gram sampling: the factorisation on its own, the Gram matrices, and the law of f against plain draws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cnninv_jax import montecarlo
from cnninv_jax.limits import AvgPool, Conv, FilterLaw, L2Pool, Upsample, _drawing
from cnninv_jax.limits._channelwise import Geometry, patches, through
from cnninv_jax.limits._drawing import drawing
from cnninv_jax.limits._gram_draws import gram_of, moments_size, moments_work, root, second_moments
from cnninv_jax.limits.draws import random_output
from cnninv_jax.limits.layers import plan

X64 = jax.config.jax_enable_x64


def smooth(side, scale):
    """The squared-exponential kernel on a grid: singular in float32 where it is long."""
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)
    return np.exp(-((grid[:, None] - grid[None]) ** 2).sum(-1) / (2 * scale**2))


def patch_products(side, channels, flat=0.0):
    """The Gram matrix of the 3 x 3 patches, zeros around, of random maps over a flat ground."""
    maps = flat + np.random.default_rng(0).random((channels, side, side))
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).transpose(0, 3, 4, 1, 2)
    seen = seen.reshape(-1, side * side)
    return seen.T @ seen


def with_zeros(matrix, places):
    """Set rows and columns to zero."""
    matrix = np.array(matrix)
    matrix[places] = 0
    matrix[:, places] = 0
    return matrix


MATRICES = {
    "identity": np.eye(7),
    "one": np.array([[3.0]]),
    "zero": np.zeros((5, 5)),
    "rank one": 1e6 * np.ones((40, 40)),
    "repeated": np.kron(patch_products(4, 40), np.ones((3, 3))),
    "full rank": patch_products(6, 50),
    "rank deficient": patch_products(10, 3),
    "flat ground": patch_products(10, 3, flat=1e3),
    "dead positions": with_zeros(patch_products(6, 4), [0, 7, 35]),
    "smooth": smooth(10, 2.0),
    "smoother": smooth(10, 6.0),
    "unequal scales": np.outer(10.0 ** np.arange(-6, 6), 10.0 ** np.arange(-6, 6)) * (np.eye(12) + 1) / 2,
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("dtype", ["float32", "float64"] if X64 else ["float32"])
def test_root(name, dtype):
    """R^T R = G: variances to rounding, correlations to some rounding errors."""
    matrix = MATRICES[name]
    factor = np.asarray(jax.jit(root)(jnp.asarray(matrix, dtype)), np.float64)
    assert factor.shape == matrix.shape
    deviations = np.sqrt(np.diag(matrix))
    alive = deviations > 0
    assert np.all(factor[:, ~alive] == 0)
    error = (factor.T @ factor - matrix)[np.ix_(alive, alive)] / np.outer(deviations, deviations)[np.ix_(alive, alive)]
    epsilon = np.finfo(dtype).eps
    assert np.abs(error).max(initial=0) <= 40 * epsilon
    assert np.abs(np.diag(error)).max(initial=0) <= 8 * epsilon


def test_root_under_vmap():
    matrices = jnp.asarray(np.stack([smooth(6, 1.0), patch_products(6, 3), np.zeros((36, 36))]), jnp.float32)
    together = jax.jit(jax.vmap(root))(matrices)
    for factor, matrix in zip(np.asarray(together, np.float64), np.asarray(matrices, np.float64), strict=True):
        np.testing.assert_allclose(factor.T @ factor, matrix, atol=5e-6 * max(1, matrix.max()))


#: Name: layers from the maps on, the shape of the maps; the last is the convolution.
BETWEEN = {
    "1d": ((Conv(3),), (4, 9)),
    "same, stride": ((Conv((3, 2), stride=(2, 1), padding="same"),), (3, 5, 6)),
    "few windows": ((Conv(5, padding="valid"),), (3, 6, 6)),
    "skipped margin": ((Conv(1, stride=3, padding="same"),), (2, 8)),
    "l2 pool": ((L2Pool(2), Conv(3, padding="same")), (3, 8, 6)),
    "average pool, upsampling": ((AvgPool(3, 1), Upsample((2, 3)), Conv(3, padding="same")), (3, 6, 5)),
    "upsampling twice": ((Upsample(2), Upsample(2), Conv(3)), (2, 3)),
    "upsampling, then a pool": ((Upsample(2), AvgPool(2, 1), Conv(2)), (2, 5)),
    "upsampling, few windows": ((Upsample(2), Conv(10)), (2, 6)),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_gram_matrix_of_patches(name):
    layers, shape = BETWEEN[name]
    *before, conv = (Geometry.of(step) for step in plan(layers, shape))
    before = tuple(before)
    maps = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)

    @jax.jit
    def both(maps):
        # By parts of the channels, as a draw comes by them.
        parts = second_moments(maps[:1], before, conv) + second_moments(maps[1:], before, conv)
        return patches(through(maps, before), conv), parts, gram_of(parts, before, conv)

    seen, parts, gram = (np.asarray(array, np.float64) for array in both(maps))
    size = moments_size(shape[1:], before, conv)
    assert parts.shape == (size, size)
    assert 0 < moments_work(before, conv) <= max(size, 1) ** 2 * max(1, math.prod(conv.length))
    np.testing.assert_allclose(gram, seen.T @ seen, rtol=1e-5, atol=1e-5)


@pytest.fixture
def gram_everywhere(monkeypatch):
    monkeypatch.setattr(_drawing, "_gram_is_cheaper", lambda stage: True)


#: Name: layers, picture shape. Widths differ, so that a mix-up of N shows.
NETWORKS = {
    "1d": ((Conv(3, 6, padding="same"), L2Pool(2), Conv(2, 5), AvgPool(2, 1), Upsample(2), Conv(2, 7)), (2, 8)),
    "2d": (
        (
            Conv(2, 6, padding="same"),
            AvgPool(2),
            Upsample(2),
            Conv(3, 4, stride=2, padding="same"),
            L2Pool(2),
            Conv(1, 3),
        ),
        (3, 4, 4),
    ),
    "layers before": ((L2Pool(2), Upsample(2), Conv(3, 5), Conv(2, 4)), (2, 8)),
}
DRAWS = 6000


def outputs(layers, shape, sampling, seed, sigma=0.8):
    x = jnp.asarray(np.random.default_rng(1).random(shape), jnp.float32)
    law = FilterLaw(deviation=sigma)
    draw = jax.jit(jax.vmap(lambda key: random_output(key, x, layers, filters=law, sampling=sampling)))
    found = draw(jax.random.split(jax.random.key(seed), DRAWS))
    return np.asarray(found, np.float64).reshape(DRAWS, -1)


def z_scores(first, second):
    """Differences of means over their standard errors."""
    return (first.mean(0) - second.mean(0)) / np.sqrt((first.var(0) + second.var(0)) / DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1d", "2d"])
def test_same_law_as_plain_sampling(name, gram_everywhere):
    layers, shape = NETWORKS[name]
    assert all(stage.gram for stage in drawing(layers, shape, None, "gaussian", "gram"))
    plain, gram = outputs(layers, shape, "plain", 2), outputs(layers, shape, "gram", 3)
    centre = plain.mean(0)
    assert np.all(np.abs(z_scores(plain, gram)) <= 5)
    # Second moments of all pairs of positions: variances, and how positions go together.
    pairs = [np.einsum("bi,bj->bij", f - centre, f - centre).reshape(DRAWS, -1) for f in (plain, gram)]
    assert np.all(np.abs(z_scores(*pairs)) <= 5)
    assert np.all(pairs[0].std(0) / math.sqrt(DRAWS) <= 0.1 * np.abs(pairs[0].mean(0)).max())
    energies = [np.sum(f**2, axis=1) for f in (plain, gram)]
    cosines = [f @ centre / np.linalg.norm(centre) / np.linalg.norm(f, axis=1).clip(1e-30) for f in (plain, gram)]
    for one, other in (energies, cosines):
        assert scipy.stats.ks_2samp(one, other).pvalue > 1e-4


def test_dead_positions_stay_zero(gram_everywhere):
    """Where a picture is zero its patches are, and the root has zero columns: f is zero there, and finite elsewhere."""
    x = jnp.zeros((2, 12), jnp.float32).at[:, :3].set(1.0)
    layers = (Conv(2, 5), Conv(2, 5), Conv(2, 5))
    f = random_output(jax.random.key(0), x, layers, sampling="gram")
    assert np.all(np.isfinite(f))
    assert np.all(np.asarray(f)[3:] == 0)
    assert np.any(np.asarray(f) > 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"] if X64 else ["float32"])
def test_the_dtype_is_the_picture_s(dtype, gram_everywhere):
    layers, shape = NETWORKS["2d"]
    picture = jax.ShapeDtypeStruct(shape, dtype)
    draw = jax.eval_shape(lambda x: random_output(jax.random.key(0), x, layers, sampling="gram"), picture)
    assert draw.dtype == dtype


def test_no_derivative(gram_everywhere):
    layers, shape = NETWORKS["1d"]
    with pytest.raises(ValueError, match="no derivative through sampling='gram'"):
        jax.grad(lambda x: random_output(jax.random.key(0), x, layers, sampling="gram").sum())(jnp.ones(shape))


def test_gram_where_it_is_less_work():
    layers = (Conv(3, padding="same"), Conv(3, padding="same"), Conv(3, padding="same"))
    wide = [stage.gram for stage in drawing(layers, (3, 8, 8), 1024, "gaussian", "gram")]
    narrow = [stage.gram for stage in drawing(layers, (3, 8, 8), 16, "gaussian", "gram")]
    plain = [stage.gram for stage in drawing(layers, (3, 8, 8), 1024, "gaussian", "plain")]
    assert wide == [False, True, True]
    assert narrow == plain == [False, False, False]


def test_narrow_networks_are_drawn_as_with_plain_sampling():
    layers, shape = NETWORKS["1d"]
    x = jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)
    plain, gram = (random_output(jax.random.key(4), x, layers, sampling=way) for way in ("plain", "gram"))
    np.testing.assert_array_equal(plain, gram)


def test_wide_networks_hold_neither_filters_nor_maps():
    layers = (Conv(3, padding="same"), Conv(3, padding="same"), Conv(3, padding="same"))
    key, picture = jax.random.key(0), jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
    maps = 4 * 65536 * 64
    draw = jax.jit(lambda x: random_output(key, x, layers, width=65536, sampling="gram"))
    assert draw.lower(picture).compile().memory_analysis().temp_size_in_bytes < maps / 2


def test_only_gaussian_filters():
    with pytest.raises(ValueError, match="Gaussian filters with sampling='gram', got 'sphere' for layer 2"):
        random_output(
            jax.random.key(0),
            jnp.ones((1, 6)),
            (Conv(2, 3), Conv(2, 3)),
            filters=("gaussian", "sphere"),
            sampling="gram",
        )


def test_the_engine_s_draws_on_several_devices(gram_everywhere):
    """No LAPACK call, which would wait for ever there, and the same numbers as draw by draw."""
    layers, shape = NETWORKS["layers before"]
    x = jnp.asarray(np.random.default_rng(1).random(shape), jnp.float32)

    def draw(key):
        return {"f": random_output(key, x, layers, sampling="gram")}

    result = montecarlo.run(draw, 5, 32, chunk_size=8, progress=False)
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(5), index))(jnp.arange(32))
    expected = np.asarray(jax.vmap(draw)(keys)["f"], np.float64)
    np.testing.assert_allclose(result["f"]["mean"], expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(result["f"]["variance"], expected.var(0, ddof=1), rtol=1e-4)
