"""Layered pursuits: every layer's sparse coding problem is solved, not thresholded once (Murray 2018, section 3).

X^(l-1) = A^(l) u with u = D^(l) X^(l) is a problem of `cnninv_jax.recovery`, by l1 minimisation or by iterative hard
thresholding; the code found, D^(l) u, is the signal of the next. Layered basis pursuit is that of Papyan, Romano and
Elad 2017. Against one pass (`dcsc.forward`) they pay with tens to hundreds of analyses and syntheses a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float
from cnninv_jax._typing import Array, Code, Float, Int, Signal
from cnninv_jax.dcsc.forward import Forward, as_signal, compare
from cnninv_jax.dcsc.model import Layer, Layers
from cnninv_jax.recovery.iht import iht
from cnninv_jax.recovery.lasso import lam_max, lasso
from cnninv_jax.recovery.steps import Step
from cnninv_jax.sparsity.thresholds import hard_threshold


class Layered(NamedTuple):
    """What a layered pursuit found, and how every layer's solver ended.

    Attributes:
        forward: codes, and how they compare with the truth, as of `dcsc.forward`.
        steps: steps of every layer's solver, [L].
        status: how it ended, [L]: a `recovery.LassoStatus` (basis pursuit) or `recovery.RESULTS` (IHT).
    """

    forward: Forward
    steps: Int[Array, " L"]
    status: Int[Array, " L"]


def layered_basis_pursuit(
    model: Layers,
    x: ArrayLike,
    lams: Float[ArrayLike, " L"],
    *,
    relative: bool = True,
    thresholds: Float[ArrayLike, " L"] | None = None,
    tol: float = 1e-4,
    max_steps: int = 2000,
    truth: Sequence[ArrayLike] | None = None,
) -> Layered:
    """Estimate layer after layer by argmin_u |X_hat^(l-1) - A^(l) u|^2 + lam_l |u|_1, X_hat^(l) = D^(l) u.

    Args:
        model: the layers, signs included.
        x: X^(0) + V^(0), [M, *D].
        lams: lam_l, [L].
        relative: lam_l is a fraction of the layer's own `recovery.lam_max`, the least that leaves nothing: such numbers
            mean the same at every layer and scale. Otherwise lam_l itself, in the units of `recovery.lasso` (no 1/2).
        thresholds: beta_l, [L]; entries of X_hat^(l) of at most beta_l are set to zero before the next layer. Solutions
            hold many small entries where lam is small. None keeps all.
        tol: relative duality gap of every layer.
        max_steps: most steps of a layer.
        truth: X^(0), ..., X^(L) of `dcsc.reverse_pass`, to compare with.

    Raises:
        ValueError: shapes that do not fit.

    Cost: two products with A^(l) a step.
    """
    depth = len(model)
    weights = _per_layer(lams, depth, "lams")
    betas = None if thresholds is None else _per_layer(thresholds, depth, "thresholds")

    def solve(number: int, layer: Layer, signal: Signal) -> tuple[Code, Array, Array]:
        lam = weights[number].astype(signal.dtype)
        found = lasso(
            layer.op, signal, lam * lam_max(layer.op, signal) if relative else lam, tol=tol, max_steps=max_steps
        )
        code = found.code if betas is None else hard_threshold(found.code, betas[number])
        return code, found.steps, found.status

    return _pursue(model, x, solve, truth)


def layered_iht(
    model: Layers,
    x: ArrayLike,
    ks: Sequence[int] | Int[ArrayLike, " L"],
    *,
    step: Step = "normalized",
    num_steps: int = 50,
    tol: float | None = 1e-5,
    truth: Sequence[ArrayLike] | None = None,
) -> Layered:
    """Estimate layer after layer by iterative hard thresholding, which keeps the k_l largest entries of the whole code.

    Args:
        model: the layers, signs included.
        x: X^(0) + V^(0), [M, *D].
        ks: k_l, non-zeros of X^(l), [L]; may be traced. Every entry is a block of its own (``pool=1``).
        step: see `recovery.iht`; shifted atoms are far from orthogonal, so that a unit step would diverge.
        num_steps: most steps of a layer.
        tol: relative residual to stop at; None takes all steps.
        truth: X^(0), ..., X^(L) of `dcsc.reverse_pass`, to compare with.

    Raises:
        ValueError: shapes that do not fit, or a static k_l that is none.

    Cost: two products with A^(l) a step, and with normalised steps two more where the support changes.
    """
    if np.ndim(ks) != 1 or len(ks) != len(model):  # type: ignore[arg-type]  # one axis: it has a length
        raise ValueError(f"expected one k for each of {len(model)} layers, got {ks}")
    counts: Any = ks

    def solve(number: int, layer: Layer, signal: Signal) -> tuple[Code, Array, Array]:
        found = iht(layer.op, signal, counts[number], step=step, num_steps=num_steps, tol=tol, pool=1)
        return found.code, found.steps, found.result

    return _pursue(model, x, solve, truth)


def _pursue(
    model: Layers,
    x: ArrayLike,
    solve: Callable[[int, Layer, Signal], tuple[Code, Array, Array]],
    truth: Sequence[ArrayLike] | None,
) -> Layered:
    """Solve layer after layer; ``solve`` returns u, steps and status."""
    signal = as_signal(model, x, truth)
    codes, steps, status = [], [], []
    for number, layer in enumerate(model):
        found, taken, ended = solve(number, layer, signal)
        signal = layer.signs.astype(found.dtype) * found
        codes.append(signal)
        steps.append(taken)
        status.append(ended)
    forward = Forward(tuple(codes)) if truth is None else compare(model, codes, truth, x)
    return Layered(forward, jnp.stack(steps), jnp.stack(status))


def _per_layer(values: ArrayLike, depth: int, name: str) -> Float[Array, " L"]:
    array = as_float(values)
    if array.shape != (depth,):
        raise ValueError(f"expected {name} of shape ({depth},), one per layer, got {array.shape}")
    return array
