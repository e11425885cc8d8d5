"""Hugging Face datasets: a dataset card that names the shards, so that `load_dataset(FOLDER)` takes these alone."""

from __future__ import annotations

from dinowds.data.manifest import Manifest
from dinowds.interop.facts import Facts
from dinowds.interop.names import HF_CARD, MARK, SHARDS

_CARD = """---
# {mark}
configs:
- config_name: default
  data_files:
  - split: train
    path: {shards}/*.tar
---

# {name}

Images in WebDataset shards, made with 'dinowds shard'; `manifest.json` says how many.

```python
from datasets import load_dataset

samples = load_dataset("FOLDER OR REPOSITORY", split="train", streaming=True)
```
"""


def refusal(facts: Facts) -> str | None:
    """Why the reader cannot take the dataset; None: it can."""
    if facts.outside is not None:
        return f"the shard {facts.outside} is not in shards/"
    if len(facts.fields) > 1:
        kinds = [f"{' + '.join(exts)} ({count})" for exts, count in facts.fields.most_common(3)]
        return (
            f"it wants the same fields in every sample, found {', '.join(kinds)}; convert all images to one format, "
            "and give all samples a label or none"
        )
    return None


def files(manifest: Manifest) -> dict[str, bytes]:
    """Name → content."""
    name = " ".join(manifest.name.split())
    return {HF_CARD: _CARD.format(mark=MARK, shards=SHARDS, name=name).encode()}
