"""Tables for the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from cnninv_jax.experiments.analysis import Report
from cnninv_jax.experiments.analysis_constants import constants_table
from cnninv_jax.experiments.analysis_pairing import pairing_sentence
from cnninv_jax.experiments.registry import Experiment
from cnninv_jax.experiments.runs import Outcome
from cnninv_jax.experiments.studies import Study

#: Width where the output goes to a file or a pipe.
PLAIN_WIDTH = 140


class _Console(Console):
    """A console that leaves a reader's early end (``| head``) to the caller; rich would exit with status 1."""

    def on_broken_pipe(self) -> None:
        """Say so instead of exiting."""
        raise BrokenPipeError


def console() -> Console:
    """Return a console on standard output; wide enough for the tables where it is no terminal."""
    return _Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def rounded(value: float, error: float) -> str:
    """Return a value with two digits of its error."""
    if not math.isfinite(value):
        return "-"
    if not math.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    return f"{value:.{min(max(1 - math.floor(math.log10(error)), 0), 12)}f}"


def print_experiments(experiments: Iterable[Experiment[Any]], studies: Iterable[Study[Any]] = ()) -> None:
    """Print names, sources and, where there is one number of draws, that."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "source", "what", "draws"):
        table.add_column(heading, justify="right" if heading == "draws" else "left")
    for experiment in experiments:
        table.add_row(experiment.name, experiment.source, experiment.title, f"{experiment.num_draws:,}")
    for study in studies:
        table.add_row(study.name, study.source, study.title, "")
    out = console()
    out.print(table)
    out.print("run one with: cnninv reproduce NAME    its parameters: cnninv reproduce NAME --help")


def outcome_table(outcome: Outcome) -> Table:
    """Return paper | ours | interval | verdict, a line per reading."""
    table = Table(title=f"{outcome.experiment.source}: {outcome.experiment.title}", title_justify="left")
    for heading, justify in (("reading", "left"), ("paper", "left"), ("ours (mean ± sd)", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("95% interval of the mean", justify="right")
    table.add_column("verdict")
    colours = {"agrees": "green", "differs": "red", "undecided": "yellow"}
    for line in outcome.readings:
        error = (line.high - line.low) / 4
        lost = f" ({line.non_finite:,} non-finite draws left out)" if line.non_finite else ""
        colour = colours.get(line.verdict)
        table.add_row(
            line.label + lost,
            line.paper,
            f"{line.mean:.4f} ± {line.deviation:.4f}",
            f"{rounded(line.low, error)} .. {rounded(line.high, error)}",
            f"[{colour}]{line.verdict}[/{colour}]" if colour else line.verdict,
        )
    return table


def print_outcome(outcome: Outcome) -> None:
    """Print the table, what the run was, and where its files are."""
    out = console()
    facts = outcome.result.provenance
    spec = facts["spec"]
    if facts["part"]:
        _print_part(out, outcome)
        return
    out.print(outcome_table(outcome))
    out.print(outcome.experiment.describe(outcome.parameters), markup=False)
    speed = facts["draws_per_second"]
    hosts = f" in {facts['process_count']} processes" if facts["process_count"] > 1 else ""
    rate = f", {speed:,.0f} draws/s" if math.isfinite(speed) else ", all from the journal"
    out.print(
        f"{facts['num_draws']:,} draws in {facts['seconds']:.1f} s{rate} "
        f"(+ {facts['compile_seconds']:.1f} s compiling) on {facts['device_count']} x {facts['device']}{hosts}, "
        f"{spec['user']['precision']}, seed {spec['user']['seed']}",
        markup=False,
    )
    if outcome.result.stopping is not None:
        out.print(str(outcome.result.stopping), markup=False)
    for path in outcome.files:
        out.print(f"  {path}", markup=False, soft_wrap=True)


def _print_part(out: Console, outcome: Outcome) -> None:
    facts = outcome.result.provenance
    index, count = facts["part"]
    out.print(
        f"part {index}/{count} of {outcome.experiment.name} is done: {facts['num_draws']:,} of "
        f"{facts['spec']['num_draws']:,} draws in {facts['journal']}",
        markup=False,
        soft_wrap=True,
    )
    out.print(f"when all {count} parts are done: cnninv merge {outcome.folder.parent}", markup=False, soft_wrap=True)


def print_report(report: Report) -> None:
    """Print the report on a filter bank: structure and ratios beside those of random filters, and the files."""
    out, content = console(), report.content
    origin, shape, setting = content["origin"], content["shape"], content["setting"]
    name = origin["source"] + ("" if origin["tensor"] is None else f" : {origin['tensor']}")
    sizes = " x ".join(str(entry) for entry in (shape["K"], shape["M"], *shape["ell"]))
    norms = content["norms"]
    out.print(f"{name}: {sizes} (K x M x l), layout {origin['layout']}, {origin['dtype']}", markup=False)
    for note in origin["notes"]:
        out.print(f"note: {note}", markup=False)
    out.print(f"norms as given: {norms['min']:.4g} .. {norms['max']:.4g}, mean {norms['mean']:.4g}", markup=False)
    pool = "whole responses" if setting["pool"] is None else "x".join(map(str, setting["pool"])) + " windows"
    out.print(
        f"signal {'x'.join(map(str, setting['signal']))}, stride {setting['stride'][0]}, {setting['padding']} padding, "
        f"n = {'x'.join(map(str, setting['shifts']))}, pooling over {pool}, k = {setting['k']} of {setting['blocks']} "
        f"blocks; filters {'scaled to norm 1' if setting['normalize'] else 'as given'}",
        markup=False,
    )
    structure = Table(title=f"structure, beside {setting['random_banks']} Gaussian random banks", title_justify="left")
    structure.add_column("quantity")
    for heading in ("these filters", "random (mean ± sd)", "95% interval of that mean"):
        structure.add_column(heading, justify="right")
    labels = {
        "coherence_filters": "coherence over filters (same shift)",
        "coherence_shifts": "coherence over all shifts",
        "frame_lower": "lower frame bound A",
        "frame_upper": "upper frame bound B",
    }
    for key, label in labels.items():
        if key in content["compared"]:
            entry = content["compared"][key]
            structure.add_row(
                label,
                f"{entry['filters']:.4g}",
                f"{entry['random_mean']:.4g} ± {entry['random_standard_deviation']:.2g}",
                " .. ".join(f"{end:.4g}" for end in entry["random_interval_95"]),
            )
    pairs = content["pairing"]
    if pairs is not None:
        structure.add_row(
            "mean mu, lowest cosine of a filter",
            f"{pairs['mean']:.4g}",
            f"{pairs['random_mean']:.4g} ± {pairs['random_standard_deviation']:.2g}",
            " .. ".join(f"{end:.4g}" for end in pairs["random_interval_95"]),
        )
    out.print(structure)
    out.print(pairing_sentence(pairs, setting["random_banks"]), markup=False)
    residuals, lower = content["frame_residuals"], content["compared"]["frame_lower"]["filters"]
    converged = residuals["lower"] <= 0.1 * lower
    out.print(
        f"B to within {residuals['upper']:.1g}; "
        + (
            f"A to within {residuals['lower']:.1g}"
            if converged or lower == 0
            else "A not converged: at most the value shown"
        ),
        markup=False,
    )
    table = Table(title=f"{setting['num_draws']:,} draws of z in M_k, {setting['values']} values", title_justify="left")
    table.add_column("reading")
    for heading in ("these filters (mean ± sd)", "95% interval", "random (mean ± sd)", "95% interval"):
        table.add_column(heading, justify="right")
    for key, mine in content["ratios"]["filters"].items():
        cells = []
        for entry in (mine, content["ratios"]["random"][key]):
            error = entry["standard_error"]
            cells.append(f"{entry['mean']:.4f} ± {entry['standard_deviation']:.4f}")
            cells.append(" .. ".join(rounded(end, error) for end in entry["interval_95"]))
        lost = f" ({mine['non_finite']:,} non-finite draws left out)" if mine["non_finite"] else ""
        table.add_row(mine["label"] + lost, *cells)
    out.print(table)
    if "constants" in content:
        certified, sentences = constants_table(content["constants"])
        if certified is not None:
            out.print(certified)
        for sentence in sentences:
            out.print(sentence, markup=False)
    for path in report.files:
        out.print(f"  {path}", markup=False, soft_wrap=True)
