"""What the device renderer does with whole batches: functions of tensors alone, each of which torch.compile can fuse.

Views, `x`, are uint8 [N, 3, S, S], RGB. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

UNITS = 2048
"""Weights up to 1 are multiples of 1 / this, as float16 holds them."""

MIDDLE = 128
"""Taken off pixels while they are float16, which is finest near 0: it rounds a result by 1/32 at most."""

TIE = 2**-8
"""Added to what is cut off to a whole number; where it is one already, rounding errors would decide."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""What the numbers of a record's `order` stand for."""


@contextmanager
def exact_products() -> Iterator[None]:
    """Sums of float16 products are kept in float32 throughout."""
    matmul = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")
    before = [getattr(matmul, name) for name in names]
    for name in names:
        setattr(matmul, name, False)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(matmul, name, value)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """float16 [n, i, j] × [n, j, k] → [n, i, k], rounded once, from the exact sum."""
    if a.device.type == "cpu":  # which would sum up in float16
        return torch.bmm(a.float(), b.float()).half()
    return torch.bmm(a, b)


def planes(block: Tensor) -> Tensor:
    """uint8 [n, h, w, 3] → float16 [n, 3, h, w], less `MIDDLE`."""
    return (block.permute(0, 3, 1, 2).half() - MIDDLE).contiguous()


def padded_planes(pixels: Tensor, layout: Tensor, height: int, width: int) -> Tensor:
    """Images among `pixels`, uint8, of a `layout`, int64 [3, n] → float16 [n, 3, height, width], less `MIDDLE`. What is
    in the padding has weight 0 later on."""
    start, own_width, volume = layout[:, :, None, None, None]
    rows, columns = torch.arange(height, device=pixels.device)[:, None], torch.arange(width, device=pixels.device)
    channel = torch.arange(3, device=pixels.device)[:, None, None]
    inside = torch.minimum(rows * own_width + columns, volume - 1)
    return pixels[3 * (start + inside) + channel].half() - MIDDLE


def centred(x: Tensor) -> Tensor:
    return x.half() - MIDDLE


def bicubic_taps(box: Tensor, size: int, taps: int, length: int) -> tuple[Tensor, Tensor]:
    """Weights of Pillow's bicubic filter for boxes along one axis.

    Args:
        box: float64 [5, N]: where it starts, its extent, the first pixel that may be read, the one after the last, and
            1 where the result is mirrored.
        taps: number of weights of a pixel, at most `length`.
        length: px of the image along the axis.

    Returns:
        Places in the image, int64 [N, size, taps], all different for a pixel, and their weights, float16, which sum to
        1 and do not depend on `taps` and `length`. Those of a pixel are multiples of 1 / `UNITS` of the power of 2 that
        is above them all, or of 1/8.
    """
    edge, extent, low, high, flip = box[:, :, None]
    place = torch.arange(size, dtype=torch.float64, device=box.device)
    scale = extent / size
    reach = scale.clamp(min=1)
    centre = edge + (torch.where(flip > 0, size - 1 - place, place) + 0.5) * scale
    first = torch.maximum((centre - 2 * reach + 0.5).floor(), low).clamp(max=length - taps)
    places = first[:, :, None] + torch.arange(taps, dtype=torch.float64, device=box.device)
    inside = (places >= low[:, :, None]) & (places < high[:, :, None])
    weights = _bicubic((places + 0.5 - centre[:, :, None]).abs() / reach[:, :, None])
    # Whole numbers, whose sums are exact.
    weights = torch.where(inside, (weights * 2**30).round(), 0)
    total = weights.sum(dim=2, keepdim=True)
    peak = weights.amax(dim=2, keepdim=True) / total
    unit = torch.full_like(peak, 1 / 8 / UNITS)
    for limit in (1 / 8, 1 / 4, 1 / 2, 1):
        unit = torch.where(peak > 0.9 * limit, 2 * limit / UNITS, unit)
    # Rounding what has been summed up keeps the sum.
    summed = (weights.cumsum(dim=2) / total / unit).round() * unit
    return places.long(), pad(summed, (1, 0)).diff(dim=2).half()


