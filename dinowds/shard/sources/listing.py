"""The images of one file of a source as columns, and the choice of what is an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from dinowds.shard.sources.check import EXTENSIONS, REASONS, Checked
from dinowds.shard.sources.images import IMAGE_EXTENSIONS, TOO_LARGE
from dinowds.shard.sources.source import Items
from dinowds.shard.sources.tarscan import DIRECTORY, FILE, Member, Members

MAX_IMAGE_BYTES = 2**31 - 1
"""What a decoder can take as one buffer."""

NOT_AN_IMAGE_NAME = "not an image file"
EMPTY_FILE = "empty file"
BAD_LABEL = "label is not an integer"
LOST_LABEL = "label without an image"
MAC_FILES = "macOS files"
DIRECTORIES = "directories"

NO_SLIDE = ""
"""In the column `slide`: the layout knows that there is none; null: it does not know."""

BATCH = 4096
"""Members that are checked at once, while their bytes are in the page cache."""

_IMAGE_NAME = r"(?i)\.(" + "|".join(sorted(ending.decode() for ending in IMAGE_EXTENSIONS)) + r")\z"
_MAX_LABEL_BYTES = 32
_TABLES = 64
_HASHED_ROWS = 1 << 16
_PACKERS = (b"gz", b"bz2", b"xz", b"zst")

QUARANTINE_COLUMNS: Any = pa.schema(
    [pa.field("place", pa.int64()), pa.field("member", pa.large_binary()), pa.field("reason", pa.string())]
)
"""`place` orders the lines within a file: offset in a tar, position in the walk of a folder."""

Check = Callable[[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]], Checked]
"""(names, places, sizes) → what the payloads are."""


class Listing(NamedTuple):
    """What one file of a source holds.

    `images` is an Arrow table, one row an image in source order: `name` large_binary (as stored), `place`, `size` int64
    (offset of the payload in the file, or position in the walk of a folder; bytes), `ext` dictionary<string> by
    content, `width`, `height` int32, px; and what else is known (`layouts.Layout.facts`, `check.Checked`).
    `digest` changes with any of it. `newest_ns` is when a folder's newest file was changed.
    """

    images: Any
    quarantine: Any
    skipped: Counter[str]
    extensions: Counter[bytes]
    digest: str
    newest_ns: int = 0


class Collector:
    """Sorts members into images, labels, quarantine and what is only counted; images are checked on the way.

    Args:
        read: (name, place, size) → the bytes of a small member.
        check: what the payloads of images are.
        report: gets the number of members seen so far, now and then.
    """

    def __init__(
        self,
        read: Callable[[bytes, int, int], bytes],
        check: Check,
        report: Callable[[int], None],
    ) -> None:
        self._read = read
        self._check = check
        self._report = report
        self._seen = 0
        self._extensions: Counter[bytes] = Counter()
        self._skipped: Counter[str] = Counter()
        self._images: list[Any] = []
        self._compacted: list[Any] = []
        self._pending: list[tuple[bytes, int, int]] = []
        self._labels: list[tuple[bytes, int, int]] = []
        self._quarantine: list[tuple[int, bytes, str]] = []

    def take(self, members: Iterable[Member | Members]) -> None:
        """Sort all of `members`."""
        for found in members:
            if isinstance(found, Members):
                self._count(len(found.names))
                self._take_files(found)
            else:
                self._count(1)
                self._take_one(*found)

    def _count(self, more: int) -> None:
        before, self._seen = self._seen, self._seen + more
        if before // BATCH != self._seen // BATCH:
            self._report(self._seen)

    def _take_files(self, files: Members) -> None:
        """The usual case, many at once: all are ordinary files, and nearly all images."""
        self._flush()
        names = files.names
        taken = pc.match_substring_regex(names, _IMAGE_NAME).to_numpy(zero_copy_only=False)
        taken &= (files.sizes > 0) & (files.sizes <= MAX_IMAGE_BYTES)
        for trace in ("._", "__MACOSX"):
            for index in np.flatnonzero(pc.match_substring(names, trace).to_numpy(zero_copy_only=False)).tolist():
                taken[index] &= not _is_mac_file(names[index].as_py())
        for index in np.flatnonzero(~taken).tolist():
            self._leave_out(FILE, names[index].as_py(), int(files.places[index]), int(files.sizes[index]))
        if taken.all():
            self._add_images(names, files.places, files.sizes)
        elif taken.any():
            self._add_images(names.filter(pa.array(taken)), files.places[taken], files.sizes[taken])

    def _take_one(self, kind: str, name: bytes, place: int, size: int) -> None:
        ending = name.rpartition(b".")[2].lower() if b"." in name else b""
        if kind == FILE and ending in IMAGE_EXTENSIONS and 0 < size <= MAX_IMAGE_BYTES and not _is_mac_file(name):
            self._pending.append((name, place, size))
            if len(self._pending) >= BATCH:
                self._flush()
        else:
            self._leave_out(kind, name, place, size)

    def _flush(self) -> None:
        if self._pending:
            names, places, sizes = zip(*self._pending, strict=True)
            self._pending = []
            self._add_images(pa.array(names, pa.large_binary()), np.array(places), np.array(sizes))

    def _add_images(self, names: Any, places: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        table, bad = checked_table(names, places, sizes, self._check(names, places, sizes))
        self._images.append(table)
        self._quarantine += bad
        if len(self._images) >= _TABLES:
            self._compact()

    def _compact(self) -> None:
        """Many small tables take twice the memory of one."""
        if self._images:
            self._compacted.append(pa.concat_tables(self._images).combine_chunks())
        self._images = []

    def _leave_out(self, kind: str, name: bytes, place: int, size: int) -> None:
        ending = name.rpartition(b".")[2].lower() if b"." in name else b""
        if kind == DIRECTORY:
            self._skipped[DIRECTORIES] += 1
        elif _is_mac_file(name):
            self._skipped[MAC_FILES] += 1
        elif kind != FILE:
            self._quarantine.append((place, name, kind))
        elif size == 0:
            self._quarantine.append((place, name, EMPTY_FILE))
        elif ending in IMAGE_EXTENSIONS:
            self._quarantine.append((place, name, TOO_LARGE))
        elif ending == b"cls":
            self._take_label(name, place, size)
        else:
            self._extensions[_whole_extension(name, ending)] += 1
            self._quarantine.append((place, name, NOT_AN_IMAGE_NAME))

    def _take_label(self, name: bytes, place: int, size: int) -> None:
        try:
            value = int(self._read(name, place, size)) if size <= _MAX_LABEL_BYTES else 2**63
        except ValueError:
            value = 2**63
        if -(2**63) <= value < 2**63:
            self._labels.append((name, place, value))
        else:
            self._quarantine.append((place, name, BAD_LABEL))

    def finish(self) -> tuple[Any, list[tuple[int, bytes, str]], Counter[str], Counter[bytes]]:
        """The images of all that was taken, with `label` where there were any; quarantine, skipped, extensions."""
        self._flush()
        self._compact()
        images = pa.concat_tables(self._compacted) if self._compacted else _no_images()
        self._compacted = []
        if self._labels:
            names = pa.array([name for name, _, _ in self._labels], pa.large_binary())
            which = match_labels(images["name"].combine_chunks(), names)
            used = np.zeros(len(names), bool)
            used[which[which >= 0]] = True
            self._quarantine += [
                (place, name, LOST_LABEL)
                for (name, place, _), taken in zip(self._labels, used, strict=True)
                if not taken
            ]
            values = pa.array([str(value) for _, _, value in self._labels], pa.string())
            labels = values.take(pa.array(which, mask=which < 0))
            images = images.append_column("label", labels)
        return images, self._quarantine, self._skipped, self._extensions


def checked_table(
    names: Any, places: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], checked: Checked
) -> tuple[Any, list[tuple[int, bytes, str]]]:
    """The rows of those that are whole images, and (place, name, reason) of the others."""
    columns: dict[str, Any] = {
        "name": names,
        "place": places,
        "size": sizes,
        "ext": pa.DictionaryArray.from_arrays(pa.array(np.maximum(checked.ext, 0), pa.int8()), list(EXTENSIONS)),
        "width": checked.width,
        "height": checked.height,
    }
    if checked.digest is not None:
        columns["digest"] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(places), [None, pa.py_buffer(np.ascontiguousarray(checked.digest))]
        )
    for name in ("white", "black", "sharpness"):
        if (values := getattr(checked, name)) is not None:
            columns[name] = values
    table = pa.table(columns)
    bad = np.flatnonzero(checked.reason)
    if not len(bad):
        return table, []
    quarantine = [(int(places[i]), names[i].as_py(), REASONS[checked.reason[i]]) for i in bad.tolist()]
    return table.filter(pa.array(checked.reason == 0)), quarantine


def checked_items(items: Items, check: Check) -> tuple[Any, list[tuple[int, bytes, str]]]:
    """The rows of a layout's own items that are whole images, with their facts; and its quarantine."""
    tables, quarantine = [_no_images()], list(items.quarantine)
    usable = (items.sizes > 0) & (items.sizes <= MAX_IMAGE_BYTES)
    for i in np.flatnonzero(~usable).tolist():
        reason = TOO_LARGE if items.sizes[i] > 0 else EMPTY_FILE
        quarantine.append((int(items.places[i]), items.names[i].as_py(), reason))
    rows = np.flatnonzero(usable)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        names, places, sizes = items.names.take(pa.array(part)), items.places[part], items.sizes[part]
        checked = check(names, places, sizes)
        table, bad = checked_table(names, places, sizes, checked)
        if items.facts is not None:
            facts = items.facts.take(pa.array(part[checked.reason == 0]))
            table = with_facts(table, facts)
        tables.append(table)
        quarantine += bad
    return pa.concat_tables(
        [table for table in tables if len(table)] or tables[:1], promote_options="default"
    ), quarantine


