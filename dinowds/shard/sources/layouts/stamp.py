"""One zip a slide, as STAMP's tile cache has them: `{slide}.{hash}.zip` with members `tile_(x, y).jpg`.

Format: `stamp/preprocessing/tiling.py` of KatherLab/STAMP 2. Its places are micrometres from the slide's corner;
`tiler_params.json`, the first member, tells the tiles' size.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dinowds.errors import SourceError
from dinowds.shard.sources.layouts.folder import folder_name
from dinowds.shard.sources.layouts.tables import positive, summary
from dinowds.shard.sources.source import Request, Source, SourceFile, path_text, source_file
from dinowds.shard.sources.zipscan import first_member

NAME = "stamp"

_SUFFIX = ".zip"
_PARAMETERS = "tiler_params.json"
_TILE = r"tile_\((?P<x>-?[0-9]{1,15}(?:\.[0-9]+)?), ?(?P<y>-?[0-9]{1,15}(?:\.[0-9]+)?)\)\.[^./]*$"
_HASH = re.compile(r"\.[0-9a-f]{64}$")


def recognises(path: Path) -> bool:
    """A zip whose first member is STAMP's, or a folder whose first zip is such a one."""
    zips = _zips(path)
    if not zips:
        return False
    name, _ = first_member(zips[0])
    return name == _PARAMETERS or re.search(_TILE, name) is not None


def open_source(path: Path, request: Request) -> Source:
    """All zips of a folder, or one. The cohort is the folder's name, or the slide's."""
    zips = _zips(path)
    if not zips:
        raise SourceError(f"{request.text}: has no .zip; give the folder of STAMP's tile cache, or one of its zips")
    files = []
    for file in zips:
        slide = _slide(file)
        files.append(source_file(file, "zip", prefix=f"{slide}/", slide=slide))
    _check_slides(files)
    cohort = request.cohort or (folder_name(path) if path.is_dir() else files[0].slide) or NAME
    return Source(request.text, cohort, NAME, tuple(files), metadata=_metadata(zips))


def facts(source: Source, position: int, names: Any) -> Any:  # noqa: ARG001 - the signature of `facts`
    """x and y [N] in whole micrometres, from the names; null where a name has none."""
    found = pc.extract_regex(pc.cast(names, pa.large_binary()), _TILE)
    columns = {}
    for axis in ("x", "y"):
        text = pc.cast(pc.struct_field(found, axis), pa.large_string())
        columns[axis] = pc.cast(pc.round(pc.cast(pc.if_else(pc.is_valid(found), text, None), pa.float64())), pa.int64())
    return pa.table(columns)


def _zips(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() and path.name.lower().endswith(_SUFFIX) else []
    return sorted(file for file in path.iterdir() if file.name.lower().endswith(_SUFFIX) and file.is_file())


def _slide(file: Path) -> str:
    return _HASH.sub("", path_text(file.name)[: -len(_SUFFIX)])


def _check_slides(files: list[SourceFile]) -> None:
    seen: dict[str | None, str] = {}
    for file in files:
        if other := seen.get(file.slide):
            raise SourceError(
                f"{file.path}: is of the slide {file.slide!r}, as is {other}, tiled in another way; keep one of the two"
            )
        seen[file.slide] = file.path


def _metadata(zips: list[Path]) -> dict[str, Any]:
    """mpp and tile_size, of the zips that tell."""
    found = []
    for file in zips:
        name, content = first_member(file)
        try:
            parameters = json.loads(content) if name == _PARAMETERS else {}
        except (ValueError, RecursionError):
            parameters = {}
        said = parameters if isinstance(parameters, dict) else {}
        pixels, micrometres = positive(said.get("tile_size_px")), positive(said.get("tile_size_um"))
        found.append({"mpp": micrometres / pixels, "tile_size": pixels} if pixels and micrometres else {})
    return summary(found)
