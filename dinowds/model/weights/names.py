"""From the names in a file to those of our modules. Names alone decide, never the order of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from dinowds.errors import CheckpointError

_T = TypeVar("_T")

_WRAPPERS = ("module.", "backbone.", "_orig_mod.")
"""DistributedDataParallel, DINO's wrapper for several crops, torch.compile; around each other in any order."""
_OLD_HEADS = {"projection_head.": "mlp.", "prototypes.": "last_layer."}
_WEIGHT_NORM = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}
_HEAD = "head."


def split_names(path: str, tensors: Mapping[str, _T]) -> tuple[dict[str, _T], dict[str, _T]]:
    """Backbone and head, without wrappers and `head.`, under the names of `build_backbone` and `DinoHead`.

    Raises:
        CheckpointError: two of the file's names are one.
    """
    found: dict[str, str] = {}
    backbone: dict[str, _T] = {}
    head: dict[str, _T] = {}
    for original, value in tensors.items():
        name = full_name(original)
        if name in found:
            both = shorten([found[name], original])
            raise CheckpointError(f"{path}: holds {shorten([name])} twice, as {both}")
        found[name] = original
        if name.startswith(_HEAD):
            head[name[len(_HEAD) :]] = value
        else:
            backbone[name] = value
    return backbone, head


def full_name(name: str) -> str:
    """`module.backbone.blocks.0…` → `blocks.0…`; `module.head.mlp.0…` and `projection_head.0…` → `head.mlp.0…`."""
    inner = _unwrap(name)
    in_head = _unwrap(inner.removeprefix(_HEAD))
    for old, new in _OLD_HEADS.items():
        if in_head.startswith(old):
            return _HEAD + _WEIGHT_NORM.get(renamed := new + in_head[len(old) :], renamed)
    return _HEAD + _WEIGHT_NORM.get(in_head, in_head) if inner.startswith(_HEAD) else inner


def _unwrap(name: str) -> str:
    while wrapper := next((w for w in _WRAPPERS if name.startswith(w)), None):
        name = name[len(wrapper) :]
    return name


def describe_mismatch(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """One line that names what does not fit; '' where all does."""
    reshaped = [
        f"{name} {list(found[name])} in place of {list(expected[name])}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]
    parts = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": reshaped,
    }
    return "; ".join(f"{len(names)} {what}: {shorten(names)}" for what, names in parts.items() if names)


def shorten(names: list[str], limit: int = 4) -> str:
    """One line of the first few. A file can have names of any length and content."""
    shown = ["".join(c if c.isprintable() else "?" for c in name[:80]) for name in names[:limit]]
    return ", ".join(shown) + (", …" if len(names) > limit else "")
