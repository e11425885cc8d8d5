"""Folders as tilers write them, one a slide: the plain layout and the usual key pattern read slide, x and y."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dinowds.shard.records import DEFAULT_KEY_PATTERN, Place, find_place
from dinowds.shard.sources.layouts import LAYOUTS, folder, get_layout
from dinowds.shard.sources.layouts.folder import Times, walk
from dinowds.shard.sources.source import Request
from dinowds.shard.sources.tarscan import FILE
from tests.shard.conftest import MakeImage

SLIDE = "TCGA-AA-0001-01Z-00-DX1.0a1b"
PLACES = ((0, 0), (256, 0), (1024, 20480), (99840, 123456))

WRITERS = {
    # trident/wsi_objects/WSI.py, dump_patches: png or jpg in one folder a slide
    "TRIDENT": "{slide}/{i:06d}_x{x}_y{y}.png",
    "TRIDENT, in its job folder": "20x_256px_0px_overlap/patch_images/{slide}/{i:06d}_x{x}_y{y}.jpg",
    "TRIDENT, in patches": "{slide}/patches/{i:06d}_x{x}_y{y}.png",
    # gigapath/preprocessing/data/create_tiles_dataset.py, get_tile_descriptor
    "GigaPath": "{slide}/{x:05d}x_{y:05d}y.png",
    "GigaPath, with its output folder": "output/{slide}/{x:05d}x_{y:05d}y.png",
    "hs2p 1 to 3": "{slide}/imgs/{x}_{y}.jpg",
    "hs2p 1 to 3, with the slide": "{slide}/imgs/{slide}_{x}_{y}.jpg",
    "hs2p, by size and format": "patches/256/jpg/{slide}/imgs/{x}_{y}.jpg",
}


@pytest.mark.parametrize("tool", WRITERS)
def test_folders__slide_x_and_y_are_read_from_names(tmp_path: Path, make_image: MakeImage, tool: str) -> None:
    image = make_image(0, kind="PNG")
    for index, (x, y) in enumerate(PLACES):
        path = tmp_path / WRITERS[tool].format(slide=SLIDE, i=index, x=x, y=y)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)

    (file,) = folder.open_source(tmp_path, Request(str(tmp_path))).files
    names = [name.decode() for kind, name, _, _ in walk(file.file, Times()) if kind == FILE]
    found = {find_place(name, re.compile(DEFAULT_KEY_PATTERN)) for name in names}

    assert found == {Place(SLIDE, x, y) for x, y in PLACES}


@pytest.mark.parametrize("tool", WRITERS)
def test_folders__are_claimed_by_no_other_layout(tmp_path: Path, make_image: MakeImage, tool: str) -> None:
    image = make_image(0, kind="PNG")
    for slide in (SLIDE, "another"):
        path = tmp_path / WRITERS[tool].format(slide=slide, i=0, x=1, y=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)

    for name in ("hs2p", "stamp", "paths", "classes"):
        assert name in LAYOUTS
        assert not get_layout(name).recognises(tmp_path), name
