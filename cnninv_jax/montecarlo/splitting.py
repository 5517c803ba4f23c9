"""Multilevel splitting (subset simulation): P(score(u) >= level) for a Gaussian latent vector u, however small.

The event is reached through levels L_1 < ... < L_m: P = product of P(score >= L_j | score >= L_{j-1}), each factor of
moderate size (Au and Beck 2001; Cerou et al. 2012). Particles above a level are resampled, then moved by
preconditioned Crank-Nicolson steps u' = sqrt(1 - b^2) u + b xi that are taken only if the score stays above it: such a
move keeps the standard normal law restricted to the level set. Levels and step sizes are found once by an adaptive
pilot (`splitting_levels`) and then fixed, which makes every replicate (`splitting_draw`) an *unbiased* estimate,
however short the moves; a replicate is a draw like any other, so that `run` gives the standard error, the journal and
the devices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray
from cnninv_jax.montecarlo.arguments import as_key, positive
from cnninv_jax.montecarlo.importance import log_contribution

#: A pytree of independent standard normal arrays; as a template, of anything with shape and dtype.
Latent: TypeAlias = Any
Score: TypeAlias = Callable[[Latent], Array]

#: Acceptance rate that the pilot aims at, a compromise between long steps and taken ones.
TARGET_ACCEPTANCE = 0.35
#: Step sizes the pilot tries, largest first; 1 draws the block anew.
STEP_SIZES = tuple(0.65**power for power in range(13))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["thresholds", "steps"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Levels:
    """What the pilot found; data of a draw, so that other levels of equal number compile nothing anew.

    Attributes:
        thresholds: L_1 < ... < L_m, the last one the event's, [m].
        steps: size b of the moves above each level, for every array of the latent, [m, blocks].
    """

    thresholds: Float[Array, " m"]
    steps: Float[Array, "m blocks"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["score", "levels"],
    meta_fields=["treedef", "shapes", "num_particles", "num_moves"],
)
@dataclasses.dataclass(frozen=True)
class SplittingDraw:
    """One replicate, ``draw(key)``; made by `splitting_draw`."""

    score: Score
    levels: Levels
    treedef: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    num_particles: int
    num_moves: int

    def __call__(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Return one unbiased estimate and how the particles fared, see `splitting_draw`."""
        first, rest = jax.random.split(key)
        particles = self.sample(first)
        scores = jax.vmap(self.score)(particles)

        def level(carry: Any, inputs: Any) -> Any:
            particles, scores, roots = carry
            number, threshold, step = inputs
            resample_key, move_key = jax.random.split(jax.random.fold_in(rest, number))
            alive = scores >= threshold
            parents = _resample(resample_key, alive)
            particles, scores, roots = jax.tree.map(lambda x: x[parents], (particles, scores, roots))
            particles, scores, taken = self.move(move_key, particles, scores, threshold, step)
            return (particles, scores, roots), (jnp.sum(alive, dtype=np.int32), taken)

        # Above the last level nobody has to move any more. Keys by number: the key-reuse check takes a vmapped
        # array of keys that is scanned over for used up.
        thresholds, steps = self.levels.thresholds, self.levels.steps
        inputs = (jnp.arange(thresholds.shape[0] - 1, dtype=np.uint32), thresholds[:-1], steps[:-1])
        begin = (particles, scores, jnp.arange(self.num_particles, dtype=np.int32))
        (_, scores, roots), (survivors, taken) = jax.lax.scan(level, begin, inputs)
        reached = scores >= thresholds[-1]
        survivors = jnp.append(survivors, jnp.sum(reached, dtype=np.int32))
        # Once nobody survives, the particles below are moved on without meaning: the estimate stays zero.
        fractions = survivors.astype(thresholds.dtype) / self.num_particles
        alive = jnp.cumprod(survivors > 0) > 0
        logs = jnp.cumsum(jnp.log(jnp.maximum(fractions, 0.5 / self.num_particles)))
        path = log_contribution(alive, logs)
        return {
            "probability": jnp.where(alive[-1], jnp.exp(path[-1]), 0.0),
            "log_probability": path[-1],
            "log_level_probability": path,
            "fraction": fractions,
            "acceptance": jnp.min(taken, initial=1.0),
            "families": _distinct(roots, reached),
            "degenerate": ~alive[-1],
        }

    def sample(self, key: PRNGKeyArray) -> Latent:
        """Return independent particles: the latent pytree with a leading axis."""
        keys = jax.random.split(key, len(self.shapes))
        return self.treedef.unflatten([self.noise(one, block) for block, one in enumerate(keys)])

    def noise(self, key: PRNGKeyArray, block: int) -> Array:
        """Return independent normal numbers in the shape of one array of all particles."""
        aval = self.shapes[block]
        return jax.random.normal(key, (self.num_particles, *aval.shape), aval.dtype)

    def move(
        self,
        key: PRNGKeyArray,
        particles: Latent,
        scores: Float[Array, " N"],
        threshold: Array,
        steps: Float[Array, " blocks"],
    ) -> tuple[Latent, Float[Array, " N"], Float[Array, " blocks"]]:
        """Move every particle ``num_moves`` times within its level set; return the shares of moves taken.

        One move goes through the arrays of the latent, each with its own step size: those that the score is touchy
        about do not hold up the others.
        """

        def sweep(carry: Any, number: Array) -> Any:
            blocks, scores = carry
            rates = []
            own = jax.random.fold_in(key, number)
            for block, one in enumerate(jax.random.split(own, len(blocks))):
                step = steps[block].astype(blocks[block].dtype)
                new = jnp.sqrt(1.0 - step * step) * blocks[block] + step * self.noise(one, block)
                proposed = [*blocks[:block], new, *blocks[block + 1 :]]
                reached = jax.vmap(self.score)(self.treedef.unflatten(proposed))
                taken = reached >= threshold
                chosen = jax.lax.broadcast_in_dim(taken, new.shape, (0,))
                blocks = [*blocks[:block], jnp.where(chosen, new, blocks[block]), *blocks[block + 1 :]]
                scores = jnp.where(taken, reached, scores)
                rates.append(jnp.mean(taken, dtype=np.float32))
            return (blocks, scores), jnp.stack(rates)

        begin = (jax.tree_util.tree_leaves(particles), scores)
        (blocks, scores), rates = jax.lax.scan(sweep, begin, jnp.arange(self.num_moves, dtype=np.uint32))
        return self.treedef.unflatten(blocks), scores, jnp.mean(rates, axis=0)


