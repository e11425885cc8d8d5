"""The Python of the pages runs in the small world; what does not is in `ELSEWHERE`, and compiles at least."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.docs.pages import IDS, PAGES, blocks

ELSEWHERE = {
    ("README.md", ""): "tests/data/test_library.py",
    ("readers.md", ""): "tests/cli/test_index_cli.py",
    ("subsets.md", ""): "tests/cli/test_subset_cli.py",
    ("weights.md", "timm.create_model("): "the call that `dinowds export` checks its exports with",
    ("weights.md", "model.load_state_dict("): "a model of the original DINO's code, which is no package",
    ("weights.md", "get_vit4k("): "a model of HIPT's code, which is no package",
}
"""Page and a part of the block → where it runs, or why it cannot."""

GIVEN: dict[str, dict[str, Any]] = {
    "crops.md": {"image": np.zeros((256, 256, 3), np.uint8)},
    "attention.md": {"images": torch.zeros(2, 3, 32, 32)},
}
"""Names that a page takes as given."""


def is_elsewhere(page: Path, text: str) -> bool:
    return any(page.name == name and part in text for name, part in ELSEWHERE)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python__compiles(page: Path) -> None:
    for _, text in blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(not is_elsewhere(page, text) for _, text in blocks(page, "python"))],
    ids=lambda page: page.name,
)
@pytest.mark.usefixtures("own_world")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the pages are brief about closing files
def test_python__runs(page: Path) -> None:
    """The blocks of a page one after the other, with the names that earlier ones made."""
    names: dict[str, Any] = dict(GIVEN.get(page.name, {}))
    for _, text in blocks(page, "python"):
        if not is_elsewhere(page, text):
            exec(compile(text.replace("DATASET/", "data/patches/"), page.name, "exec"), names)  # noqa: S102 - ours
    names.clear()
    gc.collect()


def test_elsewhere__is_on_the_pages() -> None:
    for name, part in ELSEWHERE:
        (page,) = [page for page in PAGES if page.name == name]
        assert any(part in text for _, text in blocks(page, "python")), (name, part)
