"""Which files `dinowds index` writes. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

READERS = ("wids", "dali", "energon", "timm", "hf")

SHARDS = "shards"
ENERGON = ".nv-meta"
ENERGON_INFO = f"{ENERGON}/.info.json"
ENERGON_SPLIT = f"{ENERGON}/split.yaml"
ENERGON_CONFIG = f"{ENERGON}/dataset.yaml"
ENERGON_DATABASE = f"{ENERGON}/index.sqlite"
ENERGON_ID = f"{ENERGON}/index.uuid"
TIMM_INFO = "_info.json"
HF_CARD = "README.md"

MARK = "Written by 'dinowds index'"
"""Stands in the head of each file that people write or change by hand, too."""
MARKED = (ENERGON_SPLIT, ENERGON_CONFIG, TIMM_INFO, HF_CARD)

_MARK_BYTES = 512
_SINGLE = (ENERGON_INFO, ENERGON_DATABASE, ENERGON_ID, *MARKED)
_TEMPORARY = re.compile(r"\.(?P<name>[^/]+)\.[0-9a-f]+\.tmp")


def dali_index(shard: str) -> str:
    """'shards/a-000000.tar' → 'shards/a-000000.idx'."""
    return f"{shard.removesuffix('.tar')}.idx"


def energon_index(shard: str) -> str:
    """'shards/a-000000.tar' → 'shards/a-000000.tar.idx'."""
    return f"{shard}.idx"


def is_interop_file(relative_path: str) -> bool:
    """Whether `dinowds index` writes files of that name, or leaves them when it is killed.

    Args:
        relative_path: to the dataset's folder, with '/' between its parts.

    Other people write a README.md or an _info.json too: `is_ours` tells these apart.
    """
    folder, slash, name = relative_path.rpartition("/")
    if unfinished := _TEMPORARY.fullmatch(name):
        name = unfinished["name"]
    if folder == SHARDS:
        return len(name) > len(".idx") and name.endswith(".idx")
    return f"{folder}{slash}{name}" in _SINGLE


def is_ours(root: Path, relative_path: str) -> bool:
    """Whether the file there may be replaced or removed: its name is one of ours, and so is its content."""
    if not is_interop_file(relative_path):
        return False
    if relative_path not in MARKED:
        return True
    with open(root / relative_path, "rb") as file:
        return MARK.encode() in file.read(_MARK_BYTES)


def list_interop_files(root: Path) -> list[str]:
    """Sorted names, relative to `root`, of what `dinowds index` has written in a dataset's folder."""
    places = [(folder, root / folder) for folder in ("", SHARDS, ENERGON)]
    entries = [(folder, entry) for folder, place in places if place.is_dir() for entry in place.iterdir()]
    names = [f"{folder}/{entry.name}" if folder else entry.name for folder, entry in entries if entry.is_file()]
    return sorted(name for name in names if is_ours(root, name))
