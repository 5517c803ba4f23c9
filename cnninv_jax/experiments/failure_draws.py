"""What `cnninv failure` draws: weighted ratios, plain ones, the score of splitting, and codes for the closed form."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax

from cnninv_jax import montecarlo as mc
from cnninv_jax import rip
from cnninv_jax.sparsity import SparseCode


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes and law of the simulation; the defaults are those of Gilbert et al. 2017, Fig. 2."""

    K: int = 96
    """Number of filters; only those of the support matter."""
    M: int = 32
    """Input channels."""
    ell: int = 5
    """Filter length."""
    D: int = 32
    """Signal length."""
    k: int = 10
    """Non-zeros of the code z, at most one per filter."""
    stride: int = 1
    """Stride t of the convolution; (D - ell) / t must be an integer."""
    values: Literal["uniform", "gaussian", "signs"] = "uniform"
    """Law of the non-zeros: uniform on [-1, 1], N(0, 1), or +-1."""
    side: Literal["upper", "lower", "both"] = "both"
    """Which failure counts: |W^T z|^2 above (1 + delta) |z|^2, below (1 - delta) |z|^2, or either."""

    @property
    def shifts(self) -> int:
        """Shifts n of a filter."""
        return (self.D - self.ell) // self.stride + 1


@dataclasses.dataclass(frozen=True)
class FailureParameters(Setting):
    """The setting, the delta of eq. (1), and whether the code is random too."""

    delta: float = 0.45
    """How far |W^T z|^2 / |z|^2 may be from 1."""
    code: Literal["random", "fixed"] = "random"
    """random: a new code in every draw, as in Fig. 2; fixed: one code, drawn from the seed, for which a closed form
    exists."""

    @property
    def setting(self) -> Setting:
        """What shapes the computation; delta is data."""
        return Setting(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Setting)})


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["deltas", "code"], meta_fields=["setting", "candidates", "dtype"]
)
@dataclasses.dataclass(frozen=True)
class WeightedDraw:
    """One weighted draw: log contribution of a failure, and the log weight."""

    deltas: jax.Array
    code: SparseCode | None
    setting: Setting
    candidates: int
    dtype: str

    def __call__(self, key: jax.Array) -> dict[str, jax.Array]:
        """Return ``failure`` and ``weight``, both logarithms for `WeightedProportion`."""
        s = self.setting
        if self.code is None:
            drawn = rip.draw_tail(key, s.K, s.M, s.ell, s.D, s.k, self.deltas, side=s.side, stride=s.stride,
                                  values=s.values, candidates=self.candidates, dtype=self.dtype)  # fmt: skip
        else:
            drawn = rip.draw_tail_of_code(key, self.code, s.M, s.ell, self.deltas, side=s.side, stride=s.stride)
        return {"failure": mc.log_contribution(drawn["failure"], drawn["log_weight"]), "weight": drawn["log_weight"]}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["code"], meta_fields=["setting"])
@dataclasses.dataclass(frozen=True)
class Score:
    """How far off the ratio is, as a function of normal numbers; eq. (1) fails where it exceeds delta."""

    code: SparseCode | None
    setting: Setting

    def __call__(self, latent: Mapping[str, jax.Array]) -> jax.Array:
        """Return the deviation of one latent."""
        s = self.setting
        ratio = rip.ratio_of_latent(latent, s.D, stride=s.stride, values=s.values, code=self.code)
        return rip.deviation(ratio, s.side)

    def latent(self, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the template of the latent; a given code leaves the filters only."""
        shapes = rip.latent_shapes(self.setting.M, self.setting.ell, 1, self.setting.k, dtype)
        return shapes if self.code is None else {"filters": shapes["filters"]}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["deltas", "score"], meta_fields=["dtype"])
@dataclasses.dataclass(frozen=True)
class PlainDraw:
    """One plain draw: does eq. (1) fail, for several deltas at once?"""

    deltas: jax.Array
    score: Score
    dtype: str

    def __call__(self, key: jax.Array) -> dict[str, jax.Array]:
        """Return ``failure``, one truth value per delta."""
        shapes = self.score.latent(self.dtype)
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
        latent = {name: jax.random.normal(keys[name], aval.shape, aval.dtype) for name, aval in shapes.items()}
        return {"failure": self.score(latent)[None] > self.deltas}


@functools.lru_cache(maxsize=8)
def code_proposer(setting: Setting, candidates: int, dtype: str) -> Callable[..., tuple[SparseCode, jax.Array]]:
    """Return the compiled draw of codes, one program for all deltas."""
    s = setting

    def one(key: jax.Array, delta: jax.Array) -> tuple[SparseCode, jax.Array]:
        return rip.draw_code_for_tail(key, s.K, s.M, s.ell, s.D, s.k, delta, side=s.side, stride=s.stride,
                                      values=s.values, candidates=candidates, dtype=dtype)  # fmt: skip

    return jax.jit(jax.vmap(one, in_axes=(0, None)))
