"""What is known of payloads before anything is written: whether each is a whole image, its size, hash and statistics.

`describe_image` is the reference; the C library gives the same verdicts on JPEG and PNG, from the bytes that tell them.
"""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from dinowds.data.decode import decode_reduced
from dinowds.errors import SampleError
from dinowds.shard import kernels
from dinowds.shard.sources.images import (
    CUT_SHORT,
    DAMAGED,
    NOT_AN_IMAGE,
    OTHER_VALUES,
    TOO_LARGE,
    ImageInfo,
    NotTaken,
    describe_image,
    looks_like_image,
)
from dinowds.world import available_cores

REASONS = ("", NOT_AN_IMAGE, CUT_SHORT, DAMAGED, TOO_LARGE, OTHER_VALUES)
EXTENSIONS = ("jpg", "png", "tif", "webp", "bmp", "gif", "jp2", "npy")

STATISTICS_SIDE = 256
"""The shorter side, px, that statistics are made at: a larger image is reduced by 2, 4 or 8, but not below this."""

_LARGE = 64 << 20
_MAX_READ = 1 << 30
_MIN_FILE_THREADS = 8
_PART = 512
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
_NAN = float("nan")


class ChangedError(Exception):
    """Payload `index` is no longer what was listed: bytes of it have gone, or its file."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True)
class Checks:
    """What is to be found out."""

    verify: Literal["header", "decode"] = "header"
    """`header`: the format's structure, to its end marker; `decode`: every pixel is decoded too."""
    digests: bool = False
    """xxh3-128 of each payload."""
    statistics: bool = False
    """Shares of white and black, and sharpness (`kernels.Statistics`); images are decoded for them."""


class Checked(NamedTuple):
    """Arrays [N], a row a payload."""

    reason: npt.NDArray[np.int8]
    """0: a whole image; else `REASONS[reason]` says why it is not taken."""
    ext: npt.NDArray[np.int8]
    """`EXTENSIONS[ext]`, by content; -1 where there is a reason."""
    width: npt.NDArray[np.int32]
    """px, as is `height`; 0 where there is a reason."""
    height: npt.NDArray[np.int32]
    digest: npt.NDArray[np.uint8] | None = None
    """[N, 16]; zeros where a payload was not read: over 64 MiB that do not begin like an image."""
    white: npt.NDArray[np.float32] | None = None
    """NaN where there is a reason, as are `black` and `sharpness`."""
    black: npt.NDArray[np.float32] | None = None
    sharpness: npt.NDArray[np.float32] | None = None


class Row(NamedTuple):
    """One row of `Checked`; what was not asked for is zeros or NaN."""

    reason: int
    ext: int = -1
    width: int = 0
    height: int = 0
    digest: bytes = bytes(16)
    statistics: kernels.Statistics = kernels.Statistics(_NAN, _NAN, _NAN)


_NO_IMAGE = Row(REASONS.index(NOT_AN_IMAGE))


def check_payload(payload: bytes, checks: Checks) -> Row:
    """What is to be found out of one payload: the reference of the functions below."""
    digest = xxhash.xxh3_128_digest(payload) if checks.digests else bytes(16)
    found = _NO_IMAGE.statistics
    try:
        info = describe_image(payload)
        if checks.verify == "decode" or checks.statistics:
            found = _decode(payload, info, checks)
    except NotTaken as reason:
        return Row(REASONS.index(str(reason)), digest=digest)
    return Row(0, EXTENSIONS.index(info.ext), info.width, info.height, digest, found)


def check_ranges(
    descriptor: int,
    places: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    checks: Checks,
    threads: int | None = None,
) -> Checked:
    """Check payloads that lie in one open file, at `places`, int64 [N], each of `sizes`, int64 [N].

    `threads` (default: the cores there are) decode images and look at rarer formats.

    Raises:
        ChangedError: the file ends before the end of a payload.
        OSError: the file cannot be read.
    """
    outside = (places < 0) | (sizes < 0) | (places + sizes > os.fstat(descriptor).st_size)
    if outside.any():
        raise ChangedError(int(np.argmax(outside)))
    return _check(_Ranges(descriptor, places, sizes), checks, threads or available_cores())


