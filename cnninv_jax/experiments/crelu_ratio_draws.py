"""Reconstruction ratios |x - x'| / |x| of Shang et al. 2016, appendix C: subspaces, pooling regions, whole inputs."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import filters
from cnninv_jax._numerics import norm
from cnninv_jax._random import normal
from cnninv_jax._typing import Array, FilterBank, Float, PRNGKeyArray, Signal
from cnninv_jax.crelu.activation import Pooled, crelu, max_pool, winners
from cnninv_jax.crelu.reconstruction import reconstruct, reconstruct_pooled
from cnninv_jax.operators import ConvOperator, analysis, conv_operator
from cnninv_jax.recovery.pseudo_inverse import PseudoInverseResult, PseudoInverseStatus, pseudo_inverse

Outcome: TypeAlias = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class SubspaceLaw:
    """|x_s| / |x| and |x - x_s| / |x| for uniform subspaces, by the paper's own reduction (proof of Theorem C.1).

    A uniform subspace of dimension K against a fixed x is the one of the first K coordinates against a uniform
    direction. One Gaussian vector serves all sizes: its first D coordinates have a uniform direction for every D.

    Attributes:
        sizes: pairs (D, K).
        precision: dtype.
    """

    sizes: tuple[tuple[int, int], ...]
    precision: str

    def __call__(self, key: PRNGKeyArray) -> Outcome:
        """Return ``kept`` = |x_s| / |x| and ``lost`` = |x - x_s| / |x|, one entry for each size."""
        squares = jnp.square(normal(key, (max(d for d, _ in self.sizes),), jnp.dtype(self.precision)))
        inside = jnp.stack([jnp.sum(squares[:k]) for _, k in self.sizes])
        outside = jnp.stack([jnp.sum(squares[k:d]) for d, k in self.sizes])
        return {"kept": jnp.sqrt(inside / (inside + outside)), "lost": jnp.sqrt(outside / (inside + outside))}


@dataclasses.dataclass(frozen=True)
class SubspaceDraw:
    """Algorithm 1 on a fixed x with K random Gaussian directions of R^D: one shift, every entry of x a channel.

    Attributes:
        dimension: D.
        directions: K.
        tol: relative residual at which the least squares stop.
        max_steps: most iterations.
        precision: dtype.
    """

    dimension: int
    directions: int
    tol: float
    max_steps: int
    precision: str

    def __call__(self, key: PRNGKeyArray) -> Outcome:
        """Return ``kept``, ``lost`` (see `SubspaceLaw`) and ``not_converged``."""
        bank = filters.gaussian(key, self.directions, self.dimension, 1, dtype=self.precision)
        op = conv_operator(bank, 1, method="patches")
        x = jnp.ones(op.input_shape, bank.dtype)
        found = reconstruct(op, crelu(analysis(op, x)), tol=self.tol, max_steps=self.max_steps)
        size = norm(x)
        return {
            "kept": norm(found.signal) / size,
            "lost": norm(x - found.signal) / size,
            "not_converged": _stopped(found),
        }


@dataclasses.dataclass(frozen=True)
class RegionDraw:
    """Algorithm 2 over one pooling region with Gaussian filters, on Gaussian signals.

    Attributes:
        num_filters: K.
        channels: M.
        length: ell.
        pool: side of the pooling window; the signal has sides pool - 1 + ell.
        tol: relative residual at which the least squares stop.
        max_steps: most iterations.
        precision: dtype.
    """

    num_filters: int
    channels: int
    length: int
    pool: int
    tol: float
    max_steps: int
    precision: str

    def __call__(self, key: PRNGKeyArray) -> Outcome:
        """Return `region_outcome` of a fresh bank and a fresh signal."""
        bank_key, signal_key, shift_key = jax.random.split(key, 3)
        bank = filters.gaussian(
            bank_key, self.num_filters, self.channels, (self.length,) * 2, dtype=self.precision
        )  # fmt: skip
        x = normal(signal_key, (self.channels, *patch_shape(bank, self.pool)), bank.dtype)
        return region_outcome(bank, x, shift_key, pool=self.pool, tol=self.tol, max_steps=self.max_steps)


def product_method() -> str:
    """Return how products are computed: on a CPU a convolution inside of a loop takes 100 times as long as patches."""
    return "patches" if jax.default_backend() == "cpu" else "auto"


def patch_shape(bank: FilterBank, pool: int, stride: int = 1) -> tuple[int, ...]:
    """Return the sides of what one pooling window sees: (pool - 1) t + ell."""
    return tuple((pool - 1) * stride + ell for ell in bank.shape[2:])


def region_outcome(
    bank: FilterBank,
    x: Signal,
    key: PRNGKeyArray,
    *,
    bias: Float[Array, " K"] | None = None,
    pool: int = 3,
    stride: int = 1,
    tol: float = 1e-5,
    max_steps: int = 500,
) -> Outcome:
    """Return what Algorithm 2 gives back of what one max-pooling window sees (Shang et al. 2016, Table S1).

    Args:
        bank: filters, [K, M, *ell].
        x: signal, [M, *((pool - 1) t + ell)].
        key: of the control's shifts.
        bias: b, added before the CReLU and taken off again.
        pool: side of the window.
        stride: t.
        tol: relative residual at which the least squares stop.
        max_steps: most iterations.

    Returns:
        ``ratio`` |x - x'| / |x| of Algorithm 2, and ``columns``, how many columns its W^_x has, at most 2 K;
        ``unselected``, the ratio of a control with K columns, every filter at one shift drawn for it, whatever its
        response; ``not_converged``, whether either stopped early. The ratios of x = 0 are NaN.
    """
    op = conv_operator(bank, x.shape[1:], stride=stride, method=product_method())
    responses = analysis(op, x)
    pooled = max_pool(responses if bias is None else responses + bias.reshape(-1, *(1,) * op.rank))
    found = reconstruct_pooled(op, pooled.features, pooled.switches, bias=bias, tol=tol, max_steps=max_steps)
    shifts = math.prod(op.shifts)
    drawn = jax.random.randint(key, (op.num_filters,), 0, shifts, dtype=np.int32)
    mask = jax.nn.one_hot(drawn, shifts, dtype=responses.dtype).reshape(op.code_shape)
    control = pseudo_inverse(op, responses, weights=mask, tol=tol, max_steps=max_steps)
    return {
        "ratio": _ratio(x, found),
        "columns": _columns(pooled, op, x.dtype),
        "unselected": _ratio(x, control),
        "not_converged": _stopped(found) | _stopped(control),
    }


@partial(jax.jit, static_argnames=("pool", "stride", "tol", "max_steps"))
def regions_outcome(
    bank: FilterBank,
    signal: Signal,
    key: PRNGKeyArray,
    corners: Array,
    bias: Float[Array, " K"] | None,
    *,
    pool: int,
    stride: int,
    tol: float,
    max_steps: int,
) -> Outcome:
    """Return `region_outcome` of patches of a signal, side by side.

    Args:
        bank: filters, [K, M, *ell].
        signal: what enters the layer, [M, *D].
        key: of the controls.
        corners: where the patches begin, [patches, rank] integers.
        bias: b, [K].
        pool: side of the window.
        stride: t.
        tol: relative residual at which the least squares stop.
        max_steps: most iterations.
    """
    size = (signal.shape[0], *patch_shape(bank, pool, stride))

    def one(corner: Array, own: PRNGKeyArray) -> Outcome:
        patch = jax.lax.dynamic_slice(signal, (np.int32(0), *corner.astype(np.int32)), size)
        return region_outcome(bank, patch, own, bias=bias, pool=pool, stride=stride, tol=tol, max_steps=max_steps)

    return jax.vmap(one)(corners, jax.random.split(key, corners.shape[0]))


@partial(jax.jit, static_argnames=("pool", "step", "tol", "max_steps"))
def whole_outcome(
    op: ConvOperator,
    x: Signal,
    bias: Float[Array, " K"] | None,
    *,
    pool: int,
    step: int,
    tol: float,
    max_steps: int,
) -> Outcome:
    """Return what Algorithm 2 gives back of a layer's whole input, all pooling windows together.

    Args:
        op: the layer.
        x: signal, [M, *D].
        bias: b, [K].
        pool: side of the windows.
        step: from window to window.
        tol: relative residual at which the least squares stop.
        max_steps: most iterations.

    Returns:
        ``ratio``; ``columns``, different winners per entry of x (a winner of several windows counts once);
        ``not_converged``.
    """
    responses = analysis(op, x)
    shifted = responses if bias is None else responses + bias.reshape(-1, *(1,) * op.rank)
    pooled = max_pool(shifted, pool, stride=step)
    found = reconstruct_pooled(op, pooled.features, pooled.switches, bias=bias, tol=tol, max_steps=max_steps)
    return {
        "ratio": _ratio(x, found),
        "columns": _columns(pooled, op, x.dtype) / x.size,
        "not_converged": _stopped(found),
    }


def _ratio(x: Signal, found: PseudoInverseResult) -> Array:
    """Return |x - x'| / |x|, NaN for x = 0."""
    return norm(x - found.signal) / norm(x)


def _stopped(found: PseudoInverseResult) -> Array:
    """Whether a least squares stopped before its tolerance; nothing to solve is no failure."""
    return (found.status != int(PseudoInverseStatus.CONVERGED)) & (found.status != int(PseudoInverseStatus.ZERO))


def _columns(pooled: Pooled, op: ConvOperator, dtype: jax.typing.DTypeLike) -> Array:
    _, counts = winners(pooled, op.code_shape)
    return jnp.sum(counts > 0, dtype=dtype)


__all__ = [
    "Outcome",
    "RegionDraw",
    "SubspaceDraw",
    "SubspaceLaw",
    "patch_shape",
    "product_method",
    "region_outcome",
    "regions_outcome",
    "whole_outcome",
]
