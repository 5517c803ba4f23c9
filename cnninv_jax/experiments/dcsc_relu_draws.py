"""What the study of ReLUs draws: supports of the deepest code and signs, and what every projection makes of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import dcsc
from cnninv_jax._typing import Array, Code, PRNGKeyArray
from cnninv_jax.dcsc.forward import Forward, Projection, default_thresholds, forward, supports
from cnninv_jax.dcsc.generate import coherences, generate
from cnninv_jax.sparsity.norms import stripe_norm
from cnninv_jax.sparsity.thresholds import relu_threshold

Setting: TypeAlias = Literal["random", "mixed", "positive"]
#: Signs of D^(l) and of the deep atoms; X^(L) >= 0 in all of them.
SETTINGS: dict[Setting, str] = {
    "random": "D random, deep atoms of both signs",
    "mixed": "D = I, deep atoms of both signs",
    "positive": "D = I, deep atoms non-negative: X ≥ 0",
}


def crelu(h: Code, beta: Any) -> Code:
    """Return what the two halves of a CReLU keep, each h or -h where it exceeds beta, put together with their signs."""
    return relu_threshold(h, beta) - relu_threshold(-h, beta)


#: Projections by name, with what they do; those of `SHRINKING` subtract the threshold from what they keep.
PROJECTIONS: dict[str, tuple[str | Projection, str]] = {
    "hard": ("hard", "hard threshold: h where |h| > beta"),
    "relu": ("relu", "one-sided: h where h > beta"),
    "crelu": (crelu, "CReLU: both one-sided halves"),
    "soft": ("soft", "soft threshold"),
    "shifted_relu": ("shifted_relu", "ReLU with bias: max(h - beta, 0)"),
    "shifted_crelu": ("crelu", "CReLU with bias: both halves"),
}
SHRINKING = ("soft", "shifted_relu", "shifted_crelu")
#: Two-sided projections, and the CReLUs that equal them.
PAIRS = {"crelu": "hard", "shifted_crelu": "soft"}
#: Counts per layer.
COUNTS = ("hits", "misses", "false_alarms", "missed_negative", "reached")
Outcome: TypeAlias = dict[str, Any]


def positive(model: dcsc.Layers) -> dcsc.Layers:
    """Return the layers with the magnitudes of their deep atoms' taps; the filters next to the signal stay."""
    changed = [
        dataclasses.replace(layer, op=dataclasses.replace(layer.op, filters=jnp.abs(layer.op.filters)))
        for layer in model[1:]
    ]
    return (model[0], *changed)


def one_draw(model: dcsc.Layers, code: Code, key: PRNGKeyArray, *, shrink: float) -> Outcome:
    """Send a signal of every setting through every projection.

    Args:
        model: the layers, D = I, deep atoms of both signs.
        code: X^(L) >= 0.
        key: of the signs D.
        shrink: thresholds of a projection that shrinks are multiplied by it once for every layer below.

    Returns:
        By setting: ``entries`` and ``negative``, non-zero and negative entries of X^(l), [L]; by projection ``path``,
        and the `COUNTS`, [L]: entries found, lost, made up, lost and negative, and whether layers 1 to l were all
        recovered. ``equal``: whether CReLUs gave the codes of the two-sided thresholds. ``S`` [L].
    """
    models = (dcsc.draw_signs(key, model), model, positive(model))
    factors = shrink ** jnp.arange(len(model), dtype=code.dtype)
    # Settings side by side: one program for all three.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    every = jax.vmap(partial(_passes, code=code, factors=factors))(stacked)
    found: Outcome = {setting: jax.tree.map(lambda leaf, at=at: leaf[at], every) for at, setting in enumerate(SETTINGS)}
    # Supports are those of all settings: where atoms do not meet, no sign changes them.
    path = dcsc.reverse_pass(positive(model), code)
    found["S"] = jnp.stack([
        stripe_norm(one, layer.op.length, stride=layer.op.stride, padding=layer.op.padding)
        for layer, one in zip(model, path[1:], strict=True)
    ])  # fmt: skip
    return found


