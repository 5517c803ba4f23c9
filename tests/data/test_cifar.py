"""CIFAR-10 and CIFAR-100 in their official formats, made here; damaged files, and pickles that would run."""

import gzip
import hashlib
import importlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cifar_files import (
    COARSE,
    FINE,
    KINDS,
    NAMES,
    PER_FILE,
    Python2,
    archived,
    binary10,
    binary100,
    images,
    labels,
    python10,
    python100,
    written,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnninv_jax import data
from cnninv_jax.data import _cifar_files, embedded_classes
from cnninv_jax.data.embedded_classes import _SIDES, _stripes
from cnninv_jax.data.errors import CifarError

#: The module, whose name in the package is that of its function.
fetch_module = importlib.import_module("cnninv_jax.data.fetch")
SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


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
        assert found.classes == FINE
        assert found.coarse_classes == COARSE
    else:
        assert found.classes == NAMES
    cut = data.load_cifar(source, limit_train=min(6, PER_FILE * parts), limit_test=2)
    np.testing.assert_array_equal(cut.train.images, wanted[:6])
    np.testing.assert_array_equal(cut.train.labels, found.train.labels[:6])
    np.testing.assert_array_equal(cut.test.labels, found.test.labels[:2])
    assert not cut.train.images.flags.writeable


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data_batch_2.bin", lambda c: c[:-1], r"data_batch_2.bin to have a multiple of 3,073 bytes .* got 12,291"),
        ("data_batch_2.bin", lambda c: b"", "got 0: the file is cut short"),
        ("test_batch.bin", lambda c: b"\x0a" + c[1:], r"labels from 0 to 9 in test_batch.bin, got 10 for image 0"),
        ("batches.meta.txt", lambda c: c[:-7], r"10 different printable names .* got 9 in 9 entries"),
        ("batches.meta.txt", lambda c: c + c, r"10 different printable names .* got 10 in 20 entries"),
        ("batches.meta.txt", lambda c: b"\xff\x00" + c[2:], r"10 different printable names"),
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


def test_a_batch_that_would_run_something(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    for name in ("data_batch_3", "batches.meta"):
        source = written(tmp_path / f"with {name}", {**python10(), name: pickle.dumps({"labels": Evil()})})
        with pytest.raises(CifarError, match=rf"expected {name} to be .*it names (posix|nt).system, which is not run"):
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


def test_archives_that_are_no_archives(tmp_path):
    """A little that stands for a lot, a wrong checksum, a compression that is not the official one."""
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=1) as stream:
        head = tarfile.TarInfo("pax")
        head.type, head.size = tarfile.XHDTYPE, 2**32
        stream.write(head.tobuf(tarfile.GNU_FORMAT))
        for _ in range(8):
            stream.write(bytes(2**20))
    (tmp_path / "bomb.tar.gz").write_bytes(bomb.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cifar_files, "_MOST_IN_ARCHIVE", 2**22)
        with pytest.raises(CifarError, match=r"'bomb.tar.gz' holds more than CIFAR's archives do"):
            data.load_cifar(tmp_path / "bomb.tar.gz")
    path = archived(tmp_path / "sum.tar.gz", "x", binary10())
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the CRC
    path.write_bytes(content)
    with pytest.raises(CifarError, match=r"'sum.tar.gz' to be an archive .*CRC check failed"):
        data.load_cifar(path)
    with tarfile.open(tmp_path / "x.tar.xz", "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("train.bin"))
    with pytest.raises(CifarError, match=r"'x.tar.xz' to be an archive"):
        data.load_cifar(tmp_path / "x.tar.xz")
    assert data.load_cifar(archived(tmp_path / "plain.tar", "./x", binary100())).name == "cifar100"


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    source = written(tmp_path / "x", binary10())
    monkeypatch.setattr(_cifar_files, "_MOST_BYTES", 12_291)
    with pytest.raises(CifarError, match=r"data_batch_1.bin' is larger than any file of CIFAR"):
        data.load_cifar(source)


def test_two_data_sets_in_one_place(tmp_path):
    for folder in ("cifar-10-batches-bin", "cifar-100-binary"):
        written(tmp_path / folder, KINDS[folder]())
    with pytest.raises(CifarError, match=r"expected one data set .* cifar-10-batches-bin and cifar-100-binary: name"):
        data.load_cifar(tmp_path)
    assert data.load_cifar(tmp_path / "cifar-100-binary").name == "cifar100"
    with pytest.raises(CifarError, match="expected one data set"):
        data.load_cifar(written(tmp_path / "flat", {**binary10(), **python100()}))
    # Half of one beside a whole one is no choice.
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    assert data.load_cifar(tmp_path).name == "cifar100"


@pytest.mark.parametrize("folder", KINDS)
def test_without_names(tmp_path, folder):
    files = {name: content for name, content in KINDS[folder]().items() if "meta" not in name and "names" not in name}
    found = data.load_cifar(written(tmp_path / folder, files))
    assert "missing: classes " in found.notes[0]
    if "100" in folder:
        assert found.classes == tuple(map(str, range(100)))
        assert found.coarse_classes == tuple(map(str, range(20)))
    else:
        assert (found.classes, found.coarse_classes) == (NAMES, ())


def test_files_past_the_limit_are_not_opened(tmp_path):
    source = written(tmp_path / "x", {**binary10(), "data_batch_3.bin": b"no records"})
    found = data.load_cifar(source, limit_train=2 * PER_FILE - 1)
    assert len(found.train.labels) == 2 * PER_FILE - 1
    assert found.train.images.base.base is None  # nothing of the files is kept
    with pytest.raises(CifarError, match=r"data_batch_3.bin to have a multiple"):
        data.load_cifar(source, limit_train=2 * PER_FILE + 1)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(CifarError, match=r"there is no 'embeded' \(did you mean 'embedded'\?\)"):
        data.load_cifar("embeded")
    with pytest.raises(CifarError, match=r"one of cifar10, cifar100 to fetch, got 'cifar11'"):
        data.load_cifar("fetch:cifar11")
    with pytest.raises(CifarError, match=r"there is no 'CIFAR10' \(did you mean 'fetch:cifar10'\?\)"):
        data.load_cifar("CIFAR10")
    for source in ("~no-such-user-here/x", "a\0b", "x" * 300):
        with pytest.raises(CifarError, match=r"cannot be looked up|there is no|cannot be read"):
            data.load_cifar(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CifarError, match="holds no CIFAR"):
        data.load_cifar(tmp_path / "empty")
    for name in ("limit_train", "limit_test"):
        for value in (0, -1, True, 2.0):
            with pytest.raises(CifarError, match=rf"expected {name} to be a positive whole number, got {value}"):
                data.load_cifar(**{name: value})


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


def test_a_photograph_that_is_not_there(monkeypatch):
    present = embedded_classes.picture_files()[1:]
    monkeypatch.setattr(embedded_classes, "picture_files", lambda source: present)
    embedded_classes.embedded_patches.cache_clear()
    with pytest.raises(CifarError, match=r"expected scikit-image to ship astronaut.png, .* got chelsea.png, "):
        data.load_cifar()


def test_how_hard_the_stand_in_is():
    """Nearest neighbours of the coarse colours: far above 10%, far below what is left to learn."""
    found = data.load_cifar(limit_train=2000, limit_test=500)
    train, test = (
        part.images.reshape(-1, 3, 4, 8, 4, 8).mean((3, 5)).reshape(len(part.images), -1)
        for part in (found.train, found.test)
    )
    distances = np.sum(train**2, axis=1)[None, :] - 2 * test @ train.T
    right = np.mean(found.train.labels[np.argmin(distances, axis=1)] == found.test.labels)
    assert 0.35 < right < 0.7


@pytest.mark.parametrize("width", [451, 512, 600, 640, 741])
def test_stripes_of_training_and_test_share_no_pixel(width):
    columns = [np.concatenate([np.arange(*pair) for pair in _stripes(width, test)]) for test in (False, True)]
    assert len(np.unique(np.concatenate(columns))) == len(columns[0]) + len(columns[1])
    assert min(end - begin for begin, end in _stripes(width, True)) >= max(_SIDES)


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "cifar10_packed.npz").exists(), reason="needs ../shared/data, which is not distributed"
)
def test_the_real_one(tmp_path):
    subprocess.run([sys.executable, str(SHARED / "unpack_cifar10.py"), str(tmp_path)], check=True)
    found = data.load_cifar(tmp_path)
    assert found.notes == ()
    assert found.classes == NAMES
    np.testing.assert_array_equal(np.bincount(found.train.labels), 5000)
    np.testing.assert_array_equal(np.bincount(found.test.labels), 1000)
