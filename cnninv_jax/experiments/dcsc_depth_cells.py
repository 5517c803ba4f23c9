"""The simulations of `dcsc-depth`: supports, failures by layer with their intervals, noise, bounds, spread."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax._typing import Array, Code, Float, PRNGKeyArray, Signal
from cnninv_jax.dcsc.bounds import probabilistic_bound, propagated_noise, uniform_bound
from cnninv_jax.dcsc.generate import generate
from cnninv_jax.dcsc.noise import noise
from cnninv_jax.experiments.dcsc_depth_draws import SpreadDraw
from cnninv_jax.experiments.dcsc_dictionaries import Prepared, prepare
from cnninv_jax.experiments.files import results_folder

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcsc_depth import DepthParameters
    from cnninv_jax.experiments.studies import ProgressBar

#: Two-sided 95% of a normal law.
NORMAL_95 = 1.959963984540054
#: Draws side by side in a block on a CPU, of tables and of whole passes.
BLOCK, SPREAD_LANES = 128, 8


@dataclasses.dataclass(frozen=True)
class Cell:
    """What was found at one depth, support and noise; numbers by layer l = 1 .. L.

    Attributes:
        depth: L.
        support: as asked for.
        noise: |V^(0)|_{2,inf} / |X_min^(1)|.
        deepest: non-zeros of X^(L).
        draws: draws of signs over all supports.
        counts: draws whose first lost layer is l, by support, [paths, L].
        first: P(layer l is the first one lost), with ``first_low`` and ``first_high``.
        given: P(layer l is lost | the layers before it were not); NaN where none was left, with ``given_low`` and
            ``given_high``.
        lost, lost_low, lost_high: P(the path is lost).
        intact: draws whose layers up to l are recovered, [L]: those behind ``zeta_mean`` and ``zeta_largest``.
        zeta_mean: mean of |V^(l)|_{2,inf} / |X_min^(l)| over draws whose layers up to l are recovered.
        zeta_largest: its largest value.
        uniform: the same by the uniform recursion, largest over supports, [L + 1], l = 0 .. L.
        probabilistic: by the probabilistic recursion.
        sparsity: S_l, largest over supports.
        coherence: mu_l.
        term: bound (3)'s term of layer l, with the largest noise measured, largest over supports, not cut at 1; as no
            bound knows the noise, this is the least it could say.
        recursion_term: the same with the noise of the uniform recursion.
        limit: the uniform bound (2) on S_l, with the largest noise measured, smallest over supports.
    """

    depth: int
    support: int
    noise: float
    deepest: int
    draws: int
    counts: np.ndarray
    first: np.ndarray
    first_low: np.ndarray
    first_high: np.ndarray
    given: np.ndarray
    given_low: np.ndarray
    given_high: np.ndarray
    lost: float
    lost_low: float
    lost_high: float
    intact: np.ndarray
    zeta_mean: np.ndarray
    zeta_largest: np.ndarray
    uniform: np.ndarray
    probabilistic: np.ndarray
    sparsity: np.ndarray
    coherence: np.ndarray
    term: np.ndarray
    recursion_term: np.ndarray
    limit: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Supports of one depth, ready for draws under noise of patch norm |X_min^(1)|.

    Attributes:
        codes: X^(L) of every support.
        noises: V^(0) of every support.
        prepared: tables, thresholds and measured quantities.
        deepest: non-zeros of X^(L).
    """

    codes: list[Code]
    noises: list[Signal]
    prepared: list[Prepared]
    deepest: int


