"""The renderer for accelerators: all views of a batch at once, from decoded images and records.

Resizing and blur are batched matrix products. Their weights have 11 bits and sum to 1 and pixels are whole numbers, so
every sum is exact in whatever order: a view depends neither on the batch that it is in nor on how products are summed.
Results are rounded to whole grey levels after each product, as Pillow's are, and all other steps but the jitter of
stains are exact as well.

Everything that decides shapes comes from the records, which are in host memory, so the host never waits for the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinowds.crops import tensors
from dinowds.crops.recipe import NEVER_SOLARIZED, Output, Recipe, ViewGroup, Views
from dinowds.crops.stain import optical_density

PIECE_IMAGES = 128
"""Most images that are rendered together. Each piece takes some 200 launches, however small it is."""

PIECE_BYTES = 2**31
"""Most memory for what is rendered together, if it is more than one image: see `_memory`. Input, output and some 15 MB
of blur matrices come on top."""

MAX_PADDING = 2
"""Images of several sizes are rendered together as long as padding makes them at most this many times as large."""

ALIGNMENT = 8
"""Padded sides are multiples of this; tensor cores want rows of 16 bytes."""

SMALL_RADIUS = 2**0.5
"""Below this radius, px, Pillow's six filters have three weights each: applied one by one they cost less than products,
and their roundings, which matter the more the smaller the radius, are kept."""

RADII_PER_OCTAVE = 128
"""Other radii are rounded to the nearest of this many for each doubling: by 0.3 % at most."""

Array: TypeAlias = NDArray[Any]
Kernel: TypeAlias = Callable[..., Tensor]

_log = logging.getLogger(__name__)


class DeviceRenderer:
    """Renders batches of images, of whatever sizes, on one device."""

    def __init__(self, recipe: Recipe, device: torch.device, compile: bool | None = None) -> None:
        """`compile`: fuse pointwise steps with torch.compile; None for on CUDA, where it works. It does not change the
        views, but for the rounding of stains."""
        self._outputs, self._device = recipe.outputs, device
        radius = max((group.blur_radius[1] for group in recipe.groups if group.blur > 0), default=0.0)
        octaves = int(np.ceil(np.log2(max(radius / SMALL_RADIUS, 1))))
        self._largest_blur = SMALL_RADIUS * 2.0**octaves
        self._blurs = {output.size: _blur_matrices(output.size, octaves).to(device) for output in recipe.outputs}
        compiled = device.type == "cuda" and _can_compile(device) if compile is None else compile
        fuse: Callable[[Any], Any] = partial(torch.compile, dynamic=True) if compiled else _as_is
        self._planes: Kernel = fuse(tensors.planes)
        self._padded_planes: Kernel = fuse(tensors.padded_planes)
        self._taps: Callable[..., tuple[Tensor, Tensor]] = fuse(tensors.bicubic_taps)
        self._centred: Kernel = fuse(tensors.centred)
        self._between_products: Kernel = fuse(tensors.between_products)
        self._bytes: Kernel = fuse(tensors.to_bytes)
        self._soften_rows: Kernel = fuse(tensors.soften_rows)
        self._soften_columns: Kernel = fuse(tensors.soften_columns)
        self._steps: dict[str, Kernel] = {
            "turn": tensors.turn,
            "stain": partial(fuse(tensors.stain), torch.from_numpy(optical_density()).to(device)),
            "blend": fuse(tensors.blend),
            "hue": fuse(tensors.shift_hue),
            "soften": self._soften,
            "blur": self._blur,
            "solarize": fuse(tensors.solarize),
        }

    def __call__(
        self, pixels: Tensor, shapes: Sequence[tuple[int, int]], views: Views, reductions: Sequence[int] | Array
    ) -> dict[str, Tensor]:
        """Render all views of a batch.

        Args:
            pixels: uint8 [n]: the images one after another, each [h, w, 3], RGB; in host memory (copied without waiting
                if it is pinned) or on the device.
            shapes: [B], height and width of each image as it was decoded.
            views: [B, V] records, in px of the full images.
            reductions: [B]: each image was decoded at 1 / this of its full size.

        Returns:
            Name of each of the recipe's outputs → uint8 [count, B, 3, size, size] on the device.

        Raises:
            ValueError: the arguments do not belong together.
        """
        sizes = np.array(shapes, np.int64).reshape(-1, 2)
        boxes = _boxes(views, np.asarray(reductions, np.float64))
        self._check(pixels, sizes, views, boxes)
        upload = _Upload()
        pieces = [self._plan(images, sizes, views, boxes, upload) for images in _pieces(sizes, self._outputs)]
        upload.send(self._device)
        pixels = pixels.to(self._device, non_blocking=True)
        outs = {
            output.name: torch.empty(
                (output.count, len(sizes), 3, output.size, output.size), dtype=torch.uint8, device=self._device
            )
            for output in self._outputs
        }
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False), tensors.exact_products():
            for piece in pieces:
                self._render(piece, pixels, upload, outs)
        return outs

    def _check(self, pixels: Tensor, sizes: Array, views: Views, boxes: Array) -> None:
        expected = np.repeat([output.size for output in self._outputs], [output.count for output in self._outputs])
        if views.shape != (len(sizes), len(expected)) or np.any(views["size"] != expected):
            raise ValueError(f"views are {list(views.shape)}, expected {[len(sizes), len(expected)]} of this recipe")
        if pixels.dtype != torch.uint8 or pixels.ndim != 1 or len(pixels) != 3 * sizes.prod(axis=1).sum():
            needed = 3 * sizes.prod(axis=1).sum()
            raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}, expected torch.uint8 [{needed}]")
        outside = (boxes[_LOW] < 0) | (boxes[_HIGH] > sizes.T[:, :, None])
        if outside.any():
            _, image, view = np.argwhere(outside)[0]
            raise ValueError(
                f"view {view} of image {image} reaches outside of its {sizes[image, 0]} × {sizes[image, 1]} px; "
                "give the shape as decoded and the reduction that the image was decoded with"
            )
        if len(views) and views["blur"].max() > self._largest_blur:
            raise ValueError(f"a blur of {views['blur'].max()} px is larger than those of this recipe")

    def _plan(self, images: Array, sizes: Array, views: Views, boxes: Array, upload: _Upload) -> _Piece:
        """What `images`, positions in the batch, need on the device."""
        handle = upload.add(images)
        own = sizes[images]
        volumes = sizes.prod(axis=1)
        starts = np.cumsum(volumes) - volumes
        height, width = (int(side) for side in own.max(axis=0))
        uniform = bool(np.all(own == own[0]) and np.all(np.diff(images) == 1))
        if not uniform or height % ALIGNMENT or width % ALIGNMENT:
            height, width = _aligned(height), _aligned(width)
            layout = upload.add(np.stack([starts[images], own[:, 1], volumes[images]]))
        else:
            layout = None
        outputs = []
        first = 0
        for output in self._outputs:
            those = np.s_[first : first + output.count]
            first += output.count
            records = views[images, those].reshape(-1)
            box = boxes[:, :, images, those].reshape(_GEOMETRY, 2, -1)
            steps = []
            for name, mask, numbers in _steps(records):
                if mask.any():
                    # One view goes in twice: torch.compile would make kernels of their own for a size of 1.
                    chosen = np.resize(np.flatnonzero(mask), max(2, int(mask.sum())))
                    places = None if len(records) > 1 and mask.all() else upload.add(chosen)
                    steps.append(_Step(name, places, [upload.add(number[chosen]) for number in numbers]))
            outputs.append(_Part(output, upload.add(box), _num_taps(box, output.size), steps))
        return _Piece(handle, len(images), int(starts[images[0]]), layout, height, width, outputs)

    def _render(self, piece: _Piece, pixels: Tensor, upload: _Upload, outs: dict[str, Tensor]) -> None:
        count, height, width = piece.count, piece.height, piece.width
        if piece.layout is None:
            block = pixels.narrow(0, 3 * piece.start, 3 * count * height * width).view(count, height, width, 3)
            planes = self._planes(block)
        else:
            planes = self._padded_planes(pixels, upload[piece.layout], height, width)
        images = upload[piece.images]
        for part in piece.parts:
            num_views, size = part.output.count, part.output.size
            rows, columns = part.taps
            vertical, horizontal = upload[part.box].unbind(1)
            down = self._resizing(vertical, size, min(rows, height), height)
            across = self._resizing(horizontal, size, min(columns, width), width)
            x = self._product(planes, across.view(count, num_views, size, width), down)
            for step in part.steps:
                x = self._apply(step, x, upload)
            outs[part.output.name].index_copy_(1, images, x.view(count, num_views, 3, size, size).transpose(0, 1))

    def _apply(self, step: _Step, x: Tensor, upload: _Upload) -> Tensor:
        kernel, numbers = self._steps[step.name], [upload[number] for number in step.numbers]
        if step.chosen is None:
            return kernel(x, *numbers)
        chosen = upload[step.chosen]
        return x.index_copy_(0, chosen, kernel(x.index_select(0, chosen), *numbers))

    def _resizing(self, box: Tensor, size: int, taps: int, length: int) -> Tensor:
        """Boxes [5, N] along one axis → float16 [N, size, length]: each row has the weights of one pixel of a view."""
        places, weights = self._taps(box, size, taps, length)
        matrices = torch.zeros((box.shape[1], size, length), dtype=torch.float16, device=box.device)
        return matrices.scatter_(2, places, weights)

    def _product(self, planes: Tensor, across: Tensor, down: Tensor) -> Tensor:
        """Both passes of a separable filter, rounded to whole levels after each.

        Args:
            planes: float16 [n, 3, H, W], grey levels less `MIDDLE`.
            across: float16 [n, V, S, W].
            down: float16 [n · V, S, H].

        Returns:
            uint8 [n · V, 3, S, S].
        """
        n, _, height, width = planes.shape
        num_views, size = across.shape[1:3]
        x = tensors.bmm(planes.view(n, 3 * height, width), across.view(n, num_views * size, width).mT)
        x = self._between_products(x.view(n, 3, height, num_views, size))
        x = tensors.bmm(down, x.view(n * num_views, height, 3 * size))
        return self._bytes(x.view(n * num_views, size, 3, size))

    def _soften(self, x: Tensor, share: Tensor) -> Tensor:
        for kernel in 3 * [self._soften_rows] + 3 * [self._soften_columns]:
            x = kernel(x, share)
        return x

    def _blur(self, x: Tensor, row: Tensor) -> Tensor:
        matrices = self._blurs[x.shape[-1]].index_select(0, row)
        return self._product(self._centred(x), matrices[:, None], matrices)


def render(image: NDArray[np.uint8], views: Views, outs: Sequence[NDArray[np.uint8]], reduction: int = 1) -> None:
    """Write each of `views`, [V] records, of `image`, uint8 [h, w, 3], RGB, into its place of `outs`,
    uint8 [3, size, size], on this processor. The image was decoded at 1 / `reduction` of its full size."""
    if len(outs) != len(views):
        raise ValueError(f"views are {list(views.shape)}, expected [{len(outs)}], one for each out")
    pixels = torch.from_numpy(np.array(image)).flatten()
    for size in np.unique(views["size"]).tolist():
        chosen = np.flatnonzero(views["size"] == size)
        largest = float(views["blur"][chosen].max())
        group = ViewGroup("all", "all", len(chosen), size, (1.0, 1.0), blur=1.0, blur_radius=(largest, largest))
        renderer = DeviceRenderer(Recipe((group,)), torch.device("cpu"), compile=False)
        rendered = renderer(pixels, [image.shape[:2]], views[None, chosen], [reduction])
        for place, view in zip(chosen.tolist(), rendered["all"][:, 0], strict=True):
            np.copyto(outs[place], view.numpy())


def _can_compile(device: torch.device) -> bool:
    """Whether torch.compile works: on a GPU it needs Triton, a C compiler and Python's headers. Warns if not."""
    numbers = torch.zeros(2, device=device)
    try:
        torch.compile(torch.neg)(numbers)
    except Exception as error:  # what the compiler raises is of many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        _log.warning("torch.compile does not work here (%s); crops are rendered without it, which takes longer", reason)
        return False
    return True


