"""Peers for min |x - W^T z|^2 + lam |z|_1: FISTA on torch's convolutions, sporco's PGM and ADMM.

``python lasso_peers.py problem.npz [--batch B] [--seconds S]``; the file holds filters [K, M, l, l], x [B, M, D, D],
lam [B] and best [B]. The last line printed is a JSON list. A peer iterates; every few iterations its clock is stopped
and objective and duality gap are computed in float64.

sporco's convolutions are circular. With a weight of 1e6 on the last l - 1 rows and columns of its maps they are the
valid ones, so that all solve one problem. It takes one signal at a time, as fast as its options allow: FastSolve, no
checks, ADMM with relaxation 1.8 and the best of four penalties, PGM with a step from the norm and with backtracking.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    torch = None
try:
    import sporco
except ImportError:
    sporco = None

#: Relative distance to the best objective, and relative duality gap, at which the clock is read.
TOLERANCE = 1e-4
THREADS = 2


def certificate(filters: np.ndarray, x: np.ndarray, code: np.ndarray, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return objectives and relative duality gaps of a batch of codes [B, K, n, n], in float64."""
    bank, signal, z = (torch.as_tensor(np.asarray(a, np.float64)) for a in (filters, x, code))
    weight = torch.as_tensor(np.asarray(lam, np.float64))
    residual = signal - torch.nn.functional.conv_transpose2d(z, bank)
    response = torch.nn.functional.conv2d(residual, bank).flatten(1)
    fit, inner = residual.square().flatten(1).sum(1), (residual * signal).flatten(1).sum(1)
    primal = fit + weight * z.abs().flatten(1).sum(1)
    scale = torch.minimum(weight / (2 * response.abs().amax(1)), inner / fit)
    return primal.numpy(), ((primal - 2 * scale * inner + scale**2 * fit) / primal).numpy()


def follow(
    advance: Callable[[int], None], code: Callable[[], np.ndarray], problem: tuple[Any, ...], seconds: float
) -> dict[str, Any]:
    """Iterate until the gap is reached or the time is up; return clock and iterations at both marks."""
    filters, x, lam, best = problem
    clock, done, chunk = 0.0, 0, 10
    marks: dict[str, Any] = dict.fromkeys(("to_objective", "iterations_to_objective", "to_gap", "iterations_to_gap"))
    while clock < seconds:
        started = time.perf_counter()
        advance(chunk)
        clock, done = clock + time.perf_counter() - started, done + chunk
        objective, gap = certificate(filters, x, code(), lam)
        if marks["to_objective"] is None and np.all(objective <= best * (1 + TOLERANCE)):
            marks |= {"to_objective": clock / len(x), "iterations_to_objective": done}
        if np.all(gap <= TOLERANCE):
            return marks | {"to_gap": clock / len(x), "iterations_to_gap": done}
    return marks


class TorchFista:
    """FISTA (Beck and Teboulle 2009), step 1 / (2 |W|^2), with or without O'Donoghue and Candes' restart."""

    def __init__(self, filters: np.ndarray, x: np.ndarray, lam: np.ndarray, restart: bool) -> None:
        self.bank, self.x = torch.as_tensor(filters), torch.as_tensor(x)
        self.restart = restart
        probe = torch.randn(self.x[:1].shape, generator=torch.Generator().manual_seed(0))
        for _ in range(100):
            probe = self._back(self._forward(probe / probe.norm()))
        self.step = 1 / (2 * 1.01 * float(probe.norm()))
        self.threshold = torch.as_tensor(lam * self.step).reshape(-1, 1, 1, 1)
        self.z = self.y = torch.zeros_like(self._forward(self.x))
        self.momentum = torch.ones(len(x), 1, 1, 1)

    def _forward(self, x: Any) -> Any:
        return torch.nn.functional.conv2d(x, self.bank)

    def _back(self, z: Any) -> Any:
        return torch.nn.functional.conv_transpose2d(z, self.bank)

    def advance(self, count: int) -> None:
        """Iterate."""
        for _ in range(count):
            free = self.y - (2 * self.step) * self._forward(self._back(self.y) - self.x)
            new = free - torch.maximum(torch.minimum(free, self.threshold), -self.threshold)
            change = new - self.z
            if self.restart:
                uphill = ((self.y - new) * change).flatten(1).sum(1).reshape(-1, 1, 1, 1) > 0
                self.momentum = torch.where(uphill, 1.0, self.momentum)
            following = (1 + torch.sqrt(1 + 4 * self.momentum**2)) / 2
            self.y = new + ((self.momentum - 1) / following) * change
            self.z, self.momentum = new, following

    def code(self) -> np.ndarray:
        """Return the codes [B, K, n, n]."""
        return self.z.numpy()


