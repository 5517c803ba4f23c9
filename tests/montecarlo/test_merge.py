"""Parts of a run, computed apart and joined: the bits of one run, and every gap named."""

import functools
import shutil

import pytest

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo.journal import FILE_NAME, Journal, part_from_text

from . import draws

quiet = functools.partial(mc.run, draws.mixed, 11, 2025, chunk_size=50, lanes=16, keep=("x",), progress=False)
#: Nothing but the last block is partial: 41 blocks in four parts of 11, 10, 10, 10.
PARTS = 4


@pytest.fixture(scope="module")
def whole():
    return quiet().to_xarray()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    base = tmp_path_factory.mktemp("parts")
    results = [quiet(part=(i, PARTS), out=base / f"p{i}", mesh=draws.mesh(i % 3 + 1)) for i in range(1, PARTS + 1)]
    return base, results


def test_merged_parts_are_the_bits_of_one_run(parts, whole, tmp_path):
    base, results = parts
    assert [result["x"]["count"] for result in results] == [525, 500, 500, 500]
    assert sum(result["positive"]["successes"] for result in results) == whole["positive_successes"]
    folders = mc.find_parts(base)
    assert mc.merge(folders[::-1], tmp_path / "all") == 41
    again = quiet(out=tmp_path / "all")
    assert again.provenance["resumed_blocks"] == 41
    assert again.provenance["compile_seconds"] == 0.0
    assert draws.variables_equal(again.to_xarray(), whole)
    # Merging again changes nothing.
    assert mc.merge(folders, tmp_path / "all") == 41


def test_a_part_says_what_it_is(parts):
    _, results = parts
    assert str(results[1].summary()).startswith("mixed: 500 draws (part 2/4 of 2,025)")
    assert results[1].provenance["part"] == [2, 4]


def test_a_part_resumes(tmp_path):
    class Enough(Exception):
        pass

    def stop(progress):
        if progress.done >= 150:
            raise Enough

    options = {"part": (2, 3), "out": tmp_path, "mesh": draws.mesh(1)}
    with pytest.raises(Enough):
        mc.run(draws.mixed, 11, 2025, chunk_size=50, lanes=16, keep=("x",), progress=stop, **options)
    resumed = quiet(**options)
    assert 0 < resumed.provenance["resumed_blocks"] < 14
    assert draws.variables_equal(resumed.to_xarray(), quiet(part=(2, 3)).to_xarray())


def test_more_parts_than_blocks(tmp_path):
    run = functools.partial(mc.run, draws.scalar, 3, 120, chunk_size=50, progress=False)
    for part in range(1, 6):
        run(part=(part, 5), out=tmp_path / str(part))
    assert mc.merge(mc.find_parts(tmp_path), tmp_path / "all") == 3
    assert draws.variables_equal(run(out=tmp_path / "all").to_xarray(), run().to_xarray())


@pytest.mark.parametrize(
    ("kept", "match"),
    [
        ((1, 3, 4), r"part 2/4 is missing"),
        ((3,), r"parts 1/4, 2/4, 4/4 are missing"),
        ((), "got none"),
        ((1, 2, 3, 4, 4), "part 4/4 is there twice"),
    ],
)
def test_missing_parts_are_named(parts, tmp_path, kept, match):
    base, _ = parts
    with pytest.raises(mc.JournalError, match=match):
        mc.merge([base / f"p{i}" for i in kept], tmp_path / "all")
    assert not (tmp_path / "all" / FILE_NAME).exists()


def test_unfinished_foreign_and_whole_journals_are_named(parts, tmp_path):
    base, _ = parts
    folders = [base / f"p{i}" for i in range(1, PARTS + 1)]
    short = tmp_path / "short"
    shutil.copytree(folders[1], short)
    with Journal(short) as journal:
        journal._execute("DELETE FROM blocks WHERE position > 20")
    with pytest.raises(mc.JournalError, match=r"part 2/4 in .*short is unfinished: 5 of its 10 blocks"):
        mc.merge([folders[0], short, *folders[2:]], tmp_path / "all")
    mc.run(draws.mixed, 12, 2025, chunk_size=50, lanes=16, keep="x", progress=False, part=(2, 4), out=tmp_path / "12")
    with pytest.raises(mc.JournalError, match=r"parts of one run, got different ones \(key\.data: .*p1 has \[0,11\]"):
        mc.merge([folders[0], tmp_path / "12", *folders[2:]], tmp_path / "all")
    quiet(part=(1, 2), out=tmp_path / "half")
    with pytest.raises(mc.JournalError, match="one division"):
        mc.merge([*folders, tmp_path / "half"], tmp_path / "all")
    quiet(out=tmp_path / "whole")
    with pytest.raises(mc.JournalError, match="whole run already"):
        mc.merge([tmp_path / "whole"], tmp_path / "all")
    with pytest.raises(mc.JournalError, match="expected a journal"):
        mc.merge([tmp_path / "nowhere"], tmp_path / "all")


def test_a_folder_holds_one_part(parts):
    base, _ = parts
    with pytest.raises(mc.JournalError, match="to hold part 3/4, got part 1/4"):
        quiet(part=(3, 4), out=base / "p1")
    with pytest.raises(mc.JournalError, match="to hold the whole run, got part 1/4"):
        quiet(out=base / "p1")


def test_mistakes_are_named():
    for part in ((0, 4), (5, 4), "1/4", (1,), (1.0, 2)):
        with pytest.raises(ValueError, match=r"expected (a )?part"):
            quiet(part=part)
    with pytest.raises(ValueError, match="part or until"):
        quiet(part=(1, 2), until=mc.Width("x", absolute=0.1))
    assert part_from_text(" 2/4") == (2, 4)
    for text in ("0/4", "5/4", "2", "2/", "-1/4", "a/b"):
        with pytest.raises(ValueError, match="such as 2/4"):
            part_from_text(text)
