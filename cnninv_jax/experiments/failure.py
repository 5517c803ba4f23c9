"""How often does eq. (1) of Gilbert et al. 2017 fail for a random filter bank? Probabilities far below 1e-6, four ways.

Plain Monte Carlo sees nothing there; importance sampling and splitting do, and are held against the closed form: of the
given code, of any code where k = 1, and otherwise its average over random codes (conditional Monte Carlo).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import montecarlo as mc
from cnninv_jax import rip
from cnninv_jax.experiments.failure_draws import FailureParameters, PlainDraw, Score, WeightedDraw, code_proposer
from cnninv_jax.experiments.files import results_folder, save_json, writing
from cnninv_jax.experiments.options import Precision, checked_seed
from cnninv_jax.experiments.runs import another_run, default_folder
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.rip.tails import tail_signs
from cnninv_jax.sparsity import sample_code

#: Parts of delta at which the picture shows probabilities; where delta is too large for it, the last is left out.
CURVE = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.15)
#: Points of the closed form's line, and codes behind each where it is an average.
LINE_POINTS, LINE_CODES = 19, 1000
#: Part of the draws that every point of the picture but the last gets.
CURVE_SHARE = 10
#: Standard errors that may lie between two estimates of one number, and the level of an interval as wide.
MOST_ERRORS, WIDE_LEVEL = 3.0, 0.9973


@dataclasses.dataclass(frozen=True)
class FailureOptions:
    """How the probability is estimated."""

    num_draws: int = 100_000
    """Draws of plain Monte Carlo, and of importance sampling."""
    candidates: int = 32
    """Random codes from which a weighted draw chooses one."""
    replicates: int = 32
    """Independent repetitions of splitting."""
    particles: int = 512
    """Particles of a repetition."""
    moves: int = 6
    """Moves of every particle above every level, each through filters, shifts and values."""
    codes: int = 10_000
    """Codes whose closed forms are averaged where the code is random."""
    seed: int = 0
    """Seed of all that is random."""
    out: Path | None = None
    """Folder for failure.json, the picture and the journals; by default a folder of its own under runs/."""
    precision: Precision = "float32"
    """Arithmetic of the draws; closed forms are computed in float64."""
    quiet: bool = False
    """No progress."""


@dataclasses.dataclass(frozen=True)
class FailureReport:
    """What `failure` found; ``content`` is failure.json."""

    content: Mapping[str, Any]
    folder: Path
    files: tuple[Path, ...]


def failure(parameters: FailureParameters, options: FailureOptions) -> FailureReport:
    """Estimate the failure probability of eq. (1) by all methods, into a folder: failure.json, picture, journals.

    Args:
        parameters: what fails.
        options: how it is estimated.

    Raises:
        ValueError: sizes, names or numbers that do not fit; one sentence.
        MonteCarloError: the folder cannot be used, or belongs to another run.
    """
    _check(parameters, options)
    plain = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("out", "quiet")}
    user = {"command": "failure", "parameters": dataclasses.asdict(parameters), "options": plain}
    with results_folder(options.out or default_folder("failure", user)) as folder:
        work = _Work(parameters, options, user, folder)
        reference = work.reference()
        methods = [work.plain(), work.importance(), work.splitting()]
        for entry in methods:
            entry["verdict"] = verdict(entry, reference)
        content = {
            "parameters": {**user["parameters"], "n": parameters.shifts},
            "options": plain,
            "methods": [*methods, {**reference, "verdict": "reference"}],
            "curve": {**work.curve, "reference": work.line()},
            "agree": all(entry["verdict"].startswith("agrees") for entry in methods),
        }
        return FailureReport(content, folder, tuple(_save(content, folder)))


def _check(p: FailureParameters, o: FailureOptions) -> None:
    """Refuse what cannot be computed, before a folder is made."""
    checked_seed(o.seed)
    for name, flag in (
        ("K", "--K"),
        ("M", "--M"),
        ("ell", "--ell"),
        ("D", "--D"),
        ("k", "--k"),
        ("stride", "--stride"),
    ):
        positive(getattr(p, name), flag, 1 << 30)
    for name, least in (
        ("num_draws", 2),
        ("replicates", 2),
        ("particles", 16),
        ("codes", 2),
        ("candidates", 1),
        ("moves", 1),
    ):
        flag = "--" + name.replace("_", "-")
        if positive(getattr(o, name), flag, 1 << 30) < least:
            raise ValueError(f"expected {flag} to be at least {least}, got {getattr(o, name)}")
    tail_signs(p.side, float(p.delta))
    if not math.isfinite(p.delta):
        raise ValueError(f"expected --delta to be a number, got {p.delta}")
    try:
        draw = WeightedDraw(jnp.asarray(p.delta, o.precision), None, p.setting, o.candidates, o.precision)
        jax.eval_shape(draw, jax.random.key(0))
    except OverflowError as error:
        raise ValueError(f"expected sizes that fit into 32 bits, got {dataclasses.asdict(p)} ({error})") from None
    except ValueError as error:
        raise ValueError(str(error).replace(" or padding='same'", "")) from None


def verdict(entry: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Return whether an estimate agrees with the reference: "agrees", "differs", or "undecided" with a note."""
    truth, p = reference["probability"], entry["probability"]
    if entry["note"]:
        return "undecided (see the note)"
    if reference["note"]:
        return "undecided (see the reference's note)"
    if "successes" in entry:
        low, high = (float(end) for end in mc.wilson(entry["successes"], entry["draws"], WIDE_LEVEL))
        return "agrees" if low <= truth <= high else "differs"
    relative = [one["standard_error"] / one["probability"] for one in (entry, reference)]
    off = math.log(p / truth) / max(math.hypot(*relative), 1e-12)
    return f"{'agrees' if abs(off) <= MOST_ERRORS else 'differs'} ({off:+.1f} s.e.)"


