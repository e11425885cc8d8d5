"""YAML, whoever wrote it, as plain values."""

from __future__ import annotations

from typing import Any

_MOST_VALUES = 10_000
_DEEPEST = 32
ODD_VALUES = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""What the readers of YAML raise of a value that is none of its type, such as the date 2001-99-99, or lies too deep."""


def parse_yaml(text: str) -> Any:
    """What a YAML text says, in plain values.

    Raises ValueError, whose message is one line: it is no YAML, or, its aliases written out, too deep or too much.
    """
    import yaml

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, *ODD_VALUES) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    _check_extent(content)
    return content


def _check_extent(content: Any) -> None:
    """Aliases make a tree of 10^9 values of a few lines, or one without end."""
    count, left = 0, [(content, 0)]
    while left:
        value, depth = left.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values, or sections deeper than {_DEEPEST}")
        inner = (*value.keys(), *value.values()) if isinstance(value, dict) else value
        if isinstance(value, dict | list | tuple | set):
            left += [(one, depth + 1) for one in inner]
