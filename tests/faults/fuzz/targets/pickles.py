"""Arrays and indices that came with the files of other tools."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator

import numpy as np

from dinowds.errors import SourceError
from dinowds.shard.sources.layouts import webdataset
from dinowds.shard.sources.layouts.unpickle import load_array, load_dict
from tests.faults.fuzz.targets import Finding, scratch

_INDICES = (".nv-meta/.info.json", "_info.json", "sizes.json", "wids.json")


def unpickle(data: bytes) -> None:
    """A .npy file; or, where the first byte is odd, the pickle in one, of the shape that the second byte chooses."""
    content = data[1:]
    if data[:1] and data[0] & 1:
        shape = "()" if content[:1] == b"\0" else f"({len(content) and content[0]},)"
        header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content[1:]
    path = scratch(content, "array.npy")
    try:
        found = load_dict(path)
        if {type(key) for key in found} - {int} or {type(value) for value in found.values()} - {str}:
            raise Finding(f"a dictionary of other things: {found!r}")
    except SourceError:
        pass
    try:
        array = load_array(path)
        if array.dtype.kind == "O" and {type(item) for item in array.ravel()} - {int, str}:
            raise Finding(f"an array of other things: {array!r}")
    except SourceError:
        pass


def unpickle_seeds() -> Iterator[bytes]:
    names = {0: "1_2.jpg", 255: "ö 組織.png", 65536: "a" * 30, 2**40: "\udcff.jpg", -1: "", np.int64(7): np.str_("x")}
    for protocol in (2, 3, 4, 5):
        yield b"\1\0" + pickle.dumps(np.array(names, object), protocol)
        yield b"\1\3" + pickle.dumps(np.array([1, "a", np.int32(5)], object), protocol)
    path = scratch(b"", "seed.npy")
    for array in (np.arange(6, dtype=">i4").reshape(2, 3), np.array(["a", "bc"]), np.array([1, "a"], object)):
        np.save(path, array, allow_pickle=True)
        yield b"\0" + path.read_bytes()


def sidecars(data: bytes) -> None:
    """The JSON of an index of shards, under a name that the first byte chooses."""
    folder = scratch(b"", "none").parent / "shards"
    (folder / ".nv-meta").mkdir(parents=True, exist_ok=True)
    for name in _INDICES:
        (folder / name).unlink(missing_ok=True)
    (folder / _INDICES[data[0] % len(_INDICES) if data else 0]).write_bytes(data[1:])
    (folder / "a.tar").touch()
    found = webdataset._read_index(folder)
    for shards in found[1].values() if found else ():
        _check_texts(shards)


def _check_texts(shards: list[str]) -> None:
    if not all(isinstance(shard, str) for shard in shards):
        raise Finding(f"names of shards that are no text: {shards!r}")


def sidecars_seeds() -> Iterator[bytes]:
    for number, content in enumerate(
        (
            {"shard_counts": {"a.tar": 3}},
            {"splits": {"train": {"filenames": ["a.tar"], "shard_lengths": [3]}}},
            {"a.tar": 3},
            {"wids_version": 1, "shardlist": [{"url": "a.tar", "nsamples": 3}]},
        )
    ):
        yield bytes([number]) + json.dumps(content).encode()
    yield b"\1" + json.dumps({"splits": {"train": {"filenames": [1, "a.tar"]}, "test": [2]}}).encode()
    yield b"\3" + json.dumps({"wids_version": 1, "shardlist": [{"url": 3}, 4]}).encode()
    yield b"\2" + b"[" * 100_000
