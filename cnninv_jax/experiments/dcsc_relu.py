"""What a ReLU makes of the D-CSC model: recovery of the path with one-sided projections beside the two-sided threshold.

Murray 2018 replaces the ReLU by a hard threshold, since random signs D give codes of both signs: X^(l) = A D X^(l+1).
The study counts what that saves. With random D, or with deep atoms of both signs, a ReLU loses every negative entry of
X^(1), ..., X^(L-1), and a CReLU, which passes both halves on, loses none. With D = I and non-negative deep atoms there
are none to lose, but what atoms overlap adds up instead of cancelling. Whether random signs help a two-sided threshold
is another question, answered for the dictionary at hand by two comparisons: with D = I and the same atoms, and with
D = I and non-negative ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from cnninv_jax.experiments.dcsc_dictionaries import Dictionaries, build, check
from cnninv_jax.experiments.dcsc_relu_draws import COUNTS, PAIRS, PROJECTIONS, SETTINGS, Blocks
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.rows import kept_rows
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, Table, progress_bar
from cnninv_jax.montecarlo import wilson
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Headings of the projections.
SHORT = {
    "hard": "hard",
    "relu": "one-sided hard",
    "crelu": "CReLU, hard",
    "soft": "soft",
    "shifted_relu": "ReLU, bias",
    "shifted_crelu": "CReLU, bias",
}


@dataclasses.dataclass(frozen=True)
class ReluParameters(Dictionaries):
    """Dictionaries, sparsities and thresholds."""

    D: int = 48
    """Signal length per axis."""
    M: int = 64
    """Channels of the signal."""
    num_filters: tuple[int, ...] = (48, 32, 16)
    """Filters n_1, n_2, ... of the layers, the one next to the signal first; a model of depth L takes the first L."""
    ell: int = 8
    """Filter length per axis, in every layer."""
    nonzeros: int = 3
    """Non-zero entries of an atom of layers 2, 3, ..., of equal size; their signs are random where atoms have both."""
    places: Literal["spread", "random"] = "random"
    """Taps of deep atoms: anywhere (random), or in channels of their own as far as there are channels (spread)."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Numbers of layers L."""
    S: tuple[int, ...] = (4, 8, 12, 16, 24, 32)
    """Most non-zeros of X^(1) in a stripe, filled until no place fits; what an atom of layer L exceeds is left out."""
    num_draws: int = 200
    """Draws of supports and signs per cell, rounded up to whole blocks."""
    block: int = 50
    """Draws side by side; numbers depend on it."""
    smallest: float = 1.0
    """Smallest entry of X^(L)."""
    largest: float = 1.0
    """Largest entry of X^(L)."""
    shrink: float = 0.5
    """Thresholds are |X_min^(l)| / 2. A projection that subtracts its threshold leaves half of such an entry, so that
    its threshold is multiplied by this once for every layer below; 1 for the thresholds of the others."""


