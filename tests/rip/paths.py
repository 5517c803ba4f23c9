"""What the tests of both sampling paths share: cached samples, and one conditional draw made explicit in NumPy."""

import functools

import jax
import numpy as np
from oracles import project
from scipy import stats

from cnninv_jax._random import normal_pairs
from cnninv_jax.rip import READINGS, conditional, draw_ratios

#: Two-sided probability of 5 standard errors.
LEVEL = 5.7e-7
DRAWS = 20_480


def wide():
    return np.float64 if jax.config.jax_enable_x64 else np.float32


def sizes(geo):
    return {
        "num_filters": geo.num_filters,
        "channels": geo.channels,
        "length": geo.length,
        "signal_shape": geo.signal_length,
        "k": geo.k,
        "stride": geo.stride,
    }


def keys_of(seed, count=DRAWS):
    return jax.random.split(jax.random.key(seed), count)


def run(draw, keys):
    mapped = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=128))
    return {name: np.asarray(value) for name, value in mapped(keys).items()}


@functools.cache
def sample(geo, values, sampling, dtype, draws=DRAWS):
    """Six arrays of draws; the paths get different keys, so that the two samples are independent."""
    draw = functools.partial(draw_ratios, **sizes(geo), values=values, sampling=sampling, dtype=dtype)
    return run(draw, keys_of(1 if sampling == "plain" else 2, draws))


def as_filters(rows, length):
    """Rows tap by tap [l q, M] to filters [q, M, l]."""
    rows = np.asarray(rows, np.float64)
    return rows.reshape(length, -1, rows.shape[1]).transpose(1, 2, 0)


def randomness(key, geo, values, dtype):
    """The random numbers of one conditional draw: active and fresh filters, seeds, positions, values of z.

    The fresh filters of the slots come first, then those of the overflow branch.
    """
    filters_key, code_key, extra_key = jax.random.split(key, 3)
    bank, seeds = conditional._normals(filters_key, geo, dtype)
    positions, z = conditional._code(code_key, geo, values, dtype)
    # Rows are grouped: the k active filters' taps, then the fresh ones'.
    active = as_filters(bank[: geo.length * geo.k], geo.length)
    fresh = as_filters(bank[geo.length * geo.k :], geo.length)
    assert len(active) == geo.k
    assert len(fresh) == geo.slots
    rest = min(geo.k, geo.num_filters - geo.k) - geo.slots
    if rest:
        extra = normal_pairs(extra_key, geo.channels * geo.length * rest, dtype)[0]
        extra = as_filters(extra.reshape(geo.length * rest, geo.channels), geo.length)
        fresh = np.concatenate([fresh, extra / np.sqrt(geo.channels * geo.length)])
    return active, fresh, np.asarray(seeds, np.float64), np.asarray(positions), np.asarray(z, np.float64)


def cholesky(matrix):
    """The lower factor of a semidefinite matrix; a vanishing pivot leaves a column of zeros."""
    lower = np.zeros_like(matrix)
    for j in range(len(matrix)):
        column = matrix[:, j] - lower @ lower[j]
        if column[j] > 1e-6 * matrix[j, j]:
            lower[j:, j] = column[j:] / np.sqrt(column[j])
    return lower


def explicit(key, geo, values, dtype):
    """A whole bank that has the responses and the completed filters of this draw, and its code z, dense.

    Every inactive filter gets the responses L seed: w = w' + P^+ (L seed - P w'). A winner takes its fresh w' by rank,
    any other one takes noise of the test's own, which no statistic may see.
    """
    active, fresh, seeds, positions, z = randomness(key, geo, values, dtype)
    x = np.zeros((geo.channels, geo.signal_length))
    for w, position, value in zip(active, positions, z, strict=True):
        x[:, position * geo.stride : position * geo.stride + geo.length] += value * w
    starts = range(0, geo.shifts * geo.stride, geo.stride)
    patches = np.stack([x[:, start : start + geo.length].ravel() for start in starts])
    responses = cholesky(patches @ patches.T) @ seeds
    own = active.reshape(geo.k, -1) @ patches.T
    everyone = np.concatenate([np.abs(own).max(axis=1), np.abs(responses).max(axis=0)])
    order = np.argsort(-everyone, kind="stable")
    winners = [index - geo.k for index in order[: geo.k] if index >= geo.k]
    start = np.random.default_rng(0).standard_normal((geo.num_filters - geo.k, patches.shape[1]))
    for slot, winner in enumerate(winners):
        start[winner] = fresh[slot].ravel()
    completed = start + (np.linalg.pinv(patches) @ (responses - patches @ start.T)).T
    # P w = h holds exactly: what was drawn are the responses of the completed filters.
    np.testing.assert_allclose(completed @ patches.T, responses.T, atol=1e-5 * np.abs(responses).max())
    bank = np.concatenate([active, completed.reshape(-1, geo.channels, geo.length)])
    dense = np.zeros((geo.num_filters, geo.shifts))
    dense[np.arange(geo.k), positions] = z
    return bank, dense, len(winners)


def six(bank, z, geo):
    """The six readings of a bank and a dense code, by the dense W and the loops of the projection."""
    w = np.zeros((*z.shape, geo.channels, geo.signal_length))
    for j in range(geo.shifts):
        w[:, j, :, j * geo.stride : j * geo.stride + geo.length] = bank
    w = w.reshape(z.size, -1)
    x = w.T @ z.ravel()
    h = (w @ x).reshape(z.shape)
    estimates = {
        "error_known_support": np.where(z != 0, h, 0),
        "error_model": project(h, geo.k),
        "error_fixed": project(h, geo.k, fixed=True),
    }
    size, energy = np.linalg.norm(z), np.linalg.norm(x)
    got = {
        "model_rip": energy / size,
        "restricted_gram": np.linalg.norm(h[z != 0]) / size,
        "full_gram": np.linalg.norm(h) / size,
    }
    return got | {name: np.linalg.norm(w.T @ e.ravel() - x) / energy for name, e in estimates.items()}


def check_explicit(key, geo, values, dtype, got, tolerance):
    """Compare one draw's outputs with the explicit bank's; return how many inactive filters won."""
    bank, z, winners = explicit(key, geo, values, dtype)
    want = six(bank, z, geo)
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(float(got[name]), value, rtol=tolerance, atol=tolerance, err_msg=f"{name} of {geo}")
    return winners


def check_same_law(first, second, comparisons):
    """Each statistic by Kolmogorov and Smirnov, means and products by 5 standard errors."""
    standard = []
    for name in READINGS:
        a, b = (np.asarray(part[name], np.float64) for part in (first, second))
        assert np.all(np.isfinite(a)), name
        assert np.all(np.isfinite(b)), name
        p = stats.ks_2samp(a, b, method="asymp").pvalue
        assert p > LEVEL / comparisons, f"{name}: p = {p:.2g}"
        centre, spread = b.mean(), b.std()
        standard.append(((a - centre) / spread, (b - centre) / spread))
    for i, (a, b) in enumerate(standard):
        assert_equal_means(a, b)
        for c, d in standard[: i + 1]:
            assert_equal_means(a * c, b * d)


def assert_equal_means(a, b):
    error = np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert abs(a.mean() - b.mean()) < 5 * error
