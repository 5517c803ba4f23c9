"""One draw of the model-RIP ratios and reconstruction errors (Gilbert et al. 2017, Figs. 2 and 3)."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cnninv_jax import filters as ensembles
from cnninv_jax._numerics import check_products, float_dtype, norm, per_axis
from cnninv_jax._typing import Array, Float, Int, PerAxis, PRNGKeyArray
from cnninv_jax.operators import ConvOperator, analysis, conv_operator, synthesis_sparse
from cnninv_jax.rip import conditional
from cnninv_jax.sparsity import SparseCode, leading, project_sparse, sample_code, shuffle, support_size, window

Sampling: TypeAlias = Literal["auto", "plain", "conditional"]
Ratios: TypeAlias = dict[str, Float[Array, ""]]
#: Number of non-zeros of one draw, at most the static k; may be traced.
Active: TypeAlias = int | Int[Array, ""]


def ratios_of_code(op: ConvOperator, code: SparseCode, *, active: Active | None = None) -> Ratios:
    """Return the ratios and errors of x = W^T z for one code z in M_k (Gilbert et al. 2017, eq. 1, B.1 and Thm 3.3).

    Args:
        op: the layer W.
        code: z, k entries in k different blocks; its pooling window is that of M.
        active: only the first so many entries of the code count, and M keeps as many; None for all k. May be traced.

    Returns:
        The six readings of `READINGS`, in the wider dtype of filters and code; a code or signal of norm zero, or a
        traced ``active`` outside 1 .. k, gives NaN.

    Raises:
        ValueError: the code belongs to another (K, *n), or ``active`` is no integer or not between 1 and k.

    Cost: one analysis, K prod(n) M prod(ell) multiply-adds, and four sparse syntheses.
    """
    if active is not None:
        code = _first_entries(code, active)
    signal = synthesis_sparse(op, code)
    responses = analysis(op, signal)
    known = dataclasses.replace(code, values=responses[(code.filter_indices, *jnp.moveaxis(code.shifts, -1, 0))])
    kept = project_sparse(responses, code.size, pool=code.pool)
    if active is not None:
        known, kept = leading(known, active), leading(kept, active)
    cell = jnp.asarray(window(op.shifts, code.pool), kept.shifts.dtype)[None]
    unsampled = dataclasses.replace(kept, shifts=kept.shifts // cell * cell)

    def error(estimate: SparseCode) -> Float[Array, ""]:
        return norm(synthesis_sparse(op, estimate) - signal) / norm(signal)

    size = norm(code.values)
    return {
        "model_rip": norm(signal) / size,
        "restricted_gram": norm(known.values) / size,
        "full_gram": norm(responses) / size,
        "error_known_support": error(known),
        "error_model": error(kept),
        "error_fixed": error(unsampled),
    }


def ratios(
    key: PRNGKeyArray,
    op: ConvOperator,
    k: float,
    *,
    pool: PerAxis | None = None,
    values: str = "uniform",
    active: Active | None = None,
) -> Ratios:
    """Draw a code of M_k and return its ratios under a given layer: one draw of Gilbert et al. 2017, Fig. 3a.

    Args:
        key: typed key.
        op: the layer W; a new filter bank of equal shape compiles nothing anew.
        k: number of non-zeros, or a fraction of the code's entries; static.
        pool: pooling window of M_k; None for whole filter responses.
        values: distribution of the non-zeros, see `sample_code`.
        active: number of non-zeros of this draw, at most k; None for all k. It may be traced, so that one compiled
            program serves every number up to k: a uniformly random subset of the k entries is non-zero.

    Returns:
        The six readings of `READINGS`.

    Raises:
        ValueError: k is not between 1 and the number of blocks, or ``active`` not between 1 and k.
    """
    if active is None:
        code = sample_code(key, op.num_filters, op.shifts, k, pool=pool, values=values, dtype=op.dtype)
        return ratios_of_code(op, code)
    code_key, order_key = jax.random.split(key)
    code = sample_code(code_key, op.num_filters, op.shifts, k, pool=pool, values=values, dtype=op.dtype)
    # Entries come sorted by block: the first of them would be low blocks.
    return ratios_of_code(op, shuffle(order_key, code), active=active)


def draw_ratios(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    signal_shape: PerAxis,
    k: float,
    *,
    stride: PerAxis = 1,
    padding: str = "valid",
    pool: PerAxis | None = None,
    ensemble: str = "gaussian",
    normalize: bool = False,
    values: str = "uniform",
    sampling: Sampling = "auto",
    active: Active | None = None,
    products: str = "float32",
    dtype: jax.typing.DTypeLike | None = None,
) -> Ratios:
    """Draw filters and a code; return the ratios: one draw of Gilbert et al. 2017, Fig. 2.

    Args:
        key: typed key.
        num_filters: K.
        channels: M.
        length: filter length ell, one integer (1-D) or one per axis.
        signal_shape: signal length D, likewise.
        k: number of non-zeros, or a fraction of the code's entries; static.
        stride: t.
        padding: ``"valid"``, ``"same"`` or ``"circular"``.
        pool: pooling window of M_k; None for whole filter responses.
        ensemble: distribution of the filters' entries, a name in `cnninv_jax.filters.ENSEMBLES`.
        normalize: scale every filter to unit norm.
        values: distribution of the non-zeros of z, see `sample_code`.
        sampling: ``"plain"`` draws every filter. ``"conditional"`` draws the filters outside the support through
            their responses to x only: the same law at a third of the random numbers, for 1-D Gaussian filters that
            are not normalised, whole responses as blocks, valid padding, float32 or float64.
            ``"auto"`` takes it where it applies.
        active: number of non-zeros of this draw, at most k, see `ratios`; plain sampling only. The law is that of
            ``k=active``, other numbers come out.
        products: ``"float32"`` rounds nothing, ``"tf32"`` and ``"bfloat16"`` round the inputs of every product of W,
            see `conv_operator`; norms are float32 always. Other numbers come out, with a bias that
            `benchmarks.precision` measures.
        dtype: of filters and code; JAX's default float for None.

    Returns:
        The six readings of `READINGS`.

    Raises:
        ValueError: sizes that do not fit, an unknown name, or conditional sampling where it does not apply.
    """
    kind = float_dtype(dtype)
    chosen = check_products(products, kind)
    taps = (length,) if isinstance(length, int) else tuple(length)
    if ensemble not in ensembles.ENSEMBLES:
        raise ValueError(f"expected ensemble to be one of {', '.join(ensembles.ENSEMBLES)}, got {ensemble!r}")
    if sampling not in ("auto", "plain", "conditional"):
        raise ValueError(f"expected sampling to be 'auto', 'plain' or 'conditional', got {sampling!r}")
    if active is not None and sampling == "conditional":
        raise ValueError("conditional sampling takes no active: k is static there; use sampling='plain'")
    if sampling != "plain" and active is None:
        geometry, obstacle = _conditional_geometry(
            num_filters, channels, taps, signal_shape, k, stride, padding, pool, ensemble, normalize, values, kind
        )
        if geometry is not None:
            return conditional.draw(key, geometry._replace(products=chosen), values, kind)
        if sampling == "conditional":
            raise ValueError(f"conditional sampling does not apply: {obstacle}; use sampling='plain'")
    filter_key, code_key = jax.random.split(key)
    bank = ensembles.ENSEMBLES[ensemble](filter_key, num_filters, channels, taps, normalize=normalize, dtype=kind)
    op = conv_operator(bank, signal_shape, stride=stride, padding=padding, products=chosen)
    return ratios(code_key, op, k, pool=pool, values=values, active=active)


def _conditional_geometry(
    num_filters: int,
    channels: int,
    taps: tuple[int, ...],
    signal_shape: PerAxis,
    k: float,
    stride: PerAxis,
    padding: str,
    pool: PerAxis | None,
    ensemble: str,
    normalize: bool,
    values: str,
    dtype: jnp.dtype,
) -> tuple[conditional.Geometry | None, str]:
    """Return the sizes for conditional sampling, or None and why it does not apply."""
    if ensemble != "gaussian" or normalize:
        return None, "the filters must be i.i.d. Gaussian and not normalised"
    if jnp.finfo(dtype).bits < 32:
        return None, f"its random words need float32 or float64, got {dtype}"
    if len(taps) != 1 or padding != "valid" or pool is not None:
        return None, "it needs one spatial axis, valid padding and whole filter responses as blocks"
    if values not in ("uniform", "gaussian", "signs"):
        raise ValueError(f"expected values to be 'uniform', 'gaussian' or 'signs', got {values!r}")
    # The operator's own checks and arithmetic, without an array.
    shape = jax.ShapeDtypeStruct((num_filters, channels, *taps), jnp.float32)
    op = jax.eval_shape(lambda bank: conv_operator(bank, signal_shape, stride=stride), shape)
    size = support_size(k, op.code_shape)
    geometry = conditional.Geometry(
        num_filters, channels, taps[0], op.signal_shape[0], per_axis(stride, 1, "stride")[0], size
    )
    if not conditional.supported(geometry):
        return None, (
            f"it needs k < K <= {conditional.MAX_FILTERS}, n <= {conditional.MAX_SHIFTS} and 2 n <= M l, got "
            f"k = {size}, K = {num_filters}, n = {geometry.shifts}, M l = {channels * taps[0]}"
        )
    return geometry, ""


def _first_entries(code: SparseCode, active: Active) -> SparseCode:
    """Return the code with its first ``active`` entries; all NaN where a traced ``active`` is out of range."""
    # In NumPy where it is known: under jit, JAX's own constants are tracers too.
    known = None if isinstance(active, Tracer) else np.asarray(active)
    shape, dtype = (jnp.shape(active), jnp.result_type(active)) if known is None else (known.shape, known.dtype)
    if shape or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"expected active to be one integer, got shape {shape} and dtype {dtype}")
    kept = leading(code, active)
    if known is None:
        valid = (active >= 1) & (active <= code.size)
        return dataclasses.replace(kept, values=jnp.where(valid, kept.values, jnp.nan))
    if not 1 <= int(known) <= code.size:
        raise ValueError(f"expected 1 <= active <= k = {code.size}, got {int(known)}; raise k or lower active")
    return kept
