"""Arrays and dictionaries in .npy files of others, read without running anything that they say.

`numpy.save` writes a dictionary, and an array of Python objects, as a pickle, which is a program. The few instructions
that integers and strings need are carried out here; there is no instruction that calls, imports or sets anything, and
any other one ends in an error.

Format: `numpy.lib.format`; the instructions are described in Python's `pickletools`.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinowds.errors import SourceError
from dinowds.shard.sources.source import path_text, readable

_MAX_BYTES = 1 << 32
_NUMBER = re.compile(r"[iu][1248]")
_TEXT = re.compile(r"U[0-9]{1,6}")
_BYTE_ORDERS = ("<", ">", "|", "=")

_ENCODE, _RECONSTRUCT, _SCALAR, _NDARRAY, _DTYPE = (("global", index) for index in range(5))
_GLOBALS = {
    "_codecs encode": _ENCODE,
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DTYPE,
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy.core.multiarray scalar": _SCALAR,
    "numpy._core.multiarray scalar": _SCALAR,
}
"""All that a pickle may name. These are marks: nothing is looked up."""


def load_array(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file: mapped and read-only; one of Python's integers and strings is an object array.

    Raises:
        SourceError: it cannot be read, is no array, or holds other objects.
    """
    shape, items = _load(path)
    if isinstance(items, np.ndarray):
        return items
    if any(type(item) not in (int, str) for item in items):
        raise _refused(path, "objects that are neither", "integers and strings")
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


def load_dict(path: Path) -> dict[int, str]:
    """The dictionary of a .npy file, which `numpy.save` made of one of integers to strings.

    Raises:
        SourceError: it cannot be read, or is anything else.
    """
    expected = "a dictionary of integers to strings"
    shape, items = _load(path)
    if isinstance(items, np.ndarray):
        raise SourceError(f"{path_text(path)}: is an array of {items.dtype} {list(shape)}, expected {expected}")
    if shape != () or type(items[0]) is not dict:
        raise _refused(path, "another object", expected)
    found: dict[int, str] = items[0]
    if {type(key) for key in found} - {int} or {type(value) for value in found.values()} - {str}:
        raise _refused(path, "a dictionary of something else", expected)
    return found


def _load(path: Path) -> tuple[tuple[int, ...], Any]:
    """Shape, and the mapped array, or the list of the objects of one."""
    text = path_text(path)
    with readable(text), open(path, "rb") as file:
        try:
            if np.lib.format.read_magic(file) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype.kind == "O":
                    return shape, _read_objects(path, file.read(_MAX_BYTES + 1), shape)
            array = np.lib.format.open_memmap(path, mode="r")
        except (SourceError, OSError):
            raise
        except Exception as error:  # numpy raises whatever the header leads it to.
            raise SourceError(f"{text}: is no array of numpy ({' '.join(str(error).split())[:200]})") from None
    return array.shape, array


def _read_objects(path: Path, content: bytes, shape: tuple[int, ...]) -> list[Any]:
    expected = "integers and strings"
    if len(content) > _MAX_BYTES:
        raise _refused(path, f"more than {_MAX_BYTES} bytes", expected)
    try:
        found = _Machine(content).run()
    except _Refused as error:
        raise _refused(path, str(error), expected) from None
    except (IndexError, KeyError, ValueError, TypeError, MemoryError, SystemError):
        raise _refused(path, "a pickle that is damaged", expected) from None
    if type(found) is not _Array or len(found.items) != math.prod(shape):
        raise _refused(path, "another object", expected)
    return found.items


def _refused(path: Path, found: str, expected: str) -> SourceError:
    return SourceError(
        f"{path_text(path)}: holds {found}, expected {expected}; it is not loaded, as a pickle can run anything"
    )


class _Refused(Exception):
    """The pickle holds what is not read; the argument says what."""


class _Array:
    """An array of Python objects that is being read."""

    items: list[Any]


