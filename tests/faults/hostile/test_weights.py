"""Files that would run code if they were loaded as others load them: refused by name, and nothing of them was run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinowds.config import load_config
from dinowds.errors import ConfigError, DinowdsError
from dinowds.model.weights.read import read_weights
from dinowds.train.checkpoint import load_checkpoint
from tests.embed.support import write_weights
from tests.faults.form import IS_FULL, tally
from tests.faults.hostile.rooms import Room
from tests.faults.hostile.tars import IMAGES, plain_tar
from tests.support import TINY_RUN


class Evil:
    """Pickles as a call that makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._mark}",)


@pytest.fixture
def mark(room: Room) -> Iterator[Path]:
    """What code makes if it is run: no file is there in the end."""
    path = room.path / "ran"
    yield path
    assert not path.exists()


def evil_files(folder: Path, mark: Path) -> list[Path]:
    """Checkpoints of every suffix, all of them code."""
    evil = Evil(mark)
    state: dict[str, Any] = {"format_version": 1, "about": {}, "teacher": {"backbone.cls_token": evil}}
    paths = []
    for suffix in (".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy", ".safetensors"):
        path = folder / f"evil{suffix}"
        if suffix == ".npz":
            np.savez(path, allow_pickle=True, cls_token=np.array([evil], object))
        elif suffix == ".npy":
            np.save(path, np.array([evil], object), allow_pickle=True)
        elif suffix == ".safetensors":
            path.write_bytes(pickle.dumps(evil))
        else:
            torch.save(state, path, _use_new_zipfile_serialization=suffix != ".bin")
        paths.append(path)
    return paths


def make_images(room: Room) -> Path:
    path = room.give(plain_tar({f"s/{number}_{number}.jpg": image for number, image in enumerate(IMAGES)}))
    assert room.run("shard", path, "--out", room.out).status == 0
    return Path(shutil.copytree(room.out, room.path / "dataset"))


def test_commands__weights_that_are_code_are_refused_by_name(room: Room, mark: Path) -> None:
    dataset = make_images(room)
    for path in evil_files(room.input, mark):
        for arguments in (
            ["embed", "patch", dataset, "--checkpoint", path],
            ["export", "--checkpoint", path, "--to", "dino"],
            ["attend", dataset, "--checkpoint", path],
            ["train", "patch", "--data", dataset, *TINY_RUN, f"student.init_from={path}"],
        ):
            if arguments[0] != "export" and not (path.suffix == ".pt" or IS_FULL):
                continue  # all of them read weights by one function
            ended = room.run(*arguments, "--out", room.out)
            assert ended.status == 1, (arguments, ended)
            assert path.name in ended.errors, (arguments, ended)
            tally("hostile weights tried")
            shutil.rmtree(room.out, ignore_errors=True)


def test_train__checkpoint_of_a_run_that_is_code_is_not_loaded(room: Room, mark: Path) -> None:
    dataset = make_images(room)
    shutil.rmtree(room.out)
    arguments = ["train", "patch", "--data", dataset, "--out", room.out, *TINY_RUN, "optim.max_steps=1"]
    assert room.run(*arguments).status == 0
    (path,) = (room.out / "checkpoints").glob("step-*.pt")
    for zipped in (True, False):
        state = {"format_version": 1, "model": Evil(mark)}
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        for command in (
            arguments[:-1],
            ["embed", "patch", dataset, "--checkpoint", room.out, "--out", room.path / "work" / "features"],
        ):
            ended = room.run(*command)
            assert ended.status == 1, ended
            assert "checkpoints" in ended.errors
        tally("hostile weights tried", 2)


REFUSED = "it is not loaded, as a pickle can run anything"


