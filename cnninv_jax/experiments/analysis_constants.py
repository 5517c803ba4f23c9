"""delta_k of a filter bank between its certificates, and what Theorem 3.3 makes of it beside the errors observed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from rich.table import Table

from cnninv_jax import rip
from cnninv_jax.experiments.studies import progress_bar
from cnninv_jax.operators import ConvOperator

#: Multiply-adds that the search for supports may take.
SEARCH_WORK = 1e9
#: Starts and steps of the search, at most and at least; the starts come in multiples of 64.
MOST_STARTS, FEWEST_STARTS, STEPS = 1024, 64, 30
#: A layer whose fewest starts take so many times `SEARCH_WORK` is left alone.
PATIENCE = 20.0
#: Sweeps of exchanges at most, the supports they begin from, and the multiply-adds they may take: they grow as the
#: fourth power of the non-zeros, a few hundred of which would keep a CPU busy for hours.
SWEEPS, SUPPORTS, EXCHANGE_WORK = 3, 64, 2e10
#: Multiply-adds of the eigenvalues of the supports found (in float64, on the host), about a tenth of what they cost.
EIGEN_WORK = 4e9
#: Names of the two constants, and the members of the model that each is about.
MEMBERS = {"delta_k": 1, "delta_2k": 2}


def constants(
    op: ConvOperator,
    k: int,
    pool: tuple[int, ...] | None,
    key: jax.Array,
    draws: Mapping[str, Any],
    *,
    quiet: bool = True,
) -> dict[str, Any]:
    """Return delta_k and delta_2k with their certificates, and Theorem 3.3's bound beside the observed errors.

    The bound grows with both constants: computed from their lower bounds it is the least that the theorem can promise
    of this bank, computed from their upper bounds it is certain. A draw's ratio (a) bounds delta_k from below, too.

    Args:
        op: the layer.
        k: number of non-zeros.
        pool: pooling window.
        key: of the search.
        draws: the numbers of ``report.json`` for draws with these filters.
        quiet: show no progress.
    """
    ratio = draws["model_rip"]
    seen = max(abs(ratio["max"] ** 2 - 1.0), abs(ratio["min"] ** 2 - 1.0))
    found: dict[str, Any] = {"largest_seen_in_draws": seen, "observed_error_max": draws["error_model"]["max"],
                             "observed_error_mean": draws["error_model"]["mean"]}  # fmt: skip
    work = STEPS * k * math.prod(op.code_shape)
    if FEWEST_STARTS * work > PATIENCE * SEARCH_WORK:
        return {**found, "left_out": "the layer is too large for a search of its supports at this k"}
    largest = max(MEMBERS.values()) * k
    if SUPPORTS * largest**3 > EIGEN_WORK:
        most = int((EIGEN_WORK / SUPPORTS) ** (1 / 3)) // max(MEMBERS.values())
        return {**found, "left_out": f"eigenvalues of supports of {largest} entries take too long (--k up to {most})"}
    starts = int(min(MOST_STARTS, max(FEWEST_STARTS, SEARCH_WORK // work)))
    with progress_bar("model-RIP constants", len(MEMBERS), quiet=quiet) as bar:
        for (name, members), search_key in zip(MEMBERS.items(), jax.random.split(key), strict=True):
            bar.advance(0, note=name)
            sweeps = _sweeps(op, members * k)
            try:
                held = rip.constant(
                    op, k, pool=pool, members=members, key=search_key, starts=starts, steps=STEPS, sweeps=sweeps,
                    num_random=0,
                )  # fmt: skip
            except ValueError as error:  # more inner products than are held at once
                return {**found, "left_out": str(error)}
            bar.advance(1, note=f"{name} >= {float(held.lower):.4g}")
            found[name] = {
                "lower": float(held.lower),
                "exact": float(held.exact) if held.enumerated else None,
                "upper": float(held.upper),
                "upper_gershgorin": float(held.upper_gershgorin),
                "upper_weighted": float(held.upper_weighted),
                "upper_frobenius": float(held.upper_frobenius),
                "upper_spectral": float(held.upper_spectral),
                "supports": str(held.supports),
                "evaluations": held.evaluations,
                "sweeps": sweeps,
            }
    for end in ("lower", "upper"):
        bound = float(rip.theorem_3_3(found["delta_k"][end], found["delta_2k"][end]))
        found[f"theorem_3_3_from_{end}"] = bound if math.isfinite(bound) else None
    return found


def _sweeps(op: ConvOperator, size: int) -> int:
    """Return how many sweeps of exchanges are affordable on supports of so many entries."""
    # An exchange squares two matrices six times and meets every entry of the code.
    each = SUPPORTS * size * (12 * size**3 + size * math.prod(op.code_shape))
    return min(SWEEPS, int(EXCHANGE_WORK // each))


def constants_table(found: Mapping[str, Any]) -> tuple[Table | None, list[str]]:
    """Return the table of the two constants, and the sentences below it."""
    seen, mean, most = (found[name] for name in ("largest_seen_in_draws", "observed_error_mean", "observed_error_max"))
    error = f"error (c) of M observed: {mean:.3g} on average, {most:.3g} at most"
    if "left_out" in found:
        return None, [f"delta_k >= {seen:.4g} (from the draws); no certificates: {found['left_out']}", error]
    table = Table(title="model-RIP constants, certified", title_justify="left")
    for place, heading in enumerate(("", "at least", "exact", "at most", "supports of the model")):
        table.add_column(heading, justify="right" if place else "left")
    for name in MEMBERS:
        entry = found[name]
        exact = "-" if entry["exact"] is None else f"{entry['exact']:.4g}"
        table.add_row(name, f"{entry['lower']:.4g}", exact, f"{entry['upper']:.4g}", _short(entry["supports"]))
    return table, [f"{theorem_sentence(found)}; {error}"]


def _short(digits: str) -> str:
    """Return a natural number in three figures; one of hundreds of digits is no float."""
    if len(digits) <= 300:
        return f"{int(digits):.3g}"
    return f"{int(digits[:6]) / 1e5:.2f}e+{len(digits) - 1}"


def theorem_sentence(found: Mapping[str, Any]) -> str:
    """Return what Theorem 3.3 of Gilbert et al. 2017 says of the error, for certain and at best."""
    least, certain = found["theorem_3_3_from_lower"], found["theorem_3_3_from_upper"]
    if least is None:
        return "Thm 3.3 says nothing here: delta_k or delta_2k is certainly 1 or more"
    if certain is None:
        return f"Thm 3.3 promises an error of at most {least:.3g} at the very best, nothing for certain"
    return f"Thm 3.3 promises an error of at most {certain:.3g} (no less than {least:.3g}, whatever the true constants)"
