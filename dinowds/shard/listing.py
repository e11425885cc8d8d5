"""The images of a source as columns, and the choice of what is an image. Pure, but for the labels it has read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from .images import IMAGE_EXTENSIONS, TOO_LARGE
from .tarscan import DIRECTORY, FILE, Member

MAX_IMAGE_BYTES = 2**31 - 1
"""What a decoder can take as one buffer."""

NOT_AN_IMAGE_NAME = "not an image file"
EMPTY_FILE = "empty file"
BAD_LABEL = "label is not an integer"
LOST_LABEL = "label without an image"
MAC_FILES = "macOS files"
DIRECTORIES = "directories"

_BATCH = 1 << 16
_MAX_LABEL_BYTES = 32
_PACKERS = (b"gz", b"bz2", b"xz", b"zst")

QUARANTINE_COLUMNS: Any = pa.schema(
    [pa.field("place", pa.int64()), pa.field("member", pa.large_binary()), pa.field("reason", pa.string())]
)
"""`place` orders the lines within a source: offset in a tar, position in the walk of a folder."""


@dataclass(frozen=True)
class Listing:
    """The images of one source, in source order, and what was left out.

    `names` is a large_binary Arrow array [N]; `places`, `sizes` and `labels` are int64 [N]: offset of the payload in
    the uncompressed tar (position in the walk for a folder), bytes, and the label's integer where `has_label`.
    `digest` changes with any of it. `newest_ns` is when a folder's newest file was changed.
    """

    names: Any
    places: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    has_label: npt.NDArray[np.bool_]
    quarantine: Any
    skipped: dict[str, int]
    digest: str
    newest_ns: int = 0


@dataclass
class _Columns:
    """Names with two numbers each, kept as Arrow batches."""

    names: list[bytes] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    second: list[Any] = field(default_factory=list)
    batches: list[tuple[Any, Any, Any]] = field(default_factory=list)
    second_type: Any = field(default_factory=pa.int64)

    def add(self, name: bytes, first: int, second: Any) -> None:
        self.names.append(name)
        self.first.append(first)
        self.second.append(second)
        if len(self.names) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        names = pa.array(self.names, pa.large_binary())
        self.batches.append((names, pa.array(self.first, pa.int64()), pa.array(self.second, self.second_type)))
        self.names, self.first, self.second = [], [], []

    def finish(self) -> tuple[Any, Any, Any]:
        """The three columns as one array each."""
        self.flush()
        names, first, second = zip(*self.batches, strict=True)
        self.batches = []
        return pa.concat_arrays(names), pa.concat_arrays(first), pa.concat_arrays(second)


class Collector:
    """Sorts members into images, labels, quarantine and what is only counted.

    Args:
        read: (name, place, size) → the bytes of a small member, asked before the next member is taken.
        report: gets the number of members seen so far, now and then.
    """

    def __init__(self, read: Callable[[bytes, int, int], bytes], report: Callable[[int], None]) -> None:
        self.extensions: Counter[bytes] = Counter()
        self._read = read
        self._report = report
        self._skipped: Counter[str] = Counter()
        self._images = _Columns()
        self._labels = _Columns()
        self._quarantine = _Columns(second_type=pa.string())

    def take(self, members: Iterable[Member]) -> None:
        """Sort all of `members`."""
        add_image = self._images.add
        for count, (kind, name, place, size) in enumerate(members, 1):
            if count % _BATCH == 0:
                self._report(count)
            _, dot, extension = name.rpartition(b".")
            extension = extension.lower()
            mac = (b"._" in name or b"__MACOSX" in name) and _is_mac_file(name)
            if kind == FILE and not mac and extension in IMAGE_EXTENSIONS and dot and 0 < size <= MAX_IMAGE_BYTES:
                add_image(name, place, size)
            else:
                self._leave_out(kind, name, place, size, extension if dot else b"")

    def _leave_out(self, kind: str, name: bytes, place: int, size: int, extension: bytes) -> None:
        if kind == DIRECTORY:
            self._skipped[DIRECTORIES] += 1
        elif _is_mac_file(name):
            self._skipped[MAC_FILES] += 1
        elif kind != FILE:
            self._quarantine.add(name, place, kind)
        elif size == 0:
            self._quarantine.add(name, place, EMPTY_FILE)
        elif extension in IMAGE_EXTENSIONS:
            self._quarantine.add(name, place, TOO_LARGE)
        elif extension == b"cls":
            self._take_label(name, place, size)
        else:
            self.extensions[_whole_extension(name, extension)] += 1
            self._quarantine.add(name, place, NOT_AN_IMAGE_NAME)

    def _take_label(self, name: bytes, place: int, size: int) -> None:
        try:
            value = int(self._read(name, place, size)) if size <= _MAX_LABEL_BYTES else 2**63
        except ValueError:
            value = 2**63
        if -(2**63) <= value < 2**63:
            self._labels.add(name, place, value)
        else:
            self._quarantine.add(name, place, BAD_LABEL)

    def finish(self, digest: xxhash.xxh3_128, newest_ns: int) -> Listing:
        """The listing of all that was taken. `digest` may have been fed more that the listing's digest is to cover."""
        names, places, sizes = self._images.finish()
        label_names, label_places, label_values = self._labels.finish()
        which = match_labels(names, label_names)
        used = np.zeros(len(label_names), bool)
        used[which[which >= 0]] = True
        for index in np.flatnonzero(~used).tolist():
            self._quarantine.add(label_names[index].as_py(), label_places[index].as_py(), LOST_LABEL)
        values = label_values.to_numpy()
        labels = np.where(which >= 0, values[which], 0) if len(values) else np.zeros(len(names), np.int64)
        members, quarantine_places, reasons = self._quarantine.finish()
        quarantine = pa.table([quarantine_places, members, reasons], schema=QUARANTINE_COLUMNS).sort_by("place")
        for array in (names, places, sizes, pa.array(labels), quarantine["member"].combine_chunks()):
            for buffer in array.buffers():
                digest.update(b"" if buffer is None else buffer)
        return Listing(
            names,
            places.to_numpy(),
            sizes.to_numpy(),
            labels,
            which >= 0,
            quarantine,
            dict(sorted(self._skipped.items())),
            digest.hexdigest(),
            newest_ns,
        )


