from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dinowds.config import PatchConfig
from dinowds.data.dataset import Dataset
from dinowds.data.decode import decode_image
from dinowds.data.store.store import open_store
from dinowds.embed.features import backbone_features
from dinowds.embed.patches.stream import fit
from dinowds.errors import ConfigError, DatasetError, TrainingError
from dinowds.eval import knn
from dinowds.eval.knn import knn_accuracy
from dinowds.eval.labelled import Labelled, match_labels
from dinowds.eval.tune import evaluation_of
from tests.eval.support import (
    KEYS,
    config_for,
    make_labelled,
    make_labelled_regions,
    models_of,
    region_config_for,
    tune_of,
)
from tests.train.ranks import start_ranks

FIGURES = {
    f"knn/{model}/{name}" for model in ("teacher", "student") for name in ("accuracy", "balanced_accuracy", "auroc")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """What is trained on."""
    return make_labelled(folder / "data", {"s0": None, "s1": None, "s2": None}, seed=50_000)


@pytest.fixture(scope="module")
def query(folder: Path) -> Path:
    return make_labelled(folder / "query", {"q0": "gland", "q1": "stroma", "q2": "fat"}, seed=60_000)


@pytest.fixture(scope="module")
def test(folder: Path) -> Path:
    """15 samples of two of the classes."""
    return make_labelled(folder / "test", {"t0": "stroma", "t1": "fat", "t2": "stroma"}, each=5, seed=70_000)


def samples_of(labelled: Labelled) -> torch.Tensor:
    store = open_store(labelled.dataset)
    images = [fit(decode_image(store.read(sample)), 24) for sample in labelled.dataset.samples(labelled.ids)]
    return torch.from_numpy(np.stack(images))


def test_tune__gives_the_figures_of_both_models(data: Path, query: Path, test: Path) -> None:
    config = config_for(query, test, "tune.knn.nb_knn=3")
    tune, notices = tune_of(config, data)
    student, teacher = models_of(config)
    verdict = tune(5, 1, student, teacher)
    assert set(verdict.figures) == FIGURES | {"knn/teacher/rank_me"}
    assert notices == []
    task, _ = match_labels(Dataset.open(query), Dataset.open(test))
    for name, model in (("teacher", teacher), ("student", student)):
        query_vectors, test_vectors = (
            backbone_features(model.backbone, samples_of(part)) for part in (task.query, task.test)
        )
        expected = knn_accuracy(query_vectors, task.query.classes, test_vectors, task.test.classes, k=3)
        assert verdict.figures[f"knn/{name}/accuracy"] == expected
        assert expected > 0.9  # classes are colours
    assert 1 < verdict.figures["knn/teacher/rank_me"] <= 15


@pytest.mark.parametrize("num_workers", [0, 1])
def test_tune__leaves_models_and_random_numbers_as_they_were(
    data: Path, query: Path, test: Path, num_workers: int
) -> None:
    config = config_for(query, test, f"speed.num_workers={num_workers}", "student.use_bn_in_head=true")
    tune, _ = tune_of(config, data)
    student, teacher = models_of(config)
    teacher.eval()
    student.backbone.blocks[1].eval()
    modes = [module.training for model in (student, teacher) for module in model.modules()]
    weights = copy.deepcopy([model.state_dict() for model in (student, teacher)])
    are_training: list[bool] = []
    for model in (student, teacher):
        model.backbone.register_forward_pre_hook(
            lambda backbone, _: are_training.extend(module.training for module in backbone.modules())
        )
    before = torch.get_rng_state()
    tune(5, 1, student, teacher)
    assert are_training
    assert not any(are_training)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for model in (student, teacher) for module in model.modules()] == modes
    for model, state in zip((student, teacher), weights, strict=True):
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert all(parameter.grad is None for parameter in model.parameters())


