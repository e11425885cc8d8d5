"""`dinowds embed patch` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import Call
from tests.embed.support import make_coded_dataset, write_weights


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("given")
    (folder / "file").write_text("x")
    return {
        "dataset": make_coded_dataset(folder / "coded"),
        "weights": write_weights(folder / "tiny.pt"),
        "file": folder / "file",
        "none": folder / "none",
    }


@pytest.fixture
def arguments(given: dict[str, Path], tmp_path: Path) -> list[object]:
    options = ["--checkpoint", given["weights"], "--out", tmp_path / "features", "--workers", 0]
    return ["embed", "patch", given["dataset"], *options]


def test_embed__json_alone_on_stdout_and_lines_on_stderr(
    call_dinowds: Call, arguments: list[object], tmp_path: Path
) -> None:
    code, out, errors = call_dinowds(*arguments, "--json")
    assert code == 0, errors
    found: dict[str, Any] = json.loads(out)
    assert found["features"] == str(tmp_path / "features")
    assert (found["embedded"], found["samples"], found["bad_samples"], found["dim"]) == (60, 60, 0, 16)
    assert found["dtype"] == "float16"
    assert "60 of 60 images" in errors
    code, out, errors = call_dinowds(*arguments, "--json")
    assert (code, json.loads(out)["embedded"]) == (0, 0)
    assert errors.startswith("dinowds: nothing left to do")


def test_embed__options_reach_the_files(call_dinowds: Call, arguments: list[object], tmp_path: Path) -> None:
    options = ["--student", "--dtype", "float32", "--tokens", "--image-size", 16, "--pos-interpolation", "dino"]
    code, out, errors = call_dinowds(*arguments, *options, "--precision", "fp32", "--batch-size", 7)
    assert code == 0, errors
    assert "patch tokens of an image" in out
    about = json.loads((tmp_path / "features" / "features.json").read_text())
    assert (about["weights"]["which"], about["dtype"], about["pos_interpolation"]) == ("student", "float32", "dino")
    question = about["question"]
    assert (question["image_size"], question["precision"], question["batch_size"]) == (16, "fp32", 7)
    schema = pq.read_schema(tmp_path / "features" / "features-000000.parquet")
    assert schema.field("tokens").type.list_size == 4 * 16


def test_embed__dry_run_writes_nothing(call_dinowds: Call, arguments: list[object], tmp_path: Path) -> None:
    code, out, errors = call_dinowds(*arguments, "--dry-run", "--json")
    assert (code, errors) == (0, "")
    assert json.loads(out)["samples"] == 60
    assert json.loads(out)["state"] == "new"
    code, out, errors = call_dinowds(*arguments, "--dry-run")
    assert (code, errors) == (0, "")
    assert "nothing" in out
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("dataset", "weights", "out", "options", "code", "message"),
    [
        ("none", "weights", "out", [], 1, "none: no such dataset; give the folder that 'dinowds shard --out' wrote"),
        ("dataset", "none", "out", [], 1, "none"),
        ("dataset", "weights", "file", [], 1, "file: is a file, expected a folder for features; give another --out"),
        ("dataset", "weights", "out", ["--image-size", 20], 1, "--image-size is 20, expected a multiple of 8"),
        ("dataset", "weights", "out", ["--dtype", "int8"], 2, "int8"),
        ("dataset", "weights", "out", ["--batch-size", 0], 2, "batch-size"),
    ],
)
def test_embed__mistake_is_one_clear_line(
    call_dinowds: Call,
    given: dict[str, Path],
    tmp_path: Path,
    dataset: str,
    weights: str,
    out: str,
    options: list[object],
    code: int,
    message: str,
) -> None:
    target = given.get(out, tmp_path / out)
    found = call_dinowds("embed", "patch", given[dataset], "--checkpoint", given[weights], "--out", target, *options)
    assert found[0] == code, found
    assert found[1] == ""
    assert message in found[2]
    if code == 1:
        assert found[2].startswith("dinowds: error: ")
        assert found[2].count("\n") == 1
    assert not (tmp_path / "out").exists()
