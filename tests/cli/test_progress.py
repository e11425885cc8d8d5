"""How a run looks: the live line and the table of epochs, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from dinowds.cli.progress import BarObserver, EpochTable, LineObserver, describe
from rich.console import Console

from dinowds.train.monitor import EpochSummary, Progress

FIGURES = {
    "loss": 7.25,
    "loss_share": 0.654,
    "kl": 0.321,
    "lr": 5e-4,
    "prototypes_in_use": 1830.0,
    "teacher_std": 0.61,
    "gradient_norm/all": 0.512,
    "images_per_second": 2613.4,
    "waiting_share": 0.013,
}


def summary(epoch: int, **more: float) -> EpochSummary:
    return EpochSummary(epoch, 30, epoch * 10, 723.4, FIGURES | more)


def lines_of(table: EpochTable, *summaries: EpochSummary) -> list[str]:
    lines = [line for each in summaries for line in (table.head(each.figures), table.row(each))]
    return [line for line in lines if line]


def test_table__columns_stand_under_their_heads() -> None:
    head, row = lines_of(EpochTable(), summary(3))
    assert " ".join(head.split()) == "epoch time loss ÷ ln K KL in use spread gradient img/s waiting"
    assert " ".join(row.split()) == "3/30 0:12:03 7.250 65.4% 0.321 1,830 0.61 0.512 2,613 1.3%"
    for name, value in (("time", "0:12:03"), ("ln K", "65.4%"), ("in use", "1,830"), ("waiting", "1.3%")):
        assert head.index(name) + len(name) == row.index(value) + len(value)


def test_table__head_again_after_twenty_rows_and_with_a_new_column() -> None:
    table = EpochTable()
    assert len(lines_of(table, *(summary(epoch) for epoch in range(1, 21)))) == 21
    assert len(lines_of(table, summary(21))) == 2
    head, row = lines_of(table, summary(22, **{"knn/teacher/accuracy": 0.5512}))
    assert "kNN" in head
    assert "55.1%" in row
    (without,) = lines_of(table, summary(23))
    assert len(without) == len(row)


def test_table__an_epoch_of_more_than_a_day() -> None:
    assert EpochTable().row(EpochSummary(1, 2, 3, 100_000, {})).endswith(" 27:46:40")


def test_table__an_epoch_without_a_log_point_has_a_row() -> None:
    assert lines_of(EpochTable(), EpochSummary(1, 2, 3, 4.0, {}))[1].split() == ["1/2", "0:00:04"]


@pytest.mark.parametrize("kind", [BarObserver, LineObserver])
def test_observer__writes_messages_and_rows(kind: type[BarObserver] | type[LineObserver]) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=kind is BarObserver, width=120, color_system=None)
    observer = kind(console)
    observer.message("training [small]")
    observer.progress(Progress(10, 20, 1, 2, FIGURES))
    observer.epoch(summary(1))
    observer.progress(Progress(20, 20, 2, 2, FIGURES))
    observer.close()
    text = screen.getvalue()
    for part in ("training [small]", "÷ ln K", "1/30   0:12:03    7.250", "loss 7.250 (65% of ln K)"):
        assert part in text, part


def test_describe__before_the_first_figures_and_with_knn() -> None:
    assert describe(Progress(1, 20, 1, 2, {})) == "epoch 1/2"
    assert describe(Progress(1, 20, 1, 2, FIGURES | {"knn/teacher/accuracy": 0.5})).endswith("waiting 1%  kNN 50.0%")
