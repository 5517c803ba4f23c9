"""CReLU: what conv + CReLU features hold of their input, and analyses of filters (Shang et al. 2016)."""

from cnninv_jax.crelu import stimuli as stimuli
from cnninv_jax.crelu.activation import Pooled as Pooled
from cnninv_jax.crelu.activation import avr as avr
from cnninv_jax.crelu.activation import crelu as crelu
from cnninv_jax.crelu.activation import inverse as inverse
from cnninv_jax.crelu.activation import max_pool as max_pool
from cnninv_jax.crelu.activation import nearest as nearest
from cnninv_jax.crelu.activation import pool_features as pool_features
from cnninv_jax.crelu.activation import winners as winners
from cnninv_jax.crelu.arrangement import Faces as Faces
from cnninv_jax.crelu.arrangement import faces as faces
from cnninv_jax.crelu.filters import Correlations as Correlations
from cnninv_jax.crelu.filters import OutgoingCorrelation as OutgoingCorrelation
from cnninv_jax.crelu.filters import Pairing as Pairing
from cnninv_jax.crelu.filters import outgoing_correlation as outgoing_correlation
from cnninv_jax.crelu.filters import pairing as pairing
from cnninv_jax.crelu.frames import PooledFrames as PooledFrames
from cnninv_jax.crelu.frames import any_signal_frames as any_signal_frames
from cnninv_jax.crelu.frames import pooled_frames as pooled_frames
from cnninv_jax.crelu.frames import sample_shifts as sample_shifts
from cnninv_jax.crelu.invariance import Estimate as Estimate
from cnninv_jax.crelu.invariance import Firings as Firings
from cnninv_jax.crelu.invariance import count_firings as count_firings
from cnninv_jax.crelu.invariance import filter_mean as filter_mean
from cnninv_jax.crelu.invariance import firing_thresholds as firing_thresholds
from cnninv_jax.crelu.invariance import firings as firings
from cnninv_jax.crelu.invariance import global_rate as global_rate
from cnninv_jax.crelu.invariance import invariance_score as invariance_score
from cnninv_jax.crelu.invariance import layer_mean as layer_mean
from cnninv_jax.crelu.invariance import local_rate as local_rate
from cnninv_jax.crelu.joint import JointInversion as JointInversion
from cnninv_jax.crelu.joint import JointStatus as JointStatus
from cnninv_jax.crelu.joint import invert_jointly as invert_jointly
from cnninv_jax.crelu.layers import CReLULayer as CReLULayer
from cnninv_jax.crelu.layers import Forward as Forward
from cnninv_jax.crelu.layers import Inversion as Inversion
from cnninv_jax.crelu.layers import forward as forward
from cnninv_jax.crelu.layers import invert as invert
from cnninv_jax.crelu.rademacher import Complexity as Complexity
from cnninv_jax.crelu.rademacher import LayerBound as LayerBound
from cnninv_jax.crelu.rademacher import exact_complexities as exact_complexities
from cnninv_jax.crelu.rademacher import layer_complexity as layer_complexity
from cnninv_jax.crelu.rademacher import linear_supremum as linear_supremum
from cnninv_jax.crelu.rademacher import suprema as suprema
from cnninv_jax.crelu.rademacher import theorem_4_1 as theorem_4_1
from cnninv_jax.crelu.reconstruction import reconstruct as reconstruct
from cnninv_jax.crelu.reconstruction import reconstruct_pooled as reconstruct_pooled
from cnninv_jax.crelu.theorems import RatioLaw as RatioLaw
from cnninv_jax.crelu.theorems import TheoremC1 as TheoremC1
from cnninv_jax.crelu.theorems import projection_quantiles as projection_quantiles
from cnninv_jax.crelu.theorems import theorem_a5 as theorem_a5
from cnninv_jax.crelu.theorems import theorem_a5_refined as theorem_a5_refined
from cnninv_jax.crelu.theorems import theorem_c1 as theorem_c1

__all__ = [
    "CReLULayer",
    "Complexity",
    "Correlations",
    "Estimate",
    "Faces",
    "Firings",
    "Forward",
    "Inversion",
    "JointInversion",
    "JointStatus",
    "LayerBound",
    "OutgoingCorrelation",
    "Pairing",
    "Pooled",
    "PooledFrames",
    "RatioLaw",
    "TheoremC1",
    "any_signal_frames",
    "avr",
    "count_firings",
    "crelu",
    "exact_complexities",
    "faces",
    "filter_mean",
    "firing_thresholds",
    "firings",
    "forward",
    "global_rate",
    "invariance_score",
    "inverse",
    "invert",
    "invert_jointly",
    "layer_complexity",
    "layer_mean",
    "linear_supremum",
    "local_rate",
    "max_pool",
    "nearest",
    "outgoing_correlation",
    "pairing",
    "pool_features",
    "pooled_frames",
    "projection_quantiles",
    "reconstruct",
    "reconstruct_pooled",
    "sample_shifts",
    "stimuli",
    "suprema",
    "theorem_4_1",
    "theorem_a5",
    "theorem_a5_refined",
    "theorem_c1",
    "winners",
]
