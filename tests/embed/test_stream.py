from __future__ import annotations

from dinowds.data.dataset import Sample
from dinowds.data.store.runs import MAX_GAP
from dinowds.data.store.store import Run
from dinowds.embed.patches.stream import runs_of


def samples_at(offsets: list[int], size: int = 100) -> list[Sample]:
    return [Sample(number, f"k{number}", 3, offset, size, "jpg", b"", None) for number, offset in enumerate(offsets)]


def test_runs__join_neighbours_and_leave_gaps_out() -> None:
    gap = 200 + MAX_GAP
    runs = runs_of(samples_at([0, 150, gap + 51, gap + 200]))
    assert runs == [Run(3, 0, 250)] * 2 + [Run(3, gap + 51, gap + 300)] * 2
    assert runs_of([]) == []


def test_runs__hold_every_sample_and_stay_small() -> None:
    samples = samples_at([100 * number for number in range(100)])
    runs = runs_of(samples)
    assert all(run.start <= s.offset and s.offset + s.size <= run.stop for s, run in zip(samples, runs, strict=True))
    assert [runs.count(run) for run in dict.fromkeys(runs)] == [32, 32, 32, 4]
