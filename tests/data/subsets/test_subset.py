"""Choosing, storing and opening subsets, against plain lists of rows."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import dinowds.data.subsets.entries
from dinowds.data.dataset import Dataset
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import Subset, describe, list_subsets, mask_file, write_subset
from dinowds.data.verify import verify_dataset
from dinowds.errors import ConfigError, DatasetError, OutputError
from dinowds.files import sha256_of
from dinowds.remote.files import RemoteFiles
from tests.index_only import Row, cut, random_rows, write_rows
from tests.servers import http_server
from tests.support import signed

ROWS = random_rows(500)
SIZES = (200, 1, 150, 100, 49)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_rows(tmp_path_factory.mktemp("subset") / "dataset", cut(ROWS, SIZES))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def choose(dataset: Dataset | Path, **options: Any) -> list[int]:
    opened = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    _, mask, _ = choose_subset(opened, "new", SubsetOptions(**options))
    found: list[int] = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
    return found


def make(location: str | Path, name: str, overwrite: bool = False, **options: Any) -> Subset:
    dataset = Dataset.open(location)
    subset, mask, _ = choose_subset(dataset, name, SubsetOptions(**options))
    write_subset(dataset.url, subset, mask, dataset.files, overwrite)
    return subset


def write_list(path: Path, entries: list[str]) -> Path:
    path.write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    return path


def matching(condition: Callable[[Row], bool]) -> list[int]:
    return [place for place, row in enumerate(ROWS) if condition(row)]


NAMES: dict[str, Callable[[Row], str]] = {
    "key": lambda row: str(row["key"]),
    "full name": lambda row: str(row["source_name"]),
    "slide/file name": lambda row: f"{row['slide']}/{row['source_name'].rsplit('/')[-1]}",
    "slide/stem": lambda row: f"{row['slide']}/{row['source_name'].rsplit('/')[-1].rsplit('.')[0]}",
    "file name": lambda row: str(row["source_name"].rsplit("/")[-1]),
    "stem": lambda row: str(row["source_name"].rsplit("/")[-1].rsplit(".")[0]),
}


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("batch_rows", [1, 201, 1 << 20])
def test_lists__keep_and_remove_by_any_name(
    folder: Path, tmp_path: Path, form: str, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dinowds.data.subsets.entries, "_BATCH_ROWS", batch_rows)
    places = [p for p in np.random.default_rng(0).permutation(len(ROWS)).tolist() if ROWS[p]["slide"]][:60]
    path = write_list(tmp_path / "list.txt", [NAMES[form](ROWS[place]) for place in places])
    assert choose(folder, keep=path) == sorted(places)
    assert choose(folder, remove=path) == sorted(set(range(len(ROWS))) - set(places))


def test_lists__as_editors_and_spreadsheets_write_them(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(
        "\ufeff# kept\r\n\r\n  {}  \r\n#x\r\n{}\r\n{}".format(*(ROWS[i]["key"] for i in (5, 3, 5))).encode()
    )
    assert choose(folder, keep=path) == [3, 5]


def test_lists__the_fuller_name_comes_first(tmp_path: Path) -> None:
    rows = random_rows(4)
    for row, name in zip(rows, ("a.jpg", "s/a.jpg", "t/b.jpg", "u/b.jpg"), strict=True):
        row |= {"source_name": name, "slide": None if "/" not in name else name[0]}
    folder = write_rows(tmp_path / "dataset", [rows])
    assert choose(folder, keep=write_list(tmp_path / "1", ["a.jpg"])) == [0]
    assert choose(folder, keep=write_list(tmp_path / "2", ["s/a.jpg", "t/b"])) == [1, 2]
    for entry in ("a", "b.jpg", "b"):
        with pytest.raises(DatasetError, match=rf"3: entry '{entry}' is the file name.* of 2 samples; give slide/file"):
            choose(folder, keep=write_list(tmp_path / "3", ["a.jpg", entry]))


def test_lists__the_same_full_name_twice_asks_for_the_key(tmp_path: Path) -> None:
    rows = [{**row, "source_name": "0.jpg"} for row in random_rows(3)]
    folder = write_rows(tmp_path / "dataset", cut(rows, (1, 2)))
    with pytest.raises(DatasetError, match=r"'0\.jpg' is the name in its source of 3 samples; give the sample's key"):
        choose(folder, keep=write_list(tmp_path / "list", ["0.jpg"]))


def test_lists__what_matches_nothing(folder: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path / "list", ["a", "b", ROWS[0]["key"], "c", "d"])
    _, _, notices = choose_subset(Dataset.open(folder), "new", SubsetOptions(keep=path))
    assert notices == [f"{path}: 4 of 5 entries are no sample of the dataset: 'a', 'b', 'c', …"]
    with pytest.raises(DatasetError, match=r"list: no entry is a sample of the dataset \('a'\)"):
        choose(folder, remove=write_list(path, ["a"]))
    with pytest.raises(DatasetError, match=r"list: no entry is a slide of the dataset \('a'\)"):
        choose(folder, slides=write_list(path, ["a"]))
    with pytest.raises(DatasetError, match="list: holds no entry"):
        choose(folder, keep=write_list(path, ["# a", ""]))
    with pytest.raises(DatasetError, match="nowhere: cannot be read"):
        choose(folder, keep=tmp_path / "nowhere")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="list: is not UTF-8"):
        choose(folder, keep=path)


def test_slides__by_name_or_with_their_cohort(folder: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path / "list", ["slide1", "cohort2/slide3"])
    expected = matching(lambda r: r["slide"] == "slide1" or (r["cohort"], r["slide"]) == ("cohort2", "slide3"))
    assert choose(folder, slides=path) == expected


def test_where__chooses(folder: Path) -> None:
    found = choose(folder, where="cohort == 'cohort1' and label_name != 'mucus'")
    assert found == matching(lambda r: r["cohort"] == "cohort1" and r["label"] != 3)


def test_conditions__all_hold(folder: Path, tmp_path: Path) -> None:
    keep = write_list(tmp_path / "keep", [row["key"] for row in ROWS[:300]])
    remove = write_list(tmp_path / "remove", [row["key"] for row in ROWS[100:200]])
    slides = write_list(tmp_path / "slides", ["slide1", "slide2"])
    found = choose(folder, keep=keep, remove=remove, slides=slides, where="label is not None")
    wanted = matching(lambda r: r["slide"] in ("slide1", "slide2") and r["label"] is not None)
    assert found == [place for place in wanted if place < 100 or 200 <= place < 300]


@pytest.mark.parametrize("most", [1, 3, 20, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_max_per_slide__caps_each_slide_of_each_cohort(folder: Path, most: int, seed: int) -> None:
    subset, mask, notices = choose_subset(
        Dataset.open(folder), "new", SubsetOptions(where="x != 5", max_per_slide=most, seed=seed)
    )
    found = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
    before = Counter((row["cohort"], row["slide"]) for row in ROWS if row["x"] != 5)
    after = Counter((ROWS[place]["cohort"], ROWS[place]["slide"]) for place in found)
    assert after == {pair: count if pair[1] is None else min(count, most) for pair, count in before.items()}
    without = sum(count for (_, slide), count in before.items() if slide is None)
    assert notices == [f"--max-per-slide: {without} samples have no slide and are not capped"]
    assert subset.slides == sum(slide is not None for _, slide in before)
    assert subset.cohorts == Counter(ROWS[place]["cohort"] for place in found)
    assert subset.samples == len(found)


def test_max_per_slide__draws_evenly(folder: Path) -> None:
    times: defaultdict[int, int] = defaultdict(int)
    for seed in range(300):
        for place in choose(folder, where="slide is not None", max_per_slide=5, seed=seed):
            times[place] += 1
    sizes = Counter((row["cohort"], row["slide"]) for row in ROWS)
    for place in matching(lambda r: r["slide"] is not None):
        share = min(1.0, 5 / sizes[(ROWS[place]["cohort"], ROWS[place]["slide"])])
        assert abs(times[place] / 300 - share) <= 6 * (share * (1 - share) / 300) ** 0.5


@pytest.mark.parametrize("fraction", [0.002, 0.1, 1 / 3, 0.7, 0.999, 1.0])
def test_fraction__takes_an_exact_count(folder: Path, fraction: float) -> None:
    assert len(choose(folder, fraction=fraction)) == round(fraction * 500)
    assert choose(folder, fraction=fraction) == choose(folder, fraction=fraction, seed=0)


def test_choice__is_the_same_for_ever(tmp_path: Path) -> None:
    rows = [{**row, "slide": f"s{place % 5}", "cohort": "c"} for place, row in enumerate(ROWS[:40])]
    folder = write_rows(tmp_path / "dataset", [rows])
    assert choose(folder, fraction=0.25, seed=3) == [1, 8, 12, 13, 14, 15, 28, 30, 32, 34]
    assert choose(folder, max_per_slide=2, seed=3) == [3, 14, 15, 16, 20, 21, 22, 23, 29, 32]
    assert choose(folder, fraction=0.25, seed=3) != choose(folder, fraction=0.25, seed=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_per_slide": 0}, "--max-per-slide is 0, expected at least 1"),
        ({"fraction": 0.0}, "--fraction is 0.0"),
        ({"fraction": 1.5}, "--fraction is 1.5"),
        ({"fraction": float("nan")}, "--fraction is nan"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_options__that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SubsetOptions(**options)


def test_choice__of_nothing_is_an_error(folder: Path) -> None:
    with pytest.raises(DatasetError, match="no sample is left by --where; nothing was written"):
        choose(folder, where="width == 0")
    with pytest.raises(DatasetError, match="no sample is left by --where, --fraction"):
        choose(folder, where="label == 1", fraction=0.001)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a b", "ä", "a:b", "a" * 201])
def test_name__that_cannot_be(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected up to 200 letters, digits"):
        choose_subset(Dataset.open(folder), name, SubsetOptions())


def test_name__as_long_as_can_be(copy: Path) -> None:
    make(copy, "a" * 200, fraction=0.5)
    assert len(Dataset.open(f"{copy}:{'a' * 200}")) == 250


def test_open__a_subset(copy: Path) -> None:
    subset = make(copy, "fold_0", where="label == 1")
    expected = matching(lambda r: r["label"] == 1)
    dataset = Dataset.open(f"{copy}:fold_0")
    assert (len(dataset), dataset.subset) == (len(expected), "fold_0")
    assert dataset.selection.all_ids().tolist() == expected
    assert isinstance(dataset.selection.mask, np.memmap)
    assert [sample.key for sample in dataset] == [ROWS[place]["key"] for place in expected]
    assert dataset[0].key == ROWS[0]["key"]
    whole = Dataset.open(copy)
    assert dataset.fingerprint == f"{whole.fingerprint}:{subset.file_sha256}" != whole.fingerprint
    again: Dataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert again.selection.all_ids().tolist() == expected
    assert len(pickle.dumps(dataset)) - len(pickle.dumps(whole)) < 1000
    assert np.load(copy / "subsets" / "fold_0.npy", allow_pickle=False).dtype == np.uint8


def test_open__a_subset_of_a_subset(copy: Path) -> None:
    make(copy, "a", where="label == 1", fraction=0.8)
    outer = Dataset.open(f"{copy}:a").selection.all_ids().tolist()
    inner = make(f"{copy}:a", "b", where="width > 100")
    assert Dataset.open(f"{copy}:b").selection.all_ids().tolist() == [i for i in outer if ROWS[i]["width"] > 100]
    assert inner.definition["of"]["file"] == "a"
    assert list_subsets(str(copy), RemoteFiles()) == ["a", "b"]


def test_mask_file__is_what_numpy_writes(tmp_path: Path) -> None:
    for size in (1, 7, 1000, 123_456):
        mask = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
        np.save(tmp_path / "mask.npy", mask)
        assert mask_file(mask) == (tmp_path / "mask.npy").read_bytes()


def test_write__the_same_again_is_fine_and_another_is_refused(copy: Path) -> None:
    dataset = Dataset.open(copy)
    subset, mask, _ = choose_subset(dataset, "a", SubsetOptions(fraction=0.5))
    assert write_subset(dataset.url, subset, mask, dataset.files)
    assert not write_subset(dataset.url, subset, mask, dataset.files)
    other, other_mask, _ = choose_subset(dataset, "a", SubsetOptions(fraction=0.4))
    with pytest.raises(OutputError, match=r"a\.json: another .* name \(250 samples: fraction 0\.5, seed 0\)"):
        write_subset(dataset.url, other, other_mask, dataset.files)
    assert len(Dataset.open(f"{copy}:a")) == 250
    assert write_subset(dataset.url, other, other_mask, dataset.files, overwrite=True)
    assert len(Dataset.open(f"{copy}:a")) == 200


def test_open__unknown_subset_lists_those_that_exist(copy: Path) -> None:
    with pytest.raises(DatasetError, match="has no subset 'x'; it has none; make one"):
        Dataset.open(f"{copy}:x")
    make(copy, "fold_0", fraction=0.5)
    make(copy, "fold_1", fraction=0.5)
    with pytest.raises(DatasetError, match="has no subset 'fold_2'; it has 'fold_0', 'fold_1'; did you mean 'fold_"):
        Dataset.open(f"{copy}:fold_2")


def test_open__subset_of_a_dataset_that_was_made_again(copy: Path) -> None:
    make(copy, "a", fraction=0.5)
    write_rows(copy, cut(random_rows(500, seed=1), SIZES))
    with pytest.raises(DatasetError, match=r"a\.json: is a subset of another .*--name a --overwrite.*fraction 0\.5"):
        Dataset.open(f"{copy}:a")
    make(copy, "a", overwrite=True, fraction=0.5)
    assert len(Dataset.open(f"{copy}:a")) == 250


def test_open__damaged_subset_is_one_line(copy: Path) -> None:
    make(copy, "a", fraction=0.5)
    mask, about = copy / "subsets" / "a.npy", copy / "subsets" / "a.json"
    content, text = mask.read_bytes(), about.read_text()
    for changed in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"", pickle.dumps([1])):
        mask.write_bytes(changed)
        with pytest.raises(DatasetError, match=r"a\.npy: cannot be used .*sha256.*make the subset again"):
            Dataset.open(f"{copy}:a")
    mask.unlink()
    with pytest.raises(DatasetError, match=r"a\.npy: cannot be used"):
        Dataset.open(f"{copy}:a")
    mask.write_bytes(content)
    infinite, other = ('"samples": 250', '"samples": 1e999'), ('"format_version": 1', '"format_version": 2')
    for broken in ("", "{}", "[]", "[" * 100_000, text.replace(*infinite), text.replace(*other)):
        about.write_text(broken)
        with pytest.raises(DatasetError, match=r"a\.json: is not a subset of dinowds") as caught:
            Dataset.open(f"{copy}:a")
        assert "\n" not in str(caught.value)
    about.write_text(text.replace('"samples": 250', '"samples": 249'))
    with pytest.raises(DatasetError, match="has 250 samples, its description says 249"):
        Dataset.open(f"{copy}:a")


def zipped(mask: bytes) -> bytes:
    content = io.BytesIO()
    np.savez(content, mask=np.frombuffer(mask, np.uint8))
    return content.getvalue()


NO_MASKS: dict[str, Callable[[bytes], bytes]] = {
    "zip": zipped,
    "empty": lambda _: b"",
    "long header": lambda _: b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"-" * 9000,
    "pickle": pickle.dumps,
    "short": lambda mask: mask[:-1],
    "long": lambda mask: mask + b"\0",
    "of another type": lambda mask: mask.replace(b"|u1", b"|i1"),
}


@pytest.mark.parametrize("kind", NO_MASKS)
def test_open__what_is_no_mask_by_whoever_wrote_the_description(copy: Path, kind: str) -> None:
    make(copy, "a", fraction=0.5)
    mask, about = copy / "subsets" / "a.npy", copy / "subsets" / "a.json"
    before = sha256_of(mask)
    mask.write_bytes(NO_MASKS[kind](mask.read_bytes()))
    about.write_text(json.dumps(signed(json.loads(about.read_text().replace(before, sha256_of(mask))))))
    with pytest.raises(DatasetError, match=r"a\.npy: cannot be used \(it is no mask of 500 samples\)"):
        Dataset.open(f"{copy}:a")
    (found,) = [damage.problem for damage in verify_dataset(copy) if "subsets" in damage.shard]
    assert found.startswith("its mask ")


def test_describe__of_whatever_is_there() -> None:
    assert describe({"keep": {}, "where": "x > 0", "of": {"file": "a"}}) == "keep None, where x > 0, of a"


_KILLED = """
import os, signal, sys
from pathlib import Path
import dinowds.data.subsets.subset as module
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.dataset import Dataset
write, left = module.write_atomic, int(sys.argv[2])
def kill_after(path, content):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
    left -= 1
