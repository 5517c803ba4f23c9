"""Layers of a CNN as iterations of hard thresholding, one and several (Gilbert et al. 2017, 2.3 and 3).

A layer is convolution, max-pooling over blocks, and the k largest blocks; unpooling puts the values back at their
switches, which is one iteration of `iht` from zero. Several layers compose as in a CNN: what a layer hands on is the
signal of the next, and the way back unpools at the switches of the way forth.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._typing import Array, Code, Float, Int, PerAxis, Scalar, Signal
from cnninv_jax.operators import ConvOperator, analysis, synthesis
from cnninv_jax.recovery.iht import IHTResult, Method, iht
from cnninv_jax.recovery.steps import Step
from cnninv_jax.sparsity import max_pool, project, regions, support_size, switches_of, unpool
from cnninv_jax.sparsity.projection import Sparsity

#: What a layer hands on to the next: its pooled values, as a CNN does, or its code.
Feed: TypeAlias = Literal["pooled", "code"]
FEEDS: tuple[Feed, ...] = get_args(Feed)


class CNNLayer(NamedTuple):
    """What a layer computes.

    Attributes:
        code: the kept values at their switches, zeros elsewhere: M(W x, k), [K, *n].
        pooled: the kept values, zeros for other blocks, [K, *regions].
        switches: flat index into n of every block's winner, kept or not, [K, *regions].
    """

    code: Code
    pooled: Float[Array, " K *regions"]
    switches: Int[Array, " K *regions"]


class LayersResult(NamedTuple):
    """Codes of several layers, and the ways back.

    Attributes:
        layers: what `iht` found in every layer, the first layer first.
        signals: x_l, the signal of every layer: x, then what the layer below handed on.
        errors: |x_l - W_l^T z_l| / |x_l| of every layer by itself, [L].
        reconstructions: estimates of the x_l from the top code alone, through W^T and unpooling, the first being that
            of x.
        composed_errors: |x_l - reconstruction| / |x_l|, [L]; the top layer's equals its own error.
    """

    layers: tuple[IHTResult, ...]
    signals: tuple[Signal, ...]
    errors: Float[Array, " L"]
    reconstructions: tuple[Signal, ...]
    composed_errors: Float[Array, " L"]


def cnn_layer(
    op: ConvOperator, x: ArrayLike, k: Sparsity, *, pool: PerAxis | None = None, nonnegative: bool = False
) -> CNNLayer:
    """Return convolution, max-pooling, the k largest, unpooling: a layer (Gilbert et al. 2017, Alg. 1, lines 4-6).

    Its code equals one step of `iht` from z = 0 at step 1, M(W x, k).

    Args:
        op: the layer W.
        x: signal, [M, *D].
        k: blocks kept: integer, fraction of the entries of the code, or traced integer.
        pool: pooling window; None for whole responses.
        nonnegative: a ReLU ahead of the pooling.

    Raises:
        ValueError: x of another shape, or a static k not between 1 and the number of blocks.
    """
    values, switches = max_pool(analysis(op, x), pool, nonnegative=nonnegative)
    # Among pooled values every entry is a block of its own.
    number = k if isinstance(k, Array) else support_size(k, op.code_shape, pool)
    pooled = project(values, number, pool=1)
    return CNNLayer(unpool(pooled, switches, op.shifts), pooled, switches)


def iht_layers(
    ops: Sequence[ConvOperator],
    x: ArrayLike,
    ks: Sequence[Sparsity],
    *,
    pools: Sequence[PerAxis | None] | None = None,
    feed: Feed = "pooled",
    step: Step = "unit",
    num_steps: int = 50,
    tol: Scalar | float | None = None,
    nonnegative: bool = False,
    method: Method = "auto",
) -> LayersResult:
    """Encode layer by layer with model IHT and go back from the top (the future work of Gilbert et al. 2017, 2.2).

    z_l = IHT(x_l, k_l), x_{l+1} = the pooled values of z_l. Back: x^_L = W_L^T z_L, then z^_l = x^_{l+1} at the
    switches of z_l, in the blocks that are non-zero there, and x^_l = W_l^T z^_l. With ``num_steps=1`` the way forth is
    a CNN and the way back its unpooling decoder.

    Args:
        ops: the layers; each takes signals of the shape that the one below hands on: (K, *regions) of pooled
            values, (K, *n) of codes.
        x: signal of the first, [M, *D].
        ks: blocks kept in every layer, see `iht`.
        pools: pooling window of every layer; None (or an entry of None) for whole responses.
        feed: what a layer hands on, ``"pooled"`` values or the ``"code"`` with its zeros.
        step: see `iht`; a rule is applied to each layer's own operator.
        num_steps: most iterations of a layer.
        tol: relative residual at which a layer stops.
        nonnegative: see `iht`.
        method: see `iht`.

    Raises:
        ValueError: no layer, another number of ks or pools than of layers, an unknown feed, or a layer whose signal has
            another shape than the one below hands on.
    """
    windows = _check(ops, ks, pools, feed)
    layers: list[IHTResult] = []
    signals: list[Any] = [x]
    switches: list[Array] = []
    for op, k, pool in zip(ops, ks, windows, strict=True):
        found = iht(
            op, signals[-1], k,
            step=step, num_steps=num_steps, tol=tol, pool=pool, nonnegative=nonnegative, method=method,
        )  # fmt: skip
        layers.append(found)
        switches.append(switches_of(found.code, pool))
        signals.append(found.code if feed == "code" else max_pool(found.code, pool)[0])
    signals[0] = jnp.asarray(x).astype(layers[0].code.dtype)
    errors = [
        _relative(synthesis(op, found.code), signal)
        for op, found, signal in zip(ops, layers, signals[:-1], strict=True)
    ]
    back = [synthesis(ops[-1], layers[-1].code)]
    for op, found, switch in zip(ops[-2::-1], layers[-2::-1], switches[-2::-1], strict=True):
        above = back[-1]
        # Zeros of the code are known to be zeros: the switches say which values there were.
        code = unpool(above, switch, op.shifts) if feed == "pooled" else jnp.where(found.code != 0, above, 0.0)
        back.append(synthesis(op, code))
    back.reverse()
    composed = [_relative(estimate, signal) for estimate, signal in zip(back, signals[:-1], strict=True)]
    return LayersResult(tuple(layers), tuple(signals[:-1]), jnp.stack(errors), tuple(back), jnp.stack(composed))


def _check(
    ops: Sequence[ConvOperator], ks: Sequence[Sparsity], pools: Sequence[PerAxis | None] | None, feed: str
) -> list[PerAxis | None]:
    """Return the pooling window of every layer."""
    if feed not in FEEDS:
        raise ValueError(f"expected feed to be one of {', '.join(FEEDS)}, got {feed!r}")
    windows: list[PerAxis | None] = list(pools) if pools is not None else [None for _ in ops]
    if not ops or len(ks) != len(ops) or len(windows) != len(ops):
        raise ValueError(
            f"expected at least one layer, and one k and one pooling window for each, got {len(ops)} layers, "
            f"{len(ks)} ks and {len(windows)} pools"
        )
    for number, (below, above) in enumerate(itertools.pairwise(ops), start=1):
        handed = below.code_shape
        if feed == "pooled":
            handed = (below.num_filters, *regions(below.shifts, windows[number - 1]))
        if above.input_shape != handed:
            raise ValueError(
                f"expected layer {number + 1} to take signals of shape {handed}, which layer {number} hands on "
                f"(feed={feed!r}, pool={windows[number - 1]}), got an operator for {above.input_shape}"
            )
    return windows


def _relative(estimate: Signal, signal: Signal) -> Scalar:
    """Return |estimate - signal| / |signal|; 0 for a zero signal rebuilt as zero."""
    difference, size = (jnp.sqrt(jnp.sum(jnp.square(array))) for array in (estimate - signal, signal))
    return jnp.where(size == 0, difference, difference / jnp.where(size == 0, 1.0, size))
