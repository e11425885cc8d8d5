"""Commands whose server fails, or serves something else: one line in bounded time; then the same command goes on."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.commands import Commands, Ended, Harm
from tests.faults.form import IS_FULL, tally
from tests.faults.network.conftest import Served
from tests.faults.system.jobs import RUN, STEPS, trained, tree
from tests.servers import Fault, http_server
from tests.support import free_port

QUICK: list[Harm] = [("quick_retries", 1.0)]
PASSING: tuple[Fault, ...] = ("500", "503", "close", "reset", "cut", "short")
ENDING: tuple[Fault, ...] = ("503", "403", "404", "reset", "hang", "stall", "loop", "file", "other")
COMMANDS = ("train", "embed", "shard", "inspect")
SHORT = [("embed", "403"), ("shard", "cut"), ("inspect", "503")]
_numbers = itertools.count()


def arguments(name: str, url: str, out: Path, served: Served) -> list[object]:
    ways: dict[str, list[object]] = {
        "train": ["train", "patch", "--data", f"{url}/dataset", "--out", out, *RUN, "data.max_bad_samples=0"],
        "embed": [
            *("embed", "patch", f"{url}/dataset", "--checkpoint", served.weights, "--out", out),
            *("--workers", 0, "--image-size", 32, "--max-bad", 0),
        ],
        "shard": ["shard", f"{url}/cohort.tar", "--out", out, "--name", "x"],
        "inspect": ["inspect", f"{url}/dataset", "--verify"],
    }
    return ways[name]


def result(name: str, out: Path, ended: Ended) -> object:
    """What the command has made, but for the server's port."""
    if name == "train":
        return trained(out)
    if name == "inspect":
        return "no damage" in ended.out or ended.status == 0
    kept = tree(out)
    if name == "embed":
        return {file: content for file, content in kept.items() if file.endswith(".parquet") and len(content)}.keys()
    return {file: content for file, content in kept.items() if file.endswith(".tar")}


