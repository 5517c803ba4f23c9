"""Draws that several tests share; plain module functions, so that another process traces the same ones."""

import jax
import jax.numpy as jnp

#: What XLA calls words exchanged between devices.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)


def mixed(key):
    first, second, third = jax.random.split(key, 3)
    x = jax.random.normal(first)
    return {
        "x": x,
        "v": jax.random.uniform(second, (2, 3)),
        "positive": x > 0,
        "level": jax.random.randint(third, (), 0, 5),
    }


def scalar(key):
    return jax.random.normal(key)


def with_bank(bank, key):
    return {"ratio": jnp.sum(bank * jax.random.normal(key, bank.shape, bank.dtype))}


def raw(draw, key, num_draws):
    """The draws themselves, one at a time by definition, as NumPy arrays."""
    indices = jnp.arange(num_draws, dtype=jnp.uint32)
    return jax.device_get(jax.jit(jax.vmap(lambda i: draw(jax.random.fold_in(key, i))))(indices))


def mesh(count):
    import numpy as np
    from jax.sharding import Mesh

    return Mesh(np.asarray(jax.devices()[:count]), ("draws",))


def variables_equal(first, second):
    """Whether two datasets hold the same variables to the last bit."""
    assert set(first.variables) == set(second.variables)
    return all(
        first[name].dtype == second[name].dtype and first[name].values.tobytes() == second[name].values.tobytes()
        for name in first.variables
    )


def sorting(key):
    """A draw with what made XLA talk between devices: a convolution, top_k and a while loop."""
    first, second = jax.random.split(key)
    filters = jax.random.normal(first, (8, 3, 5), jnp.float32)
    x = jax.random.normal(second, (1, 3, 32), jnp.float32)
    h = jax.lax.conv_general_dilated(x, filters, (1,), "VALID")[0]
    best = jax.lax.top_k(jnp.abs(h).max(axis=1), 4)[0]
    halved = jax.lax.while_loop(lambda y: y.sum() > 1.0, lambda y: y / 2.0, best)
    return {"x": halved.sum(), "h": h.sum()}
