"""What can go wrong in a run, one class per thing a caller may want to catch."""

from __future__ import annotations


class MonteCarloError(Exception):
    """Base of every error that comes from a run itself; mistakes in arguments are ValueError."""


class JournalError(MonteCarloError):
    """The journal cannot be opened, read or written, or belongs to another run."""


class JournalLockedError(JournalError):
    """Another process is using the journal."""


class HostLostError(MonteCarloError):
    """Another process of a run on several hosts has died; what the journal holds is safe."""


class ResultError(MonteCarloError):
    """The result cannot be written."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C; the message says how many draws are safe and how to go on."""
