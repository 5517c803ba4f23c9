# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gilbert et al. 2017: a CNN layer is one iteration of hard thresholding
#
# Algorithm 1 recovers a model-k-sparse code $z$ from $x = W^T z$ by
# $z_0 = 0, \quad z_{i+1} = \mathbb{M}(z_i + W (x - W^T z_i), k)$,
# where $\mathbb{M}$ keeps the largest entry of every filter's response and then the $k$ largest filters.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from cnninv_jax import filters, recovery
from cnninv_jax.operators import analysis, conv_operator, synthesis
from cnninv_jax.sparsity import max_pool, project, sample_code, unpool

# The size of Fig. 2: 96 filters of 32 channels and length 5, a signal of length 32.
num_filters, channels, length, signal_length, k = 96, 32, 5, 32, 10

bank_key, code_key = jax.random.split(jax.random.key(0))
op = conv_operator(filters.gaussian(bank_key, num_filters, channels, length), signal_length)
code = sample_code(code_key, num_filters, op.shifts, k)
z = code.to_dense()
x = synthesis(op, z)
print(f"z has {np.count_nonzero(z)} of {z.size} entries; x has shape {x.shape}")

# %% [markdown]
# ## One iteration from zero = convolution + max-pooling + unpooling
#
# With $z_0 = 0$ the first iterate is $\mathbb{M}(W x, k)$. A CNN gets there in three layers: convolve, max-pool
# (remembering the switches) and keep the strongest, unpool.

# %%
h = analysis(op, x)  # convolution
pooled, switches = max_pool(h)  # the winner of every response, and where it stood
strongest = project(pooled, k, pool=1)  # the k largest of them
by_network = unpool(strongest, switches, op.shifts)

by_iht = recovery.iht(op, x, k, num_steps=1, method="direct")
layer = recovery.cnn_layer(op, x, k)

assert np.array_equal(by_network, by_iht.code)
assert np.array_equal(by_network, layer.code)
error = float(jnp.linalg.norm(synthesis(op, by_network) - x) / jnp.linalg.norm(x))
assert abs(error - float(by_iht.residual_norms[1])) < 1e-5
print(f"the same code, entry by entry; after this one layer |x - W^T z| / |x| = {error:.3f}")

# %% [markdown]
# ## More iterations: how often the code comes back
#
# One layer leaves an error of about 0.3. Iterating removes it as long as $k$ is small against $M \ell^2 / D$: below, 32
# banks and codes for every $k$, each curve the median relative residual, the band from the lower to the upper quartile.

# %%
num_problems, num_steps = 32, 50


def residual_norms(key: jax.Array, k: int) -> jax.Array:
    """Draw a bank and a code; return |x - W^T z_i| / |x| of every iterate."""
    bank_key, code_key = jax.random.split(key)
    op = conv_operator(filters.gaussian(bank_key, num_filters, channels, length), signal_length)
    x = synthesis(op, sample_code(code_key, num_filters, op.shifts, k).to_dense())
    return recovery.iht(op, x, k, num_steps=num_steps).residual_norms


keys = jax.random.split(jax.random.key(1), num_problems)
curves = {k: np.asarray(jax.jit(jax.vmap(lambda key, k=k: residual_norms(key, k)))(keys)) for k in (5, 10, 25)}
for k, norms in curves.items():
    print(f"k = {k:2d}: {np.mean(norms[:, -1] < 1e-3):4.0%} of the codes recovered after {num_steps} iterations")
assert np.mean(curves[5][:, -1] < 1e-3) > 0.9
assert np.median(curves[10][:, 1]) > 0.2 > np.median(curves[10][:, 4])

# %%
figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
for k, norms in curves.items():
    low, middle, high = np.percentile(norms, [25, 50, 75], axis=0)
    (line,) = axes.semilogy(middle, label=f"k = {k}")
    axes.fill_between(np.arange(num_steps + 1), low, high, color=line.get_color(), alpha=0.2, linewidth=0)
axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
axes.annotate("one CNN layer", (1, 1.2), xytext=(4, 0), textcoords="offset points", color="grey")
axes.set_xlabel("iteration")
axes.set_ylabel(r"$|x - W^T z_i| \; / \; |x|$")
axes.set_title("Model IHT, K, M, l, D = 96, 32, 5, 32, step 1")
axes.legend(title="non-zeros")
plt.show()
