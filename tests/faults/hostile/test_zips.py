"""Zips from strangers, given to `dinowds shard`."""

from __future__ import annotations

import random
import shutil

from tests.faults.form import amount, tally
from tests.faults.hostile.rooms import Room, check_dataset
from tests.faults.hostile.tars import IMAGES
from tests.faults.hostile.zips import damages, mutated, whole

SEED = 9
BOMBS = ("bomb by overlap", "bomb of one image", "bomb by nesting", "bomb that says little")


def shard(room: Room, content: bytes, images: list[bytes] | None = IMAGES) -> int:
    """One zip that is sharded, or refused; the status."""
    path = room.give(content, "given.zip")
    ended = room.run("shard", path, "--out", room.out)
    if ended.status == 0:
        check_dataset(room.out, images)
    else:
        assert not (room.out / "manifest.json").exists()
        assert "given.zip" in ended.errors
    shutil.rmtree(room.out, ignore_errors=True)
    tally("hostile zips tried")
    return ended.status


def test_shard__every_way_in_which_a_zip_lies(room: Room) -> None:
    every = damages()
    rest = sorted({*every} - {*BOMBS})
    for name in [*BOMBS, *random.Random(SEED).sample(rest, amount(4, len(rest)))]:
        try:
            status = shard(room, every[name])
        except AssertionError as error:
            raise AssertionError(name) from error
        assert name not in BOMBS or status == 1, name


def test_shard__random_changes_of_zips(room: Room) -> None:
    every = [content for content in damages().values() if len(content) < 100_000] + [whole()] * 20
    for number in range(amount(6, 400)):
        draw = random.Random(f"{SEED} {number}")
        content = mutated(draw.choice(every), draw)
        try:
            shard(room, content, images=None)
        except AssertionError as error:
            raise AssertionError(f"seed {SEED} {number}") from error
