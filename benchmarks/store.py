"""Results on disk, one folder per device, and what has changed since the last ones."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"
#: Changes of less than this are not called one, however quiet the repeats were: between two sessions a machine drifts.
LEAST_CHANGE = 0.05


def describe_device() -> dict[str, Any]:
    """Return what the numbers were measured on; no host name."""
    device = jax.local_devices()[0]
    count = jax.local_device_count()
    kind = device.device_kind
    if device.platform == "cpu":
        kind = _cpu_model()
    return {"platform": device.platform, "kind": kind, "count": count, "name": f"{count} x {kind} ({device.platform})"}


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "cpu"


def slug(device: Mapping[str, Any]) -> str:
    """Return the name of a device's folder: "cpu-amd-epyc-x2"."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{device['platform']} {device['kind']}".lower()).strip("-")
    parts = words.split("-")
    # "gpu nvidia h200", but "tpu v5" rather than "tpu tpu v5".
    words = "-".join(part for at, part in enumerate(parts) if at == 0 or part != parts[at - 1])
    return f"{words}-x{device['count']}"


def versions() -> dict[str, str]:
    """Return the versions that a speed depends on."""
    names = ("jax", "jaxlib", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def as_text(value: Any, indent: str = "") -> str:
    """Return JSON with one line for whatever holds nothing nested: short files, and differences that can be read."""
    nested = (dict, list)
    if isinstance(value, dict) and any(isinstance(item, nested) for item in value.values()):
        lines = [f"{indent} {json.dumps(str(key))}: {as_text(item, indent + ' ')}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, nested) for item in value):
        return "[\n" + ",\n".join(f"{indent} {json.dumps(item)}" for item in value) + f"\n{indent}]"
    return json.dumps(value)


def write(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as a file of its own."""
    from cnninv_jax._files import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (as_text(dict(record)) + "\n").encode())


def save(record: Mapping[str, Any], root: Path = RESULTS, *, now: datetime.datetime | None = None) -> Path:
    """Write a record as <root>/<device>/<date-time>.json, and again as latest.json."""
    moment = now or datetime.datetime.now(datetime.UTC)
    folder = root / slug(record["device"])
    path = folder / f"{moment:%Y%m%dT%H%M%S}.json"
    for target in (path, folder / "latest.json"):
        write({**record, "date": moment.isoformat(timespec="seconds")}, target)
    return path


def last(device: Mapping[str, Any], root: Path = RESULTS) -> dict[str, Any] | None:
    """Return the last stored record of a device, or None.

    Raises:
        ValueError: the file is there but holds no record.
    """
    path = root / slug(device) / "latest.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if not isinstance(record.get("rows"), list):
            raise ValueError("no rows")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"expected a stored benchmark in {path}, got a file that cannot be read ({error}); delete it"
        ) from None
    return record


@dataclasses.dataclass(frozen=True)
class Change:
    """A workload's rate against an earlier one.

    Attributes:
        ratio: new median rate over old.
        spread: relative width of the repeats of both, what a change must exceed.
        verdict: "faster", "slower" or "same".
    """

    ratio: float
    spread: float
    verdict: str

    def __str__(self) -> str:
        if self.verdict == "same":
            return f"same ({100 * (self.ratio - 1):+.0f}%, spread {100 * self.spread:.0f}%)"
        return f"{self.verdict} x{self.ratio:.2f}"


def change(new: Sequence[float], old: Sequence[float]) -> Change | None:
    """Compare rates of repeats: a change has to clear both runs' ranges and `LEAST_CHANGE`.

    Args:
        new: rates of the repeats of this run.
        old: and of the earlier one.

    Returns:
        The change; None where either is empty or holds no positive rates.
    """
    if not new or not old or min(new) <= 0 or min(old) <= 0 or not all(map(math.isfinite, (*new, *old))):
        return None
    middle = [sorted(rates)[len(rates) // 2] for rates in (new, old)]
    ratio = middle[0] / middle[1]
    spread = max(max(rates) / min(rates) - 1 for rates in (new, old))
    verdict = "same"
    if ratio > 1 + LEAST_CHANGE and min(new) > max(old):
        verdict = "faster"
    elif ratio < 1 / (1 + LEAST_CHANGE) and max(new) < min(old):
        verdict = "slower"
    return Change(ratio, spread, verdict)


def compare(rows: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any] | None) -> dict[tuple[str, str], Change]:
    """Return the change of every row that the earlier record also has, by workload and size."""
    if earlier is None:
        return {}
    held = {(row["workload"], row["size"]): row.get("rates", []) for row in earlier["rows"]}
    found = {}
    for row in rows:
        key = (row["workload"], row["size"])
        result = change(row.get("rates", []), held.get(key, []))
        if result is not None:
            found[key] = result
    return found


def engineering(value: float) -> str:
    """Return three significant digits with a unit prefix: 1.23e9 is "1.23 G"."""
    if not math.isfinite(value) or value <= 0:
        return "-"
    power = min(4, max(-3, math.floor(math.log10(value) / 3 + 1e-12)))
    number = value / 1000.0**power
    if number >= 999.5 and power < 4:
        power, number = power + 1, number / 1000
    prefix = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}[power]
    return f"{number:.3g} {prefix}" if number < 999.5 else f"{number:,.0f} {prefix}"


def percent(fraction: float) -> str:
    """Return a share with two digits below ten percent and none above."""
    return f"{100 * fraction:.0f}%" if fraction > 0.0995 else f"{100 * fraction:.2g}%"
