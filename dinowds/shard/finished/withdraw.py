"""Withdrawing slides from a dataset: out of its index at once, and out of its shards by copying these without them.

Shards are copied in batches, each of which ends with a whole dataset. What is still to be done stands in the manifest
(`dinowds.data.withdrawn`), so that a run that was ended is simply given again.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.location import split_location
from dinowds.data.manifest import MANIFEST_NAME, QUARANTINE_NAME, SAMPLES_NAME, SHARDS_NAME, Manifest, Shard
from dinowds.data.subsets.entries import Entries, match_slides, missing_entries, read_entries
from dinowds.data.withdrawn import IN_SHARDS, WITHDRAWN, withdrawn_in_shards, withdrawn_samples
from dinowds.errors import ConfigError, DatasetError, OutputError
from dinowds.files import output_errors
from dinowds.remote.files import is_remote, shown
from dinowds.remote.threads import in_threads
from dinowds.shard.finished.changes import replace_index, result_of
from dinowds.shard.finished.quarantine import Forgetting, forget_lines
from dinowds.shard.finished.tarcopy import CopiedShard, copy_samples
from dinowds.shard.outputs.local_output import LocalOutput
from dinowds.shard.outputs.output import is_own_shard, tar_path
from dinowds.shard.outputs.workspace import Workspace, claim
from dinowds.shard.write.indexfile import IndexReader, joined_schema, write_index

_FINGERPRINT = {"command": "dinowds withdraw"}
"""Nothing more: any withdrawal ends one that was ended, and then does its own."""
_COHORTS = "cohorts"
"""In the metadata: facts of each cohort."""
_BATCH_BYTES = 32 << 30
"""Of shards that are copied before they replace the old ones; that much room is needed."""
_THREADS = 4

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Withdrawal:
    """What was withdrawn, or would be. Counts are of samples unless their name says otherwise."""

    samples: int = 0
    slides: int = 0
    cohorts: dict[str, int] | None = None
    """Of each cohort that had any."""
    shards: int = 0
    """That held them."""
    quarantine_lines: int = 0
    rewritten_shards: int = 0
    """With --dry-run: those that --rewrite would copy."""
    rewritten_bytes: int = 0
    """Of these before they were."""
    in_shards: int = 0
    """Withdrawn samples whose bytes are still in shards, those of earlier withdrawals included."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def withdraw_slides(
    location: str | Path,
    slides: Path | None,
    rewrite: bool = False,
    dry_run: bool = False,
    report: Report | None = None,
) -> tuple[Withdrawal, list[str]]:
    """Remove slides from a dataset in a folder: from its index, counts, quarantine and subsets.

    A run that was ended is ended by the next one. A shard whose samples are all withdrawn is removed.

    Args:
        slides: list of slides, one a line: names, or cohort/slide. None with `rewrite`: only what is left to rewrite.
        rewrite: copy the shards without the withdrawn samples, also those of earlier withdrawals.
        report: gets (bytes of shards copied, bytes of all that are to be) now and then.

    Returns:
        What was done, and notices of one line each.

    Raises:
        ConfigError: neither slides nor `rewrite`.
        DatasetError: there is no such dataset, the list cannot be read, no entry is a slide, or no sample is left.
        OutputError: a shard that is to be rewritten lies outside of the dataset; or the folder cannot be written.
    """
    root = _local_root(location)
    if slides is None and not rewrite:
        raise ConfigError("--slides FILE is missing: expected a list of slides, one a line")
    entries = None if slides is None else read_entries(slides)
    output = LocalOutput(Path(root).resolve())
    if dry_run:
        plan = _Plan(Dataset.open(root), entries, rewrite)
        shards = plan.to_rewrite()
        num_bytes = sum(shard.num_bytes for shard in shards)
        return replace(plan.withdrawal, rewritten_shards=len(shards), rewritten_bytes=num_bytes), plan.notices
    with output_errors(output.root):
        ended = _end_earlier(output)
        with _claimed(output) as workspace:
            plan = _Plan(Dataset.open(str(output.root)), entries, rewrite, ended is not None)
            notices = plan.notices + (_withdraw(workspace, plan) if plan.changes_index else [])
        done = plan.withdrawal if plan.changes_index else replace(plan.withdrawal, **(ended or {}))
        if rewrite:
            done = _rewrite(output, done, notices, report or (lambda _done, _all: None))
    return done, notices


