"""Images from strangers, given to `dinowds shard` and then to whoever decodes them."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from dinowds.data.decode import decode_image
from dinowds.errors import SampleError
from tests.faults.form import amount, tally
from tests.faults.hostile.images import JPEG, OTHER, bombs, odd
from tests.faults.hostile.rooms import Room, check_dataset, log_of
from tests.faults.hostile.tars import plain_tar

SEED = 9


@pytest.mark.parametrize("verify", ["header", "decode"])
def test_shard__images_that_claim_to_be_huge_are_not_taken(room: Room, verify: str) -> None:
    every = bombs()
    path = room.give(plain_tar({"good.jpg": JPEG, **every}))
    ended = room.run("shard", path, "--out", room.out, "--verify", verify)
    assert ended.status == 0, ended
    assert check_dataset(room.out, [JPEG]) == 1
    assert {line["member"] for line in log_of(room.out)} == {*every}
    tally("hostile images tried", len(every))


@pytest.mark.parametrize("verify", ["header", "decode"])
def test_shard__odd_images_are_taken_as_they_are_or_not_at_all(room: Room, verify: str) -> None:
    every = odd()
    path = room.give(plain_tar({"good.jpg": JPEG, **every}))
    ended = room.run("shard", path, "--out", room.out, "--verify", verify)
    assert ended.status == 0, ended
    count = check_dataset(room.out, [JPEG, *every.values()])
    assert count + len(log_of(room.out)) == len(every) + 1
    if verify == "header":
        page = room.path / "work" / "page.html"
        ended = room.run("inspect", room.out, "--html", "--out", page, may_write=(page,))
        assert ended.status == 0, ended
    tally("hostile images tried", len(every))


def test_decode__changed_images_are_pixels_or_a_sample_error() -> None:
    every = [*odd().values(), *bombs().values(), OTHER]
    small = [content for content in every if len(content) < 100_000]
    for number in range(amount(60, 20_000)):
        draw = random.Random(f"{SEED} {number}")
        content = bytearray(draw.choice(small))
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        with suppress(SampleError):
            pixels = decode_image(bytes(content[: draw.choice((len(content), draw.randrange(1, len(content) + 1)))]))
            assert pixels.ndim == 3, number
        tally("changed images decoded")
