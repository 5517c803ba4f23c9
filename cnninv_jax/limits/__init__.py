"""Limits of infinitely wide random CNNs, finite draws of them, and the theorems between (Random DCN, Sec. 5)."""

from cnninv_jax.limits.laws import FilterLaw, Moments
from cnninv_jax.limits.layers import AvgPool, ChannelMean, Conv, L2Pool, Upsample

__all__ = ["AvgPool", "ChannelMean", "Conv", "FilterLaw", "L2Pool", "Moments", "Upsample"]
