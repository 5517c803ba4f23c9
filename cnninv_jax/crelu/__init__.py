"""CReLU: what conv + CReLU features hold of their input, and analyses of filters (Shang et al. 2016)."""

from cnninv_jax.crelu.activation import Pooled as Pooled
from cnninv_jax.crelu.activation import avr as avr
from cnninv_jax.crelu.activation import crelu as crelu
from cnninv_jax.crelu.activation import inverse as inverse
from cnninv_jax.crelu.activation import max_pool as max_pool
from cnninv_jax.crelu.activation import winners as winners
from cnninv_jax.crelu.reconstruction import reconstruct as reconstruct
from cnninv_jax.crelu.reconstruction import reconstruct_pooled as reconstruct_pooled

__all__ = [
    "Pooled",
    "avr",
    "crelu",
    "inverse",
    "max_pool",
    "reconstruct",
    "reconstruct_pooled",
    "winners",
]
