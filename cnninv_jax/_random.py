"""Standard normal numbers at the speed of the bits: Box-Muller on both words of a threefry block."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry_2x32

from cnninv_jax._typing import Array, Float, PRNGKeyArray, UInt32

# Taylor series on |f| <= 1/2 quarter turns; the first dropped terms are 2e-9 and 1e-10.
_SINE = [(-1) ** i * (math.pi / 2) ** (2 * i + 1) / math.factorial(2 * i + 1) for i in range(5)]
_COSINE = [(-1) ** i * (math.pi / 2) ** (2 * i) / math.factorial(2 * i) for i in range(6)]


def random_words(key: PRNGKeyArray, num_words: int) -> UInt32[Array, " words"]:
    """Return ``num_words`` (even) uniform 32-bit words.

    `jax.random.bits` in its default, partitionable form keeps one of the two words of every threefry block;
    a draw never needs sharding inside, so both are used here: half the hashing.
    """
    if str(jax.random.key_impl(key)) == "threefry2x32":
        words = jax.random.key_data(key)
    else:
        words = jax.random.bits(key, (2,), jnp.uint32)
    return threefry_2x32(words, lax.iota(jnp.uint32, num_words))


def uniform_from_words(words: UInt32[Array, " words"], dtype: jnp.dtype) -> Float[Array, " words"]:
    """Return uniforms on (0, 1): the upper 23 bits, at the middle of their cell, so that 0 and 1 never come."""
    return (lax.shift_right_logical(words, jnp.uint32(9)).astype(dtype) + 0.5) * 2.0**-23


def normal_pairs(
    key: PRNGKeyArray, num_pairs: int, dtype: jnp.dtype
) -> tuple[Float[Array, " pairs"], Float[Array, " pairs"]]:
    """Return two independent vectors of ``num_pairs`` standard normal numbers (Box and Muller 1958).

    The radius takes a whole 32-bit word, so the tails reach 6.6 (`jax.random.normal` in float32: 5.4).
    One logarithm and one square root serve two numbers, and sine and cosine are short polynomials: three to four
    times as fast as `jax.random.normal` on a CPU.

    Args:
        key: typed key, used up by this call.
        num_pairs: length of each vector.
        dtype: float32 or float64 (the granularity is that of 32-bit words in either).
    """
    words = random_words(key, 2 * num_pairs)
    first, second = words[:num_pairs], words[num_pairs:]
    radius = jnp.sqrt(-2.0 * jnp.log((first.astype(dtype) + 0.5) * 2.0**-32))
    # Upper bits: a fraction of a quarter turn around its middle; lower two bits: which quarter.
    fraction = lax.bitcast_convert_type(second, jnp.int32).astype(dtype) * 2.0**-32
    sine = fraction * _polynomial(_SINE, fraction * fraction)
    cosine = _polynomial(_COSINE, fraction * fraction)
    radius = jnp.where(second & 2, -radius, radius)
    turned = (second & 1) == 1
    return radius * jnp.where(turned, sine, cosine), radius * jnp.where(turned, -cosine, sine)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, " *shape"]:
    """Return standard normal numbers; as `jax.random.normal`, by `normal_pairs` where the dtype has 32 bits or more."""
    if jnp.finfo(dtype).bits < 32:
        return jax.random.normal(key, shape, dtype)
    size = math.prod(shape)
    return jnp.concatenate(normal_pairs(key, -(-size // 2), dtype))[:size].reshape(shape)


def _polynomial(coefficients: list[float], x: Array) -> Array:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
