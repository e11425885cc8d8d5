"""`dinowds subset` as people call it, and the examples of its page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dinowds.data.dataset import Dataset
from tests.cli.conftest import Call
from tests.servers import http_server

PAGE = Path(__file__).parents[2] / "docs" / "subsets.md"


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds subset`."""
    return partial(call_dinowds, "subset")


@pytest.fixture
def folder(dataset_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset_path, tmp_path / "patches"))


def test_subset__is_made_and_shown(call: Call, folder: Path) -> None:
    code, out, err = call(folder, "--name", "fold_0", "--where", "cohort == 'alpha'", "--max-per-slide", 3)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in ("samples 18", "of the dataset 20.00%", "slides 6", "cohort alpha 18", "cohort beta 0"):
        assert line in lines
    code, out, _ = call(folder, "--list")
    assert code == 0
    assert "fold_0" in out
    assert len(Dataset.open(f"{folder}:fold_0")) == 18


def test_subset__json_is_alone_on_stdout(call: Call, folder: Path) -> None:
    code, out, err = call(folder, "--name", "a", "--fraction", 0.5, "--json")
    content = json.loads(out)
    assert (code, err) == (0, "")
    assert (content["dataset"], content["samples"]) == (f"{folder}:a", 45)
    assert json.loads((folder / "subsets" / "a.json").read_text()) == {
        name: value for name, value in content.items() if name != "dataset"
    }
    code, out, _ = call(folder, "--list", "--json")
    assert [subset["name"] for subset in json.loads(out)["subsets"]] == ["a"]


def test_subset__same_again_says_so_and_another_is_refused(call: Call, folder: Path) -> None:
    assert call(folder, "--name", "a", "--fraction", 0.5)[0] == 0
    code, _, err = call(folder, "--name", "a", "--fraction", 0.5)
    assert (code, err) == (0, f"dinowds: {folder}:a is there already, and is the same\n")
    code, _, err = call(folder, "--name", "a", "--fraction", 0.4)
    assert code == 1
    assert "another subset has this name" in err
    assert call(folder, "--name", "a", "--fraction", 0.4, "--overwrite")[0] == 0
    assert len(Dataset.open(f"{folder}:a")) == 36


def test_subset__notices_are_lines_on_stderr(call: Call, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("0_0\nnothing\n")
    code, _, err = call(folder, "--name", "a", "--remove", tmp_path / "list")
    assert code == 1
    assert "entry '0_0' is the file name without extension of 2 samples" in err
    (tmp_path / "list").write_text("slide5/59_118\nnothing\n")
    code, _, err = call(folder, "--name", "a", "--remove", tmp_path / "list")
    assert (code, err) == (0, f"dinowds: {tmp_path}/list: 1 of 2 entries are no sample of the dataset: 'nothing'\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--name"),
        (["--list", "--name", "a"], 2, "--name"),
        (["--name", "a/b"], 1, "expected up to 200 letters, digits"),
        (["--name", "a", "--where", "cohor == 'A'"], 1, "did you mean 'cohort'?"),
        (["--name", "a", "--where", "cohort == 'A'"], 1, "no sample is left by --where"),
        (["--name", "a", "--fraction", "2"], 1, "--fraction is 2.0"),
        (["--name", "a", "--keep", "/nowhere"], 1, "/nowhere: cannot be read"),
    ],
)
def test_subset__what_cannot_be_writes_nothing(
    call: Call, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    found, out, err = call(folder, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert not (folder / "subsets").exists()


def test_subset__list_of_none_and_of_old_ones(call: Call, folder: Path) -> None:
    code, out, err = call(folder, "--list")
    assert (code, out, err) == (0, "", f"dinowds: {folder}: has no subsets\n")
    call(folder, "--name", "a", "--fraction", 0.5)
    about = folder / "subsets" / "a.json"
    about.write_text(about.read_text().replace('"samples_sha256": "', '"samples_sha256": "0'))
    code, out, err = call(folder, "--list")
    assert (code, err.count("\n")) == (0, 1)
    assert "is a subset of another" in err


def test_subset__over_http_is_refused_before_anything_is_read(call: Call, folder: Path) -> None:
    with http_server(folder.parent) as server:
        url = f"{server.url}/patches"
        secret = url.replace("://", "://user:SECRET@")
        code, out, err = call(secret, "--name", "a", "--fraction", 0.5)
        assert (code, out, server.requests) == (1, "", 0)
        assert err == (
            f"dinowds: error: {url}: subsets cannot be written over http; give the s3://, gs:// or folder that is "
            "behind it\n"
        )


def test_subset__list_over_http(call: Call, call_dinowds: Call, folder: Path) -> None:
    with http_server(folder.parent) as server:
        url = f"{server.url}/patches"
        secret = url.replace("://", "://user:SECRET@")
        code, out, err = call(secret, "--list", "--json")
        assert (code, json.loads(out)) == (0, {"dataset": url, "subsets": []})
        assert err == f"dinowds: {url}: the server lists no subsets, though there may be some\n"
        call(folder, "--name", "a", "--fraction", 0.5)
        code, out, err = call(secret, "--list")
        assert (code, "fraction 0.5" in out, "SECRET" in out + err) == (0, True, False)
        code, out, _ = call_dinowds("order", secret, "train.batch_size=12", "--json")
        assert (code, json.loads(out)["dataset"]) == (0, url)


def test_subset__examples_of_the_page(
    call_dinowds: Call, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("slide0\nbeta/slide1\n")
    (tmp_path / "blurred.txt").write_text("slide3/35_70.jpg\n")
    commands = re.findall(r"^\$ dinowds (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        code, out, err = call_dinowds(*shlex.split(command))
        assert (code, err) == (0, ""), command
    assert "fold_0" in out
    assert len(Dataset.open(folder.name + ":fold_0")) == 15
    assert len(Dataset.open(folder.name + ":fold_0_tenth")) == 2
    assert len(Dataset.open(folder.name + ":clean")) == 89
    (code_block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(code_block, {"np": np})  # noqa: S102 - our own page
    (conditions,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert conditions.count("\n") == 3
    for number, condition in enumerate(conditions.splitlines()):
        code, _, err = call_dinowds("subset", folder.name, "--name", f"c{number}", "--where", condition)
        assert code == 0 or "no sample is left" in err
