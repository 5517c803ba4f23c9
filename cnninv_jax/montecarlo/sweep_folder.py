"""The folder of a sweep: a manifest, and a journal of its own for every cell.

``sweep.json`` says what the sweep is; ``cells/<values>-<digest>/`` holds the journal of a cell and, once it is
finished, ``cell.json``. Several processes may fill one folder: the manifest is written whole, and a cell's journal
is held by the process that computes it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnninv_jax._files import write_whole
from cnninv_jax.montecarlo.errors import JournalError, ResultError
from cnninv_jax.montecarlo.grid import Cell, Grid
from cnninv_jax.montecarlo.journal import FILE_NAME, Journal
from cnninv_jax.montecarlo.result import Result
from cnninv_jax.montecarlo.specification import canonical_json, differences

MANIFEST = "sweep.json"
FORMAT = 1
_CELLS, _RECORD = "cells", "cell.json"


class SweepFolder:
    """Where a sweep keeps its cells.

    Args:
        folder: the sweep's folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)

    def cell(self, cell: Cell) -> Path:
        """Return the folder of one cell."""
        return self.path / _CELLS / cell.folder

    def bind(self, spec: Mapping[str, Any], computations: Mapping[str, str], grid: Grid) -> None:
        """Write the manifest, or hold the sweep against the one that is there; the grid may be another.

        Raises:
            JournalError: the folder belongs to another sweep, or to a single run, or cannot be written.
        """
        spec = json.loads(canonical_json(spec))
        known = dict(computations)
        if (self.path / MANIFEST).exists():
            held = read_sweep(self.path)
            changed = [group for group in known if held["computations"].get(group, known[group]) != known[group]]
            found = differences(held["sweep"], spec, names=("the folder", "this run"))
            if changed:
                found.append("draw: its code is not the one the sweep was begun with")
            if found:
                raise JournalError(
                    f"{self.path} holds another sweep ({'; '.join(found)}); "
                    "ask for the same sweep (its grid may grow), or choose another folder"
                )
            known = {**held["computations"], **known}
        elif (self.path / FILE_NAME).exists():
            raise JournalError(f"{self.path} holds a single run, not a sweep; choose another folder")
        cells = {cell.folder: {"parameters": str(cell), "level": cell.level} for cell in grid.cells}
        content = {"format": FORMAT, "sweep": spec, "grid": grid.describe(), "cells": cells, "computations": known}
        _write(self.path / MANIFEST, content)

    def record(self, cell: Cell, result: Result) -> dict[str, Any]:
        """Return what is known of a finished cell beside its numbers; write it down when the cell has just finished."""
        path = self.cell(cell) / _RECORD
        computed = math.isfinite(result.provenance["draws_per_second"])
        if path.exists() and not computed:
            return _read(path)
        content = record_of(cell, result)
        _write(path, content)
        return content


def record_of(cell: Cell, result: Result) -> dict[str, Any]:
    """Return draws and seconds of a cell; the seconds are those of the session that finished it."""
    facts = result.provenance
    return {
        "parameters": str(cell),
        "level": cell.level,
        "draws": int(facts["num_draws"]),
        "seconds": float(facts["seconds"]),
        "device": facts["device"],
        "device_count": facts["device_count"],
    }


def read_sweep(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of the sweep in ``folder``: sweep (what it is), grid, cells, computations.

    Raises:
        JournalError: there is none, or it cannot be read.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise JournalError(f"expected a sweep in {folder}, got no {MANIFEST} there; name the folder of a sweep")
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise JournalError(f"expected {path} to be a sweep's manifest in format {FORMAT}, got something else")
    return content


def merge_sweeps(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> int:
    """Bring the cells of one sweep, computed in several folders, together in ``out``.

    Running the same sweep there (``sweep(..., out=out)``) reads the finished cells back without computing, and
    computes the others.

    Args:
        folders: folders of sweeps that differ in ``part`` only.
        out: folder of the whole; may be one of them, or hold an earlier merge.

    Returns:
        The number of cells, all of them there.

    Raises:
        JournalError: folders of different sweeps, a cell in use, or cells that are missing or unfinished; each is
            named, and what was there has been copied.
    """
    if not folders:
        raise JournalError("expected the folders of a sweep's parts to merge, got none")
    manifests = [read_sweep(folder) for folder in folders]
    first = manifests[0]
    computations: dict[str, str] = {}
    for folder, other in zip(folders, manifests, strict=True):
        names = (str(folders[0]), str(folder))
        found = [
            *differences(first["sweep"], other["sweep"], names=names),
            *differences({"grid": first["grid"]}, {"grid": other["grid"]}, names=names),
        ]
        if any(computations.get(group, digest) != digest for group, digest in other["computations"].items()):
            found.append(f"the code of the draw in {folder} is another one")
        if found:
            raise JournalError(f"expected parts of one sweep, got different ones ({'; '.join(found)})")
        computations |= other["computations"]
    target = Path(out)
    if (target / MANIFEST).exists() and canonical_json(read_sweep(target)["sweep"]) != canonical_json(first["sweep"]):
        raise JournalError(f"{target} holds another sweep; choose another folder")
    _write(target / MANIFEST, {**first, "computations": computations})
    missing = []
    for name, facts in first["cells"].items():
        homes = [Path(folder) / _CELLS / name for folder in (target, *folders)]
        begun = [home for home in homes if (home / FILE_NAME).is_file()]
        finished = [home for home in begun if (home / _RECORD).is_file()]
        if not finished:
            missing.append(facts["parameters"])
        best = (finished or begun or [homes[0]])[0]
        if best != homes[0] and best.exists():
            _copy(best, homes[0])
    if missing:
        some = "; ".join(missing[:10]) + (f"; and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise JournalError(
            f"{len(missing)} of {len(first['cells'])} cells are missing or unfinished ({some}); the others are in "
            f"{target}: run the same sweep there to compute them, or name the folders that hold them"
        )
    return len(first["cells"])


def _copy(source: Path, target: Path) -> None:
    """Copy a cell; the target is there whole or not at all."""
    # Opening refuses a journal that is in use, and folds its write-ahead log into the file.
    Journal(source, create=False).close()
    _make(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".merge.", dir=target.parent) as scratch:
            whole = Path(shutil.copytree(source, Path(scratch) / target.name))
            if target.exists():
                shutil.rmtree(target)  # an unfinished one: finished cells are never copied over
            os.rename(whole, target)
    except OSError as error:
        raise ResultError(f"could not copy {source} to {target} ({_reason(error)})") from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError(
            f"expected a folder that can be written at {folder}, got {_reason(error)}; choose another folder"
        ) from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise JournalError(f"{path} cannot be read ({error}); restore it, or choose another folder") from None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = (json.dumps(json.loads(canonical_json(content)), indent=1) + "\n").encode()
    _make(path.parent)
    try:
        # Parts of one sweep that start together write the same content: leave what is right alone.
        if not (path.exists() and path.read_bytes() == text):
            write_whole(path, text)
    except OSError as error:
        raise JournalError(
            f"{path} was not written ({_reason(error)}); finished cells are kept: make room and start the same again"
        ) from None


def _reason(error: OSError) -> str:
    return "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
