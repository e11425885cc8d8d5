"""Small models that are known by width and depth, as the real ones are."""

from __future__ import annotations

import pytest

from dinowds.model import head
from dinowds.model.architecture import SIZES
from tests.model.weights.files import BOTTLENECK, HIDDEN, TINY_IMAGE, TINY_REGION


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES["image"], "vit_test", TINY_IMAGE)
    monkeypatch.setitem(SIZES["region"], "hvit_test", TINY_REGION)
    monkeypatch.setattr(head, "HIDDEN_DIM", HIDDEN)
    monkeypatch.setattr(head, "BOTTLENECK_DIM", BOTTLENECK)
