"""Datasets and tables of strangers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinowds.data.index.rowgroups import COLUMNS, RowGroups, open_samples, read_rows
from dinowds.data.index.shardrows import CATEGORIES, ROW_COLUMNS, ShardRows, pack_rows
from dinowds.data.manifest import MANIFEST_NAME, SAMPLES_SCHEMA, Manifest, Shard, read_manifest
from dinowds.data.subsets.selection import open_mask, pack_mask
from dinowds.data.subsets.subset import FORMAT_VERSION, read_subset
from dinowds.errors import ConfigError, DatasetError, SourceError
from dinowds.remote.files import RemoteFiles
from dinowds.shard.choice.labels import read_labels
from dinowds.shard.choice.lists import read_list
from dinowds.shard.sources.layouts.tables import integers, read_columns
from tests.faults.fuzz.targets import Finding, scratch
from tests.index_only import random_rows

_SHARD_BYTES = 1 << 47
_WANTED = {"name": ("filename", "image_path"), "x": ("x",), "label": ("label",)}


def manifest(data: bytes) -> None:
    """What is read can be written and read again."""
    folder = scratch(data, MANIFEST_NAME).parent
    try:
        found = read_manifest(folder)
    except DatasetError as error:
        _check_line(error)
        return
    text = json.dumps(found.to_json(), ensure_ascii=False).encode()
    again = read_manifest(scratch(text, MANIFEST_NAME).parent)
    if again != found and text == json.dumps(again.to_json(), ensure_ascii=False).encode():
        return  # NaN is not equal to itself
    if again != found:
        raise Finding(f"written and read again, {found} is {again}")


def manifest_seeds() -> Iterator[bytes]:
    yield json.dumps(_manifest().to_json()).encode()
    yield json.dumps(_manifest().to_json() | {"shardlist": []}).encode()
    yield b'{"dinowds": {"format_version": 1, "kind": "image"}}'
    for name in ("cohorts", "label_names", "seed", "quarantined", "metadata", "shard_sha256"):
        values: tuple[Any, ...] = ([], "x", {"a": []}, 1e999, None)
        for value in values:
            content = _manifest().to_json()
            content["dinowds"][name] = value
            yield json.dumps(content).encode()


def index(data: bytes) -> None:
    """A damaged samples.parquet whose footer's digest is known; where the first byte is odd, with the right footer.

    Arrow ends the process at some footers, which is why nothing but the footer that was written is ever given to it.
    """
    footer = _footer_of_seed()
    content = data[1:]
    path = scratch(content + footer if data[:1] and data[0] & 1 else content, "samples.parquet")
    footer_digest = hashlib.sha256(footer).hexdigest()
    try:
        groups = RowGroups.locate(path, footer_digest)
        for group in range(len(groups.counts)):
            _read_group(groups, group)
        with open_samples(path, footer_digest) as file:
            for group in range(file.num_row_groups):
                with contextlib.suppress(ValueError):
                    read_rows(file, group, COLUMNS)
    except DatasetError as error:
        _check_line(error)


def _read_group(groups: RowGroups, group: int) -> None:
    try:
        rows = groups.read(group, ROW_COLUMNS, CATEGORIES)
        cohorts = {f"cohort{number}": number for number in range(3)}
        packed = ShardRows(pack_rows(group, rows, _SHARD_BYTES, cohorts))
    except (DatasetError, ValueError) as error:
        _check_line(error)
        return
    for row in packed.take(np.arange(len(packed))):
        if not 0 <= row.offset <= row.offset + row.size <= _SHARD_BYTES:
            raise Finding(f"{row} lies outside of its shard")


def index_seeds() -> Iterator[bytes]:
    content = _parquet()
    yield b"\0" + content
    yield b"\1" + content[: -len(_footer_of_seed())]
    yield b"\0" + _parquet(use_dictionary=False, compression="none")


def subset(data: bytes) -> None:
    """The JSON of a subset, and a mask, with a NUL between them."""
    about, _, mask = data.partition(b"\0")
    path = scratch(about, "one.json")
    folder = path.parent / "subsets"
    folder.mkdir(exist_ok=True)
    path.replace(folder / path.name)
    try:
        read_subset(str(path.parent), "one", _manifest(), RemoteFiles())
    except DatasetError as error:
        _check_line(error)
    try:
        if len(open_mask(str(scratch(mask, "mask.npy")), 20)) != 3:
            raise Finding("a mask of another length")
    except (ValueError, OSError):
        pass


def subset_seeds() -> Iterator[bytes]:
    content = {
        "format_version": FORMAT_VERSION,
        "definition": {"where": "x > 3", "seed": 0},
        **{"samples": 3, "slides": 1, "cohorts": {"a": 3}, "samples_sha256": "a" * 64, "file_sha256": "b" * 64},
    }
    mask = io.BytesIO()
    np.save(mask, pack_mask(np.arange(20) % 3 == 0))
    yield json.dumps(content).encode() + b"\0" + mask.getvalue()


def labels(data: bytes) -> None:
    path = scratch(data, "labels.csv")
    for class_column in (None, "class"):
        try:
            read_labels(path, class_column=class_column)
        except ConfigError as error:
            _check_line(error)
    try:
        read_list("--keep", path)
    except ConfigError as error:
        _check_line(error)


def labels_seeds() -> Iterator[bytes]:
    yield b"filename,label,class\na/1_2.jpg,1,tumour\nb.jpg,0,stroma\nb.jpg,0.0,stroma\n"
    yield '\ufefffile_name;label\n"a;b";tumour\nc;=1+1\n'.encode()
    yield b"# a list\nslide1\n slide2 \n\n"
    yield b"path\tlabel\nx\t-3\ny\t\n"


def columns(data: bytes) -> None:
    path = scratch(data, "table")
    try:
        table = read_columns(path, "x", _WANTED)
        if "x" in table.column_names:
            integers(table["x"], "x", "x")
    except SourceError as error:
        _check_line(error)


def columns_seeds() -> Iterator[bytes]:
    yield b"filename,x,label\na.jpg,1,3\nb.jpg,512.0,\n"
    yield b'Image_Path;X\n"a;b";-3\n'
    content = io.BytesIO()
    pq.write_table(pa.table({"filename": ["a", None, "b"], "x": [1.0, 2.0, None], "label": [1, 2, 3]}), content)
    yield content.getvalue()


def _check_line(error: Exception) -> None:
    if "\n" in str(error):
        raise Finding(f"an error of more than one line: {str(error)!r}")


def _manifest() -> Manifest:
    shards = tuple(Shard(f"shards/{number:06d}.tar", 6, _SHARD_BYTES, "0" * 64) for number in range(2))
    cohorts = {f"cohort{number}": 4 for number in range(3)}
    return Manifest("patches", "image", shards, cohorts, ("a", "b"), 0, "a" * 64, {"cut": 1}, {"mpp": 0.5})


@cache
def _parquet(**options: Any) -> bytes:
    content = io.BytesIO()
    with pq.ParquetWriter(content, SAMPLES_SCHEMA, write_page_checksum=True, **options) as writer:
        for shard in range(2):
            rows = [{"shard": shard, **row} for row in random_rows(6, shard)]
            writer.write_table(pa.Table.from_pylist(rows, SAMPLES_SCHEMA))
    return content.getvalue()


@cache
def _footer_of_seed() -> bytes:
    content = _parquet()
    return content[-8 - int.from_bytes(content[-8:-4], "little") :]
