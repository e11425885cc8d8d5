"""How far a run is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dinowds.shard.write.arrange import Images, Int64s

Phase = Literal["list", "deal", "write", "index"]


@dataclass(frozen=True)
class ShardProgress:
    """`list` counts members; `deal` (to buckets on disk), `write` and `index` the whole."""

    phase: Phase
    samples: int = 0
    total_samples: int = 0
    num_bytes: int = 0
    total_bytes: int = 0


Report = Callable[[ShardProgress], None]
"""Called now and then, from one thread at a time."""


class Progress:
    """Adds up what is done of the samples `parts` of `images`; the rest was done before."""

    def __init__(self, phase: Phase, images: Images, parts: Sequence[Int64s], report: Report) -> None:
        sizes = images.numbers("size")
        self._phase, self._report = phase, report
        self._total, self._total_bytes = len(images), int(sizes.sum())
        self._samples = self._total - sum(len(part) for part in parts)
        self._bytes = self._total_bytes - sum(int(sizes[part].sum()) for part in parts)
        self._lock = threading.Lock()
        self.advance(0, 0)

    def advance(self, samples: int, num_bytes: int) -> None:
        """So many more are done; called in any thread."""
        with self._lock:
            self._samples, self._bytes = self._samples + samples, self._bytes + num_bytes
            self._report(ShardProgress(self._phase, self._samples, self._total, self._bytes, self._total_bytes))
