"""Draws of signs through a layered hard-thresholding pass, a second: ours beside torch and NumPy, all in one run.

``python -m benchmarks.dcsc [--peer-python PATH] [--channels 16 1] [--num-nonzeros 8] [--smoke]``; PATH is a Python that
has torch. Two layers of D-CSC over a signal of length 256: 32 Gaussian filters of length 16, and 64 of length 16 with 4
non-zero taps; supports of X^(2) and X^(1) stay, all signs are drawn anew, thresholds are half of the smallest non-zero
(Murray 2018, eq. (1)). With 16 channels both layers fail now and then; with one channel the first layer fails always.

Ours: ``paths`` (`dcsc.path_outcome`, on the supports) and ``forward`` (`dcsc.forward` over all entries), both
through the engine with its statistics. Peers: the pass as a user would write it, in torch and in NumPy, and torch's
best form, which is restricted to the supports as ``paths`` is. All are checked first: on the same signs they find the
same layer to fail first, and what they draw themselves fails as often within 5 standard errors. Ours also keeps the
noise that a layer passes on and the entries' sizes, which the peers do not compute.

Ours and the peers are a process each, under the same settings of the allocator, as it comes and told to keep freed
pages, measured in turns; ratios are taken turn by turn, by the clock and by the processor's time, which says more where
others use the machine. Memory is that of a fresh process for each form, at the batch that was found best, and so is
what compiling takes: its first call less a warmed one, on both sides. At last, a fresh process draws 10^5 and 10^6
times, for its memory.

The floor of a draw, written down before it is measured against, with 16 channels and 8 non-zeros:

* random bits: 8 + 32, a sign for every place of X^(2) and X^(1), two words. Ours spends a word a sign.
* multiply-adds: a place of X^(1) meets 31 shifts of 32 atoms, 32 x 992 = 31,744 less what the border cuts off; on the
  second layer a place meets 64 x 4 / 32 = 8 taps, 256. And 32 for X^(1) out of X^(2).
* two operations (magnitude, maximum) for each of some 6,600 responses that are not zero whatever the signs.
* bytes: none but the responses, written and read once in the cache if the maximum is not taken on the spot: 53 kB.

One product with the responses as a matrix (6,400 x 32) takes 6.5 times the multiply-adds: each response sees 5 of the
32 places. A pass over all entries takes 18 million multiply-adds, as dense filters would.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import store
from benchmarks.dcn import ALLOCATORS, Worker
from benchmarks.dcsc_ours import BLOCK
from benchmarks.floors import Work, floor
from benchmarks.measure import note, use_all_cores
from benchmarks.peaks import Peaks
from benchmarks.peers.dcsc_torch import tables
from cnninv_jax import dcsc

#: Standard errors that failure probabilities may be apart.
ERRORS = 5.0
#: Draws that rounding may decide, of those checked.
MOST_TIES = 0.05
#: A process of each side, without its interpreter.
SERVERS = {"ours": "benchmarks.dcsc_ours", "peer": "benchmarks.peers.dcsc_peer"}


def make(path: Path, given: argparse.Namespace, channels: int) -> dict[str, Any]:
    """Write a problem, and signs to check forms on; return what is known of it."""
    from cnninv_jax import filters
    from cnninv_jax.dcsc.atoms import sparse_filters
    from cnninv_jax.dcsc.generate import generate

    below, above, code_key = jax.random.split(jax.random.key(given.seed), 3)
    first, second = given.num_filters
    banks = [
        filters.gaussian(below, first, channels, given.length, dtype=jnp.float32),
        sparse_filters(above, second, first, given.length, given.taps, dtype=jnp.float32),
    ]
    model = dcsc.layers(banks, given.samples)
    found = generate(code_key, model, num_nonzeros=given.num_nonzeros)
    held = {f"bank{number}": np.asarray(layer.op.filters) for number, layer in enumerate(model, start=1)}
    code, betas = np.abs(np.asarray(found.path[-1])), np.asarray(found.measured.smallest) / 2
    np.savez(path / "problem.npz", code=code, thresholds=betas, samples=given.samples, **held)
    signed = [dcsc.draw_signs(key, model) for key in jax.random.split(jax.random.key(1), given.checked)]
    np.savez(
        path / "signs.npz",
        **{f"d{at}": np.stack([np.asarray(one[at].signs) for one in signed]) for at in range(len(model))},
    )
    return {
        "channels": channels,
        "samples": given.samples,
        "num_filters": given.num_filters,
        "length": given.length,
        "taps": given.taps,
        "S": np.asarray(found.measured.sparsity).tolist(),
        "coherence": np.asarray(found.measured.coherence, float).tolist(),
        "places": [int(np.count_nonzero(entry)) for entry in found.path[1:]],
    }


def least_work(problem: Path) -> Work:
    """Return what a draw needs: bits of the signs, products with what is not zero, every response seen once."""
    from benchmarks.peers.dcsc_numpy import read

    places, responses, spreads = tables(read(str(problem)))
    kinds = {"responses": responses, "spreads": spreads}
    parts = {name: 2.0 * sum(np.count_nonzero(matrix) for matrix in kind) for name, kind in kinds.items()}
    rows = sum(len(matrix) for matrix in responses)
    parts["thresholds"] = 2.0 * rows
    words = math.ceil(sum(map(len, places)) / 32)
    return Work(words, sum(parts.values()), 8 * rows, BLOCK, parts=tuple(parts.items()))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return one case for every number of channels."""
    record: dict[str, Any] = {"device": store.describe_device(), "versions": store.versions(), "cases": []}
    peaks = Peaks(smoke=given.smoke)
    for channels in given.channels:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            case = make(folder, given, channels)
            work = least_work(folder / "problem.npz")
            least = floor(work, peaks)
            assert least is not None
            case |= {
                "floor_parts": dict(work.parts), "floor_bytes": work.num_bytes, "floor_words": work.normals,
                "floor_seconds": least.seconds, "rows": [],
            }  # fmt: skip
            counts: dict[str, np.ndarray] = {}
            for allocator, environment in list(ALLOCATORS.items())[: 1 if given.smoke else None]:
                ours, peer = (_start(given, side, environment) for side in SERVERS)
                title = f"{channels} channels, allocator {allocator}"
                rows = _contest(given, record, folder, (ours, peer), title, counts, {"allocator": allocator})
                ours.close()
                peer.close()
                for row in rows:
                    note(f"{title}: {row['name']} alone")
                    row |= _alone(given, folder / "problem.npz", environment, row)
                case["rows"] += rows
                if allocator == "as it comes":
                    note(f"{title}: memory against draws")
                    ours = _start(given, "ours", environment)
                    ours.ask(do="load", problem=str(folder / "problem.npz"))
                    batch = next(row["batch"] for row in case["rows"] if row["name"] == "paths")
                    keys = ("wall", "draws", "resident_now_MiB", "resident_MiB", "device_MiB")
                    case["growth"] = [
                        {key: answer[key] for key in keys}
                        for count in given.draws
                        for answer in [ours.ask(do="time", form="paths", batch=batch, seconds=0, draws=count)]
                    ]
                    ours.close()
            case["failures"] = compare(counts)
            record["cases"].append(case)
    note("")
    return record