@contextmanager
def empty_cache(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a host that has fetched nothing yet."""
    yield {"DINOWDS_CACHE": str(tmp_path / f"cache{next(_numbers)}")}


def requests_of(command: Commands, name: str, served: Served, tmp_path: Path) -> tuple[int, object]:
    """How many requests an undisturbed run makes, and its result."""
    out = tmp_path / "whole"
    with http_server(served.root) as server, empty_cache(tmp_path) as environment:
        ended = command.run(*arguments(name, server.url, out, served), environment=environment)
        assert ended.status == 0, ended
    return server.requests, result(name, out, ended)


@pytest.mark.parametrize("name", COMMANDS if IS_FULL else ["train"])
def test_command__faults_that_pass_change_nothing(command: Commands, served: Served, tmp_path: Path, name: str) -> None:
    _, expected = requests_of(command, name, served, tmp_path)
    with http_server(served.root, PASSING, seed=5) as server, empty_cache(tmp_path) as environment:
        given = arguments(name, server.url, tmp_path / "out", served)
        ended = command.run(*given, harms=QUICK, environment=environment)
    assert ended.status == 0, ended
    assert result(name, tmp_path / "out", ended) == expected
    assert server.faults_made
    tally("network faults injected", server.faults_made)


@pytest.mark.parametrize(("name", "fault"), list(itertools.product(COMMANDS, ENDING)) if IS_FULL else SHORT)
def test_command__fault_that_stays_ends_it_in_one_line(
    command: Commands, served: Served, tmp_path: Path, name: str, fault: Fault
) -> None:
    """From the middle on; and once the server is well, the same command gives the same."""
    requests, expected = requests_of(command, name, served, tmp_path)
    out = tmp_path / "out"
    with http_server(served.root) as server, empty_cache(tmp_path) as environment:
        given = arguments(name, server.url, out, served)
        server.skip, server.every, server.faults = requests * 2 // 3, 1, (fault,)
        ended = command.run(*given, harms=QUICK, environment=environment, limit=120)
        assert server.faults_made, (requests, server.requests)
        assert server.url in ended.error
        server.faults = ()
        again = command.run(*given, environment=environment)
    assert again.status == 0, (ended, again)
    assert result(name, out, again) == expected
    tally("commands ended by a lasting network fault, and gone on", 1)


@pytest.mark.parametrize("name", COMMANDS if IS_FULL else ["embed"])
def test_command__server_that_is_gone_is_one_line(command: Commands, served: Served, tmp_path: Path, name: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with empty_cache(tmp_path) as environment:
        ended = command.run(*arguments(name, url, tmp_path / "out", served), harms=QUICK, environment=environment)
    assert "cannot be read after 6 tries" in ended.error
    assert url in ended.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["same", "other"])
@pytest.mark.parametrize("name", ["train", "embed", "inspect"] if IS_FULL else ["embed", "inspect"])
def test_command__old_version_of_shards_is_named(
    command: Commands, served: Served, old_version: Path, tmp_path: Path, name: str, size: str
) -> None:
    """The index is of today, the shards behind it of another day."""
    root = tmp_path / "served"
    shutil.copytree(served.dataset, root / "dataset")
    for new in (root / "dataset" / "shards").iterdir():
        content, wanted = (old_version / "shards" / new.name).read_bytes(), new.stat().st_size
        new.write_bytes(content[:wanted].ljust(wanted, b"\0") if size == "same" else content[: wanted // 2])
    with http_server(root) as server, empty_cache(tmp_path) as environment:
        given = arguments(name, server.url, tmp_path / "out", served)
        ended = command.run(*given, harms=QUICK, environment=environment)
    shard, bad = "shards/dataset-00000", "the bytes do not match the digest in the index"
    if name == "inspect":  # says how each sample differs, and then the first
        assert "damage found: " in ended.error
        assert f", first in {shard}0.tar" in ended.error
    elif size == "other":
        assert re.search(
            rf"/dataset/{shard}\d.tar: shard has \d+ bytes, the manifest says \d+; restore it$", ended.error
        )
    else:
        assert re.search(rf"{shard}\d.tar: slide\d/\w+(\.jpg)?: {bad}", ended.error.replace(server.url, ""))
    assert not list(tmp_path.glob("out/checkpoints/step-*.pt"))
    assert not (tmp_path / "out" / "features.json").exists()
    tally("old versions of shards refused")


@pytest.mark.skipif(not IS_FULL, reason="takes a minute: in the full form")
def test_command__503_for_a_minute_is_one_line_and_then_goes_on(
    command: Commands, served: Served, tmp_path: Path
) -> None:
    requests, expected = requests_of(command, "train", served, tmp_path)
    with http_server(served.root) as server, empty_cache(tmp_path) as environment:
        given = arguments("train", server.url, tmp_path / "out", served)
        server.skip, server.every, server.faults = requests * 2 // 3, 1, ("503",)
        error = command.run(*given, environment=environment, limit=60).error
        assert "after 6 tries (the server answered 503 Service Unavailable)" in error
        server.faults = ()
        assert command.run(*given, environment=environment).status == 0
    assert trained(tmp_path / "out", STEPS) == expected


SECRETS = ("pa55word", "s3cretkey", "s1gnature")


def find_secrets(folder: Path) -> list[str]:
    """Files, by name or content, that hold a secret."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{path}: {secret}" for secret in SECRETS if secret in path.name or secret.encode() in content]
    return found


@pytest.mark.parametrize(
    ("name", "fails"),
    list(itertools.product(COMMANDS, (False, True))) if IS_FULL else [("train", True), ("shard", False)],
)
def test_credentials__are_in_no_output(
    command: Commands, served: Served, tmp_path: Path, name: str, fails: bool
) -> None:
    """Of the URL and of the environment; in files, their names, and what is said, however it ends."""
    with http_server(served.root) as server, empty_cache(tmp_path) as environment:
        environment |= {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "s3cretkey"}
        url = server.url.replace("//", "//user:pa55word@")
        given = arguments(name, url, tmp_path / "out", served)
        if name == "shard":
            given[1] = f"{given[1]}?X-Amz-Signature=s1gnature"
        if fails:
            server.skip, server.every, server.faults = 4 if name != "shard" else 1, 1, ("403",)
        ended = command.run(*given, harms=QUICK, environment=environment)
    assert (ended.status != 0) == fails, ended
    for secret in SECRETS:
        assert secret not in ended.out + ended.errors, (secret, ended)
    assert find_secrets(tmp_path) == []
    assert any("Authorization" in headers for headers in server.headers)
    tally("outputs searched for credentials", len(list(tmp_path.rglob("*"))))
