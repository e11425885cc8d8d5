"""Payloads of samples, from local shards."""

from __future__ import annotations

import os
from collections import OrderedDict

import xxhash

from dinowds.data.dataset import Dataset, Sample
from dinowds.errors import DatasetError, SampleError

_OPEN_FILES = 256


class LocalStore:
    """Reads payloads with `pread`. A shard that is not whole is an error as soon as it is opened."""

    def __init__(self, dataset: Dataset, verify_digests: bool = True) -> None:
        self._dataset, self._verify = dataset, verify_digests
        self._files: OrderedDict[int, int] = OrderedDict()

    def read(self, sample: Sample) -> bytes:
        """The payload of `sample`.

        Raises:
            SampleError: the bytes are not those that the index describes.
            DatasetError: the shard is missing or not of the size that the manifest says.
        """
        try:
            payload = os.pread(self._descriptor(sample.shard), sample.size, sample.offset)
        except OSError:  # on a network file system a second try, with the file opened anew, often succeeds
            payload = self._read_again(sample)
        if len(payload) != sample.size:
            raise SampleError(f"{self._where(sample)}: {len(payload)} of {sample.size} bytes could be read")
        if self._verify and xxhash.xxh3_128_digest(payload) != sample.digest:
            raise SampleError(f"{self._where(sample)}: the bytes do not match the digest in the index")
        return payload

    def _read_again(self, sample: Sample) -> bytes:
        os.close(self._files.pop(sample.shard))
        try:
            return os.pread(self._descriptor(sample.shard), sample.size, sample.offset)
        except OSError as error:
            raise SampleError(f"{self._where(sample)}: cannot be read ({error.strerror})") from None

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __reduce__(self) -> tuple[type[LocalStore], tuple[Dataset, bool]]:
        return (LocalStore, (self._dataset, self._verify))

    def __del__(self) -> None:
        self.close()

    def _where(self, sample: Sample) -> str:
        return f"{self._dataset.shard_path(sample.shard)}: {sample.key}.{sample.ext}"

    def _descriptor(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path, expected = self._dataset.shard_path(shard), self._dataset.manifest.shards[shard].num_bytes
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DatasetError(f"{path}: shard cannot be opened ({error.strerror}); restore it") from None
        if (found := os.fstat(descriptor).st_size) != expected:
            os.close(descriptor)
            raise DatasetError(f"{path}: shard has {found} bytes, the manifest says {expected}; restore it")
        self._files[shard] = descriptor
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor
