"""The journal of a run: one SQLite file that holds its specification and every finished block.

A killed process loses nothing that was committed. SQLite runs in WAL mode with ``synchronous=NORMAL``: after
a power loss the file is still consistent, but the last transactions (about a second of work) may be missing
and are computed again. The file is held exclusively for as long as it is open; the operating system drops
that hold with the process, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnninv_jax.montecarlo.errors import JournalError, JournalLockedError
from cnninv_jax.montecarlo.specification import canonical_json, differences, sha256

FILE_NAME = "journal.sqlite"
FORMAT = 1
#: The part that is all of a run.
WHOLE = (1, 1)
_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE blocks (position INTEGER PRIMARY KEY, draws INTEGER NOT NULL, crc32 INTEGER NOT NULL, "
    "payload BLOB NOT NULL)",
)


class Journal:
    """An open journal; use it as a context manager.

    Attributes:
        path: the SQLite file.
        spec: the specification it holds, or None while it is new.
        part: which part (i, N) of the run's blocks it holds; (1, 1) for all of them.
    """

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = Path(folder) / FILE_NAME
        self.spec: dict[str, Any] | None = None
        self.part: tuple[int, int] = WHOLE
        _prepare_folder(Path(folder), self.path, create)
        self._connection: sqlite3.Connection | None = None
        with self._explained("open"):
            self._connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            self._execute("PRAGMA locking_mode=EXCLUSIVE")
            self._execute("PRAGMA journal_mode=WAL")
            self._execute("PRAGMA synchronous=NORMAL")
            # The lock is taken by the first write, so write: from here on every other process is refused.
            self._execute("BEGIN EXCLUSIVE")
            self._read_header()
            self._execute("COMMIT")

    def _read_header(self) -> None:
        tables = {row[0] for row in self._execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if not tables:
            for statement in _TABLES:
                self._execute(statement)
            self._execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
            return
        if not {"meta", "blocks"} <= tables:
            raise JournalError(
                f"expected {self.path} to be a journal of runs, got another SQLite file; choose another folder"
            )
        meta = dict(self._execute("SELECT key, value FROM meta"))
        if meta.get("format") != str(FORMAT):
            raise JournalError(
                f"expected {self.path} in journal format {FORMAT}, got {meta.get('format')}; "
                "finish it with the version that began it, or choose another folder"
            )
        if "spec" in meta:
            if sha256(meta["spec"]) != meta.get("spec_sha256"):
                raise self._corrupted("its specification does not match its hash")
            self.spec = json.loads(meta["spec"])
            self.part = part_from_text(meta.get("part", "1/1"))

    def bind(self, spec: Mapping[str, Any], part: tuple[int, int] = WHOLE) -> None:
        """Write the specification into a new journal, or hold it against the one that is there.

        Raises:
            JournalError: the journal belongs to another run or part; every differing entry is named with both values.
        """
        text = canonical_json(spec)
        if self.spec is not None:
            if canonical_json(self.spec) != text:
                raise JournalError(
                    f"{self.path} belongs to another run "
                    f"({'; '.join(differences(self.spec, json.loads(text)))}); "
                    "ask for the same run, or choose another folder"
                )
            if self.part != part:
                raise JournalError(
                    f"expected {self.path} to hold {part_text(part)}, got {part_text(self.part)}; "
                    "choose another folder, one for each part"
                )
            return
        with self._explained("write"), self._transaction():
            self._execute(
                "INSERT OR REPLACE INTO meta VALUES ('spec', ?), ('spec_sha256', ?), ('part', ?)",
                (text, sha256(text), f"{part[0]}/{part[1]}"),
            )
        self.spec, self.part = json.loads(text), part

    def finished(self, positions: range) -> int:
        """Return how many of the blocks at ``positions`` are done, without a gap from the first on."""
        with self._explained("read"):
            count, last = next(self._execute("SELECT count(*), max(position) FROM blocks"))
            count = min(count, len(positions))
            if count == 0 or last == positions[count - 1]:
                return count
            # Blocks are written in order; should one be missing all the same, work resumes at the gap.
            held = (position for (position,) in self._execute("SELECT position FROM blocks ORDER BY position"))
            for index, position in enumerate(positions):
                if next(held, None) != position:
                    return index
            return len(positions)

    def rows(self, positions: range) -> Iterator[tuple[int, int, bytes]]:
        """Yield (position, draws, payload) of the blocks at ``positions`` (ascending), checked against their hashes."""
        if not positions:
            return
        with self._explained("read"):
            found = self._execute(
                "SELECT position, draws, crc32, payload FROM blocks WHERE position BETWEEN ? AND ? "
                "AND (position - ?) % ? = 0 ORDER BY position",
                (positions[0], positions[-1], positions[0], positions.step),
            )
            for wanted, (position, count, checksum, payload) in zip(positions, found, strict=True):
                if position != wanted or not isinstance(payload, bytes) or zlib.crc32(payload) != checksum:
                    raise self._corrupted(f"block {wanted} does not match its checksum")
                yield position, count, payload

    def read(self, positions: range, draws: Sequence[int], sizes: Sequence[int]) -> Iterator[bytes]:
        """Yield the payloads of the blocks at ``positions``, checked.

        Args:
            positions: which blocks to read, ascending.
            draws: the number of draws that each must hold.
            sizes: the payload size in bytes that each must have.
        """
        for (position, count, payload), expected, size in zip(self.rows(positions), draws, sizes, strict=True):
            if count != expected or len(payload) != size:
                raise self._corrupted(
                    f"block {position} holds {count} draws in {len(payload)} bytes instead of {expected} in {size}"
                )
            yield payload

    def append(self, blocks: Sequence[tuple[int, int, bytes]]) -> None:
        """Commit finished blocks ``(position, draws, payload)`` in one transaction."""
        rows = [(position, count, zlib.crc32(payload), payload) for position, count, payload in blocks]
        with self._explained("write"), self._transaction():
            assert self._connection is not None
            self._connection.executemany("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Fold the write-ahead log into the file and let go of it."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        if self._connection is None:
            raise JournalError(f"{self.path} is closed; open the journal again")
        return self._connection.execute(statement, values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._connection is not None and self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise

    def _corrupted(self, why: str) -> JournalError:
        return JournalError(
            f"{self.path} is damaged: {why}; "
            "move it away (a copy, if you have one, may be put in its place) and run again"
        )

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turn SQLite's errors into sentences a person can act on; close the journal when opening failed."""
        try:
            yield
        except (sqlite3.Error, OSError, JournalError) as error:
            if action == "open":
                self.close()
            if isinstance(error, JournalError):
                raise
            text = str(error)
            if "locked" in text:
                raise JournalLockedError(
                    f"{self.path} is in use by another process; "
                    "wait for it to finish, stop it, or choose another folder"
                ) from None
            if "is full" in text or getattr(error, "errno", None) == errno.ENOSPC:
                raise JournalError(
                    f"the disk is full: {self.path} could not be extended; "
                    "free some space and run the same command again, finished blocks are kept"
                ) from None
            if "unable to open" in text or "readonly" in text:
                raise JournalError(
                    f"expected {self.path} to be writable, got {text!r}; choose another folder"
                ) from None
            if isinstance(error, sqlite3.OperationalError):
                raise JournalError(f"could not {action} {self.path}: {text}; check the disk and run again") from None
            raise self._corrupted(text) from None


