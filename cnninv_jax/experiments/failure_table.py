"""The table of `cnninv failure`."""

from __future__ import annotations

import math

from rich.table import Table

from cnninv_jax.experiments.failure import FailureReport
from cnninv_jax.experiments.tables import console

_EVENTS = {
    "upper": "|W^T z|^2 > (1 + {0:g}) |z|^2",
    "lower": "|W^T z|^2 < (1 - {0:g}) |z|^2",
    "both": "| |W^T z|^2 / |z|^2 - 1 | > {0:g}",
}


def print_failure(report: FailureReport) -> None:
    """Print a line per method, the verdict, and where the files are."""
    out, content = console(), report.content
    p, o = content["parameters"], content["options"]
    table = Table(
        title=f"Gilbert et al. 2017, eq. (1): P({_EVENTS[p['side']].format(p['delta'])})", title_justify="left"
    )
    table.add_column("method")
    for heading in ("probability", "95% interval", "relative s.e.", "effective hits", "draws", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", overflow="fold")
    colours = {"agrees": "green", "differs": "red", "undecided": "yellow"}
    for entry in content["methods"]:
        value, (low, high) = entry["probability"], entry["interval_95"]
        relative = entry["standard_error"] / value if value > 0 else math.nan
        closed = entry["method"].startswith("closed form")
        colour = colours.get(entry["verdict"].split(" ")[0].rstrip(":"))
        draws = f"{entry['draws']:,}"
        if entry["method"] == "splitting":
            draws = f"{entry['draws']:,} x {o['particles']:,}"
        table.add_row(
            entry["method"],
            _shown(value),
            "-" if closed else f"{_shown(low)} .. {_shown(high)}",
            f"{relative:.1%}" if math.isfinite(relative) and not closed else f"{relative:.0e}" if closed else "-",
            "-" if closed else f"{entry['effective_hits']:,.0f}",
            "-" if closed else draws,
            f"{entry['seconds']:.1f}" if math.isfinite(entry["seconds"]) else "-",
            f"[{colour}]{entry['verdict']}[/{colour}]" if colour else entry["verdict"],
        )
    out.print(table)
    law = "one code, drawn from the seed" if p["code"] == "fixed" else "random codes"
    out.print(
        f"K={p['K']}, M={p['M']}, l={p['ell']}, D={p['D']}, t={p['stride']}, n={p['n']}, k={p['k']}; Gaussian filters, "
        f"{law}, {p['values']} values; {o['precision']}, seed {o['seed']}",
        markup=False,
    )
    for entry in content["methods"]:
        if entry["note"]:
            out.print(f"note: {entry['note']}", markup=False)
    out.print(
        "all methods agree with the reference" if content["agree"] else "not all methods are shown to agree: see above"
    )
    for path in report.files:
        out.print(f"  {path}", markup=False, soft_wrap=True)


def _shown(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"
