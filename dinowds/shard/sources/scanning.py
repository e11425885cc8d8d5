"""Pass 1: every file of every source is listed and its images are checked, several files at once."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dinowds.errors import SourceError
from dinowds.files import open_regular
from dinowds.shard.records import decode_name
from dinowds.shard.sources.check import REASONS, ChangedError, Checked, Checks, check_files, check_ranges
from dinowds.shard.sources.layouts import get_layout, kind_of
from dinowds.shard.sources.layouts.folder import Times, walk
from dinowds.shard.sources.layouts.regions import check_regions, rough_items
from dinowds.shard.sources.layouts.tar import SUFFIXES
from dinowds.shard.sources.listing import (
    NOT_AN_IMAGE_NAME,
    Check,
    Collector,
    Listing,
    checked_items,
    finish_listing,
    unchecked,
    with_facts,
)
from dinowds.shard.sources.source import Source, SourceFile, changed, is_unchanged, readable
from dinowds.shard.sources.spool import needs_spool, open_stream, spool
from dinowds.shard.sources.tarscan import FILE, FileData, Member, Members, cut_short, scan_tar
from dinowds.shard.sources.zipscan import COMPRESSED, list_spooled_zip, list_zip


class Scanned(NamedTuple):
    """One file of a source, as its payloads can be read by place, and what it holds."""

    file: SourceFile
    listing: Listing

    def without_images(self) -> Scanned:
        """What is left to say once the images are taken elsewhere."""
        return self._replace(listing=self.listing._replace(images=None))


class Stopped(Exception):
    """Another thread has failed, or the command was interrupted."""


def scan_sources(
    sources: Sequence[Source], folder: Path | None, checks: Checks, workers: int, report: Callable[[int], None]
) -> list[list[Scanned]]:
    """List all files of all sources; for each source, its files in order.

    Args:
        folder: where files are unpacked whose payloads cannot be read by place; None for a rough list of them: names
            and sizes, not checked.
        workers: files listed at once.
        report: gets the number of members seen so far, in all files.

    Raises:
        SourceError: a file cannot be read to its end, or a source has no image.
    """
    counting = _Counting(report)
    tasks = [(source, position) for source in sources for position in range(len(source.files))]
    with ThreadPoolExecutor(max(1, min(workers, len(tasks)))) as pool:
        try:
            one = partial(_scan, folder=folder, checks=checks, counting=counting)
            scanned = list(pool.map(lambda task: one(*task), tasks))
        except BaseException:
            counting.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return by_source(sources, iter(scanned))


def by_source(sources: Sequence[Source], scanned: Iterator[Scanned]) -> list[list[Scanned]]:
    """All files of all sources → for each source, its files. Raises SourceError for a source without an image."""
    found = [[next(scanned) for _ in source.files] for source in sources]
    for source, files in zip(sources, found, strict=True):
        if not any(len(file.listing.images) for file in files):
            raise SourceError(f"{source.path}: {_why_no_image(source, [file.listing for file in files])}")
    return found


class _Counting:
    """Adds up what several threads have seen, and ends them when one of them has failed."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._total = 0
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def counter(self) -> Callable[[int], None]:
        """For one file: takes the number that it has so far."""
        before = 0

        def count(so_far: int) -> None:
            nonlocal before
            if self._stopped:
                raise Stopped
            with self._lock:
                self._total += so_far - before
                before = so_far
                self._report(self._total)

        return count


def _scan(source: Source, position: int, folder: Path | None, checks: Checks, counting: _Counting) -> Scanned:
    count = counting.counter()
    count(0)
    return scan_file(source, position, folder, checks, count)


def scan_file(
    source: Source, position: int, folder: Path | None, checks: Checks, count: Callable[[int], None]
) -> Scanned:
    """List one file, which is unpacked before if it must be."""
    file = spooled = source.files[position]
    if folder is not None and needs_spool(file):
        spooled = replace(file, file=spool(file, folder, lambda _: count(0)), kind="tar", packing="", origin=None)
    try:
        with readable(file.path):
            listing = _list(source, position, spooled, checks, count)
    except (ChangedError, SourceError) as error:
        said = _why_changed(file, spooled) if isinstance(error, ChangedError) else error
        if spooled is not file:
            spooled.file.unlink(missing_ok=True)
        raise said from None
    if file.kind == "folder":
        spooled = replace(file, mtime_ns=listing.newest_ns)
    return Scanned(spooled, listing)


def _why_changed(file: SourceFile, spooled: SourceFile) -> SourceError:
    """A payload goes on past the end of its file: which was cut before, unless someone has just done so."""
    if spooled.kind == "tar" and is_unchanged(file):
        return cut_short(file.path, spooled.file.stat().st_size)
    return changed(file.path)


