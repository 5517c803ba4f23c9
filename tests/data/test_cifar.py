"""CIFAR-10 and CIFAR-100 in their official formats, made here; damaged files, and pickles that would run."""

import hashlib
import importlib
import io
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnninv_jax import data
from cnninv_jax.data._cifar_python import python_records
from cnninv_jax.data.errors import CifarError

#: The module, whose name in the package is that of its function.
fetch_module = importlib.import_module("cnninv_jax.data.fetch")
SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_FILE = 4


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def labels(count, most, seed):
    return np.random.default_rng(seed + 100).integers(0, most, count).astype(np.uint8)


def binary10():
    files = {}
    for seed, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        files[name] = np.concatenate([labels(PER_FILE, 10, seed)[:, None], images(PER_FILE, seed)], axis=1).tobytes()
    return {**files, "batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}


def binary100():
    files = {}
    for seed, name in enumerate(["train.bin", "test.bin"]):
        both = np.stack([labels(PER_FILE, 20, seed), labels(PER_FILE, 100, seed)], axis=1)
        files[name] = np.concatenate([both, images(PER_FILE, seed)], axis=1).tobytes()
    fine, coarse = (("\n".join(f"{word}{i}" for i in range(n))).encode() for word, n in (("fine", 100), ("coarse", 20)))
    return {**files, "fine_label_names.txt": fine, "coarse_label_names.txt": coarse}


class Python2:
    """Writes pickles of protocol 2 as Python 2 did: text without an encoding, NumPy's constructor by its old name."""

    def __init__(self):
        self.out = b"\x80\x02"

    def text(self, text):
        text = text if isinstance(text, bytes) else text.encode()
        short = len(text) < 256
        self.out += (b"U" + bytes([len(text)]) if short else b"T" + struct.pack("<i", len(text))) + text

    def number(self, number):
        self.out += b"J" + struct.pack("<i", number)

    def array(self, array):
        self.out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        self.number(0)
        self.out += b"\x85"
        self.text("b")
        self.out += b"\x87R("
        self.number(1)
        for side in array.shape:
            self.number(side)
        self.out += b"\x86cnumpy\ndtype\n"
        self.text("u1")
        self.number(0)
        self.number(1)
        self.out += b"\x87R("
        self.number(3)
        self.text("|")
        self.out += b"NNN"
        for _ in range(2):
            self.number(-1)
        self.number(0)
        self.out += b"tb\x89"
        self.text(array.tobytes())
        self.out += b"tb"

    def mapping(self, entries):
        self.out += b"}("
        for key, value in entries.items():
            self.text(key)
            if isinstance(value, np.ndarray):
                self.array(value)
            elif isinstance(value, list):
                self.out += b"]("
                for entry in value:
                    self.number(entry) if isinstance(entry, int) else self.text(entry)
                self.out += b"e"
            else:
                self.text(value)
        self.out += b"u."
        return self.out


def python10():
    files = {}
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        files[name] = Python2().mapping({
            "batch_label": "batch", "labels": labels(PER_FILE, 10, seed).tolist(), "data": images(PER_FILE, seed),
            "filenames": [f"{i}.png" for i in range(PER_FILE)],
        })  # fmt: skip
    return {**files, "batches.meta": Python2().mapping({"label_names": list(NAMES)})}


def python100():
    files = {}
    for seed, name in enumerate(["train", "test"]):
        files[name] = Python2().mapping({
            "fine_labels": labels(PER_FILE, 100, seed).tolist(), "coarse_labels": labels(PER_FILE, 20, seed).tolist(),
            "data": images(PER_FILE, seed),
        })  # fmt: skip
    names = {f"{word}_label_names": [f"{word}{i}" for i in range(n)] for word, n in (("fine", 100), ("coarse", 20))}
    return {**files, "meta": Python2().mapping(names)}


KINDS = {
    "cifar-10-batches-bin": binary10, "cifar-100-binary": binary100,
    "cifar-10-batches-py": python10, "cifar-100-python": python100,
}  # fmt: skip


def written(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archived(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("folder", KINDS)
@pytest.mark.parametrize("where", ["folder", "around", "archive"])
def test_round_trip(tmp_path, folder, where):
    files = KINDS[folder]()
    if where == "archive":
        source = archived(tmp_path / "data.tar.gz", folder, files)
    else:
        source = written(tmp_path / folder, files)
        source = source if where == "folder" else tmp_path
    found = data.load_cifar(source)
    hundred = "100" in folder
    parts = 1 if hundred else 5
    assert found.name == ("cifar100" if hundred else "cifar10")
    wanted = np.concatenate([images(PER_FILE, seed) for seed in range(parts)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(found.train.images, wanted)
    most = 100 if hundred else 10
    np.testing.assert_array_equal(found.train.labels, np.concatenate([labels(PER_FILE, most, s) for s in range(parts)]))
    np.testing.assert_array_equal(found.test.images.reshape(PER_FILE, -1), images(PER_FILE, parts))
    assert found.train.labels.dtype == np.int32
    assert not found.train.images.flags.writeable
    assert len(found.notes) == parts + 1  # no file has as many images as the official one
    if hundred:
        np.testing.assert_array_equal(found.train.coarse_labels, labels(PER_FILE, 20, 0))
        assert found.classes[3] == "fine3"
        assert found.coarse_classes[19] == "coarse19"
    else:
        assert found.classes == NAMES
    cut = data.load_cifar(source, limit_train=3, limit_test=2)
    assert (len(cut.train.labels), len(cut.test.images)) == (3, 2)


def test_protocol_of_python_3(tmp_path):
    """What Python 3 writes for the same arrays, at the protocols of its time."""
    for protocol in range(2, 5):
        content = pickle.dumps({"labels": [1, 2], "data": images(2, 0)}, protocol=protocol)
        pixels, found = python_records(content, "x", False)
        np.testing.assert_array_equal(pixels, images(2, 0))
        np.testing.assert_array_equal(found[:, 0], [1, 2])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data_batch_2.bin", lambda c: c[:-1], r"data_batch_2.bin to have a multiple of 3,073 bytes .* got 12,291"),
        ("data_batch_2.bin", lambda c: b"", "got 0: the file is cut short"),
        ("test_batch.bin", lambda c: b"\x0a" + c[1:], r"labels from 0 to 9 in test_batch.bin, got 10 for image 0"),
        ("data_batch_5.bin", None, r"no whole cifar-10-batches-bin: data_batch_5.bin missing"),
    ],
)
def test_damaged_binary_files(tmp_path, name, change, message):
    files = binary10()
    content = files.pop(name)
    source = written(tmp_path / "x", files if change is None else {**files, name: change(content)})
    with pytest.raises(CifarError, match=message) as caught:
        data.load_cifar(source)
    assert "\n" not in str(caught.value)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def evil_pickles(marker):
    touch = f"touch {marker}"
    yield pickle.dumps({"labels": [0], "data": Evil(os.system, touch)}, protocol=2)
    yield pickle.dumps({"labels": [0], "data": Evil(eval, f"open({str(marker)!r}, 'w')")}, protocol=4)
    yield pickle.dumps(Evil(exec, f"open({str(marker)!r}, 'w')"))
    yield b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR."
    yield b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93."
    yield b"cnumpy.core.multiarray\n_reconstruct.__globals__\n."
    yield b"\x80\x02cnumpy\nndarray\n)\x81}X\x01\x00\x00\x00aK\x01sb."  # NEWOBJ and BUILD
    yield b"(iposix\nsystem\n."
    yield pickle.dumps({"labels": [0], "data": np.array([[os.system]], dtype=object)}, protocol=2)
    yield b"\x80\x02r\xff\xff\xff\x7f."  # a place in the memo that would need gigabytes
    yield b"\x80\x02}" + b"(" * 100_000 + b"."
    yield b"\x80\x02X\xff\xff\xff\x7f."


def test_no_pickle_runs(tmp_path):
    marker = tmp_path / "ran"
    files = python10()
    for number, content in enumerate(evil_pickles(marker)):
        source = written(tmp_path / str(number), {**files, "data_batch_1": content})
        with pytest.raises(CifarError, match="expected data_batch_1 to"):
            data.load_cifar(source)
        assert not marker.exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"labels": [1], "data": images(2, 0)}, "one whole number for each of 2 images, got 1 entries"),
        ({"data": images(2, 0)}, "hold labels, .* got none"),
        ({"labels": [1]}, r"hold data, uint8 \[N, 3072\]"),
        ({"labels": [1], "data": np.zeros((1, 3071), np.uint8)}, "3,072 bytes for each"),
        ({"labels": [1, 11], "data": images(2, 0)}, "labels from 0 to 9 in test_batch, got 11 for image 1"),
        ({"labels": [1, "x"], "data": images(2, 0)}, "one whole number for each"),
    ],
)
def test_python_files_that_hold_something_else(tmp_path, entries, message):
    source = written(tmp_path / "x", {**python10(), "test_batch": Python2().mapping(entries)})
    with pytest.raises(CifarError, match=message):
        data.load_cifar(source)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    how=st.sampled_from(["cut", "flip", "random", "archive"]),
    seed=st.integers(0, 10**6),
)
def test_damaged_files_are_refused_or_read(tmp_path, kind, how, seed):
    """Cut, changed, made up: a data set or one sentence, nothing else."""
    rng = np.random.default_rng(seed)
    files = KINDS[kind]()
    folder = tmp_path / f"{kind}-{how}-{seed}"
    name = sorted(files)[rng.integers(len(files))]
    content = bytearray(files[name])
    if how == "archive":
        path = archived(tmp_path / f"{folder.name}.tar.gz", kind, files)
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content if rng.integers(2) else content[: rng.integers(len(content))])
        source = path
    else:
        if how == "cut":
            content = content[: rng.integers(len(content))]
        elif how == "flip":
            for place in rng.integers(0, min(len(content), 400), 3):
                content[place] = rng.integers(256)
        else:
            content = bytearray(rng.bytes(int(rng.integers(3000))))
        if not folder.exists():
            written(folder, {**files, name: bytes(content)})
        source = folder
    try:
        said = ""
        shape = data.load_cifar(source).train.images.shape
    except CifarError as error:
        said, shape = str(error), (0, 3, 32, 32)
    assert shape[1:] == (3, 32, 32)
    assert "\n" not in said
    assert len(said) < 700


