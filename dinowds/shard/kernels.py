"""The inner loops of sharding: kernels.c and sha256.c where they were built, and the same in Python where not.

Every call lets go of the GIL and may run in many threads at once. Reads are positional (pread) and checked, so that a
source that is cut short meanwhile is an error.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from dinowds.data.decode import MAX_PIXELS
from dinowds.shard.tarheader import BLOCK, header_name, padded, plain_file_size
from dinowds.shard.ustar import tar_header

VERSION = 2
"""Of the C library that this module calls; goes up there and here with every change of its arguments or results."""

INSTALL = "pip install -e ."
"""What builds the C library again."""

PIECE = np.dtype([("descriptor", "<i4"), ("digest", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("to", "<i8")])
"""What `gather` copies: `size` bytes from `offset` of the open file `descriptor` to offset `to` of its output. `digest`
is the row that the hash of these bytes goes to; -1: none is computed."""

WHITE, BLACK = 220, 40
"""Glass is bright in all three channels, and scanners' borders and pen are dark in all three; the darkest nuclei keep
their blue."""

FOUND = np.dtype([("reason", "i1"), ("ext", "i1"), ("width", "i4"), ("height", "i4"), ("state", "i4")], align=True)
"""What `check_headers` finds: numbers of `check.REASONS` and `check.EXTENSIONS`, px, and a state: 0 (all is known),
`LEFT`, `CHANGED`, or the system's errno."""

LEFT, CHANGED = -1, -2
"""A payload that Python must look at; one that is not all there any more."""

_SHA256_START = bytes.fromhex("6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19")
_MAX_READ = 1 << 30
_RUN_MEMBERS, _RUN_BYTES = 4096, 64 << 20
_NAME_ROOM = 4096
_NEVER = 2**63 - 1
_SHORT = 240
"""XXH3 has other formulae up to this length; they are left to xxhash."""


class GatherError(Exception):
    """Piece `index` cannot be read: `errno` of the system, or 0 where the file ends too early."""

    def __init__(self, index: int, errno: int) -> None:
        super().__init__(index, errno)
        self.index, self.errno = index, errno


class Statistics(NamedTuple):
    """Of one image. `white` and `black`: shares of pixels whose channels are all ≥ `WHITE`, or all ≤ `BLACK`.

    `sharpness`: variance of the Laplacian (4 neighbours; pixels at the border are left out) of the 8-bit grey image
    (Rec. 601), in squared grey levels; 0 for an image of less than 3 × 3 px.
    """

    white: float
    black: float
    sharpness: float


def missing() -> str | None:
    """Why the C library cannot be used, and what to do; None if it can."""
    return _load()[1]


# ---- Pass 1: members of tars, and what they are ----


TarFiles: TypeAlias = tuple[pa.LargeBinaryArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Ordinary files of a tar: names as stored, offsets and sizes of the payloads, int64 [N]."""


class TarRuns:
    """Walks runs of ordinary files in the uncompressed tar `descriptor`. Not for several threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._names = np.empty(_NAME_ROOM * _RUN_MEMBERS, np.uint8)  # of which only what is used takes memory
        self._offsets, self._places, self._sizes = np.empty((3, _RUN_MEMBERS + 1), np.int64)
        self._state = np.zeros(2, np.int64)  # the next offset, and how far the system was asked to read ahead

    def walk(self, offset: int) -> tuple[TarFiles, int] | None:
        """The ordinary files from `offset` on, and the offset of the first block after them; None if there are none.

        Ends after 4,096 members or 64 MiB, and before what is not an ordinary file with an ordinary header.
        """
        library = _library()
        if library is None:
            return _walk_in_python(self._descriptor, offset)
        state = self._state.ctypes.data
        count = library.dinowds_walk_tar(
            self._descriptor, offset, offset + _RUN_BYTES, _RUN_MEMBERS, self._names.ctypes.data,
            self._offsets.ctypes.data, self._places.ctypes.data, self._sizes.ctypes.data, state, state + 8,
        )  # fmt: skip
        if not count:
            return None
        offsets = self._offsets[: count + 1].copy()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self._names[: offsets[-1]].tobytes())]
        names = pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, buffers)
        return (names, self._places[:count].copy(), self._sizes[:count].copy()), int(self._state[0])


