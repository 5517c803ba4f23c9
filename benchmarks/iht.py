"""Model IHT (Gilbert et al. 2017, Alg. 1): problems a second, ours beside torch in the same run.

``python -m benchmarks.iht [--peer-python PATH] [--smoke] [--no-store]``; PATH is a Python that has torch. The size is
that of Fig. 2, K, M, l, D = 96, 32, 5, 32, float32, 256 problems of 50 iterations at step 1; filters are given arrays,
new ones for every problem or one bank for all. Recoveries are checked first: a few problems against a dense float64
loop, all of them against each other. Ours and the peer's are measured in turns, and ratios are taken turn by turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import store
from benchmarks.floors import Work, floor
from benchmarks.measure import compile_program, everywhere, note, place, use_all_cores
from benchmarks.peaks import Peaks


@dataclasses.dataclass(frozen=True)
class Case:
    """Problems x = W^T z with z in M_k, the non-zeros uniform on [-1, 1]."""

    name: str
    shared: bool
    k: int
    channels: int
    num_filters: int = 96
    length: int = 5
    signal: int = 32
    problems: int = 256
    num_steps: int = 50

    def make(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return filters, signals, and the codes they were made of."""
        rng = np.random.default_rng(seed)
        shifts = self.signal - self.length + 1
        size = (self.num_filters, self.channels, self.length)
        banks = rng.standard_normal(size if self.shared else (self.problems, *size)) / np.sqrt(size[1] * size[2])
        banks = banks.astype(np.float32)
        x = np.zeros((self.problems, self.channels, self.signal), np.float32)
        codes = np.zeros((self.problems, self.num_filters, shifts), np.float32)
        for problem in range(self.problems):
            bank = banks if self.shared else banks[problem]
            for number in rng.permutation(self.num_filters)[: self.k]:
                at, value = rng.integers(shifts), np.float32(rng.uniform(-1, 1))
                codes[problem, number, at] = value
                x[problem, :, at : at + self.length] += value * bank[number]
        return banks, x, codes


CASES = tuple(
    Case(f"{name}, {'one bank' if shared else 'new filters'}", shared, k, channels)
    for name, k, channels in (("easy", 10, 32), ("hard", 20, 32), ("few channels", 10, 16))
    for shared in (False, True)
)
SMOKE = tuple(
    Case(f"smoke, {'one bank' if shared else 'new filters'}", shared, 2, 8, 12, 3, 10, 8, 6) for shared in (False, True)
)


def program(case: Case, method: str) -> Any:
    """Return the function of (filters, x) that every device applies to its part of the problems."""
    from cnninv_jax.operators import conv_operator
    from cnninv_jax.recovery import iht

    def one(filters: jax.Array, x: jax.Array) -> Any:
        op = conv_operator(filters, case.signal)
        return iht(op, x, case.k, num_steps=case.num_steps, method=method)

    return everywhere(jax.vmap(one, in_axes=(None if case.shared else 0, 0)), 1 if case.shared else 0)


def path(case: Case, filters: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, list[set[int]], int]:
    """Run Alg. 1 on one problem, dense, in float64; return the code, every support, and when it last changed."""
    shifts = case.signal - case.length + 1
    matrix = np.zeros((case.num_filters, shifts, case.channels, case.signal))
    for at in range(shifts):
        matrix[:, at, :, at : at + case.length] = filters
    matrix = matrix.reshape(case.num_filters * shifts, -1)
    signal, z = x.astype(np.float64).ravel(), np.zeros(matrix.shape[0])
    supports: list[set[int]] = []
    changed = 0
    for step in range(case.num_steps):
        h = (z + matrix @ (signal - matrix.T @ z)).reshape(case.num_filters, shifts)
        places = np.argmax(np.abs(h), axis=1)
        pooled = h[np.arange(case.num_filters), places]
        kept = np.argsort(-np.abs(pooled), kind="stable")[: case.k]
        z = np.zeros_like(h)
        z[kept, places[kept]] = pooled[kept]
        z = z.ravel()
        support = set(np.flatnonzero(z).tolist())
        changed = step + 1 if not supports or support != supports[-1] else changed
        supports.append(support)
    return z.reshape(case.num_filters, shifts), supports, changed


