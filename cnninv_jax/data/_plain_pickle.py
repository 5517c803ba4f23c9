"""What a pickle of plain data holds, found by a reader that can do nothing but hold it.

A pickle is a program for a stack machine that calls what it names. Python's own reader stays dangerous where only its
``find_class`` is restricted: some operations set attributes of what is let through, some ask for as much memory as a
number in the file says, and a dictionary's key may take for ever to hash. This reader knows the operations of plain
data alone: numbers, text, bytes, tuples, lists, dictionaries with text for keys. The few names that NumPy's arrays need
become notes of what was named and with what arguments; nothing is looked up or called, every other name is refused.

Format: the comments of CPython's ``pickletools``, protocols 1 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RECONSTRUCT = frozenset(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
FROM_BUFFER = frozenset(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core"))
NDARRAY, DTYPE = "numpy.ndarray", "numpy.dtype"
#: By it Python 3 writes bytes into pickles that Python 2 can read.
_ENCODE = "_codecs.encode"
_NAMES = RECONSTRUCT | FROM_BUFFER | {NDARRAY, DTYPE, _ENCODE}
#: A step is an operation; the largest official file takes 250,000.
_MOST_STEPS = 1_000_000
_LONGEST_NAME = 128
#: Bytes longer than this are not copied out of the file.
_SHORT = 255


class PickleRefused(ValueError):
    """The pickle is damaged, or more than plain data."""


@dataclass(eq=False, slots=True)
class Named:
    """A name that stands in a pickle, with nothing behind it."""

    name: str


@dataclass(eq=False, slots=True)
class Made:
    """What a pickle would have made: by which name, of what arguments, and brought to what state."""

    maker: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_plain(content: bytes) -> Any:
    """Return what the pickle holds: plain objects, `Named` and `Made`; long bytes are views of ``content``.

    Raises:
        PickleRefused: it is damaged, or asks for anything else.

    Cost: at most a million operations, and memory in proportion to the content.
    """
    machine = _Machine(content)
    try:
        return machine.run()
    except (IndexError, KeyError, ValueError, struct.error) as error:
        if isinstance(error, PickleRefused):
            raise
        raise PickleRefused("its operations do not fit together") from error


class _Machine:
    """The stack machine."""

    def __init__(self, content: bytes) -> None:
        self.content = memoryview(content)
        self.at = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        # Encoded text is new memory, and a pickle may name one text many times.
        self.encodable = len(content)

    def run(self) -> Any:
        for _ in range(_MOST_STEPS):
            code = self.content[self.at]
            self.at += 1
            if code == ord("."):
                return self.stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise PickleRefused(f"operation 0x{code:02x} is none of plain data")
            operation(self)
        raise PickleRefused(f"more than {_MOST_STEPS:,} operations")

    def take(self, count: int) -> memoryview:
        """Return the next bytes."""
        if not 0 <= count <= len(self.content) - self.at:
            raise PickleRefused("it ends too early")
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def bytes_of(self, count: int) -> None:
        self.stack.append(bytes(self.take(count)) if count <= _SHORT else self.take(count))

    def text_of(self, count: int) -> None:
        self.stack.append(str(self.take(count), "utf-8"))

    def frame(self) -> None:
        """Skip the length of a frame, which only says how much to read ahead."""
        self.take(8)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        """Return what was put since the mark."""
        found, self.stack = self.stack, self.marked.pop()
        return found

    def close(self, kind: type) -> None:
        entries = kind(self.to_mark())
        self.stack.append(entries)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise PickleRefused("it takes more than it put")
        start = len(self.stack) - count
        self.stack[start:] = [tuple(self.stack[start:])]

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise PickleRefused("its operations do not fit together")
        return self.stack[-1]

    def extend(self, entries: list[Any]) -> None:
        self.top(list).extend(entries)

    def update(self, entries: list[Any]) -> None:
        held = self.top(dict)
        for key, value in zip(entries[::2], entries[1::2], strict=True):
            # Other keys may be nested tuples, whose hash takes exponential time.
            if not isinstance(key, (bytes, str)):
                raise PickleRefused("a dictionary whose keys are no text")
            held[key.decode("latin-1") if isinstance(key, bytes) else key] = value

    def pair(self) -> list[Any]:
        value = self.stack.pop()
        return [self.stack.pop(), value]

    def line(self) -> str:
        line = bytes(self.content[self.at : self.at + _LONGEST_NAME])
        end = line.index(b"\n")
        self.at += end + 1
        return line[:end].decode("ascii")

    def named(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleRefused("a name that is no text")
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise PickleRefused(f"it names {full[:80]}, which is not run")
        self.stack.append(Named(full))

    def call(self) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        if not (isinstance(maker, Named) and isinstance(arguments, tuple)) or maker.name == NDARRAY:
            raise PickleRefused("it calls what is no function")
        self.stack.append(self.encoded(*arguments) if maker.name == _ENCODE else Made(maker.name, arguments))

    def encoded(self, text: Any = None, encoding: Any = None, *others: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1") or others:
            raise PickleRefused("bytes in an unusual form")
        self.encodable -= len(text)
        if self.encodable < 0:
            raise PickleRefused("it holds more than its own length")
        return text.encode("latin-1")

    def build(self) -> None:
        state = self.stack.pop()
        made = self.top(Made)
        if made.state is not None:
            raise PickleRefused("it sets one state twice")
        made.state = state

    def memoize(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def repeat(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def protocol(self) -> None:
        if self.number(1) > 5:
            raise PickleRefused("a protocol above 5")


def _put(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _put_number(width: int, signed: bool = False) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.number(width, signed))


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): _put(None), 0x88: _put(True), 0x89: _put(False),
    ord("K"): _put_number(1), ord("M"): _put_number(2), ord("J"): _put_number(4, True),
    0x8A: lambda machine: machine.stack.append(machine.number(machine.number(1), True)),
    ord("G"): lambda machine: machine.stack.append(struct.unpack(">d", machine.take(8))[0]),
    # Text of Python 2, and bytes.
    ord("U"): lambda machine: machine.bytes_of(machine.number(1)),
    ord("T"): lambda machine: machine.bytes_of(machine.number(4, True)),
    ord("C"): lambda machine: machine.bytes_of(machine.number(1)),
    ord("B"): lambda machine: machine.bytes_of(machine.number(4)),
    0x8E: lambda machine: machine.bytes_of(machine.number(8)),
    0x96: lambda machine: machine.bytes_of(machine.number(8)),
    # Text.
    0x8C: lambda machine: machine.text_of(machine.number(1)),
    ord("X"): lambda machine: machine.text_of(machine.number(4)),
    0x8D: lambda machine: machine.text_of(machine.number(8)),
    ord(")"): lambda machine: machine.tuple_of(0), 0x85: lambda machine: machine.tuple_of(1),
    0x86: lambda machine: machine.tuple_of(2), 0x87: lambda machine: machine.tuple_of(3),
    ord("t"): lambda machine: machine.close(tuple), ord("l"): lambda machine: machine.close(list),
    ord("]"): lambda machine: machine.stack.append([]),
    ord("a"): lambda machine: machine.extend([machine.stack.pop()]),
    ord("e"): lambda machine: machine.extend(machine.to_mark()),
    ord("}"): lambda machine: machine.stack.append({}),
    ord("s"): lambda machine: machine.update(machine.pair()),
    ord("u"): lambda machine: machine.update(machine.to_mark()),
    # The memo is a dictionary: a place is a key and asks for no memory.
    ord("q"): lambda machine: machine.memoize(machine.number(1)),
    ord("r"): lambda machine: machine.memoize(machine.number(4)),
    0x94: lambda machine: machine.memoize(len(machine.memo)),
    ord("h"): lambda machine: machine.repeat(machine.number(1)),
    ord("j"): lambda machine: machine.repeat(machine.number(4)),
    ord("c"): lambda machine: machine.named(machine.line(), machine.line()),
    0x93: lambda machine: machine.named(*machine.pair()),
    ord("R"): _Machine.call,
    ord("b"): _Machine.build,
}  # fmt: skip


__all__ = ["DTYPE", "FROM_BUFFER", "NDARRAY", "RECONSTRUCT", "Made", "Named", "PickleRefused", "read_plain"]