def _local_root(location: str | Path) -> str:
    root, subset = split_location(location)
    if subset is not None:
        raise ConfigError(f"{shown(str(location))}: is a subset; slides are withdrawn from the dataset, {shown(root)}")
    if is_remote(root):
        raise OutputError(
            f"{shown(root)}: slides are withdrawn in a folder; copy the dataset to a disk, withdraw there, and replace "
            "the one at the URL by that"
        )
    return root


@contextmanager
def _claimed(output: LocalOutput) -> Iterator[Workspace]:
    """A locked work folder for one change of the dataset. Nothing is left of one that fails before it is published."""
    with claim(output, overwrite=False, fingerprint=_FINGERPRINT, changes_dataset=True) as workspace:
        workspace.begin({}, ())
        try:
            yield workspace
        except BaseException:
            if (output.root / MANIFEST_NAME).exists():
                workspace.end(is_published=False)
            raise
        workspace.end()


def _end_earlier(output: LocalOutput) -> dict[str, Any] | None:
    """Publish what a run that was ended had begun to, if there is one; the Withdrawal of that run."""
    if not output.work.exists():
        return None
    with _claimed(output) as workspace:
        if not workspace.is_whole:
            return None
        result = result_of(workspace)
        workspace.publish_again()
    return result


class _Plan:
    """What a list of slides means for a dataset. Reads only."""

    def __init__(self, dataset: Dataset, entries: Entries | None, rewrite: bool, may_be_done: bool = False) -> None:
        """`may_be_done`: it is no error if no entry is a slide any more."""
        self.dataset, manifest = dataset, dataset.manifest
        num_samples = manifest.num_samples
        self.listed: NDArray[np.bool_] = np.zeros(num_samples, np.bool_)
        self.cohorts: Counter[str] = Counter()
        self.slides: set[tuple[str, str]] = set()
        self.lines: Counter[str] = Counter()
        self.forgetting = Forgetting((), {})
        self.notices: list[str] = []
        if entries is not None:
            self.listed, count = match_slides(dataset, entries)
            self.forgetting = Forgetting(entries.names, self._count_listed(), self.emptied)
            known = count > 0
            if (quarantine := Path(dataset.url) / QUARANTINE_NAME).exists():
                self.lines, of_lines = forget_lines(quarantine, self.forgetting, None)
                known[list(of_lines)] = True
            if known.any() or not (may_be_done or (rewrite and withdrawn_in_shards(manifest))):
                self.notices += missing_entries(entries, known, "slide")
        if num_samples and self.listed.all():
            raise DatasetError(f"{shown(dataset.url)}: all its samples are of these slides; remove the dataset itself")
        ends = pairwise(dataset.first_ids.tolist())
        self.per_shard = np.array([np.count_nonzero(self.listed[start:stop]) for start, stop in ends], np.int64)
        if rewrite:
            self._check_rewritable()

    def _count_listed(self) -> dict[str, set[str]]:
        """Count the listed samples; the cohorts of each source."""
        sources: defaultdict[str, set[str]] = defaultdict(set)
        for first, rows in self.dataset.batches(["cohort", "slide", "source"]):
            for pair in rows.group_by(["source", "cohort"]).aggregate([]).to_pylist():
                sources[pair["source"]].add(pair["cohort"])
            listed = rows.filter(pa.array(self.listed[first : first + len(rows)]))
            for row in listed.group_by(["cohort", "slide"]).aggregate([([], "count_all")]).to_pylist():
                self.cohorts[row["cohort"]] += row["count_all"]
                self.slides.add((row["cohort"], row["slide"]))
        return dict(sources)

    @property
    def emptied(self) -> set[str]:
        """Cohorts that have no sample any more."""
        counts = self.dataset.manifest.cohorts
        return {cohort for cohort, gone in self.cohorts.items() if gone == counts.get(cohort)}

    def _check_rewritable(self) -> None:
        """Before anything is changed: --rewrite is kept, or refused."""
        left = withdrawn_in_shards(self.dataset.manifest)
        folder = Path(self.dataset.url).resolve() / SHARDS_NAME
        for shard, count in zip(self.dataset.manifest.shards, self.per_shard.tolist(), strict=True):
            is_own = is_own_shard(shard.url) and (folder / Path(shard.url).name).resolve().parent == folder
            if (count or shard.url in left) and not is_own:
                raise OutputError(
                    f"{shown(self.dataset.url)}: its shard {shown(shard.url)} lies outside of it and is not rewritten; "
                    f"{_advice(self.dataset, shard)}; without --rewrite the slides leave this index alone"
                )

    @property
    def changes_index(self) -> bool:
        return bool(self.listed.any() or self.lines)

    @property
    def withdrawal(self) -> Withdrawal:
        left = withdrawn_in_shards(self.dataset.manifest)
        kept = [shard.url for shard, gone in self._shards() if gone < shard.num_samples]
        return Withdrawal(
            samples=int(self.listed.sum()),
            slides=len(self.slides),
            cohorts=dict(self.cohorts),
            shards=int(np.count_nonzero(self.per_shard)),
            quarantine_lines=self.lines.total(),
            in_shards=sum(gone for shard, gone in self._shards() if gone < shard.num_samples)
            + sum(left.get(url, 0) for url in kept),
        )

    def to_rewrite(self) -> list[Shard]:
        """Shards that --rewrite would copy."""
        left = withdrawn_in_shards(self.dataset.manifest)
        return [shard for shard, gone in self._shards() if gone < shard.num_samples and (gone or shard.url in left)]

    def _shards(self) -> list[tuple[Shard, int]]:
        return list(zip(self.dataset.manifest.shards, self.per_shard.tolist(), strict=True))


