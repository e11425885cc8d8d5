"""Pixels or cells → what the models saw in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dinowds.errors import ConfigError
from dinowds.eval.attend.seen import Level, Seen, joined_level
from dinowds.eval.attention import Look, look
from dinowds.eval.pictures import Pixels, enlarged
from dinowds.model.pixels import normalise
from dinowds.model.weights import Weights, load_backbone
from dinowds.shard.choice.quality import is_blank
from dinowds.shard.kernels import statistics

MOST_TOKENS = 1 << 14
"""Of an image: attention of each to each takes a minute for as many on a CPU."""
DEFAULT_PATCH_SIZE = 256
"""Of a region whose model does not say, px; as HIPT's."""


class Model:
    """A backbone on a device, and what its weights say."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.weights = weights
        self._backbone, self._device = load_backbone(weights).to(device), device

    @property
    def description(self) -> str:
        """In a line."""
        size, registers = self.weights.architecture.size, self.weights.architecture.registers
        extra = f", {registers} registers" if registers else ""
        return (
            f"{self.weights.path} ({self.weights.which}): block {size.depth} of {size.depth}, "
            f"{size.num_heads} heads{extra}"
        )

    def look(self, samples: Tensor) -> Look:
        """uint8 images [N, H, W, 3], or float regions [N, rows, columns, C]; all at once, in float32. On the CPU."""
        samples = samples.to(self._device)
        if samples.dtype == torch.uint8:
            mean, std = self.weights.mean, self.weights.std
            samples = normalise(samples.permute(0, 3, 1, 2), torch.float32, mean, std)
        return Look(*(part.cpu() for part in look(self._backbone, samples)))


def fitted_sides(height: int, width: int, patch_size: int, size: int | None) -> tuple[int, int]:
    """Height and width, px, that an image is resized to: the shorter side is `size` (None: as it is), and both are the
    nearest multiples of the patch size, so that nothing is cut off.
    """
    scale = 1.0 if size is None else size / min(height, width)
    down, across = (max(1, round(side * scale / patch_size)) * patch_size for side in (height, width))
    return down, across


def see_image(model: Model, image: Pixels, size: int | None, most_px: int) -> Seen:
    """One image as a whole; see `fitted_sides`. `most_px`: of the canvas.

    Raises:
        ConfigError: too many tokens. The message names no file; the caller knows it.
    """
    patch_size = model.weights.architecture.patch_size
    height, width = fitted_sides(image.shape[0], image.shape[1], patch_size, size)
    rows, columns = height // patch_size, width // patch_size
    _check_count(rows * columns, f"{width}×{height} px make", "tokens", "; give a smaller --size")
    resized = resize(image, height, width)
    seen = model.look(torch.from_numpy(resized)[None])
    level = Level(seen.attention[0], seen.tokens[0], torch.ones(rows, columns, dtype=torch.bool))
    sizes = _sizes(image, resized, f"resized to {width} x {height} px")
    details = [f"{sizes}  ·  {columns} x {rows} tokens of {patch_size} px", _on_tokens(level)]
    return Seen(make_canvas(resized, most_px), {"image": level}, details=details)


def see_grid(model: Model, grid: NDArray[np.float16]) -> Seen:
    """A region of a dataset, [rows, columns, C], missing cells NaN."""
    cells = torch.from_numpy(np.array(grid, np.float32))  # a copy: what is read from a shard cannot be written to
    region, given = _see_cells(model, cells)
    rows, columns, channels = cells.shape
    missing = _missing(region, ", striped")
    details = [f"{columns} x {rows} cells of {channels} features{missing}", _on_tokens(region)]
    return Seen(None, {"region": region, "cells": given}, details=details)


def see_region(
    region_model: Model,
    patch_model: Model,
    image: Pixels,
    size: int | None,
    patch_size: int,
    drop_blank: bool,
    most_px: int,
) -> Seen:
    """A region as an image: its patches by the one model, and their features by the other.

    What the whole patches do not cover, at the right and at the bottom, is left out.

    Args:
        size: that the shorter side is resized to first, px; None: as it is.
        patch_size: side of a patch, px.
        drop_blank: patches that are nearly all white or black are missing cells.
        most_px: of the canvas.

    Raises:
        ConfigError: there is no whole patch, too many, or all are blank. The message names no file.
    """
    height, width = image.shape[:2]
    if size is not None:
        scale = size / min(height, width)
        height, width = round(height * scale), round(width * scale)
    rows, columns = height // patch_size, width // patch_size
    if not rows * columns:
        raise ConfigError(f"{width}×{height} px, expected at least one patch of {patch_size} px; give --patch-size")
    _check_count(rows * columns, f"{width}×{height} px make", "patches", "; give a smaller --size")
    whole = resize(image, height, width)[: rows * patch_size, : columns * patch_size]
    patches = (
        whole.reshape(rows, patch_size, columns, patch_size, 3).swapaxes(1, 2).reshape(-1, patch_size, patch_size, 3)
    )
    blank = _find_blank(patches) if drop_blank else np.zeros(len(patches), np.bool_)
    if blank.all():
        raise ConfigError("every patch is blank; leave out --drop-blank")
    looks = _look_at_patches(patch_model, patches)
    # As a dataset of regions holds them: that is what the region's model learned from.
    features = looks.features.half().float()
    features[torch.from_numpy(blank)] = torch.nan
    region, cells = _see_cells(region_model, features.view(rows, columns, -1))
    own, joined = joined_level(region, looks.attention, looks.tokens)
    sizes = _sizes(image, whole, _what_was_done(size, (height, width), whole.shape[:2]))
    missing = _missing(region, " (blank), striped")
    details = [f"{sizes}  ·  {columns} x {rows} patches of {patch_size} px{missing}", _on_tokens(region)]
    levels = {"region": region, "cells": cells, "patches": own}
    return Seen(make_canvas(whole, most_px), levels, joined, details)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Bicubic, antialiased; the image itself where it has that size."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def make_canvas(image: Pixels, most_px: int) -> Pixels:
    """Reduced to a longer side of `most_px`; a small image is `pictures.enlarged`."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= most_px:
        return enlarged(image)
    return resize(image, max(1, round(height * most_px / longer)), max(1, round(width * most_px / longer)))


