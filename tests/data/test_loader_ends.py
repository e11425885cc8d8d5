"""However a program with loader processes ends, nothing of it stays: no process, no shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import processes_of, started, wait_until_gone

SCRIPT = """
import sys
from dinowds.data import Dataset, Loader, Order
if __name__ == "__main__":
    loader = Loader(Dataset.open(sys.argv[1]), Order(12), num_workers=2, start_method=sys.argv[2])
    for batch in loader:
        if batch.step == 3:
            print("running", flush=True)
        if batch.step == 5 and sys.argv[3] == "break":
            break
    print("over", flush=True)
"""


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("torch_*")}


@pytest.mark.parametrize(
    ("start_method", "end"),
    [
        *(("forkserver", end) for end in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None)),
        ("spawn", signal.SIGINT),
        ("fork", signal.SIGINT),
        ("fork", signal.SIGKILL),
    ],
)
def test_program__leaves_nothing(
    dataset_path: Path, tmp_path: Path, start_method: str, end: signal.Signals | None
) -> None:
    script = tmp_path / f"script_of_{start_method}_{end}.py"
    script.write_text(SCRIPT)
    before = shared_memory()
    arguments = [str(dataset_path), start_method, "break" if end is None else "endless"]
    command = [sys.executable, "-W", "ignore", script, *arguments]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
        processes = processes_of(program.pid)
        if end is not None:
            program.send_signal(end)
        with suppress(subprocess.TimeoutExpired):
            program.wait(timeout=15)
        if program.poll() is None and end == signal.SIGINT:
            program.send_signal(end)  # Python drops a KeyboardInterrupt that comes within a finalizer
        program.wait(timeout=15)
        if end is None:
            assert program.returncode == 0
            assert program.stdout.read() == "over\n"
    wait_until_gone(script.name)
    assert len(processes) > 2
    # Other tests' processes have some too: the second part of a name is the process that made it.
    assert [name for name in shared_memory() - before if int(name.split("_")[1]) in processes] == []


def test_program__works_where_tmpdir_is_too_long_for_sockets(dataset_path: Path, tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / ("long" * 25)
    script.write_text(SCRIPT)
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", script, str(dataset_path), "forkserver", "break"]
    environment = os.environ | {"TMPDIR": str(folder)}
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as program:
        out, errors = program.communicate()
    assert (program.returncode, out, errors) == (0, "running\nover\n", "")
