"""Inputs of the shard room's tests: small real images, and a tar with everything that goes wrong in one."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeImage = Callable[..., bytes]


def _image(seed: int, width: int = 16, height: int = 12, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """(seed, width, height, kind) → the bytes of an image that differs for each seed."""
    return _image


@pytest.fixture(scope="session")
def make_tar(make_image: MakeImage) -> Callable[..., Path]:
    """(path, count, first seed) → a tar of `count` JPEG in folders of five: `slideN/X_Y.jpg`."""

    def make(path: Path, count: int, first_seed: int = 0) -> Path:
        with tarfile.open(path, "w") as tar:
            for index in range(count):
                _add(tar, f"slide{index // 5}/{index}_{2 * index}.jpg", make_image(first_seed + index))
        return path

    return make


def _add(tar: tarfile.TarFile, name: str, payload: bytes, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(payload)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(payload))


@pytest.fixture
def hostile_tars(tmp_path: Path) -> list[Path]:
    """Two tars (GNU and PAX) with all that people's tars have: 2 × 13 whole images, and much that is none."""
    paths = []
    for number, (stem, form) in enumerate((("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT))):
        path = tmp_path / f"{stem}.tar"
        with tarfile.open(path, "w", format=form) as tar:
            _fill_hostile(tar, 100 * number)
        paths.append(path)
    return paths


def _fill_hostile(tar: tarfile.TarFile, seed: int) -> None:
    folder = tarfile.TarInfo("plain")
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
    _add(tar, "plain/1_2.jpg", _image(seed))
    _add(tar, "plain/slide.1.2.jpg", _image(seed + 1))
    _add(tar, "plain/slide.1.3.jpg", _image(seed + 2))
    _add(tar, "plain/with space (3, 4).JPEG", _image(seed + 3))
    _add(tar, "plain/Gewebe_ö_組織.png", _image(seed + 4, kind="PNG"))
    _add(tar, f"{'deep/' * 30}{'long' * 20}_5_6.jpg", _image(seed + 5))
    _add(tar, "twice/same.jpg", _image(seed + 6))
    _add(tar, "twice/same.jpg", _image(seed + 7))
    _add(tar, "twice/same.png", _image(seed + 8, kind="PNG"))
    _add(tar, "./__hidden__/x7_y8.tif", _image(seed + 9, kind="TIFF"))
    _add(tar, "__meta__.jpg", _image(seed + 10))
    _add(
        tar, "plain/really_a_png.jpg", _image(seed + 11, kind="PNG"), mtime=1234567890.25, pax_headers={"comment": "ö"}
    )
    _add(tar, "plain/UPPER.WEBP", _image(seed + 12, kind="WEBP"))
    for kind, name in ((tarfile.SYMTYPE, "link.jpg"), (tarfile.LNKTYPE, "hard.jpg"), (tarfile.FIFOTYPE, "pipe.jpg")):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, "plain/1_2.jpg"
        tar.addfile(link)
    _add(tar, "plain/cut.jpg", _image(seed + 13)[:-40])
    _add(tar, "plain/cut.png", _image(seed + 14, kind="PNG")[:-5])
    _add(tar, "plain/no_image.jpg", b"this is text" * 50)
    _add(tar, "notes.txt", b"some text")
    _add(tar, "plain/empty.jpg", b"")
    _add(tar, "plain/._1_2.jpg", b"Mac OS X resource fork")
    _add(tar, "__MACOSX/plain/1_2.jpg", b"Mac OS X again")
    _add(tar, "plain/.DS_Store", b"and again")
