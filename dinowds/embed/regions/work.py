"""The folder beside a region dataset in which it is prepared: `OUT.unfinished`. Removed at the end.

question.json · features/ (of patches that are embedded for it) · bucket-*.f16 · grids/
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinowds.data.manifest import read_manifest
from dinowds.embed.patches.folder import Question, differences
from dinowds.errors import DatasetError, OutputError
from dinowds.files import lock_file, remove_abandoned, remove_temporaries, write_atomic
from dinowds.shard.outputs.local_output import LocalOutput
from dinowds.shard.outputs.workspace import remove_empty

_QUESTION = "question.json"
_LOCK = ".lock"
_SECONDS_BETWEEN_LOOKS = 0.2


class Work:
    """Paths, and what they say of an earlier run."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out.with_name(f"{out.name}.unfinished")
        self.features, self.grids = self.root / "features", self.root / "grids"

    def tidy(self) -> None:
        """Remove what a run has left that died as it began, or at its very end."""
        remove_abandoned(self.root / _QUESTION)
        remove_empty(self.root, _LOCK)
        remove_empty(LocalOutput(self.out).work)

    def check(self, question: Question, digest: str, overwrite: bool) -> None:
        """Whether this run may write. Changes nothing.

        Raises:
            OutputError: there is a dataset, or another run's work, and no `overwrite`; or what is no one's.
        """
        if self.root.exists() and not (self.root / _QUESTION).is_file() and self._names() - {_LOCK}:
            raise OutputError(f"{self.root}: is in the way and not of dinowds; move it, or give another --out")
        found = self._question()
        if found is not None and found != question and not overwrite:
            changed = "; ".join(differences(found, question))
            raise OutputError(
                f"{self.root}: is the unfinished work of another command ({changed}); give that one again to go on "
                "with it, or --overwrite to start anew"
            )
        there = LocalOutput(self.out).look()
        if there.foreign:
            raise OutputError(f"{self.out}: holds {there.foreign!r}, which dinowds did not write; give another --out")
        is_own = found == question and (self.is_published(digest) or not there.has_manifest)
        if (there.has_manifest or there.notes is not None) and not overwrite and not is_own:
            raise OutputError(f"{self.out}: already holds a dataset; give another --out, or --overwrite to replace it")

    def is_of(self, question: Question) -> bool:
        """Whether an earlier run has begun with this question here."""
        return self._question() == question

    @contextmanager
    def owned(self, question: Question, digest: str, overwrite: bool) -> Iterator[None]:
        """Keep other jobs out, and start anew where the work is not of this question.

        Raises OutputError as `check`, or where another job is at work.
        """
        self.check(question, digest, overwrite)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with lock_file(self.root / _LOCK):
                if self._question() != question:
                    self._clear()
                    write_atomic(self.root / _QUESTION, json.dumps(question, indent=1).encode())
                self.grids.mkdir(exist_ok=True)
                for folder in (self.root, self.grids):
                    remove_temporaries(folder)
                for path in self.root.glob("rank-*"):
                    path.unlink()
                yield
        except BlockingIOError:
            raise OutputError(
                f"{self.root}: another job is at work there; wait for it, or give another --out"
            ) from None

    def is_published(self, digest: str) -> bool:
        """Whether the dataset is there that comes of a question with this digest."""
        try:
            return read_manifest(self.out).metadata.get("question") == digest
        except DatasetError:
            return False

    def is_done(self, digest: str) -> bool:
        """Whether it is there, and nothing is left of how it was written."""
        return self.is_published(digest) and not LocalOutput(self.out).work.exists()

    def leave(self, rank: int) -> None:
        """A rank other than 0 has nothing more to do here."""
        (self.root / f"rank-{rank}").touch()

    def wait_for_ranks(self, size: int) -> None:
        """Rank 0 does, before anything is removed. Looks, as a collective would end after some minutes."""
        while not all((self.root / f"rank-{rank}").exists() for rank in range(1, size)):
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def drop_inputs(self) -> None:
        """The grids are made: what they came from may go."""
        shutil.rmtree(self.features, ignore_errors=True)
        for path in self.root.glob("bucket-*"):
            path.unlink()

    def end(self) -> None:
        """Remove all; the question last, so that a run that dies here can be given again."""
        self._clear()
        (self.root / _QUESTION).unlink(missing_ok=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def _clear(self) -> None:
        for name in sorted(self._names() - {_LOCK, _QUESTION}):
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _names(self) -> set[str]:
        return {path.name for path in self.root.iterdir()} if self.root.is_dir() else {"a file"}

    def _question(self) -> dict[str, object] | None:
        try:
            found = json.loads((self.root / _QUESTION).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
