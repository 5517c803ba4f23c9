"""VGG-16's Conv[k]-DeConv[k] with given weights in torch, float32, on the CPU: the peer of `benchmarks.dcn`.

Run by a Python that has torch (`python -m benchmarks.dcn --peer-python PATH`), which need not have JAX. Requests come
as lines of JSON on standard input, weights and pictures travel as .npz files. A form is a memory layout, ``"NCHW"`` or
``"NHWC"``; weights and pictures have it before the clock runs. ReLUs work in place, nothing is kept for a gradient.
"""

from __future__ import annotations

import json
import os
import sys
import time
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
FORMS = ("NCHW", "NHWC")


def reconstruct(weights: list[torch.Tensor], x: torch.Tensor, blocks: list[int]) -> torch.Tensor:
    """Send pictures [B, 3, H, W] through encoder and decoder; ``blocks`` counts the convolutions of each block."""
    high, wide = x.shape[2:]
    banks, last = iter(weights), len(weights) - 1
    done, half = 0, len(blocks) // 2
    for place, count in enumerate(blocks):
        if 0 < place < half:
            x = torch.nn.functional.max_pool2d(x, 2, ceil_mode=True)
        elif place > half:
            grown = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]).contiguous(
                memory_format=torch.channels_last if x.is_contiguous(memory_format=torch.channels_last)
                else torch.contiguous_format
            )  # fmt: skip
            grown[:, :, ::2, ::2] = x
            x = grown
        for _ in range(count):
            x = torch.nn.functional.conv2d(x, next(banks), padding="same")
            x = x.relu_() if done < last else x
            done += 1
    return x[:, :, :high, :wide]


class Server:
    """Holds a network and pictures, and answers requests about them."""

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(cores)
        self.cores = cores

    def load(self, problem: str, outputs: str, blocks: list[int]) -> dict[str, Any]:
        """Read weights and pictures, and write what becomes of the pictures."""
        with np.load(problem) as held:
            self.weights = [torch.from_numpy(held[name]) for name in sorted(held.files) if name.startswith("w")]
            self.pictures = torch.from_numpy(held["pictures"])
        self.blocks = blocks
        with torch.inference_mode():
            np.save(outputs, reconstruct(self.weights, self.pictures, blocks).contiguous().numpy())
        return {"torch": torch.__version__, "forms": FORMS, "cores": self.cores}

    def time(self, form: str, batch: int, seconds: float) -> dict[str, Any]:
        """Return the seconds and the processor seconds of every call."""
        layout = torch.channels_last if form == "NHWC" else torch.contiguous_format
        weights = [bank.contiguous(memory_format=layout) for bank in self.weights]
        x = self.pictures[:batch].clone(memory_format=layout)
        wall, processor = [], []
        with torch.inference_mode():
            reconstruct(weights, x, self.blocks)
            while sum(wall) < seconds:
                started, used = time.perf_counter(), time.process_time()
                reconstruct(weights, x, self.blocks)
                wall.append(time.perf_counter() - started)
                processor.append(time.process_time() - used)
        return {"wall": wall, "processor": processor}


def main() -> None:
    """Answer requests until standard input ends."""
    server = Server() if UNAVAILABLE is None else None
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"error": UNAVAILABLE} if server is None else getattr(server, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
