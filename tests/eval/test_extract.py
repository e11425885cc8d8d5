from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from dinowds.data.dataset import Dataset
from dinowds.data.decode import decode_image
from dinowds.data.grids import decode_grid
from dinowds.data.store.store import open_store
from dinowds.embed.features import backbone_features
from dinowds.embed.patches.stream import fit
from dinowds.eval.extract import Extractor, Inputs, deal
from dinowds.eval.labelled import Labelled, match_labels
from dinowds.world import World
from tests.eval.support import config_for, make_labelled, make_labelled_regions, models_of, region_config_for

SLIDES = {"a": "fat", "b": "gland", "c": "stroma"}


def labelled_of(path: Path) -> Labelled:
    dataset = Dataset.open(path)
    return match_labels(dataset, dataset)[0].test


@pytest.mark.parametrize(
    ("counts", "batch_size", "ranks"), list(itertools.product([(1,), (7,), (5, 1), (12, 9)], [1, 4], [1, 2, 5]))
)
def test_deal__each_sample_once_and_as_many_portions_for_every_rank(
    counts: tuple[int, ...], batch_size: int, ranks: int
) -> None:
    places = np.random.default_rng(0).permutation(sum(counts))
    groups = {(n, n, 3): np.sort(part) for n, part in enumerate(np.split(places, np.cumsum(counts)[:-1]), 1)}
    dealt = deal(groups, batch_size, ranks)
    assert len(dealt) == ranks
    assert len({len(portions) for portions in dealt}) == 1
    every = [portion for portions in dealt for portion in portions]
    assert sorted(np.concatenate([portion.places for portion in every]).tolist()) == list(range(sum(counts)))
    assert max(len(portion.places) for portion in every) <= batch_size
    for portion in every:
        assert set(portion.places.tolist()) <= set(groups[portion.shape].tolist())
    shares = [sum(len(portion.places) for portion in portions) for portions in dealt]
    assert max(shares) - min(shares) <= len(counts) * (1 + max(counts) // ranks // batch_size)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_extractor__gives_the_features_of_resized_images(tmp_path: Path, num_workers: int) -> None:
    labelled = labelled_of(make_labelled(tmp_path / "data", SLIDES))
    config = config_for("", "", f"speed.num_workers={num_workers}")
    models = [model.eval() for model in models_of(config)]
    features = Extractor(Inputs.of_run(config), World())([model.backbone for model in models], labelled)
    store = open_store(labelled.dataset)
    samples = [fit(decode_image(store.read(sample)), 24) for sample in labelled.dataset.samples(labelled.ids)]
    assert features.is_good.all()
    for model, vectors in zip(models, features.vectors, strict=True):
        torch.testing.assert_close(vectors, backbone_features(model.backbone, torch.from_numpy(np.stack(samples))))
    assert not torch.equal(*features.vectors)


def test_extractor__of_regions_of_several_sizes(tmp_path: Path) -> None:
    labelled = labelled_of(make_labelled_regions(tmp_path / "data", {"a": "fat", "b": "gland"}))
    config = region_config_for("", "", "student.input_dim=8")
    (student, _), extract = models_of(config), Extractor(Inputs.of_run(config), World())
    assert {side for side, _, _ in extract.groups(labelled)} == {5, 6}
    (vectors,), is_good = extract([student.eval().backbone], labelled)
    assert is_good.all()
    store = open_store(labelled.dataset)
    for sample, vector in zip(labelled.dataset.samples(labelled.ids), vectors, strict=True):
        grid = torch.from_numpy(decode_grid(store.read(sample)).copy())
        torch.testing.assert_close(vector[None], backbone_features(student.backbone, grid[None]))


def test_extractor__what_cannot_be_read_is_marked_and_moves_nothing(tmp_path: Path) -> None:
    labelled = labelled_of(make_labelled(tmp_path / "data", SLIDES))
    config = config_for("", "", "tune.knn.batch_size_per_gpu=4")
    backbones = [models_of(config)[0].eval().backbone]
    whole = Extractor(Inputs.of_run(config), World())(backbones, labelled)
    bad = [0, 4, 5, 6, 7, 17]  # among them a whole portion
    for sample in labelled.dataset.samples(labelled.ids[bad]):
        with Path(labelled.dataset.shard_url(sample.shard)).open("r+b") as file:
            file.seek(sample.offset + 40)
            file.write(b"broken")
    features = Extractor(Inputs.of_run(config), World())(backbones, labelled)
    assert np.flatnonzero(~features.is_good.numpy()).tolist() == bad
    torch.testing.assert_close(features.vectors[0][features.is_good], whole.vectors[0][features.is_good])
