"""Order and cut of the samples."""

from __future__ import annotations

import io
import itertools
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from dinowds.shard.ustar import END_BYTES
from dinowds.shard.write.arrange import cut_shards, sample_bytes, shuffled
from tests.shard.ustar_writer import UstarWriter


def test_shuffled__is_a_permutation_that_the_seed_decides() -> None:
    for count in (1, 2, 1000):
        for seed in (0, 1, 2**70):
            order = shuffled(count, seed)
            assert sorted(order.tolist()) == list(range(count))
            assert (order == shuffled(count, seed)).all()
    assert (shuffled(1000, 0) != shuffled(1000, 1)).any()


def test_shuffled__is_fixed() -> None:
    # Shards are named by their bytes: the order must not change between versions, of numpy either.
    assert shuffled(8, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_shuffled__spreads_each_part_over_the_whole() -> None:
    order = shuffled(10_000, 5)
    for quarter in np.split(order, 4):
        assert abs(np.mean(quarter < 5000) - 0.5) < 0.03


def test_cut__makes_full_shards_within_the_limits() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        sizes = random.integers(1, 5000, random.integers(1, 300))
        labels = random.integers(-1, 2, len(sizes))
        limit, most = int(random.integers(3000, 40_000)), int(random.integers(1, 40))
        num_bytes = sample_bytes(pa.table({"size": sizes}), labels)
        bounds = cut_shards(num_bytes, limit, most)
        assert bounds[0] == 0
        assert bounds[-1] == len(sizes)
        for start, stop in itertools.pairwise(bounds):
            total = int(num_bytes[start:stop].sum()) + END_BYTES
            assert 1 <= stop - start <= most
            assert total <= limit or stop - start == 1
            full = stop - start == most or stop == len(sizes)
            assert full or total + int(num_bytes[stop]) > limit or stop - start == 1


def test_sample_bytes__are_those_of_a_written_tar() -> None:
    sizes = np.array([1, 511, 512, 513, 100_000])
    for label in (-1, 7):
        file = io.BytesIO()
        tar = UstarWriter(file)
        for size in sizes.tolist():
            tar.add(f"{size}.jpg", bytes(size))
            if label >= 0:
                tar.add(f"{size}.cls", str(label).encode())
        num_bytes, _ = tar.finish()
        expected = sample_bytes(pa.table({"size": sizes}), np.full(5, label)).sum() + END_BYTES
        assert num_bytes == len(file.getvalue()) == expected


def test_ustar__headers_are_tarfiles() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        name = "".join(random.choice(list("abcXYZ019_-/."), random.integers(1, 101)))
        size = int(random.choice([0, 1, 7, 512, 8**11 - 1, int(random.integers(2**31))]))
        file = io.BytesIO()
        UstarWriter(file).add(name, b"")
        info = tarfile.TarInfo(name)
        info.size = size
        assert _without_device(_header(name, size)) == _without_device(info.tobuf(tarfile.USTAR_FORMAT))


def test_ustar__what_does_not_fit_is_refused() -> None:
    for name, size in (("n" * 101, 1), ("n", 8**11)):
        with pytest.raises(ValueError, match="does not fit"):
            _header(name, size)


def _header(name: str, size: int) -> bytes:
    from dinowds.shard.ustar import tar_header

    return tar_header(name, size)


def _without_device(header: bytes) -> bytes:
    """Some versions of tarfile write zeros as the device of a file, some write nothing; the checksum follows."""
    zeros = header[329:345].replace(b"0", b"\0")
    digits = header[329:345].count(b"0") * ord("0")
    return header[:148] + b"%06o" % (int(header[148:154], 8) - digits) + header[154:329] + zeros + header[345:]
