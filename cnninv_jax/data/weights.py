"""Filters from files: one tensor in, one checked bank ``[K, M, *ell]`` out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnninv_jax.data._containers import Entry, open_entries
from cnninv_jax.data.errors import FilterFileError, brief, did_you_mean

#: The orders of axes that are understood, and how many axes each has.
LAYOUTS = {"KMll": 4, "llMK": 4, "KMl": 3, "lMK": 3}
#: Lengths up to this look like a filter's when a shape is compared with its layout (AlexNet has 11).
_LONGEST_USUAL_FILTER = 11
_MOST_NAMES = 12


@dataclass(frozen=True, eq=False)
class LoadedFilters:
    """A filter bank and where it came from.

    Attributes:
        filters: ``[K, M, *ell]``, floating, finite, no filter zero; read-only.
        source: The file, as it was given.
        tensor: The name of the entry that was read; None for a file that holds one unnamed array.
        layout: The order of axes in the file, one of ``KMll``, ``llMK``, ``KMl``, ``lMK``.
        notes: What was assumed or converted, one sentence each; show them to the user.
    """

    filters: np.ndarray
    source: str
    tensor: str | None
    layout: str
    notes: tuple[str, ...] = ()


def load_filters(
    source: str | os.PathLike[str], *, tensor: str | None = None, layout: str | None = None
) -> LoadedFilters:
    """Read one convolution kernel from a file and bring it into the order ``[K, M, *ell]``.

    Args:
        source: A ``.npy``, ``.npz``, ``.safetensors``, ``.h5``, ``.hdf5`` or ``.caffemodel`` file. Pickles (``.pt``,
            ``.pth``, ``.bin``) are refused because opening one can run code.
        tensor: The entry to read; in HDF5 the full path, such as ``"conv1/conv1/kernel:0"``. May be left out
            where exactly one entry has 3 or 4 axes.
        layout: Order of axes in the file: ``"KMll"`` or ``"KMl"`` (torch, the papers), ``"llMK"`` or
            ``"lMK"`` (Flax, Keras, TensorFlow). None means filters last in HDF5 and filters first elsewhere;
            a note says so where the shape looks like the other order.

    Returns:
        The bank with its dtype kept, except that half precision (float16, bfloat16) and integers become
        float32 and extended precision becomes float64, each with a note.

    Raises:
        FilterFileError: for everything that is wrong with the file, the name, the shape or the numbers.
    """
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # "~nobody" without a home
        raise FilterFileError(f"{str(source)!r} cannot be opened ({brief(error)}): check the path") from error
    if layout is not None and layout not in LAYOUTS:
        raise FilterFileError(
            f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}{did_you_mean(str(layout), LAYOUTS)}"
        )
    kind, entries = open_entries(path)
    notes: list[str] = []
    entry = _choose(path, kind, entries, tensor, notes)
    where = f"{str(path)!r}" if entry.name is None else f"tensor {entry.name!r} of {str(path)!r}"
    order = _order(where, kind, entry.shape, layout, notes)
    check_dtype(where, kind, entry.dtype)
    array = to_floating(entry.read(), str(entry.dtype), notes)
    if order.endswith("MK"):
        # [*ell, M, K] -> [K, M, *ell]
        array = np.moveaxis(array, (-1, -2), (0, 1))
    array = np.ascontiguousarray(array)
    check_filters(array, where)
    array.setflags(write=False)
    return LoadedFilters(array, os.fspath(source), entry.name, order, tuple(notes))


def check_filters(filters: np.ndarray, source: str) -> None:
    """Refuse a bank that no theorem speaks about: non-finite entries, filters that cannot be normalised.

    Args:
        filters: ``[K, M, *ell]``, floating.
        source: What to call the bank in messages.

    Raises:
        FilterFileError: naming how many entries or filters are at fault, and the first.
    """
    if not np.issubdtype(filters.dtype, np.floating):
        raise FilterFileError(f"{source} should hold floating numbers, got {filters.dtype}: convert it")
    if filters.ndim not in (3, 4) or filters.size == 0:
        raise FilterFileError(
            f"{source} should be a non-empty bank [K, M, *ell] with one or two spatial axes, got shape "
            f"{filters.shape}: check its order of axes"
        )
    if bad := int(filters.size - np.count_nonzero(np.isfinite(filters))):
        nan = int(np.count_nonzero(np.isnan(filters)))
        raise FilterFileError(
            f"{source} should hold finite numbers, but {bad} of its {filters.size} entries are not "
            f"({nan} NaN, {bad - nan} infinite): repair or retrain the model it came from"
        )
    rows = filters.reshape(filters.shape[0], -1)
    zero = np.flatnonzero(np.count_nonzero(rows, axis=1) == 0)
    if zero.size:
        raise FilterFileError(
            f"{source} has {zero.size} of {len(rows)} filters whose entries are all zero (first: {zero[0]}), "
            "but a zero filter has no direction: remove such filters"
        )
    with np.errstate(over="ignore", under="ignore"):
        squared = np.sum(rows * rows, axis=1)
    wild = np.flatnonzero(~np.isfinite(squared) | (squared < np.finfo(filters.dtype).tiny))
    if wild.size:
        largest = float(np.abs(rows[wild[0]]).max())
        raise FilterFileError(
            f"{source} has {wild.size} of {len(rows)} filters whose squared norm leaves the range of "
            f"{filters.dtype} (first: filter {wild[0]}, largest entry {largest:.3g}): rescale the bank"
        )


def _choose(path: Path, kind: str, entries: list[Entry], tensor: str | None, notes: list[str]) -> Entry:
    if kind == "npy":
        if tensor is not None:
            raise FilterFileError(
                f"{str(path)!r} is a .npy file with one unnamed array, but tensor={tensor!r} was asked for: "
                "leave tensor out"
            )
        return entries[0]
    if not entries:
        raise FilterFileError(f"{str(path)!r} holds no arrays: give a file with convolution kernels")
    if tensor is not None:
        for entry in entries:
            if entry.name in (tensor, tensor.strip("/")):
                return entry
        names = [str(entry.name) for entry in entries]
        raise FilterFileError(
            f"{str(path)!r} has no tensor {tensor!r}{did_you_mean(tensor, names)}, it has: "
            f"{listed([repr(name) for name in names])}"
        )
    fitting = [entry for entry in entries if len(entry.shape) in (3, 4)]
    if len(fitting) == 1:
        if len(entries) > 1:
            notes.append(f"read {fitting[0].name!r}, the only one of {len(entries)} tensors with 3 or 4 axes")
        return fitting[0]
    if not fitting:
        raise FilterFileError(
            f"{str(path)!r} should hold a tensor with 3 or 4 axes, but has only: "
            f"{listed([entry.describe() for entry in entries])}"
        )
    raise FilterFileError(
        f"{str(path)!r} holds {len(fitting)} tensors that could be filters, so name one with tensor=...: "
        f"{listed([entry.describe() for entry in fitting])}"
    )


def listed(items: list[str]) -> str:
    more = len(items) - _MOST_NAMES
    return ", ".join(items[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _order(where: str, kind: str, shape: tuple[int, ...], layout: str | None, notes: list[str]) -> str:
    """Choose the order asked for, or the format's custom with a note where the shape speaks against it."""
    rank = len(shape)
    if rank not in (3, 4):
        raise FilterFileError(
            f"{where} should have 3 axes (K, M, l) or 4 (K, M, l, l), but its shape is {shape}: "
            "give a convolution kernel with one or two spatial axes"
        )
    if 0 in shape:
        raise FilterFileError(f"{where} is empty, its shape is {shape}: give a kernel with entries")
    first, last = ("KMll", "llMK") if rank == 4 else ("KMl", "lMK")
    if layout is not None:
        if LAYOUTS[layout] != rank:
            raise FilterFileError(
                f"layout {layout!r} names {LAYOUTS[layout]} axes, but {where} has {rank} (shape {shape}): "
                f"use {first!r} or {last!r}"
            )
        return layout
    order, other = (last, first) if kind == "h5" else (first, last)
    if suggested_layout(shape) == other[-1]:
        notes.append(
            f"read as {order!r}, the custom of .{kind} files, but the shape {shape} looks like {other!r}: "
            f"give layout={other!r} if it is"
        )
    return order


