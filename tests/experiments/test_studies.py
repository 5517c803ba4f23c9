"""Studies: a folder in, a folder out; finished ones are read, foreign ones refused, failures leave nothing behind."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import refused
from matplotlib.figure import Figure
from rich.console import Console

from cnninv_jax.experiments import catalogue
from cnninv_jax.experiments.studies import (
    Findings,
    Study,
    StudyOptions,
    Table,
    is_study,
    progress_bar,
    read_study,
    reproduce_study,
    restored,
)
from cnninv_jax.experiments.study_table import as_rich
from cnninv_jax.montecarlo import ResultError


@dataclasses.dataclass(frozen=True)
class Sizes:
    K: int = 3
    """Rows."""
    widths: tuple[int, ...] = (1, 2)
    """Widths."""
    file: Path | None = None
    """A file."""


class Squares:
    """A study that counts how often it was computed."""

    def __init__(self):
        self.computed = 0

    def compute(self, parameters, options, folder):
        self.computed += 1
        if parameters.K < 1:
            raise ValueError(f"expected chunk_size of at least 1, got {parameters.K}")
        if parameters.K == 13:
            (folder / "begun").touch()
            raise KeyboardInterrupt
        numbers = np.arange(parameters.K, dtype=float) ** 2
        with progress_bar("squares", parameters.K, quiet=options.quiet) as bar:
            for number in numbers:
                bar.advance(note=f"{number:g}")
        table = Table("squares [of it]", ("i", "square"), (("0", "0"), ("1", "1")), ("Two of them [shown].",))
        return Findings({"squares": numbers, "bad": np.nan}, (table,), xr.Dataset({"square": ("i", numbers)}))

    def figure(self, report, dataset):
        assert report["findings"]["bad"] is None
        figure = Figure()
        figure.subplots().plot(report["findings"]["squares"], dataset.square)
        return figure


@pytest.fixture
def squares():
    return Squares()


@pytest.fixture
def study(squares):
    return Study("squares", "Squares", "Nobody 1900, Fig. 1", Sizes, squares.compute, squares.figure)


def test_a_study_is_computed_once_and_then_read(study, squares, tmp_path, capsys):
    options = StudyOptions(out=tmp_path / "run")
    first = reproduce_study(study, Sizes(), options)
    assert {path.name for path in first.files} == {"report.json", "result.nc", "squares.png", "squares.svg"}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        {"study.json", *(path.name for path in first.files)}
    )
    assert "3 of 3" in capsys.readouterr().err
    again = reproduce_study(study, Sizes(), options)
    assert squares.computed == 1
    assert again == first
    (tmp_path / "run" / "squares.png").unlink()
    reproduce_study(study, Sizes(), options)
    assert squares.computed == 2


def test_what_was_begun_can_be_found_again(study, tmp_path):
    folder = tmp_path / "run"
    parameters = Sizes(K=13, widths=(4,), file=Path("/somewhere/f.npz"))
    with pytest.raises(KeyboardInterrupt):
        reproduce_study(study, parameters, StudyOptions(seed=5, out=folder))
    assert is_study(folder)
    name, held, options = read_study(folder)
    assert (name, options.seed, options.out) == ("squares", 5, folder)
    assert restored(Sizes, held) == parameters


def test_another_study_is_refused(study, tmp_path):
    reproduce_study(study, Sizes(), StudyOptions(out=tmp_path, quiet=True))
    with pytest.raises(ResultError, match=r"parameters.K: .* has 3, this study .*4"):
        reproduce_study(study, Sizes(K=4), StudyOptions(out=tmp_path, quiet=True))
    with pytest.raises(ResultError, match="seed"):
        reproduce_study(study, Sizes(), StudyOptions(out=tmp_path, seed=1, quiet=True))


def test_a_refusal_leaves_nothing_behind_and_speaks_in_flags(study, tmp_path):
    with pytest.raises(ValueError, match="expected --block of at least 1, got 0"):
        reproduce_study(study, Sizes(K=0), StudyOptions(out=tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_another_version_is_refused():
    with pytest.raises(ValueError, match=r"other parameters \(L, file\)"):
        restored(Sizes, {"K": 1, "widths": [1], "L": 2})


def test_a_damaged_description_is_one_sentence(study, tmp_path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ResultError, match="cannot be read"):
        reproduce_study(study, Sizes(), StudyOptions(out=tmp_path))


def test_brackets_in_cells_are_no_markup():
    out = io.StringIO()
    Console(file=out, width=80).print(as_rich(Table("t [x]", ("a [b]",), (("[red]",),))))
    assert all(text in out.getvalue() for text in ("t [x]", "a [b]", "[red]"))


def test_every_study_is_documented_and_has_its_own_name():
    for name, study in catalogue.studies().items():
        assert study.name == name
        for field in dataclasses.fields(study.parameters):
            json.dumps(field.default, default=str)  # a default that can stand in study.json


def test_the_cli_resumes_a_study_and_refuses_an_unknown_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.json").write_text(
        json.dumps({"study": "nothing", "parameters": {}, "seed": 0, "precision": "float32"})
    )
    assert "expected a study out of" in refused(capsys, "resume", tmp_path)


@dataclasses.dataclass(frozen=True)
class Photographs:
    pictures: str = "embedded"
    """Folder."""
    filters: str = "gaussian"
    """Law."""


def test_a_relative_folder_means_the_same_from_elsewhere_and_words_are_no_folders(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"one")
    for word in ("gaussian", "embedded", "elsewhere"):
        (tmp_path / word).mkdir()
    monkeypatch.chdir(tmp_path)
    squares = Squares()
    study = Study(
        "squares", "Squares", "-", Photographs, lambda p, o, f: squares.compute(Sizes(), o, f), lambda *_: Figure()
    )
    outcome = reproduce_study(study, Photographs("photos"), StudyOptions(out=tmp_path / "run"))
    spec = json.loads((outcome.folder / "study.json").read_text())
    assert spec["parameters"]["pictures"] == str(tmp_path / "photos")
    assert list(spec["files"]) == ["pictures"]
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, held, options = read_study(outcome.folder)
    reproduce_study(study, restored(Photographs, held), options)
    assert squares.computed == 1
    assert "files" not in json.loads(
        (reproduce_study(study, Photographs(), StudyOptions(out=tmp_path / "other")).folder / "study.json").read_text()
    )
    (tmp_path / "photos" / "b.png").write_bytes(b"two")
    with pytest.raises(ResultError, match="another study"):
        reproduce_study(study, restored(Photographs, held), options)
