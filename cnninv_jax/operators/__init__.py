"""The convolution matrix W of a layer and what its spectrum says (Gilbert et al. 2017, 2.2)."""

from cnninv_jax.operators.conv import ConvOperator as ConvOperator
from cnninv_jax.operators.conv import analysis as analysis
from cnninv_jax.operators.conv import as_matrix as as_matrix
from cnninv_jax.operators.conv import conv_operator as conv_operator
from cnninv_jax.operators.conv import from_flax_kernel as from_flax_kernel
from cnninv_jax.operators.conv import synthesis as synthesis
from cnninv_jax.operators.conv import synthesis_sparse as synthesis_sparse
from cnninv_jax.operators.conv import to_flax_kernel as to_flax_kernel

__all__ = [
    "ConvOperator",
    "analysis",
    "as_matrix",
    "conv_operator",
    "from_flax_kernel",
    "synthesis",
    "synthesis_sparse",
    "to_flax_kernel",
]
