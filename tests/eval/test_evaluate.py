"""Whole evaluations of tiny weights on tiny datasets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, roc_auc_score
from sklearn.preprocessing import StandardScaler

from dinowds.data.dataset import Dataset
from dinowds.data.decode import decode_image
from dinowds.data.grids import decode_grid
from dinowds.data.store.store import open_store
from dinowds.embed.patches.embed import embed_patches
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.patches.stream import fit
from dinowds.errors import CheckpointError, ConfigError, DatasetError
from dinowds.eval.evaluate import EvalOptions, Evaluation, evaluate_features, evaluate_knn, evaluate_linear
from dinowds.eval.subjects import ModelOptions, Subjects
from dinowds.model.architecture import Architecture, Size
from dinowds.model.pixels import normalise
from dinowds.model.weights import load_backbone, read_weights
from tests.embed.support import MEAN, STD, write_weights
from tests.eval.support import make_labelled, make_labelled_regions

REGION = Architecture("region", Size(16, 1, 2), 8, 1, 4)
LABELS = ("1", "2", "fat")
"""The first two have one colour, so that figures are neither perfect nor those of chance."""
TRAIN = {f"a{number}": LABELS[number % 3] for number in range(9)}
TEST = {f"b{number}": LABELS[number % 3] for number in range(6)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.pt")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("train") / "train", TRAIN)


@pytest.fixture(scope="module")
def test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("test") / "test", TEST, seed=50_000)


@pytest.fixture(scope="module")
def features(weights: Path, train: Path, test: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of `dinowds embed patch`, float32."""
    folder = tmp_path_factory.mktemp("features")
    for name, data in (("train", train), ("test", test)):
        options = PatchOptions(str(weights), dtype="float32", image_size=32, precision="fp32", workers=0)
        embed_patches(data, folder / name, options)
    return str(folder / "train"), str(folder / "test")


def options_for(weights: Path, *which: Any, resamples: int = 20, allow_leakage: bool = False) -> EvalOptions:
    models = ModelOptions(str(weights), which or ("teacher",), precision="fp32", batch_size=16, workers=0)
    return EvalOptions(models, allow_leakage, resamples)


def plain_features(weights: Path, data: Path, which: Any = "teacher") -> tuple[np.ndarray, np.ndarray]:
    """One by one: float64 [N, D], and the names of the labels; of samples that have one."""
    dataset, read = Dataset.open(data), read_weights(weights, which)
    backbone, store, rows, labels = load_backbone(read), open_store(Dataset.open(data)), [], []
    for sample in dataset:
        if sample.label is None:
            continue
        if dataset.manifest.kind == "region":
            content = torch.from_numpy(decode_grid(store.read(sample)).copy()).float()[None]
        else:
            image = torch.from_numpy(fit(decode_image(store.read(sample)), 32).copy())
            content = normalise(image.permute(2, 0, 1)[None], torch.float32, MEAN, STD)
        rows.append(backbone(content)[0].double().numpy())
        labels.append(dataset.manifest.label_names[sample.label])
    return np.stack(rows), np.array(labels)


def plain_knn(train: np.ndarray, labels: np.ndarray, test: np.ndarray, names: list[str], k: int) -> np.ndarray:
    """Shares of votes, by loops."""
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    shares = []
    for row in test:
        cosines = unit @ (row / np.linalg.norm(row))
        votes = dict.fromkeys(names, 0.0)
        for neighbour in np.argsort(-cosines)[:k]:
            votes[str(labels[neighbour])] += float(np.exp(cosines[neighbour] / 0.07))
        shares.append([vote / sum(votes.values()) for vote in votes.values()])
    return np.array(shares)


