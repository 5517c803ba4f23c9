"""The readings of Gilbert et al. 2017, Fig. 2, by name."""

from __future__ import annotations

#: Output name -> what it is. (a), (b), (c) are the panels of the figure; the paper leaves open which reading it drew.
READINGS = {
    "model_rip": "(a) |W^T z| / |z|",
    "restricted_gram": "(b) |W_S W^T z| / |z|, S the support of z",
    "full_gram": "(b) |W W^T z| / |z|",
    "error_known_support": "(c) |W^T M(W x) - x| / |x|, support of z known",
    "error_model": "(c) |W^T M(W x, k) - x| / |x|, own max-pooling switches",
    "error_fixed": "(c) |W^T M_fixed(W x, k) - x| / |x|, naive unsampling",
}
