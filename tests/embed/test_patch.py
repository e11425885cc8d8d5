from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dinowds.data.dataset import Dataset
from dinowds.data.decode import decode_image
from dinowds.data.store.store import LocalStore
from dinowds.data.subsets.choose import SubsetOptions, choose_subset
from dinowds.data.subsets.subset import write_subset
from dinowds.embed.patches.embed import Outcome, embed_patches, plan_patches
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.patches.reader import read_features
from dinowds.errors import ConfigError, DatasetError, DinowdsError, OutputError
from dinowds.model.pixels import normalise
from dinowds.model.weights import load_backbone, read_weights
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.shard.choice import Choice
from tests.embed.support import MEAN, STD, coded_image, png, write_tar, write_weights
from tests.support import make_dataset

Embed = Callable[..., Outcome]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def embed(coded_path: Path, weights_path: Path, out: Path) -> Embed:
    """`embed_patches` in this process, in float32 and batches of 4; `data`, `out` and options can be given."""

    def call(data: str | Path = coded_path, out: Path = out, **options: Any) -> Outcome:
        report, notice = options.pop("report", lambda _done, _total: None), options.pop("notice", lambda _line: None)
        given = {"checkpoint": str(weights_path), "dtype": "float32", "batch_size": 4, "workers": 0, **options}
        return embed_patches(data, out, PatchOptions(**given), report, notice)

    return call


def read(out: Path) -> Any:
    """All rows as one table."""
    paths = sorted(out.glob("features-*.parquet"))
    return pyarrow.concat_tables(pq.read_table(path) for path in paths)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."}


def plain_tokens(weights_path: Path, images: list[NDArray[np.uint8]], which: Any = "teacher") -> NDArray[np.float32]:
    """[N, 1 + T, D], image by image, without any of our batching."""
    backbone = load_backbone(read_weights(weights_path, which))
    pixels = [normalise(torch.from_numpy(image).permute(2, 0, 1)[None], mean=MEAN, std=STD) for image in images]
    tokens: NDArray[np.float32] = torch.cat([backbone.forward_features(image) for image in pixels]).numpy()
    return tokens


def vectors(table: Any, name: str = "feature") -> NDArray[Any]:
    found: NDArray[Any] = np.stack(table[name].to_pylist())
    return found


def all_images(path: Path) -> list[NDArray[np.uint8]]:
    dataset = Dataset.open(path)
    store = LocalStore(dataset)
    return [decode_image(store.read(sample)) for sample in dataset]


def test_embed__rows_are_those_of_the_dataset_in_its_order(embed: Embed, dataset_path: Path, out: Path) -> None:
    embed(dataset_path)
    rows, index = (
        read(out),
        Dataset.open(dataset_path).columns(["key", "slide", "x", "y", "label", "cohort", "width", "height"]),
    )
    assert rows.drop_columns(["feature"]).to_pydict() == index.to_pydict()
    assert len(set(rows["cohort"].to_pylist())) == 2


def test_embed__labels_are_kept(embed: Embed, tmp_path: Path, out: Path) -> None:
    members = {f"s0/{x}_0.png": png(coded_image(x, 0)) for x in range(4)}
    (tmp_path / "labels.csv").write_text("filename,label\ns0/1_0.png,benign\ns0/3_0.png,adenoma\n")
    choice = Choice(labels=tmp_path / "labels.csv")
    build_dataset([write_tar(tmp_path / "a.tar", members)], tmp_path / "dataset", ShardOptions(choice=choice))
    about = embed(tmp_path / "dataset").about
    rows = read(out).to_pydict()
    names = [None if label is None else about["label_names"][label] for label in rows["label"]]
    assert dict(zip(rows["x"], names, strict=True)) == {0: None, 1: "benign", 2: None, 3: "adenoma"}


