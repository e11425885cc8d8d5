"""`dinowds inspect --crops`: a contact sheet of a few samples' views."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .shared import interruptible, print_notice

if TYPE_CHECKING:
    from dinowds.config import CropsConfig

_MAX_SAMPLES = 64


def write_sheet(
    location: str,
    count: int,
    out: Path,
    names: Sequence[str],
    config: Path | None,
    overrides: Sequence[str],
    seed: int | None,
    overwrite: bool,
) -> None:
    """Draw the views of `count` samples of a dataset, as a run's first visit has them, into the PNG file `out`."""
    from dinowds.config import load_config
    from dinowds.crops.examples import example_sheet
    from dinowds.data.dataset import Dataset
    from dinowds.errors import DatasetError
    from dinowds.files import write_atomic
    from dinowds.remote.urls import shown

    _check_options(count, out, overwrite)
    loaded = load_config(config, overrides)
    renderers = _renderers(names, loaded.crops)
    seed = loaded.train.seed if seed is None else seed
    with interruptible("begin anew"):
        opened = Dataset.open(location)
        if opened.manifest.kind != "image":
            raise DatasetError(
                f"{shown(location)}: holds {opened.manifest.kind} samples, a contact sheet shows the crops of images"
            )
        verify = loaded.data.verify_digests
        title = shown(location)
        picture, drawn = example_sheet(title, opened, count, renderers, loaded.crops, seed, verify, print_notice)
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_atomic(out, content.getvalue())
    print(f"{out}: {drawn} samples, {picture.width} x {picture.height} px")  # noqa: T201


def _check_options(count: int, out: Path, overwrite: bool) -> None:
    from dinowds.errors import ConfigError, OutputError

    if not 1 <= count <= _MAX_SAMPLES:
        raise ConfigError(f"--crops is {count}, expected 1 to {_MAX_SAMPLES} samples")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: expected a name that ends in .png")
    if out.is_dir():
        raise OutputError(f"{out}: is a folder; give another --out")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists; give another --out, or --overwrite to replace it")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; make it, or give another --out")


def _renderers(names: Sequence[str], crops: CropsConfig) -> list[str]:
    """Those that are asked for, the reference first; without any, the one that a run on this machine would take."""
    from dinowds.crops.recipe import RENDERERS
    from dinowds.errors import ConfigError
    from dinowds.train.devices import choose_device, resolve_renderer
    from dinowds.world import World

    known = ["pil", *(name for name in RENDERERS if name not in ("auto", "pil"))]
    for name in names:
        if name not in (*known, "all"):
            raise ConfigError(f"--renderer is {name!r}, expected {', '.join(known)} or all")
    asked = names or [resolve_renderer(crops.renderer, choose_device(World()))]
    return [name for name in known if name in asked or "all" in asked]
