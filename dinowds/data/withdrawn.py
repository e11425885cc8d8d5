"""What a manifest's metadata says of samples that were withdrawn from the index (`dinowds withdraw`)."""

from __future__ import annotations

from typing import Any

from dinowds.data.manifest import Manifest

WITHDRAWN = "withdrawn"
"""Number of samples that were ever withdrawn."""
IN_SHARDS = "withdrawn_in_shards"
"""{URL of a shard: number of withdrawn samples whose bytes are still in it}."""


def withdrawn_samples(manifest: Manifest) -> int:
    """Samples that were ever withdrawn from the dataset."""
    return _count(manifest.metadata.get(WITHDRAWN))


def withdrawn_in_shards(manifest: Manifest) -> dict[str, int]:
    """Of those, the ones whose bytes are still in a shard: URL → samples. 'dinowds withdraw --rewrite' removes them."""
    found = manifest.metadata.get(IN_SHARDS)
    counts = found if isinstance(found, dict) else {}
    return {shard.url: _count(counts.get(shard.url)) for shard in manifest.shards if _count(counts.get(shard.url))}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
