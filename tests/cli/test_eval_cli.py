"""`dinowds eval` as a user meets it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from dinowds.cli.main import run as run_command

from tests.cli.conftest import Call
from tests.embed.support import write_weights
from tests.eval.support import make_labelled
from tests.support import TINY_RUN

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
QUICK = ("--resamples", "10", "--workers", "0", "--batch-size", "16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets `train` and `test`, and a run of two steps on the first."""
    folder = tmp_path_factory.mktemp("eval")
    for name, seed in (("train", 0), ("test", 500)):
        make_labelled(folder / name, {f"{name}{n}": label for n, label in enumerate(("fat", "gland") * 2)}, seed=seed)
    arguments = ("--data", folder / "train" / "dataset", "--out", folder / "run", *TINY_RUN, "optim.max_steps=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dinowds", "train", "patch", *map(str, arguments)])
        with pytest.raises(SystemExit, match="0"):
            run_command()
    return folder


def data(folder: Path) -> tuple[object, ...]:
    return ("--train", folder / "train" / "dataset", "--test", folder / "test" / "dataset")


def test_eval_knn__of_a_run_as_json_and_in_its_folder(folder: Path, call_dinowds: Call) -> None:
    arguments = ("eval", "knn", "-c", folder / "run", *data(folder), "--both", "--k", 3, "--k", 1, *QUICK)
    code, out, err = call_dinowds(*arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["kind"], found["step"], found["labels"]) == ("knn", 2, ["fat", "gland"])
    assert found["checkpoint"] == str(folder / "run")
    names = ["teacher", "student", "random", "mean RGB", "raw pixels"]
    assert list(dict.fromkeys(result["model"] for result in found["results"])) == names
    assert len(found["results"]) == 5 * 2 * 2
    for result in found["results"]:
        assert result.keys() == {"model", "settings", "accuracy", "balanced_accuracy", "auroc", "confusion"}
        assert sum(map(sum, result["confusion"])) == found["test"]["samples"] == 24
    assert found["features"].keys() == {"rank_me", "alpha_req", "std"}
    (line,) = (folder / "run" / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line) == found
    assert f"added to {folder / 'run' / 'evaluations.jsonl'}" in err


def test_eval_linear__shows_tables_and_saves_nothing_where_asked(folder: Path, call_dinowds: Call) -> None:
    kept = folder / "run" / "evaluations.jsonl"
    before = kept.read_text() if kept.exists() else None
    checkpoint = folder / "run" / "checkpoints" / "step-00000002.pt"
    code, out, err = call_dinowds("eval", "linear", "-c", checkpoint, *data(folder), "--no-save", *QUICK)
    assert code == 0, err
    for text in (
        "no sample in common; no slide in common",
        "dataset, 24 samples of 4 slides",
        "95%, 10 draws of 4 slides",
        "logistic regression, 3 seeds",
        "balanced",
        "mean RGB",
        "label → told",
        "RankMe",
    ):
        assert text in out
    assert (kept.read_text() if kept.exists() else None) == before


def test_eval_features__without_labels(dataset_path: Path, tmp_path: Path, call_dinowds: Call) -> None:
    arguments = ("eval", "features", dataset_path, "-c", write_weights(tmp_path / "tiny.pt"), "--workers", "0")
    code, out, err = call_dinowds(*arguments, "--json", "--student")
    assert code == 0, err
    found = json.loads(out)
    assert found["dataset"]["samples"] == 90
    assert found["results"][0].keys() == {"model", "rank_me", "alpha_req", "std"}
    assert found["results"][0]["model"] == "student"
    assert "alpha-ReQ" in call_dinowds(*arguments)[1]


def test_eval__mistakes_are_one_line(folder: Path, call_dinowds: Call) -> None:
    train, run = folder / "train" / "dataset", ("-c", folder / "run")
    same = ("--train", train, "--test", train)
    for arguments, message in (
        ((*run, *same), "--test: 4 of its 4 slides ('train0', 'train1', 'train2' and 1 more) and 24 of its 24 samples"),
        ((*run, *data(folder), "--student", "--both"), "--student is given with --both; give one of them"),
        ((*data(folder), "--both"), "--both goes with --checkpoint, the weights"),
        (data(folder), f"--checkpoint is missing: --train {train} is a dataset; give the weights to embed it with"),
        ((*run, *data(folder), "--temperature", "0"), "--temperature is 0, expected more than 0"),
        ((*run, "--train", folder / "none", "--test", train), "none: no such dataset"),
    ):
        code, out, err = call_dinowds("eval", "knn", *arguments, *QUICK)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert message in err


def test_eval__examples_of_the_page_are_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_dinowds: Call
) -> None:
    """Each ends for want of its checkpoint, not as a wrong usage."""
    monkeypatch.chdir(tmp_path)
    commands = [line for line in PAGE.read_text().splitlines() if line.startswith("dinowds eval ")]
    assert len(commands) == 3
    for command in commands:
        code, _, err = call_dinowds(*shlex.split(command)[1:])
        assert code == 1, command
        assert "runs/patch: no such file of weights" in err, command
