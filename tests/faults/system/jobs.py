"""Commands that write, and how to tell that what they have written is whole."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinowds.data.verify import verify_dataset
from dinowds.train.checkpoint import list_checkpoints, load_checkpoint
from tests.faults.system.conftest import Inputs
from tests.support import TINY_RUN

STEPS = 6
RUN = (
    *TINY_RUN, f"optim.max_steps={STEPS}", "train.save_every_steps=2", "train.keep_checkpoints=2",
    "train.batch_size=4", "student.depth=1", "crops.local.count=1",
)  # fmt: skip
"""Overrides of a run of a second."""
_TIMED = {"images_per_second", "waiting_share", "mfu", "peak_memory_gib"}


@dataclass(frozen=True)
class Job:
    """A command that writes at `out`, beside which nothing else lies."""

    arguments: Callable[[Inputs, Path], list[object]]
    whole: Callable[[Path], object]
    """What is there once it is done, but for what depends on the clock."""
    check_left: Callable[[Path, object], None]
    """Fails where what looks finished is not. Of an output that the command could not finish, and of `whole`."""
    prepare: Callable[[Inputs, Path], object] = lambda _inputs, _out: None
    """What lies at `out` before."""


def tree(folder: Path) -> dict[str, bytes]:
    """All files but locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def page(out: Path) -> bytes:
    """A report, without the minute in which it was made."""
    return re.sub(rb"seen on \d{4}-\d\d-\d\d \d\d:\d\d", b"", out.read_bytes())


def figures(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without those that depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _TIMED} for line in lines]


def plain(value: Any) -> Any:
    """With digests in the place of tensors, so that `==` compares all and a difference can be shown."""
    if hasattr(value, "numpy"):
        return hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def trained(run: Path, step: int = STEPS) -> object:
    """The last state of a run, but for where its dataset lies, and its figures."""
    assert not list(run.rglob("*.tmp"))
    state = plain(load_checkpoint(run / "checkpoints" / f"step-{step:08d}.pt", verify=True))
    return {**state, "data": None}, figures(run)


def check_run(run: Path, _: object) -> None:
    """Every checkpoint that has its name is whole."""
    for path in list_checkpoints(run / "checkpoints"):
        load_checkpoint(path, verify=True)
    assert not (run / "checkpoints" / f"step-{STEPS:08d}.pt").exists() or figures(run)


def check_nothing(out: Path, _: object) -> None:
    """Nothing is there, also not for a moment: beside it neither."""
    assert [path.name for path in out.parent.iterdir()] == []


def check_features(out: Path, whole: object) -> None:
    assert isinstance(whole, dict)
    assert not (out / "features.json").exists()
    for path in out.glob("[!.]*.parquet"):
        assert path.read_bytes() == whole[path.name]
    assert not list(out.rglob("*.tmp"))


def check_unfinished(out: Path, _: object) -> None:
    assert not (out / "manifest.json").exists()


def check_dataset(out: Path, _: object) -> None:
    """It is one or the other, whole."""
    assert verify_dataset(out) == []


JOBS: dict[str, Job] = {
    "train patch": Job(
        lambda inputs, out: ["train", "patch", "--data", inputs.data, "--out", out, *RUN], trained, check_run
    ),
    "embed patch": Job(
        lambda inputs, out: [
            *("embed", "patch", inputs.data, "--checkpoint", inputs.weights, "--out", out),
            *("--workers", 0, "--batch-size", 8, "--image-size", 32, "--dtype", "float32", "--tokens"),
        ],
        tree,
        check_features,
    ),
    "embed region": Job(
        lambda inputs, out: [
            *("embed", "region", inputs.regions, "--checkpoint", inputs.weights, "--out", out, "--name", "x"),
            *("--region-size", 64, "--patch-size", 32, "--workers", 0, "--precision", "fp32"),
        ],
        tree,
        check_unfinished,
    ),
    "inspect --html": Job(
        lambda inputs, out: ["inspect", inputs.data, "--html", "--out", out.with_suffix(".html")],
        lambda out: page(out.with_suffix(".html")),
        check_nothing,
    ),
    "merge": Job(
        lambda inputs, out: ["merge", inputs.data, inputs.regions, "--out", out, "--name", "x"], tree, check_unfinished
    ),
    "withdraw --rewrite": Job(
        lambda inputs, out: ["withdraw", out, "--slides", inputs.slides, "--rewrite"],
        tree,
        check_dataset,
        lambda inputs, out: shutil.copytree(inputs.data, out, dirs_exist_ok=True),
    ),
    "export --to timm": Job(
        lambda inputs, out: ["export", "--checkpoint", inputs.weights, "--to", "timm", "--out", out],
        tree,
        check_nothing,
    ),
    "export --to dino": Job(
        lambda inputs, out: ["export", "--checkpoint", inputs.weights, "--to", "dino", "--out", out],
        lambda out: out.read_bytes(),
        check_nothing,
    ),
}