def _as_is(kernel: Any) -> Any:
    return kernel


# ---------------------------------------------------------------------------------------------- planning, on the host


@dataclass(frozen=True)
class _Step:
    """One operation on some of the views of an output. Handles of an `_Upload`."""

    name: str
    chosen: int | None
    """int64 [M], which views; None: all."""
    numbers: list[int]
    """[M, …] each."""


@dataclass(frozen=True)
class _Part:
    """What is rendered of one output: handle of the boxes, most taps along both axes, and the steps."""

    output: Output
    box: int
    taps: tuple[int, int]
    steps: list[_Step]


@dataclass(frozen=True)
class _Piece:
    """Images that are rendered together, padded to one size."""

    images: int
    """Handle of int64 [count], positions in the batch."""
    count: int
    start: int
    """Pixels before the first image."""
    layout: int | None
    """Handle of int64 [3, count]: pixels before each image, its width and volume; None: they lie as one block."""
    height: int
    width: int
    parts: list[_Part]


class _Upload:
    """Many small arrays in one copy."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._tensors: list[Tensor] = []

    def add(self, array: Array) -> int:
        """→ the handle by which the array is found on the device."""
        self._arrays.append(np.ascontiguousarray(array))
        return len(self._arrays) - 1

    def send(self, device: torch.device) -> None:
        ends = np.cumsum([0, *[-(-array.nbytes // 16) * 16 for array in self._arrays]])
        memory = np.empty(ends[-1], np.uint8)
        for start, array in zip(ends, self._arrays, strict=False):
            memory[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        data = torch.from_numpy(memory)
        if device.type == "cuda":
            data = data.pin_memory()
        data = data.to(device, non_blocking=True)
        for start, array in zip(ends, self._arrays, strict=False):
            kind = torch.from_numpy(array[:0]).dtype
            self._tensors.append(data.narrow(0, int(start), array.nbytes).view(kind).view(array.shape))

    def __getitem__(self, handle: int) -> Tensor:
        return self._tensors[handle]


_EDGE, _EXTENT, _LOW, _HIGH, _FLIP, _GEOMETRY = range(6)


def _boxes(views: Views, reductions: Array) -> Array:
    """float64 [5, 2, B, V], rows and columns each, in px of the decoded images: where the box starts, its extent, the
    first pixel that may be read, the one after the last, and 1 where the result is mirrored."""
    reductions = reductions[:, None]
    edge = np.stack([views["top"], views["left"]]) / reductions
    extent = np.stack([views["height"], views["width"]]) / reductions
    # A quarter turn is a transposition and a flip.
    flip = np.stack([views["vertical_flip"] ^ (views["turns"] >= 2), views["flip"] ^ (views["turns"] % 3 > 0)])
    return np.stack([edge, extent, np.floor(edge), np.ceil(edge + extent), flip])


def _num_taps(box: Array, size: int) -> tuple[int, int]:
    """Boxes [5, 2, N] → the most pixels that a pixel of a view is made of, along the columns and along the rows."""
    rows, columns = (int(4 * max(1, extent.max() / size)) + 2 for extent in box[_EXTENT])
    return rows, columns


def _pieces(sizes: Array, outputs: tuple[Output, ...]) -> list[Array]:
    """[B, 2] sizes → positions of the images that are rendered together: of similar size, not too many."""
    pieces: list[list[int]] = []
    height = width = volume = 0
    order = np.lexsort((sizes[:, 1], sizes[:, 0]))
    for image, (own_height, own_width) in zip(order.tolist(), sizes[order].tolist(), strict=True):
        own = own_height * own_width
        together = max(height, own_height), max(width, own_width)
        count = len(pieces[-1]) + 1 if pieces else 0
        if (
            0 < count <= PIECE_IMAGES
            and count * together[0] * together[1] <= MAX_PADDING * (volume + own)
            and count * _memory(*together, outputs) <= PIECE_BYTES
        ):
            pieces[-1].append(image)
            (height, width), volume = together, volume + own
        else:
            pieces.append([image])
            height, width, volume = own_height, own_width, own
    return [np.array(piece) for piece in pieces]


@lru_cache(maxsize=1024)
def _memory(height: int, width: int, outputs: tuple[Output, ...]) -> int:
    """Bytes that one image takes at most while it is rendered; 12 MB for 256 px and the views of DINO."""
    rows = sum(output.count * output.size for output in outputs)
    pixels = sum(output.count * output.size**2 for output in outputs)
    taps = sum(output.count * (4 * max(height, width, output.size) + 2 * output.size) for output in outputs)
    gathered, matrices, between = 30 * height * width, 2 * rows * (height + width), 12 * rows * height
    return gathered + matrices + between + 50 * taps + 24 * pixels


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _steps(views: Views) -> Iterator[tuple[str, Array, tuple[Array, ...]]]:
    """[N] records → what follows the resize and the flips, in order: its name, bool [N], which views it is for, and
    numbers of each view, [N, …] each."""
    yield "turn", views["turns"] % 2 == 1, ()
    yield "stain", views["stain"] == 1, (views["stain_map"],)
    factors = np.stack([views[name] for name in ("brightness", "contrast", "saturation", "hue")])
    # As torchvision has it: cut off to a whole number, which then wraps around in 8 bits.
    hue = (np.trunc(255 * factors[tensors.HUE].astype(np.float64)) % 256).astype(np.int32)
    factors = _short(factors)
    for slot in range(4):
        kind = views["order"][:, slot]
        factor = factors[kind, np.arange(len(views))]
        is_hue, jitter = kind == tensors.HUE, views["jitter"] == 1
        yield "blend", jitter & ~is_hue & (factor != 1), (kind, factor)
        yield "hue", jitter & is_hue, (hue,)
    no_colour = np.full(len(views), tensors.SATURATION, np.int32), np.zeros(len(views), np.float32)
    yield "blend", views["grey"] == 1, no_colour
    blur = views["blur"].astype(np.float64)
    small = blur < SMALL_RADIUS
    _, end = _box(np.where(small, blur, 0))
    share = np.rint(2**16 * end / (2 * end + 1)).astype(np.int32)
    yield "soften", (blur > 0) & small, (share,)
    row = np.rint(RADII_PER_OCTAVE * np.log2(np.where(small, SMALL_RADIUS, blur) / SMALL_RADIUS)).astype(np.int64)
    yield "blur", ~small, (row,)
    yield "solarize", views["solarize"] < NEVER_SOLARIZED, (views["solarize"],)


def _short(factors: Array) -> Array:
    """float32 with 16 significant bits: a product with a grey level is exact, and no compiler can change a sum of it
    by fusing the two."""
    bits: NDArray[np.uint32] = np.ascontiguousarray(factors, np.float32).view(np.uint32)
    short: Array = ((bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)
    return short


def _box(radius: Array) -> tuple[Array, Array]:
    """Three box filters of 2 · whole + 1 ones and `end` on either side together blur by `radius` (Gwosdek et al. 2011).

    Returns:
        whole, end.
    """
    variance = radius**2 / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole, end


@lru_cache(maxsize=8)
def _blur_matrices(size: int, octaves: int) -> Tensor:
    """float16 [R, size, size]: Pillow's Gaussian blur of a row of `size` px, for radii from `SMALL_RADIUS` to so many
    octaves above. Pillow repeats the border for each of its three box filters anew, and so do these."""
    radii = SMALL_RADIUS * 2 ** (np.arange(octaves * RADII_PER_OCTAVE + 1) / RADII_PER_OCTAVE)
    matrices = np.empty((len(radii), size, size), np.float16)
    pixel = np.arange(size)
    for matrix, whole, end in zip(matrices, *_box(radii), strict=True):
        box = np.zeros((size, size))
        for offset in range(-int(whole) - 1, int(whole) + 2):
            weight = end if abs(offset) > whole else 1
            box[pixel, np.clip(pixel + offset, 0, size - 1)] += weight / (2 * (whole + end) + 1)
        # Rounding what has been summed up keeps the sum and the place of the filter.
        summed = np.rint(tensors.UNITS * np.cumsum(box @ box @ box, axis=1))
        matrix[:] = np.diff(summed, axis=1, prepend=0) / tensors.UNITS
    return torch.from_numpy(matrices)
