"""`dinowds index`: what other readers want beside the shards."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import interruptible, print_json, print_notice
from .tables import format_bytes, make_table
from .withdraw import counting

if TYPE_CHECKING:
    from dinowds.interop.write import Indexed, Written


class Reader(str, Enum):
    """Of `--for`."""

    WIDS = "wids"
    DALI = "dali"
    ENERGON = "energon"
    TIMM = "timm"
    HF = "hf"
    ALL = "all"


def index(
    dataset: Annotated[str, typer.Argument(help="Folder that 'dinowds shard' wrote to.", show_default=False)],
    readers: Annotated[
        list[Reader], typer.Option("--for", help="What is to read the dataset; several, or all.", show_default=False)
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md and the like that others wrote.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """Write what wids, NVIDIA DALI, Megatron-Energon, timm or Hugging Face datasets need beside the shards.

    No shard is written or changed. Give the command again when the dataset has changed.

    [dim]dinowds index datasets/patches --for dali --for timm[/dim]
    """
    from dinowds.interop.names import READERS
    from dinowds.interop.write import write_indexes

    chosen = READERS if Reader.ALL in readers else tuple(reader.value for reader in readers)
    with interruptible("begin anew"), counting("shards") as report:
        done = write_indexes(dataset, chosen, overwrite, report)
    for notice in done.notices:
        print_notice(notice)
    _print(done, as_json)


def _print(done: Indexed, as_json: bool) -> None:
    if as_json:
        readers = {written.reader: {"files": written.files, "bytes": written.num_bytes} for written in done.written}
        print_json({"dataset": done.root, "readers": readers})
        return
    from rich.console import Console

    rows = [(w.reader, len(w.files), format_bytes(w.num_bytes), _where(w)) for w in done.written]
    Console().print(make_table(done.root, ("for", "files", "bytes", "where"), rows))


def _where(written: Written) -> str:
    """Files by their folder: '.nv-meta, shards'; the name of a single one."""
    if not written.files:
        return "manifest.json, as it is"
    if len(written.files) == 1:
        return written.files[0]
    return ", ".join(sorted({name.rpartition("/")[0] for name in written.files}))