def splitting_draw(
    score: Score, levels: Levels, latent: Latent, *, num_particles: int = 512, num_moves: int = 8
) -> SplittingDraw:
    """Return a draw: one replicate of multilevel splitting with fixed levels.

    Args:
        score: function of one latent pytree that returns a scalar; the event is ``score(u) >= levels.thresholds[-1]``.
            Randomness of another law is folded in by its quantile function, ``uniform = norm.cdf(u)``. Arrays of a
            `jax.tree_util.Partial` are traced.
        levels: of `splitting_levels`.
        latent: template of u: a pytree of arrays, or of `jax.ShapeDtypeStruct`; all entries are i.i.d. N(0, 1). Every
            array is a block that moves by itself: what has to move together belongs into one.
        num_particles: N, static.
        num_moves: sweeps over the latent's arrays above every level, static; more of them make the estimate less
            variable, and it is unbiased with any number.

    Returns:
        Callable of one typed key that returns ``probability`` and ``log_probability`` (unbiased: mean over replicates
        by `WeightedProportion` on the latter, which underflows never), ``log_level_probability`` [m] of
        all levels, ``fraction`` [m] of survivors per level, ``acceptance`` of the level where moves were taken least,
        ``families`` of the first generation that are present at the event, and ``degenerate`` where a level lost
        every particle: the estimate is then 0, and must be counted as such.

    Raises:
        ValueError: a score that is no scalar, a latent that is not floating, sizes that are no positive integers.

    Cost: m N num_moves scores and latents per array of the latent.
    """
    return _prepared(score, levels, latent, num_particles, num_moves)[0]


