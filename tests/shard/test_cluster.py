"""A cluster writes what one process does, whatever happens to its workers."""

# mypy: allow-untyped-calls

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

from dinowds import errors
from dinowds.errors import ConfigError, DinowdsError, OutputError, SourceError
from dinowds.shard import cluster
from dinowds.shard.build import ShardOptions, ShardProgress, build_dataset
from dinowds.shard.cluster import check_versions, open_cluster
from dinowds.shard.sources.scanning import Stopped
from tests.servers import S3Server
from tests.support import free_port

MakeTar = Callable[..., Path]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a scheduler with two workers, as an administrator would have started it."""
    with dask.config.set(cluster._SETTINGS):  # no fixed ports
        servers = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            memory_limit=None,
        )
    with servers:
        yield servers.scheduler_address


@pytest.fixture(scope="module")
def client(scheduler: str) -> Iterator[Client]:
    with open_cluster(scheduler, 99) as client:
        yield client


@pytest.mark.parametrize("memory", [None, 1 << 16])
def test_build__on_a_cluster_has_the_bytes_of_a_local_one(
    tmp_path: Path,
    hostile_tars: list[Path],
    make_tar: MakeTar,
    make_image: Callable[..., bytes],
    scheduler: str,
    memory: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dinowds.shard.options.MIN_MEMORY", 0)
    build_dataset([make_tar(tmp_path / "more.tar", 20, 2000)], tmp_path / "dataset", ShardOptions())
    sources = [*hostile_tars, tmp_path / "packed.tar.gz", tmp_path / "folder", tmp_path / "dataset"]
    sources[2].write_bytes(gzip.compress(make_tar(tmp_path / "plain.tar", 120, 1000).read_bytes()))
    sources[3].mkdir()
    for number, name in enumerate(("1_2.png", "3_4.bmp")):
        (sources[3] / name).write_bytes(make_image(500 + number, kind=name[-3:].upper()))
    options = ShardOptions(name="same", max_count=9, shard_size=1 << 16, workers=2, memory=memory)
    build_dataset(sources, tmp_path / "local", options)
    seen: list[ShardProgress] = []
    build_dataset(sources, tmp_path / "cluster", replace(options, cluster=scheduler), seen.append)
    assert tree(tmp_path / "cluster") == tree(tmp_path / "local")
    assert [p for p in seen if p.phase == "list"][-1].samples >= 150
    last = [p for p in seen if p.phase == "write"][-1]
    assert (last.samples, last.num_bytes) == (last.total_samples, last.total_bytes)


def test_build__where_a_worker_is_killed_on_the_way_has_the_same_bytes(tmp_path: Path, make_tar: MakeTar) -> None:
    sources = [make_tar(tmp_path / f"{name}.tar", 100, 100 * seed) for seed, name in enumerate("abc")]
    options = ShardOptions(name="same", max_count=4)
    build_dataset(sources, tmp_path / "local", options)
    killed: list[int] = []

    def kill(progress: ShardProgress) -> None:
        if progress.samples and progress.phase not in phases:
            phases.append(progress.phase)
            pid = next(child.pid for child in multiprocessing.active_children() if child.pid not in killed)
            assert pid is not None
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    phases: list[str] = ["index"]
    build_dataset(sources, tmp_path / "cluster", replace(options, cluster="local", workers=2), kill)
    assert phases == ["index", "list", "write"]
    assert tree(tmp_path / "cluster") == tree(tmp_path / "local")
    assert sorted(path.name for path in (tmp_path / "cluster").iterdir()) == sorted(
        path.name for path in (tmp_path / "local").iterdir()
    )


def test_build__on_a_cluster_to_a_remote_place(tmp_path: Path, make_tar: MakeTar, s3: S3Server) -> None:
    import fsspec

    sources = [make_tar(tmp_path / "a.tar", 20)]
    options = ShardOptions(name="same", max_count=7)
    build_dataset(sources, tmp_path / "local", options)
    there = replace(options, staging=tmp_path / "staging", cluster="local", workers=2)
    build_dataset(sources, f"{s3.url}/out", there)
    filesystem, root = fsspec.filesystem("s3", use_listings_cache=False), f"{s3.url}/out".removeprefix("s3://")
    found = {path[len(root) + 1 :]: filesystem.cat_file(path) for path in filesystem.find(root)}
    assert found == tree(tmp_path / "local")
    assert not (tmp_path / "staging").exists()


def test_write__of_a_shard_by_two_workers_at_once_is_harmless(
    tmp_path: Path, make_tar: MakeTar, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [make_tar(tmp_path / "a.tar", 40)]
    options = ShardOptions(name="same", max_count=10)
    build_dataset(sources, tmp_path / "local", options)

    def write_twice(client: Client, job: Any, tasks: Any, report: Any, done: Any) -> None:
        made = [make() for make in tasks]
        with cluster._stage(client, job.folder, job.files, job) as name:
            twice = [cluster._Task(index, "", (name, task)) for index, task in enumerate(task for task in made * 2)]
            for _ in cluster._run(client, cluster._write, iter(sorted(twice, key=lambda one: one.arguments[1].index))):
                report(0, 0)
        done(0)

    monkeypatch.setattr(cluster, "write_on_cluster", write_twice)
    build_dataset(sources, tmp_path / "cluster", replace(options, cluster=scheduler))
    assert tree(tmp_path / "cluster") == tree(tmp_path / "local")


def test_build__on_a_cluster_where_a_source_changes_ends_with_its_error_and_goes_on(
    tmp_path: Path, make_tar: MakeTar, scheduler: str
) -> None:
    source, out = make_tar(tmp_path / "a.tar", 200), tmp_path / "out"
    options = ShardOptions(name="same", max_count=2)
    build_dataset([source], tmp_path / "local", options)
    whole, times = source.read_bytes(), (source.stat().st_atime_ns, source.stat().st_mtime_ns)

    def cut(progress: ShardProgress) -> None:
        if progress.phase == "write" and progress.samples:
            os.truncate(source, 10_000)

    with pytest.raises(SourceError, match=r"a\.tar: changed while it was read"):
        build_dataset([source], out, replace(options, cluster=scheduler), cut)
    assert not list(out.glob(".unfinished/.run-*"))
    done = {path: path.stat().st_mtime_ns for path in out.glob(".unfinished/shard-*.arrow")}
    assert 0 < len(done) < 100
    source.write_bytes(whole)
    os.utime(source, ns=times)
    seen: list[ShardProgress] = []
    build_dataset([source], out, replace(options, cluster=scheduler), seen.append)
    assert next(progress.samples for progress in seen if progress.phase == "write") >= 2 * len(done)
    assert tree(out) == tree(tmp_path / "local")


def test_build__on_a_cluster_of_a_source_without_images_is_the_error_of_a_local_one(
    tmp_path: Path, scheduler: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"text")
    with pytest.raises(SourceError, match="not one image of this folder is whole"):
        build_dataset([tmp_path / "folder"], tmp_path / "out", ShardOptions(cluster=scheduler))
    assert not (tmp_path / "out").exists()


def test_build__on_workers_that_see_other_files_is_one_clear_line(
    tmp_path: Path, make_tar: MakeTar, scheduler: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tar(tmp_path / "a.tar", 5)
    monkeypatch.chdir(tmp_path)  # the workers stay where they are
    with pytest.raises(SourceError, match=r"^a\.tar: cannot be read by the worker at .* \(No such file.*absolute"):
        build_dataset([Path("a.tar")], tmp_path / "out", ShardOptions(cluster=scheduler))
    assert not (tmp_path / "out").exists()
    (tmp_path / "work").mkdir()
    with (
        pytest.raises(OutputError, match=r"^work: is another folder, or none, for the worker at .*--out"),
        cluster._stage(client, Path("work"), (), None),
    ):
        pass
    assert list((tmp_path / "work").iterdir()) == []


def test_run__task_that_kills_every_worker_is_one_clear_line() -> None:
    with open_cluster("local", 1) as client:
        task = cluster._Task(0, "OUT: shard 0", (1,))
        with pytest.raises(OutputError, match=r"^OUT: shard 0: 4 workers have died at it, the last one at tls://127"):
            list(cluster._run(client, os._exit, iter([task])))


def test_run__keeps_few_tasks_in_flight(client: Client) -> None:
    taken = 0

    def tasks() -> Iterator[cluster._Task]:
        nonlocal taken
        for index in range(100):
            taken += 1
            yield cluster._Task(index, "", (index,))

    run = cluster._run(client, abs, tasks())
    values = [next(run)[1]]
    assert taken <= 5  # two workers, two each, and one for that which is done
    values += [value for _, value in run]
    assert sorted(values) == list(range(100))


def test_stage__that_is_over_stops_what_still_runs(tmp_path: Path) -> None:
    stage = cluster._Stage(tmp_path / "mark", (), None)
    (tmp_path / "mark").touch()
    stage.check_lasts(1, 2)
    (tmp_path / "mark").unlink()
    with pytest.raises(Stopped):
        stage.check_lasts(1, 2)


RUN = """
import sys
from pathlib import Path
from dinowds.shard.build import ShardOptions, build_dataset

