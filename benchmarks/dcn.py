"""Pictures a second through a random CNN-DCN beside torch, and SSIM beside scikit-image, all in one run.

``python -m benchmarks.dcn [--peer-python PATH] [--depth 1] [--channels 64] [--size 224] [--batches 1 8] [--smoke]``;
PATH is a Python that has torch. The network is Conv[k]-DeConv[k] of VGG-16 (Random DCN, Sec. 4) with the same float32
weights on both sides; outputs are held against each other first, and SSIM against scikit-image's.

Ours and the peer are a process each, under the same settings of the allocator: as it comes, and told to keep freed
pages. They are measured in turns, and the ratio is taken turn by turn between the best form of each: ours
``jax.vmap``, ``jax.lax.map`` or one call after the other, torch's with channels first or last. On a machine that others
use as well the processor's time says more than the clock: both are shown. With more than one core it counts threads of
torch that wait in a loop, too; ``--cores 1`` has none of these. Compilation is apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import store
from benchmarks.measure import note
from benchmarks.peers.table import KEEP_PAGES

ROOT = Path(__file__).parents[1]
FORMS = ("call", "vmap", "lax.map", "loop")
#: One arena, since those of threads give back whatever is larger than 64 MiB.
ALLOCATORS: dict[str, dict[str, str]] = {"as it comes": {}, "pages kept": {**KEEP_PAGES, "MALLOC_ARENA_MAX": "1"}}
#: Largest difference of outputs against the largest output, and of SSIM against scikit-image's.
AGREEMENT, SSIM_AGREEMENT = 1e-4, 1e-6


class Server:
    """Ours: holds a network and pictures, compiles forms as they are asked for."""

    def __init__(self) -> None:
        self.programs: dict[tuple[str, int], tuple[Callable[[], Any], dict[str, Any]]] = {}

    def load(self, problem: str, outputs: str, depth: int, channels: int | None) -> dict[str, Any]:
        """Read weights and pictures, and write what becomes of the pictures."""
        import jax
        import jax.numpy as jnp

        from cnninv_jax import dcn

        with np.load(problem) as held:
            self.weights = tuple(jnp.asarray(held[name]) for name in sorted(held.files) if name.startswith("w"))
            self.pictures = jnp.asarray(held["pictures"])
        self.net = dcn.architecture(depth, channels=channels)
        one = jax.jit(dcn.reconstruct, static_argnums=1)
        np.save(outputs, np.stack([one(self.weights, self.net, picture) for picture in self.pictures]))
        return {"jax": jax.__version__}

    def time(self, form: str, batch: int, seconds: float) -> dict[str, Any]:
        """Return the seconds and the processor seconds of every call."""
        import jax

        if (form, batch) not in self.programs:
            self.programs[form, batch] = self._program(form, batch)
        call, facts = self.programs[form, batch]
        jax.block_until_ready(call())
        wall, processor = [], []
        while sum(wall) < seconds:
            started, used = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            wall.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
        return {"wall": wall, "processor": processor, **facts}

    def _program(self, form: str, batch: int) -> tuple[Callable[[], Any], dict[str, Any]]:
        import jax
        from skimage.metrics import structural_similarity

        from benchmarks.measure import compile_program
        from cnninv_jax import dcn, images

        pictures = self.pictures[:batch]
        if form.startswith("SSIM"):
            a = images.to_grey(pictures)
            b = a[:, ::-1]
            first, second = np.asarray(a), np.asarray(b)

            def peer() -> list[Any]:
                return [
                    structural_similarity(
                        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
                    )
                    for x, y in zip(first, second, strict=True)
                ]

            program, seconds, memory = compile_program(jax.vmap(images.ssim), a, b)
            first, second = first.astype(np.float64), second.astype(np.float64)
            error = float(np.max(np.abs(np.asarray(program(a, b)) - np.asarray(peer()))))
            first, second = np.asarray(a), np.asarray(b)
            call = peer if form == "SSIM, scikit-image" else lambda: program(a, b)
            return call, _facts(seconds, memory) | {"error": error}

        def one(weights: Any, picture: Any) -> Any:
            return dcn.reconstruct(weights, self.net, picture)

        if form in ("call", "loop"):
            program, seconds, memory = compile_program(one, self.weights, pictures[0])
            parts = list(pictures)
            return lambda: [program(self.weights, picture) for picture in parts], _facts(seconds, memory)

        def every(weights: Any, pictures: Any) -> Any:
            if form == "vmap":
                return jax.vmap(one, in_axes=(None, 0))(weights, pictures)
            return jax.lax.map(lambda picture: one(weights, picture), pictures)

        program, seconds, memory = compile_program(every, self.weights, pictures)
        return lambda: program(self.weights, pictures), _facts(seconds, memory)


def _facts(seconds: float, memory: Any) -> dict[str, Any]:
    size = None if memory is None else round((memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20, 1)
    return {"compile_seconds": round(seconds, 2), "program_MiB": size}


class Worker:
    """A server in a process of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT,
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended; its error is above"}
        if "error" in answer and "wall" not in answer:
            raise SystemExit(f"expected a benchmark that runs, got: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return one row per allocator's setting, batch and form."""
    import jax

    from cnninv_jax import dcn

    net = dcn.architecture(given.depth, channels=given.channels)
    weights = dcn.random_weights(jax.random.key(0), net, dtype=np.float32)
    rng = np.random.default_rng(0)
    pictures = rng.uniform(size=(max(given.batches), 3, given.size, given.size)).astype(np.float32)
    rows, versions = [], store.versions()
    with tempfile.TemporaryDirectory() as folder:
        problem, outputs = (str(Path(folder) / name) for name in ("problem.npz", "outputs.npy"))
        np.savez(problem, pictures=pictures, **{f"w{i:02}": np.asarray(bank) for i, bank in enumerate(weights)})
        for allocator, environment in ALLOCATORS.items():
            ours = Worker([sys.executable, "-m", "benchmarks.dcn", "--serve"], environment)
            ours.ask(do="load", problem=problem, outputs=outputs, depth=given.depth, channels=given.channels)
            ours_out, peer, error = np.load(outputs), None, None
            if given.peer_python:
                peer = Worker([given.peer_python, "-m", "benchmarks.peers.dcn_peer"], environment)
                blocks = [len(block) for block in (*net.encoder, *net.decoder)]
                answer = peer.ask(do="load", problem=problem, outputs=outputs, blocks=blocks)
                versions["torch"] = answer["torch"]
                error = float(np.max(np.abs(np.load(outputs) - ours_out)) / np.max(np.abs(ours_out)))
                if error > AGREEMENT:
                    raise SystemExit(f"expected outputs that agree to {AGREEMENT:g} of the largest, got {error:g}")
            for batch in given.batches:
                contests = [
                    ("network", [(ours, form) for form in FORMS if (form == "call") == (batch == 1)],
                     [(peer, form) for form in ("NCHW", "NHWC")] if peer else []),
                    ("SSIM", [(ours, "SSIM")], [(ours, "SSIM, scikit-image")]),
                ]  # fmt: skip
                for what, mine, theirs in contests:
                    note(f"{allocator}, batch {batch}, {what}")
                    rows += _turns(given, what, mine, theirs, batch, {"allocator": allocator, "difference": error})
            ours.close()
            if peer:
                peer.close()
    note("")
    return {
        "device": store.describe_device(), "versions": versions, "network": net.name, "channels": given.channels,
        "size": given.size, "cores": given.cores, "multiply_adds": net.multiply_adds(given.size, given.size),
        "rows": rows,
    }  # fmt: skip


def _turns(
    given: argparse.Namespace,
    what: str,
    mine: list[tuple[Worker, str]],
    theirs: list[tuple[Worker, str]],
    batch: int,
    shared: dict[str, Any],
) -> list[dict[str, Any]]:
    """Measure all forms in turns; give every form its ratio to the best form of the other side."""
    found: dict[str, dict[str, list[float]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for _ in range(given.rounds):
        for worker, form in (*mine, *theirs):
            answer = worker.ask(do="time", form=form, batch=batch, seconds=given.seconds)
            for clock in ("wall", "processor"):
                found.setdefault(form, {}).setdefault(clock, []).append(statistics.median(answer.pop(clock)) / batch)
            facts[form] = answer
            time.sleep(0.05 if theirs else 0)  # threads of the last one may spin a while
    if what == "SSIM" and facts["SSIM"]["error"] > SSIM_AGREEMENT:
        raise SystemExit(f"expected scikit-image's SSIM to {SSIM_AGREEMENT:g}, got {facts['SSIM']['error']:g} off")
    rows = []
    for side, others in ((mine, theirs), (theirs, mine)):
        for _, form in side:
            row = {**shared, "batch": batch, "what": what, "name": form, "ours": side is mine}
            for clock in ("wall", "processor"):
                row[clock] = statistics.median(found[form][clock])
                if others:
                    best = [min(found[other][clock][turn] for _, other in others) for turn in range(given.rounds)]
                    row[f"ratio_{clock}"] = statistics.median(
                        there / here for here, there in zip(found[form][clock], best, strict=True)
                    )
            rows.append(row | (facts[form] if side is mine else {}))
    return rows


def show(record: dict[str, Any]) -> None:
    """Print one table."""
    from rich.console import Console
    from rich.table import Table

    name = f"{record['network']}, {record['channels'] or 'VGG-16'} channels, {record['size']} x {record['size']}"
    name += f", {record['cores']} of its cores" if record["cores"] else ""
    table = Table(title=f"{record['device']['name']}; {name}; milliseconds a picture", caption_justify="left")
    columns = ("allocator", "batch", "what", "form", "clock", "processor", "ratio, clock", "ratio, processor", "MiB")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at in (0, 2, 3) else "right")
    table.caption = "ratio: time of the other side's best form, in the same turn, over this one's; above 1 is quicker"
    for row in record["rows"]:
        ratios = [f"{row[key]:.2f}" if key in row else "-" for key in ("ratio_wall", "ratio_processor")]
        memory = row.get("program_MiB")
        form = f"ours, {row['name']}" if row["ours"] else row["name"] + (", torch" if row["what"] == "network" else "")
        table.add_row(
            row["allocator"], str(row["batch"]), row["what"], form, f"{1e3 * row['wall']:.2f}",
            f"{1e3 * row['processor']:.2f}", *ratios, "-" if memory is None else f"{memory:.0f}",
        )  # fmt: skip
    Console(width=140).print(table)


def serve(server: Any) -> None:
    """Answer requests by the methods of a server until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(server, request.pop("do"))(**request)), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dcn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, default=1, help="k of CDk (default 1)")
    parser.add_argument("--channels", type=int, default=64, help="in all layers but the output; 0 for VGG-16's")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5, help="of ours and the peer in turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--cores", type=int, help="for each side (Linux; default: all)")
    parser.add_argument("--peer-python", help="an interpreter that has torch; without it, ours alone")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, no peer, nothing stored")
    parser.add_argument("--no-store", action="store_true", help="store nothing")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        serve(Server())
        return
    given.channels = given.channels or None
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # workers inherit it
    if given.smoke:
        given.depth, given.channels, given.size, given.batches = 2, 4, 16, [1, 2]
        given.rounds, given.seconds, given.peer_python = 1, 0.01, None
    record = measure(given)
    show(record)
    if not (given.smoke or given.no_store):
        name = (
            "dcn" + (f"_cd{given.depth}" if given.depth > 1 else "") + (f"_{given.cores}_cores" if given.cores else "")
        )
        path = given.results / store.slug(record["device"]) / f"{name}.json"
        store.write(record, path)
        print(f"Stored in {path}.")


if __name__ == "__main__":
    main()
