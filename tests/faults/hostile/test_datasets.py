"""Datasets and tables of strangers: a manifest that points elsewhere, keys that leave a folder, lists that lie."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from dinowds.data.index.rowgroups import footer_sha256
from dinowds.data.manifest import SAMPLES_SCHEMA, read_manifest, write_manifest
from dinowds.files import sha256_of
from dinowds.shard.build import ShardOptions, build_dataset
from tests.browser import opened
from tests.embed.support import write_weights
from tests.faults.form import amount, tally
from tests.faults.hostile.rooms import Room
from tests.faults.hostile.tars import IMAGES, NAMES, plain_tar

URLS = (
    "../../outside/victim", "/etc/passwd", "file:///etc/passwd", "/dev/zero", "/dev/urandom", "/proc/self/mem",
    "/dev/tty",
    ".", "", "shards", "shards/../../../outside/victim", "http://127.0.0.1:9/x.tar", "ftp://127.0.0.1:9/x", "x://y",
    "file:///dev/zero", "memory://x/y", "shards/\u202exyz.tar", "<script>alert(1)</script>", "zip://x::file:///etc/passwd",
    "simplecache::file:///dev/zero", "x" * 70_000,
)  # fmt: skip
MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'onmouseover=`alert(3)`{{7*7}}[red]"


@pytest.fixture
def theirs(room: Room) -> Path:
    """A dataset of three shards, with labels, in `input`."""
    tar = room.give(
        plain_tar({f"slide{number // 4}/{number}_{number}.jpg": image for number, image in enumerate(IMAGES)})
    )
    build_dataset([tar], room.input / "theirs", ShardOptions(max_count=4))
    return room.input / "theirs"


def commands_on(room: Room, dataset: Path) -> None:
    """All that look into a dataset; each ends as it must."""
    page = room.path / "work" / "page.html"
    other = room.path / "other"
    if not other.exists():
        build_dataset([room.give(plain_tar({"other/9_9.jpg": IMAGES[9]}), "other.tar")], other, ShardOptions())
    for arguments in (
        ["inspect", dataset],
        ["inspect", dataset, "--json"],
        ["inspect", dataset, "--verify"],
        ["inspect", dataset, "--html", "--out", page, "--overwrite"],
        ["merge", dataset, other, "--out", room.out],
        ["order", dataset],
        ["index", dataset, "--for", "wids", "--for", "dali", "--for", "energon", "--for", "timm", "--for", "hf"],
    ):
        room.run(*arguments, may_write=(page, dataset))
        shutil.rmtree(room.out, ignore_errors=True)
    tally("commands on hostile datasets", 7)


def test_manifest__that_points_elsewhere(room: Room, theirs: Path) -> None:
    true = (theirs / "manifest.json").read_text()
    for url in [*random.Random(9).sample(URLS, amount(0, len(URLS))), "/dev/zero"]:
        content = json.loads(true)
        content["shardlist"][1]["url"] = url
        (theirs / "manifest.json").write_text(json.dumps(content))
        before = sorted(theirs.rglob("*"))
        commands_on(room, theirs)
        (theirs / "manifest.json").write_text(true)
        for path in {*theirs.rglob("*")} - {*before}:
            assert path.resolve().is_relative_to(theirs)


def rename(folder: Path, **values: Any) -> None:
    """Give the second row of each shard other values, with all digests made anew."""
    with pq.ParquetFile(folder / "samples.parquet") as index:
        groups = [index.read_row_group(group).to_pylist() for group in range(index.num_row_groups)]
    for number, rows in enumerate(groups):
        for name, value in values.items():
            rows[1][name] = f"{value}{number}" if isinstance(value, str) else value
    with pq.ParquetWriter(folder / "samples.parquet", SAMPLES_SCHEMA, write_page_checksum=True) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(rows, SAMPLES_SCHEMA))
    path = folder / "samples.parquet"
    cohorts: dict[str, int] = {}
    for row in (row for rows in groups for row in rows):
        cohorts[row["cohort"]] = cohorts.get(row["cohort"], 0) + 1
    digests: dict[str, Any] = {"samples_sha256": sha256_of(path), "samples_footer_sha256": footer_sha256(path)}
    write_manifest(folder, replace(read_manifest(folder), cohorts=cohorts, **digests))


def test_samples__with_names_that_leave_a_folder(room: Room, theirs: Path) -> None:
    weights = write_weights(room.path / "weights.pt")
    true = room.path / "true"
    shutil.copytree(theirs, true)
    names = [name.decode("utf-8", "backslashreplace") for name in NAMES.values()] + [
        "../" * 5 + "outside/x",
        "\x9b2J",
        "",
    ]
    for name in ["../../../outside/evil\x9b2J\u202e\x7f\U000e0001b", *names[: amount(0, len(names))]]:
        shutil.rmtree(theirs)
        shutil.copytree(true, theirs)
        rename(theirs, key=name, cohort=name, slide=name, source_name=name, source=name, ext=name[:20])
        commands_on(room, theirs)
        room.run("embed", "patch", theirs, "--checkpoint", weights, "--out", room.out)
        shutil.rmtree(room.out, ignore_errors=True)
        crops = room.path / "work" / "crops.png"
        room.run("inspect", theirs, "--crops", 2, "--out", crops, "--overwrite", may_write=(crops,))


def test_page__names_of_strangers_stay_text(room: Room, theirs: Path, browser: Browser) -> None:
    rename(theirs, cohort=MARKUP, slide=MARKUP, source_name=MARKUP, source=MARKUP)
    manifest = read_manifest(theirs)
    about: dict[str, Any] = {"mpp": MARKUP, MARKUP: {MARKUP: [MARKUP]}, "dropped": {MARKUP: 3}}
    write_manifest(theirs, replace(manifest, name=MARKUP, metadata=about, quarantined={MARKUP: 1}))
    named = room.input / "<img src=x onerror=alert(4)>"
    shutil.copytree(theirs, named)
    page = room.path / "work" / "page.html"
    ended = room.run("inspect", named, "--html", "--out", page, may_write=(page,))
    assert ended.status == 0, ended
    with opened(browser, page) as seen:
        asked: list[str] = []
        seen.page.on("dialog", lambda dialog: asked.append(dialog.message))
        assert (seen.errors, seen.requests, asked) == ([], [], [])
        assert "<img src=x" in seen.page.title()
        assert seen.page.locator("[onerror], [onmouseover]").count() == 0
        assert "</script><script>alert(1)" in seen.page.locator("main").inner_text()
    tally("hostile names in pages", 8)


def parquet_of(column: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"name": column, "label": column}), content)
    return content.getvalue()


def tables() -> dict[str, bytes]:
    first = "slide0/0_0.jpg"
    nested = parquet_of(pa.array([[first]]))
    plain = parquet_of(pa.array([first] * 3))
    claimed = plain.replace(b"\x16\x06", b"\x16\xfe")
    formula = io.StringIO()
    csv.writer(formula).writerows([["name", "label"], [first, "=cmd|' /C calc'!A0"], ["=HYPERLINK(1)", "@SUM(1)"]])
    return {
        "formula.csv": formula.getvalue().encode(),
        "markup.csv": f'name,label\n{first},"{MARKUP.replace(chr(34), "")}"\n'.encode(),
        "terminal.csv": f"name,label\n{first},\x1b[2J\x9b31m\u202e\n\x1b]8;;x\x07,1\n".encode(),
        "quotes.csv": f'name,label\n"{first},1\n'.encode(),
        "NUL.csv": f"name,label\n{first},\0\n\0,1\n".encode(),
        "utf-16.csv": f"name,label\n{first},1\n".encode("utf-16"),
        "BOM.csv": b"\xef\xbb\xbf" + f"name,label\n{first},1\n".encode(),
        "latin.csv": f"name,label\n{first},\xe9\n".encode("latin-1"),
        "long line.csv": b"name,label\n" + b"x" * (100 << 20) + b",1\n",
        "many columns.csv": b"name,label" + b",x" * 100_000 + b"\n" + b"1," * 100_000 + b"\n",
        "same columns.csv": f"name,name,label,label\n{first},b,1,2\n".encode(),
        "up.csv": b"name,label\n../../outside/victim,1\n/etc/passwd,2\n",
        "empty.csv": b"",
        "head.csv": b"name,label\n",
        "huge number.csv": f"name,label\n{first},{'9' * 5000}\n".encode(),
        "binary.csv": random.Random(1).randbytes(5000),
        "nested.parquet": nested,
        "claim.parquet": claimed,
        "cut.parquet": plain[:-20],
        "no.parquet": b"PAR1" + bytes(20) + b"\xff\xff\xff\x7fPAR1",
        "csv.parquet": f"name,label\n{first},1\n".encode(),
        "bytes.parquet": parquet_of(pa.array([b"\xff\xfe", b"a\0b"])),
        "gz.csv": b"\x1f\x8b\x08" + bytes(20),
    }


def test_shard__tables_of_strangers(room: Room) -> None:
    tar = room.give(plain_tar({f"slide0/{number}_{number}.jpg": image for number, image in enumerate(IMAGES)}))
    every = tables()
    for name in [*random.Random(9).sample(sorted(every), amount(3, len(every))), "long line.csv"]:
        path = room.give(every[name], name)
        for option in ("--labels", "--keep", "--remove"):
            try:
                ended = room.run("shard", tar, "--out", room.out, option, path)
                assert ended.status == 0 or name in ended.errors or option in ended.errors, ended
            except AssertionError as error:
                raise AssertionError(f"{option} {name}") from error
            shutil.rmtree(room.out, ignore_errors=True)
        path.unlink()
        tally("hostile tables tried", 3)
