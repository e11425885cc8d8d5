"""Files that are whole or absent, and locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dinowds.files import atomic_write, cache_folder, fsync_folder, is_locked, lock_file, open_regular, waiting_lock
from tests.support import started

TRY_LOCK = "import sys, pathlib, dinowds.files as f\nwith f.lock_file(pathlib.Path(sys.argv[1])): pass"


def other_process_can_lock(path: Path) -> bool:
    result = subprocess.run([sys.executable, "-c", TRY_LOCK, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0 or "BlockingIOError" in result.stderr
    return result.returncode == 0


def test_lock__keeps_other_processes_out_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path) as is_locked:
        assert is_locked
        assert not other_process_can_lock(path)
        with pytest.raises(BlockingIOError), lock_file(path):
            pass
    assert other_process_can_lock(path)
    with lock_file(path):
        path.unlink()
        assert other_process_can_lock(path)  # another file by now


def test_lock__of_a_file_that_its_holder_removed_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    flock = fcntl.flock

    def remove_first(descriptor: int, operation: int) -> None:
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with pytest.raises(BlockingIOError, match="has just removed the lock"), lock_file(path):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_lock__on_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock_file(tmp_path / "lock") as is_locked:
        assert not is_locked
    assert len(caplog.records) == 1
    assert "this file system has no locks" in caplog.text


def test_fsync_folder__tolerates_file_systems_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: int) -> None:
        def fsync(_: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    fsync_folder(tmp_path)
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        fsync_folder(tmp_path)


def test_atomic_write__has_its_name_when_its_bytes_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when it returns the name is there too, whatever a power cut takes away."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        events.append("folder on disk" if stat.S_ISDIR(found.st_mode) else f"{found.st_size} bytes on disk")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        events.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"four")
    assert events == ["4 bytes on disk", "renamed", "folder on disk"]


def test_atomic_write__writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with atomic_write(path) as one, atomic_write(path) as other:  # of one process, as in two containers
        one.write(b"the first one")
        other.write(b"second")
    assert path.read_bytes() == b"the first one"  # who ends last
    assert list(tmp_path.iterdir()) == [path]


def test_cache_folder__of_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DINOWDS_CACHE", "SLURM_TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/.cache/dinowds")
    monkeypatch.delenv("HOME")

    def unknown(_: int) -> None:
        raise KeyError("uid")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert cache_folder().name == f"dinowds-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/dinowds")


def test_open_regular__waits_for_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="Not a regular file"):
            open_regular(path)
    (tmp_path / "x").write_bytes(b"hello")
    with open(open_regular(tmp_path / "x"), "rb") as file:
        assert file.read() == b"hello"


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_waiting_lock__ends_with_a_killed_holder_whose_child_lives(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys\nfrom dinowds.files import waiting_lock\n"
        "with waiting_lock(pathlib.Path(sys.argv[1])):\n"
        "    here, there = os.pipe()\n"
        "    if (child := os.fork()) == 0:\n        os.write(there, b'x')\n        signal.pause()\n"
        "    os.read(here, 1)\n    print(child, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    with started(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        holder.wait()
    try:
        with lock_file(tmp_path / "lock") as is_locked:  # raises where it would have to wait
            assert is_locked
        with waiting_lock(tmp_path / "lock"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_is_locked__tells_and_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert is_locked(path) is False
    assert not path.exists()
    with lock_file(path):
        assert is_locked(path)
        assert is_locked(path)
    assert is_locked(path) is False
    assert other_process_can_lock(path)
    assert is_locked(tmp_path / ("x" * 300)) is None
