"""`dinowds watch`: a run folder → a view of where the run stands, on a terminal."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import print_json

if TYPE_CHECKING:
    from rich.console import Console

    from dinowds.train.history import History

_SECONDS = 1.0


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder: the --out of 'dinowds train'.")],
    once: Annotated[
        bool, typer.Option("--once", help="Print one view and end, as where stdout is no terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One view as JSON alone on stdout.")] = False,
) -> None:
    """Watch a run, at work or ended: progress, newest figures, curves, what the monitor finds, the last checkpoint.

    The view is new every second; q or Ctrl-C ends it. It reads the folder alone, on any host that sees it.
    """
    from dinowds.train.history import History

    from .watch_view import FIGURES, View, view_json

    history = History(run, [row.figure for row in FIGURES])
    try:
        history.advance()
        if as_json:
            print_json(view_json(history.snapshot()))
            return
        from rich.console import Console

        console = Console()
        if once or not sys.stdout.isatty():
            console.print(View(history.snapshot(), time.time()))
            return
        _follow(history, console)
    except KeyboardInterrupt:
        return


def _follow(history: History, console: Console) -> None:
    """On a screen of its own; the last view stays on the terminal."""
    from rich.live import Live

    from .watch_view import View

    view = View(history.snapshot(), time.time())
    try:
        with _keys() as wait_for_key, Live(view, console=console, screen=True, auto_refresh=False) as live:
            live.refresh()
            while wait_for_key(_SECONDS) not in ("q", "Q"):
                history.advance()
                view = View(history.snapshot(), time.time())
                live.update(view, refresh=True)
    finally:
        console.print(view)


@contextmanager
def _keys() -> Iterator[Callable[[float], str | None]]:
    """A function that waits so many seconds for a key; None without one, q after Ctrl-C and where the terminal is gone.

    Ctrl-C is waited for like a key: an exception between two writes of the view would leave the terminal half changed.
    """
    import termios
    import tty

    terminal = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = termios.tcgetattr(terminal) if terminal is not None else None
    interrupts, interrupted = os.pipe()
    handler = signal.getsignal(signal.SIGINT)

    def end(*_: object) -> None:
        os.write(interrupted, b"q")
        signal.signal(signal.SIGINT, handler)  # a second one does not wait

    def wait(seconds: float) -> str | None:
        sources = [interrupts] if terminal is None else [interrupts, terminal]
        ready, _, _ = select.select(sources, [], [], seconds)
        return (os.read(ready[0], 1).decode("ascii", "replace") or "q") if ready else None

    signal.signal(signal.SIGINT, end)
    try:
        if terminal is not None:
            tty.setcbreak(terminal)
        yield wait
    finally:
        if terminal is not None and before is not None:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        signal.signal(signal.SIGINT, handler)
        os.close(interrupts)
        os.close(interrupted)
