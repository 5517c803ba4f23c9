"""The model restricted isometry property: ratios per draw (Gilbert et al. 2017, eq. 1, Figs. 2 and 3)."""

from cnninv_jax.rip.names import READINGS
from cnninv_jax.rip.ratios import Ratios, draw_ratios, ratios, ratios_of_code

__all__ = ["READINGS", "Ratios", "draw_ratios", "ratios", "ratios_of_code"]
