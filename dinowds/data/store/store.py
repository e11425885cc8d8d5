"""Payloads of samples, from local and remote shards."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

from dinowds.data.dataset import Sample
from dinowds.data.store.cache import DEFAULT_CACHE, CacheOptions
from dinowds.data.store.chunks import RemoteChunks, Run, Shards, check_size, what_is_wrong
from dinowds.data.store.readahead import ReadAhead, Recent
from dinowds.errors import DatasetError, SampleError
from dinowds.files import open_regular
from dinowds.remote.files import RemoteFiles, is_remote, shown

__all__ = ["CacheOptions", "LocalStore", "MixedStore", "RemoteStore", "Run", "Shards", "Store", "open_store"]

_OPEN_FILES = 256
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_ADVISED_RUNS = 4096
_FETCHING_THREADS = 8  # of each process; those of all processes of a host add up
_RUNS_AHEAD = 4096


class Store(Protocol):
    """Where payloads come from. Can be pickled and carried over a fork."""

    def expect(self, runs: Iterable[Run]) -> None:
        """A hint: these runs will be read soon, in this order."""
        ...

    def read(self, sample: Sample, run: Run | None = None) -> bytes:
        """The payload of `sample`, which lies in `run` (None: by itself).

        Raises:
            SampleError: the bytes are not those that the index describes.
            DatasetError: the shard is missing or not of the size that the manifest says.
            StorageError: a remote shard cannot be read.
            ConfigError: the cache cannot be written.
        """
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes that this process asked of the shards: of local files, or over the net."""
        ...

    def close(self) -> None:
        """Let go of files and threads. Waits for nothing."""
        ...


def open_store(dataset: Shards, verify_digests: bool = True, cache: CacheOptions = DEFAULT_CACHE) -> Store:
    """The store of a dataset, whose shards may be local, remote, or some of each. Opens no shard."""
    kinds = {is_remote(dataset.shard_url(shard)) for shard in range(len(dataset.manifest.shards))}
    if kinds == {True, False}:
        return MixedStore(dataset, verify_digests, cache)
    return RemoteStore(dataset, verify_digests, cache) if True in kinds else LocalStore(dataset, verify_digests)