def match_labels(images: Any, labels: Any) -> npt.NDArray[np.int64]:
    """For each image the position of the label with the same stem, or -1.

    Of a stem that comes several times, the k-th image gets the k-th label, or the last one there is.
    """
    if not len(labels):
        return np.full(len(images), -1, np.int64)
    label_hashes = _stem_hashes(labels)
    order = np.argsort(label_hashes, kind="stable")
    image_hashes = _stem_hashes(images)
    image_order = np.argsort(image_hashes, kind="stable")
    ordered_images, ordered_labels = image_hashes[image_order], label_hashes[order]
    low = np.searchsorted(ordered_labels, ordered_images, "left")
    count = np.searchsorted(ordered_labels, ordered_images, "right") - low
    rank = np.arange(len(ordered_images)) - np.searchsorted(ordered_images, ordered_images, "left")
    which = np.full(len(images), -1, np.int64)
    found = count > 0
    which[image_order[found]] = order[(low + np.minimum(rank, count - 1))[found]]
    return which


def _stem_hashes(names: Any) -> npt.NDArray[np.uint64]:
    hashes = np.empty(len(names), np.uint64)
    for start in range(0, len(names), _BATCH):
        for index, name in enumerate(names[start : start + _BATCH].to_pylist(), start):
            hashes[index] = xxhash.xxh3_64_intdigest(name.rpartition(b".")[0])
    return hashes


def _whole_extension(name: bytes, extension: bytes) -> bytes:
    """b"a.tar.gz" → b"tar.gz", as what it is packed with says little."""
    if b"/" in extension:
        return b""
    if extension not in _PACKERS:
        return extension
    inner = name[: -len(extension) - 1].rpartition(b"/")[2].rpartition(b".")
    return inner[2].lower() + b"." + extension if inner[1] else extension


def _is_mac_file(name: bytes) -> bool:
    parts = name.split(b"/")
    return parts[-1].startswith(b"._") or parts[-1] == b".DS_Store" or b"__MACOSX" in parts
