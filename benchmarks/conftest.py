"""Two CPU devices for every benchmark, float32 as users run it."""

import os

import jax

jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))
