"""load_filters: every format round-trips, every mistake is one sentence with its cause and a way out."""

import io
import json
import os
import pathlib
import pickle
import struct
import zipfile
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from cnninv_jax.data import FilterFileError, check_filters, load_filters
from cnninv_jax.data._containers import LARGEST_TENSOR_BYTES


def bank(shape=(6, 4, 3, 3), dtype: Any = np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def write(path, **tensors):
    """Write named tensors in the format that the suffix says."""
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    elif path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    else:
        with h5py.File(path, "w") as file:
            for name, value in tensors.items():
                file.create_dataset(name, data=value)
    return path


def save(path, array):
    np.save(path, array, allow_pickle=True)
    return path


def refusal(*args, **kwargs):
    """The message of the refusal: one printable line without a full stop."""
    with pytest.raises(FilterFileError) as caught:
        load_filters(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 600
    assert not message.endswith(".")
    return message


# --- what works -------------------------------------------------------------------------------------------


def test_npy_keeps_numbers_and_type(tmp_path):
    for dtype in (np.float32, np.float64):
        filters = bank(dtype=dtype)
        loaded = load_filters(save(tmp_path / "w.npy", filters))
        assert loaded.filters.dtype == dtype
        np.testing.assert_array_equal(loaded.filters, filters)
        assert (loaded.tensor, loaded.layout, loaded.notes) == (None, "KMll", ())
        assert loaded.source == str(tmp_path / "w.npy")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".hdf5", ".keras"])
def test_named_tensor_in_every_container(tmp_path, suffix):
    stored = bank((3, 3, 4, 16))
    path = write(tmp_path / f"w{suffix}", kernel=stored, other=bank(seed=1), bias=bank((16,)))
    loaded = load_filters(path, tensor="kernel", layout="llMK")
    np.testing.assert_array_equal(loaded.filters, stored.transpose(3, 2, 0, 1))
    assert (loaded.tensor, loaded.layout) == ("kernel", "llMK")
    assert loaded.filters.flags.c_contiguous


def test_compressed_npz_and_chunked_h5(tmp_path):
    filters = bank()
    np.savez_compressed(tmp_path / "w.npz", a=filters)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a", data=filters, compression="gzip", chunks=(2, 4, 3, 3))
    for name in ("w.npz", "w.h5"):
        np.testing.assert_array_equal(load_filters(tmp_path / name, layout="KMll").filters, filters)


def test_h5_full_path_and_leading_slash(tmp_path):
    path = write(tmp_path / "w.h5", **{"a/b/kernel": bank((3, 3, 2, 5)), "a/b/c": bank((3, 3, 2, 7))})
    for tensor in ("a/b/kernel", "/a/b/kernel"):
        assert load_filters(path, tensor=tensor).filters.shape == (5, 2, 3, 3)


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        ("KMll", (6, 4, 3, 2), (6, 4, 3, 2)),
        ("llMK", (3, 2, 4, 6), (6, 4, 3, 2)),
        ("KMl", (6, 4, 5), (6, 4, 5)),
        ("lMK", (5, 4, 6), (6, 4, 5)),
    ],
)
def test_layouts_entry_by_entry(tmp_path, layout, shape, expected):
    stored = bank(shape)
    filters = load_filters(save(tmp_path / "w.npy", stored), layout=layout).filters
    assert filters.shape == expected
    for index in np.ndindex(expected):
        i, m, *s = index
        assert filters[index] == (stored[index] if layout.startswith("K") else stored[(*s, m, i)])


def test_default_layout_by_format(tmp_path):
    shape = (4, 4, 4, 4)
    for name, layout in (("w.npz", "KMll"), ("w.safetensors", "KMll"), ("w.h5", "llMK")):
        loaded = load_filters(write(tmp_path / name, w=bank(shape)))
        assert (loaded.layout, loaded.notes) == (layout, ())
    assert load_filters(write(tmp_path / "v.h5", w=bank((4, 4, 4)))).layout == "lMK"


@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (3, 3, 3, 64), (1, 7, 12, 12), (11, 11, 3, 96), (5, 32, 96)])
def test_a_shape_that_looks_filters_last_is_noted_in_npy(tmp_path, shape):
    loaded = load_filters(save(tmp_path / "w.npy", bank(shape)))
    assert loaded.filters.shape == shape  # a note, never a silent transposition
    assert len(loaded.notes) == 1
    assert "'llMK'" in loaded.notes[0] or "'lMK'" in loaded.notes[0]