def test_embed__features_are_those_of_each_image(embed: Embed, coded_path: Path, weights_path: Path, out: Path) -> None:
    embed()
    found, expected = vectors(read(out)), plain_tokens(weights_path, all_images(coded_path))[:, 0]
    assert np.abs(found - expected).max() <= 1e-6
    gaps = np.linalg.norm(expected[:, None] - expected[None], axis=2) + 9 * np.eye(len(expected))
    assert gaps.min() > 1e-3  # so the order is proven: no other image would do


def test_embed__coded_images_have_their_position(embed: Embed, weights_path: Path, out: Path) -> None:
    """From the positions in the rows alone."""
    embed()
    rows = read(out).to_pydict()
    places = zip(rows["x"], rows["y"], rows["slide"], strict=True)
    images = [coded_image(x, y, int(slide[1])) for x, y, slide in places]
    assert np.abs(np.array(rows["feature"]) - plain_tokens(weights_path, images)[:, 0]).max() <= 1e-6


def test_embed__student_and_float16(embed: Embed, coded_path: Path, weights_path: Path, out: Path) -> None:
    embed(which="student", dtype="float16")
    expected = plain_tokens(weights_path, all_images(coded_path), "student")[:, 0]
    assert read(out).schema.field("feature").type.value_type == pyarrow.float16()
    np.testing.assert_allclose(vectors(read(out)), expected, rtol=1e-3, atol=1e-3)