def check_files(
    root: Path,
    names: list[bytes],
    sizes: npt.NDArray[np.int64],
    checks: Checks,
    newest_ns: int | None = None,
    threads: int | None = None,
) -> Checked:
    """Check payloads that are each a file: `names`, below `root`, of `sizes`, int64 [N].

    Several `threads` (default: the cores there are, at least 8), as opening files takes its time on network disks.

    Raises:
        ChangedError: a file has gone, is now a link, has another size, or was changed after `newest_ns`.
        OSError: a file cannot be read.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files = _Files(folder, names, sizes, newest_ns)
        return _check(files, checks, threads or max(_MIN_FILE_THREADS, available_cores()))
    finally:
        os.close(folder)


@dataclass(frozen=True)
class _Ranges:
    """Payloads in one file."""

    descriptor: int
    places: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def look(self, part: slice, digests: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.void]:
        return kernels.check_headers(self.descriptor, None, self.places[part], self.sizes[part], digests)

    def read(self, index: int, checks: Checks) -> bytes | None:
        return _read(self.descriptor, int(self.places[index]), int(self.sizes[index]), index, checks)


@dataclass(frozen=True)
class _Files:
    """Payloads that are each a file below the open folder `folder`."""

    folder: int
    names: list[bytes]
    sizes: npt.NDArray[np.int64]
    newest_ns: int | None

    def look(self, part: slice, digests: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.void]:
        sizes = self.sizes[part]
        return kernels.check_headers(self.folder, self.names[part], sizes, sizes, digests, self.newest_ns)

    def read(self, index: int, checks: Checks) -> bytes | None:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self.names[index], flags, dir_fd=self.folder)
        except OSError as error:
            if error.errno in _GONE:
                raise ChangedError(index) from None
            raise
        try:
            found = os.fstat(descriptor)
            is_newer = self.newest_ns is not None and found.st_mtime_ns > self.newest_ns
            if not stat.S_ISREG(found.st_mode) or found.st_size != self.sizes[index] or is_newer:
                raise ChangedError(index)
            return _read(descriptor, 0, found.st_size, index, checks)
        finally:
            os.close(descriptor)


def _check(payloads: _Ranges | _Files, checks: Checks, threads: int) -> Checked:
    count = len(payloads.sizes)
    result = _new(count, checks)

    def look(part: slice) -> npt.NDArray[np.void]:
        return payloads.look(part, None if result.digest is None else result.digest[part])

    def row(index: int) -> Row:
        payload = payloads.read(index, checks)
        return _NO_IMAGE if payload is None else check_payload(payload, checks)

    with ThreadPoolExecutor(threads) as pool:
        left = list(range(count))
        if checks.verify == "header" and not checks.statistics:
            parts = [slice(start, start + _PART) for start in range(0, count, _PART)]
            left = _take(result, list(pool.map(look, parts)))
        for index, found in zip(left, pool.map(row, left), strict=True):
            _set(result, index, found)
    return result


def _take(result: Checked, parts: list[npt.NDArray[np.void]]) -> list[int]:
    """Note what was found of all payloads; those that were left."""
    found = np.concatenate([np.zeros(0, kernels.FOUND), *parts])
    state = found["state"]
    for index in np.flatnonzero((state != 0) & (state != kernels.LEFT))[:1].tolist():
        if state[index] == kernels.CHANGED:
            raise ChangedError(index)
        raise OSError(int(state[index]), os.strerror(int(state[index])))
    for name in ("reason", "ext", "width", "height"):
        getattr(result, name)[:] = found[name]
    return [int(index) for index in np.flatnonzero(state == kernels.LEFT)]


def _new(count: int, checks: Checks) -> Checked:
    digest = np.zeros((count, 16), np.uint8) if checks.digests else None
    found = [np.full(count, _NAN, np.float32) if checks.statistics else None for _ in range(3)]
    width, height = np.zeros((2, count), np.int32)
    return Checked(np.zeros(count, np.int8), np.zeros(count, np.int8), width, height, digest, *found)


def _set(result: Checked, index: int, row: Row) -> None:
    result.reason[index], result.ext[index], result.width[index], result.height[index] = row[:4]
    if result.digest is not None:
        result.digest[index] = np.frombuffer(row.digest, np.uint8)
    if result.white is not None and result.black is not None and result.sharpness is not None:
        result.white[index], result.black[index], result.sharpness[index] = row.statistics


def _read(descriptor: int, place: int, size: int, index: int, checks: Checks) -> bytes | None:
    """A payload; None for one that does not begin like an image, where it is large or its hash is not wanted."""
    if (size > _LARGE or not checks.digests) and not looks_like_image(os.pread(descriptor, min(size, 16), place)):
        return None
    payload = os.pread(descriptor, min(size, _MAX_READ), place)
    while len(payload) < size:
        more = os.pread(descriptor, min(size - len(payload), _MAX_READ), place + len(payload))
        if not more:
            raise ChangedError(index)
        payload += more
    return payload


def _decode(payload: bytes, info: ImageInfo, checks: Checks) -> kernels.Statistics:
    """Decode an image, at full size where all pixels are to be verified, and its statistics. Raises NotTaken."""
    try:
        is_whole = checks.verify == "decode" or not checks.statistics
        pixels = decode_reduced(payload, 1)[0] if is_whole else None
        if not checks.statistics:
            return _NO_IMAGE.statistics
        if pixels is None or statistics_reduction(info.width, info.height) > 1:
            pixels = decode_for_statistics(payload, info.width, info.height)
    except SampleError:
        raise NotTaken(DAMAGED) from None
    return kernels.statistics(pixels)


def statistics_reduction(width: int, height: int) -> int:
    """By how much an image of this size is reduced before statistics are made."""
    return next(r for r in (8, 4, 2, 1) if r == 1 or min(width, height) // r >= STATISTICS_SIDE)


def decode_for_statistics(payload: bytes, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Of an image of `width` × `height` px, the uint8 RGB [h, w, 3] that statistics are made of. Raises SampleError."""
    reduction = statistics_reduction(width, height)
    pixels, reduced = decode_reduced(payload, reduction)
    return pixels if reduced == reduction else np.asarray(Image.fromarray(pixels).reduce(reduction // reduced))
