"""The model restricted isometry property: ratios per draw (Gilbert et al. 2017, eq. 1, Figs. 2 and 3)."""

from cnninv_jax.rip.calibration import (
    CalibratedConstant,
    calibrate_C,
)
from cnninv_jax.rip.chi_square import TailProbability, weighted_chi_square_tail
from cnninv_jax.rip.concentration import (
    Clipped,
    equation_4,
    gaussian_concentration,
    gaussian_constant,
    gaussian_failure,
    lemma_a_1,
    measurement_ratio,
    theorem_3_1,
)
from cnninv_jax.rip.constant import RipConstant, constant
from cnninv_jax.rip.designs import draw_ratios_of_codes, model_rip_energy_mean, ratios_of_codes, with_energy
from cnninv_jax.rip.enumeration import exact_constant
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
from cnninv_jax.rip.theorems import (
    GramBounds,
    LayerBounds,
    compose_bounds,
    lemma_b_1,
    lemma_b_2,
    lemma_b_3,
    lemma_b_4,
    theorem_3_3,
    theorem_3_3_refined,
)
from cnninv_jax.rip.tilted import draw_code_for_tail, draw_tail, draw_tail_of_code

__all__ = [
    "READINGS",
    "CalibratedConstant",
    "Clipped",
    "GramBounds",
    "LayerBounds",
    "Ratios",
    "RipConstant",
    "TailProbability",
    "calibrate_C",
    "compose_bounds",
    "constant",
    "deviation",
    "draw_code_for_tail",
    "draw_ratios",
    "draw_ratios_of_codes",
    "draw_tail",
    "draw_tail_of_code",
    "equation_4",
    "exact_constant",
    "failure_probability",
    "gaussian_concentration",
    "gaussian_constant",
    "gaussian_failure",
    "latent_shapes",
    "lemma_a_1",
    "lemma_b_1",
    "lemma_b_2",
    "lemma_b_3",
    "lemma_b_4",
    "measurement_ratio",
    "model_rip_energy_mean",
    "ratio_of_latent",
    "ratio_tail",
    "ratio_weights",
    "ratios",
    "ratios_of_code",
    "ratios_of_codes",
    "theorem_3_1",
    "theorem_3_3",
    "theorem_3_3_refined",
    "weighted_chi_square_tail",
    "with_energy",
]
