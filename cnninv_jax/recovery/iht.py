"""Iterative hard thresholding for model-k-sparse codes (Gilbert et al. 2017, Alg. 1).

z_0 = 0, z_{i+1} = M(z_i + step W (x - W^T z_i), k). From z_0 = 0 one iteration at step 1 is a layer of a CNN:
convolution, max-pooling, unpooling (`cnninv_jax.recovery.cnn_layer`).

`iht` runs the iteration; `iht_init`, `iht_step` and `iht_terminate` are its parts, for loops of one's own.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, per_axis, wider
from cnninv_jax._typing import Array, Bool, Code, Float, Int, PerAxis, Scalar, Signal
from cnninv_jax.operators import ConvOperator, analysis, synthesis
from cnninv_jax.recovery import _gram
from cnninv_jax.recovery.results import DIVERGENCE, RESULTS
from cnninv_jax.recovery.steps import STEP_RULES, Step, bounded_loop, fixed_step, is_normalized, normalized_move
from cnninv_jax.sparsity import project, support_size
from cnninv_jax.sparsity.projection import Sparsity

Method: TypeAlias = Literal["auto", "direct", "gram"]
METHODS: tuple[Method, ...] = get_args(Method)


class IHTResult(NamedTuple):
    """What `iht` found.

    Attributes:
        code: z, [K, *n].
        residual_norms: |x - W^T z_i| / |x| of z_0 = 0 and every iterate, [num_steps + 1]; after the last step taken
            its value repeats.
        steps: iterations taken.
        result: a value of `RESULTS`.
    """

    code: Code
    residual_norms: Float[Array, " steps+1"]
    steps: Int[Array, ""]
    result: Int[Array, ""]

    @property
    def message(self) -> str:
        """How it ended, in words; for a batch one line for every way, with its number."""
        values, counts = np.unique(np.asarray(self.result), return_counts=True)
        lines = [RESULTS(int(value)).message for value in values]
        if self.result.ndim == 0:
            return lines[0]
        return "\n".join(f"{count} of {self.result.size}: {line}" for count, line in zip(counts, lines, strict=True))


class IHTState(NamedTuple):
    """An iterate: a pytree that `iht_step` maps to the next one.

    Attributes:
        code: z, [K, *n].
        residual: x - W^T z, [M, *D].
        norm: |x - W^T z| / |x|.
        signal_norm: |x|.
        steps: iterations taken.
        result: a value of `RESULTS`; COMPLETED while nothing has ended the iteration.
    """

    code: Code
    residual: Signal
    norm: Scalar
    signal_norm: Scalar
    steps: Int[Array, ""]
    result: Int[Array, ""]


def iht_init(op: ConvOperator, x: ArrayLike) -> IHTState:
    """Return z_0 = 0.

    Args:
        op: the layer W.
        x: signal, [M, *D].

    Raises:
        ValueError: x is not of shape (M, *D).
    """
    signal = _signal(op, x)
    size = _norm(signal)
    zero = jnp.zeros((), np.int32)
    result = jnp.where(size == 0, zero + RESULTS.ZERO_SIGNAL, jnp.where(jnp.isfinite(size), zero, RESULTS.NOT_FINITE))
    code = jnp.where(jnp.isfinite(size), jnp.zeros(op.code_shape, signal.dtype), jnp.nan)
    norm = jnp.where(jnp.isfinite(size), jnp.where(size == 0, 0.0, jnp.ones_like(size)), jnp.nan)
    return IHTState(code, signal, norm, size, zero, result)


def iht_step(
    op: ConvOperator,
    x: ArrayLike,
    k: Sparsity,
    state: IHTState,
    *,
    step: Step = "unit",
    pool: PerAxis | None = None,
    nonnegative: bool = False,
    differentiable: bool = False,
) -> IHTState:
    """Return the next iterate, z' = M(z + step W (x - W^T z), k) (Gilbert et al. 2017, Alg. 1, lines 4-6).

    An iterate that would pass `DIVERGENCE` is not taken: the state stays, with result DIVERGED. `iht_terminate` judges
    everything else.

    Args:
        op: the layer W.
        x: signal, [M, *D].
        k: number of non-zeros, see `project`; may be traced.
        state: the iterate z.
        step: see `iht`. ``"safe"`` is computed anew in every call: in a loop pass `fixed_step`'s number.
        pool: pooling window of M; None for the whole response.
        nonnegative: M keeps positive values only.
        differentiable: see `normalized_move`; of no effect with other steps.
    """
    signal = _signal(op, x)
    projection = functools.partial(project, k=k, pool=pool, nonnegative=nonnegative)
    gradient = analysis(op, state.residual)
    if is_normalized(step):
        code = normalized_move(op, state.code, gradient, projection, differentiable=differentiable)
    else:
        code = projection(state.code + fixed_step(op, step).astype(gradient.dtype) * gradient)
    residual = signal - synthesis(op, code)
    # A signal without a norm is judged already; its state must not change through a division by zero.
    sized = (state.signal_norm > 0) & jnp.isfinite(state.signal_norm)
    norm = _norm(residual) / jnp.where(sized, state.signal_norm, 1.0)
    taken = sized & (norm <= DIVERGENCE)
    grown = jnp.where(sized & ~taken, np.int32(RESULTS.DIVERGED), state.result)
    moved = IHTState(code, residual, norm, state.signal_norm, state.steps + 1, state.result)
    kept = state._replace(result=grown)
    return jax.tree.map(lambda new, old: jnp.where(taken, new, old), moved, kept)


def iht_terminate(state: IHTState, tol: Scalar | float | None = None) -> tuple[Bool[Array, ""], IHTState]:
    """Return whether the iteration has ended, and the state with its result.

    Args:
        state: an iterate.
        tol: relative residual |x - W^T z| / |x| to stop at; None for never.
    """
    if tol is not None:
        reached = (state.result == RESULTS.COMPLETED) & (state.norm <= jnp.asarray(tol).astype(state.norm.dtype))
        state = state._replace(result=jnp.where(reached, np.int32(RESULTS.CONVERGED), state.result))
    return state.result != RESULTS.COMPLETED, state


def iht(
    op: ConvOperator,
    x: ArrayLike,
    k: Sparsity,
    *,
    step: Step = "unit",
    num_steps: int = 50,
    tol: Scalar | float | None = None,
    pool: PerAxis | None = None,
    nonnegative: bool = False,
    method: Method = "auto",
) -> IHTResult:
    """Recover a model-k-sparse z with x = W^T z by iterative hard thresholding (Gilbert et al. 2017, Alg. 1).

    z_0 = 0, z_{i+1} = M(z_i + step W (x - W^T z_i), k).

    Works under ``jit``, ``vmap`` (over filters, signals, both) and ``grad``. Derivatives go along the path the
    iteration took, supports fixed, through a scan of num_steps turns: num_steps iterates are kept in memory.

    Args:
        op: the layer W.
        x: signal, [M, *D].
        k: number of non-zeros: integer, fraction of the entries, or traced integer.
        step: ``"unit"`` (1, the paper's), ``"safe"`` (1 / |W|^2: the residual never grows), ``"normalized"``
            (Blumensath and Davies 2010: chosen in every iteration, shrunk where the support changes), or a number.
        num_steps: most iterations; static.
        tol: relative residual |x - W^T z| / |x| to stop at; None takes all num_steps. May be traced. Under ``vmap``
            a slow lane holds the others, whose states stand still.
        pool: pooling window of M; None for the whole response.
        nonnegative: M keeps positive values only (a ReLU ahead of the pooling).
        method: ``"direct"`` multiplies by W and W^T in every iteration. ``"gram"`` uses the cross-correlations of the
            filters in the support, and finishes on the support alone once that provably stays: the same iterates to
            rounding, many times as fast on a CPU; one problem of a ``vmap`` after the other, so shard a batch over CPU
            devices to use all cores. ``"auto"``: gram on a CPU where it applies, see `gram_obstacle`.

    Returns:
        Code, residual norms, iterations taken and how it ended, in the wider dtype of filters and x.

    Raises:
        ValueError: x of another shape, a static k not between 1 and the number of blocks, an unknown step or method,
            num_steps or tol that is no positive number, or ``"gram"`` where it does not apply.

    Cost: direct, 2 K prod(n) M prod(ell) multiply-adds an iteration. Gram, K M l for every response of x and
        (2l - 1) K M l for every filter that ever enters the support, then k K n an iteration until the support stays.
    """
    signal = _signal(op, x)
    _check_sparsity(op, k, pool)
    (count,) = per_axis(num_steps, 1, "num_steps")
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {', '.join(METHODS)}, got {method!r}")
    if isinstance(step, str) and step not in STEP_RULES:
        raise ValueError(f"expected step to be one of {', '.join(STEP_RULES)} or a number, got {step!r}")
    limit = None if tol is None else _tolerance(tol, signal.dtype)
    obstacle = gram_obstacle(op, k, step=step, pool=pool, dtype=signal.dtype)
    if method == "gram" and obstacle:
        raise ValueError(f"method='gram' does not apply: {obstacle}; use method='direct'")
    pooling = None if pool is None else per_axis(pool, op.rank, "pool")
    use_gram = method == "gram" or (method == "auto" and not obstacle and jax.default_backend() == "cpu")
    size = None if is_normalized(step) else fixed_step(op, step).astype(signal.dtype)
    static = _Static(None if isinstance(k, jax.Array) else k, count, pooling, nonnegative, use_gram)
    result = _solve(static, op, signal, k if isinstance(k, jax.Array) else None, size, limit)
    return IHTResult(*result)


def gram_obstacle(
    op: ConvOperator,
    k: Sparsity,
    *,
    step: Step = "unit",
    pool: PerAxis | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> str:
    """Return why ``method="gram"`` of `iht` does not apply, in words; an empty string where it does.

    Cropped atoms (same padding) have no common cross-correlation; pooled blocks, two spatial axes and normalised steps
    have no fast path yet.
    """
    if isinstance(k, jax.Array):
        return "k is traced"
    if is_normalized(step):
        return "step='normalized' chooses a step in every iteration"
    if op.rank != 1 or op.padding != "valid" or pool is not None:
        return "it needs one spatial axis, valid padding and whole filter responses as blocks"
    if op.products != "float32" or (op.dtype if dtype is None else dtype) not in (jnp.float32, jnp.float64):
        return "it needs float32 or float64 with unrounded products"
    return _gram.too_large(_geometry(op, support_size(k, op.code_shape), 1, nonnegative=False))


class _Static(NamedTuple):
    """What is static of a solve; k is None where it is traced."""

    k: float | None
    num_steps: int
    pool: tuple[int, ...] | None
    nonnegative: bool
    gram: bool


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(
    static: _Static,
    op: ConvOperator,
    x: Signal,
    k: Int[Array, ""] | None,
    step: Scalar | None,
    tol: Scalar | None,
) -> tuple[Array, ...]:
    """Return the fields of an `IHTResult`; a step of None is the normalised one."""
    if static.gram:
        return _by_gram(static, op, x, step, tol)
    return _direct(static, op, x, k, step, tol, differentiable=False)


@_solve.defjvp
def _(static: _Static, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """Differentiate the same iteration written as a scan, which reverse mode passes."""
    return jax.jvp(functools.partial(_direct, static, differentiable=True), primals, tangents)


def _direct(
    static: _Static,
    op: ConvOperator,
    x: Signal,
    k: Int[Array, ""] | None,
    step: Scalar | None,
    tol: Scalar | None,
    *,
    differentiable: bool,
) -> tuple[Array, ...]:
    sparsity = static.k if k is None else k
    assert sparsity is not None
    rule: Step = "normalized" if step is None else step

    def turn(carry: tuple[IHTState, Array]) -> tuple[IHTState, Array]:
        state, norms = carry
        state = iht_step(
            op, x, sparsity, state,
            step=rule, pool=static.pool, nonnegative=static.nonnegative, differentiable=differentiable,
        )  # fmt: skip
        _, state = iht_terminate(state, tol)
        # From here on: a later iterate overwrites what follows it, the last one stays.
        later = jnp.arange(static.num_steps + 1, dtype=np.int32) >= state.steps
        return state, jnp.where(later, state.norm, norms)

    _, state = iht_terminate(iht_init(op, x), tol)
    norms = jnp.broadcast_to(state.norm[None], (static.num_steps + 1,))
    state, norms = bounded_loop(
        lambda carry: carry[0].result == RESULTS.COMPLETED, turn, (state, norms), static.num_steps, differentiable
    )
    if tol is not None:
        state = state._replace(result=jnp.where(state.result == RESULTS.COMPLETED, np.int32(RESULTS.CAP), state.result))
    return state.code, norms, state.steps, state.result


def _by_gram(
    static: _Static, op: ConvOperator, x: Signal, step: Scalar | None, tol: Scalar | None
) -> tuple[Array, ...]:
    assert static.k is not None
    assert step is not None
    geometry = _geometry(op, support_size(static.k, op.code_shape), static.num_steps, nonnegative=static.nonnegative)
    limit = jnp.full((), -1.0, x.dtype) if tol is None else tol
    found = _gram.solve(geometry, op.filters.astype(x.dtype), x, step, limit)
    size = found.signal_norm
    finite = jnp.isfinite(size)
    ended = jnp.where(
        found.diverged, np.int32(RESULTS.DIVERGED), np.int32(RESULTS.COMPLETED if tol is None else RESULTS.CAP)
    )
    ended = jnp.where(found.reached, np.int32(RESULTS.CONVERGED), ended)
    ended = jnp.where(finite, jnp.where(size == 0, np.int32(RESULTS.ZERO_SIGNAL), ended), np.int32(RESULTS.NOT_FINITE))
    norms = jnp.where(finite, found.norms, jnp.nan)
    code = jnp.where(finite, found.code, jnp.nan)
    return code, norms, found.steps, ended


def _geometry(op: ConvOperator, k: int, num_steps: int, *, nonnegative: bool) -> _gram.Geometry:
    return _gram.Geometry(
        op.num_filters,
        op.channels,
        op.length[0],
        op.signal_shape[0],
        op.stride[0],
        k,
        num_steps,
        nonnegative,
        DIVERGENCE,
    )


def _signal(op: ConvOperator, x: ArrayLike) -> Signal:
    """Return x in the wider dtype of filters and x; integers take the filters'."""
    value = jnp.asarray(x)
    signal = as_float(value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(op.dtype))
    if signal.shape != op.input_shape:
        raise ValueError(
            f"expected a signal of shape (M, *D) = {op.input_shape}, got {signal.shape}; iht takes one example, "
            "use jax.vmap for a batch"
        )
    return signal.astype(wider(wider(signal.dtype, op.dtype), np.float32))


def _check_sparsity(op: ConvOperator, k: Sparsity, pool: PerAxis | None) -> None:
    if not isinstance(k, jax.Array):
        support_size(k, op.code_shape, pool)
    elif k.ndim or not jnp.issubdtype(k.dtype, jnp.integer):
        raise ValueError(f"expected a traced k to be an integer scalar, got shape {k.shape} and dtype {k.dtype}")


def _tolerance(tol: Scalar | float, dtype: jnp.dtype) -> Scalar:
    if isinstance(tol, int | float | np.number) and not (np.isfinite(tol) and tol > 0):
        raise ValueError(f"expected tol to be a finite number above zero or None, got {tol}")
    value = jnp.asarray(tol)
    if value.ndim:
        raise ValueError(f"expected tol to be one number, got shape {value.shape}; use jax.vmap for several")
    return value.astype(dtype)


def _norm(array: Signal) -> Scalar:
    """Return |array|, with derivative zero (not NaN) at zero."""
    energy = jnp.sum(array * array)
    positive = energy > 0
    # NaN is not positive and must stay.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, energy, 1.0)), energy)
