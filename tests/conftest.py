"""Test policy: four CPU devices, strict promotion, key reuse refused; 64-bit unless CNNINV_TEST_X64=0.

Most of the time would be spent on compiling. So programs compiled by one test are kept for the others of this run, in a
folder of its own, and they are compiled without LLVM's optimisation; XLA's own passes stay. With XLA_FLAGS in the
environment, empty or not, these are the flags: continuous integration runs the slow tests so.
"""

import os
import shutil
import tempfile

import jax
import pytest

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# In the process that collects; its workers and their children inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="cnninv-test-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    jax.config.update("jax_compilation_cache_dir", CACHE)
else:
    CACHE = None

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", os.environ.get("CNNINV_TEST_X64", "1") != "0")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


def pytest_unconfigure():
    """Remove the programs of this run."""
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """An empty current folder, and the devices of this policy for the command line and its processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    return tmp_path
