"""The model restricted isometry property: ratios per draw (Gilbert et al. 2017, eq. 1, Figs. 2 and 3)."""

from cnninv_jax.rip.chi_square import TailProbability, weighted_chi_square_tail
from cnninv_jax.rip.designs import draw_ratios_of_codes, model_rip_energy_mean, ratios_of_codes, with_energy
from cnninv_jax.rip.names import READINGS
from cnninv_jax.rip.ratios import Ratios, draw_ratios, ratios, ratios_of_code
from cnninv_jax.rip.tails import (
    deviation,
    failure_probability,
    latent_shapes,
    ratio_of_latent,
    ratio_tail,
    ratio_weights,
)
from cnninv_jax.rip.tilted import draw_code_for_tail, draw_tail, draw_tail_of_code

__all__ = [
    "READINGS",
    "Ratios",
    "TailProbability",
    "deviation",
    "draw_code_for_tail",
    "draw_ratios",
    "draw_ratios_of_codes",
    "draw_tail",
    "draw_tail_of_code",
    "failure_probability",
    "latent_shapes",
    "model_rip_energy_mean",
    "ratio_of_latent",
    "ratio_tail",
    "ratio_weights",
    "ratios",
    "ratios_of_code",
    "ratios_of_codes",
    "weighted_chi_square_tail",
    "with_energy",
]
