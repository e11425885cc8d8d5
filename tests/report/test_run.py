"""The page of a run: of one that is done, goes on, is empty or is damaged."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from dinowds.errors import ConfigError
from dinowds.report import looks
from dinowds.report.page import Block, Columns, Folded, Matrix, Notice, Page, Plot, Table, render
from dinowds.report.run import run_page
from dinowds.report.runfolder import read_run
from tests.report.conftest import evaluation
from tests.report.pages import every_block


def _blocks(page: Page) -> Iterator[Block]:
    def inner(blocks: Sequence[Block]) -> Iterator[Block]:
        for block in blocks:
            yield block
            if isinstance(block, Columns | Folded):
                yield from inner(block.blocks)

    yield from inner(page.lead)
    for section in page.sections:
        yield from inner(section.blocks)


def _plots(page: Page) -> dict[str, Plot]:
    return {block.title: block for block in _blocks(page) if isinstance(block, Plot)}


def _text(page: Page) -> str:
    return "\n".join(block.text for block in _blocks(page) if isinstance(block, Notice))


@pytest.fixture(scope="session")
def page(run_path: Path) -> Page:
    return run_page([run_path])


@pytest.fixture
def copy(run_path: Path, tmp_path: Path) -> Path:
    """Of the run, without its weights."""
    return Path(shutil.copytree(run_path, tmp_path / "copy", ignore=shutil.ignore_patterns("*.pt", "events*")))


def test_run_page__has_every_curve_of_the_run(page: Page, run_path: Path) -> None:
    plots = _plots(page)
    lines = [json.loads(line) for line in (run_path / "metrics.jsonl").read_text().splitlines()]
    loss = plots["Loss"].figure
    assert loss["data"][0]["x"] == [line["step"] for line in lines] == list(range(1, 21))
    assert loss["data"][0]["y"] == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    assert loss["layout"]["shapes"][0]["y0"] == pytest.approx(math.log(128))
    parts = {trace["name"] for trace in plots["Norms of gradients by part of the model"].figure["data"]}
    assert {"embed", "blocks.0", "blocks.1", "head.last_layer"} <= parts
    assert {"Learning rate", "Weight decay", "Momentum of the teacher", "Throughput", "Waiting for data", "koleo",
            "Spread of features", "KL of teacher and student", "Loss as a share of ln K"} <= plots.keys()  # fmt: skip


def test_run_page__says_what_differs_from_the_default(page: Page) -> None:
    tables = {block.caption: block for block in _blocks(page) if isinstance(block, Table)}
    different = next(table for caption, table in tables.items() if caption.startswith("What differs"))
    assert ("student.out_dim", "128", "65536") in different.rows
    assert not any(row[0] == "teacher.momentum_teacher" for row in different.rows)
    assert ("teacher.momentum_teacher", "0.996") in tables["Every key of config.yaml"].rows


def test_run_page__pictures_of_each_stage(page: Page) -> None:
    attention, tokens, near = (block for block in _blocks(page) if isinstance(block, Matrix))
    assert attention.head == tokens.head == ["image", "untrained", "step 8", "step 12", "step 16", "step 20"]
    assert len(attention.rows) == looks.FIXED
    assert len(near.rows[0][1]) == 1 + looks.NEIGHBOURS
    stages = [picture.content for _, pictures in attention.rows for picture in pictures if picture]
    assert len(set(stages)) > len(attention.rows) * 2  # they change
    plot = next(plot for title, plot in _plots(page).items() if title.startswith("Map of features"))
    numbers = [number for trace in plot.figure["data"] for number in trace["customdata"]]
    assert sorted(numbers) == list(range(90)) * len(plot.choices)
    assert plot.sprite is not None


def test_run_page__evaluations(page: Page) -> None:
    table = next(block for block in _blocks(page) if isinstance(block, Table) and "→" in block.caption)
    assert table.caption == "k nearest neighbours, patches (60 samples) → others (30 samples)"
    scores = ("0.500 (0.400 – 0.600)", "0.400 (0.300 – 0.500)", "0.600 (0.500 – 0.700)")
    assert table.rows[1] == ("untrained", "k 20, temperature 0.07", 20, *scores)
    confusion = next(plot for title, plot in _plots(page).items() if title.startswith("Confusion"))
    assert confusion.figure["data"][0]["text"] == [["10", "5"], ["3", "12"]]


@pytest.mark.parametrize("of", ["run", "blocks"])
def test_figures__are_plotlys(page: Page, of: str) -> None:
    """Plotly's own check of every property."""
    figures = [block.figure for block in _blocks(page if of == "run" else every_block()) if isinstance(block, Plot)]
    assert len(figures) > 5
    for figure in figures:
        go.Figure(_without_tokens(figure))


