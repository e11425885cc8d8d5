"""How a dataset is made: the options, and what is checked before anything is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dinowds
from dinowds.data.manifest import FORMAT_VERSION
from dinowds.errors import ConfigError
from dinowds.shard.choice import Choice
from dinowds.shard.outputs.output import Output
from dinowds.shard.outputs.place import check_text, open_output
from dinowds.shard.records import DEFAULT_KEY_PATTERN, compile_key_pattern
from dinowds.shard.sources.layouts import kind_of, open_sources
from dinowds.shard.sources.source import Source
from dinowds.shard.write.in_place import check_in_place

DEFAULT_SHARD_SIZE = 256 << 20
MIN_SHARD_SIZE = 1 << 16
MAX_SHARD_SIZE = 1 << 40
MIN_MEMORY = 16 << 20
MAX_NAME_BYTES = 200
"""A shard's file name has 255 at most, and some are for its number."""


@dataclass(frozen=True)
class ShardOptions:
    """How a dataset is made. `workers`, `memory`, `overwrite` and `staging` leave its bytes as they are."""

    name: str | None = None
    """Of the dataset and its shards; None for the output folder's name."""
    seed: int = 0
    """Of the order of the samples; at least 0."""
    shuffle: bool = True
    """Whether samples are shuffled over all sources; otherwise they stay in the order of the sources."""
    shard_size: int = DEFAULT_SHARD_SIZE
    """Largest length of a shard, bytes."""
    max_count: int | None = None
    """Largest number of samples of a shard; None for any."""
    workers: int = 1
    """Threads that list sources and write shards."""
    memory: int | None = None
    """Bytes of payloads that may be held in memory; sources that have more are shuffled through files. None: no limit.
    """
    key_pattern: str = DEFAULT_KEY_PATTERN
    """Regular expression with named groups slide, x, y (each optional), searched in a member's path; '' for none."""
    layout: str = "auto"
    """How the sources lie on disk: one of `layouts.LAYOUTS`, or 'auto'."""
    cohort: str | None = None
    """Of all sources; None for their own names."""
    split: str | None = None
    """Of sources that have several: 'train', 'query', …"""
    fold: str | None = None
    """Of sources that have several."""
    verify: Literal["header", "decode"] = "header"
    """How images are checked; see `check.Checks`."""
    choice: Choice = field(default_factory=Choice)
    """Which samples are taken, and their labels."""
    append: bool = False
    """Add the samples to the dataset that is at the output; its shards and subsets stay."""
    cluster: str | None = None
    """'local', or the address of a scheduler of dask.distributed; None for threads of this process."""
    in_place: bool = False
    """Write an index alone: the shards are the sources, uncompressed tars, as they are."""
    overwrite: bool = False
    """Replace a dataset, or another command's unfinished one, that lies at the output."""
    staging: Path | None = None
    """Folder on this host for what of a remote dataset is unfinished; None for one in the cache folder."""


def open_all(paths: Sequence[Path | str], out: Path | str, options: ShardOptions) -> tuple[list[Source], Output]:
    """The sources and the output, once the options are known to work. Changes nothing.

    Raises:
        SourceError: a source cannot be used.
        ConfigError: an option cannot work.
    """
    if options.seed < 0:
        raise ConfigError(f"--seed: is {options.seed}, expected 0 or more")
    if not MIN_SHARD_SIZE <= options.shard_size <= MAX_SHARD_SIZE:
        raise ConfigError(f"--shard-size: is {options.shard_size} bytes, expected {MIN_SHARD_SIZE} to {MAX_SHARD_SIZE}")
    if options.max_count is not None and options.max_count < 1:
        raise ConfigError(f"--max-count: is {options.max_count}, expected 1 or more")
    if options.workers < 1:
        raise ConfigError(f"--workers: is {options.workers}, expected 1 or more")
    if options.memory is not None and options.memory < MIN_MEMORY:
        raise ConfigError(f"--memory: is {options.memory} bytes, expected {MIN_MEMORY} or more")
    output = open_output(out, options.staging)
    name = dataset_name(output, options)
    check_text("--name", name)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigError(f"--name: {name!r} has {len(name.encode())} bytes, expected at most {MAX_NAME_BYTES}")
    compile_key_pattern(options.key_pattern)
    _check_together(output, options)
    sources = open_sources(paths, options.layout, options.cohort, options.split, options.fold)
    if options.in_place:
        check_in_place(sources)
    if kind_of(sources[0]) == "region":
        _check_choice_of_regions(options.choice)
    _check_apart(sources, output)
    return sources, output


def dataset_name(output: Output, options: ShardOptions) -> str:
    """The name that was given, or the output's."""
    return options.name or output.name or "dataset"


def fingerprint_of(sources: Sequence[Source], output: Output, options: ShardOptions) -> dict[str, Any]:
    """All that decides the bytes of a dataset, as JSON."""
    return {
        "version": f"{dinowds.__version__}, format {FORMAT_VERSION}",
        "--name": dataset_name(output, options),
        "--seed": options.seed,
        "--no-shuffle": not options.shuffle,
        "--shard-size": options.shard_size,
        "--max-count": options.max_count,
        "--key-pattern": options.key_pattern,
        "--verify": options.verify,
        "--in-place": options.in_place,
        "--append": options.append,
        **options.choice.fingerprint(),
        "sources": [_identity(source) for source in sources],
    }


def _identity(source: Source) -> dict[str, Any]:
    files = [
        (file.path, file.kind, file.num_bytes, file.mtime_ns, file.origin and file.origin.version)
        for file in (*source.files, *source.sidecars)
    ]
    return {
        "path": source.path,
        "cohort": source.cohort,
        "layout": source.layout,
        "files": [list(file) for file in files],
    }


def _check_together(output: Output, options: ShardOptions) -> None:
    for option, is_given in (("--in-place", options.in_place), ("--append", options.append)):
        if is_given and output.is_remote:
            raise ConfigError(f"--out: {output} is remote, and {option} works on a folder alone; leave it out")
    if options.append and options.overwrite:
        raise ConfigError("--append: adds to the dataset that --overwrite would replace; give one of the two")
    if options.append and options.name is not None:
        raise ConfigError("--name: the dataset has a name already, and --append keeps it; leave it out")
    if options.in_place and options.cluster is not None:
        raise ConfigError("--cluster: --in-place writes no shard; leave it out")


def _check_choice_of_regions(choice: Choice) -> None:
    for option, is_given in (
        ("--drop-blank", choice.drop_blank),
        ("--min-sharpness", choice.min_sharpness is not None),
    ):
        if is_given:
            raise ConfigError(f"{option}: looks at pixels, and regions have none; leave it out")


def _check_apart(sources: Sequence[Source], output: Output) -> None:
    """Neither may lie in the other; a list of paths may have files on both sides of the output."""
    place = output.root
    option = "--staging" if output.is_remote else "--out"
    files = ((source, file) for source in sources for file in source.files if file.origin is None)
    for source, file in files:
        resolved = file.file.resolve()
        if file.kind == "folder" and source.layout != "paths" and place.is_relative_to(resolved):
            raise ConfigError(f"{option}: {place} lies in the source {file.path}; give a folder outside of it")
        if resolved.is_relative_to(place):
            raise ConfigError(f"{option}: {place} holds the source {file.path}; give another folder")