def _advice(dataset: Dataset, shard: Shard) -> str:
    """Where the bytes of a shard of another dataset, or of none, are removed."""
    place = dataset.shard_url(dataset.manifest.shards.index(shard))
    folder = "" if is_remote(place) else os.path.normpath(Path(place).parent.parent)
    if folder and Path(place).parent.name == SHARDS_NAME and (Path(folder) / MANIFEST_NAME).exists():
        return f"withdraw the slides from {folder} with --rewrite, and merge again with --overwrite"
    return "remove the images there by other means, or copy what stays with 'dinowds shard' to a dataset of its own"


def _withdraw(workspace: Workspace, plan: _Plan) -> list[str]:
    """Publish an index without the listed samples; notices."""
    dataset, before = plan.dataset, plan.dataset.manifest
    shards: list[Shard] = []
    emptied_shards: list[str] = []
    left = withdrawn_in_shards(before)
    with (
        closing(IndexReader(dataset.index_path, before)) as index,
        write_index(workspace.folder / SAMPLES_NAME, joined_schema([index.schema], [str(workspace.output)])) as writer,
    ):
        for position, shard in enumerate(before.shards):
            gone = int(plan.per_shard[position])
            if gone == shard.num_samples:
                emptied_shards.append(shard.url)
                continue
            rows = index.read(position)
            if gone:
                first = int(dataset.first_ids[position])
                rows = rows.filter(pa.array(~plan.listed[first : first + len(rows)]))
                left[shard.url] = left.get(shard.url, 0) + gone
            writer.write(rows)
            shards.append(replace(shard, num_samples=shard.num_samples - gone))
    if plan.lines:
        forget_lines(Path(dataset.url) / QUARANTINE_NAME, plan.forgetting, workspace.folder / QUARANTINE_NAME)
    after = _manifest_without(plan, shards, left)
    forgotten = {slide for _, slide in plan.slides} | plan.emptied
    kept = ~plan.listed
    result = plan.withdrawal.to_json()
    removed = set(filter(is_own_shard, emptied_shards)) - {shard.url for shard in shards}
    dataset.index.forget()  # the keys in it begin with slides
    _, notices = replace_index(workspace, before, after, {}, removed, lambda chosen: chosen[kept], forgotten, result)
    return notices + _outside(emptied_shards)


def _manifest_without(plan: _Plan, shards: list[Shard], left: dict[str, int]) -> Manifest:
    """The manifest of these shards; `left` are the withdrawn samples in each."""
    before, emptied = plan.dataset.manifest, plan.emptied
    metadata = {
        **before.metadata,
        **({_COHORTS: _without(before.metadata[_COHORTS], emptied)} if _COHORTS in before.metadata else {}),
        WITHDRAWN: withdrawn_samples(before) + int(plan.listed.sum()),
        IN_SHARDS: {shard.url: left[shard.url] for shard in shards if shard.url in left},
    }
    return replace(
        before,
        shards=tuple(shards),
        cohorts={name: n - plan.cohorts[name] for name, n in before.cohorts.items() if name not in emptied},
        quarantined={
            reason: n - plan.lines[reason] for reason, n in before.quarantined.items() if n > plan.lines[reason]
        },
        metadata=metadata,
    )


