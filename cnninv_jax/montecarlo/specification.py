"""What makes two runs the same run: the specification and the fingerprint of a draw's computation."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from cnninv_jax._version import __version__

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+|0x[0-9a-fA-F]{6,}")


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces; raises ValueError for what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True, default=_plain)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"expected a specification of plain numbers, strings, lists and dicts, got {error}") from None


def _plain(value: Any) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"a {type(value).__name__}")


def sha256(text: str | bytes) -> str:
    """Return the hexadecimal SHA-256 of ``text``."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def array_digest(arrays: Sequence[Any]) -> str:
    """Return a hash of the arrays' dtypes, shapes and bytes; typed keys count by their key data."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.dtype).encode())
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        host = np.asarray(array)
        digest.update(repr(host.shape).encode())
        digest.update(np.ascontiguousarray(host).astype(host.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def computation_digest(closed: ClosedJaxpr) -> str:
    """Return a hash of a traced computation.

    Counted are its equations, their parameters, literals and captured constants.     Variables count by their
    position and functions without their addresses, so that another process which traces the same function
    gets the same hash.
    """
    return _closed_digest(closed, {})


def _closed_digest(closed: ClosedJaxpr, seen: dict[int, str]) -> str:
    return sha256(_jaxpr_digest(closed.jaxpr, seen) + array_digest([_array(c) for c in closed.consts]))


def _array(value: Any) -> Any:
    return value if hasattr(value, "dtype") else np.asarray(value)


def _jaxpr_digest(jaxpr: Jaxpr, seen: dict[int, str]) -> str:
    if id(jaxpr) in seen:
        return seen[id(jaxpr)]
    numbers: dict[Any, int] = {}

    def atom(variable: Any) -> str:
        if isinstance(variable, Literal):
            return f"{variable.aval}={_parameter(variable.val, seen)}"
        return f"{numbers.setdefault(variable, len(numbers))}:{variable.aval}"

    digest = hashlib.sha256()
    digest.update(repr([[atom(v) for v in group] for group in (jaxpr.constvars, jaxpr.invars)]).encode())
    for equation in jaxpr.eqns:
        parameters = {name: _parameter(value, seen) for name, value in sorted(equation.params.items())}
        line = [
            equation.primitive.name,
            [atom(v) for v in equation.invars],
            parameters,
            [atom(v) for v in equation.outvars],
        ]
        digest.update(repr(line).encode())
    digest.update(repr([atom(v) for v in jaxpr.outvars]).encode())
    seen[id(jaxpr)] = digest.hexdigest()
    return seen[id(jaxpr)]


def _parameter(value: Any, seen: dict[int, str]) -> str:
    if isinstance(value, ClosedJaxpr):
        return _closed_digest(value, seen)
    if isinstance(value, Jaxpr):
        return _jaxpr_digest(value, seen)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return array_digest([value])
    if isinstance(value, (frozenset, set)):
        return repr(sorted(_parameter(item, seen) for item in value))
    if isinstance(value, Mapping):
        return repr(sorted((str(key), _parameter(item, seen)) for key, item in value.items()))
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return repr([_parameter(item, seen) for item in value])
    return _ADDRESS.sub("", repr(value))


def setting(name: str) -> Any:
    """Return one of JAX's settings."""
    return getattr(jax.config, f"jax_{name}")


def environment(device: jax.Device) -> dict[str, object]:
    """Return the part of a specification that comes from the machine and JAX's settings, not from the user.

    The number of devices is left out: it does not change the numbers.
    """
    return {
        "package": __version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "device": f"{device.platform}: {device.device_kind}",
        "x64": setting("enable_x64"),
        "matmul_precision": setting("default_matmul_precision"),
        "threefry_partitionable": setting("threefry_partitionable"),
    }


def differences(
    journal: Mapping[str, Any],
    this: Mapping[str, Any],
    prefix: str = "",
    names: tuple[str, str] = ("journal", "this run"),
) -> list[str]:
    """Return one phrase per entry in which two specifications differ, both values named."""
    phrases = []
    for key in sorted({*journal, *this}):
        old, new = (spec.get(key, "nothing") for spec in (journal, this))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            phrases += differences(old, new, f"{prefix}{key}.", names)
        elif prefix + key == "draw.computation":
            if old != new:
                was = "the one the journal was begun with" if names[0] == "journal" else f"that of {names[0]}"
                phrases.append(f"draw.computation: the code of the draw is not {was}")
        elif canonical_json(old) != canonical_json(new):
            verb = "asks" if names[1] == "this run" else "has"
            phrases.append(f"{prefix}{key}: {names[0]} has {_shown(old)}, {names[1]} {verb} {_shown(new)}")
    return phrases


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