def check_figures(result: dict[str, Any], shares: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    """Against scikit-learn's, of test samples that have all labels."""
    predicted = np.array(names)[shares.argmax(1)]
    assert result["accuracy"]["value"] == pytest.approx(accuracy_score(labels, predicted))
    assert result["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    area = roc_auc_score(labels, shares, multi_class="ovr", labels=names)
    assert result["auroc"]["value"] == pytest.approx(area, abs=1e-6)
    assert result["confusion"] == confusion_matrix(labels, predicted, labels=names).tolist()
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]


def result_of(evaluation: Evaluation, model: str, **settings: Any) -> dict[str, Any]:
    found = [result.to_json() for result in evaluation.results if result.model == model]
    (one,) = [result for result in found if settings.items() <= result["settings"].items()]
    return one


def test_evaluate_knn__equals_loops_and_scikit_learn(weights: Path, train: Path, test: Path) -> None:
    found = evaluate_knn(str(train), str(test), options_for(weights, "teacher", "student"), [5, 1])
    names = list(LABELS)
    assert list(found.labels) == names
    for which in ("teacher", "student"):
        (features, labels), (others, answers) = (plain_features(weights, path, which) for path in (train, test))
        mean = features.mean(0)
        for k in (5, 1):
            plain = plain_knn(features, labels, others, names, k)
            check_figures(result_of(found, which, k=k, centred=False), plain, answers, names)
            centred = plain_knn(features - mean, labels, others - mean, names, k)
            check_figures(result_of(found, which, k=k, centred=True), centred, answers, names)
    assert {result.model for result in found.results} == {"teacher", "student", "random", "mean RGB", "raw pixels"}
    assert 0.4 < result_of(found, "mean RGB", k=5, centred=False)["accuracy"]["value"] < 1
    content = found.to_json()
    assert content["train"] == {"name": "dataset", "samples": 54, "slides": 9, "labels": dict.fromkeys(LABELS, 18)}
    assert content["test"]["slides"] == content["bootstrap"]["clusters"] == 6
    assert content["leakage"] == "no sample in common; no slide in common"
    assert 1 < content["features"]["rank_me"] < 16


def test_evaluate_linear__equals_scikit_learn(weights: Path, train: Path, test: Path) -> None:
    found = evaluate_linear(str(train), str(test), options_for(weights), seeds=2)
    result = result_of(found, "teacher", solver="sklearn")
    strength = result["settings"]["C"]
    if len({seed["C"] for seed in result["seeds"]}) > 1:
        pytest.fail("give seeds that choose alike: the figures are of one C then")
    (features, labels), (others, answers) = (plain_features(weights, path) for path in (train, test))
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8).fit(scaler.transform(features), labels)
    check_figures(result, model.predict_proba(scaler.transform(others)), answers, list(LABELS))
    assert [seed["seed"] for seed in result["seeds"]] == [0, 1]


def test_evaluate__of_regions(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "region.pt", of=REGION)
    train = make_labelled_regions(tmp_path / "train", {"a": "fat", "b": "gland", "c": "fat", "d": "gland"})
    test = make_labelled_regions(tmp_path / "test", {"e": "fat", "f": "gland", "g": "gland"}, seed=9)
    found = evaluate_knn(str(train), str(test), options_for(weights), [3])
    (features, labels), (others, answers) = (plain_features(weights, path) for path in (train, test))
    shares = plain_knn(features, labels, others, ["fat", "gland"], 3)
    result = result_of(found, "teacher", centred=False)
    assert result["confusion"] == confusion_matrix(answers, np.array(["fat", "gland"])[shares.argmax(1)]).tolist()
    assert {result.model for result in found.results} == {"teacher", "random", "mean of cells", "raw cells"}
    linear = evaluate_linear(str(train), str(test), options_for(weights), "torch", seeds=1)
    assert result_of(linear, "mean of cells", solver="torch")["accuracy"]["value"] == 1


def test_evaluate__numbers_as_labels_and_one_class_missing_in_test(weights: Path, tmp_path: Path) -> None:
    """Labels 1, 2 and 7 of either dataset are told by their names; what has none is left out and counted."""
    train = make_labelled(tmp_path / "train", {"a": "7", "b": "1", "c": "2", "d": None}, each=4)
    test = make_labelled(tmp_path / "test", {"e": "2", "f": "1", "g": "30"}, each=3, seed=9)
    notices: list[str] = []
    found = evaluate_knn(str(train), str(test), options_for(weights), [50], notice=notices.append)
    assert found.labels == ("1", "2", "7")
    confusion = np.array(result_of(found, "teacher", centred=False)["confusion"])
    assert confusion.sum(1).tolist() == [3, 3, 0]
    assert notices == [
        "--train: 4 of 16 samples have no label and are left out",
        "--test: 3 samples are left out: no sample of --train has their labels '30'",
        "--k is 50, but there are 12 training samples: all of them vote",
    ]
    linear = evaluate_linear(str(train), str(test), options_for(weights), seeds=1)
    assert np.array(linear.results[0].confusion).sum() == 6


