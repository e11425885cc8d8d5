"""Killed, without room, without its sources, with sources that change: an error of one line, and the same command goes
on.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from dinowds.data.verify import verify_dataset
from dinowds.errors import OutputError, SourceError
from dinowds.shard.build import ShardOptions, ShardProgress, build_dataset

COMMAND = [str(Path(sys.executable).with_name("dinowds")), "shard"]
IN_OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
WITHOUT_RIGHTS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps=-all"]
OPTIONS = ShardOptions(name="same", max_count=3)

Make = Callable[[Path, int, int, int], Path]
"""(path without its suffix, count, first seed, side in px) → a source."""


def picture(seed: int, side: int = 12) -> bytes:
    """A bitmap: of one size whatever is on it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "BMP")
    return content.getvalue()


def pictures(count: int, seed: int, side: int) -> list[tuple[str, bytes]]:
    return [(f"slide{index % 3}/{index}_{index}.bmp", picture(seed + index, side)) for index in range(count)]


def tar(path: Path, count: int, seed: int = 0, side: int = 12) -> Path:
    path = path.with_name(f"{path.name}.tar")
    with tarfile.open(path, "w") as archive:
        for name, payload in pictures(count, seed, side):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    return path


def gz(path: Path, count: int, seed: int = 0, side: int = 12) -> Path:
    plain = tar(path, count, seed, side)
    packed = plain.with_suffix(".tar.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes(), 0, mtime=0))
    plain.unlink()
    return packed


def stored_zip(path: Path, count: int, seed: int = 0, side: int = 12, method: int = zipfile.ZIP_STORED) -> Path:
    path = path.with_name(f"{path.name}.zip")
    with zipfile.ZipFile(path, "w", method, compresslevel=0) as archive:
        for name, payload in pictures(count, seed, side):
            archive.writestr(zipfile.ZipInfo(name), payload, method, 0)
    return path


def deflated_zip(path: Path, count: int, seed: int = 0, side: int = 12) -> Path:
    return stored_zip(path, count, seed, side, zipfile.ZIP_DEFLATED)


def folder(path: Path, count: int, seed: int = 0, side: int = 12) -> Path:
    for name, payload in pictures(count, seed, side):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(payload)
    return path


def faults(prefix: list[str], **task: Any) -> dict[str, Any]:
    script = str(Path(__file__).with_name("faults.py"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [*prefix, sys.executable, script, json.dumps(task)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


GATHERED, DEALT = ["list", "write", "index"], ["list", "deal", "write", "index"]
LARGE = 512
"""Side of images of which 24 are more than 16 MiB."""
SMALL = ["--max-count", "3", "--workers", "2"]
WAYS: dict[str, tuple[tuple[Make, ...], list[str], list[str]]] = {
    # Sources, options, phases.
    "gathered": ((tar, folder), SMALL, GATHERED),
    "packed": ((gz, deflated_zip), SMALL, GATHERED),
    "dealt": ((tar,), [*SMALL, "--memory", "16MiB"], DEALT),
    "in place": ((tar, tar), ["--in-place", "--workers", "2"], GATHERED),
    "append": ((tar,), ["--append", *SMALL], GATHERED),
    "append, packed, dealt": ((gz,), ["--append", *SMALL, "--memory", "16MiB"], DEALT),
    "one shard": ((tar,), ["--workers", "1"], GATHERED),
}


def prepare(tmp_path: Path, way: str, side: int) -> tuple[list[str], str | None, list[str]]:
    """Arguments but for --out, the dataset that is there before, phases."""
    makers, options, phases = WAYS[way]
    side = LARGE if "deal" in phases else side
    sources = [str(make(tmp_path / f"new{i}", 24, 100 * i, side)) for i, make in enumerate(makers)]
    before = None
    if "--append" in options:
        build_dataset([tar(tmp_path / "old", 7, 1000)], tmp_path / "before", OPTIONS)
        before = str(tmp_path / "before")
    else:
        options = ["--name", "same", *options]
    return [*sources, *options], before, phases


@pytest.mark.parametrize("way", ["gathered", "packed", "dealt", "in place", "append, packed, dealt"])
def test_shard__killed_at_a_random_moment_of_each_phase_goes_on_to_the_same_bytes(tmp_path: Path, way: str) -> None:
    arguments, before, phases = prepare(tmp_path, way, 150)
    out, seed = str(tmp_path / "out"), zlib.crc32(way.encode())
    task = {"arguments": arguments, "out": out, "before": before, "phases": phases, "kills": 1, "seed": seed}
    assert faults([], does="kill", **task) == dict.fromkeys(phases, 1)


@pytest.mark.parametrize(
    ("way", "full", "step", "last"),
    [
        ("one shard", {"write", "rows", "index"}, 1, 5),
        ("packed", {"list"}, 4, 0),
        ("dealt", {"deal"}, 512, 0),
        ("append", {"write", "index"}, 1, 1),
    ],
)
def test_shard__full_disk_is_one_line_and_with_room_the_same_command_goes_on(
    tmp_path: Path, way: str, full: set[str], step: int, last: int
) -> None:
    """`full`: while these were written, the disk was full at one size or another."""
    (tmp_path / "try").mkdir()
    mount = [*IN_OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "try")]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no disk can be mounted here: {tried.stderr.strip()}")
    arguments, before, _ = prepare(tmp_path, way, 24)
    disk = str(tmp_path / "disk")
    found = faults(IN_OWN_MOUNTS, does="fill", arguments=arguments, disk=disk, before=before, step=step, last=last)
    assert found.keys() >= full
    assert len(found) > 1


def regions(path: Path, count: int, seed: int = 0, side: int = 12) -> Path:
    path.mkdir()
    for index in range(count):
        torch.save(torch.full((side * side, 3), seed + index, dtype=torch.float16), path / f"s_{index}_{index}.pt")
    return path


@pytest.mark.parametrize("make", [gz, deflated_zip, regions])
def test_build__full_disk_while_a_source_is_unpacked_is_not_taken_for_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    source = make(tmp_path / "a", 24, 0, 12)

    @contextmanager
    def full_file(_: Path) -> Iterator[BinaryIO]:
        with open("/dev/full", "wb", buffering=0) as file:
            yield file

    monkeypatch.setattr("dinowds.shard.sources.spool.atomic_write", full_file)
    with pytest.raises(OutputError, match=f"^{tmp_path / 'out'}.*No space left on device.*make room"):
        build_dataset([source], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def build(source: Path, out: Path, way: str, overwrite: bool = False, report: Any = None) -> dict[str, bytes]:
    """The files of a dataset of `source`; by way of buckets where `way` is 'dealt'."""
    options = replace(OPTIONS, overwrite=overwrite, memory=1 << 24 if way == "dealt" else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinowds.shard.write.writing.is_larger_than", lambda _images, memory: memory is not None)
        build_dataset([source], out, options, report)
    assert verify_dataset(out) == []
    return tree(out)


def act_once(phase: str, is_last: bool, act: Callable[[], object]) -> Callable[[ShardProgress], None]:
    """A report that acts in a phase: when it begins, or when its images have been counted."""
    done: list[object] = []

    def report(progress: ShardProgress) -> None:
        if progress.phase == phase and not done and (progress.samples >= 3 or not is_last):
            done.append(act())

    return report


def changed_folder(path: Path, how: str) -> None:
    """Change one of its files."""
    file = path / "slide1" / "4_4.bmp"
    content = {"longer": file.read_bytes() + b"more", "shorter": file.read_bytes()[:-1]}.get(how, picture(999))
    if how.startswith("renamed"):
        file.with_suffix(".new").write_bytes(content)
        if how == "renamed, older":
            os.utime(file.with_suffix(".new"), ns=(10**18, 10**18))
        file.with_suffix(".new").replace(file)
    else:
        file.write_bytes(content)


def changed_file(make: Make, path: Path, how: str) -> None:
    count = {"longer": 30, "shorter": 12}.get(how, 24)
    new = make(path.parent / "changed", count, 500, 12)
    assert how in ("longer", "shorter") or new.stat().st_size == path.stat().st_size
    if how.startswith("renamed"):
        if how == "renamed, older":
            os.utime(new, ns=(10**18, 10**18))
        new.replace(path)
    else:
        path.write_bytes(new.read_bytes())
        new.unlink()


MOMENTS = [("list", False), ("deal", False), ("write", False), ("write", True)]
CHANGES = ["rewritten", "longer", "shorter", "renamed", "renamed, older"]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("make", [tar, gz, stored_zip, deflated_zip, folder])
def test_build__source_that_changes_while_it_is_read_is_an_error(tmp_path: Path, make: Make, how: str) -> None:
    for number, (phase, is_last) in enumerate(MOMENTS):
        (tmp_path / str(number)).mkdir()
        source, out = make(tmp_path / str(number) / "a", 24, 0, 12), tmp_path / f"out{number}"
        way = "dealt" if phase == "deal" else ""

        def change(source: Path = source) -> None:
            changed_folder(source, how) if make is folder else changed_file(make, source, how)

        if make is folder and (phase == "list" or how == "renamed, older"):
            continue  # it is listed as it is then; of its files only sizes, and times that are new, are compared
        with pytest.raises(SourceError) as caught:
            build(source, out, way, report=act_once(phase, is_last, change))
        message = str(caught.value)
        assert message.startswith(str(source)), (number, message)
        assert len(message.splitlines()) == 1
        assert "changed while it was read" in message or (make is not folder and phase == "list"), (number, message)
        assert not (out / "manifest.json").exists()
        if not is_last:
            continue
        expected = build(source, tmp_path / f"whole{number}", "")
        if out.exists():
            with pytest.raises(OutputError, match=r"changed since.*--overwrite"):
                build(source, out, way)
        assert build(source, out, way, overwrite=True) == expected


def away(path: Path, put: Callable[[Path], object]) -> Callable[[], None]:
    """Move a file or folder away, and put something in its place; how to bring it back."""
    kept = path.with_name(f"{path.name}.kept")
    path.rename(kept)
    put(path)

    def back() -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        kept.rename(path)

    return back


def nothing(path: Path) -> None:
    """Leave the place empty."""


def shortened(path: Path) -> Callable[[], None]:
    content, times = path.read_bytes(), path.stat()
    os.truncate(path, len(content) // 2 + 100)  # inside a member

    def back() -> None:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return back


FAULTS: dict[str, Callable[[Path], Callable[[], None]]] = {
    "pipe": lambda path: away(path, os.mkfifo),
    "folder": lambda path: away(path, Path.mkdir),
    "gone": lambda path: away(path, nothing),
    "shortened": shortened,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("make", [tar, gz, stored_zip, deflated_zip, folder])
def test_build__source_that_cannot_be_read_is_named_and_once_it_can_the_same_call_goes_on(
    tmp_path: Path, make: Make, fault: str
) -> None:
    source = make(tmp_path / "a", 24, 0, 12)
    expected = build(source, tmp_path / "whole", "")
    file = source / "slide1" / "4_4.bmp" if make is folder else source
    for number, (phase, is_last) in enumerate(MOMENTS[:-1]):
        if phase == "list" and make is folder:
            continue  # it is listed as it is then
        out, way = tmp_path / f"out{number}", "dealt" if phase == "deal" else ""
        back: list[Callable[[], None]] = []

        def harm(back: list[Callable[[], None]] = back) -> None:
            back.append(FAULTS[fault](file))

        with pytest.raises(SourceError) as caught:
            build(source, out, way, report=act_once(phase, is_last, harm))
        message = str(caught.value)
        assert message.startswith(f"{file}: "), message
        assert len(message.splitlines()) == 1
        assert not (out / "manifest.json").exists()
        back.pop()()
        assert build(source, out, way) == expected


@pytest.mark.parametrize("phase", ["list", "write"])
def test_build__folder_that_vanishes_is_named_and_once_it_is_back_the_same_call_goes_on(
    tmp_path: Path, phase: str
) -> None:
    for put in (nothing, Path.mkdir):  # a mount that is gone leaves an empty folder
        source = folder(tmp_path / put.__name__ / "a", 24)
        expected = build(source, source.with_name("whole"), "")
        back: list[Callable[[], None]] = []

        def harm(
            source: Path = source, put: Callable[[Path], None] = put, back: list[Callable[[], None]] = back
        ) -> None:
            back.append(away(source, put))

        with pytest.raises(SourceError, match=f"^{source}") as caught:
            build(source, source.with_name("out"), "", report=act_once(phase, False, harm))
        assert len(str(caught.value).splitlines()) == 1
        assert not (source.with_name("out") / "manifest.json").exists()
        back.pop()()
        assert build(source, source.with_name("out"), "") == expected


@pytest.mark.parametrize("make", [tar, stored_zip])
def test_shard__pipe_is_no_source(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path / "a", 3, 0, 12)
    source.unlink()
    os.mkfifo(source)
    with pytest.raises(SourceError, match=f"^{source}: "):
        build(source, tmp_path / "out", "")


def test_shard__source_without_permission_is_named_and_with_it_the_same_command_goes_on(tmp_path: Path) -> None:
    prefix = WITHOUT_RIGHTS if os.geteuid() == 0 else []
    if prefix and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user can read everything, and its right to do so cannot be taken away")
    sources = {make.__name__: make(tmp_path / make.__name__, 24, 0, 12) for make in (tar, gz, deflated_zip, folder)}
    closed = [*sources.values(), sources["folder"] / "slide1", sources["folder"] / "slide1" / "4_4.bmp"]
    names = [str(path) for path in closed]
    sources_given = [str(path) for path in sources.values()]
    said = faults(prefix, does="close", sources=sources_given, closed=names, out=str(tmp_path / "out"))
    for name in names[:-1]:
        assert f"{name}: cannot be read (Permission denied)" in said[name]
    # Of a folder, the name of a file that cannot be read is not told.
    assert f"{sources['folder']}: cannot be read (Permission denied)" in said[names[-1]]
