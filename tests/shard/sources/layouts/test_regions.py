"""Region tensors as sources: what torch wrote comes back bit by bit, and everything else is named."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from dinowds.errors import SourceError
from dinowds.shard.sources.check import EXTENSIONS, Checks
from dinowds.shard.sources.images import DAMAGED, ImageInfo, NotTaken
from dinowds.shard.sources.layouts import regions
from dinowds.shard.sources.layouts.regions import (
    NOT_A_SQUARE,
    NOT_A_TENSOR,
    NOT_A_TENSOR_NAME,
    NOT_FINITE,
    NOT_FLOATS,
    OVERFLOW,
    check_regions,
    describe_region,
    load_region,
    region_payload,
    spool_regions,
)
from dinowds.shard.sources.source import Items, Request
from tests.shard.sources.layouts import open_one, payloads


def _tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _spooled(root: Path, tar: Path) -> tuple[Items, bytes]:
    """The items of a folder, read from the tar that it was spooled to."""
    with open(tar, "wb") as out:
        spool_regions(root, str(root), out)
    content = tar.read_bytes()
    return regions.list_items(open_one(regions, root), 0, lambda place, size: content[place : place + size]), content


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 3), (4, 4, 3), (1, 5), (1, 1, 5)])
@pytest.mark.parametrize("is_zip", [True, False])
def test_load_region__is_row_major(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...], is_zip: bool) -> None:
    tensor = _tensor(0, *shape).to(dtype)
    torch.save(tensor, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    region = load_region(tmp_path / "a.pt")
    assert region.dtype == np.float16
    assert region.shape[0] == region.shape[1]
    np.testing.assert_array_equal(region.reshape(-1, shape[-1]), tensor.half().numpy().reshape(-1, shape[-1]))


def test_load_region__of_views_and_parameters(tmp_path: Path) -> None:
    tensor = _tensor(0, 3, 9)
    for number, value in enumerate((tensor.T, tensor.T[:4], torch.nn.Parameter(tensor.T.contiguous()))):
        path = tmp_path / f"{number}.pt"
        torch.save(value, path)
        expected = value.detach().half().numpy()
        np.testing.assert_array_equal(load_region(path).reshape(expected.shape), expected)


def test_missing_cells__are_nan(tmp_path: Path) -> None:
    tensor = _tensor(0, 16, 3)
    tensor[5] = torch.nan
    torch.save(tensor, tmp_path / "a.pt")
    region = load_region(tmp_path / "a.pt")
    assert np.argwhere(np.isnan(region).all(axis=2)).tolist() == [[1, 1]]
    assert describe_region(region_payload(region)) == ImageInfo("npy", 4, 4)


class _Calls:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('ran')",)


def _save(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", NOT_A_TENSOR),
        (b"text" * 100, NOT_A_TENSOR),
        (_save(torch.zeros(16, 3))[:300], NOT_A_TENSOR),
        (_save({"features": torch.zeros(16, 3)}), NOT_A_TENSOR),
        (_save(_Calls()), NOT_A_TENSOR),
        (pickle.dumps(_Calls()), NOT_A_TENSOR),
        (_save(torch.zeros(16, 3).to_sparse()), NOT_A_TENSOR),
        (_save(torch.zeros(16, 3, device="meta")), NOT_A_TENSOR),
        (_save(torch.zeros(16, 3, dtype=torch.int32)), NOT_FLOATS),
        (_save(torch.zeros(16, 3, dtype=torch.complex64)), NOT_FLOATS),
        (_save(torch.zeros(15, 3)), NOT_A_SQUARE),
        (_save(torch.zeros(4, 3, 3)), NOT_A_SQUARE),
        (_save(torch.zeros(0, 3)), NOT_A_SQUARE),
        (_save(torch.zeros(16, 0)), NOT_A_SQUARE),
        (_save(torch.zeros(16)), NOT_A_SQUARE),
        (_save(torch.zeros(1, 4, 4, 3)), NOT_A_SQUARE),
        (_save(torch.zeros(1, 1).expand(1 << 40, 1 << 20)), NOT_A_SQUARE),
        (_save(torch.full((16, 3), torch.nan)), NOT_FINITE),
        (_save(torch.tensor([[1.0, torch.nan]] + [[1.0, 2.0]] * 3)), NOT_FINITE),
        (_save(torch.full((16, 3), torch.inf, dtype=torch.float16)), NOT_FINITE),
        (_save(torch.full((16, 3), 65520.0)), OVERFLOW),
        (_save(torch.full((16, 3), -1e300, dtype=torch.float64)), OVERFLOW),
    ],
)
def test_load_region__says_what_it_is_not(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(NotTaken) as error:
        load_region(tmp_path / "a.pt")
    assert str(error.value) == reason


def test_region_payload__is_what_numpy_reads_and_is_described(tmp_path: Path) -> None:
    region = np.arange(4 * 4 * 384, dtype=np.float16).reshape(4, 4, 384)
    payload = region_payload(region)
    (tmp_path / "a.npy").write_bytes(payload)
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, region)
    assert describe_region(payload) == ImageInfo("npy", 4, 4)
    assert xxhash.xxh3_64_hexdigest(payload) == "15a587947d7d3671"
    assert region_payload(np.asfortranarray(region)) == payload


def _npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", DAMAGED),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, DAMAGED),
        (_npy(np.zeros((4, 4, 3), np.float32)), DAMAGED),
        (_npy(np.zeros((4, 4, 3), ">f2")), DAMAGED),
        (_npy(np.zeros((4, 3, 3), np.float16)), DAMAGED),
        (_npy(np.zeros((0, 0, 3), np.float16)), DAMAGED),
        (_npy(np.asfortranarray(np.zeros((4, 4, 3), np.float16))), DAMAGED),
        (_npy(np.full((4, 4, 3), np.nan, np.float16)), DAMAGED),
        (_npy(np.where(np.arange(48).reshape(4, 4, 3) == 7, np.nan, 1).astype(np.float16)), DAMAGED),
        (_npy(np.where(np.arange(48).reshape(4, 4, 3) == 7, np.inf, 1).astype(np.float16)), DAMAGED),
        (_npy(np.zeros((4, 4, 3), np.float16)) + b"\0", DAMAGED),
        (_npy(np.zeros((4, 4, 3), np.float16))[:-1], DAMAGED),
        (_npy(np.array({0: "a"}, object)), DAMAGED),
    ],
)
def test_describe_region__refuses(payload: bytes, reason: str) -> None:
    with pytest.raises(NotTaken) as error:
        describe_region(payload)
    assert str(error.value) == reason


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "cohort"
    names = (
        "s1/0_4096.pt",
        "s1/region_-5_7.pt",
        "tiles/s2_10_20.pt",
        "x_y_3_4.pt",
        "5_6.pt",
        "ö 組織.pt",
        "long" * 40 + "_1_2.pt",
    )
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(_tensor(seed, 16, 3), root / name)
    return root


def test_spool_regions__keeps_values_names_and_places(folder: Path, tmp_path: Path) -> None:
    items, content = _spooled(folder, tmp_path / "a.tar")
    names = [name.decode() for name in items.names.to_pylist()]
    sources = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.pt"))
    assert sorted(names) == sorted(f"{name[:-3]}.npy" for name in sources)
    assert [payload for _, payload in sorted(zip(names, payloads(items, content), strict=True))] == [
        region_payload(load_region(folder / name)) for name in sources
    ]
    assert items.facts["source_name"].to_pylist() == [f"{name[:-4]}.pt" for name in names]
    where = {name: (row["slide"], row["x"], row["y"]) for name, row in zip(names, items.facts.to_pylist(), strict=True)}
    assert where == {
        "s1/0_4096.npy": ("s1", 0, 4096),
        "s1/region_-5_7.npy": ("s1", -5, 7),
        "tiles/s2_10_20.npy": ("s2", 10, 20),
        "x_y_3_4.npy": ("x_y", 3, 4),
        "5_6.npy": ("cohort", 5, 6),
        "ö 組織.npy": ("cohort", None, None),
        "long" * 40 + "_1_2.npy": ("long" * 40, 1, 2),
    }
    assert not items.quarantine


def test_spool_regions__is_the_same_each_time_and_sorted(folder: Path, tmp_path: Path) -> None:
    items, content = _spooled(folder, tmp_path / "a.tar")
    again = _spooled(folder, tmp_path / "b.tar")[1]
    assert content == again
    assert items.names.to_pylist()[0] == b"5_6.npy"
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}


def test_spool_regions__keeps_what_it_does_not_take_with_the_reason(folder: Path, tmp_path: Path) -> None:
    """A later run reads the reasons from the tar."""
    torch.save(torch.zeros(15, 3), folder / "a_bad.pt")
    for name in ("notes.txt", "notes.npy"):
        (folder / name).write_text("notes")
    (folder / ".hidden.pt").write_text("")
    (folder / "link.pt").symlink_to(folder / "5_6.pt")
    with open(tmp_path / "a.tar", "wb") as out:
        quarantine = spool_regions(folder, str(folder), out)
    expected = {b"a_bad.pt": NOT_A_SQUARE, b"link.pt": "symbolic link"}
    expected |= {b"notes.txt": NOT_A_TENSOR_NAME, b"notes.npy": NOT_A_TENSOR_NAME}
    assert {name: reason for _, name, reason in quarantine} == expected
    source = regions.open_source(folder, Request(str(folder)))
    content = (tmp_path / "a.tar").read_bytes()
    items = regions.list_items(source, 0, lambda place, size: content[place : place + size])
    assert {name: reason for _, name, reason in items.quarantine} == expected
    assert len(items.names) == 7
    rough = regions.rough_items(source, 0)
    assert [name for name in rough.names.to_pylist() if name != b"a_bad.npy"] == items.names.to_pylist()
    assert len(rough.facts) == 8
    assert {name: reason for _, name, reason in rough.quarantine} == {
        k: v for k, v in expected.items() if k != b"a_bad.pt"
    }


def test_spool_regions__names_the_folder_that_has_gone(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="none: no such file or folder"), open(tmp_path / "a.tar", "wb") as out:
        spool_regions(tmp_path / "none", "none", out)


def test_check_regions__describes_each(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extensions = (*(ext for ext in EXTENSIONS if ext != "npy"), "npy")
    monkeypatch.setattr("dinowds.shard.sources.layouts.regions.EXTENSIONS", extensions)
    items, content = _spooled(folder, tmp_path / "a.tar")
    damaged = bytearray(content)
    damaged[items.places[2]] ^= 1
    (tmp_path / "a.tar").write_bytes(damaged)
    with open(tmp_path / "a.tar", "rb") as file:
        checked = check_regions(file.fileno(), items.places, items.sizes, Checks(digests=True))
    assert checked.reason.tolist() == [0, 0, 3, 0, 0, 0, 0]
    assert [extensions[ext] for ext in checked.ext[checked.reason == 0]] == ["npy"] * 6
    assert set(checked.width[checked.reason == 0]) == set(checked.height[checked.reason == 0]) == {4}
    assert checked.digest is not None
    assert checked.digest[0].tobytes() == xxhash.xxh3_128_digest(payloads(items, content)[0])
    assert checked.white is None


def test_recognises__only_folders_of_tensors(folder: Path, tmp_path: Path) -> None:
    source = open_one(regions, folder)
    assert (source.cohort, source.files[0].kind, source.files[0].file) == ("cohort", "tensors", folder)
    assert open_one(regions, folder, cohort="c").cohort == "c"
    assert not regions.recognises(folder / "5_6.pt")
    assert not regions.recognises(tmp_path / "none")
    (folder / "s1" / "image.jpg").write_bytes(b"")
    assert not regions.recognises(folder)
    (tmp_path / "empty").mkdir()
    assert not regions.recognises(tmp_path / "empty")