@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (96, 3, 11, 11), (6, 1, 5, 5), (96, 32, 5), (20, 3, 1, 7)])
def test_a_shape_that_looks_filters_first_is_noted_in_h5(tmp_path, shape):
    assert load_filters(save(tmp_path / "w.npy", bank(shape))).notes == ()
    noted = load_filters(write(tmp_path / "w.h5", w=bank(shape))).notes
    assert len(noted) == 1
    assert "'KMl" in noted[0]
    assert load_filters(tmp_path / "w.h5", layout="llMK" if len(shape) == 4 else "lMK").notes == ()


def test_the_only_kernel_is_found_and_said(tmp_path):
    path = write(tmp_path / "w.npz", bias=bank((6,)), kernel=bank(), dense=bank((6, 7)))
    loaded = load_filters(path)
    assert loaded.tensor == "kernel"
    assert "only one of 3" in loaded.notes[0]


def test_half_precision_becomes_float32_exactly(tmp_path):
    half = bank(dtype=np.float16)
    brain = bank().astype(ml_dtypes.bfloat16)
    first = load_filters(save(tmp_path / "w.npy", half))
    second = load_filters(write(tmp_path / "w.safetensors", w=brain, v=bank((3,))))
    for loaded, original in ((first, half), (second, brain)):
        assert loaded.filters.dtype == np.float32
        np.testing.assert_array_equal(loaded.filters, original.astype(np.float32))
        assert "float16 to float32 (exact)" in loaded.notes[-1]


def test_integers_become_float32_with_a_note(tmp_path):
    small = np.arange(1, 25, dtype=np.int8).reshape(2, 3, 4)
    loaded = load_filters(save(tmp_path / "w.npy", small))
    np.testing.assert_array_equal(loaded.filters, small.astype(np.float32))
    assert "int8" in loaded.notes[0]
    assert "rounding" not in loaded.notes[0]
    large = np.full((2, 3, 4), 2**40 + 1, np.uint64)
    assert "rounding" in load_filters(save(tmp_path / "v.npy", large)).notes[0]


def test_foreign_byte_order_and_fortran_order(tmp_path):
    filters = bank()
    for stored in (filters.astype(">f4"), np.asfortranarray(filters)):
        loaded = load_filters(save(tmp_path / "w.npy", stored))
        assert loaded.filters.dtype.isnative
        np.testing.assert_array_equal(loaded.filters, filters)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is float64 on this platform")
def test_extended_precision_becomes_float64(tmp_path):
    loaded = load_filters(save(tmp_path / "w.npy", bank().astype(np.longdouble)))
    assert loaded.filters.dtype == np.float64
    assert "float64" in loaded.notes[0]


def test_result_is_frozen(tmp_path):
    loaded = load_filters(save(tmp_path / "w.npy", bank()))
    with pytest.raises(ValueError, match="read-only"):
        loaded.filters[0, 0, 0, 0] = 1
    with pytest.raises(AttributeError):
        loaded.layout = "llMK"  # type: ignore[misc]


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    save(tmp_path / "w.npy", bank())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_filters("~/w.npy").source == "~/w.npy"


# --- the path ---------------------------------------------------------------------------------------------


def test_missing_file_and_folder(tmp_path):
    assert "there is no file" in refusal(tmp_path / "w.npy")
    assert "folder" in refusal(tmp_path / "nowhere" / "w.npy")
    assert "is a folder" in refusal(tmp_path)
    assert "is a folder" in refusal("")
    assert "check the path" in refusal("a\0b.npy")
    assert refusal("~no-such-user-here/w.npy")
    assert refusal("x" * 300 + ".npy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes do not exist on this platform")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "w.npy")
    assert "not a regular file" in refusal(tmp_path / "w.npy")


