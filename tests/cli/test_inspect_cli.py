"""`dinowds inspect` as people call it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import Call
from tests.servers import http_server
from tests.support import dinowds_command


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds inspect`."""
    return partial(call_dinowds, "inspect")


def test_inspect__shows_what_the_index_says(call: Call, dataset_path: Path) -> None:
    code, out, err = call(dataset_path)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "shards 4",
        "samples 90",
        "slides 9",
        "samples per slide, min 10",
        "alpha 60 6",
        "beta 30 3",
        "32x32 90",
    ):
        assert line in lines
    assert "jpg 90" in lines
    assert not any("verified" in line for line in lines)


def test_inspect__json_is_alone_on_stdout(call: Call, dataset_path: Path) -> None:
    code, out, _ = call(dataset_path, "--json", "--verify")
    content = json.loads(out)
    assert code == 0
    assert (content["samples"], content["cohorts"], content["damages"]) == (90, {"alpha": 60, "beta": 30}, [])
    assert "damages" not in json.loads(call(dataset_path, "--json")[1])


def test_inspect__verify_lists_each_damage_and_fails(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    assert "every byte is as it was written" in " ".join(call(dataset_path, "--verify")[1].split())
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    damaged = [rows[3], rows[60]]
    for row in damaged:
        path = sorted((folder / "shards").iterdir())[row["shard"]]
        content = bytearray(path.read_bytes())
        content[row["offset"] + 20] ^= 1
        path.write_bytes(content)
    code, out, err = call(folder, "--verify")
    assert code == 1
    for row in damaged:
        assert f"-{row['shard']:06d}.tar: {row['key']}: its bytes are not those that were written" in out
    assert err.count("\n") == 1
    assert "damage found: 2, first in shards/" in err
    code, out, _ = call(folder, "--verify", "--json")
    assert code == 1
    assert [damage["key"] for damage in json.loads(out)["damages"]] == [row["key"] for row in damaged]


def test_inspect__verify_works_where_the_index_is_gone(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    (folder / "samples.parquet").unlink()
    code, out, err = call(folder, "--verify", "--json")
    assert code == 1
    assert json.loads(out)["damages"][0]["shard"] == "samples.parquet"
    assert err.count("\n") == 1


def test_inspect__what_is_no_dataset_is_one_line(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    (tmp_path / "unfinished" / ".unfinished").mkdir(parents=True)
    (tmp_path / "newer").mkdir()
    content = json.loads((dataset_path / "manifest.json").read_text())
    content["dinowds"]["format_version"] = 99
    (tmp_path / "newer" / "manifest.json").write_text(json.dumps(content))
    for folder, words in (
        ("nowhere", "no such dataset"),
        ("unfinished", "unfinished dataset"),
        ("newer", "format_version is 99"),
        (".", "is not a dataset"),
    ):
        for options in ([], ["--verify"]):
            code, out, err = call(tmp_path / folder, *options)
            assert (code, out) == (1, "")
            assert words in err
            assert err.count("\n") == 1


def test_inspect__of_a_subset_names_it_and_counts_it(call_dinowds: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    options = ("--where", "cohort == 'alpha'", "--max-per-slide", 3)
    assert call_dinowds("subset", folder, "--name", "fold_0", *options)[0] == 0
    with http_server(tmp_path) as server:
        for location in (str(folder), f"{server.url}/copy"):
            code, out, err = call_dinowds("inspect", f"{location}:fold_0")
            assert (code, err) == (0, "")
            lines = [" ".join(line.split()) for line in out.splitlines()]
            for line in ("subset fold_0", "samples 18", "slides 6", "alpha 18 6", "beta 0 0", "jpg 18"):
                assert line in lines
            content = json.loads(call_dinowds("inspect", f"{location}:fold_0", "--json")[1])
            assert (content["subset"], content["samples"]) == ("fold_0", 18)
            code, out, err = call_dinowds("inspect", f"{location}:fold_1")
            assert (code, out, err.count("\n")) == (1, "", 1)
            assert "has no subset 'fold_1'" in err
        assert json.loads(call_dinowds("inspect", f"{server.url}/copy", "--json", "--verify")[1])["damages"] == []
    assert json.loads(call_dinowds("inspect", folder, "--json")[1])["subset"] is None


def test_inspect__ctrl_c_waits_for_no_server(dataset_path: Path) -> None:
    """The server falls silent at the first shard's bytes."""
    with http_server(dataset_path, ("stall",), every=12) as server:
        child = subprocess.Popen(
            dinowds_command("inspect", server.url, "--verify"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting = threading.Event()
        while not server.faults_made:
            assert child.poll() is None
            waiting.wait(0.01)
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=20)  # less than one try takes
    assert (child.returncode, out) == (75, "")
    assert errors == "dinowds: interrupted; give the same command again to begin anew\n"


def test_inspect__url_with_secrets(call: Call, dataset_path: Path) -> None:
    with http_server(dataset_path) as server:
        root = server.url.replace("//", "//user:SECRET@")
        for arguments in ([root], [root, "--json"], [f"{root}/nothere"], [f"{server.url}/nothere?sig=SECRET"]):
            _, out, err = call(*arguments)
            assert "SECRET" not in out + err
            assert server.url in (out + err).replace("\n", "")