def _list(source: Source, position: int, file: SourceFile, checks: Checks, count: Callable[[int], None]) -> Listing:
    layout = get_layout(source.layout)
    if file.kind == "folder":
        return _list_folder(source, position, file, checks, count)
    if file.kind == "tensors":
        items = rough_items(source, position)
        images, quarantine = checked_items(items, lambda names, _places, _sizes: unchecked(len(names)))
        return finish_listing(images, quarantine, Counter(items.skipped), Counter())
    with _opened(source, position, file) as (descriptor, read, members):
        check = partial(_check, descriptor, checks, kind_of(source) == "region")
        if hasattr(layout, "list_items"):
            items = layout.list_items(source, position, read)
            images, quarantine = checked_items(items, _counted(check, count))
            return finish_listing(images, quarantine, Counter(items.skipped), Counter())
        collector = Collector(lambda _, place, size: read(place, size), check, count)
        collector.take(members)
        images, quarantine, skipped, endings = collector.finish()
    images = with_facts(images, layout.facts(source, position, images["name"].combine_chunks()))
    return finish_listing(images, quarantine, skipped, endings)


def _list_folder(
    source: Source, position: int, file: SourceFile, checks: Checks, count: Callable[[int], None]
) -> Listing:
    layout, times = get_layout(source.layout), Times()

    def check(names: Any, _places: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Checked:
        try:
            return check_files(file.file, names.to_pylist(), sizes, checks)
        except ChangedError as error:
            raise changed(f"{file.path}/{decode_name(names[error.index].as_py())}") from None

    if hasattr(layout, "list_items"):
        items = layout.list_items(source, position, lambda _place, _size: b"")
        newest = _newest(file, items.names)
        images, quarantine = checked_items(items, _counted(check, count))
        return finish_listing(images, quarantine, Counter(items.skipped), Counter(), str(newest).encode(), newest)
    collector = Collector(lambda name, _place, _size: (file.file / os.fsdecode(name)).read_bytes(), check, count)
    collector.take(walk(file.file, times))
    images, quarantine, skipped, endings = collector.finish()
    images = with_facts(images, layout.facts(source, position, images["name"].combine_chunks()))
    return finish_listing(images, quarantine, skipped, endings, times.digest.digest(), times.newest_ns)


@contextmanager
def _opened(
    source: Source, position: int, file: SourceFile
) -> Iterator[tuple[int, Callable[[int, int], bytes], Iterator[Member | Members]]]:
    """A file's descriptor (-1 where payloads cannot be read by place), its bytes by place, and its members."""
    if file.packing or file.origin:
        with open_stream(file) as stream:
            yield -1, stream.read, scan_tar(stream, file.path)
        return
    descriptor = open_regular(file.file)
    try:
        data = FileData(descriptor)
        original = source.files[position]
        members: Any = scan_tar(data, file.path)
        if original.kind == "zip":
            is_spooled = file.kind == "tar"
            members = list_spooled_zip(data, original.file, file.path) if is_spooled else _list_zip(file)
        yield descriptor, data.read, members
    finally:
        os.close(descriptor)


def _list_zip(file: SourceFile) -> Iterator[Member]:
    """Compressed members of a zip that is not to be unpacked count for what their names say."""
    for kind, name, place, size in list_zip(file.file, file.path):
        yield FILE if kind == COMPRESSED else kind, name, place, size


def _check(
    descriptor: int,
    checks: Checks,
    is_region: bool,
    names: Any,
    places: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
) -> Checked:
    if descriptor < 0:
        return unchecked(len(names))
    if is_region:
        return check_regions(descriptor, places, sizes, checks)
    return check_ranges(descriptor, places, sizes, checks)


def _counted(check: Check, count: Callable[[int], None]) -> Check:
    """`check` that counts what it gets, before each batch."""
    seen = 0

    def counted(names: Any, places: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Checked:
        nonlocal seen
        seen += len(names)
        count(seen)
        return check(names, places, sizes)

    return counted


def _newest(file: SourceFile, names: Any) -> int:
    return max(((file.file / os.fsdecode(name)).stat().st_mtime_ns for name in names.to_pylist()), default=0)


def _why_no_image(source: Source, listings: Sequence[Listing]) -> str:
    extensions: Counter[bytes] = sum((listing.extensions for listing in listings), Counter())
    reasons: Counter[str] = sum((listing.skipped for listing in listings), Counter())
    for listing in listings:
        reasons.update(listing.quarantine["reason"].to_pylist())
    kind = source.files[0].kind if source.files else "folder"
    if archives := sum(extensions[suffix[1:].encode()] for suffix in SUFFIXES):
        if kind == "folder":
            return f"has no image files, but {archives} tars: give those"
        return f"has no image files, but {archives} tars inside: take them out (tar -xf {source.path}) and give those"
    if any(reason in reasons for reason in REASONS[1:]):
        said = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
        return f"not one image of this {kind} is whole ({said}); no dataset was made"
    names = reasons.pop(NOT_AN_IMAGE_NAME, 0)
    found = [f"{count} .{decode_name(name)}" for name, count in extensions.most_common(3)] if names else []
    found += [f"{count} × {reason}" for reason, count in reasons.most_common()]
    if kind != "folder" and not found:
        return f"holds nothing; give a {kind} with images"
    expected = "jpg, png, tif, webp, bmp, gif or jp2"
    said = ", ".join(found) or "nothing at all"
    return f"this {kind} has no image files ({said}); expected names ending in {expected}"
