"""Parts of region grids as a source: what was written comes back, and is sharded as a dataset of regions."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.store.store import open_store
from dinowds.errors import SourceError
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.shard.sources.layouts import LAYOUTS, grids, open_sources
from dinowds.shard.sources.layouts.grids import Grid, Refused, finish_parts, has_part, write_part
from tests.shard.sources.layouts import list_all, open_one, payloads

OPTIONS = ShardOptions(layout="grids", key_pattern="")


def _grid(seed: int, name: str, cohort: str = "a", label: str | None = None, key: str | None = None) -> Grid:
    cells = np.random.default_rng(seed).standard_normal((3, 3, 4)).astype(np.float16)
    cells[seed % 3, 1] = np.nan
    return Grid(cells, name, key, "ö", seed, -seed, label, cohort)


FOUND: list[list[Grid | Refused]] = [
    [_grid(0, "ö/0_0"), Refused("patch", "off"), _grid(1, "ö/1_-1", "b", "tumour")],
    [],
    [_grid(2, "ö/0_0", "b"), _grid(3, "k3", key="k3"), Refused("other", "off")],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, found in enumerate(FOUND):
        assert not has_part(tmp_path, number)
        write_part(tmp_path, number, found)
        assert has_part(tmp_path, number)
    assert not grids.recognises(tmp_path)
    finish_parts(tmp_path, len(FOUND), "datasets/patches", {"feature_dim": 4, "missing_cells": 0})
    return tmp_path


def test_parts__come_back(folder: Path) -> None:
    source = open_one(grids, folder)
    assert {file.path for file in source.files} == {"datasets/patches"}
    for number, (found, (items, content)) in enumerate(zip(FOUND, list_all(grids, source), strict=True)):
        expected = [one for one in found if isinstance(one, Grid)]
        for one, payload in zip(expected, payloads(items, content), strict=True):
            np.testing.assert_array_equal(np.load(io.BytesIO(payload)), one.cells)
        assert [name.decode() for name in items.names.to_pylist()] == [f"{one.name}.npy" for one in expected]
        refused = [(one.name.encode(), one.reason) for one in found if isinstance(one, Refused)]
        assert [line[1:] for line in items.quarantine] == refused
        with tarfile.open(folder / f"grids-{number:06d}.tar") as tar:
            assert len(tar.getmembers()) == len(expected)


def test_dataset_of_parts(folder: Path, tmp_path: Path) -> None:
    manifest = build_dataset([folder], tmp_path / "out", OPTIONS)
    assert (manifest.kind, manifest.cohorts, manifest.label_names) == ("region", {"a": 2, "b": 2}, ("tumour",))
    assert manifest.quarantined == {"off": 2}
    assert manifest.metadata == {"feature_dim": 4, "missing_cells": 0}
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == ["datasets/patches"] * 2
    dataset = Dataset.open(tmp_path / "out")
    rows = dataset.columns(["key", "cohort", "slide", "x", "y", "source", "source_name"]).to_pylist()
    wanted = {(one.cohort, one.x): one for found in FOUND for one in found if isinstance(one, Grid)}
    store = open_store(dataset)
    for sample, row in zip(dataset, rows, strict=True):
        one = wanted.pop((row["cohort"], row["x"]))
        np.testing.assert_array_equal(np.load(io.BytesIO(store.read(sample))), one.cells)
        assert (row["slide"], row["y"], row["source_name"]) == (one.slide, one.y, one.name)
        assert row["source"] == "datasets/patches"
    assert not wanted
    store.close()
    assert len({row["key"] for row in rows}) == 4  # two have one name, in two cohorts
    assert "k3" in {row["key"] for row in rows}


def test_cells_that_are_nan_in_part__are_quarantined(tmp_path: Path) -> None:
    half, empty = _grid(0, "half"), _grid(1, "empty")
    half.cells[2, 2, 1] = np.nan
    empty.cells[:] = np.nan
    write_part(tmp_path, 0, [half, empty, _grid(2, "good")])
    finish_parts(tmp_path, 1, "x", {})
    manifest = build_dataset([tmp_path], tmp_path / "out", OPTIONS)
    assert (manifest.num_samples, sum(manifest.quarantined.values())) == (1, 2)


def test_part__of_a_writer_that_fails_is_none(tmp_path: Path) -> None:
    def failing() -> object:
        yield _grid(0, "a")
        raise KeyError

    with pytest.raises(KeyError):
        write_part(tmp_path, 0, failing())  # type: ignore[arg-type]
    assert not has_part(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_grids__are_no_layout_for_users(folder: Path) -> None:
    assert "grids" not in LAYOUTS
    with pytest.raises(SourceError):
        open_sources([folder / "grids.json"])


@pytest.mark.parametrize("content", [b"", b"[]", b'{"parts": 1}', b'{"parts": "x", "source": "a", "about": {}}'])
def test_open_source__refuses_other_json(folder: Path, content: bytes) -> None:
    (folder / "grids.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"run it again"):
        open_sources([folder], "grids")
