"""`dinowds attend` as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dinowds.data.dataset import Dataset
from dinowds.model.architecture import Architecture, Size
from tests.cli.conftest import Call
from tests.embed.support import coded_image, png, write_weights
from tests.eval.support import write_backbone
from tests.train.regions import make_region, make_regions


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, dataset_path: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("given")
    (folder / "photo.png").write_bytes(png(coded_image(1, 2, height=40, width=30)))
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "file").write_text("x")
    return {
        "photo": folder / "photo.png",
        "broken": folder / "broken.png",
        "none": folder / "none",
        "file": folder / "file",
        "images": dataset_path,
        "regions": make_regions(folder, [make_region(seed, 4, 16) for seed in range(3)]),
        "patch": write_weights(folder / "patch.pt"),
        "region": write_backbone(folder / "region.pt", Architecture("region", Size(32, 1, 2), 16, 1, 4)),
    }


def test_attend__tells_what_was_done_and_keeps_what_is_there(
    call_dinowds: Call, given: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["attend", "--checkpoint", given["patch"], given["photo"], "--out", tmp_path / "out"]
    code, out, errors = call_dinowds(*arguments, "--mass", 0.5)
    assert code == 0, errors
    picture = tmp_path / "out" / "photo.png"
    begin = f"{picture}: 30 x 40 px, resized to 32 x 40 px  ·  4 x 5 tokens of 8 px  ·  "
    assert out.startswith(begin)
    assert "of 20 tokens hold 50 % of the attention" in out
    content = picture.read_bytes()
    code, out, errors = call_dinowds(*arguments, "--colours", "viridis")
    assert (code, out) == (1, "")
    assert f"{picture}: exists; give another --out, or --overwrite to replace it" in errors
    assert picture.read_bytes() == content
    code, _, errors = call_dinowds(*arguments, "--colours", "viridis", "--overwrite")
    assert code == 0, errors
    assert picture.read_bytes() != content
    assert [path.name for path in picture.parent.iterdir()] == ["photo.png"]


def test_attend__json_of_samples_by_key(call_dinowds: Call, given: dict[str, Path], tmp_path: Path) -> None:
    keys = Dataset.open(given["images"]).columns(["key"])["key"].to_pylist()[:2]
    arguments = ["attend", "-c", given["patch"], given["images"], "--key", keys[1], "--key", keys[0]]
    code, out, errors = call_dinowds(*arguments, "--out", tmp_path / "out", "--panels", "--joint", "--json")
    assert code == 0, errors
    found: dict[str, Any] = json.loads(out)
    assert found["pictures"] == str(tmp_path / "out")
    assert [one["source"] for one in found["drawn"]] == [keys[1], keys[0]]
    for one in found["drawn"]:
        assert Path(one["picture"]).is_file()
        assert (one["panels"], one["tokens"]) == (6, 16)
        assert 0 < one["attention_on_tokens"] < 1


def test_attend__whole_regions_and_samples_of_regions(
    call_dinowds: Call, given: dict[str, Path], tmp_path: Path
) -> None:
    both = ["--checkpoint", given["region"], "--patch-checkpoint", given["patch"], "--patch-size", 8]
    code, out, errors = call_dinowds("attend", *both, given["photo"], "--out", tmp_path / "out")
    assert code == 0, errors
    assert "30 x 40 px, cut to 24 x 40 px  ·  3 x 5 patches of 8 px" in out
    alone = ["--checkpoint", given["region"], given["regions"], "--samples", 1]
    code, out, errors = call_dinowds("attend", *alone, "--out", tmp_path / "out")
    assert code == 0, errors
    assert "4 x 4 cells of 16 features" in out
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("sources", "weights", "options", "code", "message"),
    [
        (["none"], "patch", [], 1, "none: neither an image file nor a dataset"),
        (["photo", "none"], "patch", [], 1, "none: is no image file; expected image files alone, or one dataset alone"),
        (["photo"], "none", [], 1, "none"),
        (["broken"], "patch", [], 1, "broken.png: not an image that can be read"),
        (["photo"], "patch", ["--key", "a"], 1, "--key: goes with a dataset"),
        (["images"], "patch", ["--key", "a"], 1, "no sample has the key 'a'"),
        (["images"], "patch", ["--key", "a", "--samples", 3], 1, "--samples: draws samples where no --key is given"),
        (["regions"], "patch", [], 1, "is a model of images, but"),
        (["photo"], "region", [], 1, "photo.png is an image; give --patch-checkpoint, the model of its patches"),
        (["photo"], "region", ["--patch-checkpoint", "region"], 1, "--patch-checkpoint: is of regions"),
        (["photo"], "region", ["--patch-checkpoint", "patch"], 1, "expected at least one patch of 256 px; give"),
        (
            ["photo"], "region", ["--patch-checkpoint", "patch", "--patch-size", 20], 1,
            "--patch-size: is 20 px, expected a multiple of 8",
        ),
        (["photo"], "patch", ["--drop-blank"], 1, "--drop-blank: is for images of whole regions"),
        (["regions"], "region", ["--size", 100], 1, "--size: is for images"),
        (["photo"], "patch", ["--mass", 60], 1, "--mass: is 60, expected a share from 0 to 1"),
        (["photo"], "patch", ["--colours", "jet"], 2, "jet"),
        (["photo"], "patch", ["--out", "file"], 1, "file: is a file, expected a folder for pictures"),
    ],
)  # fmt: skip
def test_attend__mistake_is_one_clear_line(
    call_dinowds: Call,
    given: dict[str, Path],
    tmp_path: Path,
    sources: list[str],
    weights: str,
    options: list[object],
    code: int,
    message: str,
) -> None:
    paths = [given[source] for source in sources]
    named = [given.get(str(option), option) for option in options]
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    found = call_dinowds("attend", *paths, "--checkpoint", given[weights], *out, *named)
    assert found[0] == code, found
    assert found[1] == ""
    assert message in found[2]
    if code == 1:
        assert found[2].startswith("dinowds: error: ")
        assert found[2].count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_attend__without_plotly_says_what_to_install(
    call_dinowds: Call, given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.colors", None)
    arguments = ["--checkpoint", given["patch"], given["photo"], "--out", tmp_path / "out"]
    code, _, errors = call_dinowds("attend", *arguments)
    assert code == 1
    assert errors == "dinowds: error: colour maps need the package 'plotly'; pip install 'dinowds[report]'\n"
    assert not (tmp_path / "out").exists()
