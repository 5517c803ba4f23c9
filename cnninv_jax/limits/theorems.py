"""The theorems of Random DCN, Sec. 5 and A.3, by their numbers; `rates` and `fidelity` hold them.

Theorem 1/4 is `routes.constant` times `routes.weighted_norm`, Theorem 10 `values.convergence_value`.
"""

from cnninv_jax.limits.fidelity import theorem_3, theorem_9, theorem_9_multilayer, theorem_9_refined
from cnninv_jax.limits.rates import theorem_2, theorem_6, theorem_8, theorem_8_refined

__all__ = [
    "theorem_2",
    "theorem_3",
    "theorem_6",
    "theorem_8",
    "theorem_8_refined",
    "theorem_9",
    "theorem_9_multilayer",
    "theorem_9_refined",
]
