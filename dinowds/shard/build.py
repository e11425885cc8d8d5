"""`dinowds shard` as a function: sources → a dataset on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinowds.data.manifest import Manifest
from dinowds.errors import SourceError

from .finish import finish_dataset
from .layout import Candidates, cut_shards, join_listings, member_bytes, shuffled
from .listing import Listing
from .options import ShardOptions, dataset_name, fingerprint_of, open_all
from .output import output_errors, shard_url
from .pool import write_shards
from .sources import Source, check_unchanged, list_source, open_tar
from .spool import open_stream, spool
from .ustar import END_BYTES
from .workspace import Workspace, claim
from .writer import Job, ShardTask, read_rows

__all__ = ["ShardOptions", "ShardPlan", "ShardProgress", "build_dataset", "plan_dataset"]


@dataclass(frozen=True)
class ShardProgress:
    """How far a run is. `decompress` counts bytes of one source, `list` its members; `write` and `index` the whole."""

    phase: Literal["decompress", "list", "write", "index"]
    source: str = ""
    samples: int = 0
    total_samples: int = 0
    num_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class ShardPlan:
    """What a run would write, if every image is whole. Counts are of samples; bytes are those of the tars."""

    samples: int
    shards: int
    num_bytes: int
    cohorts: dict[str, int]
    label_names: tuple[str, ...]
    quarantined: dict[str, int]
    skipped: dict[str, int]


Report = Callable[[ShardProgress], None]


def build_dataset(
    sources: Sequence[Path | str], out: Path | str, options: ShardOptions, report: Report | None = None
) -> Manifest:
    """Write the images of `sources`, shuffled, as a dataset in the folder `out`, or at the remote URL `out`.

    The same sources and options give the same bytes whatever the number of workers. A run that was ended goes on when
    it is called again with the same arguments. With more than one worker the calling script needs the usual
    `if __name__ == "__main__"` guard.

    Args:
        sources: tars (plain, or compressed with gz, bz2, xz) and folders of images; each is a cohort. All are local.
        report: called now and then from this process.

    Raises:
        SourceError: a source is missing, damaged, empty, or changed meanwhile; or no image is whole.
        OutputError, StorageError: `out` holds something else, or cannot be written.
        ConfigError: an option cannot work.
    """
    report = report or (lambda _: None)
    opened, output = open_all(sources, out, options)
    fingerprint = fingerprint_of(opened, output, options)
    with output_errors(output.root), claim(output, options.overwrite, fingerprint) as workspace:
        manifest = workspace.publish_again() if workspace.is_whole else _make(workspace, opened, options, report)
        workspace.end()
    return manifest


def _make(workspace: Workspace, sources: Sequence[Source], options: ShardOptions, report: Report) -> Manifest:
    """List, write and publish what an earlier run has not."""
    data, listings = _list_all(sources, workspace.folder, report)
    spools = [now.file for now, before in zip(data, sources, strict=True) if before.kind == "compressed"]
    workspace.begin({s.path: listing.digest for s, listing in zip(sources, listings, strict=True)}, spools)
    candidates = join_listings(listings, [source.cohort for source in sources])
    order, bounds = _lay_out(candidates, options)
    name = dataset_name(workspace.output, options)
    job = Job(data, options.key_pattern, workspace.output, name)
    _write_missing(job, candidates, order, bounds, options.workers, report)
    check_unchanged(sources)
    report(ShardProgress("index", samples=len(candidates), total_samples=len(candidates)))
    return finish_dataset(
        workspace, name, options.seed, options.shuffle, sources, listings, candidates, len(bounds) - 1
    )


def plan_dataset(
    sources: Sequence[Path | str], out: Path | str, options: ShardOptions, report: Report | None = None
) -> ShardPlan:
    """What `build_dataset` would write, from the sources' lists alone. Writes nothing; raises the same errors."""
    report = report or (lambda _: None)
    opened, output = open_all(sources, out, options)
    Workspace(output, options.overwrite, fingerprint_of(opened, output, options)).check()
    _, listings = _list_all(opened, None, report)
    candidates = join_listings(listings, [source.cohort for source in opened])
    _, bounds = _lay_out(candidates, options)
    quarantined: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for listing in listings:
        quarantined.update(listing.quarantine["reason"].to_pylist())
        skipped.update(listing.skipped)
    return ShardPlan(
        samples=len(candidates),
        shards=len(bounds) - 1,
        num_bytes=int(member_bytes(candidates.sizes, candidates.labels).sum()) + END_BYTES * (len(bounds) - 1),
        cohorts={source.cohort: len(listing.names) for source, listing in zip(opened, listings, strict=True)},
        label_names=candidates.label_names,
        quarantined=dict(sorted(quarantined.items())),
        skipped=dict(sorted(skipped.items())),
    )


