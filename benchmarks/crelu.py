"""Reconstruction from CReLU features (Shang et al. 2016, Alg. 1): ours beside scipy's LSMR and torch, all in one run.

``python -m benchmarks.crelu [--peer-python PATH] [--weights FILE.npz] [--smoke]``; PATH is a Python that has scipy and
torch, FILE holds a kernel ``conv1_1_W`` of VGG-16, [3, 3, 3, 64]. One picture of 224 x 224 and a batch of 256 of
32 x 32, 3 channels, 64 filters of 3 x 3 with same padding, float32; everything starts from the 128 maps of features.

What is asked of all: |z - W x'| / |z| <= 1e-5 for every picture, z the linear responses, judged in float64 here. Each
form stops by its own criterion (|W^T (z - W x)| / |W^T z| for conjugate gradients, ``atol = btol`` for LSMR), which is
tightened, thrice a time, until it does. Then forms are measured in turns, and ratios are taken turn by turn. Ours:
``patchwise``, the default, and ``iterated``, conjugate gradients from zero. Peers are in `benchmarks.peers.crelu_peer`;
``torch, autocorrelation`` and ``torch, patchwise`` use the library's own tricks.

Floor, per picture: features are read once, 4 * 2 K n bytes, and x' written; a product with F^+ takes 2 K M l^2
operations a shift, one W^T z as many.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import store
from benchmarks.dcn import ALLOCATORS, Worker, serve
from benchmarks.floors import Work, floor
from benchmarks.measure import device_peak_bytes, note, use_all_cores
from benchmarks.peaks import Peaks
from benchmarks.peers.crelu_peer import MOST_STEPS
from benchmarks.peers.dcsc_peer import peak_mib

#: |z - W x'| / |z| that is asked of every picture.
ASKED = 1e-5
#: Tolerances that are tried, in turn.
TOLERANCES = tuple(1e-5 / 3**power for power in range(8))
OURS = {"ours, patchwise": {}, "ours, iterated": {"patchwise": False}}
#: Peers that a user would write, and those with the library's own tricks.
PLAIN = ("scipy LSMR", "scipy LSMR, CSR", "torch")


class Server:
    """Ours: holds a problem, solves it as it is asked to."""

    def load(self, problem: str) -> dict[str, Any]:
        """Read a problem."""
        import jax.numpy as jnp

        from cnninv_jax.operators import conv_operator

        with np.load(problem) as held:
            self.features = jnp.asarray(held["features"])
            self.op = conv_operator(held["bank"], self.features.shape[2:], padding="same")
        self.programs: dict[str, Callable[..., Any]] = {}
        self.compiling: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        return {"forms": list(OURS)}

    def solve(self, form: str, tol: float, output: str = "") -> dict[str, Any]:
        """Solve once; compile before, where the form is new."""
        import jax

        if form not in self.compiling:
            self._compile(form)
        started, used = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(self.programs[form](self.op, self.features, np.float32(tol)))
        wall, processor = time.perf_counter() - started, time.process_time() - used
        if output:
            np.save(output, np.asarray(result.signal))
        peak = device_peak_bytes()
        return {
            "wall": wall, "processor": processor, "steps": int(np.max(result.num_steps)),
            "compile": self.compiling[form], "program_MiB": self.memory[form], "resident_MiB": peak_mib(),
            "device_MiB": None if peak is None else peak / 2**20,
        }  # fmt: skip

    def _compile(self, form: str) -> None:
        import jax

        from cnninv_jax.crelu import inverse
        from cnninv_jax.recovery.pseudo_inverse import pseudo_inverse

        def solve(op: Any, features: Any, tol: Any) -> Any:
            def one(picture: Any) -> Any:
                return pseudo_inverse(op, inverse(picture), tol=tol, max_steps=MOST_STEPS, **OURS[form])

            # A picture alone as a user would call it, without a vmap.
            alone = features.shape[0] == 1
            return jax.tree.map(lambda leaf: leaf[None], one(features[0])) if alone else jax.vmap(one)(features)

        started = time.perf_counter()
        program = jax.jit(solve).lower(self.op, self.features, np.float32(1)).compile()
        self.compiling[form] = time.perf_counter() - started
        analysis = program.memory_analysis()
        self.memory[form] = analysis.temp_size_in_bytes / 2**20 if analysis else math.nan
        self.programs[form] = program


def make(path: Path, bank: np.ndarray, count: int, size: int, seed: int) -> np.ndarray:
    """Write filters and CReLU features of pictures with a falling spectrum; return the responses z, [B, K, D, D]."""
    rng = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    noise = np.fft.rfft2(rng.normal(size=(count, 3, size, size)))
    pictures = np.fft.irfft2(noise / np.maximum(frequencies, 1 / size), s=(size, size))
    pictures -= pictures.min(axis=(1, 2, 3), keepdims=True)
    pictures /= pictures.max(axis=(1, 2, 3), keepdims=True)
    z = respond(bank, pictures).astype(np.float32)
    features = np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)], axis=1)
    np.savez(path, bank=bank, features=features)
    return z


def respond(bank: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Return W x in float64, [B, K, D, D], one picture after the other."""
    margin, ell = bank.shape[-1] // 2, bank.shape[-1]
    padded = np.pad(np.float64(pictures), ((0, 0), (0, 0), (margin,) * 2, (margin,) * 2))
    views = np.lib.stride_tricks.sliding_window_view(padded, (ell, ell), axis=(2, 3))
    flat = np.float64(bank).reshape(len(bank), -1)
    shape = pictures.shape[2:]
    return np.stack([
        (flat @ one.transpose(0, 3, 4, 1, 2).reshape(flat.shape[1], -1)).reshape(-1, *shape) for one in views
    ])  # fmt: skip


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return one case for every bank and size."""
    record: dict[str, Any] = {"device": store.describe_device(), "versions": store.versions(), "cases": []}
    peaks = Peaks(smoke=given.smoke)
    rng = np.random.default_rng(given.seed)
    banks = {"Gaussian": (rng.normal(size=(given.filters, 3, 3, 3)) / math.sqrt(27)).astype(np.float32)}
    if given.weights:
        with np.load(given.weights) as held:
            banks["VGG-16 conv1_1"] = np.ascontiguousarray(held["conv1_1_W"].transpose(3, 2, 0, 1), np.float32)
    environment = ALLOCATORS["as it comes"]
    for name, bank in banks.items():
        for count, size in given.sizes:
            title = f"{name}, {count} x {size} x {size}"
            note(f"{title}: making")
            with tempfile.TemporaryDirectory() as folder:
                problem = Path(folder) / "problem.npz"
                z = make(problem, bank, count, size, given.seed)
                workers = {
                    "ours": Worker([sys.executable, "-m", "benchmarks.crelu", "--serve"], environment),
                    "peer": Worker([given.peer_python or sys.executable, "-m", "benchmarks.peers.crelu_peer"],
                                   environment),
                }  # fmt: skip
                forms = {}
                for worker in workers.values():
                    held = worker.ask(do="load", problem=str(problem))
                    record["versions"] |= held.get("versions", {})
                    forms |= dict.fromkeys(held["forms"], worker)
                rows = contest(given, title, forms, bank, z, Path(folder) / "signal.npy")
                for worker in workers.values():
                    worker.close()
            shifts = count * size * size
            work = Work(
                operations=4.0 * bank.size * shifts,
                num_bytes=4.0 * shifts * (2 * len(bank) + bank.shape[1]),
                lanes=1,
            )
            least = floor(work, peaks)
            assert least is not None
            record["cases"].append({
                "bank": name, "pictures": count, "size": size, "filters": len(bank), "floor_seconds": least.seconds,
                "floor_bytes": work.num_bytes, "floor_operations": work.operations, "rows": rows,
            })  # fmt: skip
            note("")
            show({**record, "cases": record["cases"][-1:]})
    return record


def contest(
    given: argparse.Namespace, title: str, forms: dict[str, Worker], bank: np.ndarray, z: np.ndarray, path: Path
) -> list[dict[str, Any]]:
    """Find each form's tolerance, measure all in turns; return their rows."""
    rows = []
    sizes = np.linalg.norm(z.reshape(len(z), -1), axis=1)
    for form, worker in forms.items():
        row: dict[str, Any] = {"name": form, "ours": form in OURS, "reached": False, "wall": [], "processor": []}
        for tol in TOLERANCES:
            note(f"{title}: tolerance {tol:.1e} of {form}")
            answer = worker.ask(do="solve", form=form, tol=tol, output=str(path))
            apart = np.float64(z) - respond(bank, np.load(path))
            row |= {"tol": tol, "steps": answer["steps"]}
            row["residual"] = float(np.max(np.linalg.norm(apart.reshape(len(z), -1), axis=1) / sizes))
            row["reached"] = row["residual"] <= ASKED
            if row["reached"] or answer["steps"] >= MOST_STEPS or answer["wall"] > given.patience:
                break
        rows.append(row)
    for turn in range(given.rounds):
        for row in rows:
            if not row["reached"]:
                continue
            note(f"{title}: turn {turn + 1} of {given.rounds}, {row['name']}")
            answer = forms[row["name"]].ask(do="solve", form=row["name"], tol=row["tol"])
            for clock in ("wall", "processor"):
                row[clock].append(answer[clock])
            row |= {key: answer.get(key) for key in ("compile", "program_MiB", "resident_MiB", "device_MiB")}
    plain = [row for row in rows if row["name"] in PLAIN and row["reached"]]
    tricks = [row for row in rows if not row["ours"] and row["reached"]]
    for row in rows:
        if row["ours"] and row["reached"]:
            for kind, others in (("plain", plain), ("any", tricks)):
                for clock in ("wall", "processor") if others else ():
                    ratios = [min(other[clock][turn] for other in others) / own for turn, own in enumerate(row[clock])]
                    row[f"{kind}_{clock}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return rows


def show(record: dict[str, Any]) -> None:
    """Print one table per case."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    for case in record["cases"]:
        title = (
            f"{record['device']['name']}; {case['filters']} {case['bank']} filters, {case['pictures']} picture(s) of "
            f"{case['size']} x {case['size']}; floor {1e3 * case['floor_seconds']:.3g} ms "
            f"({case['floor_bytes'] / 1e6:.3g} MB, {case['floor_operations'] / 1e9:.3g} GFLOP)"
        )
        table = Table(title=title, caption_justify="left")
        for at, column in enumerate(
            (
                "form",
                "ms",
                "CPU ms",
                "steps",
                "tol",
                "|z - W x'|/|z|",
                "plain / it",
                "CPU",
                "any / it",
                "CPU",
                "compile (s)",
                "MiB",
            )
        ):
            table.add_column(column, justify="left" if at < 1 else "right", no_wrap=True)
        table.caption = (
            "tol: of the form's own criterion, tightened until |z - W x'| / |z| <= 1e-5. plain / it: time of the "
            "quickest of\nscipy and plain torch in the same turn over ours, median of turns; any / it: of all peers, "
            "those with our tricks too; CPU: the\nsame by processor time. "
            "MiB: most that the process held, all its forms together"
        )
        for row in case["rows"]:
            times = [f"{1e3 * statistics.median(row[clock]):.1f}" if row[clock] else "-"
                     for clock in ("wall", "processor")]  # fmt: skip
            keys = ("plain_wall", "plain_processor", "any_wall", "any_processor")
            ratios = [f"{row[key][0]:.2f}" if row.get(key) else "-" for key in keys]
            compiling = f"{row['compile']:.1f}" if row.get("compile") else "-"
            memory = f"{row['resident_MiB']:,.0f}" if row.get("resident_MiB") else "-"
            reached = f"{row['residual']:.1e}" + ("" if row["reached"] else ", not reached")
            table.add_row(row["name"], *times, str(row["steps"]), f"{row['tol']:.1e}", reached, *ratios, compiling,
                          memory)  # fmt: skip
        console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crelu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of all forms in turn")
    parser.add_argument(
        "--patience", type=float, default=40.0, help="seconds beyond which no tighter tolerance is tried"
    )
    parser.add_argument("--weights", type=Path, help="an .npz with conv1_1_W, [3, 3, 3, K]; adds cases")
    parser.add_argument("--peer-python", help="an interpreter that has scipy and torch (default: this one)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, scipy alone, nothing stored")
    parser.add_argument("--no-store", action="store_true", help="store nothing")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="where results are (default: here)")
    given = parser.parse_args(arguments)
    if given.serve:
        use_all_cores()
        serve(Server())
        return
    sizes: dict[str, Any] = {"sizes": [(1, 224), (256, 32)], "filters": 64, "seed": 0}
    if given.smoke:
        sizes |= {"sizes": [(1, 16), (2, 8)], "filters": 32}
        given.rounds, given.peer_python, given.weights = 1, None, None
    vars(given).update(sizes)
    record = measure(given)
    if not (given.smoke or given.no_store):
        path = given.results / store.slug(record["device"]) / "crelu.json"
        store.write(record, path)
        print(f"Stored in {path}.")


if __name__ == "__main__":
    main()
