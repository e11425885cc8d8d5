"""YAML of others as plain values: it calls nothing, reads nothing and does not grow."""

from __future__ import annotations

import re
from typing import Any

from dinowds.errors import ConfigError

_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)
"""Of more than need be: a resolver's name may have references in it."""
_MOST_VALUES = 10_000
"""Of a configuration, counting what aliases repeat; the longest has some hundred."""
_DEEPEST = 32
ODD_VALUES = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""What the readers of YAML raise of a value that is none of its type, such as the date 2001-99-99, or lies too deep."""


def parse_plain(content: bytes, source: str) -> Any:
    """Raises ConfigError, which names `source`, for what is no YAML or not plain."""
    import yaml

    try:
        parsed = yaml.safe_load(content.decode())
    except (yaml.YAMLError, *ODD_VALUES) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{source}: cannot be read as YAML ({reason})") from None
    check_plain(parsed, source)
    return parsed


def check_plain(content: Any, source: str) -> None:
    """Raises ConfigError for what would read the environment (`${oc.env:SECRET}`), or grows without end by aliases."""
    count, left = 0, [(content, 0)]
    while left:
        value, depth = left.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_VALUES:
            raise ConfigError(
                f"{source}: has more than {_MOST_VALUES:,} values, counting those of aliases, or sections deeper than "
                f"{_DEEPEST}"
            )
        if isinstance(value, dict):
            left += [(one, depth + 1) for one in (*value, *value.values())]
        elif isinstance(value, list | tuple | set):
            left += [(one, depth + 1) for one in value]
        elif isinstance(value, str) and _RESOLVER.search(value):
            raise ConfigError(f"{source}: {value[:100]!r} calls a resolver, which is not done; write the value itself")
