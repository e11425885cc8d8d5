from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinowds.embed.patches.embed import embed_patches
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.patches.reader import Features, read_features
from dinowds.errors import DatasetError


@pytest.fixture(scope="module")
def folder(coded_path: Path, weights_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `dinowds embed patch`. Read only."""
    out = tmp_path_factory.mktemp("read") / "features"
    embed_patches(coded_path, out, PatchOptions(str(weights_path), tokens=True, batch_size=8, workers=0))
    return out


def others(count: int = 5, dim: int = 3, **columns: Any) -> pa.Table:
    """What another system may write."""
    features = np.arange(count * dim, dtype=np.float32).reshape(count, dim)
    plain = {"slide": ["s"] * count, "x": list(range(count)), "y": [0] * count, "feature": list(features)}
    return pa.table({name: column for name, column in {**plain, **columns}.items() if column is not None})


def all_of(features: Features) -> Any:
    return np.concatenate([features.matrix(table) for table in features.tables()])


def test_read__what_embed_wrote(folder: Path) -> None:
    features = read_features(folder)
    tables = list(features.tables(("key", "x", "feature")))
    whole = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))
    assert pa.concat_tables(tables) == whole.select(["key", "x", "feature"])
    assert (features.dim, features.dtype.name, len(features), len(tables)) == (16, "float16", 60, 5)
    assert features.about == json.loads((folder / "features.json").read_text())
    assert features.matrix(tables[1]).shape == (13, 16)
    assert np.array_equal(all_of(features), np.stack(whole["feature"].to_pylist()).astype(np.float16))


@pytest.mark.parametrize("value", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("form", [lambda v: pa.list_(v), lambda v: pa.large_list(v), lambda v: pa.list_(v, 3)])
def test_read__files_of_others(tmp_path: Path, value: Any, form: Any) -> None:
    table = others()
    lists = table["feature"].cast(form(value))
    table = table.set_column(3, "feature", lists).set_column(1, "x", table["x"].cast(pa.uint16()))
    pq.write_table(table.slice(0, 2), tmp_path / "b.parquet")
    pq.write_table(table.slice(2), tmp_path / "a.parquet", row_group_size=2)
    features = read_features(tmp_path)
    assert (features.dim, features.dtype, features.counts, features.about) == (3, value.to_pandas_dtype(), (3, 2), {})
    assert np.array_equal(all_of(features)[:, 0], [6, 9, 12, 0, 3])
    tables = list(features.tables())
    assert [len(table) for table in tables] == [2, 1, 2]
    assert tables[0].schema.field("x").type == pa.int64()
    assert len(read_features(tmp_path / "a.parquet")) == 3


def test_read__as_pandas_writes_them(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    others().to_pandas().to_parquet(tmp_path / "features.parquet")
    assert np.array_equal(all_of(read_features(tmp_path / "features.parquet"))[:, 0], [0, 3, 6, 9, 12])


def test_read__a_row_group_at_a_time(tmp_path: Path) -> None:
    table = others(20_000, 64)
    pq.write_table(table, tmp_path / "large.parquet", row_group_size=500, compression="none", use_dictionary=False)
    features = read_features(tmp_path / "large.parquet")
    before = pa.total_allocated_bytes()
    for part in features.tables():
        features.matrix(part)
        assert pa.total_allocated_bytes() - before < 20_000 * 64 * 4 / 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"slide": None}, "a.parquet: has no column 'slide', expected slide, x, y, feature"),
        ({"y": None}, "a.parquet: has no column 'y'"),
        ({"x": [0.5, 1, 2, 3, 4]}, "a.parquet: column 'x' is double, expected integers"),
        ({"slide": [1, 2, 3, 4, 5]}, "a.parquet: column 'slide' is int64, expected text"),
        (
            {"feature": [1.0] * 5},
            "a.parquet: column 'feature' is double, expected lists of float16, float32 or float64",
        ),
        ({"feature": [[1, 2]] * 5}, "a.parquet: column 'feature' is .*int64.*, expected lists of float16"),
        ({"feature": [None, *[[1.0, 2.0]] * 4]}, "a.parquet: its first row has no feature"),
        ({"feature": [[1.0, 2.0]] * 4 + [None]}, "1 rows have no feature, expected one in each"),
        ({"feature": [[1.0, 2.0]] * 4 + [[1.0]]}, "features of .*1.*2.* values, expected 2 in each"),
        ({"feature": [[1.0, 2.0]] * 4 + [[1.0, None]]}, "1 values of features are null, expected numbers"),
    ],
)
def test_read__what_is_no_table_of_features_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(others(**columns), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=message) as found:
        all_of(read_features(tmp_path))
    assert "\n" not in str(found.value)


def test_read__files_that_differ_are_refused(tmp_path: Path) -> None:
    pq.write_table(others(), tmp_path / "a.parquet")
    pq.write_table(others(dim=4), tmp_path / "b.parquet")
    with pytest.raises(DatasetError, match=r"b.parquet: features are 4 × float32, those of a.parquet 3 × float32"):
        read_features(tmp_path)


def test_read__other_places_are_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("x")
    (tmp_path / "json").mkdir()
    (tmp_path / "later").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "features.json").write_text("{")
    (tmp_path / "begun" / ".unfinished.json").write_text("{}")
    (tmp_path / "json" / "features.json").write_text("[]")
    about = json.loads((folder / "features.json").read_text())
    (tmp_path / "later" / "features.json").write_text(json.dumps({**about, "format_version": 2}))
    for name, message in {
        "none": "none: no such folder or file",
        "empty": "empty: has no \\*.parquet",
        "text.parquet": "text.parquet: cannot be read as Parquet",
        "json": "features.json: not of features of dinowds",
        "later": "is of 'features', version 2; this dinowds reads 'features', 1",
        "begun": "begun: unfinished features; run the same 'dinowds embed' again",
        "broken": "features.json: cannot be read .*; make the features again",
    }.items():
        with pytest.raises(DatasetError, match=message) as found:
            read_features(tmp_path / name)
        assert "\n" not in str(found.value)


def test_read__missing_and_damaged_files(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.glob("[!.]*"):
        (copy / path.name).write_bytes(path.read_bytes())
    features = read_features(copy)
    content = bytearray((copy / "features-000002.parquet").read_bytes())
    place = content.find(read_features(folder).matrix(list(features.tables())[2]).tobytes()[:8])
    content[place + 3] ^= 0xFF
    (copy / "features-000002.parquet").write_bytes(content)
    with pytest.raises(DatasetError, match=r"features-000002.parquet: row group 0 cannot be read \(.*CRC"):
        all_of(features)
    (copy / "features-000004.parquet").unlink()
    with pytest.raises(DatasetError, match=r"features-000004.parquet: no such file; make the features again"):
        read_features(copy)
