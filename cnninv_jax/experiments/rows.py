"""Rows of numbers that a long count has found so far, kept in a file, so that it goes on where it stood."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cnninv_jax._files import write_whole
from cnninv_jax.experiments.files import writing
from cnninv_jax.montecarlo import ResultError
from cnninv_jax.montecarlo.specification import environment

#: How often rows are written down.
SECONDS = 30.0


class KeptRows:
    """Lists of rows by name; see `kept_rows`."""

    def __init__(self, path: Path, spec: Mapping[str, Any], seconds: float) -> None:
        self._path, self._seconds = path, seconds
        # As it will be read back: tuples become lists, keys text.
        self._spec = json.loads(json.dumps(spec))
        self._rows = self._held()
        self._written = time.monotonic()
        self._fresh = False

    def of(self, name: str) -> list[list[float]]:
        """Return the rows of a name, in the order in which they came; to be read only."""
        return self._rows.get(name, [])

    def add(self, name: str, row: Sequence[float]) -> None:
        """Append a row, and write all of them down if it is time."""
        self._rows.setdefault(name, []).append([float(value) for value in row])
        self._fresh = True
        if time.monotonic() - self._written > self._seconds:
            self.write()

    def write(self) -> None:
        """Write down what is new.

        Raises:
            ResultError: it cannot be written.
        """
        if self._fresh:
            with writing(self._path.name, "what was found since the last time is lost, the rest is safe"):
                write_whole(self._path, json.dumps({"spec": self._spec, "rows": self._rows}).encode())
            self._fresh, self._written = False, time.monotonic()

    def _held(self) -> dict[str, list[list[float]]]:
        """Return what was kept under the same description, or nothing."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return dict(content["rows"]) if content["spec"] == self._spec else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


@contextlib.contextmanager
def kept_rows(path: Path, spec: Mapping[str, Any], *, seconds: float = SECONDS) -> Iterator[KeptRows]:
    """Keep rows of numbers in a file: read what is there, write now and then and at the end, whatever ends it.

    Args:
        path: the file, JSON. Numbers come back bit by bit.
        spec: what the rows depend on; rows kept under another description, or by another version of this program or of
            JAX or on another kind of device, are not believed.
        seconds: how much time a killed count may lose.

    Raises:
        ResultError: it cannot be written.
    """
    rows = KeptRows(path, {**spec, "environment": environment(jax.devices()[0])}, seconds)
    try:
        yield rows
    except BaseException:
        # What ended the count is what the user has to hear.
        with contextlib.suppress(ResultError):
            rows.write()
        raise
    rows.write()


__all__ = ["SECONDS", "KeptRows", "kept_rows"]