def _walk_in_python(descriptor: int, offset: int) -> tuple[TarFiles, int] | None:
    names: list[bytes] = []
    places: list[int] = []
    sizes: list[int] = []
    stop = offset + _RUN_BYTES
    while offset < stop and len(names) < _RUN_MEMBERS:
        header = os.pread(descriptor, BLOCK, offset)
        if len(header) < BLOCK or (size := plain_file_size(header)) < 0:
            break
        names.append(header_name(header))
        places.append(offset + BLOCK)
        sizes.append(size)
        offset += BLOCK + padded(size)
    if not names:
        return None
    return (pa.array(names, pa.large_binary()), np.array(places, np.int64), np.array(sizes, np.int64)), offset


def check_headers(
    descriptor: int,
    names: list[bytes] | None,
    places: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    digests: npt.NDArray[np.uint8] | None = None,
    newest_ns: int | None = None,
) -> npt.NDArray[np.void]:
    """Look at the structure of payloads of `sizes`, int64 [N]: what is found, [N] of `FOUND`.

    They lie in the open file `descriptor` at `places`, int64 [N]; or are files `names` below the folder that
    `descriptor` has open, and `CHANGED` where one was changed after `newest_ns`. All but JPEG and PNG is `LEFT`.
    `digests`, uint8 [N, 16], gets the xxh3-128 of each payload of which the state is 0.
    """
    found = np.zeros(len(sizes), FOUND)
    library = _library()
    if library is None:
        found["state"] = LEFT
        return found
    places, sizes = np.ascontiguousarray(places, np.int64), np.ascontiguousarray(sizes, np.int64)
    starts = np.zeros(0, np.int64) if names is None else np.cumsum([0, *(len(name) + 1 for name in names)])
    error = library.dinowds_check(
        descriptor, None if names is None else b"\0".join(names), starts.ctypes.data,
        _NEVER if newest_ns is None else newest_ns, places.ctypes.data, sizes.ctypes.data, len(sizes), MAX_PIXELS,
        found.ctypes.data, None if digests is None else digests.ctypes.data,
    )  # fmt: skip
    if error:
        raise OSError(-error, os.strerror(-error))
    return found


def statistics(image: npt.NDArray[np.uint8]) -> Statistics:
    """Of an RGB image, uint8 [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    library = _library()
    if library is None:
        return statistics_in_numpy(image)
    image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    grey, sums = np.empty(height * width, np.uint8), (ctypes.c_int64 * 4)()
    library.dinowds_statistics(image.ctypes.data, height, width, WHITE, BLACK, grey.ctypes.data, sums)
    white, black, total, squares = sums
    inner = max(height - 2, 0) * max(width - 2, 0)
    variance = (inner * squares - total * total) / (inner * inner) if inner else 0.0
    return Statistics(white / (height * width), black / (height * width), variance)


def statistics_in_numpy(image: npt.NDArray[np.uint8]) -> Statistics:
    """The reference of `statistics`."""
    white = float((image.min(axis=2) >= WHITE).mean())
    black = float((image.max(axis=2) <= BLACK).mean())
    red, green, blue = (image[..., channel].astype(np.int64) for channel in range(3))
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return Statistics(white, black, float(laplacian.var()) if laplacian.size else 0.0)


# ---- Selection ----


def hash_strings(strings: Any) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each string of an Arrow array of (large) strings or binaries, uint64 [N]; of null, as of "".

    The C library and the Python code give other hashes: store none, and compare the strings where hashes are equal.
    """
    strings = _large_binary(strings)
    library = _library()
    if library is None:
        return np.fromiter(map(xxhash.xxh3_64_intdigest, strings.to_pylist()), np.uint64, len(strings))
    offsets, data = _buffers(strings)
    hashes = np.empty(len(strings), np.uint64)
    library.dinowds_hash_strings(data.ctypes.data, offsets.ctypes.data, len(strings), hashes.ctypes.data)
    return hashes


def _large_binary(strings: Any) -> Any:
    if isinstance(strings, pa.ChunkedArray):
        strings = strings.combine_chunks()
    strings = strings.cast(pa.large_binary())
    return strings.fill_null(b"") if strings.null_count else strings


# ---- Pass 2: copying ----


