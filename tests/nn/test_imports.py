"""What is loaded when."""

import subprocess
import sys


def test_the_core_loads_no_training_library():
    program = (
        "import sys, cnninv_jax, cnninv_jax.cli; "
        "print([name for name in ('flax', 'optax', 'orbax', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_command_line_names_every_training_study_without_loading_flax():
    program = (
        "import sys; from cnninv_jax.experiments.catalogue import studies; found = studies(); "
        "print('flax' in sys.modules, all(n in found for n in "
        "('gilbert-table1', 'crelu-table1', 'dcn-train', 'dcn-style', 'gilbert-table3')))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False True"
