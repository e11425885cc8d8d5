"""What must hold for any numbers and any names, drawn by hypothesis: the plan, and shard → read."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, given, settings

from dinowds.data.dataset import Dataset
from dinowds.data.order.plan import EpochPlan, Order
from dinowds.data.subsets.selection import Selection, pack_mask
from dinowds.data.verify import verify_dataset
from dinowds.shard.build import ShardOptions, build_dataset
from dinowds.shard.records import MAX_KEY_BYTES, decode_name
from tests.faults.form import IS_FULL, amount, tally
from tests.support import jpeg_patch

KEY = re.compile(r"(?:[0-9A-Za-z_-]+/)*[0-9A-Za-z_-]+")
PAYLOADS = [jpeg_patch(seed, 8) for seed in range(4)]
settings.register_profile(
    "faults",
    deadline=None,
    derandomize=not IS_FULL,  # the short form is to be the same each time
    database=None,
    suppress_health_check=list(HealthCheck),
)
COMMON = settings.get_profile("faults")


@st.composite
def plans(draw: st.DrawFn) -> tuple[EpochPlan, np.ndarray]:
    """A plan, and the ids of the samples that it is of."""
    counts = draw(st.lists(st.integers(0, 70), min_size=1, max_size=12).filter(any))
    mask = None
    if draw(st.booleans()):
        chosen = np.random.default_rng(draw(st.integers(0, 99))).random(sum(counts)) < draw(st.floats(0.1, 1))
        chosen[draw(st.integers(0, sum(counts) - 1))] = True
        mask = pack_mask(chosen)
    selection = Selection(counts, mask)
    ids = selection.all_ids()
    partitions, per_partition = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    while partitions * per_partition > len(ids):
        partitions, per_partition = max(1, partitions // 2), max(1, per_partition // 2)
    order = Order(
        batch_size=partitions * per_partition,
        seed=draw(st.integers(0, 2**40)),
        chunk_size=draw(st.integers(1, 40)),
        window_chunks=draw(st.none() | st.integers(1, 9)),
        partitions=draw(st.sampled_from([None, partitions])),
    )
    return EpochPlan(selection, order), ids


@settings(COMMON, max_examples=amount(40, 2500))
@given(plans(), st.integers(0, 5), st.data())
def test_plan__each_sample_once_whoever_reads_it(
    drawn: tuple[EpochPlan, np.ndarray], epoch: int, data: st.DataObject
) -> None:
    """Ranks take their slice of each batch, workers take turns, and a later start is the tail of an earlier one."""
    plan, ids = drawn
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    batch = plan.order.batch_size
    whole = plan.draws(steps).ids
    assert whole.shape == (len(ids) // batch, batch)
    assert len(np.unique(whole)) == whole.size > len(ids) - batch
    assert np.isin(whole, ids).all()
    world = data.draw(st.sampled_from([size for size in range(1, batch + 1) if batch % size == 0]), "ranks")
    workers, start = data.draw(st.integers(1, 5), "workers"), data.draw(st.sampled_from(steps), "start")
    share = plan.order.rank_batch(world)
    again = EpochPlan(plan.selections[0], plan.order)
    read = np.full_like(whole, -1)
    for rank in range(world):
        for worker in range(workers):
            for step in range(start + worker, steps.stop, workers):
                read[step - steps.start, rank * share : (rank + 1) * share] = again.ids(
                    step, rank * share, (rank + 1) * share
                )
    assert np.array_equal(read[start - steps.start :], whole[start - steps.start :])
    tally("plans of random sizes, each sample once")


LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("/._-äß0\n\x1b\\ ()")
NAMES = (
    st.text(LETTERS, min_size=1, max_size=24)
    .map(lambda text: f"{text}.jpg")
    .filter(lambda name: "/._" not in f"/{name}" and "__MACOSX" not in name)
)
COHORTS = st.lists(st.lists(st.tuples(NAMES, st.integers(0, 3)), min_size=1, max_size=9), min_size=1, max_size=3)


@settings(COMMON, max_examples=amount(12, 800))
@given(
    COHORTS,
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.builds(
        ShardOptions,
        seed=st.integers(0, 2**30),
        shuffle=st.booleans(),
        max_count=st.none() | st.integers(1, 6),
        workers=st.integers(1, 2),
        memory=st.none() | st.just(1 << 24),
    ),
)
def test_shard__what_is_read_is_what_went_in(
    cohorts: list[list[tuple[str, int]]], form: int, options: ShardOptions
) -> None:
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        expected = []
        sources = []
        for number, members in enumerate(cohorts):
            sources.append(folder / f"cohort{number}.tar")
            with tarfile.open(sources[-1], "w", format=form) as tar:
                for name, payload in members:
                    member = tarfile.TarInfo(name)
                    member.size = len(PAYLOADS[payload])
                    tar.addfile(member, io.BytesIO(PAYLOADS[payload]))
            with tarfile.open(sources[-1]) as tar:  # which strips what no reader keeps
                names = [member.name for member in tar]
            expected += [(f"cohort{number}", name, payload) for name, (_, payload) in zip(names, members, strict=True)]
        build_dataset(sources, folder / "out", options)
        before = {path.relative_to(folder) for path in folder.iterdir()}
        assert before == {Path("out"), *(source.relative_to(folder) for source in sources)}, "written outside"
        assert verify_dataset(folder / "out") == []
        dataset = Dataset.open(folder / "out")
        assert len(dataset) == len(expected)
        keys, found = [], []
        columns = dataset.columns(["cohort", "source_name"]).to_pylist()
        for sample, row in zip(dataset, columns, strict=True):
            with open(dataset.shard_url(sample.shard), "rb") as file:
                file.seek(sample.offset)
                content = file.read(sample.size)
            keys.append(sample.key)
            found.append((row["cohort"], row["source_name"], PAYLOADS.index(content)))
        stored = [
            (cohort, decode_name(name.encode("utf-8", "surrogateescape")), payload)
            for cohort, name, payload in expected
        ]
        assert sorted(found) == sorted(stored)
        assert len({*keys}) == len(keys)
        assert all(KEY.fullmatch(key) and len(key) <= MAX_KEY_BYTES for key in keys), keys
        if not options.shuffle:
            assert found == stored
    tally("random sources sharded and read")
