"""How seldom is an activation path lost? Probabilities down to 1e-9 against the noise (Murray 2018, eq. (3)).

Fixed supports, random signs D. With few signs all patterns are tried, which is exact. With many, plain Monte Carlo
sees nothing below 1e-5: signs drawn under tilted laws (one layer) and multilevel splitting do, and are held against
exact probabilities of the single responses. Bound (3) stands beside them. A probability is a multiple of 2^-c: what c
signs decide is either impossible or not rarer than that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax._typing import Array
from cnninv_jax.dcsc.bounds import probabilistic_bound, propagated_noise
from cnninv_jax.dcsc.generate import Sample, generate
from cnninv_jax.dcsc.noise import aligned_noise
from cnninv_jax.experiments.dcsc_dictionaries import Dictionaries, build
from cnninv_jax.experiments.dcsc_rare_draws import (
    FairDraw,
    FirstLayer,
    Score,
    TiltedDraw,
    count_patterns,
    event_probabilities,
    events,
    first_layer,
    refined,
    tilts,
)
from cnninv_jax.experiments.dcsc_rare_tables import rare_tables, verdict
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.intervals import clopper_pearson

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Signs whose patterns are all tried, at most, and signs up to which single responses are counted out.
MOST_ENUMERATED, MOST_HALVED = 20, 44
#: Supports tried for a deep layer that no pattern of its own signs can lose.
SUPPORTS = 64
#: Particles of the pilot of splitting.
PILOT = 512


@dataclasses.dataclass(frozen=True)
class RareParameters:
    """Sizes of the four models (few and many signs, one and two layers), levels of the noise, effort."""

    signs: tuple[int, ...] = (18, 40)
    """Non-zeros of X^(1) of the models of one layer, each with a sign of its own; up to 20 all patterns are tried."""
    deep: tuple[int, ...] = (3, 7)
    """Non-zeros of X^(2) of the models of two layers."""
    nonzeros: int = 5
    """Non-zero entries of an atom of the second layer: X^(1) has so many for each of X^(2)."""
    num_filters: tuple[int, ...] = (16, 16)
    """Filters n_1, n_2 of the layers."""
    ell: int = 6
    """Filter length."""
    D: int = 12
    """Signal length; filters wrap around its border."""
    margin: tuple[float, ...] = (0.74, 0.92)
    """|X_min| / 2 over c_1 |X_max| / sqrt(M ell), the interference of c_1 aligned signs, for one layer and for two: it
    sets the channels M. Near 0.8, the mean of |N(0, 1)|, hardly any pattern of signs loses layer 1 without noise."""
    zeta: tuple[float, ...] = (0.09, 0.12, 0.16, 0.21, 0.27, 0.35, 0.44)
    """Patch norms of the noise V^(0), in the direction of single atoms, over |X_min^(1)|."""
    num_draws: int = 100_000
    """Draws of fair signs."""
    tilted_draws: int = 20_000
    """Draws of tilted signs, one layer."""
    replicates: int = 16
    """Independent repetitions of splitting."""
    particles: int = 256
    """Particles of a repetition."""
    moves: int = 4
    """Moves of every particle above every level, each through the signs of every layer."""


class Model(NamedTuple):
    """A model with its support, ready for draws at every level of the noise.

    Attributes:
        name: what the report calls it.
        layers: the layers.
        sample: path and what the theorem asks of it.
        thresholds: |X_min^(l)| / 2, [L].
        zetas: zeta_0 at every level.
        noise: V^(0) at every level.
        signs: c_1 + ... + c_L.
        channels: M.
    """

    name: str
    layers: dcsc.Layers
    sample: Sample
    thresholds: Array
    zetas: np.ndarray
    noise: list[Array]
    signs: int
    channels: int


def _compute(parameters: RareParameters, options: StudyOptions, folder: Path) -> Findings:
    p = dataclasses.replace(parameters, zeta=tuple(sorted(parameters.zeta)))
    _check(p)
    models = [
        *(_model(p, options, number, 1, count) for number, count in enumerate(p.signs)),
        *(_model(p, options, number, 2, count) for number, count in enumerate(p.deep)),
    ]
    found = []
    with progress_bar("paths that are hardly ever lost", 4 * len(models), quiet=options.quiet) as bar:
        for number, model in enumerate(models):
            key = jax.random.fold_in(jax.random.key(options.seed), 100 + number)
            # Models of one depth share their programs: the smaller one's supports are padded.
            depth = len(model.layers)
            alike = [other for other in models if len(other.layers) == depth]
            capacity = [max(counts) for counts in zip(*(_places(other) for other in alike), strict=True)]
            work = _Work(p, options, model, capacity, key, folder / f"model-{number + 1}")
            steps = (work.exact, work.plain, work.tilted, work.splitting)
            entry = work.describe()
            for step in steps:
                entry |= step()
                bar.advance(note=f"{model.name}, {model.signs} signs")
            found.append(entry | {"verdicts": [verdict(entry, at) for at in range(len(p.zeta))]})
    agree = not any("differs" in one for entry in found for one in entry["verdicts"])
    return Findings({"models": found, "agree": agree}, rare_tables(found))


def _check(p: RareParameters) -> None:
    for name in ("nonzeros", "ell", "D", "num_draws", "tilted_draws", "replicates", "particles", "moves"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 30)
    for name, least in (("num_draws", 2), ("tilted_draws", 2), ("replicates", 2), ("particles", 16)):
        if getattr(p, name) < least:
            raise ValueError(f"expected --{name.replace('_', '-')} to be at least {least}, got {getattr(p, name)}")
    for name in ("signs", "deep"):
        for value in getattr(p, name):
            positive(value, f"--{name}", 1 << 20)
    if not p.signs and not p.deep:
        raise ValueError("expected --signs or --deep, got neither; name at least one model")
    if len(p.num_filters) != 2:
        raise ValueError(f"expected two --num-filters, n_1 and n_2, got {len(p.num_filters)}")
    if not p.zeta or not all(math.isfinite(value) and value >= 0 for value in p.zeta):
        raise ValueError(f"expected --zeta of 0 or more, at least one, got {p.zeta}")
    if len(p.margin) != 2 or not all(math.isfinite(value) and value > 0 for value in p.margin):
        raise ValueError(f"expected two positive numbers for --margin, got {p.margin}")


def _model(p: RareParameters, options: StudyOptions, number: int, depth: int, count: int) -> Model:
    """Return a model with a support of this size and the noise of all levels."""
    c_1 = count if depth == 1 else count * p.nonzeros
    channels = max(round((2 * p.margin[depth - 1] * c_1) ** 2 / p.ell), 1)
    sizes = Dictionaries(D=p.D, M=channels, num_filters=p.num_filters, ell=p.ell, nonzeros=p.nonzeros)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(options.seed), depth), number)
    filter_key, code_key, noise_key = jax.random.split(key, 3)
    model = build(filter_key, sizes, depth, options.precision)
    sample = _sample(code_key, model, count)
    got = int(np.sum(np.asarray(sample.path[-1]) != 0))
    if got < count:
        flag = "signs" if depth == 1 else "deep"
        raise ValueError(
            f"expected --{flag} of at most {got}, what fits into the model, got {count}; take a longer --D"
        )
    smallest = np.asarray(sample.measured.smallest, np.float64)
    direction = aligned_noise(noise_key, model[0], 1.0)
    zetas = np.asarray(p.zeta) * smallest[0]
    name = "one layer" if depth == 1 else "two layers"
    return Model(
        name,
        model,
        sample,
        jnp.asarray(smallest / 2, options.precision),
        zetas,
        [direction * jnp.asarray(zeta, direction.dtype) for zeta in zetas],
        c_1 if depth == 1 else c_1 + count,
        channels,
    )


def _sample(key: Array, model: dcsc.Layers, count: int) -> Sample:
    """Return a support; of two layers one that no pattern of D^(2) loses without noise, or else P >= 2^-c_2."""
    sample, measured = None, None
    for trial in range(1 if len(model) == 1 else SUPPORTS):
        coherence = None if measured is None else measured.coherence
        sample = generate(jax.random.fold_in(key, trial), model, num_nonzeros=count, coherence=coherence)
        measured = sample.measured
        if len(model) == 1 or int(np.sum(np.asarray(sample.path[-1]) != 0)) < count:
            break
        deep = first_layer(model[1:], sample.path[-1], jnp.zeros(model[1].op.input_shape), measured.smallest[-1] / 2)
        interference = np.abs(np.asarray(deep.products)).sum(axis=1)
        interference[np.asarray(deep.places)] = 0
        if interference.max() < float(measured.smallest[-1]) / 2 * (1 - 1e-3):
            break
    assert sample is not None
    return sample


def _places(model: Model) -> list[int]:
    return [int(np.sum(np.asarray(code) != 0)) for code in model.sample.path[1:]]


class _Work:
    """The runs of one model; every method has a key of its own."""

    def __init__(
        self, p: RareParameters, o: StudyOptions, model: Model, capacity: list[int], key: Array, folder: Path
    ) -> None:
        self.p, self.o, self.model, self.folder = p, o, model, folder
        names = ("plain", "tilted", "pilot", "splitting")
        self.keys: dict[str, Array] = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        self.tables = [
            dcsc.path_tables(model.layers, model.sample.path[-1], noise=noise, capacity=capacity)
            for noise in model.noise
        ]
        self.first: list[FirstLayer] = [
            first_layer(model.layers, model.sample.path[-1], noise, model.thresholds[0]) for noise in model.noise
        ]

    def _run(self, name: str, draw: Any, num_draws: int, key: Array, **options: Any) -> mc.Result:
        with results_folder(self.folder / name) as place:
            return mc.run(draw, key, num_draws, out=place, progress=False, name=name, **options)

    def describe(self) -> dict[str, Any]:
        """Return what the model is, and the bounds."""
        m, measured = self.model, self.model.sample.measured
        known = {name: np.asarray(getattr(measured, name), np.float64) for name in measured._fields}
        filters = np.array([layer.op.num_filters for layer in m.layers], float)
        shifts = np.array([layer.positions for layer in m.layers], float)
        bounds = {"bound": [], "adversarial": []}
        for zeta in m.zetas:
            # Where no response errs by |X_min| / 2, which is what the bound bounds, so little noise comes through.
            noise = propagated_noise(zeta, known["coherence"], known["smallest"], known["largest"], known["sparsity"],
                                     known["per_patch"], kind="recovered")[:-1]  # fmt: skip
            given = (known["coherence"], known["smallest"], known["largest"], known["sparsity"], noise, filters, shifts)
            bounds["bound"].append(float(probabilistic_bound(*given).log) / math.log(10))
            bounds["adversarial"].append(float(probabilistic_bound(*given, noise="adversarial").log) / math.log(10))
        each = [events(layer) for layer in self.first]
        with np.errstate(divide="ignore"):
            hoeffding = [
                np.sum(
                    np.where(one.pinned < one.weights.shape[1], 0.5, 1.0)
                    * np.exp(-np.square(np.maximum(one.limits, 0)) / (2 * np.square(one.weights).sum(1) + 1e-300))
                )
                for one in each
            ]
        return {
            "name": m.name,
            "depth": len(m.layers),
            "signs": m.signs,
            "places": _places(m),
            "channels": m.channels,
            "responses": [layer.signs.size for layer in m.layers],
            "measured": known,
            "zeta": m.zetas / known["smallest"][0],
            "log10_bound": bounds["bound"],
            "log10_adversarial": bounds["adversarial"],
            "hoeffding": hoeffding,
        }

    def exact(self) -> dict[str, Any]:
        """Return the exact probability where all patterns can be tried, and those of the first layer's responses."""
        m, found = self.model, {}
        if m.signs <= MOST_ENUMERATED:
            tables = [
                dcsc.path_tables(m.layers, m.sample.path[-1], noise=noise, capacity=_places(m)) for noise in m.noise
            ]
            counted = count_patterns(jax.tree.map(lambda *arrays: jnp.stack(arrays), *tables), m.thresholds)
            found["exact"] = counted / 2.0**m.signs
            found["patterns"] = counted
        if self.first[0].sizes.shape[0] <= MOST_HALVED:
            each = event_probabilities([events(layer) for layer in self.first])
            found |= {"wrong": each.sum(axis=1), "most": each.max(axis=1)}
        return found

    def plain(self) -> dict[str, Any]:
        """Estimate by counting lost paths among fair signs."""
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *self.tables)
        draw, count = FairDraw(stacked, self.model.thresholds), self.p.num_draws
        result = self._run("plain", draw, count, self.keys["plain"], chunk_size=min(8192, count))
        numbers = result["lost"]
        low, high = clopper_pearson(numbers["successes"], numbers["count"])
        wide = clopper_pearson(numbers["successes"], numbers["count"], 0.9973)
        return {
            "plain": {
                "probability": numbers["proportion"],
                "low": low,
                "high": high,
                "wide_low": wide[0],
                "wide_high": wide[1],
                "successes": numbers["successes"],
                "draws": int(np.max(numbers["count"])),
            }
        }

    def tilted(self) -> dict[str, Any]:
        """Estimate by tilted signs, for one layer."""
        if len(self.model.layers) > 1:
            return {}
        dtype = self.model.thresholds.dtype
        laws = [tilts(events(layer)) for layer in self.first]
        draw = TiltedDraw(
            jax.tree.map(lambda *arrays: jnp.stack(arrays), *self.first),
            jnp.asarray(np.stack([one.logits for one in laws]), dtype),
            jnp.asarray(np.stack([one.log_shares for one in laws]), dtype),
        )
        statistics = {name: mc.WeightedProportion() for name in ("lost", "wrong", "weight")}
        count = self.p.tilted_draws
        result = self._run(
            "tilted", draw, count, self.keys["tilted"], chunk_size=min(4096, count), statistics=statistics
        )
        found = _weighted(result["lost"], "importance sampling", result["weight"])
        wrong = _weighted(result["wrong"], "wrong responses")
        return {"tilted": found | {"draws": count}, "tilted_wrong": wrong}

    def splitting(self) -> dict[str, Any]:
        """Estimate level by level; levels of all noises are as many, so that one program serves them."""
        p, pilots, notes = self.p, [], []
        for at, table in enumerate(self.tables):
            score = Score(table, self.model.thresholds)
            key = jax.random.fold_in(self.keys["pilot"], at)
            try:
                pilots.append(
                    mc.splitting_levels(score, key, 1.0, score.latent(), num_particles=PILOT, num_moves=p.moves)
                )
                notes.append("")
            except ValueError as error:
                pilots.append(None)
                notes.append(f"splitting: {error}")
        most = max((len(levels.thresholds) for levels in pilots if levels is not None), default=0)
        rows = []
        for at, (table, levels, note) in enumerate(zip(self.tables, pilots, notes, strict=True)):
            if levels is None:
                rows.append(
                    {"probability": math.nan, "low": math.nan, "high": math.nan, "error": math.nan, "note": note}
                )
                continue
            score = Score(table, self.model.thresholds)
            draw = mc.splitting_draw(
                score, refined(levels, most), score.latent(), num_particles=p.particles, num_moves=p.moves
            )
            result = self._run(
                f"splitting-{at + 1}", draw, p.replicates, jax.random.fold_in(self.keys["splitting"], at),
                chunk_size=4, lanes=4, statistics={"log_probability": mc.WeightedProportion()},
            )  # fmt: skip
            row = {name: value[0] for name, value in _weighted(
                {name: np.atleast_1d(value) for name, value in result["log_probability"].items()}, "splitting"
            ).items()}  # fmt: skip
            rows.append(row)
        columns = {name: [row[name] for row in rows] for name in ("probability", "low", "high", "error", "note")}
        evaluations = p.replicates * p.particles * (1 + max(most - 1, 0) * p.moves * len(self.model.layers))
        return {"splitting": columns | {"levels": most, "evaluations": evaluations}}


def _weighted(numbers: Mapping[str, Any], name: str, weights: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return estimates with 95% intervals, level by level, and why not to believe them where so."""
    p, error, size = (numbers[key] for key in ("probability", "probability_standard_error", "effective_hits"))
    low, high = mc.weighted_interval(p, error, size)
    each = [
        mc.weight_note(
            {key: value[at] for key, value in numbers.items()},
            name,
            weights=None if weights is None else {key: value[at] for key, value in weights.items()},
        )
        for at in range(len(p))
    ]
    return {"probability": p, "low": low, "high": high, "error": error, "effective_hits": size, "note": each}


def _figure(report: Mapping[str, Any], dataset: xr.Dataset | None) -> Figure:
    from cnninv_jax.experiments.dcsc_rare_figure import rare_figure

    return rare_figure(report)


DCSC_RARE = Study(
    name="dcsc-rare",
    title="How seldom an activation path is lost: probabilities down to 1e-9",
    source="Murray 2018, eq. (3)",
    parameters=RareParameters,
    compute=_compute,
    figure=_figure,
)
