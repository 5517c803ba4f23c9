"""Limits of infinitely wide random CNNs, finite draws of them, and the theorems between (Random DCN, Sec. 5)."""

from cnninv_jax.limits.angles import cosine_angle, sine_angle
from cnninv_jax.limits.draws import random_filters, random_maps, random_output
from cnninv_jax.limits.fidelity import (
    cosine_to_image,
    theorem_3,
    theorem_9,
    theorem_9_multilayer,
    theorem_9_refined,
)
from cnninv_jax.limits.laws import FilterLaw, Moments
from cnninv_jax.limits.layers import AvgPool, ChannelMean, Conv, L2Pool, Upsample
from cnninv_jax.limits.rates import local_variation, theorem_2, theorem_6, theorem_8, theorem_8_refined
from cnninv_jax.limits.routes import (
    ReceptiveField,
    constant,
    receptive_field,
    route_counts,
    route_factors,
    weighted_norm,
)
from cnninv_jax.limits.values import convergence_maps, convergence_value

__all__ = [
    "AvgPool",
    "ChannelMean",
    "Conv",
    "FilterLaw",
    "L2Pool",
    "Moments",
    "ReceptiveField",
    "Upsample",
    "constant",
    "convergence_maps",
    "convergence_value",
    "cosine_angle",
    "cosine_to_image",
    "local_variation",
    "random_filters",
    "random_maps",
    "random_output",
    "receptive_field",
    "route_counts",
    "route_factors",
    "sine_angle",
    "theorem_2",
    "theorem_3",
    "theorem_6",
    "theorem_8",
    "theorem_8_refined",
    "theorem_9",
    "theorem_9_multilayer",
    "theorem_9_refined",
    "weighted_norm",
]
