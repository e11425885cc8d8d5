"""YAML of others as plain values: it calls nothing, reads nothing and does not grow."""

from __future__ import annotations

import re
from typing import Any

from dinowds.errors import ConfigError

_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)
"""Of more than need be: a resolver's name may have references in it."""
_MOST_VALUES = 100_000
"""Of a configuration, counting what aliases repeat; the longest has some hundred."""


def parse_plain(content: bytes, source: str) -> Any:
    """Raises ConfigError, which names `source`, for what is no YAML or not plain."""
    import yaml

    try:
        parsed = yaml.safe_load(content.decode())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{source}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    check_plain(parsed, source)
    return parsed


def check_plain(content: Any, source: str) -> None:
    """Raises ConfigError for what would read the environment (`${oc.env:SECRET}`), or grows without end by aliases."""
    left, seen = [content], 0
    while left:
        value, seen = left.pop(), seen + 1
        if seen > _MOST_VALUES:
            raise ConfigError(f"{source}: has more than {_MOST_VALUES:,} values, counting those of aliases")
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and _RESOLVER.search(value):
            raise ConfigError(f"{source}: {value[:100]!r} calls a resolver, which is not done; write the value itself")
