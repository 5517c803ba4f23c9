"""``cnninv list | reproduce | resume | merge | ...``: short, and every refusal is one sentence and exit status 2."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from cnninv_jax._version import __version__
from cnninv_jax.experiments.analysis import AnalysisOptions, analyze
from cnninv_jax.experiments.catalogue import find_study, studies
from cnninv_jax.experiments.cluster import ClusterOptions, joined, leads
from cnninv_jax.experiments.failure import FailureOptions, FailureParameters, failure
from cnninv_jax.experiments.options import RunOptions
from cnninv_jax.experiments.registry import Experiment, experiments
from cnninv_jax.experiments.runs import Outcome, join_parts, precision_of, reproduce, resume
from cnninv_jax.experiments.studies import Study, StudyOptions, is_study, read_study, reproduce_study, restored
from cnninv_jax.experiments.sweeps import (
    SweepOptions,
    SweepOutcome,
    is_sweep,
    join_sweeps,
    resume_sweep,
    sweep_experiment,
    sweep_precision,
)
from cnninv_jax.montecarlo import Interrupted, MonteCarloError

#: Exit statuses: bad input, and stopped by Ctrl-C or a termination request.
REFUSED, STOPPED = 2, 130
#: What `cnninv analyze` shows when no filters are named: those of Gilbert et al. 2017, Fig. 2.
DEFAULT_FILTERS = "gaussian:K=96,M=32,ell=5"
#: Where the headline of tyro's complaints ends and its help begins.
_AFTER_THE_POINT = re.compile(
    r" (?:Perhaps you meant|Similar|Available subcommands|For full helptext|Argument helptext)"
)
_DESCRIPTION = "When can a CNN's input be recovered from its activations?"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    with _polite_termination():
        try:
            _parse(arguments)()
        except Interrupted as stop:
            return _say(str(stop), STOPPED)
        except KeyboardInterrupt:
            return _say("stopped; what a journal holds is safe, start the same command again", STOPPED)
        except BrokenPipeError:
            # `cnninv list | head`: the reader has left, which is no failure of ours.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (ValueError, MonteCarloError, OSError) as error:
            return _say(f"error: {error}", REFUSED)
    return 0


def _parse(arguments: Sequence[str] | None) -> Callable[[], None]:
    """Return what was asked for, ready to be called; what cannot be understood becomes one sentence."""
    if list(sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        return lambda: print(f"cnninv {__version__}")
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            return _application().cli(
                prog="cnninv", description=_DESCRIPTION, args=arguments, config=(tyro.conf.OmitArgPrefixes,)
            )
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise ValueError(_sentence(heard.getvalue())) from None


def _sentence(box: str) -> str:
    """Return the point of tyro's boxed, many-lined complaint, with the word that was probably meant."""
    lines = [line.strip("│ ") for line in box.strip().splitlines()]
    # The first line is a title. Where standard output is no UTF-8, the rules are of hyphens.
    text = " ".join(line for line in lines[1:] if line.strip("╰╯─-"))
    see = (re.findall(r"cnninv[a-z0-9 -]* --help", text) or ["cnninv --help"])[-1]
    unread = re.search(r"Error parsing (--[\w-]+): .*?(?:base 10: |to float: |from \[)('[^']*')", text)
    if unread:
        flag, value = unread.groups()
        kind = re.search(rf"{flag} (?:{{None}}\|)?(INT|FLOAT)\b", text)
        wanted = {"INT": "a whole number", "FLOAT": "a number"}[kind[1]] if kind else "something else"
        return f"expected {flag} to be {wanted}, got {value}; see {see}"
    point, *rest = _AFTER_THE_POINT.split(text)
    point = (point[:1].lower() + point[1:]).replace(". Expected", ", expected").strip(" .")
    commands = re.search(r"Available subcommands: ([\w, -]+?) For", text)
    choices = re.search(r"xpected one of \((.*?)\)", point)
    if commands or choices:
        known = re.findall(r"[\w-]+", (commands or choices)[1])  # type: ignore[index]  # one of them is there
    else:
        known = [flag for flag in re.findall(r"--[a-zA-Z][\w-]*", " ".join(rest)) if flag != "--help"]
    wrong = re.search(r"options: (\S+?)(?:,|$)|choice '(.*?)'", point)
    close = difflib.get_close_matches(wrong[1] or wrong[2], known, n=1) if wrong else []
    hint = f" (did you mean {close[0]}?)" if close else ""
    there = f"; there are: {commands[1]}" if commands else ""
    return f"{point}{hint}{there}; see {see}"


def _application() -> tyro.extras.SubcommandApp:
    reproduction, sweeps = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()
    for experiment in experiments().values():
        about = f"{experiment.source}: {experiment.title}."
        reproduction.command(name=experiment.name, help=about)(_reproduce(experiment))
        sweeps.command(name=experiment.name, help=about)(_sweep(experiment))
    for study in studies().values():
        reproduction.command(name=study.name, help=f"{study.source}: {study.title}.")(_reproduce_study(study))
    app = tyro.extras.SubcommandApp()
    app.command(name="list")(_list)
    app.command(reproduction, name="reproduce", help="Run a paper's figure or table: numbers, table, picture.")
    app.command(sweeps, name="sweep", help="Run a figure over a grid of its parameters: one dataset, table, picture.")
    app.command(name="resume")(_resume)
    app.command(name="merge")(_merge)
    app.command(name="analyze")(_analyze)
    app.command(name="failure")(_failure)
    return app


def _list() -> Callable[[], None]:
    """Show what can be reproduced."""

    def work() -> None:
        from cnninv_jax.experiments.tables import print_experiments

        print_experiments(experiments().values(), studies().values())

    return work


