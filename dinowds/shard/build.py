"""`dinowds shard` as a function: sources → a dataset on disk."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import dinowds
from dinowds.data.manifest import FORMAT_VERSION, Manifest, read_manifest
from dinowds.errors import ConfigError, OutputError

from .finish import finish_dataset
from .layout import Candidates, cut_shards, join_listings, member_bytes, shuffled
from .listing import Listing
from .payloads import PayloadSource
from .pool import write_shards
from .records import DEFAULT_KEY_PATTERN, compile_key_pattern
from .sources import Source, list_source, open_sources, open_tar
from .spool import open_stream, spool
from .ustar import END_BYTES
from .workspace import Workspace, check_output, claim
from .writer import Job, ShardTask, read_done

DEFAULT_SHARD_SIZE = 256 << 20
MIN_SHARD_SIZE = 1 << 16

_FINISHING = "finishing"
_LISTED = "listed"


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
    report = report or (lambda _: None)
    opened = _open(sources, out, options)
    fingerprint = _fingerprint(opened, out, options)
    with _output_errors(out), claim(out, options.overwrite, fingerprint) as workspace:
        if workspace.is_finished:
            workspace.remove()
            return read_manifest(out)
        data, listings = _list_all(opened, workspace.folder, report)
        _check_unchanged(workspace, opened, listings, options.overwrite)
        candidates = join_listings(listings, [source.cohort for source in opened])
        order, bounds = _lay_out(candidates, options)
        if not workspace.recall(_FINISHING):
            job = Job(data, options.key_pattern, workspace.folder)
            _write_missing(job, candidates, order, bounds, options.workers, report)
            workspace.note(_FINISHING, True)
        report(ShardProgress("index", samples=len(candidates), total_samples=len(candidates)))
        manifest = finish_dataset(
            workspace, dataset_name(out, options), options.seed, opened, listings, candidates, len(bounds) - 1
        )
        workspace.remove()
    return manifest


def plan_dataset(sources: Sequence[Path], out: Path, options: ShardOptions, report: Report | None = None) -> ShardPlan:
    """What `build_dataset` would write, from the sources' lists alone. Writes nothing; raises the same errors."""
    report = report or (lambda _: None)
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
    """The name that was given, or the output folder's."""
    return options.name or out.resolve().name or "dataset"


def _open(paths: Sequence[Path], out: Path, options: ShardOptions) -> list[Source]:
    """The sources, once the options are known to work."""
    if options.seed < 0:
        raise ConfigError(f"--seed: is {options.seed}, expected 0 or more")
    if options.shard_size < MIN_SHARD_SIZE:
        raise ConfigError(f"--shard-size: is {options.shard_size} bytes, expected at least {MIN_SHARD_SIZE}")
    if options.max_count is not None and options.max_count < 1:
        raise ConfigError(f"--max-count: is {options.max_count}, expected 1 or more")
    if options.workers < 1:
        raise ConfigError(f"--workers: is {options.workers}, expected 1 or more")
    compile_key_pattern(options.key_pattern)
    sources = open_sources(paths)
    target = out.resolve()
    for source in sources:
        file = source.file.resolve()
        if source.kind == "folder" and target.is_relative_to(file):
            raise ConfigError(f"--out: {out} lies in the source {source.path}; give a folder outside of it")
        if file.is_relative_to(target):
            raise ConfigError(f"--out: {out} holds the source {source.path}; give another folder")
    return sources


def _fingerprint(sources: Sequence[Source], out: Path, options: ShardOptions) -> dict[str, Any]:
    """All that decides the bytes of a dataset, as JSON."""
    return {
        "version": f"{dinowds.__version__}, format {FORMAT_VERSION}",
        "--name": dataset_name(out, options),
        "--seed": options.seed,
        "--shard-size": options.shard_size,
        "--max-count": options.max_count,
        "--key-pattern": options.key_pattern,
        "sources": [
            {name: value for name, value in dataclasses.asdict(source).items() if name != "file"} for source in sources
        ],
    }


def _list_all(
    sources: Sequence[Source], folder: Path | None, report: Report
) -> tuple[tuple[PayloadSource, ...], list[Listing]]:
    """Where each source's payloads can be read by place, and its list. Without `folder` nothing is decompressed
    to disk, and payloads of compressed tars cannot be read.
    """
    data: list[PayloadSource] = []
    listings: list[Listing] = []
    for source in sources:
        path = source.file
        if source.kind == "compressed" and folder is not None:
            path = spool(source, folder, _counting("decompress", source, report))
        opening: Any = nullcontext(None)
        if source.kind == "compressed" and folder is None:
            opening = open_stream(source)
        elif source.kind != "folder":
            opening = open_tar(path, source.path)
        report(ShardProgress("list", source.path))
        with opening as tar:
            listings.append(list_source(source, tar, _counting("list", source, report)))
        data.append(PayloadSource(source.path, source.cohort, path, source.kind == "folder"))
    return tuple(data), listings


def _counting(phase: Literal["decompress", "list"], source: Source, report: Report) -> Callable[[int], None]:
    def count(number: int) -> None:
        samples, num_bytes = (number, 0) if phase == "list" else (0, number)
        report(ShardProgress(phase, source.path, samples=samples, num_bytes=num_bytes))

    return count


def _check_unchanged(
    workspace: Workspace, sources: Sequence[Source], listings: Sequence[Listing], overwrite: bool
) -> None:
    """Compare the lists with those that the run began with, since its finished shards were made from them."""
    listed = [listing.digest for listing in listings]
    before = workspace.recall(_LISTED)
    changed = [s.path for s, then, now in zip(sources, before or listed, listed, strict=True) if then != now]
    if changed and not overwrite:
        raise OutputError(
            f"{workspace.out}: holds an unfinished dataset, and {changed[0]} has changed since that was begun; "
            "give --overwrite to start anew"
        )
    if changed:
        workspace.start_anew()
    if changed or before is None:
        workspace.note(_LISTED, listed)


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


@contextmanager
def _output_errors(out: Path) -> Iterator[None]:
    """Errors of the system that no source has caused are about the output."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); the same command goes on") from None