def splitting_levels(
    score: Score,
    key: PRNGKeyArray | int,
    threshold: float,
    latent: Latent,
    *,
    fraction: float = 0.2,
    num_particles: int = 1024,
    num_moves: int = 8,
    max_levels: int = 200,
) -> Levels:
    """Find levels and step sizes by an adaptive run: every level is passed by about ``fraction`` of the particles.

    Args:
        score: as in `splitting_draw`.
        key: typed key or seed; not that of the replicates, whose levels must not depend on them.
        threshold: the event is ``score(u) >= threshold``.
        latent: as in `splitting_draw`.
        fraction: of particles that pass a level, in (0, 1).
        num_particles: of the pilot, static.
        num_moves: of the pilot, static.
        max_levels: give up after so many.

    Returns:
        `Levels` for `splitting_draw`.

    Raises:
        ValueError: as in `splitting_draw`; or the threshold was not reached.

    Cost: a replicate, and 13 trial moves per level; one program for all levels.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"expected fraction between 0 and 1, got {fraction}")
    if not math.isfinite(threshold):
        raise ValueError(f"expected a finite threshold, got {threshold}")
    max_levels = positive(max_levels, "max_levels", 1 << 20)
    root = as_key(key)
    draw, dtype = _prepared(
        score,
        Levels(jnp.zeros(1), jnp.zeros((1, len(jax.tree_util.tree_leaves(latent))))),
        latent,
        num_particles,
        num_moves,
    )
    first, *keys = jax.random.split(root, max_levels + 1)
    particles, scores = _begin(draw, first)
    thresholds: list[float] = []
    steps: list[np.ndarray] = []
    for number, one in enumerate(keys):
        ordered = np.sort(np.asarray(scores, np.float64))
        level = float(ordered[min(math.ceil((1 - fraction) * num_particles), num_particles - 1)])
        if not np.isfinite(ordered).all():
            raise ValueError("expected finite scores, got others; mend the score where it divides or takes logarithms")
        # The event itself is the last level, as soon as enough particles have reached it.
        done = np.mean(ordered >= threshold) >= fraction
        if not done and thresholds and level <= thresholds[-1]:
            raise ValueError(
                f"expected levels to rise to {threshold:g}, got stuck at {level:g} after {number} levels; "
                "the score is flat there (ties): smooth it, or raise num_moves and num_particles"
            )
        level = threshold if done else min(level, threshold)
        thresholds.append(level)
        if done:
            # Nobody moves above the last level.
            steps.append(np.ones(len(draw.shapes)))
            return Levels(jnp.asarray(thresholds, dtype), jnp.asarray(np.stack(steps), dtype))
        particles, scores, sizes = _advance(draw, one, particles, scores, jnp.asarray(level, dtype))
        steps.append(np.asarray(sizes))
    raise ValueError(
        f"expected to reach {threshold:g} within {max_levels} levels, got to {thresholds[-1]:g}; "
        "raise max_levels, num_moves or num_particles, or lower the threshold"
    )


def _prepared(
    score: Score, levels: Levels, latent: Latent, num_particles: int, num_moves: int
) -> tuple[SplittingDraw, np.dtype]:
    """Check all that can be checked without a random number; return the draw and the dtype of scores."""
    if not callable(score):
        raise ValueError(f"expected score to be a function of one latent pytree, got {type(score).__name__}")
    leaves, treedef = jax.tree_util.tree_flatten(latent)
    if not leaves:
        raise ValueError("expected latent to hold at least one array, got an empty pytree")
    for leaf in leaves:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise ValueError(
                f"expected latent to hold floating arrays or jax.ShapeDtypeStructs, got {leaf!r}; "
                "fold other laws in by their quantile functions"
            )
    shapes = tuple(jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype) for leaf in leaves)
    out = jax.eval_shape(score, treedef.unflatten(shapes))
    if not (hasattr(out, "shape") and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating)):
        raise ValueError(f"expected score to return one floating scalar, got {out}")
    # A plain function is no pytree: as Partial it is static, and its cache is its own.
    wrapped = jax.tree_util.Partial(score) if jax.tree_util.all_leaves([score]) else score
    sizes = positive(num_particles, "num_particles", 1 << 24), positive(num_moves, "num_moves", 1 << 16)
    dtype = np.dtype(out.dtype)
    wanted = (*np.shape(levels.thresholds), len(shapes))
    if len(wanted) != 2 or np.shape(levels.steps) != wanted:
        raise ValueError(
            f"expected steps of shape {wanted} (levels, arrays of the latent), got {np.shape(levels.steps)}; "
            "take levels found for this latent"
        )
    levels = Levels(jnp.asarray(levels.thresholds, dtype), jnp.asarray(levels.steps, dtype))
    return SplittingDraw(wrapped, levels, treedef, shapes, *sizes), dtype


@jax.jit
def _begin(draw: SplittingDraw, key: PRNGKeyArray) -> tuple[Latent, Float[Array, " N"]]:
    particles = draw.sample(key)
    return particles, jax.vmap(draw.score)(particles)


@jax.jit
def _survivors(
    key: PRNGKeyArray, particles: Latent, scores: Float[Array, " N"], threshold: Array
) -> tuple[Latent, Float[Array, " N"]]:
    """Replace the particles below a level by copies of those above."""
    parents = _resample(key, scores >= threshold)
    return jax.tree.map(lambda x: x[parents], (particles, scores))


@jax.jit
def _move(
    draw: SplittingDraw,
    key: PRNGKeyArray,
    particles: Latent,
    scores: Float[Array, " N"],
    threshold: Array,
    steps: Float[Array, " blocks"],
) -> tuple[Latent, Float[Array, " N"], Float[Array, " blocks"]]:
    return draw.move(key, particles, scores, threshold, steps)


def _advance(
    draw: SplittingDraw, key: PRNGKeyArray, particles: Latent, scores: Float[Array, " N"], threshold: Array
) -> tuple[Latent, Float[Array, " N"], Array]:
    """Resample the survivors of a level, choose the step sizes there, and move."""
    resample_key, *keys = jax.random.split(key, 1 + len(STEP_SIZES) + draw.num_moves)
    trial_keys, move_keys = keys[: len(STEP_SIZES)], keys[len(STEP_SIZES) :]
    particles, scores = _survivors(resample_key, particles, scores, threshold)
    # One small program, a single sweep, serves trials and moves.
    single = dataclasses.replace(draw, num_moves=1)
    sizes = [jnp.full(len(draw.shapes), size, threshold.dtype) for size in STEP_SIZES]
    trials = zip(trial_keys, sizes, strict=True)
    rates = np.stack([np.asarray(_move(single, one, particles, scores, threshold, size)[2]) for one, size in trials])
    # For every block the largest step that is taken often enough, the smallest where none is.
    enough = rates >= TARGET_ACCEPTANCE
    enough[-1] = True
    steps = jnp.asarray(np.asarray(STEP_SIZES)[enough.argmax(axis=0)], threshold.dtype)
    for one in move_keys:
        particles, scores, _ = _move(single, one, particles, scores, threshold, steps)
    return particles, scores, steps


def _resample(key: PRNGKeyArray, alive: Bool[Array, " N"]) -> Int[Array, " N"]:
    """Return N parents: the survivors in random order, over and over, so that each expects equally many children."""
    words = jax.random.bits(key, alive.shape, np.uint32) >> 1
    order = jnp.argsort(jnp.where(alive, words, np.uint32(2**32 - 1)))
    slots = jnp.arange(alive.shape[0], dtype=np.int32) % jnp.maximum(jnp.sum(alive, dtype=np.int32), 1)
    return order[slots].astype(np.int32)


def _distinct(roots: Int[Array, " N"], alive: Bool[Array, " N"]) -> Int[Array, ""]:
    """Return how many different roots the living have."""
    present = jnp.zeros(roots.shape, bool).at[roots].max(alive)
    return jnp.sum(present, dtype=np.int32)