def _reproduce(experiment: Experiment[Any]) -> Callable[..., Callable[[], None]]:
    def command(parameters: Any, options: RunOptions, cluster: ClusterOptions) -> Callable[[], None]:
        def work() -> None:
            _configure(options.precision)
            with joined(cluster):
                _show(reproduce(experiment, parameters, options))

        return work

    # The experiment's own dataclass becomes the flags.
    command.__annotations__ = {
        "parameters": experiment.parameters,
        "options": RunOptions,
        "cluster": ClusterOptions,
        "return": Callable[[], None],
    }
    return command


def _reproduce_study(study: Study[Any]) -> Callable[..., Callable[[], None]]:
    def command(parameters: Any, options: StudyOptions) -> Callable[[], None]:
        return lambda: _study(study, parameters, options)

    command.__annotations__ = {
        "parameters": study.parameters,
        "options": StudyOptions,
        "return": Callable[[], None],
    }
    return command


def _study(study: Study[Any], parameters: Any, options: StudyOptions) -> None:
    from cnninv_jax.experiments.study_table import print_study

    _configure(options.precision)
    print_study(reproduce_study(study, parameters, options))


def _sweep(experiment: Experiment[Any]) -> Callable[..., Callable[[], None]]:
    def command(over: Any, parameters: Any, options: SweepOptions, cluster: ClusterOptions) -> Callable[[], None]:
        def work() -> None:
            _configure(options.precision)
            with joined(cluster):
                _show(sweep_experiment(experiment, parameters, over, options))

        return work

    command.__doc__ = """Sweep.

    Args:
        over: NAME=VALUES, such as k=2,5,10 or k=2:20:2 (stop included); again for another parameter.
        parameters: What is not swept.
        options: How.
        cluster: The processes.
    """
    command.__annotations__ = {
        "over": tyro.conf.UseAppendAction[tuple[str, ...]],
        "parameters": experiment.parameters,
        "options": SweepOptions,
        "cluster": ClusterOptions,
        "return": Callable[[], None],
    }
    return command


def _show(outcome: Outcome | SweepOutcome) -> None:
    from cnninv_jax.experiments.sweep_table import print_sweep
    from cnninv_jax.experiments.tables import print_outcome

    if not leads():
        return
    if isinstance(outcome, SweepOutcome):
        print_sweep(outcome)
    else:
        print_outcome(outcome)


def _resume(cluster: ClusterOptions, folder: tyro.conf.Positional[Path], quiet: bool = False) -> Callable[[], None]:
    """Continue a run that was stopped or killed; it ends on the numbers of the uninterrupted run, bit for bit.

    Args:
        cluster: The processes.
        folder: Folder of the run.
        quiet: No progress.
    """

    def work() -> None:
        _configure()
        with joined(cluster):
            _continue(folder, quiet)

    return work


def _merge(folders: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> Callable[[], None]:
    """Join the parts of a run (--part i/N) to the numbers of the undivided run, bit for bit; show and save them.

    Args:
        folders: The parts' folders, or the one folder that holds them.
        out: Folder of the whole run; by default the one that holds the parts.
    """

    def work() -> None:
        _configure()
        join = join_sweeps if any(is_sweep(folder) for folder in folders) else join_parts
        _continue(join(folders, out))

    return work


def _continue(folder: Path, quiet: bool = False) -> None:
    """Continue, or read back, the run or sweep in a folder."""
    if is_study(folder):
        name, parameters, options = read_study(folder)
        study = find_study(name)
        _study(study, restored(study.parameters, parameters), dataclasses.replace(options, quiet=quiet))
    elif is_sweep(folder):
        _configure(sweep_precision(folder))
        _show(resume_sweep(folder, quiet=quiet))
    else:
        _configure(precision_of(folder))
        _show(resume(folder, quiet=quiet))


def _analyze(options: AnalysisOptions, filters: tyro.conf.Positional[str] = DEFAULT_FILTERS) -> Callable[[], None]:
    """Report on filters: one bank (norms, coherence, frame bounds, model-RIP, errors), or a network, a row a layer.

    Args:
        options: How.
        filters: File (.npy, .npz, .safetensors, .h5, .caffemodel), a random ensemble, or fetch:vgg16. A file with
            several convolutions is walked layer by layer, unless --tensor names one.
    """

    def work() -> None:
        from cnninv_jax.experiments.checkpoint import CHECKPOINT, as_checkpoint
        from cnninv_jax.experiments.tables import print_report

        network = as_checkpoint(filters, options)
        if network is not None:
            _study(CHECKPOINT, *network)
            return
        _configure(options.precision)
        print_report(analyze(filters, options))

    return work


def _failure(parameters: FailureParameters, options: FailureOptions) -> Callable[[], None]:
    """Estimate how often eq. (1) of Gilbert et al. 2017 fails, far below 1e-6, and hold it against the closed form."""

    def work() -> None:
        from cnninv_jax.experiments.failure_table import print_failure

        _configure(options.precision)
        print_failure(failure(parameters, options))

    return work


def _configure(precision: str = "float32") -> None:
    """Choose widths and devices before JAX starts; on a CPU, one device per core: no thread waits for another."""
    if precision == "float64":
        jax.config.update("jax_enable_x64", True)
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # the backend runs already: a notebook or a test called `main`
            jax.config.update("jax_num_cpu_devices", cores)


def _say(message: str, status: int) -> int:
    print(f"cnninv: {' '.join(message.split())}", file=sys.stderr)
    return status


@contextlib.contextmanager
def _polite_termination() -> Iterator[None]:
    """Let a scheduler's SIGTERM flush the journal as Ctrl-C does, also where SIGINT is ignored (a job begun with &)."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
