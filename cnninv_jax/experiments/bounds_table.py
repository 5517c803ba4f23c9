"""The tables of `gilbert-bounds`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cnninv_jax import rip
from cnninv_jax.experiments.bounds_draws import RELATIVE_ERRORS
from cnninv_jax.experiments.studies import Table
from cnninv_jax.rip.concentration import Version

if TYPE_CHECKING:
    from cnninv_jax.experiments.bounds import BoundsParameters


#: The texts of Thm 3.1, in the order of the tables' columns.
VERSIONS: tuple[Version, ...] = ("ijcai", "arxiv")


def bounds_tables(p: BoundsParameters, content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the tables of what was found."""
    tables = (_lemmas(p, content), _by_channels(p, content), _probabilities(p, content), _constants(p, content))
    return tables if content["paper_size"] is None else (*tables, _paper_size(p, content))


def _lemmas(p: BoundsParameters, content: Mapping[str, Any]) -> Table:
    rows = []
    for name, found in content["bounds"].items():
        better = f"{found['informative']:.1%}" if name in RELATIVE_ERRORS else "-"
        rows.append((
            found["title"],
            f"{found['finite']:.1%}",
            better,
            f"{found['violated']:,}" + (f" ({found['exceeded']:,})" if found["exceeded"] != found["violated"] else ""),
            _times(found["loose_median"]),
            _times(found["loose_least"]),
            f"{found['zero']:.1%}",
        ))  # fmt: skip
    first = next(iter(content["bounds"].values()))
    fixed = content["bounds"]["fixed"]
    share = fixed["informative_violated"] / max(fixed["informative"] * fixed["draws"], 1)
    notes = (
        f"{first['draws']:,} draws of filters and a code, each with exact delta_k and delta_2k; K = {p.K}, "
        f"l = {p.ell}, D = {p.D}, t = {p.stride}, n = {p.shifts}, k = {p.k}, M = {', '.join(map(str, p.channels))}.",
        "speaks: finite (eq. (7): positive). better than 0: below 1, what an estimate of zero has.",
        "violated: left side above right beyond worst-case rounding; in brackets: at all, where that differs."
        + ("" if first["violated"] else f" None in so many draws: P < {first['violation_probability_at_most']:.1e}."),
        "bound / observed over draws where it speaks and something is observed; observed is 0 where nothing is missed.",
        f"naive unsampling: the paper says that Thm 3.3 holds for any switches; {share:.0%} of the draws in which it "
        "says something contradict it for M_fixed. Its proof needs the best support.",
    )
    columns = ("bound", "speaks", "better than 0", "violated", "bound / observed: median", "least", "observed is 0")
    return Table("Lemmas B.1 to B.4 and Thm 3.3 with exact constants", columns, tuple(rows), notes)


def _by_channels(p: BoundsParameters, content: Mapping[str, Any]) -> Table:
    found = content["by_channels"]
    rows = [
        (
            str(m),
            str(m * p.ell),
            *(
                f"{found[name]['0.5'][at]:.3f} ({found[name]['0.05'][at]:.3f}-{found[name]['0.95'][at]:.3f})"
                for name in ("delta_k", "delta_2k")
            ),
            f"{found['finite'][at]:.1%}",
            f"{found['informative'][at]:.1%}",
        )
        for at, m in enumerate(p.channels)
    ]
    columns = ("M", "M l", "delta_k", "delta_2k", "Thm 3.3 finite", "Thm 3.3 below 1")
    notes = ("Medians, in brackets 5% and 95% quantiles over banks.",)
    return Table("Where Thm 3.3 speaks", columns, tuple(rows), notes)


def _probabilities(p: BoundsParameters, content: Mapping[str, Any]) -> Table:
    theorem = content["theorem_3_1"]
    entries = {
        "eq. (4), Gaussian, M l in place of M l^2/D": content["equation_4"],
        "P(delta_k > delta), Gaussian, no constant": theorem["explicit"],
        "Thm 3.1 (IJCAI) at its smallest C": theorem["ijcai"],
        "Thm 3.1 (arXiv) at its smallest C": theorem["arxiv"],
    }
    rows = tuple(
        (
            name,
            str(found.get("cells_violated", "-")),
            _times(found["looseness"]["median"]),
            _times(found["looseness"]["least"]),
            f"{found['looseness']['speaks']} of {found['looseness']['cells']}",
        )
        for name, found in entries.items()
    )
    columns = ("bound", "cells violated", "bound / observed: median", "least", "speaks in cells")
    notes = (
        "A cell is a size and a delta with at least 10 failures; a bound below 1 speaks, and is compared.",
        "Violated: beyond Wilson's interval at 95% for all cells together. A calibrated C cannot be violated by the "
        "cells that calibrate it.",
    )
    return Table("Bounds on probabilities", columns, rows, notes)


