"""The C library of sharding and its replacement in Python against plain references."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import xxhash

from dinowds.shard import kernels
from dinowds.shard.kernels import PIECE, GatherError, Sha256s, gather, hash_strings, statistics, tar_headers
from dinowds.shard.ustar import tar_header

LENGTHS = [*range(300), 1023, 1024, 1025, 1087, 1088, 1089, 2048, 2049, 4999, *np.arange(5) * 1024 + (1 << 18) - 1023]
Bytes = npt.NDArray[np.uint8]


@pytest.fixture(params=["c", "python"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C library, and without it."""
    if request.param == "python":
        monkeypatch.setattr(kernels, "_library", lambda: None)


@pytest.fixture
def content(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """An open file, and what is in it."""
    path = tmp_path / "content"
    path.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor, path.read_bytes()
    os.close(descriptor)


def pieces_of(rows: list[tuple[int, int, int, int, int]]) -> npt.NDArray[np.void]:
    return np.array(rows, PIECE)


def test_missing__the_library_is_built_here() -> None:
    assert kernels.missing() is None


@pytest.mark.usefixtures("either")
def test_gather__lays_and_hashes_pieces_of_every_length(content: tuple[int, bytes]) -> None:
    descriptor, data = content
    random = np.random.default_rng(1)
    rows, expected, place = [], [], 3
    for row, length in enumerate(LENGTHS):
        offset = int(random.integers(0, len(data) - length + 1))
        rows.append((descriptor, row, offset, length, place))
        expected.append((place, data[offset : offset + length]))
        place += length + row % 3
    out, digests = np.full(place + 5, 7, np.uint8), np.zeros((len(rows), 16), np.uint8)
    order = random.permutation(len(rows))
    gather(pieces_of(rows)[order], out, digests)
    wanted = np.full(place + 5, 7, np.uint8)
    for (start, piece), digest in zip(expected, digests, strict=True):
        wanted[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
        assert digest.tobytes() == xxhash.xxh3_128_digest(piece), len(piece)
    assert np.array_equal(out, wanted)


@pytest.mark.usefixtures("either")
def test_gather__without_digests_leaves_them_alone(content: tuple[int, bytes]) -> None:
    out, digests = np.zeros(900, np.uint8), np.full((1, 16), 9, np.uint8)
    gather(pieces_of([(content[0], -1, 5, 900, 0)]), out, digests)
    assert out.tobytes() == content[1][5:905]
    assert (digests == 9).all()
    gather(pieces_of([]), out, digests)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("length", [10, 600_000])
def test_gather__tells_which_piece_cannot_be_read(content: tuple[int, bytes], tmp_path: Path, length: int) -> None:
    descriptor, data = content
    out, digests = np.zeros(length + 10, np.uint8), np.zeros((1, 16), np.uint8)
    whole = (descriptor, 0, len(data) - length, length, 0)
    gather(pieces_of([whole]), out, digests)
    with pytest.raises(GatherError) as caught:
        gather(pieces_of([whole, (descriptor, 0, len(data) - length + 1, length, 0), whole]), out, digests)
    assert (caught.value.index, caught.value.errno) == (1, 0)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(GatherError) as caught:
            gather(pieces_of([whole, whole, (folder, -1, 0, length, 0)]), out, digests)
    finally:
        os.close(folder)
    assert (caught.value.index, caught.value.errno) == (2, errno.EISDIR)


@pytest.mark.parametrize(
    "row",
    [
        *((0, -1, 0, 11, 0), (0, -1, 0, 5, 6), (0, -1, 0, 1, 2**63 - 1), (0, -1, 0, 2**63 - 1, 0)),
        *((0, -1, 0, -1, 0), (0, -1, -1, 1, 0), (0, -1, 0, 1, -1), (0, 2, 0, 1, 0)),
    ],
)
def test_gather__refuses_what_lies_outside(row: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        gather(pieces_of([row]), np.zeros(10, np.uint8), np.zeros((2, 16), np.uint8))


def test_gather__refuses_arrays_that_it_cannot_write_to() -> None:
    out, digests = np.zeros(10, np.uint8), np.zeros((2, 16), np.uint8)
    readonly = np.frombuffer(bytes(10), np.uint8)
    for wrong in ((readonly, digests), (out[::2], digests), (out.astype(np.int8), digests), (out, digests[:, :8])):
        with pytest.raises(ValueError, match="expected"):
            gather(pieces_of([]), *wrong)
    with pytest.raises(ValueError, match="PIECE"):
        gather(np.zeros(3, np.int64), out, digests)


def test_gather__in_many_threads(content: tuple[int, bytes]) -> None:
    descriptor, data = content

    def copy(seed: int) -> bool:
        offsets = np.random.default_rng(seed).integers(0, len(data) - 3000, 200).tolist()
        pieces = pieces_of([(descriptor, row, offset, 3000, 3000 * row) for row, offset in enumerate(offsets)])
        out, digests = np.zeros(600_000, np.uint8), np.zeros((200, 16), np.uint8)
        gather(pieces, out, digests)
        expected = [data[offset : offset + 3000] for offset in offsets]
        hashes = b"".join(map(xxhash.xxh3_128_digest, expected))
        return out.tobytes() == b"".join(expected) and digests.tobytes() == hashes

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(copy, range(24)))


def test_hash__each_build_equals_xxhash() -> None:
    library, data = kernels._library(), np.random.default_rng(0).bytes(200_000)
    digest = (ctypes.c_uint8 * 16)()
    builds = 0
    while library.dinowds_hash(builds, data, 1000, digest):
        for length in [*range(241, 5001), 65536, 65537, 199_999]:
            library.dinowds_hash(builds, data, length, digest)
            assert bytes(digest) == xxhash.xxh3_128_digest(data[:length]), (builds, length)
        builds += 1
    assert builds >= 1


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_hash_strings__equal_for_equal_strings_alone(kind: Any) -> None:
    texts = [f"slide_{i % 70}/{'x' * (i % 40)}{i}.jpg" for i in range(20_000)] + ["", "\0", "\0\0", "a", "a\0"]
    hashes = hash_strings(pa.array(texts, kind))
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == len(texts)
    assert np.array_equal(hash_strings(pa.array(texts[::-1], kind)), hashes[::-1])
    assert np.array_equal(hash_strings(pa.array(texts, kind)[5:-3]), hashes[5:-3])
    assert np.array_equal(hash_strings(pa.chunked_array([texts[:9], texts[9:]], kind)), hashes)
    assert hash_strings(pa.array([None, ""], kind)).tolist() == [hashes[20_000]] * 2
    assert len(hash_strings(pa.array([], kind))) == 0
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.03


@pytest.fixture(params=["c", "c without SHA instructions", "python"])
def any_sha256(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each of the ways to compute it."""
    if request.param == "python":
        monkeypatch.setattr(kernels, "_library", lambda: None)
    elif request.param != "c":
        monkeypatch.setattr(kernels._library(), "dinowds_has_sha256", lambda: 0)


@pytest.mark.usefixtures("any_sha256")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_sha256s__equal_hashlib_however_the_messages_grow(count: int) -> None:
    random = np.random.default_rng(count)
    for _ in range(50):
        sha256s, messages = Sha256s(count), [bytearray() for _ in range(count)]
        for _ in range(random.integers(0, 5)):
            parts = [random.integers(0, 256, 64 * size, np.uint8) for size in random.integers(0, 40, count)]
            sha256s.update(parts)
            for message, part in zip(messages, parts, strict=True):
                message += part.tobytes()
        assert sha256s.hexdigests() == [hashlib.sha256(message).hexdigest() for message in messages]


def test_sha256s__two_at_once_where_the_processor_can() -> None:
    sha256s = Sha256s(2)
    assert (sha256s._library is not None) == bool(kernels._library().dinowds_has_sha256())
    assert Sha256s(1)._library is None


@pytest.mark.usefixtures("either")
def test_tar_headers__as_one_by_one() -> None:
    random = np.random.default_rng(0)
    names = [b"", b"a.jpg", b"x" * 99, b"y" * 100, *(b"k" * int(random.integers(1, 101)) for _ in range(50))]
    sizes = [0, 8**11 - 1, *random.integers(0, 8**11, 52).tolist()]
    expected = [tar_header(name.decode(), size) for name, size in zip(names, sizes, strict=True)]
    array = pa.array([b"before", *names, b"after"], pa.large_binary())[1:-1]
    for given in (names, array, array.cast(pa.binary()), array.cast(pa.large_string())):
        headers = tar_headers(given, sizes)
        assert headers.shape == (54, 512)
        assert [header.tobytes() for header in headers] == expected
    assert tarfile.TarInfo.frombuf(expected[1], "ascii", "strict").size == 8**11 - 1
    assert tar_headers([], []).shape == (0, 512)


@pytest.mark.parametrize(("name", "size"), [(b"n" * 101, 0), (b"a", 8**11), (b"a", -1)])
def test_tar_headers__refuses_what_does_not_fit(name: bytes, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes does not fit a USTAR header"):
        tar_headers([b"good", name], [1, size])


def pictures() -> Iterator[Bytes]:
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (2, 9), (3, 3), (3, 1), (64, 33), (5, 5000)):
        yield random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield random.choice(np.array([39, 40, 41, 219, 220, 221], np.uint8), (height, width, 3), p=[0.4, *[0.12] * 5])
    yield np.indices((40, 4500)).sum(0).astype(np.uint8)[..., None].repeat(3, 2) % 2 * np.uint8(255)
    yield random.integers(0, 256, (30, 40, 3), dtype=np.uint8)[::2, ::-1]


def test_statistics__equal_numpy() -> None:
    for image in pictures():
        assert statistics(image) == pytest.approx(kernels.statistics_in_numpy(image), rel=1e-12, abs=1e-12)


@pytest.mark.usefixtures("either")
def test_statistics__of_images_that_are_known() -> None:
    image = np.full((10, 10, 3), 100, np.uint8)
    assert statistics(image) == (0, 0, 0)
    image[:5] = kernels.WHITE
    image[9] = kernels.BLACK
    image[0, 0, 1] -= 1
    image[9, 9, 2] += 1
    assert statistics(image)[:2] == pytest.approx((0.49, 0.09))
    dot = np.zeros((5, 5, 3), np.uint8)
    dot[2, 2] = 10
    assert statistics(dot).sharpness == pytest.approx((40**2 + 4 * 10**2) / 9)
    for wrong in (dot[..., 0], dot.astype(float), dot[:0]):
        with pytest.raises(ValueError, match="expected uint8"):
            statistics(wrong)


@pytest.fixture
def fresh_library() -> Iterator[None]:
    """The library is looked for anew, in the test and after it."""
    kernels._load.cache_clear()
    kernels._library.cache_clear()
    yield
    kernels._load.cache_clear()
    kernels._library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_missing__one_warning_and_the_same_results(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert statistics(np.full((9, 9, 3), 255, np.uint8)) == (1, 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "the C library of dinowds.shard is not built: install a C compiler (gcc), then run `pip install -e .`; "
        "until then sharding is several times as slow"
    ]


@pytest.mark.usefixtures("fresh_library")
def test_missing__library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "VERSION", kernels.VERSION + 1)
    reason = kernels.missing()
    assert reason is not None
    assert "another version" in reason
    assert reason.endswith("run `pip install -e .` again")


@pytest.mark.usefixtures("fresh_library")
def test_missing__file_that_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_kernels.so").write_bytes(b"text")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "_kernels.so")))
    reason = kernels.missing()
    assert reason is not None
    assert "cannot be loaded" in reason