def test_unreadable_file(tmp_path, monkeypatch):
    path = save(tmp_path / "w.npy", bank())

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "open", refuse)  # root may read what chmod 000 forbids
    assert "may not be read" in refusal(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
def test_empty_file(tmp_path, suffix):
    (tmp_path / f"w{suffix}").touch()
    assert "empty (0 bytes)" in refusal(tmp_path / f"w{suffix}")


# --- the container ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated_file(tmp_path, suffix, kept):
    path = tmp_path / f"w{suffix}"
    save(path, bank()) if suffix == ".npy" else write(path, w=bank())
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(kept * len(whole)))])
    assert "again" in refusal(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
@pytest.mark.parametrize("content", [".npy", ".npz", ".safetensors", ".h5"])
def test_content_of_another_format(tmp_path, suffix, content):
    if suffix == content:
        return
    path = tmp_path / f"w{content}"
    save(path, bank()) if content == ".npy" else write(path, w=bank())
    assert "begins like" in refusal(path.rename(tmp_path / f"v{suffix}"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n<html>", "web page"),
        (b"neither this nor that", "cannot be read as"),
        (b"\x00", "cannot be read as"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
def test_content_of_no_format(tmp_path, content, expected, suffix):
    (tmp_path / f"w{suffix}").write_bytes(content)
    assert expected in refusal(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("name", ["w.mat", "w", "w.npy.gz", "w.onnx"])
def test_unknown_extension(tmp_path, name):
    (tmp_path / name).write_bytes(b"something else")
    assert ".safetensors" in refusal(tmp_path / name)


class Detonator:
    def __reduce__(self):
        return (os.abort, ())


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.pkl", "w.npy", "w.h5"])
def test_pickles_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Detonator()))
    assert "convert it to safetensors" in refusal(tmp_path / name)


def test_torch_archive_under_another_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Detonator()))
    assert "PyTorch" in refusal(tmp_path / "w.npz")


def test_keras_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    assert "model.weights.h5" in refusal(tmp_path / "w.keras")


def test_object_arrays_are_refused_unopened(tmp_path):
    objects = np.empty((2, 2, 2), object)
    objects[:] = Detonator()
    save(tmp_path / "w.npy", objects)
    np.savez(tmp_path / "w.npz", w=objects)
    for name in ("w.npy", "w.npz"):
        assert "allow_pickle=False" in refusal(tmp_path / name)


# --- headers that lie -------------------------------------------------------------------------------------


def npy_bytes(shape, data=b"", descr="<f4"):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + data


@pytest.mark.parametrize(
    "shape", [(10**6, 10**6, 3), (10**30, 3, 3), (2**62, 4, 1), (1000, 10, 9), (-1, 4, 3), (3, 4, True)]
)
def test_npy_that_claims_more_than_it_has(tmp_path, shape):
    (tmp_path / "w.npy").write_bytes(npy_bytes(shape, bytes(40)))
    refusal(tmp_path / "w.npy")


@pytest.mark.parametrize("shape", [(10**6, 10**6, 3), (10**30, 3, 3), (10**4, 10, 9)])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_that_claims_more_than_it_has(tmp_path, shape, method):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", method) as archive:
        archive.writestr("w.npy", npy_bytes(shape, bytes(400)))
    assert "bytes" in refusal(tmp_path / "w.npz")


def test_npz_whose_directory_lies_too(tmp_path):
    content = npy_bytes((2**28, 1, 3), bytes(400))
    info = zipfile.ZipInfo("w.npy")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, content)
    raw, true, claimed = buffer.getvalue(), struct.pack("<I", len(content)), struct.pack("<I", 2**32 - 2)
    # In the central directory the uncompressed size is the second of two equal numbers.
    start = raw.index(b"PK\x01\x02")
    at = raw.index(true + true, start) + 4
    (tmp_path / "w.npz").write_bytes(raw[:at] + claimed + raw[at + 4 :])
    assert "only" in refusal(tmp_path / "w.npz")


def test_npz_with_a_bomb_for_a_header(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(2**24))
    assert "cannot be read" in refusal(tmp_path / "w.npz")


