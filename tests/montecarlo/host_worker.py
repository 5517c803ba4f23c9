"""One process of a run on several: python host_worker.py PORT COUNT INDEX FOLDER DRAWS PAUSE [OPTION=VALUE ...]."""

import os
import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":
    port, count, index, folder, num_draws, pause = sys.argv[1:7]
    jax.distributed.initialize(
        f"127.0.0.1:{port}", int(count), int(index), heartbeat_timeout_seconds=20, shutdown_timeout_seconds=20
    )
    from cnninv_jax import montecarlo as mc
    from cnninv_jax.montecarlo import session, sizing
    from montecarlo import draws
    from montecarlo.draws import COLLECTIVES

    session.COMMIT_SECONDS = 0.0
    options = {"chunk_size": 50, "lanes": 16, "keep": ("x",), "out": folder}
    for option in sys.argv[7:]:
        name, value = option.split("=")
        options[name] = mc.Width("x", absolute=float(value)) if name == "until" else int(value)

    def compile_blocks(*arguments):
        program = sizing_compile(*arguments)
        found = [word for word in COLLECTIVES if word in program.compiled.as_text()]
        print("collectives in the draw:", found, flush=True)
        return program

    sizing_compile, sizing.compile_blocks = sizing.compile_blocks, compile_blocks

    def report(progress):
        print(progress.stage, progress.done, flush=True)
        time.sleep(float(pause))

    try:
        result = mc.run(draws.mixed, 11, int(num_draws), progress=report, **options)
    except (ValueError, mc.MonteCarloError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        # The runtime would wait for the lost process at exit.
        os._exit(7)
    result.save_netcdf(Path(folder) / f"process-{index}.nc")
    print("end", result.provenance["process_count"], result.provenance["device_count"], flush=True)
