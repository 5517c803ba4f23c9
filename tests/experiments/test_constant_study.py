"""`cnninv reproduce gilbert-constant`: three numbers per bank, in order, in file, table and figure."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cnninv_jax import filters
from cnninv_jax.experiments.constant_study import CONSTANT, ConstantParameters
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

SMALL = ConstantParameters(
    K=4, M=4, ell=2, n=2, num_banks=2, k_values=(1, 2), M_values=(2, 4), ell_values=(2,), starts=64
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return reproduce_study(CONSTANT, SMALL, StudyOptions(out=tmp_path_factory.mktemp("constant") / "run", quiet=True))


@pytest.mark.slow
def test_three_numbers_in_order(outcome):
    rows = outcome.report["findings"]["rows"]
    assert len(rows) == (2 + 2 + 1) * 2 * 2
    for row in rows:
        assert row["lower"] <= row["exact"] <= row["upper"]
    by_model = {(row["panel"], row["value"], row["bank"], row["members"]): row["exact"] for row in rows}
    for (panel, value, bank, members), exact in by_model.items():
        if members == 1:
            assert exact <= by_model[panel, value, bank, 2] * (1 + 1e-5)


@pytest.mark.slow
def test_k_of_one_is_the_norms_alone(outcome):
    """delta_1 is the largest | |w|^2 - 1 |: known without any search."""
    for row in outcome.report["findings"]["rows"]:
        if (row["panel"], row["value"], row["members"]) == ("k", 1, 1):
            key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), row["bank"]))
            bank = np.asarray(filters.gaussian(key, 4, 4, 2, dtype=np.float32), np.float64)
            expected = np.abs(np.sum(bank**2, axis=(1, 2)) - 1).max()
            np.testing.assert_allclose(row["exact"], expected, rtol=1e-5)


@pytest.mark.slow
def test_table_and_files(outcome):
    assert len(outcome.tables) == 3
    assert {path.name for path in outcome.files} >= {"report.json", "gilbert-constant.png", "gilbert-constant.svg"}
    assert json.loads((outcome.folder / "report.json").read_text())["parameters"]["K"] == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k_values": (9,)}, "expected k <= K = 4, got 9"),
        ({"M_values": ()}, "M_values to be positive integers"),
        ({"exact_limit": -1}, "exact_limit not to be negative"),
        ({"n": 0}, "expected n to be at least 1"),
    ],
)
def test_refusals(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        reproduce_study(CONSTANT, dataclasses.replace(SMALL, **changes), StudyOptions(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_limit_of_zero_leaves_the_exact_value_out(tmp_path):
    small = dataclasses.replace(SMALL, num_banks=1, k_values=(2,), M_values=(4,), exact_limit=0)
    report = reproduce_study(CONSTANT, small, StudyOptions(out=tmp_path, quiet=True)).report
    assert all(row["exact"] is None and row["lower"] <= row["upper"] for row in report["findings"]["rows"])
