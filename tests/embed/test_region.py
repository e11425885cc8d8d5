"""Regions from patches, features and region images: what is in a cell is the patch of its place, whatever the order."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from dinowds.data.dataset import Dataset
from dinowds.data.store.store import open_store
from dinowds.data.verify import verify_dataset
from dinowds.embed.encoder import Encoder
from dinowds.embed.patches.embed import embed_patches
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.regions.embed import embed_regions, plan_regions
from dinowds.embed.regions.ways import RegionOptions
from dinowds.errors import ConfigError, DatasetError, DinowdsError, OutputError, SourceError
from dinowds.model.weights import read_weights
from dinowds.shard.build import ShardOptions, build_dataset
from tests.embed.support import coded_image, png, write_tar

Grids = dict[tuple[str, str, int, int], NDArray[np.float16]]
"""(cohort, slide, x, y) → cells."""

SIDE, STEP = 32, 64
"""Of a patch, px; and the distance of neighbours, in other units, as of level 0."""


def read_grids(path: Path) -> Grids:
    dataset = Dataset.open(path)
    store = open_store(dataset)
    rows = dataset.columns(["cohort", "slide", "x", "y"]).to_pylist()
    found = {tuple(row.values()): np.load(io.BytesIO(store.read(s))) for row, s in zip(rows, dataset, strict=True)}
    assert len(found) == len(dataset)
    store.close()
    return found


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def write_features(path: Path, cells: list[tuple[str, str, int, int]], **columns: Any) -> Path:
    """A Parquet file whose features are slide number, column and row: (cohort, slide, column, row) each."""
    slides = sorted({slide for _, slide, _, _ in cells})
    features = [[slides.index(slide), column, row, 1] for _, slide, column, row in cells]
    table = {
        "cohort": [cell[0] for cell in cells],
        "slide": [cell[1] for cell in cells],
        "x": [1000 + STEP * cell[2] for cell in cells],
        "y": [-300 + STEP * cell[3] for cell in cells],
        "feature": pa.array(features, pa.list_(pa.float32(), 4)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table | columns), path, row_group_size=7)
    return path


def listed(columns: int, rows: int, order: str, slide: str = "s", cohort: str = "a") -> list[tuple[str, str, int, int]]:
    cells = [(cohort, slide, column, row) for row in range(rows) for column in range(columns)]
    if order == "x first":
        cells.sort(key=lambda cell: cell[2:])
    elif order == "shuffled":
        cells = [cells[at] for at in np.random.default_rng(0).permutation(len(cells))]
    return cells


def options(region_size: int = 4 * SIDE, **fields: Any) -> RegionOptions:
    return RegionOptions(region_size, **{"patch_size": SIDE, **fields})


@pytest.mark.parametrize("order", ["y first", "x first", "shuffled"])
@pytest.mark.parametrize(("columns", "rows"), [(8, 8), (12, 20), (7, 5), (4, 1)])
@pytest.mark.parametrize("stride", [None, SIDE, 3 * SIDE])
def test_features__lie_where_x_and_y_say(tmp_path: Path, order: str, columns: int, rows: int, stride: int) -> None:
    path = write_features(tmp_path / "f.parquet", listed(columns, rows, order))
    embed_regions(path, tmp_path / "out", options(stride=stride, min_filled=0.0))
    found = read_grids(tmp_path / "out")
    pace = (stride or 4 * SIDE) // SIDE
    starts = [[s for s in range(0, side, pace) if s == 0 or s - pace + 4 < side] for side in (columns, rows)]
    assert set(found) == {("a", "s", 1000 + STEP * c, -300 + STEP * r) for c in starts[0] for r in starts[1]}
    for (_, _, x, y), cells in found.items():
        assert cells.shape == (4, 4, 4)
        assert cells.dtype == np.float16
        for row, column in np.ndindex(4, 4):
            at = (x - 1000) // STEP + column, (y + 300) // STEP + row
            if at[0] < columns and at[1] < rows:
                assert cells[row, column].tolist() == [0, *at, 1]
            else:
                assert np.isnan(cells[row, column]).all()


def test_features__min_filled_and_missing_cells(tmp_path: Path) -> None:
    cells = [cell for cell in listed(10, 8, "shuffled") if cell[2:] not in ((0, 0), (5, 1), (6, 7))]
    path = write_features(tmp_path / "f.parquet", cells)
    everything = options(min_filled=0.5)
    plan = plan_regions(path, everything)
    # columns 8 and 9 are half of the third region of each row: 8 of 16
    assert (plan.regions, plan.slides, plan.cells, plan.missing_cells, plan.sparse_regions) == (6, 1, 4, 3 + 16, 0)
    assert plan.step == {"a": 64.0}
    assert plan_regions(path, options(min_filled=0.51)).sparse_regions == 2
    manifest = embed_regions(path, tmp_path / "out", everything)
    assert manifest is not None
    assert manifest.metadata["missing_cells"] == 19
    missing = sum(int(np.isnan(grid[..., 0]).sum()) for grid in read_grids(tmp_path / "out").values())
    assert missing == 19
    with pytest.raises(ConfigError, match=r"no region of 16×16 cells has 128 of them"):
        plan_regions(path, options(16 * SIDE))


def test_features__slides_of_one_name_in_two_cohorts_are_two(tmp_path: Path) -> None:
    cells = listed(4, 4, "shuffled", cohort="a") + listed(4, 8, "x first", cohort="b")
    embed_regions(write_features(tmp_path / "f.parquet", cells), tmp_path / "out", options())
    found = read_grids(tmp_path / "out")
    assert sorted(found) == [("a", "s", 1000, -300), ("b", "s", 1000, -300), ("b", "s", 1000, -300 + 4 * STEP)]
    assert not any(np.isnan(grid).any() for grid in found.values())


def test_features__names_keys_and_labels(tmp_path: Path) -> None:
    cells = listed(4, 8, "shuffled", "slide.svs") + listed(4, 4, "y first", "other")
    labels = ["tumour" if cell[1] == "slide.svs" and cell[3] < 4 else "ABC"[cell[3] % 3] for cell in cells]
    path = write_features(tmp_path / "f.parquet", cells, label=labels)
    embed_regions(path, tmp_path / "out", options())
    rows = Dataset.open(tmp_path / "out").columns(["source_name", "key", "label", "width", "height"]).to_pylist()
    by_name = {row.pop("source_name"): row for row in rows}
    assert by_name.keys() == {"slide.svs/1000_-300", f"slide.svs/1000_{-300 + 4 * STEP}", "other/1000_-300"}
    assert by_name["other/1000_-300"]["key"] == "other/1000_-300"
    assert by_name["slide.svs/1000_-300"]["label"] == Dataset.open(tmp_path / "out").manifest.label_names.index(
        "tumour"
    )
    assert by_name["other/1000_-300"]["label"] is None  # of several
    assert {(row["width"], row["height"]) for row in rows} == {(4, 4)}
    assert not verify_dataset(tmp_path / "out")


def test_features__do_not_depend_on_order_files_or_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell for n in range(5) for cell in listed(6, 9, "y first", f"s{n}")]
    embed_regions(write_features(tmp_path / "1/f.parquet", cells), tmp_path / "one", options())
    shuffled = [cells[at] for at in np.random.default_rng(1).permutation(len(cells))]
    for part in range(3):
        write_features(tmp_path / f"2/{part}.parquet", shuffled[part::3])
    # features of two slides fit into a bucket
    monkeypatch.setattr("dinowds.embed.regions.parts.write_grids.__defaults__", (2 * 54 * 4 * 2,))
    embed_regions(tmp_path / "2", tmp_path / "two", options())
    one, two = (contents(tmp_path / name / "shards") for name in ("one", "two"))
    assert list(one.values()) == list(two.values())


def _without(cells: list[Any], **columns: Any) -> dict[str, Any]:
    return {name: [value(cell) for cell in cells] for name, value in columns.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": lambda cell: 1000 + STEP * cell[2] + (9 if cell[3] == 3 else 0)}, "between the cells"),
        ({"x": lambda cell: 1000 + STEP * min(cell[2], 6)}, "another patch has its place"),
        ({"slide": lambda cell: None if cell[3] == 3 else "s"}, "slide, x or y is unknown"),
        ({"y": lambda cell: None if cell[2] == 3 else STEP * cell[3]}, "slide, x or y is unknown"),
    ],
)
def test_features__without_a_place_are_refused_or_reported(tmp_path: Path, changes: Any, said: str) -> None:
    cells = listed(8, 8, "shuffled")
    path = write_features(tmp_path / "f.parquet", cells, **_without(cells, **changes))
    with pytest.raises(SourceError, match=rf"8 of 64 patches have no cell; of 8 the reason is: .*{said}.*row \d+"):
        plan_regions(path, options())
    lines: list[str] = []
    manifest = embed_regions(path, tmp_path / "out", options(max_unplaced=0.2), notice=lines.append)
    assert manifest is not None
    assert [count for reason, count in manifest.quarantined.items() if said in reason] == [8]
    assert any(line.startswith("8 patches are left out") and said in line for line in lines)
    quarantine = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert len({line["member"] for line in quarantine}) == 8
    assert sum(int((~np.isnan(grid[..., 0])).sum()) for grid in read_grids(tmp_path / "out").values()) == 56


def test_features__that_are_missing_are_missing_cells(tmp_path: Path) -> None:
    cells = listed(8, 4, "y first")
    values = np.array([[1, 2, cell[2], cell[3]] for cell in cells], np.float32)
    values[[0, 5]] = np.nan
    values[[row for row, cell in enumerate(cells) if cell[2] >= 4 and cell[3] > 0]] = np.nan
    feature = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
    path = write_features(tmp_path / "f.parquet", cells, feature=feature)
    manifest = embed_regions(path, tmp_path / "out", options())
    assert manifest is not None
    (grid,) = read_grids(tmp_path / "out").values()
    assert np.argwhere(np.isnan(grid[..., 0])).tolist() == [[0, 0]]
    assert manifest.quarantined == {"too few of its patches have features": 1}


@pytest.mark.parametrize(
    ("value", "said"), [(7e4, "70000, and float16 ends"), (np.inf, "not finite"), (np.nan, "not finite")]
)
def test_features__that_no_cell_can_hold_are_refused(tmp_path: Path, value: float, said: str) -> None:
    cells = listed(4, 4, "shuffled")
    values = np.zeros((16, 4), np.float32)
    values[9, 2] = value
    feature = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
    path = write_features(tmp_path / "f.parquet", cells, feature=feature, key=[f"k{row}" for row in range(16)])
    with pytest.raises(DatasetError, match=rf"^k9: .*{said}"):
        embed_regions(path, tmp_path / "out", options())


def test_steps__are_found_for_each_slide(tmp_path: Path) -> None:
    cells = [cell for n in range(3) for cell in listed(8, 8, "shuffled", f"s{n}")]
    steps = {"s0": 512, "s1": 507, "s2": 512}
    columns = _without(cells, x=lambda cell: steps[cell[1]] * cell[2], y=lambda cell: 3 + steps[cell[1]] * cell[3])
    path = write_features(tmp_path / "f.parquet", cells, **columns)
    assert plan_regions(path, options()).step == {"a": {"507": 1, "512": 2}}
    manifest = embed_regions(path, tmp_path / "out", options())
    assert manifest is not None
    assert ("a", "s1", 4 * 507, 3 + 4 * 507) in read_grids(tmp_path / "out")
    with pytest.raises(SourceError, match=r"slide 's1'.*step 512\); give --step"):
        plan_regions(path, options(step=512.0))
    lonely = write_features(tmp_path / "g.parquet", [("a", "s", 0, 0), ("a", "s", 3, 5)])
    with pytest.raises(ConfigError, match=r"--step: cannot be found"):
        plan_regions(lonely, options(min_filled=0))
    assert plan_regions(lonely, options(min_filled=0, step=64.0)).regions == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"region_size": 100}, r"--region-size: is 100 px, expected a multiple of the 32"),
        ({"region_size": 0}, r"--region-size"),
        ({"stride": 40}, r"--stride: is 40 px"),
        ({"stride": 160}, r"--stride: is 5 cells"),
        ({"patch_size": None}, r"--patch-size: .* give their side"),
        ({"min_filled": 1.5}, r"--min-filled"),
        ({"step": -1.0}, r"--step"),
        ({"max_unplaced": 2.0}, r"--max-unplaced"),
        ({"embedding": PatchOptions("w")}, r"--checkpoint: .* has features already"),
        ({"take": "patches"}, r"no manifest|not a dataset|is a file"),
    ],
)
def test_options__that_cannot_work_are_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = write_features(tmp_path / "f.parquet", listed(4, 4, "y first"))
    with pytest.raises(DinowdsError, match=said):
        plan_regions(path, options(**fields))


def test_refusal__leaves_no_work_behind(tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.parquet", listed(8, 8, "y first"))
    with pytest.raises(SourceError, match="between the cells"):
        embed_regions(path, tmp_path / "out", options(step=63.0))
    assert {file.name for file in tmp_path.iterdir()} == {"f.parquet"}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"cohort": [1] * 16}, "column 'cohort' is int64, expected text"),
        ({"label": [[1]] * 16}, "column 'label' is .*, expected text or numbers"),
        ({"width": ["a"] * 16, "height": ["b"] * 16}, "column 'width' is string, expected integers"),
    ],
)
def test_features__with_columns_of_other_types_are_refused(tmp_path: Path, columns: Any, said: str) -> None:
    path = write_features(tmp_path / "f.parquet", listed(4, 4, "y first"), **columns)
    with pytest.raises(DatasetError, match=said):
        plan_regions(path, options())


def test_features__with_unknown_sizes_take_patch_size(tmp_path: Path) -> None:
    unknown = pa.array([None] * 16, pa.int32())
    path = write_features(tmp_path / "f.parquet", listed(4, 4, "y first"), width=unknown, height=unknown)
    assert plan_regions(path, options()).regions == 1


def test_features__of_two_lengths_are_refused(tmp_path: Path) -> None:
    lists = pa.array([[0.0] * 4] * 15 + [[0.0] * 3], pa.list_(pa.float32()))
    path = write_features(tmp_path / "f.parquet", listed(4, 4, "y first"), feature=lists)
    with pytest.raises(DatasetError, match=r"expected 4 in each"):
        embed_regions(path, tmp_path / "out", options())


# Images


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`patches` and `images`: the same coded 8 × 12 cells of one slide in two cohorts, shuffled; regions of 4 × 4."""
    root = tmp_path_factory.mktemp("sources")
    tars: dict[str, list[Path]] = {"patches": [], "images": []}
    for number, cohort in enumerate("ab"):
        big = np.block([[[coded_image(x, y, number)] for x in range(12)] for y in range(8)])
        assert big.shape == (8 * SIDE, 12 * SIDE, 3)
        for name, cells in (("patches", 1), ("images", 4)):
            side = cells * SIDE
            members = {
                f"s/{1000 + STEP * x}_{-300 + STEP * y}.png": png(big[y * SIDE :, x * SIDE :][:side, :side])
                for y in range(0, 8, cells)
                for x in range(0, 12, cells)
            }
            (root / name).mkdir(exist_ok=True)
            tars[name].append(write_tar(root / name / f"{cohort}.tar", members))
    for name, count in (("patches", 30), ("images", 4)):
        build_dataset(tars[name], root / name / "dataset", ShardOptions(max_count=count))
    return root


