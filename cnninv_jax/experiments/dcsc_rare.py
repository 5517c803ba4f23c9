"""How seldom is an activation path lost? Its probability against the noise (Murray 2018, eq. (3)).

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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax._typing import Array
from cnninv_jax.dcsc.bounds import probabilistic_bound, propagated_noise
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
from cnninv_jax.experiments.dcsc_rare_models import Model, RareParameters, check, held_below, make_model, places_of
from cnninv_jax.experiments.dcsc_rare_tables import rare_tables, verdict
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.intervals import clopper_pearson

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Signs whose patterns are all tried, at most, and signs up to which single responses are counted out.
MOST_ENUMERATED, MOST_HALVED = 20, 44
#: Particles of the pilot of splitting.
PILOT = 512


def _compute(parameters: RareParameters, options: StudyOptions, folder: Path) -> Findings:
    p = dataclasses.replace(parameters, zeta=tuple(sorted(parameters.zeta)))
    check(p)
    models = [
        *(make_model(p, options, 1, count) for count in p.signs),
        *(make_model(p, options, 2, count) for count in p.deep),
    ]
    found = []
    with progress_bar("paths that are hardly ever lost", 4 * len(models), quiet=options.quiet) as bar:
        for number, model in enumerate(models):
            # Models of one depth share their programs: the smaller one's supports are padded.
            depth = len(model.layers)
            key = jax.random.fold_in(
                jax.random.fold_in(jax.random.key(options.seed), 100 + depth), places_of(model)[-1]
            )
            alike = [other for other in models if len(other.layers) == depth]
            capacity = [max(counts) for counts in zip(*(places_of(other) for other in alike), strict=True)]
            work = _Work(p, options, model, capacity, key, folder / f"model-{number + 1}")
            steps = (work.exact, work.plain, work.tilted, work.splitting)
            entry = work.describe()
            for step in steps:
                entry |= step()
                bar.advance(note=f"{model.name}, {model.signs} signs")
            found.append(entry | {"verdicts": [verdict(entry, at) for at in range(len(p.zeta))]})
    agree = not any("differs" in one for entry in found for one in entry["verdicts"])
    return Findings({"models": found, "agree": agree}, rare_tables(found))


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
        return {
            "name": m.name,
            "depth": len(m.layers),
            "signs": m.signs,
            "places": places_of(m),
            "channels": m.channels,
            "responses": [layer.signs.size for layer in m.layers],
            "measured": known,
            "zeta": m.zetas / known["smallest"][0],
            "log10_bound": bounds["bound"],
            "log10_adversarial": bounds["adversarial"],
            "tried": m.tried,
            "unlosable": m.unlosable,
        } | ({"hoeffding": self._hoeffding()} if len(m.layers) == 1 else {})

    def _hoeffding(self) -> list[float]:
        """Return his inequality's bound at every level, summed over the responses of layer 1."""
        each = [events(layer) for layer in self.first]
        with np.errstate(divide="ignore"):
            return [
                float(
                    np.sum(
                        np.where(one.pinned < one.weights.shape[1], 0.5, 1.0)
                        * np.exp(-np.square(np.maximum(one.limits, 0)) / (2 * np.square(one.weights).sum(1) + 1e-300))
                    )
                )
                for one in each
            ]

    def exact(self) -> dict[str, Any]:
        """Return the exact probability where all patterns can be tried, and those of the first layer's responses."""
        m, found = self.model, {}
        if m.signs <= MOST_ENUMERATED:
            tables = [
                dcsc.path_tables(m.layers, m.sample.path[-1], noise=noise, capacity=places_of(m)) for noise in m.noise
            ]
            counted = count_patterns(jax.tree.map(lambda *arrays: jnp.stack(arrays), *tables), m.thresholds)
            found["exact"] = counted / 2.0**m.signs
            found["patterns"] = counted
        if self.first[0].sizes.shape[0] <= MOST_HALVED:
            each = event_probabilities([events(layer) for layer in self.first])
            found |= {"wrong": each.sum(axis=1), "most": each.max(axis=1)}
        if len(m.layers) > 1:
            found["held"] = held_below(m.layers, m.sample.path[-1], self.first, float(m.thresholds[1]))
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
            key = jax.random.fold_in(self.keys["pilot"], _bits(p.zeta[at]))
            try:
                pilots.append(
                    mc.splitting_levels(score, key, 1.0, score.latent(), num_particles=PILOT, num_moves=p.moves)
                )
                notes.append("")
            except ValueError as error:
                pilots.append(None)
                notes.append(f"splitting failed: {error}")
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
            key = jax.random.fold_in(self.keys["splitting"], _bits(p.zeta[at]))
            result = self._run(
                f"splitting-{at + 1}", draw, p.replicates, key,
                chunk_size=4, lanes=4, statistics={"log_probability": mc.WeightedProportion()},
            )  # fmt: skip
            row = {name: value[0] for name, value in _weighted(
                {name: np.atleast_1d(value) for name, value in result["log_probability"].items()}, "splitting"
            ).items()}  # fmt: skip
            rows.append(row)
        columns = {name: [row[name] for row in rows] for name in ("probability", "low", "high", "error", "note")}
        evaluations = p.replicates * p.particles * (1 + max(most - 1, 0) * p.moves * len(self.model.layers))
        return {"splitting": columns | {"levels": most, "evaluations": evaluations}}


def _bits(value: float) -> int:
    """Return a whole number of a level's own, for keys that do not depend on which other levels there are."""
    return int(np.float32(value).view(np.uint32))


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
    title="How seldom an activation path is lost",
    source="Murray 2018, eq. (3)",
    parameters=RareParameters,
    compute=_compute,
    figure=_figure,
)
