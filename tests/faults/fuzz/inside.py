"""The process that fuzzes: `python -m tests.faults.fuzz.inside NAMES FOLDER OPTIONS-OF-LIBFUZZER`.

Names are separated by commas. Imports with instrumentation once, then a fork fuzzes each target, from and to
`FOLDER/NAME`, and writes what it says to `FOLDER/NAME.log`. Prints the exit code of each, a line a target.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import atheris  # type: ignore[import-untyped]

from tests.faults.fuzz import targets


def main() -> None:
    names, folder, *options = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable()
    with atheris.instrument_imports(include=["dinowds"]):
        loaded = {name: targets.load(name) for name in names.split(",")}
    for name, target in loaded.items():
        child = os.fork()
        if not child:
            fuzz(target, Path(folder) / name, options)
        print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


def fuzz(target: targets.Target, corpus: Path, options: list[str]) -> None:
    """Does not return."""
    log = os.open(f"{corpus}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
