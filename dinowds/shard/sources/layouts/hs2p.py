"""One tar a slide, as hs2p 4 to 6 write them: `tiles/{slide}.tiles.tar`, its members `000000.jpg` in every slide.

Beside each tar lie `{slide}.tiles.manifest.csv` (tile_index,x,y; level-0 pixels) and `{slide}.coordinates.meta.json`
(spacing and tile size). Format: `hs2p/tiling/{tar,io}.py` of clemsgrs/hs2p.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.errors import SourceError
from dinowds.shard.records import decode_name
from dinowds.shard.sources.layouts.folder import folder_name
from dinowds.shard.sources.layouts.tables import integers, line_of, positive, read_columns, summary
from dinowds.shard.sources.source import Request, Source, SourceFile, path_text, readable, source_file

NAME = "hs2p"

_TAR, _CSV, _META = ".tiles.tar", ".tiles.manifest.csv", ".coordinates.meta.json"
_FOLDER = "tiles"
_COLUMNS = {name: (name,) for name in ("tile_index", "x", "y")}
_KEYS = {
    "mpp": (
        "requested_spacing_um",
        "target_spacing_um",
        "requested_spacing",
        "target_spacing",
        "spacing_um",
        "spacing",
    ),
    "tile_size": ("requested_tile_size_px", "target_tile_size_px", "tile_size_px", "tile_size"),
}
"""What the images have → what versions of hs2p call it, in any part of the JSON."""


def recognises(path: Path) -> bool:
    """A folder with `*.tiles.tar`, or whose folder `tiles` has some; or one such tar with its CSV."""
    if path.is_file():
        return path.name.endswith(_TAR) and path.with_name(_stem(path) + _CSV).is_file()
    return bool(_tars(path))


def open_source(path: Path, request: Request) -> Source:
    """All slides of a folder, or one. The cohort is the folder's name (of `tiles`, its parent's), or the slide's."""
    tars = [path] if path.is_file() else _tars(path)
    if not tars:
        raise SourceError(f"{request.text}: has no *{_TAR}, nor has its folder {_FOLDER}; give what hs2p wrote")
    files, sidecars, metadata = [], [], []
    for tar in tars:
        prefix = f"{path_text(_stem(tar))}/"
        files.append(source_file(tar, "tar", prefix=prefix, slide=path_text(_slide(tar))))
        sidecars.append(_manifest(tar))
        meta = tar.with_name(_slide(tar) + _META)
        has_meta = meta.is_file()
        metadata.append(_read_meta(meta) if has_meta else {})
        if has_meta:
            sidecars.append(source_file(meta, "sidecar"))
    cohort = request.cohort or _cohort(path)
    return Source(request.text, cohort, NAME, tuple(files), tuple(sidecars), summary(metadata))


def facts(source: Source, position: int, names: Any) -> Any:
    """x and y [N] of the tiles, in level-0 pixels, from the line of the CSV with the number in a tile's name.

    Raises SourceError for a CSV of other columns, with cells that are no integers, with a number twice; or without a
    line for a tile.
    """
    file = source.files[position]
    manifest = _manifest(file.file)
    index, x, y = _read_manifest(manifest)
    order = np.argsort(index, kind="stable")
    _check_once(index[order], order, manifest.path)
    numbers = _numbers(names)
    rows = np.searchsorted(index[order], numbers)
    rows = order[np.minimum(rows, len(order) - 1)] if len(order) else np.zeros(len(numbers), np.int64)
    known = (numbers >= 0) & (index[rows] == numbers) if len(order) else np.zeros(len(numbers), bool)
    if not known.all():
        first = decode_name(names[int(np.argmin(known))].as_py())
        raise SourceError(
            f"{manifest.path}: has no line for {np.sum(~known)} of the {len(known)} tiles of {file.path}, such as "
            f"{first!r}; run hs2p again for this slide, or give the tar with --layout tar, without places"
        )
    return pa.table({"x": x[rows], "y": y[rows]})


def _tars(path: Path) -> list[Path]:
    for folder in (path, path / _FOLDER):
        found = sorted(folder.glob(f"*{_TAR}")) if folder.is_dir() else []
        if tars := [file for file in found if file.is_file()]:
            return tars
    return []


def _stem(tar: Path) -> str:
    return tar.name[: -len(_TAR)] if tar.name.endswith(_TAR) else tar.stem


def _slide(tar: Path) -> str:
    """Tiles of one annotation lie as `{annotation}/{slide}.{annotation}.tiles.tar`."""
    return _stem(tar).removesuffix(f".{tar.absolute().parent.name}")


def _cohort(path: Path) -> str:
    if path.is_file():
        return path_text(_slide(path))
    name = folder_name(path)
    return folder_name(path.resolve().parent) if name == _FOLDER else name


def _manifest(tar: Path) -> SourceFile:
    file = tar.with_name(_stem(tar) + _CSV)
    if not file.is_file():
        raise SourceError(
            f"{path_text(file)}: is missing: it has the places of the tiles in {path_text(tar.name)}; put it there, or "
            "give the tars with --layout tar, without places"
        )
    return source_file(file, "sidecar")


def _read_manifest(manifest: SourceFile) -> tuple[npt.NDArray[np.int64], ...]:
    """tile_index, x and y [lines]."""
    table = read_columns(manifest.file, manifest.path, _COLUMNS)
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise SourceError(f"{manifest.path}: has no column {', '.join(missing)}; expected tile_index,x,y")
    columns = []
    for name in _COLUMNS:
        column = table[name]
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise SourceError(f"{manifest.path}: line {line_of(row)}: {name} is empty, expected an integer")
        columns.append(integers(column, name, manifest.path).to_numpy())
    return tuple(columns)


def _check_once(ordered: npt.NDArray[np.int64], order: npt.NDArray[np.int64], text: str) -> None:
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(again):
        first, second = (line_of(int(order[again[0] + step])) for step in (0, 1))
        raise SourceError(
            f"{text}: line {second}: tile_index {ordered[again[0]]} is also that of line {first}; expected each once"
        )


def _numbers(names: Any) -> npt.NDArray[np.int64]:
    """'000012.jpg' → 12; -1 for a name that is no number."""
    found = pc.extract_regex(names, r"(?:^|/)(?P<number>[0-9]{1,18})\.[^./]*$")
    digits = pc.if_else(pc.is_valid(found), pc.struct_field(found, "number"), b"-1")
    return pc.cast(pc.cast(digits, pa.large_string()), pa.int64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _read_meta(file: Path) -> dict[str, Any]:
    """mpp and tile_size, where the JSON tells them. Raises SourceError for what is no JSON object."""
    text = path_text(file)
    with readable(text):
        content = file.read_bytes()
    try:
        said = json.loads(content)
        if not isinstance(said, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{text}: is not JSON as hs2p writes it ({error}); run hs2p again for this slide") from None
    parts = [said, *(part for part in said.values() if isinstance(part, dict))]
    found = {}
    for name, keys in _KEYS.items():
        values = (positive(part.get(key)) for key in keys for part in parts)
        if (value := next((value for value in values if value is not None), None)) is not None:
            found[name] = value
    return found
