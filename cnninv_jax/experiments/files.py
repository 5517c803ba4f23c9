"""Writing results: whole files or none, and one sentence when the disk says no."""

from __future__ import annotations

import contextlib
import errno
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnninv_jax._files import write_whole
from cnninv_jax.experiments.cluster import all_hosts
from cnninv_jax.montecarlo import MonteCarloError, ResultError
from cnninv_jax.montecarlo.journal import FILE_NAME, Journal


def make_folder(folder: Path) -> Path:
    """Create a folder for results, or say why it cannot be one.

    Raises:
        ResultError: there is a file in its place, or no permission, or no space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Asking the folder itself: a read-only mount and root's missing limits both show only when writing.
        with tempfile.NamedTemporaryFile(prefix=".probe.", dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        file = next(place for place in (folder, *folder.parents) if place.exists())
        raise ResultError(f"expected --out to be a folder, got the file {file}; choose another place") from None
    except OSError as error:
        raise ResultError(f"cannot write into {folder} ({_reason(error)}); choose another place with --out") from None
    return folder


@contextlib.contextmanager
def results_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for results; a run that fails before it has begun leaves nothing behind.

    With several processes it is the leader's folder; the others need no disk.

    Raises:
        ResultError: the folder cannot be used, see `make_folder`.
    """
    hosts = all_hosts()
    if not hosts.leads:
        hosts.share(str)  # hears whether the leader could make the folder
        yield folder
        return
    journal = folder / FILE_NAME
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    own = not journal.exists()
    try:
        hosts.share(lambda: str(make_folder(folder)))
        yield folder
    except BaseException:
        if own and _holds_nothing(folder):
            for suffix in ("", "-wal", "-shm"):
                journal.with_name(FILE_NAME + suffix).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: what is in there stays
            for place in made:
                place.rmdir()
        raise


def _holds_nothing(folder: Path) -> bool:
    try:
        with Journal(folder, create=False) as journal:
            return journal.spec is None
    except (MonteCarloError, OSError):
        return False


@contextlib.contextmanager
def writing(what: str, kept: str = "the draws are safe in the journal") -> Iterator[None]:
    """Turn an OSError while writing ``what`` into one sentence, which also says what was kept.

    Raises:
        ResultError: naming what was not written.
    """
    try:
        yield
    except OSError as error:
        raise ResultError(
            f"{what} was not written ({_reason(error)}); {kept}: make room and start the same command again"
        ) from None


def save_json(content: Mapping[str, Any], path: Path) -> Path:
    """Write JSON in one piece, readable by strict parsers: what is not finite becomes null."""
    text = json.dumps(_strict(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_whole(path, text.encode())


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return "the disk is full"
    return error.strerror or str(error)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if hasattr(value, "tolist"):
        return _strict(value.tolist())
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
