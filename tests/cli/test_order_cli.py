"""`dinowds order` as people call it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dinowds.cli.order_view import explain

from dinowds.config import load_config, to_yaml
from dinowds.data.dataset import Dataset
from dinowds.data.order.make import make_plan
from dinowds.data.order.plan import Order
from dinowds.data.order.quality import Quality
from tests.cli.conftest import Call
from tests.index_only import LABELS, write_index

SMALL = ("train.batch_size=12", "data.chunk_size=4", "data.window_chunks=3", "data.partitions=4")
ORDER = Order(12, 0, 4, 3, 4)


@pytest.fixture
def call(call_dinowds: Call) -> Call:
    """(arguments) → exit code, stdout, stderr of `dinowds order`."""
    return partial(call_dinowds, "order")


def answer(call: Call, *arguments: object) -> Any:
    code, out, err = call(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def keys_of(dataset: Dataset, step: int, order: Order = ORDER) -> list[str]:
    return [dataset[sample].key for sample in make_plan(dataset, order).ids(step).tolist()]


def test_batches__are_those_that_training_gets(call: Call, dataset: Dataset, dataset_path: Path) -> None:
    found = answer(call, dataset_path, *SMALL, "--batches", "6..8")
    rows = {row["key"]: row for row in pq.read_table(dataset.index_path).to_pylist()}
    for step, batch in zip((6, 7, 8), found["batches"], strict=True):
        keys = keys_of(dataset, step)
        columns = {f"{name}s": [rows[key][name] for key in keys] for name in ("cohort", "slide", "label")}
        assert batch == {"step": step, "epoch": step // 7, "keys": keys, **columns}
    assert (found["steps_per_epoch"], found["samples"], found["subset"]) == (7, 90, None)
    assert found["order"]["batch_size"] == 12
    assert answer(call, dataset_path, *SMALL, "--batches", "1", "--epoch", 1)["batches"] == found["batches"][2:]
    assert answer(call, dataset_path, *SMALL)["batches"][0]["keys"] == keys_of(dataset, 0)


def test_batches__chosen_values_are_shown(call: Call, dataset_path: Path) -> None:
    order = answer(call, dataset_path, "train.batch_size=12", "train.seed=5")["order"]
    assert (order["partitions"], order["window_chunks"], order["seed"], order["weights"]) == (1, 384, 5, {})


def test_batches__ranks_have_equal_slices(call: Call, dataset_path: Path) -> None:
    [batch] = answer(call, dataset_path, *SMALL, "--world", 3)["batches"]
    assert batch["ranks"] == [0] * 4 + [1] * 4 + [2] * 4
    lines = call(dataset_path, *SMALL, "--world", 3)[1].splitlines()
    assert [line.split()[:3] for line in lines if line.split()[:1] == ["7"]] == [["7", "1", batch["keys"][7]]]


def test_batches__table_names_cohort_and_slide(call: Call, dataset: Dataset, dataset_path: Path) -> None:
    code, out, err = call(dataset_path, *SMALL, "--batches", "3..4")
    assert (code, err) == (0, "")
    assert out.startswith(
        "90 samples, 7 global batches of 12 an epoch, seed 0, chunks of 4, partitions 4, windows of 3"
    )
    rows = {row["key"]: row for row in pq.read_table(dataset.index_path).to_pylist()}
    lines = [line.split() for line in out.splitlines()]
    listed = [line for line in lines if line[:1] and line[0].isdigit() and len(line) == 5]
    keys = keys_of(dataset, 3) + keys_of(dataset, 4)
    assert [line[1] for line in listed] == keys
    assert [line[2:4] for line in listed] == [[rows[key]["cohort"], rows[key]["slide"]] for key in keys]


def test_batches__open_no_shard_and_take_a_run_s_configuration(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    shutil.rmtree(folder / "shards")
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(None, SMALL)))
    found = answer(call, folder, "--config", tmp_path / "config.yaml")
    assert found["batches"] == answer(call, dataset_path, *SMALL)["batches"]


def test_exposure__counts_draws(call: Call, dataset: Dataset, dataset_path: Path) -> None:
    found = answer(call, dataset_path, *SMALL, "--exposure", "--until-step", 9)
    rows = {row["key"]: row for row in pq.read_table(dataset.index_path).to_pylist()}
    drawn = [rows[key] for step in range(9) for key in keys_of(dataset, step)]
    assert found["draws"] == 108
    for cohort in ("alpha", "beta"):
        assert found["cohorts"][cohort]["draws"] == sum(row["cohort"] == cohort for row in drawn)
    for slide in found["slides"]:
        own = [row for row in drawn if (row["cohort"], row["slide"]) == (slide["cohort"], slide["slide"])]
        assert (slide["samples"], slide["draws"]) == (10, len(own))
    assert (len(found["slides"]), found["slides_not_seen"]) == (9, 0)
    out = " ".join(call(dataset_path, *SMALL, "--exposure", "--until-step", 9)[1].split())
    assert "epochs 1.29 draws 108 samples 90" in out
    assert f"alpha 60 {found['cohorts']['alpha']['draws']}" in out
    assert answer(call, dataset_path, *SMALL, "--exposure", "--until-step", 0)["slides_not_seen"] == 9


def test_exposure__sums_up_what_does_not_fit(call: Call, tmp_path: Path) -> None:
    path = write_index(tmp_path / "d", [("a", f"s{i}", 3) for i in range(40)])
    out = call(path, "train.batch_size=10", "--exposure", "--until-step", 12)[1]
    assert "28 others 84 84 0" in " ".join(out.split())


def test_quality__says_what_it_means(call: Call, tmp_path: Path) -> None:
    path = write_index(tmp_path / "d", [("a", f"s{i}", 50) for i in range(200)] + [("a", None, 40)])
    good = answer(call, path, "train.batch_size=20", "--quality")
    assert 0.98 < good["ratio"] < 1.02
    assert good["meaning"].startswith("Well mixed, of the batches looked at: a batch has as many")
    assert good["batches"] == 210
    assert min(good["first_ratio"], good["last_ratio"]) > 0.9
    code, out, _ = call(path, "train.batch_size=20", "--quality", "data.window_chunks=1", "data.partitions=1")
    assert code == 0
    assert "Poorly mixed, of the batches looked at: a batch has" in out
    assert "batches looked at: spread, first and last 210 of 502" in " ".join(out.split())
    assert "of the epoch's first batches" in out
    capped = answer(call, path, "train.batch_size=20", "--quality", "data.max_per_slide=1", "--epoch", 3)
    assert (capped["cap"], capped["cap_kept"], capped["most_of_a_slide"], capped["epoch"]) == (1, True, 1, 3)
    assert capped["meaning"].endswith("The cap is kept, of the batches looked at.")
    whole = answer(call, path, "train.batch_size=100", "--quality", "data.max_per_slide=20")
    assert whole["meaning"].startswith("Well mixed: a batch has")
    assert whole["meaning"].endswith("The cap is kept.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "5..3"], "--batches 5..3: ends before it begins; expected 3..5"),
        (["--batches", "-1"], "--batches -1: expected a number such as 3, or first..last such as 3..5"),
        (["--batches", "1.5"], "--batches 1.5: expected a number"),
        (["--batches", "9" * 30], "expected at most 1000000000"),
        (["--batches", "9", "--epoch", "1"], "--batches 9: the batches of an epoch are 0 to 6"),
        (["--epoch", "-1"], "--epoch is -1, expected 0 to"),
        (["--world", "5"], "--world is 5, which does not divide train.batch_size 12"),
        (["--world", "0"], "--world is 0, expected 1 to"),
        (["--world", "2", "--quality"], "--world goes with --batches, not with --quality"),
        (["--until-step", "2"], "--until-step goes with --exposure, not with --batches"),
        (["--exposure"], "--exposure needs --until-step K"),
        (["--exposure", "--until-step", "-3"], "--until-step is -3, expected 0 to"),
        (["--exposure", "--quality"], "--exposure and --quality: expected one of them"),
        (["train.batch_size=96"], "train.batch_size is 96, but the dataset has only 90 samples"),
        (["train.batchsize=96"], "unknown key 'train.batchsize'"),
    ],
)
def test_errors__are_one_line(call: Call, dataset_path: Path, arguments: list[str], message: str) -> None:
    for more in ([], ["--json"]):
        code, out, err = call(dataset_path, *SMALL, *arguments, *more)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert message in err


def test_errors__of_datasets(call: Call, dataset_path: Path, tmp_path: Path) -> None:
    path = write_index(tmp_path / "d", [("a", None, 50)])
    for arguments, message in (
        ((path, "train.batch_size=10", "--quality"), "the slide of no sample that is drawn is known"),
        ((f"{dataset_path}:nope",), "has no subset 'nope'"),
        ((tmp_path / "none",), "no such dataset"),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert message in err


def quality_of(**changes: float) -> Quality:
    quality = Quality(
        epoch=0, batches=216, steps_per_epoch=999, distinct_slides=10.0, expected_slides=10.0, first_ratio=1.0,
        last_ratio=1.0, samples_without_slide=0.0, most_of_a_slide=2, cap=None, cohorts={},
    )  # fmt: skip
    return replace(quality, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"last_ratio": 0.7}, "Poorly mixed at the epoch's edge: its last batches have 30% fewer slides"),
        ({"first_ratio": 0.0}, "Poorly mixed at the epoch's edge: its first batches have 100% fewer slides"),
        ({"distinct_slides": 5.0, "first_ratio": 0.4}, "Poorly mixed, of the batches looked at: a batch has 50% fewer"),
        ({"cap": 1}, "The cap is not kept: a batch has 2 samples of a slide"),
        ({"cap": 2, "batches": 999}, "would have. The cap is kept."),
        ({"cap": 2, "distinct_slides": 11.0}, "looked at: kept apart by the cap, a batch has more slides"),
    ],
)
def test_quality__is_put_into_words(changes: dict[str, float], text: str) -> None:
    assert text in explain(quality_of(**changes))


def test_batches__labels_and_unknown_slides_are_listed(call: Call, tmp_path: Path) -> None:
    path = write_index(tmp_path / "d", [("a", "s", 30), ("b", None, 25), ("b", "s", 20)], 9)
    small = (path, "train.batch_size=15", "--batches", "0..4")
    rows = {row["key"]: row for row in pq.read_table(path / "samples.parquet").to_pylist()}
    found = answer(call, *small)["batches"]
    assert len({key for batch in found for key in batch["keys"]}) == 75
    for batch in found:
        own = [rows[key] for key in batch["keys"]]
        assert batch["cohorts"] == [row["cohort"] for row in own]
        assert batch["slides"] == [row["slide"] for row in own]
        assert batch["labels"] == [LABELS[row["label"]] for row in own]
    lines = [line.split() for line in call(*small)[1].splitlines()]
    listed = [line for line in lines if line[:1] and line[0].isdigit() and len(line) == 5]
    columns = ("cohorts", "slides", "labels")
    cells = [row for batch in found for row in zip(*(batch[name] for name in columns), strict=True)]
    expected = [["-" if cell is None else cell for cell in row] for row in cells]
    assert [line[2:] for line in listed] == expected


def test_command__starts_without_torch(dataset_path: Path) -> None:
    script = (
        "import sys; from dinowds.cli.main import run\n"
        "try: run()\n"
        "finally: print(*({'torch', 'webdataset', 'simplejpeg'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["--batches", "0..2"], ["--quality", "--json"], ["--exposure", "--until-step", "5"]):
        command = [sys.executable, "-c", script, "order", str(dataset_path), *SMALL, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr.strip()) == (0, "")
        assert done.stdout
