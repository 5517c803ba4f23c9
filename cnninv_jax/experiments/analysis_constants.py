"""delta_k of a filter bank between its certificates, and what Theorem 3.3 makes of it beside the errors observed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from rich.table import Table

from cnninv_jax import rip
from cnninv_jax.operators import ConvOperator

#: Multiply-adds that the search for supports may take.
SEARCH_WORK = 1e9
#: Starts and steps of the search, at most and at least; the starts come in multiples of 64.
MOST_STARTS, FEWEST_STARTS, STEPS = 1024, 64, 30
#: A layer whose fewest starts take so many times `SEARCH_WORK` is left alone.
PATIENCE = 20.0
#: Names of the two constants, and the members of the model that each is about.
MEMBERS = {"delta_k": 1, "delta_2k": 2}


def constants(
    op: ConvOperator, k: int, pool: tuple[int, ...] | None, key: jax.Array, draws: Mapping[str, Any]
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
    """
    ratio = draws["model_rip"]
    seen = max(abs(ratio["max"] ** 2 - 1.0), abs(ratio["min"] ** 2 - 1.0))
    found: dict[str, Any] = {"largest_seen_in_draws": seen, "observed_error_max": draws["error_model"]["max"],
                             "observed_error_mean": draws["error_model"]["mean"]}  # fmt: skip
    work = STEPS * k * math.prod(op.code_shape)
    if FEWEST_STARTS * work > PATIENCE * SEARCH_WORK:
        return {**found, "left_out": "the layer is too large for a search of its supports at this k"}
    starts = int(min(MOST_STARTS, max(FEWEST_STARTS, SEARCH_WORK // work)))
    for (name, members), search_key in zip(MEMBERS.items(), jax.random.split(key), strict=True):
        try:
            held = rip.constant(
                op, k, pool=pool, members=members, key=search_key, starts=starts, steps=STEPS, num_random=0
            )
        except ValueError as error:  # more inner products than are held at once
            return {**found, "left_out": str(error)}
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
        }
    for end in ("lower", "upper"):
        bound = float(rip.theorem_3_3(found["delta_k"][end], found["delta_2k"][end]))
        found[f"theorem_3_3_from_{end}"] = bound if math.isfinite(bound) else None
    return found


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
        table.add_row(name, f"{entry['lower']:.4g}", exact, f"{entry['upper']:.4g}", f"{int(entry['supports']):.3g}")
    return table, [f"{theorem_sentence(found)}; {error}"]


def theorem_sentence(found: Mapping[str, Any]) -> str:
    """Return what Theorem 3.3 of Gilbert et al. 2017 says of the error, for certain and at best."""
    least, certain = found["theorem_3_3_from_lower"], found["theorem_3_3_from_upper"]
    if least is None:
        return "Thm 3.3 says nothing here: delta_k or delta_2k is certainly 1 or more"
    if certain is None:
        return f"Thm 3.3 promises an error of at most {least:.3g} at the very best, nothing for certain"
    return f"Thm 3.3 promises an error of at most {certain:.3g} (no less than {least:.3g}, whatever the true constants)"