def suggested_layout(shape: tuple[int, ...]) -> str | None:
    """Return the last letter of the layout the shape suggests, ``"K"`` or ``"l"``; or None."""
    ahead, behind = (shape[:2], shape[2:]) if len(shape) == 4 else (shape[:1], shape[2:])
    short_ahead, short_behind = max(ahead) <= _LONGEST_USUAL_FILTER, max(behind) <= _LONGEST_USUAL_FILTER
    square_ahead, square_behind = len(set(ahead)) == 1, len(set(behind)) == 1
    if short_ahead and (not short_behind or (square_ahead and not square_behind)):
        return "K"
    if short_behind and (not short_ahead or (square_behind and not square_ahead)):
        return "l"
    return None


def check_dtype(where: str, kind: str, dtype: np.dtype[Any] | str) -> None:
    if isinstance(dtype, str):
        if dtype != "bfloat16":
            raise FilterFileError(f"{where} has type {dtype}, which is not supported: store it as float32")
        return
    if dtype.hasobject and kind in ("npy", "npz"):
        raise FilterFileError(
            f"{where} holds Python objects, which are stored as a pickle that can run code and are therefore "
            "not read (allow_pickle=False): store a plain float32 array"
        )
    if dtype.kind == "c":
        raise FilterFileError(f"{where} is complex ({dtype}), but filters are real: store its real part")
    if dtype.kind not in "fiu":
        raise FilterFileError(f"{where} should hold real numbers, got {dtype}: store a float32 array")


def to_floating(array: np.ndarray, stored: str, notes: list[str]) -> np.ndarray:
    """Convert to native floating numbers of 4 or 8 bytes, with a note unless only the byte order changes."""
    if stored in ("bfloat16", "float16") or array.dtype == np.float16:
        notes.append(f"converted from {stored} to float32 (exact)")
        return array.astype(np.float32)
    if array.dtype.kind in "iu":
        exact = int(array.max()) <= 2**24 and int(array.min()) >= -(2**24)
        rounded = "" if exact else " with rounding (some are beyond 2**24)"
        notes.append(f"converted from {stored} to float32{rounded}; no quantisation scale was applied")
        return array.astype(np.float32)
    if array.dtype.itemsize > 8:
        notes.append(f"converted from {stored} to float64")
        with np.errstate(over="ignore"):
            return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


__all__ = ["LAYOUTS", "FilterFileError", "LoadedFilters", "check_filters", "load_filters"]
