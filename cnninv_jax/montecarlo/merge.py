"""Joining the journals of a job array: N parts of a run become the journal of the whole run, same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cnninv_jax.montecarlo.errors import JournalError
from cnninv_jax.montecarlo.journal import FILE_NAME, WHOLE, Journal, part_text
from cnninv_jax.montecarlo.specification import canonical_json, differences

#: Blocks copied in one transaction.
_BATCH = 256


def merge(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> int:
    """Join the journals of all parts of one run into a journal of the whole run in ``out``.

    Running the same run there again (``run(..., out=out)``) reads it back without computing: the same bits as one
    uninterrupted run.

    Args:
        folders: one folder per part, in any order.
        out: folder of the joined journal; must hold no journal yet, or the one of an earlier, equal merge.

    Returns:
        The number of blocks.

    Raises:
        JournalError: a part is missing, unfinished, twice there or of another run; each is named.
    """
    if not folders:
        raise JournalError("expected the folders of the parts to merge, got none")
    # One journal is open at a time: an array of a thousand jobs must not need a thousand open files.
    parts: dict[int, _Part] = {}
    first: _Part | None = None
    for folder in folders:
        part = _Part.read(Path(folder))
        first = first or part
        _check(part, first, parts)
        parts[part.index] = part
    assert first is not None
    blocks = -(-first.spec["num_draws"] // first.spec["block"])
    _complete(parts, first.count, blocks)
    with _new_journal(Path(out)) as joined:
        joined.bind(first.spec, WHOLE)
        for index, part in sorted(parts.items()):
            with Journal(part.folder, create=False) as journal:
                rows = journal.rows(range(index - 1, blocks, part.count))
                while batch := list(itertools.islice(rows, _BATCH)):
                    joined.append(batch)
    return blocks


def find_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the folders below ``folder`` that hold journals, by name."""
    return sorted(file.parent for file in Path(folder).glob(f"*/{FILE_NAME}"))


@dataclasses.dataclass(frozen=True)
class _Part:
    """What one folder holds."""

    folder: Path
    spec: dict[str, Any]
    index: int
    count: int
    finished: int

    @classmethod
    def read(cls, folder: Path) -> _Part:
        with Journal(folder, create=False) as journal:
            if journal.spec is None:
                raise JournalError(f"{journal.path} holds no run yet; run its part, then merge again")
            if journal.part == WHOLE:
                raise JournalError(f"{journal.path} holds the whole run already; there is nothing to merge")
            index, count = journal.part
            blocks = -(-journal.spec["num_draws"] // journal.spec["block"])
            return cls(folder, journal.spec, index, count, journal.finished(range(index - 1, blocks, count)))


def _check(part: _Part, first: _Part, parts: dict[int, _Part]) -> None:
    if canonical_json(part.spec) != canonical_json(first.spec):
        found = "; ".join(differences(first.spec, part.spec, names=(str(first.folder), str(part.folder))))
        raise JournalError(f"expected parts of one run, got different ones ({found}); merge parts of one run only")
    if part.count != first.count:
        raise JournalError(
            f"expected parts of one division, got {part_text((first.index, first.count))} in {first.folder} and "
            f"{part_text((part.index, part.count))} in {part.folder}; divide a run in one way only"
        )
    if part.index in parts:
        raise JournalError(
            f"part {part.index}/{part.count} is there twice, in {parts[part.index].folder} and {part.folder}; "
            "name it once"
        )


def _complete(parts: dict[int, _Part], count: int, blocks: int) -> None:
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in parts]
    if missing:
        some = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        verb = "is" if len(missing) == 1 else "are"
        raise JournalError(f"part{'s' * (len(missing) > 1)} {some} {verb} missing; run them, or name their folders")
    for number, part in sorted(parts.items()):
        due = len(range(number - 1, blocks, count))
        if part.finished < due:
            raise JournalError(
                f"part {number}/{count} in {part.folder} is unfinished: {part.finished} of its {due} blocks; "
                "start it again, then merge"
            )


@contextlib.contextmanager
def _new_journal(folder: Path) -> Iterator[Journal]:
    """Open the joined journal; a merge that fails leaves no new journal behind."""
    own = not (folder / FILE_NAME).exists()
    journal = Journal(folder)
    try:
        yield journal
    except BaseException:
        journal.close()
        if own:
            for suffix in ("", "-wal", "-shm"):
                (folder / (FILE_NAME + suffix)).unlink(missing_ok=True)
        raise
    journal.close()
