"""How the inputs lie on disk: one module for each tool's way, and the choice between them.

A layout is a module with the functions of `Layout`. It says which files an input is, and what is known of their members
beside their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from dinowds.config import Kind
from dinowds.errors import ConfigError, SourceError
from dinowds.remote.files import is_remote, shown
from dinowds.shard.sources.source import Items, Request, Source, path_text, readable

LAYOUTS = (
    "dataset",
    "reference",
    "hs2p",
    "webdataset",
    "stamp",
    "paths",
    "regions",
    "classes",
    "tar",
    "folder",
)
"""In the order in which an input is tried."""

_OWN_LAYOUTS = ("grids",)
"""What other commands of dinowds write to be sharded; never recognised, and no choice of users."""

_WITH_SPLITS = ("dataset", "reference", "webdataset", "classes")
_WITH_FOLDS = ("dataset", "reference", "webdataset")
"""That have such parts, or say themselves what to do instead."""


class Layout(Protocol):
    """What a module of this package has."""

    NAME: str

    def recognises(self, path: Path) -> bool:
        """Whether an input is of this layout, from names and first bytes alone."""

    def open_source(self, path: Path, request: Request) -> Source:
        """The files of an input. Raises SourceError where it cannot be used; OSError is about `path`."""

    facts: Callable[[Source, int, Any], Any]
    """(source, position of the file, names) → what is known of those members, or None for nothing beside the names.

    `names` is a large_binary Arrow array [N] of the members that are taken for images, in source order. A table [N]
    with any of the columns slide, label, cohort, key (strings), x, y (int64), source, source_name (strings; kept
    provenance), extras (list of ext, place, size: further members of the sample); null where unknown."""

    list_items: Callable[[Source, int, Callable[[int, int], bytes]], Items]
    """(source, position, read(place, size)) → the images of a file. Only of layouts that do not simply take all image
    files; they have no `facts`."""


def get_layout(name: str) -> Layout:
    """The layout of that name."""
    return cast(Layout, import_module(f"{__name__}.{name}"))


def open_sources(
    paths: Sequence[Path | str],
    layout: str = "auto",
    cohort: str | None = None,
    split: str | None = None,
    fold: str | None = None,
) -> list[Source]:
    """Look at each input once.

    Args:
        layout: one of LAYOUTS, or 'auto'.
        cohort: of all inputs; None for their own names.
        split, fold: which part of an input that has several.

    Raises:
        SourceError: one cannot be used, is given twice, or shares a cohort name with another.
        ConfigError: there is no such layout, or no input is of one that can have splits, or folds.
    """
    if not paths:
        raise SourceError("no source given; give tars or folders of images")
    if layout not in ("auto", *LAYOUTS, *_OWN_LAYOUTS):
        raise ConfigError(f"--layout: is {layout!r}, expected auto, {', '.join(LAYOUTS)}")
    sources = [_open(Path(path), layout, Request(path_text(path), cohort, split, fold)) for path in paths]
    for option, value, layouts in (("--split", split, _WITH_SPLITS), ("--fold", fold, _WITH_FOLDS)):
        if value is not None and not any(source.layout in layouts for source in sources):
            raise ConfigError(
                f"{option}: {sources[0].path} has no such parts (layout {sources[0].layout}); leave it out"
            )
    check_given_once(sources)
    if cohort is None:
        _check_cohorts(sources)
    if other := next((source for source in sources if kind_of(source) != kind_of(sources[0])), None):
        raise SourceError(
            f"{other.path}: has {kind_of(other)}s, and {sources[0].path} has {kind_of(sources[0])}s; a dataset has one "
            "kind: make two"
        )
    return sources


def _open(path: Path, layout: str, request: Request) -> Source:
    if is_remote(request.text):
        if layout not in ("auto", "tar"):
            raise ConfigError(f"--layout: {layout} reads local sources alone, and {shown(request.text)} is remote")
        return cast(Any, get_layout("tar")).open_remote(request)  # type: ignore[no-any-return]
    with readable(request.text):
        if layout != "auto":
            return get_layout(layout).open_source(path, request)
        found = next((way for name in LAYOUTS if (way := get_layout(name)).recognises(path)), None)
        if found is None:
            path.stat()
            raise SourceError(f"{request.text}: is nothing that can be read; see --layout in 'dinowds shard --help'")
        return found.open_source(path, request)


def kind_of(source: Source) -> Kind:
    """What its samples are."""
    if source.layout == "dataset":
        return cast(Any, source).dataset.manifest.kind  # type: ignore[no-any-return]
    return "region" if source.layout in ("regions", "grids") else "image"


def own_cohorts(sources: Sequence[Source]) -> list[str]:
    """The cohorts of those sources whose samples cannot bring others."""
    return [source.cohort for source in sources if source.layout not in ("dataset", "reference", "paths", "grids")]


def check_given_once(sources: Sequence[Source]) -> None:
    """Neither links nor folders inside each other may bring a sample twice. Raises SourceError."""
    seen: dict[object, str] = {}
    folders: dict[Path, str] = {}
    for source in sources:
        for file in source.files if source.layout != "paths" else ():
            with readable(file.path):
                found = None if file.origin else file.file.stat()
            identity = (found.st_dev, found.st_ino) if found else file.origin
            if other := seen.get(identity):
                raise SourceError(f"{file.path}: is given twice, also as {other}; give it once")
            seen[identity] = file.path
            if file.kind == "folder":
                folders[file.file.resolve()] = file.path
    for folder, path in folders.items():
        if outer := next((folders[parent] for parent in folder.parents if parent in folders), None):
            raise SourceError(f"{path}: is given twice, also in {outer}; give only one of the two")


def _check_cohorts(sources: Sequence[Source]) -> None:
    by_cohort: dict[str, str] = {}
    for source in sources:
        if other := by_cohort.get(source.cohort):
            raise SourceError(
                f"{source.path}: its cohort name {source.cohort!r} is also that of {other}; rename one of the two, or "
                "give --cohort to make them one"
            )
        by_cohort[source.cohort] = source.path


def nothing_known(source: Source, position: int, names: Any) -> Any:  # noqa: ARG001 - the signature of `facts`
    """`facts` of a layout that knows nothing beside the names."""
    return None


__all__ = ["LAYOUTS", "Items", "Layout", "Request", "Source", "get_layout", "nothing_known", "open_sources"]