class Sporco:
    """One signal, one of sporco's solvers; its objective is half of ours."""

    def __init__(self, kind: str, filters: np.ndarray, x: np.ndarray, lam: float, **chosen: Any) -> None:
        from sporco.admm import cbpdn as admm
        from sporco.pgm import cbpdn as pgm

        module = admm if kind == "admm" else pgm
        size, self.taps = x.shape[-1], filters.shape[-1]
        weight = np.full((size, size, 1, 1, 1), 1e6, np.float32)
        weight[: size - self.taps + 1, : size - self.taps + 1] = 1
        options = {"MaxMainIter": 10, "RelStopTol": 0.0, "FastSolve": True, "DataType": np.float32, "L1Weight": weight}
        options = module.ConvBPDN.Options({**options, "Verbose": False, **chosen})
        dictionary = np.ascontiguousarray(filters.transpose(2, 3, 1, 0))
        signal = np.ascontiguousarray(x.transpose(1, 2, 0))
        self.solver = module.ConvBPDN(dictionary, signal, lam / 2, options, dimK=0)

    def advance(self, count: int) -> None:
        """Iterate."""
        self.solver.opt["MaxMainIter"] = count
        self.solver.solve()

    def code(self) -> np.ndarray:
        """Return the code [1, K, n, n]."""
        maps = np.asarray(self.solver.getcoef()).squeeze().transpose(2, 0, 1)
        inside = maps.shape[-1] - self.taps + 1
        return maps[None, :, :inside, :inside]


def torch_rows(problem: tuple[Any, ...], seconds: float) -> list[dict[str, Any]]:
    """Both forms of FISTA on the whole batch, after a warm-up."""
    torch.set_num_threads(THREADS)
    filters, x, lam, _ = problem
    rows = []
    for name, restart in (("torch FISTA", False), ("torch FISTA, restart", True)):
        TorchFista(filters, x, lam, restart).advance(3)
        solver = TorchFista(filters, x, lam, restart)
        rows.append({"name": name, **follow(solver.advance, solver.code, problem, seconds)})
    return rows


def sporco_rows(problem: tuple[Any, ...], seconds: float, most: int = 2) -> list[dict[str, Any]]:
    """Each solver on the first signals of the batch (one after the other; a batch of B takes B times as long)."""
    filters, x, lam, best = problem
    norm = 1 / (2 * TorchFista(filters, x[:1], lam[:1], False).step)
    from sporco.pgm.backtrack import BacktrackStandard

    settings = [
        ("pgm", "sporco PGM", {"L": norm}),
        ("pgm", "sporco PGM, backtracking", {"L": norm / 8, "Backtrack": BacktrackStandard(maxiter=10)}),
        *(
            ("admm", f"sporco ADMM, rho {factor} lam", {"rho": factor, "AutoRho": {"Enabled": False}})
            for factor in (20, 60, 200)
        ),
        ("admm", "sporco ADMM, automatic rho", {"AutoRho": {"Enabled": True}}),
    ]
    rows: dict[str, dict[str, Any]] = {}
    for kind, name, options in settings:
        entries = []
        for at in range(min(most, len(x))):
            chosen = dict(options)
            if kind == "admm":
                chosen["RelaxParam"] = 1.8
                if "rho" in chosen:
                    chosen["rho"] = chosen["rho"] * float(lam[at]) / 2
            solver = Sporco(kind, filters, x[at], float(lam[at]), **chosen)
            one = (filters, x[at : at + 1], lam[at : at + 1], best[at : at + 1])
            entries.append(follow(solver.advance, solver.code, one, seconds / most))
        row = {"name": name}
        for key in entries[0]:
            values = [entry[key] for entry in entries]
            row[key] = None if None in values else statistics.mean(values)
        rows[name] = row
    admm = [row for name, row in rows.items() if "ADMM" in name]
    kept = min(admm, key=lambda row: row["to_objective"] or math.inf)
    return [row for row in rows.values() if "ADMM" not in row["name"]] + [
        {**kept, "name": "sporco ADMM, best penalty", "setting": kept["name"]}
    ]


def main() -> None:
    """Run what is installed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("problem")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    held = np.load(given.problem)
    problem = tuple(
        held[name][: None if name == "filters" else given.batch] for name in ("filters", "x", "lam", "best")
    )
    if torch is None:
        raise SystemExit("expected torch, which also computes the certificates; install it")
    rows = torch_rows(problem, given.seconds)
    if sporco is not None:
        rows += sporco_rows(problem, given.seconds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([{"resident_MiB": memory, **row} for row in rows]))


if __name__ == "__main__":
    main()
