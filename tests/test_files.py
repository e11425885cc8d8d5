"""Files that are whole or absent, and locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dinowds.files import fsync_folder, lock_file

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