def gather(
    pieces: npt.NDArray[np.void],
    out: npt.NDArray[np.uint8],
    digests: npt.NDArray[np.uint8],
) -> None:
    """Copy `pieces`, [N] of `PIECE`, to their places in `out`, and their hashes to rows of `digests`.

    Args:
        out: uint8, C-contiguous. Used again and again, it is written at twice the speed of fresh memory.
        digests: uint8 [M, 16], C-contiguous; xxh3-128 in the canonical, big-endian form (`xxhash.xxh3_128_digest`).

    Raises:
        GatherError: a piece cannot be read whole. What is in `out` and `digests` then means nothing.
        ValueError: an array has another shape or type, or a piece lies outside of `out`.
    """
    _check_pieces(pieces, out, digests)
    library = _library()
    if library is None:
        _gather_in_python(pieces, out, digests)
        return
    native = np.ascontiguousarray(pieces, PIECE.newbyteorder("="))
    error = ctypes.c_int32(0)
    failed = library.dinowds_gather(
        native.ctypes.data, len(native), out.ctypes.data, digests.ctypes.data, ctypes.byref(error)
    )
    if failed >= 0:
        raise GatherError(failed, error.value)
    short = native[(native["digest"] >= 0) & (native["size"] <= _SHORT)]
    for _, digest, _, size, to in short.tolist():
        digests[digest] = _digest(out[to : to + size])


def _check_pieces(pieces: Any, out: Any, digests: Any) -> None:
    if pieces.dtype != PIECE or pieces.ndim != 1:
        raise ValueError(f"pieces are {pieces.dtype} {list(pieces.shape)}, expected [N] of PIECE")
    for name, array, shape in (("out", out, (-1,)), ("digests", digests, (-1, 16))):
        fits = array.dtype == np.uint8 and array.ndim == len(shape) and shape[-1] in (-1, array.shape[-1])
        if not (fits and array.flags.c_contiguous and array.flags.writeable):
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected writeable contiguous uint8")
    if not len(pieces):
        return
    sizes, offsets, to = pieces["size"], pieces["offset"], pieces["to"]
    if min(sizes.min(), offsets.min(), to.min()) < 0 or sizes.max() > out.size or (to > out.size - sizes).any():
        raise ValueError(f"a piece lies outside of {out.size} bytes, or is negative")
    if pieces["digest"].max() >= len(digests):
        raise ValueError("a piece's digest lies outside the digests")


def _gather_in_python(pieces: Any, out: Any, digests: Any) -> None:
    for index, (descriptor, digest, offset, size, to) in enumerate(pieces.tolist()):
        room = out[to : to + size]
        _read_into(index, descriptor, offset, room)
        if digest >= 0:
            digests[digest] = _digest(room)


def _read_into(index: int, descriptor: int, offset: int, room: Any) -> None:
    done = 0
    while done < len(room):
        try:
            part = os.pread(descriptor, min(len(room) - done, _MAX_READ), offset + done)
        except OSError as error:
            raise GatherError(index, error.errno or 0) from None
        if not part:
            raise GatherError(index, 0)
        room[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)


def _digest(content: Any) -> npt.NDArray[np.uint8]:
    return np.frombuffer(xxhash.xxh3_128_digest(content), np.uint8)


