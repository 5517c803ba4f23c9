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
from cnninv_jax.sparsity.norms import patch_counts as patch_counts
from cnninv_jax.sparsity.norms import patch_norm as patch_norm
from cnninv_jax.sparsity.norms import patch_norms as patch_norms
from cnninv_jax.sparsity.norms import patch_sparsity as patch_sparsity
from cnninv_jax.sparsity.norms import stripe_counts as stripe_counts
from cnninv_jax.sparsity.norms import stripe_norm as stripe_norm
from cnninv_jax.sparsity.projection import max_pool as max_pool
from cnninv_jax.sparsity.projection import project as project
from cnninv_jax.sparsity.projection import project_fixed as project_fixed
from cnninv_jax.sparsity.projection import project_known as project_known
from cnninv_jax.sparsity.projection import project_sparse as project_sparse
from cnninv_jax.sparsity.projection import switches_of as switches_of
from cnninv_jax.sparsity.projection import unpool as unpool
from cnninv_jax.sparsity.stripes import greedy_gap as greedy_gap
from cnninv_jax.sparsity.stripes import project_stripes as project_stripes
from cnninv_jax.sparsity.stripes import project_stripes_exact as project_stripes_exact
from cnninv_jax.sparsity.thresholds import hard_threshold as hard_threshold
from cnninv_jax.sparsity.thresholds import relu_threshold as relu_threshold
from cnninv_jax.sparsity.thresholds import shifted_relu as shifted_relu
from cnninv_jax.sparsity.thresholds import soft_threshold as soft_threshold

__all__ = [
    "SparseCode",
    "SupportCount",
    "count_supports",
    "greedy_gap",
    "group_size",
    "hard_threshold",
    "leading",
    "max_pool",
    "num_blocks",
    "patch_counts",
    "patch_norm",
    "patch_norms",
    "patch_sparsity",
    "project",
    "project_fixed",
    "project_known",
    "project_sparse",
    "project_stripes",
    "project_stripes_exact",
    "regions",
    "relu_threshold",
    "sample_code",
    "sample_code_pair",
    "sample_codes",
    "shifted_relu",
    "shuffle",
    "sign_patterns",
    "soft_threshold",
    "stripe_counts",
    "stripe_norm",
    "support_size",
    "switches_of",
    "unpool",
    "window",
]
