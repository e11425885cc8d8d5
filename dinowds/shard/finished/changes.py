"""Changes of a finished dataset in a folder: a new index over it, with shards that are added, replaced or removed.

All that is new is made in the work folder while the dataset stays as it is, its subsets too. Then the manifest goes,
files are removed and renamed into their places, and the new manifest comes last. Whoever dies before leaves the old
dataset; whoever dies meanwhile leaves one without a manifest, which `Workspace.publish_again` ends.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import SAMPLES_NAME, SUBSETS_NAME, Manifest, write_manifest
from dinowds.data.subsets.choose import describe_subset
from dinowds.data.subsets.selection import Mask, pack_mask
from dinowds.data.subsets.subset import Subset, list_subsets, load_mask, mask_file, read_subset
from dinowds.errors import DatasetError
from dinowds.files import sha256_of, write_atomic
from dinowds.interop.names import HF_CARD, list_interop_files
from dinowds.remote.files import RemoteFiles
from dinowds.shard.outputs.local_output import CHANGES_NAME, read_json
from dinowds.shard.outputs.workspace import Workspace

Remap = Callable[[NDArray[np.bool_]], NDArray[np.bool_]]
"""Which samples a subset has, bool [old samples] → the same of the new index, bool [new samples]."""


def added_at_end(count: int) -> Remap:
    """Of an index that has got `count` samples more behind the old ones; no subset has them."""
    return lambda chosen: np.concatenate([chosen, np.zeros(count, np.bool_)])


def replace_index(
    workspace: Workspace,
    before: Manifest,
    after: Manifest,
    moved: Mapping[str, str],
    removed: Collection[str] = (),
    remap: Remap = lambda chosen: chosen,
    forgotten: Collection[str] = (),
    result: Mapping[str, Any] | None = None,
) -> tuple[Manifest, list[str]]:
    """Publish the index in the work folder (samples.parquet, and quarantine.jsonl where it changes) over the dataset.

    Args:
        workspace: claimed with `changes_dataset`, and begun.
        before: the dataset's manifest as it is.
        after: the new one; the digests of samples.parquet are filled in here.
        moved: name of a file in the work folder → its place in the dataset, new or not: shards.
        removed: places in the dataset of files that go.
        remap: of the subsets' masks. A subset that becomes empty is removed.
        forgotten: names that subsets' conditions may no longer tell: quoted ones become 'withdrawn'.
        result: is kept until the work folder is cleared, see `result_of`.

    Returns:
        The manifest that was written, and notices of one line each.
    """
    root, work, files = str(workspace.output.root), workspace.folder, RemoteFiles()
    samples = work / SAMPLES_NAME
    after = replace(after, samples_sha256=sha256_of(samples), samples_footer_sha256=footer_sha256(samples))
    moved, removed, notices = dict(moved), list(removed), []
    for name in list_subsets(root, files):
        places = [f"{SUBSETS_NAME}/{name}.{ending}" for ending in ("json", "npy")]
        try:
            old = read_subset(root, name, before, files)
            chosen = _chosen(load_mask(root, old, before.num_samples, files), before.num_samples)
        except DatasetError as error:
            notices.append(f"subset {name!r} was of no use and is left as it is: {error}")
            continue
        chosen = remap(chosen)
        if not chosen.any():
            removed += places
            notices.append(f"subset {name!r} has no sample any more and is removed")
            continue
        new = _described(old, chosen, Dataset(str(work), after), forgotten)
        for place, content in zip(places, (_json(new.to_json()), mask_file(pack_mask(chosen))), strict=True):
            part = f"subset-{Path(place).name}"
            write_atomic(work / part, content)
            moved[part] = place
    # The card names no sample and no shard; people write more into it.
    if stale := [name for name in list_interop_files(workspace.output.root) if name != HF_CARD]:
        removed += stale
        notices.append(f"{len(stale)} index files of other readers are removed; make them anew with 'dinowds index'")
    write_manifest(work, after)
    changes = {"moved": moved, "removed": removed, "result": dict(result or {}), "notices": notices}
    write_atomic(work / CHANGES_NAME, _json(changes))
    workspace.publish(after)
    return after, notices


def result_of(workspace: Workspace) -> dict[str, Any]:
    """What `replace_index` was given as `result` by the run that made these changes ready."""
    changes = read_json(workspace.folder / CHANGES_NAME)
    return dict(changes["result"]) if isinstance(changes, dict) else {}


def _chosen(mask: Mask, num_samples: int) -> NDArray[np.bool_]:
    return np.unpackbits(mask, count=num_samples, bitorder="little").view(np.bool_)


def _described(subset: Subset, chosen: NDArray[np.bool_], dataset: Dataset, forgotten: Collection[str]) -> Subset:
    """The subset as one of `dataset`, of which it has `chosen`."""
    definition, mask = _without_names(subset.definition, forgotten), pack_mask(chosen)
    if np.count_nonzero(chosen) != subset.samples:
        return describe_subset(dataset, subset.name, definition, chosen, mask)
    return replace(
        subset,
        definition=definition,
        cohorts={cohort: subset.cohorts.get(cohort, 0) for cohort in dataset.manifest.cohorts},
        samples_sha256=dataset.manifest.samples_sha256,
        file_sha256=hashlib.sha256(mask_file(mask)).hexdigest(),
    )


def _without_names(definition: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Conditions quote the names of slides."""
    if not isinstance(definition.get("where"), str) or not names:
        return definition
    quoted = re.compile(r"""(['"])(?P<name>.*?)\1""")

    def changed(match: re.Match[str]) -> str:
        return f"{match[1]}withdrawn{match[1]}" if match["name"] in names else match[0]

    return {**definition, "where": quoted.sub(changed, definition["where"])}


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