def _list_all(
    sources: Sequence[Source], folder: Path | None, report: Report
) -> tuple[tuple[Source, ...], list[Listing]]:
    """What each source's payloads can be read from by place, and its list. Without `folder` nothing is decompressed
    to disk, and payloads of compressed tars cannot be read.
    """
    data: list[Source] = []
    listings: list[Listing] = []
    for source in sources:
        file = source.file
        if source.kind == "compressed" and folder is not None:
            file = spool(source, folder, _counting("decompress", source, report))
        opening: Any = nullcontext(None)
        if source.kind == "compressed" and folder is None:
            opening = open_stream(source)
        elif source.kind != "folder":
            opening = open_tar(file, source.path)
        report(ShardProgress("list", source.path))
        try:
            with opening as tar:
                listing = list_source(source, tar, _counting("list", source, report))
        except SourceError:
            if file != source.file:
                file.unlink(missing_ok=True)
            raise
        mtime_ns = listing.newest_ns if source.kind == "folder" else source.mtime_ns
        data.append(replace(source, file=file, mtime_ns=mtime_ns))
        listings.append(listing)
    return tuple(data), listings


def _counting(phase: Literal["decompress", "list"], source: Source, report: Report) -> Callable[[int], None]:
    def count(number: int) -> None:
        samples, num_bytes = (number, 0) if phase == "list" else (0, number)
        report(ShardProgress(phase, source.path, samples=samples, num_bytes=num_bytes))

    return count


def _lay_out(candidates: Candidates, options: ShardOptions) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[int]]:
    """The order of the samples, and where in it each shard begins (and the last ends)."""
    order = shuffled(len(candidates), options.seed) if options.shuffle else np.arange(len(candidates), dtype=np.int64)
    num_bytes = member_bytes(candidates.sizes[order], candidates.labels[order])
    return order, cut_shards(num_bytes, options.shard_size, options.max_count)


def _write_missing(
    job: Job, candidates: Candidates, order: Any, bounds: list[int], workers: int, report: Report
) -> None:
    """Write the shards that an earlier run has not written, or not uploaded."""
    shards = range(len(bounds) - 1)
    sizes = {index: done.num_bytes for index in shards if (done := read_rows(job.folder, index)) is not None}
    present = job.output.present(sizes, partial(shard_url, job.name))
    missing = [index for index in shards if index not in present]
    parts = {index: order[bounds[index] : bounds[index + 1]] for index in missing}
    num_samples, num_bytes = len(candidates), int(candidates.sizes.sum())
    samples = num_samples - sum(len(part) for part in parts.values())
    done_bytes = num_bytes - sum(int(candidates.sizes[part].sum()) for part in parts.values())

    def advance(more_samples: int, more_bytes: int) -> None:
        nonlocal samples, done_bytes
        samples, done_bytes = samples + more_samples, done_bytes + more_bytes
        report(ShardProgress("write", "", samples, num_samples, done_bytes, num_bytes))

    advance(0, 0)
    tasks = (ShardTask(index, candidates.rows(part)) for index, part in parts.items())
    write_shards(job, tasks, len(missing), workers, advance)
