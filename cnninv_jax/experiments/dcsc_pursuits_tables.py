"""The tables of `dcsc-pursuits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax.experiments.dcsc_pursuits_draws import ABOVE_NOISE, IHT_FLOOR, METHODS, TOLD
from cnninv_jax.experiments.studies import Table

#: Pursuits that solve something.
SOLVING = ("basis_pursuit", "iht")

if TYPE_CHECKING:
    import xarray as xr

    from cnninv_jax.experiments.dcsc_pursuits import PursuitParameters


def pursuit_tables(p: PursuitParameters, content: Mapping[str, Any], dataset: xr.Dataset) -> tuple[Table, ...]:
    """Return what people read: recovery, supports by layer, time, and the gap of the greedy projection.

    Args:
        p: the study's parameters, S in rising order.
        content: its findings.
        dataset: its arrays.
    """
    tables = (
        _recovery(p, content, dataset),
        _complete(p, dataset),
        _layers(p, dataset),
        _time(p, dataset),
    )
    return (*tables, _gap(p, dataset)) if "kept" in dataset else tables


def _recovery(p: PursuitParameters, content: Mapping[str, Any], dataset: xr.Dataset) -> Table:
    halves = tuple("-" if S is None else str(S) for S in (content["half"][name] for name in METHODS))
    unfinished = [
        f"{METHODS[name]}: {100 * float(dataset['unfinished'].sel(pursuit=name).max()):.0f}%" for name in SOLVING
    ]
    notes = (
        f"{p.num_draws} draws for each S, the same for every pursuit: {p.num_codes} codes, new signs and noise in "
        "every draw; in brackets Wilson's 95% intervals, for these dictionaries and codes.",
        f"Noise: |V^(0)|_2,inf = {p.noise:g} |X_min|; coherence by layer "
        f"{', '.join(f'{mu:.3f}' for mu in content['coherence'])}; the uniform bound (2) of layer 1 allows S_1 < "
        f"{content['uniform_bound']:.2f}.",
        *(f"{METHODS[name]} is told {TOLD[name]}." for name in METHODS),
        "The stripe projection fills stripes that hold fewer than S non-zeros with whatever is there: it can recover a "
        "path exactly only if no entry fits beside it.",
        "Draws in which a layer's solver did not end well, at the worst S: "
        f"{'; '.join(unfinished)} (basis pursuit: gap above {p.tol:g} after {p.max_steps} steps; IHT: residual above "
        f"{_iht_tol(p)} after {p.iht_steps}).",
    )
    rows = (*_shares(p, dataset, "path"), ("largest S, half recovered", *halves))
    return Table("P(whole path recovered): every layer's support exactly", ("S_1", *METHODS.values()), rows, notes)


def _iht_tol(p: PursuitParameters) -> str:
    if p.iht_tol is not None:
        return f"{p.iht_tol:g} |x|"
    return f"{ABOVE_NOISE:g} |V^(0)| of the draw, or {IHT_FLOOR:g} |x|" if p.noise else f"{IHT_FLOOR:g} |x|"


def _complete(p: PursuitParameters, dataset: xr.Dataset) -> Table:
    return Table(
        "P(no entry of any support missing), false alarms allowed",
        ("S_1", *METHODS.values()),
        tuple(_shares(p, dataset, "complete")),
    )


def _shares(p: PursuitParameters, dataset: xr.Dataset, output: str) -> list[tuple[str, ...]]:
    def cell(name: str, S: int) -> str:
        return "{:.2f} ({:.2f}-{:.2f})".format(
            *(float(dataset[output + end].sel(pursuit=name, S=S)) for end in ("", "_low", "_high"))
        )

    return [(str(S), *(cell(name, S) for name in METHODS)) for S in p.S]


def _layers(p: PursuitParameters, dataset: xr.Dataset) -> Table:
    def cell(name: str, S: int, layer: int) -> str:
        here = dataset.sel(pursuit=name, S=S, layer=layer)
        return " / ".join(f"{float(here[kind]):.3g}" for kind in ("hits", "misses", "false_alarms"))

    rows = []
    for S in p.S:
        for layer in dataset["layer"].to_numpy():
            here = dataset.sel(S=S, layer=layer)
            size = f"{float(here['non_zeros']):.3g} (S_{layer} {float(here['reached']):.3g})"
            rows.append((f"{S}, layer {layer}", size, *(cell(name, S, int(layer)) for name in METHODS)))
    notes = (
        "Means over draws of hits / misses / false alarms. non-zeros: mean over codes, in brackets the S reached; most "
        "stripes hold fewer.",
    )
    return Table("supports by layer", ("S_1", "non-zeros", *METHODS.values()), tuple(rows), notes)


def _time(p: PursuitParameters, dataset: xr.Dataset) -> Table:
    def cell(name: str, S: int) -> str:
        milliseconds = 1e3 * float(dataset["seconds"].sel(pursuit=name, S=S))
        if not np.isfinite(milliseconds):
            return "-"
        return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.2g}"

    rows = tuple((str(S), *(cell(name, S) for name in METHODS)) for S in p.S)
    steps = [
        f"{METHODS[name]} {' to '.join(f'{end:.0f}' for end in ends)}"
        for name, ends in ((name, _ends(dataset["steps"].sel(pursuit=name).sum("layer"))) for name in SOLVING)
    ]
    times = [
        f"{METHODS[name]} {' to '.join(f'{end:.2g}' for end in ends)}"
        for name, ends in ((name, _ends(_over_hard(dataset, name))) for name in SOLVING)
        if np.all(np.isfinite(ends))
    ]
    notes = (
        "Median over blocks; compilation apart; includes drawing signs and making the signal. - : read from a journal "
        "of an earlier session.",
        f"Steps of all layers together, mean over draws, at the cheapest and the dearest S: {'; '.join(steps)}. A step "
        "is two products with A, normalised IHT's four where the support changes; one pass is one a layer.",
        *([f"Time over that of the hard threshold, likewise: {'; '.join(times)}."] if times else []),
    )
    return Table("milliseconds per draw, as it ran here", ("S_1", *METHODS.values()), rows, notes)


def _ends(values: xr.DataArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _over_hard(dataset: xr.Dataset, name: str) -> xr.DataArray:
    return dataset["seconds"].sel(pursuit=name) / dataset["seconds"].sel(pursuit="hard")


def _gap(p: PursuitParameters, dataset: xr.Dataset) -> Table:
    rows = []
    for S in p.S:
        kept = dataset["kept"].sel(S=S).to_numpy()
        rows.append((str(S), f"{kept.mean():.4f}", f"{kept.min():.4f}", f"{np.mean(kept > 1 - 1e-6):.2f}"))
    notes = (
        "Energy that greedy keeps over that of the exact projection (a linear program), on the first layer's responses "
        f"to {p.gap_cases} draws; stripes cut at the border. At least 1/2 always (2-extendible).",
    )
    return Table("greedy against exact stripe projection", ("S", "mean", "least", "equal"), tuple(rows), notes)