def sample_paths(
    key: PRNGKeyArray, p: DepthParameters, model: dcsc.Layers, mu: Float[Array, " L"], count: int, bar: ProgressBar,
    *, room: int | None = None,
) -> Sampled:  # fmt: skip
    """Draw deepest codes whose atoms do not overlap above the signal, and noises.

    The tables have room for ``room`` non-zeros of X^(L), ``count`` by default. Cells of the same room share one
    program.

    Raises:
        ValueError: there is no room for as many non-zeros.
    """
    codes, noises, prepared = [], [], []
    op, depth = model[0].op, len(model)
    capacity = [max(count, room or 0) * p.nonzeros ** (depth - number) for number in range(1, depth + 1)]
    for own in jax.random.split(key, p.paths):
        code_key, noise_key = jax.random.split(own)
        sample = generate(code_key, model, num_nonzeros=count, coherence=mu)
        placed = int(np.count_nonzero(np.asarray(sample.path[-1])))
        if placed < count:
            raise ValueError(
                f"expected room for {count} non-zeros in layer {depth} whose atoms do not overlap below, found "
                f"{placed}; take a longer --D, more --num-filters, a larger --ell, or a smaller --support"
            )
        added = noise(
            noise_key, op.input_shape, op.length, patch_norm=sample.measured.smallest[0], stride=op.stride,
            padding=op.padding, dtype=op.dtype,
        )  # fmt: skip
        codes.append(sample.path[-1])
        noises.append(added)
        prepared.append(prepare(model, codes[-1], added, capacity, measured=sample.measured))
        bar.advance(1, note=f"depth {depth}: supports")
    return Sampled(codes, noises, prepared, count)


def under_noise(ready: Prepared, level: float) -> Prepared:
    """Return a support's tables with its noise multiplied by a level: what noise adds to responses is linear in it."""
    first, *others = ready.tables.responses
    if first.heard is not None:
        raise ValueError("expected tables with a capacity, whose last column is the noise, got compressed ones")
    scaled = dataclasses.replace(
        first, own=first.own.at[:, -1].multiply(level), others=first.others.at[..., -1].multiply(level)
    )
    tables = dataclasses.replace(ready.tables, responses=(scaled, *others))
    return dataclasses.replace(ready, tables=tables, zeta_0=level * ready.zeta_0)