def _constants(p: BoundsParameters, content: Mapping[str, Any]) -> Table:
    found = {version: content["theorem_3_1"][version] for version in VERSIONS}
    rows = [("all cells", *(_interval(entry) for entry in found.values()))]
    rows += [(name, *(_interval(entry["parts"][name]) for entry in found.values())) for name in found["ijcai"]["parts"]]
    theorem = content["theorem_3_1"]
    rows.append(("k = 1, any epsilon (closed form)", *[f"{theorem['closed_form']['C']:.3g}"] * 2))
    rows.append(("proved for Gaussian filters", *[f"{theorem['proved']:.3g}"] * 2))
    cells = {version: entry["cell"] for version, entry in found.items()}
    notes = (
        f"K = {p.calibration_K}, n = {p.shifts}, l = {p.ell}, strides {', '.join(map(str, p.calibration_strides))}; "
        f"{p.calibration_draws:,} banks each. Intervals: Clopper-Pearson, 95% for all cells together; cells with at "
        "least 10 failures.",
        "A form is right where the needed C is level from part to part. Growing without end would refute it; falling "
        "means that it asks for more than is needed. Closed form: no smaller C holds for every epsilon.",
        *(
            f"{version}: decided at stride {cell['stride']}, M = {cell['M']}, k = {cell['k']}, "
            f"delta = {cell['delta']:.2f}."
            for version, cell in cells.items()
            if cell is not None
        ),
    )
    return Table("Thm 3.1: the smallest C that simulation supports", ("cells", "IJCAI", "arXiv"), tuple(rows), notes)


def _paper_size(p: BoundsParameters, content: Mapping[str, Any]) -> Table:
    found, theorem = content["paper_size"], content["theorem_3_1"]
    sizes = {"num_filters": found["K"], "shifts": found["n"], "k": found["k"]}
    needed = [
        float(rip.theorem_3_1(delta=0.5, epsilon=0.01, constant=max(theorem[v]["C"], theorem["closed_form"]["C"]),
                              version=v, **sizes).value)
        for v in VERSIONS
    ]  # fmt: skip
    bounds = [found["bound_at_least"], found["refined_at_least"]]
    rows = (
        ("delta_k, certified", f"{found['lower']:.3g} to {found['upper']:.3g}"),
        ("Thm 3.3 on the error, at least", "infinite" if math.isinf(bounds[0]) else f"{bounds[0]:.3g}"),
        ("the same, not rounded up", "infinite" if math.isinf(bounds[1]) else f"{bounds[1]:.3g}"),
        ("M l^2 / D", f"{found['ratio']:.3g}"),
        *(
            (f"M l^2 / D for delta = 0.5, epsilon = 0.01 ({name})", f"{value:.3g}")
            for name, value in zip(("IJCAI", "arXiv"), needed, strict=True)
        ),
    )
    silent = "says nothing" if math.isinf(bounds[0]) else "is no better than an estimate of zero"
    notes = (
        f"One bank of K = {found['K']:.0f}, M = {found['M']:.0f}, l = {found['ell']:.0f}, D = {found['D']:.0f}, k = "
        f"{found['k']:.0f}. The lower end is that of a support, the upper one of all (rip.constant).",
        *((f"Thm 3.3 {silent} about the errors of Fig. 2.",) if min(bounds) > 1 else ()),
        "Thm 3.1 with the larger of the calibrated C and that of k = 1 at any epsilon.",
    )
    return Table("The size of Fig. 2", ("quantity", "value"), rows, notes)


def _interval(found: Mapping[str, float]) -> str:
    if math.isnan(found["C"]):
        return "-"
    return f"{found['C']:.3g} ({found['low']:.3g}-{found['high']:.3g})"


def _times(value: float) -> str:
    return "-" if math.isnan(value) else f"x{value:.3g}"
