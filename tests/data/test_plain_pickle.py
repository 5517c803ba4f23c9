"""Pickles of plain data are read as Python reads them; everything else is refused, quickly, and nothing is run."""

import contextlib
import hashlib
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest
from cifar_files import COARSE, FINE, NAMES, Python2, images, meta10, meta100
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.data import _plain_pickle
from cnninv_jax.data._cifar_python import python_names, python_records
from cnninv_jax.data._plain_pickle import Made, Named, PickleRefused, read_plain
from cnninv_jax.data.errors import CifarError

TEXT = st.text(max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | TEXT
    | st.binary(min_size=1, max_size=600),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)  # fmt: skip


def owned(value):
    """The same with views made bytes."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list | tuple):
        return type(value)(map(owned, value))
    return {key: owned(entry) for key, entry in value.items()} if isinstance(value, dict) else value


@settings(max_examples=80, deadline=None)
@given(value=PLAIN, protocol=st.integers(2, 5))
def test_plain_data_is_what_python_reads(value, protocol):
    found = owned(read_plain(pickle.dumps(value, protocol)))
    assert found == value
    assert repr(found) == repr(value)  # 1 is not True


def test_the_official_lists_of_names():
    """Written by the rules of this file they have the checksums that other loaders know of the official ones."""
    for content, checksum in (
        (meta10(), "5ff9c542aee3614f3951f8cda6e48888"),
        (meta100(), "7973b15100ade9c7d40fb424638fde48"),
    ):
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == checksum
    assert python_names(meta10(), "x") == {"label_names": NAMES}
    assert python_names(meta100(), "x") == {"fine_label_names": FINE, "coarse_label_names": COARSE}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_python_3(protocol, order):
    pixels = np.array(images(3, 0), order=order)
    content = pickle.dumps({b"labels": [1, 2, 0], b"data": pixels}, protocol)
    found, labels = python_records(content, "x", False)
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(labels, [[1], [2], [0]])
    if protocol != 2:  # where bytes are written as text
        held = np.frombuffer(content, np.uint8)
        assert np.shares_memory(found, held)  # no copy


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def long_text(text):
    return b"X" + struct.pack("<I", len(text)) + text


def evil_pickles(marker):
    """What would run something, look something up, or change something that is let through."""
    writing = f"open({str(marker)!r}, 'w')"
    for protocol in range(6):
        yield pickle.dumps({"labels": [0], "data": Evil(os.system, f"touch {marker}")}, protocol)
        yield pickle.dumps([[({"a": Evil(eval, writing)},)]], protocol)
        yield pickle.dumps(Evil(exec, writing), protocol)
        yield pickle.dumps({"labels": [0], "data": np.array([[os.system]], dtype=object)}, protocol)
        yield pickle.dumps({"labels": [0], "data": np.array([[Evil(eval, writing)]], dtype=object)}, protocol)
    yield b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    yield b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n."
    yield b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93."
    yield b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93."
    yield b"\x80\x02cnumpy.core.multiarray\n_reconstruct.__globals__\n."
    yield b"\x80\x02cnumpy\nndarray\n(tR."
    yield b"\x80\x02cnumpy\nndarray\n)\x81."
    yield b"\x80\x02cnumpy\ndtype\n)\x81}b."
    yield b"\x80\x02c_codecs\nencode\n" + long_text(b"x") + long_text(b"rot13") + b"\x86R."
    yield b"\x80\x02c_codecs\nencode\nN}" + long_text(b"__defaults__") + b"Ns\x86b."  # sets an attribute of a function
    yield b"\x80\x02\x82\x01."
    yield b"\x80\x02" + long_text(b"x") + b"Q."
    yield b"Px\n."


def test_nothing_runs(tmp_path):
    marker = tmp_path / "ran"
    count = 0
    for content in evil_pickles(marker):
        with pytest.raises(CifarError) as caught:
            python_records(content, "data_batch_1", False)
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith("expected data_batch_1 to")
        assert not marker.exists()
        count += 1
    assert count > 40


def nested_key():
    """A dictionary whose key is a pair of pairs of pairs ...: to hash it takes 2^200 steps."""
    doubling = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(200))
    return b"\x80\x02)q\x00(" + doubling + b"l}h\xc8K\x01s."


BOMBS = {
    "nested key": nested_key(),
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b".",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "text": b"\x80\x02X\xff\xff\xff\xff.",
    "negative": b"\x80\x02T\xff\xff\xff\xff.",
    "long number": b"\x80\x02\x8b" + struct.pack("<i", 4000) + b"\x7f" * 4000 + b".",
    "frame": b"\x80\x04\x95" + b"\xff" * 8 + b".",
    "marks": b"\x80\x02" + b"(" * 1000,
    "for ever": b"\x80\x02" + b"N" * 2000 + b".",
    "encodings": b"\x80\x02c_codecs\nencode\n" + long_text(b"x" * 2**16) + long_text(b"latin1") + b"\x86q\x00R0"
                 + b"c_codecs\nencode\nh\x00R" * 100 + b".",
    "unclosed": b"\x80\x02}(",
    "odd": b"\x80\x02}(Nu.",
    "two states": b"\x80\x02cnumpy\ndtype\n)R(Ntb(tb.",
    "protocol": b"\x80\x06N.",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb, monkeypatch):
    monkeypatch.setattr(_plain_pickle, "_MOST_STEPS", 2000)
    tracemalloc.start()
    try:
        with pytest.raises(PickleRefused):
            read_plain(BOMBS[bomb])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**21 + 16 * len(BOMBS[bomb])


def test_a_place_in_the_memo_takes_no_memory():
    tracemalloc.start()
    try:
        assert read_plain(b"\x80\x02Nr\xff\xff\xff\x7f.") is None
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


def test_what_numpy_would_make_is_only_written_down():
    made = read_plain(pickle.dumps(np.dtype("u1"), 2))
    assert isinstance(made, Made)
    assert (made.maker, made.arguments[0]) == ("numpy.dtype", "u1")
    assert isinstance(read_plain(b"\x80\x02cnumpy\nndarray\n."), Named)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 3072), np.int8),
        np.zeros((2, 3072), np.float64),
        np.zeros((2, 3072), "S1"),
        np.zeros((2, 3072), [("a", "u1")]),
        np.zeros((2, 3071), np.uint8),
        np.zeros((2, 3, 1024), np.uint8),
        np.zeros(6144, np.uint8),
        np.zeros((0, 3072), np.uint8),
        np.ma.zeros((2, 3072), np.uint8),
        np.uint8(3),
        [0] * 6144,
        bytes(6144),
        {"data": 1},
        None,
    ],
    ids=lambda data: f"{getattr(data, 'dtype', type(data).__name__)}{getattr(data, 'shape', '')}",
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_other_arrays(data, protocol):
    with pytest.raises(CifarError, match=r"^expected x to (hold data|hold 3,072 bytes|be a file of CIFAR's python)"):
        python_records(pickle.dumps({"labels": [0, 1], "data": data}, protocol), "x", False)


@pytest.mark.parametrize("shape", [(2, 3073), (10**9, 3072), (2**64, 2**64), (-2, -3072), (2, True)])
def test_shapes_that_lie(shape):
    content = Python2().mapping({"labels": [0, 1], "data": images(2, 0)})
    sides = b"".join(pickle.dumps(side, 2)[2:-1] for side in shape)
    start = content.index(b"K\x02M\x00\x0c\x86")
    with pytest.raises(CifarError, match="3,072 bytes for each of its images"):
        python_records(content[:start] + sides + content[start + 5 :], "x", False)


CODES = [ord(entry.code) for entry in pickletools.opcodes]


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from(CODES).map(lambda code: bytes([code])),
            st.binary(max_size=6),
            st.sampled_from(
                [b"cnumpy\ndtype\n", b"c_codecs\nencode\n", long_text(b"latin1"), b"K\x01", b")", b"}", b"("]
            ),
        ),
        max_size=40,
    )
)
def test_arbitrary_programs(parts):
    with contextlib.suppress(PickleRefused):  # and nothing else
        read_plain(b"\x80\x02" + b"".join(parts) + b".")
