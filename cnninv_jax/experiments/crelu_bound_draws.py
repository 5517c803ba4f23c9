"""One draw of Theorem A.5 (Shang et al. 2016): a bank, a signal, both sides of the bound and the steps of its proof."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from cnninv_jax import filters
from cnninv_jax._numerics import norm
from cnninv_jax._random import normal
from cnninv_jax._typing import Array, Float, PRNGKeyArray, Scalar
from cnninv_jax.crelu.frames import PooledFrames, any_signal_frames, pooled_frames, sample_shifts
from cnninv_jax.crelu.theorems import theorem_a5, theorem_a5_refined
from cnninv_jax.operators import conv_operator, synthesis_sparse

Outcome: TypeAlias = dict[str, Array]
Signals: TypeAlias = Literal["shifts", "any"]
#: A bound counts as violated beyond so many roundings of the eigenvalues that it is made of.
SLACK = 256


@dataclasses.dataclass(frozen=True)
class BoundDraw:
    """Draw filters and a signal and hold Theorem A.5 against Algorithm 2; equal ones share their programs.

    Attributes:
        num_filters: K.
        length: filter length ell.
        signal_length: D.
        k: filters that take part.
        stride: t.
        per_filter: shifts of each filter that takes part; 1 satisfies (S1).
        values: law of the coefficients, see `sample_shifts`.
        signals: ``"shifts"``, combinations of shifts; ``"any"``, white Gaussian signals or those that the call gets,
            with every shift taking part (`any_signal_frames`); k, per_filter and values then mean nothing.
        noise: size of a white Gaussian disturbance of the signal, relative to its norm; 0 for (S1).
        ensemble: law of the filters, a name of `filters.ENSEMBLES`.
        normalize: scale every filter to unit norm.
        precision: dtype of everything.
    """

    num_filters: int
    length: int
    signal_length: int
    k: int
    stride: int = 1
    per_filter: int = 1
    values: str = "gaussian"
    signals: Signals = "shifts"
    noise: float = 0.0
    ensemble: str = "gaussian"
    normalize: bool = True
    precision: str = "float32"

    def __call__(self, key: PRNGKeyArray, signals: Float[Array, "count M D"] | None = None) -> Outcome:
        """Draw.

        Args:
            key: typed key.
            signals: with ``signals="any"``, one of them is taken at random; None for Gaussian ones of one channel.

        Returns:
            Scalars: ``ratio``, |x - x'| / |x|; ``bound``, Theorem A.5; ``bound_every``, the same with a column for
            every filter; ``refined``, `theorem_a5_refined`; ``tightness``, ratio / bound (NaN for 0 / 0); ``smallest``
            and ``largest``, lambda_min and lambda~_max; ``margin`` and ``margin_refined``, see `verdicts`; ``step``,
            |W~_x^T x|^2 / |W_x^T x|^2; ``wrong_part`` and ``silent_part`` of the shifts that take part.
            Truths: ``violated``, ``violated_refined``; ``undefined``, lambda~_max < lambda_min; ``informative``, the
            bound is below 1; ``wrong_sign``, some shift answers with the wrong sign; ``step_fails``, step < 1.
        """
        bank_key, signal_key, noise_key, choice_key = jax.random.split(key, 4)
        channels = 1 if signals is None else signals.shape[1]
        bank = filters.ENSEMBLES[self.ensemble](
            bank_key, self.num_filters, channels, self.length, normalize=self.normalize, dtype=self.precision
        )
        op = conv_operator(bank, self.signal_length, stride=self.stride)
        if self.signals == "any":
            if signals is None:
                x = normal(signal_key, op.input_shape, op.dtype)
            else:
                x = signals[jax.random.randint(choice_key, (), 0, signals.shape[0])].astype(op.dtype)
            frames = any_signal_frames(op, x)
        else:
            code = sample_shifts(signal_key, op, self.k, per_filter=self.per_filter, values=self.values)
            x = synthesis_sparse(op, code)
            if self.noise:
                disturbance = normal(noise_key, op.input_shape, op.dtype)
                x = x + disturbance * (self.noise * norm(x) / norm(disturbance))
            frames = pooled_frames(op, code, x)
        return outcome(frames)


def outcome(frames: PooledFrames) -> Outcome:
    """Return what a draw hands on of the two sides of the theorem; see `BoundDraw`."""
    kind = frames.ratio.dtype
    bound = theorem_a5(frames.smallest, frames.largest)
    count = jnp.maximum(frames.taking_part, 1).astype(kind)
    rounding = SLACK * float(jnp.finfo(kind).eps)
    return {
        "ratio": frames.ratio,
        "bound": bound,
        "bound_every": theorem_a5(frames.smallest, frames.largest_every),
        "refined": theorem_a5_refined(frames.smallest, frames.largest_right),
        "tightness": frames.ratio / bound,
        "smallest": frames.smallest,
        "largest": frames.largest,
        **verdicts(frames),
        "undefined": frames.smallest > frames.largest * (1 + rounding),
        "informative": bound < 1,
        "wrong_part": frames.wrong.astype(kind) / count,
        "silent_part": frames.silent.astype(kind) / count,
        "wrong_sign": frames.wrong > 0,
        "step": frames.step,
        "step_fails": frames.step < 1 - rounding,
    }


def verdicts(frames: PooledFrames) -> Outcome:
    """Return by how much the bounds hold, and whether they are violated by more than rounding.

    Squares are compared: at lambda~_max = lambda_min a root would turn rounding eps into sqrt(eps).

    Returns:
        ``margin``: 1 - (1 + ratio^2) lambda_min / lambda~_max, and ``margin_refined``:
        1 - ratio^2 - lambda_min / lambda~_max with the columns of the right sign alone; 0 or more exactly where a bound
        holds, NaN where W~_x has no column. ``violated``, ``violated_refined``: below zero by more than rounding of the
        eigenvalues, `SLACK` roundings of (1 + lambda_min / lambda~_max).
    """
    square = jnp.square(frames.ratio)
    slack = SLACK * float(jnp.finfo(square.dtype).eps)

    def quotient(largest: Scalar) -> Scalar:
        some = largest > 0
        return jnp.where(some, frames.smallest / jnp.where(some, largest, 1.0), jnp.nan)

    printed, right = quotient(frames.largest), quotient(frames.largest_right)
    margins = {"margin": 1 - (1 + square) * printed, "margin_refined": 1 - square - right}
    return {
        **margins,
        "violated": _below(margins["margin"], slack * (1 + printed), frames.smallest),
        "violated_refined": _below(margins["margin_refined"], slack * (1 + right), frames.smallest),
    }


def _below(margin: Scalar, slack: Scalar, smallest: Scalar) -> Array:
    """Whether a margin is below zero; without any column W~_x the bound's square is -1 unless lambda_min = 0."""
    return jnp.where(jnp.isnan(margin), smallest > 0, margin < -slack)
