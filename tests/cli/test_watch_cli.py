"""`dinowds watch`: the view at any width, once where there is no terminal, live until q or Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import termios
from pathlib import Path

import pytest
from dinowds.cli.watch_view import FIGURES, View, sparkline
from rich.console import Console

from dinowds.train.history import History
from tests.cli.conftest import Call
from tests.support import dinowds_command, started
from tests.train.test_history import append, line, write_run

STEPS = range(10, 251, 10)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """25 lines of a run that is stuck, an evaluation, two bad samples, a log with an escape sequence."""
    run = write_run(tmp_path / "run")
    append(run, *(line(step, kl=step / 1000, waiting_share=0.013, bad_samples=2) for step in STEPS))
    append(run, {"step": 250, "knn/teacher/accuracy": 0.55, "knn/student/accuracy": 0.5})
    (run / "train.log").write_text("2026-01-01 00:00:00  going \x1b[31mon\n")
    return run


def shown(run: Path, width: int, colour: bool = False) -> str:
    history = History(run, [row.figure for row in FIGURES])
    history.advance()
    snapshot = history.snapshot()
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system="standard" if colour else None)
    console.print(View(snapshot, (snapshot.written_at or 0.0) + 75))
    return screen.getvalue()


@pytest.mark.parametrize(
    ("values", "width", "curve"),
    [
        ([], 8, ""),
        ([1.0], 0, ""),
        ([3.0], 8, "▁"),
        ([2.0, 2.0], 8, "▁▁"),
        ([0.0, 7.0], 8, "▁█"),
        ([*map(float, range(8))], 8, "▁▂▃▄▅▆▇█"),
        ([*map(float, range(8))], 4, "▁▃▆█"),
        ([*map(float, range(9))], 2, "▁█"),
    ],
)
def test_sparkline(values: list[float], width: int, curve: str) -> None:
    assert sparkline(values, width) == curve


@pytest.mark.parametrize("width", [20, 40, 63, 64, 80, 200])
def test_view__fits_and_says_it_all_at_any_width(run: Path, width: int) -> None:
    text = shown(run, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for part in ("epoch 3/3  step 250", "KL", "last", "2 bad"):
        assert part in text, part
    if width >= 40:
        flat = " ".join(text.split())
        for part in ("not running, last line 0:01:15 ago", "83%", "left 0:01:40", "kNN teacher 55.0%", "waiting 1.3%",
                     "loss 4.852 lr 1.00e-03", "stuck at ln k: loss 4.852", "student.use_bn_in_head=true",
                     "last checkpoint: none yet"):  # fmt: skip
            assert part in flat, part
    assert ("0.010 to 0.250" in text) == (width >= 64)
    assert "\x1b" not in text


def test_view__colours_are_no_part_of_what_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = shown(run, 80, colour=True)
    assert "\x1b[33m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(code in shown(run, 80, colour=True) for code in ("\x1b[3", "\x1b[1;3", "\x1b[9"))


def test_view__before_the_first_figures(tmp_path: Path) -> None:
    text = shown(write_run(tmp_path / "new"), 60)
    for part in ("not running, no figures yet", "epoch 1/3  step 0", "last checkpoint: none yet"):
        assert part in text, part


def test_watch__prints_once_where_stdout_is_no_terminal(call_dinowds: Call, run: Path) -> None:
    for options in ((), ("--once",)):
        code, out, err = call_dinowds("watch", run, *options)
        assert (code, err) == (0, "")
        assert out.count("kNN teacher") == 1
        assert r"going \x1b[31mon" in out


def test_watch__json_alone(call_dinowds: Call, run: Path) -> None:
    code, out, _ = call_dinowds("watch", run, "--json")
    content = json.loads(out)
    assert code == 0
    assert (content["status"], content["step"], content["num_steps"]) == ("not running", 250, 300)
    assert content["findings"][0]["name"] == "stuck_at_ln_k"
    assert content["figures"]["knn/teacher/accuracy"] == 0.55
    assert content["checkpoint"] is None


def test_watch__of_no_run_is_one_line(call_dinowds: Call, tmp_path: Path) -> None:
    code, out, err = call_dinowds("watch", tmp_path / "nothing")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{tmp_path / 'nothing'}: has no config.yaml" in err


@pytest.mark.parametrize("end", ["q", "SIGINT"])
def test_watch__follows_on_a_terminal_until_it_is_told_to_end(run: Path, end: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    command, screen = dinowds_command("watch", run), Screen(ours)
    with started(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        screen.wait_for("250/300")
        append(run, line(260))
        screen.wait_for("260/300")
        if end == "q":
            os.write(ours, b"q")
        else:
            process.send_signal(signal.SIGINT)
        screen.wait_for("\x1b[?1049l")
        screen.wait_for("260/300")  # the last view stays
        assert process.wait() == 0
        assert process.stderr
        assert process.stderr.read() == ""
    assert "\x1b[?1049h" in screen.text  # a screen of its own, and back
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


class Screen:
    """What a terminal shows, read from its other end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.text, self._seen = descriptor, "", 0

    def wait_for(self, part: str) -> None:
        """Until it is there, after what was waited for before."""
        while (place := self.text.find(part, self._seen)) < 0:
            assert select.select([self._descriptor], [], [], 120)[0], f"no {part!r} in {self.text[self._seen :]!r}"
            self.text += os.read(self._descriptor, 1 << 16).decode(errors="replace")
        self._seen = place + len(part)
