"""`dinowds inspect` as people call it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinowds.crops.examples import good_samples
from dinowds.data.dataset import Dataset
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


def test_inspect__metadata_of_others_is_no_error(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_path, tmp_path / "d")
    content = json.loads((tmp_path / "d" / "manifest.json").read_text())
    content["dinowds"]["metadata"] = {"dropped": ["x"], "quality": 3, "withdrawn_in_shards": "x"}
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(content))
    code, out, err = call(tmp_path / "d")
    assert (code, err) == (0, "")
    assert "90" in out


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


def test_html__is_the_page_of_a_report(call_dinowds: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "patches"))
    code, said, err = call_dinowds("inspect", folder, "--html")
    path = tmp_path / "patches-report.html"
    assert (code, err) == (0, "")
    assert said.startswith(f"{path} (")
    assert said.count("\n") == 1
    text = path.read_text()
    assert "<h1>" in text
    assert "90 images" in text
    assert call_dinowds("report", folder, "--out", tmp_path / "other.html")[0] == 0
    assert (tmp_path / "other.html").read_text() == text
    code, said, err = call_dinowds("inspect", folder, "--html")
    assert (code, said, err.count("\n")) == (1, "", 1)
    assert "exists already; give --overwrite" in err
    assert call_dinowds("inspect", folder, "--html", "--overwrite")[0] == 0
    code, said, err = call_dinowds("inspect", f"{folder}:fold_0", "--html")
    assert (code, said, err.count("\n")) == (1, "", 1)
    assert "has no subset 'fold_0'" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.html", "patches", "patches-report.html"]


SMALL = ("crops.global.size=64", "crops.local.size=32", "crops.local.count=3")
"""Overrides that make small sheets."""


def damage(folder: Path, keys: list[str] | None = None) -> None:
    """Change a byte of the payload of the samples with these keys, or of all."""
    for row in pq.read_table(folder / "samples.parquet").to_pylist():
        if keys is None or row["key"] in keys:
            path = sorted((folder / "shards").iterdir())[row["shard"]]
            content = bytearray(path.read_bytes())
            content[row["offset"] + 20] ^= 1
            path.write_bytes(content)


def drawn_keys(location: object, count: int, seed: int) -> list[str]:
    dataset = Dataset.open(str(location))
    return [sample.key for sample, *_ in good_samples(dataset, count, seed, True, lambda _: None)]


def test_crops__draws_a_picture(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "crops.png"
    code, said, err = call(dataset_path, "--crops", 3, "--out", out, "--renderer", "pil", *SMALL)
    assert (code, err) == (0, "")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert said == f"{out}: 3 samples, {picture.width} x {picture.height} px\n"
        first = np.asarray(picture.convert("RGB"))
    assert np.ptp(first) == 255
    assert sorted(tmp_path.iterdir()) == [out]
    code, said, err = call(dataset_path, "--crops", 3, "--out", out, "--renderer", "pil", *SMALL)
    assert (code, said, err.count("\n")) == (1, "", 1)
    assert "exists; give another --out, or --overwrite to replace it" in err
    pictures = []
    for options in ([], ["--seed", 0, "train.seed=1"], ["--seed", 1], ["train.seed=1"], ["crops.flip=1"]):
        assert (
            call(dataset_path, "--crops", 3, "--out", out, "--renderer", "pil", "--overwrite", *SMALL, *options)[0] == 0
        )
        pictures.append(out.read_bytes())
    assert np.array_equal(np.asarray(Image.open(out).convert("RGB")), first) == (pictures[4] == pictures[0])
    assert pictures[0] == pictures[1]
    assert pictures[2] == pictures[3]
    assert len({*pictures}) == 3


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_crops__folder_at_the_place_of_the_picture(
    call: Call, dataset_path: Path, tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "crops.png").mkdir()
    code, said, err = call(dataset_path, "--crops", 1, "--out", tmp_path / "crops.png", "--renderer", "pil", *options)
    assert (code, said, err.count("\n")) == (1, "", 1)
    assert "crops.png: is a folder; give another --out" in err
    assert [path.name for path in tmp_path.iterdir()] == ["crops.png"]


def test_crops__row_for_each_renderer(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    heights: list[int] = []
    for options in (["--renderer", "pil"], ["--renderer", "cpu", "--renderer", "pil"], ["--renderer", "all"]):
        out = tmp_path / f"{len(heights)}.png"
        assert call(dataset_path, "--crops", 1, "--out", out, *options, *SMALL)[0] == 0
        with Image.open(out) as picture:
            heights.append(picture.height)
    assert heights[0] < heights[1] < heights[2]
    assert heights[2] - heights[1] > 192


def test_crops__of_a_configuration_file(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("crops: {renderer: pil, global: {size: 64, count: 1}, local: {size: 32, count: 3}}")
    code, _, err = call(dataset_path, "--crops", 1, "--out", tmp_path / "crops.png", "--config", config)
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "crops.png") as one:
        options = ("--renderer", "pil", *SMALL, "crops.global.count=1")
        assert call(dataset_path, "--crops", 1, "--out", tmp_path / "other.png", *options)[0] == 0
        with Image.open(tmp_path / "other.png") as other:
            assert np.array_equal(np.asarray(one), np.asarray(other))


def test_crops__samples_are_spread_and_of_the_subset(call_dinowds: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    assert call_dinowds("subset", folder, "--name", "beta", "--where", "cohort == 'beta'")[0] == 0
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    ids = {row["key"]: place for place, row in enumerate(rows)}
    places = [ids[key] for key in drawn_keys(folder, 9, seed=3)]
    assert [place // 10 for place in places] == list(range(9))  # one of each tenth of the ninety
    assert drawn_keys(folder, 9, seed=3) != drawn_keys(folder, 9, seed=4)
    chosen = drawn_keys(f"{folder}:beta", 12, seed=3)
    assert len(set(chosen)) == 12
    assert {rows[ids[key]]["cohort"] for key in chosen} == {"beta"}
    assert len(set(drawn_keys(f"{folder}:beta", 64, seed=0))) == 30  # all that there are
    with http_server(tmp_path) as server:
        assert drawn_keys(f"{server.url}/copy:beta", 12, seed=3) == chosen
        out = tmp_path / "crops.png"
        url = server.url.replace("//", "//user:SECRET@")
        options = ("--crops", 2, "--out", out, "--renderer", "pil", *SMALL)
        assert call_dinowds("inspect", f"{url}/copy:beta", *options)[0] == 0
        with_secret = out.read_bytes()
        assert call_dinowds("inspect", f"{server.url}/copy:beta", *options, "--overwrite")[0] == 0
        assert out.read_bytes() == with_secret


def test_crops__bad_sample_is_replaced_by_the_next(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    before = drawn_keys(folder, 3, seed=0)
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    keys = [row["key"] for row in rows]
    place = keys.index(before[1])
    damage(folder, keys[place : place + 2])
    code, _, err = call(folder, "--crops", 3, "--out", tmp_path / "crops.png", "--renderer", "pil", *SMALL)
    assert code == 0
    assert err.count("\n") == 2
    for key, line in zip(keys[place : place + 2], err.splitlines(), strict=True):
        assert key in line
        assert ".tar: " in line
        assert "the bytes do not match the digest in the index; the next sample is drawn" in line
        assert line.count(".tar") == 1
    assert drawn_keys(folder, 3, seed=0) == [before[0], keys[place + 2], before[2]]
    assert len(set(drawn_keys(folder, 80, seed=0))) == 80  # none twice


def test_crops__undecodable_sample_is_named(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    [key] = drawn_keys(folder, 1, seed=0)
    damage(folder, [key])
    options = ("--renderer", "pil", *SMALL, "data.verify_digests=false")
    code, _, err = call(folder, "--crops", 1, "--out", tmp_path / "crops.png", *options)
    assert (code, err.count("\n"), err.count(".tar")) == (0, 1, 1)
    assert f".tar: {key}.jpg: " in err


def test_crops__without_any_good_sample_is_one_error(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    damage(folder)
    code, said, err = call(folder, "--crops", 2, "--out", tmp_path / "crops.png", "--renderer", "pil", *SMALL)
    assert (code, said) == (1, "")
    assert "error: " in err.splitlines()[-1]
    assert "no sample can be drawn" in err.splitlines()[-1]
    assert not (tmp_path / "crops.png").exists()


def test_crops__of_regions_is_one_line(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    content = json.loads((folder / "manifest.json").read_text())
    content["dinowds"]["kind"] = "region"
    (folder / "manifest.json").write_text(json.dumps(content))
    code, said, err = call(folder, "--crops", 2, "--out", tmp_path / "crops.png")
    assert (code, said, err.count("\n")) == (1, "", 1)
    assert "holds region samples, a contact sheet shows the crops of images" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--crops", 2], "--crops needs --out FILE.png"),
        (["--out", "crops.png"], "--out: goes with --crops N"),
        (["--overwrite"], "--overwrite: goes with --crops N"),
        (["--seed", 0], "--seed: goes with --crops N"),
        (["--renderer", "cpu"], "--renderer: goes with --crops N"),
        (["--config", "x.yaml"], "--config: goes with --crops N"),
        (["crops.flip=1"], "KEY=VALUE: goes with --crops N"),
        (["--crops", 2, "--out", "crops.png", "--verify"], "expected no --verify with it"),
        (["--crops", 2, "--out", "crops.png", "--json"], "expected no --json with it"),
        (["--html", "--crops", 2, "--out", "x.html"], "--html writes a page: expected no --crops with it"),
        (["--html", "--verify"], "--html writes a page: expected no --verify with it"),
        (["--html", "--json"], "--html writes a page: expected no --json with it"),
        (["--html", "--seed", 0], "--seed: goes with --crops N"),
        (["--html", "--out", "nowhere/x.html"], "nowhere/x.html: there is no folder nowhere"),
        (["--html", "--out", "."], ".: is a folder, expected a file"),
        (["--crops", 0, "--out", "crops.png"], "--crops is 0, expected 1 to 64 samples"),
        (["--crops", 65, "--out", "crops.png"], "--crops is 65, expected 1 to 64 samples"),
        (["--crops", 2, "--out", "crops.jpg"], "--out crops.jpg: expected a name that ends in .png"),
        (["--crops", 2, "--out", "nowhere/crops.png"], "nowhere/crops.png: there is no folder nowhere"),
        (
            ["--crops", 2, "--out", "crops.png", "--renderer", "gpu"],
            "--renderer is 'gpu', expected pil, cpu, device or all",
        ),
        (
            ["--crops", 2, "--out", "crops.png", "--renderer", "all", "--renderer", "auto"],
            "--renderer is 'auto', expected",
        ),
        (
            ["--crops", 2, "--out", "crops.png", "crops.renderer=gpu"],
            "crops.renderer: found 'gpu', expected one of auto, ",
        ),
        (["--crops", 2, "--out", "crops.png", "crops.flip=2"], "crops.flip: found 2.0, expected a probability"),
        (["--crops", 2, "--out", "crops.png", "crops.flop=2"], "unknown key 'crops.flop'"),
        (["--crops", 2, "--out", "crops.png", "--config", "x.yaml"], "x.yaml: no such configuration file"),
    ],
)
def test_crops__wrong_usage_is_one_line(
    call: Call, dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, err = call(dataset_path, *options)
    assert (code, said, err.count("\n")) == (1, "", 1)
    assert words in err
    assert list(tmp_path.iterdir()) == []