def test_archives_of_something_else(tmp_path):
    many = archived(tmp_path / "many.tar.gz", "x", {f"{i}.txt": b"" for i in range(100)})
    with pytest.raises(CifarError, match="more than CIFAR's archives do"):
        data.load_cifar(many)
    with pytest.raises(CifarError, match="holds no CIFAR"):
        data.load_cifar(archived(tmp_path / "other.tar.gz", "x", {"readme": b""}))
    (tmp_path / "text.tar.gz").write_text("hello")
    with pytest.raises(CifarError, match=r"'text.tar.gz' to be an archive"):
        data.load_cifar(tmp_path / "text.tar.gz")
    # A link is not followed.
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        member = tarfile.TarInfo("train.bin")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(CifarError, match="holds no CIFAR"):
        data.load_cifar(tmp_path / "link.tar")


def test_sources_that_are_none(tmp_path):
    with pytest.raises(CifarError, match=r"there is no 'embeded' \(did you mean 'embedded'\?\)"):
        data.load_cifar("embeded")
    with pytest.raises(CifarError, match=r"one of cifar10, cifar100 to fetch, got 'cifar11'"):
        data.load_cifar("fetch:cifar11")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CifarError, match="holds no CIFAR"):
        data.load_cifar(tmp_path / "empty")
    for name in ("limit_train", "limit_test"):
        with pytest.raises(CifarError, match=f"expected {name} to be a positive whole number, got 0"):
            data.load_cifar(**{name: 0})


