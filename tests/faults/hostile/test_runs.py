"""Run folders and features of strangers, given to `dinowds report`, `watch` and `eval`."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from dinowds.shard.build import ShardOptions, build_dataset
from tests.browser import opened
from tests.embed.support import write_weights
from tests.faults.form import IS_FULL, amount, tally
from tests.faults.hostile.rooms import Room
from tests.faults.hostile.tars import IMAGES, TERMINAL, plain_tar
from tests.faults.hostile.test_datasets import MARKUP
from tests.faults.hostile.test_weights import YAMLS
from tests.support import TINY_RUN

STEERING = TERMINAL.decode("latin-1") + "\u202e\u2028" + MARKUP
LINES: dict[str, bytes] = {
    "steers a terminal": json.dumps({"step": 9, "loss": STEERING, STEERING: 1.0}, ensure_ascii=False).encode(),
    "is steering alone": b"2026-01-01 00:00:00  " + TERMINAL + MARKUP.encode(),
    "is no UTF-8": b'{"step": 9, "loss": "\xff\xfe"}',
    "is deep": b"[" * 100_000,
    "has a number of many digits": b'{"step": ' + b"9" * 10_000 + b', "loss": 1}',
    "has an integer past all floats": b'{"step": 9, "loss": 1' + b"0" * 400 + b"}",
    "has numbers past all": b'{"step": 1e999, "loss": -1e999, "lr": NaN}',
    "has a step before all": b'{"step": -9223372036854775808, "loss": 1}',
    "has a step after all": b'{"step": 9223372036854775807, "epoch": 1e300, "loss": 1}',
    "has lists for numbers": b'{"step": [1], "loss": {"a": [1, 2]}, "lr": null}',
    "is a list": b"[1, 2, 3]",
    "has many keys": json.dumps({f"k{number}": 1.0 for number in range(amount(2_000, 20_000))} | {"step": 9}).encode(),
    "is long": b'{"step": 9, "loss": "' + b"x" * (amount(4, 64) << 20) + b'"}',
    "has NULs": bytes(5000),
}
FILES = ("metrics.jsonl", "evaluations.jsonl", "train.log", "bad_samples.jsonl", "bad_steps.jsonl")


@pytest.fixture
def theirs(room: Room) -> Path:
    """A run of one step in `input`, and its dataset beside it."""
    tar = room.give(plain_tar({f"s/{number}_{number}.jpg": image for number, image in enumerate(IMAGES)}))
    build_dataset([tar], room.input / "dataset", ShardOptions())
    options = [*TINY_RUN, "optim.max_steps=1"]
    assert room.run("train", "patch", "--data", room.input / "dataset", "--out", room.out, *options).status == 0
    return Path(shutil.move(room.out, room.input / "run"))


def look(room: Room, run: Path) -> Path:
    """All that look into a run's folder; each ends as it must. The page, if one was made."""
    page = room.path / "work" / "page.html"
    page.unlink(missing_ok=True)
    room.run("watch", run, "--once")
    room.run("watch", run, "--json")
    room.run("report", run, "--out", page, may_write=(page,))
    tally("commands on hostile run folders", 3)
    return page


def test_run__lines_of_strangers_stay_text(room: Room, theirs: Path, browser: Browser) -> None:
    names = sorted(LINES)
    groups = [[name] for name in names] if IS_FULL else [names]
    before = {name: (theirs / name).read_bytes() if (theirs / name).exists() else b"" for name in FILES}
    for group in groups:
        for name in FILES:
            (theirs / name).write_bytes(before[name] + b"".join(LINES[what] + b"\n" for what in group))
        page = look(room, theirs)
        if page.exists():
            check_page(browser, page)


def check_page(browser: Browser, page: Path) -> None:
    """It runs nothing of theirs and asks for nothing."""
    asked: list[str] = []
    with opened(browser, page) as seen:
        seen.page.on("dialog", lambda dialog: asked.append(dialog.message))
        assert (seen.errors, seen.requests, asked) == ([], [], [])
        assert seen.page.locator("[onerror], [onmouseover]").count() == 0


def test_run__configuration_of_strangers(room: Room, theirs: Path) -> None:
    every = {name: text if isinstance(text, bytes) else text.encode() for name, text in YAMLS.items()}
    every["steers a terminal"] = json.dumps({STEERING: STEERING}).encode()
    names = [*random.Random(9).sample(sorted(YAMLS), amount(1, len(YAMLS))), "steers a terminal", "laughs"]
    for name in names:
        (theirs / "config.yaml").write_bytes(every[name].replace(b"MARK", os.fsencode(room.path / "ran")))
        look(room, theirs)
        assert not (room.path / "ran").exists(), name


@pytest.mark.parametrize("name", ["config.yaml", *FILES[:3]] if IS_FULL else FILES[:1])
def test_run__file_that_is_no_file(room: Room, theirs: Path, name: str) -> None:
    """A link to a device that never ends, and a pipe that no one writes to."""
    path = theirs / name
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    look(room, theirs)
    path.unlink()
    os.mkfifo(path)
    look(room, theirs)


def undated(out: str) -> dict[str, Any]:
    """An answer of `eval --json`, which says when it was given."""
    content: dict[str, Any] = json.loads(out)
    del content["date"]
    return content


def test_eval__damaged_features_are_refused_or_read_as_they_were(room: Room) -> None:
    members = {f"s/{number}_{number}.jpg": image for number, image in enumerate(IMAGES)}
    labels = "name,label\n" + "".join(f"{name},{number % 2}\n" for number, name in enumerate(members))
    weights = write_weights(room.path / "weights.pt")
    features = {}
    for which in ("train", "test"):
        tar = room.give(plain_tar({name.replace("s/", f"{which}/"): image for name, image in members.items()}))
        table = room.give(labels.replace("s/", f"{which}/").encode(), "labels.csv")
        ended = room.run("shard", tar, "--out", room.out, "--labels", table)
        assert ended.status == 0, ended
        data = Path(shutil.move(room.out, room.input / f"{which} data"))
        ended = room.run("embed", "patch", data, "--checkpoint", weights, "--out", room.out, "--image-size", 16)
        assert ended.status == 0, ended
        features[which] = Path(shutil.move(room.out, room.input / which))
    ask = ["eval", "knn", "--train", features["train"], "--test", features["test"], "--allow-leakage", "--json"]
    ask += ["--resamples", 0, "--k", 1]
    true = room.run(*ask)
    assert true.status == 0, true
    answer = undated(true.out)
    files = sorted(path for path in features["train"].iterdir() if path.suffix in (".parquet", ".json"))
    for number in range(amount(2, 300)):
        draw = random.Random(f"9 {number}")
        path = draw.choice(files)
        content = path.read_bytes()
        changed = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed[: draw.choice((len(changed), len(changed), draw.randrange(len(changed))))])
        ended = room.run(*ask)
        if path.suffix == ".parquet":
            assert ended.status == 1 or undated(ended.out) == answer, (f"seed 9 {number}", ended)
        path.write_bytes(content)
        tally("commands on hostile features")
