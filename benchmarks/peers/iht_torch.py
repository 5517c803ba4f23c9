"""Model IHT in torch, batched over problems, float32, on the CPU: the peer of `benchmarks.iht`.

Run by a Python that has torch (`python -m benchmarks.iht --peer-python PATH`), which need not have JAX. Requests come
as lines of JSON on standard input; problems and codes travel as .npz files.

Filters [B, K, l M] (or [K, l M], one bank for all) and signals [B, D, M] have time first, so that a window of x is
one contiguous row. A form is how W^T z is computed, ``"dense"`` (one product with the code as a matrix) or ``"sparse"``
(the k filters gathered, placed by a product), and how the cores are used: by torch's own threads, or by a worker per
core with a part of the problems. All forms are measured and the best one counts.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
else:
    try:
        import torch
    except ImportError:
        torch = None

#: Why this peer cannot run, or None.
UNAVAILABLE = "torch is not installed" if torch is None else None
FORMS = tuple(
    f"{synthesis}, {workers}" for synthesis, workers in itertools.product(("dense", "sparse"), ("threads", "workers"))
)


def solve(
    filters: torch.Tensor, x: torch.Tensor, length: int, k: int, num_steps: int, synthesis: str = "dense"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes [B, n, K] and relative residual norms [num_steps + 1, B] of Gilbert et al. 2017, Alg. 1, step 1."""
    batch, samples, channels = x.shape
    num_filters, taps = filters.shape[-2:]
    shared, shifts = filters.dim() == 2, samples - length + 1
    code = torch.zeros(batch, shifts, num_filters)
    size = torch.linalg.vector_norm(x.reshape(batch, -1), dim=1)
    residual, norms = x, [torch.ones(batch)]
    offsets = torch.arange(length)
    diagonal = torch.arange(k * length).view(k, length) * samples + offsets
    lane = torch.arange(batch)[:, None] * num_filters
    flat_filters = filters.reshape(-1, taps)
    for _ in range(num_steps):
        patches = (
            residual.contiguous().as_strided((batch, shifts, taps), (samples * channels, channels, 1)).contiguous()
        )
        if shared:
            h = torch.addmm(code.view(-1, num_filters), patches.view(-1, taps), filters.T)
            h = h.view(batch, shifts, num_filters)
        else:
            h = torch.baddbmm(code, patches, filters.transpose(1, 2))
        # The largest magnitude per filter first; its place is looked up for the k winners only.
        winners = torch.maximum(h.amax(1), -h.amin(1)).topk(k, sorted=False).indices
        candidates = h.gather(2, winners[:, None, :].expand(-1, shifts, -1))
        places = candidates.abs().argmax(1)
        values = candidates.gather(1, places[:, None, :]).squeeze(1)
        code = torch.zeros(batch, shifts * num_filters)
        code.scatter_(1, places * num_filters + winners, values)
        code = code.view(batch, shifts, num_filters)
        if synthesis == "dense":
            product = torch.matmul(code.view(-1, num_filters), filters) if shared else torch.bmm(code, filters)
            product = product.view(batch, shifts, length, channels)
            residual = x.clone()
            for tap in range(length):
                residual[:, tap : tap + shifts] -= product[:, :, tap]
        else:
            rows = flat_filters.index_select(0, (winners if shared else lane + winners).view(-1))
            placement = torch.zeros(batch, k * length * samples)
            where = (diagonal + places[:, :, None]).view(batch, -1)
            placement.scatter_(1, where, values[:, :, None].expand(-1, -1, length).reshape(batch, -1))
            placement = placement.view(batch, k * length, samples).transpose(1, 2)
            residual = torch.baddbmm(x, placement, rows.view(batch, k * length, channels), alpha=-1)
        norms.append(torch.linalg.vector_norm(residual.reshape(batch, -1), dim=1) / size)
    return code, torch.stack(norms)


class Server:
    """Holds a problem and answers requests about it."""

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.call: dict[str, Callable[[], Any]] = {}
        self.size = 0

    def load(self, problems: str, codes: str, k: int, num_steps: int) -> dict[str, Any]:
        """Read problems, solve them by every form, and write one form's codes once all agree in the first ones."""
        with np.load(problems) as held:
            bank, signals = held["filters"], held["x"]
        length = bank.shape[-1]
        filters = torch.from_numpy(np.ascontiguousarray(np.swapaxes(bank, -1, -2))).flatten(-2)
        x = torch.from_numpy(np.ascontiguousarray(np.swapaxes(signals, 1, 2)))
        self.size, pool = x.shape[0], ThreadPoolExecutor(self.cores)
        parts = x.chunk(self.cores)
        banks = [filters] * len(parts) if filters.dim() == 2 else filters.chunk(self.cores)

        def run(part: torch.Tensor, some: torch.Tensor, synthesis: str) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.inference_mode():
                return solve(some, part, length, k, num_steps, synthesis)

        def by_threads(synthesis: str) -> Callable[[], Any]:
            return lambda: [run(x, filters, synthesis)]

        def by_workers(synthesis: str) -> Callable[[], Any]:
            return lambda: list(pool.map(run, parts, banks, [synthesis] * len(parts)))

        makers = {"threads": by_threads, "workers": by_workers}
        self.call = {form: makers[form.split(", ")[1]](form.split(", ")[0]) for form in FORMS}
        found = run(x, filters, "dense")
        np.savez(codes, codes=found[0].transpose(1, 2).numpy(), norms=found[1].T.numpy())
        return {"torch": torch.__version__, "forms": FORMS, "cores": self.cores}

    def time(self, form: str, seconds: float) -> dict[str, Any]:
        """Return the median seconds of a call."""
        torch.set_num_threads(self.cores if form.endswith("threads") else 1)
        call, times = self.call[form], []
        call()
        while not times or sum(times) < seconds:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return {"seconds": statistics.median(times), "calls": len(times)}


def main() -> None:
    """Answer requests until standard input ends."""
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(server, request.pop("do"))(**request) if UNAVAILABLE is None else {"error": UNAVAILABLE}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
