"""Regions that `dinowds embed region` has made: a folder of parts, each a tar of .npy grids with a table of facts.

    grids.json · grids-000000.tar · grids-000000.parquet · …

A part is whole when its table is there, and the folder when `grids.json` is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dinowds.errors import SourceError
from dinowds.files import atomic_write, write_atomic
from dinowds.shard.sources.layouts.regions import region_payload
from dinowds.shard.sources.source import Items, Request, Source, path_text, source_file
from dinowds.shard.tarheader import padded
from dinowds.shard.ustar import END_BYTES, tar_header

NAME = "grids"

_ABOUT = "grids.json"
_FACTS = ("key", "slide", "x", "y", "label", "cohort", "source_name")
_SCHEMA: Any = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("place", pa.int64(), nullable=False),  # of the payload in the tar; a running number where `reason` is
        pa.field("size", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("slide", pa.string()),
        pa.field("x", pa.int64()),
        pa.field("y", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("cohort", pa.string()),
        pa.field("source_name", pa.string()),
        pa.field("reason", pa.string()),  # why it is not taken
    ]
)


class Grid(NamedTuple):
    """A region and what is known of it; None for nothing."""

    cells: npt.NDArray[np.float16]
    """[n, n, C], row-major; a cell that does not exist is NaN."""
    name: str
    """Its key comes from it, if `key` does not say it."""
    key: str | None
    slide: str | None
    x: int | None
    y: int | None
    label: str | None
    cohort: str


class Refused(NamedTuple):
    """Something that is in no region: its name and why."""

    name: str
    reason: str


def write_part(folder: Path, number: int, found: Iterable[Grid | Refused]) -> None:
    """Write one part, whole or not at all."""
    rows: list[dict[str, Any]] = []
    with atomic_write(_tar(folder, number)) as tar:
        for one in found:
            if isinstance(one, Refused):
                rows.append({"name": one.name, "place": len(rows), "size": 0, "reason": one.reason})
                continue
            payload = region_payload(one.cells)
            tar.write(tar_header(f"{len(rows):09d}.npy", len(payload)))
            facts = {name: getattr(one, name) for name in ("key", "slide", "x", "y", "label", "cohort")}
            rows.append({"name": one.name, "place": tar.tell(), "size": len(payload), "source_name": one.name, **facts})
            tar.write(payload + bytes(padded(len(payload)) - len(payload)))
        tar.write(bytes(END_BYTES))
    with atomic_write(_table(folder, number)) as table:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), table)


def has_part(folder: Path, number: int) -> bool:
    """Whether a part is whole."""
    return _table(folder, number).exists()


def finish_parts(folder: Path, count: int, source: str, about: dict[str, Any]) -> None:
    """Say that parts 0 … count − 1 are all.

    Args:
        source: what they were made from, for the columns and messages that name it.
        about: goes into the manifest's metadata as it is.
    """
    content = {"parts": count, "source": source, "about": about}
    write_atomic(folder / _ABOUT, json.dumps(content, ensure_ascii=False).encode())


def recognises(path: Path) -> bool:
    """A folder that `finish_parts` has finished."""
    return (path / _ABOUT).is_file()


def open_source(path: Path, request: Request) -> Source:
    """All parts. Raises SourceError for what `finish_parts` did not write."""
    about = path / _ABOUT
    try:
        content = json.loads(about.read_bytes())
        text, parts = str(content["source"]), range(int(content["parts"]))
        found = dict(content["about"])
    except (ValueError, LookupError, TypeError):
        raise SourceError(f"{path_text(about)}: is not what 'dinowds embed region' writes; run it again") from None
    files = tuple(replace(source_file(_tar(path, number), "tar"), path=text) for number in parts)
    return Source(text, request.cohort or "regions", NAME, files, about=found)


def list_items(source: Source, position: int, read: Callable[[int, int], bytes]) -> Items:  # noqa: ARG001
    """The regions of one part, and what is in none."""
    tar = source.files[position].file
    table = pq.read_table(tar.with_suffix(".parquet"), partitioning=None)
    is_refused = pc.is_valid(table["reason"])
    refused, table = table.filter(is_refused), table.filter(pc.invert(is_refused))
    columns = zip(*(refused[name].to_pylist() for name in ("place", "name", "reason")), strict=True)
    return Items(
        pa.array([f"{name}.npy".encode() for name in table["name"].to_pylist()], pa.large_binary()),
        table["place"].to_numpy(),
        table["size"].to_numpy(),
        table.select(_FACTS),
        [(place, name.encode(), reason) for place, name, reason in columns],
    )


def _tar(folder: Path, number: int) -> Path:
    return folder / f"grids-{number:06d}.tar"


def _table(folder: Path, number: int) -> Path:
    return folder / f"grids-{number:06d}.parquet"
