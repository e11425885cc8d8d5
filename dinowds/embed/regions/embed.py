"""`dinowds embed region`: region images, patches or features of patches → a dataset of grids of features."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from dinowds.data.location import split_location
from dinowds.data.manifest import Manifest, read_manifest
from dinowds.embed.patches.folder import digest_of
from dinowds.embed.regions.ways import Notice, RegionOptions, Report, Summary, open_way
from dinowds.embed.regions.work import Work
from dinowds.errors import ConfigError
from dinowds.files import output_errors
from dinowds.remote.files import is_remote, shown
from dinowds.shard.build import ShardOptions, ShardProgress, build_dataset
from dinowds.shard.outputs.place import open_output
from dinowds.shard.sources.layouts.grids import finish_parts, recognises
from dinowds.train.dist import on_rank_0, process_group
from dinowds.world import World


def plan_regions(source: str | Path, options: RegionOptions) -> Summary:
    """What `embed_regions` would write. Writes nothing, and needs no weights. Raises the same errors."""
    return open_way(str(source), options).summary()


def embed_regions(
    source: str | Path,
    out: str | Path,
    options: RegionOptions,
    report: Report = lambda _what, _done, _total: None,
    notice: Notice = lambda _line: None,
) -> Manifest | None:
    """Write a dataset of regions to the folder `out`. Goes on where an earlier call of the same arguments ended.

    Which rank this is comes from the environment (`World.from_environment`); ranks share the embedding, and rank 0
    writes the dataset. What is unfinished lies in `OUT.unfinished`.

    Returns:
        The manifest; None on ranks other than 0.

    Raises:
        DinowdsError: bad input, in one line; `StoppedBySignal` where patches were being embedded.
    """
    if is_remote(str(out)):
        raise ConfigError(f"--out: {shown(str(out))} is remote; give a local folder, and copy the dataset from there")
    world, place = World.from_environment(), open_output(out).root
    _check_apart(str(source), place)
    way, work = open_way(str(source), options), Work(place)
    digest = digest_of(way.question)
    goes_on = False

    def begin() -> bool:
        nonlocal goes_on
        work.tidy()
        work.check(way.question, digest, options.sharding.overwrite)
        goes_on = work.is_of(way.question)
        if not goes_on:
            way.summary()  # refuses before anything is written
        stack.enter_context(work.owned(way.question, digest, options.sharding.overwrite))
        if goes_on and work.is_published(digest):
            return True
        if not recognises(work.grids):
            for line in way.summary().lines():
                notice(line)
        return recognises(work.grids)

    with output_errors(work.root), ExitStack() as stack:
        with process_group(world, torch.device("cpu")):
            is_made = on_rank_0(begin)
        if not is_made:
            way.make(work, world, report, notice)
        if world.rank:
            work.leave(world.rank)
            return None
        if not is_made:
            facts = way.facts() | {"question": digest}
            finish_parts(work.grids, way.num_parts, str(source), facts)
        work.wait_for_ranks(world.size)
        if not (goes_on and work.is_done(digest)):  # one to be replaced may be of the same question
            work.drop_inputs()
            _shard(work, options.sharding, report, notice)
        manifest = read_manifest(place)
        work.end()
    return manifest


def _check_apart(source: str, place: Path) -> None:
    """With --overwrite, the source would be replaced."""
    root, _ = split_location(source)
    if not is_remote(root) and Path(root).resolve() == place.resolve():
        raise ConfigError(f"--out: {place} is the source; give another folder")


def _shard(work: Work, options: ShardOptions, report: Report, notice: Notice) -> None:
    def progress(state: ShardProgress) -> None:
        report(state.phase, state.samples, state.total_samples)

    build_dataset([work.grids], work.out, replace(options, layout="grids", key_pattern=""), progress, notice)
