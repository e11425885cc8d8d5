"""Tars from strangers, given to `dinowds shard`."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.faults.form import amount, tally
from tests.faults.hostile import tars
from tests.faults.hostile.rooms import Room, check_dataset
from tests.faults.hostile.tars import IMAGES, bombs, damages, hostile_tar, mutated

SEED = 9


def shard(room: Room, content: bytes, *options: str, images: list[bytes] | None = IMAGES) -> None:
    """One tar that is sharded, or refused."""

    path = room.give(content)
    ended = room.run("shard", path, "--out", room.out, *options)
    if ended.status == 0:
        check_dataset(room.out, images)
        shutil.rmtree(room.out)
    else:
        assert not (room.out / "manifest.json").exists()
        assert "given.tar" in ended.errors
        shutil.rmtree(room.out, ignore_errors=True)
    tally("hostile tars tried")


@pytest.mark.parametrize("in_place", [False, True])
def test_shard__every_way_in_which_a_tar_lies(room: Room, in_place: bool) -> None:
    every = damages()
    names = sorted(every)
    chosen = random.Random(SEED).sample(names, amount(10, len(names)))
    for name in chosen:
        try:
            shard(room, hostile_tar(every[name]), *(["--in-place"] if in_place else []))
        except AssertionError as error:
            raise AssertionError(name) from error


def test_shard__random_changes_of_hostile_tars(room: Room) -> None:
    every = list(damages().values())
    for number in range(amount(8, 700)):
        draw = random.Random(f"{SEED} {number}")
        content = mutated(hostile_tar(b"".join(draw.sample(every, draw.randint(1, 3)))), draw)
        try:
            shard(room, content, *draw.choice(([], ["--in-place"], ["--verify", "decode"])), images=None)
        except AssertionError as error:
            raise AssertionError(f"seed {SEED} {number}") from error


def test_shard__all_names_at_once(room: Room) -> None:
    """Each is an image of its own: all are taken, under keys that are harmless."""
    content = b"".join(
        tars.pax(tars.record(b"path", b"%d/" % number + name), b"x", image)
        for number, (name, image) in enumerate(zip(tars.NAMES.values(), IMAGES * 3, strict=False))
    )
    path = room.give(content + tars.END, tars.TERMINAL.decode("latin-1").replace("/", "") + "\u202e.tar")
    planned = room.run("shard", path, "--out", room.out, "--dry-run")
    assert "cohort" in planned.out  # with its name, which is the tar's
    ended = room.run("shard", path, "--out", room.out)
    assert ended.status == 0, ended
    assert check_dataset(room.out, IMAGES) == len(tars.NAMES)


def test_shard__little_that_unpacks_to_gigabytes(room: Room) -> None:
    every = bombs()
    for name in sorted(every)[: amount(1, len(every))]:
        path = room.give(every[name], name)
        ended = room.run("shard", path, "--out", room.out)
        assert ended.status == 1, (name, ended)
        assert name in ended.errors
        used = sum(file.stat().st_size for file in room.out.rglob("*") if file.is_file()) if room.out.exists() else 0
        assert used <= 1 << 20, (name, used)
        shutil.rmtree(room.out, ignore_errors=True)
        tally("bombs tried")
