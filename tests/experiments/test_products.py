"""Fig. 2 with rounded products: part of a run's specification, and absent from it where nothing is rounded."""

import jax
import pytest

from cnninv_jax import montecarlo
from cnninv_jax.experiments import runs
from cnninv_jax.experiments.gilbert2017 import FIG2, Fig2Parameters
from cnninv_jax.experiments.registry import describe_parameters
from cnninv_jax.montecarlo.specification import computation_digest

SMALL = {"K": 12, "M": 8, "ell": 3, "D": 9, "k": 3, "sampling": "plain"}


def digest(products):
    draw = FIG2.draw(Fig2Parameters(**SMALL, products=products), "float32")
    return computation_digest(jax.make_jaxpr(draw)(jax.random.key(0)))


def test_every_choice_is_a_computation_of_its_own():
    assert len({digest(products) for products in ("float32", "tf32", "bfloat16")}) == 3


def test_parameters_that_came_later_stay_out_at_their_default():
    held = describe_parameters(Fig2Parameters(**SMALL))
    assert "products" not in held
    assert Fig2Parameters(**held) == Fig2Parameters(**SMALL)
    assert describe_parameters(Fig2Parameters(**SMALL, products="tf32")) == {
        **held,
        "products": "tf32",
    }
    assert FIG2.claims(Fig2Parameters(products="bfloat16")) == FIG2.claims(Fig2Parameters()) != {}
    assert FIG2.describe(Fig2Parameters(products="bfloat16")).endswith("; bfloat16 products")


@pytest.mark.slow
def test_resume_knows_the_choice(tmp_path):
    options = runs.RunOptions(num_draws=64, block=32, lanes=16, out=tmp_path / "run", quiet=True)
    first = runs.reproduce(FIG2, Fig2Parameters(**SMALL, products="tf32"), options)
    assert montecarlo.read_spec(tmp_path / "run")["user"]["parameters"]["products"] == "tf32"
    again = runs.resume(tmp_path / "run", quiet=True)
    assert again.parameters == first.parameters
    assert again.result.provenance["draws_per_second"] != again.result.provenance["draws_per_second"]  # NaN: none new
