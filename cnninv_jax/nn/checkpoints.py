"""Checkpoints of a training: whole or absent, checked when read, the newest sound one taken.

Orbax writes the arrays. Beside each of its folders stands a seal, a small JSON file with the digests of everything in
it, written last: a folder without its seal was never finished, and one whose bytes have changed since is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from cnninv_jax._files import write_whole

State = TypeVar("State")

#: What a training is, from its first moment.
SPEC = "training.json"
_PREFIX, _SEAL = "step_", ".seal.json"


class CheckpointError(ValueError):
    """A folder of checkpoints cannot be used; the message is one sentence."""


class Checkpoints:
    """The checkpoints of one training in one folder; see `open_checkpoints`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep
        #: What was found wrong on the way, one sentence each.
        self.complaints: list[str] = []

    def save(self, step: int, state: Any, facts: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint, and remove all but the newest few.

        Args:
            step: steps taken so far.
            state: pytree of arrays.
            facts: JSON kept in the seal.

        Raises:
            CheckpointError: it cannot be written; earlier ones stay.
        """
        place = self.folder / f"{_PREFIX}{step:09d}"
        seal = place.with_name(place.name + _SEAL)
        try:
            seal.unlink(missing_ok=True)
            with _quiet(), _checkpointer() as checkpointer:
                checkpointer.save(place.absolute(), state, force=True)
                checkpointer.wait_until_finished()
            content = {"step": step, "digests": _digests(place), "facts": dict(facts or {})}
            write_whole(seal, json.dumps(content).encode())
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {step} was not written into {str(self.folder)!r} "
                f"({error.strerror or error}); earlier ones are safe: make room and start the same training again"
            ) from error
        for old in self._steps()[self._keep :]:
            self._remove(old)

    def restore(self, template: State) -> tuple[int, State, Mapping[str, Any]] | None:
        """Return step, state and facts of the newest sound checkpoint, or None where there is none.

        Damaged ones are passed over and named in `complaints`; they stay on the disk.

        Args:
            template: pytree whose structure, shapes and dtypes the state has.
        """
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), template)
        wrong: list[str] = []
        for step in self._steps():
            place = self.folder / f"{_PREFIX}{step:09d}"
            try:
                seal = json.loads(place.with_name(place.name + _SEAL).read_text(encoding="utf-8"))
                changed = _changed(seal["digests"], _digests(place))
                if changed:
                    raise ValueError(changed)
                with _quiet(), _checkpointer() as checkpointer:
                    # The digests have vouched for the bytes; the shapes are the training's own.
                    state = checkpointer.restore(place.absolute(), shapes)
                self.complaints += [f"{words}; the one of step {step} is used" for words in wrong]
                return step, state, seal["facts"]
            except Exception as error:  # tensorstore, orbax and json have a family of errors each
                wrong.append(f"the checkpoint of step {step} in {str(self.folder)!r} is damaged ({_brief(error)})")
        self.complaints += [f"{words}; there is no other one, so it begins anew" for words in wrong]
        return None

    def _steps(self) -> list[int]:
        """Return the steps of sealed checkpoints, newest first."""
        found = []
        for seal in self.folder.glob(f"{_PREFIX}*{_SEAL}"):
            text = seal.name.removeprefix(_PREFIX).removesuffix(_SEAL)
            if text.isdecimal():
                found.append(int(text))
        return sorted(found, reverse=True)

    def _remove(self, step: int) -> None:
        place = self.folder / f"{_PREFIX}{step:09d}"
        place.with_name(place.name + _SEAL).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)


def open_checkpoints(folder: Path, spec: Mapping[str, Any], *, keep: int = 2) -> Checkpoints:
    """Return the checkpoints of a training, its folder made if it is not there.

    Args:
        folder: where they are; one training each.
        spec: what the training is, JSON; a folder that was begun by another one is refused.
        keep: how many of the newest stay; at least 2, so that a damaged one has a predecessor.

    Raises:
        CheckpointError: the folder belongs to another training, or cannot be used.
    """
    if keep < 2:
        raise ValueError(f"expected at least 2 checkpoints to be kept, got {keep}: one may be damaged")
    this = json.loads(json.dumps(spec))
    note = folder / SPEC
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = json.loads(note.read_text(encoding="utf-8")) if note.exists() else None
        if held is None:
            write_whole(note, json.dumps(this, indent=2).encode())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"expected a folder for checkpoints, and {str(folder)!r} cannot be used ({_brief(error)}); choose another"
        ) from error
    if held is not None and held != this:
        names = sorted(name for name in {*held, *this} if held.get(name) != this.get(name))
        shown = "; ".join(f"{name} {_short(held.get(name))} there, {_short(this.get(name))} here" for name in names)
        raise CheckpointError(
            f"{str(folder)!r} holds another training ({shown}); ask for the same one, or choose another folder"
        )
    return Checkpoints(folder, keep)


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    import orbax.checkpoint as ocp

    checkpointer = ocp.StandardCheckpointer()
    try:
        yield checkpointer
    finally:
        checkpointer.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep orbax from telling every step of its work; what goes wrong it raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _digests(place: Path) -> dict[str, str]:
    """Return a digest of every file below a folder, by its path there."""
    found = {}
    for file in sorted(place.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                found[file.relative_to(place).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _changed(sealed: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return what differs from the seal, or an empty string."""
    for name, digest in sealed.items():
        if name not in found:
            return f"its file {name} is missing"
        if found[name] != digest:
            return f"its file {name} has changed since it was written"
    return ""


def _brief(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = ["CheckpointError", "Checkpoints", "open_checkpoints"]