def _outside(emptied_shards: list[str]) -> list[str]:
    """A notice of those that the dataset names no more, but whose bytes it cannot remove."""
    if not (stay := [url for url in emptied_shards if not is_own_shard(url)]):
        return []
    return [
        f"{len(stay)} shards with withdrawn samples alone lie outside of the dataset and stay as they are, the first "
        f"is {shown(stay[0])}; remove their samples there"
    ]


def _without(content: Any, names: set[str]) -> Any:
    """JSON without what stands under these names."""
    if not isinstance(content, dict):
        return content
    return {name: _without(value, names) for name, value in content.items() if name not in names}


def _rewrite(output: LocalOutput, done: Withdrawal, notices: list[str], report: Report) -> Withdrawal:
    """Copy, batch by batch, all shards that still hold withdrawn samples."""
    all_bytes, shards = 0, 0
    copied: list[int] = []
    while True:
        with _claimed(output) as workspace:
            dataset = Dataset.open(str(output.root))
            left = withdrawn_in_shards(dataset.manifest)
            positions = [place for place, shard in enumerate(dataset.manifest.shards) if shard.url in left]
            if not positions:
                return replace(done, rewritten_shards=shards, rewritten_bytes=sum(copied), in_shards=0)
            all_bytes = all_bytes or sum(dataset.manifest.shards[place].num_bytes for place in positions)
            batch = _batch(dataset.manifest, positions)

            def advance(num_bytes: int, of: int = all_bytes) -> None:  # in several threads
                copied.append(num_bytes)
                report(sum(copied), of)

            more = _rewrite_batch(workspace, dataset, batch, advance)
            notices += [notice for notice in more if notice not in notices]
            shards += len(batch)


def _batch(manifest: Manifest, positions: list[int]) -> list[int]:
    """The first of these shards, as many as there is to be room for."""
    ends = np.cumsum([manifest.shards[place].num_bytes for place in positions])
    return positions[: max(1, int(np.searchsorted(ends, _BATCH_BYTES, side="right")))]


def _rewrite_batch(
    workspace: Workspace, dataset: Dataset, batch: list[int], advance: Callable[[int], None]
) -> list[str]:
    """Copy these shards without what is not in the index, and publish them; notices."""
    before = dataset.manifest

    def copy(position: int) -> CopiedShard:
        shard = before.shards[position]
        copied = copy_samples(
            Path(dataset.shard_url(position)), set(dataset.rows(position).keys), tar_path(workspace.folder, position)
        )
        advance(shard.num_bytes)
        return copied

    copied = dict(zip(batch, in_threads(copy, batch, _THREADS), strict=True))
    with (
        closing(IndexReader(dataset.index_path, before)) as index,
        write_index(workspace.folder / SAMPLES_NAME, joined_schema([index.schema], [str(workspace.output)])) as writer,
    ):
        for position in range(len(before.shards)):
            rows = index.read(position)
            writer.write(_moved(rows, copied[position], before.shards[position]) if position in copied else rows)
    left = withdrawn_in_shards(before)
    after = replace(
        before,
        shards=tuple(
            replace(shard, num_bytes=copied[position].num_bytes, sha256=copied[position].sha256)
            if position in copied
            else shard
            for position, shard in enumerate(before.shards)
        ),
        metadata={
            **before.metadata,
            IN_SHARDS: {url: n for url, n in left.items() if url not in {before.shards[place].url for place in batch}},
        },
    )
    moved = {tar_path(workspace.folder, place).name: before.shards[place].url for place in batch}
    return replace_index(workspace, before, after, moved)[1]


def _moved(rows: Any, copied: CopiedShard, shard: Shard) -> Any:
    """Rows with the offsets that their payloads have in the copy."""
    try:
        offsets = [copied.offsets[offset] for offset in rows["offset"].to_pylist()]
    except KeyError as error:
        raise DatasetError(
            f"{shard.url}: has no sample at byte {error.args[0]}, where {SAMPLES_NAME} has one; find the damage with "
            "'dinowds inspect --verify' and restore the shard"
        ) from None
    return rows.set_column(rows.schema.get_field_index("offset"), "offset", pa.array(offsets, pa.int64()))
