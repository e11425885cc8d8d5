"""`dinowds shard` as a function: sources → a dataset on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import Manifest, read_manifest, write_manifest
from dinowds.files import output_errors
from dinowds.shard.choice import Chosen
from dinowds.shard.engine import Engine, open_engine
from dinowds.shard.finished.appending import check_append, extend_labels, join_manifests, next_shard
from dinowds.shard.finished.changes import added_at_end, replace_index
from dinowds.shard.options import ShardOptions, dataset_name, fingerprint_of, open_all
from dinowds.shard.outputs.output import Output, shard_url, tar_path
from dinowds.shard.outputs.workspace import Workspace, claim
from dinowds.shard.progress import Progress, Report, ShardProgress
from dinowds.shard.records import choose_salts
from dinowds.shard.selecting import count_quality, select
from dinowds.shard.sources.check import Checks
from dinowds.shard.sources.layouts import kind_of, own_cohorts
from dinowds.shard.sources.scanning import Scanned
from dinowds.shard.sources.source import Source, check_unchanged
from dinowds.shard.ustar import END_BYTES
from dinowds.shard.write.arrange import Images, Int64s, join_listings
from dinowds.shard.write.finish import write_dataset_index
from dinowds.shard.write.in_place import index_in_place
from dinowds.shard.write.tarplan import check_members
from dinowds.shard.write.writer import Job, sample_keys_of
from dinowds.shard.write.writing import lay_out, write_missing

__all__ = ["ShardOptions", "ShardPlan", "ShardProgress", "build_dataset", "plan_dataset"]

Notice = Callable[[str], None]


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
    report, notice = report or (lambda _: None), notice or (lambda _: None)
    opened, output = open_all(sources, out, options)
    fingerprint = fingerprint_of(opened, output, options)
    with (
        output_errors(output.root),
        claim(output, options.overwrite, fingerprint, changes_dataset=options.append) as workspace,
    ):
        if workspace.is_whole:
            manifest = workspace.publish_again()
        else:
            with open_engine(options.cluster, options.workers) as engine:
                manifest = _make(workspace, opened, options, engine, report, notice)
        workspace.end()
    return manifest


def _make(
    workspace: Workspace,
    sources: Sequence[Source],
    options: ShardOptions,
    engine: Engine,
    report: Report,
    notice: Notice,
) -> Manifest:
    """List, write and publish what an earlier run has not."""
    output = workspace.output
    before = read_manifest(output.root) if options.append else None
    if before is not None:  # before anything is unpacked, which would be kept for the next run
        check_append(str(output.root), before, kind_of(sources[0]), own_cohorts(sources))
    scanned = _scan(sources, workspace.folder, options, engine, report)
    check_unchanged(sources)
    flat = [file for files in scanned for file in files]
    originals = [file for source in sources for file in source.files]
    spools = [now.file.file for now, given in zip(flat, originals, strict=True) if now.file.file != given.file]
    digests = {file.file.path: file.listing.digest for file in flat}
    workspace.begin(digests | ({str(output.root): before.samples_sha256} if before else {}), spools)
    images, chosen = _choose(sources, scanned, options, output, before)
    for line in chosen.notices:
        notice(line)
    draft = _describe(output, sources, scanned, images, chosen, options)
    flat, added = [file.without_images() for file in flat], len(images)
    del scanned  # of millions of images, each column counts
    pa.default_memory_pool().release_unused()
    shards = _write(output, images, chosen.labels, options, before, engine, report)
    del images, chosen
    check_unchanged(sources)
    report(ShardProgress("index", added, added))
    if before is None:
        manifest = write_dataset_index(workspace, draft, shards, flat)
        write_manifest(workspace.folder, manifest)
        workspace.publish(manifest)
        return manifest
    manifest = write_dataset_index(workspace, join_manifests(before, draft), shards, flat, before)
    moved = {} if options.in_place else {tar_path(workspace.folder, n).name: url for n, url in shards.items()}
    manifest, notices = replace_index(workspace, before, manifest, moved, remap=added_at_end(added))
    for line in notices:
        notice(line)
    return manifest


def _write(
    output: Output,
    images: Images,
    labels: Int64s,
    options: ShardOptions,
    before: Manifest | None,
    engine: Engine,
    report: Report,
) -> dict[int, str]:
    """Write the shards, or the rows of tars that are shards already: number in the work folder → URL."""
    name, first = (dataset_name(output, options), 0) if before is None else (before.name, next_shard(before))
    job = Job(images.files, images.cohorts, options.key_pattern, output, name)
    images = replace(images, table=_with_keys(images, labels, None if before is None else _keys_of(output.root)))
    if options.in_place:
        progress = Progress("write", images, [np.arange(len(images))], report)
        tars = index_in_place(job, images.table, first, options.workers, progress.advance)
        return {first + position: str(tar.file.resolve()) for position, tar in enumerate(tars)}
    if "extras" in images.table.column_names:
        check_members(sample_keys_of(job, images.table), images.table)
    layout = lay_out(images, labels, options)
    write_missing(job, images, layout, first, options.memory, engine, report)
    return {number: shard_url(name, number) for number in range(first, first + layout.num_shards)}


def _describe(
    output: Output,
    sources: Sequence[Source],
    scanned: Sequence[Sequence[Scanned]],
    images: Images,
    chosen: Chosen,
    options: ShardOptions,
) -> Manifest:
    """What is known of the dataset before it is written."""
    parts: dict[str, Any] = {
        "skipped": _skipped(scanned),
        "dropped": chosen.dropped,
        "quality": count_quality(images),
        "cohorts": {source.cohort: source.metadata for source in sources if source.metadata},
        "in_place": options.in_place,
    }
    about = {name: fact for source in sources for name, fact in source.about.items()}
    return Manifest(
        name=dataset_name(output, options),
        kind=kind_of(sources[0]),
        shards=(),
        cohorts=dict.fromkeys(images.cohorts, 0),
        label_names=chosen.label_names,
        seed=options.seed,
        samples_sha256="",
        metadata={name: part for name, part in parts.items() if part} | about,
        shuffled=options.shuffle and not options.in_place,
    )


def plan_dataset(
    sources: Sequence[Path | str], out: Path | str, options: ShardOptions, report: Report | None = None
) -> ShardPlan:
    """What `build_dataset` would write, or add. Writes nothing; raises the same errors, as far as they are known then.

    What would have to be unpacked first is listed by names and sizes alone: its images are not checked, nor left out
    for what they show.
    """
    report = report or (lambda _: None)
    opened, output = open_all(sources, out, options)
    Workspace(output, options.overwrite, fingerprint_of(opened, output, options), options.append).check()
    before = read_manifest(output.root) if options.append else None
    with open_engine(None, options.workers) as engine:
        scanned = _scan(opened, None, options, engine, report)
    images, chosen = _choose(opened, scanned, options, output, before)
    num_shards, num_bytes = _size_of_shards(images, chosen.labels, options)
    quarantined: Counter[str] = Counter()
    for file in (file for files in scanned for file in files):
        quarantined.update(file.listing.quarantine["reason"].to_pylist())
    counts = np.bincount(images.cohort_of, minlength=len(images.cohorts)).tolist()
    return ShardPlan(
        samples=len(images),
        shards=num_shards,
        num_bytes=num_bytes,
        cohorts=dict(zip(images.cohorts, counts, strict=True)),
        label_names=chosen.label_names,
        quarantined=dict(sorted(quarantined.items())),
        skipped=_skipped(scanned),
        dropped=chosen.dropped,
        notices=tuple(chosen.notices),
    )


def _size_of_shards(images: Images, labels: Int64s, options: ShardOptions) -> tuple[int, int]:
    """How many shards there will be, and their bytes."""
    if options.in_place:
        files = np.unique(images.numbers("file")).tolist()
        return len(files), sum(images.files[file].num_bytes for file in files)
    layout = lay_out(images, labels, options)
    return layout.num_shards, int(layout.num_bytes.sum()) + END_BYTES * layout.num_shards


def _scan(
    sources: Sequence[Source], folder: Path | None, options: ShardOptions, engine: Engine, report: Report
) -> list[list[Scanned]]:
    choice = options.choice
    is_decoded = options.verify == "decode" or choice.drop_blank or choice.min_sharpness is not None
    checks = Checks(options.verify, choice.drop_duplicates or options.in_place, is_decoded)
    report(ShardProgress("list"))
    return engine.scan(sources, folder, checks, lambda seen: report(ShardProgress("list", seen)))


def _choose(
    sources: Sequence[Source],
    scanned: Sequence[Sequence[Scanned]],
    options: ShardOptions,
    output: Output,
    before: Manifest | None,
) -> tuple[Images, Chosen]:
    """The images that are taken; `labels` of what was chosen are theirs. They fit the dataset `before`."""
    images = join_listings(sources, scanned)
    chosen = select(images, options.choice, options.key_pattern)
    images, chosen = images.filter(chosen.kept), replace(chosen, labels=chosen.labels[chosen.kept])
    if before is not None:
        check_append(str(output.root), before, kind_of(sources[0]), images.cohorts)
        chosen = extend_labels(before, chosen)
    return images, chosen


def _with_keys(images: Images, labels: Int64s, taken: Any) -> Any:
    """The columns of the images with `label` as a number, `salt` and `cohort`; no key is one of `taken`."""
    prefixes = [file.prefix for file in images.files]
    kept = images.column("key") if "key" in images.table.column_names else None
    names, files = images.column("name"), images.numbers("file")
    salts = choose_salts(names, prefixes, files, images.cohorts, images.cohort_of, kept, taken)
    table = images.table.drop_columns([name for name in ("label",) if name in images.table.column_names])
    for name, values in (("label", labels), ("salt", salts), ("cohort", images.cohort_of)):
        table = table.append_column(name, pa.array(values))
    return table


def _keys_of(root: Path) -> Any:
    """All keys of a dataset, an Arrow array of text."""
    return Dataset.open(root).columns(["key"])["key"].combine_chunks()


def _skipped(scanned: Sequence[Sequence[Scanned]]) -> dict[str, int]:
    skipped: Counter[str] = sum((file.listing.skipped for files in scanned for file in files), Counter())
    return dict(sorted(skipped.items()))
