"""`dinowds shard` as a function: sources → a dataset on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dinowds.data.manifest import Manifest

from .arrange import Images, Int64s, cut_shards, join_listings, sample_bytes, shuffled
from .check import Checks
from .choice import Chosen
from .external import bucket_of_shard, bucket_path, deal, is_larger_than
from .finish import write_dataset_index
from .options import ShardOptions, dataset_name, fingerprint_of, open_all
from .output import output_errors, shard_url
from .records import choose_salts
from .scanning import Scanned, scan_sources
from .selecting import count_quality, select
from .source import Source, check_unchanged
from .threads import write_shards
from .ustar import END_BYTES
from .workspace import Workspace, claim
from .writer import Job, ShardTask, read_rows

__all__ = ["ShardOptions", "ShardPlan", "ShardProgress", "build_dataset", "plan_dataset"]


@dataclass(frozen=True)
class ShardProgress:
    """How far a run is. `list` counts members; `deal` (to buckets on disk), `write` and `index` the whole."""

    phase: Literal["list", "deal", "write", "index"]
    samples: int = 0
    total_samples: int = 0
    num_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class ShardPlan:
    """What a run would write. Counts are of samples; bytes are those of the tars."""

    samples: int
    shards: int
    num_bytes: int
    cohorts: dict[str, int]
    label_names: tuple[str, ...]
    quarantined: dict[str, int]
    skipped: dict[str, int]
    dropped: dict[str, int]
    notices: tuple[str, ...]


Report = Callable[[ShardProgress], None]
Notice = Callable[[str], None]


class _Layout(NamedTuple):
    """The order of the samples, and where in it each shard begins (and the last ends)."""

    order: Int64s
    bounds: list[int]
    num_bytes: Int64s
    """int64 [N]: what each sample takes in a tar, in that order."""

    @property
    def num_shards(self) -> int:
        return len(self.bounds) - 1

    def part(self, shard: int) -> Int64s:
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]


def build_dataset(
    sources: Sequence[Path | str],
    out: Path | str,
    options: ShardOptions,
    report: Report | None = None,
    notice: Notice | None = None,
) -> Manifest:
    """Write the images of `sources`, shuffled, as a dataset in the folder `out`, or at the remote URL `out`.

    The same sources and options give the same bytes whatever the number of workers. A run that was ended goes on when
    it is called again with the same arguments.

    Args:
        sources: what `layouts` can read: tars, folders, zips, lists, datasets.
        report: called now and then, from one thread at a time.
        notice: gets what people are to be told, such as entries of a list that are no sample.

    Raises:
        SourceError: a source is missing, damaged, empty, or changed meanwhile.
        OutputError, StorageError: `out` holds something else, or cannot be written.
        ConfigError: an option cannot work.
    """
    report = report or (lambda _: None)
    opened, output = open_all(sources, out, options)
    fingerprint = fingerprint_of(opened, output, options)
    with output_errors(output.root), claim(output, options.overwrite, fingerprint) as workspace:
        if workspace.is_whole:
            manifest = workspace.publish_again()
        else:
            manifest = _make(workspace, opened, options, report, notice or (lambda _: None))
        workspace.end()
    return manifest


def _make(
    workspace: Workspace, sources: Sequence[Source], options: ShardOptions, report: Report, notice: Notice
) -> Manifest:
    """List, write and publish what an earlier run has not."""
    scanned = _scan(sources, workspace.folder, options, report)
    flat = [file for files in scanned for file in files]
    originals = [file for source in sources for file in source.files]
    spools = [now.file.file for now, before in zip(flat, originals, strict=True) if now.file.file != before.file]
    workspace.begin({file.file.path: file.listing.digest for file in flat}, spools)
    images, chosen = _choose(sources, scanned, options)
    for line in chosen.notices:
        notice(line)
    layout = _lay_out(images, chosen.labels, options)
    name = dataset_name(workspace.output, options)
    job = Job(images.files, images.cohorts, options.key_pattern, workspace.output, name)
    _write_missing(job, images, chosen.labels, layout, options, report)
    check_unchanged(sources)
    report(ShardProgress("index", len(images), len(images)))
    manifest = write_dataset_index(
        workspace,
        "region" if sources[0].layout == "regions" else "image",
        name,
        options.seed,
        options.shuffle,
        images.cohorts,
        chosen.label_names,
        flat,
        layout.num_shards,
        _metadata(sources, scanned, images, chosen),
    )
    workspace.publish(manifest)
    return manifest


def plan_dataset(
    sources: Sequence[Path | str], out: Path | str, options: ShardOptions, report: Report | None = None
) -> ShardPlan:
    """What `build_dataset` would write. Writes nothing; raises the same errors.

    What would have to be unpacked first is listed by names and sizes alone: its images are not checked.
    """
    report = report or (lambda _: None)
    opened, output = open_all(sources, out, options)
    Workspace(output, options.overwrite, fingerprint_of(opened, output, options)).check()
    scanned = _scan(opened, None, options, report)
    images, chosen = _choose(opened, scanned, options)
    layout = _lay_out(images, chosen.labels, options)
    quarantined: Counter[str] = Counter()
    for file in (file for files in scanned for file in files):
        quarantined.update(file.listing.quarantine["reason"].to_pylist())
    counts = np.bincount(images.cohort_of, minlength=len(images.cohorts)).tolist()
    return ShardPlan(
        samples=len(images),
        shards=layout.num_shards,
        num_bytes=int(layout.num_bytes.sum()) + END_BYTES * layout.num_shards,
        cohorts=dict(zip(images.cohorts, counts, strict=True)),
        label_names=chosen.label_names,
        quarantined=dict(sorted(quarantined.items())),
        skipped=_skipped(scanned),
        dropped=chosen.dropped,
        notices=tuple(chosen.notices),
    )


def _scan(sources: Sequence[Source], folder: Path | None, options: ShardOptions, report: Report) -> list[list[Scanned]]:
    choice = options.choice
    is_decoded = options.verify == "decode" or choice.drop_blank or choice.min_sharpness is not None
    checks = Checks(options.verify, choice.drop_duplicates, is_decoded)
    report(ShardProgress("list"))
    return scan_sources(sources, folder, checks, options.workers, lambda seen: report(ShardProgress("list", seen)))


def _choose(
    sources: Sequence[Source], scanned: Sequence[Sequence[Scanned]], options: ShardOptions
) -> tuple[Images, Chosen]:
    """The images that are taken; `labels` of what was chosen are theirs."""
    images = join_listings(sources, scanned)
    chosen = select(images, options.choice, options.key_pattern)
    return images.filter(chosen.kept), replace(chosen, labels=chosen.labels[chosen.kept])


def _lay_out(images: Images, labels: Int64s, options: ShardOptions) -> _Layout:
    order = shuffled(len(images), options.seed) if options.shuffle else np.arange(len(images), dtype=np.int64)
    num_bytes = sample_bytes(images.table, labels)[order]
    return _Layout(order, cut_shards(num_bytes, options.shard_size, options.max_count), num_bytes)


def _write_missing(
    job: Job, images: Images, labels: Int64s, layout: _Layout, options: ShardOptions, report: Report
) -> None:
    """Write the shards that an earlier run has not written, or not uploaded."""
    shards = range(layout.num_shards)
    sizes = {index: before.num_bytes for index in shards if (before := read_rows(job.folder, index)) is not None}
    present = job.output.present(sizes, partial(shard_url, job.name))
    missing = [index for index in shards if index not in present]
    if not missing:
        return
    prefixes = [file.prefix for file in images.files]
    kept = images.column("key") if "key" in images.table.column_names else None
    salts = choose_salts(
        images.column("name"), prefixes, images.numbers("file"), images.cohorts, images.cohort_of, kept
    )
    workers = min(options.workers, len(missing))
    done: Callable[[int], None] = _nothing
    if is_larger_than(images, options.memory):
        images, done, workers = _deal(job, images, layout, missing, options, report)
        job = replace(job, files=images.files)
    columns = {"label": labels, "salt": salts, "cohort": images.cohort_of}
    table = images.table.drop_columns([name for name in ("label",) if name in images.table.column_names])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    tasks = (partial(_task, table, index, layout.part(index)) for index in missing)
    count = _Count("write", images, [layout.part(index) for index in missing], report)
    write_shards(job, tasks, workers, count.advance, done)


def _task(table: Any, index: int, part: Int64s) -> ShardTask:
    return ShardTask(index, table.take(pa.array(part)))


def _deal(
    job: Job, images: Images, layout: _Layout, missing: Sequence[int], options: ShardOptions, report: Report
) -> tuple[Images, Callable[[int], None], int]:
    """Put the images into buckets; they in these, what to do with a shard that is done, and how many are written at
    once. Half of the memory is for tars.
    """
    assert options.memory is not None
    step = options.memory // 4
    shard_bytes = np.add.reduceat(layout.num_bytes, layout.bounds[:-1])
    of_shard = bucket_of_shard(shard_bytes, step)
    bucket_of = np.empty(len(images), np.int64)
    bucket_of[layout.order] = np.repeat(of_shard, np.diff(layout.bounds))
    left = Counter(of_shard[missing].tolist())
    is_needed = np.isin(np.arange(of_shard.max() + 1), list(left))
    count = _Count("deal", images, [np.flatnonzero(is_needed[bucket_of])], report)
    dealt = deal(images, bucket_of, is_needed, job.folder, f"{step} {layout.num_shards}", step, count.advance)

    def done(shard: int) -> None:
        left[bucket := int(of_shard[shard])] -= 1
        if not left[bucket]:
            bucket_path(job.folder, bucket).unlink(missing_ok=True)

    workers = max(1, min(options.workers, len(missing), (options.memory - step) // int(shard_bytes.max())))
    return dealt, done, workers


def _nothing(shard: int) -> None:
    """Of what is gathered from the sources, nothing is left behind."""


class _Count:
    """Adds up what is done of the samples `parts`; the rest was done before."""

    def __init__(
        self, phase: Literal["deal", "write"], images: Images, parts: Sequence[npt.NDArray[np.int64]], report: Report
    ) -> None:
        sizes = images.numbers("size")
        self._report = report
        self._phase: Literal["deal", "write"] = phase
        self._total, self._total_bytes = len(images), int(sizes.sum())
        self._samples = self._total - sum(len(part) for part in parts)
        self._bytes = self._total_bytes - sum(int(sizes[part].sum()) for part in parts)
        self.advance(0, 0)

    def advance(self, samples: int, num_bytes: int) -> None:
        self._samples, self._bytes = self._samples + samples, self._bytes + num_bytes
        self._report(ShardProgress(self._phase, self._samples, self._total, self._bytes, self._total_bytes))


def _metadata(
    sources: Sequence[Source], scanned: Sequence[Sequence[Scanned]], images: Images, chosen: Chosen
) -> dict[str, Any]:
    known = {source.cohort: source.metadata for source in sources if source.metadata}
    quality = count_quality(images)
    parts = {"skipped": _skipped(scanned), "dropped": chosen.dropped, "quality": quality, "cohorts": known}
    return {name: part for name, part in parts.items() if part}


def _skipped(scanned: Sequence[Sequence[Scanned]]) -> dict[str, int]:
    skipped: Counter[str] = sum((file.listing.skipped for files in scanned for file in files), Counter())
    return dict(sorted(skipped.items()))
