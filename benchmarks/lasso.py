"""Time to a certified solution of min |x - W^T z|^2 + lam |z|_1, beside FISTA in torch and sporco's two solvers.

``python -m benchmarks.lasso [--batches 1 8 64] [--fractions 0.1 0.02] [--peer-python PATH] [--smoke]``

Signals are the 64 x 64 tiles of scikit-image's astronaut, high-passed (minus a Gaussian blur of 3 pixels), filters 64
unit Gaussian ones of 5 x 5 x 3, valid padding, float32; lam is a fraction of each signal's `lam_max`. We stop at a
relative duality gap of 1e-4. Peers iterate without looking; from outside we note when their code, in float64, first has
an objective within 1e-4 of the best known one, and when it first has a duality gap of 1e-4, which is what we deliver.

Compilation is apart, everything is warmed, rounds of ours and of the peers alternate, and medians are shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import store
from benchmarks.measure import compile_program, note
from cnninv_jax import filters
from cnninv_jax.operators import ConvOperator, conv_operator
from cnninv_jax.recovery.lasso import lam_max, lasso

GAP = 1e-4
PEERS = Path(__file__).parent / "peers" / "lasso_peers.py"


def tiles(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, str]:
    """Return high-passed colour tiles [count, 3, size, size] and where they are from."""
    from scipy.ndimage import gaussian_filter

    try:
        from skimage import data

        picture, source = np.asarray(data.astronaut(), np.float64) / 255, "scikit-image's astronaut"
    except ImportError:
        # Amplitudes that fall with the frequency, as those of pictures do.
        rng = np.random.default_rng(seed)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))[..., None]
        spectrum = np.fft.fft2(rng.normal(size=(512, 512, 3)), axes=(0, 1)) / (frequency + 1 / 512)
        picture, source = np.fft.ifft2(spectrum, axes=(0, 1)).real / 400, "noise with a 1/f spectrum"
    picture = picture - gaussian_filter(picture, (3, 3, 0))
    side = picture.shape[0] // size
    cut = picture[: side * size, : side * size].reshape(side, size, side, size, 3)
    cut = cut.transpose(0, 2, 4, 1, 3).reshape(-1, 3, size, size)
    # Neighbours look alike: take them from all over.
    order = np.random.default_rng(seed).permutation(len(cut))[:count]
    return np.ascontiguousarray(cut[order], np.float32), source


def solve(op: ConvOperator, xs: jax.Array, lams: jax.Array, tol: float, max_steps: int = 10_000) -> Any:
    """Return the results of a batch; a batch of one is a single problem."""
    one = lambda x, lam: lasso(op, x, lam, tol=tol, max_steps=max_steps)  # noqa: E731
    return one(xs[0], lams[0]) if len(xs) == 1 else jax.vmap(one)(xs, lams)


def ours(op: ConvOperator, xs: jax.Array, lams: jax.Array, tol: float) -> tuple[Any, dict[str, Any]]:
    """Compile and warm; return the call and what is known of it."""
    program, seconds, memory = compile_program(lambda op, xs, lams: solve(op, xs, lams, tol), op, xs, lams)
    call = lambda: jax.block_until_ready(program(op, xs, lams))  # noqa: E731
    found = call()
    size = None if memory is None else int(memory.temp_size_in_bytes + memory.output_size_in_bytes)
    return call, {
        "compile_seconds": round(seconds, 2),
        "program_MiB": None if size is None else round(size / 2**20, 1),
        "steps": float(np.mean(found.steps)),
        "density": float(np.mean(np.asarray(found.code) != 0)),
        "largest_gap": float(np.max(found.relative_gap)),
        "failures": int(np.count_nonzero(found.status)),
    }


def peers(python: str, problem: dict[str, np.ndarray], batch: int, seconds: float) -> list[dict[str, Any]]:
    """Run the peers in their own environment on the same numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        np.savez(path, **problem)
        command = [python, str(PEERS), str(path), "--batch", str(batch), "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peers ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return one row per (fraction, batch, contestant)."""
    size, count, length = (16, 8, 3) if given.smoke else (64, 64, 5)
    pictures, source = tiles(max(given.batches), size)
    bank = filters.gaussian(jax.random.key(0), count, 3, (length, length), normalize=True, dtype=jnp.float32)
    op = conv_operator(bank, (size, size))
    rows = []
    for fraction in given.fractions:
        for batch in given.batches:
            xs = jnp.asarray(pictures[:batch])
            lams = fraction * jax.vmap(lambda x: lam_max(op, x))(xs)
            note(f"lam = {fraction} lam_max, batch {batch}: best objective")
            best = jax.jit(lambda xs, lams: solve(op, xs, lams, 1e-5, 5000).objective)(xs, lams)
            call, facts = ours(op, xs, lams, GAP)
            times: list[float] = []
            found: dict[str, list[dict[str, Any]]] = {}
            problem = {"filters": np.asarray(bank), "x": np.asarray(xs), "lam": np.asarray(lams)}
            problem |= {"best": np.atleast_1d(np.asarray(best, np.float64))}
            for turn in range(given.rounds):
                note(f"lam = {fraction} lam_max, batch {batch}: round {turn + 1} of {given.rounds}")
                for _ in range(max(1, 8 // batch)):
                    started = time.perf_counter()
                    call()
                    times.append((time.perf_counter() - started) / batch)
                if given.peer_python:
                    for entry in peers(given.peer_python, problem, batch, given.seconds):
                        found.setdefault(entry["name"], []).append(entry)
            shared = {"fraction": fraction, "batch": batch}
            rows.append(
                {**shared, "name": "cnninv_jax", "to_gap": statistics.median(times), "fastest": min(times), **facts}
            )
            rows += [{**shared, **_median(name, entries)} for name, entries in found.items()]
    note("")
    return {
        "device": store.describe_device(),
        "versions": store.versions(),
        "signals": source,
        "gap": GAP,
        "rows": rows,
    }


def _median(name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    for key in entries[0].keys() - {"name"}:
        values = [entry[key] for entry in entries if entry[key] is not None]
        row[key] = statistics.median(values) if values else None
    return row


def show(record: dict[str, Any]) -> None:
    """Print one table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{record['device']['name']}; {record['signals']}; ms per problem")
    for column in ("lam / lam_max", "batch", "", "to objective", "to gap", "iterations", "density", "MiB"):
        table.add_column(column, justify="left" if column == "" else "right")

    def text(value: float | None) -> str:
        return "-" if value is None else f"{1e3 * value:.1f}"

    for row in record["rows"]:
        steps = row.get("steps", row.get("iterations_to_gap"))
        cells = [
            f"{row['fraction']}",
            f"{row['batch']}",
            row["name"],
            text(row.get("to_objective")),
            text(row["to_gap"]),
        ]
        cells += ["-" if steps is None else f"{steps:.0f}", f"{row['density']:.4f}" if "density" in row else ""]
        memory = row.get("program_MiB", row.get("resident_MiB"))
        table.add_row(*cells, "-" if memory is None else f"{memory:.0f}")
    Console(width=130).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lasso", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.02], help="lam as parts of lam_max")
    parser.add_argument("--rounds", type=int, default=3, help="of ours and the peers in turn")
    parser.add_argument("--seconds", type=float, default=20.0, help="most that a peer may take for one run")
    parser.add_argument("--peer-python", help="an interpreter that has torch, sporco or both; without it, ours alone")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, no peers, nothing stored")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    given = parser.parse_args(arguments)
    if given.smoke:
        given.batches, given.fractions, given.rounds, given.peer_python = [1, 2], [0.1], 1, None
    record = measure(given)
    show(record)
    if not given.smoke:
        path = given.results / store.slug(record["device"]) / "lasso.json"
        store.write(record, path)
        print(f"Stored in {path}.")


if __name__ == "__main__":
    main()
