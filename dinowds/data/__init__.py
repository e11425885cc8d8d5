"""Datasets on disk and the stream of their samples; usable without the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinowds.data.dataset import Dataset
    from dinowds.data.loader import Loader
    from dinowds.data.order.make import make_plan
    from dinowds.data.order.plan import Order
    from dinowds.data.source import PlanSource
    from dinowds.world import World

__all__ = ["Dataset", "Loader", "Order", "PlanSource", "World", "make_plan"]

_HOMES = {
    "Dataset": "dinowds.data.dataset",
    "Loader": "dinowds.data.loader",
    "Order": "dinowds.data.order.plan",
    "PlanSource": "dinowds.data.source",
    "World": "dinowds.world",
    "make_plan": "dinowds.data.order.make",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used: the plan alone needs no torch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