class _Work:
    """The runs behind one report; every method has a key of its own."""

    def __init__(self, p: FailureParameters, o: FailureOptions, user: Mapping[str, Any], folder: Path) -> None:
        self.p, self.o, self.user, self.folder = p, o, user, folder
        self.dtype = np.dtype(o.precision)
        names = ("code", "plain", "importance", "curve", "pilot", "splitting", "conditional", "line")
        self.keys = dict(zip(names, jax.random.split(jax.random.key(o.seed), len(names)), strict=True))
        self.code = None
        if p.code == "fixed":
            self.code = sample_code(self.keys["code"], p.K, p.shifts, p.k, values=p.values, dtype=self.dtype)
        # A single entry: where it lies and what it is do not matter.
        self.closed = self.code if self.code is not None or p.k > 1 else sample_code(
            self.keys["code"], p.K, p.shifts, 1, values="signs", dtype=self.dtype
        )  # fmt: skip
        most = math.inf if p.side == "upper" else 1.0
        self.deltas = np.array([p.delta * part for part in CURVE if part <= 1.0 or p.delta * part < most])
        self.curve: dict[str, Any] = {"deltas": self.deltas}

    def _run(self, name: str, draw: Callable[..., Any], key: jax.Array, num_draws: int, **options: Any) -> mc.Result:
        """Run with a journal of its own, or, for what the picture needs besides, without one."""
        run = functools.partial(mc.run, draw, key, num_draws, name=name, progress=not self.o.quiet, **options)
        if name not in ("plain", "importance", "splitting"):
            return run()
        folder = self.folder / name
        user = {**self.user, "of": name}
        with results_folder(folder):
            try:
                return run(out=folder, spec=user)
            except mc.JournalLockedError:
                raise
            except mc.JournalError as error:
                raise another_run(folder, user) or error from None

    def plain(self) -> dict[str, Any]:
        """Estimate by counting failures."""
        draw = PlainDraw(jnp.asarray(self.deltas, self.dtype), Score(self.code, self.p.setting), self.o.precision)
        result = self._run("plain", draw, self.keys["plain"], self.o.num_draws, chunk_size=min(4096, self.o.num_draws))
        numbers = result["failure"]
        low, high = mc.wilson(numbers["successes"], numbers["count"])
        at = int(np.argmin(np.abs(self.deltas - self.p.delta)))
        self.curve["plain"] = {"probability": numbers["proportion"], "low": low, "high": high}
        return {
            "method": "plain Monte Carlo",
            "probability": float(numbers["proportion"][at]),
            "interval_95": [float(low[at]), float(high[at])],
            "standard_error": float(numbers["proportion_standard_error"][at]),
            "successes": int(numbers["successes"][at]),
            "hits": int(numbers["successes"][at]),
            "effective_hits": float(numbers["successes"][at]),
            "draws": int(numbers["count"][at]),
            "evaluations": int(numbers["count"][at]),
            "note": "",
            **_times(result),
        }

    def importance(self) -> dict[str, Any]:
        """Estimate by draws under the tilted law, with weights; the picture's other points by fewer draws."""
        statistics = {"failure": mc.WeightedProportion(), "weight": mc.WeightedProportion()}
        points = []
        for delta, key in zip(self.deltas, jax.random.split(self.keys["curve"], len(self.deltas)), strict=True):
            headline = delta == self.p.delta
            draw = WeightedDraw(
                jnp.asarray(delta, self.dtype), self.code, self.p.setting, self.o.candidates, self.o.precision
            )
            result = self._run(
                "importance" if headline else "curve",
                draw,
                self.keys["importance"] if headline else key,
                self.o.num_draws if headline else max(self.o.num_draws // CURVE_SHARE, 2),
                chunk_size=min(4096, self.o.num_draws),
                statistics=statistics,
            )
            points.append(
                {
                    "method": "importance sampling",
                    **_weighted(result, "failure", "importance sampling", "weight"),
                    **_times(result),
                }
            )
        self.curve["importance"] = _columns(points)
        return next(point for point, delta in zip(points, self.deltas, strict=True) if delta == self.p.delta)

    def splitting(self) -> dict[str, Any]:
        """Estimate level by level; the levels on the way are points of the picture."""
        o, score = self.o, Score(self.code, self.p.setting)
        latent = score.latent(o.precision)
        began = time.perf_counter()
        try:
            levels = mc.splitting_levels(
                score, self.keys["pilot"], self.p.delta, latent, num_particles=max(o.particles, 1024), num_moves=o.moves
            )
        except ValueError as error:
            self.curve["splitting"] = {"deltas": [], "probability": [], "low": [], "high": []}
            missing = dict.fromkeys(("probability", "standard_error", "seconds", "compile_seconds"), math.nan)
            nothing = dict.fromkeys(("hits", "effective_hits", "draws", "evaluations"), 0)
            return {
                "method": "splitting",
                **missing,
                **nothing,
                "interval_95": [math.nan] * 2,
                "note": f"splitting: {error}",
            }
        pilot = time.perf_counter() - began
        draw = mc.splitting_draw(score, levels, latent, num_particles=o.particles, num_moves=o.moves)
        weighted = {name: mc.WeightedProportion() for name in ("log_probability", "log_level_probability")}
        result = self._run(
            "splitting", draw, self.keys["splitting"], o.replicates, chunk_size=2, lanes=2, statistics=weighted
        )
        thresholds = np.asarray(levels.thresholds, float)
        numbers = result["log_level_probability"]
        low, high = _interval(numbers)
        each = [{name: value[level] for name, value in numbers.items()} for level in range(len(thresholds))]
        self.curve["splitting"] = {
            "deltas": thresholds, "probability": numbers["probability"], "low": low, "high": high,
            "believed": [not mc.weight_note(one, "splitting") for one in each],
        }  # fmt: skip
        entry = _weighted(result, "log_probability", "splitting", None)
        scores = o.replicates * o.particles * (1 + (len(thresholds) - 1) * o.moves)
        return {
            "method": "splitting",
            **entry,
            "evaluations": scores,
            "levels": len(thresholds),
            "acceptance": float(result["acceptance"]["mean"]),
            "families": float(result["families"]["mean"]),
            "degenerate": float(result["degenerate"]["proportion"]),
            "pilot_seconds": pilot,
            **_times(result),
        }

    def reference(self) -> dict[str, Any]:
        """Return the closed form, or its average over random codes."""
        began = time.perf_counter()
        if self.closed is not None:
            probability, error = self._exact(self.p.delta)
            return {
                "method": "closed form" + (" (chi-square)" if self.p.k == 1 else ""),
                "probability": probability,
                "interval_95": [probability, probability],
                "standard_error": error * probability,
                "draws": 0, "evaluations": 0, "hits": 0, "effective_hits": math.inf, "note": "",
                "seconds": time.perf_counter() - began, "compile_seconds": 0.0,
            }  # fmt: skip
        numbers = self._conditional(self.keys["conditional"], self.p.delta, self.o.codes)
        return {"method": "conditional Monte Carlo", **numbers, "seconds": time.perf_counter() - began,
                "compile_seconds": 0.0}  # fmt: skip

    def _exact(self, delta: float) -> tuple[float, float]:
        assert self.closed is not None
        tail = rip.failure_probability(self.closed, self.p.M, self.p.ell, delta, self.p.side, stride=self.p.stride)
        return float(tail.probability), float(tail.relative_error)

    def _conditional(self, key: jax.Array, delta: float, count: int) -> dict[str, Any]:
        """Return the average of closed forms over codes that are drawn where failures come from."""
        propose = code_proposer(self.p.setting, self.o.candidates, self.o.precision)
        codes, log_weights = propose(jax.random.split(jax.random.clone(key), count), jnp.asarray(delta, self.dtype))
        exact = rip.failure_probability(codes, self.p.M, self.p.ell, delta, self.p.side, stride=self.p.stride)
        terms = exact.probability * np.exp(np.asarray(log_weights, np.float64))
        mean, error = terms.mean(), terms.std(ddof=1) / math.sqrt(count)
        squares = np.square(terms).sum()
        effective = terms.sum() ** 2 / squares if squares > 0 else 0.0
        low, high = mc.weighted_interval(mean, error, effective)
        numbers = {
            "hits": count,
            "effective_hits": effective,
            "largest_share": terms.max() / terms.sum(),
            "non_finite": 0,
        }
        return {
            "probability": float(mean),
            "interval_95": [float(low), float(high)],
            "standard_error": float(error),
            "draws": count, "evaluations": count, "hits": count, "effective_hits": float(effective),
            "note": mc.weight_note({**numbers, "count": count, "non_finite": 0}, "conditional Monte Carlo"),
        }  # fmt: skip

    def line(self) -> dict[str, Any]:
        """Return the reference over the picture's range of delta."""
        first = min([self.deltas[0], *self.curve["splitting"]["deltas"]])
        deltas = np.linspace(max(first, 0.5 * self.deltas[0]), self.deltas[-1], LINE_POINTS)
        if self.closed is not None:
            probability = [self._exact(float(delta))[0] for delta in deltas]
        else:
            # One set of random numbers for all deltas: a smooth line.
            count = min(LINE_CODES, self.o.codes)
            probability = [self._conditional(self.keys["line"], float(d), count)["probability"] for d in deltas]
        return {"deltas": deltas, "probability": probability}


def _interval(numbers: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return mc.weighted_interval(
        numbers["probability"], numbers["probability_standard_error"], numbers["effective_hits"]
    )


def _weighted(result: mc.Result, leaf: str, method: str, weights: str | None) -> dict[str, Any]:
    """Return the numbers of a weighted estimate, with what stands against believing it."""
    numbers = result[leaf]
    low, high = _interval(numbers)
    note = mc.weight_note(numbers, method, weights=None if weights is None else result[weights])
    return {
        "probability": float(numbers["probability"]),
        "interval_95": [float(low), float(high)],
        "standard_error": float(numbers["probability_standard_error"]),
        "hits": int(numbers["hits"]),
        "effective_hits": float(numbers["effective_hits"]),
        "largest_share": float(numbers["largest_share"]),
        **({} if weights is None else {"mean_weight": float(result[weights]["probability"])}),
        "draws": int(numbers["count"]),
        "evaluations": int(numbers["count"]),
        "note": note,
    }


def _times(result: mc.Result) -> dict[str, float]:
    return {key: float(result.provenance[key]) for key in ("seconds", "compile_seconds")}


def _columns(points: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "probability": [point["probability"] for point in points],
        "low": [point["interval_95"][0] for point in points],
        "high": [point["interval_95"][1] for point in points],
        "believed": [not point["note"] for point in points],
    }


def _save(content: Mapping[str, Any], folder: Path) -> list[Path]:
    from cnninv_jax.experiments.render import save_figure
    from cnninv_jax.experiments.tail_figure import failure_figure

    with writing("failure.json"):
        written = [save_json(content, folder / "failure.json")]
    saved = json.loads(written[0].read_text(encoding="utf-8"))
    with writing("the figure"):
        return [*written, *save_figure(failure_figure(saved), folder, "failure")]
