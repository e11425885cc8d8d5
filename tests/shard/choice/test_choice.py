"""All conditions together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dinowds.errors import ConfigError
from dinowds.shard.choice import Choice, choose

from .support import images


def with_facts() -> Any:
    """Eight images of slide s; 4 … 7 have the bytes of 0 … 3; 0 is white, 1 blurred, of 2 the quality is unknown."""
    columns = images([f"s/{i}.jpg" for i in range(8)])
    facts = {
        "digest": pa.array([bytes([i % 4]) * 16 for i in range(8)], pa.binary(16)),
        "white": pa.array([1.0, 0, None, 0, 0, 0, 0, 0], pa.float32()),
        "black": pa.array([0.0, 0, None, 0, 0, 0, 0, 0], pa.float32()),
        "sharpness": pa.array([9.0, 1, None, 9, 9, 9, 9, 9], pa.float32()),
    }
    for name, column in facts.items():
        columns = columns.append_column(name, column)
    return columns


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_choice__of_nothing_takes_all() -> None:
    chosen = choose(images(["a.jpg", "b.jpg"]), Choice())
    assert chosen.kept.tolist() == [True, True]
    assert (chosen.labels.tolist(), chosen.label_names, chosen.dropped, chosen.notices) == ([-1, -1], (), {}, [])
    assert len(choose(images([]), Choice(drop_duplicates=False, max_per_slide=1)).kept) == 0


def test_choice__applies_each_condition_to_what_is_left(tmp_path: Path) -> None:
    choice = Choice(
        remove=write(tmp_path / "r", "3.jpg"),
        keep=write(tmp_path / "k", *(f"{i}.jpg" for i in range(7))),
        drop_blank=True,
        min_sharpness=5.0,
        drop_duplicates=True,
        max_per_slide=2,
    )
    chosen = choose(with_facts(), choice)
    # 3 is removed, 7 is not kept, 0 is blank, 1 is blurred, 6 equals 2; 2, 4 and 5 are left for the cap
    assert chosen.dropped == {
        "in the --remove list": 1,
        "not in the --keep list": 1,
        "blank": 1,
        "blurred": 1,
        "exact duplicate": 1,
        "over --max-per-slide": 1,
    }
    assert set(np.flatnonzero(chosen.kept).tolist()) < {2, 4, 5}


def test_choice__of_a_slice_is_that_of_its_rows() -> None:
    digests = pa.array([b"a" * 16, b"a" * 16, b"b" * 16, b"c" * 16], pa.binary(16))
    columns = images(["1", "2", "3", "4"]).append_column("digest", digests)
    assert np.count_nonzero(choose(columns, Choice(drop_duplicates=True)).kept) == 3
    assert np.count_nonzero(choose(columns.slice(1), Choice(drop_duplicates=True)).kept) == 3
    joined = choose(pa.concat_tables([with_facts(), with_facts().slice(1)]), Choice(drop_duplicates=True))
    assert np.flatnonzero(joined.kept).tolist() == [0, 1, 2, 3]


def test_choice__without_digest_has_no_doubles() -> None:
    columns = with_facts().drop_columns("digest").append_column("digest", pa.nulls(8, pa.binary(16)))
    assert choose(columns, Choice(drop_duplicates=True)).kept.all()


def test_choice__caps_no_image_without_a_slide() -> None:
    columns = images(["s/1", "s/2", "3", "4"])
    for part, kept, without in ((columns, 3, 2), (columns.drop_columns("slide"), 4, 4)):
        chosen = choose(part, Choice(max_per_slide=1))
        assert np.count_nonzero(chosen.kept) == kept
        assert chosen.notices == [f"--max-per-slide: {without} images have no slide and are not capped"]


def test_choice__labels_all_images_before_it_takes_some(tmp_path: Path) -> None:
    labels = write(tmp_path / "l.csv", "filename,label", *(f"{i}.jpg,{i}" for i in range(8)))
    chosen = choose(with_facts(), Choice(labels=labels, drop_duplicates=True))
    assert chosen.labels.tolist() == list(range(8))
    assert chosen.label_names == tuple("01234567")


def test_choice__that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not one of 8 images is left \(8 × in the --remove list\)"):
        choose(with_facts(), Choice(remove=write(tmp_path / "r", "s")))


def test_fingerprint__changes_with_each_option_and_file(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", "x"), write(tmp_path / "b", "y")
    choices = [
        Choice(),
        *(Choice(labels=file) for file in (a, b)),
        *(Choice(keep=file) for file in (a, b)),
        *(Choice(remove=file) for file in (a, b)),
        *(Choice(a, *columns) for columns in (("c", None, None), (None, "c", None), (None, None, "c"))),
        Choice(drop_blank=True),
        Choice(drop_duplicates=True),
        Choice(min_sharpness=0),
        Choice(max_per_slide=1),
    ]
    prints = [json.dumps(choice.fingerprint()) for choice in choices]
    assert len(set(prints)) == len(prints)
    assert Choice(keep=a).fingerprint() == Choice(keep=write(tmp_path / "c", "x")).fingerprint()
    with pytest.raises(ConfigError, match=f"--keep {tmp_path}/none: cannot be read"):
        Choice(keep=tmp_path / "none").fingerprint()


def test_fingerprint__does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"--keep .*pipe: cannot be read \(Not a regular file\)"):
        Choice(keep=tmp_path / "pipe").fingerprint()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_per_slide": 0}, "--max-per-slide: is 0"),
        ({"min_sharpness": float("nan")}, "--min-sharpness: is nan"),
        ({"min_sharpness": -1.0}, "--min-sharpness: is -1.0"),
        ({"label_column": "x"}, "--label-column: names a column of --labels FILE"),
    ],
)
def test_choice__that_cannot_work_is_an_error(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Choice(**options)
