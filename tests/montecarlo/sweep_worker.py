"""A sweep in a process of its own: python sweep_worker.py cache FOLDER | hosts FOLDER PORT COUNT INDEX."""

import json
import os
import sys
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).parents[1]))


def noisy(key, *, sigma, size):
    x = sigma * jax.random.normal(key, (4,))
    return {"x": x[:size].sum()}


GRID = {"sigma": [0.5, 1.0, 2.0], "size": [1, 2, 3]}

if __name__ == "__main__":
    mode, folder, *rest = sys.argv[1:]
    counts = {"hits": 0, "misses": 0}

    def count(event, **_):
        for name in counts:
            counts[name] += event == f"/jax/compilation_cache/cache_{name}"

    jax.monitoring.register_event_listener(count)
    if mode == "hosts":
        port, number, index = rest
        jax.distributed.initialize(
            f"127.0.0.1:{port}", int(number), int(index), heartbeat_timeout_seconds=20, shutdown_timeout_seconds=20
        )
    from cnninv_jax import montecarlo as mc

    try:
        result = mc.sweep(noisy, 3, GRID, 250, chunk_size=50, lanes=16, progress=False, out=folder)
    except (ValueError, mc.MonteCarloError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(7)
    means = [float(held["x"]["mean"]) for held in result.results.values()]
    print(json.dumps({**counts, "programs": result.provenance["compilations"], "means": means}), flush=True)
