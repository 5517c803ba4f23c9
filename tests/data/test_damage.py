"""Damaged files: whatever bytes are cut or flipped, a file is read or refused with FilterFileError."""

import functools
import pathlib
import tempfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cnninv_jax.data import FilterFileError, LoadedFilters, load_filters

KINDS = ("npy", "npz", "npz-deflated", "safetensors", "h5", "h5-chunked")


@functools.cache
def valid(kind: str) -> bytes:
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 4)).astype(np.float32)
    bias = np.ones(4, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"w.{kind.split('-')[0]}"
        match kind:
            case "npy":
                np.save(path, kernel)
            case "npz":
                np.savez(path, kernel=kernel, bias=bias)
            case "npz-deflated":
                np.savez_compressed(path, kernel=kernel, bias=bias)
            case "safetensors":
                save_file({"kernel": kernel, "bias": bias}, path)
            case _:
                chunked = {"compression": "gzip", "chunks": (1, 3, 2, 4)} if kind == "h5-chunked" else {}
                with h5py.File(path, "w", libver="latest" if chunked else None) as file:
                    file.create_dataset("conv/kernel:0", data=kernel, **chunked)
                    file.create_dataset("conv/bias:0", data=bias)
        return path.read_bytes()


def read_or_refuse(kind: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"w.{kind.split('-')[0]}"
        path.write_bytes(content)
        loaded, message = None, ""
        try:
            loaded = load_filters(path)
        except FilterFileError as error:
            message = str(error)
        if message:
            assert message.isprintable()
        else:
            assert isinstance(loaded, LoadedFilters)
            assert np.isfinite(loaded.filters).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_undamaged_file_loads(kind, tmp_path):
    path = tmp_path / f"w.{kind.split('-')[0]}"
    path.write_bytes(valid(kind))
    assert load_filters(path, layout="llMK").filters.shape == (4, 2, 3, 3)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncation(kind, data):
    content = valid(kind)
    read_or_refuse(kind, content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_byte_flips(kind, data):
    content = bytearray(valid(kind))
    # Half of the flips go to the first bytes, where the headers are.
    place = st.one_of(st.integers(0, len(content) - 1), st.integers(0, min(len(content), 256) - 1))
    for position, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=8)):
        content[position] = value
    read_or_refuse(kind, bytes(content))


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "h5"])
@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes(suffix, content):
    read_or_refuse(suffix, content)