def test_tune__of_regions(tmp_path: Path) -> None:
    data, query, test = (
        make_labelled_regions(tmp_path / name, {f"{name}0": "fat", f"{name}1": "gland"}) for name in "dqt"
    )
    config = region_config_for(query, test, "tune.knn.nb_knn=2")
    tune, _ = tune_of(config, data)
    assert config.student.input_dim is None  # type: ignore[attr-defined]
    resolved = region_config_for(query, test, "student.input_dim=8")
    verdict = tune(5, 1, *models_of(resolved))
    assert verdict.figures["knn/teacher/accuracy"] > 0.9
    other = make_labelled_regions(tmp_path / "o", {"o0": "fat", "o1": "gland"}, channels=4)
    with pytest.raises(ConfigError, match=r"query_dataset_path: cells of .*o/dataset have 4 features, expected 8, as"):
        tune_of(region_config_for(other, test), data)
    with pytest.raises(ConfigError, match=r"test_dataset_path: .*t/dataset holds regions, expected images"):
        tune_of(
            config_for(make_labelled(tmp_path / "i", {"i": "fat"}), test), make_labelled(tmp_path / "j", {"j": None})
        )


@pytest.mark.parametrize(
    ("every", "every_steps", "due"),
    [(1, 0, [4, 8, 10]), (2, 0, [8, 10]), (0, 0, [10]), (0, 3, [3, 6, 9, 10]), (2, 3, [3, 6, 8, 9, 10])],
)
def test_tune__is_due_every_so_many_epochs_and_steps_and_at_the_end(
    data: Path, query: Path, test: Path, every: int, every_steps: int, due: list[int]
) -> None:
    tune, _ = tune_of(config_for(query, test, f"tune.tune_every={every}", f"tune.tune_every_steps={every_steps}"), data)
    assert [step for step in range(1, 11) if tune.is_due(step, 4, step == 10)] == due


def test_tune__names_the_best_and_stops(data: Path, query: Path, test: Path) -> None:
    """As the tracked figures say: teacher and student take turns to have weights that are all alike."""
    stopping = ("enable=true", "patience=2", "min_epoch=3", "tracking=acc")
    config = config_for(query, test, "tune.knn.nb_knn=3", *(f"tune.early_stopping.{text}" for text in stopping))
    tune, _ = tune_of(config, data)
    poor, good = models_of(config)
    for parameter in poor.backbone.parameters():
        torch.nn.init.zeros_(parameter)
    verdicts = [tune(1, 0, poor, good), tune(2, 1, good, poor), tune(3, 2, good, poor), tune(4, 3, good, poor)]
    assert [verdict.is_best for verdict in verdicts] == [True, False, False, False]
    assert [verdict.stop is not None for verdict in verdicts] == [False, False, False, True]
    assert verdicts[3].stop
    assert verdicts[3].stop.startswith("early stopping: 3 evaluations without a new best accuracy (best: ")


def test_tune__goes_on_from_its_state(data: Path, query: Path, test: Path) -> None:
    config = config_for(query, test)
    (tune, _), (poor, good) = tune_of(config, data), models_of(config)
    for parameter in poor.backbone.parameters():
        torch.nn.init.zeros_(parameter)
    assert tune(1, 0, poor, good).is_best
    tune(2, 0, good, poor)
    state = json.loads(json.dumps(tune.state_dict()))
    again, notices = tune_of(config, data)
    again.load_state_dict(state)
    assert again.state_dict() == tune.state_dict() != tune_of(config, data)[0].state_dict()
    assert again(3, 0, poor, good).is_best
    again.load_state_dict({})
    assert notices == []
    other, notices = tune_of(config_for(query, test, "tune.knn.nb_knn=5"), data)
    fresh = other.state_dict()
    other.load_state_dict(state)
    assert other.state_dict() == fresh
    assert notices == ["tune: earlier evaluations were of other samples or settings; the best of them does not count"]


