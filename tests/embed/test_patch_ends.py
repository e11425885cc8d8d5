"""`dinowds embed patch` by several ranks, and however it ends."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinowds.embed.reader import read_features
from tests.support import dinowds_command, wait_until_gone

Command = Callable[..., list[str]]


@pytest.fixture
def command(coded_path: Path, weights_path: Path) -> Command:
    """(output folder, options) → the command line, with small batches in float32."""

    def make(out: Path, *options: object) -> list[str]:
        given = ("--dtype", "float32", "--batch-size", 3, "--workers", 0, *options)
        return dinowds_command("embed", "patch", coded_path, "--checkpoint", weights_path, "--out", out, *given)

    return make


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."}


@pytest.fixture(scope="module")
def expected(coded_path: Path, weights_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "features"
    options = ("--dtype", "float32", "--batch-size", 3, "--workers", 0)
    result = run(dinowds_command("embed", "patch", coded_path, "--checkpoint", weights_path, "--out", out, *options))
    assert result.returncode == 0, result.stderr
    return contents(out)


def test_embed__killed_at_any_moment_goes_on_to_the_same_bytes(
    command: Command, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out, moments = tmp_path / "features", random.Random(0)
    slow = ("--batch-size", 3, "--workers", 1)
    kills = 0
    for _ in range(4):
        with subprocess.Popen(command(out, *slow), stderr=subprocess.DEVNULL, start_new_session=True) as process:
            while process.poll() is None and not out.exists():
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.3))
            if process.poll() is None:
                process.kill()
                kills += 1
        assert (out / "features.json").exists() or not (kills and not (out / ".unfinished.json").exists())
        if process.returncode == 0:
            break
    assert kills
    wait_until_gone(str(out))
    result = run(command(out, *slow))
    assert result.returncode == 0, result.stderr
    assert contents(out) == expected
    assert sorted(path.name for path in out.glob(".*")) == [".lock"]


def test_embed__two_ranks_by_nproc_give_the_same_bytes(
    command: Command, expected: dict[str, bytes], tmp_path: Path
) -> None:
    result = run(command(tmp_path / "features", "--nproc", 2))
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "features") == expected
    assert len(read_features(tmp_path / "features")) == 60


def ranks(command: list[str], size: int) -> list[subprocess.Popen[str]]:
    """One process a rank, as a job of independent tasks starts them: nothing but RANK and WORLD_SIZE."""
    environments = [{**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=environment, **pipes) for environment in environments]


@pytest.mark.parametrize("size", [2, 7])
def test_embed__ranks_by_environment_give_the_same_bytes(
    command: Command, expected: dict[str, bytes], tmp_path: Path, size: int
) -> None:
    out = tmp_path / "features"
    for process in ranks(command(out), size):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert contents(out) == expected


def test_embed__rank_1_alone_does_its_shards_and_rank_0_the_rest(
    command: Command, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Ranks need not run at the same time, once rank 0 has begun."""
    out = tmp_path / "features"
    first, second = ranks(command(out), 2)
    while not (out / ".unfinished.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.communicate()
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert (out / "features-000001.parquet").exists()
    assert not (out / "features.json").exists()
    result = run(command(out), env={**os.environ, "RANK": "0", "WORLD_SIZE": "2"})
    assert result.returncode == 0, result.stderr
    assert contents(out) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("nproc", [1, 2])
def test_embed__signal_ends_it_in_one_line(
    command: Command, expected: dict[str, bytes], tmp_path: Path, number: signal.Signals, nproc: int
) -> None:
    out = tmp_path / "features"
    # A batch of one image is slow enough that the signal comes before the end.
    with subprocess.Popen(
        command(out, "--nproc", nproc), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while process.poll() is None and not out.exists():
            time.sleep(0.002)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.stderr
        errors = process.stderr.read()
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert errors.count("dinowds:") == 1
    assert "same command again to go on" in errors
    result = run(command(out))
    assert result.returncode == 0, result.stderr
    assert contents(out) == expected


def test_embed__full_disk_is_one_line(command: Command, expected: dict[str, bytes], tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does: in the middle of a write."""
    out = tmp_path / "features"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))

    result = run(command(out), preexec_fn=limit)
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("dinowds:")]
    assert lines == [
        f"dinowds: error: {out / 'features-000000.parquet'}: cannot be written (File too large); make room there, or "
        "let this user write there, and give the same command again to go on"
    ]
    assert "Traceback" not in result.stderr
    assert [path.name for path in out.glob("[!.]*")] == []
    assert run(command(out)).returncode == 0
    assert contents(out) == expected
