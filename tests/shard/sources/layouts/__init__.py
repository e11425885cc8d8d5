"""What the tests of the layouts share."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from dinowds.shard.sources.source import Items, Request, Source


def open_one(layout: ModuleType, path: Path | str, **request: Any) -> Source:
    """The source at `path`, which the layout must recognise."""
    assert layout.recognises(Path(path))
    source: Source = layout.open_source(Path(path), Request(str(path), **request))
    assert source.layout == layout.NAME
    return source


def list_all(layout: ModuleType, source: Source) -> list[tuple[Items, bytes]]:
    """Of each file its items and its bytes."""
    found = []
    for position, file in enumerate(source.files):
        content = file.file.read_bytes()
        items = layout.list_items(source, position, lambda place, size, of=content: of[place : place + size])
        assert len(items.names) == len(items.places) == len(items.sizes)
        assert items.facts is None or len(items.facts) == len(items.names)
        found.append((items, content))
    return found


def payloads(items: Items, content: bytes) -> list[bytes]:
    """The bytes of each item."""
    return [content[place : place + size] for place, size in zip(items.places, items.sizes, strict=True)]
