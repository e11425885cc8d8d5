"""Keys that are not known here: what they are called, or why there is nothing like them."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from dinowds.config.sections import COMMANDS, Kind

_EARLIER_NAMES_OF_BOTH = {
    "crops.local_crops_number": "crops.local.count",
    "speed.use_fp16": "speed.precision",
    "train.batch_size_per_gpu": "train.batch_size",
    "train.start_from_checkpoint": "student.init_from",
}
EARLIER_NAMES: dict[Kind, dict[str, str]] = {
    "image": {
        **_EARLIER_NAMES_OF_BOTH,
        "crops.global_crops_size": "crops.global.size",
        "crops.global_crops_scale": "crops.global.scale",
        "crops.local_crops_size": "crops.local.size",
        "crops.local_crops_scale": "crops.local.scale",
    },
    "region": {
        **_EARLIER_NAMES_OF_BOTH,
        "crops.global_crops_scale": "crops.global.size",
        "crops.local_crops_scale": "crops.local.size",
    },
}
"""Of DINO's own options and earlier systems."""

OF_COMMANDS = {
    "train.dataset_path": "the dataset is given as --data",
    "train.output_dir": "the run folder is given as --out",
    "train.pct": "a part of a dataset is a subset, see 'dinowds subset'",
    "train.resume": "the same command goes on where it stopped",
    "train.resume_from_checkpoint": "the same command goes on where it stopped",
}
OF_OTHERS: dict[Kind, dict[str, str]] = {
    "image": {
        **OF_COMMANDS,
        "student.input_dim": "a key of regions; images have 3 channels",
        "student.region_size": "a key of regions, see 'dinowds train region'",
    },
    "region": {
        **OF_COMMANDS,
        "student.patch_size": "a region's cells are as the dataset has them, see 'dinowds embed region'",
        "student.region_size": "a region's cells are as the dataset has them, see 'dinowds embed region'",
        "crops.renderer": "cells are moved, not rendered",
    },
}
"""Keys of the other kind and of earlier systems that there is nothing like here, and why."""


def suggestion(key: str, kind: Kind, known: Collection[str]) -> str:
    """What follows 'unknown key …' in an error."""
    if key in EARLIER_NAMES[kind]:
        unit = ", in cells" if kind == "region" and key.endswith("_scale") else ""
        return f"; here it is {EARLIER_NAMES[kind][key]!r}{unit}"
    if key in OF_OTHERS[kind]:
        return f": {OF_OTHERS[kind][key]}"
    if sections := [name for name in known if name.startswith(key + ".")]:
        return f", which is a section: set one of its keys, such as {sections[0]}"
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; see configs/{COMMANDS[kind]}.yaml for all keys"
