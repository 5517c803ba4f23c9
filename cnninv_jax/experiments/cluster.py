"""Joining the other processes of a run on several hosts: SLURM, a TPU pod, MPI, or addresses given by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator

import jax

from cnninv_jax.montecarlo import HostLostError
from cnninv_jax.montecarlo.arguments import as_mesh
from cnninv_jax.montecarlo.hosts import Hosts

#: Seconds after which a silent process counts as lost, and that the last ones wait for each other at the end.
HEARTBEAT_SECONDS, SHUTDOWN_SECONDS = 60, 60


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """Which processes make up a run; every one of them is started with the same command."""

    distributed: bool = False
    """Join the other processes of this job; their addresses come from SLURM, Open MPI, Kubernetes or the TPU pod."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no cluster says it; with --num-processes and --process-id."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""


def _checked(options: ClusterOptions) -> bool:
    """Return whether there is a cluster to join; refuse half an address."""
    by_hand = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and all(entry is None for entry in by_hand):
        return False
    if any(entry is None for entry in by_hand) and not all(entry is None for entry in by_hand):
        raise ValueError(
            "expected --coordinator, --num-processes and --process-id together, or --distributed alone on a cluster "
            "that knows them"
        )
    if options.coordinator is not None:
        assert options.num_processes is not None
        assert options.process_id is not None
        host, _, port = options.coordinator.rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 2**16):
            raise ValueError(f"expected --coordinator HOST:PORT, such as 10.0.0.1:1234, got {options.coordinator!r}")
        if not 0 <= options.process_id < options.num_processes:
            raise ValueError(
                f"expected --process-id from 0 to {options.num_processes - 1}, got {options.process_id} "
                f"of {options.num_processes} processes"
            )
    return True


@contextlib.contextmanager
def joined(options: ClusterOptions) -> Iterator[None]:
    """Run the body as one process of the cluster; must be entered before JAX touches a device.

    A lost process ends this one at once with status 2: JAX's runtime would wait for the lost one, and then abort.

    Raises:
        ValueError: addresses that are incomplete, or no cluster that knows them.
    """
    if not _checked(options):
        yield
        return
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError:
        raise ValueError(
            "expected --distributed on a cluster that says who takes part (SLURM, Open MPI, Kubernetes, a TPU pod), "
            "found none; name --coordinator HOST:PORT, --num-processes and --process-id"
        ) from None
    except RuntimeError as error:
        raise ValueError(
            f"could not join the other processes at {options.coordinator or 'the address the cluster names'} "
            f"({str(error).splitlines()[0]}); check that all of them were started and can reach it"
        ) from None
    try:
        yield
    except HostLostError as error:
        print(f"cnninv: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        os._exit(2)


def all_hosts() -> Hosts:
    """Return the processes of this job: one, or those that were joined."""
    return Hosts.of(as_mesh(None))


def leads() -> bool:
    """Whether this process prints and writes."""
    return all_hosts().leads
