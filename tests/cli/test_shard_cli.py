"""`dinowds shard` as people call it."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest
from dinowds.cli.shard import default_workers, parse_size
from dinowds.cli.tables import format_bytes, printable

from tests.cli.conftest import Call
from tests.servers import S3Server


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds shard`."""
    return partial(call_dinowds, "shard")


@pytest.fixture
def cohort(tmp_path: Path, dataset_path: Path) -> Path:
    """A tar of 60 patches in 6 slides, and two members that are no images."""
    path = tmp_path / "alpha.tar"
    path.write_bytes((dataset_path.parent / "alpha.tar").read_bytes())
    with tarfile.open(path, "a") as tar:
        for name in ("notes.txt", "more.txt"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    return path


def test_shard__ends_with_a_table_and_plain_lines(call: Call, cohort: Path, tmp_path: Path) -> None:
    code, out, err = call(cohort, "--out", tmp_path / "out", "--max-count", 25)
    assert code == 0
    table = dict(line.strip().rsplit("  ", 1) for line in out.splitlines() if "  " in line.strip())
    figures = {name.strip(): value.strip() for name, value in table.items()}
    assert figures["samples"] == "60"
    assert figures["shards"] == "3"
    assert figures["slides"] == "6"
    assert figures["quarantined: not an image file"] == "2"
    assert "list" in err.splitlines()
    assert "write: 60 samples" in err
    assert "\x1b" not in out + err


def test_shard__json_is_alone_on_stdout(call: Call, cohort: Path, tmp_path: Path) -> None:
    code, out, _ = call(cohort, "--out", tmp_path / "out", "--json", "--name", "named")
    content = json.loads(out)
    assert code == 0
    assert (content["name"], content["samples"], content["shards"]) == ("named", 60, 1)
    assert content["quarantined"] == {"not an image file": 2}


def test_shard__dry_run_says_what_would_be_and_writes_nothing(call: Call, cohort: Path, tmp_path: Path) -> None:
    code, out, _ = call(cohort, "--out", tmp_path / "out", "--dry-run", "--max-count", 7)
    assert code == 0
    assert "nothing written" in out
    code, out, _ = call(cohort, "--out", tmp_path / "out", "--dry-run", "--max-count", 7, "--json")
    plan = json.loads(out)
    assert (plan["samples"], plan["shards"], plan["cohorts"]) == (60, 9, {"alpha": 60})
    assert not (tmp_path / "out").exists()


def test_shard__same_command_again_is_refused_until_overwrite(call: Call, cohort: Path, tmp_path: Path) -> None:
    assert call(cohort, "--out", tmp_path / "out")[0] == 0
    code, out, err = call(cohort, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.startswith(f"dinowds: error: {tmp_path}/out: already holds a dataset; ")
    assert err.endswith("--overwrite to replace it\n")
    assert err.count("\n") == 1
    assert call(cohort, "--out", tmp_path / "out", "--overwrite")[0] == 0


def test_shard__bad_inputs_are_one_line_and_leave_nothing(call: Call, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "nothing.tar", "w"):
        pass
    (tmp_path / "cut.tar").write_bytes(cohort.read_bytes()[:3000])
    (tmp_path / "text.tar").write_text("text" * 999)
    for source, words in (
        (tmp_path / "nowhere.tar", "no such file or folder"),
        (tmp_path / "void", "no image files"),
        (tmp_path / "empty.tar", "is empty"),
        (tmp_path / "nothing.tar", "holds nothing"),
        (tmp_path / "cut.tar", "is cut short"),
        (tmp_path / "text.tar", "is not a tar"),
    ):
        code, out, err = call(source, "--out", tmp_path / "out")
        assert (code, out) == (1, "")
        error = err.splitlines()[-1]
        assert error.startswith(f"dinowds: error: {source}: ")
        assert words in error
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()


def test_shard__bad_options_name_themselves(call: Call, cohort: Path, tmp_path: Path) -> None:
    for arguments, code, words in (
        (["--key-pattern", "("], 1, "--key-pattern"),
        (["--seed", "-1"], 1, "--seed"),
        (["--workers", "0"], 1, "--workers"),
        (["--shard-size", "many"], 2, "is not a size"),
        (["--shard-size", "9" * 400], 2, "is not a size"),
        (["--shard-size", "999999999TB"], 1, "--shard-size"),
        (["--name", "n" * 250], 1, "--name"),
        (["--name", "n\udcff"], 1, "--name"),
        (["--no-such-option"], 2, "No such option"),
    ):
        found, _, err = call(cohort, "--out", tmp_path / "out", *arguments)
        assert found == code
        assert words in err
    assert call("--out", tmp_path / "out")[0] == 2
    assert call(cohort)[0] == 2
    assert not (tmp_path / "out").exists()


def test_shard__output_by_way_of_a_missing_folder(call: Call, cohort: Path, tmp_path: Path) -> None:
    assert call(cohort, "--out", tmp_path / "q" / ".." / "out")[0] == 0
    assert (tmp_path / "out" / "manifest.json").exists()


def test_shard__to_a_url_and_again(call: Call, cohort: Path, tmp_path: Path, s3: S3Server) -> None:
    out = f"{s3.url}/deep/out"
    arguments = [cohort, "--out", out, "--staging", tmp_path / "staging", "--max-count", 25, "--workers", 1]
    code, text, _ = call(*arguments, "--dry-run", "--json")
    assert (code, json.loads(text)["shards"]) == (0, 3)
    code, text, err = call(*arguments, "--json")
    assert code == 0
    content = json.loads(text)
    assert (content["dataset"], content["name"], content["samples"], content["shards"]) == (out, "out", 60, 3)
    assert "write: 60 samples" in err
    code, text, err = call(*arguments)
    assert (code, text) == (1, "")
    assert err == (
        f"dinowds: error: {out}: already holds a dataset; give another --out, or --overwrite to replace it\n"
    )
    assert call(*arguments, "--overwrite")[0] == 0
    assert list(tmp_path.glob("staging/*")) == []


def test_shard__urls_that_cannot_work_are_one_line(call: Call, cohort: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["s3:/bucket/a.tar", "--out", tmp_path / "out"], "s3:/bucket/a.tar: no such file or folder"),
        ([cohort, "--out", "https://host/out"], "--out: https://host/out can be read only"),
        ([cohort, "--out", tmp_path / "out", "--staging", tmp_path], "--staging: is for a remote --out"),
        ([cohort, "--out", "nosuch://host/out"], "nosuch://host/out"),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"dinowds: error: {words}")
    assert not (tmp_path / "out").exists()


def test_shard__names_cannot_steer_the_terminal(call: Call, cohort: Path, tmp_path: Path) -> None:
    evil = tmp_path / "\x1b[31mred.tar"
    cohort.rename(evil)
    code, out, err = call(evil, "--out", tmp_path / "out", "--dry-run")
    assert code == 0
    assert "[31mred" in out
    assert "\x1b" not in out + err
    code, _, err = call(evil.with_name("\x1b[0m.tar"), "--out", tmp_path / "out")
    assert code == 1
    assert "[0m.tar" in err
    assert "\x1b" not in err


def test_shard__shows_a_bar_on_a_terminal(cohort: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = [str(Path(sys.executable).with_name("dinowds")), "shard", str(cohort), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    result = subprocess.run(arguments, stderr=theirs, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\x1b[" in shown
    assert "samples" in result.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500000", 500_000),
        ("1GB", 10**9),
        ("256MiB", 256 << 20),
        ("1.5k", 1500),
        ("2 TiB", 2 << 40),
        ("64kib", 65536),
        ("7B", 7),
    ],
)
def test_parse_size__units(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1", "1iB", "1XB", "1e6", "1,5GB", "9" * 400, "1." + "9" * 400])
def test_parse_size__nonsense_is_a_usage_error(text: str) -> None:
    import typer

    with pytest.raises(typer.BadParameter):
        parse_size(text)


def test_default_workers__are_the_cores_it_may_use_up_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinowds.world._cgroup_cores", lambda: None)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    cores = os.sched_getaffinity(0)
    assert default_workers() == min(len(cores), 8)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert default_workers() == 1
    finally:
        os.sched_setaffinity(0, cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert default_workers() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_workers() == 1


def test_format__bytes_and_names() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 << 40, 3000 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 TiB",
        "3000.0 TiB",
    ]
    assert printable("a\x1b[0m\nö") == "a\\x1b[0m\\nö"