def test_fetching(tmp_path, monkeypatch):
    """A file that is in the cache with its checksum is taken; another one is refused; nothing is unpacked."""
    archive = archived(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary10())
    monkeypatch.setenv(fetch_module.CACHE_VARIABLE, str(tmp_path))
    file = fetch_module.PUBLIC_DATA_SETS["cifar10"]
    checksum = "md5:" + hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    known = {"cifar10": fetch_module.PublicFile(file.address, checksum, 1, file.what)}
    monkeypatch.setattr(fetch_module, "PUBLIC_DATA_SETS", known)
    assert data.load_cifar("fetch:cifar10").classes == NAMES
    assert [entry.name for entry in tmp_path.iterdir()] == [archive.name]
    assert file.checksum == "md5:c32a1d4ab5d03f1284b67883e8d87530"


def test_the_stand_in():
    found = data.load_cifar()
    assert found.name == "embedded"
    assert found.train.images.shape == (5000, 3, 32, 32)
    assert len(found.classes) == len(set(found.classes)) == 10
    for part in (found.train, found.test):
        np.testing.assert_array_equal(np.bincount(part.labels), len(part.labels) // 10)
    np.testing.assert_array_equal(data.load_cifar(limit_train=20).train.labels, np.tile(np.arange(10), 2))
    seen = {image.tobytes() for image in found.train.images}
    assert sum(image.tobytes() in seen for image in found.test.images) <= 5  # flat patches may be alike


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "cifar10_packed.npz").exists(), reason="needs ../shared/data, which is not distributed"
)
def test_the_real_one(tmp_path):
    import subprocess

    subprocess.run([sys.executable, str(SHARED / "unpack_cifar10.py"), str(tmp_path)], check=True)
    found = data.load_cifar(tmp_path)
    assert found.notes == ()
    assert found.classes == NAMES
    np.testing.assert_array_equal(np.bincount(found.train.labels), 5000)
    np.testing.assert_array_equal(np.bincount(found.test.labels), 1000)
