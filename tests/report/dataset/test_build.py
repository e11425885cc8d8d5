"""The page of a dataset as a whole: what is on it, and that nothing on it is markup."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from dinowds.data.dataset import Dataset
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.report.dataset import dataset_page
from dinowds.report.page import Block, Columns, Facts, Folded, Gallery, Notice, Page, Plot, Table, Text, render
from tests.index_only import write_index
from tests.report.dataset.support import HOSTILE, make_listed, tinted, two_cohorts
from tests.servers import http_server
from tests.train.regions import make_region, make_regions

Kind = TypeVar("Kind")


def blocks(page: Page) -> Iterator[Block]:
    waiting = [*page.lead, *(block for section in page.sections for block in section.blocks)]
    while waiting:
        block = waiting.pop(0)
        yield block
        if isinstance(block, Columns | Folded):
            waiting = [*block.blocks, *waiting]


def all_of(page: Page, kind: type[Kind]) -> list[Kind]:
    return [block for block in blocks(page) if isinstance(block, kind)]


def facts(page: Page) -> dict[str, object]:
    return {name: value for found in all_of(page, Facts) for name, value in found.pairs}


def table(page: Page, caption: str) -> Table:
    return next(found for found in all_of(page, Table) if caption in found.caption)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_listed(tmp_path_factory.mktemp("page") / "listed", two_cohorts())


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return dataset_page(str(folder), num_images=30)


def test_page__says_what_there_is(page: Page) -> None:
    found = facts(page)
    assert [found[name] for name in ("samples", "cohorts", "slides", "labels", "shards")] == [41, 2, 3, 2, 2]
    assert (found["exact duplicates"], found["size, px"], found["formats"]) == (1, "32 × 32", "png")
    rows = {row[0]: row[1:4] for row in table(page, "each cohort").rows}
    assert rows == {"red": (20, 48.8, 2), HOSTILE: (21, 51.2, 1)}
    assert table(page, "largest slides").rows[0][:3] == (HOSTILE, HOSTILE, 21)
    assert table(page, "most frequent payloads").rows[0][1:] == (2, HOSTILE, HOSTILE, f"{HOSTILE}, stroma")
    titles = [section.title for section in page.sections]
    assert titles[:6] == ["Cohorts", "Slides", "Labels", "Samples", "Views", "Colour and stain"]
    assert (page.title, page.subtitle.split(" · ")[0]) == ("dataset", "41 images")


def test_page__cohorts_that_differ_in_colour_are_named(page: Page) -> None:
    (notice,) = all_of(page, Notice)
    assert notice.level == "warning"
    assert "Cohorts look different" in notice.text
    rows = {row[0]: row[1:] for row in table(page, "Medians of each cohort").rows}
    assert rows["red, mean"] == pytest.approx((100, 200, 90), abs=2)
    plots = {plot.title: plot for plot in all_of(page, Plot)}
    scatter = plots["Mean colour of each image"]
    assert [choice.name for choice in scatter.choices] == ["cohort", "label"]
    assert scatter.sprite is not None
    drawn = [trace for place, trace in enumerate(scatter.figure["data"]) if place in scatter.choices[0].shows]
    assert sorted(number for trace in drawn for number in trace["customdata"]) == list(range(30))


def test_page__galleries_of_labels_and_views(page: Page) -> None:
    galleries = {gallery.caption: gallery for gallery in all_of(page, Gallery)}
    assert [len(galleries[f"{name} samples"].pictures) for name in ("stroma · 11", f"{HOSTILE} · 20")] == [8, 8]
    assert len(galleries["without a label · 10 samples"].pictures) > 3
    views = [gallery for caption, gallery in galleries.items() if "10 views" in caption]
    assert [len(gallery.pictures) for gallery in views] == [11, 11, 11]
    assert all(picture.alt for gallery in galleries.values() for picture in gallery.pictures)


def test_page__nothing_of_a_name_is_markup(page: Page) -> None:
    text = render(page)
    own = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)  # without the page's own code
    assert HOSTILE not in own
    assert not re.search(r"<[^>]*>alert", own)
    assert not re.search(r"<script>[^<]*alert\(1\)", text)
    assert own.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20


def test_page__is_the_same_each_time(folder: Path, page: Page) -> None:
    assert render(dataset_page(str(folder), num_images=30)) == render(page)
    assert render(dataset_page(str(folder), num_images=30, seed=1)) != render(page)


def test_page__what_cannot_be_read_is_counted_and_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    dataset = Dataset.open(copy)
    for shard in range(len(dataset.manifest.shards)):
        path = Path(dataset.shard_url(shard))
        content = bytearray(path.read_bytes())
        for sample in dataset:
            if sample.shard == shard and sample.id % 4 == 0:
                content[sample.offset + 40] ^= 1
        path.write_bytes(content)
    found = dataset_page(str(copy))
    problem = next(notice for notice in all_of(found, Notice) if notice.level == "problem")
    assert problem.text.startswith("11 of 41 samples that were drawn cannot be read")
    assert problem.lists is not None
    (named,) = problem.lists.values()
    assert len(named) == 9
    assert named[0].startswith(f"{dataset[0].key}: ")
    assert named[-1] == "3 more"
    Path(dataset.shard_url(0)).unlink()
    assert any("No views can be shown" in notice.text for notice in all_of(dataset_page(str(copy)), Notice))


def test_page__without_shards_is_the_index_alone(tmp_path: Path) -> None:
    found = dataset_page(str(write_index(tmp_path / "d", [("a", "s", 30), ("b", None, 20)])))
    assert "50 of 50 samples" in all_of(found, Notice)[0].text
    assert "Views" not in [section.title for section in found.sections]
    assert facts(found)["exact duplicates"] == 49
    assert render(found)


def test_page__metadata_of_others_is_shown_and_no_error(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    content = json.loads((copy / "manifest.json").read_text())
    odd = {"dropped": ["x"], "skipped": {"folder": "many"}, "mpp": 0.5, "cohorts": {"red": {"mpp": 0.25}, "b": 3}}
    content["dinowds"] |= {"metadata": odd | {"withdrawn": 7, HOSTILE: HOSTILE}, "quarantined": {HOSTILE: 4}}
    (copy / "manifest.json").write_text(json.dumps(content))
    found = dataset_page(str(copy), num_images=4)
    assert facts(found)["mpp"] == "0.25, 0.5"
    assert table(found, "Not in").rows == [
        ("quarantined", HOSTILE, 4),
        ("withdrawn", "no longer in the index", 7),
    ]
    rows = {row[0]: row[1] for row in table(found, "metadata").rows}
    assert (rows["dropped"], rows["cohorts.red.mpp"], rows[HOSTILE]) == ('["x"]', "0.25", HOSTILE)
    content["dinowds"]["metadata"] = {"cohorts": "x", "dropped": 3, "withdrawn_in_shards": "x"}
    (copy / "manifest.json").write_text(json.dumps(content))
    assert render(dataset_page(str(copy), num_images=4))


def test_page__of_nothing(tmp_path: Path) -> None:
    found = dataset_page(str(write_index(tmp_path / "d", [])))
    assert found.subtitle.startswith("No samples")
    assert render(found)


def test_page__of_a_subset_also_remote(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    dataset = Dataset.open(copy)
    subset, mask, _ = choose_subset(dataset, "red", SubsetOptions(where="cohort == 'red'"))
    write_subset(dataset.url, subset, mask, dataset.files)
    here = dataset_page(f"{copy}:red", num_images=10)
    assert (here.title, facts(here)["samples"]) == ("dataset:red", 20)
    assert [row[:2] for row in table(here, "Subsets").rows] == [("red", 20)]
    with http_server(tmp_path) as server:
        there = dataset_page(f"{server.url.replace('//', '//user:SECRET@')}/copy:red", num_images=10)
    assert facts(there)["samples"] == 20
    assert "SECRET" not in render(there)
    own = [gallery for gallery in all_of(here, Gallery) if "views" in gallery.caption]
    assert own == [gallery for gallery in all_of(there, Gallery) if "views" in gallery.caption]


@pytest.mark.parametrize("count", [1, 3])
def test_page__of_very_few_images(tmp_path: Path, count: int) -> None:
    rows = [("a", "", "", None, None, tinted((50, 100, 150), seed, side=5 + 40 * seed)) for seed in range(count)]
    found = dataset_page(str(make_listed(tmp_path / "listed", rows)))
    assert facts(found)["samples"] == count
    assert not [plot for plot in all_of(found, Plot) if "Box" in plot.alt]
    assert table(found, "Medians").head == ("measure", "median")
    assert render(found)


def test_page__of_regions_has_no_images(tmp_path: Path) -> None:
    regions = [make_region(seed, missing=0.25) for seed in range(20)]
    found = dataset_page(str(make_regions(tmp_path, regions)))
    titles = [section.title for section in found.sections]
    assert titles[:3] == ["Cohorts", "Slides", "Regions"]
    assert not {"Samples", "Views"} & set(titles)
    missing = np.mean([np.isnan(region[..., 0].numpy()).mean() for region in regions])
    assert facts(found)["cells that are missing, %"] == pytest.approx(100 * missing)
    (cells,) = (gallery for gallery in all_of(found, Gallery) if "Cells" in gallery.caption)
    assert len(cells.pictures) == 12
    assert any("principal components" in text.text for text in all_of(found, Text))
    assert render(found)
