"""Draws of finite random CNNs against a network of plain loops with the same filters, and against Lemma 5 and Thm 6."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.limits import AvgPool, ChannelMean, Conv, FilterLaw, L2Pool, Moments, Upsample, convergence_value
from cnninv_jax.limits import draws as module
from cnninv_jax.limits._drawing import drawing
from cnninv_jax.limits.draws import random_filters, random_maps, random_output
from cnninv_jax.limits.layers import plan
from tests.oracles import dense_matrix, margins

X64 = jax.config.jax_enable_x64
DTYPES = ["float32", "float64"] if X64 else ["float32"]

#: Name: layers, picture shape.
NETWORKS = {
    "one convolution": ((Conv(3, 5),), (2, 6)),
    "1d": (
        (Conv(3, padding="same"), L2Pool(2), Conv(2, 9), AvgPool(2, 1), Upsample(3), Conv(4, 3, 2, "same")),
        (3, 12),
    ),
    "2d": (
        (Conv((3, 2), padding="same"), L2Pool((2, 3), 1), Conv(2, 4, stride=(1, 2)), Upsample((2, 1)), Conv(3)),
        (3, 6, 8),
    ),
    "layers before": ((AvgPool(2), Upsample(2), L2Pool(2, 1), Conv(2, 3), Conv(2, 2)), (2, 6, 8)),
    "several blocks": ((Conv(2, 300), Conv(1, 3), AvgPool(2), Conv(1, 520), ChannelMean()), (1, 5)),
    "skipped margin": ((Conv(1, 4, stride=3, padding="same"), Conv(2, 3)), (2, 8)),
}


def picture(shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def windows(step):
    """The input indices of every window, by output position."""
    for place in np.ndindex(*step.outputs):
        corner = [p * t for p, t in zip(place, step.stride, strict=True)]
        yield place, tuple(slice(c, c + w) for c, w in zip(corner, step.window, strict=True))


def network_by_loops(layers, x, banks):
    """Return the maps after every layer, in float64."""
    steps = plan(layers, x.shape)
    maps, found = np.asarray(x, np.float64), []
    for step in steps:
        kind = type(step.layer)
        if kind is Conv:
            bank = np.asarray(banks[step.convolution], np.float64)
            padding = step.layer.padding
            assert margins(step.window, step.inputs, step.stride, padding)[1] == step.outputs
            answers = dense_matrix(bank, step.inputs, step.stride, padding) @ maps.ravel()
            maps = np.maximum(answers, 0).reshape(len(bank), *step.outputs)
            if step.convolution < len(banks) - 1:
                maps = maps / math.sqrt(len(bank))
        elif kind is Upsample:
            grown = np.zeros((len(maps), *step.outputs))
            grown[(slice(None), *(slice(None, None, r) for r in step.stride))] = maps
            maps = grown
        else:
            pooled = np.zeros((len(maps), *step.outputs))
            for place, window in windows(step):
                part = maps[(slice(None), *window)].reshape(len(maps), -1)
                pooled[(slice(None), *place)] = part.mean(1) if kind is AvgPool else np.sqrt((part**2).sum(1))
            maps = pooled
        found.append(maps)
    return found


@pytest.mark.parametrize(("name", "dtype"), [*((name, DTYPES[-1]) for name in NETWORKS), ("2d", "float32")][: 6 + X64])
def test_the_network_by_loops_with_the_same_filters(name, dtype):
    layers, shape = NETWORKS[name]
    x = picture(shape, dtype)
    key = jax.random.key(1)
    banks = random_filters(key, shape, layers, width=6, dtype=dtype)
    expected = network_by_loops(layers, x, banks)
    maps = random_maps(key, x, layers, width=6)
    output = random_output(key, x, layers, width=6)
    assert len(maps) == len(expected)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for ours, theirs in zip((*maps, output), (*expected, expected[-1].mean(0)), strict=True):
        assert ours.dtype == dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


def test_filters_fill_their_shapes_and_differ():
    layers = (Conv(2, 4), Conv((2,), 4), Conv(2))
    key = jax.random.key(0)
    banks = random_filters(key, (4, 8), layers, width=4)
    assert [bank.shape for bank in banks] == [(4, 4, 2)] * 3
    others = random_filters(jax.random.key(1), (4, 8), layers, width=4)
    flat = np.stack([np.asarray(bank).ravel() for bank in (*banks, *others)])
    assert len(np.unique(flat)) == flat.size


def test_blocks_of_one_bank_differ():
    (bank,) = random_filters(jax.random.key(0), (1, 4), (Conv(2, 700),))
    assert bank.shape == (700, 1, 2)
    assert len(np.unique(bank)) == bank.size


def test_blocks_are_bounded_and_cover_the_bank():
    for filters, channels, length in ((1, 1, 1), (257, 3, 3), (4096, 4096, 9), (5, 10**6, 9), (300, 64, 25)):
        (stage,) = drawing((Conv(length, filters),), (channels, 2 * length), None, "gaussian")
        count, size = stage.blocks
        assert (count - 1) * size < filters <= count * size
        assert size <= module.BLOCK_FILTERS
        assert size == 1 or size * channels * length <= module.BLOCK_NUMBERS


def test_one_law_for_each_convolution():
    layers = (Conv(2, 3), Conv(2, 3))
    laws = (FilterLaw("sphere", 2.0), FilterLaw("uniform", 1 / math.sqrt(3)))
    first, second = random_filters(jax.random.key(0), (2, 9), layers, filters=laws, dtype=jnp.float32)
    np.testing.assert_allclose(np.sum(np.square(first), axis=(1, 2)), 16.0, rtol=1e-5)
    assert np.abs(second).max() <= 1
    x = picture((2, 9))
    expected = network_by_loops(layers, x, (first, second))[-1]
    np.testing.assert_allclose(
        random_output(jax.random.key(0), x, layers, filters=laws), expected.mean(0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("law", ["gaussian", "sphere"])
def test_lemma_5(law):
    """E relu(w y)^m = k_m |y|^m, every position of the first layer, m = 1, 2, 4."""
    layers, shape, sigma = (Conv(2, 30_000, padding="same"),), (3, 3, 3), 0.7
    x = picture(shape, seed=3)
    (maps,) = random_maps(jax.random.key(4), x, layers, filters=FilterLaw(law, sigma))
    samples = np.asarray(maps, np.float64).reshape(len(maps), -1)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 1), (0, 1)))
    norms = np.array([np.linalg.norm(padded[:, i : i + 2, j : j + 2]) for i in range(3) for j in range(3)])
    moments = FilterLaw(law, sigma).moments(12)
    for m, k in ((1, moments.k1), (2, moments.k2), (4, moments.k4)):
        power = samples**m
        error = power.std(0) / math.sqrt(len(power))
        assert np.all(np.abs(power.mean(0) - k * norms**m) <= 5 * error)


def many(layers, x, num_draws, seed, **options):
    """Return outputs of many draws, [draw, position], in float64."""
    draw = jax.jit(jax.vmap(lambda key: random_output(key, x, layers, **options)))
    found = draw(jax.random.split(jax.random.key(seed), num_draws))
    return np.asarray(found, np.float64).reshape(num_draws, -1)


@pytest.mark.parametrize("law", ["gaussian", "sphere"])
def test_variance_of_a_two_layer_network(law):
    """E|f - E f|^2 = (k_2 - k_1^2) |z|^2 / N and E f = k_1 z (proof of Thm 6)."""
    x, width = picture((2, 6), seed=5), 8
    f = many((Conv(3),), x, 6000, 6, width=width, filters=law)
    moments = FilterLaw(law).moments(6)
    z = np.array([np.linalg.norm(np.asarray(x, np.float64)[:, i : i + 3]) for i in range(4)])
    assert np.all(np.abs(f.mean(0) - moments.k1 * z) <= 5 * f.std(0) / math.sqrt(len(f)))
    squares = np.sum((f - moments.k1 * z) ** 2, axis=1)
    expected = (moments.k2 - moments.k1**2) * np.sum(z**2) / width
    assert abs(squares.mean() - expected) <= 5 * squares.std() / math.sqrt(len(f))
    assert 5 * squares.std() / math.sqrt(len(f)) < 0.2 * expected


def test_hidden_maps_hold_their_energy():
    """E sum over channels of X^2 = k_2 z^2 after a convolution, whatever N: the division by sqrt(N)."""
    x = picture((2, 5), seed=7)
    layers = (Conv(2, 50), Conv(2, 3))
    maps = jax.jit(jax.vmap(lambda key: random_maps(key, x, layers)[0]))(jax.random.split(jax.random.key(8), 2000))
    energy = np.sum(np.square(np.asarray(maps, np.float64)), axis=1)
    z2 = np.array([np.sum(np.square(np.asarray(x, np.float64)[:, i : i + 2])) for i in range(4)])
    assert np.all(np.abs(energy.mean(0) - z2 / 2) <= 5 * energy.std(0) / math.sqrt(2000))


def test_vmap_over_keys_and_pictures_and_jit():
    layers, shape = (Conv(2, 3), L2Pool(2), Conv(2)), (2, 7)
    xs = picture((2, *shape))
    draw = functools.partial(random_output, layers=layers, width=4)
    keys = [jax.random.key(seed) for seed in range(2)]
    both = jax.jit(jax.vmap(draw))(jnp.stack(keys), xs)
    shared = jax.vmap(draw, in_axes=(None, 0))(keys[0], xs)
    for i in range(2):
        np.testing.assert_allclose(both[i], draw(keys[i], xs[i]), rtol=1e-5)
        np.testing.assert_allclose(shared[i], draw(keys[0], xs[i]), rtol=1e-5)
    assert not np.allclose(both[1], shared[1])


def test_one_trace_for_all_keys_and_pictures(monkeypatch):
    calls = []
    original = module._responder
    monkeypatch.setattr(module, "_responder", lambda *arguments: calls.append(1) or original(*arguments))
    layers = (Conv(2, 3), AvgPool(2), Conv(1, 7))
    for seed in range(3):
        random_output(jax.random.key(seed), picture((1, 7), seed=seed), layers)
        random_output(jax.random.key(seed), picture((1, 7), seed=seed), [*layers, ChannelMean()])
    assert len(calls) == 2
    random_output(jax.random.key(0), picture((1, 7)), layers, filters=FilterLaw(deviation=2.0))
    assert len(calls) == 4


@pytest.mark.parametrize("name", ["1d", "several blocks"])
def test_gradient_in_the_picture(name):
    layers, shape = NETWORKS[name]
    x = picture(shape, DTYPES[-1], seed=9)
    key = jax.random.key(10)
    weights = picture(plan(layers, shape)[-1].outputs, DTYPES[-1], seed=11)
    banks = random_filters(key, shape, layers, width=6, dtype=x.dtype)

    def by_loops(at):
        return float(np.sum(network_by_loops(layers, at, banks)[-1].mean(0) * np.asarray(weights, np.float64)))

    gradient = jax.grad(lambda x: jnp.sum(random_output(key, x, layers, width=6) * weights))(x)
    direction = np.random.default_rng(12).standard_normal(shape)
    step = 1e-6
    at = np.asarray(x, np.float64)
    expected = (by_loops(at + step * direction) - by_loops(at - step * direction)) / (2 * step)
    assert gradient.dtype == x.dtype
    tolerance = 1e-6 if X64 else 1e-3
    assert abs(np.sum(np.asarray(gradient) * direction) - expected) <= tolerance * max(1.0, abs(expected))


def test_gradient_of_an_l2_pool_at_zero_is_finite():
    layers = (L2Pool(2), Conv(2, 4), L2Pool(2), Conv(1, 3))
    gradient = jax.grad(lambda x: random_output(jax.random.key(0), x, layers).sum())(jnp.zeros((1, 10), jnp.float32))
    np.testing.assert_array_equal(gradient, 0.0)


def temporaries(function, *arguments):
    """Return the bytes that a compiled function needs beside its arguments and results."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_a_wide_layer_never_holds_its_bank():
    width = 2048
    bank = 4 * width * width * 9
    layers = (Conv(3, width, padding="same"), Conv(3, width, padding="same"), Conv(1, 2))
    shape = jax.ShapeDtypeStruct((3, 4, 4), jnp.float32)
    key = jax.random.key(0)
    assert bank > 1.5e8
    assert temporaries(lambda x: random_output(key, x, layers), shape) < bank / 2
    gradient = jax.grad(lambda x: random_output(key, x, layers).sum())
    assert temporaries(gradient, shape) < bank / 2