class Sha256s:
    """The sha256 of one message, or of two that grow together, in parts of whole blocks of 64 bytes.

    Two at once take the SHA instructions of a processor three quarters of the time of two in turn.
    """

    def __init__(self, count: int) -> None:
        self._plain = [hashlib.sha256() for _ in range(count)]
        self._library = _library() if count == 2 else None
        if self._library is not None and not self._library.dinowds_has_sha256():
            self._library = None
        self._words = np.frombuffer(_SHA256_START * count, ">u4").astype(np.uint32).reshape(count, 8)
        self._sizes = [0] * count

    def update(self, parts: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Each message goes on with one of `parts`, uint8 [64 × n], C-contiguous."""
        if self._library is None:
            for message, part in zip(self._plain, parts, strict=True):
                message.update(part.data)
            return
        blocks = [(part.ctypes.data, part.size // 64) for part in parts]
        self._library.dinowds_sha256(self._words.ctypes.data, *blocks[0], *blocks[1])
        self._sizes = [size + part.size for size, part in zip(self._sizes, parts, strict=True)]

    def hexdigests(self) -> list[str]:
        """Of all messages; nothing can be added then."""
        if self._library is None:
            return [message.hexdigest() for message in self._plain]
        ends = [b"\x80" + bytes(55) + (8 * size).to_bytes(8, "big") for size in self._sizes]
        self.update([np.frombuffer(end, np.uint8) for end in ends])
        return [words.astype(">u4").tobytes().hex() for words in self._words]


def tar_headers(names: Any, sizes: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """`ustar.tar_header` of each of `names` (a list of bytes, or an Arrow array) and `sizes`: uint8 [N, 512].

    Raises ValueError where a name has over 100 bytes or a size over 11 octal digits.
    """
    array = pa.array(names, pa.large_binary()) if isinstance(names, list) else _large_binary(names)
    offsets, data = _buffers(array)
    sizes = np.ascontiguousarray(sizes, np.int64)
    lengths = np.diff(offsets)
    if len(lengths) and (lengths.max() > 100 or sizes.min() < 0 or sizes.max() >= 8**11):
        bad = int(np.argmax((lengths > 100) | (sizes < 0) | (sizes >= 8**11)))
        raise ValueError(f"{array[bad].as_py()!r} with {sizes[bad]} bytes does not fit a USTAR header")
    empty, library = np.frombuffer(tar_header("", 0), np.uint8), _library()
    if library is None:
        return _headers_in_numpy(empty, data[offsets[0] : offsets[-1]], lengths, sizes)
    headers = np.empty((len(lengths), BLOCK), np.uint8)
    library.dinowds_tar_headers(
        empty.ctypes.data, data.ctypes.data, offsets.ctypes.data, sizes.ctypes.data, len(lengths), headers.ctypes.data
    )
    return headers


def _headers_in_numpy(empty: Any, names: Any, lengths: Any, sizes: Any) -> npt.NDArray[np.uint8]:
    headers = np.tile(empty, (len(lengths), 1))
    headers[:, :100][np.arange(100) < lengths[:, None]] = names
    headers[:, 124:135] = _octal(sizes, 11)
    headers[:, 148:156] = ord(" ")
    headers[:, 148:154] = _octal(headers.sum(axis=1, dtype=np.int64), 6)
    headers[:, 154] = 0
    return headers


def _octal(values: npt.NDArray[np.int64], digits: int) -> npt.NDArray[np.uint8]:
    shifts = 3 * np.arange(digits - 1, -1, -1)
    return ((values[:, None] >> shifts & 7) + ord("0")).astype(np.uint8)


def _buffers(array: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets [N + 1] and bytes of an Arrow array of large binaries."""
    _, offsets, data = array.buffers()
    if not len(array):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    content = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1], content


@cache
def _load() -> tuple[Any, str | None]:
    """The C library; or None, and why."""
    spec = importlib.util.find_spec("dinowds.shard._kernels")
    if spec is None or spec.origin is None:
        return None, f"the C library of dinowds.shard is not built: install a C compiler (gcc), then run `{INSTALL}`"
    try:
        library = ctypes.CDLL(spec.origin)
        version = library.dinowds_version()
    except (OSError, AttributeError) as error:
        return None, f"the C library of dinowds.shard cannot be loaded ({error}): run `{INSTALL}` again"
    if version != VERSION:
        return None, (
            f"the C library of dinowds.shard is of another version ({version}; expected {VERSION}): "
            f"run `{INSTALL}` again"
        )
    _declare(library)
    return library, None


def _declare(library: Any) -> None:
    """Types of the functions' arguments and results."""
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    types = {
        "walk_tar": (int64, int32, int64, int64, int64, *[pointer] * 6),
        "check": (int32, int32, ctypes.c_char_p, pointer, int64, pointer, pointer, int64, int64, pointer, pointer),
        "statistics": (None, pointer, int64, int64, int32, int32, pointer, pointer),
        "hash_strings": (None, pointer, pointer, int64, pointer),
        "hash": (int32, int32, pointer, int64, pointer),
        "tar_headers": (None, pointer, pointer, pointer, pointer, int64, pointer),
        "has_sha256": (int32,),
        "sha256": (None, pointer, pointer, int64, pointer, int64),
        "gather": (int64, pointer, int64, pointer, pointer, pointer),
    }
    for name, (result, *arguments) in types.items():
        function = getattr(library, f"dinowds_{name}")
        function.restype, function.argtypes = result, arguments


@cache
def _library() -> Any:
    library, reason = _load()
    if reason:
        logging.getLogger(__name__).warning("%s; until then sharding is several times as slow", reason)
    return library
