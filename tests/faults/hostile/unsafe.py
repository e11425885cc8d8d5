"""Loads that run what a file says, for which ruff has no rule; a check of source text."""

from __future__ import annotations

import ast


def unsafe_calls(source: str) -> list[tuple[int, str]]:
    """Line and what is wrong: `allow_pickle` that may be true, `torch.load` that may take more than weights, `shell`.

    Only what stands there counts: a value that is computed is wrong, as are `**options` of `torch.load`.
    """
    if not any(word in source for word in ("allow_pickle", "weights_only", "shell", "load")):
        return []
    tree = ast.parse(source)
    loads = _names_of_torch_load(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [(node.lineno, problem) for problem in _problems(node, loads)]
    return sorted(found)


def _problems(call: ast.Call, loads: set[str]) -> list[str]:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    found = []
    if "allow_pickle" in given and not _is(given["allow_pickle"], False):
        found.append("allow_pickle that may be true")
    is_load = _dotted(call.func) in loads
    if (is_load or "weights_only" in given) and not _is(given.get("weights_only"), True):
        found.append("weights_only that may be false")
    if "shell" in given and not _is(given["shell"], False):
        found.append("shell that may be true")
    return found


def _dotted(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return f"{_dotted(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def _is(value: ast.expr | None, expected: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is expected


def _names_of_torch_load(tree: ast.Module) -> set[str]:
    """What `torch.load` may be called here."""
    names = {"torch.load", "torch.serialization.load", "torch.hub.load_state_dict_from_url"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {f"{name.asname}.load" for name in node.names if name.name == "torch" and name.asname}
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization"):
            names |= {name.asname or name.name for name in node.names if name.name == "load"}
    return names
