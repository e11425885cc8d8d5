"""What is fuzzed: functions of bytes, which raise only where they have found a fault.

Each is `module.name`, and `module.name_seeds()` yields inputs to begin with, made anew by the writers of tests.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

TARGETS = {
    "tar": ("archives", "the tar scanner"),
    "pax": ("archives", "the reader of PAX headers"),
    "zipped": ("archives", "the zip lister"),
    "headers": ("images", "the image checks in C"),
    "decode": ("images", "the image decoder"),
    "keys": ("names", "the key maker"),
    "urls": ("names", "the URL parser"),
    "where": ("names", "the reader of conditions"),
    "manifest": ("tables", "the manifest reader"),
    "index": ("tables", "the Parquet index reader"),
    "subset": ("tables", "the subset reader"),
    "labels": ("tables", "the label reader"),
    "columns": ("tables", "the reader of CSV and Parquet tables"),
    "config": ("settings", "the configuration loader"),
    "unpickle": ("pickles", "the legacy unpickler"),
    "sidecars": ("pickles", "the readers of indices of others"),
    "weights": ("weights", "the reader of weights and checkpoints"),
}
"""Name → module, and what it is for people."""


class Finding(AssertionError):
    """What must never be, but is."""


class Target(NamedTuple):
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


def load(name: str) -> Target:
    """Imports what the target needs, and no more."""
    module = importlib.import_module(f"{__name__}.{TARGETS[name][0]}")
    return Target(getattr(module, name), getattr(module, f"{name}_seeds"))


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))  # in TMPDIR, which whoever started this process removes


def scratch(content: bytes, name: str = "input") -> Path:
    """A file with `content`; the next call for this name overwrites it."""
    path = _folder() / name
    # Cut and written in place: what maps the file of an earlier input holds it no more.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
    return path