def part_text(part: tuple[int, int]) -> str:
    """Return a part as people say it."""
    return "the whole run" if part == WHOLE else f"part {part[0]}/{part[1]}"


def part_from_text(text: str) -> tuple[int, int]:
    """Return (i, N) from "i/N".

    Raises:
        ValueError: not of that form, or i is not between 1 and N.
    """
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise ValueError(f"expected a part i/N with 1 <= i <= N, such as 2/4, got {text!r}")
    return index, count


def _prepare_folder(folder: Path, path: Path, create: bool) -> None:
    if not create:
        if not path.is_file():
            raise JournalError(f"expected a journal at {path}, got none; name the folder of a run that was begun")
        return
    if folder.exists() and not folder.is_dir():
        raise JournalError(f"expected out to be a folder, got the file {folder}; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError(
            f"expected a folder that can be written at {folder}, got {error.strerror}; choose another folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise JournalError(
            f"expected a folder that can be written at {folder}, got a read-only one; choose another folder"
        )


def read_spec(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the specification held by the journal in ``folder``.

    Raises:
        JournalError: there is no journal, it is damaged, in use, or was begun without a specification.
    """
    with Journal(folder, create=False) as journal:
        if journal.spec is None:
            raise JournalError(f"{journal.path} holds no run yet; start the run again")
        return journal.spec


def read_part(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """Return which part (i, N) of a run the journal in ``folder`` holds; (1, 1) for all of it.

    Raises:
        JournalError: there is no journal, it is damaged, or in use.
    """
    with Journal(folder, create=False) as journal:
        return journal.part
