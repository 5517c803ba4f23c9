"""Convolutions, ReLU and average pools against neural-tangents, which needs a JAX of its own.

``CNNINV_NEURAL_TANGENTS_PYTHON`` names an interpreter that has it.
"""

import os
import subprocess

import jax
import numpy as np
import pytest

from cnninv_jax.limits.layers import AvgPool, Conv
from cnninv_jax.limits.values import convergence_maps, convergence_value

PYTHON = os.environ.get("CNNINV_NEURAL_TANGENTS_PYTHON")

#: Reads x [M, H, W], describes the same network and writes its covariance's diagonal. Weights of variance
#: W_std^2 / (3 * 3 * channels); the kernel library divides by the channels of the input, so its result is ours / M.
PROGRAM = """
import sys
import numpy as np
import jax
jax.config.update("jax_enable_x64", True)
from neural_tangents import stax
x = np.load(sys.argv[1]).transpose(1, 2, 0)[None]
layers = []
for word in sys.argv[3:]:
    if word == "conv":
        layers += [stax.Conv(1, (3, 3), padding="SAME", W_std=3.0), stax.Relu()]
    else:
        size, stride = map(int, word.split(","))
        layers.append(stax.AvgPool((size, size), (stride, stride), "VALID"))
_, _, kernel = stax.serial(*layers)
found = kernel(x, None)
variances = np.einsum("iijj->ij", np.asarray(found.nngp)[0, 0])
np.save(sys.argv[2], variances.T if found.is_reversed else variances)
"""


@pytest.mark.skipif(PYTHON is None, reason="CNNINV_NEURAL_TANGENTS_PYTHON names no interpreter with neural-tangents")
@pytest.mark.parametrize(
    "words",
    [("conv", "2,2", "conv", "conv", "2,2"), ("conv", "3,1", "conv", "2,2")],
    ids=["side by side", "overlapping"],
)
def test_the_covariance_is_that_of_neural_tangents(words, tmp_path):
    x = np.random.default_rng(0).uniform(size=(3, 10, 10) if words[1] == "3,1" else (3, 8, 8))
    np.save(tmp_path / "x.npy", x)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX", "XLA", "PYTHON"))}
    command = [str(PYTHON), "-c", PROGRAM, str(tmp_path / "x.npy"), str(tmp_path / "found.npy"), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, "JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr[-800:]
    found = np.load(tmp_path / "found.npy") * len(x)

    layers = [Conv(3, padding="same") if word == "conv" else AvgPool(*map(int, word.split(","))) for word in words]
    network = (*layers, Conv(1))
    maps = jax.jit(lambda x: convergence_maps(x, network))(x)[-2]
    np.testing.assert_allclose(maps, found, rtol=1e-10)
    value = jax.jit(lambda x: convergence_value(x, network))(x)
    np.testing.assert_allclose(value, np.sqrt(found / (2 * np.pi)), rtol=1e-10)
