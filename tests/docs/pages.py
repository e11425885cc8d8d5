"""The pages: README.md and docs/*.md, their fenced blocks, headings and links."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
IDS = [page.name for page in PAGES]

_FENCED = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """What stands between a pair of fences."""

    language: str
    text: str


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """All in their order, or those of these languages."""
    for _, language, text in _FENCED.findall(page.read_text(encoding="utf-8")):
        if not languages or language in languages:
            yield Block(language, textwrap.dedent(text))


def prose(page: Path) -> str:
    """All but the fenced blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets, as they stand there; `code` has none."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "`code`", prose(page)))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site name them."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names