def test_evaluation_of__refuses_what_was_trained_on_or_warns(data: Path, query: Path, tmp_path: Path) -> None:
    test = make_labelled(tmp_path / "test", {"s1": "fat", "q2": "gland", "t0": "stroma"}, seed=5)
    with pytest.raises(
        ConfigError, match=r"1 of its 3 slides \('s1'\) are in the training data too; give others, or tu"
    ):
        tune_of(config_for(query, test), data)
    safe = make_labelled(tmp_path / "safe", {"q2": "gland", "t0": "stroma"}, seed=5)
    with pytest.raises(ConfigError, match=r"1 of its 2 slides \('q2'\) are in tune.knn.query_dataset_path too; give"):
        tune_of(config_for(query, safe), data)
    tune, notices = tune_of(config_for(query, test, "tune.knn.overlap=warn"), data)
    assert [notice.partition(" are in ")[2].partition(" too")[0] for notice in notices] == [
        "the training data",
        KEYS[0],
    ]
    assert tune(1, 0, *models_of(config_for(query, test))).figures


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (KEYS[0], "null", r"test_dataset_path is given, but tune.knn.query_dataset_path is null; give both"),
        (KEYS[1], "null", r"query_dataset_path is given, but tune.knn.test_dataset_path is null; give both"),
        (KEYS[0], "/nowhere", r"tune.knn.query_dataset_path: /nowhere.*"),
        (KEYS[1], "/nowhere:fold_0", r"tune.knn.test_dataset_path: /nowhere.*"),
        ("tune.knn.image_size", "20", r"tune.knn.image_size is 20, expected a multiple of student.patch_size, 8"),
    ],
)
def test_evaluation_of__names_the_key(data: Path, query: Path, test: Path, key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        tune_of(config_for(query, test, f"{key}={value}"), data)
    assert "\n" not in str(error.value)


def test_evaluation_of__nothing_is_asked_for(data: Path) -> None:
    assert evaluation_of(PatchConfig(), data, pytest.fail) is None
    with pytest.raises(
        ConfigError, match=r"early_stopping.enable is true, but there is no tune.knn.query_dataset_path"
    ):
        tune_of(config_for("null", "null", "tune.early_stopping.enable=true"), data)


def test_tune__samples_that_cannot_be_read(data: Path, query: Path, tmp_path: Path) -> None:
    test = make_labelled(tmp_path / "test", {"t0": "stroma", "t1": "fat"})
    for sample in list(Dataset.open(test))[:3]:
        with Path(Dataset.open(test).shard_url(sample.shard)).open("r+b") as file:
            file.seek(sample.offset + 40)
            file.write(b"broken")
    config = config_for(query, test, "data.max_bad_samples=3")
    tune, notices = tune_of(config, data)
    tune(7, 1, *models_of(config))
    assert notices == ["tune.knn.test_dataset_path: 3 of 12 samples could not be read and are left out at step 7"]
    config = config_for(query, test, "data.max_bad_samples=2")
    with pytest.raises(DatasetError, match=r"3 of 12 samples could not be read, data.max_bad_samples is 2; check"):
        tune_of(config, data)[0](7, 1, *models_of(config))


def test_tune__features_that_are_not_finite(data: Path, query: Path, test: Path) -> None:
    config = config_for(query, test)
    student, teacher = models_of(config)
    with torch.no_grad():
        student.backbone.cls_token.fill_(torch.nan)
    with pytest.raises(TrainingError, match="features at step 4 that are not finite"):
        tune_of(config, data)[0](4, 1, student, teacher)


def test_tune__two_ranks_agree_with_one(data: Path, query: Path, test: Path) -> None:
    said = []
    for process in start_ranks([sys.executable, "-m", "tests.eval.ranked", data, query, test]):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        said.append(json.loads(out.splitlines()[-1]))
    assert said[0] == said[1]
    config = config_for(query, test)
    tune, _ = tune_of(config, data)
    models = models_of(config)
    expected = tune(3, 1, *models).figures
    assert said[0]["replicated"] == pytest.approx(expected, abs=1e-5)
    assert said[0]["sharded"] == pytest.approx(expected, abs=1e-5)
    tune(4, 1, *models)
    state = tune.state_dict()
    assert said[0]["state"]["about"] == state["about"]
    assert said[0]["state"]["best"] == pytest.approx(state["best"], abs=1e-5)


def test_knn_shares__dealt_in_blocks_are_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank takes whole blocks; see `Tune._shares`."""
    monkeypatch.setattr(knn, "BLOCK", 16)
    torch.manual_seed(0)
    train, test, labels = torch.randn(100, 8), torch.randn(75, 8), torch.randint(0, 3, (100,))
    whole = knn.knn_shares(train, labels, test, 3)
    for size in (2, 3, 7):
        for rank in range(size):
            mine = torch.arange(75) // 16 % size == rank
            assert torch.equal(knn.knn_shares(train, labels, test[mine], 3), whole[mine])