class LocalStore:
    """Reads payloads with `pread`. A shard that is not whole is an error as soon as it is opened."""

    def __init__(self, dataset: Shards, verify_digests: bool = True) -> None:
        self._dataset, self._verify = dataset, verify_digests
        self._files: OrderedDict[int, int] = OrderedDict()
        self._advised: Recent[Run] = Recent(_ADVISED_RUNS)
        self.bytes_read = 0

    def expect(self, runs: Iterable[Run]) -> None:
        """Have the system read these runs into its page cache, in the order in which they lie on disk."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            for run in sorted(run for run in runs if self._advised.is_new(run)):
                with suppress(OSError, DatasetError):  # a hint; reading says what is wrong
                    descriptor = self._descriptor(run.shard)
                    os.posix_fadvise(descriptor, run.start, run.stop - run.start, os.POSIX_FADV_WILLNEED)

    def read(self, sample: Sample, run: Run | None = None) -> bytes:  # noqa: ARG002
        """As `Store.read`."""
        try:
            payload = os.pread(self._descriptor(sample.shard), sample.size, sample.offset)
        except OSError:  # on a network file system a second try, with the file opened anew, often succeeds
            payload = self._read_again(sample)
        self.bytes_read += len(payload)
        if wrong := what_is_wrong(sample, payload, self._verify):
            raise SampleError(f"{_where(self._dataset, sample)}: {wrong}")
        return payload

    def close(self) -> None:
        """As `Store.close`."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __reduce__(self) -> tuple[type[LocalStore], tuple[Shards, bool]]:
        return (LocalStore, (self._dataset, self._verify))

    def __del__(self) -> None:
        self.close()

    def _read_again(self, sample: Sample) -> bytes:
        if (descriptor := self._files.pop(sample.shard, None)) is not None:
            os.close(descriptor)
        try:
            return os.pread(self._descriptor(sample.shard), sample.size, sample.offset)
        except OSError as error:
            raise SampleError(f"{_where(self._dataset, sample)}: cannot be read ({error.strerror})") from None

    def _descriptor(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = self._dataset.shard_url(shard)
        try:
            descriptor = self._open(path)
        except OSError as error:
            advice = "raise the limit ('ulimit -n')" if error.errno in _TOO_MANY else "restore it"
            raise DatasetError(f"{path}: shard cannot be opened ({error.strerror}); {advice}") from None
        try:
            check_size(self._dataset, shard, os.fstat(descriptor).st_size)
        except BaseException:
            os.close(descriptor)
            raise
        self._files[shard] = descriptor
        if len(self._files) > _most_open():
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _open(self, path: str) -> int:
        while True:
            try:
                return open_regular(path)
            except OSError as error:
                if error.errno not in _TOO_MANY or not self._files:
                    raise
                os.close(self._files.popitem(last=False)[1])


def _most_open() -> int:
    """Shards that are kept open: the rest of the process needs files too."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _OPEN_FILES if limit == resource.RLIM_INFINITY else max(1, min(_OPEN_FILES, limit // 4))


class RemoteStore:
    """Reads payloads from chunks in a cache on local disk, which a host fetches once. Safe between threads.

    A shard that is not of the manifest's size is found when a read of it goes wrong: the file ends early, or a payload
    is not the index's. So nothing is asked of a server but the chunks. Only where digests are not checked, the size is
    asked for too, before the first chunk that a process fetches of a shard.
    """

    def __init__(
        self,
        dataset: Shards,
        verify_digests: bool = True,
        cache: CacheOptions = DEFAULT_CACHE,
        files: RemoteFiles | None = None,
    ) -> None:
        self._dataset, self._verify, self._cache, self._files = dataset, verify_digests, cache, files or RemoteFiles()
        self._making = threading.Lock()
        self._made: _OfProcess | None = None

    def expect(self, runs: Iterable[Run]) -> None:
        """Fetch these runs in the background, in this order. When thousands wait already, more are passed over."""
        self._mine().ahead.put(runs)

    def read(self, sample: Sample, run: Run | None = None) -> bytes:
        """As `Store.read`. Waits for a fetch that is under way.

        Without `run`, or where the cache is smaller than it, the payload alone is fetched, and not kept.
        """
        chunks = self._mine().chunks
        kept = None if run is None else chunks.read(run, sample.offset, sample.size)
        if kept is not None and what_is_wrong(sample, kept, self._verify) is None:
            return kept
        payload = chunks.fetch(Run(sample.shard, sample.offset, sample.offset + sample.size))
        if wrong := what_is_wrong(sample, payload, self._verify):
            chunks.check_size(sample.shard)
            raise SampleError(f"{_where(self._dataset, sample)}: {wrong}")
        if run is not None and kept is not None:  # the shard is right, so what was kept of it is not
            chunks.discard(run)
        return payload

    @property
    def bytes_read(self) -> int:
        """As `Store.bytes_read`."""
        return self._mine().chunks.bytes_fetched

    def close(self) -> None:
        """As `Store.close`."""
        if self._made is not None:
            self._made.ahead.close()
            self._made.chunks.close()

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[Any, ...]]:
        return (RemoteStore, (self._dataset, self._verify, self._cache, self._files))

    def __del__(self) -> None:
        if hasattr(self, "_made"):  # else __init__ failed
            self.close()

    def _mine(self) -> _OfProcess:
        """Threads, counts and open files do not outlive a fork: a child makes its own."""
        made = self._made
        if made is None or made.pid != os.getpid():
            with self._making:
                made = self._made
                if made is None or made.pid != os.getpid():
                    chunks = RemoteChunks(self._dataset, self._verify, self._cache, self._files)
                    made = self._made = _OfProcess(chunks)
        return made


class _OfProcess:
    def __init__(self, chunks: RemoteChunks) -> None:
        self.pid = os.getpid()
        self.chunks = chunks
        self.ahead: ReadAhead[Run] = ReadAhead(chunks.prepare, _FETCHING_THREADS, _RUNS_AHEAD)


class MixedStore:
    """Local shards through a `LocalStore`, remote ones through a `RemoteStore`."""

    def __init__(self, dataset: Shards, verify_digests: bool = True, cache: CacheOptions = DEFAULT_CACHE) -> None:
        self._arguments = (dataset, verify_digests, cache)
        self._dataset = dataset
        self._local = LocalStore(dataset, verify_digests)
        self._remote = RemoteStore(dataset, verify_digests, cache)

    def expect(self, runs: Iterable[Run]) -> None:
        """As `Store.expect`."""
        runs = list(runs)
        remote = [is_remote(self._dataset.shard_url(run.shard)) for run in runs]
        self._remote.expect(run for run, there in zip(runs, remote, strict=True) if there)
        self._local.expect(run for run, there in zip(runs, remote, strict=True) if not there)

    def read(self, sample: Sample, run: Run | None = None) -> bytes:
        """As `Store.read`."""
        store: Store = self._remote if is_remote(self._dataset.shard_url(sample.shard)) else self._local
        return store.read(sample, run)

    @property
    def bytes_read(self) -> int:
        """As `Store.bytes_read`."""
        return self._local.bytes_read + self._remote.bytes_read

    def close(self) -> None:
        """As `Store.close`."""
        self._local.close()
        self._remote.close()

    def __reduce__(self) -> tuple[type[MixedStore], tuple[Any, ...]]:
        return (MixedStore, self._arguments)


def _where(dataset: Shards, sample: Sample) -> str:
    return f"{shown(dataset.shard_url(sample.shard))}: {sample.key}.{sample.ext}"