def _see_cells(model: Model, cells: Tensor) -> tuple[Level, Level]:
    """float32 [rows, columns, C] → the region, and the cells themselves as tokens."""
    expected = model.weights.architecture.in_dim
    if cells.shape[-1] != expected:
        raise ConfigError(
            f"cells have {cells.shape[-1]} features, {model.weights.path} takes {expected}; give models that belong "
            "together"
        )
    seen = model.look(cells[None])
    exists = ~cells[..., 0].isnan()
    region = Level(seen.attention[0], seen.tokens[0], exists)
    return region, Level(region.attention, cells.nan_to_num(0.0), exists)


def _look_at_patches(model: Model, patches: Pixels) -> Look:
    """uint8 [n, side, side, 3] → of all, in portions."""
    portion = max(1, MOST_TOKENS // (patches.shape[1] // model.weights.architecture.patch_size) ** 2)
    looks = [model.look(part) for part in torch.split(torch.from_numpy(patches), portion)]
    return Look(*(torch.cat(parts) for parts in zip(*looks, strict=True)))


def _find_blank(patches: Pixels) -> NDArray[np.bool_]:
    shares = [statistics(patch) for patch in patches]
    return is_blank(np.array([found.white for found in shares]), np.array([found.black for found in shares]))


def _check_count(count: int, found: str, what: str, advice: str) -> None:
    if count > MOST_TOKENS:
        raise ConfigError(f"{found} {count:,} {what}, expected at most {MOST_TOKENS:,}{advice}")


def _sizes(before: Pixels, after: Pixels, done: str) -> str:
    given = f"{before.shape[1]} x {before.shape[0]} px"
    return given if before.shape == after.shape else f"{given}, {done}"


def _what_was_done(size: int | None, resized: tuple[int, int], cut: Sequence[int]) -> str:
    parts = [f"resized to {resized[1]} x {resized[0]} px"] if size is not None else []
    if tuple(cut) != resized:
        parts.append(f"cut to {cut[1]} x {cut[0]} px")
    return ", ".join(parts)


def _missing(level: Level, how: str) -> str:
    count = int((~level.exists).sum())
    return f"  ·  {count} of {level.exists.numel()} cells missing{how}" if count else ""


def _on_tokens(level: Level) -> str:
    share = 100 * float(level.mean.sum())
    return f"{share:.1f} % of the attention is on the tokens shown, the rest on class token and registers"
