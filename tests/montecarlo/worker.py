"""A run in a process of its own, to be killed: python worker.py FOLDER NUM_DRAWS SECONDS_PER_BLOCK."""

import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":
    from cnninv_jax import montecarlo as mc
    from cnninv_jax.montecarlo import session
    from montecarlo import draws

    folder, num_draws, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    session.COMMIT_SECONDS = 0.0

    def report(progress):
        print(progress.stage, progress.done, flush=True)
        time.sleep(pause)

    mc.run(draws.mixed, 11, num_draws, chunk_size=50, lanes=16, keep=("x",), out=folder, progress=report)
    print("end", flush=True)
