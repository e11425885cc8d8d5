"""Look-ups in `samples.parquet`, which all processes of a host share.

A row group is decoded when one of its samples is first asked for, packed (`shardrows`) and appended to one file in the
cache folder, which every process maps. What a process holds of its own are a few numbers a shard.

    head · rows of each row group · places of its column chunks · entries [shards, 2]: place, length · packed shards …

Nothing that was written is written over. An entry follows its packed shard and both are checked before they are
believed, once in each process, so a kill or a power cut at any moment costs at most one decoding.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import struct
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dinowds.data.index.rowgroups import COLUMNS, NUMBERS, RowGroups
from dinowds.data.index.shardrows import CATEGORIES, ROW, ROW_COLUMNS, ShardRows, is_whole, pack_rows
from dinowds.data.index.unused import mark_used, remove_unused
from dinowds.data.manifest import Manifest
from dinowds.errors import DatasetError
from dinowds.files import atomic_write, cache_folder, waiting_lock

_FORMAT = "dinowds index 1"
_HEAD = struct.Struct("<16sQQ")  # format; xxh3-64 of what follows, up to the entries; row groups
_ALIGN = 64
_KEY_BYTES = 24  # more than dinowds's own keys take; only decides how much room is reserved at first
_GROWTH = 64 << 20
_KEPT_PACKED = 64  # about 1 MB each

_log = logging.getLogger(__name__)
_warned_of: set[Path] = set()


class Index:
    """The samples of each shard. Opens files when they are needed, in each process."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """
        Args:
            path: samples.parquet on a local disk.
            manifest: what it says of samples.parquet is not checked here. A file of another size or time of change
                gets another index.
        """
        self.path = path
        self._manifest = manifest
        self._cohorts = {name: position for position, name in enumerate(manifest.cohorts)}
        self._packed: OrderedDict[int, bytes] = OrderedDict()
        self._shared: _SharedFile | None = None
        self._groups: RowGroups | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Index, (self.path, self._manifest))

    @property
    def groups(self) -> RowGroups:
        """The row groups of samples.parquet. Parses its footer if no process of this host has done so.

        Raises:
            DatasetError: it cannot be read, or is no index of this format.
        """
        if self._groups is None:
            self._open()
        assert self._groups is not None
        return self._groups

    def rows(self, shard: int) -> ShardRows:
        """All samples of a shard.

        Raises:
            DatasetError: the row group cannot be read or holds what cannot be.
        """
        num_rows = int(self.groups.counts[shard])
        if self._shared is not None and (found := self._shared.find(shard, num_rows)) is not None:
            return found
        if (packed := self._packed.get(shard)) is not None:
            return ShardRows(packed)
        packed = self._decode(shard)
        if self._shared is not None and (found := self._add(shard, num_rows, packed)) is not None:
            return found
        self._packed[shard] = packed
        if len(self._packed) > _KEPT_PACKED:
            self._packed.popitem(last=False)
        return ShardRows(packed)

    def forget(self) -> None:
        """Remove this host's file of it from the cache folder. Who has it mapped keeps it; no one finds it any more."""
        with suppress(OSError):  # there is none, or it is another user's
            self._cached().unlink()

    def _add(self, shard: int, num_rows: int, packed: bytes) -> ShardRows | None:
        try:
            if self._shared is not None and not self._shared.is_in_place():  # the cache was cleared meanwhile
                self._open()
            return None if self._shared is None else self._shared.add(shard, num_rows, packed)
        except OSError as error:
            self._do_without(error)
            return None

    def _decode(self, shard: int) -> bytes:
        rows = self.groups.read(shard, ROW_COLUMNS, CATEGORIES)
        try:
            return pack_rows(shard, rows, self._manifest.shards[shard].num_bytes, self._cohorts)
        except ValueError as error:
            raise DatasetError(f"{self.path}: row group {shard} {error}; make the dataset again") from None

    def _open(self) -> None:
        path = self._cached()
        try:
            self._shared = _SharedFile.open(path, self.path, self._manifest.samples_footer_sha256)
            mark_used(path)
            self._groups = RowGroups(self.path, self._shared.counts, self._shared.places)
        except OSError as error:
            self._do_without(error)
            self._groups = RowGroups.locate(self.path, self._manifest.samples_footer_sha256)

    def _cached(self) -> Path:
        return cache_folder() / "index" / self._file_name()

    def _file_name(self) -> str:
        try:
            about = self.path.stat()
        except FileNotFoundError:
            raise DatasetError(
                f"{self.path}: no such file, though there is a manifest; make the dataset again"
            ) from None
        except OSError as error:
            raise DatasetError(f"{self.path}: cannot be read ({error.strerror}); make the dataset again") from None
        shard_bytes = [shard.num_bytes for shard in self._manifest.shards]
        identity = (
            *(_FORMAT, self._manifest.samples_sha256, about.st_size, about.st_mtime_ns),
            *(tuple(self._cohorts), shard_bytes, _this_host()),
        )
        return f"{xxhash.xxh3_128_hexdigest(repr(identity).encode())}.index"

    def _do_without(self, error: OSError) -> None:
        self._shared = None
        folder = cache_folder() / "index"
        if folder in _warned_of:
            return
        _warned_of.add(folder)
        _log.warning(
            "%s: cannot be used (%s), so every process decodes the index for itself, which is slow; set DINOWDS_CACHE "
            "to a folder on a local disk with room for it",
            folder,
            error.strerror or error,
        )


