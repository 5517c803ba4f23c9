"""Style transfer of Random DCN, 4.4: what the study saves, that it goes on where it was killed, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import refused

from cnninv_jax.experiments import studies
from cnninv_jax.experiments.dcn_style import DCN_STYLE, StyleParameters
from cnninv_jax.experiments.dcn_style_tables import seconds_to, summarised
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study, restored

P = StyleParameters(
    size=16, channels=4, width=1 / 32, blocks=1, steps=6, num_styles=1, num_seeds=1, content_weights=(0.01, 1.0)
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return reproduce_study(DCN_STYLE, P, StudyOptions(out=tmp_path_factory.mktemp("style"), quiet=True))


@pytest.mark.slow
def test_what_is_saved_is_what_was_found(outcome):
    found = outcome.report["findings"]
    assert len(found["cells"]) == 4
    cell = found["cells"]["features-seed0-style0-weight0.01"]
    assert len(cell["total"]) == 7
    assert cell["total"][0] == cell["style"][0] == 1
    assert cell["content"][0] == 0
    assert found["summary"]["by_weight"]["features"][0]["total"] == cell["total"][-1] < 1
    with xr.open_dataset(outcome.folder / "result.nc", engine="h5netcdf") as dataset:
        assert dataset["features"].dims == ("seed", "style", "weight", "channel", "row", "column")
        assert dataset["features"].shape == (1, 1, 2, 3, 16, 16)
        assert dataset["pixels"].dtype == dataset["content"].dtype == np.uint8
    sweep = [found["cells"][f"features-seed0-style0-weight{weight}"] for weight in ("0.01", "1")]
    falls = sweep[1]["content"][-1] < sweep[0]["content"][-1]
    rises = sweep[1]["ssim"] > sweep[0]["ssim"]
    assert [found["summary"]["monotone"][name] for name in ("sweeps", "content", "ssim")] == [1, falls, rises]
    assert [len(table.rows) for table in outcome.tables] == [4, 2]
    assert {path.name for path in outcome.files} == {"report.json", "result.nc", "dcn-style.png", "dcn-style.svg"}


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_bits(outcome):
    before = (outcome.folder / "result.nc").read_bytes()
    (outcome.folder / "report.json").unlink()
    (outcome.folder / "result.nc").unlink()
    lost = outcome.folder / "transfers" / "features-seed0-style0-weight1.npz"
    kept = lost.with_name("pixels-seed0-style0-weight1.npz")
    stamp = kept.stat().st_mtime_ns
    lost.write_bytes(lost.read_bytes()[:100])
    again = reproduce_study(DCN_STYLE, P, StudyOptions(out=outcome.folder, quiet=True))
    assert kept.stat().st_mtime_ns == stamp
    for name, cell in outcome.report["findings"]["cells"].items():
        other = again.report["findings"]["cells"][name]
        assert all(cell[part] == other[part] for part in ("content", "style", "total", "ssim"))
    assert (outcome.folder / "result.nc").read_bytes() == before


def test_seconds_to_a_share_of_the_loss():
    cell = {"total": [1.0, 0.5, 0.1, 0.2, 0.04], "seconds": 8.0}
    assert seconds_to(cell, 0.1) == 4.0
    assert seconds_to(cell, 0.05) == 8.0
    assert seconds_to(cell, 0.01) is None


def test_a_sweep_that_turns_is_not_monotone():
    cells = {
        f"{variable}{place}{weight}": {
            "variable": variable, "seed": 0, "picture": place, "weight": weight, "ssim": ssim, "content": [0.0, -ssim],
            "style": [1.0, weight], "total": [1.0, 0.5], "seconds": 1.0, "compile_seconds": 1.0,
        }
        for variable in ("features", "pixels")
        for place in (0, 1)
        for weight, ssim in zip(P.content_weights, ((0.2, 0.3), (0.3, 0.2))[place], strict=True)
    }  # fmt: skip
    found = summarised({"cells": cells, "styles": ["a", "b"]}, P)
    assert found["monotone"] == {"ssim": 1, "content": 1, "style": 2, "sweeps": 2}


def test_what_does_not_fit_is_refused(scratch, capsys):
    command = ("reproduce", "dcn-style")
    for arguments, words in (
        (("--content-weights", "-1"), "expected --content-weights to be positive, got -1"),
        (("--content-weights", "1", "0.1"), "expected --content-weights to ascend, got 1.0 0.1"),
        (("--content", "nowhere.png"), "nowhere.png"),
        (("--styles", "nowhere.png"), "nowhere.png"),
        (("--size", "10"), "expected --size of at least 11, got 10; take larger pictures"),
        (("--size", "12", "--blocks", "4"), "expected --size of at least 16, got 12"),
        (("--blocks", "5"), "expected --blocks to be an integer from 1 to 4, got 5"),
        (("--weights", "vgg.npz"), "expected --channels 64 and --width 1 with --weights"),
    ):
        assert words in refused(capsys, *command, *arguments), arguments


def test_styles_are_files_of_the_study(scratch):
    """Their paths become absolute, and their content is part of what the study is."""
    for name in ("a.png", "b.png"):
        (scratch / name).write_bytes(name.encode())
    given = StyleParameters(styles=(Path("a.png"), Path("b.png")))
    plain = studies._plain(given)
    assert plain["styles"] == [str(scratch / "a.png"), str(scratch / "b.png")]
    assert restored(StyleParameters, plain).styles == (scratch / "a.png", scratch / "b.png")
    before = studies._digests(given)
    (scratch / "b.png").write_bytes(b"other")
    after = studies._digests(restored(StyleParameters, plain))
    assert before["styles.0"] == after["styles.0"]
    assert before["styles.1"] != after["styles.1"]
