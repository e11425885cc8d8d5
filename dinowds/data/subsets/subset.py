"""Subsets as they are stored beside the manifest.

`subsets/NAME.npy` is the mask (see `selection.Mask`); `subsets/NAME.json` says what it is and is written last: a mask
without it is no subset.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dinowds.data.location import join_url, read_beside
from dinowds.data.manifest import SUBSETS_NAME, Manifest, own_sha256
from dinowds.data.store.fetch import fetch
from dinowds.data.subsets.selection import Mask, mask_header, open_mask
from dinowds.errors import ConfigError, DatasetError, OutputError, StorageError
from dinowds.files import output_errors, remove_abandoned, sha256_of, write_atomic
from dinowds.remote.files import RemoteFiles, is_remote, shown
from dinowds.remote.urls import HTTP, scheme_of

FORMAT_VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class Subset:
    """What `subsets/NAME.json` says."""

    name: str
    definition: dict[str, Any]
    """The options that it was made with."""
    samples: int
    slides: int
    """Known ones; a slide counts once for each cohort that it comes in."""
    cohorts: dict[str, int]
    """Samples of each."""
    samples_sha256: str
    """Of the dataset that it is of."""
    file_sha256: str
    """Of `subsets/NAME.npy`."""
    format_version: int = FORMAT_VERSION
    was_changed: bool = field(default=False, compare=False)
    """Whether it was changed since it was written: what it says of its own sha256 is not true."""

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        del content["was_changed"]
        return content | {"sha256": own_sha256(content)}


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` can be a subset's."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r}: expected up to 200 letters, digits, '_', '.' and '-', and no '.' or '-' first"
        )


def mask_file(mask: Mask) -> bytes:
    """The content of the .npy file of a mask."""
    return mask_header(len(mask)) + mask.tobytes()


def check_writable(root: str) -> None:
    """Raise StorageError where subsets of the dataset at `root` can be read only: over http."""
    if scheme_of(root) in HTTP:
        raise StorageError(
            f"{shown(root)}: subsets cannot be written over http; give the s3://, gs:// or folder that is behind it"
        )


def list_subsets(root: str, files: RemoteFiles) -> list[str]:
    """Names of the subsets of the dataset at `root`, sorted.

    Raises:
        StorageError: what lies remote cannot be listed.
    """
    folder = join_url(root, SUBSETS_NAME)
    names = files.names(folder) if is_remote(root) else [path.name for path in Path(folder).glob("*.json")]
    return sorted(name[:-5] for name in names if name.endswith(".json") and _NAME.fullmatch(name[:-5]))


def read_subset(root: str, name: str, manifest: Manifest, files: RemoteFiles) -> Subset:
    """What is known of a subset of the dataset at `root`, whose manifest is `manifest`.

    Raises:
        DatasetError: there is none of that name (those that exist are listed), it is of another dataset, or damaged.
        StorageError: it lies remote and cannot be read.
    """
    where = shown(join_url(root, f"{SUBSETS_NAME}/{name}.json"))
    try:
        content = json.loads(read_beside(root, f"{SUBSETS_NAME}/{name}.json", files))
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {content['format_version']!r}, this dinowds reads {FORMAT_VERSION}")
        subset = Subset(
            name=name,
            definition=dict(content["definition"]),
            samples=int(content["samples"]),
            slides=int(content["slides"]),
            cohorts={str(cohort): int(count) for cohort, count in content["cohorts"].items()},
            samples_sha256=str(content["samples_sha256"]),
            file_sha256=str(content["file_sha256"]),
            was_changed="sha256" in content and content["sha256"] != own_sha256(content),
        )
    except FileNotFoundError:
        raise DatasetError(f"{shown(root)}: has no subset {name!r}; {_advice(root, name, files)}") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DatasetError(f"{where}: is not a subset of dinowds ({error}); make it again with --overwrite") from None
    if subset.samples_sha256 != manifest.samples_sha256:
        raise DatasetError(
            f"{where}: is a subset of another {shown(root)}, which was made again since; make the subset again with "
            f"'dinowds subset {shown(root)} --name {name} --overwrite' and its options: {describe(subset.definition)}"
        )
    return subset


def load_mask(root: str, subset: Subset, num_samples: int, files: RemoteFiles) -> Mask:
    """Map the mask of a subset, after a check of its content.

    Raises:
        DatasetError: it is missing or damaged.
        StorageError: it lies remote and cannot be read.
    """
    url = join_url(root, f"{SUBSETS_NAME}/{subset.name}.npy")
    try:
        path = fetch(files, url, subset.file_sha256, ".npy") if is_remote(url) else Path(url)
        found = sha256_of(path)
        if found != subset.file_sha256:
            raise ValueError(f"its sha256 is {found}, expected {subset.file_sha256}")
        return open_mask(str(path), num_samples)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{shown(url)}: cannot be used ({error}); make the subset again with --overwrite") from None


def write_subset(root: str, subset: Subset, mask: Mask, files: RemoteFiles, overwrite: bool = False) -> bool:
    """Store a subset; False where the same one is there already.

    A subset that is replaced is gone until the new one is whole.

    Raises:
        OutputError: another subset has that name and `overwrite` is not set, or the folder cannot be written.
        StorageError: the dataset lies remote and cannot be written.
    """
    name = f"{SUBSETS_NAME}/{subset.name}.json"
    try:
        before: Any = json.loads(read_beside(root, name, files))
    except FileNotFoundError:
        before = None
    except (OSError, ValueError, RecursionError):
        before = {}
    wanted = json.loads(json.dumps(subset.to_json()))
    if isinstance(before, dict) and before | {"sha256": wanted["sha256"]} == wanted:  # older ones have none
        return False
    if before is not None and not overwrite:
        raise OutputError(
            f"{shown(join_url(root, name))}: another subset has this name ({_about(before)}); give another --name, or "
            "--overwrite to replace it"
        )
    content = json.dumps(subset.to_json(), indent=1, ensure_ascii=False).encode() + b"\n"
    with output_errors(f"{shown(root)}/{SUBSETS_NAME}"):
        _replace(root, subset.name, mask_file(mask), content, files)
    return True


def describe(definition: dict[str, Any]) -> str:
    """A definition in one line."""
    parts = [f"{key} {value.get('file') if isinstance(value, dict) else value}" for key, value in definition.items()]
    return ", ".join(parts) or "all samples"


def _replace(root: str, name: str, mask: bytes, content: bytes, files: RemoteFiles) -> None:
    if is_remote(root):
        stem = join_url(root, f"{SUBSETS_NAME}/{name}")
        files.remove(f"{stem}.json")
        files.write(f"{stem}.npy", mask)
        files.write(f"{stem}.json", content)
        return
    folder = Path(root) / SUBSETS_NAME
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
    for path, of_file in ((folder / f"{name}.npy", mask), (folder / f"{name}.json", content)):
        remove_abandoned(path)
        write_atomic(path, of_file)


def _about(before: Any) -> str:
    if not isinstance(before, dict) or not isinstance(before.get("definition"), dict):
        return "damaged"
    return f"{before.get('samples')} samples: {describe(before['definition'])}"


def _advice(root: str, name: str, files: RemoteFiles) -> str:
    try:
        names = list_subsets(root, files)
    except (StorageError, OSError):  # of a server that lists nothing; the subset is missing all the same
        return "make it with 'dinowds subset'"
    if not names:
        if scheme_of(root) in HTTP:
            return "the server lists none"
        return "it has none; make one with 'dinowds subset'"
    near = difflib.get_close_matches(name, names, n=1)
    return f"it has {', '.join(map(repr, names))}" + (f"; did you mean {near[0]!r}?" if near else "")