def test_h5_that_claims_more_than_a_bank_needs(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("w", shape=(10**5, 10**5, 3), dtype="f4", chunks=(10, 10, 3))
    assert str(LARGEST_TENSOR_BYTES) in refusal(tmp_path / "w.h5")


@pytest.mark.parametrize("end", [8, 10**12, 10**30])
def test_safetensors_that_claims_more_than_it_has(tmp_path, end):
    header = json.dumps({"w": {"dtype": "F32", "shape": [end // 4, 1, 1], "data_offsets": [0, end]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "cannot be read" in refusal(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**63) + header)
    assert "cannot be read" in refusal(tmp_path / "w.safetensors")


def test_memory_error_becomes_a_sentence(tmp_path, monkeypatch):
    path = save(tmp_path / "w.npy", bank())

    def exhausted(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(np.lib.format, "read_array", exhausted)
    assert "more memory" in refusal(path)


def test_h5_that_points_elsewhere(tmp_path):
    bank().tofile(tmp_path / "raw")
    write(tmp_path / "other.h5", w=bank())
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("w", (6, 4, 3, 3), "f4", external=[(str(tmp_path / "raw"), 0, 6 * 4 * 9 * 4)])
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "w")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(shape=(6, 4, 3, 3), dtype="f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "w", shape=(6, 4, 3, 3))
        file.create_virtual_dataset("w", layout)
    for name in ("external.h5", "virtual.h5"):
        assert "another file" in refusal(tmp_path / name, tensor="w")
    assert "no tensor 'link'" in refusal(tmp_path / "external.h5", tensor="link")


# --- the choice of tensor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5"])
def test_unknown_tensor_lists_and_suggests(tmp_path, suffix):
    path = write(tmp_path / f"w{suffix}", conv1_kernel=bank(), conv1_bias=bank((6,)))
    message = refusal(path, tensor="conv1_kernal")
    assert "did you mean 'conv1_kernel'" in message
    assert "'conv1_bias'" in message


def test_last_part_of_a_path_is_suggested(tmp_path):
    path = write(tmp_path / "w.h5", **{"block1/conv1/kernel": bank(), "x": bank()})
    assert "did you mean 'block1/conv1/kernel'" in refusal(path, tensor="kernel")


def test_several_candidates_are_listed_with_shapes(tmp_path):
    path = write(tmp_path / "w.npz", a=bank(), b=bank((6, 4, 5)), bias=bank((6,)))
    message = refusal(path)
    assert "'a' (6, 4, 3, 3) float32" in message
    assert "'b' (6, 4, 5) float32" in message
    assert "bias" not in message


def test_long_lists_are_cut(tmp_path):
    path = write(tmp_path / "w.npz", **{f"t{i}": bank((1, 1, 2)) for i in range(30)})
    assert "and 18 more" in refusal(path)


def test_no_candidate(tmp_path):
    assert "'bias' (6,) float32" in refusal(write(tmp_path / "w.npz", bias=bank((6,))))
    assert "no arrays" in refusal(write(tmp_path / "v.npz"))
    assert "no arrays" in refusal(write(tmp_path / "v.h5"))


def test_npy_has_no_names(tmp_path):
    assert "leave tensor out" in refusal(save(tmp_path / "w.npy", bank()), tensor="w")


# --- shape, layout, numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (6, 4, 3, 3, 3)])
def test_wrong_rank(tmp_path, shape):
    assert str(shape) in refusal(save(tmp_path / "w.npy", np.ones(shape, np.float32)))


@pytest.mark.parametrize("shape", [(0, 4, 3), (6, 0, 3, 3), (6, 4, 0)])
def test_zero_size(tmp_path, shape):
    assert "empty" in refusal(save(tmp_path / "w.npy", np.ones(shape, np.float32)))


def test_wrong_layout(tmp_path):
    path = save(tmp_path / "w.npy", bank())
    assert "did you mean 'KMll'" in refusal(path, layout="kmll")
    assert "use 'KMll' or 'llMK'" in refusal(path, layout="lMK")
    assert "use 'KMl' or 'lMK'" in refusal(save(tmp_path / "v.npy", bank((6, 4, 5))), layout="KMll")


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_, "U3", "M8[s]", [("a", "f4")]])
def test_types_that_are_not_real_numbers(tmp_path, dtype):
    message = refusal(save(tmp_path / "w.npy", np.ones((2, 3, 4)).astype(np.int64).astype(dtype)))
    assert "real" in message


def test_h5_strings(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("w", data=np.full((2, 2, 2), "text", object), dtype=h5py.string_dtype())
    assert "real numbers" in refusal(tmp_path / "w.h5")


def test_safetensors_with_eight_bit_floats(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2, 2, 2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "F8_E4M3" in refusal(tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
def test_non_finite_entries_are_counted(tmp_path, suffix):
    filters = bank()
    filters[1, 2, 0, 0] = filters[3, 0, 1, 1] = np.nan
    filters[5, 3, 2, 2] = -np.inf
    path = tmp_path / f"w{suffix}"
    save(path, filters) if suffix == ".npy" else write(path, w=filters)
    message = refusal(path, layout="KMll")
    assert "3 of its 216 entries" in message
    assert "2 NaN, 1 infinite" in message


def test_zero_filters_are_counted_in_the_banks_own_order(tmp_path):
    filters = bank()
    filters[[2, 4]] = 0
    filters[4, 0, 0, 0] = -0.0
    path = save(tmp_path / "w.npy", filters.transpose(2, 3, 1, 0))
    message = refusal(path, layout="llMK")
    assert "2 of 6 filters" in message
    assert "first: 2" in message


@pytest.mark.parametrize("factor", [1e25, 1e-30])
def test_filters_that_cannot_be_normalised(tmp_path, factor):
    filters = bank(dtype=np.float64)
    filters[3] *= factor
    assert load_filters(save(tmp_path / "w.npy", filters)).filters.dtype == np.float64
    assert "1 of 6 filters whose squared norm" in refusal(save(tmp_path / "w.npy", filters.astype(np.float32)))


def test_check_filters_alone():
    check_filters(bank(), "these")
    with pytest.raises(FilterFileError, match="these should hold floating"):
        check_filters(np.ones((2, 2, 2), int), "these")
    with pytest.raises(FilterFileError, match="non-empty bank"):
        check_filters(np.ones((2, 2)), "these")
