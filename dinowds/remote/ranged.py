"""Ranges of files over HTTP, as coroutines on the session of fsspec's filesystem.

Its own reading takes what a server sends instead of a range, which may be the whole shard, for the answer.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from dinowds.remote.faults import BadStatus, RangeIgnored


async def read_range(filesystem: Any, url: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop), or fewer where the file ends; one more where the server sends more.

    Raises:
        FileNotFoundError, BadStatus: as the server says.
        RangeIgnored: the server sends something else; raised before the body is read.
    """
    async with await _get(filesystem, url, start, stop - 1) as response:
        _check_status(response.status)
        is_whole = start == 0 and response.content_length == stop
        is_range = response.status == HTTPStatus.PARTIAL_CONTENT
        if not is_whole and not (is_range and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")):
            raise RangeIgnored
        return await _body(response, stop - start + 1)


async def size_of(filesystem: Any, url: str) -> int | None:
    """Bytes of the file, None where the server does not say. Asks for one byte: signed URLs refuse HEAD."""
    async with await _get(filesystem, url, 0, 0) as response:
        _, _, total = response.headers.get("Content-Range", "").rpartition("/")
        if total.isdigit():  # also with the 416 that an empty file gets
            return int(total)
        _check_status(response.status)
        length: int | None = response.content_length
        return length


async def _get(filesystem: Any, url: str, first: int, last: int) -> Any:
    import aiohttp  # of the extra 'http'

    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    # An answer that is compressed on the way would have ranges of its own.
    options["headers"] = {**options.get("headers", {}), "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
    options["timeout"] = aiohttp.ClientTimeout(total=None)  # the caller's holds
    return session.get(filesystem.encode_url(url), **options)


async def _body(response: Any, most: int) -> bytes:
    """The body's first bytes, `most` of them; a server may send without end."""
    pieces: list[bytes] = []
    while most > 0 and (piece := await response.content.read(most)):
        most -= len(piece)
        pieces.append(piece)
    return b"".join(pieces)


def _check_status(status: int) -> None:
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise FileNotFoundError
    if status >= HTTPStatus.BAD_REQUEST:
        raise BadStatus(status)
