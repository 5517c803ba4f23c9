"""How long a step of iterative hard thresholding is: rules by name, and the safeguard of the normalised one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnninv_jax._numerics import wider
from cnninv_jax._typing import Array, Bool, Code, Float, Scalar, Signal
from cnninv_jax.operators import ConvOperator, norm_squared, synthesis

#: ``"unit"`` is 1, as in Gilbert et al. 2017, Alg. 1; ``"safe"`` is 1 / |W|^2, which never lets the residual grow;
#: ``"normalized"`` is chosen anew in every iteration (Blumensath and Davies 2010).
StepRule: TypeAlias = Literal["unit", "safe", "normalized"]
STEP_RULES: tuple[StepRule, ...] = get_args(StepRule)
#: A rule, or the step itself (may be traced).
Step: TypeAlias = StepRule | float | Scalar

#: c and kappa of Blumensath and Davies 2010, Alg. 1: a step is too long beyond (1 - c) |dz|^2 / |W^T dz|^2, and is
#: then divided by kappa (1 - c).
SAFETY, SHRINK = 0.01, 2.0
#: Most shrinkings of one iteration: a step 10^-9 times as long as the first one.
MOST_SHRINKINGS = 30

State = TypeVar("State")


def is_normalized(step: Step) -> bool:
    """Whether the step is chosen anew in every iteration."""
    return isinstance(step, str) and step == "normalized"


def fixed_step(op: ConvOperator, step: Step) -> Scalar:
    """Return a step that stays the same in all iterations, in the operator's dtype (float32 at least).

    Args:
        op: the layer W.
        step: ``"unit"``, ``"safe"`` or the step itself.

    Raises:
        ValueError: an unknown rule, ``"normalized"``, which has no fixed step, a step that is no scalar, or a Python
            number that is not finite and positive.

    Cost: none for ``"unit"``; `norm_squared` for ``"safe"``, 32 products by W and W^T.
    """
    dtype = wider(op.dtype, np.float32)
    if isinstance(step, str):
        if step == "unit":
            return jnp.ones((), dtype)
        if step == "safe":
            # Lanczos comes from below: its error is well below one part in a hundred.
            largest = 1.01 * norm_squared(op)
            return jnp.where(largest > 0, 1.0 / jnp.where(largest > 0, largest, 1.0), 1.0)
        raise ValueError(f"expected step to be one of {', '.join(STEP_RULES)} or a number, got {step!r}")
    if isinstance(step, int | float | np.number) and not (np.isfinite(step) and step > 0):
        raise ValueError(f"expected a finite step above zero, got {step}")
    value = jnp.asarray(step)
    if value.ndim or not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise ValueError(f"expected step to be one real number, got shape {value.shape} and dtype {value.dtype}")
    return value.astype(dtype)


def normalized_move(
    op: ConvOperator, code: Code, gradient: Code, projection: Callable[[Code], Code], *, differentiable: bool = False
) -> Code:
    """Return the next iterate of normalised iterative hard thresholding (Blumensath and Davies 2010, Alg. 1).

    mu = |g_S|^2 / |W^T g_S|^2 on the support S of the iterate (of M(g) where that is zero). Where M(z + mu g) has
    another support, mu is shrunk until mu <= (1 - c) |dz|^2 / |W^T dz|^2: then the residual does not grow.

    Args:
        op: the layer W.
        code: z.
        gradient: g = W (x - W^T z).
        projection: M(., k).
        differentiable: shrink in a loop of fixed length, through which reverse-mode derivatives pass.

    Cost: two products by W^T and a projection, and one of each for every shrinking.
    """
    nowhere = jnp.all(code == 0)
    start = jnp.where(nowhere, projection(gradient), code)
    support = start != 0
    restricted = jnp.where(support, gradient, 0.0)
    step = _ratio(_energy(restricted), _energy(synthesis(op, restricted)))

    def propose(step: Scalar) -> tuple[Code, Bool[Array, ""]]:
        proposal = projection(code + step * gradient)
        change = proposal - code
        limit = (1.0 - SAFETY) * _ratio(_energy(change), _energy(synthesis(op, change)))
        same = jnp.all((proposal != 0) == support)
        # A change that W^T does not see has no limit.
        return proposal, same | (step <= limit) | (limit == 0)

    def shrink(state: tuple[Scalar, Code, Array]) -> tuple[Scalar, Code, Array]:
        shorter = state[0] / (SHRINK * (1.0 - SAFETY))
        return shorter, *propose(shorter)

    state = (step, *propose(step))
    _, proposal, _ = bounded_loop(lambda state: ~state[2], shrink, state, MOST_SHRINKINGS, differentiable)
    return proposal


def bounded_loop(
    unfinished: Callable[[State], Bool[Array, ""]],
    body: Callable[[State], State],
    state: State,
    most: int,
    differentiable: bool,
) -> State:
    """Apply ``body`` while ``unfinished``, at most so many times.

    A ``while`` by default. Reverse-mode derivatives cannot pass one; for them a ``scan`` of all the turns, in which a
    finished state stays as it is.
    """
    if not differentiable:

        def going(carry: tuple[Array, State]) -> Bool[Array, ""]:
            return (carry[0] < most) & unfinished(carry[1])

        return lax.while_loop(going, lambda carry: (carry[0] + 1, body(carry[1])), (jnp.zeros((), np.int32), state))[1]

    def turn(state: State, _: None) -> tuple[State, None]:
        active = unfinished(state)
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), body(state), state), None

    return lax.scan(turn, state, None, length=most)[0]


def _energy(array: Code | Signal) -> Scalar:
    return jnp.sum(array * array)


def _ratio(numerator: Float[Array, ""], denominator: Float[Array, ""]) -> Any:
    """Return the ratio, 0 where it is 0/0; both branches are finite, so that derivatives are."""
    usable = denominator > 0
    return jnp.where(usable, numerator / jnp.where(usable, denominator, 1.0), 0.0)
