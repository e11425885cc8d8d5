"""`dinowds shard` as a function: sources → a dataset on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import dinowds
from dinowds.data.manifest import FORMAT_VERSION, Manifest
from dinowds.errors import ConfigError, SourceError

from .finish import finish_dataset
from .layout import Candidates, cut_shards, join_listings, member_bytes, shuffled
from .listing import Listing
from .pool import write_shards
from .records import DEFAULT_KEY_PATTERN, compile_key_pattern, decode_name
from .sources import Source, check_unchanged, list_source, open_sources, open_tar
from .spool import open_stream, spool
from .ustar import END_BYTES
from .workspace import Workspace, check_output, claim, output_errors
from .writer import Job, ShardTask, read_done

DEFAULT_SHARD_SIZE = 256 << 20
MIN_SHARD_SIZE = 1 << 16
MAX_SHARD_SIZE = 1 << 40
MAX_NAME_BYTES = 200
"""A shard's file name has 255 at most, and some are for its number."""


@dataclass(frozen=True)
class ShardOptions:
    """How a dataset is made. Only `workers` and `overwrite` leave its bytes as they are."""

    name: str | None = None
    """Of the dataset and its shards; None for the output folder's name."""
    seed: int = 0
    """Of the order of the samples; at least 0."""
    shard_size: int = DEFAULT_SHARD_SIZE
    """Largest length of a shard, bytes."""
    max_count: int | None = None
    """Largest number of samples of a shard; None for any."""
    workers: int = 1
    """Processes that write shards; 1 writes in this one."""
    key_pattern: str = DEFAULT_KEY_PATTERN
    """Regular expression with named groups slide, x, y (each optional), searched in a member's path; '' for none."""
    overwrite: bool = False
    """Replace a dataset, or another command's unfinished one, that lies in the output folder."""


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


def build_dataset(sources: Sequence[Path], out: Path, options: ShardOptions, report: Report | None = None) -> Manifest:
    """Write the images of `sources`, shuffled, as a dataset in the folder `out`.

    The same sources and options give the same bytes whatever the number of workers. A run that was ended goes on when
    it is called again with the same arguments. With more than one worker the calling script needs the usual
    `if __name__ == "__main__"` guard.

    Args:
        sources: tars (plain, or compressed with gz, bz2, xz) and folders of images; each is a cohort.
        report: called now and then from this process.

    Raises:
        SourceError: a source is missing, damaged, empty, or changed meanwhile; or no image is whole.
        OutputError: `out` holds something else, or cannot be written.
        ConfigError: an option cannot work.
    """
    report, out = report or (lambda _: None), out.resolve()
    opened = _open(sources, out, options)
    fingerprint = _fingerprint(opened, out, options)
    with output_errors(out), claim(out, options.overwrite, fingerprint) as workspace:
        manifest = workspace.publish_again() if workspace.is_whole else _make(workspace, opened, options, report)
        workspace.remove()
    return manifest


def _make(workspace: Workspace, sources: Sequence[Source], options: ShardOptions, report: Report) -> Manifest:
    """List, write and publish what an earlier run has not."""
    data, listings = _list_all(sources, workspace.folder, report)
    spools = [now.file for now, before in zip(data, sources, strict=True) if before.kind == "compressed"]
    workspace.begin({s.path: listing.digest for s, listing in zip(sources, listings, strict=True)}, spools)
    candidates = join_listings(listings, [source.cohort for source in sources])
    order, bounds = _lay_out(candidates, options)
    job = Job(data, options.key_pattern, workspace.folder)
    _write_missing(job, candidates, order, bounds, options.workers, report)
    check_unchanged(sources)
    report(ShardProgress("index", samples=len(candidates), total_samples=len(candidates)))
    name = dataset_name(workspace.out, options)
    return finish_dataset(workspace, name, options.seed, sources, listings, candidates, len(bounds) - 1)


def plan_dataset(sources: Sequence[Path], out: Path, options: ShardOptions, report: Report | None = None) -> ShardPlan:
    """What `build_dataset` would write, from the sources' lists alone. Writes nothing; raises the same errors."""
    report, out = report or (lambda _: None), out.resolve()
    opened = _open(sources, out, options)
    check_output(out, options.overwrite, _fingerprint(opened, out, options))
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


def dataset_name(out: Path, options: ShardOptions) -> str:
    """The name that was given, or the output folder's (`out` is resolved)."""
    return options.name or out.name or "dataset"


def _open(paths: Sequence[Path], out: Path, options: ShardOptions) -> list[Source]:
    """The sources, once the options are known to work."""
    if options.seed < 0:
        raise ConfigError(f"--seed: is {options.seed}, expected 0 or more")
    if not MIN_SHARD_SIZE <= options.shard_size <= MAX_SHARD_SIZE:
        raise ConfigError(f"--shard-size: is {options.shard_size} bytes, expected {MIN_SHARD_SIZE} to {MAX_SHARD_SIZE}")
    if options.max_count is not None and options.max_count < 1:
        raise ConfigError(f"--max-count: is {options.max_count}, expected 1 or more")
    if options.workers < 1:
        raise ConfigError(f"--workers: is {options.workers}, expected 1 or more")
    _check_text("--out", str(out))
    name = dataset_name(out, options)
    _check_text("--name", name)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigError(f"--name: {name!r} has {len(name.encode())} bytes, expected at most {MAX_NAME_BYTES}")
    compile_key_pattern(options.key_pattern)
    sources = open_sources(paths)
    for source in sources:
        file = source.file.resolve()
        if source.kind == "folder" and out.is_relative_to(file):
            raise ConfigError(f"--out: {out} lies in the source {source.path}; give a folder outside of it")
        if file.is_relative_to(out):
            raise ConfigError(f"--out: {out} holds the source {source.path}; give another folder")
    return sources


def _check_text(option: str, text: str) -> None:
    """Manifests, indexes and other readers know names as Unicode alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = decode_name(os.fsencode(text))
        raise ConfigError(f"{option}: {shown!r} is not UTF-8, which the index needs; give another name") from None


def _fingerprint(sources: Sequence[Source], out: Path, options: ShardOptions) -> dict[str, Any]:
    """All that decides the bytes of a dataset, as JSON."""
    return {
        "version": f"{dinowds.__version__}, format {FORMAT_VERSION}",
        "--name": dataset_name(out, options),
        "--seed": options.seed,
        "--shard-size": options.shard_size,
        "--max-count": options.max_count,
        "--key-pattern": options.key_pattern,
        "sources": [{name: value for name, value in asdict(source).items() if name != "file"} for source in sources],
    }


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
    order = shuffled(len(candidates), options.seed)
    num_bytes = member_bytes(candidates.sizes[order], candidates.labels[order])
    return order, cut_shards(num_bytes, options.shard_size, options.max_count)


def _write_missing(
    job: Job, candidates: Candidates, order: Any, bounds: list[int], workers: int, report: Report
) -> None:
    """Write the shards that an earlier run has not written."""
    missing = [index for index in range(len(bounds) - 1) if read_done(job.folder, index) is None]
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
