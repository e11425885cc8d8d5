"""Where everything lies in the tar of a shard: headers, payloads, labels and further members. Pure.

A sample is `KEY.EXT`, then `KEY.cls` where it has a label, then its further members.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.errors import SourceError
from dinowds.shard.kernels import hash_strings, tar_headers
from dinowds.shard.repeats import are_repeated
from dinowds.shard.tarheader import BLOCK, padded
from dinowds.shard.ustar import END_BYTES

MAX_NAME_BYTES = 100
"""Of a USTAR name without a prefix, which wids does not read."""

Int64s = npt.NDArray[np.int64]


class TarPlan(NamedTuple):
    """The tar of one shard of N samples, in the order of its bytes.

    `offsets` is int64 [N]: each image's payload; `ends` int64 [N]: each sample's. The P payloads to copy: int64 [P] of
    `sample`, `place` and `size` in the source, `to` in the tar, and `image`: which image it is, N for further members.
    `names` (Arrow strings), `header_sizes` and `header_at` are of all M members: what their headers say, and at which
    block these are. The payload of a label, one of `labels` (uint8 [L, 512]), goes to a block `label_at`: `label_of`.
    """

    num_bytes: int
    offsets: Int64s
    ends: Int64s
    sample: Int64s
    place: Int64s
    size: Int64s
    to: Int64s
    image: Int64s
    names: Any
    header_sizes: Int64s
    header_at: Int64s
    labels: npt.NDArray[np.uint8]
    label_of: Int64s
    label_at: Int64s


def plan_tar(keys: Any, rows: Any) -> TarPlan:
    """Lay out the samples `rows` (an Arrow table with place, size, ext, label, and perhaps extras) under `keys` [N]."""
    members = _members(keys, rows)
    num_bytes = BLOCK + padded(members.size)
    order = np.lexsort((members.rank, members.sample))
    starts = np.empty(len(order), np.int64)
    starts[order] = np.cumsum(num_bytes[order]) - num_bytes[order]
    total = int(num_bytes.sum())
    is_label = members.place < 0
    copies = order[~is_label[order]]
    label_at = starts[is_label] // BLOCK + 1
    in_order = np.argsort(label_at)
    values, which = np.unique(members.label[is_label], return_inverse=True)
    texts = np.zeros((len(values), BLOCK), np.uint8)
    for row, value in enumerate(values.tolist()):
        texts[row, : len(str(value))] = list(str(value).encode())
    images = np.arange(len(keys))
    ends = np.zeros(len(keys), np.int64)
    np.maximum.at(ends, members.sample, starts + num_bytes)
    return TarPlan(
        num_bytes=total + END_BYTES,
        offsets=starts[images] + BLOCK,
        ends=ends,
        sample=members.sample[copies],
        place=members.place[copies],
        size=members.size[copies],
        to=starts[copies] + BLOCK,
        image=np.minimum(copies, len(keys)),
        names=members.names.take(pa.array(order)),
        header_sizes=members.size[order],
        header_at=starts[order] // BLOCK,
        labels=texts,
        label_of=which[in_order],
        label_at=label_at[in_order],
    )


def cut_tar(plan: TarPlan, step: int) -> list[int]:
    """Where the tar can be cut into parts of about `step` bytes, between samples: 0, …, its length."""
    bounds = [0]
    while bounds[-1] < plan.num_bytes - END_BYTES:
        at = int(np.searchsorted(plan.ends, bounds[-1] + step, "right"))
        at = max(at, int(np.searchsorted(plan.ends, bounds[-1], "right")) + 1)
        bounds.append(int(plan.ends[at - 1]))
    bounds[-1] = plan.num_bytes
    return bounds


def fill(plan: TarPlan, start: int, part: npt.NDArray[np.uint8]) -> slice:
    """Write into `part`, uint8 [bytes] of the tar from `start` on, all but the payloads; which copies belong there.

    Payloads go over the beginnings of their blocks; what follows them is zero already.
    """
    blocks = part.reshape(-1, BLOCK)
    copies = slice(*np.searchsorted(plan.to, [start, start + len(part)]).tolist())
    size = plan.size[copies]
    last = plan.to[copies] + padded(size) - BLOCK - start
    blocks[last[size > 0] // BLOCK] = 0
    bounds = [start // BLOCK, (start + len(part)) // BLOCK]
    first, stop = np.searchsorted(plan.header_at, bounds).tolist()
    headers = tar_headers(plan.names.slice(first, stop - first), plan.header_sizes[first:stop])
    blocks[plan.header_at[first:stop] - bounds[0]] = headers
    first, stop = np.searchsorted(plan.label_at, bounds).tolist()
    blocks[plan.label_at[first:stop] - bounds[0]] = plan.labels[plan.label_of[first:stop]]
    if start + len(part) == plan.num_bytes:
        part[-END_BYTES:] = 0
    return copies


def check_members(keys: Any, rows: Any) -> None:
    """Whether the further members of samples can go beside their images in a tar.

    Raises SourceError where one's name is too long, or is another member's of its sample.
    """
    if "extras" not in rows.column_names:
        return
    names = _members(keys, rows).names
    too_long = pc.greater(pc.binary_length(names), MAX_NAME_BYTES)
    for bad, problem in ((too_long, f"is over {MAX_NAME_BYTES} bytes long"), (_repeated(names), "comes twice")):
        if name := next(iter(names.filter(bad).to_pylist()), None):
            raise SourceError(
                f"{name!r}: the name that a further member of this sample would get {problem}; give the images alone, "
                "as a folder or with --layout tar"
            )


def _repeated(names: Any) -> Any:
    return pa.array(are_repeated(hash_strings(names)))


class _Members(NamedTuple):
    """All members of the samples: images, labels and the others [M]. A label has the place -1.

    `rank` orders those of a sample.
    """

    names: Any
    sample: Int64s
    rank: Int64s
    place: Int64s
    size: Int64s
    label: Int64s


def _members(keys: Any, rows: Any) -> _Members:
    count = len(keys)
    labels = rows["label"].to_numpy()
    labelled = np.flatnonzero(labels >= 0)
    of, place, size, ext = _extras(rows)
    label_sizes = np.char.str_len(labels[labelled].astype(str)).astype(np.int64) if len(labelled) else labelled
    names = [_join(keys, rows["ext"].combine_chunks())]
    names += [_join(keys.take(pa.array(labelled)), "cls"), _join(keys.take(pa.array(of)), ext)]
    no_label = np.full(count, -1)
    return _Members(
        names=pa.concat_arrays(names),
        sample=np.concatenate([np.arange(count), labelled, of]),
        rank=np.concatenate([np.zeros(count, np.int64), np.ones(len(labelled), np.int64), 2 + np.arange(len(of))]),
        place=np.concatenate([rows["place"].to_numpy(), np.full(len(labelled), -1), place]),
        size=np.concatenate([rows["size"].to_numpy(), label_sizes, size]),
        label=np.concatenate([no_label, labels[labelled], np.full(len(of), -1)]),
    )


def _extras(rows: Any) -> tuple[Int64s, Int64s, Int64s, Any]:
    """Of each further member: its sample, place, size, and extension."""
    if "extras" not in rows.column_names:
        none = np.zeros(0, np.int64)
        return none, none, none, pa.array([], pa.string())
    extras = rows["extras"].combine_chunks()
    parts = pc.list_flatten(extras)
    of = pc.list_parent_indices(extras).to_numpy().astype(np.int64)
    place, size, ext = (pc.struct_field(parts, name) for name in ("place", "size", "ext"))
    return of, place.to_numpy(), size.to_numpy(), ext


def _join(keys: Any, endings: Any) -> Any:
    text = pa.large_string()
    ending = pa.scalar(endings, text) if isinstance(endings, str) else endings.cast(text)
    return pc.binary_join_element_wise(keys.cast(text), ending, pa.scalar(".", text))
