"""A folder of region tensors: .pt files of one tensor each, features of an n × n grid of patches in row-major order.

They become .npy members of an uncompressed tar first (`spool_regions`), which is then read like any other.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from dinowds.data.grids import check_cells, decode_grid
from dinowds.errors import SampleError
from dinowds.shard.records import GENERIC_FOLDERS, decode_name
from dinowds.shard.sources.check import EXTENSIONS, REASONS, ChangedError, Checked, Checks
from dinowds.shard.sources.images import DAMAGED, ImageInfo, NotTaken
from dinowds.shard.sources.layouts.folder import Times, folder_name, walk
from dinowds.shard.sources.layouts.members import scan_members
from dinowds.shard.sources.source import Items, Request, Source, SourceFile, path_text, readable
from dinowds.shard.sources.tarscan import DIRECTORY, FILE

NAME = "regions"

NOT_A_TENSOR_NAME = "not a .pt file"
NOT_A_TENSOR = "not a tensor"
NOT_FLOATS = "tensor of other values than floats"
NOT_A_SQUARE = "tensor of another shape than [n², channels] or [n, n, channels]"
NOT_FINITE = "tensor with infinite values, cells that are NaN in part, or no cell that is not NaN"
OVERFLOW = "tensor with values over 65,504, the largest of float16"

_SUFFIX, _MEMBER, _NOT_TAKEN = b".pt", b".npy", b".reason"
_BESIDE = {".pt", ".csv", ".json", ".txt", ".yaml", ".yml", ".md", ""}
_LOOKED_AT = 1000
_ZIP = b"PK\x03\x04"
_PLACE = re.compile(r"(?:(?P<slide>.+)_)?(?P<x>-?[0-9]{1,18})_(?P<y>-?[0-9]{1,18})", re.DOTALL)

Region = npt.NDArray[np.float16]
"""[n, n, channels]; a cell that does not exist is NaN in all channels."""


def recognises(path: Path) -> bool:
    """A folder of .pt files, and nothing else but small notes beside them."""
    if not path.is_dir():
        return False
    names = (name for _, _, names in os.walk(path) for name in names if not name.startswith("."))
    found = {os.path.splitext(name)[1] for name in islice(names, _LOOKED_AT)}  # noqa: PTH122 - names may be many
    return ".pt" in found and found <= _BESIDE


def open_source(path: Path, request: Request) -> Source:
    """One folder; its name is the cohort."""
    file = SourceFile(path_text(path), path, "tensors")
    return Source(request.text, request.cohort or folder_name(path), NAME, (file,))


def list_items(source: Source, position: int, read: Callable[[int, int], bytes]) -> Items:
    """The regions of a tar that `spool_regions` wrote; what it could not take is the quarantine."""
    found, quarantine = [], []
    for kind, name, place, size in scan_members(read, source.files[position].path):
        if kind == FILE and name.endswith(_MEMBER):
            found.append((name, place, size))
        elif kind == FILE:
            quarantine.append((place, name[: -len(_NOT_TAKEN)], read(place, size).decode()))
    return _items(source, position, found, quarantine)


def rough_items(source: Source, position: int) -> Items:
    """What `list_items` would give, from the names of the files alone; places are positions in the walk."""
    found, quarantine = [], []
    for name, place, size, reason in _walk(source.files[position].file):
        if reason is None:
            found.append((_member(name), place, size))
        else:
            quarantine.append((place, name, reason))
    return _items(source, position, found, quarantine)


def spool_regions(root: Path, path: str, out: BinaryIO) -> list[tuple[int, bytes, str]]:
    """Write the regions below `root` to an uncompressed tar as NAME.npy, in the order of their names.

    Args:
        path: names the folder in errors.

    Returns:
        (position in the walk, name, reason) of what is not taken. The tar has them too, as members NAME.reason, so
        that a tar of an earlier run tells them.
    """
    quarantine = []
    # GNU's format: names may be of any length and hold any bytes.
    with readable(path), tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
        for name, position, _, reason in _walk(root):
            try:
                if reason is not None:
                    raise NotTaken(reason)
                payload = region_payload(load_region(root / os.fsdecode(name)))
                member = _member(name)
            except NotTaken as error:
                quarantine.append((position, name, str(error)))
                member, payload = name + _NOT_TAKEN, str(error).encode()
            header = tarfile.TarInfo(os.fsdecode(member))
            header.size = len(payload)
            tar.addfile(header, io.BytesIO(payload))
    return quarantine


def load_region(path: Path) -> Region:
    """The features of one .pt file, float16 [n, n, channels]. Nothing in the file is run.

    Raises:
        NotTaken: with `NOT_A_TENSOR`, `NOT_FLOATS`, `NOT_A_SQUARE`, `NOT_FINITE` or `OVERFLOW`.
        OSError: it cannot be read.
    """
    import torch

    with open(path, "rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
        num_bytes = file.seek(0, os.SEEK_END)
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except OSError:
        raise
    except Exception:  # torch raises whatever the bytes lead it to.
        raise NotTaken(NOT_A_TENSOR) from None
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise NotTaken(NOT_A_TENSOR)
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise NotTaken(NOT_FLOATS)
    shape = _grid_shape(tuple(tensor.shape))
    # A tensor can be a small one that is repeated; what it stands for might not fit into memory.
    if shape is None or tensor.numel() * tensor.element_size() > num_bytes:
        raise NotTaken(NOT_A_SQUARE)
    if bool(tensor.isinf().any()):
        raise NotTaken(NOT_FINITE)
    region: Region = tensor.detach().to(torch.float16, copy=True).contiguous().numpy().reshape(shape)
    if np.isinf(region).any():
        raise NotTaken(OVERFLOW)
    try:
        check_cells(region)
    except SampleError:
        raise NotTaken(NOT_FINITE) from None
    return region


def region_payload(region: Region) -> bytes:
    """A region as a .npy file, the same with every version of numpy."""
    about = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {region.shape}, }}"
    line = about.encode() + b" " * (-(10 + len(about) + 1) % 64) + b"\n"
    content = np.ascontiguousarray(region, "<f2").tobytes()
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + content


def describe_region(payload: bytes) -> ImageInfo:
    """Format and size, in cells, of a region's .npy file.

    Raises:
        NotTaken: with `DAMAGED`, also where it is of another type or shape; see `decode_grid`.
    """
    try:
        rows, columns, _ = decode_grid(payload).shape
    except SampleError:
        raise NotTaken(DAMAGED) from None
    return ImageInfo("npy", columns, rows)


def check_regions(
    descriptor: int, places: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], checks: Checks
) -> Checked:
    """Check regions' .npy files that lie in one open file; see `check.check_ranges`. They have no statistics."""
    count = len(places)
    reasons, exts = np.zeros(count, np.int8), np.full(count, -1, np.int8)
    cells = np.zeros((2, count), np.int32)
    digests = np.zeros((count, 16), np.uint8) if checks.digests else None
    for index, (place, size) in enumerate(zip(places.tolist(), sizes.tolist(), strict=True)):
        payload = os.pread(descriptor, size, place)
        if len(payload) < size:
            raise ChangedError(index)
        if digests is not None:
            digests[index] = np.frombuffer(xxhash.xxh3_128_digest(payload), np.uint8)
        try:
            info = describe_region(payload)
            exts[index], cells[:, index] = EXTENSIONS.index(info.ext), (info.width, info.height)
        except NotTaken as reason:
            reasons[index] = REASONS.index(str(reason))
    return Checked(reasons, exts, cells[0], cells[1], digests)