def _compute(parameters: ReluParameters, options: StudyOptions, folder: Path) -> Findings:
    _checked(parameters)
    p = dataclasses.replace(parameters, S=tuple(sorted(parameters.S)), depths=tuple(sorted(parameters.depths)))
    root = jax.random.key(options.seed)
    bank_key, draw_key = jax.random.split(root)
    count = -(-p.num_draws // p.block)
    spec = {"parameters": dataclasses.asdict(p), "seed": options.seed, "precision": options.precision}
    spec["parameters"] = {k: v for k, v in spec["parameters"].items() if k not in ("S", "depths", "num_draws")}
    cells: list[dict[str, Any]] = []
    models: dict[str, Any] = {}
    needed: list[int] = []
    total = len(p.depths) * len(p.S) * count
    with (
        results_folder(folder),
        kept_rows(folder / "draws.json", spec) as rows,
        progress_bar("ReLUs and thresholds", total, quiet=options.quiet) as bar,
    ):
        for depth in p.depths:
            model = build(bank_key, p, depth, options.precision)
            blocks = Blocks(model, p.block, p.shrink, (p.smallest, p.largest))
            least = blocks.least()
            needed.append(least)
            models[str(depth)] = {"coherence": np.asarray(blocks.coherence, float).tolist(), "least_S": least}
            for asked in p.S:
                if asked < least:
                    bar.advance(count)
                    continue
                name = f"depth {depth}, S {asked}"
                key = jax.random.fold_in(jax.random.fold_in(draw_key, depth), asked)
                for number in range(len(rows.of(name)), count):
                    rows.add(name, blocks.row(key, asked, number))
                    bar.advance(1, name)
                cells.append(_cell(blocks.total(rows.of(name)[:count]), depth, asked, count * p.block))
    if not cells:
        raise ValueError(f"expected an --S that one non-zero of X^(L) keeps, at least {min(needed)}, got {p.S}")
    content = {"models": models, "draws_per_cell": count * p.block, "cells": cells, "shown": _shown(p, cells)}
    return Findings(content, _tables(p, content))


def _checked(p: ReluParameters) -> None:
    """Refuse parameters that do not fit, in the words of the command line."""
    for name in ("depths", "S"):
        if not getattr(p, name):
            raise ValueError(f"expected at least one value of --{name}, got none")
        for value in getattr(p, name):
            positive(value, f"--{name}", 1 << 20)
        if len(set(getattr(p, name))) != len(getattr(p, name)):
            raise ValueError(f"expected --{name} to be different numbers, got {getattr(p, name)}")
    for name in ("num_draws", "block"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 31)
    if not (0 < p.smallest <= p.largest < math.inf):
        raise ValueError(f"expected 0 < --smallest <= --largest, got {p.smallest} and {p.largest}")
    if not 0 < p.shrink <= 1:
        raise ValueError(f"expected --shrink above 0 and at most 1, got {p.shrink}")
    check(p, max(p.depths))


def _cell(total: Mapping[str, Any], depth: int, asked: int, draws: int) -> dict[str, Any]:
    """Return one depth and S as the report holds it: probabilities with 95% intervals, counts per layer."""
    settings = {}
    for setting in SETTINGS:
        held = total[setting]
        settings[setting] = {
            "entries": held["entries"].tolist(),
            "negative": held["negative"].tolist(),
            "equal": dict(zip(PAIRS, held["equal"].tolist(), strict=True)),
            "projections": {
                name: {
                    "path": _proportion(held[name]["path"], draws),
                    **{count: held[name][count].tolist() for count in COUNTS},
                }
                for name in PROJECTIONS
            },
        }
    return {"depth": depth, "asked": asked, "S": (total["S"] / draws).tolist(), "draws": draws, "settings": settings}


def _proportion(successes: np.ndarray, draws: int) -> list[float]:
    low, high = wilson(float(successes), draws)
    return [float(successes) / draws, float(low), float(high)]


def _shown(p: ReluParameters, cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the S whose layers are shown, by depth: the largest at which |h| > beta keeps most paths, D random."""
    found = {}
    for depth in p.depths:
        own = [cell for cell in cells if cell["depth"] == depth]
        kept = [
            cell["asked"] for cell in own if cell["settings"]["random"]["projections"]["hard"]["path"][0] >= 0.5
        ]  # fmt: skip
        if own:
            found[str(depth)] = max(kept) if kept else min(cell["asked"] for cell in own)
    return found


def _tables(p: ReluParameters, content: Mapping[str, Any]) -> tuple[Table, ...]:
    return (*(_path_table(content, setting) for setting in SETTINGS), _layer_table(content))


def _path_table(content: Mapping[str, Any], setting: Any) -> Table:
    rows = []
    for cell in content["cells"]:
        held = cell["settings"][setting]["projections"]
        shown = ["{:.2f} ({:.2f}-{:.2f})".format(*held[name]["path"]) for name in PROJECTIONS]
        rows.append((f"L = {cell['depth']}, S = {cell['asked']}", f"{cell['S'][0]:.1f}", *shown))
    differing = {
        name: sum(cell["draws"] - int(cell["settings"][setting]["equal"][name]) for cell in content["cells"])
        for name in PAIRS
    }
    draws = sum(cell["draws"] for cell in content["cells"])
    notes = [
        f"{content['draws_per_cell']} draws a cell, the same supports for all settings and projections; 95% intervals "
        "(Wilson's). S: most non-zeros in a stripe of X^(1).",
        "Codes that differ from the two-sided threshold's: "
        + ", ".join(f"{SHORT[name]} against {SHORT[PAIRS[name]]} in {number}" for name, number in differing.items())
        + f" of {draws} draws.",
    ]
    if setting != "random":
        notes.append(_compared(content, setting))
    return Table(
        f"Probability that the path is recovered; {SETTINGS[setting]}",
        ("layers, S asked for", "mean S_1", *SHORT.values()), tuple(rows), tuple(notes),
    )  # fmt: skip


def _compared(content: Mapping[str, Any], setting: Any) -> str:
    """Return what random signs do for the two-sided threshold, beside another setting of this dictionary."""

    def share(cell: Mapping[str, Any], which: Any) -> Sequence[float]:
        return cell["settings"][which]["projections"]["hard"]["path"]

    cells = content["cells"]
    more = sum(share(cell, "random")[1] > share(cell, setting)[2] for cell in cells)
    less = sum(share(cell, "random")[2] < share(cell, setting)[1] for cell in cells)
    with_signs, without = (sum(share(cell, which)[0] for cell in cells) / len(cells) for which in ("random", setting))
    return (
        f"For this dictionary, |h| > beta recovers {100 * with_signs:.1f}% of the paths with D random against "
        f"{100 * without:.1f}% here, mean over cells; intervals lie apart in {more + less} of {len(cells)} cells, "
        f"above in {more} and below in {less}."
    )


def _layer_table(content: Mapping[str, Any]) -> Table:
    rows = []
    for cell in content["cells"]:
        if content["shown"][str(cell["depth"])] != cell["asked"]:
            continue
        for setting, held in cell["settings"].items():
            for at, entries in enumerate(held["entries"]):
                cells = [f"{100 * held['negative'][at] / entries:.0f}%"]
                for name in ("hard", "relu", "soft", "shifted_relu"):
                    one = held["projections"][name]
                    lost, made = (100 * one[count][at] / entries for count in ("misses", "false_alarms"))
                    cells.append(f"{_percent(lost)} / {_percent(made)}")
                relu = held["projections"]["relu"]
                part = relu["missed_negative"][at] / relu["misses"][at] if relu["misses"][at] else math.nan
                cells.append("-" if math.isnan(part) else f"{100 * part:.1f}%")
                where = f"{SETTINGS[setting].split(':')[0]}; L = {cell['depth']}, S = {cell['asked']}, layer {at + 1}"
                rows.append((where, *cells))
    names = [f"{SHORT[name]}: lost / made up" for name in ("hard", "relu", "soft", "shifted_relu")]
    notes = (
        "lost, made up: entries of X^(l) missed and false alarms, as part of the non-zeros of X^(l); of each depth the "
        "largest S at which the hard threshold recovers at least half of the paths, D random.",
        "A layer sees what the layers below it made: what is lost there costs entries above.",
    )
    return Table(
        "Entries lost and made up, layer by layer",
        ("setting, layer", "X^(l) < 0", *names, "one-sided: lost that are < 0"), tuple(rows), notes,
    )  # fmt: skip


def _percent(value: float) -> str:
    return "0%" if value == 0 else f"{value:.2g}%" if value < 9.95 else f"{value:.0f}%"


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcsc_relu_figure import relu_figure

    return relu_figure(report, dataset)


DCSC_RELU = Study(
    name="dcsc-relu",
    title="D-CSC by ReLU: one-sided and two-sided projections, with random signs and without",
    source="Murray 2018, section 3 and eq. (1)",
    parameters=ReluParameters,
    compute=_compute,
    figure=_figure,
)