def report(progress):
    print(progress.phase, progress.samples, flush=True)

if __name__ == "__main__":
    options = ShardOptions(name="same", max_count=2, cluster="local", workers=2)
    build_dataset([Path(sys.argv[1])], sys.argv[2], options, report)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_build__on_a_local_cluster_ends_with_its_command_and_goes_on(
    tmp_path: Path, make_tar: MakeTar, sent: signal.Signals
) -> None:
    source, out = make_tar(tmp_path / "a.tar", 300), tmp_path / "out"
    options = ShardOptions(name="same", max_count=2)
    build_dataset([source], tmp_path / "local", options)
    script = tmp_path / "run.py"
    script.write_text(RUN)
    process = subprocess.Popen(
        [sys.executable, str(script), str(source), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("write") and line.split()[1] != "0":
            break
    else:
        pytest.fail(process.communicate()[1])
    if sent == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, sent)  # as a terminal does: the workers get it too
    _, said = process.communicate(timeout=60)  # returns once no worker holds the pipes
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else -signal.SIGINT), said
    assert said.count("Traceback") == (sent == signal.SIGINT), said
    assert "distributed" not in said.rpartition("KeyboardInterrupt")[2], said
    assert not (out / "manifest.json").exists()
    seen: list[ShardProgress] = []
    build_dataset([source], out, options, seen.append)
    assert next(progress.samples for progress in seen if progress.phase == "write") > 0
    assert tree(out) == tree(tmp_path / "local")