@pytest.mark.parametrize(
    ("layout", "told"), [("auto", REFUSED), ("reference", REFUSED), ("folder", ""), ("regions", "not a tensor")]
)
def test_shard__arrays_that_are_code_are_not_loaded(room: Room, mark: Path, layout: str, told: str) -> None:
    folder = room.input / "root"
    (folder / "data").mkdir(parents=True)
    for name in ("pretrain_entries.npy", "cohort_indices.npy", "pretrain_file_indices.npy"):
        np.save(folder / "data" / name, np.array({0: Evil(mark)}, dtype=object), allow_pickle=True)
        np.save(folder / name, np.array({0: Evil(mark)}, dtype=object), allow_pickle=True)
    (folder / "data" / "pretrain_dataset.tar").write_bytes(plain_tar({"a.jpg": IMAGES[0]}))
    np.save(folder / "grid.npy", np.array([Evil(mark)] * 4, object).reshape(2, 2), allow_pickle=True)
    (folder / "one.jpg").write_bytes(IMAGES[0])
    torch.save([Evil(mark)], folder / "1_2.pt")
    ended = room.run("shard", folder, "--out", room.out, *(["--layout", layout] if layout != "auto" else []))
    assert told in ended.out + ended.errors, ended
    tally("hostile arrays tried", 9)


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES = {
    "length of 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "length of 2^64": b"\xff" * 8 + b"{}",
    "length over the file": struct.pack("<Q", 1000) + b"{}",
    "overlap": header(cls_token=FLOATS, pos_embed=FLOATS) + bytes(8),
    "negative": header(cls_token=FLOATS | {"data_offsets": [-8, 0]}) + bytes(8),
    "outside": header(cls_token=FLOATS | {"data_offsets": [0, 1 << 60]}) + bytes(8),
    "shape of 2^62": header(cls_token=FLOATS | {"shape": [1 << 62, 1 << 62]}) + bytes(8),
    "twice": header(a=FLOATS, b=FLOATS).replace(b'"b"', b'"a"') + bytes(8),
    "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "dtype": header(cls_token=FLOATS | {"dtype": "O"}) + bytes(8),
}  # fmt: skip


@pytest.mark.parametrize("lie", list(LIES))
def test_read_weights__safetensors_with_a_header_that_lies(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(LIES[lie])
    with pytest.raises(DinowdsError, match=r"a\.safetensors: "):
        read_weights(path)
    tally("hostile weights tried")


def test_load__zip_of_torch_with_names_that_leave_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = write_weights(tmp_path / "in" / "a.pt")
    content = path.read_bytes()
    for name in (b"../", b"/x/"):
        path.write_bytes(content.replace(b"a/d", name[:3]).replace(b"a/v", name[:3]))
        for load in (read_weights, load_checkpoint):
            with pytest.raises(DinowdsError, match=r"a\.pt"):
                load(path)
    assert [*tmp_path.iterdir()] == [tmp_path / "in"]
    tally("hostile weights tried", 4)


YAMLS: dict[str, str | bytes] = {
    "object": "optim: !!python/object/apply:os.system ['touch MARK']",
    "name": "optim: {lr: !!python/name:os.system }",
    "module": "train: !!python/module:os",
    "new": "train: !!python/object/new:subprocess.Popen [['touch', MARK]]",
    "tuple": "train: !!python/tuple [1, 2]",
    "environment": "student: {init_from: '${oc.env:SECRET_OF_TEST}'}",
    "environment in parts": "student: {init_from: '${oc.${student.arch}:SECRET_OF_TEST}', arch: env}",
    "default": "student: {init_from: 'x${ oc.env:NOTHING,${oc.env:SECRET_OF_TEST}}'}",
    "decode": "student: {init_from: '${oc.decode:\"1\"}'}",
    "create": "student: {init_from: '${oc.create:{a: 1}}'}",
    "deep": "a: " + "[" * 100_000,
    "laughs": "a: &a [1, 1]\n" + "\n".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(12)
    ),
    "loop": "a: &a [*a]",
    "digits": "optim: {lr: " + "9" * 10_000 + "}",
    "no date": "optim: {lr: 2001-99-99}",
    "not utf-8": b"\xff\xfeoptim: {}",
    "NUL": "optim: {lr: 1}\0",
    "number as key": "1: 2",
    "list as key": "? [1, 2]\n: 3",
}  # fmt: skip


@pytest.mark.parametrize("which", list(YAMLS))
def test_load_config__of_a_stranger_calls_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "opensesame")
    text = YAMLS[which]
    content = text if isinstance(text, bytes) else text.replace("MARK", str(tmp_path / "ran")).encode()
    (tmp_path / "theirs.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"theirs\.yaml: ") as caught:
        load_config(tmp_path / "theirs.yaml")
    assert "opensesame" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    tally("hostile configurations tried")


def test_load_config__override_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "opensesame")
    with pytest.raises(ConfigError, match="calls a resolver"):
        load_config(None, ["student.init_from=${oc.env:SECRET_OF_TEST}"])
