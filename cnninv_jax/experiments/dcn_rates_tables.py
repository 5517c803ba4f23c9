"""The tables of `dcn-rates`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax.experiments.dcn_rates_fit import NORMAL_95
from cnninv_jax.experiments.studies import Table

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcn_rates import RatesParameters


#: What falls with N, by output.
SQUARES = {"deviation": "E|f - f*|^2 / |f*|^2", "sine_squared": "E sin^2 Theta"}


def rates_tables(p: RatesParameters, content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the tables of what was found."""
    return (*(_falls(p, content, kind) for kind in SQUARES), _bounds(p, content), _angles(content))


def _falls(p: RatesParameters, content: Mapping[str, Any], kind: str) -> Table:
    rows = []
    for name, found in content["rates"].items():
        fit, theory = found[kind], found["first_order"][kind]
        cells = [
            f"{fit['slope']:.3f} ({fit['low']:.3f}-{fit['high']:.3f})",
            f"{fit['probability']:.2g}",
            f"{fit['straight']:.3f} ({fit['straight_low']:.3f}-{fit['straight_high']:.3f})",
            f"{fit['straight_probability']:.2g}",
            f"{fit['prefactor']:.3f}",
            f"{theory:.3f}",
            "{:.3f} ({:.3f}-{:.3f})".format(*(fit[f"prefactor{end}"] / theory for end in ("", "_low", "_high"))),
        ]
        if kind == "deviation":
            cells += [f"{found['theorem_sum']:.3f}", _exact(found)]
        rows.append((name, *cells))
    columns = ["network", "slope s", "p", "straight", "p", "prefactor", "theory", "prefactor / theory"]
    notes = [
        f"{p.law.capitalize()} filters, {len(content['pictures'])} {'colour' if p.colour else 'grey'} pictures, "
        f"{max(content['draws'])} draws at N = {p.widths[0]} to {min(content['draws'])} at N = {p.widths[-1]}, each "
        "with networks of its own for every picture. In brackets 95% intervals. Theory: slope 1. 2x2/2: stride 2.",
    ]
    if kind == "deviation":
        columns += ["Thm 8's sum", "Thm 6: ratio"]
        notes += [
            "slope: s of log y = log c - s log N + b/N + d/N^2, weighted by smoothed errors; straight: s without b "
            "and d. p: of a chi-square at least as large; below 0.05 the form does not agree with the means.",
            "prefactor: c of y = c/N (1 + b/N + d/N^2). theory: c to first order in 1/N, this program's own "
            "derivation, exact for one convolution; mean over the pictures.",
            "Thm 8's sum: K_1, and K_2 for every convolution before the last. From squares to roots K_2 / 4 is left of "
            "K_2 at most.",
            "Thm 6: N E|f - f*|^2 / (K_1 |f*|^2), 1 at every N in its proof; weighted mean over all widths.",
        ]
    else:
        notes += [
            "What of f - f* points along f* has no angle: sin^2 is a small part of the square for smooth pictures.",
            "Depths of one filter length come from the same draws, so that their rows are not independent.",
        ]
    return Table(f"{SQUARES[kind]} over N", tuple(columns), tuple(rows), tuple(notes))


def _exact(found: Mapping[str, Any]) -> str:
    if "theorem_6" not in found:
        return "-"
    ratio, half = found["theorem_6"]["ratio"], NORMAL_95 * found["theorem_6"]["standard_error"]
    return f"{ratio:.3f} ({ratio - half:.3f}-{ratio + half:.3f})"


def _bounds(p: RatesParameters, content: Mapping[str, Any]) -> Table:
    rows = []
    for name, bounds in content["bounds"].items():
        for found in bounds.values():
            speaks = found["speaks_from"]
            low, high = found["looseness_low"][-1], found["looseness_high"][-1]
            rows.append((
                name,
                found["title"],
                f"{found['bound'][-1]:.3g}" + ("" if found["bound"][-1] < 1 else " > 1"),
                f"{found['quantile'][-1]:.3g}",
                f"{found['looseness'][-1]:.3g} ({low:.3g}-{high:.3g})",
                "at no N" if speaks is None else f"N >= {speaks}",
                f"{found['violated']:,} of {found['compared']:,}",
            ))  # fmt: skip
    notes = (
        f"delta = {p.delta:g}: a bound may fail in {100 * p.delta:g}% of draws. Numbers at N = {p.widths[-1]}, "
        "violations over all widths; observed: quantile over draws and pictures; bound: mean over pictures.",
        f"looseness: bound / observed; precisely, 1 / the {1 - p.delta:g}-quantile of sin Theta / bound over draws and "
        "pictures, with its 95% interval (order statistics). speaks: below 1 for every picture.",
        "Thm 2, with z*: lambda_i as printed there, not proved. not rounded: what Thm 8's proof gives before its last "
        "steps. |phi| of windows: windows overlap, which Thm 8 excludes; their operator norm stands for Lemma 7.",
        "Thms 6 and 8 end in Markov's inequality, and natural pictures are smooth: most of f - f* lies along f*, where "
        "Theta does not see it. Both make them loose.",
        "Thm 8 falls as N^(-1/4) once there are two convolutions, the angle as N^(-1/2): the looseness grows with N.",
    )
    columns = ("network", "bound", "value", f"observed {100 * (1 - p.delta):g}%", "looseness", "speaks", "violated")
    return Table("bounds on sin Theta", columns, tuple(rows), notes)


def _angles(content: Mapping[str, Any]) -> Table:
    found = content["angles"]
    cosine, bound = (np.asarray(found[name]) for name in ("cosine", "bound"))
    rows = []
    for at, length in enumerate(found["lengths"]):
        cells = []
        for depth in range(len(found["depths"])):
            cells.append(
                f"{cosine[depth, at].mean():.4f} / {bound[depth, at].mean():.4f} / "
                f"{found['looseness'][depth][at]:.2f} / {found['refined_looseness'][depth][at]:.2f}"
            )
        rows.append((f"{length} x {length}", *cells))
    notes = (
        f"cos Phi / Thm 9's bound, means over {len(content['pictures'])} grey pictures / looseness "
        "(1 - bound) / (1 - cos Phi), median over pictures / the same of the bound before the proof rounds.",
        f"violated beyond rounding: {found['violated']} of {found['compared']:,} (before rounding: "
        f"{found['refined_violated']}); the bound is positive, so that it speaks, in {found['speaks']:,}.",
        "Several convolutions: routes counted, zeros outside the picture counted as pixels, as the proof needs it.",
    )
    columns = ("filter", *(f"{depth} convolution{'s' if depth > 1 else ''}" for depth in found["depths"]))
    return Table("cos Phi between picture and limit", columns, tuple(rows), notes)
