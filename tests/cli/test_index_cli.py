"""`dinowds index` as people call it, and the examples of its page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest
from dinowds.cli.index import Reader

from dinowds.interop.names import READERS, list_interop_files
from dinowds.shard.build import ShardOptions, build_dataset
from tests.cli.conftest import Call
from tests.interop.conftest import build_labelled, write_labelled

PAGE = Path(__file__).parents[2] / "docs" / "readers.md"


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds index`."""
    return partial(call_dinowds, "index")


@pytest.fixture
def folder(dataset_path: Path, tmp_path: Path) -> Path:
    """90 patches in 4 shards without labels."""
    return Path(shutil.copytree(dataset_path, tmp_path / "patches"))


def test_readers__are_those_that_there_are() -> None:
    assert [reader.value for reader in Reader] == [*READERS, "all"]


def test_index__is_written_and_shown(call: Call, folder: Path) -> None:
    code, out, err = call(folder, "--for", "wids", "--for", "dali", "--for", "hf")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "wids 0 0 B manifest.json, as it is" in lines
    assert re.search(r"^dali 4 [0-9.]+ KiB shards$", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^hf 1 [0-9]+ B README.md$", "\n".join(lines), re.MULTILINE)
    assert len(list_interop_files(folder)) == 5


def test_index__json_is_alone_on_stdout(call: Call, folder: Path) -> None:
    code, out, err = call(folder, "--for", "energon", "--for", "hf", "--json")
    content = json.loads(out)
    assert (code, err) == (0, "")
    assert (content["dataset"], list(content["readers"])) == (str(folder), ["energon", "hf"])
    files = [name for reader in content["readers"].values() for name in reader["files"]]
    assert sorted(files) == list_interop_files(folder)
    assert content["readers"]["hf"] == {"files": ["README.md"], "bytes": (folder / "README.md").stat().st_size}


def test_index__notices_are_lines_on_stderr(call: Call, tmp_path: Path) -> None:
    write_labelled(tmp_path / "source", 6)
    (tmp_path / "source" / "slide0" / "0_0.cls").unlink()
    build_dataset([tmp_path / "source"], tmp_path / "patches", ShardOptions())
    code, _, err = call(tmp_path / "patches", "--for", "energon")
    assert (code, err) == (0, "dinowds: energon: 1 of 6 samples have no label, so dataset.yaml gives images alone\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--for"),
        (["--for", "spark"], 2, "'wids', 'dali', 'energon', 'timm', 'hf', 'all'"),
        (
            ["--for", "all"],
            1,
            "by timm: it wants a label in every sample, and 90 of 90 have none; give all a label; for the others, give "
            "--for wids --for dali --for energon --for hf",
        ),
    ],
)
def test_index__what_cannot_be_writes_nothing(
    call: Call, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    found, out, err = call(folder, *arguments)
    assert (found, out) == (code, "")
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())
    assert list_interop_files(folder) == []


def test_index__files_of_others_need_overwrite(call: Call, folder: Path) -> None:
    (folder / "README.md").write_text("# Our cohort\n")
    code, _, err = call(folder, "--for", "hf")
    assert code == 1
    assert (
        err == f"dinowds: error: {folder}/README.md: was not written by 'dinowds index'; move it, or give --overwrite\n"
    )
    assert call(folder, "--for", "hf", "--overwrite")[0] == 0
    assert "Our cohort" not in (folder / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")  # of what the readers do
def test_index__examples_of_the_page(call_dinowds: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    expected = build_labelled(tmp_path / "source", tmp_path / "datasets" / "patches", 20, 8).expected
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "cache" / "wids").mkdir(parents=True)
    commands = re.findall(r"^\$ dinowds (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert call_dinowds(*shlex.split(command))[::2] == (0, "")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        if "nvidia.dali" in block:
            pytest.importorskip("nvidia.dali")
        found: dict[str, object] = {}
        exec(block, found)  # noqa: S102 - our own page
        if "timm" in block:
            assert (found["width"], found["height"]) == (32, 32)
            continue
        image, label = expected[str(found["key"])]
        assert found["label"] == label
        assert "energon" in block or found["image"] == image
