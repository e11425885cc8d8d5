"""A finished dataset gets more shards: an append as `dinowds shard --append` does it, killed wherever it can be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.manifest import Manifest, Shard, read_manifest
from dinowds.data.subsets.subset import read_subset
from dinowds.data.verify import verify_dataset
from dinowds.errors import DatasetError, OutputError
from dinowds.remote.files import RemoteFiles
from dinowds.shard.finished.changes import added_at_end, replace_index
from dinowds.shard.outputs.local_output import LocalOutput
from dinowds.shard.outputs.output import shard_url, tar_path
from dinowds.shard.outputs.workspace import claim
from dinowds.shard.write.indexfile import IndexReader, joined_schema, write_index
from tests.shard.finished.datasets import add_subset, keys_of, make_finished, tree


def append(folder: Path, more: Path) -> list[str]:
    """Append the shards of another dataset, as a command with its own notes does; notices."""
    output = LocalOutput(folder)
    fingerprint = {"command": "dinowds shard --append", "more": str(more)}
    with claim(output, overwrite=False, fingerprint=fingerprint, changes_dataset=True) as workspace:
        notices: list[str] = []
        if workspace.is_whole:
            workspace.publish_again()
        else:
            before, added = read_manifest(folder), read_manifest(more)
            workspace.begin({str(folder): before.samples_sha256}, ())
            first, shards = len(before.shards), []
            for number, shard in enumerate(added.shards, first):
                shutil.copy(more / shard.url, tar_path(workspace.folder, number))
                shards.append(replace(shard, url=shard_url(before.name, number)))
            with (
                closing(IndexReader(folder / "samples.parquet", before)) as old,
                closing(IndexReader(more / "samples.parquet", added)) as new,
                write_index(workspace.folder / "samples.parquet", joined_schema([old.schema, new.schema], "ab")) as to,
            ):
                for reader, of in ((old, before.shards), (new, added.shards)):
                    for group in range(len(of)):
                        to.write(reader.read(group))
            moved = {tar_path(workspace.folder, first + i).name: shard.url for i, shard in enumerate(shards)}
            after = _joined(before, added, shards)
            _, notices = replace_index(
                workspace, before, after, moved, remap=added_at_end(added.num_samples), result={"added": len(shards)}
            )
        workspace.end()
    return notices


def _joined(before: Manifest, added: Manifest, shards: list[Shard]) -> Manifest:
    return replace(before, shards=(*before.shards, *shards), cohorts=before.cohorts | added.cohorts)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A dataset with a subset, and one that is to be appended."""
    whole = make_finished(tmp_path / "data", [("a", "s1"), ("a", "s2")], extra="white")
    add_subset(whole, "some", where="slide == 's1'")
    return [whole, make_finished(tmp_path / "more", [("b", "s1")], per_shard=4)]


def test_changes__append_keeps_what_was_there_and_its_subsets(parts: list[Path]) -> None:
    whole, more = parts
    keys, some, files = keys_of(whole), keys_of(f"{whole}:some"), tree(whole)
    assert append(whole, more) == []
    assert verify_dataset(whole) == []
    assert keys_of(whole) == keys + keys_of(more)
    assert keys_of(f"{whole}:some") == some
    subset = read_subset(str(whole), "some", read_manifest(whole), RemoteFiles())
    assert (subset.samples, subset.slides, subset.cohorts) == (6, 1, {"a": 6, "b": 0})
    assert {name: content for name, content in tree(whole).items() if name in files and "shards" in name} == {
        name: content for name, content in files.items() if "shards" in name
    }
    assert sorted(path.name for path in whole.iterdir()) == [
        *("manifest.json", "quarantine.jsonl", "samples.parquet", "shards", "subsets")
    ]


def test_changes__others_are_refused_meanwhile_and_where_there_is_no_dataset(parts: list[Path], tmp_path: Path) -> None:
    whole, more = parts
    with pytest.raises(DatasetError, match="no such dataset"):
        append(tmp_path / "missing", more)
    assert not (tmp_path / "missing").exists()
    work = LocalOutput(whole).work
    work.mkdir()
    (work / "state.json").write_text(json.dumps({"fingerprint": {"command": "dinowds withdraw"}}))
    with pytest.raises(OutputError, match="of another command: it is of 'dinowds withdraw'; give that command again"):
        append(whole, more)


def test_changes__that_were_ready_take_the_subsets_there_are_now(parts: list[Path]) -> None:
    whole, more = parts
    script = (
        "import os, sys; from pathlib import Path; from dinowds.shard.outputs.local_output import LocalOutput\n"
        "from tests.shard.finished.test_changes import append\n"
        "LocalOutput._take_manifest = lambda self: os._exit(9)\n"
        "append(*map(Path, sys.argv[1:]))"
    )
    arguments = [sys.executable, "-c", script, str(whole), str(more)]
    root = Path(__file__).parents[3]
    assert subprocess.run(arguments, check=False, capture_output=True, cwd=root).returncode == 9
    assert len(Dataset.open(whole)) == 12
    new = add_subset(whole, "new", where="slide == 's2'")
    append(whole, more)
    assert len(Dataset.open(whole)) == 18
    assert keys_of(f"{whole}:new") == new
    assert verify_dataset(whole) == []


KILL_AT_EVERY_OPERATION = """
import os, shutil, signal, sys
from pathlib import Path
from tests.shard.finished.test_changes import append, tree

os.fsync = lambda descriptor: None
whole, more, out = map(Path, sys.argv[1:])

def run(kill_at):
    pid = os.fork()
    if pid == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"} and str(arguments[0]).startswith(str(out)):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        append(out, more)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

shutil.copytree(whole, out)
before = tree(out)
append(out, more)
expected = tree(out)
kill_at = 0
while True:
    kill_at += 1
    shutil.rmtree(out)
    shutil.copytree(whole, out)
    if run(kill_at) == 0:
        break
    if (out / "manifest.json").exists():
        files = tree(out)
        assert files.items() >= before.items() or files.items() >= expected.items(), kill_at
        if not (out / ".unfinished" / "state.json").exists() and files.items() >= expected.items():
            continue  # killed in the very last steps: complete, and nothing says any more who has done it
    append(out, more)
    assert tree(out) == expected, (kill_at, sorted(tree(out)))
print(kill_at)
"""


def test_changes__killed_at_each_file_operation_end_as_if_undisturbed(parts: list[Path], tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILL_AT_EVERY_OPERATION, *map(str, parts), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20
