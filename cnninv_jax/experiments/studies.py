"""Tables and figures that are more than one Monte-Carlo run: parameters in; report, tables and figure in a folder out.

A `Study` computes its `Findings` inside a folder; Monte-Carlo runs that it starts there keep their journals below it,
so that a killed study goes on where it stood. A finished folder is read, not computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_type_hints

import jax

from cnninv_jax._files import write_whole
from cnninv_jax._progress import Progress, make_reporter
from cnninv_jax._version import __version__
from cnninv_jax.experiments.files import results_folder, save_json, writing
from cnninv_jax.experiments.options import Precision, as_flags, checked_seed
from cnninv_jax.experiments.registry import describe_parameters
from cnninv_jax.experiments.runs import default_folder
from cnninv_jax.montecarlo import ResultError
from cnninv_jax.montecarlo.specification import differences

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

Parameters = TypeVar("Parameters")

#: What a study is, from its first moment; its findings; its arrays.
SPEC, REPORT, ARRAYS = "study.json", "report.json", "result.nc"


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """How a study runs; seed and precision change its numbers, nothing else does."""

    seed: int = 0
    """Seed of all that is random."""
    out: Path | None = None
    """Folder for report.json, result.nc, figure and journals; by default a folder of its own under runs/."""
    precision: Precision = "float32"
    """Arithmetic."""
    quiet: bool = False
    """No progress."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as people read it.

    Attributes:
        title: what it shows.
        columns: headings; the first column names the row.
        rows: cells, ready to be read.
        notes: sentences below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        content: everything, as JSON holds it (arrays become lists).
        tables: what people read of it.
        dataset: larger arrays, labelled.
    """

    content: Mapping[str, Any]
    tables: tuple[Table, ...]
    dataset: xr.Dataset | None = None


@dataclasses.dataclass(frozen=True)
class Study(Generic[Parameters]):
    """A table or figure of a paper that is more than one Monte-Carlo run.

    Attributes:
        name: what the command line calls it.
        title: one line for people.
        source: paper, and figure or table.
        parameters: frozen dataclass whose fields are the flags.
        compute: ``compute(parameters, options, folder)``; its own runs go below the folder.
        figure: ``figure(report, dataset)`` draws the saved report.json and result.nc, and computes nothing.
    """

    name: str
    title: str
    source: str
    parameters: type[Parameters]
    compute: Callable[[Parameters, StudyOptions, Path], Findings]
    figure: Callable[[Mapping[str, Any], Any], Figure]


@dataclasses.dataclass(frozen=True)
class StudyOutcome:
    """A finished study: what report.json holds, and where the files are."""

    report: Mapping[str, Any]
    tables: tuple[Table, ...]
    folder: Path
    files: tuple[Path, ...]


def reproduce_study(study: Study[Any], parameters: Any, options: StudyOptions) -> StudyOutcome:
    """Compute a study into a folder: report.json, result.nc, figure as PNG and SVG.

    A folder that holds the same study is continued; a finished one is only read.

    Raises:
        ValueError: parameters that do not fit.
        MonteCarloError: the folder cannot be used, or holds something else.
    """
    checked_seed(options.seed)
    spec = {
        "command": "study",
        "study": study.name,
        "parameters": _plain(parameters),
        **({"files": files} if (files := _digests(parameters)) else {}),
        "seed": options.seed,
        "precision": options.precision,
    }
    folder = options.out or default_folder(study.name, spec)
    finished = _held(folder, spec)
    if finished is not None:
        return finished
    with results_folder(folder), _claimed(folder, spec):
        began = time.perf_counter()
        try:
            findings = study.compute(parameters, options, folder)
        except ValueError as error:
            raise ValueError(as_flags(str(error))) from None
        provenance = {
            "version": __version__,
            "jax": jax.__version__,
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "seconds": time.perf_counter() - began,
        }
        return _save(study, spec, findings, provenance, folder)


def read_study(folder: Path) -> tuple[str, Mapping[str, Any], StudyOptions]:
    """Return the name, parameters and options of the study that was begun in ``folder``.

    Raises:
        ResultError: there is none, or its description cannot be read.
    """
    spec = _read_spec(folder)
    if spec is None:
        raise ResultError(f"expected a study in {folder}, found no {SPEC}; name a folder of `cnninv reproduce`")
    return spec["study"], spec["parameters"], StudyOptions(spec["seed"], folder, spec["precision"])


def restored(kind: type[Parameters], held: Mapping[str, Any]) -> Parameters:
    """Return parameters from their description in study.json.

    Raises:
        ValueError: this version's parameters have other names.
    """
    hints = get_type_hints(kind)

    def value(name: str) -> Any:
        entry = held[name]
        if isinstance(entry, list):
            return tuple(map(Path, entry)) if Path in get_args(hints[name]) else tuple(entry)
        return Path(entry) if isinstance(entry, str) and Path in (hints[name], *get_args(hints[name])) else entry

    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # a dataclass by contract
    names = {field.name for field in fields}
    # A study that was begun before a parameter was new has its default.
    needed = {field.name for field in fields if "new" not in field.metadata}
    others = (needed - set(held)) | (set(held) - names)
    if others:
        raise ValueError(
            "expected a study that this version of cnninv began, got one with other parameters "
            f"({', '.join(sorted(others))}); finish it with the version that began it, or choose another "
            "folder"
        )
    return kind(**{name: value(name) for name in held})


def is_study(folder: Path) -> bool:
    """Return whether ``folder`` holds a study, finished or not."""
    return (folder / SPEC).is_file()


@dataclasses.dataclass
class ProgressBar:
    """Steps of a study as they are done; see `progress_bar`."""

    _report: Callable[[Progress], None]
    _total: int
    _began: float
    _done: int = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done.

        Args:
            steps: how many.
            note: how well what is estimated is known by now.
        """
        self._done += steps
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        left = elapsed / self._done * (self._total - self._done) if self._done else float("nan")
        stage = "finished" if self._done >= self._total else "running"
        self._report(Progress(stage, self._done, self._total, seconds_left=left, headline=note, unit="steps"))


