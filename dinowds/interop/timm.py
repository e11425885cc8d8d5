"""timm, `create_dataset("wds/…")`: `_info.json` beside the manifest, with one split `train`."""

from __future__ import annotations

import json

from dinowds.data.manifest import Manifest
from dinowds.interop.facts import Facts
from dinowds.interop.names import MARK, TIMM_INFO

_DEFAULT_EXTS = {"jpg", "png", "webp"}


def refusal(facts: Facts) -> str | None:
    """Why the reader cannot take the dataset; None: it can."""
    if facts.outside is not None:
        return f"the shard {facts.outside} is not in shards/"
    if facts.num_unlabelled:
        total = facts.manifest.num_samples
        return f"it wants a label in every sample, and {facts.num_unlabelled} of {total} have none; give all a label"
    return None


def notice(facts: Facts) -> str | None:
    """What a user would wonder about: timm skips images of other formats and says so in a log alone."""
    if _DEFAULT_EXTS.issuperset(facts.exts):
        return None
    return f"timm: open it with input_key={';'.join(facts.exts)!r}, since not all images are jpg, png or webp"


def files(manifest: Manifest) -> dict[str, bytes]:
    """Name → content."""
    split = {
        "name": "train",
        "num_samples": manifest.num_samples,
        "filenames": [shard.url for shard in manifest.shards],
        "shard_lengths": [shard.num_samples for shard in manifest.shards],
        "alt_label": "",
    }
    return {TIMM_INFO: json.dumps({"about": MARK, "splits": {"train": split}}, indent=1).encode() + b"\n"}
