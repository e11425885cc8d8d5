"""The markers of a JPEG file, without decoding it (ITU-T T.81 annex B)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"

_SCAN = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COMMON = frozenset({0xC0, 0xC1, 0xC2})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


class JpegFrame(NamedTuple):
    """`width` and `height` are pixels as stored; `components` is 1 for grey, 3 for colour, 4 for CMYK."""

    width: int
    height: int
    components: int
    is_common: bool
    """Of blocks of cosine transforms of 8-bit values, Huffman-coded: baseline, extended or progressive."""


def jpeg_segments(payload: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, offset and end of each segment after the start marker, up to the first scan's header; `offset` is that
    of its length field.

    Raises:
        IndexError: the payload ends first.
        ValueError: no segment is where one must be.
    """
    position = 2
    while True:
        if payload[position] != 0xFF:
            raise ValueError("not a marker")
        marker = payload[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _ALONE:
            position += 2
        elif marker in (0x00, 0xD9):
            raise ValueError("not a segment")
        else:
            length = payload[position + 2] << 8 | payload[position + 3]
            if length < 2:
                raise ValueError("not a segment")
            yield marker, position + 2, position + 2 + length
            if marker == _SCAN:
                return
            position += 2 + length


def jpeg_frame(payload: bytes) -> JpegFrame | None:
    """What the frame header of a JPEG payload says, or None where there is none before the first scan."""
    try:
        for marker, start, _ in jpeg_segments(payload):
            if marker in _FRAMES:
                height, width = (
                    payload[start + 3] << 8 | payload[start + 4],
                    payload[start + 5] << 8 | payload[start + 6],
                )
                is_common = marker in _COMMON and payload[start + 2] == 8
                return JpegFrame(width, height, payload[start + 7], is_common)
    except (IndexError, ValueError):
        pass
    return None