@pytest.fixture
def embedding(weights_path: Path) -> PatchOptions:
    return PatchOptions(str(weights_path), workers=0, precision="fp32", batch_size=10)


def test_three_ways__give_the_same_grids(sources: Path, tmp_path: Path, embedding: PatchOptions) -> None:
    patches, images = (sources / name / "dataset" for name in ("patches", "images"))
    embed_patches(patches, tmp_path / "of_patches", embedding)
    ways: dict[str, tuple[Path, PatchOptions | None]] = {
        "images": (images, embedding),
        "patches": (patches, embedding),
        "features": (tmp_path / "of_patches", None),
    }
    found = {}
    for name, (source, how) in ways.items():
        manifest = embed_regions(source, tmp_path / name, options(embedding=how))
        assert manifest is not None
        assert manifest.kind == "region"
        facts = manifest.metadata
        assert (facts["made_from"], facts["region_size"], facts["patch_size"], facts["feature_dim"]) == (
            name,
            128,
            32,
            16,
        )
        assert facts["encoder"]["mean"] == [0.5, 0.4, 0.3]
        assert not (tmp_path / f"{name}.unfinished").exists()
        found[name] = read_grids(tmp_path / name)
    expected = {(c, "s", 1000 + STEP * x, -300 + STEP * y) for c in "ab" for x in (0, 4, 8) for y in (0, 4)}
    assert set(found["images"]) == set(found["patches"]) == set(found["features"]) == expected
    encoder = Encoder(read_weights(embedding.checkpoint), torch.device("cpu"), "fp32")
    for (cohort, _, x, y), cells in found["images"].items():
        left, top = (x - 1000) // STEP, (y + 300) // STEP
        for row, column in np.ndindex(4, 4):
            image = torch.from_numpy(coded_image(left + column, top + row, "ab".index(cohort)))
            feature = encoder.features(image[None])[0].numpy()
            for name, grids in found.items():
                got = grids[(cohort, "s", x, y)][row, column]
                np.testing.assert_allclose(got, feature, atol=4e-3, err_msg=name)
        assert len(np.unique(cells.reshape(16, -1).round(1), axis=0)) == 16  # so places could not be mixed up