REFUSED = {
    "no width": ({}, (Conv(2),), "a number of channels for layer 1"),
    "width of zero": ({"width": 0}, (Conv(2),), "width"),
    "moments": ({"filters": Moments.of("gaussian")}, (Conv(2, 3),), "can be drawn from"),
    "unknown law": ({"filters": "cauchy"}, (Conv(2, 3),), "cauchy"),
    "two laws for three": ({"filters": ("sphere", "sphere")}, (Conv(2, 3),) * 3, "each of the 3 convolutions"),
    "no convolution last": ({}, (Conv(2, 3), L2Pool(2)), "the last layer"),
    "too long": ({}, (Conv(20, 3),), "tile"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    options, layers, message = REFUSED[name]
    x = picture((2, 8))
    with pytest.raises(ValueError, match=message):
        random_output(jax.random.key(0), x, layers, **options)
    with pytest.raises(ValueError, match=message):
        random_maps(jax.random.key(0), x, layers, **options)
    with pytest.raises(ValueError, match=message):
        random_filters(jax.random.key(0), x.shape, layers, **options)


def test_refused_sampling():
    with pytest.raises(ValueError, match="sampling to be one of plain, gram"):
        random_output(jax.random.key(0), picture((2, 8)), (Conv(2, 3),), sampling="exact")


def test_an_integer_picture_becomes_floating():
    x = jnp.arange(8).reshape(1, 8)
    assert jnp.issubdtype(random_output(jax.random.key(0), x, (Conv(2, 3),)).dtype, jnp.floating)


@pytest.mark.parametrize(
    "layers", [(Conv(3, 8), L2Pool(2), Conv(2, 8)), (Conv(3, 512), Conv(2, 512), Conv(2, 512))], ids=["pool", "wide"]
)
@pytest.mark.parametrize("sampling", ["plain", "gram"])
def test_what_is_not_finite_stays_so(layers, sampling):
    x = jnp.ones((1, 12), jnp.float32).at[0, 3].set(jnp.nan)
    found = np.asarray(random_output(jax.random.key(0), x, layers, sampling=sampling))
    limit = np.asarray(convergence_value(x, layers))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(limit))


@pytest.mark.parametrize("law", ["gaussian", "laplace", "uniform"])
def test_filters_are_those_of_a_picture_in_the_default_dtype(law):
    x = jnp.linspace(0.1, 1, 12)[None]
    layers = (Conv(3, 4),)
    (bank,) = random_filters(jax.random.key(1), x.shape, layers, filters=law)
    (maps,) = random_maps(jax.random.key(1), x, layers, filters=law)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x)[0], 3)
    np.testing.assert_allclose(maps, np.maximum(np.asarray(bank)[:, 0] @ windows.T, 0), rtol=1e-5, atol=1e-6)
