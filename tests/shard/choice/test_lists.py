"""Lists of samples: what they hold, and which samples their entries mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dinowds.data import matching
from dinowds.data.matching import FORMS, match_entries
from dinowds.errors import ConfigError
from dinowds.shard.choice.lists import find_listed, read_list
from dinowds.shard.repeats import positions_in

from .support import TEXT, images


def listed(tmp_path: Path, entries: list[str], columns: pa.Table) -> tuple[list[str], list[str]]:
    """The paths that a list of these entries names, and the notices."""
    file = tmp_path / "list.txt"
    file.write_text("\n".join(entries), encoding="utf-8")
    mask, notices = find_listed("--keep", file, columns)
    return columns["path"].filter(pa.array(mask)).to_pylist(), notices


@pytest.mark.parametrize(
    "content",
    [
        b"a/1.jpg\nb c.jpg\n",
        b"\xef\xbb\xbfa/1.jpg\r\nb c.jpg",
        b"# mine\n\n  a/1.jpg \t\nb c.jpg\na/1.jpg\n./b c.jpg\n",
        b"filename,label\na/1.jpg,0\nb c.jpg,1\n",
        b'\xef\xbb\xbfimage_path;label\r\na/1.jpg;0\r\n"b c.jpg";1\r\n;\r\n',
        b"slide\tfilename\ns\ta/1.jpg\nt\tb c.jpg\n",
    ],
)
def test_list__is_read_in_each_form(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "l"
    file.write_bytes(content)
    assert read_list("--keep", file).to_pylist() == ["a/1.jpg", "b c.jpg"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no entry"),
        (b"# nothing\n \n", "holds no entry"),
        (b"filename\n", "holds no entry"),
        (b"a.jpg\n\xff\xfe.jpg\n", "UTF-8"),
        (b"filename,label\na.jpg\n", "Expected 2 columns, got 1"),
        (b"filename,filename\na.jpg,b.jpg\n", "has 2 columns 'filename'"),
        (None, "cannot be read"),
    ],
)
def test_list__that_cannot_be_used_is_an_error(tmp_path: Path, content: bytes | None, expected: str) -> None:
    file = tmp_path / "l"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as error:
        read_list("--remove", file)
    assert str(error.value).startswith(f"--remove {file}: ")
    assert "\n" not in str(error.value)


COLUMNS = images(
    ["s1/a.jpg", "./s1/imgs/b.png", "s2/a.jpg", "s2/c.d.jpg", "top.jpg", "s.3/e", "s1/a.jpg", "x/f.jpg"],
    ["s1", "s1", "s2", "s2", None, "s.3", "s1", "S-9"],
    ["A", "A", "A", "A", "A", "A", "B", "B"],
)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("s1/imgs/b.png", ["./s1/imgs/b.png"]),
        ("./s1/imgs/b.png", ["./s1/imgs/b.png"]),
        ("s1/imgs/b", ["./s1/imgs/b.png"]),
        ("s1/b.png", ["./s1/imgs/b.png"]),
        ("s1/b", ["./s1/imgs/b.png"]),
        ("b.png", ["./s1/imgs/b.png"]),
        ("b", ["./s1/imgs/b.png"]),
        ("c.d", ["s2/c.d.jpg"]),
        ("top", ["top.jpg"]),
        ("/top.jpg", ["top.jpg"]),
        ("e", ["s.3/e"]),
        ("s.3/e", ["s.3/e"]),
        ("B/s1/a.jpg", ["s1/a.jpg"]),
        ("B/s1/a", ["s1/a.jpg"]),
        ("S-9/f", ["x/f.jpg"]),
        ("S-9", ["x/f.jpg"]),
        ("s2", ["s2/a.jpg", "s2/c.d.jpg"]),
        ("s1", ["s1/a.jpg", "./s1/imgs/b.png", "s1/a.jpg"]),
        ("B/s1", ["s1/a.jpg"]),
    ],
)
def test_entry__is_found_by_each_of_its_names(tmp_path: Path, entry: str, expected: list[str]) -> None:
    assert listed(tmp_path, [entry], COLUMNS) == (expected, [])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["a.jpg"], "'a.jpg' is the file name of 3 samples; give slide/file name, or the path in the source"),
        (["top.jpg", "a", "a.jpg"], "'a' is the file name without extension of 3 samples, and 1 more entries"),
        (["s1/a.jpg"], "'s1/a.jpg' is the path of 2 samples; give cohort/path"),
    ],
)
def test_entry__of_several_samples_is_refused(tmp_path: Path, entries: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=r"--keep .*list\.txt: entry") as error:
        listed(tmp_path, entries, COLUMNS)
    assert expected in str(error.value)


def test_entry__that_is_unknown_is_reported(tmp_path: Path) -> None:
    found, (notice,) = listed(tmp_path, ["no1", "top.jpg", "no2", "no3", "no4"], COLUMNS)
    assert found == ["top.jpg"]
    assert notice.endswith("list.txt: 4 of 5 entries are no sample or slide of the sources: 'no1', 'no2', 'no3', …")
    with pytest.raises(ConfigError, match=r"no entry is .* \('no1'\); they have names like 's1/a.jpg'"):
        listed(tmp_path, ["no1"], COLUMNS)


def names_of(path: str, cohort: str, slide: str | None) -> list[str | None]:
    """One sample's text in each form."""
    *_, file_name = path.split("/")
    path_stem, stem = (text[: -len(Path(file_name).suffix) or None] for text in (path, file_name))
    in_slide = [slide and f"{slide}/{text}" for text in (file_name, stem)]
    in_cohort = [f"{cohort}/{text}" for text in (path, path_stem)]
    return [path, path_stem, *in_slide, *in_cohort, file_name, stem, slide, slide and f"{cohort}/{slide}"]


def test_entries__mean_what_a_search_one_by_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_BATCH", 7)
    random = np.random.default_rng(0)
    words = [f"{letter}{i}{end}" for letter in "ab" for i in range(30) for end in ("", ".jpg", ".b.png")]

    def text() -> str:
        return "/".join(random.choice(words, random.integers(2, 4)))

    paths = [text() for _ in range(1500)]
    slides = [random.choice([*words[:9], "S1", "S2"]).item() if random.random() < 0.8 else None for _ in paths]
    cohorts = random.choice(["A", "a1", "c"], len(paths)).tolist()
    names = list(map(names_of, paths, cohorts, slides))
    entries = sorted({name for row in names[::30] for name in row if name} | {text() for _ in range(99)})
    matches = match_entries(pa.array(entries, TEXT), images(paths, slides, cohorts), positions_in)
    pairs = set()
    for number, entry in enumerate(entries):
        found = [[i for i, name in enumerate(names) if name[form] == entry] for form in range(len(FORMS))]
        form = next((form for form in range(len(FORMS)) if found[form]), -1)
        assert matches.form[number] == form, entry
        assert matches.count[number] == (len(found[form]) if form >= 0 else 0), entry
        pairs |= {(number, sample) for sample in found[form] if form >= 0}
    assert sorted(zip(matches.entries.tolist(), matches.samples.tolist(), strict=True)) == sorted(pairs)
    assert set(matches.form.tolist()) == set(range(-1, len(FORMS)))
