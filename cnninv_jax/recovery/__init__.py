"""Recovery: codes from signals (Gilbert et al. 2017, Algs. 1 and 2), layers as an iteration, signals from responses."""

from cnninv_jax.recovery.iht import IHTResult as IHTResult
from cnninv_jax.recovery.iht import IHTState as IHTState
from cnninv_jax.recovery.iht import gram_obstacle as gram_obstacle
from cnninv_jax.recovery.iht import iht as iht
from cnninv_jax.recovery.iht import iht_init as iht_init
from cnninv_jax.recovery.iht import iht_step as iht_step
from cnninv_jax.recovery.iht import iht_terminate as iht_terminate
from cnninv_jax.recovery.lasso import DualityGap as DualityGap
from cnninv_jax.recovery.lasso import LassoResult as LassoResult
from cnninv_jax.recovery.lasso import LassoStatus as LassoStatus
from cnninv_jax.recovery.lasso import duality_gap as duality_gap
from cnninv_jax.recovery.lasso import lam_max as lam_max
from cnninv_jax.recovery.lasso import lasso as lasso
from cnninv_jax.recovery.layers import CNNLayer as CNNLayer
from cnninv_jax.recovery.layers import LayersResult as LayersResult
from cnninv_jax.recovery.layers import cnn_layer as cnn_layer
from cnninv_jax.recovery.layers import iht_layers as iht_layers
from cnninv_jax.recovery.pseudo_inverse import PseudoInverseResult as PseudoInverseResult
from cnninv_jax.recovery.pseudo_inverse import PseudoInverseStatus as PseudoInverseStatus
from cnninv_jax.recovery.pseudo_inverse import pseudo_inverse as pseudo_inverse
from cnninv_jax.recovery.results import RESULTS as RESULTS
from cnninv_jax.recovery.sparse_code import SparseCodeResult as SparseCodeResult
from cnninv_jax.recovery.sparse_code import sparse_code as sparse_code
from cnninv_jax.recovery.steps import fixed_step as fixed_step

__all__ = [
    "RESULTS",
    "CNNLayer",
    "DualityGap",
    "IHTResult",
    "IHTState",
    "LassoResult",
    "LassoStatus",
    "LayersResult",
    "PseudoInverseResult",
    "PseudoInverseStatus",
    "SparseCodeResult",
    "cnn_layer",
    "duality_gap",
    "fixed_step",
    "gram_obstacle",
    "iht",
    "iht_init",
    "iht_layers",
    "iht_step",
    "iht_terminate",
    "lam_max",
    "lasso",
    "pseudo_inverse",
    "sparse_code",
]
