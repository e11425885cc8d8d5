"""Chunks of a dataset's remote shards, as one process reads them through the cache."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

import xxhash

from dinowds.data.dataset import Sample
from dinowds.data.manifest import Manifest
from dinowds.data.store.cache import CacheOptions, ChunkCache, FullDiskError, OpenChunk, chunk_name
from dinowds.errors import ConfigError, DatasetError
from dinowds.remote.files import RemoteFiles, ShortFileError, shown

_CHECKSUM_BYTES = 16
_FULL_FOR_S = 300.0
"""How long a cache whose disk is full is left alone."""
_OPEN_CHUNKS = 64  # what they hold on disk after their eviction comes on top of the cache's bound


class Run(NamedTuple):
    """Bytes [start, stop) of a shard that are read together."""

    shard: int
    start: int
    stop: int


class Shards(Protocol):
    """What reading needs of a dataset."""

    @property
    def manifest(self) -> Manifest:
        """Sizes and digests of the shards."""
        ...

    def shard_url(self, shard: int) -> str:
        """Path or URL of the tar."""
        ...


class RemoteChunks:
    """Fetches runs and keeps those that fit in the cache. Safe between threads; of one process.

    Where the digests of payloads are not verified, chunks are kept with a checksum of their own (a power cut can leave
    zeros in a file), and by the shard's URL too: its digest is only what a manifest says.
    """

    def __init__(self, dataset: Shards, verify_digests: bool, cache: CacheOptions, files: RemoteFiles) -> None:
        self._dataset, self._verify, self._files = dataset, verify_digests, files
        self._cache = ChunkCache(cache)
        self._open: OrderedDict[Run, OpenChunk] = OrderedDict()  # each step on it is atomic by itself
        self._sized: set[int] = set()
        self._counting = threading.Lock()
        self._full_until = 0.0
        self.bytes_fetched = 0
        with suppress(ConfigError):  # a cache that cannot be written may still hold what is needed
            self._cache.clean()

    def read(self, run: Run, offset: int, size: int) -> bytes | None:
        """`size` bytes from `offset` in the shard, from the chunk of `run`; None where such a chunk is not kept."""
        chunk = self._chunk(run)
        if chunk is None:
            return None
        try:
            return chunk.read(offset - run.start, size)
        except OSError:  # of the cache's disk: the caller finds the payload short and has it fetched
            return b""

    def prepare(self, run: Run) -> None:
        """Fetch a run into the cache, unless somebody does already."""
        if self._fits(run):
            with self._noting_full_disk():
                self._cache.prepare(self._name(run), self._kept_bytes(run), lambda: self._fetch_to_keep(run))

    def discard(self, run: Run) -> None:
        """Throw the kept chunk away: its content is wrong."""
        if (chunk := self._open.pop(run, None)) is not None:
            self._cache.discard(self._name(run), chunk)

    def fetch(self, run: Run) -> bytes:
        """The bytes of a run, over the net."""
        if not self._verify and run.shard not in self._sized:
            self.check_size(run.shard)
        try:
            content = self._files.read(self._dataset.shard_url(run.shard), run.start, run.stop)
        except ShortFileError:
            self.check_size(run.shard)
            raise
        with self._counting:
            self.bytes_fetched += len(content)
        return content

    def check_size(self, shard: int) -> None:
        """Ask for the size of a shard. DatasetError: it is not what the manifest says."""
        check_size(self._dataset, shard, self._files.size(self._dataset.shard_url(shard)))
        self._sized.add(shard)

    def close(self) -> None:
        """Let go of open chunks."""
        self._open.clear()

    def _chunk(self, run: Run) -> OpenChunk | None:
        chunk = self._open.get(run)
        if chunk is None and self._fits(run):
            with self._noting_full_disk():
                chunk = self._open_chunk(run)
                self._open[run] = chunk
            if len(self._open) > _OPEN_CHUNKS:
                with suppress(KeyError):  # another thread was faster
                    self._open.popitem(last=False)
        elif chunk is not None:
            with suppress(KeyError):
                self._open.move_to_end(run)
        return chunk

    def _open_chunk(self, run: Run) -> OpenChunk:
        name, size = self._name(run), self._kept_bytes(run)
        chunk = self._cache.open(name, size, lambda: self._fetch_to_keep(run))
        if not self._verify and not _is_whole(chunk, size):
            self._cache.discard(name, chunk)
            chunk = self._cache.open(name, size, lambda: self._fetch_to_keep(run))
        return chunk

    def _fetch_to_keep(self, run: Run) -> bytes:
        content = self.fetch(run)
        return content if self._verify else content + xxhash.xxh3_128_digest(content)

    def _kept_bytes(self, run: Run) -> int:
        return run.stop - run.start + (0 if self._verify else _CHECKSUM_BYTES)

    def _fits(self, run: Run) -> bool:
        return self._cache.fits(self._kept_bytes(run)) and time.monotonic() >= self._full_until

    @contextmanager
    def _noting_full_disk(self) -> Iterator[None]:
        """What does not fit on the disk is read without the cache."""
        try:
            yield
        except FullDiskError as error:
            if not self._full_until:
                logging.getLogger(__name__).warning("%s; until then payloads are fetched one by one", error)
            self._full_until = time.monotonic() + _FULL_FOR_S

    def _name(self, run: Run) -> str:
        shard = self._dataset.manifest.shards[run.shard].sha256
        url = "" if self._verify else f" {self._dataset.shard_url(run.shard)}"
        return chunk_name(f"{shard}{url}", run.start, run.stop)


def _is_whole(chunk: OpenChunk, size: int) -> bool:
    try:
        content = chunk.read(0, size)
    except OSError:
        return False
    return xxhash.xxh3_128_digest(content[:-_CHECKSUM_BYTES]) == content[-_CHECKSUM_BYTES:]


def check_size(dataset: Shards, shard: int, found: int) -> None:
    """DatasetError where a shard of `found` bytes is not of the manifest's size."""
    if found != (expected := dataset.manifest.shards[shard].num_bytes):
        raise DatasetError(
            f"{shown(dataset.shard_url(shard))}: shard has {found} bytes, the manifest says {expected}; restore it"
        )


def what_is_wrong(sample: Sample, payload: bytes, verify_digests: bool) -> str | None:
    """In words, or None where the payload is right."""
    if len(payload) != sample.size:
        return f"{len(payload)} of {sample.size} bytes could be read"
    if verify_digests and xxhash.xxh3_128_digest(payload) != sample.digest:
        return "the bytes do not match the digest in the index"
    return None