def least_work(case: Case, rows: float, iterations: float) -> Work:
    """Return what a problem needs by cross-correlations.

    Args:
        case: sizes.
        rows: filters whose correlations with all others are needed (those that ever enter the support); with one bank
            for all problems none, their cost being shared.
        iterations: until the support stays.
    """
    size, shifts = case.channels * case.length, case.signal - case.length + 1
    correlations = 0 if case.shared else 2 * rows * case.num_filters * size * case.length
    parts = {
        "W x": 2 * case.num_filters * shifts * size,
        "correlations": correlations,
        "iterations": 2 * iterations * case.k * case.num_filters * (2 * case.length - 1),
        "path on the support": 2 * case.num_steps * case.k**2,
        "residuals": 2 * iterations * case.k * size,
    }
    # Filters and signals are read once, codes and norms written once.
    numbers = (0 if case.shared else case.num_filters * size) + case.channels * case.signal
    numbers += case.num_filters * shifts + case.num_steps
    return Work(operations=sum(parts.values()), num_bytes=4 * numbers, lanes=case.problems, parts=tuple(parts.items()))


class Peer:
    """Torch in a process of its own."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.iht_torch"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended; its error is above"}
        if "error" in answer:
            raise ValueError(f"expected a peer that runs, got: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def agree(one: np.ndarray, other: np.ndarray, recovered: np.ndarray, case: Case, name: str) -> None:
    """Hold the codes of recovered problems against each other (paths that never settle part by rounding)."""
    scale = np.linalg.norm(one[recovered].reshape(recovered.sum(), -1), axis=1)
    error = np.linalg.norm((one - other)[recovered].reshape(recovered.sum(), -1), axis=1) / scale
    # One problem in a hundred may have settled elsewhere by a tie that rounding decided.
    wrong = int(np.sum(~(error < 1e-3)))
    if wrong > 0.01 * recovered.sum():
        raise AssertionError(f"{case.name}: {wrong} of {recovered.sum()} codes differ from {name} by more than 1e-3")


def check(case: Case, filters: np.ndarray, x: np.ndarray, made: np.ndarray, found: Any) -> dict[str, float]:
    """Check codes against the dense loop; return what is known of the problems."""
    from cnninv_jax.recovery import RESULTS

    codes, norms, results = (np.asarray(part) for part in (found.code, found.residual_norms, found.result))
    recovered = norms[:, -1] < 1e-4
    rows, iterations = [], []
    sample = range(min(16, case.problems))
    for problem in sample:
        with np.errstate(all="ignore"):
            code, supports, changed = path(case, filters if case.shared else filters[problem], x[problem])
        if recovered[problem]:
            np.testing.assert_allclose(codes[problem], code, atol=1e-3)
            assert abs(norms[problem, 1] - 1) > 1e-3
        shifts = made.shape[-1]
        rows.append(len({entry // shifts for support in supports for entry in support}))
        iterations.append(changed)
    error = np.linalg.norm((codes - made).reshape(case.problems, -1), axis=1)
    exact = error < 1e-3 * np.linalg.norm(made.reshape(case.problems, -1), axis=1)
    return {
        "recovered": float(np.mean(exact)),
        "diverged": float(np.mean(results == RESULTS.DIVERGED)),
        "filters_met": float(np.mean(rows)),
        "iterations_until_settled": float(np.mean(iterations)),
        "settled_problems": float(np.mean(recovered)),
    }


def measure(
    case: Case, peer: Peer | None, peaks: Peaks, seconds: float, turns: int, methods: tuple[str, ...]
) -> dict[str, Any]:
    """Check and time one case; return its row."""
    filters, x, made = case.make()
    shared, split = ((jnp.asarray(filters),), ()) if case.shared else ((), (jnp.asarray(filters),))
    arguments = place(shared, (*split, jnp.asarray(x)))
    programs, row = {}, {**dataclasses.asdict(case)}
    for method in methods:
        note(f"{case.name}: compiling {method}")
        programs[method], row[f"compile_seconds {method}"], _ = compile_program(program(case, method), *arguments)
    found = {method: jax.block_until_ready(one(*arguments)) for method, one in programs.items()}
    row |= check(case, filters, x, made, found["gram"])
    recovered = np.asarray(found["gram"].residual_norms)[:, -1] < 1e-4
    for method, one in found.items():
        agree(np.asarray(found["gram"].code), np.asarray(one.code), recovered, case, method)
    forms: list[str] = []
    if peer is not None:
        with tempfile.TemporaryDirectory() as folder:
            given, codes = str(Path(folder) / "problems.npz"), str(Path(folder) / "codes.npz")
            np.savez(given, filters=filters, x=x)
            note(f"{case.name}: torch, all forms once")
            about = peer.ask(do="load", problems=given, codes=codes, k=case.k, num_steps=case.num_steps)
            with np.load(codes) as held:
                agree(np.asarray(found["gram"].code), held["codes"], recovered, case, "torch")
        row["torch"], forms = about["torch"], about["forms"]

    def ours(method: str) -> float:
        call, times = programs[method], []
        while not times or sum(times) < seconds:
            started = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            times.append(time.perf_counter() - started)
        return case.problems / statistics.median(times)

    rates: dict[str, list[float]] = {name: [] for name in (*methods, *(f"torch, {form}" for form in forms))}
    for turn in range(turns):
        note(f"{case.name}: turn {turn + 1} of {turns}")
        for method in methods:
            rates[method].append(ours(method))
        for form in forms:
            assert peer is not None
            rates[f"torch, {form}"].append(case.problems / peer.ask(do="time", form=form, seconds=seconds)["seconds"])
    row["rates"] = {name: [float(f"{rate:.4g}") for rate in found] for name, found in rates.items()}
    if forms:
        # The form that is best over all turns; the ratio of each turn, then their median.
        best = max((f"torch, {form}" for form in forms), key=lambda name: statistics.median(rates[name]))
        ratios = [one / other for one, other in zip(rates["gram"], rates[best], strict=True)]
        row |= {"best_peer": best, "ratio": statistics.median(ratios), "ratios": ratios}
    work = least_work(case, row["filters_met"], row["iterations_until_settled"])
    least = floor(work, peaks)
    assert least is not None
    row |= {
        "floor_operations": work.operations,
        "floor_bytes": work.num_bytes,
        "floor_parts": dict(work.parts),
        "floor_problems_per_second": float(f"{1 / least.seconds:.4g}"),
        "fraction_of_floor": float(f"{statistics.median(rates['gram']) * least.seconds:.3g}"),
    }
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    columns = ["gram", "direct"] if "direct" in rows[0]["rates"] else ["gram"]
    peers = "torch" in rows[0]
    head = ["problems a second", "recovered", "diverged", *columns]
    print("| " + " | ".join([*head, *(["torch", "ours / torch"] if peers else []), "floor", "of it"]) + " |")
    print("| --- |" + " ---: |" * (len(head) + 1 + 2 * peers))
    for row in rows:
        sizes = zip("KMlDk", ("num_filters", "channels", "length", "signal", "k"), strict=True)
        cells = [f"{row['name']} ({', '.join(f'{letter} {row[name]}' for letter, name in sizes)})"]
        cells += [f"{row['recovered']:.0%}", f"{row['diverged']:.0%}"]
        cells += [f"{statistics.median(row['rates'][name]):,.0f}" for name in columns]
        if peers:
            form = row["best_peer"]
            cells.append(f"{statistics.median(row['rates'][form]):,.0f} ({form.removeprefix('torch, ')})")
            cells.append(f"{row['ratio']:.1f} ({min(row['ratios']):.1f} to {max(row['ratios']):.1f})")
        cells += [f"{row['floor_problems_per_second']:,.0f}", f"{row['fraction_of_floor']:.0%}"]
        print("| " + " | ".join(cells) + " |")


def main(arguments: list[str] | None = None) -> int:
    """Check, measure, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.iht", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", help="a Python with torch; without it ours is measured alone")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement in each turn (default 0.5)")
    parser.add_argument(
        "--turns", type=int, default=5, help="times that all are measured, one after the other (default 5)"
    )
    parser.add_argument("--only", default="", help="part of the names of the cases to measure")
    parser.add_argument("--methods", nargs="+", default=["gram", "direct"], choices=["gram", "direct"])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing stored")
    parser.add_argument("--no-store", action="store_true", help="print only")
    given = parser.parse_args(arguments)
    use_all_cores()
    cases = [case for case in (SMOKE if given.smoke else CASES) if given.only in case.name]
    if not cases or "gram" not in given.methods:
        parser.error("expected a case and the method gram among --methods")
    if given.smoke:
        given.seconds, given.turns = 0.0, 1
    peaks = Peaks(smoke=given.smoke)
    peer = Peer(given.peer_python) if given.peer_python else None
    try:
        rows = []
        for case in cases:
            if case.problems % jax.local_device_count():
                case = dataclasses.replace(
                    case, problems=-(-case.problems // jax.local_device_count()) * jax.local_device_count()
                )
            rows.append(measure(case, peer, peaks, given.seconds, given.turns, tuple(given.methods)))
    finally:
        if peer is not None:
            peer.close()
    note("")
    device = store.describe_device()
    print(f"{rows[0]['problems']} problems of {rows[0]['num_steps']} iterations, float32, on {device['name']}\n")
    show(rows)
    if not (given.smoke or given.no_store or given.only):
        record = {"device": device, "versions": store.versions(), "peaks": peaks.measured(), "rows": rows}
        store.write(record, store.RESULTS / store.slug(device) / "iht.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
