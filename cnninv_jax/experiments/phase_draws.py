"""One draw of the phase diagram of recovery: what one step of IHT and what converged IHT find of a code in M_k."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from cnninv_jax import filters
from cnninv_jax._numerics import norm
from cnninv_jax._typing import Array, Bool, Code, Float, Int, PRNGKeyArray, Signal
from cnninv_jax.operators import ConvOperator, analysis, conv_operator, synthesis, synthesis_sparse
from cnninv_jax.recovery import RESULTS, iht
from cnninv_jax.sparsity import leading, project, sample_code, shuffle

Outcome: TypeAlias = dict[str, Array]
#: The two ways of recovery, as prefixes of outputs.
METHODS = {"one_step": "one IHT step (a CNN layer)", "iht": "converged IHT"}


@dataclasses.dataclass(frozen=True)
class PhaseDraw:
    """Draw filters and a code z of M_k, and recover z from x = W^T z alone; equal ones share their programs.

    Attributes:
        num_filters: K.
        length: filter length ell.
        signal_length: D.
        stride: t.
        most: the largest k; compiled in, while k itself is data.
        values: law of the non-zeros, see `sample_code`.
        normalize: scale every filter to unit norm.
        threshold: relative errors of the signal below it count as accurate.
        step: step rule of converged IHT.
        num_steps: its most steps.
        tol: relative residual |x - W^T z| / |x| at which it has converged.
        precision: dtype of filters and code.
    """

    num_filters: int
    length: int
    signal_length: int
    stride: int
    most: int
    values: str
    normalize: bool
    threshold: float
    step: Literal["unit", "safe", "normalized"]
    num_steps: int
    tol: float
    precision: str

    def __call__(self, key: PRNGKeyArray, *, k: int | Int[Array, ""], M: int) -> Outcome:
        """Draw.

        Args:
            key: typed key.
            k: number of non-zeros, at most `most`; may be traced.
            M: channels; static.

        Returns:
            `scores` of M(W x, k), Alg. 1's first iteration at unit step, as ``one_step_...``, and of converged IHT as
            ``iht_...``; ``iht_not_converged`` where its result is anything but CONVERGED, ``iht_diverged`` where it is
            DIVERGED; ``iht_steps``.
        """
        filter_key, code_key, order_key = jax.random.split(key, 3)
        bank = filters.gaussian(
            filter_key, self.num_filters, M, self.length, normalize=self.normalize, dtype=self.precision
        )
        op = conv_operator(bank, self.signal_length, stride=self.stride)
        most = sample_code(code_key, self.num_filters, op.shifts, self.most, values=self.values, dtype=self.precision)
        # Entries come sorted by block: the first of them would be low blocks.
        code = leading(shuffle(order_key, most), k)
        x, z = synthesis_sparse(op, code), code.to_dense()
        converged = iht(op, x, k, step=self.step, num_steps=self.num_steps, tol=self.tol)
        estimates = {"one_step": project(analysis(op, x), k), "iht": converged.code}
        return {
            **{
                f"{method}_{name}": value
                for method, estimate in estimates.items()
                for name, value in scores(op, estimate, z, x, self.threshold).items()
            },
            "iht_not_converged": converged.result != RESULTS.CONVERGED,
            "iht_diverged": converged.result == RESULTS.DIVERGED,
            "iht_steps": converged.steps.astype(self.precision),
        }


def scores(op: ConvOperator, estimate: Code, z: Code, x: Signal, threshold: float) -> Outcome:
    """Return how well an estimate of z, from x = W^T z, does.

    Args:
        op: the layer W.
        estimate: estimated code, [K, *n].
        z: the code, [K, *n].
        x: the signal, [M, *D].
        threshold: largest relative error that does not count.

    Returns:
        ``support``: the non-zeros stand exactly where those of z stand. ``accurate``: |W^T estimate - x| / |x| is below
        the threshold. ``found``: part of the non-zeros of z where the estimate has one too. ``energy``: part of |z|^2
        that they hold. Entries that are not finite count as zero, and an error that is not finite as too large.
    """
    given, there = z != 0, (estimate != 0) & jnp.isfinite(estimate)
    both = jnp.where(given & there, z, 0.0)
    error = norm(synthesis(op, estimate) - x)
    return {
        "support": jnp.all(given == there),
        "accurate": error < threshold * norm(x),
        "found": _count(given & there, z.dtype) / _count(given, z.dtype),
        "energy": jnp.sum(jnp.square(both)) / jnp.sum(jnp.square(z)),
    }


def _count(mask: Bool[Array, " K *n"], dtype: jax.typing.DTypeLike) -> Float[Array, ""]:
    return jnp.sum(mask, dtype=dtype)
