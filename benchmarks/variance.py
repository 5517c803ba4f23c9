"""What better estimators gain at the sizes of Gilbert et al. 2017, Fig. 2: variance per draw, and per unit of time.

``python -m benchmarks.variance [--draws 20480] [--rounds 10] [--codes 8] [--smoke]`` runs every way of drawing in turn,
several rounds in one process, compiled beforehand. A *draw* is one filter bank with one code, or with several. The gain
per draw is the variance of the first kind (one code, the bank drawn in the same way as for several) over that of a
draw; the gain per time divides it by the ratio of their times (median over the rounds of neighbouring runs). Each gain
comes with a standard error, from resampling the rounds. The control variate is |W^T z|^2 / |z|^2; its cost is in every
time, as both means come from the same run.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks import store
from benchmarks.measure import use_all_cores
from cnninv_jax import montecarlo, rip

SIZES = {"num_filters": 96, "channels": 32, "length": 5, "signal_shape": 32, "k": 10, "dtype": "float32"}
CONTROLS = {name: {"model_rip_energy": 1.0} for name in rip.READINGS}
#: Codes side by side in one slice, as many as one code's draws take.
LANES = 64


def ways(codes):
    """Return the draws by name; the first is the reference."""
    one = functools.partial(rip.draw_ratios, **SIZES)
    several = functools.partial(rip.draw_ratios_of_codes, **SIZES, codes=codes)
    stratified, antithetic = {"supports": "stratified"}, {"signs": "antithetic"}
    return {
        "1 code": (1, functools.partial(rip.draw_ratios_of_codes, **SIZES, codes=1)),
        "1 code, draw_ratios, plain": (1, rip.with_energy(functools.partial(one, sampling="plain"))),
        "1 code, draw_ratios, conditional": (1, rip.with_energy(functools.partial(one, sampling="conditional"))),
        f"{codes} codes, independent": (codes, several),
        f"{codes} codes, stratified": (codes, functools.partial(several, **stratified)),
        f"{codes} codes, antithetic": (codes, functools.partial(several, **antithetic)),
        f"{codes} codes, stratified and antithetic": (codes, functools.partial(several, **stratified, **antithetic)),
    }


def note(text):
    """Say on a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def measure(draws, num_draws, rounds):
    """Return seconds [way, round], variances without and with control [way, 2, round, reading]."""

    def run(name, seed):
        codes, draw = draws[name]
        return montecarlo.run(
            montecarlo.with_controls(draw, CONTROLS),
            seed,
            num_draws,
            chunk_size=num_draws // jax.local_device_count(),
            lanes=max(1, LANES // codes),
            statistics=montecarlo.controlled_statistics(CONTROLS),
            progress=False,
        )

    seconds = np.empty((len(draws), rounds))
    variances = np.empty((len(draws), 2, rounds, len(rip.READINGS)))
    for name in draws:
        note(f"compiling {name}")
        run(name, 0)
    order = np.random.default_rng(0)
    for turn in range(rounds):
        note(f"round {turn + 1}/{rounds}")
        for at in order.permutation(len(draws)):
            result = run(list(draws)[at], 1 + turn)
            seconds[at, turn] = result.provenance["seconds"]
            for column, reading in enumerate(rip.READINGS):
                variances[at, 0, turn, column] = result[reading]["variance"]
                variances[at, 1, turn, column] = result[f"{reading}_controlled"]["variance"]
    note("")
    return seconds, variances


def gains(seconds, variances, resamples=1000):
    """Return gains per draw, gains per time and times, each with a standard error: [.., (value, error)]."""

    def once(turns):
        mean = variances[:, :, turns].mean(axis=2)
        per_draw = mean[0, 0] / mean
        times = np.median(seconds[:, turns] / seconds[0, turns], axis=1)
        return per_draw, per_draw / times[:, None, None], times

    rounds = seconds.shape[1]
    rng = np.random.default_rng(0)
    tried = [once(rng.integers(0, rounds, rounds)) for _ in range(resamples)]
    return [
        np.stack([value, np.std(samples, axis=0)], axis=-1)
        for value, samples in zip(once(np.arange(rounds)), zip(*tried, strict=True), strict=True)
    ]


def shown(value, error):
    """Return "6.47 ± 0.09", rounded to two digits of the error."""
    digits = 0 if error <= 0 else int(np.clip(1 - np.floor(np.log10(error)), 0, 3))
    return f"{value:,.{digits}f} ± {error:.{digits}f}"


def lines(names, table, times):
    """Return one Markdown table, a row per way without and with control."""
    made = ["| draw | time | " + " | ".join(rip.READINGS) + " |", "| --- |" + " ---: |" * (1 + len(rip.READINGS))]
    for at, name in enumerate(names):
        for column, ending in enumerate(("", " + control")):
            if at == column == 0:
                continue
            cells = [shown(*cell) for cell in table[at, column]]
            made.append(f"| {name}{ending} | {shown(*times[at])} | " + " | ".join(cells) + " |")
    return made


def main(arguments=None):
    """Measure, print two tables, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variance", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=20_480, help="of every kind, all rounds together (default 20480)")
    parser.add_argument("--rounds", type=int, default=10, help="how often the kinds take turns (default 10)")
    parser.add_argument("--codes", type=int, default=8, help="codes on one filter bank (default 8)")
    parser.add_argument("--smoke", action="store_true", help="two kinds, few draws, nothing stored")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    given = parser.parse_args(arguments)
    if given.rounds < 2 or given.draws < 64 * given.rounds:
        parser.error(f"expected at least 2 rounds of 64 draws, got {given.draws} draws in {given.rounds} rounds")
    use_all_cores()
    draws = ways(given.codes)
    rounds = given.rounds
    if given.smoke:
        first, *_, last = draws
        draws = {name: draws[name] for name in (first, last)}
        given.draws, rounds = 512, 2
    devices = jax.local_device_count()
    num_draws = -(-given.draws // (rounds * devices)) * devices
    seconds, variances = measure(draws, num_draws, rounds)
    per_draw, per_time, times = gains(seconds, variances)
    sizes = ", ".join(f"{name}={value}" for name, value in SIZES.items())
    print(f"{store.describe_device()['name']}; {sizes}; {rounds} x {num_draws:,} draws of each kind\n")
    micro = 1e6 * np.median(seconds[0]) / num_draws
    print(f"Variance of one code's draw over that of a draw; time relative to it ({micro:,.0f} us):\n")
    print("\n".join(lines(draws, per_draw, times)))
    print("\nThe same per unit of time:\n")
    print("\n".join(lines(draws, per_time, times)))
    if not given.smoke:
        record = {
            "device": store.describe_device(),
            "versions": store.versions(),
            "sizes": SIZES,
            "draws": num_draws * rounds,
            "rounds": rounds,
            "rows": [
                {
                    "draw": name,
                    "control": bool(part),
                    "microseconds_per_draw": float(1e6 * np.median(seconds[at]) / num_draws),
                    "time": times[at].tolist(),
                    "per_draw": dict(zip(rip.READINGS, per_draw[at, part].tolist(), strict=True)),
                    "per_time": dict(zip(rip.READINGS, per_time[at, part].tolist(), strict=True)),
                }
                for at, name in enumerate(draws)
                for part in range(2)
            ],
        }
        path = given.results / store.slug(record["device"]) / "variance.json"
        store.write(record, path)
        print(f"\nStored in {path}.")


if __name__ == "__main__":
    main()
