"""What the commands share: consoles, JSON output and the form of an error."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_error(message: str) -> None:
    """One line on stderr. Control characters from file names are escaped, so they cannot steer the terminal."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    print(f"dinowds: error: {line}", file=sys.stderr)  # noqa: T201


def print_json(content: Any) -> None:
    """JSON alone on stdout."""
    print(json.dumps(content, indent=1, ensure_ascii=False, default=str))  # noqa: T201
