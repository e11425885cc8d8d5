"""Lines of quarantine.jsonl that tell of withdrawn slides."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from dinowds.files import atomic_write

_SEPARATOR = re.compile(r"[^0-9A-Za-z]")


class Forgetting:
    """Which lines are to go. A line names no slide: its folders and the beginning of its file do."""

    def __init__(
        self, entries: Sequence[str], cohorts: Mapping[str, Set[str]], emptied: Set[str] = frozenset()
    ) -> None:
        """
        Args:
            entries: slides, or cohort/slide.
            cohorts: source → its cohorts, as far as they are known.
            emptied: cohorts all of whose samples go; so do lines of sources that have no other.
        """
        self._entries = {entry: place for place, entry in enumerate(entries)}
        self._of_slide: defaultdict[str, set[int]] = defaultdict(set)
        for entry, place in self._entries.items():
            self._of_slide[entry.partition("/")[2]].add(place)
        self._cohorts, self._emptied = cohorts, emptied

    def of(self, line: Any) -> tuple[bool, set[int]]:
        """Whether a line goes, and which entries it is of."""
        if not isinstance(line, dict):
            return False, set()
        source, member = str(line.get("source")), str(line.get("member"))
        names = set(_names(member))
        if "/" not in member.removeprefix("./"):
            names.update(_names(source.rpartition("/")[2]))  # a file of one slide
        cohorts = self._cohorts.get(source)
        if cohorts is None:  # not one image of this source was taken
            found = set().union(*(self._of_slide[name] for name in names if name in self._of_slide))
        else:
            full = (f"{cohort}/{name}" for cohort in cohorts for name in names)
            found = {self._entries[name] for name in full if name in self._entries}
        found |= {self._entries[name] for name in names if name in self._entries}
        return bool(found) or (cohorts is not None and cohorts <= self._emptied), found


def forget_lines(path: Path, forgetting: Forgetting, target: Path | None) -> tuple[Counter[str], set[int]]:
    """Write the lines that stay to `target`, if given.

    Returns:
        The number of lines of each reason that go, and the entries that they are of.
    """
    gone: Counter[str] = Counter()
    known: set[int] = set()
    with open(path, "rb") as file:
        if target is None:
            for _ in _kept(file, forgetting, gone, known):
                pass
        else:
            with atomic_write(target) as new:
                new.writelines(_kept(file, forgetting, gone, known))
    return gone, known


def _kept(lines: Any, forgetting: Forgetting, gone: Counter[str], known: set[int]) -> Iterator[bytes]:
    for line in lines:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        goes, entries = forgetting.of(content)
        if goes:
            gone[str(content.get("reason"))] += 1
            known |= entries
        else:
            yield line


def _names(path: str) -> Iterator[str]:
    """What in a path can be a slide's name: each folder, the file, and its beginnings up to a separator."""
    *folders, file = path.split("/")
    yield from folders
    yield file
    for match in _SEPARATOR.finditer(file):
        yield file[: match.start()]
