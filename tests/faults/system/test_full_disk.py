"""A disk that is full at a random moment: one line that says so; with more room the same command gives the same."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from tests.faults.commands import Commands
from tests.faults.disks import PAGE, ROOMY, disk
from tests.faults.form import IS_FULL, amount, tally
from tests.faults.system.conftest import Inputs
from tests.faults.system.jobs import JOBS

ADVICE = ("make room", "free space")
FULL_FORM = {"train patch": 40, "export --to timm": 4, "export --to dino": 4}
"""Full disks; 20 of the others."""
SHORT_FORM = [name for name in JOBS if not name.startswith("export")]  # which start another Python


@pytest.mark.parametrize("name", JOBS if IS_FULL else SHORT_FORM)
def test_full_disk__is_one_line_and_with_room_the_same_command_goes_on(
    command: Commands, inputs: Inputs, tmp_path: Path, name: str
) -> None:
    job, seed = JOBS[name], zlib.crc32(name.encode())
    drawn, wanted, tries = random.Random(seed), amount(1, FULL_FORM.get(name, 20)), 0
    with disk(tmp_path / "roomy") as roomy:
        out = roomy.path / "out"
        job.prepare(inputs, out)
        assert command.run(*job.arguments(inputs, out)).status == 0
        expected, used = job.whole(out), roomy.used()
    full = 0
    while full < wanted:
        tries += 1
        assert tries <= 10 * wanted, "the disk is hardly ever full"
        room = drawn.randrange(used // PAGE) * PAGE
        with disk(tmp_path / f"disk{tries}") as small:
            out, about = small.path / "out", f"seed {seed}, try {tries}: {room} bytes of {used}"
            job.prepare(inputs, out)
            small.resize(small.used() + room or PAGE)
            ended = command.run(*job.arguments(inputs, out))
            if ended.status != 0:
                full += 1
                error = ended.error
                assert any(words in error for words in ADVICE), (about, error)
                assert "No space left on device" in error, (about, error)
                assert str(small.path) in error, (about, error)
                job.check_left(out, expected)
                small.resize(ROOMY)
                again = command.run(*job.arguments(inputs, out))
                assert again.status == 0, (about, ended, again)
            assert job.whole(out) == expected, (about, ended)
    tally(f"full disks in {name} survived", full)