def _start(given: argparse.Namespace, side: str, environment: dict[str, str]) -> Worker:
    python = given.peer_python if side == "peer" and given.peer_python else sys.executable
    return Worker([python, "-m", SERVERS[side]], environment)


def _alone(
    given: argparse.Namespace, problem: Path, environment: dict[str, str], row: Mapping[str, Any]
) -> dict[str, Any]:
    """Run one form in a process of its own; return its memory and what its first call took beyond a warmed one."""
    worker = _start(given, "ours" if row["ours"] else "peer", environment)
    worker.ask(do="load", problem=str(problem))
    answer = worker.ask(do="time", form=row["name"], batch=row["batch"], seconds=given.seconds / 5)
    worker.close()
    keys = ("first", "program_MiB", "resident_MiB", "device_MiB")
    found = {key: answer[key] for key in keys if answer.get(key) is not None}
    return found | {"compile": max(answer["first"] - answer["warmed"], 0.0)}


def _contest(
    given: argparse.Namespace,
    record: dict[str, Any],
    folder: Path,
    workers: tuple[Worker, Worker],
    title: str,
    counts: dict[str, np.ndarray],
    shared: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Check all forms, find the best batch of each, measure them in turns; return their rows."""
    note(f"{title}: checking")
    problem, signs = str(folder / "problem.npz"), str(folder / "signs.npz")
    held, outcomes = {}, {}
    for side, worker in zip(("ours", "peer"), workers, strict=True):
        more = {"compiled": not given.smoke} if side == "peer" else {}
        held[side] = worker.ask(do="load", problem=problem, **more)
        worker.ask(do="check", signs=signs, outcomes=str(folder / f"{side}.npz"))
        with np.load(folder / f"{side}.npz") as found:
            outcomes |= {name: found[name] for name in found.files}
    agree(outcomes)
    record["versions"] |= held["peer"]["versions"]
    record["peer_device"], record["torch_missing"] = held["peer"]["device"], held["peer"]["reason"]
    forms = {form: (worker, side, sizes) for (side, about), worker in zip(held.items(), workers, strict=True)
             for form, sizes in about["forms"].items()}  # fmt: skip

    def ask(form: str, batch: int | None, seconds: float) -> dict[str, Any]:
        answer = forms[form][0].ask(do="time", form=form, batch=batch, seconds=seconds)
        # The first call of a process counts too: its draws are new ones.
        counts[form] = counts.get(form, 0) + np.array([answer["draws"], *answer["failed"]], float)
        size = answer.get("size", batch)
        return answer | {clock: statistics.median(answer[clock]) / size for clock in ("wall", "processor")}

    best: dict[str, int | None] = {}
    for form, (_, _, sizes) in forms.items():
        note(f"{title}: batches of {form}")
        tried = {batch: ask(form, batch, given.seconds / 5) for batch in (sizes[:1] if given.smoke else sizes)}
        best[form] = min(tried, key=lambda batch: tried[batch]["processor" if given.busy else "wall"])
    times: dict[str, dict[str, list[float]]] = {form: {"wall": [], "processor": []} for form in forms}
    for turn in range(given.rounds):
        for form in forms:
            note(f"{title}: turn {turn + 1} of {given.rounds}, {form}")
            answer = ask(form, best[form], given.seconds)
            for clock, found in times[form].items():
                found.append(answer[clock])
    rows = []
    for form, (_, side, _) in forms.items():
        row = {**shared, "name": form, "ours": side == "ours", "batch": best[form]}
        row |= {clock: statistics.median(found) for clock, found in times[form].items()}
        if side == "ours":
            for kind in ("pass", "support"):
                others = [name for name in forms if f", {kind}" in name]
                for clock in ("wall", "processor") if others else ():
                    ratios = [
                        min(times[other][clock][turn] for other in others) / own
                        for turn, own in enumerate(times[form][clock])
                    ]
                    row[f"{kind}_{clock}"] = [statistics.median(ratios), min(ratios), max(ratios)]
        rows.append(row)
    return rows


def agree(outcomes: Mapping[str, np.ndarray]) -> None:
    """Hold the first failing layer of all forms against each other, where rounding does not decide it."""
    clear = ~outcomes["ties"]
    if np.mean(outcomes["ties"]) > MOST_TIES:
        raise SystemExit(
            f"expected rounding to decide at most {100 * MOST_TIES:g}% of the draws that are checked, got "
            f"{int(np.sum(outcomes['ties']))} of {len(clear)}; take another seed"
        )
    for name, failed in outcomes.items():
        if name != "ties" and np.any(failed[clear] != outcomes["paths"][clear]):
            wrong = int(np.sum(np.any(failed[clear] != outcomes["paths"][clear], axis=1)))
            raise SystemExit(f"expected the same layers to fail on the same signs, got {wrong} draws of {name} apart")


def compare(counts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return failures of every form; refuse those whose probability is another one than ours."""
    draws, *failed = counts["paths"]
    found: dict[str, Any] = {}
    for name, (number, *losses) in counts.items():
        apart = []
        for own, other in zip(failed, losses, strict=True):
            pooled = (own + other) / (draws + number)
            error = math.sqrt(pooled * (1 - pooled) * (1 / draws + 1 / number))
            apart.append((other / number - own / draws) / error if error else 0.0)
        found[name] = {"draws": int(number), "failed": [loss / number for loss in losses], "errors": apart}
        if max(map(abs, apart)) > ERRORS:
            raise SystemExit(
                f"expected {name} to fail as often as ours, layer by layer {[f / draws for f in failed]}, got "
                f"{found[name]['failed']}: {max(map(abs, apart)):.1f} standard errors apart"
            )
    return found


def show(record: dict[str, Any]) -> None:
    """Print one table per case."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    for case in record["cases"]:
        failed = case["failures"]["paths"]
        title = (
            f"{record['device']['name']}; {case['channels']} channels, supports of {case['places']} (S {case['S']}); "
            f"first failing layer {', '.join(f'{100 * share:.3g}%' for share in failed['failed'])} of "
            f"{failed['draws']:,} draws; floor {1e6 * case['floor_seconds']:.3g} us"
        )
        table = Table(title=title, caption_justify="left")
        columns = ("allocator", "form", "batch", "draws/s", "us", "CPU us", "/ pass", "CPU", "/ support", "CPU",
                   "compile (s)", "MiB")  # fmt: skip
        for at, column in enumerate(columns):
            table.add_column(column, justify="left" if at < 2 else "right", no_wrap=True)
        table.caption = (
            "us: of a draw, by the clock and by the processor (all cores). / pass, / support: time of the quickest "
            "such\npeer in the same turn over ours, median of turns (above 1 ours is quicker), by clock and processor. "
            "compile: first\ncall of a fresh process less a warmed one. MiB: most that this process held, which ran "
            "this form alone"
        )
        for row in case["rows"]:
            ratios = [
                f"{row[key][0]:.2f}" if key in row else "-"
                for key in ("pass_wall", "pass_processor", "support_wall", "support_processor")
            ]
            table.add_row(
                row["allocator"], f"ours, {row['name']}" if row["ours"] else row["name"], str(row["batch"]),
                f"{1 / row['wall']:,.0f}", f"{1e6 * row['wall']:.2f}", f"{1e6 * row['processor']:.2f}", *ratios,
                f"{row['compile']:.1f}", f"{row['resident_MiB']:,.0f}",
            )  # fmt: skip
        console.print(table)
        for row in case["growth"]:
            console.print(
                f"{row['draws']:,} draws in {row['wall'][0]:.2f} s; resident {row['resident_now_MiB']:,.0f} MiB, "
                f"at most {row['resident_MiB']:,.0f} MiB"
            )
        largest = max(abs(error) for one in case["failures"].values() for error in one["errors"])
        console.print(f"failure probabilities of all forms within {largest:.1f} standard errors of ours")
    if record["torch_missing"]:
        console.print(f"torch left out: {record['torch_missing']}; name a Python that has it by --peer-python")


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dcsc", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 1], help="M; a case for each")
    parser.add_argument("--num-nonzeros", type=int, default=8, help="of X^(2)")
    parser.add_argument("--draws", type=int, nargs="+", default=[100_000, 1_000_000], help="for the memory")
    parser.add_argument("--rounds", type=int, default=5, help="of all forms in turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--busy", action="store_true", help="choose batches by the processor's time, not by the clock")
    parser.add_argument("--peer-python", help="an interpreter that has torch; without it, NumPy is the only peer")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, NumPy alone, nothing stored")
    parser.add_argument("--no-store", action="store_true", help="store nothing")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    given = parser.parse_args(arguments)
    sizes: dict[str, Any] = {
        "samples": 256, "num_filters": (32, 64), "length": 16, "taps": 4, "seed": 3, "checked": 256,
    }  # fmt: skip
    if given.smoke:
        sizes |= {"samples": 24, "num_filters": (6, 5), "length": 4, "taps": 2, "checked": 16}
        given.channels, given.num_nonzeros, given.draws = [6], 2, [2048, 4096]
        given.rounds, given.seconds, given.peer_python = 1, 0.01, None
    vars(given).update(sizes)
    use_all_cores()
    record = measure(given)
    show(record)
    if not (given.smoke or given.no_store):
        path = given.results / store.slug(record["device"]) / "dcsc.json"
        store.write(record, path)
        print(f"Stored in {path}.")


if __name__ == "__main__":
    main()
