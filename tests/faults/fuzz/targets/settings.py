"""Configurations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from dinowds.config.keys import to_yaml
from dinowds.config.load import default_config_path, load_run
from dinowds.errors import ConfigError
from tests.faults.fuzz.targets import Finding, scratch

_KINDS: tuple[Literal["image"], Literal["region"]] = ("image", "region")


def config(data: bytes) -> None:
    """A byte that chooses the kind, a YAML file, and overrides, with NULs between them."""
    text, *overrides = data[1:].split(b"\0")
    path = scratch(text, "config.yaml")
    kind = _KINDS[data[0] & 1] if data else "image"
    try:
        loaded = load_run(path, [override.decode("utf-8", "replace") for override in overrides[:8]], kind, 2)
    except ConfigError as error:
        if "\n" in str(error):
            raise Finding(f"an error of more than one line: {str(error)!r}") from None
        return
    again = load_run(scratch(to_yaml(loaded.config).encode(), "again.yaml"), (), kind).config
    if again != loaded.config:
        raise Finding(f"written and read again, {loaded.config} is {again}")


def config_seeds() -> Iterator[bytes]:
    for kind, name in enumerate(("patch", "region")):
        yield bytes([kind]) + default_config_path(name).read_bytes() + b"\0optim.lr=1e-4\0train.batch_size=12"
    yield b"\0train:\n  seed: 3\noptim: {lr: 1e-3, epochs: 3}\ndata:\n  cohort_weights: {a: 2, b: 1.5}\n"
    yield b"\0a: &x [1, 2]\nb: *x\nc: !!float 3\nd: 2001-01-01\n? [1, 2]\n: 3\n<<: {e: 0x10, f: 1:30}"
    yield b"\0train:\n  dataset_path: 'P:root=/data'\n  output_dir: /out\n  batch_size_per_gpu: 8\n"
    yield b"\1train:\n  batch_size_per_gpu: 8\ncrops:\n  global_crops_scale: 0.5\n  x: ${train.seed}\n"
    yield b"\0\0speed.precision=fp32\0crops.local.count=2\0data.cohort_weights={a: 1}\0optim.lr=null"
    yield b"\0train: {seed: 2001-99-99}"
    yield b"\0train: {seed: !!bool x}"
    yield b"\0train: &a {seed: *a}"
    yield b"\0a0: &a0 [1, 1]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40))
    yield b"\0" + json.dumps({"train": {"seed": 1}}).encode()