def test_embed__workers_and_their_number_change_no_byte(embed: Embed, tmp_path: Path) -> None:
    embed(out=tmp_path / "a", workers=0)
    embed(out=tmp_path / "b", workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_embed__tokens_are_row_major(embed: Embed, coded_path: Path, weights_path: Path, out: Path) -> None:
    about = embed(tokens=True).about
    expected = plain_tokens(weights_path, all_images(coded_path))
    assert about["tokens"] == 16
    assert np.abs(vectors(read(out), "tokens") - expected[:, 1:].reshape(60, -1)).max() <= 1e-6
    assert np.abs(vectors(read(out)) - expected[:, 0]).max() <= 1e-6


def test_embed__many_row_groups_are_one_file(embed: Embed, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(tokens=True)
    before = read(out)
    shutil.rmtree(out)
    monkeypatch.setattr("dinowds.embed.patches.parts._GROUP_BYTES", 1)
    embed(tokens=True)
    assert pq.ParquetFile(out / "features-000000.parquet").num_row_groups == 4
    assert read(out) == before


def add_subset(path: Path, name: str, options: SubsetOptions) -> None:
    dataset = Dataset.open(path)
    subset, mask, _ = choose_subset(dataset, name, options)
    write_subset(dataset.url, subset, mask, dataset.files)


def test_embed__subset_alone(embed: Embed, tmp_path: Path, weights_path: Path, out: Path) -> None:
    path = make_dataset(tmp_path / "data")
    add_subset(path, "few", SubsetOptions(fraction=0.3))
    about = embed(f"{path}:few").about
    rows, expected = read(out), Dataset.open(f"{path}:few")
    assert rows["key"].to_pylist() == [sample.key for sample in expected]
    assert np.abs(vectors(rows) - plain_tokens(weights_path, all_images(Path(f"{path}:few")))[:, 0]).max() <= 5e-6
    assert about["samples"] == len(expected) == sum(about["cohorts"].values())
    assert about["dataset"]["subset"] == "few"
    assert len(list(out.glob("*.parquet"))) == about["shards"] == len(expected.manifest.shards)


def test_embed__shard_without_a_selected_sample_has_an_empty_file(embed: Embed, tmp_path: Path, out: Path) -> None:
    path = make_dataset(tmp_path / "data")
    keys = [sample.key for sample in Dataset.open(path)]
    (tmp_path / "keep.txt").write_text("\n".join(keys[30:40]))
    add_subset(path, "one", SubsetOptions(keep=tmp_path / "keep.txt"))
    embed(f"{path}:one")
    assert [len(pq.read_table(file)) for file in sorted(out.glob("*.parquet"))] == [0, 10, 0, 0]
    assert len(read_features(out)) == 10


def test_embed__folder_is_read_as_a_whole(embed: Embed, out: Path) -> None:
    embed()
    whole = pyarrow.dataset.dataset(out, format="parquet", exclude_invalid_files=True).to_table()
    assert whole == read(out)
    frame = pytest.importorskip("pandas").read_parquet(sorted(out.glob("*.parquet")))
    assert frame.key.tolist() == whole["key"].to_pylist()


def test_embed__says_what_it_was_made_of(embed: Embed, coded_path: Path, weights_path: Path, out: Path) -> None:
    outcome = embed()
    about = json.loads((out / "features.json").read_text())
    weights, manifest = read_weights(weights_path), Dataset.open(coded_path).manifest
    assert about == outcome.about
    assert (about["kind"], about["format_version"]) == ("features", 1)
    assert about["dataset"] == {"name": manifest.name, "subset": None, "fingerprint": manifest.samples_sha256}
    assert about["weights"]["fingerprint"] == weights.fingerprint
    assert (about["weights"]["family"], about["weights"]["which"]) == ("dinowds", "teacher")
    assert (tuple(about["mean"]), tuple(about["std"])) == (MEAN, STD)
    assert (about["samples"], about["shards"], about["cohorts"]) == (60, 5, {"a": 30, "b": 30})
    assert (about["dim"], about["dtype"], about["pos_interpolation"]) == (16, "float32", "timm")
    assert about["metadata"] == manifest.metadata
    assert not (out / ".unfinished.json").exists()


def make_sizes(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    members = {f"s0/{x}_0.png": png(coded_image(x, 0, 0, *size)) for x, size in enumerate(sizes)}
    build_dataset([write_tar(folder / "a.tar", members)], folder / "dataset", ShardOptions())
    return folder / "dataset"


def test_embed__images_of_several_sizes(embed: Embed, tmp_path: Path, weights_path: Path, out: Path) -> None:
    path = make_sizes(tmp_path, [(32, 32), (16, 24), (32, 32), (32, 32), (16, 24), (40, 8), (16, 24)])
    embed(path)
    expected = plain_tokens_of_sizes(weights_path, all_images(path))
    assert np.abs(vectors(read(out)) - expected).max() <= 1e-6
    assert sorted(read(out)["height"].to_pylist()) == [16, 16, 16, 32, 32, 32, 40]


def plain_tokens_of_sizes(weights_path: Path, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.concatenate([plain_tokens(weights_path, [image])[:, 0] for image in images])


def test_embed__image_size_resizes_and_takes_the_middle(
    embed: Embed, tmp_path: Path, weights_path: Path, out: Path
) -> None:
    path = make_sizes(tmp_path, [(32, 32), (64, 96), (64, 64)])
    embed(path, image_size=32)

    def fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        resized = Image.fromarray(image).resize((32 * width // height, 32), Image.Resampling.BICUBIC)
        left = (resized.width - 32) // 2
        return np.array(resized)[:, left : left + 32]

    expected = plain_tokens(weights_path, [fitted(image) for image in all_images(path)])[:, 0]
    assert np.abs(vectors(read(out)) - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([(32, 32), (32, 30)], {}, r"s0/1_0: image of 30×32 px, expected multiples of 8, .* give --image-size"),
        ([(32, 32), (16, 16)], {"tokens": True}, "--tokens needs images of one size: give --image-size"),
        ([(32, 32)], {"image_size": 30}, "--image-size is 30, expected a multiple of 8"),
    ],
)
def test_embed__sizes_that_cannot_be_are_refused_before_all(
    embed: Embed, tmp_path: Path, out: Path, sizes: list[tuple[int, int]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        embed(make_sizes(tmp_path, sizes), **options)
    assert not out.exists()


@pytest.fixture
def damaged(tmp_path: Path, coded_path: Path) -> tuple[Path, list[str]]:
    """A dataset in which a payload of the second shard is another one, and what its keys are."""
    path = tmp_path / "damaged"
    shutil.copytree(coded_path, path)
    dataset = Dataset.open(path)
    samples = [sample for sample in dataset if sample.shard == 1][5:7]
    with open(dataset.shard_url(1), "r+b") as file:
        for sample in samples:
            file.seek(sample.offset + sample.size // 2)
            file.write(b"damage")
    return path, [sample.key for sample in samples]


def test_embed__damaged_sample_is_nan_and_listed(
    embed: Embed, damaged: tuple[Path, list[str]], out: Path, tmp_path: Path
) -> None:
    path, keys = damaged
    about = embed(path).about
    embed(path, tmp_path / "again", workers=1)
    rows = read(out)
    is_nan = np.isnan(vectors(rows)).all(axis=1)
    assert [key for key, bad in zip(rows["key"].to_pylist(), is_nan, strict=True) if bad] == keys
    assert np.isfinite(vectors(rows)[~is_nan]).all()
    lines = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
    url = Dataset.open(path).manifest.shards[1].url
    reason = "the bytes do not match the digest in the index"
    assert lines == [{"url": url, "key": key, "reason": reason} for key in keys]
    assert about["bad_samples"] == 2
    assert contents(out) == contents(tmp_path / "again")


def test_embed__too_many_bad_samples_stop_it(embed: Embed, damaged: tuple[Path, list[str]], out: Path) -> None:
    path, keys = damaged
    shard = Dataset.open(path).manifest.shards[1].url
    with pytest.raises(DatasetError, match=f"{shard}: {keys[1]}: the bytes .*; 2 samples .*--max-bad is 1"):
        embed(path, max_bad=1)
    assert not (out / "features.json").exists()
    assert [file.name for file in out.glob("[!.]*")] == ["features-000000.parquet"]
    assert embed(path, max_bad=2).about["bad_samples"] == 2
    (out / "features-000004.parquet").unlink()  # what was bad before counts too
    with pytest.raises(DatasetError, match="--max-bad is 1"):
        embed(path, max_bad=1)


def test_embed__block_without_a_good_image(embed: Embed, damaged: tuple[Path, list[str]], out: Path) -> None:
    embed(damaged[0], batch_size=1)
    assert np.isnan(vectors(read(out))).all(axis=1).sum() == 2


def test_embed__float16_overflow_names_the_key(embed: Embed, tmp_path: Path, out: Path) -> None:
    weights = write_weights(tmp_path / "large.pt", scale=1e6)
    with pytest.raises(ConfigError, match=r"s\d/\d_\d: its feature has the value .*, float16 .*--dtype float32"):
        embed(checkpoint=str(weights), dtype="float16")
    assert not (out / "features.json").exists()
    embed(checkpoint=str(weights), dtype="float32", overwrite=True)
    assert np.abs(vectors(read(out))).max() > 65504


def test_embed__feature_that_is_not_finite_is_an_error(embed: Embed, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "nan.pt", scale=3e38)
    with pytest.raises(ConfigError, match=r"its feature has the value (nan|inf); check the weights"):
        embed(checkpoint=str(weights))


def test_embed__again_has_nothing_left_to_do(embed: Embed, out: Path) -> None:
    embed()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    notices: list[str] = []
    outcome = embed(notice=notices.append, overwrite=True)
    assert outcome.embedded == 0
    assert notices == [f"nothing left to do: {out} has the features of all 60 samples"]
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == before


@pytest.mark.parametrize("finished", [True, False])
def test_embed__another_question_is_refused_and_replaced_if_asked(
    embed: Embed, out: Path, tmp_path: Path, finished: bool
) -> None:
    embed()
    if not finished:
        (out / "features.json").rename(out / ".unfinished.json")
    before = contents(out)
    with pytest.raises(OutputError, match=r"dtype float32, now float16; tokens False, now True.*--overwrite"):
        embed(dtype="float16", tokens=True)
    assert contents(out) == before
    embed(out=tmp_path / "new", dtype="float16")
    embed(dtype="float16", overwrite=True)
    assert contents(out) == contents(tmp_path / "new")


@pytest.mark.parametrize("option", [{"batch_size": 5}, {"precision": "bf16"}, {"image_size": 32}, {"which": "student"}])
def test_embed__every_option_that_changes_features_is_part_of_the_question(
    embed: Embed, option: dict[str, Any]
) -> None:
    embed()
    with pytest.raises(OutputError, match="holds features of another dataset, model or options"):
        embed(**option)


def test_embed__folder_of_anyone_else_is_refused_also_with_overwrite(embed: Embed, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="is not empty and holds no features of dinowds"):
        embed(overwrite=True)
    assert contents(out) == {"thesis.tex": b"x"}
    file = out / "thesis.tex"
    with pytest.raises(OutputError, match="is a file, expected a folder for features"):
        embed(out=file)


@pytest.mark.parametrize("bytes_left", [0, 100, -1])
def test_embed__truncated_file_is_not_taken_for_whole(embed: Embed, out: Path, bytes_left: int) -> None:
    embed()
    before, path = contents(out), out / "features-000002.parquet"
    path.write_bytes(path.read_bytes()[:bytes_left])
    outcome = embed()
    assert outcome.embedded == 13
    assert contents(out) == before


def test_embed__file_of_another_shard_or_question_is_not_taken(embed: Embed, out: Path, tmp_path: Path) -> None:
    embed()
    before = contents(out)
    embed(out=tmp_path / "other", which="student")
    shutil.copy(tmp_path / "other" / "features-000001.parquet", out)
    shutil.copy(out / "features-000003.parquet", out / "features-000002.parquet")
    assert embed().embedded == 26
    assert contents(out) == before


def test_embed__unfinished_goes_on_and_counts_what_was_done(embed: Embed, out: Path) -> None:
    embed()
    before = contents(out)
    (out / "features.json").rename(out / ".unfinished.json")
    (out / "features-000003.parquet").unlink()
    (out / ".features-000003.parquet.0123456789abcdef.tmp").write_bytes(b"left by a killed one")
    with pytest.raises(DatasetError, match="unfinished features; run the same"):
        read_features(out)
    steps: list[tuple[int, int]] = []
    assert embed(report=lambda done, total: steps.append((done, total))).embedded == 13
    assert steps[0] == (47, 60)
    assert steps[-1] == (60, 60)
    assert contents(out) == before
    assert not list(out.glob(".*.tmp"))


def test_embed__two_jobs_in_one_folder(embed: Embed) -> None:
    def second(_done: int, _total: int) -> None:
        with pytest.raises(OutputError, match="another job is at work in it"):
            embed()

    embed(report=second)


def test_embed__plan_writes_nothing(coded_path: Path, weights_path: Path, out: Path) -> None:
    plan = plan_patches(coded_path, out, PatchOptions(str(weights_path), tokens=True))
    assert (plan.samples, plan.shards, plan.dim, plan.tokens, plan.state) == (60, 5, 16, 16, "new")
    assert plan.num_bytes == 60 * 17 * 16 * 2
    assert not out.exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_embed__unwritable_output(embed: Embed, out: Path) -> None:
    out.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        embed()


def test_embed__output_below_a_file(embed: Embed, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DinowdsError, match="cannot be written"):
        embed(out=tmp_path / "file" / "features")


def test_embed__remote_dataset_gives_the_same_bytes(embed: Embed, coded_path: Path, tmp_path: Path) -> None:
    url = "memory://test-embed/dataset"
    fsspec.filesystem("memory").put(str(coded_path), url, recursive=True)
    embed(url, tmp_path / "remote")
    embed(coded_path, tmp_path / "local")
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