def _without_tokens(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tokens(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [_without_tokens(inner) for inner in value]
    if value == "@sequential":
        return "Blues"
    return "black" if isinstance(value, str) and value.startswith("@") else value


def test_run_page__of_a_folder_with_nothing_but_a_configuration(copy: Path) -> None:
    for path in copy.iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
    page = run_page([copy])
    assert "no figures yet" in _text(page)
    assert "There is no checkpoint yet." in _text(page)
    assert render(page)


def test_run_page__of_a_run_that_is_written_or_was_killed(copy: Path) -> None:
    path = copy / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:10]) + lines[10][:40])
    page = run_page([copy])
    assert "its last line is cut" in _text(page)
    assert _plots(page)["Loss"].figure["data"][0]["x"] == list(range(1, 11))
    assert page.subtitle.startswith("A run of vit_tiny/8 (0.9 M parameters): 10 of 20 steps")


def test_run_page__of_damaged_files(copy: Path) -> None:
    path = copy / "metrics.jsonl"
    lines = path.read_text().splitlines()
    damage = ["garbage", "[1]", '{"loss": 1}', '{"step": "x", "loss": 1}', '{"step": 5, "loss": "high"}', "\x00\xff"]
    path.write_text("\n".join([*lines[:5], *damage, *lines[5:]]) + "\n", encoding="latin-1")
    (copy / "config.yaml").write_text("a: [\n")
    (copy / "evaluations.jsonl").write_text("{}\nnonsense\n" + json.dumps({"kind": "knn", "results": [{}, 3]}) + "\n")
    (copy / "train.log").write_bytes(b"\xff\xfe\n2026-01-01 00:00:00  fine\n")
    page = run_page([copy])
    text = _text(page)
    assert "5 lines are no figures of a step" in text
    assert "config.yaml: cannot be read" in text
    assert "evaluations.jsonl: 1 lines cannot be read" in text
    assert _plots(page)["Loss"].figure["data"][0]["x"] == list(range(1, 21))
    assert render(page)


def test_run_page__alarms_have_causes_and_options(copy: Path) -> None:
    path = copy / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    lines = []
    for step in range(1, 400):  # evaluations have lines of their own
        lines.append({**entries[-1], "step": step, "teacher_distance": 0.0})
        lines.append({"step": step, "knn/teacher/accuracy": 0.5})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (copy / "bad_samples.jsonl").write_text('{"step": 1}\n' * 3)
    page = run_page([copy])
    alarm = next(block for block in _blocks(page) if isinstance(block, Notice) and "dead student" in block.text.lower())
    assert "Found at step" in alarm.text
    assert alarm.lists is not None
    assert any("a higher optim.lr" in options for options in alarm.lists.values())
    assert "3 samples could not be read" in _text(page)


def test_run_page__without_its_dataset_there_are_no_pictures(run_path: Path, tmp_path: Path) -> None:
    page = run_page([run_path], str(tmp_path / "nowhere"))
    assert "There are no pictures." in _text(page)
    assert "nowhere" in _text(page)
    assert not [block for block in _blocks(page) if isinstance(block, Matrix)]


def test_run_page__several_runs_beside_each_other(run_path: Path, copy: Path) -> None:
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("out_dim: 128", "out_dim: 256"))
    (copy / "evaluations.jsonl").write_text(json.dumps(evaluation("other")) + "\n")
    page = run_page([run_path, copy])
    assert [trace["name"] for trace in _plots(page)["Loss"].figure["data"]] == ["a&lt;b&gt;run", "copy"]
    levels = [shape["y0"] for shape in _plots(page)["Loss"].figure["layout"]["shapes"]]
    assert levels == pytest.approx([math.log(128), math.log(256)])
    tables = {block.caption: block for block in _blocks(page) if isinstance(block, Table)}
    assert tables["Where the configurations differ"].rows == [("student.out_dim", "128", "256")]
    evaluations = next(table for caption, table in tables.items() if "→" in caption)
    assert [row[0] for row in evaluations.rows] == ["a<b>run", "a<b>run", "copy", "copy"]
    assert render(page)


def test_run_page__a_run_twice_is_refused(copy: Path) -> None:
    with pytest.raises(ConfigError, match="twice"):
        run_page([copy, copy / "."])


def test_read_run__the_time_of_training_is_the_steps_by_their_throughput(copy: Path) -> None:
    lines = [{"step": step, "loss": 1.0, "images_per_second": 6.0} for step in (10, 20, 30)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(copy).hours * 3600 == pytest.approx(30 * 12 / 6)
