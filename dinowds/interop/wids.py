"""wids: `manifest.json` is its index already.

Its reader takes relative, absolute and remote shards; it counts their samples itself and cuts names over 100 bytes,
which `members` has looked at.
"""

from __future__ import annotations

from dinowds.interop.facts import Facts


def refusal(facts: Facts) -> str | None:  # noqa: ARG001 - what would be one is an error of `gather_facts`
    """Why the reader cannot take the dataset; None: it can."""
    return None