@contextlib.contextmanager
def progress_bar(name: str, total: int, *, quiet: bool = False) -> Iterator[ProgressBar]:
    """Show how far something is that is no Monte-Carlo run: a bar on a terminal, a line now and then in a log.

    Args:
        name: what is being done.
        total: steps.
        quiet: show nothing.
    """
    reporter = make_reporter(not quiet, name)
    try:
        yield ProgressBar(reporter.report, total, time.perf_counter())
    finally:
        reporter.close()


def _plain(parameters: Any) -> dict[str, Any]:
    """Return parameters as JSON holds them; paths become absolute, so that a folder means the same files later.

    New parameters at their defaults stay out, see `registry.NEW`: studies that began without them are found again.
    """
    held = describe_parameters(parameters)
    plain = json.loads(json.dumps(held, default=lambda path: str(Path(path).absolute())))
    files = {name: str(path.absolute()) for name, path in _files(parameters).items() if name in plain}
    return {**plain, **files}


def _files(parameters: Any) -> dict[str, Path]:
    """Return the files and folders that parameters name: fields that are paths, and those that may be a word too."""
    named = {
        name: Path(value).expanduser()
        for name, value in vars(parameters).items()
        if isinstance(value, Path)
        or (name in ("pictures", "weights", "checkpoint", "cifar") and isinstance(value, str) and value)
    }
    for name, value in vars(parameters).items():
        if isinstance(value, tuple):
            several = [path for path in value if isinstance(path, Path)]
            named |= {f"{name}.{place}": path.expanduser() for place, path in enumerate(several)}
    words = {name for name, path in named.items() if str(path) == "embedded" or ":" in str(path)}
    return {name: path for name, path in named.items() if name not in words}


def _digests(parameters: Any) -> dict[str, str]:
    """Return a digest of every file or folder that a parameter names: a changed file is another study."""
    found = {}
    for name, path in _files(parameters).items():
        try:
            if not path.exists():
                continue
            digest = hashlib.sha256()
            if path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256")
            else:
                for entry in sorted(path.iterdir()):
                    facts = entry.stat()
                    digest.update(f"{entry.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        except (OSError, RuntimeError):  # reading it will say what is wrong
            continue
        found[name] = digest.hexdigest()[:16]
    return found


def _read_spec(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / SPEC).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ResultError(f"{folder / SPEC} cannot be read ({error}); choose another --out") from None


def _held(folder: Path, spec: Mapping[str, Any]) -> StudyOutcome | None:
    """Return what a folder holds if it is this study, finished; refuse a folder that holds another one."""
    held = _read_spec(folder)
    if held is None:
        return None
    if parts := differences(held, spec, names=(str(folder), "this study")):
        raise ResultError(f"another study: {'; '.join(parts)}; ask for the same one, or choose another --out")
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not finished
        return None
    files = [folder / REPORT, folder / ARRAYS, *(folder / f"{spec['study']}.{kind}" for kind in ("png", "svg"))]
    if any(not file.is_file() for file in files if file.name != ARRAYS):
        return None
    tables = tuple(
        Table(held["title"], tuple(held["columns"]), tuple(map(tuple, held["rows"])), tuple(held["notes"]))
        for held in report["tables"]
    )
    return StudyOutcome(report, tables, folder, tuple(file for file in files if file.is_file()))


@contextlib.contextmanager
def _claimed(folder: Path, spec: Mapping[str, Any]) -> Iterator[None]:
    """Write down what the folder is for; take it back if nothing was begun there."""
    note = folder / SPEC
    own = not note.exists()
    with writing(SPEC):
        save_json(spec, note)
    try:
        yield
    except BaseException:
        if own and list(folder.iterdir()) == [note]:
            note.unlink()
        raise


def _save(
    study: Study[Any], spec: Mapping[str, Any], findings: Findings, provenance: Mapping[str, Any], folder: Path
) -> StudyOutcome:
    """Write arrays, figure, and at last the report, which marks the study as finished."""
    import xarray as xr

    from cnninv_jax.experiments.render import save_figure

    files = []
    if findings.dataset is not None:
        with writing(ARRAYS):
            # Serialised in memory first: a full disk under an open HDF5 file can bring the whole process down.
            files.append(write_whole(folder / ARRAYS, findings.dataset.to_netcdf(None, engine="h5netcdf")))
    content = {
        "study": study.name,
        "title": study.title,
        "source": study.source,
        **{name: spec[name] for name in ("parameters", "seed", "precision")},
        "tables": [dataclasses.asdict(table) for table in findings.tables],
        "findings": dict(findings.content),
        "provenance": provenance,
    }
    draft = folder / f".{REPORT}.draft"
    with writing(REPORT):
        save_json(content, draft)
    report = json.loads(draft.read_text(encoding="utf-8"))
    with contextlib.ExitStack() as stack, writing("the figure"):
        arrays = stack.enter_context(xr.open_dataset(files[0], engine="h5netcdf")) if files else None
        pictures = save_figure(study.figure(report, arrays), folder, study.name)
    with writing(REPORT):
        finished = draft.replace(folder / REPORT)
    return StudyOutcome(report, findings.tables, folder, (finished, *files, *pictures))
