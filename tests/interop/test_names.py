"""Which files are ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dinowds.interop.names import is_interop_file, list_interop_files
from tests.interop.conftest import Labelled

OURS = """
shards/a-000000.idx shards/a-000000.tar.idx .nv-meta/.info.json .nv-meta/index.sqlite README.md _info.json
.nv-meta/.index.sqlite.0123456789abcdef.tmp shards/.a-000000.tar.idx.0123456789abcdef.tmp ._info.json.01234567.tmp
"""
OTHERS = """
shards/a-000000.tar shards/notes.txt shards/.idx a.idx shards/x/a.idx .nv-meta/notes /README.md manifest.json
README.md.tmp .nv-meta shards subsets/README.md .nv-meta/sample_loader.py .manifest.json.0123456789abcdef.tmp
"""


@pytest.mark.parametrize("name", OURS.split())
def test_names__of_ours(name: str) -> None:
    assert is_interop_file(name)


@pytest.mark.parametrize("name", OTHERS.split())
def test_names__of_others(name: str) -> None:
    assert not is_interop_file(name)


def test_list__is_all_that_was_written_and_no_more(labelled: Labelled, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(labelled.folder, tmp_path / "patches"))
    before = {"manifest.json", "samples.parquet", "quarantine.jsonl"}
    tars = {f"shards/{tar.name}" for tar in labelled.tars}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert list_interop_files(folder) == sorted(there - before - tars)
    assert len(list_interop_files(folder)) == 15
    (folder / "README.md").write_text("# Our cohort\n")
    (folder / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n")
    assert len(list_interop_files(folder)) == 13
