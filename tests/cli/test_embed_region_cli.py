"""`dinowds embed region` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.regions.embed import embed_regions
from dinowds.embed.regions.ways import RegionOptions
from dinowds.shard.build import ShardOptions, build_dataset
from tests.embed.support import coded_image, png, write_tar, write_weights
from tests.support import run_dinowds


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`patches`: 9 × 8 of one slide in 4 shards; `images`: 4 regions of 4 × 4 patches in 2; `w.pt`."""
    root = tmp_path_factory.mktemp("embed")
    write_weights(root / "w.pt")
    for name, side, columns, max_count in (("patches", 32, 9, 20), ("images", 128, 4, 2)):
        places = [(x, y) for y in range(8 if side == 32 else 1) for x in range(columns)]
        members = {f"s/{side * x}_{side * y}.png": png(coded_image(x, y, 0, side, side)) for x, y in places}
        tar = write_tar(root / f"{name}.tar", members)
        build_dataset([tar], root / name, ShardOptions(max_count=max_count))
    return root


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["patches", "images"])
def test_embed_region__two_ranks_write_what_one_does(root: Path, tmp_path: Path, name: str) -> None:
    command = ["embed", "region", root / name, "-c", root / "w.pt", "--region-size", 128, "--patch-size", 32]
    command += ["--precision", "fp32", "--batch-size", 10, "--name", "x", "--workers", 0, "--json"]
    ended = run_dinowds(*command, "--nproc", 2, "--out", tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["regions"] == 4
    embedding = PatchOptions(str(root / "w.pt"), precision="fp32", batch_size=10, workers=0)
    options = RegionOptions(128, patch_size=32, embedding=embedding, sharding=ShardOptions(name="x"))
    embed_regions(str(root / name), tmp_path / "one", options)
    assert _files(tmp_path / "two") == _files(tmp_path / "one")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_embed_region__dry_run_writes_nothing_and_needs_no_weights(root: Path, tmp_path: Path) -> None:
    command = ["embed", "region", root / "patches", "--region-size", 128, "--out", tmp_path / "out", "--dry-run"]
    ended = run_dinowds(*command, "--json")
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    # the ninth column is a fourth of the third region of each row
    assert (said["made_from"], said["regions"], said["slides"], said["cells"]) == ("patches", 4, 1, 4)
    assert (said["missing_cells"], said["sparse_regions"], said["step"]) == (0, 2, {"patches": 32.0})
    assert not list(tmp_path.iterdir())


def test_embed_region__says_what_it_needs(root: Path, tmp_path: Path) -> None:
    ended = run_dinowds("embed", "region", root / "patches", "--region-size", 128, "--out", tmp_path / "out")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "--checkpoint: is needed to embed the patches" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
