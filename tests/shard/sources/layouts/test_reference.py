"""Roots of the reference system: which list is taken, and that its images come in its order."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinowds.errors import SourceError
from dinowds.shard.sources.layouts import reference
from tests.shard.sources.layouts import list_all, open_one, payloads

MakeTar = Callable[..., Path]


def _members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return [member for member in tar.getmembers() if member.isfile()]


def _save_entries(path: Path, tar: Path, which: Sequence[int], classes: Sequence[int] | None = None) -> Any:
    """Entries of some members of a tar, in the order of `which`."""
    members = _members(tar)
    rows = [
        (
            classes[row] if classes else 0,
            index,
            members[index].offset_data,
            members[index].offset_data + members[index].size,
        )
        for row, index in enumerate(which)
    ]
    entries = np.array(rows, np.uint64)
    np.save(path, entries)
    return entries


def _save_names(path: Path, tar: Path) -> None:
    names = {index: Path(member.name).name for index, member in enumerate(_members(tar))}
    np.save(path, names)  # type: ignore[arg-type]


def _bytes(tar: Path, entries: Any) -> list[bytes]:
    content = tar.read_bytes()
    return [content[int(row[2]) : int(row[3])] for row in entries]


@pytest.fixture
def one(tmp_path: Path, make_tar: MakeTar) -> Path:
    """One tar of 12 images, of which 8 are listed."""
    tar = make_tar(tmp_path / "pretrain_dataset.tar", 12)
    _save_entries(tmp_path / "pretrain_entries.npy", tar, [11, 3, 4, 0, 7, 6, 2, 9])
    _save_names(tmp_path / "pretrain_file_indices.npy", tar)
    return tmp_path


@pytest.fixture
def many(tmp_path: Path, make_tar: MakeTar) -> dict[str, Any]:
    """Three cohorts in a list of a fold, and in one of all; their rows by cohort and fold."""
    found: dict[str, Any] = {"root": tmp_path}
    numbers = {7: "b", 2: "a.x", 300: "c"}
    lists: dict[str, list[Any]] = {"": [], "_fold_0": []}
    for number, name in numbers.items():
        tar = make_tar(tmp_path / f"{name}.tar", 11, 100 * number)
        _save_names(tmp_path / f"{name}_file_indices.npy", tar)
        for fold, which in (("", range(11)), ("_fold_0", [10, 1, 5])):
            entries = _save_entries(tmp_path / f"{name}_entries{fold}.npy", tar, which)
            lists[fold].append(np.column_stack([entries, np.full(len(entries), number, np.uint64)]))
            found[name + fold] = _bytes(tar, entries)
    for fold, parts in lists.items():
        np.save(tmp_path / f"pretrain_entries{fold}.npy", np.concatenate(parts))
    np.save(tmp_path / "cohort_indices.npy", numbers)  # type: ignore[arg-type]
    return found


@pytest.fixture
def labelled(tmp_path: Path, make_tar: MakeTar) -> Path:
    tar = make_tar(tmp_path / "downstream_dataset.tar", 10)
    _save_entries(tmp_path / "query_entries.npy", tar, [1, 0, 2], [1, 0, 1])
    _save_entries(tmp_path / "test_entries.npy", tar, [5, 4], [0, 0])
    _save_entries(tmp_path / "query_entries_fold_1.npy", tar, [9], [1])
    np.save(tmp_path / "class-ids.npy", np.array([[0, "normal"], [1, "tumour"]]))
    return tmp_path


@pytest.mark.parametrize("fold", [None, "fold_0"])
@pytest.mark.parametrize("is_named", [False, True])
def test_cohorts__come_entry_by_entry(many: dict[str, Any], fold: str | None, is_named: bool) -> None:
    text = str(many["root"])
    if is_named:
        text = f"PathologyFoundation:root={text}" + (f":subset={fold}" if fold else "")
    source = open_one(reference, text, fold=fold)
    assert source.cohort == many["root"].name
    assert [file.file.name for file in source.files] == ["a.x.tar", "b.tar", "c.tar"]
    suffix = f"_{fold}" if fold else ""
    for (items, content), name in zip(list_all(reference, source), ("a.x", "b", "c"), strict=True):
        assert payloads(items, content) == many[name + suffix]
        assert items.facts.to_pydict() == {"cohort": [name] * len(items.names)}
        assert not items.quarantine
    sidecars = {Path(file.path).name for file in source.sidecars}
    assert f"pretrain_entries{suffix}.npy" in sidecars
    assert {"cohort_indices.npy", "b_file_indices.npy"} <= sidecars
    assert "query_entries.npy" not in sidecars


def test_cohorts__in_any_order_of_the_list(many: dict[str, Any]) -> None:
    """Entries of several cohorts may be mixed."""
    path = many["root"] / "pretrain_entries.npy"
    entries = np.load(path)
    np.save(path, entries[np.random.default_rng(0).permutation(len(entries))])
    mixed = np.load(path)
    for (items, content), name, number in zip(
        list_all(reference, open_one(reference, many["root"])), ("a.x", "b", "c"), (2, 7, 300), strict=True
    ):
        assert payloads(items, content) == _bytes(many["root"] / f"{name}.tar", mixed[mixed[:, 4] == number])
        assert sorted(payloads(items, content)) == sorted(many[name])


def test_cohorts__are_one_where_the_request_says_so(many: dict[str, Any]) -> None:
    source = open_one(reference, many["root"], cohort="all")
    assert source.cohort == "all"
    assert [items.facts for items, _ in list_all(reference, source)] == [None] * 3


def test_cohorts__that_were_not_joined(many: dict[str, Any]) -> None:
    for name in ("pretrain_entries.npy", "pretrain_entries_fold_0.npy", "cohort_indices.npy"):
        (many["root"] / name).unlink()
    for fold, suffix in ((None, ""), ("fold_0", "_fold_0")):
        source = open_one(reference, many["root"], fold=fold)
        for (items, content), name in zip(list_all(reference, source), ("a.x", "b", "c"), strict=True):
            assert payloads(items, content) == many[name + suffix]
            assert set(items.facts["cohort"].to_pylist()) == {name}


def test_one_tar__has_full_names_and_no_labels(one: Path) -> None:
    source = open_one(reference, f"Pathology:root={one}")
    [(items, content)] = list_all(reference, source)
    assert items.names.to_pylist()[:3] == [b"slide2/11_22.jpg", b"slide0/3_6.jpg", b"slide0/4_8.jpg"]
    assert payloads(items, content) == _bytes(one / "pretrain_dataset.tar", np.load(one / "pretrain_entries.npy"))
    assert items.facts is None
    assert items.skipped == {reference.NOT_LISTED: 4}


def test_one_tar__of_exact_floats(one: Path) -> None:
    """uint64 joined with int64 became float64."""
    entries = np.load(one / "pretrain_entries.npy")
    np.save(one / "pretrain_entries.npy", entries.astype(np.float64))
    [(items, content)] = list_all(reference, open_one(reference, one))
    assert payloads(items, content) == _bytes(one / "pretrain_dataset.tar", entries)


@pytest.mark.parametrize(
    ("request_", "names", "labels"),
    [
        ({"split": "query"}, ["1_2", "0_0", "2_4"], ["tumour", "normal", "tumour"]),
        ({"split": "test"}, ["5_10", "4_8"], ["normal", "normal"]),
        ({"split": "query", "fold": "fold_1"}, ["9_18"], ["tumour"]),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_labelled__by_split_and_fold(
    labelled: Path, request_: dict[str, str], names: list[str], labels: list[str], is_named: bool
) -> None:
    if is_named:
        fold = f":subset={request_['fold']}" if "fold" in request_ else ""
        source = open_one(reference, f"KNN:root={labelled}:split={request_['split']}{fold}")
    else:
        source = open_one(reference, labelled, **request_)
    [(items, _)] = list_all(reference, source)
    assert [Path(name.decode()).stem for name in items.names.to_pylist()] == names
    assert items.facts["label"].to_pylist() == labels


def test_labelled__without_names_of_classes(labelled: Path) -> None:
    (labelled / "class-ids.npy").unlink()
    [(items, _)] = list_all(reference, open_one(reference, labelled, split="query", fold=None))
    assert items.facts["label"].to_pylist() == ["1", "0", "1"]


def test_pretrain__beside_a_labelled_set_has_no_labels(one: Path, make_tar: MakeTar) -> None:
    """class-ids.npy is the labelled set's."""
    tar = make_tar(one / "downstream_dataset.tar", 2)
    _save_entries(one / "test_entries.npy", tar, [0, 1], [0, 1])
    np.save(one / "class-ids.npy", np.array([[0, "normal"], [1, "tumour"]], object))
    [(items, _)] = list_all(reference, open_one(reference, one, split="pretrain"))
    assert items.facts is None
    [(items, _)] = list_all(reference, open_one(reference, one, split="test"))
    assert items.facts["label"].to_pylist() == ["normal", "tumour"]


