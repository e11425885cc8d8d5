"""Fuzz one target for some seconds: `python -m tests.faults.fuzz.run_target NAME --seconds N [--corpora DIR]`.

In a process of its own, as what is looked for may end it. What it finds lies in `--findings`; put it to
`tests/faults/fuzz/findings/NAME/` with the mended code.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.fuzz.targets import TARGETS

START = 300
"""Seconds that the process has beyond those of fuzzing: to import, to read the corpus, and to end."""
ROOM_MB = 3000
INPUT_SECONDS = 60
"""What takes longer is a finding."""


class Fuzzed(NamedTuple):
    """`executions` of the target, `edges` of instrumented code that were reached, inputs that are `findings`."""

    executions: int
    edges: int
    returncode: int
    findings: list[Path]
    output: str


def fuzz(names: Sequence[str], seconds: int, findings: Path, corpora: Path | None = None) -> dict[str, Fuzzed]:
    """Each target in its turn, for so many seconds.

    Args:
        findings: folder, made; what is found lies in `findings/NAME`.
        corpora: folder of `NAME/`, inputs to begin with, which grow; None for the seeds alone.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        inputs = corpora or Path(folder) / "corpora"
        inputs.mkdir(parents=True, exist_ok=True)
        findings.mkdir(parents=True, exist_ok=True)
        before = set(findings.iterdir())
        options = [
            f"-max_total_time={seconds}", f"-rss_limit_mb={ROOM_MB}", f"-timeout={INPUT_SECONDS}", "-max_len=16384",
            "-print_final_stats=1", f"-artifact_prefix={findings}/",
        ]  # fmt: skip
        command = [sys.executable, "-m", "tests.faults.fuzz.inside", ",".join(names), str(inputs), *options]
        environment = os.environ | {"TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        limit = len(names) * seconds + START
        process = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False, env=environment
        )  # fmt: skip
        codes = dict(line.split() for line in process.stdout.splitlines())
        new = sorted(set(findings.iterdir()) - before)
        return {name: _told(inputs / f"{name}.log", int(codes.get(name, -1)), new) for name in names}


def _told(log: Path, returncode: int, findings: list[Path]) -> Fuzzed:
    output = log.read_text(errors="replace") if log.exists() else ""
    executions = _number(r"stat::number_of_executed_units:\s*(\d+)", output)
    new = [path for path in findings if path.name in output]
    return Fuzzed(executions, _number(r"cov: (\d+)", output), returncode, new, output)


def _number(pattern: str, output: str) -> int:
    """The last one that was said; 0 for none."""
    return int((re.findall(pattern, output) or ["0"])[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpora", type=Path)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    found = fuzz([arguments.name], arguments.seconds, arguments.findings, arguments.corpora)[arguments.name]
    print(f"{TARGETS[arguments.name][1]}: {found.executions} executions, {found.edges} edges")  # noqa: T201
    if found.returncode:
        print(found.output[-4000:])  # noqa: T201
        print(f"ended with {found.returncode}; inputs: {', '.join(map(str, found.findings)) or 'none'}")  # noqa: T201
    return 1 if found.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
