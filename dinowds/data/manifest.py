"""The format of a dataset on disk: `manifest.json` and the columns of `samples.parquet`.

`manifest.json` is a valid wids index (`__kind__`, `wids_version`, `shardlist`) with one more block, `dinowds`.
It is written last and by rename: a folder without one is not a finished dataset.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from dinowds.config import Kind
from dinowds.errors import DatasetError
from dinowds.files import write_atomic
from dinowds.remote.files import RemoteFiles, is_remote, shown

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SAMPLES_NAME = "samples.parquet"
QUARANTINE_NAME = "quarantine.jsonl"
SHARDS_NAME = "shards"
SUBSETS_NAME = "subsets"
UNFINISHED_NAME = ".unfinished"
"""Folder in which `dinowds shard` keeps what it needs to go on; removed when the manifest is written."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOO_MANY = 1 << 48
_LONGEST_URL = 4096

_text_category = pa.dictionary(pa.int32(), pa.string())

SAMPLES_SCHEMA: Any = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # unique in the dataset; member name without the extension
        pa.field("shard", pa.int32(), nullable=False),  # position in the manifest's shardlist
        pa.field("offset", pa.int64(), nullable=False),  # of the payload's first byte in the shard
        pa.field("size", pa.int64(), nullable=False),  # of the payload, in bytes
        pa.field("ext", _text_category, nullable=False),  # without a dot, lower case
        pa.field("digest", pa.binary(16), nullable=False),  # xxh3-128 of the payload, big-endian
        pa.field("cohort", _text_category, nullable=False),
        pa.field("slide", _text_category),
        pa.field("x", pa.int64()),  # of the patch's left edge in its slide, in the units of the source's names
        pa.field("y", pa.int64()),  # of the patch's top edge
        pa.field("label", pa.int64()),  # position in the manifest's label names
        pa.field("width", pa.int32(), nullable=False),  # px; cells for a region
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source", _text_category, nullable=False),  # the tar or folder, as it was given
        pa.field("source_name", pa.string(), nullable=False),  # the member's name in it, untouched
    ]
)
"""One row a sample, one row group a shard, in file order."""

STATISTICS = ("white", "black", "sharpness")
"""Further columns, float32, of datasets whose images were decoded when they were sharded."""


@dataclass(frozen=True)
class Shard:
    """One tar. `url` is relative to the manifest's folder, absolute, or remote."""

    url: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. Counts are of samples."""

    name: str
    kind: Kind
    shards: tuple[Shard, ...]
    cohorts: dict[str, int]
    label_names: tuple[str, ...]
    seed: int
    samples_sha256: str
    quarantined: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    samples_footer_sha256: str = ""
    """Of the footer of samples.parquet, see `rowgroups.footer_sha256`; '' where it was not written."""
    shuffled: bool = True
    """Whether the samples lie in an order drawn from `seed`; otherwise in that of the sources."""
    was_changed: bool = field(default=False, compare=False)
    """Whether it was changed since it was written: what it says of its own sha256 is not true."""

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        content = self._content()
        content["dinowds"]["sha256"] = own_sha256(content)
        return content

    def _content(self) -> dict[str, Any]:
        return {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": self.name,
            "shardlist": [{"url": s.url, "nsamples": s.num_samples, "filesize": s.num_bytes} for s in self.shards],
            "dinowds": {
                "format_version": FORMAT_VERSION,
                "kind": self.kind,
                "cohorts": self.cohorts,
                "label_names": list(self.label_names),
                "seed": self.seed,
                "shuffled": self.shuffled,
                "shard_sha256": [shard.sha256 for shard in self.shards],
                "samples_sha256": self.samples_sha256,
                "samples_footer_sha256": self.samples_footer_sha256,
                "quarantined": self.quarantined,
                "metadata": self.metadata,
            },
        }

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """Raises KeyError, TypeError or ValueError where `content` is not what `to_json` writes."""
        if not isinstance(content, dict) or not isinstance(content.get("dinowds"), dict):
            raise TypeError("it has no block 'dinowds'")
        block = content["dinowds"]
        version = block["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version!r}, this dinowds reads {FORMAT_VERSION}")
        if block["kind"] not in ("image", "region"):
            raise ValueError(f"kind is {block['kind']!r}, expected 'image' or 'region'")
        shards = tuple(
            Shard(_printable(entry["url"]), _count(entry["nsamples"]), _count(entry["filesize"]), _hex_sha256(sha256))
            for entry, sha256 in zip(content["shardlist"], block["shard_sha256"], strict=True)
        )
        return cls(
            name=str(content["name"]),
            kind=cast(Kind, block["kind"]),
            shards=shards,
            cohorts={str(name): int(count) for name, count in block["cohorts"].items()},
            label_names=tuple(str(name) for name in block["label_names"]),
            seed=int(block["seed"]),
            samples_sha256=str(block["samples_sha256"]),
            samples_footer_sha256=str(block.get("samples_footer_sha256") or ""),
            quarantined={str(reason): int(count) for reason, count in block["quarantined"].items()},
            metadata=dict(block["metadata"]),
            shuffled=bool(block.get("shuffled", True)),
            was_changed="sha256" in block and block["sha256"] != own_sha256(content),
        )


def own_sha256(content: Mapping[str, Any]) -> str:
    """Of what a manifest or the description of a subset says, but for this itself, and for where shards lie: their URLs
    may be changed by hand.
    """
    content = json.loads(json.dumps(content))
    content.get("dinowds", content).pop("sha256", None)
    for entry in content.get("shardlist", []):
        entry.pop("url", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _printable(url: Any) -> str:
    if len(str(url)) > _LONGEST_URL:
        raise ValueError(f"a shard's url has {len(str(url)):,} characters, expected at most {_LONGEST_URL:,}")
    if any(ord(character) < 32 for character in str(url)):
        raise ValueError(f"a shard's url is {str(url)!r}, expected one without control characters")
    return str(url)


def _count(value: Any) -> int:
    if not 0 <= int(value) < _TOO_MANY:
        raise ValueError(f"a shard's nsamples or filesize is {value!r}, expected 0 or more, and less than 2^48")
    return int(value)


def _hex_sha256(text: Any) -> str:
    """Chunks of remote shards are kept by it."""
    if not _SHA256.fullmatch(str(text)):
        raise ValueError(f"a shard's sha256 is {text!r}, expected 64 hex digits")
    return str(text)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json`, whole or not at all. This is what makes a dataset finished."""
    text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / MANIFEST_NAME, text.encode())


