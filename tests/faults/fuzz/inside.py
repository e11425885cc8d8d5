"""The process that fuzzes: `python -m tests.faults.fuzz.inside NAME OPTIONS-OF-LIBFUZZER CORPUS`."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import atheris  # type: ignore[import-untyped]

from tests.faults.fuzz import targets


def main() -> None:
    name, *options = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable()
    with atheris.instrument_imports(include=["dinowds"]):
        target = targets.load(name)
    for number, seed in enumerate(target.seeds()):
        (Path(options[-1]) / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
