"""A folder to be robbed: beside the output lie files that no command may touch."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import xxhash

from dinowds.data.verify import verify_dataset
from tests.faults.commands import Commands, Ended, Harm
from tests.faults.hostile.surroundings import check_ended, listing

LIMIT = 90.0
"""Seconds that a command may take: far more than any does."""
BOUNDS: list[Harm] = [("address_space", 12 << 30), ("no_sync", None)]


class Room:
    """`path`/work is where commands are given, `input` has what strangers sent, `out` is where they may write."""

    def __init__(self, path: Path, commands: Commands, harmless: dict[str, int]) -> None:
        self.path, self._commands, self._harmless = path, commands, harmless
        self.input = path / "input"
        self.out = path / "work" / "out"
        for folder in (self.input, path / "work", path / "outside", path / "home", path / "tmp", path / "cache"):
            folder.mkdir(parents=True, exist_ok=True)
        (path / "outside" / "victim").write_text("untouched")

    def give(self, content: bytes, name: str = "given.tar") -> Path:
        """A file of a stranger; OUTSIDE stands for the folder beside."""
        path = self.input / name
        path.write_bytes(content)
        return path

    def run(self, *arguments: object, may_write: tuple[Path, ...] = ()) -> Ended:
        """Give a command that ends as a command must, and changes nothing but the output and the cache."""
        own = {self.out, self.path / "cache", *may_write}
        before = listing(self.path, own)
        ended = self._commands.run(*arguments, room=self.path, harms=BOUNDS, limit=LIMIT)
        after = listing(self.path, own)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert not changed, (arguments, changed, ended)
        check_ended(ended, self._harmless[str(arguments[0])])
        return ended


def check_dataset(folder: Path, images: list[bytes] | None) -> int:
    """It is whole, and each of its samples is one of `images` (None: any), to the last byte; the number of samples."""
    damages = verify_dataset(folder)
    assert damages == []
    rows = pq.read_table(folder / "samples.parquet", columns=["digest", "key"]).to_pylist()
    if images is not None:
        assert {row["digest"] for row in rows} <= {xxhash.xxh3_128_digest(image) for image in images}
    keys = [row["key"] for row in rows]
    assert len({*keys}) == len(keys)
    for key in keys:
        assert key.isprintable()
        assert not {"..", "", "."} & {*key.split("/")}, key
        assert not {*key} & {*". \\:*?\"'<>|"}, key
    return len(keys)


def log_of(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
