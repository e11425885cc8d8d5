"""The full form: `make faults`, or `python -m tests.faults.full ROOM...` for some of the folders beside this file.

Runs the tests of each room with all they can do. Where all pass, its figures go to last_full_run.json, with date,
minutes, machine and commit; docs/reliability.md shows them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from tests.faults.form import tallied
from tests.faults.page import PAGE, RESULT, read_result, with_figures

HERE = Path(__file__).parent
PROCESSES = os.environ.get("DINOWDS_FAULTS_PROCESSES", "2")
LONGEST = 7200
"""Seconds that a test may take."""


def main(rooms: list[str]) -> int:
    all_rooms = sorted(path.parent.name for path in HERE.glob("*/__init__.py"))
    if unknown := sorted({*rooms} - {*all_rooms}):
        sys.exit(f"no such rooms: {', '.join(unknown)}; expected some of {', '.join(all_rooms)}")
    failed = [room for room in rooms or all_rooms if not run(room)]
    if failed:
        sys.exit(f"not all passed in {', '.join(failed)}: their figures were not written")
    return 0


def run(room: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tally"
        path.touch()
        environment = os.environ | {"DINOWDS_FAULTS": "full", "DINOWDS_FAULTS_TALLY": str(path)}
        begin = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-v", "-n", PROCESSES, "-o", f"timeout={LONGEST}", str(HERE / room)]
        has_passed = subprocess.run(command, env=environment, check=False).returncode == 0
        if has_passed:
            write(room, tallied(path), time.monotonic() - begin)
    return has_passed


def write(room: str, figures: dict[str, int], seconds: float) -> None:
    content, system = read_result(), f"{platform.system()} {platform.machine()}"
    content[room] = {
        "date": date.today().isoformat(),
        "minutes": round(seconds / 60),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True, cwd=HERE).strip(),
        "machine": f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}",
        "figures": figures,
    }
    RESULT.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    PAGE.write_text(with_figures(PAGE.read_text(), content))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
