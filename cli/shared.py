"""What the commands share: consoles, JSON output and the form of an error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def printable(text: str) -> str:
    """Names come from files: control characters are escaped, so that they cannot steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_notice(message: str) -> None:
    """One line on stderr."""
    print(f"dinowds: {printable(message)}", file=sys.stderr)  # noqa: T201


def print_error(message: str) -> None:
    """One line on stderr that says so."""
    print_notice(f"error: {message}")


def print_json(content: Any) -> None:
    """JSON alone on stdout; what could steer a terminal is escaped as JSON has it."""
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    print(re.sub("[^ -~\n]", lambda match: _json_escaped(match[0]), text))  # noqa: T201


def _json_escaped(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place] << 8 | units[place + 1]:04x}" for place in range(0, len(units), 2))


@contextmanager
def interruptible(to: str = "go on") -> Iterator[None]:
    """Say how to go on after a Ctrl-C; Typer would end without a word."""
    from dinowds.errors import Interrupted

    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; give the same command again to {to}") from None
