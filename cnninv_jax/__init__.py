"""When can a CNN's input be recovered from its activations? A functional JAX library."""

from cnninv_jax import crelu, data, dcn, dcsc, filters, images, limits, montecarlo, operators, recovery, rip, sparsity
from cnninv_jax._version import __version__

__all__ = [
    "__version__",
    "crelu",
    "data",
    "dcn",
    "dcsc",
    "filters",
    "images",
    "limits",
    "montecarlo",
    "operators",
    "recovery",
    "rip",
    "sparsity",
]
