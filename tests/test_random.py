"""Random words against a second threefry, normal numbers against the normal law, at 5 standard errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnninv_jax._random import normal_pairs, random_words, uniform_from_words

WORD = 0xFFFFFFFF
#: Two-sided probability of 5 standard errors.
LEVEL = 5.7e-7
PAIRS = 2_000_000


def needs_x64(dtype):
    if dtype == "float64" and not jax.config.jax_enable_x64:
        pytest.skip("64-bit types are off")
    return jnp.dtype(dtype)


def threefry(key, counter):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), on Python integers."""
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    schedule = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + schedule[0]) & WORD, (counter[1] + schedule[1]) & WORD
    for group in range(5):
        for rotation in rotations[group % 2]:
            x = (x + y) & WORD
            y = ((y << rotation) | (y >> (32 - rotation))) & WORD
            y ^= x
        x = (x + schedule[(group + 1) % 3]) & WORD
        y = (y + schedule[(group + 2) % 3] + group + 1) & WORD
    return x, y


@functools.cache
def sample(dtype, impl="threefry2x32", seed=11):
    kind = jnp.dtype(dtype)
    pairs = jax.jit(lambda key: normal_pairs(key, PAIRS, kind))(jax.random.key(seed, impl=impl))
    first, second = (np.asarray(part) for part in pairs)
    assert first.dtype == second.dtype == kind
    return first.astype(np.float64), second.astype(np.float64)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((WORD, WORD), (WORD, WORD), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_reference_gives_the_known_answers_of_random123(key, counter, expected):
    assert threefry(key, counter) == expected


@pytest.mark.parametrize("count", [2, 8, 1000])
def test_words_are_threefry_blocks(count):
    """Block i encrypts (i, count/2 + i); its first words come first, then its second words."""
    key = jax.random.key(123)
    words = np.asarray(random_words(key, count))
    assert words.dtype == np.uint32
    assert words.shape == (count,)
    data = [int(word) for word in np.asarray(jax.random.key_data(key))]
    half = count // 2
    blocks = [threefry(data, (i, half + i)) for i in range(half)]
    np.testing.assert_array_equal(words, [b[0] for b in blocks] + [b[1] for b in blocks])


def test_words_are_jax_bits_of_the_unpartitionable_form():
    with jax.threefry_partitionable(False):
        expected = jax.random.bits(jax.random.key(5), (4096,), np.uint32)
    np.testing.assert_array_equal(random_words(jax.random.key(5), 4096), expected)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_keys_give_words_too(impl):
    words = np.asarray(random_words(jax.random.key(0, impl=impl), 1 << 16))
    other = np.asarray(random_words(jax.random.key(1, impl=impl), 1 << 16))
    assert np.mean(words == other) < 1e-3
    ones = np.unpackbits(words.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / math.sqrt(32 * words.size)


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniforms_lie_strictly_between_zero_and_one(dtype):
    kind = needs_x64(dtype)
    words = jnp.asarray(np.array([0, 1, 511, 512, 2**31 - 1, 2**31, WORD - 512, WORD - 511, WORD], np.uint32))
    uniform = np.asarray(uniform_from_words(words, kind))
    assert uniform.dtype == kind
    expected = ((np.asarray(words) >> 9).astype(np.float64) + 0.5) / 2**23
    np.testing.assert_array_equal(uniform.astype(np.float64), expected)
    assert uniform.min() > 0
    assert uniform.max() < 1


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_positions_never_reach_n(dtype):
    """floor(u n) < n for the largest uniform, rounding of the product included, for every n conditional takes."""
    kind = needs_x64(dtype)
    largest = uniform_from_words(jnp.asarray([WORD], jnp.uint32), kind)
    n = jnp.arange(1, 4097).astype(kind)
    assert bool(jnp.all(jnp.floor(largest * n) == n - 1.0))


def test_uniforms_are_uniform():
    words = random_words(jax.random.key(3), 1_000_000)
    uniform = np.asarray(uniform_from_words(words, jnp.dtype(np.float32)))
    assert stats.kstest(uniform, "uniform").pvalue > LEVEL


def expected_pairs(key, count):
    """Box and Muller in NumPy float64 from the same words."""
    words = np.asarray(random_words(key, 2 * count)).astype(np.int64)
    first, second = words[:count], words[count:]
    radius = np.sqrt(-2 * np.log((first + 0.5) / 2.0**32))
    signed = np.where(second >= 2**31, second - 2**32, second)
    angle = np.pi / 2 * (signed / 2.0**32)
    quarter = np.array([0, -np.pi / 2, np.pi, np.pi / 2])[second & 3]
    return radius, radius * np.cos(angle + quarter), radius * np.sin(angle + quarter)


@pytest.mark.float32
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 6e-7), ("float64", 3e-9)])
def test_sine_cosine_and_radius_are_accurate(dtype, tolerance):
    """Against NumPy's own functions: the Taylor series stop at 2e-9, float32 at a few of its roundings."""
    kind = needs_x64(dtype)
    key = jax.random.key(77)
    radius, cosine, sine = expected_pairs(jax.random.clone(key), 500_000)
    first, second = (np.asarray(part, np.float64) for part in normal_pairs(key, 500_000, kind))
    # In float32 the uniform is rounded to 24 bits, which the radius shows where it is near zero.
    granularity = 2.0**-24 / np.maximum(radius, 1e-3) if kind == np.float32 else 0.0
    allowed = tolerance * radius + granularity
    for got, want in ((first, cosine), (second, sine)):
        assert np.all(np.abs(got - want) <= allowed)
    assert np.all(np.abs(np.hypot(first, second) - radius) <= allowed)


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_numbers_follow_the_normal_law(dtype):
    needs_x64(dtype)
    for numbers in sample(dtype):
        assert stats.kstest(numbers, "norm").pvalue > LEVEL
    angle = np.arctan2(*sample(dtype)) / (2 * np.pi) + 0.5
    assert stats.kstest(angle, "uniform").pvalue > LEVEL


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_moments(dtype, order):
    needs_x64(dtype)
    double_factorial = [1, 0, 1, 0, 3, 0, 15, 0, 105]
    expected = double_factorial[order]
    error = math.sqrt((double_factorial[2 * order] - expected**2) / PAIRS)
    for numbers in sample(dtype):
        assert abs(np.mean(numbers**order) - expected) < 5 * error


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threshold", [3.0, 4.0, 4.5, 5.0])
def test_tails(dtype, threshold):
    """Counts on each side of each vector against the binomial law, at the probability of 5 standard errors."""
    needs_x64(dtype)
    probability = stats.norm.sf(threshold)
    low, high = stats.binom.ppf([LEVEL / 2, 1 - LEVEL / 2], PAIRS, probability)
    for numbers in sample(dtype):
        for side in (numbers, -numbers):
            assert low <= np.sum(side > threshold) <= high


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pairs_and_neighbours_are_uncorrelated(dtype):
    """Plainly and in squares: the pair, each vector at lags up to 64, one vector against the other's lags."""
    needs_x64(dtype)
    first, second = sample(dtype)
    for function, deviation in ((lambda x: x, 1.0), (lambda x: x * x - 1, 2.0), (lambda x: x**3 - 3 * x, 6.0)):
        a, b = function(first), function(second)
        products = [np.mean(a * b)]
        for lag in (1, 2, 3, 5, 8, 64):
            products += [np.mean(x[lag:] * y[:-lag]) for x, y in ((a, a), (b, b), (a, b), (b, a))]
        assert np.max(np.abs(products)) < 5 * deviation / math.sqrt(PAIRS - 64)