def _this_host() -> tuple[str, str]:
    """Hosts may have one cache folder, on a file system where a lock holds on its own host alone."""
    try:
        machine = Path("/etc/machine-id").read_text(errors="replace")
    except OSError:
        machine = ""
    return socket.gethostname(), machine


class _SharedFile:
    """The mapped file of packed shards. Raises OSError where it cannot be made, mapped, locked or written."""

    def __init__(self, path: Path, map_: mmap.mmap, about: os.stat_result) -> None:
        """Raises ValueError if the head is not whole."""
        self._path, self._map, self._about = path, map_, about
        if len(map_) < _HEAD.size:
            raise ValueError
        text, checksum, shards = _HEAD.unpack_from(map_)
        self._entries_start = _HEAD.size + 8 * shards * (1 + len(COLUMNS) * len(NUMBERS))
        self._first = self._entries_start + 16 * shards
        if text.rstrip(b"\0") != _FORMAT.encode() or len(map_) < self._first:
            raise ValueError
        with memoryview(map_) as view, view[24 : self._entries_start] as content:
            if xxhash.xxh3_64_intdigest(content) != checksum:
                raise ValueError
        numbers = np.frombuffer(map_, np.int64, shards * (1 + len(COLUMNS) * len(NUMBERS)), _HEAD.size)
        self.counts: NDArray[np.int64] = numbers[:shards]
        self.places: NDArray[np.int64] = numbers[shards:].reshape(shards, len(COLUMNS), len(NUMBERS))
        self._entries = np.frombuffer(map_, np.int64, 2 * shards, self._entries_start).reshape(shards, 2)
        self._checked = np.full(shards, -1, np.int64)  # where a shard lies that this process has found whole

    @classmethod
    def open(cls, path: Path, samples: Path, footer: str) -> _SharedFile:
        """Map the file at `path`; if it is missing or not whole, it is made from the footer of `samples`."""
        try:
            return cls(path, *_map(path))
        except (FileNotFoundError, ValueError):
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(path.with_name(".lock")):
            try:
                return cls(path, *_map(path))
            except (FileNotFoundError, ValueError):
                remove_unused(path.parent)
                _create(path, RowGroups.locate(samples, footer))
        return cls(path, *_map(path))

    def is_in_place(self) -> bool:
        """Whether the file that is mapped is the one that other processes find."""
        try:
            return os.path.samestat(self._path.stat(), self._about)
        except FileNotFoundError:
            return False

    def find(self, shard: int, num_rows: int) -> ShardRows | None:
        """The packed shard, if it is there and whole."""
        start = int(self._checked[shard])
        if start < 0:
            start, length = self._entries[shard].tolist()
            if start + length > len(self._map):
                self._map_again()
            if start < self._first or start + length > len(self._map):
                return None
            if not is_whole(self._map, start, length, shard, num_rows):
                return None
            self._checked[shard] = start
        return ShardRows(self._map, start)

    def add(self, shard: int, num_rows: int, packed: bytes) -> ShardRows:
        """Append a packed shard, unless another process has done so meanwhile."""
        with waiting_lock(self._path) as descriptor:
            about = os.fstat(descriptor)
            if not os.path.samestat(about, self._about):
                return ShardRows(packed)  # in a file that another process has just made; the next look-up opens it
            if (found := self.find(shard, num_rows)) is not None:
                return found
            ends = self._entries.sum(axis=1)
            end = int(ends[ends <= about.st_size].max(initial=self._first))
            start = -(-end // _ALIGN) * _ALIGN
            if start + len(packed) > about.st_size:
                os.ftruncate(descriptor, start + len(packed) + _GROWTH)
            _write_at(descriptor, packed, start)
            _write_at(descriptor, struct.pack("<qq", start, len(packed)), self._entries_start + 16 * shard)
        found = self.find(shard, num_rows)
        return ShardRows(packed) if found is None else found

    def _map_again(self) -> None:
        """Map what the file has grown to. Views keep the maps that they were made on."""
        map_, about = _map(self._path)
        if os.path.samestat(about, self._about):
            self._map, self._about = map_, about


def _map(path: Path) -> tuple[mmap.mmap, os.stat_result]:
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), about


def _create(path: Path, groups: RowGroups) -> None:
    content = struct.pack("<Q", len(groups.counts)) + groups.counts.tobytes() + groups.places.tobytes()
    head = _FORMAT.encode().ljust(16, b"\0") + struct.pack("<Q", xxhash.xxh3_64_intdigest(content)) + content
    first = len(head) + 16 * len(groups.counts)
    with atomic_write(path) as file:
        file.write(head)
        file.truncate(first + int(groups.counts.sum()) * (ROW.itemsize + _KEY_BYTES) + 256 * len(groups.counts))


def _write_at(descriptor: int, content: bytes, start: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, start)
        view, start = view[written:], start + written
