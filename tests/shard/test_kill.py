"""A run that is killed and given again ends with the bytes of an undisturbed run, whenever it was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.verify import verify_dataset

COMMAND = [str(Path(sys.executable).with_name("dinowds")), "shard"]
NUM_KILLS = 3

KILL_AT_EVERY_OPERATION = """
import os, signal, shutil, sys
from pathlib import Path
import fsspec
from fsspec.implementations.local import LocalFileSystem
from dinowds.shard.write import writing
from dinowds.shard.build import ShardOptions, build_dataset

os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile"}
old, *sources = [Path(path) for path in sys.argv[4:]]
out, is_remote, how = Path(sys.argv[1]), sys.argv[2] == "remote", sys.argv[3]
is_replaced, is_appended, is_dealt = how == "replace", how == "append", how == "dealt"
writing.is_larger_than = lambda images, memory: memory is not None
reference, staging = Path(str(out) + "-reference"), Path(str(out) + "-staging")

class Disk(LocalFileSystem):
    # A remote place that costs nothing: disk://here/FOLDER.
    protocol = "disk"

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("disk://here").rstrip("/")

    def __init__(self, **options):
        super().__init__(auto_mkdir=True)

fsspec.register_implementation("disk", Disk)

def is_written(event, arguments):
    return event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and ".unfinished/bucket" in str(arguments[0])

def run(out, kill_at=0, sources=sources, is_appended=is_appended):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            if event in OPERATIONS or is_written(event, arguments):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        options = ShardOptions(
            name=None if is_appended else "same",
            append=is_appended,
            memory=1 << 24 if is_dealt else None,
            max_count=7 if is_remote else 4,
            overwrite=is_replaced,
            staging=staging if str(out).startswith("disk") else None,
        )
        build_dataset(sources, out, options)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        if p.is_file() or not is_remote
    }

assert run(Path(str(out) + "-old"), sources=[old], is_appended=False) == 0
(Path(str(out) + "-old") / "subsets").mkdir()
for name in ("fold_0.npy", "fold_0.json", ".fold_1.json.77.tmp"):
    (Path(str(out) + "-old") / "subsets" / name).write_text("{}")
before = tree(Path(str(out) + "-old"))
if is_appended:
    shutil.copytree(str(out) + "-old", reference)
assert run(reference) == 0
expected = tree(reference)
target = f"disk://here{out}" if is_remote else out
kill_at = 0
while True:
    kill_at += 1
    if is_replaced or is_appended:
        shutil.copytree(str(out) + "-old", out)
    if run(target, kill_at) == 0:
        break
    looks_finished = (out / "manifest.json").exists()
    whole = [before, expected] if is_replaced or is_appended else [expected]
    assert not looks_finished or any(tree(out).items() >= files.items() for files in whole), kill_at
    status = run(target)
    if status and looks_finished:  # killed in the very last steps: complete, and so refused
        assert not (out / ".unfinished").exists() or is_remote, kill_at
    else:
        assert status == 0, kill_at
    assert tree(out) == expected, (kill_at, sorted(tree(out)), sorted(expected))
    assert not list(staging.glob("*")), (kill_at, list(staging.rglob("*")))
    shutil.rmtree(out)
print(kill_at)
"""


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("local", "new"),
        ("local", "replace"),
        ("local", "append"),
        ("local", "dealt"),
        ("remote", "new"),
        ("remote", "replace"),
    ],
)
def test_build__killed_at_each_file_operation_ends_with_the_same_bytes(
    tmp_path: Path, make_tar: Callable[..., Path], where: str, how: str
) -> None:
    counts = {"old": 21, "a": 9, "b": 4}  # the old one has more shards than the new one
    sources = [make_tar(tmp_path / f"{name}.tar", count, 50 * count) for name, count in counts.items()]
    arguments = [sys.executable, "-c", KILL_AT_EVERY_OPERATION, str(tmp_path / "out"), where, how, *map(str, sources)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    # Not one of these operations may have been left out: 4 shards with their rows, notes, index, names, removals.
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 30


def test_shard__killed_at_random_moments_ends_with_the_same_bytes(
    tmp_path: Path, make_tar: Callable[..., Path], make_image: Callable[..., bytes]
) -> None:
    sources = [make_tar(tmp_path / "a.tar", 400), tmp_path / "folder"]
    (tmp_path / "folder" / "slide").mkdir(parents=True)
    for index in range(100):
        (tmp_path / "folder" / "slide" / f"{index}_0.png").write_bytes(make_image(1000 + index, kind="PNG"))
    options = ["--name", "same", "--max-count", "10", "--workers", "2"]
    arguments = [*COMMAND, *map(str, sources), *options, "--out"]
    subprocess.run([*arguments, str(tmp_path / "reference")], check=True, capture_output=True)
    expected = _tree(tmp_path / "reference")
    assert len(expected) == 3 + 1 + 50
    random = np.random.default_rng(0)
    kills_with_shards = kills = rounds = 0
    while kills < NUM_KILLS:
        out = tmp_path / f"out-{rounds}"
        done: dict[str, int] = {}
        while not _run_or_kill([*arguments, str(out)], out, len(done) + int(random.integers(0, 12))):
            kills += 1
            assert not (out / "manifest.json").exists() or expected.items() <= _tree(out).items()
            if not (out / "shards").exists():
                before, done = done, _done_shards(out)
                assert before.items() <= done.items()  # none was lost or written again
                kills_with_shards += len(done) > len(before)
        assert _tree(out) == expected
        rounds += 1
    assert kills_with_shards >= NUM_KILLS // 2


def _done_shards(out: Path) -> dict[str, int]:
    """Rows file of each finished shard → when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / ".unfinished").glob("shard-*.arrow")}


def _run_or_kill(arguments: list[str], out: Path, shards: int) -> bool:
    """Whether the command finished before it had `shards` finished shards, at which it is killed."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and (len(list(out.glob(".unfinished/*.arrow"))) < shards or not out.exists()):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL) or b"already holds a dataset" in errors, errors
    return process.returncode != -signal.SIGKILL


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_shard__interrupted_ends_quietly_and_goes_on(
    tmp_path: Path, make_tar: Callable[..., Path], sent: signal.Signals
) -> None:
    source, out = make_tar(tmp_path / "a.tar", 600), tmp_path / "out"
    arguments = [*COMMAND, str(source), "--max-count", "2", "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("write"):
            break
    while not _done_shards(out):
        assert process.poll() is None
    os.killpg(process.pid, sent)
    _, errors = process.communicate()
    assert process.returncode == 75
    assert errors.count("\n") == 1
    assert "interrupted; give the same command again to go on" in errors
    assert not (out / "manifest.json").exists()
    again = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert f"write: {600:,} samples" in again.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "quarantine.jsonl",
        "samples.parquet",
        "shards",
    ]
    assert verify_dataset(out) == []