def _walk(root: Path) -> Iterator[tuple[bytes, int, int, str | None]]:
    """Name, position and size of each file below a folder that is not hidden, and why it cannot be a region."""
    for kind, name, position, size in walk(root, Times()):
        if kind != DIRECTORY and not name.rpartition(b"/")[2].startswith(b"."):
            reason = None if name.endswith(_SUFFIX) else NOT_A_TENSOR_NAME
            yield name, position, size, reason if kind == FILE else kind


def _member(name: bytes) -> bytes:
    return name[: -len(_SUFFIX)] + _MEMBER


def _items(
    source: Source, position: int, found: list[tuple[bytes, int, int]], quarantine: list[tuple[int, bytes, str]]
) -> Items:
    """Regions by their names in the tar, with slides, places and the names of their files."""
    names, places, sizes = zip(*found, strict=True) if found else ((), (), ())
    root = folder_name(source.files[position].file)
    slides, xs, ys = zip(*(_find_place(decode_name(name), root) for name in names), strict=True) if names else ((),) * 3
    facts = {
        "slide": pa.array(slides, pa.string()),
        "x": pa.array(xs, pa.int64()),
        "y": pa.array(ys, pa.int64()),
        "source_name": pa.array([decode_name(name[: -len(_MEMBER)] + _SUFFIX) for name in names], pa.string()),
    }
    columns = np.array(places, np.int64), np.array(sizes, np.int64)
    return Items(pa.array(names, pa.large_binary()), *columns, pa.table(facts), quarantine)


def _grid_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(n², channels) or (n, n, channels) → (n, n, channels)."""
    if len(shape) == 2:
        shape = (isqrt(shape[0]), -1 if isqrt(shape[0]) ** 2 != shape[0] else isqrt(shape[0]), shape[1])
    if len(shape) != 3 or shape[0] != shape[1] or min(shape) < 1:
        return None
    return shape[0], shape[1], shape[2]


def _find_place(name: str, root: str) -> tuple[str | None, int | None, int | None]:
    """Slide, x and y: 'slide/x_y.npy' or 'slide_x_y.npy'; a folder's name goes before that in the file's."""
    *folders, base = name.split("/")
    match = _PLACE.fullmatch(base.rpartition(".")[0])
    parents = [folder for folder in folders if folder.lower() not in GENERIC_FOLDERS]
    slide = parents[-1] if parents else (match["slide"] if match and match["slide"] else root)
    return (slide, int(match["x"]), int(match["y"])) if match else (slide, None, None)
