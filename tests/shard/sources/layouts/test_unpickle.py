"""Pickles in .npy files: those of integers and strings are read, all others end in one line and run nothing."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinowds.errors import SourceError
from dinowds.shard.sources.layouts.unpickle import load_array, load_dict

NAMES = {0: "1_2.jpg", 255: "ö 組織.png", 65536: "a" * 300, 2**40: "\udcff.jpg", -1: ""}


def _npy(path: Path, content: bytes, shape: str = "()") -> Path:
    """A .npy file of Python objects whose pickle is `content`."""
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content)
    return path


def _saved(path: Path, value: Any, protocol: int) -> Path:
    return _npy(path, pickle.dumps(np.array(value, object), protocol), str(np.array(value, object).shape))


@pytest.mark.parametrize("names", [NAMES, {}, {index: f"{index}.jpg" for index in range(3000)}])
def test_load_dict__gives_what_numpy_saved(tmp_path: Path, names: dict[int, str]) -> None:
    np.save(tmp_path / "a.npy", names)  # type: ignore[arg-type]
    assert load_dict(tmp_path / "a.npy") == names


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_load_dict__of_any_numpy_and_protocol(tmp_path: Path, protocol: int, module: bytes) -> None:
    """numpy 1 and 2 name their modules differently."""
    content = pickle.dumps(np.array(NAMES, object), protocol)
    other = content.replace(b"\x8c\x16numpy._core.multiarray", bytes([0x8C, len(module)]) + module)
    other = other.replace(b"cnumpy._core.multiarray", b"c" + module)
    assert module in other
    if protocol >= 4:  # the frame's length
        other = other[:3] + struct.pack("<Q", len(other) - 11) + other[11:]
    assert load_dict(_npy(tmp_path / "a.npy", other)) == NAMES


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_load_dict__takes_scalars_of_numpy(tmp_path: Path, protocol: int, kind: type) -> None:
    names = {kind(5): np.str_("ö.jpg"), kind(100): np.str_("b.jpg")}
    assert load_dict(_saved(tmp_path / "a.npy", names, protocol)) == {5: "ö.jpg", 100: "b.jpg"}


@pytest.mark.parametrize("order", ["C", "F"])
def test_load_array__of_objects(tmp_path: Path, order: Any) -> None:
    rows = np.array([[0, "normal"], [1, "tumour"], [np.int64(2), np.str_("ö")]], object, order=order)
    np.save(tmp_path / "a.npy", rows)
    assert load_array(tmp_path / "a.npy").tolist() == [[0, "normal"], [1, "tumour"], [2, "ö"]]


@pytest.mark.parametrize(
    "array", [np.arange(20, dtype=np.uint64).reshape(5, 4), np.array([["0", "a"]]), np.zeros((0, 4))]
)
def test_load_array__of_plain_types(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    found = load_array(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


def _deep(instruction: bytes, count: int = 500_000) -> bytes:
    """A tuple in a tuple in a tuple …, as the key of a dictionary."""
    return b"\x80\x04}" + b")" + instruction * count + b"Ns."


def _hostile(mark: Path) -> dict[str, bytes]:
    system = f"touch {mark}"
    return {
        "reduce": pickle.dumps({0: _Calls(os.system, system)}),
        "eval": pickle.dumps({0: _Calls(builtins.eval, f"open({str(mark)!r}, 'w')")}),
        "array": pickle.dumps(np.array({0: _Calls(os.system, system)}, object)),
        "protocol 0": f"cos\nsystem\n(S'{system}'\ntR.".encode(),
        "inst": f"(S'{system}'\nios\nsystem\n.".encode(),
        "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c"
        + bytes([len(system)])
        + system.encode()
        + b"\x85R.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.",
        "global of lists": b"\x80\x04]]\x93.",
        "extension": b"\x80\x04\x82\x01.",
        "persistent": b"\x80\x04\x8c\x01aQ.",
        "new object": b"\x80\x04cnumpy\nndarray\n)\x81.",
        "array called": b"\x80\x04cnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x40\x85R.",
        "build on a mark": b"\x80\x04cnumpy\nndarray\nN}\x8c\x08__call__NsNtb.",
        "attributes of a type": b"\x80\x04cnumpy\ndtype\n\x8c\x02i8\x85R}\x8c\x01a\x8c\x01bsb.",
        "type of objects": b"\x80\x04cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n\x8c\x02O8\x85RC\x08aaaaaaaa\x86R.",
        "huge memo": b"\x80\x04Nr\xff\xff\xff\xff.",
        "huge text": b"\x80\x04X\xff\xff\xff\xff.",
        "huge bytes": b"\x80\x04B\xff\xff\xff\xff.",
        "huge byte array": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "huge number": b"\x80\x04\x8b\xff\xff\xff\x7f.",
        "digits": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
        "deep keys": _deep(b"\x85"),
        "deep values": b"\x80\x04}K\x00" + b"]" * 100_000 + b"a" * 99_999 + b"s.",
        "itself": b"\x80\x04}q\x00K\x00h\x00s.",
        "keys of lists": b"\x80\x04}]Ns.",
        "odd items": b"\x80\x04}(K\x00u.",
        "no stack": b"\x80\x04.",
        "no mark": b"\x80\x04t.",
        "no key": b"\x80\x04h\x07.",
        "nothing": b"",
        "cut": pickle.dumps(np.array(NAMES, object))[:-20],
        "floats": pickle.dumps(np.array({0: 1.5}, object)),
        "bytes": pickle.dumps(np.array({0: b"a"}, object)),
        "booleans": pickle.dumps(np.array({True: "a"}, object)),
        "texts": pickle.dumps(np.array({"a": "a"}, object)),
        "a dictionary alone": pickle.dumps(NAMES),
        "a set": pickle.dumps(np.array({"a"}, object)),
        "array in array": pickle.dumps(np.array({0: np.arange(3)}, object)),
        "text of no characters": pickle.dumps(np.array({0: np.str_("a")}, object)).replace(
            b"a\0\0\0", b"\xff\xff\xff\xff"
        ),
    }


@pytest.mark.parametrize("name", sorted(_hostile(Path("mark"))))
def test_load_dict__refuses_everything_else(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    path = _npy(tmp_path / "hostile.npy", _hostile(mark)[name])
    with pytest.raises(SourceError, match=r"hostile\.npy: holds ") as error:
        load_dict(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert not mark.exists()


def test_load_dict__never_sets_what_later_reads_see(tmp_path: Path) -> None:
    test_load_dict__refuses_everything_else(tmp_path, "build on a mark")
    np.save(tmp_path / "a.npy", NAMES)  # type: ignore[arg-type]
    assert load_dict(tmp_path / "a.npy") == NAMES


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUM",
        b"PK\x03\x04" + bytes(100),
        pickle.dumps(NAMES),
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr': '<u8', 'fortran_order': False, 'shape': (1000, 4)}",
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr': [('a','O')],'fortran_order':False,'shape': (1,), }",
        b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16,
        b"\x93NUMPY\x02\x00\x3c\x00\x00\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }      " + b"N.",
    ],
)
def test_load_array__refuses_what_is_no_array(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    for load in (load_array, load_dict):
        with pytest.raises(SourceError, match=r"a\.npy: is no array of numpy") as error:
            load(tmp_path / "a.npy")
        assert "\n" not in str(error.value)


def test_load_array__names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.npy: no such file"):
        load_array(tmp_path / "none.npy")


def test_load_array__refuses_more_objects_than_its_shape(tmp_path: Path) -> None:
    content = pickle.dumps(np.array([[1, "a"]], object))
    with pytest.raises(SourceError, match="holds another object"):
        load_array(_npy(tmp_path / "a.npy", content, "(2, 2)"))


def test_load_dict__refuses_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(SourceError, match=r"is an array of float64 \[2, 3\], expected a dictionary"):
        load_dict(tmp_path / "a.npy")