class _Kind:
    """A type of numpy that is being read."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "|"


class _Machine:
    """A pickle's stack, marks and memo. Errors of its parts come out as they are, or as `_Refused`."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle makes."""
        content, stack, memo, steps = self._content, self._stack, self._memo, _STEPS
        last, place = len(content) - 1, 0
        while True:
            code = content[place]
            # A dictionary of names is numbers, short texts and notes of these; here they take a third of the time.
            if code == _MEMOIZE:
                memo[len(memo)] = stack[-1]
                place += 1
            elif code == _SHORT_TEXT and (end := place + 2 + content[place + 1]) <= last:
                stack.append(str(content[place + 2 : end], "utf-8", "surrogatepass"))
                place = end
            elif code == _BININT and place + 5 <= last:
                stack.append(int.from_bytes(content[place + 1 : place + 5], "little", signed=True))
                place += 5
            elif code == _STOP:
                return stack.pop()
            elif (step := steps[code]) is not None:
                self._place = place + 1
                step(self)
                place = self._place
            else:
                raise _Refused(f"a pickle with the instruction 0x{code:02x}")

    def take(self, count: int) -> bytes:
        place = self._place
        self._place = place + count
        part = self._content[place : self._place]
        if len(part) < count:
            raise ValueError
        return part

    def unsigned(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def last(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise IndexError
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def memoize(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def set_items(self, values: list[Any]) -> None:
        """Keys are compared with nothing but integers and strings: hashing a deep tuple would end the process."""
        target, keys = self._stack[-1], values[::2]
        if type(target) is not dict or {type(key) for key in keys} - {int, str}:
            raise _Refused("a dictionary of something else")
        target.update(zip(keys, values[1::2], strict=True))

    def append(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError
        self._stack[-1].extend(values)

    def name(self, module: Any, name: Any) -> None:
        """Push the mark of a global."""
        if type(module) is not str or type(name) is not str:
            raise TypeError
        found = _GLOBALS.get(f"{module} {name}")
        if found is None:
            raise _Refused(f"an object of {module[:80]!r}, {name[:80]!r}")
        self._stack.append(found)

    def line(self) -> str:
        end = self._content.index(b"\n", self._place)
        text = self._content[self._place : end].decode()
        self._place = end + 1
        return text

    def make(self) -> None:
        """Make what a global of numpy would: an empty array, a type, or a scalar's value."""
        made, arguments = self.last(2)
        if type(arguments) is not tuple:
            raise TypeError
        if made is _RECONSTRUCT and arguments[0] is _NDARRAY:
            self._stack.append(_Array())
        elif made is _DTYPE and type(arguments[0]) is str:
            self._stack.append(_Kind(arguments[0]))
        elif made is _SCALAR:
            self._stack.append(_scalar(*arguments))
        elif made is _ENCODE and [type(value) for value in arguments] == [str, str]:
            self._stack.append(arguments[0].encode("latin-1"))
        else:
            raise _Refused("a pickle that calls something")

    def build(self) -> None:
        """Complete an array or a type with its state."""
        target, state = self.last(2)
        if type(state) is not tuple:
            raise TypeError
        if type(target) is _Kind and state[1] in _BYTE_ORDERS:
            target.order = state[1]
        elif type(target) is _Array and type(state[-1]) is list:
            target.items = state[-1]
        else:
            raise _Refused("an array in an array")
        self._stack.append(target)


def _scalar(kind: Any, content: Any) -> int | str:
    if type(kind) is not _Kind or type(content) is not bytes:
        raise TypeError
    if not (_NUMBER.fullmatch(kind.code) or _TEXT.fullmatch(kind.code)):
        raise _Refused(f"a scalar of numpy's type {kind.code[:20]!r}")
    values = np.frombuffer(content, np.dtype(kind.order + kind.code))
    if len(values) != 1:
        raise ValueError
    found: int | str = values.item()
    return found


def _text(machine: _Machine, length_bytes: int) -> None:
    machine.push(str(machine.take(machine.unsigned(length_bytes)), "utf-8", "surrogatepass"))


def _bytes(machine: _Machine, length_bytes: int) -> None:
    machine.push(machine.take(machine.unsigned(length_bytes)))


_Step = Callable[[_Machine], None]
_STOP, _MEMOIZE, _BININT, _SHORT_TEXT = (
    code[0] for code in (pickle.STOP, pickle.MEMOIZE, pickle.BININT, pickle.SHORT_BINUNICODE)
)
_INSTRUCTIONS: dict[bytes, _Step] = {
    pickle.PROTO: lambda m: _check_protocol(m.unsigned(1)),
    pickle.FRAME: lambda m: _ignore(m.take(8)),
    pickle.MARK: _Machine.mark,
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT1: lambda m: m.push(m.take(1)[0]),
    pickle.BININT2: lambda m: m.push(m.unsigned(2)),
    pickle.BININT: lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.take(m.unsigned(1)), "little", signed=True)),
    pickle.SHORT_BINUNICODE: lambda m: _text(m, 1),
    pickle.BINUNICODE: lambda m: _text(m, 4),
    pickle.SHORT_BINBYTES: lambda m: _bytes(m, 1),
    pickle.BINBYTES: lambda m: _bytes(m, 4),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(tuple(m.last(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.last(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.last(3))),
    pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.append(m.last(1)),
    pickle.APPENDS: lambda m: m.append(m.since_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items(m.last(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.since_mark()),
    pickle.BINPUT: lambda m: m.memoize(m.unsigned(1)),
    pickle.LONG_BINPUT: lambda m: m.memoize(m.unsigned(4)),
    pickle.BINGET: lambda m: m.recall(m.unsigned(1)),
    pickle.LONG_BINGET: lambda m: m.recall(m.unsigned(4)),
    pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.name(*m.last(2)),
    pickle.REDUCE: _Machine.make,
    pickle.BUILD: _Machine.build,
}
_STEPS: list[_Step | None] = [_INSTRUCTIONS.get(bytes([code])) for code in range(256)]


def _check_protocol(number: int) -> None:
    if not 2 <= number <= 5:
        raise _Refused(f"a pickle of protocol {number}")


def _ignore(_frame: bytes) -> None:
    """Frames only tell how much to read ahead."""