def cell_of(
    key: PRNGKeyArray, p: DepthParameters, sampled: Sampled, support: int, level: float, place: Path, bar: ProgressBar
) -> Cell:
    """Count failures over signs for every support, and compare with the bounds."""
    counts, sums, largest, prepared = [], [], [], []
    for number, clean in enumerate(sampled.prepared):
        ready = under_noise(clean, level)
        with results_folder(place / f"path-{number}") as journal:
            result = mc.run(
                ready.draw(), jax.random.fold_in(key, number), p.num_draws, out=journal, progress=False,
                chunk_size=BLOCK if jax.default_backend() == "cpu" else None, name="dcsc-depth",
            )  # fmt: skip
        failed = np.rint(np.asarray(result["failed"]["proportion"], float) * p.num_draws)
        scale = np.asarray(ready.measured.smallest, float)
        counts.append(failed)
        sums.append(np.asarray(result["noise"]["mean"], float) * p.num_draws / scale)
        largest.append(np.asarray(result["noise"]["max"], float) / scale)
        prepared.append(ready)
    table, draws = np.stack(counts), p.num_draws * len(counts)
    depth = table.shape[1]
    bar.advance(1, note=f"depth {depth}, support {support}, noise {level:g}: P(lost) {table.sum() / draws:.2f}")
    first = pooled(table, np.full_like(table, p.num_draws))
    before = p.num_draws - np.cumsum(table, axis=1) + table
    given = pooled(table, before)
    lost = pooled(table.sum(axis=1, keepdims=True), np.full((len(table), 1), float(p.num_draws)))
    intact = draws - np.cumsum(table.sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        zeta_mean = np.where(intact > 0, np.sum(sums, axis=0) / intact, np.nan)
    zeta_largest = np.where(intact > 0, np.max(largest, axis=0), np.nan)
    intervals = {
        name + end: part
        for name, parts in (("first", first), ("given", given), ("lost", [float(part[0]) for part in lost]))
        for end, part in zip(("", "_low", "_high"), parts, strict=True)
    }
    named: dict[str, Any] = {**intervals, **_bounds(p, prepared, zeta_largest)}
    return Cell(
        depth=depth, support=support, noise=level, deepest=sampled.deepest, draws=draws, counts=table,
        intact=intact, zeta_mean=zeta_mean, zeta_largest=zeta_largest, **named,
    )  # fmt: skip


def pooled(counts: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return shares over all supports with Wilson's 95% interval, [L] each.

    Draws of one support resemble one another. So they count for fewer: their number is divided by how much more the
    supports' shares differ than they would by chance, where that is more than 1 (the design effect of a ratio
    estimate), and by (t / z)^2, Student's quantile for the normal one, as few supports know this factor badly (Korn and
    Graubard 1998). With one support, or without any failure, nothing of this can be seen, and all draws count.

    Args:
        counts: failures by support, [paths, L].
        draws: draws that could fail, [paths, L].
    """
    from scipy.special import stdtrit

    total, number = draws.sum(axis=0), (draws > 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total > 0, counts.sum(axis=0) / np.where(total > 0, total, 1), np.nan)
        between = np.square(counts - share * draws).sum(axis=0) * number / np.maximum(number - 1, 1)
        chance = share * (1 - share) * total
        effect = np.where((chance > 0) & (number > 1), np.maximum(between / np.where(chance > 0, chance, 1), 1), 1)
    student = stdtrit(np.maximum(number - 1, 1), 0.975) / NORMAL_95
    effective = total / np.where(effect > 1, effect * student**2, effect)
    low, high = mc.wilson(np.nan_to_num(share) * effective, effective)
    return share, np.where(total > 0, low, np.nan), np.where(total > 0, high, np.nan)


def _bounds(p: DepthParameters, prepared: list[Prepared], zeta_largest: np.ndarray) -> dict[str, np.ndarray]:
    """Return the recursions of the noise, and the bounds' terms, for the worst of the supports."""
    dtype = prepared[0].tables.values.dtype

    def stacked(values: list[Any]) -> Array:
        return jnp.asarray(np.stack([np.asarray(value) for value in values]), dtype)

    found = [ready.measured for ready in prepared]
    start = stacked([ready.zeta_0 for ready in prepared])
    mu, smallest, largest, sparsity, per_patch = (
        stacked([getattr(one, name) for one in found])
        for name in ("coherence", "smallest", "largest", "sparsity", "per_patch")
    )
    given = (start, mu, smallest, largest, sparsity, per_patch)
    counts = jnp.asarray([len(where) for where in prepared[0].tables.support], dtype)
    uniform = jax.vmap(propagated_noise)(*given)
    probable = jax.vmap(partial(propagated_noise, kind="probabilistic", responses=counts, delta=p.delta))(*given)
    measured = jnp.concatenate([start[:, None], jnp.asarray(zeta_largest, dtype)[None, :-1] * smallest[:, :-1]], axis=1)
    counted = stacked([ready.num_filters for ready in prepared]), stacked([ready.positions for ready in prepared])
    terms = [
        probabilistic_bound(mu, smallest, largest, sparsity, entering, *counted).terms
        for entering in (measured, uniform[:, :-1])
    ]
    # Relative to the layer's own X_min; zeta_0 to that of layer 1.
    scale = jnp.concatenate([smallest[:, :1], smallest], axis=1)
    worst = {"uniform": uniform / scale, "probabilistic": probable / scale, "term": terms[0],
             "recursion_term": terms[1], "sparsity": sparsity, "coherence": mu}  # fmt: skip
    limit = uniform_bound(mu, smallest, largest, measured).limit
    return {
        **{name: np.asarray(values, float).max(axis=0) for name, values in worst.items()},
        "limit": np.asarray(limit, float).min(axis=0),
    }


def spread_of(
    key: PRNGKeyArray, p: DepthParameters, model: dcsc.Layers, sampled: Sampled, level: float, place: Path
) -> dict[str, Any]:
    """Follow whole passes: by first lost layer, the later layers' misses and false alarms over their non-zeros."""
    thresholds = jnp.stack([ready.thresholds for ready in sampled.prepared])
    draw = SpreadDraw(model, jnp.stack(sampled.codes), level * jnp.stack(sampled.noises), thresholds)
    names = ("misses", "alarms", "lost")
    with results_folder(place) as journal:
        result = mc.run(
            draw, key, p.spread_draws, out=journal, progress=False, name="dcsc-depth-spread",
            chunk_size=64 if jax.default_backend() == "cpu" else None,
            lanes=SPREAD_LANES if jax.default_backend() == "cpu" else None,
            statistics={name: mc.Moments() for name in names},
        )  # fmt: skip
    share = np.asarray(result["first"]["proportion"], float)
    with np.errstate(invalid="ignore", divide="ignore"):
        after = {
            name: np.where(share[:, None] > 0, np.asarray(result[name]["mean"], float) / share[:, None], math.nan)
            for name in names
        }
    return {"draws": p.spread_draws, "first": np.rint(share * p.spread_draws), **after}
