"""Where everything lies in the tar of a shard: headers, payloads, labels and further members. Pure.

A sample is `KEY.EXT`, then `KEY.cls` where it has a label, then its further members.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .kernels import tar_headers
from .tarheader import BLOCK, padded
from .ustar import END_BYTES

Int64s = npt.NDArray[np.int64]


class TarPlan(NamedTuple):
    """The tar of one shard of N samples.

    `offsets` is int64 [N]: each image's payload. `copies` are the P payloads to copy, in order of the sample: int64 [P]
    of `sample`, `place` and `size` in the source and `to` in the tar; the first N are the images.
    """

    num_bytes: int
    offsets: Int64s
    sample: Int64s
    place: Int64s
    size: Int64s
    to: Int64s
    names: Any
    """Arrow strings [M] of all members, and where their headers are, what size they tell: int64 [M]."""
    headers_at: Int64s
    header_sizes: Int64s
    label_at: Int64s
    """int64 [L]: the payloads of labels, and their values."""
    label_values: Int64s


def plan_tar(keys: Any, rows: Any) -> TarPlan:
    """Lay out the samples `rows` (an Arrow table with place, size, ext, label, and perhaps extras) under `keys` [N]."""
    place, size = rows["place"].to_numpy(), rows["size"].to_numpy()
    labels = rows["label"].to_numpy()
    labelled = np.flatnonzero(labels >= 0)
    own = BLOCK + padded(size)
    with_label = own + np.where(labels >= 0, 2 * BLOCK, 0)
    of, extra_place, extra_size, extra_ext = _extras(rows)
    extra_bytes = BLOCK + padded(extra_size)
    before = np.cumsum(extra_bytes) - extra_bytes
    more = np.zeros(len(keys), np.int64)
    np.add.at(more, of, extra_bytes)
    ends = np.cumsum(with_label + more)
    starts = ends - with_label - more
    first_extra = np.cumsum(more) - more
    extras_at = starts[of] + with_label[of] + before - first_extra[of]
    names = [_join(keys, rows["ext"].combine_chunks())]
    names += [_join(keys.take(pa.array(labelled)), "cls"), _join(keys.take(pa.array(of)), extra_ext)]
    labels_at = starts[labelled] + own[labelled]
    label_sizes = np.char.str_len(labels[labelled].astype(str)).astype(np.int64) if len(labelled) else labelled
    return TarPlan(
        num_bytes=(int(ends[-1]) if len(ends) else 0) + END_BYTES,
        offsets=starts + BLOCK,
        sample=np.concatenate([np.arange(len(keys)), of]),
        place=np.concatenate([place, extra_place]),
        size=np.concatenate([size, extra_size]),
        to=np.concatenate([starts, extras_at]) + BLOCK,
        names=pa.concat_arrays(names),
        headers_at=np.concatenate([starts, labels_at, extras_at]),
        header_sizes=np.concatenate([size, label_sizes, extra_size]),
        label_at=labels_at + BLOCK,
        label_values=labels[labelled],
    )


def fill(plan: TarPlan, tar: npt.NDArray[np.uint8]) -> None:
    """Write into `tar`, uint8 [num_bytes], all but the payloads: those go over the beginnings of their blocks."""
    blocks = tar.reshape(-1, BLOCK)
    last = plan.to + padded(plan.size) - BLOCK
    blocks[last[plan.size > 0] // BLOCK] = 0
    blocks[plan.headers_at // BLOCK] = tar_headers(plan.names, plan.header_sizes)
    values, which = np.unique(plan.label_values, return_inverse=True)
    texts = np.frombuffer(
        b"".join(b"%d" % value + bytes(BLOCK - len(b"%d" % value)) for value in values.tolist()), np.uint8
    )
    blocks[plan.label_at // BLOCK] = texts.reshape(-1, BLOCK)[which]
    tar[-END_BYTES:] = 0


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
