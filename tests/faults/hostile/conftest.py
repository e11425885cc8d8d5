"""A new room for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinowds.shard.build import ShardOptions, build_dataset
from tests.faults.commands import Commands
from tests.faults.hostile.rooms import BOUNDS, Room
from tests.faults.hostile.tars import IMAGES, plain_tar
from tests.support import make_dataset


@pytest.fixture(scope="session")
def harmless(command: Commands, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Command → bytes of memory that it takes on what is as it should be."""
    room = tmp_path_factory.mktemp("harmless")
    first, second = make_dataset(room / "a"), room / "b"
    tar = room / "other.tar"
    tar.write_bytes(plain_tar({f"other/{number}.jpg": image for number, image in enumerate(IMAGES)}))
    build_dataset([tar], second, ShardOptions())
    given: dict[str, list[object]] = {
        "shard": [room / "a" / "alpha.tar", "--out", room / "sharded"],
        "inspect": [first, "--html", "--out", room / "page.html"],
        "report": [first, "--out", room / "report.html"],
        "merge": [first, second, "--out", room / "merged"],
        "index": [first, "--for", "wids"],
    }
    peaks = {}
    for name, arguments in given.items():
        ended = command.run(name, *arguments, room=room, harms=BOUNDS)
        assert ended.status == 0, ended
        peaks[name] = ended.peak
    return peaks | dict.fromkeys(
        ("embed", "export", "train", "eval", "attend", "subset", "withdraw", "order", "watch"), 1 << 30
    )


@pytest.fixture
def room(tmp_path: Path, command: Commands, harmless: dict[str, int]) -> Room:
    return Room(tmp_path, command, harmless)
