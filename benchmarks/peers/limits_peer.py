"""neural-tangents on convolutions, ReLU and average pools: the peer of `benchmarks.limits`.

``python limits_peer.py picture.npy SECONDS POOLS``, run by a Python that has neural-tangents and a JAX old enough for
it. The picture is [M, H, W]; the network is POOLS times (3 x 3 same convolution, ReLU, 2 x 2 average pool), a closing
3 x 3 same convolution and ReLU. Compiled, warmed, blocked on; the last line printed is JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

import numpy as np


def main() -> None:
    """Measure and print."""
    import jax
    from neural_tangents import stax

    x = np.load(sys.argv[1]).transpose(1, 2, 0)[None].astype(np.float32)
    seconds, pools = float(sys.argv[2]), int(sys.argv[3])
    layers = []
    for _ in range(pools):
        layers += [stax.Conv(1, (3, 3), padding="SAME", W_std=3.0), stax.Relu(), stax.AvgPool((2, 2), (2, 2))]
    layers += [stax.Conv(1, (3, 3), padding="SAME", W_std=3.0), stax.Relu()]
    _, _, kernel = stax.serial(*layers)

    def answer(x):
        return kernel(x, None).nngp

    started = time.perf_counter()
    program = jax.jit(answer).lower(x).compile()
    compiling = time.perf_counter() - started
    found = np.asarray(program(x).block_until_ready())[0, 0]
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = time.perf_counter()
        program(x).block_until_ready()
        times.append(time.perf_counter() - started)
    if found.ndim == 4:
        found = np.einsum("iijj->ij", found)
    if kernel(x[:, :8, :8], None).is_reversed:
        found = found.T
    record = {"seconds": statistics.median(times), "fastest": min(times), "compile_seconds": compiling}
    record |= {"variances": (found * x.shape[-1]).tolist(), "jax": jax.__version__}
    record["resident_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(record))


if __name__ == "__main__":
    main()
