"""What can go wrong when files are read, and how the sentence about it is put together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Signs that a message repeats raw bytes or a half-parsed header.
_GARBLED = ("\\x", "{'", "<ast", "((", "b'", 'b"')


class FilterFileError(ValueError):
    """A filter file cannot be used; the message is one sentence: what was expected, what came, what to do."""


class PictureError(ValueError):
    """Pictures cannot be used; the message is one sentence."""


class CifarError(ValueError):
    """A data set for classifiers cannot be used; the message is one sentence."""


class EnsembleError(ValueError):
    """The text that names a random filter ensemble cannot be understood."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known names nearest to ``word``, or an empty string."""
    known = list(known)
    lowered = word.lower()
    same = [name for name in known if name.lower() == lowered]
    # A tensor is often asked for by the last part of its path.
    tail = [name for name in known if lowered and name.lower().endswith(("/" + lowered, "." + lowered))]
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    near = list(dict.fromkeys(same or tail[:3] or close))
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def brief(error: BaseException) -> str:
    """Take the first line of another library's complaint, unless it quotes the damaged bytes themselves."""
    lines = str(error).splitlines() or [""]
    text = lines[0].strip("\"' .;:")
    if not text or not text.isascii() or not text.isprintable() or any(mark in text for mark in _GARBLED):
        return f"garbled content, {type(error).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."