def test_evaluate__refuses_what_both_have_unless_it_is_meant(weights: Path, train: Path, tmp_path: Path) -> None:
    other = make_labelled(tmp_path / "other", {"a1": "2", "x": "fat"}, seed=300)
    with pytest.raises(ConfigError, match=r"--test: 1 of its 2 slides \('a1'\) are in --train too; give others, or"):
        evaluate_knn(str(train), str(other), options_for(weights))
    found = evaluate_knn(str(train), str(other), options_for(weights, allow_leakage=True))
    assert found.leakage == "1 of its 2 slides ('a1') are in the training data too"
    again = make_labelled(tmp_path / "again", {"n0": "1", "n1": "2"})  # the images of a0 and a1, renamed
    with pytest.raises(ConfigError, match=r"--test: 12 of its 12 samples \('n0/"):
        evaluate_linear(str(train), str(again), options_for(weights))


def test_evaluate__mistakes_are_one_clear_line(weights: Path, train: Path, test: Path, tmp_path: Path) -> None:
    regions = make_labelled_regions(tmp_path / "regions", {"e": "fat", "f": "gland"}, channels=5)
    region_weights = write_weights(tmp_path / "region.pt", of=REGION)
    for of, place, message in (
        (weights, regions, r"--test: .*regions/dataset holds regions, .*tiny.pt is a model of images"),
        (region_weights, train, r"--train: .* holds images, .*region.pt is a model of regions"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_knn(str(train), str(place), options_for(of))
    with pytest.raises(ConfigError, match=r"--train: cells of .* have 5 features, .*region.pt takes 8"):
        evaluate_knn(str(regions), str(regions), options_for(region_weights))
    for arguments, message in (
        ({"ks": [0]}, "--k is 0, expected at least 1"),
        ({"temperature": 0.0}, "--temperature is 0, expected more than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_knn(str(train), str(test), options_for(weights), **arguments)
    for options, message in (
        (ModelOptions(str(weights), image_size=33), "--image-size is 33, expected a multiple of 8, the patch size of"),
        (ModelOptions(str(region_weights), image_size=8), r"--image-size is 8, but .* is a model of regions"),
        (ModelOptions(str(weights), precision="fp8"), "precision is 'fp8'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Subjects.open(options)
    bare, content = tmp_path / "bare.pt", torch.load(weights, weights_only=True)
    torch.save(content | {"student": content["teacher"]}, bare)
    with pytest.raises(CheckpointError, match="holds one model, not a teacher and a student"):
        Subjects.open(ModelOptions(str(bare), ("teacher", "student")))


def test_evaluate__what_cannot_be_read_is_left_out_up_to_a_budget(weights: Path, train: Path, tmp_path: Path) -> None:
    test = make_labelled(tmp_path / "test", TEST, seed=50_000)
    dataset = Dataset.open(test)
    for sample in [dataset[3], dataset[8]]:
        with Path(dataset.shard_url(sample.shard)).open("r+b") as file:
            file.seek(sample.offset + 40)
            file.write(b"broken")
    notices: list[str] = []
    found = evaluate_knn(str(train), str(test), options_for(weights), notice=notices.append)
    assert found.test["samples"] == 34
    assert notices == ["--test: 2 of 36 samples could not be read and are left out"]
    options = EvalOptions(ModelOptions(str(weights), workers=0, max_bad=1))
    with pytest.raises(DatasetError, match="--test: 2 of 36 samples could not be read, --max-bad is 1; check them"):
        evaluate_knn(str(train), str(test), options)


def test_evaluate_features__of_some_samples_without_labels(weights: Path, tmp_path: Path) -> None:
    data = make_labelled(tmp_path / "data", {"a": None, "b": None}, each=20)
    notices: list[str] = []
    options = ModelOptions(str(weights), precision="fp32", workers=0)
    found = evaluate_features(str(data), options, notice=notices.append).to_json()
    assert found["dataset"] == {"name": "dataset", "samples": 40, "dim": 16}
    assert "there are 40" in notices[0]
    assert [result["model"] for result in found["results"]] == ["teacher", "random", "mean RGB", "raw pixels"]
    some = evaluate_features(str(data), options, most=12).to_json()
    assert some["dataset"]["samples"] == 12
    assert some["results"][0]["rank_me"] <= 12
    assert some == evaluate_features(str(data), options, most=12).to_json()


def test_evaluate__features_on_disk_are_as_good_as_images(
    weights: Path, train: Path, test: Path, features: tuple[str, str]
) -> None:
    notices: list[str] = []
    found = evaluate_knn(*features, EvalOptions(resamples=20), [5], notice=notices.append).to_json()
    expected = evaluate_knn(str(train), str(test), options_for(weights), [5]).to_json()
    assert notices == ["no baselines are shown: they need images and weights, here are features alone"]
    teacher = [result for result in expected["results"] if result["model"] == "teacher"]
    for result, other in zip(found["results"], teacher, strict=True):
        assert [result[key] for key in ("settings", "confusion")] == [other[key] for key in ("settings", "confusion")]
        assert result["auroc"]["value"] == pytest.approx(other["auroc"]["value"], abs=0.01)
    assert {key: found[key] for key in ("train", "test", "labels", "bootstrap")} == {
        key: expected[key] for key in ("train", "test", "labels", "bootstrap")
    }
    assert found["checkpoint"] == str(weights)
    assert found["leakage"] == "no slide in common; samples are not compared"
    assert found["features"] == pytest.approx(expected["features"], rel=1e-3)


def test_evaluate__features_of_others_with_labels_as_text_or_numbers(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, slides, labels in (
        ("train", ["a", "a", "b", "b", None], ["1", "2", "1", "2", None]),
        ("test", [None, None, "d", "d", "d"], ["2", "1", "2", "3", None]),
    ):
        rows = [generator.normal(0, 0.1, 4) + (label == "1") for label in labels]
        columns = {"slide": slides, "x": [0] * 5, "y": [0] * 5, "label": labels, "feature": rows}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    train, test = (str(tmp_path / f"{name}.parquet") for name in ("train", "test"))
    found = evaluate_linear(train, test, EvalOptions(), "torch", 1)
    assert (found.results[0].model, found.labels, found.test["samples"]) == ("features", ("1", "2"), 3)
    assert found.results[0].figures["accuracy"].value == 1
    assert (found.bootstrap["clusters"], found.test["slides"]) == (3, 1)
    with pytest.raises(ConfigError, match=r"--test: 2 of its 2 slides \('a', 'b'\) are in --train too"):
        evaluate_knn(train, train, EvalOptions())
    pq.write_table(pq.read_table(train).drop_columns(["label"]), tmp_path / "bare.parquet")
    with pytest.raises(DatasetError, match=r"--test: .*bare.parquet has no column 'label'"):
        evaluate_knn(train, str(tmp_path / "bare.parquet"), EvalOptions())


def test_evaluate__features_that_do_not_belong_together(
    train: Path, test: Path, features: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--checkpoint is missing: --train .* is a dataset; give the weights"):
        evaluate_knn(str(train), str(test), EvalOptions())
    other = write_weights(tmp_path / "other.pt", seed=3)
    embed_patches(test, tmp_path / "test", PatchOptions(str(other), image_size=32, workers=0))
    with pytest.raises(ConfigError, match=r"--test: .* has features of other weights than --train"):
        evaluate_knn(features[0], str(tmp_path / "test"), EvalOptions())
    about = Path(features[1]) / "features.json"
    shutil.copytree(features[1], tmp_path / "larger")
    content = json.loads(about.read_text())
    content["question"]["image_size"] = 64
    (tmp_path / "larger" / "features.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"--test: .* was embedded with image_size 64, --train with 32"):
        evaluate_knn(features[0], str(tmp_path / "larger"), EvalOptions())


def test_evaluate__labels_of_a_table_with_gaps_are_the_integers_that_they_were(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def write(path: Path, labels: Any, slide: str) -> None:
        path.parent.mkdir(exist_ok=True)
        rows = [generator.normal(0, 0.1, 4) + (label in (1, 1.0)) for label in labels.to_pylist()]
        size = len(labels)
        columns = {"slide": [slide] * size, "x": [0] * size, "y": [0] * size, "label": labels, "feature": rows}
        pq.write_table(pa.table(columns), path)

    write(tmp_path / "train" / "a.parquet", pa.array([1, 2, 1, 2]), "a")
    write(tmp_path / "train" / "b.parquet", pa.array([None, None]), "b")  # whose column has no type
    write(tmp_path / "test.parquet", pa.array([1.0, 2.0, float("nan"), None]), "c")
    found = evaluate_knn(str(tmp_path / "train"), str(tmp_path / "test.parquet"), EvalOptions(), [1])
    assert (found.labels, found.train["samples"], found.test["samples"]) == (("1", "2"), 4, 2)
    assert found.results[0].figures["accuracy"].value == 1