def _bicubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -1/2 (Keys 1981)."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def between_products(x: Tensor) -> Tensor:
    """float16 [n, 3, H, V, S] → [n, V, H, 3, S] in whole levels."""
    return x.round().clamp(-MIDDLE, 255 - MIDDLE).permute(0, 3, 2, 1, 4).contiguous()


def to_bytes(x: Tensor) -> Tensor:
    """float16 [N, S, 3, S], less `MIDDLE` → uint8 [N, 3, S, S]."""
    return (x.round().clamp(-MIDDLE, 255 - MIDDLE) + MIDDLE).to(torch.uint8).transpose(1, 2).contiguous()


def turn(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous()


def stain(density: Tensor, x: Tensor, maps: Tensor) -> Tensor:
    """As `stain.stained`; `density`, float32 [256], is that of each level, `maps` float32 [N, 3, 4]."""
    red, green, blue = density[x.int()].unbind(1)
    rows = [
        (red * row[:, 0] + green * row[:, 1] + blue * row[:, 2] + row[:, 3])
        for row in maps[:, :, :, None, None].unbind(1)
    ]
    return (255 * torch.exp(-torch.stack(rows, 1))).clamp(0, 255).round().to(torch.uint8)


def _luma(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """int32, as Pillow rounds it."""
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def blend(x: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Away from black (brightness), the mean grey (contrast) or the grey of each pixel (saturation), or towards it.

    Args:
        kind: int32 [N].
        factor: float32 [N], of 16 bits.
    """
    kind, factor = kind[:, None, None], factor[:, None, None]
    pixels = x.int()
    grey = _luma(*pixels.unbind(1))
    count = grey.shape[1] * grey.shape[2]
    mean = ((2 * grey.sum(dim=(1, 2), keepdim=True) + count) // (2 * count)).int()
    base = torch.where(kind == SATURATION, grey, torch.where(kind == CONTRAST, mean, 0))[:, None]
    return (base + TIE + factor[:, None] * (pixels - base)).clamp(0, 255).to(torch.uint8)


def shift_hue(x: Tensor, steps: Tensor) -> Tensor:
    """By `steps`, int32 [N], of 1/255 of the circle, with hue, saturation and value rounded down to 8 bits."""
    red, green, blue = x.int().unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    sector = torch.where(
        red == value,
        green - blue,
        torch.where(green == value, 2 * chroma + blue - red, 4 * chroma + red - green),
    )
    circle = (6 * chroma).clamp(min=1)
    hue = 255 * torch.where(sector < 0, sector + circle, sector) // circle
    saturation = 255 * chroma // value.clamp(min=1)
    angle = 6 * ((hue + steps[:, None, None]) & 255)
    # Each channel falls short of the value by a trapezium of the angle, in 255ths of a sixth of the circle.
    lost = []
    for offset in (1275, 765, 255):
        side = (angle + offset) % 1530
        share = torch.minimum(side, 1020 - side).clamp(0, 255)
        lost.append((value * saturation * share + 32512) // 65025)
    return (value[:, None] - torch.stack(lost, 1)).to(torch.uint8)


def soften_rows(x: Tensor, share: Tensor) -> Tensor:
    return _soften_along(x, share, 3)


def soften_columns(x: Tensor, share: Tensor) -> Tensor:
    return _soften_along(x, share, 2)


def _soften_along(x: Tensor, share: Tensor, axis: int) -> Tensor:
    """A filter of three pixels with `share`, int32 [N], in units of 2^-16, for each neighbour."""
    size = x.shape[axis]
    centre = x.int()
    before = torch.cat([centre.narrow(axis, 0, 1), centre.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([centre.narrow(axis, 1, size - 1), centre.narrow(axis, size - 1, 1)], axis)
    change = share[:, None, None, None] * (before + after - 2 * centre)
    return (centre + ((change + 2**15) >> 16)).to(torch.uint8)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(x < threshold[:, None, None, None], x, 255 - x)
