"""Tables 1 and 2 of Shang et al.: a tiny run, resumed to the same bits, and comparisons of given outcomes."""

import json
import shutil

import numpy as np
import pytest
from commands import refused

from cnninv_jax.experiments.crelu_table1 import CRELU_TABLE1, CReLUTable1Parameters, spec_of
from cnninv_jax.experiments.crelu_table1_tables import LABELS, PAIRS, PAPER, PAPER_PARAMETERS, answer, compared, tables
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.nn.architectures import convpool_cnn_c, vgg_cifar
from cnninv_jax.nn.specs import parameter_counts


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder in the binary version of CIFAR-10, with few images: class 2 is red, the others are not."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        labels = np.arange(16) % 10
        images = rng.integers(0, 200, (16, 3, 32, 32))
        images[labels == 2, 0] += 55
        (folder / name).write_bytes(np.column_stack([labels, images.reshape(16, -1)]).astype(np.uint8).tobytes())
    return folder


@pytest.fixture(scope="module")
def parameters(cifar):
    return CReLUTable1Parameters(
        cifar=str(cifar), models=("baseline", "half"), width=1 / 48, num_seeds=2, epochs=2, batch_size=8, limit=16
    )


@pytest.fixture(scope="module")
def outcome(parameters, tmp_path_factory):
    return reproduce_study(
        CRELU_TABLE1, parameters, StudyOptions(out=tmp_path_factory.mktemp("table1") / "out", quiet=True)
    )


@pytest.mark.slow
def test_what_is_saved_is_what_was_found(outcome):
    found = outcome.report["findings"]
    assert {path.name for path in outcome.files} == {"report.json", "crelu-table1.png", "crelu-table1.svg"}
    assert found["data"] | {"source": "", "notes": []} == {
        "name": "cifar10", "source": "", "train": 16, "test": 16, "classes": 10, "notes": []
    }  # fmt: skip
    assert found["networks"]["half"]["channels"] == [1, 1, 1, 2, 2, 2, 2, 10]
    assert found["networks"]["half"]["full_weights"] == 519_312
    assert found["networks"]["baseline"]["steps"] == 4
    for name, cells in found["cells"].items():
        assert len(cells) == 2, name
        for cell in cells:
            assert cell["status"] == "finished"
            assert 0 <= cell["accuracy"] <= 1
            assert len(cell["curve"]["loss"]) == 4
            assert np.isfinite(cell["curve"]["loss"]).all()
    errors, sizes, differences = outcome.tables
    assert [row[0] for row in errors.rows] == ["ReLU (baseline)", "CReLU (half)"]
    assert [row[5:7] for row in errors.rows] == [("9.17", "1.09"), ("8.37", "4.73")]
    assert [row[5:] for row in sizes.rows] == [("1.29", "1.4"), ("0.52", "0.7")]
    assert [row[0] for row in differences.rows] == ["CReLU (half) - ReLU (baseline)"]
    assert differences.rows[0][-1] == "-0.80"


@pytest.mark.slow
def test_a_killed_study_ends_on_the_same_bits(outcome, parameters, tmp_path):
    """What a kill after the first training leaves: its folder, and the study's description."""
    out = tmp_path / "out"
    shutil.copytree(outcome.folder, out)
    for gone in ("report.json", "crelu-table1.png", "crelu-table1.svg"):
        (out / gone).unlink()
    for name in ("half-0", "baseline-1", "half-1"):
        shutil.rmtree(out / "networks" / name)
    kept = {path: path.stat().st_mtime_ns for path in (out / "networks" / "baseline-0").rglob("step_*/**/*")}
    again = reproduce_study(CRELU_TABLE1, parameters, StudyOptions(out=out, quiet=True))
    assert kept == {path: path.stat().st_mtime_ns for path in kept}

    def numbers(report):
        cells = report["findings"]["cells"]
        timed = ("seconds", "images_per_second")
        return json.dumps({name: [{k: v for k, v in cell.items() if k not in timed} for cell in cells[name]]
                           for name in cells})  # fmt: skip

    assert numbers(again.report) == numbers(outcome.report)
    read = reproduce_study(CRELU_TABLE1, parameters, StudyOptions(out=out, quiet=True))
    assert read.report == again.report


def cells(**errors):
    """Return outcomes of given test errors, training errors a tenth lower."""
    return {
        name.replace("_", "-"): [{"accuracy": 1 - error, "train_accuracy": 1.1 - error} for error in values]
        for name, values in errors.items()
    }


def test_differences_are_paired_by_seed():
    # Seeds vary by 0.1, models differ by 0.020 +- 0.001 within a seed.
    found = compared(cells(baseline=[0.3, 0.4, 0.35], half=[0.281, 0.38, 0.329]))
    assert [(one["before"], one["after"]) for one in found] == [("baseline", "half")]
    (one,) = found
    np.testing.assert_allclose(one["each"], [-0.019, -0.02, -0.021])
    half_width = 4.302653 * 0.001 / np.sqrt(3)  # Student, 2 degrees of freedom
    np.testing.assert_allclose([one["value"], one["low"], one["high"]], [-0.02, -0.02 - half_width, -0.02 + half_width])
    np.testing.assert_allclose(one["gap"]["value"], 0, atol=1e-12)
    assert "CReLU (half) beats ReLU (baseline): its test error differs by -2.00" in answer(one, "steps")
    assert "95% interval -2.25 to -1.75 over 3 seeds" in answer(one, "steps")