def _passes(model: dcsc.Layers, code: Code, factors: Array) -> Outcome:
    """Send the signal of one model through every projection."""
    path = dcsc.reverse_pass(model, code)
    betas = default_thresholds(path)
    passes = {
        name: forward(model, path[0], how, thresholds=betas * factors if name in SHRINKING else betas, truth=path)
        for name, (how, _) in PROJECTIONS.items()
    }
    active = list(supports(path[1:]))
    below = [one < 0 for one in path[1:]]
    return {
        "entries": jnp.stack([jnp.sum(there) for there in active]),
        "negative": jnp.stack([jnp.sum(there & less) for there, less in zip(active, below, strict=True)]),
        "equal": jnp.stack([_equal(passes[one], passes[other]) for one, other in PAIRS.items()]),
        **{name: _counts(one, active, below) for name, one in passes.items()},
    }


def _counts(found: Forward, active: list[Array], below: list[Array]) -> Outcome:
    assert found.recovered is not None
    missed = [jnp.sum((code == 0) & there & less) for code, there, less in zip(found.codes, active, below, strict=True)]
    return {
        "path": found.path_recovered, "hits": found.hits, "misses": found.misses, "false_alarms": found.false_alarms,
        "missed_negative": jnp.stack(missed), "reached": jnp.cumsum(~found.recovered) == 0,
    }  # fmt: skip


def _equal(first: Forward, second: Forward) -> Array:
    return jnp.all(jnp.stack([jnp.all(a == b) for a, b in zip(first.codes, second.codes, strict=True)]))


@partial(jax.jit, static_argnames="shrink")
def _sums(model: dcsc.Layers, codes: Array, keys: Array, *, shrink: float) -> Outcome:
    many = jax.vmap(partial(one_draw, shrink=shrink), in_axes=(None, 0, 0))(model, codes, keys)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), many)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Draws of one model, block by block; a block is a pure function of its number.

    Attributes:
        model: see `one_draw`.
        size: draws of a block, side by side.
        shrink: see `one_draw`.
        magnitudes: smallest and largest entry of X^(L).
    """

    model: dcsc.Layers
    size: int
    shrink: float
    magnitudes: tuple[float, float]

    @cached_property
    def coherence(self) -> Array:
        """mu_l over all shifts, [L]."""
        return coherences(self.model)

    @cached_property
    def _leaves(self) -> tuple[list[tuple[int, ...]], Any]:
        """Shapes of the sums of a block, and their tree."""
        codes = jax.ShapeDtypeStruct((self.size, *self.model[-1].op.code_shape), self.model[-1].op.dtype)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.size))
        leaves, tree = jax.tree.flatten(jax.eval_shape(partial(_sums, shrink=self.shrink), self.model, codes, keys))
        return [leaf.shape for leaf in leaves], tree

    def row(self, key: PRNGKeyArray, sparsity: int, number: int) -> list[float]:
        """Draw a block and return the sums of its outcomes, one after the other.

        Args:
            key: of supports and signs.
            sparsity: most non-zeros of X^(1) in a stripe; places are taken until no place fits.
            number: of the block.

        Raises:
            ValueError: a sparsity that no single non-zero of X^(L) keeps.
        """
        code_key, sign_key = jax.random.split(jax.random.fold_in(key, number))
        codes = self._codes(code_key, sparsity)
        sums = _sums(self.model, codes, jax.random.split(sign_key, self.size), shrink=self.shrink)
        return np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(sums)]).tolist()

    def least(self) -> int:
        """Return the smallest S_1 that a non-zero of X^(L) keeps.

        Raises:
            ValueError: there is none, at any S.
        """
        key = jax.random.key(0)
        self._codes(jax.random.clone(key), None)
        for sparsity in itertools.count(1):
            try:
                self._codes(jax.random.clone(key), sparsity)
            except ValueError:
                continue
            return sparsity
        raise AssertionError("counting has no end")

    def _codes(self, key: PRNGKeyArray, sparsity: int | None) -> Code:
        """Draw X^(L) of a block."""
        limits = None if sparsity is None else [sparsity, *[None] * (len(self.model) - 1)]
        sample = generate(
            key, self.model, sparsity=limits, magnitudes=self.magnitudes, nonnegative=True, columns=self.size,
            coherence=self.coherence,
        )  # fmt: skip
        return sample.path[-1]

    def total(self, rows: Sequence[Sequence[float]]) -> Outcome:
        """Return the outcomes of `one_draw`, summed over all draws of the rows."""
        shapes, tree = self._leaves
        whole = np.sum(np.asarray(rows, float), axis=0)
        parts = np.split(whole, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        leaves = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return jax.tree.unflatten(tree, leaves)
