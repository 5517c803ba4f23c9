"""Our side of `benchmarks.dcsc`: draws of signs through the engine, in a process that answers requests.

Requests come as lines of JSON on standard input; problems, signs and outcomes travel as .npz files.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import store
from benchmarks.measure import device_peak_bytes, resident_mib, use_all_cores
from benchmarks.peers.dcsc_peer import peak_mib
from cnninv_jax import dcsc

#: Scores so near to 1 are decided by rounding.
TIE = 1e-4
#: Draws side by side that are tried, and draws of a block.
LANES, BLOCK = {"paths": (32, 128, 512), "forward": (16, 64)}, 1024


@functools.partial(jax.tree_util.register_dataclass, data_fields=["model", "code", "thresholds"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ForwardDraw:
    """One draw of all signs, through the whole pass: down from X^(L), and `dcsc.forward` up again."""

    model: dcsc.Layers
    code: jax.Array
    thresholds: jax.Array

    def __call__(self, key: jax.Array) -> dict[str, jax.Array]:
        """Return ``failed`` [L], which layer lost its support first."""
        return {"failed": self.failed(dcsc.draw_signs(key, self.model))}

    def failed(self, model: dcsc.Layers) -> jax.Array:
        """Return which layer loses its support first under the model's signs, [L]."""
        from cnninv_jax.dcsc.forward import forward

        path = dcsc.reverse_pass(model, self.code)
        found = forward(model, path[0], "hard", thresholds=self.thresholds, truth=path)
        assert found.recovered is not None
        lost = ~found.recovered
        return lost & (jnp.cumsum(lost) == 1)


class Server:
    """Ours: holds a problem, runs forms as they are asked for."""

    def load(self, problem: str) -> dict[str, Any]:
        """Read a problem."""
        from cnninv_jax.experiments.dcsc_draws import PathDraw

        with np.load(problem) as held:
            banks = [held[name] for name in sorted(held.files) if name.startswith("bank")]
            # For 32 channels by 64 filters of 16 taps and shared filters the method chosen on a CPU, slices of the
            # signal times a matrix, takes a tenth of the processor's time of XLA's convolutions.
            self.model = dcsc.layers(banks, int(held["samples"]), method="auto")
            code, betas = jnp.asarray(held["code"]), jnp.asarray(held["thresholds"])
        self.draws = {
            "paths": PathDraw(dcsc.path_tables(self.model, code), betas),
            "forward": ForwardDraw(self.model, code, betas),
        }
        self.seed, self.known = 0, set()
        platform = jax.devices()[0].platform
        lanes = LANES if platform == "cpu" else dict.fromkeys(LANES, (None,))
        return {"versions": store.versions(), "forms": lanes}

    def check(self, signs: str, outcomes: str) -> dict[str, Any]:
        """Write what becomes of given signs [B, n_l, n] by every form, and which draws rounding may decide."""
        with np.load(signs) as held:
            given = [jnp.asarray(held[name]) for name in sorted(held.files)]
        draw, whole = self.draws["paths"], self.draws["forward"]

        def supports(*signs: jax.Array) -> Any:
            chosen = [
                jnp.take(sign.ravel(), where, mode="fill", fill_value=1)
                for sign, where in zip(signs, draw.tables.support, strict=True)
            ]
            found = dcsc.path_outcome(draw.tables, chosen, draw.thresholds)
            return found.failed, found.score

        def entries(*signs: jax.Array) -> jax.Array:
            model = tuple(dataclasses.replace(layer, signs=sign) for layer, sign in zip(self.model, signs, strict=True))
            return whole.failed(model)

        failed, score = jax.jit(jax.vmap(supports))(*given)
        np.savez(
            outcomes, paths=failed, forward=jax.jit(jax.vmap(entries))(*given),
            ties=jnp.any(jnp.abs(score - 1) < TIE, axis=1),
        )  # fmt: skip
        return {}

    def time(self, form: str, batch: int | None, seconds: float, draws: int | None = None) -> dict[str, Any]:
        """Draw for about so many seconds, or so often; return what it took and the failures of every layer."""
        from cnninv_jax import montecarlo

        block = BLOCK if jax.devices()[0].platform == "cpu" else None

        def run(count: int) -> Any:
            self.seed += 1
            return montecarlo.run(
                self.draws[form], self.seed, count, chunk_size=block, lanes=batch, progress=False, name=form
            )

        first: dict[str, float] = {}
        step = jax.local_device_count() * (block or 32768)
        if (form, batch) not in self.known:
            began = time.perf_counter()
            found = run(step)
            first = {
                "first": time.perf_counter() - began,
                "program_MiB": (found.provenance["memory_bytes"] or 0) / 2**20,
            }
            self.known.add((form, batch))
        if draws is None:
            began = time.perf_counter()
            run(step)
            first["warmed"] = time.perf_counter() - began
            draws = step * max(1, round(seconds / first["warmed"]))
        began, used = time.perf_counter(), time.process_time()
        found = run(draws)
        wall, processor = time.perf_counter() - began, time.process_time() - used
        failed = np.asarray(found["failed"]["successes"]).tolist()
        return {
            "wall": [wall], "processor": [processor], "size": draws, "draws": draws, "failed": failed, **first,
            **memory(),
        }  # fmt: skip


def memory() -> dict[str, float | None]:
    """Return the resident memory of this process now and at most, and the most an accelerator held, in MiB."""
    device = device_peak_bytes()
    return {
        "resident_now_MiB": resident_mib(),
        "resident_MiB": peak_mib(),
        "device_MiB": None if device is None else device / 2**20,
    }


def main() -> None:
    """Answer requests until standard input ends."""
    use_all_cores()
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(server, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