def with_facts(images: Any, facts: Any) -> Any:
    """The columns of `facts` [N] beside those of `images` [N]; where both know a label, that of `facts` counts."""
    for name in () if facts is None else facts.column_names:
        column = facts[name]
        if name == "slide":
            column = pc.fill_null(column, NO_SLIDE)
        if name in images.column_names:
            column = pc.coalesce(column, images[name])
            images = images.drop_columns(name)
        images = images.append_column(name, column)
    return images


def finish_listing(
    images: Any,
    quarantine: Sequence[tuple[int, bytes, str]],
    skipped: Counter[str],
    extensions: Counter[bytes],
    salt: bytes = b"",
    newest_ns: int = 0,
) -> Listing:
    """The listing of a file; `salt` is what else its digest is to change with."""
    places, members, reasons = zip(*sorted(quarantine), strict=True) if quarantine else ((), (), ())
    lines = pa.table(
        [pa.array(places, pa.int64()), pa.array(members, pa.large_binary()), list(reasons)], QUARANTINE_COLUMNS
    )
    digest = xxhash.xxh3_128(salt)
    for table in (images, lines):
        with pa.ipc.new_stream(pa.PythonFile(_Hashed(digest), "w"), table.schema) as stream:
            for start in range(0, len(table), _HASHED_ROWS):
                stream.write_table(table.slice(start, _HASHED_ROWS).combine_chunks())
    return Listing(images, lines, skipped, extensions, digest.hexdigest(), newest_ns)


class _Hashed:
    """A file that is only hashed."""

    closed = False

    def __init__(self, digest: xxhash.xxh3_128) -> None:
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def match_labels(images: Any, labels: Any) -> npt.NDArray[np.int64]:
    """For each image the position of the label with the same stem, or -1.

    Of a stem that comes several times, the k-th image gets the k-th label, or the last one there is.
    """
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
    for start in range(0, len(names), BATCH):
        for index, name in enumerate(names[start : start + BATCH].to_pylist(), start):
            hashes[index] = xxhash.xxh3_64_intdigest(name.rpartition(b".")[0])
    return hashes


def _no_images() -> Any:
    none = np.zeros(0, np.int64)
    return checked_table(pa.array([], pa.large_binary()), none, none, unchecked(0))[0]


def unchecked(count: int) -> Checked:
    """Payloads that are taken for what their names say."""
    small, large = np.zeros(count, np.int8), np.zeros(count, np.int32)
    return Checked(small, small, large, large)


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
