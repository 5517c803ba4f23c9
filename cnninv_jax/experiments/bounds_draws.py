"""What `gilbert-bounds` draws: both sides of every bound of App. B with exact constants, and the constants alone.

A draw has M, M/2, M/4, ... input channels, one of them at random: one compiled program sees banks from where the bounds
are sharp to where they say nothing. The unused channels are zeros and change neither W W^T nor any norm.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import filters as ensembles
from cnninv_jax import rip
from cnninv_jax._numerics import norm
from cnninv_jax._typing import Array, Bool, Float, Int
from cnninv_jax.operators import ConvOperator, analysis, conv_operator, synthesis_sparse
from cnninv_jax.sparsity import SparseCode, project_sparse, sample_code

#: The bounds, in the order of the outputs' axis: what people call them.
BOUNDS: Mapping[str, str] = {
    "b1_analysis": "Lemma B.1, eq. (5)",
    "b1_gram_high": "Lemma B.1, eq. (6)",
    "b1_gram_low": "Lemma B.1, eq. (7)",
    "b2": "Lemma B.2",
    "b3": "Lemma B.3",
    "b4": "Lemma B.4",
    "theorem_3_3": "Thm 3.3",
    "theorem_3_3_refined": "Thm 3.3, not rounded up",
    "known": "Thm 3.3, switches of z",
    "fixed": "Thm 3.3, naive unsampling",
}
#: Bounds whose right side of 1 or more is no better than an estimate of zero.
RELATIVE_ERRORS = ("b3", "b4", "theorem_3_3", "theorem_3_3_refined", "known", "fixed")
#: Worst-case sums that the two sides of a bound are made of, see `rounding`.
ROUNDING = 8.0


@dataclasses.dataclass(frozen=True)
class Bank:
    """Sizes of a random Gaussian layer with one of several numbers of channels."""

    K: int
    M: int
    ell: int
    D: int
    stride: int
    halvings: int
    dtype: str

    @property
    def channels(self) -> tuple[int, ...]:
        """The numbers of channels, M first."""
        return tuple(self.M >> step for step in range(self.halvings + 1))

    def draw(self, key: jax.Array) -> tuple[ConvOperator, Int[Array, ""]]:
        """Return a layer and which of `channels` it has."""
        step_key, bank_key = jax.random.split(key)
        step = jax.random.randint(step_key, (), 0, self.halvings + 1, np.int32)
        used = jnp.asarray(self.channels, np.int32)[step]
        bank = ensembles.gaussian(bank_key, self.K, self.M, self.ell, dtype=self.dtype)
        scale = jnp.sqrt(self.M / used.astype(bank.dtype))
        mask = jnp.where(jnp.arange(self.M, dtype=np.int32) < used, scale, 0.0)
        return conv_operator(bank * mask[None, :, None], self.D, stride=self.stride), step

    def by_channels(self, value: Float[Array, " *leaf"], step: Int[Array, ""]) -> Float[Array, " channels *leaf"]:
        """Return the value in the row of its number of channels; NaN, which statistics leave out, in the others."""
        rows = jnp.arange(self.halvings + 1, dtype=np.int32).reshape(-1, *(1,) * jnp.ndim(value))
        return jnp.where(rows == step, jnp.asarray(value)[None], jnp.nan)


@dataclasses.dataclass(frozen=True)
class BoundsDraw:
    """One draw: filters, a code, delta_k and delta_2k, both sides of every bound."""

    bank: Bank
    k: int
    values: str

    def __call__(self, key: jax.Array) -> dict[str, Array]:
        """Return, over the axis of `BOUNDS`, sides, looseness and verdicts; by channels, the constants and eq. (4)."""
        bank_key, code_key, support_key = jax.random.split(key, 3)
        op, step = self.bank.draw(bank_key)
        draw_code = functools.partial(sample_code, num_filters=op.num_filters, shifts=op.shifts, k=self.k)
        code = draw_code(code_key, values=self.values, dtype=op.dtype)
        dk, d2k = rip.exact_constant(op, self.k), rip.exact_constant(op, self.k, members=2)
        observed, bound, deviation = sides(op, code, draw_code(support_key, dtype=op.dtype), dk, d2k)
        slack = rounding(self.k, self.bank.M * self.bank.ell, op.dtype)
        theorem = bound[list(BOUNDS).index("theorem_3_3")]
        by_channels = functools.partial(self.bank.by_channels, step=step)
        return {
            "observed": observed,
            "bound": bound,
            **verdicts(observed, bound, slack),
            "delta_k": by_channels(dk),
            "delta_2k": by_channels(d2k),
            "deviation": by_channels(deviation),
            "theorem": by_channels(jnp.stack([theorem < jnp.inf, theorem < 1]).astype(op.dtype)),
        }


@dataclasses.dataclass(frozen=True)
class ConstantsDraw:
    """One draw of the filters alone: delta_k for several k."""

    bank: Bank
    k: tuple[int, ...]

    def __call__(self, key: jax.Array) -> dict[str, Array]:
        """Return delta_k by channels and k."""
        op, step = self.bank.draw(key)
        return {"delta_k": self.bank.by_channels(jnp.stack([rip.exact_constant(op, k) for k in self.k]), step)}


def verdicts(observed: Float[Array, " bounds"], bound: Float[Array, " bounds"], slack: float) -> dict[str, Array]:
    """Return what two sides say, over the axis of `BOUNDS`.

    Args:
        observed: left sides.
        bound: right sides; eq. (7) bounds from below.
        slack: rounding, relative to 1 plus the right side.

    Returns:
        ``looseness``, log10 of how far the bound is off, NaN where it is not finite and positive or nothing is
        observed; ``exceeded`` by any rounding error, ``violated`` by more than ``slack``; ``finite`` where the bound
        speaks, ``informative`` where it is better than an estimate of zero, ``informative_violated``; ``zero``
        observed.
    """
    flip = np.array([name == "b1_gram_low" for name in BOUNDS])
    relative = np.array([name in RELATIVE_ERRORS for name in BOUNDS])
    finite = jnp.isfinite(bound) & (bound > 0)
    seen = finite & (observed > 0)
    ratio = jnp.where(seen, bound, 1.0) / jnp.where(seen, observed, 1.0)
    gap = jnp.where(flip, bound - observed, observed - bound)
    violated = gap > slack * (1.0 + bound)
    informative = finite & jnp.where(relative, bound < 1, True)
    return {
        "looseness": jnp.where(seen, jnp.where(flip, -1.0, 1.0).astype(ratio.dtype) * jnp.log10(ratio), jnp.nan),
        "exceeded": gap > 0,
        "violated": violated,
        "finite": finite,
        "informative": informative,
        "informative_violated": informative & violated,
        "zero": observed == 0,
    }


def rounding(k: int, terms: int, dtype: jax.typing.DTypeLike) -> float:
    """Return by how much two sides, relative to 1 plus the right one, may be off by rounding.

    A sum of so many products is off by at most terms eps / 2 of the product of the norms: an entry of W W^T - I by
    terms eps, k of its rows by k times that, and every left side by less. `ROUNDING` covers the few such steps on
    either side. This is the worst case: errors that do not conspire are sqrt(terms) times smaller.
    """
    return ROUNDING * k * terms * float(jnp.finfo(dtype).eps)


def sides(
    op: ConvOperator, code: SparseCode, other: SparseCode, delta_k: Float[Array, ""], delta_2k: Float[Array, ""]
) -> tuple[Float[Array, " bounds"], Float[Array, " bounds"], Float[Array, ""]]:
    """Return the left and right sides of `BOUNDS` for one code, and | |W^T z|^2 / |z|^2 - 1|.

    All are relative to the norm that stands on the right of the paper's inequality: that of x in eq. (5) and Thm 3.3,
    of z in eqs. (6), (7), B.3 and B.4, of z outside of the support in B.2 (NaN where that is zero).

    Args:
        op: the layer.
        code: z in M_k; x = W^T z.
        other: its support is that of B.2, independent of z. Eq. (5) takes the support of M(W x, k), its worst.
        delta_k: exact constant over M_k.
        delta_2k: exact constant over M_k^2.
    """
    signal = synthesis_sparse(op, code)
    responses = analysis(op, signal)
    kept = project_sparse(responses, code.size)
    known = dataclasses.replace(code, values=_at(responses, code))
    fixed = dataclasses.replace(kept, shifts=jnp.zeros_like(kept.shifts))
    rest = dataclasses.replace(code, values=jnp.where(_member(code, other), 0.0, code.values))
    crossed = _at(analysis(op, synthesis_sparse(op, rest)), other)
    missed = jnp.where(_member(code, kept), 0.0, code.values)
    size, length = norm(code.values), norm(signal)

    def error(estimate: SparseCode) -> Float[Array, ""]:
        return norm(synthesis_sparse(op, estimate) - signal) / length

    gram = rip.lemma_b_1(delta_k)
    theorem = rip.theorem_3_3(delta_k, delta_2k)
    model = error(kept)
    pairs = {
        "b1_analysis": (norm(kept.values) / length, gram.analysis),
        "b1_gram_high": (norm(known.values) / size, gram.gram_high),
        "b1_gram_low": (norm(known.values) / size, gram.gram_low),
        "b2": (norm(crossed) / norm(rest.values), rip.lemma_b_2(delta_2k)),
        "b3": (norm(missed) / size, rip.lemma_b_3(delta_k, delta_2k)),
        "b4": (norm(kept.to_dense() - code.to_dense()) / size, rip.lemma_b_4(delta_k, delta_2k)),
        "theorem_3_3": (model, theorem),
        "theorem_3_3_refined": (model, rip.theorem_3_3_refined(delta_k, delta_2k)),
        "known": (error(known), theorem),
        "fixed": (error(fixed), theorem),
    }
    observed, bound = zip(*(pairs[name] for name in BOUNDS), strict=True)
    return jnp.stack(observed), jnp.stack(bound), jnp.abs(jnp.square(length / size) - 1.0)


def _at(dense: Float[Array, " K *n"], code: SparseCode) -> Float[Array, " k"]:
    return dense[(code.filter_indices, *jnp.moveaxis(code.shifts, -1, 0))]


def _member(code: SparseCode, support: SparseCode) -> Bool[Array, " k"]:
    """Return which entries of a code stand on another's support."""
    first, second = (_places(entry) for entry in (code, support))
    return jnp.any(first[:, None] == second[None, :], axis=1)


def _places(code: SparseCode) -> Int[Array, " k"]:
    n = code.code_shape[1:]
    flat = functools.reduce(
        lambda total, axis: total * n[axis] + code.shifts[:, axis], range(len(n)), jnp.zeros_like(code.blocks)
    )
    return code.filter_indices * math.prod(n) + flat