module.write_atomic = kill_after
dataset = Dataset.open(sys.argv[1])
subset, mask, _ = choose_subset(dataset, "a", SubsetOptions(fraction=0.2))
module.write_subset(dataset.url, subset, mask, dataset.files, overwrite=True)
"""


@pytest.mark.parametrize("writes", [0, 1])
def test_write__killed_leaves_no_half_subset(copy: Path, writes: int) -> None:
    make(copy, "a", fraction=0.5)
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(copy), str(writes)], check=False)
    assert killed.returncode == -9
    with pytest.raises(DatasetError, match="has no subset 'a'"):
        Dataset.open(f"{copy}:a")
    make(copy, "a", fraction=0.2)
    assert len(Dataset.open(f"{copy}:a")) == 100


def test_remote__subsets_are_written_and_read_there(folder: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/remote/patches", recursive=True)
    try:
        url = "memory://remote/patches"
        make(url, "a", where="label == 1")
        assert files.exists("/remote/patches/subsets/a.npy")
        dataset = Dataset.open(f"{url}:a")
        expected = matching(lambda r: r["label"] == 1)
        assert dataset.selection.all_ids().tolist() == expected
        assert isinstance(dataset.selection.mask, np.memmap)
        assert [sample.key for sample in dataset] == [ROWS[place]["key"] for place in expected]
        assert list_subsets(url, dataset.files) == ["a"]
        with pytest.raises(OutputError, match="another subset has this name"):
            make(url, "a", where="label == 2")
        make(url, "a", overwrite=True, where="label == 2")
        assert len(Dataset.open(f"{url}:a")) == len(matching(lambda r: r["label"] == 2))
        with pytest.raises(DatasetError, match="has no subset 'b'; it has 'a'"):
            Dataset.open(f"{url}:b")
    finally:
        files.rm("/remote", recursive=True)


def test_write__the_same_list_by_another_path_is_the_same(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "list", [row["key"] for row in ROWS[:9]])
    make(copy, "a", keep=Path("list"))
    made = make(copy, "a", keep=tmp_path / "list")
    assert made.definition["keep"]["file"] == "list"
    assert str(tmp_path) not in (copy / "subsets" / "a.json").read_text()


def test_lists__with_a_name_that_is_not_utf8(copy: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    write_list(path, [row["key"] for row in ROWS[:9]])
    assert make(copy, "a", keep=path).definition["keep"]["file"] == "\\xff.txt"
    assert len(Dataset.open(f"{copy}:a")) == 9


def test_remote__nothing_shows_a_secret(copy: Path) -> None:
    with http_server(copy.parent) as server:
        url = f"{server.url.replace('://', '://user:SECRET@')}/copy"
        shown = f"{server.url}/copy"
        with pytest.raises(DatasetError, match=f"^{shown}: has no subset 'x'; the server lists none$"):
            Dataset.open(f"{url}:x")
        make(copy, "a", fraction=0.5)
        about = copy / "subsets" / "a.json"
        text = about.read_text()
        for changed in ("[]", text.replace('"samples_sha256": "', '"samples_sha256": "0'), text.replace("250", "251")):
            about.write_text(changed)
            with pytest.raises(DatasetError, match=f"^{shown}[:/]") as caught:
                Dataset.open(f"{url}:a")
            assert "SECRET" not in str(caught.value)
        about.write_text(text)
        mask = copy / "subsets" / "a.npy"
        before = sha256_of(mask)
        mask.write_bytes(mask.read_bytes()[:-1])
        about.write_text(text.replace(before, sha256_of(mask)))
        with pytest.raises(DatasetError, match=f"^{shown}/subsets/a.npy: cannot be used"):
            Dataset.open(f"{url}:a")
        (copy / "samples.parquet").unlink()
        manifest = copy / "manifest.json"
        manifest.write_text(re.sub('"samples_sha256": ".', '"samples_sha256": "0', manifest.read_text()))
        with pytest.raises(DatasetError, match=f"^{shown}/samples.parquet: no such file") as caught:
            Dataset.open(url)
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("root", ["memory://user:SECRET@remote/patches"])
def test_write__refused_shows_no_secret(root: str) -> None:
    files = fsspec.filesystem("memory")
    try:
        files.pipe(f"{root}/subsets/a.json", b"{}")
        subset = Subset("a", {}, 1, 0, {}, "", "")
        with pytest.raises(OutputError, match=r"^memory://remote/patches/subsets/a\.json: another subset"):
            write_subset(root, subset, np.zeros(1, np.uint8), RemoteFiles())
    finally:
        files.rm(root, recursive=True)


def test_remote__over_http(copy: Path) -> None:
    make(copy, "a", fraction=0.5)
    with http_server(copy.parent) as server:
        dataset = Dataset.open(f"{server.url}/copy:a")
        assert dataset.selection.all_ids().tolist() == Dataset.open(f"{copy}:a").selection.all_ids().tolist()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(len, (dataset.selection,)) == 250


def test_description__says_how_it_was_made(copy: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path / "list", [row["key"] for row in ROWS[:9]])
    make(copy, "a", keep=path, where="width > 0", max_per_slide=3, seed=7)
    content = json.loads((copy / "subsets" / "a.json").read_text())
    assert content["definition"] == {
        "keep": {"file": "list", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "entries": 9},
        "where": "width > 0",
        "max_per_slide": 3,
        "seed": 7,
    }
    assert content["samples_sha256"] == Dataset.open(copy).manifest.samples_sha256
