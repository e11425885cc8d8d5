"""Whole images of regions → grids: each is cut into patches, row by row, and these are embedded.

An image is decoded as a whole, in a loader process: libjpeg, as Pillow and simplejpeg offer it, gives no rows of an
image, and 4096 × 4096 px are 50 MB. Its patches are copied out band by band, as many rows as go through the device at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinowds.data.dataset import Dataset
from dinowds.embed.encoder import Encoder
from dinowds.embed.patches.stream import Block, load_blocks, shard_ids
from dinowds.embed.regions.parts import Float16s, check_features
from dinowds.shard.sources.layouts.grids import Grid, Refused, has_part, write_part

_COLUMNS = ("key", "slide", "x", "y", "label", "cohort")


def embed_image(image: Tensor, patch_size: int, encoder: Encoder) -> Tensor:
    """uint8 [H, W, 3], whose sides `patch_size` divides → float32 [rows, columns, D]: cell (r, c) is the patch at
    y = r · patch_size, x = c · patch_size.

    What goes through the device together depends on the image alone.
    """
    height, width, _ = image.shape
    patches = image.view(height // patch_size, patch_size, width // patch_size, patch_size, 3).transpose(1, 2)
    bands = torch.split(patches, max(1, encoder.batch_size // patches.shape[1]))
    return torch.cat([encoder.features(band.flatten(0, 1)).view(*band.shape[:2], -1) for band in bands])


def write_image_grids(
    dataset: Dataset,
    shards: Sequence[int],
    patch_size: int,
    encoder: Encoder,
    grids: Path,
    num_workers: int,
    report: Callable[[int, int], None],
) -> None:
    """Write one part for each of these shards that has none; a part's number is its shard's.

    Images that cannot be decoded are noted in it, with the reason.
    """
    left = [shard for shard in shards if not has_part(grids, shard)]
    counts = dataset.selection.counts
    total, done = int(counts[list(shards)].sum()), int(counts[[s for s in shards if s not in left]].sum())
    is_gpu = encoder.device.type == "cuda"

    def counted(blocks: Iterator[Block]) -> Iterator[Block]:
        nonlocal done
        for block in blocks:
            yield block
            done += len(block.places)
            report(done, total)

    blocks = load_blocks(dataset, left, 1, None, num_workers, is_gpu) if left else iter(())
    for shard, of_shard in groupby(blocks, attrgetter("shard")):
        write_part(grids, shard, _grids(dataset, shard, counted(of_shard), patch_size, encoder))


def _grids(
    dataset: Dataset, shard: int, blocks: Iterator[Block], patch_size: int, encoder: Encoder
) -> Iterator[Grid | Refused]:
    rows = dataset.index.groups.read(shard, _COLUMNS).take(shard_ids(dataset, shard) - dataset.first_ids[shard])
    label_names = dataset.manifest.label_names
    for block in blocks:
        for place in block.places:
            key, slide, x, y, label, cohort = (rows[name][place].as_py() for name in _COLUMNS)
            if place in block.bad:
                yield Refused(key, block.bad[place])
                continue
            cells = _finite(embed_image(block.images[0], patch_size, encoder), key)
            yield Grid(cells, key, key, slide, x, y, None if label is None else label_names[label], cohort)


def _finite(cells: Tensor, key: str) -> Float16s:
    features = cells.numpy()
    checked = check_features(features.reshape(-1, features.shape[-1]), lambda _row: key)
    return checked.reshape(features.shape)


def count_parts(grids: Path, count: int) -> int:
    """How many of the parts 0 … count − 1 are whole."""
    return int(np.sum([has_part(grids, number) for number in range(count)]))
