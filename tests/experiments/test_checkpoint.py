"""`cnninv analyze`: a whole checkpoint layer by layer, and the certified constants of one bank."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import refused

from cnninv_jax import rip
from cnninv_jax.cli import main
from cnninv_jax.experiments.analysis_constants import constants, constants_table
from cnninv_jax.operators import coherence, conv_operator

pytestmark = [
    pytest.mark.skipif(not jax.config.jax_enable_x64, reason="the command line chooses widths of its own"),
    pytest.mark.usefixtures("scratch"),
]


@pytest.fixture
def checkpoint(scratch):
    """Two small convolutions, filters last, in a file."""
    rng = np.random.default_rng(0)
    kernels = {
        "first": rng.standard_normal((3, 3, 2, 4)).astype(np.float32),
        "second": rng.standard_normal((3, 3, 4, 6)).astype(np.float32),
    }
    np.savez(scratch / "net.npz", **kernels)
    return kernels


def report_of(folder):
    return json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))


def test_a_checkpoint_is_walked_and_resumed_by_reading(checkpoint, capsys):
    command = ["analyze", "net.npz", "--random-banks", "3", "--signal", "6", "--out", "walk", "--quiet"]
    assert main(command) == 0
    said = capsys.readouterr().out
    report = report_of("walk")
    layers = report["findings"]["layers"]
    assert [layer["layer"] for layer in layers] == ["first", "second"]
    for layer, kernel in zip(layers, checkpoint.values(), strict=True):
        expected = float(coherence(np.moveaxis(kernel, (3, 2), (0, 1))))
        np.testing.assert_allclose(layer["coherence"], expected, rtol=1e-6)
        assert f"{expected:.4g}" in said
    assert main(["resume", "walk", "--quiet"]) == 0
    assert capsys.readouterr().out == said


def test_a_changed_file_is_another_study(checkpoint, capsys):
    command = ["analyze", "net.npz", "--random-banks", "2", "--signal", "6", "--out", "walk", "--quiet"]
    assert main(command) == 0
    np.savez("net.npz", **{name: 2 * kernel for name, kernel in checkpoint.items()})
    assert "files.checkpoint" in refused(capsys, *command)


def test_options_of_one_layer_are_refused_for_a_network(checkpoint, capsys):
    said = refused(capsys, "analyze", "net.npz", "--k", "2", "--num-draws", "10")
    assert "holds 2 convolutions, and --k, --num-draws belong to one: name it with --tensor" in said
    assert "one bank of filters" in refused(capsys, "analyze", "gaussian:K=4,M=2,ell=3", "--pictures", "embedded")
    np.save("bank.npy", np.ones((4, 2, 3), np.float32))
    assert "one bank of filters" in refused(capsys, "analyze", "bank.npy", "--pictures", "embedded")
    assert "no picture can be passed" in refused(capsys, "analyze", "net.npz", "--pictures", "embedded")
    assert "--signal to be one number" in refused(capsys, "analyze", "net.npz", "--signal", "3x4")


@pytest.mark.slow
def test_one_bank_gets_its_constants(checkpoint, capsys):
    command = ["analyze", "gaussian:K=4,M=6,ell=4", "--signal", "5", "--k", "2", "--num-draws", "64", "--quiet"]
    assert main([*command, "--random-banks", "2", "--out", "bank"]) == 0
    said = capsys.readouterr().out
    found = report_of("bank")["constants"]
    for name in ("delta_k", "delta_2k"):
        assert found[name]["lower"] <= found[name]["exact"] <= found[name]["upper"]
        assert f"{found[name]['exact']:.4g}" in said
    assert found["largest_seen_in_draws"] <= found["delta_k"]["exact"] * (1 + 1e-5)
    bound = found["theorem_3_3_from_upper"]
    assert bound is None or found["observed_error_max"] <= bound
    assert "Thm 3.3" in said


def numbers(ratio_max, error):
    return {"model_rip": {"min": 0.9, "max": ratio_max}, "error_model": {"mean": error, "max": error}}


def test_a_layer_too_large_is_left_out_with_what_the_draws_say():
    op = conv_operator(np.ones((512, 512, 3, 3), np.float32), 15, padding="same")
    found = constants(op, 30_000, (2, 2), jax.random.key(0), numbers(1.5, 0.2))
    table, sentences = constants_table(found)
    assert table is None
    assert "delta_k >= 1.25 (from the draws)" in sentences[0]
    assert "0.2 at most" in sentences[1]


def test_hundreds_of_non_zeros_are_searched_without_what_takes_hours(monkeypatch):
    """64 filters of 3 x 3 on 15 x 15 have 410 non-zeros by default: one sweep of exchanges there takes hours."""
    asked = []

    def no_search(op, k, *, members, sweeps, **_):
        asked.append((k, members, sweeps))
        raise ValueError("searched")

    monkeypatch.setattr(rip, "constant", no_search)
    op = conv_operator(np.ones((64, 3, 3, 3), np.float32), 15, padding="same")
    said = {}
    for k in (10, 60, 150, 198, 199, 410):
        said[k] = constants(op, k, (2, 2), jax.random.key(0), numbers(1.5, 0.2))["left_out"]
    assert asked == [(10, 1, 3), (60, 1, 1), (150, 1, 0), (198, 1, 0)]
    assert said[410] == "eigenvalues of supports of 820 entries take too long (--k up to 198)"
    assert "--k up to 198" in said[199]


def test_numbers_of_supports_that_no_float_holds():
    entry = {"lower": 1.2, "exact": None, "upper": 1.5, "supports": str(12345678 * 10**900), "evaluations": 1}
    found = {"delta_k": entry, "delta_2k": {**entry, "supports": "4321"}, "largest_seen_in_draws": 0.0,
             "theorem_3_3_from_lower": None, "theorem_3_3_from_upper": None,
             "observed_error_mean": 0.1, "observed_error_max": 0.2}  # fmt: skip
    table, _ = constants_table(found)
    assert list(table.columns[-1].cells) == ["1.23e+907", "4.32e+03"]


@pytest.mark.parametrize(
    ("lower", "upper", "said"), [(0.05, 0.1, "at most"), (0.9, 1.1, "at the very best"), (1.1, 1.2, "nothing here")]
)
def test_what_the_theorem_says(lower, upper, said):
    entry = {"lower": lower, "exact": None, "upper": upper, "supports": "12", "evaluations": 1}
    ends = {
        f"theorem_3_3_from_{end}": float(value)
        if np.isfinite(value := rip.theorem_3_3(entry[end], entry[end]))
        else None
        for end in ("lower", "upper")
    }
    found = {"delta_k": entry, "delta_2k": entry, "largest_seen_in_draws": 0.0, **ends}
    _, sentences = constants_table({**found, "observed_error_mean": 0.1, "observed_error_max": 0.2})
    assert said in sentences[0]
