"""What rounding the inputs of products does to every statistic of Fig. 2: paired draws, the same keys throughout.

``python -m benchmarks.precision [--draws 100000] [--sampling conditional plain] [--smoke]``

A bias is a statistic under one precision minus the same statistic of the same draws under another, so that the scatter
of the draws themselves cancels:

* tf32 and bfloat16 against float32: inputs of products rounded, sums in float32. On a CPU the rounded inputs meet in a
  float32 product, which is what a tensor core computes but for the order of its sums.
* float32 against float64: everything of a draw but the random words. Conditional sampling turns the same words into
  float64 numbers (6 of 10 million code entries then lie at the neighbouring shift, because a uniform number was rounded
  across an integer: such a draw differs as another draw does); plain sampling takes the float32 filters and code.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import store
from cnninv_jax import filters, montecarlo, operators, rip, sparsity
from cnninv_jax.experiments.gilbert2017 import Fig2Parameters

#: Precision whose bias is shown -> precision it is compared with.
AGAINST = {"float32": "float64", "tf32": "float32", "bfloat16": "float32"}
STATISTICS = ("mean", "sd", "q0.001", "q0.999")
TAIL = 0.001


def paired_draw(parameters: Fig2Parameters) -> Callable[[jax.Array], dict[str, dict[str, jax.Array]]]:
    """Return the draw: the six readings in float32, and each other precision's difference from what it is held against.

    The outputs are ``value.<reading>`` and ``<precision>.<reading>``; needs 64-bit types.
    """
    evaluate = _conditional if parameters.sampling == "conditional" else _plain

    def draw(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
        found = evaluate(key, parameters)
        outputs = {"value": found["float32"]}
        for precision, reference in AGAINST.items():
            # The difference of neighbours is exact.
            wide = jnp.float64 if reference == "float64" else jnp.float32
            pairs = {name: (found[precision][name], found[reference][name]) for name in rip.READINGS}
            outputs[precision] = {name: a.astype(wide) - b.astype(wide) for name, (a, b) in pairs.items()}
        return outputs

    return draw


def _conditional(key: jax.Array, p: Fig2Parameters) -> dict[str, rip.Ratios]:
    def at(**choice: Any) -> rip.Ratios:
        # The same key on purpose: only the arithmetic shall differ.
        size = (jax.random.clone(key), p.K, p.M, p.ell, p.D, p.k)
        return rip.draw_ratios(*size, stride=p.stride, values=p.values, sampling="conditional", **choice)

    found = {name: at(products=name, dtype=jnp.float32) for name in AGAINST}
    return {**found, "float64": at(dtype=jnp.float64)}


def _plain(key: jax.Array, p: Fig2Parameters) -> dict[str, rip.Ratios]:
    filter_key, code_key = jax.random.split(key)
    bank = filters.gaussian(filter_key, p.K, p.M, p.ell, dtype=jnp.float32)
    make = functools.partial(operators.conv_operator, signal_shape=p.D, stride=p.stride)
    shifts = make(bank).shifts
    code = sparsity.sample_code(code_key, p.K, shifts, p.k, values=p.values, dtype=jnp.float32)
    found = {name: rip.ratios_of_code(make(bank, products=name), code) for name in AGAINST}
    wide = dataclasses.replace(code, values=code.values.astype(jnp.float64))
    return {**found, "float64": rip.ratios_of_code(make(bank.astype(jnp.float64)), wide)}


def biases(value: np.ndarray, reference: np.ndarray, replicates: int = 400, seed: int = 0) -> dict[str, Any]:
    """Return bias and standard error of mean, deviation and the two tail quantiles, ``value`` against ``reference``.

    Mean and deviation by the delta method on paired draws; quantiles by a paired bootstrap over draws.
    """
    a, b = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    count = len(a)
    influence = {
        "mean": a - b,
        "sd": np.square(a - a.mean()) / (2 * a.std()) - np.square(b - b.mean()) / (2 * b.std()),
    }
    found = {"mean": a.mean() - b.mean(), "sd": a.std(ddof=1) - b.std(ddof=1)}
    errors = {name: float(numbers.std(ddof=1) / math.sqrt(count)) for name, numbers in influence.items()}
    # Only the ends of the sorted draws matter; far enough in that a resampled quantile is among them.
    kept = min(count, math.ceil(TAIL * count + 8 * math.sqrt(TAIL * count) + 8))
    ends = {
        "q0.001": [np.argsort(numbers, kind="stable")[:kept] for numbers in (a, b)],
        "q0.999": [np.argsort(-numbers, kind="stable")[:kept] for numbers in (a, b)],
    }

    def tail(name: str, weights: np.ndarray) -> float:
        first, second = (
            numbers[order[np.searchsorted(np.cumsum(weights[order]), max(1, round(TAIL * count)))]]
            for numbers, order in zip((a, b), ends[name], strict=True)
        )
        return first - second

    rng = np.random.default_rng(seed)
    resampled: dict[str, list[float]] = {name: [] for name in ends}
    for _ in range(replicates):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)
        for name in ends:
            resampled[name].append(tail(name, weights))
    for name in ends:
        found[name] = tail(name, np.ones(count, int))
        errors[name] = float(np.std(resampled[name], ddof=1))
    return {name: {"bias": float(found[name]), "error": errors[name]} for name in STATISTICS}


def measure(parameters: Fig2Parameters, num_draws: int, *, seed: int = 0, replicates: int = 400) -> dict[str, Any]:
    """Run the paired draws through the engine; return value and biases of every statistic of every reading."""
    draw = paired_draw(parameters)
    leaves = [f"{group}.{name}" for group in ("value", *AGAINST) for name in rip.READINGS]
    result = montecarlo.run(draw, seed, num_draws, keep=leaves, progress=False, name="paired precision")
    record: dict[str, Any] = {"draws": num_draws, "parameters": dataclasses.asdict(parameters), "readings": {}}
    for name in rip.READINGS:
        value = np.asarray(result.draws[f"value.{name}"], np.float64)
        entry: dict[str, Any] = {"float32": _statistics(value)}
        for precision, reference in AGAINST.items():
            difference = np.asarray(result.draws[f"{precision}.{name}"], np.float64)
            pair = (value, value - difference) if reference == "float64" else (value + difference, value)
            moments = result[f"{precision}.{name}"]
            entry[f"{precision} - {reference}"] = {
                **biases(*pair, replicates=replicates),
                "median": float(np.median(np.abs(difference))),
                "largest": float(np.abs(difference).max()),
                "root_mean_square": float(np.sqrt(np.mean(np.square(difference)))),
                # The engine's own streamed mean of the differences, beside the one from the kept draws.
                "streamed_mean": float(moments["mean"]),
                "streamed_error": float(moments["standard_error"]),
            }
        record["readings"][name] = entry
    return record


def _statistics(value: np.ndarray) -> dict[str, float]:
    ordered, at = np.sort(value), max(1, round(TAIL * len(value))) - 1
    return {
        "mean": float(value.mean()),
        "sd": float(value.std(ddof=1)),
        "q0.001": float(ordered[at]),
        "q0.999": float(ordered[-1 - at]),
    }


def visible_from(bias: float, error: float, deviation: float) -> str:
    """Return from how many draws on the bias of a mean exceeds that mean's own standard error."""
    if abs(bias) > 2 * error:
        return f"{(deviation / bias) ** 2:.1e}"
    return f"> {(deviation / (abs(bias) + 2 * error)) ** 2:.0e}"


