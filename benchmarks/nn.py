"""Images a second through convolutional classifiers beside torch and plain Flax, all in one run.

``python -m benchmarks.nn [--peer-python PATH] [--batch 128] [--channels 256 256 128] [--smoke]``; PATH is a Python that
has torch. Three 3 x 3 convolutions on 32 x 32 images, each with batch norm, ReLU and 2 x 2 max-pooling (Gilbert et al.
2017, Table 5), float32, the same numbers on both sides: features and losses of three steps are held against each other
first. Rows:

- *features*: the last maps at evaluation; ``flax`` is what a user of Flax writes;
- *frozen step*: the same, and a step of the soft-max layer on top (forward, backward, update), all that learns then;
  ``features alone`` in the same turns;
- *live step*: random filters in training mode: batch statistics, learned scales and biases of batch norm;
- *learned step*: everything learns;
- *ConvPool-CNN-C step*: the network of Shang et al. 2016 at ``--width``, without dropout, everything learns.

Ours and the peer are a process each, under the same settings of the allocator: as it comes, and told to keep freed
pages. They are measured in turns; a ratio is taken turn by turn to the other side's best form, and where torch has
forms that fewer users write (batch norm folded by hand, the batch in parts) to the best plain layout as well. On a
machine that others use as well the processor's time says more than the clock: both are shown. Single convolutions are
measured apart, in every form, with the share of the largest product's rate in the same run; Winograd's forms may pass
100%, since operations are those of the plain convolution. On a GPU there are rows for the default precision (TF32) and
bfloat16, and the share is of ``--peak-tflops`` (float32, TF32, bfloat16), or of a measured product.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import store
from benchmarks.dcn import ALLOCATORS, Worker, serve
from benchmarks.measure import note
from benchmarks.peers.nn_peer import FEATURES, LAYOUTS, ROUNDED

#: Largest difference of features (against their norm) and of losses.
AGREEMENT = 1e-4
#: What is measured: forms of ours, of torch.
CONTESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "features": (("ours", "flax"), (*FEATURES, ROUNDED)),
    "frozen step": (("ours", "features alone"), LAYOUTS),
    "live step": (("ours",), LAYOUTS),
    "learned step": (("ours", "flax"), LAYOUTS),
    "ConvPool-CNN-C step": (("ours",), LAYOUTS),
}
#: Forms of ours on an accelerator, and the products whose rate each could reach.
ROUNDING = {"ours": "float32", "ours, default precision": "tf32", "ours, bfloat16": "bfloat16"}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return one row per allocator's setting, workload and form, and those of single layers."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(given.batch, given.size, given.size, 3)).astype(np.float32)
    labels = rng.integers(10, size=given.batch).astype(np.int32)
    record: dict[str, Any] = {"rows": [], "layers": []}
    with tempfile.TemporaryDirectory() as folder:
        problem, mine, theirs = (str(Path(folder) / name) for name in ("problem.npz", "mine.npz", "theirs.npz"))
        for allocator, environment in ALLOCATORS.items():
            if given.allocator not in ("both", allocator):
                continue
            np.savez(problem, images=images, labels=labels)
            ours = Worker([sys.executable, "-m", "benchmarks.nn", "--serve"], environment)
            facts = ours.ask(
                do="load", problem=problem, outputs=mine, channels=given.channels, width=given.width, smoke=given.smoke
            )
            record |= {"device": facts["device"], "versions": {**facts["versions"], **record.get("versions", {})}}
            accelerator = facts["device"]["platform"] != "cpu"
            peer, difference = None, None
            if given.peer_python:
                peer = Worker([given.peer_python, "-m", "benchmarks.peers.nn_peer"], environment)
                answer = peer.ask(do="load", problem=problem, outputs=theirs, networks=facts["networks"])
                record["versions"]["torch"] = answer["torch"]
                if answer["device"] == ("cpu" if accelerator else "cuda"):
                    raise SystemExit(f"expected a peer on our device, got {answer['device']} for torch; hide the GPU")
                difference = _difference(mine, theirs)
            for what, (forms, others) in CONTESTS.items():
                if given.only and what not in given.only:
                    continue
                note(f"{allocator}, {what}")
                if accelerator:
                    forms = tuple(ROUNDING) + forms[1:]
                contestants = [(ours, form) for form in forms] + [(peer, form) for form in others if peer]
                shared = {"allocator": allocator, "what": what, "difference": difference}
                record["rows"] += _turns(given, contestants, ours, shared)
            if not given.only or "layers" in given.only:
                note(f"{allocator}, layers")
                record["layers"] += [
                    {"allocator": allocator, **row} for row in ours.ask(do="layers", seconds=given.seconds)["rows"]
                ]
            products = ("float32", "tf32", "bfloat16") if accelerator else ("float32",)
            peaks = {name: ours.ask(do="peak", products=name)["flop_per_second"] for name in products}
            if given.peak_tflops:
                peaks = {name: 1e12 * rate for name, rate in zip(products, given.peak_tflops, strict=False)}
            record.setdefault("peaks", {})[allocator] = peaks
            ours.close()
            if peer:
                peer.close()
            if accelerator:
                break  # its memory has an allocator of its own
    note("")
    return record | {
        "batch": given.batch, "channels": given.channels, "size": given.size, "width": given.width,
        "cores": given.cores, "operations_per_image": _operations(given),
    }  # fmt: skip


def _operations(given: argparse.Namespace) -> int:
    """Return the operations of the convolutions of one image's features, two per multiply-add."""
    sizes = [given.size // 2**place for place in range(len(given.channels))]
    pairs = zip((3, *given.channels), given.channels, strict=False)
    return sum(2 * size**2 * 9 * inputs * outputs for size, (inputs, outputs) in zip(sizes, pairs, strict=True))


def _difference(mine: str, theirs: str) -> dict[str, float]:
    """Return how far two sides are from each other; refuse to compare what differs."""
    with np.load(mine) as ours, np.load(theirs) as others:
        found = {
            name: float(np.linalg.norm(ours[name] - others[name]) / np.linalg.norm(others[name]))
            for name in ("features", "losses")
        }
    if not max(found.values()) < AGREEMENT:
        raise SystemExit(f"expected features and losses that agree to {AGREEMENT:g}, got {found}")
    return found


def _turns(
    given: argparse.Namespace, contestants: list[tuple[Worker, str]], ours: Worker, shared: dict[str, Any]
) -> list[dict[str, Any]]:
    """Measure all forms in turns; give every one of ours its ratio to torch's best forms."""
    found: dict[str, dict[str, list[float]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for _ in range(given.rounds):
        for worker, form in contestants:
            answer = worker.ask(do="time", what=shared["what"], form=form, seconds=given.seconds)
            for clock in ("wall", "processor"):
                found.setdefault(form, {}).setdefault(clock, []).append(statistics.median(answer.pop(clock)))
            facts[form] = answer
            time.sleep(0.05 if len({id(one) for one, _ in contestants}) > 1 else 0)  # threads of the last one may spin
    rows = []
    theirs = [form for worker, form in contestants if worker is not ours and form != ROUNDED]
    for worker, form in contestants:
        row = {**shared, "name": form, "ours": worker is ours, **facts[form]}
        for clock in ("wall", "processor"):
            row[clock] = statistics.median(found[form][clock])
            for name, rivals in (("plain", LAYOUTS), ("best", tuple(theirs))):
                if theirs and worker is ours:
                    least = [min(found[rival][clock][turn] for rival in rivals) for turn in range(given.rounds)]
                    ratios = [there / here for here, there in zip(found[form][clock], least, strict=True)]
                    row[f"{name}_{clock}"] = statistics.median(ratios)
        rows.append(row)
    return rows


def show(record: dict[str, Any]) -> None:
    """Print two tables: networks, and single convolutions."""
    from rich.console import Console
    from rich.table import Table

    name = f"{record['device']['name']}; channels {record['channels']}, batch {record['batch']}"
    name += f", {record['cores']} of its cores" if record["cores"] else ""
    table = Table(title=name, caption_justify="left")
    columns = (
        "allocator",
        "workload",
        "form",
        "ms",
        "processor ms",
        "images/s",
        "to plain torch",
        "to best torch",
        "MiB",
    )
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at < 3 else "right")
    table.caption = (
        "ratio, by the clock (by the processor): torch's time over ours in the same turn; above 1 is quicker"
    )
    for row in record["rows"]:
        ratios = [
            f"{row[f'{key}_wall']:.2f} ({row[f'{key}_processor']:.2f})" if f"{key}_wall" in row else "-"
            for key in ("plain", "best")
        ]
        table.add_row(
            row["allocator"], row["what"], row["name"] if row["ours"] else f"torch, {row['name']}",
            f"{1e3 * row['wall']:.1f}", f"{1e3 * row['processor']:.1f}", f"{record['batch'] / row['wall']:,.0f}",
            *ratios, f"{row['device_MiB'] or row['resident_MiB']:.0f}" if row["ours"] else f"{row['resident_MiB']:.0f}",
        )  # fmt: skip
    console = Console(width=150)
    console.print(table)
    for allocator, peaks in record["peaks"].items():
        for form, products in ROUNDING.items():
            rows = [
                row
                for row in record["rows"]
                if (row["what"], row["name"], row["allocator"]) == ("features", form, allocator)
            ]
            if rows and products in peaks:
                rate = record["operations_per_image"] * record["batch"] / rows[0]["wall"]
                console.print(
                    f"{allocator}, features, {form}: {rate / 1e9:,.0f} GFLOP/s of plain convolutions, "
                    f"{100 * rate / peaks[products]:.0f}% of {peaks[products] / 1e9:,.0f} (a large {products} product)"
                )
    table = Table(title="single convolutions", caption_justify="left")
    columns = (
        "allocator",
        "layer",
        "way",
        "form",
        "ms",
        "processor ms",
        "GFLOP/s",
        "of peak",
        "difference",
        "temporary MiB",
    )
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at < 4 else "right")
    for row in record["layers"]:
        rate = row["operations"] / row["wall"]
        peak = record["peaks"][row["allocator"]]["float32"]
        table.add_row(
            row["allocator"], row["layer"], row["way"], row["method"], f"{1e3 * row['wall']:.1f}",
            f"{1e3 * row['processor']:.1f}", f"{rate / 1e9:,.0f}", f"{100 * rate / peak:.0f}%",
            "-" if row["error"] is None else f"{row['error']:.1e}",
            "-" if row["temporary_MiB"] is None else f"{row['temporary_MiB']:.0f}",
        )  # fmt: skip
    if record["layers"]:
        console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--channels", type=int, nargs=3, default=[256, 256, 128])
    parser.add_argument("--width", type=float, default=0.5, help="of ConvPool-CNN-C")
    parser.add_argument("--rounds", type=int, default=5, help="of ours and the peer in turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--only", nargs="+", choices=[*CONTESTS, "layers"], default=[], help="only these")
    parser.add_argument("--allocator", choices=["both", *ALLOCATORS], default="both", help="only this setting")
    parser.add_argument("--cores", type=int, help="for each side (Linux; default: all)")
    parser.add_argument("--peak-tflops", type=float, nargs="+", default=[], help="of float32, TF32, bfloat16 products")
    parser.add_argument("--peer-python", help="an interpreter that has torch; without it, ours alone")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, no peer, nothing stored")
    parser.add_argument("--no-store", action="store_true", help="store nothing")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        from benchmarks.nn_ours import Server

        serve(Server())
        return
    given.size = 32
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # workers inherit it
    if given.smoke:
        given.batch, given.channels, given.width, given.allocator = 4, [4, 32, 4], 0.05, "as it comes"
        given.rounds, given.seconds, given.peer_python = 1, 0.01, None
    record = measure(given)
    show(record)
    if not (given.smoke or given.no_store):
        path = given.results / store.slug(record["device"]) / f"nn{f'_{given.cores}_cores' if given.cores else ''}.json"
        store.write(record, path)
        print(f"Stored in {path}.")


if __name__ == "__main__":
    main()
