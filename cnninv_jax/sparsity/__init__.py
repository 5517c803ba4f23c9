"""Model-k-sparse codes and the structured projection onto them (Gilbert et al. 2017, 2.3)."""

from cnninv_jax.sparsity.codes import SparseCode as SparseCode
from cnninv_jax.sparsity.codes import SupportCount as SupportCount
from cnninv_jax.sparsity.codes import count_supports as count_supports
from cnninv_jax.sparsity.codes import leading as leading
from cnninv_jax.sparsity.codes import num_blocks as num_blocks
from cnninv_jax.sparsity.codes import regions as regions
from cnninv_jax.sparsity.codes import sample_code as sample_code
from cnninv_jax.sparsity.codes import sample_code_pair as sample_code_pair
from cnninv_jax.sparsity.codes import shuffle as shuffle
from cnninv_jax.sparsity.codes import support_size as support_size
from cnninv_jax.sparsity.codes import window as window
from cnninv_jax.sparsity.designs import group_size as group_size
from cnninv_jax.sparsity.designs import sample_codes as sample_codes
from cnninv_jax.sparsity.designs import sign_patterns as sign_patterns
from cnninv_jax.sparsity.projection import max_pool as max_pool
from cnninv_jax.sparsity.projection import project as project
from cnninv_jax.sparsity.projection import project_fixed as project_fixed
from cnninv_jax.sparsity.projection import project_known as project_known
from cnninv_jax.sparsity.projection import project_sparse as project_sparse
from cnninv_jax.sparsity.projection import switches_of as switches_of
from cnninv_jax.sparsity.projection import unpool as unpool

__all__ = [
    "SparseCode",
    "SupportCount",
    "count_supports",
    "group_size",
    "leading",
    "max_pool",
    "num_blocks",
    "project",
    "project_fixed",
    "project_known",
    "project_sparse",
    "regions",
    "sample_code",
    "sample_code_pair",
    "sample_codes",
    "shuffle",
    "sign_patterns",
    "support_size",
    "switches_of",
    "unpool",
    "window",
]