def test_open_cluster__that_is_not_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.5)
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=f"^--cluster: no scheduler answers at {address} "), open_cluster(address, 1):
        pass
    for spec in ("", "slurm", "127.0.0.1:8786", "http://host:80"):
        with pytest.raises(ConfigError, match=r"^--cluster: is '.*', expected local, tcp://"), open_cluster(spec, 1):
            pass


def test_open_cluster__without_workers_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.5)
    with dask.config.set(cluster._SETTINGS):
        servers = LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False})
    with servers, pytest.raises(ConfigError, match="has no workers"), open_cluster(servers.scheduler_address, 1):
        pass


def test_check_versions__names_who_has_another_one() -> None:
    def about(version: str | None) -> dict[str, Any]:
        return {"packages": {"dinowds": version}}

    versions = {"client": about("1"), "scheduler": about("1"), "workers": {"tcp://a:1": about("1")}}
    check_versions(versions, "tcp://s:1")
    with pytest.raises(ConfigError, match=r"^--cluster: tcp://b:1 has dinowds 2, expected 1 as here"):
        check_versions({**versions, "workers": {"tcp://a:1": about("1"), "tcp://b:1": about("2")}}, "tcp://s:1")
    with pytest.raises(ConfigError, match=r"^--cluster: the scheduler at tcp://s:1 has no dinowds, expected 1"):
        check_versions({**versions, "scheduler": about(None)}, "tcp://s:1")


def test_cluster__without_dask_names_the_extra() -> None:
    code = "import sys; sys.modules['distributed'] = None; import dinowds.shard.cluster"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError: --cluster: needs the package 'distributed'; pip install 'dinowds[cluster]'" in result.stderr


def test_errors__are_themselves_after_a_journey() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, DinowdsError):
            error = pickle.loads(pickle.dumps(kind("a: one line")))  # noqa: S301 - our own
            assert (type(error), str(error)) == (kind, "a: one line")


def test_open_cluster__leaves_no_thread_and_no_process() -> None:
    before = threading.active_count()
    with open_cluster("local", 1) as client:
        (pid,) = client.run(os.getpid).values()
    assert not Path(f"/proc/{pid}").exists()
    assert threading.active_count() <= before + 2  # Dask's own, which it uses again