def test_pretrain__with_labels(one: Path) -> None:
    entries = np.load(one / "pretrain_entries.npy")
    entries[:, 0] = np.arange(8) % 2
    np.save(one / "pretrain_entries.npy", entries)
    np.save(one / "class-ids.npy", np.array([[1, "tumour"], [0, "normal"]], object))
    [(items, _)] = list_all(reference, open_one(reference, one))
    assert items.facts["label"].to_pylist() == ["normal", "tumour"] * 4


def test_recognises__nothing_else(tmp_path: Path, make_tar: MakeTar) -> None:
    for name in ("entries.npy", "query_entries.npy", "pretrain_entries.npy", "x_entries.npy"):
        np.save(tmp_path / name, np.zeros((1, 4)))
    make_tar(tmp_path / "y.tar", 1)
    assert not reference.recognises(tmp_path)
    assert not reference.recognises(tmp_path / "y.tar")
    assert not reference.recognises(Path("KNN"))
    assert not reference.recognises(Path("Other:root=/data"))
    make_tar(tmp_path / "x.tar", 1)
    assert reference.recognises(tmp_path)


def _save(path: Path, value: Any) -> None:
    np.save(path, value)


def _change(root: Path, row: int, column: int, value: float, kind: Any = np.float64) -> None:
    entries = np.load(root / "pretrain_entries.npy").astype(kind)
    entries[row, column] = value
    np.save(root / "pretrain_entries.npy", entries)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: _change(root, 3, 2, 512.5), r"pretrain_entries\.npy: entry 3 is .*512\.5.*, expected whole"),
        (lambda root: _change(root, 3, 3, np.nan), r"pretrain_entries\.npy: entry 3 is .*nan"),
        (lambda root: _change(root, 3, 2, 2.0**53), r"entry 3 is "),
        (lambda root: _change(root, 3, 2, -512, np.int64), r"entry 3 is .*-512"),
        (lambda root: _change(root, 3, 3, 1, np.uint64), r"entry 3 is \[0, 0, \d+, 1\]"),
        (
            lambda root: _change(root, 3, 2, 513, np.uint64),
            r"entry 3 is bytes 513 to \d+ of .*: 'slide0/0_0\.jpg' is bytes 512",
        ),
        (lambda root: _change(root, 2, 3, 10**9, np.uint64), r"entry 2 is bytes \d+ to 1000000000"),
        (lambda root: _change(root, 0, 2, 0, np.uint64), r"entry 0 is bytes 0 to"),
        (
            lambda root: _change(root, 1, 1, 5, np.uint64),
            r"entry 1 is 'slide0/3_6\.jpg' .*filename 5.*calls '5_10\.jpg'",
        ),
        (lambda root: _change(root, 1, 1, 99, np.uint64), r"entry 1 is 'slide0/3_6\.jpg' .*filename 99.*does not list"),
        (
            lambda root: _save(root / "pretrain_entries.npy", np.zeros((3, 3), np.uint64)),
            r"is uint64 \[3, 3\], expected",
        ),
        (
            lambda root: _save(root / "pretrain_entries.npy", np.zeros((0, 4), np.uint64)),
            r"is uint64 \[0, 4\], expected",
        ),
        (lambda root: _save(root / "pretrain_entries.npy", np.array(["a"])), r"is <U1 \[1\], expected uint64"),
        (lambda root: _save(root / "pretrain_entries.npy", {0: "a"}), r"is object \[\], expected|holds"),
        (
            lambda root: _save(root / "pretrain_entries.npy", np.zeros((3, 5), np.uint64)),
            r"cohort_indices\.npy: no such",
        ),
        (lambda root: _save(root / "class-ids.npy", np.array([[1, "a"]], object)), r"class-ids\.npy: has no class 0"),
        (lambda root: _save(root / "class-ids.npy", np.array([["x", "a"]])), r"class-ids\.npy: has the class 'x'"),
        (lambda root: _save(root / "class-ids.npy", np.array([["0", "a"], ["0", "b"]])), r"two names for class 0"),
        (lambda root: _save(root / "class-ids.npy", np.zeros((2, 2))), r"is float64 \[2, 2\], expected text"),
    ],
)
def test_damage__is_one_line(one: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(one)
    with pytest.raises(SourceError, match=said) as error:
        list_all(reference, open_one(reference, one))
    assert "\n" not in str(error.value)


def test_cohorts__that_are_missing_or_hostile(many: dict[str, Any]) -> None:
    indices = many["root"] / "cohort_indices.npy"
    for names, said in (
        ({7: "b", 2: "a.x"}, r"pretrain_entries\.npy: has the cohort 300, which cohort_indices\.npy does not list"),
        ({7: "b", 2: "a.x", 300: "d"}, r"d\.tar: no such file"),
        ({7: "b", 2: "a.x", 300: "../c"}, r"cohort_indices\.npy: has the cohort '\.\./c', which cannot be"),
    ):
        np.save(indices, names)  # type: ignore[arg-type]
        with pytest.raises(SourceError, match=said):
            open_one(reference, many["root"])


def test_choice__lists_what_there_is(labelled: Path) -> None:
    for request, said in (
        ({}, r"has several splits; choose one with --split: query, test"),
        ({"split": "pretrain"}, r"has no split 'pretrain'; choose one with --split: query, test"),
        ({"split": "test", "fold": "x"}, r"has no fold 'x' of the split test; choose one with --fold: it has none"),
        ({"split": "query", "fold": "x"}, r"has no fold 'x' of the split query; choose one with --fold: fold_1"),
    ):
        with pytest.raises(SourceError, match=said):
            open_one(reference, labelled, **request)
    (labelled / "query_entries.npy").rename(labelled / "query_entries_fold_0.npy")
    with pytest.raises(
        SourceError, match=r"has several folds of the split query; choose one with --fold: fold_0, fold_1"
    ):
        open_one(reference, labelled, split="query")


def test_names_of_datasets__that_are_wrong(one: Path) -> None:
    for text, request, said in (
        (f"Pathology:root={one}:subset=a", {"fold": "b"}, r"names 'a', but --fold is 'b'"),
        (f"Pathology:root={one}:root={one}", {}, r"expected root=, split= and subset=, each once"),
        (f"Pathology:root={one}:extra=1", {}, r"has 'extra=1'"),
        ("KNN:split=test", {}, r"has no root=FOLDER"),
        (f"KNN:root={one}/none:split=test", {}, r"is no folder"),
        (f"KNN:root={one}:split=test", {}, r"has no split 'test'; choose one with --split: pretrain"),
    ):
        with pytest.raises(SourceError, match=said):
            open_one(reference, text, **request)


def test_tar__that_is_cut_or_empty(one: Path) -> None:
    tar = one / "pretrain_dataset.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: _members(tar)[-1].offset_data + 10])
    with pytest.raises(SourceError, match="is cut short"):
        list_all(reference, open_one(reference, one))
    tar.write_bytes(bytes(10240))
    with pytest.raises(SourceError, match="it has no files"):
        list_all(reference, open_one(reference, one))
    tar.write_bytes(content.rstrip(b"\0").ljust(-(-len(content.rstrip(b"\0")) // 512) * 512, b"\0"))
    [(items, _)] = list_all(reference, open_one(reference, one))
    assert [reason for _, _, reason in items.quarantine] == ["tar without its end marker: it may be cut short"]