def test_rbg_keys_give_normal_numbers():
    for numbers in sample("float32", "rbg"):
        assert stats.kstest(numbers, "norm").pvalue > LEVEL
    assert abs(np.mean(sample("float32", "rbg")[0] * sample("float32", "rbg")[1])) < 5 / math.sqrt(PAIRS)


def test_the_longest_tail_is_that_of_a_whole_word():
    """The largest radius of a 32-bit word is sqrt(66 log 2) = 6.76; the numbers stay finite at both ends."""
    largest = max(np.max(np.abs(part)) for part in sample("float32"))
    assert largest <= math.sqrt(66 * math.log(2)) * (1 + 1e-6)
    assert all(np.all(np.isfinite(part)) for part in sample("float32"))


def test_other_keys_give_other_numbers_and_a_vmap_the_same():
    keys = jax.random.split(jax.random.key(2), 8)
    kind = jnp.dtype(np.float32)
    together = np.asarray(jax.jit(jax.vmap(lambda key: normal_pairs(key, 100, kind)[0]))(jax.random.clone(keys)))
    alone = np.stack([normal_pairs(key, 100, kind)[0] for key in keys])
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)
    assert np.abs(np.corrcoef(together) - np.eye(8)).max() < 0.6
    assert len(np.unique(together)) == together.size
