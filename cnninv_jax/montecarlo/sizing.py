"""How many draws a block and a slice hold: the defaults, the journal's word, and the memory that is there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.hosts import Hosts
from cnninv_jax.montecarlo.program import BlockProgram, Plan, Signature, compile_blocks

#: Draws per block and per slice where the user names none, by platform.
DEFAULT_SIZES = {"cpu": (1024, 128), "accelerator": (32768, 2048)}
#: Share of an accelerator's memory a run may take unless told otherwise.
MEMORY_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Draws per block and per slice, and which of the two may still change."""

    block: int
    lanes: int
    block_given: bool
    lanes_given: bool


def choose_sizes(
    chunk_size: int | None, lanes: int | None, num_draws: int, platform: str, held: Mapping[str, Any]
) -> Sizes:
    """Return block and lanes from the arguments, the journal's specification ``held`` and the defaults."""
    default_block, default_lanes = DEFAULT_SIZES.get(platform, DEFAULT_SIZES["accelerator"])
    if lanes is not None:
        lanes = positive(lanes, "lanes", 1 << 30)
        if lanes & (lanes - 1):
            raise ValueError(f"expected lanes to be a power of two, got {lanes}; take {1 << (lanes.bit_length() - 1)}")
    # What the user leaves open is read from the journal: a resumed run must not depend on today's defaults.
    if chunk_size is not None:
        block = positive(chunk_size, "chunk_size", 1 << 30)
    else:
        block = int(held.get("block", max(default_block, lanes or 1)))
    if lanes is not None and lanes > block:
        raise ValueError(
            f"expected lanes of at most one block of {block} draws, got {lanes}; raise chunk_size or lower lanes"
        )
    if lanes is None:
        # No more lanes than draws: a run of ten expensive draws must not compute 128.
        chosen = min(default_lanes, 1 << (min(block, num_draws).bit_length() - 1))
        resumed = held.get("lanes") if held.get("block") == block else None
        return Sizes(block, int(resumed or chosen), chunk_size is not None or bool(held), resumed is not None)
    return Sizes(block, lanes, chunk_size is not None or bool(held), True)


def fit(
    signature: Signature, plan: Plan, mesh: Mesh, sizes: Sizes, memory_limit: int | None
) -> tuple[Sizes, BlockProgram]:
    """Halve lanes, then the block, until the compiled program fits into memory; sizes the user gave stay."""
    limit = _default_memory_limit(mesh.devices.flat[0]) if memory_limit is None else int(memory_limit)
    while True:
        program = compile_blocks(signature, plan, sizes.block, sizes.lanes, mesh)
        if limit is None or program.resident_bytes <= limit:
            return sizes, program
        fixed = program.argument_bytes + program.output_bytes
        if not sizes.lanes_given and sizes.lanes > 1 and fixed <= limit:
            sizes = dataclasses.replace(sizes, lanes=sizes.lanes // 2)
        elif not sizes.block_given and sizes.block > 1:
            block = sizes.block // 2
            if sizes.lanes > block and sizes.lanes_given:
                raise ValueError(_too_large(program, limit, sizes))
            sizes = dataclasses.replace(sizes, block=block, lanes=min(sizes.lanes, block))
        else:
            raise ValueError(_too_large(program, limit, sizes))


def agree_on_sizes(
    signature: Signature, plan: Plan, hosts: Hosts, sizes: Sizes, memory_limit: int | None
) -> tuple[Sizes, BlockProgram]:
    """Return sizes that fit into the memory of every process, and the program of that size."""
    fitted: list[tuple[Sizes, BlockProgram]] = []

    def work() -> list[int]:
        fitted.append(fit(signature, plan, hosts.mesh, sizes, memory_limit))
        return [fitted[0][0].block, fitted[0][0].lanes]

    everyone = hosts.agree(work)
    block, lanes = (min(entry[axis] for entry in everyone) for axis in (0, 1))
    chosen, program = fitted[0]
    if [chosen.block, chosen.lanes] != [block, lanes]:
        chosen = dataclasses.replace(chosen, block=block, lanes=lanes)
        program = compile_blocks(signature, plan, block, lanes, hosts.mesh)
    return chosen, program


def _too_large(program: BlockProgram, limit: int, sizes: Sizes) -> str:
    return (
        f"expected a block of at most {limit:,} bytes per device, got {program.resident_bytes:,} "
        f"(arguments and one superstep's outputs {program.argument_bytes:,}, the other's {program.output_bytes:,}, "
        f"temporaries {program.temporary_bytes:,}) at chunk_size={sizes.block}, lanes={sizes.lanes}; "
        "raise memory_limit, lower chunk_size or lanes, keep fewer raw draws or make the draw smaller"
    )


def _default_memory_limit(device: jax.Device) -> int | None:
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, ValueError, OSError):
            return None
    stats = device.memory_stats() or {}
    return int(MEMORY_SHARE * stats["bytes_limit"]) if "bytes_limit" in stats else None
