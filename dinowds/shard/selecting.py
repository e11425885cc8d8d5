"""Which of the images are taken, and their labels: `choice` on the columns of all sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinowds.shard.choice import Choice, Chosen, choose
from dinowds.shard.choice.quality import is_blank, is_blurred
from dinowds.shard.records import compile_key_pattern, find_places, member_paths
from dinowds.shard.sources.layouts.folder import folder_name
from dinowds.shard.sources.listing import NO_SLIDE
from dinowds.shard.write.arrange import Images

BLURRED_BELOW = 15.0
"""Of the Laplacian's variance, grey levels²: no cell has an edge in such an image of H&E at 0.5 µm a pixel."""


def select(images: Images, choice: Choice, key_pattern: str) -> Chosen:
    """What is taken of all images. Raises ConfigError where a list does not fit, or nothing is left."""
    known = [name for name in ("label", "digest", "white", "black", "sharpness") if name in images.table.column_names]
    columns = images.table.select(known).append_column("cohort", _cohorts(images))
    if any((choice.labels, choice.keep, choice.remove, choice.max_per_slide)):
        prefixes = [file.prefix for file in images.files]
        columns = columns.append_column("path", member_paths(images.column("name"), prefixes, images.numbers("file")))
        columns = columns.append_column("slide", find_slides(images, key_pattern))
    return choose(columns, choice)


def find_slides(images: Images, key_pattern: str) -> Any:
    """The slide of each image, Arrow strings [N]; null where unknown."""
    return known_places(images.table, images.files, key_pattern)[0]


def known_places(rows: Any, files: Any, key_pattern: str) -> tuple[Any, Any, Any]:
    """Slide (string), x and y (int64) of some images: what the layout knows, else what their names say.

    Args:
        rows: columns of `arrange.Images.table`.
        files: of `arrange.Images`.
    """
    file_of = rows["file"].to_numpy()
    roots = [folder_name(file.file) if file.kind == "folder" else None for file in files]
    names = rows["name"].combine_chunks()
    slide, x, y = find_places(names, roots, file_of, compile_key_pattern(key_pattern))
    slides = [slide.cast(pa.string())]
    if any(file.slide is not None for file in files):
        slides.insert(0, pa.array([file.slide for file in files], pa.string()).take(pa.array(file_of)))
    found = _known(rows, "slide", *slides)
    found = pc.if_else(pc.equal(found, NO_SLIDE), None, found)
    return found, _known(rows, "x", x), _known(rows, "y", y)


def count_quality(images: Images) -> dict[str, int]:
    """How many images are blank or blurred, where that was computed."""
    if "white" not in images.table.column_names:
        return {}
    white, black, sharpness = (images.numbers(name) for name in ("white", "black", "sharpness"))
    blank = is_blank(white, black)
    blurred = is_blurred(sharpness, BLURRED_BELOW) & ~blank
    return {
        "white": int(np.count_nonzero(blank & (white >= black))),
        "black": int(np.count_nonzero(blank & (white < black))),
        f"blurred (sharpness below {BLURRED_BELOW:g})": int(np.count_nonzero(blurred)),
    }


def _cohorts(images: Images) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(images.cohort_of), list(images.cohorts))


def _known(rows: Any, name: str, *otherwise: Any) -> Any:
    """What a layout knows, and where it knows nothing, what else is known."""
    own = [rows[name].combine_chunks().cast(otherwise[0].type)] if name in rows.column_names else []
    return pc.coalesce(*own, *otherwise)
