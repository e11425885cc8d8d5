"""`dinowds embed patch` by several ranks, and however it ends."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from dinowds.embed.patches.embed import embed_patches
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.patches.reader import read_features
from dinowds.errors import DinowdsError
from tests.support import dinowds_command, started, wait_until_gone

Start = Callable[..., ForkServerProcess]
_SECONDS = 300


@pytest.fixture(scope="module")
def start(coded_path: Path, weights_path: Path) -> Start:
    """(output folder, rank, world size) → a process that embeds, told RANK and WORLD_SIZE alone.

    From a fork server that has imported torch once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dinowds.embed.patches.embed"])

    def begin(out: Path, rank: int = 0, size: int = 1, target: Callable[..., None] = as_rank) -> ForkServerProcess:
        options = PatchOptions(str(weights_path), dtype="float32", batch_size=3, workers=0)
        process = context.Process(target=target, args=(str(coded_path), out, options, rank, size))
        process.start()
        return process

    return begin


def as_rank(data: str, out: Path, options: PatchOptions, rank: int, size: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    embed_patches(data, out, options)


def on_full_disk(data: str, out: Path, options: PatchOptions, _rank: int, _size: int) -> None:
    """From the second shard on. A limit on the size of files fails as a full disk does: in the middle of a write."""

    def report(done: int, _total: int) -> None:
        if done > 13:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    try:
        embed_patches(data, out, options, report)
    except DinowdsError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        out.with_suffix(".error").write_text(str(error))


def ended(process: ForkServerProcess) -> int | None:
    process.join(_SECONDS)
    return process.exitcode


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."}


@pytest.fixture(scope="module")
def expected(start: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "features"
    assert ended(start(out)) == 0
    return contents(out)


@pytest.mark.parametrize("size", [2, 7])
def test_embed__ranks_by_environment_give_the_same_bytes(
    start: Start, expected: dict[str, bytes], tmp_path: Path, size: int
) -> None:
    processes = [start(tmp_path / "features", rank, size) for rank in reversed(range(size))]
    assert [ended(process) for process in processes] == [0] * size
    assert contents(tmp_path / "features") == expected


def test_embed__ranks_need_not_run_at_the_same_time(start: Start, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "features"
    first = start(out, 0, 2)
    while len(list(out.glob("*.parquet"))) < 3:
        assert first.is_alive()
    first.kill()
    assert ended(first) == -signal.SIGKILL
    assert not (out / "features-000001.parquet").exists()
    assert ended(start(out, 1, 2)) == 0
    assert (out / "features-000003.parquet").exists()
    assert not (out / "features.json").exists()
    assert ended(start(out, 0, 2)) == 0
    assert contents(out) == expected


def test_embed__full_disk_is_one_line_and_leaves_what_is_whole(
    start: Start, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "features"
    assert ended(start(out, target=on_full_disk)) == 0
    assert out.with_suffix(".error").read_text() == (
        f"{out / 'features-000001.parquet'}: cannot be written (File too large); make room there, or let this user "
        "write there, and give the same command again to go on"
    )
    assert [path.name for path in out.glob("[!.]*")] == ["features-000000.parquet"]
    assert not list(out.glob(".*.tmp"))
    assert ended(start(out)) == 0
    assert contents(out) == expected


def command(coded_path: Path, weights_path: Path, out: Path, *options: object) -> list[str]:
    given = ("--checkpoint", weights_path, "--out", out, "--dtype", "float32", "--batch-size", 3)
    return dinowds_command("embed", "patch", coded_path, *given, *options)


def test_embed__two_ranks_by_nproc_give_the_same_bytes(
    coded_path: Path, weights_path: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "features"
    arguments = command(coded_path, weights_path, out, "--nproc", 2, "--workers", 1)
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert result.returncode == 0, result.stderr
    assert contents(out) == expected
    assert len(read_features(out)) == 60


@pytest.mark.parametrize(("nproc", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_embed__signal_ends_it_in_one_line(
    coded_path: Path, weights_path: Path, tmp_path: Path, nproc: int, number: signal.Signals
) -> None:
    """Ctrl-C reaches all processes of a terminal; a batch system's SIGTERM perhaps one."""
    out = tmp_path / "features"
    arguments = command(coded_path, weights_path, out, "--nproc", nproc, "--workers", 1)
    with started(arguments, stderr=subprocess.PIPE, start_new_session=True) as process:
        while process.poll() is None and not out.exists():
            time.sleep(0.002)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        assert process.stderr
        errors = process.stderr.read()
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert errors.count("dinowds:") == 1
    assert "same command again to go on" in errors
    assert not (out / "features.json").exists()
    wait_until_gone(str(out))
