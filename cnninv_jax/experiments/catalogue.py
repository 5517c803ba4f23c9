"""The studies by name."""

from __future__ import annotations

from typing import Any

from cnninv_jax.experiments.studies import Study


def studies() -> dict[str, Study[Any]]:
    """Return the studies by name."""
    return {study.name: study for study in ()}


def find_study(name: str) -> Study[Any]:
    """Return one study.

    Raises:
        ValueError: this version knows no study of that name.
    """
    known = studies()
    if name not in known:
        raise ValueError(f"expected a study out of {', '.join(known)}, got {name!r}; use the version that began it")
    return known[name]