def read_manifest(location: Path | str, files: RemoteFiles | None = None) -> Manifest:
    """Read `manifest.json` of the dataset in the folder or at the URL `location`.

    Raises:
        DatasetError: there is no dataset, it is unfinished, or the manifest is not readable by this version.
        StorageError: it lies remote and cannot be read.
    """
    if isinstance(location, str) and is_remote(location):
        path = f"{location.rstrip('/')}/{MANIFEST_NAME}"
        return _parse(shown(path), _read_remote(location, path, files or RemoteFiles()))
    folder = Path(location)
    try:
        content = (folder / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        raise DatasetError(_why_no_manifest(folder)) from None
    except NotADirectoryError:
        raise DatasetError(f"{folder}: is a file, expected a dataset folder made by 'dinowds shard'") from None
    except OSError as error:
        raise DatasetError(f"{folder / MANIFEST_NAME}: cannot be read ({error.strerror}); restore it") from None
    return _parse(str(folder / MANIFEST_NAME), content)


def _read_remote(url: str, path: str, files: RemoteFiles) -> bytes:
    try:
        return files.read(path)
    except FileNotFoundError:
        raise DatasetError(
            f"{shown(url)}: no such dataset, or an unfinished one (it has no {MANIFEST_NAME}); give the URL that "
            "'dinowds shard --out' wrote to, or run that command again"
        ) from None


def _parse(path: str, content: bytes) -> Manifest:
    try:
        return Manifest.from_json(_loaded(content))
    except KeyError as error:
        raise DatasetError(f"{path}: has no {error.args[0]!r}; not a manifest of dinowds") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error}); make the dataset again") from None
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    except (TypeError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{path}: not a manifest of dinowds ({error})") from None


def _loaded(content: bytes) -> Any:
    """JSON. Raises ValueError for text that is not Unicode, which can only be written escaped: `\\ud800`."""
    loaded = json.loads(content)
    if rb"\ud" in content.lower():
        json.dumps(loaded, ensure_ascii=False).encode()
    return loaded


def _why_no_manifest(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: no such dataset; give the folder that 'dinowds shard --out' wrote"
    if (folder / UNFINISHED_NAME).exists():
        return f"{folder}: unfinished dataset; run the same command again to go on with it"
    return f"{folder}: has no {MANIFEST_NAME}, so it is not a dataset; give the folder that 'dinowds shard --out' wrote"
