"""Names, URLs and conditions as text."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from dinowds.data.subsets.where import parse_where
from dinowds.errors import ConfigError
from dinowds.remote.urls import has_user, is_remote, scheme_of, shown, shown_in
from dinowds.shard.records import (
    DEFAULT_KEY_PATTERN,
    MAX_KEY_BYTES,
    choose_salts,
    compile_key_pattern,
    decode_name,
    find_place,
    find_places,
    sample_key,
    sample_keys,
)
from tests.faults.fuzz.targets import Finding

_KEY = re.compile(r"(?:[0-9A-Za-z_-]+/)*[0-9A-Za-z_-]+")
_PREFIXES, _COHORTS = ("", "part/", "../../"), ("a", "b")
_SECRET = "hunter2hunter2"


def keys(data: bytes) -> None:
    """Names between bars, each with a byte that chooses its file and cohort: keys are safe, and no two are equal."""
    parts = list(data.split(b"|")[:64])
    names = pa.array([part[1:] for part in parts], pa.large_binary())
    choice = np.array([part[0] if part else 0 for part in parts], np.int32)
    file_of, cohort_of = choice % len(_PREFIXES), choice // 16 % len(_COHORTS)
    given = pa.array([decode_name(part[1:]) if part[:1] == b"k" else None for part in parts], pa.large_string())
    for brought in (None, given):
        salts = choose_salts(names, _PREFIXES, file_of, _COHORTS, cohort_of, brought, pa.array(["taken"]))
        found = sample_keys(names, _PREFIXES, file_of, _COHORTS, cohort_of, salts, brought).to_pylist()
        if len({*found, "taken"}) != len(found) + 1:
            raise Finding(f"equal keys: {found}")
        for key in found:
            if not _KEY.fullmatch(key) or len(key.encode()) > MAX_KEY_BYTES or key.startswith("__"):
                raise Finding(f"an unsafe key: {key!r}")
    for row, key in enumerate(
        sample_keys(names, _PREFIXES, file_of, _COHORTS, cohort_of, np.maximum(salts, 0)).to_pylist()
    ):
        name = decode_name(names[row].as_py())
        if key != sample_key(name, _COHORTS[cohort_of[row]], max(int(salts[row]), 0), _PREFIXES[file_of[row]]):
            raise Finding(f"the key of {name!r} in a column is another than alone: {key!r}")
    _places(names, file_of)


def _places(names: pa.LargeBinaryArray, file_of: np.ndarray) -> None:
    pattern = compile_key_pattern(DEFAULT_KEY_PATTERN)
    roots = (None, "root", "a/images")
    slides, x, y = (column.to_pylist() for column in find_places(names, roots, file_of, pattern))
    for row, name in enumerate(names.to_pylist()):
        alone = find_place(decode_name(name), pattern, roots[file_of[row]])
        if (slides[row], x[row], y[row]) != alone:
            raise Finding(f"the place of {name!r} in a column is {slides[row], x[row], y[row]}, alone {alone}")


def keys_seeds() -> Iterator[bytes]:
    yield b"\0slide1/1_2.jpg|\0slide1/1_2.png|\1../../etc/passwd.jpg|\2/abs/x1_y2.jpg"
    yield b"kgiven-key.jpg|ktaken|k__reserved|k|k../up|kaA-0123456789.jpg"
    yield "\0ö 組/(1, 2).jpg|\0a.b.c.jpg|\0.|\0..|\0__a|\0a\n.jpg|\0\x1b[31m.jpg".encode() + b"|\0\xff\xfe.jpg"
    yield b"\0" + b"long/" * 40 + b"-12x_-34y.jpg|\20" + b"long/" * 40 + b"-12x_-34y.jpg"


def urls(data: bytes) -> None:
    """Scheme, user, password and rest between bars: the password is never shown."""
    text = data.decode("utf-8", "replace")
    for reader in (scheme_of, is_remote, has_user, shown, shown_in):
        reader(text)
    scheme, user, password, rest = (text.split("|") + [""] * 4)[:4]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) or re.search(r"[\s/?#@]", user + password):
        return
    url = f"{scheme}://{user}:{password}{_SECRET}@{rest}"
    if is_remote(url) and _SECRET in shown(url) + shown_in(f"see {url}"):
        raise Finding(f"{url!r} is shown as {shown(url)!r}, and as {shown_in(f'see {url}')!r}")


def urls_seeds() -> Iterator[bytes]:
    yield b"s3|me|p:w|bucket/folder?x=1#y"
    yield b"https|user|%40|[::1]:8000/a@b"
    yield b"file:///a/b"
    yield b"read s3://a:b@c/d and HTTPS://e:f@g/h?sig=1"


def where(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        parse_where(data.decode("utf-8", "replace"), ("tumour", "stroma"))


def where_seeds() -> Iterator[bytes]:
    yield b"cohort == 'A' and (label_name in ['tumour', 'stroma'] or label is None) and 0 <= x < 4096"
    yield b"not (slide is not None or width != height) or ext not in ['jpg', None]"
    yield b"not " * 3000 + b"x == 1"
    yield b"label >= -1.5e3 and key < 'b'"