def test_images__keep_keys_and_note_damage(tmp_path: Path, embedding: PatchOptions) -> None:
    broken = bytearray(png(coded_image(0, 0, 0, 128, 128)))
    broken[len(broken) // 2 :] = b"\0" * (len(broken) - len(broken) // 2 - 12) + broken[-12:]
    members = {"s/0_0.png": bytes(broken), "s/128_0.png": png(coded_image(1, 0, 0, 128, 128))}
    build_dataset([write_tar(tmp_path / "a.tar", members)], tmp_path / "images", ShardOptions())
    manifest = embed_regions(tmp_path / "images", tmp_path / "out", options(embedding=embedding))
    assert manifest is not None
    assert manifest.num_samples == sum(manifest.quarantined.values()) == 1
    row = Dataset.open(tmp_path / "out").columns(["key", "slide", "x", "y"]).to_pylist()
    assert row == [{"key": "s/128_0", "slide": "s", "x": 128, "y": 0}]


@pytest.mark.parametrize(
    ("sizes", "fields", "said"),
    [
        ([(12 * 32, 20 * 32)], {"region_size": 512, "take": "images"}, r"image of 640×384 px, expected 512×512"),
        ([(12 * 32, 20 * 32)], {"region_size": 512}, r"image of 640×384 px; expected 512×512 px in all"),
        ([(128, 128), (128, 96)], {}, r"image of 96×128 px; expected 128×128 px in all"),
        ([(32, 32), (32, 64)], {}, r"patches of 32×32 and 64×32 px, expected squares of one size"),
        ([(32, 64)], {}, r"patches of 64×32 px"),
        ([(32, 32)], {"patch_size": 16}, r"--patch-size: is 16, but patches of .* are 32×32"),
        ([(128, 128)], {"patch_size": 48}, r"--region-size: is 128 px, expected a multiple of the 48"),
        ([(128, 128)], {"stride": 64}, r"--stride: .* leave it out"),
        ([(128, 128)], {"patch_size": 4}, r"--patch-size: is 4 px, expected a multiple of 8"),
    ],
)
def test_images__of_other_sizes_are_refused(
    tmp_path: Path, embedding: PatchOptions, sizes: list[tuple[int, int]], fields: dict[str, Any], said: str
) -> None:
    images = {f"s/{64 * n}_0.png": png(coded_image(n, 0, 0, *size)) for n, size in enumerate(sizes)}
    build_dataset([write_tar(tmp_path / "a.tar", images)], tmp_path / "data", ShardOptions())
    with pytest.raises(ConfigError, match=said):
        embed_regions(tmp_path / "data", tmp_path / "out", options(embedding=embedding, **fields))
    assert not list(tmp_path.glob("out*"))


class _Ended(BaseException):
    pass


def _end_at(count: int) -> Callable[[str, int, int], None]:
    calls = iter(range(count))

    def report(_what: str, _done: int, _total: int) -> None:
        if next(calls, None) is None:
            raise _Ended

    return report


@pytest.mark.parametrize("name", ["images", "patches"])
def test_run_that_is_ended_anywhere__goes_on_to_the_same_files(
    sources: Path, tmp_path: Path, embedding: PatchOptions, name: str
) -> None:
    arguments = sources / name / "dataset", tmp_path / "out", options(embedding=embedding, sharding=_small_shards("x"))
    embed_regions(arguments[0], tmp_path / "whole", arguments[2])
    ends = 0
    while True:
        try:
            embed_regions(*arguments, report=_end_at(2 + ends))
            break
        except _Ended:
            ends += 1
            assert ends < 60
    assert ends >= 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.unfinished").exists()


def _small_shards(name: str) -> ShardOptions:
    return ShardOptions(name=name, max_count=5)


_KILLED = """
import os, signal, sys
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.regions.embed import embed_regions
from dinowds.embed.regions.ways import RegionOptions
from dinowds.shard.build import ShardOptions

embedding = PatchOptions(sys.argv[3], workers=0, precision="fp32", batch_size=10)
options = RegionOptions(128, patch_size=32, embedding=embedding, sharding=ShardOptions(name="x", max_count=5))
for phase in ("embed", "deal", "assemble", "write"):
    child = os.fork()
    if not child:
        def report(what, done, total):
            if what == phase and done:
                os.kill(os.getpid(), signal.SIGKILL)
        embed_regions(sys.argv[1], sys.argv[2], options, report)
        os._exit(0)
    print(-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.path.isdir(sys.argv[2] + ".unfinished"))
"""
"""Imports once, and is killed in each phase."""


def test_killed_run__goes_on_to_the_same_files(sources: Path, tmp_path: Path, embedding: PatchOptions) -> None:
    source = sources / "patches/dataset"
    arguments = [sys.executable, "-c", _KILLED, str(source), str(tmp_path / "out"), embedding.checkpoint]
    ended = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert ended.stdout.split() == [str(int(signal.SIGKILL)), "True"] * 4
    how = options(embedding=embedding, sharding=_small_shards("x"))
    with pytest.raises(OutputError, match=r"unfinished work of another command \(.*seed 0, now 1.*--overwrite"):
        embed_regions(source, tmp_path / "out", options(embedding=embedding, sharding=ShardOptions(name="x", seed=1)))
    embed_regions(source, tmp_path / "out", how)
    embed_regions(source, tmp_path / "whole", how)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_output__is_replaced_only_if_asked(tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.parquet", listed(8, 8, "y first"))
    embed_regions(path, tmp_path / "out", options())
    with pytest.raises(OutputError, match=r"already holds a dataset"):
        embed_regions(path, tmp_path / "out", options(stride=SIDE))
    assert not (tmp_path / "out.unfinished").exists()
    manifest = embed_regions(path, tmp_path / "out", options(stride=SIDE, sharding=ShardOptions(overwrite=True)))
    assert manifest is not None
    assert manifest.num_samples == 25


def test_output__of_the_same_question_is_made_anew_with_overwrite(tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.parquet", listed(8, 8, "y first"))
    embed_regions(path, tmp_path / "out", options())
    (shard,) = (tmp_path / "out/shards").iterdir()
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    embed_regions(path, tmp_path / "out", options(sharding=ShardOptions(overwrite=True)))
    assert shard.read_bytes() == content


def test_output__is_not_the_source(sources: Path, embedding: PatchOptions) -> None:
    before = contents(sources / "patches/dataset")
    with pytest.raises(ConfigError, match="is the source; give another folder"):
        embed_regions(
            sources / "patches/dataset",
            sources / "patches/dataset",
            options(embedding=embedding, sharding=ShardOptions(overwrite=True)),
        )
    assert contents(sources / "patches/dataset") == before


def test_output__of_someone_else_is_refused_at_once(tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.parquet", listed(8, 8, "y first"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"'thesis.txt', which dinowds did not write"):
        embed_regions(path, tmp_path / "out", options(sharding=ShardOptions(overwrite=True)))
    assert not (tmp_path / "out.unfinished").exists()


def test_work_of_a_published_dataset__is_only_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_features(tmp_path / "f.parquet", listed(8, 8, "y first"))
    with monkeypatch.context() as patch:
        patch.setattr("dinowds.embed.regions.work.Work.end", lambda _self: None)
        embed_regions(path, tmp_path / "out", options())
    assert (tmp_path / "out.unfinished").exists()
    before = contents(tmp_path / "out")
    embed_regions(path, tmp_path / "out", options())
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "out.unfinished").exists()


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished/thesis.txt").write_text("mine")
    yield tmp_path / "out.unfinished/thesis.txt"
    assert (tmp_path / "out.unfinished/thesis.txt").read_text() == "mine"


def test_work_folder_of_someone_else__is_left_alone(tmp_path: Path, foreign: Path) -> None:
    path = write_features(tmp_path / "f.parquet", listed(8, 8, "y first"))
    with pytest.raises(OutputError, match=r"in the way"):
        embed_regions(path, foreign.parent.with_name("out"), options(sharding=ShardOptions(overwrite=True)))


_PEAK = """
import resource, sys
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.regions.embed import embed_regions
from dinowds.embed.regions.ways import RegionOptions
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
embedding = PatchOptions(sys.argv[3], workers=0, batch_size=32)
embed_regions(sys.argv[1], sys.argv[2], RegionOptions(4096, embedding=embedding))
print(peak() - before)
"""


def test_images__of_4096_px_take_less_than_500_mb(tmp_path: Path, weights_path: Path) -> None:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(coded_image(3, 4, 1, 512, 512)).resize((4096, 4096)).save(content, "JPEG", progressive=True)
    images = {"s/0_0.jpg": content.getvalue()}
    build_dataset([write_tar(tmp_path / "a.tar", images)], tmp_path / "data", ShardOptions())
    arguments = [str(tmp_path / "data"), str(tmp_path / "out"), str(weights_path)]
    ended = subprocess.run([sys.executable, "-c", _PEAK, *arguments], check=True, capture_output=True, text=True)
    assert int(ended.stdout) < 500
