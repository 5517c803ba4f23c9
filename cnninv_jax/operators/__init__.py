"""The convolution matrix W of a layer and what its spectrum says (Gilbert et al. 2017, 2.2)."""

from cnninv_jax.operators.angles import coherence as coherence
from cnninv_jax.operators.angles import welch_bound as welch_bound
from cnninv_jax.operators.conv import ConvOperator as ConvOperator
from cnninv_jax.operators.conv import analysis as analysis
from cnninv_jax.operators.conv import as_matrix as as_matrix
from cnninv_jax.operators.conv import conv_operator as conv_operator
from cnninv_jax.operators.conv import from_flax_kernel as from_flax_kernel
from cnninv_jax.operators.conv import synthesis as synthesis
from cnninv_jax.operators.conv import synthesis_sparse as synthesis_sparse
from cnninv_jax.operators.conv import to_flax_kernel as to_flax_kernel
from cnninv_jax.operators.spectrum import FrameBounds as FrameBounds
from cnninv_jax.operators.spectrum import frame_bounds as frame_bounds
from cnninv_jax.operators.spectrum import norm_squared as norm_squared

__all__ = [
    "ConvOperator",
    "FrameBounds",
    "analysis",
    "as_matrix",
    "coherence",
    "conv_operator",
    "frame_bounds",
    "from_flax_kernel",
    "norm_squared",
    "synthesis",
    "synthesis_sparse",
    "to_flax_kernel",
    "welch_bound",
]