def show(record: Mapping[str, Any], console: Any) -> None:
    """Print the table of one sampling."""
    from rich.table import Table

    pairs = [f"{precision} - {reference}" for precision, reference in AGAINST.items()]
    title = (
        f"Fig. 2, {record['parameters']['sampling']} sampling, {record['draws']:,} paired draws: bias ± standard error"
    )
    table = Table(title=title)
    table.add_column("reading")
    table.add_column("statistic")
    table.add_column("float32", justify="right")
    for pair in pairs:
        table.add_column(pair, justify="right")
    table.add_column("bfloat16 in sd", justify="right")
    for name, entry in record["readings"].items():
        for statistic in STATISTICS:
            cells = [f"{entry[pair][statistic]['bias']:+.1e} ± {entry[pair][statistic]['error']:.0e}" for pair in pairs]
            share = entry[pairs[-1]][statistic]["bias"] / entry["float32"]["sd"]
            table.add_row(
                name if statistic == "mean" else "",
                statistic,
                f"{entry['float32'][statistic]:.6f}",
                *cells,
                f"{share:+.1e}",
                end_section=statistic == STATISTICS[-1],
            )
    console.print(table)
    table = Table(title="Single draws, and the number of draws from which a mean's bias exceeds its standard error")
    table.add_column("reading")
    for pair in pairs:
        table.add_column(f"{pair}: median, largest", justify="right")
        table.add_column("visible from", justify="right")
    for name, entry in record["readings"].items():
        cells = []
        for pair in pairs:
            held = entry[pair]
            cells.append(f"{held['median']:.1e}, {held['largest']:.1e}")
            cells.append(visible_from(held["mean"]["bias"], held["mean"]["error"], entry["float32"]["sd"]))
        table.add_row(name, *cells)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, store."""
    from rich.console import Console

    from benchmarks.measure import use_all_cores

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=100_000, help="paired draws (default 100,000)")
    parser.add_argument("--sampling", nargs="+", choices=("conditional", "plain"), default=["conditional", "plain"])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing stored: to see that it runs")
    parser.add_argument("--no-store", action="store_true", help="store nothing")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    given = parser.parse_args(arguments)
    if given.draws < 100:
        parser.error(f"expected --draws of at least 100, got {given.draws}")
    use_all_cores()
    jax.config.update("jax_enable_x64", True)
    if given.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    console = Console(width=170)
    device = store.describe_device()
    arithmetic = "rounding emulated" if device["platform"] == "cpu" else "the hardware's own products"
    console.print(f"{device['name']}; {arithmetic}")
    records = {}
    size = {"K": 5, "M": 4, "ell": 2, "D": 4, "k": 2} if given.smoke else {}
    for sampling in given.sampling:
        draws = 256 if given.smoke else given.draws
        records[sampling] = measure(
            Fig2Parameters(**size, sampling=sampling), draws, replicates=20 if given.smoke else 400
        )
        show(records[sampling], console)
    if given.smoke or given.no_store:
        return
    folder = given.results / store.slug(device)
    record = {"device": device, "versions": store.versions(), "arithmetic": arithmetic, "samplings": records}
    store.write(_shortened(record), folder / "precision.json")
    console.print(f"Stored in {folder / 'precision.json'}.")


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
