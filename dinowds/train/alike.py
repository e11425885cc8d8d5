"""What must be the same on all ranks, or their gradients would mean different things: code and configuration."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch

import dinowds
from dinowds.config import RunConfig, to_dict
from dinowds.config.keys import flatten

_PLACES = ("tune.knn.query_dataset_path", "tune.knn.test_dataset_path", "data.cache_dir", "data.cache_gib")
"""Where a host has its datasets, and how much room for copies, is its own affair."""


def facts_of(config: RunConfig) -> dict[str, str]:
    """What a rank compares with rank 0: what it is called → what it is here."""
    settings = {key: repr(value) for key, value in flatten(to_dict(config)).items() if key not in _PLACES}
    return {"torch": torch.__version__, "dinowds": f"{dinowds.__version__}, code {_code_digest()}", **settings}


def difference(own: dict[str, str], first: dict[str, str]) -> str | None:
    """'NAME WHAT, rank 0 WHAT' of the first fact that is another than rank 0's; None where all are the same."""
    for name in {**own, **first}:
        if own.get(name) != first.get(name):
            return f"{name} {own.get(name, 'unset')}, rank 0 {first.get(name, 'unset')}"
    return None


@cache
def _code_digest() -> str:
    """The start of the sha256 of the package's source, which may be edited without a new version."""
    digest = hashlib.sha256()
    root = Path(dinowds.__file__).parent
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
