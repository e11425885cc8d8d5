"""Power loss: nothing has its name before its content is on the disk, and whatever is found then is gone on with."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinowds.shard.build import ShardOptions, build_dataset
from tests.faults.form import IS_FULL, amount, tally
from tests.faults.kills.killing import (
    LEAVE_OUT,
    Command,
    Ended,
    Nursery,
    Tree,
    begin,
    below,
    dataset,
    differences,
    tree,
)
from tests.faults.kills.test_kill import SHORT_RUN, WITHDRAWN, WORK, check_dataset, inputs, of_run
from tests.faults.kills.tracing import WORST, Disk, Worst, read_notes

__all__ = ["inputs"]

Lost = tuple[int, Worst]


def of_lost_run(name: str, content: bytes) -> Any:
    """Figures are not fsynced line by line: those that were lost are missing, none is there twice or wrong."""
    if name.endswith("metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in content.splitlines()]
        assert steps == sorted(set(steps))
        return "figures"
    return of_run(name, content)


class Loss:
    """A command that was traced while nobody disturbed it, and what is left of it where the power goes."""

    def __init__(self, nurse: Nursery, command: Command, folder: Path) -> None:
        self._nurse, self._command, self._home, self._trace = nurse, command, folder / "home", folder / "trace"
        begin(command, self._home)
        ended = nurse.run(command, self._home, trace=self._trace)
        assert ended.status == 0, ended
        self.expected = tree(command, self._home)
        self.notes = read_notes(self._trace)
        tally(f"system calls of {command.name} traced", len(self.notes))

    def disk(self, after: int) -> Disk:
        """As it is after so many notes."""
        begin(self._command, self._home)
        disk = Disk(self._home, self._trace)
        for note in self.notes[:after]:
            disk.play(note)
        return disk

    def lose(self, after: int, worst: Worst) -> Tree:
        """Let the power go after so many notes, and look at what is left."""
        disk = self.disk(after)
        shutil.rmtree(self._home)
        disk.build(worst, self._home)
        for name in ("work", "cache", "tmp"):
            (self._home / name).mkdir(exist_ok=True)
        return self._left()

    def _left(self) -> Tree:
        """As it is, whatever it may be."""
        return tree(replace(self._command, normal=lambda _name, content: content), self._home)

    def check_left(self, about: Lost) -> None:
        """What looks finished is."""
        finished = self._command.finished(self._left())

        def normal(name: str, content: bytes) -> Any:
            return self._command.normal(name, content) if name in finished else LEAVE_OUT  # which may be anything

        now = tree(replace(self._command, normal=normal), self._home)
        for name in finished:
            assert now[name] == self.expected[name], (about, name)
        self._command.check(self._home / "work")

    def go_on(self) -> Ended:
        return self._nurse.run(self._command, self._home)

    def result(self) -> Tree:
        return tree(self._command, self._home)


def commands(inputs: Path, before: Path) -> dict[str, Command]:
    """By their names. `before` has datasets a and b, slides.txt and features."""
    coded, weights = str(inputs / "coded" / "dataset"), str(inputs / "weights.pt")
    sources = (str(inputs / "cohort.tar"), str(inputs / "patches" / "beta.tar"))
    features = ("--out", f"{WORK}/features", "--batch-size", "8", "--workers", "0")
    withdrawn = ("withdraw", f"{WORK}/a", "--slides", f"{WORK}/slides.txt", "--rewrite")
    regions = ("--region-size", "96", "--workers", "0", "--out", f"{WORK}/regions")
    subset_places = {f"work/a/subsets/half.{ending}" for ending in ("npy", "json")}

    def subset(now: Tree) -> set[str]:
        return subset_places if "work/a/subsets/half.json" in now else set()

    def whole(work: Path) -> None:
        check_dataset(work / "a")

    made = [
        Command(
            "shard",
            ("shard", *sources, "--max-count", "30", "--workers", "1", "--out", f"{WORK}/out"),
            dataset("work/out"),
        ),
        Command("embed patch", ("embed", "patch", coded, "-c", weights, *features), below("work/features/")),
        Command("embed region", ("embed", "region", coded, "-c", weights, *regions), dataset("work/regions")),
        Command("merge", ("merge", f"{WORK}/a", f"{WORK}/b", "--out", f"{WORK}/all"), dataset("work/all"), before),
        Command("withdraw", withdrawn, lambda _now: set(), before, check=whole, refusal=WITHDRAWN),
        Command(
            "subset", ("subset", f"{WORK}/a", "--name", "half", "--fraction", "0.5", "--overwrite"), subset, before
        ),
        Command("report", ("report", coded, "--out", f"{WORK}/page.html", "--overwrite"), below("work/page.html")),
    ]
    return {command.name: command for command in made}


NAMES = ("shard", "embed patch", "embed region", "merge", "withdraw", "subset", "report")


@pytest.fixture(scope="module")
def before(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before") / "before"
    build_dataset([inputs / "cohort.tar"], folder / "a", ShardOptions(max_count=20))
    shutil.copytree(inputs / "coded" / "dataset", folder / "b")
    (folder / "slides.txt").write_text("slide2\nslide5\n")
    return folder


def check_order(loss: Loss, results: Callable[[str], bool]) -> None:
    """No name before its content is durable; and at the end all of the results is durable, names and content."""
    assert loss.disk(len(loss.notes)).broken == []
    wanted = {name for name in loss.expected if results(name)}
    assert wanted
    left = loss.lose(len(loss.notes), "names undone")
    assert wanted <= left.keys(), sorted(wanted - left.keys())
    loss.check_left((len(loss.notes), "names undone"))


def check_losses(loss: Loss, command: Command, count: int, seed: int = 0) -> None:
    """The power goes at `count` moments, in each of the worst ways; then the same command."""
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(1, len(loss.notes) + 1), min(count, len(loss.notes))))
    renames = [at for at, note in enumerate(loss.notes, 1) if note[0] == "rename"]
    for number, moment in enumerate(moments):
        for worst in WORST if IS_FULL else (WORST[number % len(WORST)],):
            after = rng.choice(renames) if worst == "newest name alone" and renames else moment
            loss.lose(after, worst)
            loss.check_left((after, worst))
            ended = loss.go_on()
            about = (command.name, after, worst, loss.notes[after - 1], ended)
            assert ended.status == 0 or command.refusal in ended.errors, about
            assert not (differing := differences(loss.result(), loss.expected, ended)), (about, differing)
            tally("power losses survived")


@pytest.mark.parametrize("name", NAMES)
def test_power__lost_at_any_moment(nurse: Nursery, inputs: Path, before: Path, tmp_path: Path, name: str) -> None:
    command = commands(inputs, before)[name]
    loss = Loss(nurse, command, tmp_path)
    check_order(loss, lambda path: path.startswith("work/") and loss.expected[path] is not None)
    check_losses(loss, command, amount(4, 25))


def test_power__lost_while_training(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    """Checkpoints and the configuration are durable; a step that the figures lack is no other step."""
    arguments = ("train", "patch", "--data", str(inputs / "coded" / "dataset"), "--out", f"{WORK}/run", *SHORT_RUN)
    command = Command("train patch", arguments, of_checkpoints, normal=of_lost_run)
    loss = Loss(nurse, command, tmp_path)
    check_order(loss, lambda path: path.startswith("work/run/checkpoints/") or path == "work/run/config.yaml")
    check_losses(loss, command, amount(1, 12))


def of_checkpoints(now: Tree) -> set[str]:
    last = {f"work/run/checkpoints/step-0000000{step}.pt" for step in (8, 9)}
    return last & now.keys()


@pytest.mark.skipif(not IS_FULL, reason="what checks an export imports torch anew each time")
def test_power__lost_while_exporting(nurse: Nursery, inputs: Path, tmp_path: Path) -> None:
    arguments = ("export", "-c", str(inputs / "weights.pt"), "--to", "dino", "--out", f"{WORK}/x.pth")
    loss = Loss(nurse, Command("export", arguments, below("work/x.pth")), tmp_path)
    check_order(loss, lambda path: path == "work/x.pth")
    arguments = ("export", "-c", str(inputs / "weights.pt"), "--to", "timm", "--out", f"{WORK}/x")
    (tmp_path / "timm").mkdir()
    loss = Loss(nurse, Command("export", arguments, below("work/x/")), tmp_path / "timm")
    check_order(loss, lambda path: path.startswith("work/x/"))
