"""The folder of features: whose it is, and what makes it finished."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from dinowds.embed.patches.parts import Part, read_part
from dinowds.embed.patches.reader import ABOUT_NAME, FEATURES_NAME, UNFINISHED_NAME
from dinowds.errors import OutputError
from dinowds.files import lock_file, output_errors, remove_temporaries, write_atomic
from dinowds.train.monitor import BAD_SAMPLES_NAME
from dinowds.world import World

Question = Mapping[str, Any]
"""What every byte of the features follows from: plain JSON values by the names of options."""
State = Literal["new", "begun", "other"]
"""Nothing is there; what is there is of this question; or of another one."""

_LOCK_NAME = ".lock"
_PART = re.compile(r"features-\d{6,}\.parquet")
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_FOR_RANK_0 = 600.0

Wait = Callable[[float], None]
"""Waits so many seconds, or raises where the run is to stop."""


def digest_of(question: Question) -> str:
    """Hex sha256 of a question."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def look(folder: Path, question: Question) -> State:
    """What is in `folder`. Writes nothing.

    Raises:
        OutputError: it is a file, or holds files of anyone else.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder for features; give another --out")
    found = _question_of(folder)
    if found is not None:
        return "begun" if found == question else "other"
    if folder.exists() and any(folder.glob("[!.]*")):
        raise OutputError(f"{folder}: is not empty and holds no features of dinowds; give another --out")
    return "new"


def check_replaceable(folder: Path, question: Question, overwrite: bool) -> State:
    """`look`, but refuses features of another question unless `overwrite`."""
    state = look(folder, question)
    if state == "other" and not overwrite:
        before = _question_of(folder)
        changed = "; ".join(differences(before, question)) if before else "it does not say which"
        raise OutputError(
            f"{folder}: holds features of another dataset, model or options ({changed}); give another --out, or "
            "--overwrite to replace them"
        )
    return state


def differences(before: Question, now: Question) -> list[str]:
    """'dtype float16, now float32' of all that differ; of fingerprints the first digits."""
    return [
        f"{name} {_short(before.get(name))}, now {_short(now.get(name))}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]


@contextmanager
def own_folder(folder: Path, question: Question, overwrite: bool, world: World, wait: Wait) -> Iterator[None]:
    """Make `folder` one for features of `question`: rank 0 does, and keeps other jobs out; the others wait for that.

    Raises:
        OutputError: it cannot be written, holds something else, or another job is at work in it.
    """
    state = check_replaceable(folder, question, overwrite)
    with ExitStack() as stack:
        if world.rank == 0:
            try:
                with output_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(lock_file(folder / _LOCK_NAME))
                    _prepare(folder, question, check_replaceable(folder, question, overwrite))
                    if world.size == 1:
                        remove_temporaries(folder)
            except BlockingIOError:
                raise OutputError(
                    f"{folder}: another job is at work in it; wait for it, or give another --out"
                ) from None
        elif state != "begun":
            _wait_for_rank_0(folder, question, wait)
        yield


def part_path(folder: Path, shard: int) -> Path:
    return folder / FEATURES_NAME.format(shard)


def whole_part(folder: Path, shard: int, samples: int, digest: str) -> Part | None:
    """The finished file of a shard with so many selected samples; None where there is none, or not a whole one."""
    part = read_part(part_path(folder, shard))
    return part if part is not None and (part.question, part.shard, part.samples) == (digest, shard, samples) else None


def wait_for_parts(
    folder: Path, counts: list[int], digest: str, wait: Wait, notice: Callable[[str], None]
) -> list[Part]:
    """The finished files of all shards, those that other ranks are still to write too. `counts`: rows of each."""
    parts: dict[int, Part] = {}
    has_said = False
    while True:
        for shard in (shard for shard in range(len(counts)) if shard not in parts):
            if (part := whole_part(folder, shard, counts[shard], digest)) is not None:
                parts[shard] = part
        if len(parts) == len(counts):
            return [parts[shard] for shard in range(len(counts))]
        if not has_said:
            notice(f"waiting for {len(counts) - len(parts):,} of {len(counts):,} files, which other ranks write")
            has_said = True
        wait(_SECONDS_BETWEEN_LOOKS)


def finish(folder: Path, about: dict[str, Any], parts: list[Part]) -> None:
    """Write what is of all files, `features.json` last.

    Raises:
        OutputError: it cannot be written.
    """
    bad = [sample for part in parts for sample in part.bad]
    with output_errors(folder):
        remove_temporaries(folder)
        if bad:
            write_atomic(folder / BAD_SAMPLES_NAME, "".join(json.dumps(line) + "\n" for line in bad).encode())
        else:
            (folder / BAD_SAMPLES_NAME).unlink(missing_ok=True)
        content = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        write_atomic(folder / ABOUT_NAME, content.encode())
        (folder / UNFINISHED_NAME).unlink(missing_ok=True)


def is_finished(folder: Path) -> bool:
    return (folder / ABOUT_NAME).exists()


def _prepare(folder: Path, question: Question, state: State) -> None:
    if state == "begun":
        return
    if state == "other":
        _note(folder, {})  # of no one, to the end of the clearing: a run that dies in it can be given again
        for name in (ABOUT_NAME, BAD_SAMPLES_NAME):
            (folder / name).unlink(missing_ok=True)
        for path in [path for path in folder.iterdir() if _PART.fullmatch(path.name)]:
            path.unlink(missing_ok=True)
    _note(folder, question)


def _note(folder: Path, question: Question) -> None:
    write_atomic(folder / UNFINISHED_NAME, json.dumps({"question": question}, indent=1).encode())


def _wait_for_rank_0(folder: Path, question: Question, wait: Wait) -> None:
    deadline = time.monotonic() + _SECONDS_FOR_RANK_0
    while _question_of(folder) != question:
        if time.monotonic() > deadline:
            raise OutputError(
                f"{folder}: rank 0 has not begun here within {_SECONDS_FOR_RANK_0 / 60:.0f} minutes; see what it says, "
                "and that all ranks see the same folder"
            )
        wait(_SECONDS_BETWEEN_LOOKS)


def _question_of(folder: Path) -> dict[str, Any] | None:
    """What the features in `folder` are of, be they finished or not; None where there are none."""
    for name in (ABOUT_NAME, UNFINISHED_NAME):
        try:
            found = json.loads((folder / name).read_bytes())["question"]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
    return None


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)