def test_the_question_is_answered_whatever_comes_out():
    def said(**errors):
        return answer(compared(cells(**errors))[0], "operations")

    assert "does not beat ReLU (baseline): it is worse" in said(baseline=[0.3, 0.4], half=[0.31, 0.4101])
    assert "is undecided" in said(baseline=[0.3, 0.4], half=[0.29, 0.42])
    assert "one seed says nothing" in said(baseline=[0.3], half=[0.29])
    assert "On the same multiply-adds" in said(baseline=[0.3], half=[0.29])
    assert compared(cells(half=[0.1, 0.2])) == []


@pytest.mark.slow
def test_printed_numbers_stand_beside_their_own_data_only(outcome, parameters):
    content = json.loads(json.dumps(outcome.report["findings"]))
    for name, shown in (("cifar100", ("36.30", "13.68")), ("embedded", ("-", "-"))):
        content["data"]["name"] = name
        errors, *_ = tables(content, parameters)
        assert errors.rows[0][5:7] == shown
        assert any("NOT numbers of CIFAR-10" in note for note in errors.notes) == (name == "embedded")


def test_models_are_the_papers():
    assert set(PAPER["cifar10"]) == set(PAPER["cifar100"]) == set(LABELS) - {"half-192"}
    assert set(PAPER_PARAMETERS) == {name for name in LABELS if not name.startswith("vgg")} - {"half-192"}
    assert {name for pair in PAIRS for name in pair} == set(LABELS)
    assert spec_of("vgg-1-3-5", 1.0) == vgg_cifar("conv1,3,5")
    assert spec_of("vgg", 0.5, dropout=0.0) == vgg_cifar("baseline", width=0.5, dropout=0.0)
    assert spec_of("half-192", 1.0, num_classes=100) == convpool_cnn_c("half-192", num_classes=100)
    assert parameter_counts(spec_of("double", 1.0)).weights == 5_133_120


def test_budgets(cifar):
    from cnninv_jax.experiments.crelu_table1 import _recipes

    models = ("baseline", "half", "double")
    specs = {name: spec_of(name, 1.0) for name in models}
    steps = {}
    for budget in ("steps", "operations"):
        p = CReLUTable1Parameters(models=models, budget=budget, epochs=10, batch_size=100)
        steps[budget] = [recipe.num_steps for recipe in _recipes(p, 1000, specs).values()]
    assert steps["steps"] == [100, 100, 100]
    # 325.0, 130.8 and 1294.5 million multiply-adds an image.
    assert steps["operations"] == [100, 249, 25]


@pytest.mark.slow
def test_the_networks_learn(cifar, tmp_path):
    """Which pictures are red is learned from 80 of them by every network of Table 1 and by VGG."""
    p = CReLUTable1Parameters(
        cifar=str(cifar), models=("baseline", "avr", "crelu", "half", "vgg-1"), width=1 / 12, epochs=60, batch_size=40,
        num_seeds=1, shift=2,
    )  # fmt: skip
    found = reproduce_study(CRELU_TABLE1, p, StudyOptions(out=tmp_path / "out", quiet=True)).report["findings"]
    for name, (cell,) in found["cells"].items():
        assert cell["curve"]["loss"][-1] < 0.9 * cell["curve"]["loss"][0], name


def test_what_does_not_fit_is_refused(scratch, capsys):
    command = ("reproduce", "crelu-table1")
    for arguments, words in (
        (("--num-seeds", "0"), "expected --num-seeds to be an integer from 1 to 1000, got 0"),
        (("--models", "half", "half"), "expected different --models, got half half"),
        (("--width", "0"), "expected --width above 0 and at most 16, got 0.0"),
        (("--dropout", "2"), "expected --dropout from 0 to below 2 (times rates of up to 0.5), got 2.0"),
        (("--shift", "-1"), "expected --shift of at least 0 pixels, got -1"),
        (("--limit", "0"), "expected --limit to be an integer from 1"),
        (("--batch-size", "0"), "expected --batch-size to be an integer from 1"),
        (
            ("--limit", "100", "--batch-size", "101"),
            "expected --batch-size of at most the 100 training images, got 101",
        ),
        (("--epochs", "0"), "expected --epochs to be a positive number, got 0.0"),
        (("--rate", "0"), "expected --rate to be positive, got 0.0"),
        (("--precision", "float64"), "expected --precision float32, got float64"),
        (("--cifar", "nowhere"), "there is no 'nowhere'"),
    ):
        assert words in refused(capsys, *command, *arguments), arguments
