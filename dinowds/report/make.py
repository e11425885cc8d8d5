"""From what is asked for to one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dinowds.data.location import split_location
from dinowds.errors import ConfigError, OutputError
from dinowds.remote.files import is_remote
from dinowds.report.page import write_page
from dinowds.train.folder import CONFIG_NAME
from dinowds.train.monitor import METRICS_NAME

Kind = Literal["run", "dataset"]
REPORT_NAME = "report.html"
"""In a run's folder."""


@dataclass(frozen=True)
class Made:
    path: Path
    kind: Kind
    num_bytes: int


def make_report(
    targets: Sequence[str], out: Path | None = None, data: str | None = None, overwrite: bool = False
) -> Made:
    """Write the page of a dataset, of a run, or of several runs side by side.

    Args:
        targets: run folders, or one DATASET or DATASET:SUBSET, a folder or a URL.
        out: the HTML file; None for `default_out`.
        data: DATASET[:SUBSET] of the pictures of a run; None for the one that it was trained on.
        overwrite: replace what is at `out`.

    Raises:
        ConfigError: targets that are no runs and no dataset, or do not go together; the extra `report` is missing.
        DatasetError: the dataset cannot be opened.
        OutputError: something is at `out` already, or it cannot be written.
    """
    kinds = {kind_of(target) for target in targets}
    if kinds == {"run"}:
        if data is not None and len(targets) > 1:
            raise ConfigError("--data is for the pictures of one run; leave it out for several")
        path = _free(out or default_out(targets, "run"), overwrite)
        from dinowds.report.run import run_page

        return Made(path, "run", write_page(run_page([Path(target) for target in targets], data), path))
    if len(targets) > 1:
        raise ConfigError(f"{targets[0]}: a report shows one dataset, or runs; give them one by one")
    if data is not None:
        raise ConfigError("--data is for the pictures of a run; a dataset's page shows that dataset")
    return make_dataset_report(targets[0], out, overwrite)


def make_dataset_report(location: str, out: Path | None = None, overwrite: bool = False) -> Made:
    """Write the page of DATASET or DATASET:SUBSET; as `make_report`."""
    path = _free(out or default_out([location], "dataset"), overwrite)
    from dinowds.report.dataset import dataset_page

    return Made(path, "dataset", write_page(dataset_page(location), path))


def kind_of(target: str) -> Kind:
    """A run's folder has a configuration or figures; whatever else is there may be a dataset.

    Raises:
        ConfigError: there is nothing of this name.
    """
    root, _ = split_location(target)
    if is_remote(root):
        return "dataset"
    if any((Path(target) / name).exists() for name in (CONFIG_NAME, METRICS_NAME)):
        return "run"
    if not Path(root).exists():
        raise ConfigError(f"{target}: no such run folder or dataset")
    return "dataset"


def default_out(targets: Sequence[str], kind: Kind) -> Path:
    """RUN/report.html; DATASET-report.html or DATASET-SUBSET-report.html beside a dataset, here for a remote one.

    Raises:
        ConfigError: several runs, whose page is no one's.
    """
    if kind == "run":
        if len(targets) > 1:
            raise ConfigError("a report of several runs needs --out FILE.html")
        return Path(targets[0]) / REPORT_NAME
    root, subset = split_location(targets[0])
    folder = Path(root.rstrip("/").rsplit("/", 1)[-1]) if is_remote(root) else Path(root).resolve()
    return folder.with_name(f"{folder.name}{'' if subset is None else f'-{subset}'}-{REPORT_NAME}")


def _free(path: Path, overwrite: bool) -> Path:
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; make it, or give another --out")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file; give another --out")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; give --overwrite to replace it, or another --out")
    return path
